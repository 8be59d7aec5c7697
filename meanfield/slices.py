"""One-dimensional optimal transport by exact quantiles, and the directions in which clouds are looked at.

On the line the optimal coupling is monotone, so that W2^2 = integral over 0 < q < 1 of |F^-1(q) - G^-1(q)|^2. For
samples F^-1 is a step function, and with phi, Phi the density and distribution function of N(0, 1)

    integral of Phi^-1 from a to b = phi(Phi^-1(a)) - phi(Phi^-1(b)),     integral of (Phi^-1)^2 from 0 to 1 = 1

make the distance to N(0, 1) a finite sum: nothing is sampled or put on a grid. For a unit vector v, W2^2 between the
laws of v . X and v . Y is at most W2^2 between those of X and Y, and summed over an orthonormal frame still at most
that, because |x - y|^2 is the sum of its components' squares. Read next: `distances`.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import noise
from meanfield.errors import InputError

Array = npt.NDArray[Any]
# Steps of the PROBE stream: 0 and 1 are the run's own, 2 and 5 belong to directions, 3 and 4 to samples of p0.
FRAMES, STARTS = 2, 5
HALVINGS = 20


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
    bins = _bins(_levels(weights, order))
    square = ranked**2 if weights is None else np.asarray(weights)[order] * ranked**2
    total = square.mean(axis=0) if weights is None else square.sum(axis=0)
    # Both halves of the sum are of order 1: what rounding leaves below 0 is 0.
    return np.maximum(total + 1 - 2 * (ranked * bins).sum(axis=0), 0.0).reshape(np.shape(values)[1:])


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
        raise InputError(f"two samples (m,) and (k,), or (m, l) and (k, l), wanted, got {np.shape(first)} and {np.shape(second)}.")
    rows, partners, length = pieces(len(x), len(y))
    gap = np.sort(x, axis=0)[rows] - np.sort(y, axis=0)[partners]
    return (length @ gap**2).reshape(np.shape(first)[1:])


def pieces(m: int, k: int) -> tuple[Array, Array, Array]:
    """Return the ranks, in samples of sizes m and k, that belong together, and the mass of each piece."""
    levels = np.union1d(np.arange(m + 1) * k, np.arange(k + 1) * m)  # of m k, in whole numbers
    return levels[:-1] // k, levels[:-1] // m, np.diff(levels) / (m * k)


def _columns(values: Array) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim not in (1, 2) or not len(x) or not np.isfinite(x).all():
        raise InputError(f"a sample on the line has shape (m,) or (m, k) and finite entries, got shape {x.shape}.")
    return x.reshape(len(x), -1)


def _levels(weights: Array | None, order: Array) -> Array:
    """Return the levels 0 = a_0 < ... < a_m = 1 between which the quantile function is constant, by column."""
    m = len(order)
    if weights is None:
        return (np.arange(m + 1) / m)[:, None]
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (m,) or not (w >= 0).all() or abs(w.sum() - 1) > 1e-6:
        raise InputError(f"weights must be {m} masses that sum to 1.")
    levels = np.zeros((m + 1, order.shape[1]))
    np.cumsum(w[order], axis=0, out=levels[1:])
    return np.clip(levels / levels[-1], 0.0, 1.0)


def _bins(levels: Array) -> Array:
    """Return the integral of Phi^-1 over each piece between two levels, by column."""
    from scipy.special import ndtri

    density = np.exp(-0.5 * ndtri(levels) ** 2) / math.sqrt(2 * math.pi)
    return density[:-1] - density[1:]


def directions(dimension: int, count: int, seed: int = 0) -> Array:
    """Return unit vectors that form orthonormal frames, each frame uniformly distributed: shape (count', D).

    count' is the next multiple of D. They are a function of the integers given [Philox, stream PROBE].

    Raises
    ------
    InputError
        If there is no direction to return, or the seed does not fit into 64 bits.
    """
    if dimension < 1 or count < 1:
        raise InputError(f"wanted at least one direction in at least one dimension, got {count} in {dimension}.")
    frames = -(-count // dimension)
    drawn = [
        noise.normals(seed, noise.Stream.PROBE, step=FRAMES, replicate=k, count=dimension, width=dimension)
        for k in range(frames)
    ]
    # With the signs of the diagonal of r taken out, q is distributed uniformly.
    factors = [np.linalg.qr(matrix) for matrix in drawn]
    return np.concatenate([(q * np.sign(np.diagonal(r))).T for q, r in factors])


def largest_direction(
    first: Array, second: Array | None = None, *, seed: int = 0, starts: int = 8, iterations: int = 50
) -> Array:
    """Return a unit vector along which two samples, or a sample and N(0, I), are far apart: shape (D,).

    Ascent of W2^2 along v over the sphere: the gradient at the monotone coupling is 2 E (x - y)((x - y) . v), a step
    goes along its tangential part and is halved until the distance grows. It starts from the difference of the means,
    from the eigenvectors whose variances differ most, and from directions drawn at the integer `seed`; the best
    end is returned. A local maximum, since the function is not concave. O(starts iterations (m D + m log m)).

    Parameters
    ----------
    first : ndarray, shape (m, D)
    second : ndarray, shape (k, D), optional
        Without it the other law is N(0, I), with exact quantiles.
    seed, starts, iterations : int
    """
    mean, covariance = first.mean(axis=0), np.cov(first.T, bias=True).reshape(first.shape[1], -1)
    if second is None:
        covariance = covariance - np.eye(len(mean))
    else:
        mean, covariance = mean - second.mean(axis=0), covariance - np.cov(second.T, bias=True).reshape(len(mean), -1)
    vectors = np.linalg.eigh(covariance)[1]
    drawn = noise.normals(seed, noise.Stream.PROBE, step=STARTS, count=starts, width=len(mean))
    trials = [v for v in (mean, vectors[:, 0], vectors[:, -1], *drawn) if np.linalg.norm(v) > 0][: max(starts, 1)]
    ends = [_ascend(v / np.linalg.norm(v), first, second, iterations) for v in trials]
    return max(ends, key=lambda end: end[0])[1]


def _ascend(v: Array, first: Array, second: Array | None, iterations: int) -> tuple[float, Array]:
    value, gradient = _slope(v, first, second)
    length = 1.0
    for _ in range(iterations):
        tangent = gradient - (gradient @ v) * v
        size = float(tangent @ tangent)
        # Less than a thousandth is gained by what remains.
        if not size > 1e-6 * max(value, 1e-300):
            break
        for _ in range(HALVINGS):
            trial = v + length * tangent
            trial /= np.linalg.norm(trial)
            there, slope = _slope(trial, first, second)
            if there > value:
                break
            length /= 2
        if there <= value:
            break
        v, value, gradient, length = trial, there, slope, 2 * length
    return value, v


def _slope(v: Array, first: Array, second: Array | None) -> tuple[float, Array]:
    """Return W2^2 along the unit vector v and its gradient in v (of the part that is tangential to the sphere)."""
    x = first @ v
    order = np.argsort(x, kind="stable")
    if second is None:
        bins = _bins(_levels(None, order[:, None]))[:, 0]
        value = float(x @ x / len(x) + 1 - 2 * x[order] @ bins)
        return value, 2 * ((x / len(x)) @ first - bins @ first[order])
    y = second @ v
    rows, partners, length = pieces(len(x), len(y))
    rows, partners = order[rows], np.argsort(y, kind="stable")[partners]
    gap = length * (x[rows] - y[partners])
    return float(gap @ (x[rows] - y[partners])), 2 * (gap @ first[rows] - gap @ second[partners])
