"""Damaged and hostile files: one sentence, no crash, no hang, and no memory that nobody needs."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pretrained_help import config_of, write_checkpoint, write_config

from models.pretrained import PretrainedError, open_checkpoint
from models.pretrained.tensors import HEADER_LIMIT

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"


@pytest.fixture
def llama(tmp_path) -> Path:
    write_checkpoint(tmp_path / "llama", "llama")
    return tmp_path / "llama"


def refused(path: Path) -> str:
    with pytest.raises(PretrainedError) as caught:
        open_checkpoint(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 600
    return sentence


def split(folder: Path) -> tuple[dict, bytes]:
    """(header, data) of the weights."""
    data = (folder / WEIGHTS).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def put(folder: Path, header: dict | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


# --- safetensors --------------------------------------------------------------------------------


def test_every_truncation_is_seen_before_a_tensor_is_read(llama):
    """Also by the reference library, which shows that it is one."""
    whole = (llama / WEIGHTS).read_bytes()
    for length in [*range(0, 40), *range(40, len(whole), 97), len(whole) - 1]:
        (llama / WEIGHTS).write_bytes(whole[:length])
        assert WEIGHTS in refused(llama)
        with pytest.raises(safetensors.SafetensorError):
            safetensors.torch.load_file(llama / WEIGHTS)
    (llama / WEIGHTS).write_bytes(whole + b"\0")
    assert "bytes" in refused(llama)


def entry(**changes):
    """A change of the final norm's entry in the header."""

    def change(header: dict, data: bytes) -> tuple[dict, bytes]:
        return header | {NORM: header[NORM] | changes}, data

    return change


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (entry(dtype="F8_E4M3"), "F8_E4M3"),
        (entry(dtype="I32"), "I32"),
        (entry(dtype="F16"), "data_offsets"),
        (entry(dtype=["F32"]), "dtype"),
        (entry(shape=[2**50, 2**50]), "data_offsets"),
        (entry(shape=[-8]), "shape"),
        (entry(shape=[8.0]), "shape"),
        (entry(shape=[True] * 8), "shape"),
        (entry(shape=8), "shape"),
        (entry(shape=[1] * 50), "shape"),
        (entry(shape=[2, 4]), "asks for"),
        (entry(data_offsets=[0, 32]), "overlaps"),
        (entry(data_offsets=[32, 0]), "data_offsets"),
        (entry(data_offsets=[2**62, 2**62 + 32]), "data_offsets"),
        (entry(data_offsets=[2**59, 2**59 + 32]), "gap"),
        (entry(data_offsets=[0]), "data_offsets"),
        (entry(data_offsets=None), "data_offsets"),
        (entry(further=1), "exactly"),
        (lambda h, d: (h | {NORM: 3}, d), "exactly"),
        (lambda h, d: (h | {"a\nb\ud800": h.pop(NORM)}, d), "lacks tensor"),
        (lambda h, d: (h, b"xxxx" + d), "bytes"),
        (lambda h, d: (b"[]", d), "object"),
        (lambda h, d: (b"{" * 100_000, d), "JSON"),
        (lambda h, d: (b'{"a":' * 100_000, d), "JSON"),
        (lambda h, d: (b"[" * 100_000 + b"]" * 100_000, d), "JSON"),
        (lambda h, d: (b'{"a": 1, "a": 2}', d), "twice"),
        (lambda h, d: (b'{"a": NaN}', d), "NaN"),
        (lambda h, d: (b"\xff\xfe", d), "JSON"),
        (lambda h, d: (b"1" * 5000, d), "JSON"),
        (lambda h, d: (b"{}", b""), "too few"),
    ],
)
def test_a_header_that_lies_is_refused(change, word, llama):
    put(llama, *change(*split(llama)))
    assert word in refused(llama)


def test_a_header_may_be_padded_and_carry_metadata(llama):
    header, data = split(llama)
    put(llama, json.dumps(header | {"__metadata__": {"format": "pt"}}).encode() + b"   ", data)
    assert torch.equal(
        open_checkpoint(llama).state()["norm.weight"], safetensors.torch.load_file(llama / WEIGHTS)[NORM]
    )


@pytest.mark.parametrize("length", [HEADER_LIMIT + 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_that_states_to_be_huge_is_not_read(length, llama):
    with (llama / WEIGHTS).open("r+b") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(HEADER_LIMIT + 100)  # sparse: the header would fit
    assert str(length) in refused(llama)


def test_a_file_that_shrinks_after_it_was_opened_is_noticed(llama):
    """A mapped file would kill the process here (SIGBUS)."""
    pretrained = open_checkpoint(llama)
    (llama / WEIGHTS).write_bytes((llama / WEIGHTS).read_bytes()[:-4])
    with pytest.raises(PretrainedError, match="shorter"):
        pretrained.state()
    (llama / WEIGHTS).unlink()
    with pytest.raises(PretrainedError, match="cannot be read"):
        pretrained.state()


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "generation_config.json"])
@pytest.mark.parametrize("what", ["pipe", "folder", "dangling link", "endless"])
def test_only_regular_files_are_read(name, what, llama):
    """A pipe would wait for ever, /dev/zero would fill the memory."""
    path = llama / name
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if what == "endless" else "gone")
    assert name in refused(llama)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ("null", "object"),
        ("{", "JSON"),
        ('{"hidden_size": NaN}', "NaN"),
        ('{"rms_norm_eps": -Infinity}', "-Infinity"),
        ('{"model_type": "llama", "model_type": "qwen2"}', "twice"),
        ('{"a": ' * 50_000, "JSON"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "JSON"),
        ('{"a": "' + "x" * 1_000_000 + '"}', "1000000"),
        ("\udcff", "JSON"),
    ],
)
def test_a_config_that_is_no_config(text, word, llama):
    (llama / "config.json").write_text(text, errors="surrogateescape")
    assert word in refused(llama)


