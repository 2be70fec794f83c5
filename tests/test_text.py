"""Where text comes from: the order of the sources, strict UTF-8, and a hash that says what was read."""

import gzip
import hashlib
import http.server
import json
import os
import threading
from pathlib import Path

import pytest

from suites import text as text_module
from suites.text import Document, Text, TextError, load_books, offer_books, resolve
from suites.tokenizer import ByteTokenizer


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch, tmp_path):
    for name in ("KVMARK_DATA", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))


def write_pg19(root: Path, split: str = "test", books: dict[str, bytes] | None = None) -> Path:
    books = books or {"30": b"thirty\r\n", "4": b"four\r\nlines\r\n"}
    folder = root / "pg19" / split
    folder.mkdir(parents=True)
    with (root / "pg19" / "index.jsonl").open("a") as index:
        for id, raw in books.items():
            (folder / f"{id}.txt.gz").write_bytes(gzip.compress(raw))
            entry = {"id": id, "title": f"Book {id}", "sha256": hashlib.sha256(raw).hexdigest()}
            index.write(json.dumps(entry) + "\n")
    return root


def test_tokenizer_round_trip_drops_specials_and_refuses_unknown_ids():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("naïve €5")
    assert max(ids) < 256 and len(ids) == len("naïve €5".encode())
    assert tokenizer.decode([tokenizer.bos, *ids, *tokenizer.eos, tokenizer.pad]) == "naïve €5"
    assert tokenizer.decode(ids[:3]) == "na�"
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode([260])


def test_without_any_folder_the_bundled_prose_is_used_and_says_so():
    text = resolve(None)
    assert text.kind == "bundled"
    assert text.label.startswith("bundled:pydoc_data.topics@") and len(text.label.split("@")[1]) == 12
    assert all(len(document.text.encode()) >= 20 * 1024 for document in text.documents)
    assert resolve(None).sha256 == text.sha256


def test_each_source_is_preferred_to_those_behind_it(tmp_path, monkeypatch):
    named = write_pg19(tmp_path / "named", books={"1": b"named"})
    data = write_pg19(tmp_path / "data", books={"1": b"imported"})
    file = tmp_path / "moby.txt"
    file.write_text("explicit")
    monkeypatch.setenv("KVMARK_DATA", str(named))
    assert resolve(str(file), data_dir=data).documents[0].text == "explicit"
    assert resolve(None, data_dir=data).documents[0].text == "named"
    assert resolve(None).documents[0].text == "named"
    monkeypatch.setenv("KVMARK_DATA", str(tmp_path / "has no books"))
    assert resolve(None, data_dir=data).documents[0].text == "imported"
    monkeypatch.setenv("KVMARK_DATA", "")
    assert resolve(None, data_dir=data).documents[0].text == "imported"
    assert resolve(None, data_dir=tmp_path / "none").kind == "bundled"


def test_a_named_place_without_books_is_an_error_not_a_reason_to_read_something_else(tmp_path, monkeypatch):
    monkeypatch.setenv("KVMARK_DATA", str(tmp_path))
    with pytest.raises(TextError, match="KVMARK_DATA names"):
        resolve(None)
    with pytest.raises(TextError, match="no file or folder"):
        resolve(str(tmp_path / "missing.txt"))
    with pytest.raises(TextError, match=r"holds no \*.txt"):
        resolve(str(tmp_path))
    with pytest.raises(TextError, match="valid: train, validation, test"):
        resolve(None, split="dev")


def test_pg19_layout_is_recognised_and_sorted_by_number(tmp_path):
    root = write_pg19(tmp_path)
    for named in (root, root / "pg19"):
        text = resolve(str(named))
        assert text.kind == "pg19" and text.source == "pg19:test (2 books)"
        assert [document.id for document in text.documents] == ["4", "30"]
        assert text.documents[0].title == "Book 4"
        assert text.documents[0].text == "four\nlines\n"
        assert str(tmp_path) not in text.label + text.source
    with pytest.raises(TextError, match="has no train/"):
        resolve(str(root), split="train")


def test_books_without_a_known_checksum_are_labelled_unverified(tmp_path):
    (tmp_path / "pg19" / "test").mkdir(parents=True)
    (tmp_path / "pg19" / "test" / "7.txt").write_text("whatever")
    assert resolve(None, data_dir=tmp_path).label.startswith("pg19:test-unverified@")


def test_a_book_that_differs_from_its_checksum_is_refused_when_read(tmp_path):
    root = write_pg19(tmp_path)
    (root / "pg19" / "test" / "4.txt.gz").write_bytes(gzip.compress(b"forged"))
    with pytest.raises(TextError, match="4.txt.gz differs from its checksum"):
        _ = resolve(str(root)).documents[0].text


