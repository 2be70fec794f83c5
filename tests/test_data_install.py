"""Sets take the place of older ones all together or not at all, and never that of something else."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from data_rows import LM_EVAL, SCROLLS, jsonl, pg19, refused, scrolls_zip, tree

from suites import text
from suites.data import recognise
from suites.data.catalogue import CATALOGUE, PG19_TITLES
from suites.data.faults import DataError
from suites.data.imports import import_all
from suites.data.store import Record, claim, hashes, install, place, record_of, write
from suites.data.verify import verify


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A cache folder with a file of rows and a folder of books, each in its first version."""
    monkeypatch.delenv("KVMARK_DATA", raising=False)
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    import_all(tmp_path / "cache", [version(tmp_path / "one", 1), books(tmp_path / "one", b"first")])
    return tmp_path / "cache"


def version(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "piqa.jsonl").write_bytes(jsonl(LM_EVAL["piqa"] * number))
    return folder / "piqa.jsonl"


def books(folder: Path, raw: bytes) -> Path:
    return pg19(folder / "mine", "train", {"1": raw})


def inodes(root: Path) -> dict[str, int]:
    return {path: (root / path).stat().st_ino for path in tree(root)}


def test_several_sets_replace_older_ones(root, tmp_path):
    qmsum = scrolls_zip(tmp_path / "qmsum.zip", "qmsum")
    done = import_all(root, [version(tmp_path / "two", 2), books(tmp_path / "two", b"second"), qmsum])
    assert [(record.name, count) for record, count in done] == [
        ("lm_eval/piqa", 2), ("pg19/train", 1), ("scrolls/qmsum", 3),
    ]  # fmt: skip
    assert {verdict.status for verdict in verify()} == {"ok"}
    assert text.resolve(None, "train", data_dir=root).documents[0].text == "second"
    assert all(record_of(root, record.name) == record for record, _ in done)


@pytest.mark.parametrize("broken", ["set", "record", "index"])
def test_what_cannot_be_put_in_place_undoes_all_of_an_import(root, tmp_path, broken):
    """Newer rows and books, rows that are new, and one more: if that does not go, none does."""
    (tmp_path / "boolq.jsonl").write_bytes(jsonl(LM_EVAL["boolq"]))
    paths = [version(tmp_path / "two", 2), tmp_path / "boolq.jsonl", books(tmp_path / "two", b"second")]
    if broken == "set":  # a folder is where a file belongs
        (root / "scrolls" / "qmsum" / "validation.jsonl" / "mine").mkdir(parents=True)
        paths.append(scrolls_zip(tmp_path / "qmsum.zip", "qmsum"))
        said = "validation.jsonl is a folder where a file belongs"
    if broken == "record":  # a file is where a folder belongs
        (root / "records" / "text").write_text("mine")
        (tmp_path / "essay.txt").write_text("An essay.")
        paths.append(tmp_path / "essay.txt")
        said = "cannot be written"
    if broken == "index":
        (root / "pg19" / "index.jsonl").unlink()
        (root / "pg19" / "index.jsonl").mkdir()
        said = "index.jsonl is a folder where a file belongs"
    before = inodes(root)
    assert said in refused(root, *paths)
    assert inodes(root) == before, "not written anew, but never lost"
    assert not (root / "text").exists() or not list((root / "text").rglob("*.txt"))
    assert not list((root / ".work").iterdir())


def test_an_interruption_undoes_what_was_put_in_place(root, tmp_path, monkeypatch):
    """Ctrl-C when all but the last record has its place."""
    before, replace, keys = tree(root), os.replace, [KeyboardInterrupt]

    def interrupted(source, target, **options):
        if keys and str(target).endswith("records/pg19/train.json"):
            raise keys.pop()
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_all(root, [version(tmp_path / "two", 2), books(tmp_path / "two", b"second")])
    assert keys == [] and tree(root) == before
    assert {verdict.status for verdict in verify()} == {"ok"}


def test_without_hard_links_it_goes_as_well(root, tmp_path, monkeypatch):
    def link(*_, **__):
        raise PermissionError(1, "no links on this disk")

    monkeypatch.setattr(os, "link", link)
    (root / "records" / "text").write_text("mine")
    (tmp_path / "essay.txt").write_text("An essay.")
    two = version(tmp_path / "two", 2)
    assert "cannot be written" in refused(root, two, tmp_path / "essay.txt")
    assert [count for _, count in import_all(root, [two])] == [2]


def test_a_file_never_takes_the_place_of_a_folder_nor_a_folder_that_of_a_file(root):
    before = tree(root)
    for name, relative in (("pg19/train", "pg19/train"), ("lm_eval/piqa", "lm_eval/piqa.jsonl/rows.jsonl")):
        with claim(root, [name]) as work:
            write(work / relative, [b"something"])
            record = Record(name, "test", False, hashes(work, name))
            with pytest.raises(DataError, match="where a .* belongs; move it away first"):
                install(root, work, record)
        assert tree(root) == before and place(root, name).exists()


def test_the_list_of_titles_is_not_a_split_of_books(root, tmp_path, monkeypatch):
    """PG-19's own metadata.csv is the one file of the catalogue's entry, and holds no book."""
    assert PG19_TITLES.sha256 not in recognise._PUBLISHED
    assert not [name for name in recognise._PUBLISHED.values() if name.startswith("pg19/")]
    (tmp_path / "metadata.csv").write_bytes(b"1,Title,1900,http://x\n")
    assert "metadata.csv is none of .jsonl" in refused(root, tmp_path / "metadata.csv")
    assert "metadata.csv is none of" in refused(root, tmp_path / "metadata.csv", named="pg19/train")


PIQA = [{key: row[key] for key in ("goal", "sol1", "sol2")} for row in LM_EVAL["piqa"] * 2]


@pytest.fixture
def published(tmp_path) -> Path:
    """PIQA's two files, as their publisher calls them."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / "valid.jsonl").write_bytes(jsonl(PIQA))
    (folder / "valid-labels.lst").write_bytes(b"0\n1\n")
    return folder


def test_the_two_published_files_of_piqa_are_one_set(root, published, tmp_path, monkeypatch):
    scrolls_zip(published / "qmsum.zip", "qmsum")
    found = {record.name: (count, record.pinned) for record, count in import_all(root, [published])}
    assert found == {"lm_eval/piqa": (2, False), "scrolls/qmsum": (len(SCROLLS["qmsum"]), False)}
    rows = [row | {"label": label} for label, row in enumerate(PIQA)]
    assert (root / "lm_eval" / "piqa.jsonl").read_bytes() == jsonl(rows)
    (published / "qmsum.zip").unlink()
    genuine = [
        replace(file, sha256=hashlib.sha256((published / Path(file.url).name).read_bytes()).hexdigest())
        for file in CATALOGUE["lm_eval/piqa"].files
    ]
    monkeypatch.setitem(recognise._MADE, "lm_eval/piqa", genuine)
    assert import_all(root, [published])[0][0].pinned


def test_published_files_that_do_not_fit_each_other(root, published):
    (published / "valid-labels.lst").write_bytes(b"0\n")
    assert "valid.jsonl is not the lm_eval/piqa that was published" in refused(root, published)
    (published / "valid-labels.lst").write_bytes(b"0\n2\n")
    assert "line 2 of downloads has no label that answers it" in refused(root, published)
