"""The command line: instant help, a registry that is the folder, one word for everything there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import models
import suites
from harness import cli
from harness.asked import plan_of
from harness.environment import ROOT
from models.spec import SpecError

COMMANDS = ("list", "plan", "run", "train", "report", "check", "doctor", "data", "compare", "gate")
COMMANDS += ("calibrate", "frontier")
HEAVY = ("torch", "pandas", "pyarrow", "matplotlib", "numpy", "safetensors", "triton", "lm_eval")


def ask(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\n"
        "from harness.cli import app\n"
        f"try: app({[*command, '--help']!r})\n"
        "except SystemExit as error: assert not error.code\n"
        f"heavy = set({HEAVY!r}) & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_list_imports_no_torch():
    code = (
        "import sys\n"
        "from harness.cli import app\n"
        "try: app(['list'])\n"
        "except SystemExit as error: assert not error.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_and_option_has_a_help_text():
    group = typer.main.get_command(cli.app)
    assert tuple(sorted(group.commands)) == tuple(sorted(COMMANDS))
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            # Typer's --help option brings its own text.
            assert getattr(parameter, "help", "") or parameter.name == "help", f"{name} {parameter.name}"


def test_help_states_the_exit_codes():
    words = ask("--help").stdout
    assert all(code in words for code in ("0 measured", "1 a cell", "2 wrong", "3 environment", "130"))


def test_the_readme_names_every_command():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    words = readme.read_text(encoding="utf-8")
    missing = [name for name in COMMANDS if not re.search(rf"kvmark {name}\b", words)]
    assert not missing


def test_list_shows_every_file_of_both_folders():
    words = ask("list").stdout
    folders = {"models/architectures": models.docline, "suites/workloads": suites.docline}
    for folder, line in folders.items():
        files = [p.stem for p in (ROOT / folder).glob("*.py") if not p.stem.startswith("_")]
        assert files
        for name in files:
            assert re.search(rf"^  {name} +{re.escape(line(name))}$", words, re.MULTILINE), name
    assert "demo" in words


def test_plan_prints_jobs_with_predicted_memory_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", "--arch", "transformer", "--arch", "tova:budget=16", "--suite", "decode"]
    done = ask(*arguments, "--contexts", "32,64", "--batch", "2", "--shape", "tiny")
    assert done.exit_code == 0, done.stderr
    assert "1 jobs, 4 cells" in done.stdout and "tova:budget=16" in done.stdout
    # 2 rows of 64 + 33 tokens, 4 layers, 2 KV heads of 32, keys and values in fp32.
    assert f"{2 * 97 * 4 * 2 * 32 * 2 * 4 / 1024:.0f} KiB" in done.stdout
    assert not list(tmp_path.iterdir())


def test_flags_go_on_top_of_a_plan_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('architectures = ["transformer"]\nsuites = ["decode"]\nshape = "tiny"\n')
    options = dict.fromkeys(
        ["arch", "suite", "text", "shape", "contexts", "batch", "repeats", "replicates", "dtype", "device",
         "threads", "seed", "prefill_chunk", "interleave", "timeout_s", "memory_limit_bytes"]
    ) | {"name": "mine.toml"}  # fmt: skip
    plain = plan_of(options)
    assert (plain.name, plain.settings.shape, plain.suites) == ("mine", "tiny", ("decode",))
    changed = plan_of(options | {"contexts": "8,16", "batch": "2", "repeats": 9, "arch": ["tova"]})
    assert changed.suites == ("decode:contexts=8+16,batches=2",)
    assert (changed.settings.repeats, changed.settings.shape, changed.architectures) == (9, "tiny", ("tova",))
    assert changed.settings.batch == plain.settings.batch, "the suite's own batches are among its axes"


def test_batch_is_for_every_suite_and_only_decode_takes_several():
    def asked(batch, *of):
        return plan_of(dict.fromkeys(["name", "contexts", "text"]) | {
            "arch": ["tova"], "suite": list(of), "batch": batch})  # fmt: skip

    assert asked("16", "lm_eval").settings.batch == 16
    both = asked("2", "needle", "decode")
    assert (both.settings.batch, both.suites) == (2, ("needle", "decode:batches=2"))
    with pytest.raises(SpecError, match="one whole number where a suite other than decode"):
        asked("1,4", "needle", "decode")


def test_the_installed_script_is_this_app():
    script = Path(sys.executable).with_name("kvmark")
    if not script.exists():
        pytest.skip("kvmark is not installed in this environment")
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "KV-cache" in done.stdout
