"""Language modelling: real books fed through the cache, every token scored exactly once.

    protocol=stream   a book is one stream: the cache is carried from its first token to its last, and
                      `bucket` tokens at a time make a curve by position (0: none)
    protocol=tova     pieces of `chunk` tokens, each from an empty cache: perplexity against budget, as
                      in TOVA's paper (arXiv 2401.06104: 4,096, the length of its topline)
    protocol=lococo   sequences of `length` tokens, each from an empty cache that is carried over its blocks
                      (arXiv 2406.05317: 4,096 and more, blocks of as many tokens as the memory has slots)

    case   prompt BOS; forced = a piece of a book's first `bytes_per_book` bytes (0: all) from byte `start`
    cell   all pieces of all `books` (0: all); `context` is the longest of them in tokens

The text goes through `extend`, so that eviction acts while the book is read; a parallel forward
would never evict. No stride: pieces partition the book. The first token of a piece is scored from BOS,
which is not counted in `chunk`; the cache sees BOS and all tokens but the last, so exactly `chunk`. A model
without BOS is given the token before the piece, and of each book the first token, which is then not scored.

What papers leave open, and where we differ: TOVA's says nothing about BOS or first tokens. LoCoCo has no
published evaluation code. Its training code counts no block's first token (511 of 512): `block_nll_nats`
over `block_tokens` does likewise, with `block` tokens to a block. That code joins texts; here no sequence
crosses a book's end, and the last is shorter. What is fed at once is the run's (`scoring_mode`: segments of
about 512, whole blocks of LoCoCo's own `block`); BOS goes first, by itself, so that the first fold has a
slot more.

Per-case values are of one piece; a value of a book or a corpus is made from the sums (nll_nats over
num_words), never the mean of perplexities. Bytes and words are those of the scored tokens, decoded. So bits
per byte compare across tokenizers; perplexities per token do not.

Word perplexity divides by the words (`str.split`) of the text that was scored. Published numbers divide by
PG-19's own count, which holds for whole splits only: where one is scored whole, `num_words_official` has
each case's part of it (in proportion to its words: only the sum is official).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..books import Reading, excerpt, official_words, pieces, read
from ..documents import Document, TextError
from ..suite import Answer, Axes, Case, Suite, seed_of

#: Tokens of all requests that run together: a full cache of more would not fit where one book does.
TOGETHER = 16 * 8192


@dataclass(frozen=True)
class Options:
    """`chunk` is of protocol=tova, `length` and `block` of protocol=lococo; sizes are in tokens."""

    books: int = 3
    bytes_per_book: int = 8192
    start: int = 0
    protocol: Literal["stream", "tova", "lococo"] = "stream"
    chunk: int = 4096
    length: int = 4096
    block: int = 512
    bucket: int = 0

    def __post_init__(self) -> None:
        if min(self.books, self.bytes_per_book, self.start, self.bucket) < 0:
            raise ValueError("books, bytes_per_book, start and bucket must be 0 or more.")
        if min(self.chunk, self.length, self.block) < 1:
            raise ValueError("chunk, length and block must be 1 or more.")
        if self.length % self.block:
            raise ValueError(f"length must be a multiple of block, {self.block}, not {self.length}.")
        for name, protocol in (("chunk", "tova"), ("length", "lococo"), ("block", "lococo")):
            if self.protocol != protocol and getattr(self, name) != getattr(Options, name):
                raise ValueError(f"{name} is an option of protocol={protocol}, not of {self.protocol}.")

    @property
    def piece(self) -> int:
        """Tokens that go through one cache; 0: a whole book."""
        return {"stream": 0, "tova": self.chunk, "lococo": self.length}[self.protocol]


class Workload(Suite):
    options: Options

    @property
    def most_together(self) -> int:
        """Streams of a whole book run one by one."""
        o = self.options
        longest = max(len(document.text) for document in self._documents())  # a token has a byte or more
        longest = min(longest, o.bytes_per_book or longest, o.piece or longest)
        return max(1, TOGETHER // max(longest, 1))

    def cells(self) -> list[dict[str, float | int | str]]:
        o, encode = self.options, self.context.tokenizer.encode
        texts = (excerpt(document, o.start, o.bytes_per_book) for document in self._documents())
        longest = max(len(encode(text)) for text in texts)
        # A cut between characters costs up to three bytes; shorter books have the context that they have.
        wanted = o.bytes_per_book
        longest = wanted if wanted - 4 < longest <= wanted else longest
        return [{"context": min(longest, o.piece or longest), "protocol": o.protocol}]

    def cases(self, cell: Axes) -> Iterator[Case]:
        """Pieces in the order of the text, book after book.

        Raises TextError when `start` is beyond a book's end, or the tokenizer loses some of the text.
        """
        o = self.options
        kind, size = ("", "") if not o.piece else (f"/{o.protocol}", f"/tokens={o.piece}")
        axes = {**cell} if not o.bucket else {**cell, "bucket": o.bucket}
        for document in self._documents():
            name = f"pg19{kind}/book={document.id}/start={o.start}/bytes={o.bytes_per_book}{size}"
            for index, piece in enumerate(pieces(self.context.tokenizer, self._reading(document), o.piece)):
                id = f"{name}/chunk={index}" if o.piece else name
                place = {"book": document.id, "chunk": index} if o.piece else {"book": document.id}
                yield Case(
                    id=id,
                    prompt=piece.prompt,
                    forced=piece.forced,
                    axes=axes | place,
                    target={"num_bytes": piece.num_bytes, "num_words": piece.num_words},
                    seed=seed_of(id),
                )

    def _reading(self, document: Document) -> Reading:
        return read(self.context.tokenizer, document, self.options.start, self.options.bytes_per_book)

    def _documents(self) -> list[Document]:
        """The first `books` documents; fewer when the text has no more (the notes say how many)."""
        if self.context.text is None:
            raise TextError("The pg19 suite needs text; name one with --text FILE.")
        return self.context.text.documents[: self.options.books or None]

    def score(self, case: Case, answer: Answer) -> dict[str, float | Sequence[float]]:
        """Sums and ratios of one piece. Raises ValueError when not every token was scored once."""
        nats, num_tokens = [-logprob for logprob in answer.logprobs], len(case.forced or ())
        if len(nats) != num_tokens:
            raise ValueError(f"{case.id}: {len(nats)} of {num_tokens} tokens were scored.")
        nll_nats = math.fsum(nats)
        num_bytes, num_words = case.target["num_bytes"], case.target["num_words"]
        found: dict[str, float | Sequence[float]] = {
            "nll_nats": nll_nats,
            "num_bytes": float(num_bytes),
            "num_tokens": float(num_tokens),
            "num_words": float(num_words),
            "bits_per_byte": nll_nats / math.log(2) / num_bytes if num_bytes else math.nan,
            "token_ppl": _exp(nll_nats / num_tokens),
            "word_ppl": _exp(nll_nats / num_words) if num_words else math.nan,
        }
        if self._official:
            official, counted = self._official
            found["num_words_official"] = official * num_words / counted
        if self.options.protocol == "lococo":
            counted_nats = [nat for i, nat in enumerate(nats) if i % self.options.block]
            found |= {"block_nll_nats": math.fsum(counted_nats), "block_tokens": float(len(counted_nats))}
        if size := self.options.bucket:
            buckets = [nats[start : start + size] for start in range(0, num_tokens, size)]
            found["bucket_nll_nats"] = [math.fsum(bucket) for bucket in buckets]
            found["bucket_tokens"] = [float(len(bucket)) for bucket in buckets]
        return found

    @cached_property
    def _official(self) -> tuple[int, int] | None:
        """Words by PG-19's own count and by `str.split`, if a split is scored from end to end."""
        o, text = self.options, self.context.text
        partly = o.start or o.bytes_per_book or self.context.tokenizer.bos is None
        if text is None or partly or len(self._documents()) < len(text.documents):
            return None
        official = official_words(text)
        return official and (official, sum(len(document.text.split()) for document in text.documents))

    def notes(self) -> dict[str, str]:
        o, text, has_bos = self.options, self.context.text, self.context.tokenizer.bos is not None
        how = {
            "stream": "a book is one stream",
            "tova": f"chunks of {o.chunk} tokens that do not overlap, each from an empty cache",
            "lococo": f"sequences of {o.length} tokens, each from an empty cache that is carried over its "
            f"blocks; block_nll_nats leaves out the first of every {o.block} tokens",
        }[o.protocol]
        first = "BOS" if has_bos else "the token before (the model has no BOS)"
        words = "str.split of the scored text; PG-19's official count only if a whole split is scored"
        if text and self._official:
            words = f"PG-19's official count of the split, {self._official[0]}, in num_words_official"
        return {
            "protocol": f"{o.protocol}: {how}; {first}, then each token scored once through the cache; "
            "no stride",
            "words": words,
            "text": text.label if text else "none",
            "is_pg19": "yes" if text and text.kind == "pg19" else "no",
            "books": ", ".join(document.id for document in self._documents()) if text else "",
        }


def _exp(exponent: float) -> float:
    """exp, but infinite instead of an OverflowError."""
    return math.exp(exponent) if exponent < 700 else math.inf
