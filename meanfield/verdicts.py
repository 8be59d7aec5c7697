"""How a statement is judged on a run: a measured number, a bound, their errors, and one of four verdicts.

`holds` and `violated` need the whole interval of uncertainty on one side, else the verdict is `inconclusive`; a
statement whose hypothesis is not met is `not applicable`. Read next: `certificates` and `statements`, which use it.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from meanfield.estimate import student_factor

Array = np.ndarray
HOLDS, VIOLATED, INCONCLUSIVE, NOT_APPLICABLE = "holds", "violated", "inconclusive", "not applicable"
# A check of the program itself is violated where chance would explain it once in a million runs.
SURPRISE, DOUBT = 1e-6, 1e-3
# How many safe errors a measured statement must fail by to be called violated.
BEYOND = 2.0


@dataclass(frozen=True)
class Verdict:
    """What one statement says on one run.

    `margin` is bound - measured (or measured - bound for a lower bound) where it is smallest, at `time`; positive is
    good, and it is what the verdict was made from: errors are taken off, but added where it says violated.
    """

    statement: str
    description: str
    verdict: str
    measured: float | None = None
    bound: float | None = None
    margin: float | None = None
    time: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """All verdicts on a run."""

    verdicts: tuple[Verdict, ...]

    @property
    def violated(self) -> list[Verdict]:
        """The verdicts that say violated."""
        return [v for v in self.verdicts if v.verdict == VIOLATED]

    def records(self) -> list[dict[str, Any]]:
        """Return the verdicts as plain dictionaries."""
        return [asdict(v) for v in self.verdicts]

    def table(self) -> str:
        """Return the verdicts as a table of text."""
        rows = [
            (v.statement, v.verdict, *(number(x) for x in (v.measured, v.bound, v.margin, v.time)))
            for v in self.verdicts
        ]
        lines = table(("statement", "verdict", "measured", "bound", "margin", "time"), rows, left=(0, 1))
        out = lines[:2]
        for v, line in zip(self.verdicts, lines[2:], strict=True):
            out += [line, f"    {v.description}" + (f"; {v.note}" if v.note else "")]
        return "\n".join(out)

    def __repr__(self) -> str:
        """Return the table."""
        return self.table()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.table())}</pre>"


def number(value: float | None) -> str:
    """Return a number with four digits, or nothing for None."""
    return "" if value is None else f"{value:.4g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Return the lines of a table: head, rule, rows; the columns `left` are flush left, the others right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(padded).rstrip()

    return [line(head), "  ".join("-" * w for w in widths), *map(line, rows)]


def judge(
    statement: str,
    description: str,
    measured: Array,
    bound: Array,
    error: Array,
    times: Array,
    *,
    lower: bool = False,
    note: str = "",
) -> Verdict:
    """Return the verdict on measured <= bound (>= if `lower`) at all times, with a safe error on the difference.

    It holds if it does with the error against it at every time, and is violated if it fails by more than `BEYOND` times
    the error at some: many correlated times are looked at, and one error is exceeded by chance too often. An infinite
    error (that of a single replicate) leaves the statement inconclusive; NaN is not judged.
    """
    measured, bound, error = _columns(times, measured, bound, error)
    gap = measured - bound if lower else bound - measured
    return decide(statement, description, measured, bound, times, gap, gap - error, gap + BEYOND * error, note)


def brackets(
    statement: str, description: str, lower: Array, upper: Array, error: Array, times: Array, note: str = ""
) -> Verdict:
    """Return the verdict on whether two measured bounds leave room: lower <= upper.

    Tight bounds cross by chance, so the statement holds if they cross by no more than their errors together, and is
    violated if they do by more than twice that.
    """
    lower, upper, error = _columns(times, lower, upper, error)
    gap = upper - lower
    sure = np.where(np.isinf(error), -np.inf, gap + error)
    return decide(statement, description, lower, upper, times, gap, sure, gap + BEYOND * error, note)


def decide(
    statement: str,
    description: str,
    measured: Array,
    bound: Array,
    times: Array,
    gap: Array,
    sure: Array,
    possible: Array,
    note: str = "",
) -> Verdict:
    """Return the verdict from the room at each time: as measured (`gap`), at least (`sure`), at most (`possible`).

    It holds if there is room for sure at all times, and is violated if at some time there is none whatever the errors.
    """
    measured, bound, gap, sure, possible = _columns(times, measured, bound, gap, sure, possible)
    usable = ~(np.isnan(measured) | np.isnan(bound) | np.isnan(possible))
    if not usable.any():
        return Verdict(statement, description, NOT_APPLICABLE, note=note or "nothing to judge was recorded")
    # Rounding is no violation where both sides agree to the last digits.
    slack = 1e-9 * (np.abs(measured) + np.abs(bound))
    slack = np.where(np.isfinite(slack), slack, 0.0)
    verdict, room = HOLDS, sure
    if not (sure >= -slack)[usable].all():
        verdict = INCONCLUSIVE
        if np.isneginf(sure[usable]).any():
            room, note = gap, note or "no standard error is known: take more replicates"
    if not (possible >= -slack)[usable].all():
        verdict, room = VIOLATED, possible
    worst = int(np.argmin(np.where(usable, room, np.inf)))
    at = np.atleast_1d(np.asarray(times, dtype=np.float64))[worst]
    numbers = float(measured[worst]), float(bound[worst]), float(room[worst]), float(at)
    return Verdict(statement, description, verdict, *numbers, note=note)


def _columns(times: Array, *values: Array) -> tuple[Array, ...]:
    shape = np.atleast_1d(times).shape
    return tuple(np.broadcast_to(np.asarray(v, dtype=np.float64), shape) for v in values)


def surprise(
    statement: str, description: str, score: Array, times: Array, limits: tuple[float, float], note: str = ""
) -> Verdict:
    """Return the verdict on a statistic that should be small: two limits part holds, inconclusive, violated."""
    score, times = np.atleast_1d(score), np.atleast_1d(times)
    if np.isnan(score).all():
        return Verdict(statement, description, NOT_APPLICABLE, note=note or "nothing to judge was recorded")
    worst = int(np.nanargmax(score))
    value = float(score[worst])
    verdict = HOLDS if value <= limits[0] else INCONCLUSIVE if value <= limits[1] else VIOLATED
    return Verdict(statement, description, verdict, value, limits[1], limits[1] - value, float(times[worst]), note)


def normal_limits() -> tuple[float, float]:
    """Return the two limits on the size of a standard normal: once in a thousand and in a million runs."""
    from scipy.special import ndtri

    return float(-ndtri(DOUBT / 2)), float(-ndtri(SURPRISE / 2))


def replicate_mean(data: Any, name: str) -> tuple[Array, Array]:
    """Return the mean over replicates and c standard errors of it, infinite for a single replicate.

    An infinite mean is a bound that says nothing, about which there is no doubt: its error is 0.
    """
    values = data[name].values
    count = len(values)
    if count < 2:
        return values.mean(0), np.full(values.shape[1:], np.inf)
    known = np.isfinite(values).all(0)
    spread = np.where(known, values, 0.0).std(0, ddof=1)
    return values.mean(0), np.where(known, student_factor(count) * spread / math.sqrt(count), 0.0)


def safe_error(data: Any, *names: str) -> Array:
    """Return c standard errors of several bounds, added up; infinite where an error is not known (0 if a bound is)."""
    factor = student_factor(int(data.sizes["replicate"]))
    total = np.zeros(data.sizes["bound_time"])
    for name in names:
        se = data[f"{name}_se"].values
        known = ~np.isnan(se) if math.isfinite(factor) else se == 0
        margin = np.where(known, min(factor, 1e9) * np.nan_to_num(se), np.inf)
        total = total + np.where(np.isinf(data[name].values), 0.0, margin)
    return total


def missing_variable(data: Any, statement: str, description: str, *names: str) -> Verdict | None:
    """Return a verdict of not applicable if a variable was not recorded, else None."""
    absent = [name for name in names if name not in data]
    if absent:
        note = f"{', '.join(absent)} not recorded (not asked for, or metadata.json says why)"
        return Verdict(statement, description, NOT_APPLICABLE, note=note)
    return None
