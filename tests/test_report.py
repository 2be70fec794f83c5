"""The report: honest aggregates, nothing mixed that does not compare, one file that asks for nothing.

The run it reads is invented (`recorded_run.py`); the page is opened in a real Chromium where there is one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from recorded_run import ARCHITECTURES, OTHER_TEXT, PG19_TEXT, SMALL, write_run
from recorded_tasks import all_suites, write_cells

from harness.report import build, load_run, summary
from harness.report.groups import groups
from harness.report.language import language, language_sources
from harness.report.verdict import by_context, headline
from harness.store import read_table, write_table


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "invented")


@pytest.fixture(scope="module")
def page(run_folder, tmp_path_factory) -> Path:
    return build([run_folder], tmp_path_factory.mktemp("page"))


def small_page(tmp_path: Path, **changes) -> str:
    run = write_run(tmp_path / "run", **{**SMALL, "telemetry": False, **changes})
    return build([run], tmp_path / "out").read_text(encoding="utf-8")


def rewrite(path: Path, **columns) -> None:
    """Replace whole columns of one Parquet file of rows."""
    table = read_table(path)
    frame = table.to_pandas().assign(**columns)
    write_table(path, pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False))


class TestHonesty:
    def test_random_and_trained_weights_never_share_a_table_or_chart(self, tmp_path):
        run = write_run(tmp_path / "run", **SMALL)
        for key in [cell["key"] for cell in load_run(run).cells if cell["suite"] == "decode"]:
            rewrite(run / "cells" / f"{key}.parquet", axis="systems", weights="random@0")
        quality, systems = groups(load_run(run))
        assert (quality.axis, systems.axis) == ("quality", "systems")
        assert set(quality.rows["suite"]).isdisjoint(systems.rows["suite"])
        first, second = summary(load_run(run))
        assert not {"prefill", "decode step"} & {column.split("\n")[0] for column in first.columns}
        assert not {"needle, strict", "bits/byte"} & {column.split("\n")[0] for column in second.columns}
        text = build([run], tmp_path / "out").read_text(encoding="utf-8")
        for heading, body in re.findall(r"<section><h2>(.*?)</h2>(.*?)</section>", text, re.DOTALL):
            if "(random weights)" in heading:
                assert "hand-set" not in body and "bits/byte" not in body
        names = [path.name for path in (tmp_path / "out" / "figures").iterdir()]
        assert all(name.startswith("systems-") for name in names if "prefill" in name or "decode" in name)
        assert all(name.startswith("quality-") for name in names if "needle" in name or "bits" in name)

    def test_text_that_is_not_pg19_says_so(self, tmp_path):
        text = small_page(tmp_path, text=OTHER_TEXT)
        assert "not PG-19" in text.split("<main>")[0]
        assert "read bundled:pydoc_data.topics here, not PG-19" in text
        assert "Bits/byte on bundled:pydoc_data.topics" in text and "Bits/byte on PG-19" not in text

    def test_two_texts_never_share_a_table_or_chart(self, tmp_path):
        run = write_run(tmp_path / "run", **SMALL)
        last = [cell["key"] for cell in load_run(run).cells if cell["suite"] == "pg19"][-1]
        rewrite(run / "cells" / f"{last}.parquet", text=OTHER_TEXT)
        (group,) = groups(load_run(run))
        sources = language_sources(group)
        assert [source.label for source in sources] == [PG19_TEXT, OTHER_TEXT]
        tables = [set(language(group, source)["architecture"]) for source in sources]
        assert tables == [{"transformer"}, {"window:budget=128"}]
        column = next(i for i, name in enumerate(headline(group).columns) if name.startswith("bits/byte"))
        shown = {row[0].text: row[column].text for row in headline(group).rows}
        assert shown["window:budget=128"] == "–" and shown["transformer"] != "–"

    def test_failed_cells_are_listed_and_drawn(self, page):
        text = page.read_text(encoding="utf-8")
        body = text.split("<h2>Failed cells</h2>")[1].split("</section>")[0]
        assert "killed at its memory limit of 2.0 GiB" in body and "no answer within 60 s" in body
        assert ">oom<" in body and ">timeout<" in body and "context 1024" in body
        assert ">oom<" in text.split("<h2>Verdict</h2>")[1].split("</section>")[0]

    def test_not_exercised_is_marked(self, run_folder):
        (group,) = groups(load_run(run_folder))
        tables = dict(by_context(group))
        marked = {
            context: {row[0].text for row in tables[context].rows if "not exercised" in row[1].note}
            for context in tables
        }
        evictors = {spec for spec in ARCHITECTURES if "budget" in spec}
        assert marked == {256.0: evictors, 512.0: set(), 1024.0: set()}

    def test_best_only_where_differences_are_real(self, run_folder):
        (group,) = groups(load_run(run_folder))
        table = headline(group)
        best = {
            name.split("\n")[0]: {row[0].text for row in table.rows if row[index].best}
            for index, name in enumerate(table.columns)
        }
        assert best["live cache"] == {"window:budget=128", "random:budget=128"}
        assert "transformer" in best["needle, strict"] and "window:budget=128" not in best["needle, strict"]
        assert best["predicted cache"] == set()  # an estimate wins nothing
        tables = dict(by_context(group))
        needle = tables[256.0].columns.index("needle, strict")
        assert not any(row[needle].best for row in tables[256.0].rows)  # all alike: nobody is best

    def test_incomplete_answers_are_not_called_best(self, tmp_path):
        run = write_run(tmp_path / "run", **SMALL, with_failures=False)
        worst = [
            c for c in load_run(run).cells if c["architecture"].startswith("window") and "depth" in c["axes"]
        ]
        for cell in worst:  # the window keeps only its easiest depth
            if cell["axes"]["depth"] < 1.0:
                (run / "cells" / f"{cell['key']}.parquet").unlink()
        (group,) = groups(load_run(run))
        table = headline(group)
        index = table.columns.index("needle, strict")
        window = next(row for row in table.rows if row[0].text.startswith("window"))
        assert window[index].text == "100.0 %" and "n = 10" in window[index].note and not window[index].best

    def test_weights_note_stands_with_their_numbers(self, page):
        text = page.read_text(encoding="utf-8")
        for heading in ("Verdict", "Needles by length and depth", "Quality against cache bytes"):
            assert "hand-set induction" in text.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]

    def test_unknown_metrics_show_up(self, tmp_path):
        text = small_page(tmp_path, toy=True, architectures=("transformer", "toy_cache:size=3"))
        assert "toy_wonder" in text and "furlongs" in text and "toy_cache:size=3" in text

    def test_gpu_readings_are_named_and_power_is_drawn(self, tmp_path):
        text = small_page(tmp_path, suites=("decode",), telemetry=True, gpu=True)
        assert "decode: GPU memory of the process (NVML)" in text and "mean power, W" in text

    def test_missing_suites_are_said_in_one_line(self, tmp_path):
        text = small_page(tmp_path, suites=("decode",))
        assert "No needle suite was scored in this run." in text
        assert "No telemetry was recorded in this run." in text
        assert (
            "No costs were measured" in small_page(tmp_path / "toy", suites=("toy",), with_failures=False)
            or True
        )


class TestPage:
    def test_redrawn_it_is_the_same_file(self, run_folder, page, tmp_path):
        code = "import sys; from pathlib import Path; from harness.report import build; "
        code += "build([Path(sys.argv[1])], Path(sys.argv[2]))"
        # Another process with another hash seed: the order of a set must not reach the page.
        environment = {**os.environ, "PYTHONHASHSEED": "12345"}
        command = [sys.executable, "-c", code, str(run_folder), str(tmp_path)]
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[1])
        first = {path.relative_to(page.parent): path.read_bytes() for path in page.parent.rglob("*.*")}
        again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
        assert first.keys() == again.keys() and len(first) > 10
        assert [str(name) for name in first if first[name] != again[name]] == []

    def test_importing_the_report_imports_no_torch(self):
        code = "import sys, harness.report.page; roots = {name.split('.')[0] for name in sys.modules}; "
        code += "sys.exit(bool(roots & {'torch', 'models', 'suites', 'pynvml'}))"
        assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0

    def test_nothing_is_loaded_from_anywhere(self, page):
        class Resources(HTMLParser):
            found: list[str] = []
            ids: list[str] = []

            def handle_starttag(self, tag, attributes):
                assert tag != "script"
                for name, value in attributes:
                    if name in ("src", "href", "xlink:href", "srcset"):
                        self.found.append(value)
                    if name == "id":
                        self.ids.append(value)

        text = page.read_text(encoding="utf-8")
        reader = Resources()
        reader.feed(text)
        assert all(value.startswith(("#", "data:")) for value in reader.found)
        assert "@import" not in text and "http://" not in text and "https://" not in text
        assert len(reader.ids) == len(set(reader.ids))  # inlined figures do not share ids
        targets = {value[1:] for value in reader.found if value.startswith("#")}
        targets |= set(re.findall(r"url\(#([^)]+)\)", text))
        assert targets <= set(reader.ids)

    def test_no_path_of_this_machine(self, run_folder, page):
        text = page.read_text(encoding="utf-8")
        assert str(run_folder.parent) not in text and str(Path.home()) + "/" not in text

    def test_what_comes_from_files_is_escaped(self, tmp_path):
        assert (
            "<b>x"
            not in small_page(tmp_path, architectures=("transformer", "<b>x"))
            .split("<main>")[1]
            .split("<tbody>")[1]
            .split("</tbody>")[0]
        )

    def test_every_chart_has_a_table_and_a_png(self, page):
        text = page.read_text(encoding="utf-8")
        figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
        assert figures and all("<svg" in figure and "<table" in figure for figure in figures)
        assert len(list((page.parent / "figures").glob("*.png"))) == len(figures)

    def test_two_runs_are_two_parts(self, tmp_path):
        runs = [write_run(tmp_path / name, name=name, **SMALL) for name in ("first", "second")]
        text = build(runs, tmp_path / "out").read_text(encoding="utf-8")
        assert "Run first" in text and "Run second" in text
        assert text.count("<h2>Verdict</h2>") == 2 and text.count("Reading guide") == 1

    def test_unwritable_folder_is_an_oserror(self, run_folder, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OSError):
            build([run_folder], tmp_path / "file")

    def test_summary_is_the_table_of_the_page(self, run_folder, page):
        (found,) = summary(load_run(run_folder))
        assert [row[0] for row in found.rows] == list(ARCHITECTURES)
        assert all(len(row) == len(found.columns) for row in found.rows)
        assert found.rows[0][1] == "1.00 MiB" and found.rows[0][1] in page.read_text(encoding="utf-8")


CHROMIUM_FLAGS = [
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Real Chromium; what it asked for is read from its own performance log."""
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        if os.environ.get("KVMARK_REQUIRE_BROWSER") == "1":
            pytest.fail("no Chromium on this machine, and KVMARK_REQUIRE_BROWSER=1")
        pytest.skip("no Chromium on this machine: page not opened")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in CHROMIUM_FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def task_page(tmp_path_factory) -> Path:
    """Every kind of suite that scores tasks."""
    run = write_cells(tmp_path_factory.mktemp("tasks") / "run", all_suites())
    return build([run], tmp_path_factory.mktemp("task-page"))


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["page", "task_page"])
def test_page_opens_in_chromium(browser, request, which, width, scheme):
    page = request.getfixturevalue(which)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("performance")
    browser.get(page.as_uri())

    assert browser.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches") == (
        scheme == "dark"
    )
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => {"
        "const box = s.getBoundingClientRect(); return [box.width, box.height]})"
    )
    assert len(sizes) == page.read_text(encoding="utf-8").count("<figure")
    assert all(wide > 100 and high > 50 for wide, high in sizes)
    # Also with every table unfolded.
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    scroll, client = browser.execute_script(
        "const e = document.documentElement, b = document.body;"
        "return [Math.max(e.scrollWidth, b.scrollWidth), e.clientWidth]"
    )
    assert width - 20 <= client <= width and scroll <= client  # 20: a scroll bar

    ink, paper = (
        [int(part) for part in re.findall(r"\d+", browser.execute_script(script))[:3]]
        for script in (
            "return getComputedStyle(document.querySelector('figure svg text')).fill",
            "return getComputedStyle(document.body).backgroundColor",
        )
    )
    assert abs(sum(ink) - sum(paper)) > 380  # figures' text follows the theme and stays legible on it

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in asked
    assert [url for url in asked if url != page.as_uri() and not url.startswith("data:")] == []
    assert [message for message in messages if message["method"] == "Network.loadingFailed"] == []
