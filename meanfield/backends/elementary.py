"""Elementary functions for Numba kernels, in float64 and float32, that vectorise inside a loop over an array.

    from meanfield.backends.elementary import tanh

    @njit(cache=True, nogil=True)
    def activate(w, out):
        for i in range(w.size):
            out[i] = tanh(w[i])

Numba calls the C library for each element, since it has no vector library of its own; these are straight lines of
additions, multiplications, fused multiply-adds, at most one division and a few bit operations, which LLVM turns into
vector code. Every operation is rounded once, as IEEE 754 says, and the options of the calling kernel (fastmath too) do
not reach inside: a value has the same bits alone, in a vector, in the rest of a loop, and on every processor.

Every function takes one float64 or float32 and computes in that type; `ULP` holds the largest errors that were found.
NaN gives NaN. Signed zeros, subnormal numbers and infinities are right, and results that underflow are, too. Outside
its domain a function gives NaN: |x| <= 2^30 (float64) or 2^15 (float32) for `sin` and `cos`, 0 <= x <= 1 for `log1p`.

All rest on x = k ln 2 + r, |r| <= ln(2) / 2, and c(r) = r coth(r / 2) = 2 + r^2 / 6 - ...:

    exp r = (c + r) / (c - r) = 1 + 2 r / (c - r)
    tanh(x / 2) = ((2^k - 1) c + (2^k + 1) r) / ((2^k + 1) c + (2^k - 1) r)
    erf x = 1 - exp(-x g(x)),  g(x) = -log(erfc x) / x

where c is a polynomial in r^2 and g one in x. To add a function, write its formula on `Real`, then its `_inline` and
its `njit`; tests/test_elementary.py holds a reference for each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

_DTYPES = np.dtype(np.float64), np.dtype(np.float32)
# Largest errors, in units of the last place of the exact result, that 5 10^7 points found; rounded upwards.
ULP = {
    name: dict(zip(_DTYPES, errors, strict=True))
    for name, errors in {
        "exp": (1.5, 1.5),
        "tanh": (2.8, 2.5),
        "erf": (2.0, 1.8),
        "sin": (1.8, 1.8),
        "cos": (1.8, 1.8),
        "log1p": (1.1, 1.1),
        "logistic": (3.0, 2.9),
    }.items()
}
# fastmath is named because a function that leaves it out takes it from its caller.
scalar: Any = njit(cache=True, nogil=True, fastmath=False, forceinline=True, error_model="numpy")
emitted: Any = intrinsic  # for mypy, which would count the typing context among the arguments


class Format(NamedTuple):
    """A floating-point format and the constants of the formulas in it.

    The polynomials have the smallest possible largest error (exchange algorithm of Remez with 40 digits), relative to
    the function that they serve; then the coefficients were rounded. These errors, before the rounding, are for
    coth on |r| <= ln(2) / 2, erf on [0, 6] or [0, 4], sin on |r| <= pi / 2 and log1p on [0, 1]: float64 8.5e-19,
    2.2e-17, 2.8e-19, 1.3e-18; float32 2.2e-9, 4.0e-9, 6.1e-9, 4.5e-9.
    """

    mantissa: int  # bits stored
    one: int  # the exponent bits of 1.0
    lift: int  # exp is scaled by 2^(k + lift), then by 2^-lift, where it is small
    small: float  # ... which is below this
    domain: tuple[float, float]  # beyond it exp is 0 or infinite
    ln2: tuple[float, float]  # rounded, and the rest
    pi: tuple[float, float, float]  # its bits in three pieces, all positive
    largest_angle: float
    tanh_is_one: float
    erf_is_one: float
    coth: tuple[float, ...]  # r coth r - 1 over r^2, in r^2
    erf_slope: tuple[float, float]  # g(0), rounded, and the rest
    erf: tuple[float, ...]  # (g(x) - g(0)) / x
    sin: tuple[float, ...]  # (sin r - r) / r^3, in r^2
    log1p: tuple[float, ...]  # (log((1 + s) / (1 - s)) - 2 s) / s^3, in s^2


_DOUBLE = Format(
    52, 0x3FF, 128, -700.0, (-746.0, 710.0), (0.6931471805599453, 2.3190468138462996e-17),
    (3.141592653589793, 1.224646799147353e-16, 2.1657133478438278e-32), 2.0**30, 20.0, 6.0,
    coth=(0.33333333333333204, -0.022222222221613606, 0.0021164020229894834, -0.00021163395361862585,
          2.118733544539904e-05),
    erf_slope=(1.1283791670955126, -9.048040535406463e-18),
    erf=(0.6366197723675909, 0.10277260330131567, -0.019128446993099107, -0.00020919485387737487,
         0.0016962076695674676, -0.0005901324287910702, 2.5904495224445383e-05, 6.442048339881502e-05,
         -2.9575689217712992e-05, 3.169702869884354e-06, 3.1329280236763404e-06, -2.0371593688714306e-06,
         5.706129415282259e-07, -1.1697768276735372e-08, -6.573802135738731e-08, 3.4586381477866424e-08,
         -1.0773763803360436e-08, 2.360601372992709e-09, -3.7608488689473304e-10, 4.301945055690651e-11,
         -3.364476636944259e-12, 1.6149330348253233e-13, -3.592335373963067e-15),
    sin=(-0.16666666666666666, 0.008333333333333194, -0.00019841269841209148, 2.7557319211124515e-06,
         -2.5052106871594228e-08, 1.605893964332144e-10, -7.642989816542898e-13, 2.7211569184898295e-15),
    log1p=(0.6666666666666631, 0.4000000000015518, 0.2857142854811082, 0.22222223954046808, 0.18181744466293837,
           0.15386548642572737, 0.13301118331779488, 0.12104967520688735, 0.083448780096381, 0.17009921673621745),
)  # fmt: skip
_SINGLE = Format(
    23, 0x7F, 32, -80.0, (-105.0, 89.0), (0.6931471824645996, -1.9046542121259336e-09),
    (3.141592502593994, 1.5099578831723193e-07, 1.078060505991553e-14), 2.0**15, 10.0, 4.0,
    coth=(0.33333250880241394, -0.022134093567728996),
    erf_slope=(1.128379225730896, -5.4124900117358266e-08),
    erf=(0.6366193890571594, 0.10277783125638962, -0.019153079017996788, -0.00016035068256314844,
         0.0016669703181833029, -0.0006328010931611061, 0.00011763035581680015, -9.25497806747444e-06),
    sin=(-0.16666659712791443, 0.00833306647837162, -0.0001980959059437737, 2.6057509785459843e-06),
    log1p=(0.666664183139801, 0.4002152681350708, 0.2800181806087494, 0.2801193296909332),
)  # fmt: skip


class Real:
    """A floating-point value of LLVM under construction, or a vector of them; every operator emits one operation.

    Operands may be Python floats, which are rounded to the type of the value.
    """

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value
        self.lanes = value.type.count if isinstance(value.type, ir.VectorType) else 0
        double = isinstance(value.type.element if self.lanes else value.type, ir.DoubleType)
        self.format, self.width = (_DOUBLE, 64) if double else (_SINGLE, 32)
        whole = ir.IntType(self.width)
        self.integer = ir.VectorType(whole, self.lanes) if self.lanes else whole

    def _constant(self, kind: Any, number: Any) -> ir.Constant:
        return ir.Constant(kind, [number] * self.lanes if self.lanes else number)

    def _operand(self, other: Any) -> ir.Value:
        return other.value if isinstance(other, Real) else self._constant(self.value.type, other)

    def whole(self, number: int) -> ir.Constant:
        """Return a whole number as a constant of the type of `bits`."""
        return self._constant(self.integer, number)

    def _made(self, value: ir.Value) -> "Real":
        return Real(self.builder, value)

    def __add__(self, other: Any) -> "Real":
        return self._made(self.builder.fadd(self.value, self._operand(other)))

    def __sub__(self, other: Any) -> "Real":
        return self._made(self.builder.fsub(self.value, self._operand(other)))

    def __mul__(self, other: Any) -> "Real":
        return self._made(self.builder.fmul(self.value, self._operand(other)))

    def __truediv__(self, other: Any) -> "Real":
        return self._made(self.builder.fdiv(self.value, self._operand(other)))

    def __rsub__(self, other: float) -> "Real":
        return self._made(self.builder.fsub(self._operand(other), self.value))

    def __rtruediv__(self, other: float) -> "Real":
        return self._made(self.builder.fdiv(self._operand(other), self.value))

    def __neg__(self) -> "Real":
        return self._made(self.builder.fneg(self.value))

    def _call(self, name: str, *operands: Any) -> "Real":
        kind = self.value.type
        values = [self.value, *map(self._operand, operands)]
        full = f"{name}.{f'v{self.lanes}' if self.lanes else ''}f{self.width}"
        function = get_or_insert_function(self.builder.module, ir.FunctionType(kind, [kind] * len(values)), full)
        return self._made(self.builder.call(function, values))

    def fma(self, factor: Any, summand: Any) -> "Real":
        """Return self * factor + summand, rounded once."""
        return self._call("llvm.fma", factor, summand)

    def magnitude(self) -> "Real":
        """Return |self|."""
        return self._call("llvm.fabs")

    def root(self) -> "Real":
        """Return the square root of self."""
        return self._call("llvm.sqrt")

    def with_sign_of(self, other: "Real") -> "Real":
        """Return |self| with the sign of other, zeros included."""
        return self._call("llvm.copysign", other)

    def select(self, comparison: str, bound: Any, yes: Any, no: Any) -> "Real":
        """Return yes where self stands in that relation to the bound, else (NaN too) no."""
        where = self.builder.fcmp_ordered(comparison, self.value, self._operand(bound))
        return self._made(self.builder.select(where, self._operand(yes), self._operand(no)))

    def at_most(self, bound: Any) -> "Real":
        """Return the smaller of self and bound; NaN stays."""
        return self.select(">", bound, bound, self)

    def at_least(self, bound: Any) -> "Real":
        """Return the larger of self and bound; NaN stays."""
        return self.select("<", bound, bound, self)

    def bits(self) -> ir.Value:
        """Return the bits as an integer."""
        return self.builder.bitcast(self.value, self.integer)

    def from_bits(self, bits: ir.Value) -> "Real":
        """Return the number with these bits."""
        return self._made(self.builder.bitcast(bits, self.value.type))

    def polynomial(self, coefficients: tuple[float, ...]) -> "Real":
        """Return c[0] + self (c[1] + self (...)), each bracket a fused multiply-add."""
        value: Any = coefficients[-1]
        for c in coefficients[-2::-1]:
            value = self.fma(value, c)
        return value

    def halved_polynomial(self, coefficients: tuple[float, ...]) -> "Real":
        """Return the same polynomial as two in self^2, which the processor works side by side."""
        square = self * self
        return self.fma(square.polynomial(coefficients[1::2]), square.polynomial(coefficients[::2]))


def _nearest(x: Real, unit: float) -> tuple[Real, Real]:
    """Return k, the whole number nearest to x / unit, and k + 1.5 2^mantissa, whose last bits are those of k."""
    shift = 1.5 * 2.0**x.format.mantissa
    shifted = x.fma(1.0 / unit, shift)
    return shifted - shift, shifted


def _power(shifted: Real, exponent: Any) -> Real:
    """Return 2^(k + exponent - format.one), given k + 1.5 2^mantissa."""
    builder, places = shifted.builder, shifted.whole(shifted.format.mantissa)
    if isinstance(exponent, int):
        exponent = shifted.whole(exponent)
    return shifted.from_bits(builder.add(builder.shl(shifted.bits(), places), builder.shl(exponent, places)))


def _coth(r: Real, scale: int, first: float = 1.0) -> Real:
    """Return r coth(r / scale), less scale if `first` is 0; scale is 1 or 2."""
    return (r * r).polynomial(tuple(scale * c / scale ** (2 * j) for j, c in enumerate((first, *r.format.coth))))


def _exponential(x: Real, spare: int) -> tuple[Real, Real, Real, Real]:
    """Return s, r, c, t such that exp x = s t (1 + 2 r / (c - r)), where s = 2^(k - spare) if x is not small."""
    f, builder = x.format, x.builder
    k, shifted = _nearest(x, f.ln2[0])
    r = k.fma(-f.ln2[1], k.fma(-f.ln2[0], x))
    lifted, plain = (x.whole(f.one + places) for places in (f.lift, -spare))
    small = builder.fcmp_ordered("<", x.value, x._operand(f.small))
    s = _power(shifted, builder.select(small, lifted, plain))
    return s, r, _coth(r, 2), x.select("<", f.small, 2.0**-f.lift, 2.0**spare)


def _exp(x: Real) -> Real:
    f = x.format
    s, r, c, t = _exponential(x.at_least(f.domain[0]).at_most(f.domain[1]), 1)
    return s.fma((r + r) / (c - r), s) * t


def _tanh(x: Real) -> Real:
    f = x.format
    a = x.magnitude().at_most(f.tanh_is_one)
    k, shifted = _nearest(a, 0.5 * f.ln2[0])
    # The rest of ln(2) / 2 would count 0.2 ulp in float64 and nothing in float32.
    r = k.fma(-0.5 * f.ln2[0], a)
    s, c = _power(shifted, f.one), _coth(r, 1)
    above = (s - 1.0).fma(c, (s + 1.0) * r)
    return (above / (c - r).fma(2.0, above)).with_sign_of(x)


def _erf(x: Real) -> Real:
    f = x.format
    a = x.magnitude().at_most(f.erf_is_one)
    y = a.fma(f.erf_slope[0], a * a.fma(a.halved_polynomial(f.erf), f.erf_slope[1]))
    k, shifted = _nearest(y, -f.ln2[0])
    r = k.fma(-f.ln2[1], k.fma(-f.ln2[0], -y))
    s = _power(shifted, f.one)
    # e^r - 1 = 2 r / (c - r) = r + r (r + 2 - c) / (c - r)
    e = r - _coth(r, 2, 0.0)
    return (-s).fma(r.fma(e / (2.0 - e), r), 1.0 - s).with_sign_of(x)


def _sine(x: Real, quarter: bool) -> Real:
    """Return sin x or cos x from r = x - (k + quarter / 2) pi, |r| <= pi / 2."""
    f, builder = x.format, x.builder
    if quarter:
        shift = 1.5 * 2.0**f.mantissa
        shifted = x.fma(1.0 / f.pi[0], -0.5) + shift
        k = shifted - shift + 0.5
    else:
        k, shifted = _nearest(x, f.pi[0])
    r = x
    for part in f.pi:
        r = k.fma(-part, r)
    z = r * r
    value = (r * z).fma(z.polynomial(f.sin), r).with_sign_of(r)
    odd = builder.shl(shifted.bits(), x.whole(x.width - 1))
    if quarter:
        odd = builder.xor(odd, x.whole(1 << x.width - 1))
    signed = value.from_bits(builder.xor(value.bits(), odd))
    return x.magnitude().select("<=", f.largest_angle, signed, float("nan"))


def _log1p(x: Real) -> Real:
    s = x / (x + 2.0)
    z = s * s
    # log(1 + x) = 2 s + s z P = x - s (x - z P), where s has the smaller part.
    tail = (-z).fma(z.polynomial(x.format.log1p), x)
    value = (-s).fma(tail, x)
    return x.select(">=", 0.0, x.select("<=", 1.0, value, float("nan")), float("nan"))


def _logistic(x: Real) -> tuple[Real, Real]:
    f = x.format
    y = (-x.magnitude()).at_least(f.domain[0])
    s, r, c, t = _exponential(y, 0)
    above, below = s * (c + r), c - r
    q = 1.0 / (above + below)
    larger, smaller = below * q, above * q * t
    return x.select("<", 0.0, smaller, larger), x.select("<", 0.0, larger, smaller)


def inline(formula: Callable[[Real], Any], parts: int = 1) -> Any:
    """Return the Numba intrinsic of a formula of one number, whose value is a tuple of numbers if `parts` is 2."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
        made = formula(Real(builder, values[0]))
        if parts == 1:
            return made.value
        return context.make_tuple(builder, signature.return_type, [part.value for part in made])

    @emitted
    def function(context: Any, x: Any) -> Any:
        if x not in (types.float64, types.float32):
            return None
        return (x if parts == 1 else types.UniTuple(x, parts))(x), generate

    return function


