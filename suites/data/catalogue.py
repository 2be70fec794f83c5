"""Every set that the suites know: its name, its licence, where it is published, what it must hash to.

    pg19/{test,validation,train}    books, one file each
    scrolls/TASK                    the seven tasks of SCROLLS, and SQuALITY in the same form
    lm_eval/TASK                    rows of seven lm-eval tasks, in the split that lm-eval scores

A checksum stands here only where its publisher (or the index of a library that once served the set) states
it; where none is known it is None, and `kvmark data verify` says "not pinned". Addresses name a revision
where the host has revisions. None needs a dataset script: there are plain files, zips and parquet tables.
We have not fetched from these addresses ourselves yet; what came from elsewhere can be imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from .faults import DataError
from .pg19_books import BYTES

SPLITS = ("test", "validation", "train")
HUB = "https://huggingface.co"
BUCKET = "https://storage.googleapis.com/deepmind-gutenberg"


@dataclass(frozen=True)
class Remote:
    """One file as published. `sha256` None: not pinned. `bytes` None: the server is asked."""

    url: str
    sha256: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Dataset:
    """One set. `fetch` turns `files` into the suites' layout; `bytes` counts all that is fetched."""

    name: str
    licence: str
    home: str
    files: tuple[Remote, ...]
    bytes: int | None = None
    remark: str = ""

    @property
    def pinned(self) -> bool:
        return all(file.sha256 for file in self.files)

    @property
    def importable(self) -> str:
        """What `kvmark data import` takes for this set, in words."""
        kind, _, split = self.name.partition("/")
        if kind == "pg19":
            return f"the books of {self.name} (NUMBER.txt in a folder {split})"
        names = [file.url.rpartition("/")[2] for file in self.files]
        return names[0] if len(names) == 1 else f"{' and '.join(names)} (in one folder)"


def hub(repository: str, revision: str, path: str, sha256: str | None, size: int | None) -> Remote:
    return Remote(f"{HUB}/datasets/{repository}/resolve/{revision}/{path}", sha256, size)


#: Titles of all books, and the index of the datasets library with the checksum of every file of PG-19.
PG19_TITLES = Remote(
    f"{BUCKET}/metadata.csv", "fbb2fdb48522927b2e16aa52950f2afeb83c6fa8fed45f0c3dd834e9bc9b43b9", 2_737_447
)
PG19_INDEX = Remote(
    "https://raw.githubusercontent.com/huggingface/datasets/6ce73f6263f9fc3df0db84ae7f937d27a5c208f7/"
    "datasets/pg19/dataset_infos.json",
    "e1aee83469a852323b2a93a16772e4f17b33a7c5a675daf70488d59f42c076f7",
    4_190_146,
)

#: The revision of January 2024: the zips that papers used. Those at `main` have been replaced since.
_SCROLLS = ("tau/scrolls", "fd1aa83070c138b7b7f381388d3b59f1f70a0fa7")
_ARC = ("allenai/ai2_arc", "16644173ab25fa007c815e3204a8b59a4034ba1b")
_PIQA = "https://raw.githubusercontent.com/ybisk/ybisk.github.io/21edab439af693b961be2f069e8690a88d3b4e37"
_SQUALITY = "https://raw.githubusercontent.com/nyu-mll/SQuALITY/dc08d4f574639d773bc64ef3ab3527043108fb4e"


def _pg19(split: str) -> Dataset:
    files = (PG19_TITLES, PG19_INDEX) if split == "train" else (PG19_TITLES,)
    return Dataset(
        f"pg19/{split}", "Apache-2.0; books public domain in the USA", "github.com/google-deepmind/pg19",
        files, BYTES[split] + sum(file.bytes or 0 for file in files),
    )  # fmt: skip


def _scrolls(task: str, licence: str, sha256: str | None, size: int | None, remark: str = "") -> Dataset:
    files = (hub(*_SCROLLS, f"{task}.zip", sha256, size),)
    return Dataset(f"scrolls/{task}", licence, "huggingface.co/datasets/tau/scrolls", files, size, remark)


def _rows(task: str, licence: str, home: str, *files: Remote) -> Dataset:
    return Dataset(f"lm_eval/{task}", licence, home, files, sum(file.bytes or 0 for file in files))


