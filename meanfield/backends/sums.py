"""The measured half of the fused CPU backend: sums over a cloud, and kicks with their account.

A chunk of blocks at a time: a kernel of `passes` makes first-order sums and writes the factors of what costs n^2 a
particle, single-threaded BLAS multiplies them, and chunks are combined in the dyadic tree of `parallel` as they come.
Chunks depend on sizes alone, so any number of threads gives the same bits, and psi has the bits of `cpu.predict`.

    Gram matrix     sum_j w_j (u h'_i)(u h'_k) <x_i, x_k> + sum_j w_j h_i h_k       two products A A'
    covariance      sum_j a_j a_j', a_j = w_j (A psi(Z_j) - A psi(Zbar_j))         one more
    curvature       q' (G o G) q = |L' q|^2, L of rank <= min(n, d (d + 1) / 2)    one product L' Q

Signatures and meaning are those of `reference`, which also takes the activations that Numba cannot compile.
"""

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from meanfield import parallel
from meanfield.backends import Measurement, Moved, passes, reference
from meanfield.backends.fused import BLOCK
from meanfield.backends.rows import Rows, rows
from meanfield.backends.samples import Samples, blocks_of, samples
from meanfield.units import Activation

Array = np.ndarray
# A chunk holds at least so many (particle, sample) pairs, so that a kernel and a product of matrices are worth a call,
# and at least n / 4 particles, so that an n x n product costs more than what becomes of its result.
CHUNK = 1 << 15
# Eigenvalues of G o G and G o G o G below this share of the largest are rounding.
ROUNDING = 1e-13
SPARE = 1 << 26  # scratch of more bytes is not kept for the next call

_spare: list[Array] = []


