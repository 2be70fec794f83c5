"""Quality: the same cases on both sides, in pairs.

    scores of 0 and 1    McNemar's exact test on the cases that changed; Newcombe's interval
    other numbers        Student's t over the paired differences
    nats                 bits per byte, Σ / Σ over the texts, jackknifed in pairs
    no cases stored      (lm-eval) two proportions with their standard errors, as if unpaired: too careful

Depths are pooled as in the report; queries of one prompt are one case, since they share its cache. A score is
BETTER or WORSE if p is small after Holm over all scores and the difference exceeds the threshold. Two runs
of the same code score exactly alike as a rule, and with few cases that is the only way to be SAME.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ..metrics import metric as entry
from ..statistics import NO_INTERVAL, Z95, normal_p, student
from ..validity import NOT_FINITE
from .findings import Finding
from .pairs import mcnemar_p, newcombe, paired_p
from .permutation import holm
from .rules import Rules
from .runs import Measured, Point, without

#: What is counted of a case, and the ratio that it becomes; other views of the same nats say nothing new.
RATIOS = {"nll_nats": ("num_bytes", "bits_per_byte"), "gold_nll_nats": ("gold_bytes", "gold_bits_per_byte")}
VIEWS_OF_NLL = ("bits_per_byte", "token_ppl", "word_ppl", "block_nll_nats", "bucket_nll_nats")
#: What suites score in. Seconds and bytes of a continuation that was scored stand in the same phase.
UNITS = ("share", "nats", "bits/byte", "ppl")
QUERY = re.compile(r"/query=\d+$")
Place = tuple[str, str, str, str]  # architecture, suite, axes without depth, metric


@dataclass(frozen=True)
class Difference:
    """head - base with its 95 % interval and p; `test` says how. NaN ends and p 1: too few cases."""

    base: float
    head: float
    low: float
    high: float
    p: float
    num: int
    test: str
    alike: bool
    invalid: str = ""  # why some of the scores mean nothing


def scores(base: Measured, head: Measured, points: Sequence[Point], rules: Rules) -> Iterator[Finding]:
    """A finding per architecture, suite, pool of depths and score of base."""
    pairs: list[tuple[Finding, Difference]] = []
    theirs = _pools(head, points)
    for place, all_own in _pools(base, points).items():
        all_other = theirs.get(place, all_own.iloc[:0])
        own, other = (side[np.isfinite(side["value"])] for side in (all_own, all_other))
        kept, invalid = own.index.intersection(other.index, sort=False), _why(all_own, all_other)
        if gone := len(own) - len(kept):
            message = f"{gone} of {len(own)} cases have no score in head"
            yield _missing(place, message, len(own), len(kept))
        elif own.empty:
            yield Finding(*place, "quality", "INVALID", message=invalid)
        else:
            values = [name for name in own if name != "invalid"]
            found = replace(difference(own[values], other.loc[kept, values]), invalid=invalid)
            pairs.append((_described(place, found, rules), found))
    for place, found in _of_cells(base, head, points):
        if found is None:
            yield _missing(place, "scored in base, not in head", 1, 0)
        else:
            pairs.append((_described(place, found, rules), found))
    for (told, found), p in zip(pairs, holm([found.p for _, found in pairs]), strict=True):
        better = entry(told.metric).better or "high"
        said = verdict(found, p, better, told.threshold or 0.0, rules.alpha)
        if found.invalid and said != "WORSE":
            told, said = replace(told, message=found.invalid), "INVALID"
        yield replace(told, p=p, verdict=said)


def _why(base: pd.DataFrame, head: pd.DataFrame) -> str:
    """How many scores mean nothing, and why; empty if all mean something."""
    wrong = [side["invalid"][side["invalid"] != ""] for side in (base, head)]
    reasons = "; ".join(dict.fromkeys(reason for side in wrong for reason in side))
    counts = [
        f"{len(bad)} of {len(side)} in {name}"
        for bad, side, name in zip(wrong, (base, head), ("base", "head"), strict=True)
    ]
    return f"invalid: {', '.join(counts)} ({reasons})" if reasons else ""


def _missing(place: Place, message: str, num_base: int, num_head: int) -> Finding:
    return Finding(*place, "quality", "MISSING", message=message, num_base=num_base, num_head=num_head)


def _pools(measured: Measured, points: Sequence[Point]) -> dict[Place, pd.DataFrame]:
    """Cases of each pool: columns value, where a ratio is made of them count, and invalid (why, or "").

    A value that is NaN since logits were not finite is among them; one that nobody scored is not.
    """
    wanted = set(points)
    pool = {
        number: (point[0], point[1], without(point[2], "depth"))
        for number, point in enumerate(measured.points)
        if point in wanted
    }
    rows = measured.ok[measured.ok["phase"] == "score"]
    rows = rows[rows["point"].isin(pool) & rows["case"].notna() & rows["bin"].isna() & rows["layer"].isna()]
    broken = rows["message"].str.contains(NOT_FINITE, regex=False, na=False) & ~np.isfinite(rows["value"])
    rows = rows[np.isfinite(rows["value"]) | broken]
    rows = rows.drop_duplicates(["point", "metric", "case"])  # replicates score the same cases again
    keys = pd.MultiIndex.from_frame(rows[["point", "case"]])
    values = {name: pd.Series(own["value"].to_numpy(), keys[rows["metric"] == name])
              for name, own in rows.groupby("metric")}  # fmt: skip
    told = rows["validity_reasons"].fillna("invalid").where(rows["validity"] == "invalid", "")
    told = told.mask(~np.isfinite(rows["value"]), "not_finite")
    wrong = {name: pd.Series(own.to_numpy(), keys[rows["metric"] == name])
             for name, own in told.groupby(rows["metric"])}  # fmt: skip
    views = VIEWS_OF_NLL if "nll_nats" in values else ()
    found: dict[Place, pd.DataFrame] = {}
    for name, value in values.items():
        if not _judged(name) or name in views:
            continue
        counted, ratio = RATIOS.get(name, ("", name))
        cases = value.rename("value").reset_index()
        if counted in values:
            cases["count"] = values[counted].reindex(value.index).to_numpy()
        cases["invalid"] = wrong[name].to_numpy()
        cases["trial"] = cases["case"].str.replace(QUERY, "", regex=True)
        for place, mine in cases.groupby(cases["point"].map(pool), sort=False):
            trials = mine.groupby(["point", "trial"], sort=False)
            whole = trials.mean(numeric_only=True)
            ratios = "count" in whole and whole["count"].notna().all()
            whole = (whole if ratios else whole[["value"]]).assign(invalid=trials["invalid"].max())
            whole.index = pd.Index([f"{measured.points[number][2]} {trial}" for number, trial in whole.index])
            found[*place, ratio if ratios else name] = whole
    return found


def _judged(name: str) -> bool:
    return entry(name).better is not None and entry(name).unit in UNITS


def difference(base: pd.DataFrame, head: pd.DataFrame) -> Difference:
    """Of paired cases: columns value, and count where the number is Σ value / Σ count (bits per byte)."""
    one, other = base.to_numpy(float), head.to_numpy(float)
    n, alike = len(one), bool((one == other).all())
    if one.shape[1] == 2:
        columns = np.concatenate([one, other], axis=1)
        interval = student(columns, lambda sums: _bits(sums[2:]) - _bits(sums[:2]))
        before, after = _bits(one.sum(0)), _bits(other.sum(0))
        test = f"Student's t, jackknifed over {n} texts"
    elif np.isin([one, other], [0.0, 1.0]).all():
        both, lost, won = ((one == 1) & (other == 1)).sum(), (one > other).sum(), (one < other).sum()
        test = f"McNemar's exact test, {lost} lost and {won} won of {n} cases"
        ends = newcombe(int(both), int(lost), int(won), n)
        return Difference(one.mean(), other.mean(), *ends, mcnemar_p(int(lost), int(won)), n, test, alike)
    else:
        columns = np.concatenate([one, other, np.ones_like(one)], axis=1)
        interval = student(columns, lambda sums: (sums[1] - sums[0]) / sums[2])
        before, after = one.mean(), other.mean()
        test = f"Student's t over {n} cases in pairs"
    p = paired_p(after - before, interval, n)
    return Difference(before, after, *interval, p, n, test, alike)


def _bits(sums: np.ndarray) -> np.ndarray:
    return sums[0] / sums[1] / math.log(2)


def _of_cells(
    base: Measured, head: Measured, points: Sequence[Point]
) -> Iterator[tuple[Place, Difference | None]]:
    """Scores of whole cells, with standard errors where the suite gives them. None: not in head."""
    ours, theirs = _cell_scores(base), _cell_scores(head)
    wanted = set(points)
    for (point, name), (value, error, wrong) in ours.items():
        if point not in wanted or not _judged(name):
            continue
        if (point, name) not in theirs:
            yield (*point, name), None
            continue
        after, its_error, its_wrong = theirs[point, name]
        spread = math.hypot(error, its_error)
        half = Z95 * spread
        p = normal_p((after - value) / spread) if spread > 0 else 1.0
        test = "normal, unpaired: no cases are stored" if spread > 0 else "no cases are stored"
        ends = (after - value - half, after - value + half) if spread > 0 else NO_INTERVAL
        invalid = _why(*(pd.DataFrame({"invalid": [why]}) for why in (wrong, its_wrong)))
        yield (*point, name), Difference(value, after, *ends, p, 1, test, value == after, invalid)


def _cell_scores(measured: Measured) -> dict[tuple[Point, str], tuple[float, float, str]]:
    """(point, metric) -> value, standard error (NaN: none) and why it is invalid ("" if it is not), of what a
    suite scores without cases."""
    found: dict[tuple[Point, str], float] = {}
    wrong: dict[tuple[Point, str], str] = {}
    for name, rows in measured.by_metric.items():
        if entry(name).unit not in UNITS:
            continue
        own = rows[(rows["phase"] == "score") & np.isfinite(rows["value"])]
        for number, value in own.groupby("point")["value"].first().items():
            found[measured.points[number], name] = float(value)
        bad = own[own["validity"] == "invalid"].drop_duplicates("point")
        for number, reason in zip(bad["point"], bad["validity_reasons"].fillna("invalid"), strict=True):
            wrong[measured.points[number], name] = reason
    return {
        (point, name): (value, found.get((point, f"{name}_stderr"), math.nan), wrong.get((point, name), ""))
        for (point, name), value in found.items()
    }


def _described(place: Place, found: Difference, rules: Rules) -> Finding:
    share = entry(place[3]).unit == "share"
    ends = (None, None) if math.isnan(found.low) else (found.low, found.high)
    return Finding(
        *place,
        "quality",
        "SAME",
        base=found.base,
        head=found.head,
        effect=found.head - found.base,
        low=ends[0],
        high=ends[1],
        threshold=rules.quality_threshold * (1 if share else abs(found.base)),
        num_base=found.num,
        num_head=found.num,
        message="every case alike" if found.alike else f"{found.test}, Holm",
    )


def verdict(found: Difference, p: float, better: str, threshold: float, alpha: float) -> str:
    """BETTER | SAME | WORSE | AMBIGUOUS, with `p` after Holm."""
    if found.alike:
        return "SAME"
    change = found.head - found.base
    if p <= alpha and abs(change) > threshold:
        return "BETTER" if (change > 0) == (better == "high") else "WORSE"
    return "SAME" if -threshold <= found.low and found.high <= threshold else "AMBIGUOUS"
