"""Tokenizers of checkpoints: text comes back as it was, BOS is where it belongs, bad files are named."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from tokenizer_help import PIECES, PROSE, write_byte_bpe, write_llama2c, write_sentencepiece

from suites.tokenizer import ByteTokenizer, start_of
from suites.tokenizers import TokenizerError, find, open_tokenizer
from suites.tokenizers.llama2c import FIRST_PIECE

NEEDS_STORIES = pytest.mark.skipif(
    not (Path(os.environ.get("KVMARK_DATA", "")) / "tiny_lm" / "tok512.bin").is_file(),
    reason="KVMARK_DATA names no folder with tiny_lm/tok512.bin",
)
WRITERS = {
    "bytes-bpe": lambda folder: write_byte_bpe(folder),
    "sentencepiece": lambda folder: write_sentencepiece(folder),
    "llama2c": lambda folder: write_llama2c(folder / "tok.bin"),
}
TEXTS = [
    PROSE[:500],
    " leading and trailing  spaces ",
    "naïve €5 🙂\n\nnew\tline abcabca é",
    "the literal <s> is text, and so is </s> <unk>",
    "",
]


@pytest.fixture(params=WRITERS)
def tokenizer(request, tmp_path):
    return open_tokenizer(WRITERS[request.param](tmp_path), 1000, 1, (2,))


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_was(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids) <= set(tokenizer.plain_ids), "nothing that is written in a text becomes a special token"
    assert max(tokenizer.plain_ids) < tokenizer.vocab_size


def test_specials_and_ids_without_a_token_are_dropped(tokenizer):
    """A model may have more rows than its tokenizer has tokens; random weights do generate them."""
    ids = tokenizer.encode("a story")
    specials = [id for id in range(3) if id not in tokenizer.plain_ids]
    assert tokenizer.decode([*specials, *ids, *specials]) == "a story"
    if tokenizer.name == "tokenizer.json":
        assert tokenizer.decode([*ids, tokenizer.vocab_size + 5]) == "a story"


def test_every_prompt_begins_with_bos_or_with_text():
    class Without(ByteTokenizer):
        bos = None

    assert start_of(ByteTokenizer()) == (256,)
    assert start_of(Without()) == ()


# --- tokenizer.json --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("puts_bos", "settings", "bos"),
    [
        (False, {}, 7),  # nothing but config.json speaks
        (True, {}, 0),
        (True, {"bos_token": "<s>"}, 0),  # Llama-3: no add_bos_token, but a post-processor
        (True, {"add_bos_token": False, "bos_token": "<s>"}, None),
        (False, {"bos_token": None}, None),  # Qwen: config.json names one all the same
        (False, {"bos_token": "<s>"}, None),
        (False, {"add_bos_token": True, "bos_token": "<s>"}, 0),
        (False, {"add_bos_token": True, "bos_token": {"content": "<s>"}}, 0),
        (False, {"add_bos_token": True, "bos_token": None}, None),
    ],
)
def test_bos_is_what_the_tokenizers_own_files_put_first(tmp_path, puts_bos, settings, bos):
    file = write_byte_bpe(tmp_path, puts_bos=puts_bos, **settings)
    assert open_tokenizer(file, 1000, 7, (8, 9)).bos == bos


def test_eos_is_the_models_and_padding_is_any_id(tmp_path):
    file = write_byte_bpe(tmp_path)
    assert open_tokenizer(file, 1000, None, (8, 9)).eos == (8, 9)
    assert open_tokenizer(file, 1000, None, ()).eos == ()
    assert 0 <= open_tokenizer(file, 1000, None, ()).pad < 300


def test_cutting_and_padding_in_the_file_are_not_applied(tmp_path):
    values = json.loads(write_byte_bpe(tmp_path).read_text())
    values["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    values["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<s>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = open_tokenizer(tmp_path, 1000, None, ())
    assert tokenizer.decode(tokenizer.encode(PROSE[:90])) == PROSE[:90]
    assert len(tokenizer.encode("a")) == 1


def test_the_fingerprint_follows_the_file(tmp_path):
    first = open_tokenizer(write_byte_bpe(tmp_path / "a"), 1000, None, ()).fingerprint
    assert first == open_tokenizer(write_byte_bpe(tmp_path / "b"), 1000, None, ()).fingerprint
    assert first != open_tokenizer(write_byte_bpe(tmp_path / "c", vocab=290), 1000, None, ()).fingerprint


def refusal(file: Path, vocab: int = 1000) -> str:
    with pytest.raises(TokenizerError) as caught:
        open_tokenizer(file, vocab, None, ())
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and file.name in sentence
    return sentence


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "Nobody"}}', b"null"],
)
def test_an_unreadable_tokenizer_is_one_sentence(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert "not a readable tokenizer" in refusal(tmp_path / "tokenizer.json")


def test_an_empty_vocabulary_is_refused(tmp_path):
    values = json.loads(write_byte_bpe(tmp_path).read_text())
    values["model"] |= {"vocab": {}, "merges": []}
    values["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert "empty vocabulary" in refusal(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("settings", ["{", "[]", b"\xff"])
def test_unreadable_settings_are_one_sentence(tmp_path, settings):
    file = write_byte_bpe(tmp_path)
    raw = settings if isinstance(settings, bytes) else settings.encode()
    (tmp_path / "tokenizer_config.json").write_bytes(raw)
    with pytest.raises(TokenizerError, match="tokenizer_config.json"):
        open_tokenizer(file, 1000, None, ())


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path):
    assert "300 ids, the model knows 299" in refusal(write_byte_bpe(tmp_path), 299)
    assert str(FIRST_PIECE) in refusal(write_llama2c(tmp_path / "tok.bin", []), 17)


@pytest.mark.parametrize("name", ["gone.json", "gone.bin", "folder"])
def test_a_tokenizer_that_is_not_there_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    assert "no" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt"])
def test_other_formats_say_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert "tokenizer.json" in refusal(tmp_path / name)


def test_a_checkpoint_with_sentencepiece_alone_is_told_how_to_convert_it(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(TokenizerError, match="save_pretrained"):
        find(tmp_path, 100)
    with pytest.raises(TokenizerError, match="no tokenizer.json"):
        find(tmp_path.parent, 100)


# --- llama2.c --------------------------------------------------------------------------------------


def as_the_format_says(text: str, pieces: list[str]) -> list[int]:
    """Encoding as the C program does it: look at all pairs again after every merge."""
    scores = {piece: -float(rank) for rank, piece in enumerate(pieces)}
    tokens: list[str | int] = []
    for character in " " + text:
        tokens += [character] if character in scores else list(character.encode())
    while True:
        pairs = [
            (-scores[a + b], place)
            for place, (a, b) in enumerate(zip(tokens, tokens[1:], strict=False))
            if isinstance(a, str) and isinstance(b, str) and a + b in scores
        ]
        if not pairs:
            return [3 + t if isinstance(t, int) else FIRST_PIECE + pieces.index(t) for t in tokens]
        place = min(pairs)[1]
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]


@pytest.mark.parametrize("pieces", [PIECES, [*PIECES, "a b", "c a"]], ids=["words apart", "across words"])
def test_llama2c_merges_as_the_format_says(tmp_path, pieces):
    tokenizer = open_tokenizer(write_llama2c(tmp_path / "tok.bin", pieces), 1000, None, ())
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("aaabbbccc  é\n€", k=draw.randint(1, 40)))
        assert tokenizer.encode(text) == as_the_format_says(text, pieces)


def test_a_llama2c_checkpoint_finds_the_tokenizer_of_its_vocabulary(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    write_llama2c(tmp_path / "tok300.bin", PIECES)
    right = write_llama2c(tmp_path / "tokens.bin", PIECES[:5])
    (tmp_path / "tok_damaged.bin").write_bytes(b"\1\0\0\0\0")
    assert find(tmp_path / "model.bin", FIRST_PIECE + 5) == right
    with pytest.raises(TokenizerError, match=r"tok\*\.bin of 99 entries.*--tokenizer"):
        find(tmp_path / "model.bin", 99)


@pytest.mark.parametrize("keep", [3, 10, 1000, -1])
def test_a_truncated_llama2c_tokenizer_is_refused(tmp_path, keep):
    file = write_llama2c(tmp_path / "tok.bin")
    file.write_bytes(file.read_bytes()[:keep])
    assert "not a llama2.c tokenizer" in refusal(file)


@NEEDS_STORIES
def test_the_published_tokenizer_encodes_the_published_story():
    folder = Path(os.environ["KVMARK_DATA"]) / "tiny_lm"
    story = json.loads((folder / "reference.json").read_text())
    file = find(folder / "stories260K.bin", 512)
    tokenizer = open_tokenizer(file, 512, 1, (2,))
    assert file.name == "tok512.bin"
    assert [tokenizer.bos, *tokenizer.encode(story["text"])] == story["token_ids"]
    assert tokenizer.decode(story["token_ids"]) == story["text"]


# --- hostile files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [{}, 5, [], "<nobody>", {"content": 3}])
def test_a_bos_token_that_is_none_is_one_sentence(tmp_path, token):
    file = write_byte_bpe(tmp_path, add_bos_token=True, bos_token=token)
    with pytest.raises(TokenizerError, match="'bos_token' in .* must be a token of tokenizer.json"):
        open_tokenizer(file, 1000, None, ())


@pytest.mark.parametrize("kind", ["nested", "pipe", "huge", "folder"])
def test_hostile_settings_are_one_sentence(tmp_path, kind):
    file, settings = write_byte_bpe(tmp_path), tmp_path / "tokenizer_config.json"
    if kind == "nested":
        settings.write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    elif kind == "pipe":
        os.mkfifo(settings)
    elif kind == "folder":
        settings.mkdir()
    else:
        with settings.open("wb") as hole:
            hole.truncate(10**10)
    with pytest.raises(TokenizerError, match="tokenizer_config.json"):
        open_tokenizer(file, 1000, None, ())


@pytest.mark.parametrize("name", ["tokenizer.json", "tok.bin"])
def test_a_huge_tokenizer_is_not_read(tmp_path, name):
    with (tmp_path / name).open("wb") as hole:
        hole.truncate(10**12)
    assert "at most" in refusal(tmp_path / name)


def test_a_vocabulary_without_text_is_refused(tmp_path):
    values = json.loads(write_byte_bpe(tmp_path).read_text())
    values["model"] |= {"vocab": {"<s>": 0, "</s>": 1}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert "only special ones" in refusal(tmp_path / "tokenizer.json")


def test_failures_of_the_library_are_one_sentence(tmp_path):
    tokenizer = open_tokenizer(write_byte_bpe(tmp_path), 1000, None, ())
    with pytest.raises(TokenizerError, match=r"tokenizer.json cannot encode \(.*\)\.$"):
        tokenizer.encode("\ud800")
    with pytest.raises(TokenizerError, match=r"tokenizer.json cannot decode \(.*\)\.$"):
        tokenizer.decode([-1])