_SETS = (
    *map(_pg19, SPLITS),
    _scrolls(
        "gov_report", "US Government works, public domain in the USA",
        "b0adf0d2304fa34f89580a36bb0e7871793aa99613224e5b970f554dfb43b1cc", 316_229_863,
    ),
    _scrolls(
        "summ_screen_fd", "transcripts of TV series: copyrighted, not for redistribution", None, None,
        "about 51 MB",
    ),
    _scrolls(
        "qmsum", "MIT", "6dff4c1ffb7d81cdd909872862f65a2fc9409e6e4b9c15665e281338a48bc61b", 27_288_503,
    ),
    _scrolls(
        "qasper", "CC BY 4.0", "f5b6a3dda9eaeab13d14c3aa6ee8f2c1a87b1db2690a361a729e13ba74809377", 20_136_770,
    ),
    _scrolls(
        "narrative_qa", "Apache-2.0; books public domain in the USA, film scripts copyrighted",
        "1a91b383704dcd15096f7ef024e7dea3f2fabc0f41db07e9f89a22b01e1688e9", 8_048_900_135,
    ),
    _scrolls(
        "quality", "CC BY 4.0", "3bb71203206d60db4da2af517ed29f433798a0fb34dbdeb95088cd61527c2cce",
        31_252_462,
    ),
    _scrolls(
        "contract_nli", "CC BY 4.0", "9e53af34b625c0d4576e718548511212f24edd81e923636c444645ee69762565",
        4_862_245,
    ),
    Dataset(
        "scrolls/squality", "CC BY 4.0; stories public domain in the USA", "github.com/nyu-mll/SQuALITY",
        (
            Remote(
                f"{_SQUALITY}/data/v1-3/txt/dev.jsonl",
                "e9cbb1daff74b70a6cd15641ba2f602a925761759200a17c9225aca90018a42b", 1_474_020,
            ),
        ), 1_474_020,
    ),
    _rows(
        "hellaswag", "MIT", "github.com/rowanz/hellaswag",
        Remote(
            "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
            "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588", 12_246_618,
        ),
    ),
    _rows(
        "arc_easy", "CC BY-SA 4.0", "huggingface.co/datasets/allenai/ai2_arc",
        hub(
            *_ARC, "ARC-Easy/test-00000-of-00001.parquet",
            "4160597d618ae851c7eb04e281574f3f654776216ac6b6641588d64527b47177", 346_257,
        ),
    ),
    _rows(
        "arc_challenge", "CC BY-SA 4.0", "huggingface.co/datasets/allenai/ai2_arc",
        hub(
            *_ARC, "ARC-Challenge/test-00000-of-00001.parquet",
            "62f03257e737aed263f55c6abf87c7bb0028a44a6bdd2a26eb1279eb42c1d1e9", 203_808,
        ),
    ),
    _rows(
        "winogrande", "CC BY", "winogrande.allenai.org",
        Remote(
            "https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip",
            "3619ab104d8be2977b25c90ff420cb42d491707dcc75362a1e5d22bc082b7318", 3_395_492,
        ),
    ),
    _rows(
        "piqa", "AFL-3.0", "yonatanbisk.com/piqa",
        Remote(
            f"{_PIQA}/piqa/data/valid.jsonl",
            "93503cc97c679e459b065c3d13e848282e44b2a25213985bed3e5d458abef72d", 495_929,
        ),
        Remote(
            f"{_PIQA}/piqa/data/valid-labels.lst",
            "b4192dc3a2a0363d9d60ccf79800cbbe2f32ebb17726efdde6970e0b8131bceb", 3_676,
        ),
    ),
    _rows(
        "boolq", "CC BY-SA 3.0", "super.gluebenchmark.com",
        Remote(
            "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/BoolQ.zip",
            "853fbe7922f70c59629f06a39e8d9ca440c3d740e760fd3b87a5ddf3dcba2436", 4_118_001,
        ),
    ),
    _rows(
        "lambada_openai", "CC BY 4.0 (this copy: MIT)", "huggingface.co/datasets/EleutherAI/lambada_openai",
        hub(
            "EleutherAI/lambada_openai", "900124bf3b8235c6daf21033af9948b3f07346c4",
            "data/lambada_test_en.jsonl",
            "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226", 1_819_752,
        ),
    ),
)  # fmt: skip
CATALOGUE = {dataset.name: dataset for dataset in _SETS}


def select(names: list[str]) -> list[Dataset]:
    """The sets of these names in the catalogue's order; `pg19`, `scrolls` and `lm_eval` name all of theirs.

    Raises DataError.
    """
    chosen = set()
    for name in names:
        found = [known for known in CATALOGUE if known == name or known.startswith(f"{name}/")]
        if not found:
            raise DataError(f"There is no set '{name}'; known: {', '.join(CATALOGUE)}.")
        chosen.update(found)
    return [dataset for name, dataset in CATALOGUE.items() if name in chosen]
