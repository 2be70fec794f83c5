"""A sweep of batches as a table: the largest batch that fits, and each rate at its best."""

from __future__ import annotations

import pandas as pd

from ..metrics import METRICS, NOTHING, format_count
from ..throughput import best
from .groups import Group, costs
from .html import Entry, Table, table_of

#: Rates, prefill and decode apart; the last is YOCO's, of 1,024 generated tokens with their prompt.
RATES = (
    "prefill_tokens_per_s", "decode_tokens_per_s", "e2e_tokens_per_s", "prefill_plus_1024_tokens_per_s",
)  # fmt: skip


def sweep_table(group: Group) -> list[Table]:
    """One line per architecture and context; nothing where each was asked for one batch only."""
    if len({batch for _, _, batch in costs(group, "decode_tokens_per_s")}) < 2:
        return []
    lines = best(group.rows)
    rates = [name for name in RATES if lines[name].notna().any()]
    order = {name: number for number, name in enumerate(group.architectures)}
    lines = lines.assign(order=lines["architecture"].map(order)).sort_values(["context", "order"])
    rows = [
        [line["architecture"], f"{line['context']:,.0f}", _largest(line), *(_rate(line, n) for n in rates)]
        for _, line in lines.iterrows()
    ]
    columns = ["architecture", "context", "largest batch that fits", *(METRICS[n].label for n in rates)]
    return [table_of(columns, rows, "Best rate over the batches, and the batch that has it.")]


def _largest(line: pd.Series) -> Entry:
    failed = line["failed_batch"]
    note = "none larger was asked for" if pd.isna(failed) else f"{failed:,.0f} ran out of memory"
    return Entry(format_count(line["largest_batch"]), note)


def _rate(line: pd.Series, name: str) -> Entry:
    if pd.isna(line[name]):
        return Entry(NOTHING)
    return Entry(METRICS[name].format(line[name]), f"batch {line[f'{name}_batch']:,.0f}")
