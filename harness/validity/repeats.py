"""Reasons that the rows themselves give: load by others, repeats that do not agree, tokens, bytes.

Every function answers with the groups that its reason holds for; `__init__` decides which rows of a group
it concerns. Numbers of one execution that nobody repeated are never judged by their spread.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from .scopes import place_of

#: Shares of all cores' time that others took, of the median execution.
LOAD, OVERLOAD, CPU_LOAD = 0.10, 0.60, 0.30
#: Of the median: between first and last third of the repeats, and between their quartiles.
WARM, SPREAD = 0.10, 0.10
#: Repeats below which warm-up, and spread, cannot be judged.
LEAST_WARM, LEAST_SPREAD = 3, 4
#: Share of a decode step that the device spends waiting for launches.
LAUNCH_BOUND = 0.90

Places = set[tuple[str, str]]  # (cell, place)
Metrics = set[tuple[str, str]]  # (cell, metric)


def loaded(rows: pd.DataFrame, share: float) -> Places:
    """Where the median of `foreign_cpu_share` is above a share. A window too short to tell is no witness."""
    found = rows[(rows["metric"] == "foreign_cpu_share") & rows["value"].notna()]
    places = found.assign(place=found["phase"].map(place_of))
    medians = places.groupby(["cell", "place"])["value"].median()
    return set(medians.index[medians > share])


def host_bound(rows: pd.DataFrame) -> Places:
    """Where the device waited for the host in most of a decode step. On a CPU there is nobody to wait for."""
    shares = rows[rows["metric"] == "decode_launch_share"].groupby("cell")["value"].median()
    return {(cell, "continuation") for cell in shares.index[shares > LAUNCH_BOUND]}


def unsteady(rows: pd.DataFrame) -> dict[str, Metrics]:
    """Which (cell, metric) have too few repeats, or such that do not agree. `rows`: times as they were
    measured.

    A repeat's number is the mean of its steps, as the report shows it.
    """
    repeated = rows[rows["repeat"].notna()]
    per_repeat = repeated.groupby(["cell", "metric", "repeat"], sort=True)["value"].mean().dropna()
    lines = pd.DataFrame({"value": per_repeat}).reset_index()
    groups = lines.groupby(["cell", "metric"], sort=False)
    count = groups["value"].transform("size")
    rank = groups.cumcount()
    third = np.ceil(count / 3)
    keys = [lines["cell"], lines["metric"]]

    def middle(chosen: pd.Series, quantile: float = 0.5) -> pd.Series:
        return lines["value"].where(chosen).groupby(keys, sort=False).quantile(quantile)

    num, centre = groups.size(), middle(count > 0)
    change = (middle(rank < third) - middle(rank >= count - third)).abs()
    width = middle(count > 0, 0.75) - middle(count > 0, 0.25)
    return {
        "few_repeats": set(num.index[num < LEAST_WARM]),
        "not_warmed_up": set(num.index[(num >= LEAST_WARM) & (change > WARM * centre)]),
        "spread": set(num.index[(num >= LEAST_SPREAD) & (width > SPREAD * centre)]),
    }


def token_counts(rows: pd.DataFrame) -> Places:
    """Where an execution did not process the tokens that its cell asks for.

    Prompts are held to context x batch of the decode suite's axes, forced continuations to
    `new_tokens_asked`.
    """
    found = rows.assign(repeat=rows["repeat"].fillna(-1))
    prompts = found[(found["metric"] == "prompt_tokens") & (found["suite"].str.split(":").str[0] == "decode")]
    asked = prompts["axes"].map({text: _asked(text) for text in prompts["axes"].unique()})
    wrong = set(prompts["cell"][asked.notna() & (prompts["value"] != asked)])
    off = {(cell, place) for cell in wrong for place in ("prefill", "continuation")}
    done = found[found["metric"].isin(["new_tokens", "continuation_tokens"])]
    actual = done.groupby(["cell", "phase", "repeat"])["value"].sum()
    forced = found[found["metric"] == "new_tokens_asked"].groupby(["cell", "phase"])["value"].sum()
    both = actual.reset_index().merge(forced.rename("asked").reset_index(), on=["cell", "phase"])
    return off | {(cell, "continuation") for cell in both["cell"][both["value"] != both["asked"]]}


def _asked(axes: str) -> float:
    found = json.loads(axes)
    return float(found["context"]) * float(found["batch"]) if {"context", "batch"} <= found.keys() else np.nan


def above_predicted(rows: pd.DataFrame) -> pd.DataFrame:
    """(cell, live, predicted): executions whose live cache holds more bytes than were predicted, the worst
    per cell. Batches are compared one by one where each has its prediction; repeats share one."""
    live = rows[rows["metric"] == "cache_bytes_live"]
    told = rows[rows["metric"] == "cache_bytes_predicted"]
    num, stated = live.groupby("cell")["value"].transform("size"), told.groupby("cell")["value"].size()
    paired = num == live["cell"].map(stated)
    left = pd.DataFrame(
        {
            "cell": live["cell"],
            "number": live.groupby("cell").cumcount().where(paired, -1),
            "live": live["value"],
        }
    )
    right = pd.DataFrame(
        {"cell": told["cell"], "number": told.groupby("cell").cumcount(), "predicted": told["value"]}
    )
    most = right.groupby("cell", as_index=False)["predicted"].max().assign(number=-1)
    both = left.merge(pd.concat([right, most]), on=["cell", "number"])
    over = both[both["live"] > both["predicted"]].sort_values("live", ascending=False, kind="stable")
    return over.drop_duplicates("cell")[["cell", "live", "predicted"]]
