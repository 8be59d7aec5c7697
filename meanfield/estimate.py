"""A number with its uncertainty, and how the best of several bounds is chosen.

Replicates are the only source of standard errors here: particles of one cloud are not independent, their
per-particle errors are off by up to a factor 15. A bound is read with its error taken to the safe side, by the
Student factor of R - 1 degrees of freedom.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A value, its standard error and where it came from."""

    value: float
    se: float
    source: str = ""

    def margin(self, factor: float) -> float:
        """Return factor * se, zero where se is zero (so that an exact value needs no replicates)."""
        return 0.0 if self.se == 0.0 else factor * self.se


def student_factor(replicates: int, probability: float = 0.9772498680518208) -> float:
    """Return the Student quantile for R - 1 degrees of freedom (default: that of two Gaussian sigmas).

    3.3 at R = 4, 2.4 at R = 8, infinite at R = 1, where no error can be estimated.
    """
    if replicates < 2:
        return math.inf
    from scipy.special import stdtrit

    return float(stdtrit(replicates - 1, probability))


def mean_estimate(values: Sequence[float] | np.ndarray, source: str = "") -> Estimate:
    """Return mean and standard error over replicates; the error is NaN for a single one or where one is infinite."""
    v = np.asarray(values, dtype=np.float64)
    known = len(v) > 1 and bool(np.isfinite(v).all())
    se = float(v.std(ddof=1) / math.sqrt(len(v))) if known else math.nan
    return Estimate(float(v.mean()), se, source)


def tightest_lower(candidates: Iterable[Estimate], replicates: int) -> Estimate:
    """Return the lower bound that is largest after each took its own margin (choosing first would bias)."""
    return _tightest(candidates, replicates, -1.0)


def tightest_upper(candidates: Iterable[Estimate], replicates: int) -> Estimate:
    """Return the upper bound that is smallest after each took its own margin."""
    return _tightest(candidates, replicates, 1.0)


def _tightest(candidates: Iterable[Estimate], replicates: int, sign: float) -> Estimate:
    factor = student_factor(replicates)
    if not math.isfinite(factor):
        # One replicate has no error: fall back on the central values.
        factor = 0.0
    usable = [c for c in candidates if not math.isnan(c.value)]
    if not usable:
        return Estimate(math.nan, math.nan, "none")

    def guarded(c: Estimate) -> float:
        se = 0.0 if math.isnan(c.se) else c.se
        return sign * (c.value + sign * factor * se)

    return min(usable, key=guarded)
