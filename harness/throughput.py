"""Tokens per second from prompt to last token, and which batch of a sweep is best.

    prefill_tokens_per_s             prompt tokens / prefill                                (measured rows)
    decode_tokens_per_s              tokens of the timed steps / those steps                (measured rows)
    e2e_tokens_per_s                 tokens of the timed steps / (prefill + those steps)
    prefill_plus_1024_tokens_per_s   batch x 1,024 / (prefill + the first 1,024 steps)

The last one is the throughput of the YOCO paper (arXiv 2405.05254): the time is prefill and generation, the
tokens are the 1,024 *generated* ones, at the largest batch that fits. The paper does not write the quotient
out; its own figures do: at 512K a Transformer needs about 180 s for the prompt and has 4.5 tokens/s, which
is 1,024 tokens in 228 s. With prompt tokens counted it would be above 2,000 tokens/s. It is measured or it is
NaN: a time for 1,024 steps is never extrapolated from fewer, since a step's cost depends on its position.
Ours differs in one thing: the steps come after the stated context, not within it.
"""

from __future__ import annotations

import json

import pandas as pd

from .metrics import metric
from .store import NOT_TRIED

E2E, PLUS_1024 = "e2e_tokens_per_s", "prefill_plus_1024_tokens_per_s"
#: Metrics that `derived_rows` makes.
DERIVED = (E2E, PLUS_1024)
STEPS = 1024
_EXECUTION = ["cell", "repeat"]
#: Columns of a derived row that are not those of the prefill it is made from.
_OWN = ("case", "step", "layer", "bin", "answer", "scoring_mode", "message", "validity", "validity_reasons")


def derived_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows to append: both rates of every execution whose prefill and decode steps were timed.

    `rows` has the columns of store.Row. The rate over 1,024 steps is NaN, once per cell, where fewer were
    timed.
    """
    ok = rows[(rows["status"] == "ok") & rows["case"].isna()]
    prefill = ok[(ok["metric"] == "prefill_s") & (ok["phase"] == "prefill")]
    prefill = prefill[prefill["batch"].notna() & prefill["value"].notna()]
    steps = ok[(ok["metric"] == "decode_step_s") & ok["cell"].isin(prefill["cell"])]
    if prefill.empty or steps.empty:
        return rows.iloc[:0]
    sums = steps.groupby(_EXECUTION, dropna=False)["value"].agg(["sum", "size"])
    first = steps[steps["step"] < STEPS].groupby(_EXECUTION, dropna=False)["value"].agg(["sum", "size"])
    keys = pd.MultiIndex.from_frame(prefill[_EXECUTION])
    all_s, num = (sums[name].reindex(keys).to_numpy() for name in ("sum", "size"))
    first_s, num_first = (first[name].reindex(keys).to_numpy() for name in ("sum", "size"))
    batch, prefill_s = prefill["batch"].to_numpy(float), prefill["value"].to_numpy(float)
    whole = prefill.assign(metric=E2E, value=batch * num / (prefill_s + all_s), message=None)
    enough = num_first == STEPS
    long = prefill.assign(metric=PLUS_1024, value=batch * STEPS / (prefill_s + first_s), message=None)
    short = long[~enough & ~pd.isna(num)].drop_duplicates("cell")
    timed = pd.Series(num, prefill.index)[short.index]
    said = [
        f"{STEPS:,} timed steps are needed (decode:new_tokens={STEPS}), and there are {n:,.0f}" for n in timed
    ]
    short = short.assign(value=float("nan"), repeat=None, message=said)
    found = pd.concat([whole[~pd.isna(num)], long[enough], short]) if len(short) else pd.concat([whole, long])
    found["unit"], found["phase"] = metric(E2E).unit, "e2e"
    for name in set(_OWN) - {"message"}:
        found[name] = None
    return found.reset_index(drop=True)


def best(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per architecture, suite and context of a batch sweep.

    Columns: `architecture`, `suite`, `context`, `largest_batch` (the largest that fitted), `failed_batch`
    (the smallest that ran out of memory; NaN: none did, so the largest is only the largest asked for), and
    for each rate its best median and the batch that has it: `decode_tokens_per_s`,
    `decode_tokens_per_s_batch`, and so on. Medians are over the repeats of a process, then over processes.
    """
    names = ["prefill_tokens_per_s", "decode_tokens_per_s", *DERIVED]
    columns = ["architecture", "suite", "context", "largest_batch", "failed_batch"]
    columns += [column for name in names for column in (name, f"{name}_batch")]
    timed = rows[rows["metric"].isin([*names, "failure"])]
    axes = timed["axes"].map({text: json.loads(text) for text in timed["axes"].unique()})
    timed = timed.assign(
        context=[found.get("context") for found in axes], size=[found.get("batch") for found in axes]
    )
    timed = timed.dropna(subset=["context", "size"])
    where, lines = ["architecture", "suite", "context"], []
    for point, group in timed.groupby(where, sort=False):
        rates = group[(group["status"] == "ok") & group["value"].notna()]
        tried = ~group["message"].fillna("").str.startswith(NOT_TRIED)
        line = dict(zip(where, point, strict=True))
        line["largest_batch"] = rates["size"].max()
        line["failed_batch"] = group.loc[(group["status"] == "oom") & tried, "size"].min()
        per_process = rates.groupby(["metric", "size", "replicate"])["value"].median()
        medians = per_process.groupby(["metric", "size"]).median()
        for name in set(names) & set(medians.index.get_level_values("metric")):
            line[name], line[f"{name}_batch"] = medians[name].max(), medians[name].idxmax()
        lines.append(line)
    return pd.DataFrame(lines, columns=columns)
