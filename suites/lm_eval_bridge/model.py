"""An `lm_eval` LM that answers through a cache: it turns requests into Cases, and `run` executes these.

    loglikelihood           the context is the prompt and goes through the policy; the continuation is
                            scored through the same cache. Continuations of one context fork it.
    loglikelihood_rolling   disjoint windows of at most `max_length` tokens, each token scored once
    generate_until          greedy, until a stop string, an end token or `max_gen_toks`

What is fed is what lm-eval's own `hf` model feeds: context and continuation are encoded as one text and
split behind the context's tokens, spaces at the context's end go to the continuation, an empty context is
BOS (else the end token), and what does not fit into `max_length` is cut off on the left; `truncated` counts
that. In rolling windows a checkpoint's tokenizer that begins a text with BOS does so behind the BOS that the
first window starts from, and that second BOS is scored: as there. Our own networks never saw two, and with
bytes they are shown one (of two the first costs 20 nats, and what follows is predicted worse).

One deviation, on purpose: what a document says is text. Where one spells a special token (`<s>` in a web
page, `<|im_end|>` in a transcript), `hf` feeds that token's id and we feed its characters, as everywhere in
this project: rows of others must neither begin nor end a text. Documents that spell none score as there.

One case is one request: the cache sees it as a parallel forward never would, evictions included. A task's
`repeats` are cases of the same prompt and seed, and as answers are greedy they are equal.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ..suite import Answer, Case, seed_of
from ..tokenizer import ByteTokenizer, Tokenizer, start_of

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Run = Callable[[Sequence[Case]], list[Answer]]

#: What a task may say of a greedy answer besides where it ends; it changes nothing.
_IDLE = {"do_sample", "temperature", "top_k", "top_p"}
#: lm-eval's own default length of an answer.
DEFAULT_ANSWER = 256


class CacheLM(TemplateLM):
    """`run` executes Cases through the cache under test and returns their Answers in order."""

    def __init__(
        self,
        run: Run,
        tokenizer: Tokenizer,
        max_length: int | None = None,
        axes: Mapping[str, float | int | str] | None = None,
    ) -> None:
        """`max_length` bounds what a request feeds, as a checkpoint's context does; None: no bound."""
        super().__init__()
        self._run, self._tokens, self.max_length, self._axes = run, tokenizer, max_length, dict(axes or {})
        self.truncated = 0  # requests that were cut on the left

    # --- what lm-eval's own encoding asks for ---------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        if not self._tokens.eos:
            raise ValueError("The tokenizer has neither BOS nor an end token to stand for an empty context.")
        return self._tokens.eos[0]

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self._tokens.bos is None else self._tokens.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **ignored: Any) -> list[int]:
        start = () if add_special_tokens is False else start_of(self._tokens)
        return [*start, *self._tokens.encode(string)]

    # --- the three kinds of requests ------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, whether every token was the likeliest) of each continuation."""
        cases = []
        for request in requests:
            context, continuation = self._pair(*request.args)
            prompt = self._last([*context, *continuation], self.max_length, 1)[: -len(continuation)]
            if not prompt:
                size = f"{len(continuation)} tokens"
                raise ValueError(f"A continuation of {size} does not fit into max_length={self.max_length}.")
            cases.append(self._case(request, prompt, forced=tuple(continuation)))
        return [(sum(answer.logprobs), bool(answer.greedy)) for answer in self._answers(cases)]

    def _loglikelihood_tokens(self, requests: list, **ignored: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("CacheLM.loglikelihood does not go this way.")

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, at least one each."""
        if context:
            first, rest = self._encode_pair(context, continuation)
        else:
            first = [self.prefix_token_id]
            rest = self.tok_encode(continuation, add_special_tokens=False)
        if not first or not rest:
            raise ValueError(f"Nothing is left to score of {continuation!r} after {context[-40:]!r}.")
        return first, rest

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text."""
        cases, owners = [], []
        for number, request in enumerate(requests):
            start = False if isinstance(self._tokens, ByteTokenizer) else None
            ids = self.tok_encode(*request.args, add_special_tokens=start)
            bound = self.max_length or max(len(ids), 1)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, bound, context_len=1)
            for index, (prompt, forced) in enumerate(map(make_disjoint_window, windows)):
                cases.append(self._case(request, prompt, f"/window={index}", forced=tuple(forced)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, answer in zip(owners, self._answers(cases), strict=True):
            sums[number] += sum(answer.logprobs)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Each answer up to its first stop string."""
        cases = []
        for request in requests:
            context, settings = request.args
            wanted = normalize_gen_kwargs(settings, DEFAULT_ANSWER)
            length = wanted.pop("max_gen_toks")
            stop = tuple(filter(None, wanted.pop("until")))
            if wanted["do_sample"] or not set(wanted) <= _IDLE:
                asked = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "until")
                raise ValueError(f"Answers are greedy here, and the task asks for something else ({asked}).")
            room = None if self.max_length is None else self.max_length - length
            if room is not None and room < 1:
                raise ValueError(f"max_length={self.max_length} leaves no room for {length} new tokens.")
            prompt = self._last(self.tok_encode(context), room)
            cases.append(self._case(request, prompt, max_new_tokens=length, stop=stop))
        return [answer.text for answer in self._answers(cases)]

    # --- from requests to cases -----------------------------------------------------------------------

    def _last(self, ids: list[int], room: int | None, unfed: int = 0) -> list[int]:
        """At most the last `room` tokens, and `unfed` more that are scored and never fed."""
        if room is None or len(ids) <= room + unfed:
            return ids
        self.truncated += 1
        return ids[-(room + unfed) :]

    def _case(self, request: Instance, prompt: Sequence[int], part: str = "", **asked: Any) -> Case:
        """A seed per document: continuations of one context are one request until they part."""
        document = f"lm_eval/task={request.task_name}/doc={request.doc_id}"
        kind = "request" if "forced" in asked else "answer"  # a task may ask both of a document
        id = f"{document}/{kind}={request.idx}{part}"
        return Case(id, tuple(prompt), axes=self._axes, seed=seed_of(document + part), **asked)

    def _answers(self, cases: Sequence[Case]) -> list[Answer]:
        """What `run` says. What is asked again (lm-eval's `repeats`) has an id of its own in the rows."""
        seen: Counter[str] = Counter()
        own = []
        for case in cases:
            again = seen[case.id]
            own.append(dataclasses.replace(case, id=f"{case.id}/repeat={again}") if again else case)
            seen[case.id] += 1
        return self._run(own) if own else []
