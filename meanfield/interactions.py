"""Pair interactions: particles that act on one another through a kernel k(z, z'), and nearest neighbours.

    value(p) = sum_j w_j k(p, z_j),   gradient(p) = sum_j w_j grad_p k(p, z_j)

`Gaussian` is the kernel of blob methods and of the maximum mean discrepancy. `ErfPair` and `ReluPair` are
k(z, z') = E_x psi(z, x) psi(z', x), psi = u h(theta . x): the population risk over Gaussian inputs, or inputs on a
sphere, is a double mean of them. To add a kernel, write a record with `sums`; anything that has it can be given to
`interact`. `backends.pairwise` and `backends.keops` compute the same, and are tested against this.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from meanfield import parallel
from meanfield.errors import InputError

Array = npt.NDArray[Any]
POINTS = 128  # a block of points, and
PARTICLES = 512  # a block of particles: 128 x 512 kernel values stay in a core's second-level cache


class Kernel(Protocol):
    """A kernel k(p, z): what `interact` asks of it."""

    def sums(self, points: Array, z: Array, mass: Array) -> tuple[Array, Array]:
        """Return sum_j mass_j k(p, z_j), shape (k,), and its gradient in p, shape (k, D), for one block of each."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """k(z, z') = exp(-|z - z'|^2 / (2 h^2)), h = `bandwidth`.

    Squares are expanded around the mean of the block, so that k has a relative error of about eps R^2 / h^2, R the
    radius of the cloud. InputError if h is not positive.
    """

    bandwidth: float

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < math.inf:
            raise InputError(f"the bandwidth of a Gaussian kernel is a positive number, got {self.bandwidth}.")

    def sums(self, points: Array, z: Array, mass: Array) -> tuple[Array, Array]:
        """Return the block's sums: two matrix products and an exponential. O(D) a pair."""
        centre, scale = z.mean(axis=0), points.dtype.type(1.0 / self.bandwidth)
        p, q = (points - centre) * scale, (z - centre) * scale
        p_half, q_half = 0.5 * np.einsum("ij,ij->i", p, p), 0.5 * np.einsum("ij,ij->i", q, q)
        k = p @ q.T
        k -= p_half[:, None]
        k -= q_half
        np.exp(np.minimum(k, 0, out=k), out=k)
        value, moment = k @ mass, k @ (mass[:, None] * q)
        return value, (moment - value[:, None] * p) * scale


@dataclass(frozen=True)
class ErfPair:
    """k = E_x psi psi' = u u' (2 / pi) arcsin s for h = erf and x ~ N(0, I) [Williams98].

    s = t . t' with t = theta / sqrt(1/2 + |theta|^2). The gradient in theta is u u' (2 / pi) (t' - s t) /
    sqrt((1 - s^2) (1/2 + |theta|^2)). Both have errors of about eps |theta|^2 where long thetas are nearly parallel.
    """

    def sums(self, points: Array, z: Array, mass: Array) -> tuple[Array, Array]:
        """Return the block's sums: two matrix products and an arcsine. O(D) a pair."""
        length, t = shortened(points[:, :-1])
        length_other, other = shortened(z[:, :-1])
        mass_u = mass * z[:, -1]
        sine = t @ other.T
        np.clip(sine, -1, 1, out=sine)
        root = (1 - sine) * (1 + sine)
        # 1 - s^2 is never less than 1 / (1 + 2 |theta|^2) of either theta, whatever rounding says.
        np.maximum(root, (0.5 / length**2)[:, None], out=root)
        np.sqrt(np.maximum(root, 0.5 / length_other**2, out=root), out=root)
        root = np.divide(mass_u, root, out=root)
        slope = root @ other - np.einsum("ij,ij->i", root, sine)[:, None] * t
        arc = np.arcsin(sine, out=sine) @ mass_u
        return self.finished(points[:, -1], length, slope, arc)

    def finished(self, u: Array, length: Array, slope: Array, arc: Array) -> tuple[Array, Array]:
        """Return value and gradient from the sums over particles."""
        slope = (u / length)[:, None] * slope
        return (2 / math.pi) * u * arc, (2 / math.pi) * np.column_stack([slope, arc])


def shortened(theta: Array) -> tuple[Array, Array]:
    """Return sqrt(1/2 + |theta|^2) and theta over it."""
    length = np.sqrt(0.5 + np.einsum("ij,ij->i", theta, theta))
    return length, theta / length[:, None]


