"""`kvmark check`: every law notices its fault, counter-examples reproduce, bad usage is one sentence."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from harness_help import TINY, Bench, one_sentence, rows
from typer.testing import CliRunner

import models
from harness import cli
from models import lookup
from models.conformance import LAWS, SHAPES, Subject, check, specs_for, variants
from models.spec import SpecError

FAULTY = Path(__file__).with_name("faulty.py")

README = Path(__file__).parents[1] / "README.md"

HONEST = FAULTY.read_text(encoding="utf-8").replace("from models.arch", "from ..arch")


@pytest.fixture(autouse=True)
def no_files_of_the_user(monkeypatch):
    monkeypatch.delenv(lookup.VARIABLE, raising=False)


@pytest.fixture
def ask():
    """kvmark check in this process; refuses what is no sentence."""

    def ask(*arguments: object):
        done = CliRunner().invoke(cli.app, ["check", *map(str, arguments)], env={"TERM": "dumb"})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in done.output
        return done

    return ask


def refusal(done) -> str:
    """The one sentence of bad usage."""
    lines = done.stderr.strip().splitlines()
    assert done.exit_code == 2 and len(lines) == 1 and lines[0].startswith("kvmark: "), done.output
    assert lines[0].endswith("."), lines[0]
    return lines[0]


# --- the laws notice --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
def test_every_law_notices_its_fault(name):
    """The file with the fault breaks the law of that name; without the fault it keeps it, if asked at all."""
    law = LAWS[name]
    honest = "not applicable" if name == "parallel_drops_nothing" else "kept"
    with lookup.known_file(FAULTY):
        budget = 41 if law.budget == "ample" else 6
        for fault, verdict in ((name, "broken"), ("none", honest)):
            outcome = law.hold(Subject(f"faulty:budget={budget},fault={fault}", law.shapes[-1]))
            assert outcome.verdict == verdict, outcome.detail


def test_parallel_is_no_excuse():
    """A policy that says "parallel" is told by its count or by what it holds; a trained window is not."""
    law = LAWS["parallel_drops_nothing"]
    with lookup.known_file(FAULTY):
        counted = law.hold(Subject("faulty:budget=6,fault=parallel_drops_nothing", "conv"))
        outcome = law.hold(Subject("faulty:budget=6,fault=parallel_and_silent", "conv"))
    assert (counted.verdict, outcome.verdict) == ("broken", "broken")
    assert "evicted() is [24, 0, 0, 56]" in counted.detail
    assert "[0, 1, 2, 3, 4] and more of 12 tokens are gone" in outcome.detail
    for spec in ("transformer", "yoco", "yoco:mixer=retention"):
        assert law.hold(Subject(spec, "plain")).verdict == "kept", spec


@pytest.mark.parametrize(
    ("mode", "law"),
    [("parallel", "parallel_drops_nothing"), ("banana", "prompt_mode_is_a_known_word"), ("stepwise", "")],
)
def test_the_readme_s_policy_may_not_lie(tmp_path, ask, mode, law):
    """Under a word that is not its own the README's example breaks a law; under its own it breaks none."""
    [text] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lie = text.replace('prompt_mode = "stepwise"', f'prompt_mode = "{mode}"')
    (tmp_path / "mine.py").write_text(lie)
    chosen = ("parallel_drops_nothing", "prompt_mode_is_a_known_word")
    done = ask("--path", tmp_path / "mine.py", *(word for name in chosen for word in ("--only", name)))
    assert done.exit_code == bool(law), done.output
    assert not law or f"{law} is broken: " in done.stdout


