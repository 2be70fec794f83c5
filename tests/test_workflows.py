"""The workflows: YAML that GitHub would read, with the rights they need and no more. None was run there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.cli import app
from harness.plan import PLANS

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT / ".github"
FILES = sorted(GITHUB.rglob("*.yml"))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs() -> dict[str, dict]:
    return {
        f"{path.name}:{name}": job
        for path in (GITHUB / "workflows").glob("*.yml")
        for name, job in read(path)["jobs"].items()
    }


def steps() -> list[dict]:
    composite = read(GITHUB / "actions" / "gate" / "action.yml")["runs"]["steps"]
    return [step for job in jobs().values() for step in job["steps"]] + composite


def scripts() -> list[str]:
    return [step["run"] for step in steps() if "run" in step]


def test_there_are_the_two_workflows_and_the_action():
    assert [path.name for path in FILES] == ["action.yml", "gate.yml", "test.yml"]
    assert all("never run" in path.read_text(encoding="utf-8") for path in FILES)


def test_every_action_is_pinned_to_a_commit():
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", name) for name in used)


def test_no_script_pastes_what_a_pull_request_says():
    """A branch called `$(rm -rf ~)` is text in a variable, and a command in a script."""
    assert not [script for script in scripts() if "${{" in script]


@pytest.mark.parametrize("script", scripts())
def test_every_script_is_bash(script):
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_who_runs_foreign_code_cannot_write():
    for name, job in jobs().items():
        runs_code = any("make" in step.get("run", "") for step in job["steps"])
        rights = job.get("permissions", {"contents": "read"})
        assert not runs_code or rights == {"contents": "read"}, name
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False, name
    assert jobs()["gate.yml:comment"]["permissions"] == {"pull-requests": "write"}
    assert read(GITHUB / "workflows" / "gate.yml")["permissions"] == {}


def test_no_event_of_a_pull_request_skips_its_gate():
    """GitHub shows a skipped check as passed, in place of the failed one of the same commit."""
    on = read(GITHUB / "workflows" / "gate.yml")[True]  # YAML 1.1 reads the word "on" as a truth value
    assert on["pull_request"] == {"types": ["opened", "synchronize", "reopened"]}
    assert jobs()["gate.yml:gate"]["if"] == "github.event_name == 'pull_request'"


def test_no_gate_cancels_that_of_another_pull_request():
    """A concurrency group holds one waiting job, and cancels it when the next comes."""
    own = {name: job.get("concurrency") for name, job in jobs().items() if "self-hosted" in job["runs-on"]}
    group = "gate-${{ github.event.pull_request.number }}"
    assert own == {
        "gate.yml:gate": {"group": group, "cancel-in-progress": True},
        "gate.yml:calibrate": None,
    }


def test_every_command_and_option_is_there():
    """What the scripts call exists, plans included."""
    text = "\n".join([*scripts(), (GITHUB / "actions" / "gate" / "gate.sh").read_text()])
    lines = text.replace("\\\n", " ").splitlines()
    calls = [match for line in lines if (match := re.search(r"(?:bin/kvmark|harness\.cli) (\w+)(.*)", line))]
    assert {call[1] for call in calls} == {"doctor", "gate", "calibrate"}
    for call in calls:
        said = CliRunner().invoke(app, [call[1], "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
        for option in re.findall(r"--[a-z-]+", call[2]):
            assert option in said, f"{call[1]} has no {option}"
        assert all(
            name in PLANS for name in re.findall(r"\bgate-\w+\b(?!\.)", call[2]) if name == "gate-cuda"
        )


def run_action(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(GITHUB / "actions" / "gate" / "gate.sh")], cwd=folder, text=True, capture_output=True,
        env=os.environ | variables,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"FILE": "absent.py", "BASE": "HEAD"}, "not in this checkout"),
        ({"FILE": "tova.py", "BASE": "HEAD"}, "of its own"),
        ({"FILE": "mine.py", "BASE": "nowhere"}, "fetch-depth"),
    ],
)
def test_the_actions_script_refuses_what_it_cannot_gate(tmp_path, variables, says):
    from git_help import committed

    for name in ("mine.py", "tova.py"):
        (tmp_path / name).write_text('"""Mine."""\n')
    committed(tmp_path, "mine")
    done = run_action(tmp_path, **variables)
    assert done.returncode == 2 and says in done.stderr


def test_the_action_does_not_take_a_moved_file_for_a_new_one(tmp_path):
    from git_help import committed

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine.py").write_text('"""Mine."""\n')
    committed(tmp_path, "mine")
    (tmp_path / "old" / "mine.py").rename(tmp_path / "mine.py")
    done = run_action(tmp_path, FILE="mine.py", BASE="HEAD")
    assert done.returncode == 2 and "was old/mine.py in HEAD" in done.stderr