@dataclass(frozen=True)
class ReluPair:
    """k = E_x psi psi' = u u' |theta| |theta'| (sin a + (pi - a) cos a) / (2 pi) for h = relu [ChoSaul09].

    a is the angle between theta and theta', x ~ N(0, I) or, with `inputs` "sphere", uniform on the unit sphere of
    R^d: then 1/d of it. The gradient in theta is u u' ((pi - a) theta' + sin a |theta'| theta / |theta|) / (2 pi);
    at theta = 0, where k has a kink, it is 0, as h'(0) = 0 in `units`.
    """

    inputs: str = "gaussian"

    def __post_init__(self) -> None:
        if self.inputs not in ("gaussian", "sphere"):
            raise InputError(f"inputs of a ReLU pair kernel are 'gaussian' or 'sphere', got {self.inputs!r}.")

    def sums(self, points: Array, z: Array, mass: Array) -> tuple[Array, Array]:
        """Return the block's sums: two matrix products and an arccosine. O(D) a pair."""
        length, direction = polar(points[:, :-1])
        length_other, direction_other = polar(z[:, :-1])
        pull = mass * z[:, -1] * length_other
        cosine = direction @ direction_other.T
        np.clip(cosine, -1, 1, out=cosine)
        # Sine and angle come from the same cosine: its rounding then cancels to second order where a is near 0.
        sine = np.sqrt((1 - cosine) * (1 + cosine))
        rest = math.pi - np.arccos(cosine)
        slope = rest @ (pull[:, None] * direction_other) + (sine @ pull)[:, None] * direction
        rest *= cosine
        rest += sine
        return self.finished(points[:, -1], length, slope, rest @ pull)

    def finished(self, u: Array, length: Array, slope: Array, shape: Array) -> tuple[Array, Array]:
        """Return value and gradient from the sums over particles."""
        factor = 1 / (2 * math.pi * (max(slope.shape[1], 1) if self.inputs == "sphere" else 1))
        slope = np.where(length > 0, u, 0)[:, None] * slope
        return factor * u * length * shape, factor * np.column_stack([slope, length * shape])


def polar(theta: Array) -> tuple[Array, Array]:
    """Return |theta| and theta / |theta| (0 where theta is 0)."""
    length = np.sqrt(np.einsum("ij,ij->i", theta, theta))
    return length, theta / np.where(length > 0, length, 1)[:, None]


