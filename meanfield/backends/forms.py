"""Pair kernels as two numbers of a pair, and the functions that they are made of, for `tiles`.

A form is a function of s, the sum over coordinates of a product of `factors`: |p - q|^2 or p . q. Of s it makes A and
B, both symmetric in p and q; the sums over particles of A w q and B w are all that a kernel's value and gradient need.

To add a kernel, write its form (a NamedTuple without fields: Numba compiles anew for each), and its sums in `pairwise`.
"""

from typing import NamedTuple

import numpy as np

from meanfield.backends.elementary import Real

_DOUBLE, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)
# Largest errors, in units of the last place of the exact result, that 5 10^7 points found; rounded upwards.
ULP = {"decay": {_DOUBLE: 2.5, _SINGLE: 1.0}, "arcsin": {_DOUBLE: 2.3, _SINGLE: 2.4}}
# Polynomials by the algorithm of Remez, as in `elementary`: (2^-r - 1) / r on |r| <= 1/2, to 2.2e-16 and 2.0e-9 of
# 2^-r; (arcsin(sqrt t) / sqrt t - 1) / t on [0, 1/4], to 1.5e-17 and 4.8e-9 of the arcsine.
_DECAY = {
    64: (-0.6931471805599492, 0.240226506959091, -0.05550410866448182, 0.009618129107983122, -0.0013333558225800681,
         0.00015403529994264102, -1.5252659427385932e-05, 1.321565358442834e-06, -1.0208323063309047e-07,
         7.038181669721307e-09),
    32: (-0.6931471824645996, 0.24022647738456726, -0.055503323674201965, 0.00961843691766262, -0.0013398875016719103,
         0.0001535336341476068),
}  # fmt: skip
_ARCSIN = {
    64: (0.16666666666665408, 0.07500000000337013, 0.04464285682832995, 0.030381959136866067, 0.022371758053417262,
         0.017359704711418303, 0.013885236042696146, 0.012169207464324509, 0.006527994745236116, 0.019528208963419582,
         -0.016224161214021652, 0.03191220544956875),
    32: (0.16666752099990845, 0.07495297491550446, 0.04547037184238434, 0.024179529398679733, 0.04216628521680832),
}  # fmt: skip


def decay(x: Real) -> Real:
    """Return 2^-x for x >= 0 without a branch; below tiny, the least normal number, it is 2 2^-x - tiny, then 0."""
    f, builder = x.format, x.builder
    x = x.at_most(float(f.one))
    shift = 1.5 * 2.0**f.mantissa
    shifted = shift - x
    minus_k = shift - shifted
    r = x - minus_k
    value = r.fma(r.polynomial(_DECAY[x.width]), 1.0)
    exponent = builder.shl(shifted.bits(), x.whole(f.mantissa))
    return x.from_bits(builder.add(value.bits(), exponent))


def arcsin(x: Real) -> Real:
    """Return the arcsine, from |x| = 1/2 on as pi / 2 - 2 arcsin sqrt((1 - |x|) / 2); NaN where there is none."""
    y = x.magnitude()
    t = y.select("<=", 0.5, y * y, y.fma(-0.5, 0.5))
    root = y.select("<=", 0.5, y, t.root())
    series = root.fma(t * t.polynomial(_ARCSIN[x.width]), root)
    return y.select("<=", 0.5, series, series.fma(-2.0, np.pi / 2)).with_sign_of(x)


def _unit(s: Real) -> tuple[Real, Real]:
    """Return s within [-1, 1], and 1 - s^2."""
    s = s.at_most(1.0).at_least(-1.0)
    return s, (1.0 - s) * (s + 1.0)


class GaussianForm(NamedTuple):
    """A = B = 2^-s, s = |p - q|^2."""

    @staticmethod
    def factors(p: Real, q: Real) -> tuple[Real, Real]:
        """Return what is multiplied for each coordinate; s is the sum of it."""
        gap = p - q
        return gap, gap

    @staticmethod
    def of(s: Real, floor: Real) -> tuple[Real, Real]:
        """Return A and B."""
        k = decay(s)
        return k, k


class ErfForm(NamedTuple):
    """A = 1 / sqrt(1 - s^2), 1 - s^2 at least either's floor, and B = arcsin s, s = p . q."""

    @staticmethod
    def factors(p: Real, q: Real) -> tuple[Real, Real]:
        """Return what is multiplied for each coordinate; s is the sum of it."""
        return p, q

    @staticmethod
    def of(s: Real, floor: Real) -> tuple[Real, Real]:
        """Return A and B."""
        s, rest = _unit(s)
        return 1.0 / rest.select("<", floor, floor, rest).root(), arcsin(s)


class ReluForm(NamedTuple):
    """A = pi - a and B = sin a, cos a = p . q."""

    @staticmethod
    def factors(p: Real, q: Real) -> tuple[Real, Real]:
        """Return what is multiplied for each coordinate; s is the sum of it."""
        return p, q

    @staticmethod
    def of(s: Real, floor: Real) -> tuple[Real, Real]:
        """Return A and B."""
        s, rest = _unit(s)
        return arcsin(s) + np.pi / 2, rest.root()