@pytest.mark.parametrize("text", ['{"rms_norm_eps": 1e999}', '{"rope_theta": 1e999}'])
def test_numbers_too_large_for_a_float_are_refused(text, llama):
    (llama / "config.json").write_text(
        json.dumps(config_of("llama") | json.loads(text)).replace("Infinity", "1e999")
    )
    assert "inf" in refused(llama)


# --- shards -------------------------------------------------------------------------------------


@pytest.fixture
def shards(llama) -> Path:
    tensors = list(safetensors.torch.load_file(llama / WEIGHTS).items())
    (llama / WEIGHTS).unlink()
    places = {}
    for i, part in enumerate((tensors[:4], tensors[4:])):
        safetensors.torch.save_file(dict(part), llama / f"model-{i}.safetensors")
        places |= {name: f"model-{i}.safetensors" for name, _ in part}
    (llama / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    assert open_checkpoint(llama).state()
    return llama


def remap(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".x.safetensors", "x.bin", "",
     "a\0.safetensors", "..\\x.safetensors", "x.safetensors\n", "x" * 300 + ".safetensors", 3, None, ["a"]],
)  # fmt: skip
def test_an_index_names_files_beside_it_only(file, shards):
    outside = shards.parent / "x.safetensors"
    outside.write_bytes((shards / "model-0.safetensors").read_bytes())
    remap(shards, lambda places: {name: file if i == 0 else p for i, (name, p) in enumerate(places.items())})
    assert "beside it" in refused(shards)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda places: {}, "weight_map"),
        (lambda places: None, "weight_map"),
        (lambda places: list(places), "weight_map"),
        (lambda places: places | {"model.more.weight": "model-0.safetensors"}, "missing"),
        (lambda places: places | {"model.more.weight": "model-9.safetensors"}, "model-9.safetensors"),
        (lambda places: dict(list(places.items())[1:]), "index does not say so"),
        (lambda places: dict.fromkeys(places, "model-0.safetensors"), "missing"),
        (lambda places: dict(zip(places, reversed(places.values()), strict=True)), "index does not say so"),
    ],
)
def test_an_index_that_lies_is_refused(change, word, shards):
    remap(shards, change)
    assert word in refused(shards)


def test_a_tensor_in_two_shards_is_refused(shards):
    """Whichever of the two was meant, the index names one."""
    first = safetensors.torch.load_file(shards / "model-0.safetensors")
    second = safetensors.torch.load_file(shards / "model-1.safetensors")
    name = next(iter(first))
    safetensors.torch.save_file(second | {name: first[name] * 2}, shards / "model-1.safetensors")
    assert repr(name) in refused(shards)


def test_shards_need_not_have_one_dtype(shards):
    """Fused matrices take the wider one."""
    halves = safetensors.torch.load_file(shards / "model-0.safetensors")
    safetensors.torch.save_file({k: v.half() for k, v in halves.items()}, shards / "model-0.safetensors")
    assert {t.dtype for t in open_checkpoint(shards).state().values()} == {torch.float16, torch.float32}


# --- nothing there ------------------------------------------------------------------------------


def test_places_that_hold_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.gguf").touch()
    assert "config.json" in refused(Path("empty"))
    write_config(tmp_path / "bare", config_of("llama"))
    assert "neither model.safetensors nor" in refused(Path("bare"))
    for name in ("gone", "file.gguf", "x" * 300, "a\0b", ""):
        refused(Path(name))


# --- memory -------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
from models.pretrained import PretrainedError, open_checkpoint
import torch
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 256 * 2**20,) * 2)
for path in sys.argv[1:]:
    try:
        open_checkpoint(Path(path)).state()
    except PretrainedError as error:
        print(error)
"""


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="address space is read from /proc")
def test_what_a_file_states_is_not_allocated(llama, tmp_path):
    """In 256 MB of further address space: terabytes in the header, in config.json, and in both."""
    header, data = split(llama)
    embedding = "model.embed_tokens.weight"
    rows = 10**7
    begin, end = header[embedding]["data_offsets"]
    claimed = rows * 4096 * 4
    other = {
        name: e
        | {"data_offsets": [o + (claimed - (end - begin) if o > begin else 0) for o in e["data_offsets"]]}
        for name, e in header.items()
        if name != "__metadata__"
    }
    lying = other | {
        embedding: {"dtype": "F32", "shape": [rows, 4096], "data_offsets": [begin, begin + claimed]}
    }
    big = config_of("llama", vocab_size=rows, hidden_size=4096, num_hidden_layers=10_000)
    folders = [tmp_path / name for name in ("header", "config", "both", "llama2c")]
    for folder in folders[:3]:
        write_config(folder, config_of("llama") if folder.name == "header" else big)
        put(folder, header if folder.name == "config" else lying, data)
    many = tmp_path / "many.bin"
    many.write_bytes(struct.pack("<7i", 2**20, 2**20, 10_000, 2**15, 2**15, 10**7, 2**20) + bytes(1000))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, folders[:3]), str(many)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.full
def test_a_header_of_empty_lists_is_bounded(llama):
    """The costliest header that is read at all: parsing it takes a known multiple of its size."""
    header = b'{"a":[' + b"[]," * ((HEADER_LIMIT - 20) // 3) + b"[]]}"
    put(llama, header, b"")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "exactly" in refused(llama)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
