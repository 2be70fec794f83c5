"""`verify`: what changed, vanished or was added is named; what nobody can know is called unknown."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from pathlib import Path

import pytest
from data_rows import LM_EVAL, SCROLLS, jsonl, pg19, scrolls_zip

from harness.doctor import check_data
from suites import text
from suites.data.imports import import_all
from suites.data.verify import Verdict, here, label_in, names_in, verify
from suites.scrolls.examples import load


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A cache folder with a task, a set of rows, a text and two training books."""
    monkeypatch.delenv("KVMARK_DATA", raising=False)
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "piqa.jsonl").write_bytes(jsonl(LM_EVAL["piqa"]))
    (tmp_path / "essay.txt").write_text("An essay.")
    books = pg19(tmp_path / "books", "train", {"1": b"one", "2": b"two"})
    zip = scrolls_zip(tmp_path / "qmsum.zip", "qmsum")
    import_all(tmp_path / "cache", [zip, tmp_path / "piqa.jsonl", tmp_path / "essay.txt", books])
    return tmp_path / "cache"


def verdicts() -> dict[str, Verdict]:
    return {verdict.name: verdict for verdict in verify()}


def test_what_was_imported_is_found_and_holds(root):
    found = verdicts()
    assert list(found) == names_in(root) == ["lm_eval/piqa", "pg19/train", "scrolls/qmsum", "text/essay"]
    assert {verdict.status for verdict in found.values()} == {"ok"}
    assert "not pinned" in found["scrolls/qmsum"].detail
    assert "2 of 2 books have the index's checksum" in found["pg19/train"].detail
    assert here("scrolls/qmsum") == root and here("scrolls/quality") is None
    raw = jsonl(SCROLLS["qmsum"])
    whole = hashlib.sha256(f"{hashlib.sha256(raw).hexdigest()}\n".encode()).hexdigest()
    assert label_in(root, "scrolls/qmsum") == f"scrolls:qmsum@{whole[:12]}"
    assert label_in(root, "pg19/train").startswith("pg19:train@")
    assert label_in(root, "text/essay").startswith("folder:essay@")
    assert label_in(root, "scrolls/qmsum") == load(["qmsum"], 1000, 0, 0).label, "that of rows"
    assert label_in(root, "pg19/train") == text.resolve(None, "train", data_dir=root).label


def test_rows_of_lm_eval_are_named_by_their_hash_for_results_have_another_label(root, tmp_path, monkeypatch):
    digest = hashlib.sha256(jsonl(LM_EVAL["piqa"])).hexdigest()
    assert label_in(root, "lm_eval/piqa") == f"sha256 {digest[:12]}"
    (tmp_path / "mine" / "lm_eval").mkdir(parents=True)
    (tmp_path / "mine" / "lm_eval" / "piqa.jsonl.xz").write_bytes(lzma.compress(jsonl(LM_EVAL["piqa"])))
    monkeypatch.setenv("KVMARK_DATA", str(tmp_path / "mine"))
    assert label_in(tmp_path / "mine", "lm_eval/piqa") == f"sha256 {digest[:12]}", "of what is unpacked"


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (lambda root: (root / "lm_eval/piqa.jsonl").write_text("{}"), "lm_eval/piqa", "piqa.jsonl differs"),
        (lambda root: (root / "text/essay/essay.txt").write_text("x"), "text/essay", "essay.txt differs"),
        (lambda root: (root / "text/essay/more.txt").write_text("x"), "text/essay", "more.txt is new"),
        (lambda root: (root / "pg19/train/2.txt").unlink(), "pg19/train", "2.txt is missing"),
        (lambda root: (root / "pg19/train/2.txt").write_text("three"), "pg19/train", "2.txt differs"),
        (
            lambda root: (root / "scrolls/qmsum/validation.jsonl").unlink(),
            "scrolls/qmsum",
            "validation.jsonl is missing",
        ),
        (
            lambda root: (root / "records/scrolls/qmsum.json").write_text("{}"),
            "scrolls/qmsum",
            "qmsum.json is damaged",
        ),
    ],
)
def test_a_change_is_named(root, change, name, said):
    change(root)
    found = verdicts()
    assert found[name].status == "differs" and said in found[name].detail
    assert [verdict.name for verdict in found.values() if verdict.status != "ok"] == [name]