def test_a_counter_example_reproduces(ask):
    """What is printed leads to the same numbers by hand."""
    spec = "faulty:budget=6,fault=rows_are_independent"
    done = ask(spec, "--path", FAULTY, "--only", "rows_are_independent")
    assert done.exit_code == 1 and "kvmark: 1 of 1 laws are broken." in done.stderr
    text = " ".join(done.stdout.split())
    assert "rows_are_independent is broken (T4): Permuting rows permutes results" in text
    found = re.search(
        r"faulty:budget=6,fault=rows_are_independent on shape 'conv': rows \[1\] as a batch .*?: "
        r"a logit is (\S+) and not (\S+); a gap of (\S+), the limit is 1e-11\. "
        r"dtype float64, tokens seed 0, row (\d+), position (\d+), logit (\d+), cuts (\S+), seeds 11\+12\+13",
        text,
    )
    assert found, text
    row, position, logit = (int(found[n]) for n in (4, 5, 6))
    cut = [int(n) for n in found[7].split("+")]
    with lookup.known_file(FAULTY):
        s, seeds = Subject(spec, "conv"), [11, 12, 13]
        ids = s.ids(3)
        whole = s.run(ids, cut, s.model().new_cache(3, s.length, seeds=seeds))
        part = s.run(ids[1:2], cut, s.model().new_cache(1, s.length, seeds=[12]))
    assert f"{part[row, position, logit]:.6g}" == found[1]
    assert f"{whole[1:2][row, position, logit]:.6g}" == found[2]


def test_an_exception_breaks_the_law_and_says_where(ask):
    done = ask(
        "faulty:fault=raises", "--path", FAULTY, "--only", "costs_are_stated", "--only", "the_same_again"
    )
    assert done.exit_code == 1 and "1 of 2 laws are broken" in done.stderr
    line = next(n for n, text in enumerate(HONEST.splitlines(), 1) if "what a pity" in text)
    assert f"RuntimeError: what a pity (faulty.py:{line} in attend)" in done.stdout


def test_one_exception_is_told_once(ask):
    """Laws that the same exception breaks share one example; another kind of break keeps its own."""
    laws = ("the_same_again", "the_future_is_unknown", "rows_are_independent")
    only = [word for law in laws for word in ("--only", law)]
    done = ask("faulty:budget=6,fault=raises", "--path", FAULTY, *only)
    assert done.exit_code == 1 and "3 of 3 laws are broken" in done.stderr
    assert done.stdout.count("what a pity") == 1
    assert "3 laws are broken by one exception: " in done.stdout and " is broken" not in done.stdout


def test_a_model_that_cannot_be_made_breaks_every_law(tmp_path):
    text = HONEST.replace(
        "    calls = 0\n", "    calls = 0\n\n    def build_blocks(self):\n        return 1 / 0\n"
    )
    (tmp_path / "never.py").write_text(text)
    with lookup.known_file(tmp_path / "never.py"):
        outcomes = list(check("never", ["costs_are_stated"]))
    assert {o.verdict for o in outcomes} == {"broken"}
    assert "ZeroDivisionError: division by zero (never.py:" in outcomes[0].detail


def test_a_shape_that_is_refused_is_not_applicable(tmp_path):
    """One shape: the laws are asked of the others. Every shape: nothing was checked, which is an error."""
    refuse = "    calls = 0\n\n    def build_blocks(self):\n        if {}:\n"
    refuse += "            raise ValueError('never so.')\n        return super().build_blocks()\n"
    for name, condition in (("picky", "self.shape.tied"), ("never_at_all", "True")):
        (tmp_path / f"{name}.py").write_text(HONEST.replace("    calls = 0\n", refuse.format(condition)))
    with lookup.known_file(tmp_path / "picky.py"):
        outcomes = list(check("picky:budget=41", ["any_segmentation_is_forward"]))
        assert {(o.shape, o.detail) for o in outcomes if o.verdict != "kept" and "budget=41" in o.spec} == {
            ("checkpoint", "never so.")
        }
    with lookup.known_file(tmp_path / "never_at_all.py"), pytest.raises(SpecError, match="never so"):
        list(check("never_at_all", ["costs_are_stated"]))


# --- what is examined -------------------------------------------------------------------------------


