"""Pair interactions and nearest neighbours as `interactions` defines them, fused in Numba; nothing but blocks is held.

A block of points lies with its coordinates in rows, `ROW` bytes each, so that a vector holds one coordinate of
neighbouring points and a particle's coordinates are scalars. Particles are worked four at a time: squared distances or
inner products, the kernel, weighted sums. Sums over `CHUNK` particles are in the dtype of the points, then in float64.
Blocks of points go to the threads of `parallel`, each is worked in one order: equal bits for any number of threads.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from meanfield import interactions, parallel
from meanfield.errors import InputError
from meanfield.interactions import ErfPair, Gaussian, Kernel, ReluPair

Array = np.ndarray
ROW = 1024  # bytes: rows of points, particle sums and kernel values stay in a core's first cache
CHUNK = 512
TREE_DIMENSION = 5  # up to there a tree finds neighbours faster than these loops

inlined: Any = intrinsic
compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


def interact(kernel: Kernel, points: Array, z: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Return sum_j w_j k(p, z_j) and its gradient in p; see `interactions.interact`.

    Raises
    ------
    InputError
        If shapes don't fit, or the kernel is none of those written here.
    """
    if type(kernel) not in _SUMS:
        known = ", ".join(kind.__name__ for kind in _SUMS)
        raise InputError(f"fused pair kernels are {known}, got {kernel!r}; interactions.interact takes any record.")
    points, z, mass = interactions.checked(points, z, weights)
    value, gradient = _SUMS[type(kernel)](kernel, points, z, mass)
    return value.astype(points.dtype, copy=False), gradient.astype(points.dtype, copy=False)


def _gaussian_sums(kernel: Any, points: Array, z: Array, mass: Array) -> tuple[Array, Array]:
    centre, scale = z.mean(axis=0), kernel.bandwidth**-2
    p = points - centre
    none = np.zeros(len(points), points.dtype)
    moment, sums = _run(_gaussian, p, none, z - centre, mass, -0.5 * scale / math.log(2.0))
    return sums[:, 0], scale * (moment - sums[:, :1] * p)


def _erf_sums(kernel: Any, points: Array, z: Array, mass: Array) -> tuple[Array, Array]:
    length, t = interactions.shortened(points[:, :-1])
    moment, sums = _run(_erf_pair, t, 0.5 / length**2, interactions.shortened(z[:, :-1])[1], mass * z[:, -1])
    return kernel.finished(points[:, -1], length, moment - sums[:, 1:] * t, sums[:, 0])


def _relu_sums(kernel: Any, points: Array, z: Array, mass: Array) -> tuple[Array, Array]:
    length, direction = interactions.polar(points[:, :-1])
    length_other, direction_other = interactions.polar(z[:, :-1])
    moment, sums = _run(_relu_pair, direction, length, direction_other, mass * z[:, -1] * length_other)
    return kernel.finished(points[:, -1], length, moment + sums[:, 1:] * direction, sums[:, 0])


_SUMS = {Gaussian: _gaussian_sums, ErfPair: _erf_sums, ReluPair: _relu_sums}


def _run(loop: Any, p: Array, side: Array, z: Array, mass: Array, scale: float = 0.0) -> tuple[Array, Array]:
    """Return the loop's sums over particles of c z, shape (k, width), and of two numbers, shape (k, 2), in float64."""
    width, lanes = z.shape[1], ROW // p.itemsize
    # Coordinates two at a time, particles four at a time: what is added is zero and weighs nothing.
    rows = np.zeros((-len(z) % 4 + len(z), width + width % 2), z.dtype)
    rows[: len(z), :width] = z
    mass = np.concatenate([mass, np.zeros(-len(z) % 4, z.dtype)])
    moment, sums = np.empty((len(p), width)), np.empty((len(p), 2))
    p, scale = np.ascontiguousarray(p), p.dtype.type(scale)

    def block(part: slice) -> None:
        loop(p, side, part.start, lanes, rows, mass, scale, moment, sums)

    parallel.each_block(block, len(p), lanes)
    return moment, sums


# --- elementary functions, straight lines that vectorise. `elementary.exp` divides, and takes any number: with a power
# of 2 for x <= 0 the Gaussian loop takes a fifth less.


