"""MEASURING.md shows what the commands print for the committed records, and what doctor asks."""

from __future__ import annotations

import os
import re

from measuring import DOCUMENT, MARKED, filled

TEXT = DOCUMENT.read_text(encoding="utf-8")


def test_every_output_is_that_of_the_committed_records(monkeypatch):
    monkeypatch.chdir(DOCUMENT.parent)
    assert filled(TEXT) == TEXT
    assert all(between.strip() for _, _, _, between, _ in MARKED.findall(TEXT))


def test_doctor_asks_what_the_document_shows():
    from harness.doctor import checks

    shown = next(between for _, name, _, between, _ in MARKED.findall(TEXT) if name == "doctor")
    lines = re.findall(r"^(ok|warn|fail) +([\w ]+): .+[.]$", shown, re.MULTILINE)
    assert len(lines) == len(shown.strip().splitlines()) - 2  # the fence
    here = [check.name for check in checks()]
    told = [name for _, name in lines]
    assert [name for name in told if name in here] == [name for name in here if name in told]
    assert set(told) <= set(here) or os.path.exists("/dev/nvidia0")  # a driver is asked more
