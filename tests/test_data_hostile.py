"""Data that is damaged, forged, bombed or of another task: one sentence, and the cache folder as it was."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from data_rows import LM_EVAL, SCROLLS, STORY, Rows, jsonl, refused, row, scrolls_zip, tree, zipped

from suites.data import unpack
from suites.data.faults import DataError
from suites.data.imports import import_all
from suites.data.unpack import member_pieces, pieces

GOOD = jsonl(SCROLLS["qmsum"])
MEMBER = "qmsum/validation.jsonl"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A cache folder that holds a good qmsum already."""
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    good = tmp_path / "good" / "qmsum.zip"
    good.parent.mkdir()
    import_all(tmp_path / "cache", [scrolls_zip(good, "qmsum")])
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "name", ["../evil.jsonl", "/etc/evil.jsonl", "a/../../evil.jsonl", "..\\evil.jsonl", "C:/evil.jsonl"]
)
def test_paths_that_lead_out_of_an_archive(root, tmp_path, name):
    path = zipped(tmp_path / "qmsum.zip", {MEMBER: GOOD, name: b"x"})
    assert "leads out of the archive" in refused(root, path)
    assert not list(tmp_path.rglob("evil*"))


def test_links_in_an_archive(root, tmp_path):
    link = zipfile.ZipInfo("qmsum/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "qmsum.zip", "w") as archive:
        archive.writestr(MEMBER, GOOD)
        archive.writestr(link, "/etc/passwd")
    assert "'qmsum/link' is a link" in refused(root, tmp_path / "qmsum.zip")


def test_archives_that_are_encrypted_doubled_crowded_or_without_rows(root, tmp_path):
    path = tmp_path / "qmsum.zip"
    scrolls_zip(path, "qmsum")
    raw = bytearray(path.read_bytes())
    start = raw.rindex(b"PK\x01\x02")
    raw[start + 8] |= 1  # the flag of the last member in the directory
    path.write_bytes(raw)
    assert "is encrypted" in refused(root, path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, GOOD)
        archive.writestr(MEMBER, GOOD)
    assert "is there twice" in refused(root, path)
    zipped(path, {MEMBER: GOOD, "old/validation.jsonl": GOOD})
    assert "2 files named validation.jsonl" in refused(root, path)
    zipped(path, {"qmsum/train.jsonl": GOOD})
    assert "holds no validation.jsonl" in refused(root, path)
    zipped(path, {f"{n}": b"" for n in range(unpack.MOST_MEMBERS + 1)})
    assert "10,001 members" in refused(root, path)


def bomb(size: int) -> bytes:
    """Rows that pack to next to nothing."""
    return jsonl([row("va-sq-1", "a?\n\n" + "0" * size, "b")])


@pytest.mark.parametrize("kind", ["zip", "gz", "xz"])
def test_bombs_are_noticed_while_reading(root, tmp_path, kind):
    raw = bomb(unpack.FREE + unpack.PIECE)
    path = tmp_path / ("qmsum.zip" if kind == "zip" else f"qmsum.jsonl.{kind}")
    if kind == "zip":
        zipped(path, {MEMBER: raw})
    else:
        path.write_bytes((gzip if kind == "gz" else lzma).compress(raw))
    assert f"unpacks to more than {unpack.RATIO} times its size" in refused(root, path)


def test_a_bomb_whose_directory_lies_about_its_size(root, tmp_path):
    path = zipped(tmp_path / "qmsum.zip", {MEMBER: bomb(unpack.FREE + unpack.PIECE)})
    raw = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        struct.pack_into("<I", raw, raw.index(mark) + at, 1000)
    path.write_bytes(raw)
    assert "cannot be read" in refused(root, path)


def test_there_is_an_absolute_limit_too(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(bytes(3 << 20))
    with pytest.raises(DataError, match="more than 2,000,000 bytes"):
        list(pieces(path, 2_000_000))
    with pytest.raises(DataError, match="more than 2,000,000 bytes"):
        list(member_pieces(zipped(tmp_path / "a.zip", {"a.jsonl": bytes(3 << 20)}), "a.jsonl", 2_000_000))


@pytest.mark.parametrize("kind", ["zip", "gz", "xz"])
def test_archives_with_a_flipped_byte_or_a_lost_end(root, tmp_path, kind):
    """Whatever the damage: a sentence, or the very rows (a byte that nothing depends on)."""
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MEMBER, GOOD)
    whole = packed.getvalue() if kind == "zip" else (gzip if kind == "gz" else lzma).compress(GOOD)
    path = tmp_path / ("qmsum.zip" if kind == "zip" else f"qmsum.jsonl.{kind}")
    draw, before, sentences = random.Random(7), tree(root), 0
    for number in range(90):
        raw = bytearray(whole)
        if number % 3:
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        else:
            del raw[draw.randrange(len(raw)) :]
        path.write_bytes(raw)
        try:
            import_all(root, [path])
        except DataError as error:
            sentences += 1
            assert str(error).endswith(".") and "\n" not in str(error)
            if number % 20 == 0:
                assert tree(root).keys() == before.keys()
        stored = root / "scrolls" / "qmsum" / "validation.jsonl"
        assert stored.read_bytes() == GOOD
    assert sentences > 45


def lines(*parts: bytes) -> bytes:
    return b"\n".join(parts) + b"\n"


ONE, TWO, THREE = GOOD.splitlines()


def without(field: str) -> bytes:
    return json.dumps({key: value for key, value in SCROLLS["qmsum"][1].items() if key != field}).encode()


def changed(**fields) -> bytes:
    return json.dumps({**SCROLLS["qmsum"][1], **fields}).encode()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (lines(ONE, b"", THREE), "line 2 of qmsum.jsonl is empty"),
        (lines(ONE, b" \t", THREE), "line 2 of qmsum.jsonl is empty"),
        (lines(ONE, TWO, b""), "line 3 of qmsum.jsonl is empty"),
        (b"", "qmsum.jsonl has no rows"),
        (b"\n\n", "line 1 of qmsum.jsonl is empty"),
        (lines(ONE, TWO[:-9]), "line 2 of qmsum.jsonl is not JSON"),
        (lines(ONE, b"[1]"), "line 2 of qmsum.jsonl is not an object"),
        (lines(ONE, b"[" * 100_000), "line 2 of qmsum.jsonl is not JSON"),
        (lines(ONE, TWO.replace(b"Buttons", b"Kn\xf6pfe")), "line 2 of qmsum.jsonl is not UTF-8"),
        (lines(ONE, TWO.replace(b"Buttons", b"\\ud800")), "holds half a surrogate pair"),
        (GOOD.decode().encode("utf-16"), "line 1 of qmsum.jsonl is not UTF-8"),
        (lines(ONE, without("output")), "line 2 of qmsum.jsonl has no output, the reference"),
        (lines(ONE, changed(output=None)), "line 2 of qmsum.jsonl has no output, the reference"),
        (lines(ONE, changed(output=" ")), "va-sq-1 in qmsum.jsonl has no reference"),
        (lines(changed(output="")), "qmsum.jsonl has no references"),
        (lines(ONE, changed(output=["Buttons."])), "has no output that is a string"),
        (lines(ONE, without("pid")), "line 2 of qmsum.jsonl has no pid"),
        (lines(ONE, ONE), "line 2 of qmsum.jsonl has the pid of an earlier line"),
        (
            lines(ONE, changed(input="no query here")),
            "line 2 of qmsum.jsonl has no query before a blank line",
        ),
    ],
)
def test_rows_that_are_not_as_scrolls_has_them(root, tmp_path, raw, said):
    (tmp_path / "qmsum.jsonl").write_bytes(raw)
    assert said in refused(root, tmp_path / "qmsum.jsonl")