def test_what_pg19_states_counts_more_than_an_index_does(tmp_path):
    """The index of this folder vouches for a forged test book; PG-19's checksum of 2544 is known here."""
    root = write_pg19(tmp_path, books={"2544": b"not From Sand Hill to Pine"})
    with pytest.raises(TextError, match="2544.txt.gz differs from its checksum 0c79ceaf5bcc"):
        _ = resolve(str(root)).documents[0].text


def test_hash_is_over_ids_and_raw_bytes_in_order(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_bytes(f"book {name}\r\n".encode())
    text = resolve(str(tmp_path))
    assert [document.id for document in text.documents] == ["a", "b"]
    assert text.kind == "folder" and text.label.startswith(f"folder:{tmp_path.name}@")
    lines = "".join(
        f"{id} {hashlib.sha256(f'book {id}.txt'.encode() + bytes([13, 10])).hexdigest()}\n"
        for id in ("a", "b")
    )
    assert text.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    turned = Text("folder", text.source, text.documents[::-1])
    assert turned.sha256 != text.sha256
    (tmp_path / "a.txt").write_bytes(b"book a.txt\n")
    assert resolve(str(tmp_path)).sha256 != text.sha256


def test_plain_file_hides_its_zipped_twin(tmp_path):
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"zipped"))
    assert [document.text for document in resolve(str(tmp_path)).documents] == ["plain"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"good until here \xff", "novel.txt is not UTF-8: byte 0xff at offset 16."),
        (b"", "novel.txt is empty."),
    ],
)
def test_bad_text_is_one_sentence(tmp_path, raw, message):
    file = tmp_path / "novel.txt"
    file.write_bytes(raw)
    with pytest.raises(TextError) as caught:
        resolve(str(file))
    assert str(caught.value) == message


def test_truncated_gzip_is_one_sentence(tmp_path):
    file = tmp_path / "novel.txt.gz"
    file.write_bytes(gzip.compress(os.urandom(1000))[:-20])
    with pytest.raises(TextError, match="novel.txt.gz cannot be read"):
        resolve(str(file))


def test_load_books_gives_bytes_with_lf_and_hashes_of_the_files(tmp_path):
    write_pg19(tmp_path, "train", {"9": "nine\r\n€".encode()})
    books, hashes = load_books(tmp_path)
    assert books == [("9", "nine\n€".encode())]
    assert hashes == {"9": hashlib.sha256("nine\r\n€".encode()).hexdigest()}
    assert load_books(tmp_path / "pg19" / "train")[0] == books


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A local server of three "books" whose checksums stand in for PG-19's."""
    books = {id: f"book {id}\r\n".encode() for id in ("1", "2", "3")}
    served = tmp_path / "served"
    served.mkdir()
    for id, raw in books.items():
        (served / f"{id}.txt").write_bytes(raw)
    offered = tuple((id, f"Book {id}", hashlib.sha256(raw).hexdigest()) for id, raw in books.items())
    monkeypatch.setattr(text_module, "OFFERED_BOOKS", offered)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(served))

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield served, f"http://127.0.0.1:{server.server_address[1]}/{{id}}.txt"
    server.shutdown()
    server.server_close()


def test_offered_books_are_fetched_once_and_then_found(tmp_path, bucket):
    _, url = bucket
    said = []
    assert offer_books(tmp_path, 5, said.append, url)
    assert len(said) == 2 and "three PG-19 test books" in said[0]
    text = resolve(None, data_dir=tmp_path)
    assert text.source == "pg19:test (3 books)" and text.documents[0].text == "book 1\n"
    assert text.documents[0].title == "Book 1" and text.label.startswith("pg19:test@")
    assert offer_books(tmp_path, 5, said.append, "http://127.0.0.1:9/{id}") and len(said) == 2


@pytest.mark.parametrize("failure", ["missing", "changed", "offline", "asked for none", "no place"])
def test_a_failed_fetch_says_so_and_leaves_nothing(tmp_path, bucket, failure, monkeypatch):
    served, url = bucket
    if failure == "missing":
        (served / "3.txt").unlink()
    if failure == "changed":
        (served / "3.txt").write_text("not the book")
    if failure == "offline":
        url = "http://127.0.0.1:9/{id}.txt"
    if failure == "asked for none":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if failure == "no place":
        (tmp_path / "data").write_text("a file")
    said = []
    assert not offer_books(tmp_path / "data", 5, said.append, url)
    assert "No books fetched" in said[-1]
    assert len(said) == 2 and not list((tmp_path / "data").rglob("*.txt"))
    assert resolve(None, data_dir=tmp_path / "data").kind == "bundled"


def test_document_reads_its_text_once():
    reads = []
    document = Document("a", "A", lambda: reads.append(1) or "prose", sha256="0" * 64)
    assert (document.text, document.text, len(reads)) == ("prose", "prose", 1)
