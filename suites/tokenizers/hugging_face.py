"""tokenizer.json: the tokenizer of a checkpoint in Hugging Face's layout.

Text is text: special tokens written in it ("<s>") are not recognised, nothing is added, cut or padded.

Whether prompts begin with BOS is asked of the files in this order, since config.json names a
`bos_token_id` also for models that never saw one in front of a text (Qwen):

    1  tokenizer_config.json   add_bos_token: false
    2  tokenizer.json          what its own post-processor puts before a text
    3  tokenizer_config.json   add_bos_token: true and bos_token; without that key: no BOS
    4  config.json             bos_token_id, where there is no tokenizer_config.json
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.pretrained.files import PretrainedError, read_json, shown

from . import TokenizerError, read

#: Bytes of tokenizer_config.json; the largest published ones, which list every token, have a tenth of it.
SETTINGS_LIMIT = 10_000_000


class HuggingFaceTokenizer:
    """The `Tokenizer` protocol over the `tokenizers` library."""

    name = "tokenizer.json"

    def __init__(self, file: Path, bos: int | None, eos: tuple[int, ...]) -> None:
        """`bos` and `eos` are what config.json says. Raises TokenizerError."""
        raw = read(file)
        self._file = file
        self.fingerprint = hashlib.sha256(raw).hexdigest()
        self._tokenizer = _read(raw, file)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise TokenizerError(f"{file} has an empty vocabulary.")
        self.vocab_size = max(ids) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        specials = {id for id, token in added.items() if token.special}
        self.plain_ids = sorted(set(ids) - specials)
        if not self.plain_ids:
            raise TokenizerError(f"{file} has no tokens of text, only special ones.")
        self.bos = self._bos(_settings(file.with_name("tokenizer_config.json")), bos)
        self.eos, self.pad = eos, eos[0] if eos else 0

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone. Raises TokenizerError where the library refuses."""
        return self._encode(text, special=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; specials, and rows of the embedding that have no token, are dropped.

        Raises TokenizerError where the library refuses.
        """
        try:
            return self._tokenizer.decode(list(ids), skip_special_tokens=True)
        except BaseException as error:
            raise self._refused("decode", error) from None

    def _encode(self, text: str, special: bool) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=special).ids
        except BaseException as error:
            raise self._refused("encode", error) from None

    def _refused(self, verb: str, error: BaseException) -> BaseException:
        """One sentence for what the library raises: bare Exceptions, and panics that are not even those."""
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            return error
        return TokenizerError(f"{self._file} cannot {verb} ({_reason(error)}).")

    def _bos(self, settings: dict[str, Any] | None, of_config: int | None) -> int | None:
        if settings is not None and settings.get("add_bos_token") is False:
            return None
        first = self._encode("a", special=True)
        if first and first[:1] != self.encode("a")[:1]:
            return first[0]
        if settings is None:
            return of_config
        token = settings.get("bos_token") if settings.get("add_bos_token") else None
        if token is None:
            return None
        text = token.get("content") if isinstance(token, dict) else token
        found = self._tokenizer.token_to_id(text) if isinstance(text, str) else None
        if found is None:
            where = self._file.with_name("tokenizer_config.json")
            raise TokenizerError(
                f"'bos_token' in {where} must be a token of {self._file.name}, not {shown(token)}."
            )
        return found


def _read(raw: bytes, file: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TokenizerError(f"{file} needs the package 'tokenizers', which is not installed.") from None
    try:
        return Tokenizer.from_str(raw.decode("utf-8"))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are not even that
        raise TokenizerError(f"{file} is not a readable tokenizer ({_reason(error)}).") from None


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")


def _settings(file: Path) -> dict[str, Any] | None:
    """tokenizer_config.json, or None where there is none. Raises TokenizerError."""
    if not os.path.lexists(file):
        return None
    try:
        return read_json(file, SETTINGS_LIMIT)
    except PretrainedError as error:
        raise TokenizerError(str(error)) from None
