"""What has to be said beside numbers: how the weights began, which text was read, what is not shown.

The page, the terminal and the Markdown table say the same words; figures carry the shortest of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from .groups import (
    COST_METRICS,
    TIME_METRICS,
    Group,
    cost_rows,
    failure_suites,
    family,
    needle_suites,
    timing_suites,
)
from .language import is_pg19, language_sources
from .scored import of_tasks

#: Suites that ask something at the end of a prompt.
QUESTIONS = ("needle", "scrolls", "ruler", "recall", "lm_eval")
HAND_SET = re.compile(r"(?<!no )hand-set", re.IGNORECASE)


def weight_notes(group: Group) -> list[str]:
    """What the cards of the trained weights say about how they came to be."""
    if group.axis != "quality":
        return []
    noted: dict[str, list[str]] = {}
    for name, note in _cards(group).items():
        if note:
            noted.setdefault(note, []).append(name)
    return [f"Weights ({', '.join(names)}): {note}" for note, names in noted.items()]


def weights_told(group: Group) -> list[str]:
    """The same in one line, for the parts below the verdict, under which it stands in full."""
    if not weight_notes(group):
        return []
    began = hand_set(group, group.rows["architecture"].unique())
    return [f"{began[0].upper()}{began[1:]}: see the verdict." if began else "Weights: see the verdict."]


def hand_set(group: Group, architectures: Iterable[str]) -> str:
    """One short line for a figure of these architectures, empty unless the cards of their weights say so."""
    if group.axis != "quality":
        return ""
    cards, began = _cards(group), []
    weights = group.rows.groupby("architecture")["weights"].unique()
    for architecture in architectures:
        labels = [str(label) for label in weights.get(architecture, []) if label is not None]
        names = [part.partition("@")[0] for label in labels for part in label.split("+")]
        began.append(any(HAND_SET.search(cards.get(name, "")) for name in names))
    if not any(began):
        return ""
    which = "network" if len(began) == 1 else "networks" if all(began) else "some networks"
    return f"{which} began with hand-set induction heads"


def _cards(group: Group) -> dict[str, str]:
    """Name of the weights -> the notes of their card."""
    found = {}
    for name, card in (group.run.manifest.get("weights") or {}).items():
        notes = (card or {}).get("notes") or (card or {}).get("note") or ""
        found[name] = (notes if isinstance(notes, str) else " ".join(map(str, notes))).strip()
    return found


def alerts(group: Group) -> list[str]:
    """What a reader of the verdict must know before its numbers, a line each."""
    return [
        *text_alerts(group),
        *length_alerts(group),
        *chunk_alerts(group),
        *split_alerts(group),
        *timing_alerts(group),
        *task_alerts(group),
        *unshown_alerts(unshown(group)),
    ]


def task_alerts(group: Group) -> list[str]:
    """Where to look for answers when the verdict has no column for them."""
    if needle_suites(group) or language_sources(group):
        return []
    suites = list(dict.fromkeys(group.ok.loc[of_tasks(group.ok), "suite"]))
    where = f"what {'; '.join(suites)} scored stands below, in tables of their own."
    return [f"No single needle and no language modelling here: {where}"] * bool(suites)


def trained_length(group: Group) -> float:
    """Tokens of the longest sequences that all the run's networks were trained on; infinite if not told."""
    cards = (group.run.manifest.get("weights") or {}).values()
    told = [card["trained_length"] for card in cards if (card or {}).get("trained_length")]
    return min(told, default=math.inf) if group.axis == "quality" else math.inf


def beyond_name(group: Group, context: float) -> str:
    """What stands behind a context that no training reached; empty for others."""
    return " (beyond the trained length)" if context > trained_length(group) else ""


def length_alerts(group: Group) -> list[str]:
    """Which contexts are extrapolation."""
    most = trained_length(group)
    rows = group.rows[group.rows["context"] > most]
    told = [
        f"{', '.join(f'{context:,.0f}' for context in sorted(set(part['context'])))} tokens of {suite}"
        for suite, part in rows.groupby("suite", sort=False)
    ]
    return [
        (
            f"The networks were trained on sequences of up to {most:,.0f} tokens. Beyond the trained length, "
            f"and so extrapolation: {'; '.join(told)}."
        )
    ] * bool(told)