def test_budgets_are_shrunk_to_the_tests(tmp_path):
    assert specs_for("tova:budget=64") == ["tova:budget=64", "tova:budget=41", "tova:budget=6"]
    assert specs_for("tova:budget=41,prompt=bulk") == [
        "tova:budget=41,prompt=bulk",
        "tova:budget=6,prompt=bulk",
    ]
    assert specs_for("transformer") == ["transformer"]
    assert specs_for("tova:budget_bytes=9000")[1:] == ["tova:budget=41", "tova:budget=6"]
    floor = "    recent: int = 40\n\n    def __post_init__(self):\n        if self.budget <= self.recent{}:\n"
    floor += "            raise ValueError('more, please.')\n"
    for name, further in (
        ("shrinks", ""),
        ("floor", " or self.budget < 10"),
        ("large", " or self.budget < 50"),
    ):
        text = HONEST.replace(
            '    fault: str = "none"\n', '    fault: str = "none"\n' + floor.format(further)
        )
        (tmp_path / f"{name}.py").write_text(text)
    with lookup.known_file(tmp_path / "shrinks.py"):
        assert specs_for("shrinks") == ["shrinks:budget=64", "shrinks:budget=41", "shrinks:budget=6,recent=3"]
    with lookup.known_file(tmp_path / "floor.py"):
        assert specs_for("floor")[-1] == "floor:budget=12,recent=6"
    with lookup.known_file(tmp_path / "large.py"), pytest.raises(SpecError, match="refused: more, please"):
        specs_for("large")


def test_choices_are_found():
    assert "tova:budget=256,prompt=bulk" in variants("tova")
    assert {"yoco:mixer=retention", "yoco:early_exit=false"} <= set(variants("yoco"))
    assert variants("transformer") == variants("window") == []


def test_check_prints_kept_and_not_applicable(ask):
    laws = ("costs_are_stated", "budget_is_filled_and_kept", "kept_sets_are_nested")
    done = ask("transformer", *(word for law in laws for word in ("--only", law)))
    assert done.exit_code == 0, done.output
    text = " ".join(re.sub(r"[│┃]", " ", done.stdout).split())
    assert "costs_are_stated kept 2" in text and "kept_sets_are_nested kept 2" in text
    assert "budget_is_filled_and_kept not applicable it has no option 'budget'" in text


def test_the_reason_is_the_law_s_own(tmp_path, ask):
    """A missing option is the reason at every budget, not that the first budget holds everything."""
    (tmp_path / "plain.py").write_text(HONEST.replace("    budget_bytes: int | None = None\n", ""))
    law = "budget_bytes_is_the_largest_that_fits"
    done = ask("--path", tmp_path / "plain.py", "--only", law)
    text = " ".join(re.sub(r"[│┃]", " ", done.stdout).split())
    assert f"{law} not applicable it has no option 'budget_bytes'" in text, done.stdout


def test_list_shows_every_law(ask):
    done = ask("--list")
    assert done.exit_code == 0 and all(name in done.stdout for name in LAWS)
    assert all(law.sentence.endswith(".") and set(law.shapes) <= set(SHAPES) for law in LAWS.values())


# --- where names lead -------------------------------------------------------------------------------


def test_both_ways_of_importing_work_in_a_file(tmp_path, ask):
    """Relative, as in our folder, and absolute; its name is the file's, options after the colon."""
    absolute = re.sub(r"from \.\.(\w)", r"from models.\1", HONEST)
    for name, text in (("dotted", HONEST), ("absolute", absolute)):
        (tmp_path / f"{name}.py").write_text(text)
        done = ask("--path", tmp_path / f"{name}.py", "--only", "kept_sets_are_nested")
        sizes = ", ".join(f"{name}:budget={budget}" for budget in (64, 41, 6))
        assert done.exit_code == 0 and f"Checked {sizes}" in done.stdout
    assert "dotted" not in models.names()
    with pytest.raises(SpecError, match="Unknown architecture 'dotted'"):
        models.parse("dotted")


