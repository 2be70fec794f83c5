"""Sets from a local server that stands in for their publishers: every kind of file, up to suites' rows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from data_rows import LM_EVAL, SCROLLS, STORY, jsonl, scrolls_zip, tree, zipped

from suites import data, text
from suites.data import fetch_books
from suites.data.catalogue import CATALOGUE, Dataset, Remote, select
from suites.data.download import Patience
from suites.data.faults import DataError, Unavailable, amount
from suites.data.fetch import fetch, refuse_without_room, sized
from suites.data.pg19_books import BOOKS, official
from suites.data.store import claim, record_of

pytest_plugins = ("data_server",)
QUICK = Patience(tries=2, delay_s=0.001, connect_s=2, read_s=2)
BOOK = {str(n): f"Book {n}\r\nline\r\n".encode() for n in (2, 10, 33)}


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    for name in ("KVMARK_DATA", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def publish(server):
    """publish(set, {file name: bytes}, pinned) -> the catalogue's entry, with the server as publisher."""

    def build(name: str, files: dict[str, bytes], pinned: bool = True) -> Dataset:
        server.files.update({f"/{file}": raw for file, raw in files.items()})
        remotes = tuple(
            Remote(f"{server.url}/{file}", *((sha256(raw), len(raw)) if pinned else ()))
            for file, raw in files.items()
        )
        size = sum(map(len, files.values())) if pinned else None
        return replace(CATALOGUE[name], files=remotes, bytes=size)

    return build


def rows_of(relative: str) -> list[dict]:
    path = data.find(relative)
    return [json.loads(line) for line in data.read(path).splitlines()] if path else []


@pytest.mark.parametrize("task", ["qmsum", "quality"])
def test_a_task_of_scrolls_comes_out_of_its_zip(root, publish, tmp_path, task):
    raw = scrolls_zip(tmp_path / "a.zip", task).read_bytes()
    heard = []
    record = fetch(root, publish(f"scrolls/{task}", {f"{task}.zip": raw}), lambda *news: heard.append(news))
    assert rows_of(f"scrolls/{task}/validation.jsonl") == SCROLLS[task]
    assert record.pinned and record == record_of(root, f"scrolls/{task}")
    assert heard[-1] == (f"scrolls/{task}", len(raw), len(raw))
    assert not (root / ".partial" / "scrolls" / task).exists()


def test_squality_becomes_one_row_per_reference(root, publish):
    story = {
        "metadata": {"passage_id": "63833"},
        "document": f"  {STORY}\n\n",
        "questions": [
            {
                "question_number": 1,
                "question_text": "What is the plot?",
                "responses": [{"response_text": "A house.\n"}, {"response_text": "An empty house."}],
            }
        ],
    }
    fetch(root, publish("scrolls/squality", {"dev.jsonl": jsonl([story])}))
    first, second = rows_of("scrolls/squality/validation.jsonl")
    assert first == {
        "id": "63833_1", "pid": "63833_1_0", "input": f"What is the plot?\n\n{STORY}", "output": "A house.",
    }  # fmt: skip
    assert (second["id"], second["pid"], second["output"]) == ("63833_1", "63833_1_1", "An empty house.")


def table(rows: list[dict], path: Path) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


def test_every_set_of_lm_eval_gets_the_fields_of_the_hub(root, publish, tmp_path):
    """From what its publisher serves: numbers for labels, labels in a file of their own, members of a zip."""
    piqa = [{key: row[key] for key in ("goal", "sol1", "sol2")} for row in LM_EVAL["piqa"]]
    winogrande = jsonl([{"qID": "x-1", **LM_EVAL["winogrande"][0]}])
    boolq = jsonl([{**LM_EVAL["boolq"][0], "label": True}])
    published = {
        "hellaswag": {"val.jsonl": jsonl([{**LM_EVAL["hellaswag"][0], "label": 1}])},
        "arc_easy": {"easy.parquet": table(LM_EVAL["arc_easy"], tmp_path / "a")},
        "arc_challenge": {"hard.parquet": table(LM_EVAL["arc_challenge"], tmp_path / "b")},
        "piqa": {"valid.jsonl": jsonl(piqa), "valid-labels.lst": b"0\n"},
        "winogrande": {"w.zip": zipped(tmp_path / "w", {"w/dev.jsonl": winogrande}).read_bytes()},
        "boolq": {"B.zip": zipped(tmp_path / "B", {"BoolQ/val.jsonl": boolq}).read_bytes()},
        "lambada_openai": {"lambada.jsonl": jsonl(LM_EVAL["lambada_openai"])},
    }
    for task, files in published.items():
        fetch(root, publish(f"lm_eval/{task}", files))
        found = rows_of(f"lm_eval/{task}.jsonl")
        assert json.dumps(found, sort_keys=True) == json.dumps(LM_EVAL[task], sort_keys=True)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("lm_eval/piqa", {"valid.jsonl": jsonl(LM_EVAL["piqa"]), "labels.lst": b"0\n1\n"}),
        ("lm_eval/hellaswag", {"val.jsonl": b'{"ctx": "no label"}\n'}),
        ("lm_eval/arc_easy", {"easy.parquet": b"PAR1, or so it says"}),
        ("scrolls/qmsum", {"qmsum.zip": b"no zip"}),
    ],
)
def test_published_files_that_are_not_what_was_published(root, publish, name, files):
    with pytest.raises(DataError) as caught:
        fetch(root, publish(name, files))
    assert str(caught.value).endswith(".") and not isinstance(caught.value, Unavailable)
    assert tree(root) == {}


