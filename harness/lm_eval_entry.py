"""kvmark as a model of lm-eval: its own command and Python API drive a cache of ours.

    from harness.lm_eval_entry import KvmarkLM
    lm = KvmarkLM(spec="tova:budget=64", model="ORG/NAME", batch_size=8, device="cpu")
    results = lm_eval.simple_evaluate(model=lm, tasks=["piqa"])
    results["config"]["exercised_share"]     # of the requests, those in which the policy evicted something

Declared as the entry point `kvmark` of `lm_eval.models`; releases of lm-eval that look for entry points
(after 0.4.13) take `--model kvmark --model_args model=ORG/NAME,spec=tova,budget=64`. Such arguments are split
at commas, so options that the constructor does not know belong to the spec.

`kvmark run --suite lm_eval:...` measures the same requests and adds cost, resumption and the report.
"""

from __future__ import annotations

from typing import Any

from models.spec import SpecError
from suites.lm_eval_bridge.model import CacheLM
from suites.suite import Context, Suite
from suites.tokenizer import ByteTokenizer

from .loading import check_device, load_model, weights_of
from .measure import Measurement
from .plan import Cell, Settings
from .pretrained import locate, open_model
from .rows import base_row


class _Asked(Suite):
    """A suite without cases of its own."""

    driven = True


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
        self._measurement = Measurement(
            load_model(spec, settings, pretrained=pretrained), _Asked(Suite.Options(), Context(own, None)),
            Cell("lm-eval", spec, "lm-eval", {}), settings, None,
            base=lambda cell, **known: base_row("lm-eval", cell, settings, weights=weights.label, **known),
            on_phase=lambda phase: None, context_length=pretrained and pretrained.context_length,
        )  # fmt: skip
        super().__init__(self._measurement.run, own, bound)

    @property
    def exercised_share(self) -> float:
        """Share of all requests so far in which the policy evicted something; NaN before the first."""
        evicted = self._measurement.evicted
        return sum(count > 0 for count in evicted) / len(evicted) if evicted else float("nan")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval puts into the `config` of its results."""
        modes = sorted({str(base.scoring_mode) for base in self._measurement.bases})
        return {
            **{f"kvmark_{name}": value for name, value in self._facts.items()},
            "scoring_mode": "; ".join(modes),
            "requests": len(self._measurement.evicted),
            "requests_with_eviction": sum(count > 0 for count in self._measurement.evicted),
            "exercised_share": self.exercised_share,
            "truncated_requests": self.truncated,
        }
