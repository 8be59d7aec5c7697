"""Random numbers that are functions of named integers, equal to the last bit wherever they are computed.

The four 32-bit words of Philox4x32-10 [Salmon11] at key = seed and counter = (particle, coordinate block,
step, stream << 24 | replicate) become normals by the formula of Box and Muller. Nothing is stored, so the
noise knows no threads, chunks, ranks or restarts, and a cloud of m particles is the prefix of that of 2 m.

In float64 the words w0..w3 give two normals (a | b joins bits, the most significant first):

    u = (k + 1/2) 2^-52,         k = the upper 52 bits of w0 | w1
    f = (k + 1/2) 2^-50 - 1/2,   k = the lower 50 of the upper 52 bits of w2 | w3
    x = sqrt(-log u) (cos(pi f / 2) - sin(pi f / 2))
    y = sqrt(-log u) (cos(pi f / 2) + sin(pi f / 2))

and the two uppermost bits of w2 are the signs of x and y: the angle pi/4 + pi f / 2 is uniform in a quadrant,
its cosine is (cos - sin) / sqrt 2. In float32 they give four, a pair from (w0, w1) and one from (w2, w3), all
in float32 arithmetic, which a GPU does many times faster than float64 (signs above the 30 bits):

    u = min((w0 + 1/2) 2^-32, 1 - 2^-24)
    f = (k - 2^29 + 1/2) 2^-30,  k = the lower 30 bits of w1

So |x| reaches 8.57 in float64 and 6.76 in float32. `logarithm` and `cosine_sine` use +, -, *, /, sqrt and
integer operations of IEEE 754 alone, rounded one by one in the order written here: no fused multiply-add.
Who writes a backend copies that order and takes the constants from `PRECISIONS`; tests/test_noise.py holds a
scalar version. `counters` makes the words, several thousand at a time, and everything here is done in passes over
the same few arrays. Read `cloud` and `flow` next. A new use of randomness is one more member of `Stream`.
"""

import operator
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import counters
from meanfield.boxmuller import PRECISIONS as PRECISIONS
from meanfield.boxmuller import Precision as Precision
from meanfield.boxmuller import cosine_sine as cosine_sine
from meanfield.boxmuller import fraction, pairs
from meanfield.boxmuller import logarithm as logarithm
from meanfield.counters import KEY_INCREMENTS as KEY_INCREMENTS
from meanfield.counters import MULTIPLIERS as MULTIPLIERS
from meanfield.counters import ROUNDS as ROUNDS
from meanfield.counters import philox as philox
from meanfield.counters import round_keys as round_keys
from meanfield.errors import InputError

Array = npt.NDArray[Any]
Range = tuple[int, int]  # first, count
NARROW = 8  # blocks


class Stream(IntEnum):
    """What the numbers are for; streams never share a counter."""

    INIT = 0
    DIFFUSION = 1
    BATCH = 2
    DATA = 3
    PROBE = 4
    QUADRATURE = 5
    SAMPLE = 6