def test_a_file_is_read_as_it_is_now(tmp_path):
    path = tmp_path / "edited.py"
    for default in (7, 8, 7):
        path.write_text(HONEST.replace("budget: int = 64", f"budget: int = {default}"))
        with lookup.known_file(path):
            assert models.parse("edited")[1].budget == default


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("broken.py", "def f(:\n", ["broken.py' has a syntax error in line 1"]),
        ("bytes.py", "\0", ["bytes.py"]),
        ("empty.py", "", ["defines no class Options"]),
        ("half.py", HONEST.replace("class Model(", "class Modell("), ["defines no class Model;"]),
        ("plain.py", HONEST.replace("@dataclass(frozen=True)\n", ""), ["Options a frozen dataclass"]),
        (
            "other.py",
            HONEST.replace("class Model(Decoder)", "class Model"),
            ["models.architecture.Architecture"],
        ),
        ("needs.py", "\nimport no_such_thing", ["ModuleNotFoundError", "no_such_thing", "line 2"]),
        ("leaves.py", "raise SystemExit(3)", ["SystemExit"]),
        ("tova.py", HONEST, ["tova.py' hides models/architectures/tova.py; rename it"]),
        ("my-arch.py", HONEST, ["identifier"]),
        ("arch.txt", HONEST, ["must be a Python file"]),
        ("gone.py", None, ["gone.py' is not there"]),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, ask, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    sentence = refusal(ask("--path", tmp_path / name))
    assert all(part in sentence for part in said), sentence


def test_bad_usage_is_one_sentence(ask):
    assert "kvmark list" in refusal(ask())
    assert "Unknown architecture 'nope'; known: h2o," in refusal(ask("nope"))
    said = refusal(ask("tova:budget=6", "--path", FAULTY))
    assert "'tova:budget=6' does not name the file of --path, which defines 'faulty'" in said
    assert "valid options: budget" in refusal(ask("random:size=3"))
    assert "Unknown law 'gravity'; known: any_segmentation" in refusal(ask("tova", "--only", "gravity"))


def install(folder: Path, package: str, name: str, module: str, text: str) -> None:
    """What pip leaves behind: a module, and a distribution that names it."""
    (folder / f"{module}.py").write_text(text, encoding="utf-8")
    card = folder / f"{package}-1.0.dist-info"
    card.mkdir()
    (card / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (card / "entry_points.txt").write_text(f"[kvmark.architectures]\n{name} = {module}\n")


def test_installed_architectures_are_known(tmp_path, monkeypatch, ask):
    text = HONEST.replace("from ..", "from models.").replace('"""A sinkless', '"""Installed: a sinkless', 1)
    install(tmp_path, "policies", "installed", "policies_of_a_test", text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert "installed" in models.names() and models.docline("installed").startswith("Installed: a sinkless")
    assert models.canonical_spec("installed:budget=5") == "installed:budget=5"
    assert models.build("installed:budget=5", SHAPES["plain"]).options.budget == 5
    assert lookup.fingerprint("installed") and lookup.fingerprint("tova") is None
    listed = CliRunner().invoke(cli.app, ["list"]).stdout
    assert re.search(r"^  installed +Installed: a sinkless", listed, re.MULTILINE)
    assert ask("installed", "--only", "costs_are_stated").exit_code == 0

    (tmp_path / "installed.py").write_text(HONEST)
    assert "hides policies_of_a_test" in refusal(ask("--path", tmp_path / "installed.py"))


def test_an_installed_name_hides_nothing(tmp_path, monkeypatch, ask):
    install(tmp_path, "thief", "tova", "thief_of_a_test", HONEST)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert models.parse("tova")[0].__name__ == "models.architectures.tova"
    listed = CliRunner().invoke(cli.app, ["list"])
    assert listed.exit_code == 2 and "'thief' hides models/architectures/tova.py" in listed.stderr


def test_an_installed_module_that_fails_is_one_sentence(tmp_path, monkeypatch, ask):
    install(tmp_path, "sad", "sad", "sad_of_a_test", "import no_such_thing")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert "no_such_thing" in refusal(ask("sad"))


@pytest.mark.full
def test_workers_know_files_of_the_variable(tmp_path, monkeypatch):
    """KVMARK_ARCHITECTURES makes a file an architecture everywhere, in child processes, too."""
    path = tmp_path / "mine.py"
    path.write_text(HONEST)
    monkeypatch.setenv(lookup.VARIABLE, str(path))
    bench = Bench(tmp_path)
    assert "mine" in bench.run("list").out
    done = bench.run("run", *TINY, "--arch", "mine:budget=8", "--out", "out", "--no-report")
    assert done.code == 0, done.err
    assert set(rows(bench.cwd / "out").architecture) == {"mine:budget=8"}
    path.unlink()
    assert "mine.py' is not there" in one_sentence(bench.run("list"), 2)
