"""What users have: recognised by name and content, taken whole, and byte by byte the same afterwards."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from data_rows import LM_EVAL, SCROLLS, jsonl, pg19, refused, scrolls_zip, tree, zipped
from harness_help import ROOT

from suites import data, text
from suites.data import imports
from suites.data.imports import import_all
from suites.data.store import claim, record_of
from suites.scrolls.examples import load


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The cache folder, which does not exist yet."""
    monkeypatch.delenv("KVMARK_DATA", raising=False)
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(done) -> list[str]:
    return [record.name for record, _ in done]


@pytest.mark.parametrize("task", SCROLLS)
def test_every_task_comes_in_as_zip_and_as_lines_and_its_suite_reads_it(root, tmp_path, task):
    (record, count), *_ = import_all(root, [scrolls_zip(tmp_path / f"{task}.zip", task)])
    assert (record.name, count) == (f"scrolls/{task}", len(SCROLLS[task]))
    path = data.find(f"scrolls/{task}/validation.jsonl")
    assert path == root / "scrolls" / task / "validation.jsonl"
    raw = data.read(path)
    assert raw == jsonl(SCROLLS[task])
    examples = load([task], 1000, 0, 0).examples[task]
    assert sum(len(example.references) for example in examples) == count
    packed = tmp_path / f"{task}_validation.jsonl.xz"
    packed.write_bytes(lzma.compress(raw))
    (again, _), *_ = import_all(root, [packed])
    assert again.files == record.files and not again.pinned


@pytest.mark.parametrize("task", LM_EVAL)
def test_rows_of_lm_eval_come_in_as_lines_and_as_a_table(root, tmp_path, task):
    lines = tmp_path / f"{task}.jsonl.gz"
    lines.write_bytes(gzip.compress(jsonl(LM_EVAL[task])))
    table = tmp_path / f"{task}.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(LM_EVAL[task]), table)
    for path in (lines, table):
        assert names(import_all(root, [path])) == [f"lm_eval/{task}"]
        raw = data.read(data.find(f"lm_eval/{task}.jsonl"))
        assert [json.loads(line) for line in raw.splitlines()] == LM_EVAL[task]


def test_a_folder_like_kvmark_data_comes_in_whole_under_the_same_labels(root, tmp_path, monkeypatch):
    mine = pg19(tmp_path / "mine", "train", {"11": b"eleven\r\n", "7": b"seven\r\n"})
    for task in ("qmsum", "my_own"):
        (mine / "scrolls" / task).mkdir(parents=True)
        (mine / "scrolls" / task / "validation.jsonl.xz").write_bytes(lzma.compress(jsonl(SCROLLS["qmsum"])))
    (mine / "lm_eval").mkdir()
    (mine / "lm_eval" / "piqa.jsonl").write_bytes(jsonl(LM_EVAL["piqa"]))
    done = import_all(root, [mine])
    assert sorted(names(done)) == ["lm_eval/piqa", "pg19/train", "scrolls/my_own", "scrolls/qmsum"]
    books = text.resolve(None, "train", data_dir=root)
    assert books.source == "pg19:train (2 books)" and books.documents[0].title == "Book 7"
    assert books.label == text.resolve(str(mine), "train").label
    raw = lzma.decompress((mine / "scrolls" / "qmsum" / "validation.jsonl.xz").read_bytes())
    assert data.label("scrolls:qmsum", raw) == data.label("scrolls:qmsum", jsonl(SCROLLS["qmsum"]))


