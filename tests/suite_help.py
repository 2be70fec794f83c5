"""Contexts, cases and tokenizers that the tests of all suites share."""

from __future__ import annotations

from tokenizer_help import PROSE as PROSE
from tokenizer_help import write_byte_bpe, write_llama2c, write_sentencepiece

import suites
from suites import Case, Context
from suites.text import Document, Text
from suites.tokenizer import ByteTokenizer
from suites.tokenizers import open_tokenizer

TOKENIZER = ByteTokenizer()
#: The last digit is one token with the full stop behind it.
JOINING = [" ", ".", *"0123456789", *(f"{digit}." for digit in range(10))]
#: Of checkpoints: with BOS and without, spaces in front, numbers that merge with the space before them.
OTHERS = {
    "bytes-bpe": lambda folder: open_tokenizer(write_byte_bpe(folder, 400), 1000, 0, (1,)),
    "no bos": lambda folder: open_tokenizer(write_byte_bpe(folder, 400, bos_token=None), 1000, 0, (1,)),
    "sentencepiece": lambda folder: open_tokenizer(write_sentencepiece(folder), 1000, 1, (2,)),
    "llama2c": lambda folder: open_tokenizer(write_llama2c(folder / "tok.bin"), 1000, 1, (2,)),
    "digits join": lambda folder: open_tokenizer(write_llama2c(folder / "tok.bin", JOINING), 1000, 1, (2,)),
}


def context(*texts: str, seed: int = 0, tokenizer=TOKENIZER) -> Context:
    documents = [Document(str(number), str(number), text) for number, text in enumerate(texts)]
    return Context(tokenizer, Text("file", "file:story.txt", documents), seed)


def all_cases(spec: str, where: Context) -> list[Case]:
    suite = suites.load(spec, where)
    return [case for cell in suite.cells() for case in suite.cases(cell)]
