"""The measured half of the fused CPU backend: sums over a cloud, and kicks with their account.

The kernels of `passes` and `kicks` work a chunk of blocks at a time, and chunks are combined in the dyadic tree of
`parallel` as they come. Chunks depend on sizes alone, so any number of threads gives the same bits, and psi has those
of `predict`.
What costs more than first-order sums, a particle:

    Gram matrix   sum_j w_j (u h'_i)(u h'_k) <x_i, x_k> + sum_j w_j h_i h_k         two halves of A A', n^2
    covariance    sum_j a_j a_j', a_j = w_j (A psi(Z_j) - A psi(Zbar_j))           one more, n^2 / 2
    curvature     q' (G o G) q = |L' q|^2, L of rank r <= min(n, d (d + 1) / 2)    n r

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
from meanfield.backends import Measurement, Moved, kicks, passes, reference
from meanfield.backends.fused import BLOCK
from meanfield.backends.lanes import SAMPLES
from meanfield.backends.rows import Rows, rows_for
from meanfield.backends.samples import Samples, blocks_of, samples
from meanfield.units import Activation

Array = np.ndarray
# A strip, what a kernel of `measure` works at a time, holds at least so many (particle, sample) pairs and so many
# particles. A chunk, what threads take, is at least n particles, so that an n x n product costs more than what becomes
# of its result.
STRIP, NARROW = 1 << 16, 256
# Eigenvalues of G o G and G o G o G below this share of the largest are rounding.
ROUNDING = 1e-13
SPARE = 1 << 26  # scratch of more bytes is not kept for the next call

_own = threading.local()  # each thread's scratch, used again: fresh pages would cost more than a strip


@contextlib.contextmanager
def lent(dtype: np.dtype, *shapes: tuple[int, ...]) -> Iterator[list[Array]]:
    """Lend arrays, of whatever content, for the time of a chunk."""
    bounds, size = [], 0
    for shape in shapes:
        bounds.append((size, size + math.prod(shape) * dtype.itemsize))
        size = -(-bounds[-1][1] // 64) * 64
    if not hasattr(_own, "spare"):
        _own.spare = []
    raw = _own.spare.pop() if _own.spare else np.empty(0, np.uint8)
    if raw.size < size + 64:
        raw = np.empty(size + 64, np.uint8)
    raw_start = -raw.__array_interface__["data"][0] % 64
    out = [raw[raw_start + a : raw_start + b].view(dtype).reshape(s) for (a, b), s in zip(bounds, shapes, strict=True)]
    try:
        yield out
    finally:
        if raw.size <= SPARE:
            _own.spare.append(raw)


def strip_size(n: int) -> int:
    """Return the number of blocks that a kernel works at a time, a power of two that depends on n alone."""
    size = 1
    while size * BLOCK * n < STRIP or size * BLOCK < NARROW:
        size *= 2
    return size


def chunk_size(n: int) -> int:
    """Return the number of blocks in a chunk, a power of two of strips that depends on n alone."""
    size = strip_size(n)
    while size * BLOCK < n:
        size *= 2
    return size


def sum_chunks(function: Callable[[slice], tuple], m: int, n: int) -> tuple:
    """Return the dyadic sum of function(blocks of a chunk) over all chunks, worked by the threads."""
    return parallel.sum_groups(function, blocks_of(m), chunk_size(n), BLOCK)


def _masses(z: Array, weights: Array | None) -> tuple[Array, Any]:
    """Return the weights in the dtype of the cloud, none for equal ones, and 1 / m."""
    mass = np.empty(0, z.dtype) if weights is None else weights.astype(z.dtype)
    return mass, z.dtype.type(1.0 / parallel.total(len(z)))


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
    compiled = rows_for(activation, x, z)
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
        mass_square = 1.0 / parallel.total(len(z)) if weights is None else float(weights @ weights)
        covariance = _whole(matrices.pop(), n) - mass_square * np.outer(mean, mean)
    zero = np.zeros(n)
    laplacian, laplacian_far = (bend * norms, bend_far * norms) if theta else (zero, zero)
    pull, pull_far = (
        (pull if theta else zero) + (psi if outer else zero),
        (pull_far if theta else zero) + (psi_far if outer else zero),
    )
    gap = (slope_gap * norms if theta else zero) + (value_gap if outer else zero)
    h = _whole(matrices.pop(), n) if gram else None
    return Measurement(psi.copy(), psi_far.copy(), laplacian, laplacian_far, pull, pull_far, gap, h, covariance)


def _part_of_measure(
    compiled: Rows, inputs: Samples, z: Array, far: Array, mass: Array, inverse: Any, train: str, gram: bool,
    variance: float | None, norms: Array,
) -> Callable[[slice], tuple]:  # fmt: skip
    padded, dtype, trained = len(inputs.x), z.dtype, _trained(train)
    second, rate = variance is not None, 0.0 if variance is None else 1 / variance
    rates = np.array([rate if trained[0] else 0, rate if trained[1] else 0], dtype)
    scales = ((norms if trained[0] else np.zeros_like(norms)).astype(dtype), rates)
    gramian = (inputs.x @ inputs.x.T).astype(np.float64) if gram and trained[0] else np.zeros((0, 0))
    strip = strip_size(inputs.n)
    square, half = (padded, padded), (padded, padded if all(trained) else 0)
    levels = strip.bit_length() + 1

    def part_sum(part: slice) -> tuple:
        # Rows are a vector longer than they need be, so that they don't all begin in the same set of a cache.
        width = min(strip, part.stop - part.start) * BLOCK + 64 // dtype.itemsize
        sums, out = parallel.DyadicSum(), [np.zeros(square) for wanted in (gram, second) if wanted]
        shapes = [(padded if wanted else 0, width) for wanted in (gram, gram, second)]
        more = np.zeros(half if gram else (0, 0))
        with lent(dtype, *shapes) as spanned, lent(np.dtype(float), (levels, passes.ROWS, padded)) as (tree,):
            for first in range(part.start, part.stop, strip):
                last, made = min(first + strip, part.stop), np.empty(passes.ROWS * padded)
                passes.measure(
                    inputs.x, z, far, mass, inverse, first, last, compiled.jet, (gram, second), scales,
                    tuple(spanned), tree, made,
                )  # fmt: skip
                sums.add(made)
                if gram:
                    passes.gram(spanned[0], spanned[1], (last - first) * BLOCK, trained, out[0], more)
                if second:
                    passes.multiply(spanned[2], (last - first) * BLOCK, out[-1])
        if gram and trained[0]:
            passes.hadamard(out[0], gramian, more)
        return (sums.total().reshape(passes.ROWS, padded), *out)

    return part_sum


def _whole(upper: Array, n: int) -> Array:
    """Return a symmetric matrix from what is on and above the diagonal."""
    upper = np.triu(upper[:n, :n])
    return upper + np.triu(upper, 1).T


@functools.lru_cache(maxsize=8)
def _factor(raw: bytes, n: int, power: int) -> Array:
    x = np.frombuffer(raw, np.float64).reshape(n, -1)
    values, vectors = np.linalg.eigh((x @ x.T) ** power)
    kept = values > ROUNDING * values[-1]
    return np.ascontiguousarray((vectors[:, kept] * np.sqrt(values[kept])).T)


def factor(x: Array, power: int) -> Array:
    """Return L' (r, n) with L L' = (X X')^power entry by entry, remembered by the bytes of x: O(n^3) once."""
    return _factor(np.ascontiguousarray(x, np.float64).tobytes(), len(x), power)


class Kick:
    """What the chunks of a kick share: inputs, coefficients and clouds for the kernels, and which coordinates move."""

    def __init__(self, activation: Activation, x: Array, z: Array, weights: Array | None, c: Array, train: str) -> None:
        compiled = rows_for(activation, x, z)
        assert compiled is not None
        self.compiled, self.inputs, self.z = compiled, samples(x, z.dtype), np.ascontiguousarray(z)
        self.n, self.x, self.dtype = self.inputs.n, self.inputs.x, z.dtype
        self.c = self.inputs.pad(c)
        self.field = (self.x, self.c[:, None] * self.x, self.c)
        self.masses, self.train, self.original = _masses(z, weights), _trained(train), x

    def left(self, power: int) -> Array:
        """Return `factor` times c, padded with zeros; no rows where theta is frozen."""
        if not self.train[0]:
            return np.empty((0, len(self.x)), self.dtype)
        whole = factor(self.original, power)
        out = np.zeros((-(-len(whole) // SAMPLES) * SAMPLES, len(self.x)), self.dtype)
        out[: len(whole), : self.n] = whole * self.c[: self.n]
        return out

    def rounded_left(self) -> tuple[Array, float, float]:
        """Return the matrix of `left(2)` over its largest entry in float32, its Frobenius norm, and that entry."""
        left = self.left(2)
        scale = float(np.abs(left).max(initial=0.0)) or 1.0
        left = (left / scale).astype(np.float32)
        return left, float(np.linalg.norm(left.astype(np.float64))), scale

    @property
    def kept(self) -> tuple[int, ...]:
        """The shape of h and its three derivatives of a block."""
        return 4, len(self.x), BLOCK

    def shift(self, points: Array, eps: float, half: float) -> Moved:
        """Return z + eps b(points), or with `half` not zero z + eps b(points + half b(points))."""
        out = np.empty_like(self.z)
        lengths = (self.dtype.type(eps), self.dtype.type(half))

        def group(part: slice) -> None:
            kicks.shift(
                *self.field, (self.z, points, out), part.start, part.stop, self.compiled.pair, lengths, self.train
            )

        parallel.each_group(group, blocks_of(len(self.z)), chunk_size(self.n))
        return Moved(out)

    def kicked(self, points: Array, far: Array | None, eps: float) -> Moved:
        """Return z + eps b(points) with its account."""
        left, single = self.rounded_left(), (len(self.x), BLOCK)

        def work(clouds: tuple, part: slice, sums: Array) -> None:
            with self._lent(1) as (kept, push), lent(np.dtype(np.float32), single) as (narrow,):
                kicks.kick(
                    *self.field, left, clouds, *self.masses, part.start, part.stop, self.compiled.jet, eps,
                    self.train, (kept, push, narrow), sums,
                )  # fmt: skip

        return self._moved(work, points, far)

    def midpoint(self, far: Array | None, eps: float, variance: float) -> Moved:
        """Return z + eps b(z + eps b(z) / 2) with its account."""
        left, traces = self.left(2), self.c * np.einsum("ij,ij->i", self.x, self.x)

        def work(clouds: tuple, part: slice, sums: Array) -> None:
            with self._lent(2) as scratch:
                kicks.midpoint(
                    *self.field, left, clouds, *self.masses, part.start, part.stop, self.compiled.jet,
                    (eps, variance), self.train, (*scratch, traces), sums,
                )  # fmt: skip

        return self._moved(work, self.z, far)

    @contextlib.contextmanager
    def _lent(self, blocks: int) -> Iterator[tuple]:
        """Lend rows of h and its derivatives of so many blocks, and those of derivatives along the field."""
        push = (kicks.PUSHES, len(self.x))
        with lent(self.dtype, *[self.kept] * blocks) as kept, lent(np.dtype(float), push) as (rows,):
            yield (*(tuple(k) for k in kept), rows)

    def _moved(self, work: Callable[[tuple, slice, Array], None], points: Array, far: Array | None) -> Moved:
        out = np.empty_like(self.z)
        clouds = (self.z, points, _or_none(far, self.z), out)

        def part_sum(part: slice) -> tuple:
            sums = np.zeros((kicks.PUSHES + 1, len(self.x)))
            work(clouds, part, sums)
            return (sums,)

        (sums,) = sum_chunks(part_sum, len(self.z), self.n)
        speed, pull, rest = (float(v) for v in sums[kicks.PUSHES, :3])
        return Moved(out, speed, pull, rest, *(row[: self.n].copy() for row in sums[: kicks.PUSHES]))


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
    if rows_for(activation, x, z) is None:
        return reference.kick(activation, x, z, reference_cloud, weights, c, eps, train, account=account, at=at)
    made = Kick(activation, x, z, weights, c, train)
    points = made.z if at is None else np.ascontiguousarray(at, z.dtype)
    if not account:
        return made.shift(points, eps, 0.0)
    return made.kicked(points, reference_cloud, float(eps))


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
    if rows_for(activation, x, z) is None:
        return reference.midpoint_kick(
            activation, x, z, reference_cloud, weights, c, eps, train, account=account, variance=variance
        )
    made = Kick(activation, x, z, weights, c, train)
    if not account:
        return made.shift(made.z, eps, 0.5 * float(eps))
    return made.midpoint(reference_cloud, float(eps), float(variance))


@parallel.serial_blas
def roughness(
    activation: Activation, x: Array, z: Array, weights: Array | None, c: Array, train: str = "both"
) -> tuple[float, float, float]:
    """Return the means of |grad phi|^2, |grad^2 phi|^2 and |grad^3 phi|^2, phi = sum_i c_i psi_i; see `reference`."""
    if rows_for(activation, x, z) is None:
        return reference.roughness(activation, x, z, weights, c, train)
    made = Kick(activation, x, z, weights, c, train)
    lefts = (made.left(2), made.left(3))

    def part_sum(part: slice) -> tuple:
        out = np.zeros((2, 3))
        with lent(z.dtype, made.kept) as (kept,):
            kicks.rough(
                *made.field, lefts, made.z, *made.masses, part.start, part.stop, made.compiled.jet, made.train,
                tuple(kept), out,
            )  # fmt: skip
        return (out,)

    (sums,) = sum_chunks(part_sum, len(z), made.n)
    return float(sums[0, 0]), float(sums[0, 2]), float(sums[1, 0])
