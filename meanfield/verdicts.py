"""How a statement is judged on a run: a measured number, a bound, their errors, and one of four verdicts.

`holds` and `violated` need the whole interval of uncertainty on one side, else the verdict is `inconclusive`; a
statement whose hypothesis is not met is `not applicable`. Read next: `certificates` and `statements`, which use it.
"""

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


@dataclass(frozen=True)
class Verdict:
    """What one statement says on one run.

    `margin` is bound - measured (or measured - bound for a lower bound) where it is smallest, at `time`; positive is
    good, and it is what the verdict was made from, errors included.
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
        head = ("statement", "verdict", "measured", "bound", "margin", "time")
        rows = [
            (v.statement, v.verdict, *(_number(x) for x in (v.measured, v.bound, v.margin, v.time)))
            for v in self.verdicts
        ]
        widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]

        def line(cells: Sequence[str]) -> str:
            padded = [c.ljust(w) for c, w in zip(cells[:2], widths[:2], strict=True)]
            padded += [c.rjust(w) for c, w in zip(cells[2:], widths[2:], strict=True)]
            return "  ".join(padded)

        out = [line(head), "  ".join("-" * w for w in widths)]
        for v, row in zip(self.verdicts, rows, strict=True):
            out.append(line(row).rstrip())
            out.append(f"    {v.description}" + (f"; {v.note}" if v.note else ""))
        return "\n".join(out)

    def __repr__(self) -> str:
        """Return the table."""
        return self.table()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


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
    """Return the verdict on measured <= bound (>= if `lower`) at all times, with a safe error on the difference."""
    measured, bound, times = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (measured, bound, times))
    error = np.broadcast_to(np.nan_to_num(np.asarray(error, dtype=np.float64), posinf=0.0), measured.shape)
    gap = measured - bound if lower else bound - measured
    usable = ~np.isnan(gap)
    # At the start both sides are often equal by definition, which says nothing where later times do.
    trivial = (times == 0) & (measured == bound)
    usable = usable & ~trivial if (usable & ~trivial).any() else usable
    if not usable.any():
        return Verdict(statement, description, NOT_APPLICABLE, note=note or "nothing to judge was recorded")
    # Rounding is no violation where both sides agree to the last digits.
    slack = 1e-9 * (np.abs(measured) + np.abs(bound))
    slack = np.where(np.isfinite(slack), slack, 0.0)
    worst = int(np.nanargmin(np.where(usable, gap - error, np.inf)))
    certain, possible = gap - error >= -slack, gap + error >= -slack
    verdict = HOLDS if certain[usable].all() else INCONCLUSIVE
    if not possible[usable].all():
        verdict = VIOLATED
        worst = int(np.nanargmin(np.where(usable, gap + error, np.inf)))
    side = gap[worst] + error[worst] if verdict == VIOLATED else gap[worst] - error[worst]
    numbers = (float(v[worst]) for v in (measured, bound))
    return Verdict(statement, description, verdict, *numbers, float(side), float(times[worst]), note)


def surprise(
    statement: str, description: str, score: Array, times: Array, limits: tuple[float, float], note: str = ""
) -> Verdict:
    """Return the verdict on a statistic that should be small: two limits part holds, inconclusive, violated."""
    score, times = np.atleast_1d(score), np.atleast_1d(times)
    worst = int(np.nanargmax(score))
    value = float(score[worst])
    verdict = HOLDS if value <= limits[0] else INCONCLUSIVE if value <= limits[1] else VIOLATED
    return Verdict(statement, description, verdict, value, limits[1], limits[1] - value, float(times[worst]), note)


def normal_limits() -> tuple[float, float]:
    """Return the two limits on the size of a standard normal: once in a thousand and in a million runs."""
    from scipy.special import ndtri

    return float(-ndtri(DOUBT / 2)), float(-ndtri(SURPRISE / 2))


def replicate_mean(data: Any, name: str) -> tuple[Array, Array]:
    """Return the mean over replicates and c standard errors of it."""
    values = data[name].values
    count = len(values)
    if count < 2:
        return values.mean(0), np.zeros(values.shape[1:])
    return values.mean(0), student_factor(count) * values.std(0, ddof=1) / math.sqrt(count)


def missing_variable(data: Any, statement: str, description: str, *names: str) -> Verdict | None:
    """Return a verdict of not applicable if a variable was not recorded, else None."""
    absent = [name for name in names if name not in data]
    if absent:
        note = f"{', '.join(absent)} not recorded (metadata.json says why)"
        return Verdict(statement, description, NOT_APPLICABLE, note=note)
    return None
