"""LoCoCo's compressors on a frozen network: the family's Transformer, or a checkpoint of somebody else.

    --recipe family     our steps (those of `recipes/cpu.toml`, convolutions of N(0, 1/fan_in)); on the
                        family's Transformer with its training mix, on a checkpoint with plain text
    --recipe official   the official steps on plain text (`models/text_training.py`); the default on a
                        checkpoint, and the only one for trainable=official

Plain text is cut into sequences of `period` blocks, 8 as in the official commands or as many as the
context holds; the official batch is 128 of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .train import Drawing, Order, Plan, mix_line, own_batches
from .train_keys import check_size
from .training import Training, books_card

if TYPE_CHECKING:
    from suites.training.mix import TrainingMix

    from .train_data import Books

#: Of the official commands: max_train_steps, clean_period, 8 processes x 128 blocks accumulated / 8 blocks.
OFFICIAL_STEPS, OFFICIAL_PERIOD, OFFICIAL_SEQUENCES = 1000, 8, 128


class Frozen(NamedTuple):
    """The network that compressors are trained on."""

    base: Any  # models.checkpoint.Base
    shape: Any
    state: dict[str, Any]
    tokenizer: Any
    context: int | None  # longest sequence; None: no limit is known
    notes: str


def compressors(spec: str, books: Books, hashes: dict[str, str], out: Path, order: Order) -> Training:
    """A training of `spec`'s compressors. Raises SpecError, WeightsError or ValueError."""
    import models
    from models.checkpoint import default_folders
    from models.spec import SpecError, canonical, split_spec

    from .train_recipe import plan_of

    name, official = split_spec(spec)[0], models.parse(spec)[1].trainable == "official"
    recipe = order.recipe or ("official" if order.model or official else "family")
    if recipe not in ("official", "family"):
        raise SpecError(f"--recipe must be official or family, not '{recipe}'.")
    if recipe == "family" and official:
        raise SpecError("trainable=official is trained by --recipe official.")
    on_text = recipe == "official" or order.model is not None
    if not on_text and (order.period or order.sequences):
        raise SpecError("--period and --sequences are for plain text (--recipe official or --model).")

    frozen = _checkpoint(order) if order.model else frozen_transformer([out, *default_folders()])
    module, options = models.resolve(spec, frozen.shape)
    spec = canonical(name, options)
    if not on_text:
        plan = plan_of(spec, order)
        if max(plan.lengths) <= options.exact_tokens:
            raise SpecError(
                f"Training sequences have up to {max(plan.lengths)} tokens, and {spec} compresses nothing "
                f"up to {options.exact_tokens}; a smaller budget is needed."
            )
        return on_mix(plan, frozen, books, hashes, order.device, order.command(spec))
    weights = module.Model.weight_names(options)[-1]
    return _on_text(spec, options, weights, frozen, recipe, books, hashes, order)


def frozen_transformer(folders: Sequence[Path], name: str = "transformer") -> Frozen:
    """Our own Transformer from the first of `folders` that has it. Raises WeightsError or SpecError."""
    from models import checkpoint
    from models.shapes import shape_from
    from suites.tokenizer import ByteTokenizer

    state, card = checkpoint.load(name, folders)
    base = checkpoint.Base(name, card["sha256"])
    return Frozen(base, shape_from(card["shape"]), state, ByteTokenizer(), None, card["notes"])


def _checkpoint(order: Order) -> Frozen:
    import torch

    from models.checkpoint import Base

    from .pretrained import locate, open_model

    pickles = order.allow_pickle
    opened = open_model(locate(order.model, pickles), order.tokenizer, pickles)
    found, tokenizer = opened.pretrained, opened.tokenizer
    base = Base(found.name, found.fingerprint)
    return Frozen(base, found.shape, found.state(torch.float32), tokenizer, found.context_length, "")


def _model(spec: str, frozen: Frozen, init: str) -> Any:
    """The frozen network with compressors at their initial values; only what is trained has gradients."""
    import models
    from models import checkpoint
    from models.compressor_training import freeze, fresh_state
    from models.skeleton import without_memory

    check_size(spec, frozen.shape)
    with without_memory():
        model = models.build(spec, frozen.shape)
    checkpoint.assign(model, frozen.state | fresh_state(model, init), frozen.base.name)
    freeze(model)
    return model


def on_mix(
    plan: Plan, frozen: Frozen, books: Books, hashes: dict[str, str], device: str, command: str,
    draw: Drawing = own_batches,
) -> Training:  # fmt: skip
    """Compressors of `plan.spec` on a frozen network of ours, on the training mix. Raises ValueError."""
    import models
    from models.compressor_training import by_blocks, what_is_mixed
    from models.training import fit
    from models.training_run import trained_state

    module, options = models.parse(plan.spec)
    mix = plan.mix(books)
    model = _model(plan.spec, frozen, "scaled")
    observe = functools.partial(what_is_mixed, tokens_BT=longest_sequence(mix, device))
    return Training(
        name=module.Model.weight_names(options)[-1],
        spec=plan.spec,
        model=model,
        recipe=plan.steps,
        fit=functools.partial(
            fit, model, draw(mix), plan.steps, device=device, backward=by_blocks, observe=observe
        ),
        state=functools.partial(trained_state, model),
        data=mix.card() | books_card(hashes),
        notes=_notes(options, frozen),
        command=command,
        line=mix_line,
        base=frozen.base._asdict(),
    )