def _fitted(function: Any, low: float, high: float, degree: int) -> list[float]:
    """Return the coefficients of the polynomial that interpolates a function at the Chebyshev points of [low, high]."""
    fit = np.polynomial.Chebyshev.interpolate(function, degree, domain=[low, high])
    return [float(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef]


_ARC = _fitted(lambda t: np.arcsin(np.sqrt(t)) / np.sqrt(t), 0.0, 0.25, 15)  # arcsin(sqrt t) / sqrt t, to 2e-16
# 2^r = 1 + r (...) on |r| <= 1/2, to 1e-18 and 1e-9; an even number of points stays clear of r = 0
_POWER = {
    kind: _fitted(lambda r: np.expm1(math.log(2.0) * r) / r, -0.5, 0.5, degree)
    for kind, degree in ((types.float64, 11), (types.float32, 5))
}


def _horner(builder: Any, coefficients: list[float], x: Any) -> Any:
    total = ir.Constant(x.type, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = builder.fma(total, x, ir.Constant(x.type, coefficient))
    return total


@inlined
def _power(typing_context: Any, x: Any) -> Any:
    """Return 2^x for x <= 0, in the type of x, which is cut off where normal numbers end. About 1 ulp."""
    bits, mantissa, least = (64, 52, -1022.0) if x == types.float64 else (32, 23, -126.0)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (y,) = arguments
        integer, least_y = ir.IntType(bits), ir.Constant(y.type, least)
        y = builder.select(builder.fcmp_ordered("<", y, least_y), least_y, y)
        # Added to 1.5 2^mantissa the number is rounded to an integer, which is then in the last bits.
        shift = ir.Constant(y.type, 1.5 * 2.0**mantissa)
        shifted = builder.fadd(y, shift)
        r = builder.fsub(y, builder.fsub(shifted, shift))
        value = builder.fma(_horner(builder, _POWER[x], r), r, ir.Constant(y.type, 1.0))
        exponent = builder.shl(builder.bitcast(shifted, integer), ir.Constant(integer, mantissa))
        return builder.bitcast(builder.add(builder.bitcast(value, integer), exponent), y.type)

    return x(x), generate


@inlined
def _series(typing_context: Any, t: Any) -> Any:
    """Return arcsin(sqrt t) / sqrt t for t in [0, 1/4], in the type of t."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _horner(builder, _ARC, arguments[0])

    return t(t), generate


@njit(fastmath={"contract"}, error_model="numpy")
def _arcsin(x: float) -> float:
    """Return arcsin x for |x| <= 1, from |x| = 1/2 on as pi / 2 - 2 arcsin sqrt((1 - |x|) / 2)."""
    half = type(x)(0.5)
    y = abs(x)
    near = y <= half
    t = y * y if near else max(half - half * y, half - half)
    root = (y if near else np.sqrt(t)) * _series(t)
    arc = root if near else type(x)(0.5 * math.pi) - (root + root)
    return arc if x > half - half else -arc


# --- loops over particles for one block of points


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
def _products(p: Array, z: Array, j: int, s: Array) -> None:
    """Set s[k, i] = p_i . z_{j+k} for four particles."""
    s0, s1, s2, s3 = s[0], s[1], s[2], s[3]
    s[:] = 0
    for d in range(0, p.shape[0], 2):
        x, y = p[d], p[d + 1]
        a, b, c, e = z[j, d], z[j + 1, d], z[j + 2, d], z[j + 3, d]
        a1, b1, c1, e1 = z[j, d + 1], z[j + 1, d + 1], z[j + 2, d + 1], z[j + 3, d + 1]
        for i in range(len(s0)):
            s0[i] += x[i] * a + y[i] * a1
            s1[i] += x[i] * b + y[i] * b1
            s2[i] += x[i] * c + y[i] * c1
            s3[i] += x[i] * e + y[i] * e1


@compiled
def _spread(z: Array, j: int, s: Array, moment: Array) -> None:
    """Add sum_k s[k, i] z_{j+k} to the moments, four particles."""
    s0, s1, s2, s3 = s[0], s[1], s[2], s[3]
    for d in range(0, moment.shape[0], 2):
        x, y = moment[d], moment[d + 1]
        a, b, c, e = z[j, d], z[j + 1, d], z[j + 2, d], z[j + 3, d]
        a1, b1, c1, e1 = z[j, d + 1], z[j + 1, d + 1], z[j + 2, d + 1], z[j + 3, d + 1]
        for i in range(len(s0)):
            x[i] += (s0[i] * a + s1[i] * b) + (s2[i] * c + s3[i] * e)
            y[i] += (s0[i] * a1 + s1[i] * b1) + (s2[i] * c1 + s3[i] * e1)


@compiled
def _bank(some: Array, total: Array) -> None:
    """Add one chunk's sums to the totals in float64, and clear them."""
    for d in range(some.shape[0]):
        for i in range(some.shape[1]):
            total[d, i] += some[d, i]
            some[d, i] = 0


@compiled
def _deliver(total: Array, total_two: Array, first: int, count: int, moment: Array, sums: Array) -> None:
    """Write a block's totals to its points' rows."""
    for i in range(count):
        for d in range(moment.shape[1]):
            moment[first + i, d] = total[d, i]
        sums[first + i, 0] = total_two[0, i]
        sums[first + i, 1] = total_two[1, i]


@compiled
def _gaussian(
    points: Array, side: Array, first: int, lanes: int, z: Array, mass: Array, scale: float, moment: Array, sums: Array
) -> None:
    """Form the sums of k z and k, k = mass 2^(scale |p - z|^2)."""
    width, dtype = z.shape[1], z.dtype
    p, s = np.empty((width, lanes), dtype), np.empty((4, lanes), dtype)
    some, two = np.zeros((width, lanes), dtype), np.zeros((2, lanes), dtype)
    total, total_two = np.zeros((width, lanes)), np.zeros((2, lanes))
    count, value, s0, s1, s2, s3 = _load(points, first, p), two[0], s[0], s[1], s[2], s[3]
    for start in range(0, len(z), CHUNK):
        for j in range(start, min(start + CHUNK, len(z)), 4):
            _squares(p, z, j, s)
            a, b, c, e = mass[j], mass[j + 1], mass[j + 2], mass[j + 3]
            for i in range(lanes):
                s0[i], s1[i] = a * _power(scale * s0[i]), b * _power(scale * s1[i])
                s2[i], s3[i] = c * _power(scale * s2[i]), e * _power(scale * s3[i])
                value[i] += (s0[i] + s1[i]) + (s2[i] + s3[i])
            _spread(z, j, s, some)
        _bank(some, total)
        _bank(two, total_two)
    _deliver(total, total_two, first, count, moment, sums)


@compiled
def _erf_pair(
    points: Array, side: Array, first: int, lanes: int, z: Array, mass: Array, scale: float, moment: Array, sums: Array
) -> None:
    """Form the sums of b z, mass arcsin(s) and b s: s = p . z, b = mass / sqrt(1 - s^2), 1 - s^2 at least `side`."""
    width, dtype = z.shape[1], z.dtype
    p, s, least = np.empty((width, lanes), dtype), np.empty((4, lanes), dtype), np.ones(lanes, dtype)
    some, two = np.zeros((width, lanes), dtype), np.zeros((2, lanes), dtype)
    total, total_two = np.zeros((width, lanes)), np.zeros((2, lanes))
    count, value, along, one = _load(points, first, p), two[0], two[1], dtype.type(1)
    for i in range(count):  # slices assigned to slices would take seconds to compile
        least[i] = side[first + i]
    for start in range(0, len(z), CHUNK):
        for j in range(start, min(start + CHUNK, len(z)), 4):
            _products(p, z, j, s)
            for k in range(4):
                row, c = s[k], mass[j + k]
                for i in range(lanes):
                    sine = max(min(row[i], one), -one)
                    b = c / np.sqrt(max((one - sine) * (one + sine), least[i]))
                    value[i] += c * _arcsin(sine)
                    along[i] += b * sine
                    row[i] = b
            _spread(z, j, s, some)
        _bank(some, total)
        _bank(two, total_two)
    _deliver(total, total_two, first, count, moment, sums)


@compiled
def _relu_pair(
    points: Array, side: Array, first: int, lanes: int, z: Array, mass: Array, scale: float, moment: Array, sums: Array
) -> None:
    """Form the sums of r z, mass sin a + r cos a and mass sin a: r = mass (pi - a), cos a = p . z."""
    width, dtype = z.shape[1], z.dtype
    p, s = np.empty((width, lanes), dtype), np.empty((4, lanes), dtype)
    some, two = np.zeros((width, lanes), dtype), np.zeros((2, lanes), dtype)
    total, total_two = np.zeros((width, lanes)), np.zeros((2, lanes))
    count, value, along = _load(points, first, p), two[0], two[1]
    one, right = dtype.type(1), dtype.type(0.5 * math.pi)
    for start in range(0, len(z), CHUNK):
        for j in range(start, min(start + CHUNK, len(z)), 4):
            _products(p, z, j, s)
            for k in range(4):
                row, c = s[k], mass[j + k]
                for i in range(lanes):
                    cosine = max(min(row[i], one), -one)
                    sine = c * np.sqrt((one - cosine) * (one + cosine))
                    rest = c * (right + _arcsin(cosine))
                    value[i] += sine + rest * cosine
                    along[i] += sine
                    row[i] = rest
            _spread(z, j, s, some)
        _bank(some, total)
        _bank(two, total_two)
    _deliver(total, total_two, first, count, moment, sums)


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
