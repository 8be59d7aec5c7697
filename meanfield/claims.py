"""What a simulation claims: a measured number beside what was wanted, and the fits that such numbers come from.

Errors come from replicates: a number that is a function of replicated arrays is jackknifed (`jackknifed`), an order of
convergence is a slope in logarithms (`power_law`), and many signed errors together are judged by their rate (`rate`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from meanfield.canvas import number
from meanfield.estimate import Estimate, student_factor

Array = np.ndarray
# How many (record, side) pairs may lie beyond Student's factor, and none beyond twice that.
LARGEST_RATE = 0.05


@dataclass(frozen=True)
class Claim:
    """A statement about numbers that a simulation measured.

    Attributes
    ----------
    text : str
        What is claimed, in one line.
    measured, error : float
        The number, and its standard error (0: none, or exact).
    wanted : str
        What it has to be.
    holds : bool
        Whether it is that.
    full : bool
        Whether it speaks of the full grid: a smoke run shows it and does not judge it.
    """

    text: str
    measured: float
    wanted: str
    holds: bool
    error: float = 0.0
    full: bool = False

    def verdict(self, full_grid: bool) -> str:
        """Return "holds" or "fails", or "not judged" for a claim about more than the grid at hand."""
        if self.full and not full_grid:
            return "not judged"
        return "holds" if self.holds else "fails"

    def reading(self) -> str:
        """Return the measured number with its standard error, to two digits of the error."""
        if not (math.isfinite(self.error) and self.error > 0 and math.isfinite(self.measured)):
            return number(self.measured)
        size = abs(self.measured) or self.error
        digits = min(max(3, 2 + math.floor(math.log10(size)) - math.floor(math.log10(self.error))), 9)
        return f"{number(self.measured, digits)} ± {number(self.error, 2)}"


# --- numbers with errors ------------------------------------------------------------------------------------------


def jackknife(function: Callable[..., Any], *arrays: Array, corrected: bool = False) -> tuple[Array, Array]:
    """Return function(*arrays) and its jackknife errors over the first axis, the replicates.

    se^2 = (R - 1) / R sum_r (value without r - mean of those)^2, right for smooth functions of means; `corrected` takes
    off the bias (R - 1) (mean of those - value), all of it for functions quadratic in means.
    """
    replicates = len(arrays[0])
    value = np.asarray(function(*arrays), dtype=np.float64)
    if replicates < 2:
        return value, np.full(value.shape, math.nan)
    without = np.array([function(*(np.delete(a, r, axis=0) for a in arrays)) for r in range(replicates)])
    se = np.sqrt((replicates - 1) / replicates * ((without - without.mean(0)) ** 2).sum(0))
    return value - corrected * (replicates - 1) * (without.mean(0) - value), se


def jackknifed(function: Callable[..., float], *arrays: Array) -> Estimate:
    """Return the `jackknife` of a function that gives one number."""
    value, se = jackknife(function, *arrays)
    return Estimate(float(value), float(se))


def power_law(x: Array, y: Array) -> tuple[float, float]:
    """Return (p, c) of y = c x^p by least squares in logarithms."""
    slope, start = np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)
    return float(slope), float(np.exp(start))


def order(x: Array, values: Array) -> Estimate:
    """Return the exponent p of mean(values) = c x^p with its jackknife error; values of shape (R, len(x))."""
    return jackknifed(lambda v: power_law(x, v.mean(0))[0], np.asarray(values, float))


def slope(x: Array, values: Array, errors: Array) -> Estimate:
    """Return the exponent p of values = c x^p, its error from independent standard errors of the values."""
    at, y = np.log(np.asarray(x, float)), np.asarray(values, float)
    weights = (at - at.mean()) / ((at - at.mean()) ** 2).sum()
    return Estimate(float(weights @ np.log(y)), float(np.sqrt(((weights * errors / y) ** 2).sum())))


def deviation(value: float, se: float, truth: float) -> float:
    """Return how many standard errors a value lies above the truth; what is exact up to rounding lies at 0."""
    if abs(value - truth) <= 1e-9 * max(abs(truth), 1e-3):
        return 0.0
    return (value - truth) / se if se > 0 else math.copysign(math.inf, value - truth)


# --- claims -------------------------------------------------------------------------------------------------------


def near(text: str, value: Estimate | float, wanted: float, tolerance: float, full: bool = False) -> Claim:
    """Claim that a number is within a tolerance of the wanted one, known at least that well."""
    v = value if isinstance(value, Estimate) else Estimate(float(value), 0.0)
    holds = abs(v.value - wanted) <= tolerance and not v.se > tolerance
    return Claim(text, v.value, f"{number(wanted)} ± {number(tolerance, 2)}", holds, v.se, full)


def agree(text: str, value: Estimate, truth: float, replicates: int, full: bool = False) -> Claim:
    """Claim that a number is the true one to within Student's factor of standard errors."""
    factor = student_factor(replicates)
    holds = abs(value.value - truth) <= value.margin(factor) + 1e-9 * abs(truth)
    return Claim(text, value.value, f"{number(truth)} within {factor:.1f} standard errors", holds, value.se, full)


def at_most(text: str, value: Estimate | float, bound: float, factor: float = 0.0, full: bool = False) -> Claim:
    """Claim that a number is at most a bound, `factor` standard errors allowed."""
    v = value if isinstance(value, Estimate) else Estimate(float(value), 0.0)
    allowed = f" + {factor:.1f} standard errors" if factor and v.se else ""
    holds = v.value <= bound + v.margin(factor)
    return Claim(text, v.value, f"≤ {number(bound)}{allowed}", bool(holds), v.se, full)


def at_least(text: str, value: Estimate | float, bound: float, factor: float = 0.0, full: bool = False) -> Claim:
    """Claim that a number is at least a bound, `factor` standard errors allowed."""
    v = value if isinstance(value, Estimate) else Estimate(float(value), 0.0)
    allowed = f" − {factor:.1f} standard errors" if factor and v.se else ""
    holds = v.value >= bound - v.margin(factor)
    return Claim(text, v.value, f"≥ {number(bound)}{allowed}", bool(holds), v.se, full)


def rate(text: str, deviations: Array, replicates: int, full: bool = False) -> Claim:
    """Claim that signed errors are explained by chance: at most 5 % beyond t_{R-1, .975}, none beyond twice that.

    Parameters
    ----------
    deviations : ndarray
        How many standard errors each measured number lies on the side of the truth where it must not be.
    replicates : int
        R, from which the standard errors came.
    """
    d = np.ravel(np.asarray(deviations, float))
    t = student_factor(replicates, 0.975)
    share = float(np.mean(d > t))
    holds = share <= LARGEST_RATE and bool(np.all(d <= 2 * t))
    text = f"{text}: share of {len(d)} beyond {t:.2f} standard errors, largest {number(d.max(), 2)}"
    return Claim(text, share, f"≤ {LARGEST_RATE:g}, none beyond {2 * t:.2f}", holds, 0.0, full)
