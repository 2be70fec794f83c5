"""A comparison for machines and for pull requests: JSON, Markdown, JUnit XML.

Names come from users' files and from Parquet: they are text everywhere, and never markup.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any
from xml.etree import ElementTree

from .findings import REGRESSIONS, UNJUDGED, Comparison, Finding, Side
from .lines import COLUMNS, NAMES, folded, headline, how, rows

JSON_SCHEMA = 1
#: Most rows of a Markdown table: GitHub refuses comments beyond 65,536 characters.
MOST_ROWS = 100
_MARKDOWN = re.compile(r"[\\`*_{}\[\]()#+!|<>&~$:\"']")
#: What XML 1.0 cannot hold, whatever its escapes: control characters, halves of pairs.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(comparison: Comparison) -> str:
    """Everything, every finding included; numbers that are unknown are null. Ends with a newline."""
    rules = {
        name: value
        for name, value in dataclasses.asdict(comparison.rules).items()
        if name not in ("calibration", "allow_different", "anyway")
    }
    data = {
        "schema": JSON_SCHEMA,
        "outcome": NAMES[comparison.exit_code],
        "exit_code": comparison.exit_code,
        "base": _side(comparison.base),
        "head": _side(comparison.head),
        "rules": rules | {"calibrated": comparison.rules.calibration is not None},
        "refusals": comparison.refusals,
        "allowed": comparison.allowed,
        "notes": comparison.notes,
        "counts": comparison.counts,
        "findings": [_finding(found) for found in comparison.findings],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _side(side: Side) -> dict[str, Any]:
    return dataclasses.asdict(side) | {"machine": side.machine.get("id")}


def _finding(found: Finding) -> dict[str, Any]:
    known = dataclasses.asdict(found) | {"axes": json.loads(found.axes), "fails": found.fails}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in known.items()
    }


def as_markdown(comparison: Comparison) -> str:
    """A comment for a pull request: the outcome, a table of what is not SAME, the rest as counts."""
    sides = f"base {_plain(comparison.base.label)}, head {_plain(comparison.head.label)}"
    parts = [f"**kvmark: {_plain(headline(comparison))}**", sides]
    table = rows(comparison)
    if table:
        shown = [COLUMNS, ["---"] * len(COLUMNS), *(map(_plain, row) for row in table[:MOST_ROWS])]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in shown))
    if len(table) > MOST_ROWS:
        parts.append(f"{len(table) - MOST_ROWS} further rows are in the JSON file.")
    allowed = [f"Allowed to differ: {told}." for told in comparison.allowed]
    parts += [_plain(line) for line in (*folded(comparison), *allowed, *comparison.notes)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """One line of text in which nothing is markup, a link or a mention of somebody."""
    line = " ".join(_NOT_XML.sub("\ufffd", text).split())
    return _MARKDOWN.sub(lambda found: f"&#{ord(found[0])};", line).replace("@", "&#64;<!-- -->")


def as_junit(comparison: Comparison) -> str:
    """A test case per finding: regressions fail, the unjudged are errors, AMBIGUOUS is skipped."""
    cases = [_case(found) for found in comparison.findings]
    if comparison.refusals:
        case = ElementTree.Element("testcase", classname="kvmark", name="fingerprint")
        ElementTree.SubElement(case, "error", message=_xml(headline(comparison)))
        cases.append(case)
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    told = {name: str(value) for name, value in counts.items()}
    suite = ElementTree.Element("testsuite", name="kvmark compare", **told)
    suite.extend(cases)
    root = ElementTree.Element("testsuites", **told)
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(found: Finding) -> ElementTree.Element:
    name = f"{found.suite} [{found.place}] {found.metric or 'cell'}"
    case = ElementTree.Element("testcase", classname=_xml(found.architecture), name=_xml(name))
    tag = {"AMBIGUOUS": "skipped"} | dict.fromkeys(REGRESSIONS, "failure") | dict.fromkeys(UNJUDGED, "error")
    if found.verdict in tag:
        change = "" if found.effect is None else f" {found.effect:+.6g}"
        message = f"{found.verdict}{change}: {how(found)}"
        ElementTree.SubElement(case, tag[found.verdict], message=_xml(message))
    return case


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
