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
scalar version. Read `cloud` and `flow` next. A new use of randomness is one more member of `Stream`.
"""

import operator
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError

CHUNK = 8192  # counters at a time: the dozen work arrays of 64 KiB then stay in the second-level cache
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of words 0 and 2
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

Array = npt.NDArray[Any]
Range = tuple[int, int]  # first, count
_LOW = 0xFFFFFFFF
_COLUMN = np.array(MULTIPLIERS, dtype=np.uint64)[:, None]


class Stream(IntEnum):
    """What the numbers are for; streams never share a counter."""

    INIT = 0
    DIFFUSION = 1
    BATCH = 2
    DATA = 3
    PROBE = 4
    QUADRATURE = 5
    SAMPLE = 6


class Precision(NamedTuple):
    """Constants of `logarithm` and `cosine_sine` in one floating-point format.

    The polynomials, in the square of the variable, interpolate at Chebyshev nodes (computed with 60 digits,
    then rounded): `log` (log((1 + s)/(1 - s)) - 2 s) / s^3 on |s| <= 3 - sqrt 8, `sin` sin(pi f / 2) / f and
    `cos` (cos(pi f / 2) - 1) / f^2 on |f| <= 1/2. Largest relative errors of log, sin and cos from that, with
    the rounding of coefficients: float64 4.7e-18, 3.9e-17, 2.6e-17; float32 2.6e-9, 3.6e-8, 1.3e-8.
    """

    integer: type
    mantissa: int  # bits stored
    sqrt_half: int  # bits of sqrt(1/2)
    ln2: tuple[float, float]  # high part with enough zeros that an exponent times it is exact, and the rest
    log: tuple[float, ...]
    sin: tuple[float, ...]
    cos: tuple[float, ...]


_DOUBLE = Precision(
    np.int64, 52, 0x3FE6A09E667F3BCD, (0.6931471805598903, 5.497923018708371e-14),
    log=(0.666666666666667, 0.39999999999899505, 0.28571428625975487, 0.2222221113479508, 0.18182889125261723,
         0.15331721600556042, 0.14616449685043406),
    sin=(1.5707963267948966, -0.6459640975062443, 0.07969262624604301, -0.004681754132340976,
         0.0001604411507421909, -3.59864335298231e-06, 5.633933781537854e-08),
    cos=(-1.2337005501361697, 0.2536695079010478, -0.020863480763340773, 0.0009192602745468447,
         -2.5202039028029178e-05, 4.710678405505227e-07, -6.329396344967424e-09),
)  # fmt: skip
_SINGLE = Precision(
    np.int32, 23, 0x3F3504F3, (0.693145751953125, 1.428606765330187e-06),
    log=(0.6666668653488159, 0.3998878002166748, 0.29579949378967285),
    sin=(1.5707963705062866, -0.6459634900093079, 0.07968021929264069, -0.004602149128913879),
    cos=(-1.2337005138397217, 0.253669410943985, -0.02086152881383896, 0.0009067399078048766),
)  # fmt: skip
PRECISIONS = {np.dtype(np.float64): _DOUBLE, np.dtype(np.float32): _SINGLE}


def philox(counter: npt.ArrayLike, key: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Return Philox4x32-10 of every counter [Salmon11].

    Parameters
    ----------
    counter : uint32 array, shape (4, N)
    key : two words of 32 bits, the low one first

    Returns
    -------
    uint32 array, shape (4, N)
    """
    words = np.asarray(counter, dtype=np.uint64)
    low, high = (int(word) for word in np.asarray(key, dtype=np.uint64))
    even, odd = words[0::2].copy(), words[1::2].copy()
    _rounds(even, odd, round_keys(high << 32 | low))
    return np.stack([even[0], odd[0], even[1], odd[1]]).astype(np.uint32)


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
    per_block, pairs = (2, _pairs_double) if kind == np.float64 else (4, _pairs_single)
    width = _whole("width", width, 32)
    blocks = -(-width // per_block)
    counters = _Counters(seed, stream, step, replicate, (first, count), (first_block, blocks))
    out = np.empty((counters.count, width), dtype=kind)
    for rows, columns, even, odd in counters.chunks():
        block = out[rows, columns.start * per_block : columns.stop * per_block]
        for j, values in enumerate(pairs(even, odd)):
            target = block[:, j::per_block]
            target[...] = values.reshape(len(block), -1)[:, : target.shape[1]]
    return out


def uniforms(
    seed: int, stream: Stream | int, *, step: int, replicate: int = 0, first: int = 0, count: int
) -> npt.NDArray[np.float64]:
    """Return independent uniforms (k + 1/2) 2^-52 in (0, 1), shape (count,), k the upper 52 bits of w0 | w1.

    Parameters and errors are those of `normals`; the words are those of coordinate block 0.
    """
    counters = _Counters(seed, stream, step, replicate, (first, count), (0, 1))
    out = np.empty(counters.count)
    for rows, _, even, odd in counters.chunks():
        out[rows] = _fraction(_upper_bits(even[0], odd[0]))
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
    counters = _Counters(seed, Stream.BATCH, step, replicate, (0, n), (0, 1))
    if size > counters.count:
        raise InputError(f"a subset of size {size} does not fit into n = {n}.")
    keys = np.empty(counters.count, dtype=np.uint64)
    for rows, _, even, odd in counters.chunks():
        keys[rows] = even[0] << 32 | odd[0]
    if size == 0:
        return np.empty(0, dtype=np.intp)
    last = np.partition(keys, size - 1)[size - 1]
    below = np.flatnonzero(keys < last)
    ties = np.flatnonzero(keys == last)[: size - len(below)]
    return np.sort(np.concatenate([below, ties]))


def logarithm(x: Array) -> Array:
    """Return log x of positive normal numbers with an error below 1 ulp.

    x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt 2), and with s = f / (2 + f), R = s^2 P(s^2)
    log(1 + f) = 2 s + s R = f - s (f - R), where f is exact and the correction small.
    """
    p = PRECISIONS[x.dtype]
    bits = x.view(p.integer) - p.integer(p.sqrt_half)
    exponent = np.right_shift(bits, p.mantissa).astype(x.dtype)
    bits &= p.integer((1 << p.mantissa) - 1)
    bits += p.integer(p.sqrt_half)
    f = bits.view(x.dtype)
    f -= 1.0
    s = f + 2.0
    np.divide(f, s, out=s)
    z = s * s
    tail = _polynomial(p.log, z)
    tail *= z
    np.subtract(f, tail, out=tail)
    tail *= s
    np.multiply(exponent, p.ln2[1], out=z)
    tail -= z
    f -= tail
    exponent *= p.ln2[0]
    f += exponent
    return f


def cosine_sine(f: Array) -> tuple[Array, Array]:
    """Return cos(pi f / 2) and sin(pi f / 2) for |f| <= 1/2 with errors below 1.4 and 1.8 ulp."""
    p = PRECISIONS[f.dtype]
    z = f * f
    cosine = _polynomial(p.cos, z)
    cosine *= z
    cosine += 1.0
    sine = _polynomial(p.sin, z)
    sine *= f
    return cosine, sine


def _polynomial(coefficients: tuple[float, ...], z: Array) -> Array:
    """Evaluate c[0] + z (c[1] + z (...)) from the innermost bracket outwards."""
    value = z * z.dtype.type(coefficients[-1])
    for c in coefficients[-2:0:-1]:
        value += c
        value *= z
    value += coefficients[0]
    return value


class _Counters:
    """The rectangle of counters (particle, block) of one step, stream and replicate, walked in chunks."""

    def __init__(self, seed: int, stream: int, step: int, replicate: int, particles: Range, blocks: Range) -> None:
        try:
            stream = Stream(stream)
        except ValueError:
            raise InputError(f"unknown stream {stream!r}; streams are {[s.name for s in Stream]}.") from None
        self.keys = round_keys(_whole("seed", seed, 64))
        self.step = _whole("step", step, 32)
        self.last_word = stream << 24 | _whole("replicate", replicate, 24)
        self.first, self.count = _span("particles", *particles)
        self.first_block, self.blocks = _span("coordinate blocks", *blocks)

    def chunks(self) -> Iterator[tuple[slice, slice, Array, Array]]:
        """Yield rows, blocks and their words (w0, w2), (w1, w3), each of shape (2, rows * blocks)."""
        across = max(1, min(self.blocks, CHUNK))
        down = CHUNK // across
        for top in range(0, self.count, down):
            rows = slice(top, min(top + down, self.count))
            for left in range(0, self.blocks, across):
                columns = slice(left, min(left + across, self.blocks))
                yield rows, columns, *self._words(rows, columns)

    def _words(self, rows: slice, columns: slice) -> tuple[Array, Array]:
        shape = (2, rows.stop - rows.start, columns.stop - columns.start)
        even, odd = np.empty(shape, dtype=np.uint64), np.empty(shape, dtype=np.uint64)
        even[0] = np.arange(self.first + rows.start, self.first + rows.stop, dtype=np.uint64)[:, None]
        even[1] = self.step
        odd[0] = np.arange(self.first_block + columns.start, self.first_block + columns.stop, dtype=np.uint64)
        odd[1] = self.last_word
        even, odd = even.reshape(2, -1), odd.reshape(2, -1)
        _rounds(even, odd, self.keys)
        return even, odd


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


def round_keys(seed: int) -> Array:
    """Return the key of every round, low word first, shape (ROUNDS, 2, 1)."""
    low, high = seed & _LOW, seed >> 32
    pairs = [(low + i * KEY_INCREMENTS[0] & _LOW, high + i * KEY_INCREMENTS[1] & _LOW) for i in range(ROUNDS)]
    return np.array(pairs, dtype=np.uint64)[:, :, None]


def _rounds(even: Array, odd: Array, keys: Array) -> None:
    """Turn counter words (0, 2) and (1, 3), uint64 of shape (2, N), into the output words in place."""
    product = np.empty_like(even)
    crossed = product[::-1]
    for key in keys:
        np.multiply(even, _COLUMN, out=product)
        np.right_shift(crossed, 32, out=even)
        even ^= odd
        even ^= key
        np.bitwise_and(crossed, _LOW, out=odd)


def _upper_bits(high: Array, low: Array) -> Array:
    """Return the upper 52 bits of the 64-bit integers high | low."""
    bits = high << 20
    bits |= low >> 12
    return bits


def _fraction(bits: Array) -> Array:
    """Return (k + 1/2) 2^-52 of integers k below 2^52; exact."""
    # The bits of a double in [1, 2) are 0x3FF followed by its fraction.
    fraction = (bits | 0x3FF0000000000000).view(np.float64)
    fraction -= 1.0 - 2.0**-53
    return fraction


def _pairs_double(even: Array, odd: Array) -> tuple[Array, ...]:
    bits = _upper_bits(even, odd)
    # (k + 1/2) 2^-50 - 1/2 is the fraction of 4 k, plus 3 halves of its last place, minus 1/2: exact.
    angle = ((bits[1] & ((1 << 50) - 1)) << 2 | 0x3FF0000000000000).view(np.float64)
    angle -= 1.5 - 2.0**-51
    return _box_muller(_fraction(bits[0]), angle, bits[1] << 12)


def _pairs_single(even: Array, odd: Array) -> tuple[Array, ...]:
    u = even.astype(np.uint32).astype(np.float32)
    u += 0.5
    u *= 2.0**-32
    np.minimum(u, 1.0 - 2.0**-24, out=u)
    signs = odd.astype(np.uint32)
    angle = ((signs & ((1 << 30) - 1)).view(np.int32) - np.int32(1 << 29)).astype(np.float32)
    angle += 0.5
    angle *= 2.0**-30
    x, y = _box_muller(u, angle, signs)
    return x[0], y[0], x[1], y[1]


def _box_muller(u: Array, angle: Array, signs: Array) -> tuple[Array, Array]:
    """Return x and y of the module's formula, given the signs in the two uppermost bits of an integer."""
    radius = logarithm(u)
    np.negative(radius, out=radius)
    np.sqrt(radius, out=radius)
    cosine, sine = cosine_sine(angle)
    x, y = cosine - sine, np.add(cosine, sine, out=sine)
    sign_bit = 1 << 8 * signs.itemsize - 1
    for value, sign in ((x, signs), (y, signs << 1)):
        value *= radius
        magnitude = value.view(signs.dtype)
        magnitude ^= sign & sign_bit
    return x, y