def normals(
    seed: int,
    stream: Stream | int,
    *,
    step: int,
    replicate: int = 0,
    first: int = 0,
    count: int,
    width: int,
    dtype: npt.DTypeLike = np.float64,
    first_block: int = 0,
) -> Array:
    """Return independent standard normals, a row for each particle.

    Row j belongs to particle first + j. Block first_block + b gives columns (2 b, 2 b + 1) in float64 and
    4 b .. 4 b + 3 in float32, so columns do not depend on `width`, nor rows on `first` and `count`.

    Parameters
    ----------
    seed : int, 0 <= seed < 2^64
    stream : Stream
    step, first, count, width, first_block : int; particles, blocks and steps are numbered by 32 bits
    replicate : int, below 2^24
    dtype : float64 or float32; the arithmetic is done in it

    Returns
    -------
    ndarray, shape (count, width)

    Raises
    ------
    InputError
        If a number is negative or too large for its place in the counter, or the dtype is another one.

    Notes
    -----
    The error of x is at most 2 eps sqrt(-2 log u), eps = 2^-52 or 2^-23. O(count width).
    """
    kind = np.dtype(dtype)
    if kind not in PRECISIONS:
        raise InputError(f"normals come in float64 or float32, not {kind}.")
    per_block = 16 // kind.itemsize
    width = _whole("width", width, 32)
    name = _Counters(seed, stream, step, replicate, (first, count), (first_block, -(-width // per_block)))
    out = np.empty((name.count, width), dtype=kind)
    for rows, columns, work in name.chunks():
        block = out[rows, columns.start * per_block : columns.stop * per_block]
        for j, values in enumerate(pairs(work, kind)):
            _spread(values.reshape(-1, len(block)), block[:, j::per_block])
    return out


def uniforms(
    seed: int, stream: Stream | int, *, step: int, replicate: int = 0, first: int = 0, count: int
) -> npt.NDArray[np.float64]:
    """Return independent uniforms (k + 1/2) 2^-52 in (0, 1), shape (count,), k the upper 52 bits of w0 | w1.

    Parameters and errors are those of `normals`; the words are those of coordinate block 0.
    """
    name = _Counters(seed, stream, step, replicate, (first, count), (0, 1))
    out = np.empty(name.count)
    for rows, _, work in name.chunks():
        out[rows] = fraction(work[0])
    return out


def random_subset(seed: int, *, step: int, replicate: int = 0, n: int, size: int) -> npt.NDArray[np.intp]:
    """Return `size` of the indices 0 .. n - 1, sorted, every subset equally likely.

    They are the indices with the smallest keys, key i = w0 | w1 at particle i in stream BATCH; equal keys, of
    probability n^2 2^-65, are ranked by index. O(n).

    Raises
    ------
    InputError
        If not 0 <= size <= n, or as in `normals`.
    """
    size = _whole("size", size, 32)
    name = _Counters(seed, Stream.BATCH, step, replicate, (0, n), (0, 1))
    if size > name.count:
        raise InputError(f"a subset of size {size} does not fit into n = {n}.")
    keys = np.empty(name.count, dtype=np.uint64)
    for rows, _, work in name.chunks():
        keys[rows] = work[0]
    if size == 0:
        return np.empty(0, dtype=np.intp)
    last = np.partition(keys, size - 1)[size - 1]
    below = np.flatnonzero(keys < last)
    ties = np.flatnonzero(keys == last)[: size - len(below)]
    return np.sort(np.concatenate([below, ties]))


class _Counters:
    """The rectangle of counters (particle, block) of one step, stream and replicate, walked in chunks."""

    def __init__(self, seed: int, stream: int, step: int, replicate: int, particles: Range, blocks: Range) -> None:
        try:
            stream = Stream(stream)
        except ValueError:
            raise InputError(f"unknown stream {stream!r}; streams are {[s.name for s in Stream]}.") from None
        self.seed = _whole("seed", seed, 64)
        self.step = _whole("step", step, 32)
        self.last_word = stream << 24 | _whole("replicate", replicate, 24)
        self.first, self.count = _span("particles", *particles)
        self.first_block, self.blocks = _span("coordinate blocks", *blocks)

    def chunks(self) -> Iterator[tuple[slice, slice, Array]]:
        """Yield rows, blocks and work space that begins with their words; see `counters.chunks`."""
        particles, blocks = (self.first, self.count), (self.first_block, self.blocks)
        return counters.chunks(self.seed, self.step, self.last_word, particles, blocks)


def _whole(name: str, value: int, bits: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number, got {value!r}.") from None
    if not 0 <= number < 1 << bits:
        raise InputError(f"{name} must be at least 0 and below 2^{bits}, got {number}.")
    return number


def _span(name: str, first: int, count: int) -> Range:
    first, count = _whole(f"the first of the {name}", first, 32), _whole(f"the number of {name}", count, 33)
    if first + count > 1 << 32:
        raise InputError(f"{name} are numbered below 2^32, got {first} .. {first + count - 1}.")
    return first, count


def _spread(columns: Array, out: Array) -> None:
    """Write columns, one a row, into the columns of `out` as far as it has them."""
    if len(columns) > NARROW:
        out[...] = columns[: out.shape[1]].T
        return
    for column, target in zip(columns, out.T, strict=False):  # several times faster than a transposed copy of few
        target[...] = column
