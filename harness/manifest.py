"""`run.json`: the plan, the machine and every input of a run, on the disk before its first cell."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .loading import told
from .store import SCHEMA_VERSION, write_atomic

if TYPE_CHECKING:
    from .pretrained import Opened
    from .runner import Prepared

#: Settings that say where something lies, not what it is. Weights count by what is in them.
SPELLING = ("model", "tokenizer", "allow_pickle", "weights")


def write_manifest(prepared: Prepared, out: Path) -> dict[str, Any]:
    """Write `run.json`, or check that the one that is there is of the same plan."""
    path = out / "run.json"
    plan = json.loads(json.dumps(dataclasses.asdict(prepared.plan)))
    if plan["settings"]["weights"]:  # where they lie is of this machine; what they are is in the cards
        plan["settings"]["weights"] = Path(plan["settings"]["weights"]).name
    created = datetime.now(UTC).isoformat(timespec="seconds")
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            same, created, name = _same_plan(old, plan, prepared.opened), old["created"], old["run"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{path} is not a readable run manifest; choose another --out.") from None
        if not same:
            raise UsageError(f"{out} holds another plan ('{name}'); choose another --out.")
    text = prepared.text
    manifest = {
        "schema": SCHEMA_VERSION,
        "run": out.name,
        "created": created,
        "plan": plan,
        "cells": [vars(cell) for cell in prepared.cells],
        "machine": prepared.machine,
        "text": text
        and {
            "kind": text.kind,
            "source": text.source,
            "label": text.label,
            "sha256": text.sha256,
            "documents": len(text.documents),
        },
        "model": prepared.opened and prepared.opened.card(),
        "suites": prepared.notes,
        "architectures": {
            # Of a file that is not ours (null: the sources' hash has it), and a budget in tokens.
            spec: {"sha256": prepared.architectures[spec], "budget": found.budget}
            for spec, found in prepared.weights.items()
        },
        "weights": {
            name: told(card) for found in prepared.weights.values() for name, card in found.cards.items()
        },
    }
    if prepared.opened is not None:
        notes = manifest["weights"][prepared.opened.pretrained.name]
        notes["notes"] = " ".join([notes["notes"], *prepared.remarks])
    write_atomic(path, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def _same_plan(old: dict[str, Any], plan: dict[str, Any], opened: Opened | None) -> bool:
    """Whether a manifest is of this plan. A checkpoint may be spelled in another way if it is the same."""

    def without(plan: dict[str, Any], *keys: str) -> dict[str, Any]:
        return plan | {"settings": {k: v for k, v in plan["settings"].items() if k not in keys}}

    if without(old["plan"], "timeout_s", "weights") == without(plan, "timeout_s", "weights"):
        return True  # what lies there may have changed: then its cells have other keys
    before, now = old.get("model"), opened and opened.card()
    if not before or not now:
        return False
    if any(before[k] != now[k] for k in ("name", "fingerprint", "tokenizer")):
        return False
    return without(old["plan"], "timeout_s", *SPELLING) == without(plan, "timeout_s", *SPELLING)