@contextlib.contextmanager
def lent(dtype: np.dtype, *shapes: tuple[int, ...]) -> Iterator[list[Array]]:
    """Lend arrays, of whatever content, for the time of a chunk."""
    bounds, size = [], 0
    for shape in shapes:
        bounds.append((size, size + math.prod(shape) * dtype.itemsize))
        size = -(-bounds[-1][1] // 64) * 64
    try:
        raw = _spare.pop()
    except IndexError:
        raw = np.empty(0, np.uint8)
    if raw.size < size + 64:
        raw = np.empty(size + 64, np.uint8)
    raw_start = -raw.__array_interface__["data"][0] % 64
    out = [raw[raw_start + a : raw_start + b].view(dtype).reshape(s) for (a, b), s in zip(bounds, shapes, strict=True)]
    try:
        yield out
    finally:
        if raw.size <= SPARE and len(_spare) < parallel.threads():
            _spare.append(raw)


class Tree:
    """The dyadic sum of `parallel.DyadicSum` over numbered values that come in any order from any thread.

    Values are tuples of arrays and are added in place; only those whose neighbour is still missing are held.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], tuple] = {}
        self._lock = threading.Lock()

    def add(self, number: int, value: tuple) -> None:
        """Add a value and every sum that it completes."""
        level = 0
        while True:
            with self._lock:
                other = self._nodes.pop((level, number ^ 1), None)
                if other is None:
                    self._nodes[level, number] = value
                    return
            value = _plus(value, other)
            level, number = level + 1, number >> 1

    def total(self) -> tuple:
        """Return the sum of all values."""
        first, *rest = [self._nodes[key] for key in sorted(self._nodes)]
        for node in rest:
            first = _plus(first, node)
        return first


def _plus(a: tuple, b: tuple) -> tuple:
    for x, y in zip(a, b, strict=True):
        np.add(x, y, out=x)
    return a


def chunk_size(n: int) -> int:
    """Return the number of blocks in a chunk, a power of two that depends on n alone."""
    size = 1
    while size * BLOCK * n < CHUNK or size * BLOCK * 4 < n:
        size *= 2
    return size


def sum_chunks(function: Callable[[slice], tuple], m: int, n: int) -> tuple:
    """Return the dyadic sum of function(blocks of a chunk) over all chunks, worked by the threads."""
    tree, size = Tree(), chunk_size(n)
    parallel.each_group(lambda part: tree.add(part.start // size, function(part)), blocks_of(m), size)
    return tree.total()


def _masses(z: Array, weights: Array | None) -> tuple[Array, Any]:
    """Return the weights in the dtype of the cloud, none for equal ones, and 1 / m."""
    return np.empty(0, z.dtype) if weights is None else weights.astype(z.dtype), z.dtype.type(1.0 / len(z))


def _or_none(cloud: Array | None, z: Array) -> Array:
    """Return a cloud as the kernels want it, of no length for None."""
    return np.empty((0, z.shape[1]), z.dtype) if cloud is None else np.ascontiguousarray(cloud, z.dtype)


def _trained(train: str) -> tuple[bool, bool]:
    return train != "u", train != "theta"


@parallel.serial_blas
def measure(
    activation: Activation,
    x: Array,
    z: Array,
    reference_cloud: Array | None,
    weights: Array | None,
    train: str = "both",
    *,
    gram: bool = True,
    variance: float | None = None,
) -> Measurement:
    """Return the sums that residual, Gram matrix and generator need; see `reference.measure`."""
    compiled = rows(activation, z.dtype)
    if compiled is None:
        return reference.measure(activation, x, z, reference_cloud, weights, train, gram=gram, variance=variance)
    inputs, z = samples(x, z.dtype), np.ascontiguousarray(z)
    n, (theta, outer) = inputs.n, _trained(train)
    norms = np.einsum("ij,ij->i", inputs.x, inputs.x).astype(np.float64)
    part_sum = _part_of_measure(
        compiled, inputs, z, _or_none(reference_cloud, z), *_masses(z, weights), train, gram, variance, norms
    )
    first, *matrices = sum_chunks(part_sum, len(z), n)
    first, norms = first[:, :n], norms[:n]
    psi, bend, pull, psi_far, bend_far, pull_far, slope_gap, value_gap, mean = first
    covariance = None
    if variance is not None:
        mass_square = 1.0 / len(z) if weights is None else float(weights @ weights)
        covariance = matrices.pop() - mass_square * np.outer(mean, mean)
    zero = np.zeros(n)
    laplacian, laplacian_far = (bend * norms, bend_far * norms) if theta else (zero, zero)
    pull, pull_far = (
        (pull if theta else zero) + (psi if outer else zero),
        (pull_far if theta else zero) + (psi_far if outer else zero),
    )
    gap = (slope_gap * norms if theta else zero) + (value_gap if outer else zero)
    h = matrices.pop() if gram else None
    return Measurement(psi.copy(), psi_far.copy(), laplacian, laplacian_far, pull, pull_far, gap, h, covariance)


def _part_of_measure(
    compiled: Rows, inputs: Samples, z: Array, far: Array, mass: Array, inverse: Any, train: str, gram: bool,
    variance: float | None, norms: Array,
) -> Callable[[slice], tuple]:  # fmt: skip
    n, padded, dtype = inputs.n, len(inputs.x), z.dtype
    theta, outer = _trained(train)
    inner = (inputs.x[:n] @ inputs.x[:n].T).astype(np.float64) if gram and theta else None
    wanted, rate = (gram, variance is not None), 0.0 if variance is None else 1 / variance
    rates = np.array([rate if theta else 0, rate if outer else 0], dtype)
    norms = (norms if theta else np.zeros_like(norms)).astype(dtype)
    size = chunk_size(n)
    levels = size.bit_length() + 1

    def part_sum(part: slice) -> tuple:
        width = (part.stop - part.start) * BLOCK
        room, more = (padded if gram else 0, width), (padded if variance is not None else 0, width)
        tree = (levels * passes.ROWS * padded * (8 // dtype.itemsize),)
        with lent(dtype, room, room, more, tree) as (values, slopes, seconds, raw):
            first = np.empty(passes.ROWS * padded)
            passes.measure(
                inputs.x, z, far, mass, inverse, part.start, part.stop, compiled.jet, wanted, norms, rates,
                (values, slopes, seconds), raw.view(np.float64).reshape(levels, passes.ROWS, padded), first,
            )  # fmt: skip
            out: tuple = (first.reshape(passes.ROWS, padded),)
            if gram:
                out += (_gram(slopes[:n], values[:n], inner, outer),)
            if variance is not None:
                out += (_square(seconds[:n]),)
        return out

    return part_sum


def _square(a: Array) -> Array:
    """Return A A' in float64."""
    return (a @ a.T).astype(np.float64, copy=False)


def _gram(slopes: Array, values: Array, inner: Array | None, outer: bool) -> Array:
    """Return the Gram matrix of a chunk over the trained coordinates; `inner` is X X', None where theta is frozen."""
    if inner is None:
        return _square(values)
    total = _square(slopes)
    total *= inner
    if outer:
        total += values @ values.T
    return total


@functools.lru_cache(maxsize=8)
def _factor(raw: bytes, n: int, power: int, dtype: np.dtype) -> Array:
    """Return L' (r + 1, n) with L L' = (X X')^power entry by entry, and |x_i|^2 in its last row."""
    x = np.frombuffer(raw, np.float64).reshape(n, -1)
    inner = x @ x.T
    values, vectors = np.linalg.eigh(inner**power)
    kept = values > ROUNDING * values[-1]
    factor = np.vstack([(vectors[:, kept] * np.sqrt(values[kept])).T, np.diag(inner)])
    return np.ascontiguousarray(factor, dtype)


def factor(x: Array, power: int, dtype: np.dtype) -> Array:
    """Return `_factor` of inputs, remembered by their bytes: O(n^3) once."""
    return _factor(np.ascontiguousarray(x, np.float64).tobytes(), len(x), power, dtype)


class Kick:
    """What a kick's chunks share: inputs and coefficients for the kernels, the cloud, and which coordinates move."""

    def __init__(self, compiled: Rows, x: Array, z: Array, weights: Array | None, c: Array, train: str) -> None:
        self.compiled, self.inputs, self.z = compiled, samples(x, z.dtype), z
        self.x, self.m, self.dtype = self.inputs.x, len(z), z.dtype
        self.c = self.inputs.pad(c)
        self.cx = self.c[:, None] * self.x
        self.masses = _masses(z, weights)
        self.train, self.original = _trained(train), x

    def rows(self, part: slice) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of gt, gu and u of a chunk."""
        blocks = part.stop - part.start
        return (blocks, self.x.shape[1], BLOCK), (blocks, BLOCK), (blocks, BLOCK)

    def fields(self, points: Array, start: int, part: slice, into: tuple, q2: Array, q3: Array) -> None:
        """Find the field at points from row `start` on, and c h'', c h''' where q2, q3 have room."""
        passes.fields(
            self.x, self.cx, self.c, points, part.start, part.stop, start, self.compiled.jet, self.compiled.pair, into,
            q2, q3,
        )  # fmt: skip

    def displace(self, part: slice, into: tuple, eps: float, target: Array, start: int) -> None:
        """Write z + eps b into `target` from row `start` on."""
        passes.displace(self.z, into, part.start, part.stop, self.dtype.type(eps), self.train, target, start)

    def along(self, part: slice, far: Array, points: Array, into: tuple, rest: Array) -> tuple:
        """Return what the account wants of a chunk, as one array of shape (4, n)."""
        out = np.zeros((4, len(self.x)))
        passes.along(
            self.z, far, points, self.x, *self.masses, part.start, part.stop, part.start * BLOCK, self.compiled.jet,
            into, rest, self.train, out,
        )  # fmt: skip
        return (out,)

    def moved(self, z: Array, sums: Array) -> Moved:
        """Return the record of a kick from the sums of `along`."""
        speed, pull, rest = sums[3, :3]
        push, push2, push3 = (row[: self.inputs.n].copy() for row in sums[:3])
        return Moved(z, float(speed), float(pull), float(rest), push, push2, push3)

    def shift(self, at: Array, eps: float) -> Array:
        """Return z + eps b(at)."""
        out, none = np.empty_like(self.z), np.empty((0, 0), self.dtype)

        def group(part: slice) -> None:
            with lent(self.dtype, *self.rows(part)) as into:
                self.fields(at, part.start * BLOCK, part, tuple(into), none, none)
                self.displace(part, tuple(into), eps, out, part.start * BLOCK)

        parallel.each_group(group, blocks_of(self.m), chunk_size(self.inputs.n))
        return out


@parallel.serial_blas
def kick(
    activation: Activation,
    x: Array,
    z: Array,
    reference_cloud: Array | None,
    weights: Array | None,
    c: Array,
    eps: float,
    train: str = "both",
    *,
    account: bool = False,
    at: Array | None = None,
) -> Moved:
    """Return T(z) = z + eps b(z) and the means that the account wants; see `reference.kick`."""
    compiled = rows(activation, z.dtype)
    if compiled is None:
        return reference.kick(
            activation, x, z, reference_cloud, weights, c, eps, train, account=account, at=at
        )
    made = Kick(compiled, x, np.ascontiguousarray(z), weights, c, train)
    points = made.z if at is None else np.ascontiguousarray(at, z.dtype)
    if not account:
        return Moved(made.shift(points, eps))
    far, out = _or_none(reference_cloud, z), np.empty_like(made.z)
    left = factor(x, 2, z.dtype)[:-1] if made.train[0] else np.empty((0, made.inputs.n), z.dtype)

    def part_sum(part: slice) -> tuple:
        into, width = made.rows(part), (part.stop - part.start) * BLOCK
        room = (len(made.x) if made.train[0] else 0, width)
        with lent(z.dtype, *into, room, (len(left), width), (width,), (width,)) as (gt, gu, u, q, p, bend, rest):
            own = gt, gu, u
            made.fields(points, part.start * BLOCK, part, own, q, q[:0])
            _bends(left, q, p, bend)
            passes.remainders(own, bend, float(eps), made.train, rest)
            made.displace(part, own, eps, out, part.start * BLOCK)
            return made.along(part, far, points, own, rest)

    (sums,) = sum_chunks(part_sum, made.m, made.inputs.n)
    return made.moved(out, sums)


def _bends(left: Array, q: Array, p: Array, bend: Array, count: int | None = None) -> None:
    """Set p = L' q and `bend` to the sums of squares of its first rows (all, if `count` is None)."""
    if len(left):
        np.matmul(left, q[: left.shape[1]], out=p)
    passes.squares(p, len(left) if count is None else count, bend)


@parallel.serial_blas
def midpoint_kick(
    activation: Activation,
    x: Array,
    z: Array,
    reference_cloud: Array | None,
    weights: Array | None,
    c: Array,
    eps: float,
    train: str = "both",
    *,
    account: bool = False,
    variance: float = 1.0,
) -> Moved:
    """Return the midpoint map z + eps b(z + eps b(z) / 2) and the means that the account wants; see `reference`."""
    compiled = rows(activation, z.dtype)
    if compiled is None:
        return reference.midpoint_kick(
            activation, x, z, reference_cloud, weights, c, eps, train, account=account, variance=variance
        )
    made, half = Kick(compiled, x, np.ascontiguousarray(z), weights, c, train), 0.5 * float(eps)
    if not account:
        return Moved(made.shift(made.shift(made.z, half), eps))
    far, out = _or_none(reference_cloud, z), np.empty_like(made.z)
    theta = made.train[0]
    left = factor(x, 2, z.dtype) if theta else np.zeros((1, made.inputs.n), z.dtype)

    def part_sum(part: slice) -> tuple:
        shapes, width = made.rows(part), (part.stop - part.start) * BLOCK
        room, product = (len(made.x) if theta else 0, width), (len(left), width)
        middle = (width, z.shape[1])
        with lent(z.dtype, *shapes, *shapes, room, product, product, (3, width), middle) as scratch:
            near, far_on, (q, pa, pb, bends, points) = tuple(scratch[:3]), tuple(scratch[3:6]), scratch[6:]
            made.fields(made.z, part.start * BLOCK, part, near, q, q[:0])
            if theta:
                _bends(left, q, pb, bends[1], len(left) - 1)
            points[-BLOCK:] = 0  # the last block may have fewer particles
            made.displace(part, near, half, points, 0)
            made.fields(points, 0, part, far_on, q, q[:0])
            if theta:
                _bends(left, q, pa, bends[0], len(left) - 1)
            passes.midpoint_remainders(
                near, far_on, pa, pb, bends, made.z, part.start, float(eps), float(variance), made.train, bends[2]
            )
            made.displace(part, far_on, eps, out, part.start * BLOCK)
            return made.along(part, far, made.z, far_on, bends[2])

    (sums,) = sum_chunks(part_sum, made.m, made.inputs.n)
    return made.moved(out, sums)


@parallel.serial_blas
def roughness(
    activation: Activation, x: Array, z: Array, weights: Array | None, c: Array, train: str = "both"
) -> tuple[float, float, float]:
    """Return the means of |grad phi|^2, |grad^2 phi|^2 and |grad^3 phi|^2, phi = sum_i c_i psi_i; see `reference`."""
    compiled = rows(activation, z.dtype)
    if compiled is None:
        return reference.roughness(activation, x, z, weights, c, train)
    made = Kick(compiled, x, np.ascontiguousarray(z), weights, c, train)
    theta = made.train[0]
    none = np.empty((0, made.inputs.n), z.dtype)
    left2, left3 = (factor(x, 2, z.dtype)[:-1], factor(x, 3, z.dtype)[:-1]) if theta else (none, none)

    def part_sum(part: slice) -> tuple:
        width = (part.stop - part.start) * BLOCK
        room, product = (len(made.x) if theta else 0, width), (max(len(left2), len(left3)), width)
        with lent(z.dtype, *made.rows(part), room, room, product, (2, width)) as (gt, gu, u, q2, q3, p, bends):
            made.fields(made.z, part.start * BLOCK, part, (gt, gu, u), q2, q3)
            _bends(left2, q2, p[: len(left2)], bends[0])
            _bends(left3, q3, p[: len(left3)], bends[1])
            out = np.zeros(3)
            passes.rough((gt, gu, u), bends[0], bends[1], *made.masses, part.start, made.m, made.train, out)
        return (out,)

    (sums,) = sum_chunks(part_sum, made.m, made.inputs.n)
    return float(sums[0]), float(sums[1]), float(sums[2])