def test_the_task_is_told_by_the_rows_where_no_name_does(root, tmp_path):
    for task in ("quality", "contract_nli", "qmsum"):
        (tmp_path / "rows.jsonl").write_bytes(jsonl(SCROLLS[task]))
        assert names(import_all(root, [tmp_path / "rows.jsonl"])) == [f"scrolls/{task}"]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(LM_EVAL["winogrande"]))
    assert names(import_all(root, [tmp_path / "rows.jsonl"])) == ["lm_eval/winogrande"]
    for rows in (SCROLLS["qasper"], LM_EVAL["arc_easy"]):
        (tmp_path / "rows.jsonl").write_bytes(jsonl(rows))
        assert "say it with --as" in refused(root, tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(jsonl(SCROLLS["qasper"]))
    assert names(import_all(root, [tmp_path / "rows.jsonl"], "scrolls/qasper")) == ["scrolls/qasper"]


def test_a_folder_of_zips_and_one_of_a_single_task(root, tmp_path):
    (tmp_path / "zips").mkdir()
    for task in ("qmsum", "quality"):
        scrolls_zip(tmp_path / "zips" / f"{task}.zip", task)
    assert names(import_all(root, [tmp_path / "zips"])) == ["scrolls/qmsum", "scrolls/quality"]
    (tmp_path / "quality").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "quality" / f"{split}.jsonl").write_bytes(jsonl(SCROLLS["quality"]))
    assert names(import_all(root, [tmp_path / "quality"])) == ["scrolls/quality"]


def test_texts_come_in_under_a_name_that_text_reads(root, tmp_path, monkeypatch):
    (tmp_path / "Moby Dick.txt.gz").write_bytes(gzip.compress("Call me Ishmaël.\r\n".encode()))
    (record, count), *_ = import_all(root, [tmp_path / "Moby Dick.txt.gz"])
    assert (record.name, count) == ("text/Moby-Dick", 1)
    read = text.resolve("Moby-Dick")
    assert read.documents[0].text == "Call me Ishmaël.\n" and read.label.startswith("folder:Moby-Dick@")
    (tmp_path / "essays").mkdir()
    for name in ("b", "a"):
        (tmp_path / "essays" / f"{name}.txt").write_text(name)
    import_all(root, [tmp_path / "essays"])
    assert [document.id for document in text.resolve("essays").documents] == ["a", "b"]
    assert text.resolve("essays").label == text.resolve(str(tmp_path / "essays")).label
    monkeypatch.chdir(tmp_path)
    (tmp_path / "essays" / "c.txt").write_text("a folder that is there comes before a name")
    assert len(text.resolve("essays").documents) == 3


def test_books_are_held_to_the_index_and_the_unknown_ones_are_called_so(root, tmp_path):
    mine = pg19(tmp_path / "mine", "train", {"11": b"eleven"})
    (mine / "pg19" / "train" / "12.txt").write_bytes(b"twelve, of which no index knows")
    import_all(root, [mine])
    assert record_of(root, "pg19/train").unknown == ("12",)
    assert text.resolve(None, "train", data_dir=root).label.startswith("pg19:train-unverified@")
    (mine / "pg19" / "train" / "11.txt.gz").write_bytes(gzip.compress(b"forged"))
    assert "Book 11 of pg19/train differs from its checksum" in refused(root, mine)


def test_books_join_those_that_are_here(root, tmp_path):
    import_all(root, [pg19(tmp_path / "one", "train", {"1": b"one", "2": b"two"})])
    import_all(root, [pg19(tmp_path / "two", "train", {"2": b"two", "3": b"three"})])
    assert sorted(tree(root / "pg19" / "train")) == ["1.txt", "2.txt", "3.txt"]
    books = text.resolve(None, "train", data_dir=root)
    assert books.source == "pg19:train (3 books)" and books.documents[0].title == "Book 1"


def test_only_pg19s_own_books_come_into_its_test_split(root, tmp_path):
    forged = pg19(tmp_path / "forged", "test", {"2544": b"not From Sand Hill to Pine"})
    assert "Book 2544 of pg19/test differs from its checksum" in refused(root, forged)
    other = pg19(tmp_path / "other", "test", {"12": b"another book"})
    assert "Book 12 is none of PG-19's test books" in refused(root, other)
    leak = pg19(tmp_path / "leak", "train", {"2544": b"whatever"})
    assert "Book 2544 is one of PG-19's test books" in refused(root, leak)
    named = pg19(tmp_path / "named", "train", {"1": b"one"})
    (named / "pg19" / "train" / "readme.txt").write_text("hello")
    assert "readme.txt is not called by the number of a book" in refused(root, named)


