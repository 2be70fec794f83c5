"""The search that a command line asks for: its plan, its folder, its memory limit, its longest context."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .environment import source_hash
from .errors import UsageError
from .frontier import CEILING, FLOOR
from .frontier_memory import DEFAULT_SHARE, default_limit_bytes
from .frontier_search import NEW_TOKENS
from .machine_limits import available_memory_bytes
from .metrics import format_bytes, format_share
from .plan import Plan, Settings, digest
from .runner import Prepared, finished, prepare


@dataclass(frozen=True)
class Asked:
    prepared: Prepared
    folder: Path
    ceiling: int
    remarks: tuple[str, ...]


def asked(options: dict[str, Any]) -> Asked:
    """Look everything up.

    Raises SpecError, WeightsError, PretrainedError, UsageError or EnvironmentRefuses.
    """
    if not FLOOR <= options["max_context"] <= CEILING:
        raise UsageError(
            f"--max-context must be between {FLOOR} and {CEILING:,}, not {options['max_context']}."
        )
    names = {f.name for f in dataclasses.fields(Settings)} - {"batch"}
    given = {name: value for name, value in options.items() if name in names and value is not None}
    # One process per context and architecture, warmed up once: what fits twice in a row fits.
    settings = Settings(repeats=1, interleave=False, **given)
    suite = f"decode:batches={_batches(options['batch'])},new_tokens={NEW_TOKENS}"
    plan = Plan("frontier", tuple(options["arch"]), (suite,), settings)
    asked_for = digest(dataclasses.asdict(plan), source_hash())[:8]
    folder = options["out"] or Path("results") / "local" / f"{plan.name}-{asked_for}"
    remarks: list[str] = []
    if settings.device == "cpu":
        limit, remark = _cpu_limit(settings.memory_limit_bytes, folder)
        remarks.append(remark)
        plan = dataclasses.replace(plan, settings=dataclasses.replace(settings, memory_limit_bytes=limit))
    prepared = prepare(plan, options["commit"])
    # Of the contexts that the suite has by default, none of which is planned here.
    own = tuple(line for line in prepared.remarks if not line.startswith(f"{prepared.plan.suites[0]} goes"))
    ceiling, remark = _ceiling(prepared, options["max_context"])
    remarks += [*own, *([remark] if remark else [])]
    return Asked(dataclasses.replace(prepared, remarks=own), folder, ceiling, tuple(remarks))


def forget_failed(folder: Path) -> None:
    """Probes that crashed or timed out count as not measured."""
    keys = [path.stem for path in (folder / "cells").glob("*.parquet")]
    for key, status in finished(folder, keys).items():
        if status in ("crash", "timeout"):
            (folder / "cells" / f"{key}.parquet").unlink(missing_ok=True)


def _batches(text: str) -> str:
    try:
        batches = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--batch is one whole number or several, as in 1,4, not '{text}'.") from None
    return "+".join(map(str, batches))


def _cpu_limit(given: int | None, folder: Path) -> tuple[int, str]:
    """The limit and where it is from: the command, the search that lies in the folder, or the machine."""
    available = available_memory_bytes()
    beyond = "" if available is None else f"; {format_bytes(available)} are available"
    if given is not None:
        return given, f"Memory limit {format_bytes(given)}{beyond}."
    if (earlier := _earlier_limit(folder)) is not None:
        if available is not None and earlier > available:
            raise UsageError(
                f"{folder} was searched with a limit of {format_bytes(earlier)}, and "
                f"{format_bytes(available)} are available now; give --memory-limit-bytes and another --out."
            )
        return earlier, f"Memory limit {format_bytes(earlier)}, as in {folder}{beyond}."
    limit = default_limit_bytes()
    share = f"{format_share(DEFAULT_SHARE)} of what is available; --memory-limit-bytes sets another"
    return limit, f"Memory limit {format_bytes(limit)}: {share}."


def _earlier_limit(folder: Path) -> int | None:
    try:
        manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return int(manifest["plan"]["settings"]["memory_limit_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ceiling(prepared: Prepared, max_context: int) -> tuple[int, str | None]:
    """The longest context to probe, and a remark where a checkpoint's positions end before the asked one."""
    opened = prepared.opened
    length = opened and opened.pretrained.context_length
    if not opened or length is None or length - NEW_TOKENS >= max_context:
        return max_context, None
    if length - NEW_TOKENS < FLOOR:
        raise UsageError(
            f"{opened.pretrained.name} was made for {length} tokens, which is too few to search."
        )
    most = length - NEW_TOKENS
    return most, (
        f"{opened.pretrained.name} was trained for {length:,} tokens: contexts end at {most:,}, "
        f"{NEW_TOKENS} steps follow."
    )
