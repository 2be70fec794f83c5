"""Names from a stranger's files: nothing of theirs runs, becomes markup, or leaves the folder."""

from __future__ import annotations

import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from recorded_run import SMALL, write_run

from harness.report import build, load_run
from harness.report.html import printable
from harness.report.markdown import markdown
from harness.store import read_table, write_table

RUN = "window.hacked=1;alert(1)"
PAYLOADS = (
    f"<script>{RUN}</script>",
    f'"><img src=x onerror="{RUN}">',
    f"'><svg onload='{RUN}'>",
    f"</style></title></textarea><script>{RUN}</script>",
    f"javascript:{RUN}//",
    f"]]><!--</svg><iframe srcdoc='<script>parent.{RUN}</script>'>",
    "\u202egnp.exe\u2066\x1b[31m\ud800",
    "../../../../escaped",
    "a" * 3000 + "<b>",
    "$\\frac{1}$ {} %s &lt;",
)
PARQUET = [text.encode("utf-8", "replace").decode() for text in PAYLOADS]
FIXED = ("run", "cell", "metric", "axes", "axis", "status", "unit", "validity")


def hostile(folder: Path) -> Path:
    """A run with a payload in every text that a stranger may choose."""
    write_run(folder, **SMALL, toy=True, protocols=True)
    manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    cells, specs = manifest["cells"], {}
    for number, cell in enumerate(cells):
        path = folder / "cells" / f"{cell['key']}.parquet"
        table = read_table(path)
        rows = table.to_pandas()
        spec = specs.setdefault(cell["architecture"], f"window{PARQUET[len(specs)]}:budget=8")
        payload = PARQUET[number % len(PARQUET)]
        for name in table.schema.names:
            if pa.types.is_string(table.schema.field(name).type) and name not in FIXED:
                rows[name] = payload
        rows["architecture"], rows["suite"] = spec, cell["suite"] + ":" + PARQUET[0]
        toy = rows["metric"] == "toy_wonder"
        rows.loc[toy, "metric"], rows.loc[toy, "unit"] = PARQUET[1], PARQUET[3]
        rows["axes"] = [json.dumps({**json.loads(axes), PARQUET[0]: payload}) for axes in rows["axes"]]
        rows["validity"], rows["validity_reasons"] = "suspect", payload
        if number % 5 == 4:
            rows["axis"] = PARQUET[7]
        if number % 7 == 6:
            rows["status"] = PARQUET[2]
        write_table(path, pa.Table.from_pandas(rows, schema=table.schema, preserve_index=False))
        cell |= {"architecture": spec, "suite": cell["suite"] + ":" + PARQUET[0]}
        cell["axes"] = {**cell["axes"], PARQUET[0]: payload}
    for file in (folder / "telemetry").glob("*.parquet"):
        table = read_table(file)
        own = table.to_pandas()
        marks = own["kind"] == "mark"
        own.loc[marks, "phase"], own.loc[marks, "architecture"] = PARQUET[0], PARQUET[1]
        write_table(file, pa.Table.from_pandas(own, schema=table.schema, preserve_index=False))
    card = {"notes": PAYLOADS[0], "architecture": PAYLOADS[1], "losses": {"curve": CURVE}}
    told = {f"key{n}{text}": text for n, text in enumerate(PAYLOADS)}
    manifest |= {"run": PAYLOADS[3], "created": PAYLOADS[1], "machine": told | {"cpu_model": PAYLOADS[0]}}
    manifest |= {"text": {"source": PAYLOADS[1], "sha256": PAYLOADS[0], "bytes": 9, "label": PAYLOADS[2]}}
    manifest |= {"weights": {PAYLOADS[0]: card}, "suites": {PAYLOADS[1]: told}}
    manifest |= {"architectures": {spec: {"budget": 8} for spec in specs.values()}}
    (folder / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


CURVE = [{"step": n, "tokens": 1000 * n, "loss": 2.0 / n, "bits_per_byte": 3.0 / n} for n in (1, 2, 3)]


class Reader(HTMLParser):
    """Elements and attributes as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links += [value for name, value in attributes if name in ("href", "src")]
        self.ids += [value for name, value in attributes if name == "id"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("hostile")
    run = hostile(folder / "run")
    return run, build([run], folder / "deep" / "out")


def test_nothing_becomes_markup(drawn):
    text = drawn[1].read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.tags.isdisjoint({"script", "img", "iframe", "object", "embed", "b-", "form", "base", "a"})
    assert not [name for name in reader.attributes if name.startswith("on") or name in ("srcdoc", "src")]
    assert all(link.startswith(("#", "data:image/svg+xml")) for link in reader.links)
    assert len(reader.ids) == len(set(reader.ids)) and text.count("<style>") == text.count("</style>") == 1
    assert "&lt;script&gt;" in text  # the payloads are there, as text
    assert "\u202e" not in text and "\x1b" not in text and "\\u202e" in text


def test_files_stay_in_the_folder(drawn):
    _, page = drawn
    root = page.parents[2]
    assert {path.name for path in root.iterdir()} == {"run", "deep"}
    names = [path.name for path in (page.parent / "figures").iterdir()]
    assert names and all(name.replace("-", "").replace("_", "").replace(".", "").isalnum() for name in names)
    assert {path.name for path in page.parent.iterdir()} == {"figures", "index.html"}


def test_long_names_make_no_long_page(drawn):
    assert drawn[1].stat().st_size < 5e6


def test_the_terminal_gets_no_control_characters(drawn):
    told = markdown(load_run(drawn[0]))
    assert "\x1b" not in told and "\u202e" not in told
    assert printable("a\u202eb\n") == "a\\u202eb\n"


@pytest.mark.full
def test_nothing_runs_in_chromium(drawn, tmp_path):
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        if os.environ.get("KVMARK_REQUIRE_BROWSER") == "1":
            pytest.fail("no Chromium on this machine, and KVMARK_REQUIRE_BROWSER=1")
        pytest.skip("no Chromium on this machine: page not opened")
    from selenium import webdriver
    from selenium.common.exceptions import NoAlertPresentException
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path}")
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    try:
        driver.get(drawn[1].as_uri())
        with pytest.raises(NoAlertPresentException):
            driver.switch_to.alert.accept()
        driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert driver.execute_script("return window.hacked") is None
        bad = "return [...document.querySelectorAll('*')].filter(e => ['SCRIPT','IFRAME','IMG','A','OBJECT']"
        bad += ".includes(e.tagName.toUpperCase()) || [...e.attributes].some(a => a.name.startsWith('on')))"
        assert driver.execute_script(bad + ".map(e => e.outerHTML)") == []
        assert driver.execute_script("return document.querySelectorAll('figure svg').length") > 3
    finally:
        driver.quit()
