"""Documents that cannot rot: what README shows is run, drawn or compared here."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS, PAGES = ROOT / "results" / "reference", ROOT / "reports" / "reference"
REFERENCE = RUNS / "demo-cpu"
#: Page -> the runs that it is drawn from.
DRAWN = {
    "demo-cpu": ["demo-cpu"],
    "suites-cpu": ["suites-cpu"],
    "networks-cpu": ["entry-cpu", "books-cpu"],
    "spread-cpu": [f"spread-cpu/seed-{seed}" for seed in (0, 1, 2)],
    "quality-cpu": ["quality-cpu"],
}


def of_all(names):
    """One in the fast tier; those of many architectures take a minute each."""
    tiers = {"demo-cpu": ()} | dict.fromkeys(("quality-cpu", "suites-cpu", "spread-cpu"), pytest.mark.slow)
    return [pytest.param(name, marks=tiers.get(name, pytest.mark.full)) for name in names]


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_readme_verdict_is_the_committed_run():
    """The table between the markers is what `kvmark report --markdown` prints for the committed run."""
    from harness.report import load_run
    from harness.report.markdown import markdown

    shown = README.partition("<!-- verdict -->\n")[2].partition("<!-- /verdict -->")[0]
    assert shown == markdown(load_run(REFERENCE))


@pytest.mark.parametrize("page", of_all(DRAWN))
def test_committed_page_is_drawn_from_the_committed_runs(tmp_path, page):
    """Redrawing gives the committed page, byte for byte, as long as the drawing code is the same."""
    from harness.report import build

    runs = [RUNS / run for run in DRAWN[page]]
    assert build(runs, tmp_path).read_bytes() == (PAGES / page / "index.html").read_bytes()


def test_committed_curves_are_those_of_the_shipped_weights_and_of_those_without_a_start(tmp_path):
    from harness.report import build_curves

    drawn = build_curves([ROOT / "models" / "weights", RUNS / "no-start"], tmp_path).read_bytes()
    assert drawn == (PAGES / "training" / "index.html").read_bytes()


@pytest.mark.parametrize("run", of_all(run for runs in DRAWN.values() for run in runs))
def test_committed_run_read_real_books_from_a_clean_checkout(run):
    import json

    manifest = json.loads((RUNS / run / "run.json").read_text(encoding="utf-8"))
    assert manifest["text"]["label"].startswith("pg19:test@")
    assert manifest["machine"]["dirty"] is False and manifest["machine"]["commit"]


def test_every_architecture_has_been_on_every_suite_that_marks_answers():
    import models
    import suites
    from harness.report import load_run

    rows = load_run(RUNS / "suites-cpu").rows
    done = rows[(rows["status"] == "ok") & (rows["phase"] == "score")]
    pairs = done[["architecture", "suite"]].drop_duplicates().itertuples(index=False)
    seen = {tuple(spec.partition(":")[0] for spec in pair) for pair in pairs}
    assert seen == {(name, suite) for name in models.names() for suite in suites.names() if suite != "decode"}
    assert set(rows["status"]) == {"ok"}


def test_every_local_link_and_picture_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), f"README points to {target}"


def test_every_command_is_in_the_readme():
    from harness.cli import app

    for command in app.registered_commands:
        name = (command.name or command.callback.__name__).rstrip("_")
        assert f"kvmark {name}" in README, f"README does not name kvmark {name}"


@pytest.fixture
def readme_model(tmp_path):
    """The architecture in README's code block, loaded as a file of the folder would be."""
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    path = tmp_path / "mine.py"
    path.write_text(code, encoding="utf-8")
    name = "models.architectures.readme_example"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]


def test_readme_architecture_works(readme_model):
    """With budget to spare it is the Transformer; over budget it keeps `budget` tokens."""
    import models
    from models.shapes import SHAPES

    torch.manual_seed(0)
    full = models.build("transformer", SHAPES["tiny"]).eval()
    tokens_BT = torch.randint(0, 256, (2, 24))
    with torch.inference_mode():
        for budget, held in ((64, 24), (8, 8)):
            model = readme_model.Model(SHAPES["tiny"], readme_model.Options(budget=budget))
            model.load_state_dict(full.state_dict())
            cache = model.new_cache(2, 24)
            logits_BTV = model.extend(tokens_BT, None, cache, logits="all")
            kept = (cache.states["0.attention"].kept_positions()[:, 0] >= 0).sum(1)
            assert kept.tolist() == [held, held]
            if budget > 24:
                assert torch.allclose(logits_BTV, full(tokens_BT), atol=1e-5)


def test_no_document_names_this_machine():
    """Commits speak of the project alone."""
    files = subprocess.run(
        ["git", "ls-files", "*.md", "*.py", "*.toml", "*.json", "*.html", "Makefile"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    words = ("/" + "root/", "/" + "work/", "../" + "shared")
    for file in files:
        if file.startswith(".ci/"):
            continue
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not any(word in text for word in words), f"{file} names a machine's path"