def text_alerts(group: Group) -> list[str]:
    """Which other text stands in the place of PG-19."""
    sources = [source for source in language_sources(group) if not is_pg19(source.label)]
    labels = list(dict.fromkeys(source.text for source in sources))
    return [
        (
            f"The pg19 suite read {', '.join(labels)} here, not PG-19 as published: its bits per byte and "
            "perplexities compare within this table only."
        )
    ] * bool(labels)


def chunk_alerts(group: Group) -> list[str]:
    """Which policies met prompts in chunks, where that is another algorithm than one prompt at once."""
    modes = group.rows.dropna(subset=["prompt_mode"]).groupby("prompt_mode")["architecture"].unique()
    found = []
    for mode, architectures in modes.items():
        kind, _, chunks = str(mode).partition(", ")
        if chunks and kind not in ("parallel", "stepwise", "split"):
            names = ", ".join(a for a in group.architectures if a in set(architectures))
            found.append(
                f"Prompts came in {chunks} tokens, and so {names} ({kind}) decided once per chunk: another "
                "algorithm than one prompt at once."
            )
    return found


def split_alerts(group: Group) -> list[str]:
    """Who meets a question with a context that was cut wherever its budget happened to end."""
    rows = group.rows[group.rows["suite_name"].isin(QUESTIONS)]
    split = rows["prompt_mode"].astype("string").str.split(",").str[0] == "split"
    met = set(rows.loc[split.fillna(False), "architecture"])
    names = ", ".join(a for a in group.architectures if a in met)
    return [
        (
            f"{names} begins a new, empty context at every multiple of its budget, and so answers from "
            "whatever remained of the prompt after the last one: its answers are no baseline. mode=truncate "
            "keeps the last tokens of the prompt, and is."
        )
    ] * bool(met)


def timing_alerts(group: Group) -> list[str]:
    """Why there are no times, where there are none."""
    if any(len(cost_rows(group, name)) for name in TIME_METRICS):
        return []
    timed = group.rows[group.rows["suite"].isin(timing_suites(group))]
    failed, ran = timed.loc[timed["status"] != "ok", "cell"].nunique(), timed["cell"].nunique()
    why = f"{failed} of {ran} timed cells failed and none gave one" if ran else "nothing was timed repeatedly"
    return [f"No times here: {why}. Other suites run once and cold, so their times are not used."]


def unshown_timings(group: Group) -> list[str]:
    """Specs of timing suites whose costs stand in no column of the verdict and no chart."""
    used = {suite for name in COST_METRICS for suite in failure_suites(group, name)}
    timed = timing_suites(group)
    return _others(group, [suite for suite in timed if suite in used], timed)


def unshown(group: Group) -> list[str]:
    """Specs of which the verdict shows another of the same kind in their stead, in plan order."""
    needles, sources = needle_suites(group), language_sources(group)
    found = unshown_timings(group) + _others(group, needles[:1], needles)
    if sources:
        shown, *rest = sources
        found += _others(group, [shown.suite], [source.suite for source in sources])
        found += [f"{source.suite} on {source.text}" for source in rest if source.suite == shown.suite]
    return list(dict.fromkeys(found))


def unshown_alerts(specs: list[str]) -> list[str]:
    """Where to look for what is not shown."""
    return [
        (
            f"Not shown here: {'; '.join(specs)}. Their numbers are in tables of their own or under “All "
            "numbers” of the report, their failures under “Failed cells”."
        )
    ] * bool(specs)


def _others(group: Group, shown: list[str], reported: list[str]) -> list[str]:
    """Specs that reported the same, or bear the same name and failed to, but are not shown."""
    kinds = {family(suite) for suite in shown}
    every = dict.fromkeys(group.rows["suite"])
    return [s for s in every if s not in shown and (s in reported or family(s) in kinds)]
