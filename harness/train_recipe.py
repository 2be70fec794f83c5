"""Recipe files of `kvmark train family`: TOML that states all that decides the result of several trainings.

    device = "cpu"             where, on how many threads each, and who draws the batches:
    threads = 1                these three decide no result
    batch_workers = 0

    [training]                 settings of every group that does not say otherwise (`train_keys.py`)
    [[group]]                  name, folder, train (specs), seeds, tokens, induction_heads, and base:
                               the name of the Transformer that compressors are trained on

Nothing has a default but `base`: what a file does not say is no recipe. It is read strictly, and all that
can be known to fail is found before anything is trained.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import models
from models.architecture import Shape
from models.recipe import Recipe
from models.shapes import load_shape, shape_from
from models.spec import canonical, split_spec

from .train import Order, Plan
from .train_keys import BASE, GROUP, RUN, SETTINGS, SOURCES, RecipeError, check_size, checked, text

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Member:
    """One training of a recipe: what it is, and the folder below `out` that its weights go to."""

    group: str
    folder: str  # "" is `out` itself
    weights: str
    plan: Plan
    base: str | None = None  # label of the member whose weights stay frozen under it

    @property
    def label(self) -> str:
        return f"{self.folder}/{self.weights}" if self.folder else self.weights


@dataclass(frozen=True)
class RecipeFile:
    name: str  # what --recipe names it
    device: str
    threads: int
    batch_workers: int
    members: list[Member]


def read_recipe(name: str) -> RecipeFile:
    """A packaged recipe by its name, or a TOML file. Raises RecipeError or SpecError."""
    own = FOLDER / f"{name}.toml"
    path = own if own.is_file() and Path(name).name == name else Path(name)
    if path.suffix != ".toml":
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise RecipeError(f"Unknown recipe '{name}'; known: {known}, or a TOML file.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"Recipe '{name}' cannot be read ({str(error).splitlines()[0]}).") from None
    try:
        return _recipe(name if path is own else path.name, values)
    except RecipeError:
        raise
    except ValueError as error:  # of shapes, specs, and `Recipe`
        raise RecipeError(f"Recipe '{name}': {error}") from None


def plan_of(spec: str, order: Order) -> Plan:
    """What `kvmark train SPEC` trains: the packaged CPU recipe's, but for what was asked for instead.

    `spec` is canonical. One that the recipe does not list is trained as the first of its kind. Raises
    ValueError.
    """
    folds = split_spec(spec)[0] == "lococo"
    plans = [member.plan for member in read_recipe("cpu").members if (member.base is not None) == folds]
    plan = next((plan for plan in plans if plan.spec == spec), plans[0])
    asked = {"total_tokens": order.tokens, "seed": order.seed, "induction_heads": order.induction_heads}
    steps = replace(plan.steps, **{name: value for name, value in asked.items() if value is not None})
    return replace(plan, spec=spec, steps=steps)


# --- the file -------------------------------------------------------------------------------------


def _recipe(name: str, values: dict[str, Any]) -> RecipeFile:
    tables = {"training": (lambda x: True, "a table"), "group": (lambda x: True, "tables [[group]]")}
    checked(values, RUN | tables, {}, f"recipe '{name}'")
    common = checked(values["training"], {}, SETTINGS, "[training]")
    if type(values["group"]) is not list or not values["group"]:
        raise RecipeError(f"Recipe '{name}' needs tables [[group]], not {type(values['group']).__name__}.")
    members: dict[str, Member] = {}
    for number, table in enumerate(values["group"], 1):
        title = table.get("name") if type(table) is dict else None
        where = f"group '{title}'" if text(title) else f"group {number}"
        group = checked(table, GROUP, BASE | SETTINGS, where)
        settings = checked(
            {key: group.get(key, common.get(key)) for key in SETTINGS if key in group or key in common},
            SETTINGS, {}, f"{where} and in [training]",
        )  # fmt: skip
        for member in _members(group, settings, where):
            if member.label in members:
                raise RecipeError(f"Two trainings are called '{member.label}'; give them other folders.")
            members[member.label] = member
    for member in members.values():
        _check_base(member, members)
    run = {key: values[key] for key in RUN}
    return RecipeFile(name, members=list(members.values()), **run)


def _members(group: dict[str, Any], settings: dict[str, Any], where: str) -> list[Member]:
    folder, lengths = group["folder"], settings["lengths"]
    if len(group["seeds"]) > 1 and "{seed}" not in folder:
        raise RecipeError(f"Key 'folder' in {where} must hold {{seed}}, since there are several seeds.")
    if Path(folder).is_absolute() or ".." in Path(folder).parts or "\0" in folder:
        raise RecipeError(f"Key 'folder' in {where} must be a folder below --out, not '{folder}'.")
    if len(lengths) != len(settings["length_probabilities"]):
        raise RecipeError(
            f"{len(lengths)} lengths in {where} need as many length_probabilities, "
            f"not {len(settings['length_probabilities'])}."
        )
    for length in lengths:
        if settings["tokens_per_step"] % length:
            raise RecipeError(
                f"Key 'tokens_per_step' in {where} must be a multiple of every length, and "
                f"{settings['tokens_per_step']} is none of {length}."
            )
    shape = settings["shape"]
    shape = load_shape(shape) if type(shape) is str else shape_from({"name": "recipe"} | shape)
    return [
        _member(group, settings, shape, models.canonical_spec(spec), seed, where)
        for seed in group["seeds"]
        for spec in group["train"]
    ]


def _member(group: dict, settings: dict, shape: Shape, spec: str, seed: int, where: str) -> Member:
    kind, base = split_spec(spec)[0], group.get("base")
    if kind not in ("transformer", "yoco", "lococo"):
        raise RecipeError(f"'{kind}' in {where} has no weights of its own: transformer, yoco, lococo have.")
    if (kind == "lococo") != (base is not None):
        raise RecipeError(f"Key 'base' in {where} is for lococo, which needs it: {BASE['base'][1]}.")
    module, options = models.resolve(spec, shape)
    if kind == "lococo":
        spec = canonical(kind, options)
    named = ("tokens_per_step", "warmup_steps", "decay_share", "final_lr_share", "muon_lr", "adamw_lr")
    steps = Recipe(
        **{key: settings[key] for key in (*named, "weight_decay", "clip", "autocast_bf16")},
        total_tokens=group["tokens"],
        betas=tuple(settings["betas"]),
        seed=seed,
        induction_heads=group["induction_heads"],
    )
    plan = Plan(
        spec, shape, steps, tuple(settings["lengths"]), tuple(settings["length_probabilities"]),
        tuple(settings["shares"][source] for source in SOURCES), settings["mix_seed_offset"],
    )  # fmt: skip
    _check_network(plan, where)
    folder = Path(group["folder"].replace("{seed}", str(seed))).as_posix()
    folder = "" if folder == "." else folder
    label = None if base is None else f"{folder}/{base}" if folder else base
    return Member(group["name"], folder, module.Model.weight_names(options)[-1], plan, label)


def _check_network(plan: Plan, where: str) -> None:
    """Raise ValueError where the shape, the hand-set heads or the lengths do not suit the architecture."""
    from models.initialisation import induction_heads
    from models.skeleton import without_memory
    from suites.tokenizer import ByteTokenizer

    if plan.shape.vocab <= ByteTokenizer.bos:
        least = ByteTokenizer.bos + 1
        raise RecipeError(f"The shape in {where} needs a vocab of at least {least}, not {plan.shape.vocab}.")
    heads = plan.steps.induction_heads
    check_size(plan.spec, plan.shape)
    with without_memory():
        model = models.build(plan.spec, plan.shape)
    if plan.spec.startswith("lococo"):
        if heads:
            raise RecipeError(f"Key 'induction_heads' in {where} must be 0: compressors have none.")
        if model.options.trainable != "compressor":
            raise RecipeError(f"A recipe trains compressors alone; '{plan.spec}' in {where} trains more.")
        if max(plan.lengths) <= model.options.exact_tokens:
            raise RecipeError(
                f"Sequences in {where} are never compressed to {model.options.budget} slots; "
                f"some must be longer than {model.options.exact_tokens} tokens."
            )
    elif heads:
        induction_heads(model, heads)


def _check_base(member: Member, members: dict[str, Member]) -> None:
    if member.base is None:
        return
    base = members.get(member.base)
    if base is None or not base.plan.spec.startswith("transformer"):
        names = ", ".join(label for label, m in members.items() if m.plan.spec.startswith("transformer"))
        raise RecipeError(
            f"'{member.label}' is to be trained on '{member.base}', which is no Transformer of the recipe; "
            f"those are: {names or 'none'}."
        )
    if base.plan.shape != member.plan.shape:
        raise RecipeError(f"'{member.label}' needs the shape of '{base.label}', which it is trained on.")
