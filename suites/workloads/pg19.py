"""Language modelling: real books fed through the cache, every token scored exactly once.

    case   prompt BOS; forced = the first `bytes_per_book` bytes of a book (0: all), from byte `start`
    cell   all books together, as the rows of one batch; `context` is the longest of them in tokens

The text goes through `extend`, so that eviction acts while the book is read; a parallel forward
would never evict. The first token is scored from BOS; a model without BOS is given the first token, which
is then not scored. No window, no stride: the cache is carried from the first token to the last.

Per-case values are of one book; a corpus value is made from the sums (nll_nats over num_words), never
the mean of per-book perplexities. Bytes and words are those of the scored tokens, decoded. So bits per byte
compare across tokenizers; perplexities per token do not.

Word perplexity divides by the words (`str.split`) of the text that was scored. PG-19's official word
counts, and thus published numbers, hold only when all books of a split are scored whole.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from ..documents import Document, TextError
from ..suite import Answer, Axes, Case, Suite, seed_of
from ..tokenizer import start_of


@dataclass(frozen=True)
class Options:
    books: int = 3
    bytes_per_book: int = 8192
    start: int = 0

    def __post_init__(self) -> None:
        if self.books < 1:
            raise ValueError("books must be 1 or more.")
        if min(self.bytes_per_book, self.start) < 0:
            raise ValueError("bytes_per_book and start must be 0 or more.")


class Workload(Suite):
    options: Options

    def cells(self) -> list[dict[str, float | int | str]]:
        encode = self.context.tokenizer.encode
        longest = max(len(encode(self._scored_text(document))) for document in self._documents())
        # A cut between characters costs up to three bytes; shorter books have the context that they have.
        wanted = self.options.bytes_per_book
        return [{"context": wanted if wanted - 4 < longest <= wanted else longest}]

    def cases(self, cell: Axes) -> Iterator[Case]:
        """One case per book, in the text's order.

        Raises TextError when `start` is beyond a book's end, or the tokenizer loses some of the text.
        """
        for document in self._documents():
            prompt, forced, scored = self._cut(document)
            id = f"pg19/book={document.id}/start={self.options.start}/bytes={self.options.bytes_per_book}"
            yield Case(
                id=id,
                prompt=prompt,
                forced=forced,
                axes={**cell, "book": document.id},
                target={"num_bytes": len(scored.encode("utf-8")), "num_words": len(scored.split())},
                seed=seed_of(id),
            )

    def _cut(self, document: Document) -> tuple[tuple[int, ...], tuple[int, ...], str]:
        """Prompt, scored tokens, and the text of the latter."""
        tokenizer, text = self.context.tokenizer, self._scored_text(document)
        ids, start = tokenizer.encode(text), start_of(self.context.tokenizer)
        whole = tokenizer.decode(ids)
        # Some tokenizers compose accents (NFC); whatever else is lost would be scored as if it were there.
        if unicodedata.normalize("NFC", whole) != unicodedata.normalize("NFC", text):
            raise TextError(
                f"Tokenizer {tokenizer.name} does not give document {document.id} back as it was: "
                "bits per byte would be those of another text."
            )
        given = 0
        if not start:  # the first token, or as many as the first character has
            given = next(n for n in range(1, len(ids) + 1) if whole.startswith(tokenizer.decode(ids[:n])))
        if given == len(ids):
            raise TextError(f"Document {document.id} is too short: nothing is left to score.")
        scored = whole[len(tokenizer.decode(ids[:given])) :] if given else whole
        return (*start, *ids[:given]), tuple(ids[given:]), scored

    def _documents(self) -> list[Document]:
        """The first `books` documents; fewer when the text has no more (the notes say how many)."""
        if self.context.text is None:
            raise TextError("The pg19 suite needs text; name one with --text FILE.")
        return self.context.text.documents[: self.options.books]

    def _scored_text(self, document: Document) -> str:
        """The wanted bytes of a document, without the characters cut at either end."""
        stop = self.options.start + self.options.bytes_per_book if self.options.bytes_per_book else None
        text = document.text.encode("utf-8")[self.options.start : stop].decode("utf-8", errors="ignore")
        if not text:
            raise TextError(f"Document {document.id} has no byte {self.options.start} to start at.")
        return text

    def score(self, case: Case, answer: Answer) -> dict[str, float]:
        """Sums and ratios of one book. Raises ValueError when not every token was scored once."""
        num_tokens = len(case.forced or ())
        if len(answer.logprobs) != num_tokens:
            raise ValueError(f"{case.id}: {len(answer.logprobs)} of {num_tokens} tokens were scored.")
        nll_nats = -math.fsum(answer.logprobs)
        num_bytes, num_words = case.target["num_bytes"], case.target["num_words"]
        return {
            "nll_nats": nll_nats,
            "num_bytes": float(num_bytes),
            "num_tokens": float(num_tokens),
            "num_words": float(num_words),
            "bits_per_byte": nll_nats / math.log(2) / num_bytes,
            "token_ppl": _exp(nll_nats / num_tokens),
            "word_ppl": _exp(nll_nats / num_words) if num_words else math.nan,
        }

    def notes(self) -> dict[str, str]:
        text, has_bos = self.context.text, self.context.tokenizer.bos is not None
        return {
            "protocol": f"{'BOS' if has_bos else 'the first token (the model has no BOS)'}, then each token "
            "scored once through the cache; no window, no stride",
            "words": "str.split of the scored text; PG-19's official count only if a whole split is scored",
            "text": text.label if text else "none",
            "is_pg19": "yes" if text and text.kind == "pg19" else "no",
            "books": ", ".join(document.id for document in self._documents()) if text else "",
        }


def _exp(exponent: float) -> float:
    """exp, but infinite instead of an OverflowError."""
    return math.exp(exponent) if exponent < 700 else math.inf
