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
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import TokenizerError


class HuggingFaceTokenizer:
    """The `Tokenizer` protocol over the `tokenizers` library."""

    name = "tokenizer.json"

    def __init__(self, file: Path, bos: int | None, eos: tuple[int, ...]) -> None:
        """`bos` and `eos` are what config.json says. Raises TokenizerError."""
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise TokenizerError(f"{file} cannot be read ({error.strerror}).") from None
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
        self.bos = self._bos(_settings(file.with_name("tokenizer_config.json")), bos)
        self.eos, self.pad = eos, eos[0] if eos else 0

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; specials, and rows of the embedding that have no token, are dropped."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def _bos(self, settings: dict[str, Any] | None, of_config: int | None) -> int | None:
        if settings is not None and settings.get("add_bos_token") is False:
            return None
        first = self._tokenizer.encode("a", add_special_tokens=True).ids
        if first[:1] != self.encode("a")[:1]:
            return first[0]
        if settings is None:
            return of_config
        token = settings.get("bos_token") if settings.get("add_bos_token") else None
        return self._tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token or "")


def _read(raw: bytes, file: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TokenizerError(f"{file} needs the package 'tokenizers', which is not installed.") from None
    try:
        return Tokenizer.from_str(raw.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception
        reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        raise TokenizerError(f"{file} is not a readable tokenizer ({reason}).") from None


def _settings(file: Path) -> dict[str, Any] | None:
    """tokenizer_config.json, or None where there is none. Raises TokenizerError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise TokenizerError(f"{file} is not readable JSON.") from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{file} is not a table of settings.")
    return found
