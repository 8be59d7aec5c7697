"""Pair interactions and nearest neighbours as `interactions` defines them, fused in Numba; nothing but blocks is held.

Both are worked in tiles of a block of particles and four others (`tiles`, and below for neighbours). Where the points
are the particles, as in dynamics, each pair is met once and serves both: groups of blocks meet as in a tournament
(`parallel.each_pair`), and each adds to its own sums alone. Otherwise each block of points is a thread's. Sums over a
block are in the dtype of the points, sums over blocks in float64, and each has one order: equal bits for any number
of threads.
"""

import math
from typing import Any

import numpy as np

from meanfield import interactions, parallel
from meanfield.backends import tiles
from meanfield.backends.forms import ErfForm, GaussianForm, ReluForm
from meanfield.backends.tiles import Face, compiled
from meanfield.errors import InputError
from meanfield.interactions import ErfPair, Gaussian, Kernel, ReluPair

Array = np.ndarray
PER_GROUP, GROUPS = 512, 64  # a group of blocks has at least so many particles, and there are at most so many groups
ROW = 1024  # bytes of a row of points, when neighbours are sought
TREE_DIMENSION = 5  # up to there a tree finds neighbours faster than these loops


def interact(kernel: Kernel, points: Array, z: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Return sum_j w_j k(p, z_j) and its gradient in p; see `interactions.interact`.

    Where `points` equals `z`, every pair is worked once, in half to three quarters of the time.

    Raises
    ------
    InputError
        If shapes don't fit, or the kernel is none of those written here.
    """
    if type(kernel) not in _SUMS:
        known = ", ".join(kind.__name__ for kind in _SUMS)
        raise InputError(f"fused pair kernels are {known}, got {kernel!r}; interactions.interact takes any record.")
    points, z, mass = interactions.checked(points, z, weights)
    if np.array_equal(points, z):
        z = points
    value, gradient = _SUMS[type(kernel)](kernel, points, z, mass)
    return value.astype(points.dtype, copy=False), gradient.astype(points.dtype, copy=False)


def _gaussian_sums(kernel: Any, points: Array, z: Array, mass: Array) -> tuple[Array, Array]:
    # In these units the kernel is 2^-(squared distance).
    centre, unit = z.mean(axis=0), points.dtype.type(math.sqrt(0.5 / math.log(2.0)) / kernel.bandwidth)
    p = (points - centre) * unit
    moment, value = _sums(GaussianForm(), p, p if z is points else (z - centre) * unit, mass)
    return value, (moment - value[:, None] * p) / (float(unit) * kernel.bandwidth**2)


def _erf_sums(kernel: Any, points: Array, z: Array, mass: Array) -> tuple[Array, Array]:
    length, t = here = interactions.shortened(points[:, :-1])
    length_other, other = here if z is points else interactions.shortened(z[:, :-1])
    moment, arc = _sums(ErfForm(), t, other, mass * z[:, -1], 0.5 / length**2, 0.5 / length_other**2)
    # t . moment is the sum of s / sqrt(1 - s^2).
    slope = moment - np.einsum("ij,ij->i", moment, t)[:, None] * t
    return kernel.finished(points[:, -1], length, slope, arc)


def _relu_sums(kernel: Any, points: Array, z: Array, mass: Array) -> tuple[Array, Array]:
    length, direction = here = interactions.polar(points[:, :-1])
    length_other, other = here if z is points else interactions.polar(z[:, :-1])
    moment, sine = _sums(ReluForm(), direction, other, mass * z[:, -1] * length_other)
    # direction . moment is the sum of (pi - a) cos a.
    shape = sine + np.einsum("ij,ij->i", moment, direction)
    return kernel.finished(points[:, -1], length, moment + sine[:, None] * direction, shape)


_SUMS = {Gaussian: _gaussian_sums, ErfPair: _erf_sums, ReluPair: _relu_sums}


def _sums(
    form: Any, p: Array, q: Array, mass: Array, floor: Array | None = None, other_floor: Array | None = None
) -> tuple[Array, Array]:
    """Return sum_q A mass q, shape (k, D), and sum_q B mass, shape (k,), in float64; q is p where they are the same."""
    face = _face(q, mass, other_floor)
    totals = _among(form, face) if q is p else _upon(form, _face(p, np.zeros(len(p), p.dtype), floor), face)
    rows = totals.transpose(0, 2, 1).reshape(-1, totals.shape[1])[: len(p)]
    return rows[:, :-1], rows[:, -1]


def _face(q: Array, mass: Array, floor: Array | None) -> Face:
    place, masses = _blocked(q), _blocked(mass[:, None])
    floors = np.zeros_like(masses) if floor is None else _blocked(floor[:, None])
    return Face(len(q), place, np.concatenate([masses * place, masses], axis=1), floors)


def _blocked(rows: Array) -> Array:
    """Return rows (number, width) as blocks (blocks, width, lanes), padded with zeros."""
    number, width = rows.shape
    lanes = tiles.ROW_BYTES // rows.itemsize
    blocks = -(-number // lanes)
    padded = np.zeros((blocks * lanes, width), rows.dtype)
    padded[:number] = rows
    return np.ascontiguousarray(padded.reshape(blocks, lanes, width).transpose(0, 2, 1))


def _among(form: Any, face: Face) -> Array:
    """Return the sums of particles over one another, in blocks."""
    count, _, lanes = face.place.shape
    totals = np.zeros(face.pull.shape)
    # A power of two keeps two, four, ... threads equally busy.
    groups = min(GROUPS, 1 << max(count * lanes // PER_GROUP, 1).bit_length() - 1)
    edges = [count * group // groups for group in range(groups + 1)]

    def meet(a: int, b: int) -> None:
        tiles.meet(form, face, edges[a], edges[a + 1], edges[b], edges[b + 1], totals)

    parallel.each_pair(meet, groups)
    return totals


def _upon(form: Any, points: Face, face: Face) -> Array:
    """Return the sums of particles over points, in blocks."""
    totals = np.zeros(points.pull.shape)

    def attract(part: slice) -> None:
        tiles.attract(form, points, part.start, face, totals[part.start])

    parallel.each_group(attract, len(totals), 1)
    return totals


# --- nearest neighbours


def neighbours(points: Array, z: Array, k: int, exclude: bool = False) -> Array:
    """Return squared distances to the k nearest particles, ascending; see `interactions.neighbours`."""
    here, there = interactions.check_neighbours(points, z, k, exclude)
    if there.shape[1] <= TREE_DIMENSION:
        return interactions.neighbours(points, z, k, exclude)
    rows = np.zeros((-len(there) % 4 + len(there), there.shape[1] + there.shape[1] % 2))
    rows[: len(there), : there.shape[1]] = there
    rows[len(there) :] = math.inf  # nobody's neighbours
    lanes = ROW // rows.itemsize
    out = np.empty((len(here), k))

    def block(part: slice) -> None:
        _nearest(here, part.start, lanes, rows, exclude, out)

    here = np.ascontiguousarray(here)
    parallel.each_block(block, len(here), lanes)
    return out.astype(interactions.floating(points), copy=False)


@compiled
def _load(points: Array, first: int, p: Array) -> int:
    """Turn points from row `first` on into rows of coordinates, padded with zeros; return how many there are."""
    count = min(p.shape[1], points.shape[0] - first)
    p[:] = 0
    for i in range(count):
        for d in range(points.shape[1]):
            p[d, i] = points[first + i, d]
    return count


@compiled
def _squares(p: Array, z: Array, j: int, s: Array) -> None:
    """Set s[k, i] = |p_i - z_{j+k}|^2 for four particles."""
    s0, s1, s2, s3 = s[0], s[1], s[2], s[3]
    for d in range(0, p.shape[0], 2):
        x, y = p[d], p[d + 1]
        a, b, c, e = z[j, d], z[j + 1, d], z[j + 2, d], z[j + 3, d]
        a1, b1, c1, e1 = z[j, d + 1], z[j + 1, d + 1], z[j + 2, d + 1], z[j + 3, d + 1]
        if d == 0:
            for i in range(len(s0)):
                s0[i] = (x[i] - a) ** 2 + (y[i] - a1) ** 2
                s1[i] = (x[i] - b) ** 2 + (y[i] - b1) ** 2
                s2[i] = (x[i] - c) ** 2 + (y[i] - c1) ** 2
                s3[i] = (x[i] - e) ** 2 + (y[i] - e1) ** 2
        else:
            for i in range(len(s0)):
                s0[i] += (x[i] - a) ** 2 + (y[i] - a1) ** 2
                s1[i] += (x[i] - b) ** 2 + (y[i] - b1) ** 2
                s2[i] += (x[i] - c) ** 2 + (y[i] - c1) ** 2
                s3[i] += (x[i] - e) ** 2 + (y[i] - e1) ** 2


@compiled
def _nearest(points: Array, first: int, lanes: int, z: Array, exclude: bool, out: Array) -> None:
    """Set a block's rows of `out` to the smallest squared distances, ascending."""
    p, s = np.empty((z.shape[1], lanes)), np.empty((4, lanes))
    keep = out.shape[1]
    best = np.full((lanes, keep), np.inf)
    worst = np.full(lanes, np.inf)
    count = _load(points, first, p)
    for j in range(0, len(z), 4):
        _squares(p, z, j, s)
        for q in range(4):
            row = s[q]
            if exclude and 0 <= j + q - first < count:
                row[j + q - first] = np.inf
            closer = 0
            for i in range(lanes):
                closer += row[i] < worst[i]
            if closer == 0:
                continue
            for i in range(count):
                if row[i] < worst[i]:
                    worst[i] = _insert(best[i], row[i])
    for i in range(count):
        for place in range(keep):
            out[first + i, place] = best[i, place]


@compiled
def _insert(best: Array, value: float) -> float:
    """Insert a value below the last into an ascending list, which loses its last; return what is last now."""
    place = len(best) - 1
    while place > 0 and best[place - 1] > value:
        best[place] = best[place - 1]
        place -= 1
    best[place] = value
    return best[-1]
