"""Directions in which clouds are looked at: orthonormal frames, and the one along which two laws are far apart.

For a unit vector v, W2^2 between the laws of v . X and v . Y is at most W2^2 between those of X and Y, and summed over
an orthonormal frame still at most that, because |x - y|^2 is the sum of its components' squares. Read next:
`distances`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import noise
from meanfield.errors import InputError
from meanfield.slices import bins, levels, pieces

Array = npt.NDArray[Any]
# Steps of the PROBE stream: 0 and 1 are a run's own, 2 and 5 belong to directions, 3 and 4 to samples of p0.
FRAMES, STARTS = 2, 5
HALVINGS = 20


def frames(dimension: int, count: int, seed: int = 0) -> Array:
    """Return unit vectors that form orthonormal frames, each frame uniformly distributed: shape (count', D).

    count' is the next multiple of D. They are a function of the integers given [Philox, stream PROBE].

    Raises
    ------
    InputError
        If there is no direction to return, or the seed does not fit into 64 bits.
    """
    if dimension < 1 or count < 1:
        raise InputError(f"wanted at least one direction in at least one dimension, got {count} in {dimension}.")
    drawn = [
        noise.normals(seed, noise.Stream.PROBE, step=FRAMES, replicate=k, count=dimension, width=dimension)
        for k in range(-(-count // dimension))
    ]
    # With the signs of the diagonal of r taken out, q is distributed uniformly.
    factors = [np.linalg.qr(matrix) for matrix in drawn]
    return np.concatenate([(q * np.sign(np.diagonal(r))).T for q, r in factors])


def farthest(
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
        means = bins(levels(None, order[:, None]))[:, 0]
        value = float(x @ x / len(x) + 1 - 2 * x[order] @ means)
        return value, 2 * ((x / len(x)) @ first - means @ first[order])
    y = second @ v
    rows, partners, length = pieces(len(x), len(y))
    rows, partners = order[rows], np.argsort(y, kind="stable")[partners]
    gap = length * (x[rows] - y[partners])
    return float(gap @ (x[rows] - y[partners])), 2 * (gap @ first[rows] - gap @ second[partners])