def test_an_empty_reference_beside_a_good_one_is_no_fault(root, tmp_path):
    rows = [row("x", f"Why?\n\n{STORY}", "So."), row("x", f"Why?\n\n{STORY}", "", 1)]
    (tmp_path / "qasper.jsonl").write_bytes(jsonl(rows))
    assert len(import_all(root, [tmp_path / "qasper.jsonl"])) == 1


LONG = [row("r", f"What happened?\n\n{STORY}", "word " * 300)]


@pytest.mark.parametrize(
    ("task", "rows", "said"),
    [
        ("qmsum", SCROLLS["contract_nli"], "holds rows of contract_nli, not of qmsum"),
        ("qmsum", SCROLLS["quality"], "holds rows of quality, not of qmsum"),
        ("squality", SCROLLS["qmsum"], "holds rows of qmsum, not of squality"),
        ("quality", SCROLLS["qasper"], "line 1 of quality.jsonl is not a row of quality"),
        ("contract_nli", SCROLLS["quality"], "line 1 of contract_nli.jsonl is not a row of contract_nli"),
        ("gov_report", SCROLLS["qasper"], "holds rows of a task with questions, not of gov_report"),
        ("narrative_qa", SCROLLS["gov_report"], "has no query before a blank line"),
        ("qasper", LONG, "holds rows of a task with summaries, not of qasper"),
        ("qmsum", LM_EVAL["piqa"], "line 1 of qmsum.jsonl has no id that is a string"),
        ("piqa", SCROLLS["qmsum"], "line 1 of piqa.jsonl has no goal"),
        ("winogrande", LM_EVAL["boolq"], "line 1 of winogrande.jsonl has no sentence"),
    ],
)
def test_rows_of_another_task(root, tmp_path, task, rows: Rows, said):
    (tmp_path / f"{task}.jsonl").write_bytes(jsonl(rows))
    assert said in refused(root, tmp_path / f"{task}.jsonl")


