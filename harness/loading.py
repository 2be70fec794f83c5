"""Models as the worker measures them: trained weights with their card, or random ones of a shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import models
from models.spec import SpecError

from .plan import Settings


@dataclass(frozen=True)
class Weights:
    """Which weights an architecture runs on: `label` stands in every row and in the cell's key."""

    label: str
    cards: dict[str, dict[str, Any]]  # by name; empty for random weights
    shape: dict[str, Any]


def weights_of(spec: str, settings: Settings) -> Weights:
    """Find and check them. Raises SpecError or WeightsError with one sentence."""
    import dataclasses

    import torch

    from models import checkpoint
    from models.shapes import load_shape, shape_from

    if settings.shape is not None:
        shape = load_shape(settings.shape)
        return Weights(f"random@seed={settings.seed}", {}, dataclasses.asdict(shape))
    state, cards = _tensors(spec)
    shape = next(iter(cards.values())).get("shape") or {}
    # Assigned to a model that is thrown away: weights that do not fit are found before anything runs.
    try:
        with torch.device("meta"):
            model = models.build(spec, shape_from(shape))
    except SpecError as error:
        name = next(iter(cards))
        raise SpecError(f"The card of weights '{name}' names no network: {_lower_first(error)}") from None
    checkpoint.assign(model, state, "+".join(cards))
    label = "+".join(f"{name}@{card['sha256'][:12]}" for name, card in cards.items())
    return Weights(label, cards, shape)


def load_model(spec: str, settings: Settings, shared: dict[tuple[str, str], Any] | None = None) -> Any:
    """Build the architecture with its weights in the run's dtype on the run's device.

    Architectures on the same weights share their tensors through `shared`, so that a process that
    holds several pays once. Raises SpecError or WeightsError with one sentence.
    """
    base = base_weights(spec)
    if shared is None or not any(key[0] in (base, weights_key(spec)) for key in shared):
        model = _own_model(spec, settings, settings.device)
    else:
        model = _sharing_model(spec, settings, base, shared)
    if shared is not None:
        # Under all names of its weights: two compressors of equal shape are not the same compressor.
        owner = weights_key(spec)
        shared |= {(owner, name): p for name, p in model.named_parameters() if (owner, name) not in shared}
    return model


def _sharing_model(spec: str, settings: Settings, base: str, shared: dict[tuple[str, str], Any]) -> Any:
    """Built without memory: tensors that are there are taken, only the others are made (on the CPU)."""
    import torch

    from models.shapes import shape_from

    with torch.device("meta"):
        model = models.build(spec, shape_from(weights_of(spec, settings).shape)).to(
            torch_dtype(settings.dtype)
        )
    own = None
    for name, parameter in list(model.named_parameters()):
        tensor = shared.get((weights_key(spec), name), shared.get((base, name)))
        if tensor is None or tensor.shape != parameter.shape:
            own = own or dict(_own_model(spec, settings, "cpu").named_parameters())
            tensor = torch.nn.Parameter(own[name].to(settings.device), requires_grad=False)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, tensor)
    return model.eval().requires_grad_(False)


def weights_key(spec: str) -> str:
    """All weights that an architecture runs on, as one name."""
    module, options = models.parse(spec)
    return "+".join(module.Model.weight_names(options))


def base_weights(spec: str) -> str:
    """Name of the weights that an architecture builds on: users of one name hold equal tensors."""
    module, options = models.parse(spec)
    return module.Model.weight_names(options)[0]


def _own_model(spec: str, settings: Settings, device: str) -> Any:
    import torch

    from models import checkpoint
    from models.shapes import load_shape, shape_from

    dtype = torch_dtype(settings.dtype)
    if settings.shape is not None:
        torch.manual_seed(settings.seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = models.build(spec, load_shape(settings.shape))
        finally:
            torch.set_default_dtype(before)
        return model.eval().requires_grad_(False)
    state, cards = _tensors(spec)
    with torch.device("meta"):
        model = models.build(spec, shape_from(next(iter(cards.values()))["shape"])).to(dtype)
    checkpoint.assign(model, state, "+".join(cards))
    return model.to(device).eval().requires_grad_(False)


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

    if device.split(":")[0] not in ("cpu", "cuda"):
        raise SpecError(f"Unknown device '{device}'; known: cpu, cuda, cuda:N.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise NoDevice(f"Device '{device}' is not usable: torch sees no CUDA GPU.")
    if ":" in device and int(device.split(":")[1]) >= torch.cuda.device_count():
        raise NoDevice(f"Device '{device}' is not usable: torch sees {torch.cuda.device_count()} GPU(s).")


def _tensors(spec: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """All tensors an architecture runs on, and their cards by name. Raises WeightsError."""
    from models import checkpoint

    module, options = models.parse(spec)
    state: dict[str, Any] = {}
    cards: dict[str, dict[str, Any]] = {}
    for name in module.Model.weight_names(options):
        try:
            tensors, cards[name] = checkpoint.load(name)
        except checkpoint.WeightsError as error:
            raise checkpoint.WeightsError(
                f"Architecture '{spec}' needs trained weights, and {_lower_first(error)}"
            ) from None
        state |= tensors
    return state, cards


def _lower_first(error: Exception) -> str:
    text = str(error)
    return text[:1].lower() + text[1:]