def interact(kernel: Kernel, points: Array, z: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Return sum_j w_j k(p, z_j), shape (k,), and its gradient in p, shape (k, D), at the points.

    Parameters
    ----------
    kernel : Gaussian, ErfPair, ReluPair, or a record with `sums`
    points : ndarray, shape (k, D)
        Where; their dtype is that of the work and of what is returned.
    z : ndarray, shape (m, D)
        Particles.
    weights : ndarray, shape (m,), optional
        Their masses; 1/m each if left out.

    Raises
    ------
    InputError
        If shapes don't fit.

    Notes
    -----
    O(D) a pair, also where the points are the particles; `backends.pairwise` then works each pair once, in half to
    three quarters of the time. Blocks of `POINTS` x `PARTICLES` pairs are worked by threads, sums over blocks are
    float64 and in the order of the particles: equal bits for any number of threads, and never an array of k x m.
    """
    points, z, mass = checked(points, z, weights)
    value, gradient = np.empty(len(points), points.dtype), np.empty_like(points)

    def block(part: slice) -> None:
        here = points[part]
        total, slope = np.zeros(len(here)), np.zeros(here.shape)
        for some in parallel.blocks(len(z), PARTICLES):
            one, gradient_of_one = kernel.sums(here, z[some], mass[some])
            total += one
            slope += gradient_of_one
        value[part], gradient[part] = total, slope

    parallel.each_block(block, len(points), POINTS)
    return value, gradient


def floating(points: Array) -> np.dtype:
    """Return the dtype of the work: that of the points if it is float32 or float64, else float64."""
    dtype = np.asarray(points).dtype
    return dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64)


def checked(points: Array, z: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    """Return points, particles and masses in one dtype of floats; InputError if their shapes don't fit."""
    points, z = np.asarray(points), np.asarray(z)
    if points.ndim != 2 or z.ndim != 2 or points.shape[1] != z.shape[1] or not z.size:
        raise InputError(f"points (k, D) and particles (m, D), m and D at least 1, got {points.shape} and {z.shape}.")
    if weights is not None and np.shape(weights) != (len(z),):
        raise InputError(f"{len(z)} particles need as many weights, got shape {np.shape(weights)}.")
    dtype = floating(points)
    mass = np.full(len(z), 1 / len(z), dtype) if weights is None else np.asarray(weights).astype(dtype, copy=False)
    return points.astype(dtype, copy=False), z.astype(dtype, copy=False), mass


# --- nearest neighbours

TREE_DIMENSION = 12  # up to there a tree is faster than all pairs by matrix products, at m = 2,000 and 10,000
ROWS, COLUMNS = 64, 4096  # a block of points and of particles
SPARE = 8  # candidates kept beyond k: they absorb what the expanded squares get wrong


def neighbours(points: Array, z: Array, k: int, exclude: bool = False) -> Array:
    """Return the squared distances from every point to its k nearest particles, ascending, shape (len(points), k).

    Parameters
    ----------
    points : ndarray, shape (number, D)
    z : ndarray, shape (m, D)
    k : int
        How many neighbours.
    exclude : bool
        Whether points and particles are the same, row by row, and particle i is no neighbour of point i.

    Raises
    ------
    InputError
        If shapes don't fit, or there are fewer than k particles to choose from.

    Notes
    -----
    Exact: what is returned is summed from differences in float64. A k-d tree up to D = `TREE_DIMENSION`; above it
    all pairs, O(D) a pair, by matrix products of which only candidates are kept.
    """
    here, there = check_neighbours(points, z, k, exclude)
    search = _tree if there.shape[1] <= TREE_DIMENSION else _all_pairs
    return search(here, there, k, exclude).astype(floating(points), copy=False)


def check_neighbours(points: Array, z: Array, k: int, exclude: bool) -> tuple[Array, Array]:
    """Return points and particles as float64; InputError if there is nothing to choose k neighbours from."""
    points, z, _ = checked(points, z, None)
    if not 1 <= k <= len(z) - exclude:
        raise InputError(f"{k} neighbours of a point: k is from 1 to {len(z) - exclude} for {len(z)} particles.")
    if exclude and points.shape != z.shape:
        raise InputError(f"exclude is for points that are the particles, got shapes {points.shape} and {z.shape}.")
    return points.astype(np.float64, copy=False), z.astype(np.float64, copy=False)


def squared(points: Array, z: Array, index: Array) -> Array:
    """Return |p_i - z_index(i, l)|^2, one coordinate after the other, shape of `index`."""
    total = np.zeros(index.shape)
    for column in range(z.shape[1]):
        gap = points[:, column, None] - z[index, column]
        total += gap * gap
    return total


def _tree(points: Array, z: Array, k: int, exclude: bool) -> Array:
    from scipy.spatial import cKDTree

    count = k + exclude
    index = cKDTree(z).query(points, np.arange(1, count + 1), workers=parallel.threads())[1]
    found = squared(points, z, index)
    if exclude:
        # Where coincident particles have crowded out the point itself, all that were found are at distance 0.
        found[index == np.arange(len(points))[:, None]] = -1
    found.sort(axis=1)
    return found[:, int(exclude) :]


def _all_pairs(points: Array, z: Array, k: int, exclude: bool) -> Array:
    out = np.empty((len(points), k))
    centre = z.mean(axis=0)
    q = z - centre
    squares = np.einsum("ij,ij->i", q, q)
    radius = math.sqrt(squares.max())
    keep = min(k + SPARE, len(z))

    def block(part: slice) -> None:
        p = points[part] - centre
        cost, index = _candidates(p, q, squares, keep, part.start if exclude else None)
        found = np.sort(squared(points[part], z, index) + np.where(cost < math.inf, 0.0, math.inf), axis=1)[:, :k]
        square = np.einsum("ij,ij->i", p, p)
        # Whoever was left out is further than the last candidate, but for rounding of the expanded squares.
        error = 4 * (z.shape[1] + 4) * np.finfo(np.float64).eps * (np.sqrt(square) + radius) ** 2
        least = np.maximum(cost.max(axis=1) + square - error, 0.0)
        for row in np.nonzero(found[:, -1] > least)[0]:
            found[row] = _row(points[part][row], z, k, part.start + row if exclude else None)
        out[part] = found

    parallel.each_block(block, len(points), ROWS)
    return out


def _candidates(p: Array, q: Array, squares: Array, keep: int, own: int | None) -> tuple[Array, Array]:
    """Return the `keep` smallest |q_j|^2 - 2 p_i . q_j of every row, unordered, and their j; row i skips own + i."""
    cost, index = np.empty((len(p), 0)), np.empty((len(p), 0), np.int64)
    for some in parallel.blocks(len(q), COLUMNS):
        more = squares[some] - 2.0 * (p @ q[some].T)
        if own is not None:
            rows = np.arange(max(own, some.start), min(own + len(p), some.stop))
            more[rows - own, rows - some.start] = math.inf
        if more.shape[1] > keep:
            chosen = np.argpartition(more, keep - 1, axis=1)[:, :keep]
            more = np.take_along_axis(more, chosen, axis=1)
        else:
            chosen = np.broadcast_to(np.arange(more.shape[1]), more.shape)
        cost, index = np.hstack([cost, more]), np.hstack([index, chosen + some.start])
        if cost.shape[1] > keep:
            chosen = np.argpartition(cost, keep - 1, axis=1)[:, :keep]
            cost, index = np.take_along_axis(cost, chosen, axis=1), np.take_along_axis(index, chosen, axis=1)
    return cost, index


def _row(point: Array, z: Array, k: int, own: int | None) -> Array:
    """Return one point's k smallest squared distances, from all differences."""
    distance = squared(point[None], z, np.arange(len(z))[None])[0]
    if own is not None:
        distance[own] = math.inf
    return np.sort(np.partition(distance, k - 1)[:k])
