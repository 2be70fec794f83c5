"""kvmark as a model of lm-eval: its own command and Python API drive a cache of ours.

    from harness.lm_eval_entry import KvmarkLM
    lm = KvmarkLM(spec="tova:budget=64", model="ORG/NAME", batch_size=8, device="cpu")
    results = lm_eval.simple_evaluate(model=lm, tasks=["piqa"])
    results["config"]["exercised_share"]     # of its requests, those in which the policy evicted something

Declared as the entry point `kvmark` of `lm_eval.models`; releases of lm-eval that look for entry points
(after 0.4.13) take `--model kvmark --model_args model=ORG/NAME,spec=tova,budget=64`. Such arguments are split
at commas, so options that the constructor does not know belong to the spec.

`kvmark run --suite lm_eval:...` measures the same requests and adds cost, resumption and the report.
lm-eval's own `use_cache` is refused: it knows answers by their text alone, not by who gave them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from models.spec import SpecError
from suites.lm_eval_bridge.model import CacheLM
from suites.suite import Answer, Case, Context, Suite
from suites.tokenizer import ByteTokenizer

from .loading import check_device, load_model, weights_of
from .measure import Measurement
from .plan import Cell, Settings
from .pretrained import locate, open_model
from .rows import base_row

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class _Asked(Suite):
    """A suite without cases of its own."""

    driven = True


@dataclass
class _Evaluation:
    """The requests of one evaluation. lm-eval asks once for each kind, and then for `get_model_info`."""

    kinds: set[str] = field(default_factory=set)
    requests: int = 0
    acted: int = 0
    modes: set[str] = field(default_factory=set)
    over: bool = False  # told, or broken off


class KvmarkLM(CacheLM):
    """An architecture on a checkpoint (or on our own weights), answering through its cache."""

    def __init__(
        self,
        spec: str = "transformer",
        model: str | None = None,
        batch_size: int | str = 16,
        device: str | None = None,
        dtype: str = "fp32",
        max_length: int | None = None,
        tokenizer: str | None = None,
        allow_pickle: bool = False,
        prefill_chunk: int | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """`batch_size` counts requests, not continuations. `max_length` None: the checkpoint's context.

        Raises SpecError, WeightsError, PretrainedError, TokenizerError or EnvironmentRefuses: one sentence.
        """
        if options:
            joined = ",".join(f"{key}={value}" for key, value in options.items())
            spec = f"{spec}{',' if ':' in spec else ':'}{joined}"
        if not str(batch_size).isdigit():
            raise SpecError(f"batch_size must be a number, not '{batch_size}'.")
        opened = None
        if model is not None:
            path = locate(model, allow_pickle)
            opened = open_model(path, tokenizer, allow_pickle)
            model = str(path)
        settings = Settings(
            model=model, tokenizer=tokenizer, allow_pickle=allow_pickle, dtype=dtype, device=device or "cpu",
            batch=int(batch_size), prefill_chunk=prefill_chunk,
        )  # fmt: skip
        check_device(settings.device)
        pretrained = opened and opened.pretrained
        own = opened.tokenizer if opened else ByteTokenizer()
        bound = max_length or (pretrained and pretrained.context_length)
        weights = weights_of(spec, settings, pretrained)
        self._facts = {"spec": spec, "weights": weights.label, "dtype": dtype, "max_length": bound}
        loaded = load_model(spec, settings, pretrained=pretrained)
        asked = _Asked(Suite.Options(), Context(own, None))
        self._measure = lambda: Measurement(
            loaded, asked, Cell("lm-eval", spec, "lm-eval", {}), settings, None,
            base=lambda cell, **known: base_row("lm-eval", cell, settings, weights=weights.label, **known),
            on_phase=lambda phase: None, context_length=pretrained and pretrained.context_length,
        )  # fmt: skip
        self._evaluation = _Evaluation()
        super().__init__(self._execute, own, bound)

    def _execute(self, cases: Sequence[Case]) -> list[Answer]:
        measurement = self._measure()  # its rows go with it: of these cases only the counts are told
        answers = measurement.run(cases)
        self._evaluation.requests += len(measurement.evicted)
        self._evaluation.acted += sum(count > 0 for count in measurement.evicted)
        self._evaluation.modes |= {str(base.scoring_mode) for base in measurement.bases}
        return answers

    @contextlib.contextmanager
    def _asked_for(self, kind: str) -> Iterator[None]:
        """Counts begin anew with an evaluation: where the last one is over, or had requests of this kind."""
        if self._evaluation.over or kind in self._evaluation.kinds:
            self._evaluation, self.truncated = _Evaluation(), 0
        self._evaluation.kinds.add(kind)
        self._evaluation.over = True
        yield
        self._evaluation.over = False

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with self._asked_for("loglikelihood"):
            return super().loglikelihood(requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        with self._asked_for("loglikelihood_rolling"):
            return super().loglikelihood_rolling(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        with self._asked_for("generate_until"):
            return super().generate_until(requests)

    @property
    def exercised_share(self) -> float:
        """Of the last evaluation's requests, those in which the policy evicted something; NaN before any."""
        last = self._evaluation
        return last.acted / last.requests if last.requests else float("nan")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval puts into the `config` of its results, when an evaluation is over."""
        last = self._evaluation
        last.over = True
        return {
            **{f"kvmark_{name}": value for name, value in self._facts.items()},
            "scoring_mode": "; ".join(sorted(last.modes)),
            "requests": last.requests,
            "requests_with_eviction": last.acted,
            "exercised_share": self.exercised_share,
            "truncated_requests": self.truncated,
        }

    # --- what of lm-eval cannot be had here -----------------------------------------------------------

    def set_cache_hook(self, cache_hook: Any) -> NoReturn:
        """lm-eval calls it for `use_cache`. Raises ValueError."""
        raise ValueError(
            "lm-eval's use_cache gives one architecture the answers of another, as it knows a request by its "
            "text alone; kvmark run --suite lm_eval:tasks=... resumes."
        )

    def apply_chat_template(self, *ignored: Any, **also: Any) -> NoReturn:
        """Raises ValueError."""
        raise ValueError("Chat templates are not applied here: prompts are fed as a task writes them.")

    @property
    def tokenizer_name(self) -> str:
        """lm-eval asks for it before it applies a chat template. Raises ValueError."""
        return self.apply_chat_template()