def test_what_has_no_published_checksum_is_held_to_its_task(root, publish, tmp_path, server):
    wrong = scrolls_zip(tmp_path / "a.zip", "contract_nli").read_bytes()
    dataset = publish("scrolls/summ_screen_fd", {"summ_screen_fd.zip": wrong}, pinned=False)
    assert sized(dataset).bytes == len(wrong)
    with pytest.raises(DataError, match="holds rows of contract_nli, not of summ_screen_fd"):
        fetch(root, dataset)
    assert tree(root) == {}
    server.files["/summ_screen_fd.zip"] = scrolls_zip(tmp_path / "b.zip", "summ_screen_fd").read_bytes()
    record = fetch(root, dataset)
    assert not record.pinned and rows_of("scrolls/summ_screen_fd/validation.jsonl")


def test_an_interrupted_set_goes_on_file_by_file_and_byte_by_byte(root, publish, server):
    labels = b"0\n"
    dataset = publish("lm_eval/piqa", {"valid.jsonl": jsonl(LM_EVAL["piqa"]), "labels.lst": labels})
    server.always["/labels.lst"] = "404"
    with pytest.raises(Unavailable, match="404"):
        fetch(root, dataset, patience=QUICK)
    assert data.find("lm_eval/piqa.jsonl") is None
    server.always.clear()
    fetch(root, dataset, patience=QUICK)
    assert len(server.asked("/valid.jsonl")) == 1 and rows_of("lm_eval/piqa.jsonl") == LM_EVAL["piqa"]


@pytest.fixture
def bucket(server, monkeypatch):
    """PG-19's bucket with three test books, whose checksums stand in for those that are published."""
    monkeypatch.setattr(fetch_books, "BUCKET", server.url)
    monkeypatch.setattr(fetch_books, "official", lambda split: {id: sha256(raw) for id, raw in BOOK.items()})
    server.files["/metadata.csv"] = b'2,"Two, a tale",1900,url\n10,Ten,1901,url\n'
    server.files.update({f"/test/{id}.txt": raw for id, raw in BOOK.items()})
    remote = Remote(f"{server.url}/metadata.csv", sha256(server.files["/metadata.csv"]))
    return replace(CATALOGUE["pg19/test"], files=(remote,))


def test_books_come_by_number_and_those_that_are_here_stay(root, bucket, server):
    fetch(root, bucket, books=2)
    books = text.resolve(None, data_dir=root)
    assert [(book.id, book.title) for book in books.documents] == [("2", "Two, a tale"), ("10", "Ten")]
    assert books.documents[0].text == "Book 2\nline\n"
    record = fetch(root, bucket)
    assert sorted(record.files) == ["pg19/test/10.txt", "pg19/test/2.txt", "pg19/test/33.txt"]
    assert len(server.asked("/test/2.txt")) == 1 and record.pinned
    assert text.resolve(None, data_dir=root).source == "pg19:test (3 books)"


def test_a_book_that_is_missing_or_forged_leaves_the_split_as_it_was(root, bucket, server):
    fetch(root, bucket, books=1)
    before = {path: raw for path, raw in tree(root).items() if not path.startswith(".partial")}
    server.files["/test/33.txt"] = b"forged"
    with pytest.raises(Unavailable, match=r"test/33.txt differs from its checksum"):
        fetch(root, bucket, patience=QUICK)
    assert {path: raw for path, raw in tree(root).items() if not path.startswith(".partial")} == before
    server.files["/test/33.txt"] = BOOK["33"]
    fetch(root, bucket)
    assert len(server.asked("/test/10.txt")) == 1, "what came before the fault is not fetched again"


def test_training_books_are_held_to_the_index_of_the_datasets_library(root, server, monkeypatch):
    monkeypatch.setattr(fetch_books, "BUCKET", server.url)
    sums = {f"gs://deepmind-gutenberg/train/{id}.txt": {"checksum": sha256(raw)} for id, raw in BOOK.items()}
    server.files["/infos.json"] = json.dumps({"default": {"download_checksums": sums}}).encode()
    server.files["/metadata.csv"] = b"2,Two,1900,url\n"
    server.files.update({f"/train/{id}.txt": raw for id, raw in BOOK.items()})
    files = tuple(Remote(f"{server.url}/{file}") for file in ("metadata.csv", "infos.json"))
    record = fetch(root, replace(CATALOGUE["pg19/train"], files=files), books=2)
    assert record.pinned and sorted(record.files) == ["pg19/train/10.txt", "pg19/train/2.txt"]
    assert text.resolve(None, "train", data_dir=root).source == "pg19:train (2 books)"
    server.files["/infos.json"] = b"{}"
    with pytest.raises(DataError, match="is not the index of PG-19"):
        fetch(root, replace(CATALOGUE["pg19/train"], files=files))


