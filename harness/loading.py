"""Models as the worker measures them, on the weights of one of three sources.

    --shape NAME    random weights of a shape: what it costs
    --model PATH    a checkpoint of others: every architecture that is a policy on a Transformer
    neither         our own trained weights, each with its card

Which tensors an architecture shares with others is decided by *owner* (`Weights.owners`): tensors of the base
weights belong to these, so that a process holds them once however many architectures run on them;
what an architecture adds (LoCoCo's compressors) or replaces belongs to the weights of that training.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from models.spec import SpecError, canonical, split_spec

from .plan import Settings

if TYPE_CHECKING:
    from models.pretrained import Pretrained

#: Tensors that a process holds: (owner, name) -> parameter.
Shared = dict[tuple[str, str], Any]


@dataclass(frozen=True)
class Weights:
    """Which weights an architecture runs on: `label` stands in every row and in the cell's key.

    `owners` maps every tensor of the architecture to the weights that it belongs to.
    """

    label: str
    cards: dict[str, dict[str, Any]]  # by name; empty for random weights
    shape: dict[str, Any]
    owners: dict[str, str] = field(default_factory=dict)
    budget: int | None = None  # in tokens, where the architecture has one


def weights_of(spec: str, settings: Settings, pretrained: Pretrained | None = None) -> Weights:
    """Find and check them; `pretrained` is the opened `settings.model`.

    Raises SpecError, WeightsError or PretrainedError with one sentence.
    """
    from models import checkpoint

    plan = _Plan(spec, settings, pretrained)
    _use(plan.model, spec, settings)
    shape = dataclasses.asdict(plan.shape)
    if settings.shape is not None:
        return Weights(f"random@seed={settings.seed}", {}, shape, plan.owners, plan.budget)
    if pretrained is None:
        # Assigned to a model that is thrown away: weights that do not fit are found before anything runs.
        checkpoint.assign(plan.model, plan.base() | plan.added, "+".join(plan.cards))
    cards = plan.cards if pretrained is None else {pretrained.name: plan.card_of_others()} | plan.cards
    label = "+".join(f"{name}@{short(card['sha256'])}" for name, card in cards.items())
    return Weights(label, cards, shape, plan.owners, plan.budget)


def load_model(
    spec: str, settings: Settings, shared: Shared | None = None, pretrained: Pretrained | None = None
) -> Any:
    """Build the architecture with its weights in the run's dtype on the run's device.

    Tensors whose owner is known to `shared` are taken from there, all others are read (or drawn) and
    put there. Raises SpecError, WeightsError or PretrainedError with one sentence.
    """
    import torch

    plan, shared = _Plan(spec, settings, pretrained), {} if shared is None else shared
    missing = [name for name, owner in plan.owners.items() if (owner, name) not in shared]
    if missing:
        fresh = plan.tensors(missing, alone=not shared)
        for name in missing:
            # Taken out one by one: where dtype or device change, never more than one tensor is there twice.
            tensor = fresh.pop(name).to(settings.device, plan.dtype)
            shared[plan.owners[name], name] = torch.nn.Parameter(tensor, requires_grad=False)
    model = plan.model.eval().requires_grad_(False)
    model.load_state_dict({name: shared[owner, name] for name, owner in plan.owners.items()}, assign=True)
    _use(model, spec, settings)
    return model


def _use(model: Any, spec: str, settings: Settings) -> None:
    """Raises SpecError where the run's implementation is none of this architecture's, or cannot run."""
    try:
        model.use(settings.implementation, settings.device)
    except ValueError as error:
        raise SpecError(f"{spec}: {error}") from None


class _Plan:
    """An architecture without memory, and where each of its tensors comes from."""

    def __init__(self, spec: str, settings: Settings, pretrained: Pretrained | None) -> None:
        from models import checkpoint
        from models.shapes import load_shape

        self.spec, self.settings, self.pretrained = spec, settings, pretrained
        self.dtype = torch_dtype(settings.dtype)
        self.cards: dict[str, dict[str, Any]] = {}
        self.added: dict[str, Any] = {}
        if pretrained is not None:
            self.shape = pretrained.shape
        elif settings.shape is not None:
            self.shape = load_shape(settings.shape)
        else:
            self.shape = self._shape_of_family()
        # Budgets in bytes become tokens here, and tokens are in the names of weights.
        module, options = models.resolve(spec, self.shape, self.dtype)
        self.base_name, *added = module.Model.weight_names(options)
        if pretrained is not None and self.base_name != "transformer":
            raise SpecError(f"'{spec}' has weights of its own; --model holds a Transformer.")
        self.resolved = canonical(split_spec(spec)[0], options)
        self.budget = getattr(options, "budget", None)
        self.model = self._without_memory(spec)
        if settings.shape is None:
            for name in added:
                base = pretrained and checkpoint.Base(pretrained.name, pretrained.fingerprint)
                tensors, card = self._load(name, base)
                if pretrained is None:
                    self._check_base(name, card)
                self.cards[checkpoint.compressor_name(name, base and base.name)] = card
                self.added |= tensors
        self.owners = self._owners(added)

    def _check_base(self, name: str, card: dict[str, Any]) -> None:
        """Compressors belong to the very weights that they were trained on."""
        from models import checkpoint

        base = checkpoint.Base(self.base_name, self.cards[self.base_name]["sha256"])
        try:
            checkpoint.check_base(name, card, base)
        except checkpoint.WeightsError as error:
            raise _needed(self.spec, error) from None

    def card_of_others(self) -> dict[str, Any]:
        """What a run says about a checkpoint that has no card of ours."""
        opened = self.pretrained
        assert opened is not None
        context = f" for a context of {opened.context_length:,} tokens" if opened.context_length else ""
        base = [p for name, p in self.model.named_parameters() if self.owners[name] == self.base_name]
        return {
            "sha256": opened.fingerprint,
            "parameters": sum(parameter.numel() for parameter in base),
            "notes": f"A {opened.family} checkpoint of others, trained{context}.",
        }

    def tensors(self, names: list[str], alone: bool) -> dict[str, Any]:
        """At least those tensors by name; `alone`: random ones can be drawn where they stay."""
        if self.settings.shape is not None:
            return self._random(self.settings.device if alone else "cpu")
        if set(names) <= self.added.keys():
            return dict(self.added)
        return self.base() | self.added

    def base(self) -> dict[str, Any]:
        """The base weights: of the checkpoint, else our own."""
        if self.pretrained is not None:
            return self.pretrained.state(self.dtype)
        return self._load(self.base_name)[0]

    def _owners(self, added: list[str]) -> dict[str, str]:
        names, base = list(self.model.state_dict()), self.base_name
        own = "+".join([base, *added])
        common = set(names)
        if base == "transformer":
            common &= self._without_memory(base).state_dict().keys()
        if self.settings.shape is not None:  # nobody trained the rest: it is this very architecture's
            return {name: base if name in common else f"{own} of {self.spec}" for name in names}
        lacking = [name for name in names if name not in common and name not in self.added]
        if self.pretrained is not None and lacking:
            raise SpecError(
                f"'{self.spec}' needs '{lacking[0]}', which --model {self.pretrained.name} does not hold."
            )
        return {name: own if name in self.added else base for name in names}

    def _without_memory(self, spec: str) -> Any:
        from models.skeleton import without_memory

        with without_memory():
            return models.build(spec, self.shape, self.dtype).to(self.dtype)

    def _random(self, device: str) -> dict[str, Any]:
        import torch

        torch.manual_seed(self.settings.seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(device):
                return dict(models.build(self.spec, self.shape, self.dtype).state_dict())
        finally:
            torch.set_default_dtype(before)

    def _shape_of_family(self) -> Any:
        """The shape that the card of the base weights names; notes the card."""
        from models import checkpoint
        from models.shapes import shape_from

        module, options = models.parse(self.spec)
        name = module.Model.weight_names(options)[0]
        try:
            self.cards[name] = checkpoint.load_card(name, self._folders())
            return shape_from(self.cards[name].get("shape") or {})
        except checkpoint.WeightsError as error:
            raise _needed(self.spec, error) from None
        except SpecError as error:
            raise SpecError(f"The card of weights '{name}' names no network: {_lower_first(error)}") from None

    def _folders(self) -> list[Path] | None:
        return None if self.settings.weights is None else [Path(self.settings.weights)]

    def _load(self, name: str, base: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        from models import checkpoint

        try:
            return checkpoint.load(name, self._folders(), base)
        except checkpoint.WeightsError as error:
            if base is not None:  # compressors: the command names spec and checkpoint
                command = f"kvmark train {self.resolved} --model {self.settings.model} --data FOLDER"
                error = type(error)(str(error).replace("'kvmark train'", f"'{command}'"))
            raise _needed(self.spec, error) from None


def told(card: dict[str, Any]) -> dict[str, Any]:
    """What a run keeps of a card: enough to draw how the weights were trained where they do not lie."""
    names = ("sha256", "parameters", "tokens", "notes", "command", "commit")
    kept = {name: card.get(name) for name in names}
    if card.get("losses"):
        more = ("architecture", "seed", "recipe", "hardware", "losses")
        kept |= {name: card.get(name) for name in more}
        data = card.get("data") or {}
        kept["data"] = {name: value for name, value in data.items() if name != "books_sha256"}
        kept["trained_length"] = max(data.get("lengths") or [0]) or None
    return kept


def short(sha256: str) -> str:
    """Twelve digits of a hash, and what stands before it ("sampled-")."""
    return sha256[: sha256.find("-") + 13]


def torch_dtype(name: str) -> Any:
    """ "fp32" or "bf16" as torch's dtype."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


class NoDevice(SpecError):
    """The device exists in name only; one sentence."""


def check_device(device: str) -> None:
    """Raise NoDevice if torch cannot reach the device, SpecError for one that we do not know.

    Creates a CUDA context for a CUDA device: for workers and training only.
    """
    import torch

    found = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", device)
    if found is None:
        raise SpecError(f"Unknown device '{device}'; known: cpu, cuda, cuda:N.")
    if device != "cpu" and not torch.cuda.is_available():
        raise NoDevice(f"Device '{device}' is not usable: torch sees no CUDA GPU.")
    if found[1] and int(found[1]) >= torch.cuda.device_count():
        raise NoDevice(f"Device '{device}' is not usable: torch sees {torch.cuda.device_count()} GPU(s).")


def _needed(spec: str, error: Exception) -> Exception:
    return type(error)(f"Architecture '{spec}' needs trained weights, and {_lower_first(error)}")


def _lower_first(error: Exception) -> str:
    text = str(error)
    return text[:1].lower() + text[1:]