def test_all_of_what_is_named_or_nothing(root, tmp_path):
    good = scrolls_zip(tmp_path / "qmsum.zip", "qmsum")
    bad = scrolls_zip(tmp_path / "quality.zip", "quality", SCROLLS["contract_nli"])
    assert "is not a row of quality" in refused(root, good, bad)
    assert "scrolls/qmsum is there twice" in refused(root, good, good)
    assert "There is no file or folder" in refused(root, good, tmp_path / "missing")
    assert names(import_all(root, [good])) == ["scrolls/qmsum"]
    before = tree(root)
    refused(root, good, bad)
    assert tree(root) == before


def test_a_published_file_is_known_by_its_checksum_whatever_its_name(root, tmp_path, monkeypatch):
    path = scrolls_zip(tmp_path / "download(1)", "qmsum", SCROLLS["gov_report"])
    monkeypatch.setitem(imports.recognise.__globals__["_PUBLISHED"], sha256(path), "scrolls/gov_report")
    ((record, count),) = import_all(root, [path])
    assert (record.name, count, record.pinned) == ("scrolls/gov_report", 1, True)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_process_at_a_time_per_set(root, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom suites.data.store import claim\n"
        "with claim(Path(sys.argv[1]), ['scrolls/qmsum']):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"held\n"
    path = scrolls_zip(tmp_path / "qmsum.zip", "qmsum")
    assert "Another kvmark is at work on scrolls/qmsum" in refused(root, path)
    assert names(import_all(root, [scrolls_zip(tmp_path / "quality.zip", "quality")])) == ["scrolls/quality"]
    other.communicate()
    assert names(import_all(root, [path])) == ["scrolls/qmsum"]


def test_what_a_killed_process_left_behind_is_not_in_the_way(root, tmp_path):
    with claim(root, ["scrolls/qmsum"]) as work:
        stale = work
    (stale / "scrolls" / "qmsum").mkdir(parents=True)
    (stale / "scrolls" / "qmsum" / "validation.jsonl").write_text("half")
    import_all(root, [scrolls_zip(tmp_path / "qmsum.zip", "qmsum")])
    assert data.read(data.find("scrolls/qmsum/validation.jsonl")) == jsonl(SCROLLS["qmsum"])
    assert not list((root / ".work").iterdir())


def test_a_cache_folder_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("taken")
    path = scrolls_zip(tmp_path / "qmsum.zip", "qmsum")
    with pytest.raises(data.DataError, match="file.* cannot be written"):
        import_all(tmp_path / "file" / "cache", [path])


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("notes.pdf", b"%PDF", "notes.pdf is none of .jsonl"),
        ("novel.txt", b"", "novel.txt is empty"),
        ("novel.txt", b"good \xff", "novel.txt is not UTF-8: byte 0xff at offset 5"),
        ("novel.txt.gz", gzip.compress(os.urandom(999))[:-9], "novel.txt.gz cannot be read"),
        ("qmsum.parquet", b"PAR1 or not", "qmsum.parquet cannot be read"),
        ("my.zip", b"PK\x03\x04 and nothing", "my.zip cannot be read"),
    ],
)
def test_files_that_are_not_what_their_names_say(root, tmp_path, name, raw, said):
    (tmp_path / name).write_bytes(raw)
    assert said in refused(root, tmp_path / name)


def test_folders_and_names_that_hold_nothing(root, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds neither books of PG-19, nor rows, nor *.txt files" in refused(root, tmp_path / "empty")
    path = scrolls_zip(tmp_path / "qmsum.zip", "qmsum")
    assert "There is no set 'scrolls'" in refused(root, path, named="scrolls")
    assert "There is no set 'text/../x'" in refused(root, path, named="text/../x")
    zipped(tmp_path / "a.zip", {"readme.md": b"hello"})
    assert "holds no validation.jsonl" in refused(root, tmp_path / "a.zip")
