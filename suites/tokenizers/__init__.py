"""Tokenizers that checkpoints bring along, behind the protocol of `suites.tokenizer`.

    find(checkpoint, vocab)               the file that belongs to a checkpoint
    open_tokenizer(file, vocab, bos, eos) -> a Tokenizer

    tokenizer.json   Hugging Face's format, read by the `tokenizers` library
    tok*.bin         llama2.c's, read by ourselves

`tokenizer.model` (SentencePiece) is not read: every checkpoint that has only this can be given a
tokenizer.json by `transformers`, once, and the sentence says how.
"""

from __future__ import annotations

from pathlib import Path

from ..tokenizer import Tokenizer


class TokenizerError(ValueError):
    """A tokenizer is missing, unreadable or of another vocabulary; the message is one sentence."""


def find(checkpoint: Path, vocab: int) -> Path:
    """The tokenizer of a checkpoint folder, or beside a llama2.c file the one of `vocab` entries.

    Raises TokenizerError.
    """
    if checkpoint.suffix == ".bin" and checkpoint.is_file():
        from .llama2c import num_entries

        for file in sorted(checkpoint.parent.glob("tok*.bin")):
            if file != checkpoint and num_entries(file) == vocab:
                return file
        raise TokenizerError(
            f"There is no tok*.bin of {vocab} entries beside {checkpoint}; name it with --tokenizer."
        )
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    if (folder / "tokenizer.model").is_file():
        raise TokenizerError(_convert(folder / "tokenizer.model"))
    raise TokenizerError(f"{folder} has no tokenizer.json; name one with --tokenizer.")


def open_tokenizer(file: Path, vocab: int, bos: int | None, eos: tuple[int, ...]) -> Tokenizer:
    """Read a tokenizer for a model of `vocab` ids; `file` may be the folder that holds tokenizer.json.

    `bos` and `eos` are the model's own; where the tokenizer's files speak of BOS they are right.
    Raises TokenizerError.
    """
    if file.is_dir():
        file = find(file, vocab)
    if not file.is_file():
        raise TokenizerError(f"There is no tokenizer {file}.")
    if file.suffix == ".json":
        from .hugging_face import HuggingFaceTokenizer

        found: Tokenizer = HuggingFaceTokenizer(file, bos, eos)
    elif file.suffix == ".bin":
        from .llama2c import Llama2cTokenizer

        found = Llama2cTokenizer(file)
    elif file.suffix == ".model":
        raise TokenizerError(_convert(file))
    else:
        raise TokenizerError(f"{file} is no tokenizer that kvmark reads: tokenizer.json or tok*.bin.")
    if found.vocab_size > vocab:
        raise TokenizerError(f"{file} has {found.vocab_size} ids, the model knows {vocab}.")
    return found


#: Bytes of a tokenizer file; the largest published ones have a third of it.
LIMIT = 100_000_000


def read(file: Path, limit: int = LIMIT) -> bytes:
    """A regular file of at most `limit` bytes. Raises TokenizerError."""
    from models.pretrained.files import PretrainedError, read_at, regular_size

    try:
        if (size := regular_size(file)) > limit:
            raise TokenizerError(f"{file} has {size} bytes; at most {limit} are read.")
        return read_at(file, 0, size)
    except PretrainedError as error:
        raise TokenizerError(str(error)) from None


def _convert(file: Path) -> str:
    return (
        f"{file} is SentencePiece's format, which kvmark does not read: write a tokenizer.json beside it "
        f"with transformers, AutoTokenizer.from_pretrained('{file.parent}').save_pretrained(...)."
    )