def test_two_fetches_of_a_set_do_not_meet(root, publish, tmp_path):
    dataset = publish("scrolls/qmsum", {"qmsum.zip": scrolls_zip(tmp_path / "a.zip", "qmsum").read_bytes()})
    with claim(root, ["scrolls/qmsum"]), pytest.raises(Unavailable, match="Another kvmark is at work"):
        fetch(root, dataset)
    assert fetch(root, dataset).pinned


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_offline_mode_is_respected(root, publish, server, monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set"):
        fetch(root, publish("scrolls/qmsum", {"qmsum.zip": b""}))
    assert server.requests == []


def test_a_mirror_of_the_hub_takes_its_place(root, server, tmp_path, monkeypatch):
    raw = scrolls_zip(tmp_path / "a.zip", "qmsum").read_bytes()
    known = CATALOGUE["scrolls/qmsum"]
    path = known.files[0].url.removeprefix("https://huggingface.co")
    server.files[path] = raw
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    fetch(root, replace(known, files=(Remote(known.files[0].url, sha256(raw)),)))
    assert rows_of("scrolls/qmsum/validation.jsonl") == SCROLLS["qmsum"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scrolls/qmsum", "get qmsum.zip on another machine"),
        ("scrolls/summ_screen_fd", "get summ_screen_fd.zip on another machine"),
        ("lm_eval/piqa", "get valid.jsonl and valid-labels.lst (in one folder) on another machine"),
        (
            "pg19/validation",
            "get the books of pg19/validation (NUMBER.txt in a folder validation) on another",
        ),
        ("pg19/train", "get the books of pg19/train (NUMBER.txt in a folder train) on another"),
    ],
)
def test_without_network_the_sentence_names_what_can_be_imported(root, name, said):
    files = tuple(Remote(f"http://127.0.0.1:9/{Path(file.url).name}") for file in CATALOGUE[name].files)
    for ask in (sized, lambda dataset: fetch(root, dataset, patience=QUICK)):
        with pytest.raises(Unavailable) as caught:
            ask(replace(CATALOGUE[name], files=files, bytes=None))
        assert str(caught.value).startswith("127.0.0.1:9 cannot be reached (")
        assert f"): {said}" in str(caught.value) and str(caught.value).endswith("`kvmark data import`.")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_999, "1 MB"),
        (27_288_503, "27.3 MB"),
        (5e15, "5,000 TB"),
    ],
)
def test_sizes_are_said_in_units_that_suit_them(count, said):
    assert amount(count) == said


def test_a_small_set_that_does_not_fit_is_said_in_its_own_unit(tmp_path, monkeypatch):
    room = shutil.disk_usage(tmp_path)._replace(free=1200)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with pytest.raises(Unavailable, match=r"27\.3 MB are to be fetched; .* has room for 1\.2 kB\."):
        refuse_without_room(tmp_path, [CATALOGUE["scrolls/qmsum"]])


def test_no_room_is_said_before_anything_is_fetched(tmp_path):
    huge = replace(CATALOGUE["pg19/train"], bytes=1 << 60)
    with pytest.raises(Unavailable, match="are to be fetched"):
        refuse_without_room(tmp_path / "not" / "yet", [huge])


def test_names_select_sets_and_families():
    assert [dataset.name for dataset in select(["pg19", "scrolls/qmsum"])] == [
        "pg19/test", "pg19/validation", "pg19/train", "scrolls/qmsum",
    ]  # fmt: skip
    assert len(select(["scrolls"])) == 8 and len(select(["lm_eval"])) == 7
    for unknown in ("scroll", "scrolls/", ""):
        with pytest.raises(DataError, match=f"There is no set '{unknown}'"):
            select([unknown])


def test_the_catalogue_is_sound():
    for dataset in CATALOGUE.values():
        assert dataset.licence and dataset.home and dataset.files
        for file in dataset.files:
            assert file.url.startswith("https://")
            assert file.sha256 is None or (len(file.sha256) == 64 and int(file.sha256, 16))
    for split in ("test", "validation"):
        books = official(split)
        assert len(books) == BOOKS[split] and all(len(sum) == 64 for sum in books.values())
        assert books.keys().isdisjoint(official("validation" if split == "test" else "test"))


@pytest.mark.skipif("KVMARK_DATA" not in os.environ, reason="KVMARK_DATA names no folder with genuine books")
def test_genuine_books_have_the_official_checksums():
    folder = Path(os.environ["KVMARK_DATA"])
    for split in ("test", "validation"):
        books = text.resolve(str(folder), split)
        assert books.documents and all(book.sha256 == official(split)[book.id] for book in books.documents)
        assert books.documents[0].text, "read and checked"
