"""The formula of Box and Muller in passes over arrays: from the words of `counters` to the normals of `noise`.

`noise` says what is computed and in which order it is rounded. Here it is done in place, in six arrays of work space
that take turns, and constants are arrays without dimensions: a pass over few numbers costs hardly more than numpy's
call, and turning a Python number into an array would double that.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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


class _Constants:
    """The numbers of a format as arrays without dimensions, of the types in which they are used."""

    def __init__(self, kind: np.dtype[Any]) -> None:
        p, bits = PRECISIONS[kind], 8 * kind.itemsize
        integer, unsigned = np.dtype(f"i{kind.itemsize}"), np.dtype(f"u{kind.itemsize}")
        self.integer, self.unsigned = integer, unsigned
        self.log, self.sin, self.cos, self.ln2 = (
            [np.array(c, kind) for c in numbers] for numbers in (p.log, p.sin, p.cos, p.ln2)
        )
        self.half, self.one, self.two = (np.array(c, kind) for c in (0.5, 1.0, 2.0))
        self.sqrt_half, self.mantissa = np.array(p.sqrt_half, integer), np.array(p.mantissa, integer)
        self.mask = np.array((1 << p.mantissa) - 1, integer)
        self.sign, self.shift = np.array(1 << bits - 1, unsigned), np.array(1, unsigned)


_CONSTANTS = {np.dtype(kind): _Constants(np.dtype(kind)) for kind in (np.float64, np.float32)}
_ONE_BITS = np.array(0x3FF0000000000000, np.uint64)  # of 1.0; a double in [1, 2) is 0x3FF followed by its fraction
_TWELVE, _TEN, _HALF_WORD = (np.array(shift, np.uint64) for shift in (12, 10, 32))
_ANGLE_BITS, _ANGLE_BITS_SINGLE = np.array((1 << 52) - 4, np.uint64), np.array((1 << 30) - 1, np.uint32)
_FRACTION, _ANGLE = np.array(1.0 - 2.0**-53), np.array(1.5 - 2.0**-51)
_WORD, _BELOW_ONE, _TURN = (np.array(c, np.float32) for c in (2.0**-32, 1.0 - 2.0**-24, 2.0**-30))
_CENTRE = np.array(1 << 29, np.int32)


def logarithm(x: Array) -> Array:
    """Return log x of positive normal numbers with an error below 1 ulp."""
    out = x.copy()
    _logarithm(out, *np.empty((4, *x.shape), dtype=x.dtype))
    return out


def cosine_sine(f: Array) -> tuple[Array, Array]:
    """Return cos(pi f / 2) and sin(pi f / 2) for |f| <= 1/2 with errors below 1.4 and 1.8 ulp."""
    square, cosine, sine = np.empty((3, *f.shape), dtype=f.dtype)
    _cosine_sine(f, square, cosine, sine)
    return cosine, sine


def fraction(words: Array) -> Array:
    """Turn the words w0 | w1 into u = (k + 1/2) 2^-52 in place, k their upper 52 bits; exact."""
    words >>= _TWELVE
    return _fraction(words, _FRACTION)


def pairs(work: Array, kind: np.dtype[Any]) -> tuple[Array, ...]:
    """Return the two (float64) or four (float32) normals of each counter.

    Parameters
    ----------
    work : uint64 array, shape (6, N)
        Begins with the words w0 | w1 and w2 | w3; used up, and holds what is returned.
    """
    if kind == np.float64:
        bits, signs, *spare = work
        return _box_muller(fraction(bits), signs, *(array.view(kind) for array in spare))
    n, (a, b, u, c, *free) = work.shape[1], work.view(np.float32)
    words, signs = work[:2], c.view(np.uint32)
    np.copyto(signs.reshape(2, n), words, casting="same_kind")  # the lower halves, w1 and w3
    words >>= _HALF_WORD
    np.copyto(u.reshape(2, n), words.view(np.int64), casting="same_kind")
    u += _CONSTANTS[kind].half
    u *= _WORD
    np.minimum(u, _BELOW_ONE, out=u)
    x, y = _box_muller(u, signs, a, b, *free)
    return x[:n], y[:n], x[n:], y[n:]


def _box_muller(u: Array, signs: Array, *spare: Array) -> tuple[Array, Array]:
    """Return x and y of the formula, given the words of the angle, in the first and the last of four spare arrays."""
    constants = _CONSTANTS[u.dtype]
    _logarithm(u, *spare)
    radius = np.sqrt(np.negative(u, out=u), out=u)
    x, square, cosine, y = spare
    _angle(signs, x, square)
    _cosine_sine(x, square, cosine, y)
    np.subtract(cosine, y, out=x)
    y += cosine
    sign = square.view(constants.unsigned)
    for value in (x, y):
        value *= radius
        np.bitwise_and(signs, constants.sign, out=sign)
        bits = value.view(constants.unsigned)
        bits ^= sign
        signs <<= constants.shift
    return x, y


def _angle(signs: Array, f: Array, spare: Array) -> None:
    """Write the f of the formula."""
    if f.dtype == np.float64:
        bits = f.view(np.uint64)
        # (k + 1/2) 2^-50 - 1/2 is the fraction of 4 k, plus 3 halves of its last place, minus 1/2: exact.
        np.right_shift(signs, _TEN, out=bits)
        bits &= _ANGLE_BITS
        _fraction(bits, _ANGLE)
        return
    turn = spare.view(np.int32)
    np.bitwise_and(signs, _ANGLE_BITS_SINGLE, out=turn.view(np.uint32))
    turn -= _CENTRE
    np.copyto(f, turn, casting="same_kind")
    f += _CONSTANTS[f.dtype].half
    f *= _TURN


def _fraction(bits: Array, offset: Array) -> Array:
    """Turn integers k below 2^52 into 1 + k 2^-52 - offset, in place."""
    bits |= _ONE_BITS
    values = bits.view(np.float64)
    values -= offset
    return values


def _logarithm(f: Array, s: Array, z: Array, tail: Array, exponent: Array) -> None:
    """Turn x into log x in place; the others are work space.

    x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt 2), and with s = f / (2 + f), R = s^2 P(s^2)
    log(1 + f) = 2 s + s R = f - s (f - R), where f is exact and the correction small.
    """
    c = _CONSTANTS[f.dtype]
    bits, whole = f.view(c.integer), s.view(c.integer)
    bits -= c.sqrt_half
    np.right_shift(bits, c.mantissa, out=whole)
    np.copyto(exponent, whole, casting="same_kind")
    bits &= c.mask
    bits += c.sqrt_half
    f -= c.one
    np.add(f, c.two, out=s)
    np.divide(f, s, out=s)
    np.multiply(s, s, out=z)
    _polynomial(c.log, z, tail)
    tail *= z
    np.subtract(f, tail, out=tail)
    tail *= s
    np.multiply(exponent, c.ln2[1], out=z)
    tail -= z
    f -= tail
    exponent *= c.ln2[0]
    f += exponent


def _cosine_sine(f: Array, square: Array, cosine: Array, sine: Array) -> None:
    """Write cos(pi f / 2) and sin(pi f / 2)."""
    c = _CONSTANTS[f.dtype]
    np.multiply(f, f, out=square)
    _polynomial(c.cos, square, cosine)
    cosine *= square
    cosine += c.one
    _polynomial(c.sin, square, sine)
    sine *= f


def _polynomial(coefficients: list[Array], z: Array, value: Array) -> None:
    """Write c[0] + z (c[1] + z (...)), evaluated from the innermost bracket outwards, into value."""
    np.multiply(z, coefficients[-1], out=value)
    for c in coefficients[-2:0:-1]:
        value += c
        value *= z
    value += coefficients[0]
