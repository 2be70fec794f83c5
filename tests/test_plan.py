"""A plan is pure data: what names a cell, what may change its key and what may not, how jobs are cut."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pretrained_help import write_checkpoint
from tokenizer_help import write_byte_bpe

from harness import runner
from harness.environment import ROOT, source_hash
from harness.plan import DEMO, Cell, Plan, Settings, jobs, plan_from_toml
from harness.runner import prepare
from models import lookup
from models.spec import SpecError
from suites.documents import Document
from suites.text import Text

TINY = Settings(shape="tiny")
TWO = ("transformer", "window:budget=16")
GRID = ("decode:contexts=64+32,batches=2+1",)


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KVMARK_DATA", raising=False)


def keys(architectures=TWO, suites=GRID, **changes) -> list[str]:
    plan = Plan("p", tuple(architectures), tuple(suites), dataclasses.replace(TINY, **changes))
    return [cell.key for cell in prepare(plan).cells]


@pytest.mark.parametrize(
    "written",
    [
        {"suites": ["decode:batches=2+1,contexts=64+32"]},
        {"suites": [" decode : contexts=64+32, batches=2+1, new_tokens=32 "]},
        {"architectures": ["transformer", "window:sinks=4,budget=16"]},
        {"architectures": ["transformer", "window: budget = 16", "window:budget=16,sinks=4"]},
    ],
)
def test_another_spelling_is_the_same_cell(written):
    """Order of options, defaults spelled out, blanks and repetitions do not make another cell."""
    assert keys(**written) == keys()


def test_another_spelling_is_the_same_plan_and_folder():
    """Else the default folder of the same cells would be refused as another plan's."""
    short = prepare(Plan("p", TWO, GRID, TINY))
    long = prepare(Plan("p", ("transformer:", "window:sinks=4,budget=16"), GRID, TINY))
    assert (long.plan, long.name) == (short.plan, short.name)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bf16"},
        {"threads": 2},
        {"seed": 1},
        {"repeats": 6},
        {"prefill_chunk": 7},
        {"memory_limit_bytes": 1 << 33},
        {"shape": "family"},
        {"device": "cuda"},
        {"architectures": ["transformer", "window:budget=17"]},
        {"suites": ["decode:contexts=64+32,batches=2+1,new_tokens=5"]},
    ],
)
def test_whatever_determines_a_number_is_in_the_key(change):
    new, old = keys(**change), keys()
    shared = set(new) & set(old)
    # The untouched architecture of a plan keeps its cells; a setting touches them all.
    assert len(shared) == (len(old) // 2 if "architectures" in change else 0)


def test_patience_is_not_in_the_key():
    """A higher time limit finds the finished cells."""
    assert keys(timeout_s=5.0) == keys()


def test_every_cell_has_a_key_of_its_own():
    found = keys(replicates=2)
    assert len(set(found)) == len(found) == 2 * 2 * 2 * 2


def test_replicates_and_company_do_not_change_a_cell():
    """More processes, further architectures and further sizes add cells; those that are there stay."""
    old = set(keys())
    assert old < set(keys(replicates=2))
    assert old < set(keys([*TWO, "tova:budget=16"]))


def test_changed_sources_are_other_cells(monkeypatch):
    old = keys()
    card = runner.machine_card

    def changed(*arguments):
        return card(*arguments) | {"source_hash": "other"}

    monkeypatch.setattr(runner, "machine_card", changed)
    assert not set(keys()) & set(old)


def test_the_source_hash_follows_every_source_file(tmp_path):
    for name, content in (("models/a.py", "a"), ("harness/b.py", "b"), ("suites/c.toml", "c")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    seen = [source_hash.__wrapped__(tmp_path)]
    for name in ("models/a.py", "harness/b.py", "suites/c.toml", "models/new.py"):
        (tmp_path / name).write_text("changed")
        seen.append(source_hash.__wrapped__(tmp_path))
    assert len(set(seen)) == len(seen)


def test_changed_text_is_other_cells(tmp_path, monkeypatch):
    """By content: where the file lies does not matter."""
    monkeypatch.setattr(runner, "weights_of", lambda spec, *_: runner.Weights("w@1", {}, {}))

    def with_text(content: str) -> list[str]:
        text = Text("file", "file:book.txt", [Document("book", "book", content)])
        monkeypatch.setattr(runner, "resolve", lambda *_, **__: text)
        return keys(["transformer"], ["pg19"], shape=None)

    assert with_text("a" * 300) == with_text("a" * 300) != with_text("b" * 300)


def test_a_changed_shape_file_is_other_cells():
    """Its name alone says nothing."""
    content = "vocab = 256\ndim = 32\nnum_layers = 2\nnum_heads = 2\nnum_kv_heads = 2\nffn_dim = {}\n"

    def with_width(width: int) -> list[str]:
        Path("mine.toml").write_text(content.format(width))
        return keys(shape="mine.toml")

    assert with_width(32) == with_width(32) != with_width(64)


def test_changed_weights_are_other_cells(monkeypatch):
    def with_label(label: str) -> list[str]:
        monkeypatch.setattr(runner, "weights_of", lambda spec, *_: runner.Weights(label, {}, {}))
        return keys(shape=None)

    assert with_label("transformer@1") == with_label("transformer@1") != with_label("transformer@2")


def test_a_model_counts_by_its_content_and_its_tokenizers(tmp_path):
    """Neither by where it lies nor by what was typed."""

    def with_model(folder: str, tokens: int = 300, theta: float = 1e4, **changes) -> list[str]:
        write_checkpoint(tmp_path / folder / "tiny", "llama", vocab_size=320, rope_theta=theta)
        write_byte_bpe(tmp_path / folder / "tiny", tokens)
        return keys(shape=None, model=str(tmp_path / folder / "tiny"), **changes)

    first = with_model("a")
    assert first == with_model("b")
    assert first == with_model("b", tokenizer=str(tmp_path / "a" / "tiny" / "tokenizer.json"))
    assert not set(first) & set(with_model("c", theta=5e4))
    assert not set(first) & set(with_model("d", tokens=310))
    assert not set(first) & set(with_model("e", dtype="bf16"))


def test_a_changed_file_of_the_user_is_other_cells(tmp_path, monkeypatch):
    """Our sources' hash does not know it."""
    file = tmp_path / "mine.py"
    monkeypatch.setenv(lookup.VARIABLE, str(file))

    def with_content(content: str) -> list[str]:
        file.write_text(f"from ..architectures.window import Model, Options\n{content}\n")
        return keys(["transformer", "mine:budget=16"])

    old, new = with_content("# one"), with_content("# two")
    assert with_content("# one") == old
    assert set(old) & set(new) == set(keys(["transformer"]))


def job_list(cells: list[tuple], interleaved: dict[str, bool]):
    made = [Cell(f"k{i}", a, s, axes, r) for i, (a, s, axes, r) in enumerate(cells)]
    return jobs(made, interleaved)


def test_a_quality_job_is_one_architecture_and_one_suite_in_ascending_size():
    """Cells keep the suite's order, each a group of its own: nothing is interleaved."""
    found = prepare(Plan("p", TWO, GRID, TINY))
    plain = dataclasses.replace(
        found, interleaved={GRID[0]: False, **dict.fromkeys(found.interleaved, False)}
    )
    made = plain.jobs(set())
    assert [[{c.architecture for g in job.groups for c in g}] for job in made] == [[{a}] for a in TWO]
    for job in made:
        assert all(len(group) == 1 for group in job.groups)
        sizes = [group[0].axes["context"] * group[0].axes["batch"] for group in job.groups]
        assert sizes == sorted(sizes) == [32, 64, 64, 128]


def test_latency_architectures_share_a_process_point_by_point():
    made = prepare(Plan("p", TWO, GRID, TINY)).jobs(set())
    assert len(made) == 1
    for group in made[0].groups:
        assert [cell.architecture for cell in group] == list(TWO)
        assert len({tuple(cell.axes.items()) for cell in group}) == 1


def test_interleaving_can_be_switched_off():
    made = prepare(Plan("p", TWO, GRID, dataclasses.replace(TINY, interleave=False))).jobs(set())
    assert [{c.architecture for g in job.groups for c in g} for job in made] == [{a} for a in TWO]


def test_replicates_are_processes_of_their_own():
    made = prepare(Plan("p", TWO, GRID, dataclasses.replace(TINY, replicates=3))).jobs(set())
    assert [{c.replicate for g in job.groups for c in g} for job in made] == [{0}, {1}, {2}]
    assert len({job.id for job in made}) == 3


def test_latency_comes_first_and_done_cells_are_left_out():
    cells = [("a", "slow", {"n": 1}, 0), ("a", "fast", {"n": 1}, 0), ("b", "slow", {"n": 1}, 0)]
    made = job_list(cells, {"slow": False, "fast": True})
    assert [job.groups[0][0].suite for job in made] == ["fast", "slow", "slow"]
    prepared = prepare(Plan("p", TWO, GRID, TINY))
    done = {cell.key for cell in prepared.cells if cell.architecture == "transformer"}
    left = [c for job in prepared.jobs(done) for g in job.groups for c in g]
    assert {c.architecture for c in left} == {"window:budget=16"} and len(left) == 4
    assert prepared.jobs({cell.key for cell in prepared.cells}) == []


def test_predicted_bytes_are_those_of_the_cases(network):
    """The cache of a cell as its cases will fill it: prompt and continuation, all rows."""
    prepared = prepare(Plan("p", TWO, GRID, TINY))
    (job,) = prepared.jobs(set())
    weights, cache = runner.predicted_bytes(prepared, job)
    cell = job.groups[-1][0]
    shape = prepared.weights["transformer"].shape
    model = network("transformer", **shape)
    tokens = int(cell.axes["context"]) + 33
    # Both architectures are on the same weights, which the process holds once.
    assert weights == sum(p.numel() for p in model.parameters()) * 4
    assert cache == model.float().new_cache(int(cell.axes["batch"]), tokens).live_bytes().total


def test_toml_holds_everything_that_flags_hold(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'architectures = ["tova:budget=8"]\nsuites = ["decode"]\nshape = "tiny"\ntimeout_s = 7\n'
        'repeats = 2\nseed = 3\ntext = "book.txt"\n'
    )
    other = tmp_path / "other.toml"
    other.write_text(
        'architectures = ["tova"]\nsuites = ["decode"]\nmodel = "m"\nallow_pickle = true\n'
        'tokenizer = "t.json"\n'
    )
    assert plan_from_toml(other).settings == Settings(model="m", allow_pickle=True, tokenizer="t.json")
    expected = Plan(
        "mine", ("tova:budget=8",), ("decode",), Settings("tiny", repeats=2, seed=3, timeout_s=7), "book.txt"
    )
    assert plan_from_toml(path) == expected


def test_the_demo_names_all_architectures_and_three_suites():
    import models
    import suites

    assert {spec.partition(":")[0] for spec in DEMO.architectures} >= {
        *("transformer", "window", "random", "tova", "lococo", "yoco")
    }
    for spec in DEMO.architectures:
        models.parse(spec)
    assert {spec.partition(":")[0] for spec in DEMO.suites} == {"decode", "needle", "pg19"}
    for spec in DEMO.suites:
        suites.options(spec)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": 0}, {"repeats": -1}, {"batch": 0}, {"replicates": 0}, {"timeout_s": 0},
        {"timeout_s": -1.0}, {"timeout_s": float("nan")}, {"timeout_s": float("inf")},
        {"prefill_chunk": 0}, {"memory_limit_bytes": 0}, {"dtype": "fp16"}, {"device": "tpu"},
        {"device": "cuda:x"}, {"device": "cpu:0"}, {"threads": 1.5}, {"repeats": "3"}, {"repeats": True},
        {"seed": None}, {"shape": 5}, {"interleave": 1}, {"model": 5}, {"model": "m", "shape": "tiny"},
        {"tokenizer": "t.json"}, {"allow_pickle": True}, {"allow_pickle": None},
    ],
)  # fmt: skip
def test_settings_out_of_range_or_of_another_type_are_refused(wrong):
    with pytest.raises(SpecError, match=next(iter(wrong))) as caught:
        Settings(**wrong)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", "/etc"])
def test_a_plan_cannot_leave_the_results_folder_by_its_name(name):
    with pytest.raises(SpecError, match="name"):
        Plan(name, TWO, GRID)


@pytest.mark.full
def test_planning_makes_no_cuda_context(tmp_path):
    """Neither preparing nor predicting may touch a GPU that another process is to measure on."""
    code = (
        "import torch, sys\n"
        "from harness.plan import Plan, Settings\n"
        "from harness.runner import predicted_bytes, prepare\n"
        "found = prepare(Plan('p', ('transformer', 'tova'), ('decode:contexts=32',),"
        " Settings('tiny', device='cuda')))\n"
        "print([predicted_bytes(found, job) for job in found.jobs(set())])\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