def test_a_record_that_was_changed_with_the_book_does_not_hide_it(root, tmp_path):
    """The checksum of the index, or PG-19's own, is asked as well."""
    (root / "pg19/train/2.txt").write_text("forged")
    record = json.loads((root / "records/pg19/train.json").read_text())
    record["files"]["pg19/train/2.txt"] = hashlib.sha256(b"forged").hexdigest()
    (root / "records/pg19/train.json").write_text(json.dumps(record))
    assert "2.txt differs from its checksum" in verdicts()["pg19/train"].detail


def test_a_folder_of_the_users_is_held_to_its_sums(root, tmp_path, monkeypatch):
    mine = pg19(tmp_path / "mine", "validation", {"356": b"forged"})
    (mine / "scrolls" / "quality").mkdir(parents=True)
    rows = mine / "scrolls" / "quality" / "validation.jsonl.xz"
    rows.write_bytes(lzma.compress(jsonl(SCROLLS["quality"])))
    monkeypatch.setenv("KVMARK_DATA", str(mine))
    found = verdicts()
    assert (found["scrolls/quality"].status, found["scrolls/quality"].where) == ("unknown", "KVMARK_DATA")
    assert found["scrolls/quality"].detail == "1 rows; no checksum is known"
    assert found["pg19/validation"].status == "differs", "an index cannot vouch for what PG-19 knows better"
    assert found["scrolls/qmsum"].where == "cache" and here("scrolls/quality") == mine

    digest = hashlib.sha256(rows.read_bytes()).hexdigest()
    for said in (f"{digest}  ", f"{digest} *", f"{digest}  ./", f"{digest} *./", f"{digest.upper()}  "):
        (mine / "SHA256SUMS").write_text(f"{said}scrolls/quality/validation.jsonl.xz\n")
        assert verdicts()["scrolls/quality"].status == "ok"
    rows.write_bytes(lzma.compress(jsonl(SCROLLS["quality"]) * 2))
    assert "validation.jsonl.xz differs" in verdicts()["scrolls/quality"].detail


def test_sums_that_are_no_text_are_one_sentence(root, tmp_path, monkeypatch):
    mine = tmp_path / "mine" / "lm_eval"
    mine.mkdir(parents=True)
    (mine / "boolq.jsonl").write_bytes(jsonl(LM_EVAL["boolq"]))
    (mine.parent / "SHA256SUMS").write_bytes(b"0" * 64 + b"  lm_eval/b\xf6olq.jsonl\n")
    monkeypatch.setenv("KVMARK_DATA", str(mine.parent))
    verdict = verdicts()["lm_eval/boolq"]
    assert (verdict.status, verdict.detail) == ("differs", "SHA256SUMS is not UTF-8: byte 0xf6 at offset 75.")


def test_doctor_counts_the_sets_in_the_cache_folder(root, tmp_path, monkeypatch):
    assert (check_data().status, check_data().detail) == ("ok", "4 sets are in the cache folder.")
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "empty"))
    assert check_data().status == "warn" and "`kvmark data fetch pg19/test`" in check_data().detail


def test_rows_that_nobody_states_are_at_least_looked_at(root, tmp_path, monkeypatch):
    mine = tmp_path / "mine" / "lm_eval"
    mine.mkdir(parents=True)
    (mine / "boolq.jsonl").write_bytes(jsonl(LM_EVAL["piqa"]))
    (mine / "piqa.jsonl.gz").write_bytes(gzip.compress(jsonl(LM_EVAL["piqa"]))[:-5])
    monkeypatch.setenv("KVMARK_DATA", str(mine.parent))
    broken = {v.name: v.detail for v in verify() if v.status == "differs" and v.where == "KVMARK_DATA"}
    assert "has no question" in broken["lm_eval/boolq"]
    assert "cannot be read" in broken["lm_eval/piqa"]
