"""One-dimensional optimal transport by exact quantiles.

On the line the optimal coupling is monotone, so that W2^2 = integral over 0 < q < 1 of |F^-1(q) - G^-1(q)|^2. For
samples F^-1 is a step function, and with phi, Phi the density and distribution function of N(0, 1)

    integral of Phi^-1 from a to b = phi(Phi^-1(a)) - phi(Phi^-1(b)),     integral of (Phi^-1)^2 from 0 to 1 = 1

make the distance to N(0, 1) a finite sum: nothing is sampled or put on a grid. Read next: `directions`, `distances`.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError

Array = npt.NDArray[Any]


def gaussian_quantiles(values: Array, weights: Array | None = None) -> Array:
    """Return W2^2 between the law of a sample on the line and N(0, 1), exactly.

    It is sum w_i x_i^2 + 1 - 2 sum x_(i) [phi(q_(i-1)) - phi(q_i)], q_i = Phi^-1(w_(1) + ... + w_(i)).

    Parameters
    ----------
    values : ndarray, shape (m,) or (m, k)
        One sample, or k of them side by side.
    weights : ndarray, shape (m,), optional
        Masses that sum to 1; 1/m each without them.

    Returns
    -------
    ndarray, shape () or (k,)
        In length^2; rounding is about 1e-15. O(k m log m).

    Raises
    ------
    InputError
        If a shape doesn't fit, or weights are not masses.
    """
    x = _columns(values)
    order = np.argsort(x, axis=0, kind="stable")
    ranked = np.take_along_axis(x, order, axis=0)
    means = bins(levels(weights, order))
    square = ranked**2 if weights is None else np.asarray(weights)[order] * ranked**2
    total = square.mean(axis=0) if weights is None else square.sum(axis=0)
    # Both halves of the sum are of order 1: what rounding leaves below 0 is 0.
    return np.maximum(total + 1 - 2 * (ranked * means).sum(axis=0), 0.0).reshape(np.shape(values)[1:])


def quantiles(first: Array, second: Array) -> Array:
    """Return W2^2 between the laws of two samples on the line, of any two sizes, exactly.

    The step functions F^-1 and G^-1 are constant between the levels i/m and j/k, so the integral is a sum over at most
    m + k - 1 pieces.

    Parameters
    ----------
    first, second : ndarray, shapes (m,) and (k,), or (m, l) and (k, l)
        Samples of equal masses; l of them side by side.

    Returns
    -------
    ndarray, shape () or (l,)
        In length^2. O(l (m log m + k log k)).

    Raises
    ------
    InputError
        If shapes don't fit.
    """
    x, y = _columns(first), _columns(second)
    if x.shape[1] != y.shape[1] or np.ndim(first) != np.ndim(second):
        shapes = f"{np.shape(first)} and {np.shape(second)}"
        raise InputError(f"two samples have shapes (m,) and (k,), or (m, l) and (k, l); got {shapes}.")
    rows, partners, length = pieces(len(x), len(y))
    gap = np.sort(x, axis=0)[rows] - np.sort(y, axis=0)[partners]
    return (length @ gap**2).reshape(np.shape(first)[1:])


def pieces(m: int, k: int) -> tuple[Array, Array, Array]:
    """Return the ranks, in samples of sizes m and k, that belong together, and the mass of each piece."""
    ends = np.union1d(np.arange(m + 1) * k, np.arange(k + 1) * m)  # of m k, in whole numbers
    return ends[:-1] // k, ends[:-1] // m, np.diff(ends) / (m * k)


def _columns(values: Array) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim not in (1, 2) or not len(x) or not np.isfinite(x).all():
        raise InputError(f"a sample on the line has shape (m,) or (m, k) and finite entries, got shape {x.shape}.")
    return x.reshape(len(x), -1)


def levels(weights: Array | None, order: Array) -> Array:
    """Return the levels 0 = a_0 < ... < a_m = 1 between which the quantile function is constant, by column."""
    m = len(order)
    if weights is None:
        return (np.arange(m + 1) / m)[:, None]
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (m,) or not (w >= 0).all() or abs(w.sum() - 1) > 1e-6:
        raise InputError(f"weights must be {m} masses that sum to 1.")
    ends = np.zeros((m + 1, order.shape[1]))
    np.cumsum(w[order], axis=0, out=ends[1:])
    return np.clip(ends / ends[-1], 0.0, 1.0)


def bins(ends: Array) -> Array:
    """Return the integral of Phi^-1 over each piece between two levels, by column."""
    from scipy.special import ndtri

    density = np.exp(-0.5 * ndtri(ends) ** 2) / math.sqrt(2 * math.pi)
    return density[:-1] - density[1:]
