"""One answer of the doctor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """`detail` is one sentence; unless the status is ok it says what to do."""

    name: str
    status: str  # "ok" | "warn" | "fail"
    detail: str