def longest_sequence(mix: TrainingMix, device: str) -> Any:
    """The first sequence (1,T) of the mix that has its greatest length."""
    import torch

    tokens_BT1 = next(
        batch.tokens_BT1
        for batch in map(mix.batch, itertools.count())
        if batch.tokens_BT1.shape[1] - 1 == max(mix.lengths)
    )
    return torch.as_tensor(tokens_BT1[:1, :-1]).to(device)


def _on_text(spec, options, name, frozen: Frozen, recipe, books: Books, hashes, order: Order) -> Training:
    from models.checkpoint import compressor_name
    from models.text_training import fit_text
    from models.training_run import trained_state
    from suites.training.text import TrainingText

    length = sequence_tokens(options, frozen.context, order.period)
    steps, sequences = text_recipe(recipe, length, order)
    texts = (book.decode("utf-8") for _, book in books)
    text = TrainingText(texts, frozen.tokenizer, length, sequences, order.seed)
    model = _model(spec, frozen, steps.init)
    return Training(
        name=compressor_name(name, frozen.base.name if order.model else None),
        spec=spec,
        model=model,
        recipe=steps,
        fit=functools.partial(fit_text, model, text.batch, steps, device=order.device),
        state=functools.partial(trained_state, model),
        data=text.card() | books_card(hashes),
        notes=_notes(options, frozen),
        command=order.command(spec, frozen.base.name if order.model else None, "TEXT_FOLDER"),
        line=text_line,
        base=frozen.base._asdict(),
        exact=options.trainable == "official",
    )


def sequence_tokens(options: Any, context: int | None, period: int | None) -> int:
    """Tokens of a training sequence: `period` blocks. Raises ValueError where it is too long or too short."""
    block, most = options.block_tokens, None if context is None else int(context * options.rope_factor)
    blocks = period or (OFFICIAL_PERIOD if most is None else min(OFFICIAL_PERIOD, most // block))
    if most is not None and blocks * block > most:
        raise ValueError(
            f"A sequence of {blocks} blocks of {block} tokens is longer than the context of {most} tokens."
        )
    if blocks * block <= options.exact_tokens:
        needed = options.exact_tokens // block + 1
        raise ValueError(
            f"A sequence of {blocks} blocks of {block} tokens is never compressed to {options.budget} slots; "
            f"{needed} blocks are needed, {needed * block} tokens."
        )
    return blocks * block


def text_recipe(recipe: str, length: int, order: Order) -> tuple[Any, int]:
    """Recipe and sequences per step. Raises ValueError."""
    from models.text_training import TextRecipe

    from .train_recipe import plan_of

    family, ours = recipe == "family", plan_of("lococo", Order()).steps
    default = max(1, ours.tokens_per_step // length) if family else OFFICIAL_SEQUENCES
    sequences = default if order.sequences is None else order.sequences
    per_step = sequences * length
    total = ours.total_tokens if family else OFFICIAL_STEPS * per_step
    settings: dict[str, Any] = {
        "total_tokens": total if order.tokens is None else order.tokens,
        "tokens_per_step": per_step,
        "sequence_tokens": length,
        "seed": order.seed,
    }
    if family:
        schedule = ("warmup_steps", "decay_share", "final_lr_share", "clip")
        settings |= {field: getattr(ours, field) for field in (*schedule, "adamw_lr")}
        settings |= {"init": "scaled", "carry": True}
    return TextRecipe(**settings), sequences


def text_line(entry: Any) -> str:
    """A log entry of plain text in words: the loss that is trained, and the one that evaluations compare."""
    bits = entry.bits_per_byte or float("nan")
    return f"{entry.loss:.4f} nats per target, {bits:.4f} bits/byte over all tokens (running)"


def _notes(options: Any, frozen: Frozen) -> str:
    tuned = ""
    if options.trainable == "official":
        also = "embedding, norms and LoRA" if options.lora else "embedding and norms"
        tuned = f"With them {also} were tuned, so baselines without that tuning are no fair comparison. "
    where = f"block by block through the measured cache; base fingerprint {frozen.base.fingerprint}."
    frozen_or_not = "" if tuned else "frozen "
    return (
        f"Compressors on the {frozen_or_not}'{frozen.base.name}' weights (trainable={options.trainable}), "
        f"trained {where} {tuned}{frozen.notes}"
    ).rstrip()