@emitted
def fma(context: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x y + z, rounded once; all of one type."""
    if x not in (types.float64, types.float32) or y != x or z != x:
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
        return Real(builder, values[0]).fma(*(Real(builder, value) for value in values[1:])).value

    return x(x, x, x), generate


_inline_exp, _inline_tanh, _inline_erf, _inline_log1p = map(inline, (_exp, _tanh, _erf, _log1p))
_inline_sin, _inline_cos = inline(lambda x: _sine(x, False)), inline(lambda x: _sine(x, True))
_inline_logistic = inline(_logistic, 2)


@scalar
def exp(x: Any) -> Any:
    """Return e^x."""
    return _inline_exp(x)


@scalar
def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent of x."""
    return _inline_tanh(x)


@scalar
def erf(x: Any) -> Any:
    """Return the error function of x."""
    return _inline_erf(x)


@scalar
def sin(x: Any) -> Any:
    """Return sin x; NaN where |x| exceeds 2^30 (float64) or 2^15 (float32)."""
    return _inline_sin(x)


@scalar
def cos(x: Any) -> Any:
    """Return cos x; NaN where |x| exceeds 2^30 (float64) or 2^15 (float32)."""
    return _inline_cos(x)


@scalar
def log1p(x: Any) -> Any:
    """Return log(1 + x) for 0 <= x <= 1, NaN elsewhere."""
    return _inline_log1p(x)


@scalar
def logistic(x: Any) -> Any:
    """Return 1 / (1 + e^-x) and 1 / (1 + e^x), each to its own relative accuracy, with one division."""
    return _inline_logistic(x)
