"""`kvmark train`: wires a recipe, data and a network, and writes weights with their card.

    kvmark train transformer --data FOLDER              the family's three networks …
    kvmark train yoco:mixer=retention --data FOLDER
    kvmark train lococo:budget=128 --data FOLDER        … compressors on the family's frozen Transformer …
    kvmark train lococo:budget=512 --model PATH --data FOLDER      … or on a checkpoint of somebody else

    kvmark train family --data FOLDER                   all that a recipe file lists (`train_family.py`)

Weights go to `results/weights/` (they hide shipped ones of the same name) unless `out` says else.
The card lists the hash of every training book; books of PG-19's evaluation are refused (`train_data.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .loading import check_device
from .training import CHECKPOINT_EVERY_S, Training, books_card, carry_out

if TYPE_CHECKING:
    from models.architecture import Shape
    from models.recipe import Recipe
    from suites.training.mix import TrainingMix

    from .train_data import Books

#: Of blocks per sequence and of sequences per step, far above any training.
MOST = 1_000_000


#: Who draws the batches of a mix: the training itself, or processes ahead of it (`train_ahead.py`).
Drawing = Callable[[Any], Callable[[int], Any]]


def own_batches(mix: TrainingMix) -> Callable[[int], Any]:
    return mix.batch


@dataclass(frozen=True)
class Order:
    """What the command was asked for; None is the recipe's default.

    From `model` to `sequences` it is about compressors (`train_compressors.py`).
    """

    tokens: int | None = None
    seed: int = 0
    induction_heads: int | None = None
    model: str | None = None
    tokenizer: str | None = None
    allow_pickle: bool = False
    recipe: str | None = None
    period: int | None = None
    sequences: int | None = None
    device: str = "cpu"

    def command(self, spec: str, model: str | None = None, text: str = "PG19_TRAIN_FOLDER") -> str:
        """The command that repeats this; `model` is the checkpoint's name, not where it lies."""
        parts = [f"kvmark train {spec} --data {text} --seed {self.seed}"]
        given = {"model": model, "recipe": self.recipe, "period": self.period, "sequences": self.sequences}
        given["tokens"] = self.tokens
        given["tokenizer"] = None if self.tokenizer is None else "TOKENIZER_FILE"
        given["induction-heads"] = self.induction_heads
        parts += [f"--{name} {value}" for name, value in given.items() if value is not None]
        return " ".join([*parts, *["--allow-pickle"] * self.allow_pickle])


@dataclass(frozen=True)
class Plan:
    """What decides the result of a training on the mix, books and base weights apart.

    The mix draws its sequences from `steps.seed + mix_seed_offset`.
    """

    spec: str
    shape: Shape
    steps: Recipe
    lengths: tuple[int, ...]
    length_probabilities: tuple[float, ...]
    shares: tuple[float, ...]  # of prose, needles and dense recall
    mix_seed_offset: int

    def mix(self, books: Books) -> TrainingMix:
        """Raises ValueError where the books do not suffice."""
        from suites.training.mix import TrainingMix

        return TrainingMix(
            [book for _, book in books], self.steps.seed + self.mix_seed_offset, self.steps.tokens_per_step,
            self.lengths, self.length_probabilities, self.shares,
        )  # fmt: skip


def train(
    spec: str,
    data: Path,
    out: Path,
    order: Order | None = None,
    *,
    threads: int = 1,
    commit: str | None = None,
    say: Callable[[str], None] = print,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> Path:
    """Train what `spec` names; returns the path of its card.

    Raises SpecError, TextError, WeightsError or ValueError with one sentence for bad input.
    """
    import torch

    import models
    from models.spec import SpecError, split_spec

    from .train_data import training_books

    order, spec = order or Order(), models.canonical_spec(spec)
    kind = split_spec(spec)[0]
    if kind not in ("transformer", "yoco", "lococo"):
        raise SpecError(f"'{kind}' has no weights of its own; train transformer, yoco or lococo.")
    if kind != "lococo" and any((order.model, order.recipe, order.period, order.sequences)):
        raise SpecError("--model, --recipe, --period and --sequences are for training lococo.")
    if kind == "lococo" and order.induction_heads is not None:
        raise SpecError("--induction-heads is for training transformer or yoco: compressors have none.")
    if order.model is None and (order.tokenizer is not None or order.allow_pickle):
        raise SpecError("--tokenizer and --allow-pickle are for --model, and none is given.")
    for name in ("period", "sequences"):
        if (value := getattr(order, name)) is not None and value > MOST:
            raise SpecError(f"--{name} must be at most {MOST:,}, not {value:,}.")
    check_device(order.device)
    torch.set_num_threads(threads)
    torch.manual_seed(order.seed)
    books, hashes = training_books(data)
    if kind == "lococo":
        from .train_compressors import compressors

        training = compressors(spec, books, hashes, out, order)
    else:
        from .train_recipe import plan_of

        training = network(plan_of(spec, order), books, hashes, order.device, order.command(spec))
    return carry_out(
        training, out, f"{threads} thread(s), {order.device}", commit, say,
        device=order.device, checkpoint_every_s=checkpoint_every_s,
    )  # fmt: skip


def network(
    plan: Plan, books: Books, hashes: dict[str, str], device: str, command: str, draw: Drawing = own_batches
) -> Training:
    """A member of the byte-level family, from its initial values on. Raises ValueError."""
    import models
    from models.initialisation import induction_note
    from models.training import fit, prepare
    from models.training_speed import step_flops

    module, options = models.parse(plan.spec)
    heads, mix = plan.steps.induction_heads, plan.mix(books)
    model = models.build(plan.spec, plan.shape)
    prepare(model, plan.steps)
    return Training(
        name=module.Model.weight_names(options)[-1],
        spec=plan.spec,
        model=model,
        recipe=plan.steps,
        fit=functools.partial(fit, model, draw(mix), plan.steps, device=device),
        state=model.state_dict,
        data=mix.card() | books_card(hashes),
        notes=induction_note(heads, getattr(options, "self_layers", 0)) if heads else "No hand-set start.",
        command=command,
        line=mix_line,
        step_flops=functools.partial(step_flops, model),
    )


def mix_line(entry: Any) -> str:
    """A log entry of the training mix in words."""
    bits, answers = entry.bits_per_byte or math.nan, entry.digit_accuracy
    return f"{bits:.3f} bits/byte (running)" + (f", answers {answers:.1%}" if answers is not None else "")
