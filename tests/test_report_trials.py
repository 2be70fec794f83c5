"""What counts as a sample where several cases share one prompt: ids as the suites themselves give them."""

from __future__ import annotations

import pandas as pd
import pytest
from recorded_tasks import Told, case, write_cells
from suite_help import PROSE, all_cases, context

from harness.report.groups import groups
from harness.report.load import load_run
from harness.report.tasks import by_trial, task_sections


@pytest.mark.parametrize(("spec", "cases", "trials"), [
    ("needle:needles=4,query=all,lengths=512,depths=0.1+0.9,trials=5", 10, 10),
    ("needle:needles=4,query=one,lengths=512,depths=0.1+0.9,trials=5", 10, 10),
    ("recall:lengths=200,pairs=8,trials=3,queries=4", 12, 3),
    ("ruler:lengths=512,tasks=multiquery+multikey,trials=3", 6, 6),
])  # fmt: skip
def test_queries_of_one_prompt_are_one_trial_and_others_are_not(spec, cases, trials):
    ids = [found.id for found in all_cases(spec, context(PROSE))]
    found = by_trial(pd.DataFrame({"place": 0, "case": ids, "value": 1.0}), ["place"])
    assert (len(found), found["trial"].nunique()) == (cases, trials)


def test_several_needles_count_their_prompts(tmp_path):
    suite = "needle:needles=4,query=all,lengths=512,depths=0.5,trials=20"
    rows = [
        row
        for n, found in enumerate(all_cases(suite, context(PROSE)))
        for row in case(found.id, accuracy_any=1, accuracy_all=0, accuracy_mean=0.25 + n % 2 / 2)
    ]
    cell = Told("transformer", suite, {"length": 512, "depth": 0.5}, rows, 20)
    (group,) = groups(load_run(write_cells(tmp_path, [cell])))
    (table,) = task_sections(group)[0].tables
    assert table.columns[1:] == ["any found\nn = 20", "all found\nn = 20", "mean recall\nn = 20"]
    assert [entry.plain for entry in table.rows[0][1:3]] == ["100.0 % (84–100 %)", "0.0 % (0–16 %)"]
    assert table.rows[0][3].plain.startswith("50.0 % (")