def test_a_zip_whose_name_and_content_disagree(root, tmp_path):
    path = scrolls_zip(tmp_path / "inner.zip", "quality")
    assert "holds quality, not qmsum" in refused(root, path.rename(tmp_path / "qmsum.zip"))


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("hellaswag", {"label": ""}),
        ("hellaswag", {"label": "4"}),
        ("arc_easy", {"answerKey": "C"}),
        ("arc_challenge", {"choices": {"text": ["soil"], "label": ["A", "B"]}}),
        ("winogrande", {"answer": ""}),
        ("winogrande", {"sentence": "No gap."}),
        ("piqa", {"label": -1}),
        ("boolq", {"label": None}),
        ("lambada_openai", {"text": "word"}),
    ],
)
def test_rows_of_lm_eval_without_an_answer(root, tmp_path, task, fields):
    (tmp_path / f"{task}.jsonl").write_bytes(jsonl([{**LM_EVAL[task][0], **fields}]))
    assert "that answers it" in refused(root, tmp_path / f"{task}.jsonl")


def test_an_endless_line(root, tmp_path, monkeypatch):
    monkeypatch.setattr("suites.data.rows.LONGEST_LINE", 1 << 20)
    (tmp_path / "qmsum.jsonl").write_bytes(b"x" * (3 << 20))
    assert "has a line of more than 1 MiB" in refused(root, tmp_path / "qmsum.jsonl")


def test_a_link_out_of_a_folder_is_only_read(root, tmp_path):
    """What a folder links to may be taken as the user's; nothing is ever written through it."""
    (tmp_path / "essays").mkdir()
    (tmp_path / "secret").write_text("text elsewhere")
    (tmp_path / "essays" / "a.txt").symlink_to(tmp_path / "secret")
    import_all(root, [tmp_path / "essays"])
    stored = root / "text" / "essays" / "a.txt"
    assert not stored.is_symlink() and stored.read_text() == "text elsewhere"
