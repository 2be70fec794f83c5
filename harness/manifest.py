"""`run.json`: the plan, the machine and every input of a run, on the disk before its first cell."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ceilings import ceilings_of, is_whole
from .errors import UsageError
from .loading import told
from .store import SCHEMA_VERSION, write_atomic

if TYPE_CHECKING:
    from .pretrained import Opened
    from .runner import Prepared

#: Settings that say where something lies, not what it is. Weights count by what is in them.
SPELLING = ("model", "tokenizer", "allow_pickle", "weights")


def write_manifest(prepared: Prepared, out: Path, ceilings: bool = True) -> dict[str, Any]:
    """Write `run.json`, or check that the one that is there is of the same plan.

    `ceilings` False: those of this machine are not measured for it.
    """
    path = out / "run.json"
    plan = json.loads(json.dumps(dataclasses.asdict(prepared.plan)))
    if plan["settings"]["weights"]:  # where they lie is of this machine; what they are is in the cards
        plan["settings"]["weights"] = Path(plan["settings"]["weights"]).name
    created, nodes = datetime.now(UTC).isoformat(timespec="seconds"), {}
    before: Any = None
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            same, created, name = _same_plan(old, plan, prepared.opened), old["created"], old["run"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{path} is not a readable run manifest; choose another --out.") from None
        if not same:
            raise UsageError(f"{out} holds another plan ('{name}'); choose another --out.")
        nodes, before = old.get("machines", {}), old.get("machine")
    text = prepared.text
    manifest = {
        "schema": SCHEMA_VERSION,
        "run": out.name,
        "created": created,
        "plan": plan,
        "cells": [vars(cell) for cell in prepared.cells],
        "machine": prepared.machine | _ceilings(prepared, before, ceilings),
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
    if nodes:
        manifest["machines"] = nodes
    if prepared.opened is not None:
        notes = manifest["weights"][prepared.opened.pretrained.name]
        notes["notes"] = " ".join([notes["notes"], *prepared.remarks])
    write_atomic(path, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def add_machine(out: Path, card: dict[str, Any]) -> None:
    """Note a machine that measured for this run: rows name it by its id, and may name several.

    "machine" stays the one that made the plan. Raises OSError.
    """
    path = out / "run.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["machines"] = manifest.get("machines", {}) | {card["id"]: card}
    write_atomic(path, (json.dumps(manifest, indent=1) + "\n").encode())


def _ceilings(prepared: Prepared, before: Any, wanted: bool) -> dict[str, Any]:
    """What the machine card says of its ceilings. Those of an earlier session stay: one run, one roof."""
    machine = prepared.machine
    if isinstance(before, dict) and is_whole(kept := before.get("ceilings")):
        names = ("id", "device", "threads", "packages")  # the dtype is of the plan, which is the same
        if all(before.get(name) == machine[name] for name in names):
            return {"ceilings": kept, "ceilings_note": before.get("ceilings_note")}
    if not wanted:
        return {"ceilings": None, "ceilings_note": "Not measured: --no-ceilings."}
    found, note = ceilings_of(machine, prepared.plan.settings.dtype)
    return {"ceilings": found, "ceilings_note": note}


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
