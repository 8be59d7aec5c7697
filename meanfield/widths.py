"""From widths to the limit of infinite width: a + b/m fitted, with a band that covers the limit.

    q(m) = a + b/m                      means over m particles of what is smooth in the law
    q(m) = a + b/m + c/m^2              where widths are small enough to see the next order

Give values by seed (clouds of one seed share their particles, so that widths are not independent: every seed is fitted
by itself), or one value a width with independent errors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from meanfield.errors import InputError
from meanfield.estimate import Estimate, student_factor

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class WidthLimit:
    """A fit of q(m) = sum_k coefficients[k] / m^k.

    Attributes
    ----------
    coefficients : ndarray, shape (order + 1,)
        a, b, ...
    covariance : ndarray, shape (order + 1, order + 1)
        Of the coefficients.
    freedom : int
        Degrees of freedom of the errors: seeds - 1; -1 where the errors were given and are taken as known.
    lack : float
        sum over widths of ((value - fit) / error)^2: about the number of widths less the coefficients where the form
        fits and widths are independent; smaller for widths that share their particles.
    """

    coefficients: Array
    covariance: Array
    freedom: int
    lack: float

    @property
    def limit(self) -> Estimate:
        """The value at infinite width."""
        return Estimate(float(self.coefficients[0]), math.sqrt(float(self.covariance[0, 0])), "extrapolated")

    def at(self, m: Sequence[float] | Array | float) -> tuple[Array, Array]:
        """Return value and standard error at widths; infinity is one."""
        powers = _powers(np.atleast_1d(np.asarray(m, dtype=np.float64)), len(self.coefficients))
        return powers @ self.coefficients, np.sqrt(np.einsum("ij,jk,ik->i", powers, self.covariance, powers))

    def band(self, m: Sequence[float] | Array | float) -> tuple[Array, Array]:
        """Return the ends of an interval of two Gaussian sigmas, 95.4 %, at each width (Student's, for seeds)."""
        value, error = self.at(m)
        factor = 2.0 if self.freedom < 0 else student_factor(self.freedom + 1)
        return value - factor * error, value + factor * error


def width_limit(
    m: Sequence[float] | Array, values: Array, errors: Sequence[float] | Array | None = None, *, order: int = 1
) -> WidthLimit:
    """Return the fit of a + b/m (+ c/m^2 for order 2) to values at several widths.

    Parameters
    ----------
    m : shape (k,)
        Widths.
    values : ndarray, shape (seeds, k) or (k,)
        By seed: least squares for every seed, weights from the spread over seeds; mean and standard error over seeds.
        One a width: `errors` are needed, independent and Gaussian.
    errors : shape (k,)
        Standard errors.
    order : int
        Highest power of 1/m.

    Raises
    ------
    InputError
        If there are fewer widths than coefficients, fewer than two seeds, or no errors.
    """
    widths, table = np.asarray(m, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if widths.ndim != 1 or table.shape[-1:] != widths.shape or table.ndim not in (1, 2):
        raise InputError(f"values must be (seeds, widths) or (widths,), got {table.shape} for {widths.shape} widths")
    if order < 1 or len(np.unique(widths)) < order + 1 or not (widths > 0).all():
        raise InputError(f"a fit of order {order} needs {order + 1} different positive widths, got {widths.tolist()}")
    if not np.isfinite(table).all():
        raise InputError("a value is not finite: leave out points that diverged")
    if table.ndim == 1:
        return _by_errors(widths, table, errors, order)
    if len(table) < 2:
        raise InputError("an error over seeds needs two of them: give values of shape (seeds, widths)")
    spread = table.std(0, ddof=1)
    spread = np.maximum(spread, 1e-12 * (spread.max() or 1.0))  # a width without spread is not infinitely sure
    powers = _powers(widths, order + 1)
    fits = np.linalg.lstsq(powers / spread[:, None], (table / spread).T, rcond=None)[0].T
    mean, count = fits.mean(0), len(table)
    covariance = np.atleast_2d(np.cov(fits, rowvar=False)) / count
    gap = (table.mean(0) - powers @ mean) / (spread / math.sqrt(count))
    return WidthLimit(mean, covariance, count - 1, float(gap @ gap))


def _by_errors(widths: Array, values: Array, errors: Sequence[float] | Array | None, order: int) -> WidthLimit:
    sigma = np.asarray(math.nan if errors is None else errors, dtype=np.float64)
    if sigma.shape != widths.shape or not (np.isfinite(sigma) & (sigma > 0)).all():
        raise InputError("one value a width needs errors=, its positive standard errors; or give values by seed")
    scaled = _powers(widths, order + 1) / sigma[:, None]
    covariance = np.linalg.inv(scaled.T @ scaled)
    coefficients = covariance @ scaled.T @ (values / sigma)
    gap = values / sigma - scaled @ coefficients
    return WidthLimit(coefficients, covariance, -1, float(gap @ gap))


def _powers(widths: Array, count: int) -> Array:
    return np.stack([widths**-k for k in range(count)], axis=-1)
