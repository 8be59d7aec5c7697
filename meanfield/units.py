"""One neuron psi(z, x) = u h(theta . x), z = (theta, u), and the activations h it may have.

An `Activation` is a record: h and three derivatives, their suprema (Assumption 4.2 of [CCGZ20] asks that h,
h', h'', (z h')' and h''' be bounded), and the closed forms it has. Everything else in the library reads the
record and never asks for a name.

To add one, write its jet (share the work, keep the dtype, stay clear of overflow) and add one record to the
list that makes `ACTIVATIONS`; the tests run over all of them. In a script no registration is needed:

    def jet(w):
        c = 1 / (1 + w * w)
        return np.arctan(w), c, -2 * w * c**2, (6 * w * w - 2) * c**3

    arctan = Activation("arctan", jet, suprema=(np.pi / 2, 1, 3 * 3**0.5 / 8, 1, 2), parity="odd")
    check_activation(arctan)        # derivatives against difference quotients, suprema, parity, Gram matrix
    unit = Unit(arctan)

Read `ntk` next for Gram matrices of activations that have no closed form.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import closed_forms
from meanfield.errors import InputError, did_you_mean

Array = npt.NDArray[Any]
Jet = tuple[Array, Array, Array, Array]
DERIVATIVES = ("h", "h'", "h''", "h'''")
BOUNDED = ("h", "h'", "h''", "(z h')'", "h'''")  # what G1..G5 bound, in order


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation h: R -> R with three derivatives and what is known of it.

    Attributes
    ----------
    name : str
    jet : callable
        Maps an array w to (h, h', h'', h''') at w, each of the shape and dtype of w.
    suprema : five floats
        G1..G5: suprema of |h|, |h'|, |h''|, |(z h')'|, |h'''|, `math.inf` where unbounded or not known.
    fails : str
        Which part of Assumption 4.2 [CCGZ20] fails, as a sentence; empty if none. Written from `suprema`
        where it is left out.
    parity : "odd", "even" or ""
    homogeneous : bool
        Whether h(c w) = c h(w) for c > 0.
    gram : callable or None
        Maps G = X X', shape (n, n), to E h_i h_j and E h'_i h'_j, h_i = h(theta . x_i), theta ~ N(0, I).
    pair : callable or None
        Maps w to (h, h') alone, where that is cheaper than the jet.
    over : callable or None
        Writes h(w) over w and returns it, where that can be.
    slope : callable or None
        Where h' is a function of h: maps h and an array `out` to h', written into `out`.
    """

    name: str
    jet: Callable[[Array], Jet]
    suprema: tuple[float, float, float, float, float] = (math.inf,) * 5
    fails: str = ""
    parity: str = ""
    homogeneous: bool = False
    gram: Callable[[Array], tuple[Array, Array]] | None = None
    pair: Callable[[Array], tuple[Array, Array]] | None = None
    over: Callable[[Array], Array] | None = None
    slope: Callable[[Array, Array], Array] | None = None

    def __post_init__(self) -> None:
        if len(self.suprema) != 5:
            raise InputError(f"activation '{self.name}': suprema are five, G1..G5, got {len(self.suprema)}.")
        if self.parity not in ("odd", "even", ""):
            raise InputError(f"activation '{self.name}': parity is 'odd', 'even' or '', got {self.parity!r}.")
        missing = [what for what, g in zip(BOUNDED, self.suprema, strict=True) if not math.isfinite(g)]
        if missing and not self.fails:
            object.__setattr__(self, "fails", f"no finite bound is stated for {', '.join(missing)}")

    def value(self, w: Array) -> Array:
        """Return h(w)."""
        return self.value_and_first(w)[0]

    def value_over(self, w: Array) -> Array:
        """Return h(w), in the memory of w where the activation can write there; w is used up."""
        return self.value(w) if self.over is None else self.over(w)

    def first(self, w: Array) -> Array:
        """Return h'(w)."""
        return self.value_and_first(w)[1]

    def value_and_first(self, w: Array) -> tuple[Array, Array]:
        """Return h(w) and h'(w), by the cheaper way."""
        if self.pair is not None:
            return self.pair(w)
        h, h1, *_ = self.jet(w)
        return h, h1


@dataclass(frozen=True)
class Unit:
    """A neuron psi(z, x) = u h(theta . x), z = (theta, u) with u the last coordinate.

    With a bias the inputs get a last column of ones, and theta one coordinate more. The activation is a name
    of `ACTIVATIONS` or a record of your own; anything else raises InputError.
    """

    activation: str | Activation
    bias: bool = False

    def __post_init__(self) -> None:
        resolve(self.activation)

    @property
    def h(self) -> Activation:
        """The record of the activation."""
        return resolve(self.activation)

    def inputs(self, x: npt.ArrayLike) -> Array:
        """Return the inputs as the neuron sees them, shape (n, d) or, with a bias, (n, d + 1).

        Floats keep their dtype, other numbers become float64; InputError if x is not two-dimensional.
        """
        array = _floating(x)
        if array.ndim != 2:
            raise InputError(f"inputs must have shape (n, d), a row a sample; got shape {array.shape}.")
        if not self.bias:
            return array
        return np.concatenate([array, np.ones((len(array), 1), dtype=array.dtype)], axis=1)

    def dimension(self, d: int) -> int:
        """Return D, the number of coordinates of z for inputs in R^d: d + 1, with a bias d + 2."""
        return d + int(self.bias) + 1


def resolve(activation: object) -> Activation:
    """Return the record of a name, or the record itself; anything else is refused, with the nearest name."""
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        got = type(activation).__name__
        raise InputError(f"an activation is a name or a record Activation(name, jet), got {got}.")
    if activation not in ACTIVATIONS:
        hint = did_you_mean(activation, ACTIVATIONS)
        raise InputError(f"unknown activation '{activation}'.{hint} Known: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[activation]


# --- jets: (h, h') first, the jet goes on from there

_FLAT = 40.0  # from there on exp(-w^2 / 2) is 0, and w^2 might overflow


def _floating(w: npt.ArrayLike) -> Array:
    w = np.asarray(w)
    return w if np.issubdtype(w.dtype, np.floating) else w.astype(np.float64)


def _tanh_pair(w: Array) -> tuple[Array, Array]:
    t = np.tanh(_floating(w))
    return t, 1.0 - t * t


def _tanh_over(w: Array) -> Array:
    return np.tanh(w, out=w)


def _tanh_slope(h: Array, out: Array) -> Array:
    np.multiply(h, h, out=out)
    return np.subtract(1.0, out, out=out)


def _tanh(w: Array) -> Jet:
    t, slope = _tanh_pair(w)
    return t, slope, -2.0 * t * slope, slope * (4.0 - 6.0 * slope)


def _erf_pair(w: Array) -> tuple[Array, Array]:
    from scipy.special import erf

    w = _floating(w)
    return erf(w), (2.0 / math.sqrt(math.pi)) * np.exp(-(np.clip(w, -_FLAT, _FLAT) ** 2))


def _erf(w: Array) -> Jet:
    h, slope = _erf_pair(w)
    w = np.clip(_floating(w), -_FLAT, _FLAT)
    second = -2.0 * w * slope
    return h, slope, second, -2.0 * (slope + w * second)


def _erf_sqrt2_pair(w: Array) -> tuple[Array, Array]:
    h, slope = _erf_pair(_floating(w) * math.sqrt(0.5))
    return h, slope * math.sqrt(0.5)


def _erf_sqrt2(w: Array) -> Jet:
    h, slope = _erf_sqrt2_pair(w)
    w = np.clip(_floating(w), -_FLAT, _FLAT)
    second = -w * slope
    return h, slope, second, -(slope + w * second)


def _logistic(w: Array) -> tuple[Array, Array, Array, Array]:
    """Return e^-|w|, sigma, sigma' and 1 - 2 sigma from one exponential, none of which can overflow."""
    e = np.exp(-np.abs(w))
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    return e, np.where(w < 0, smaller, larger), smaller * larger, np.copysign(larger - smaller, -w)


def _sigmoid(w: Array) -> Jet:
    _, value, slope, tilt = _logistic(_floating(w))
    return value, slope, slope * tilt, slope * (1.0 - 6.0 * slope)


def _softplus(w: Array) -> Jet:
    w = _floating(w)
    e, sigma, slope, tilt = _logistic(w)
    return np.maximum(w, 0.0) + np.log1p(e), sigma, slope, slope * tilt


def _relu(w: Array) -> Jet:
    w = _floating(w)
    return np.maximum(w, 0.0), (w > 0).astype(w.dtype), np.zeros_like(w), np.zeros_like(w)


def _relu_over(w: Array) -> Array:
    return np.maximum(w, 0.0, out=w)


def _relu_slope(h: Array, out: Array) -> Array:
    return np.greater(h, 0.0, out=out)


def _sin(w: Array) -> Jet:
    s, c = np.sin(_floating(w)), np.cos(_floating(w))
    return s, c, -s, -c


def _sin_over(w: Array) -> Array:
    return np.sin(w, out=w)


def _linear(w: Array) -> Jet:
    w = _floating(w)
    return w.copy(), np.ones_like(w), np.zeros_like(w), np.zeros_like(w)


# --- the records


def _softplus_fourth() -> float:
    """Return sup (sigma + z sigma'): at z = 2 y with y tanh y = 1 it is (1 + y) / 2."""
    y = 1.2
    for _ in range(6):
        t = math.tanh(y)
        y -= (y * t - 1.0) / (t + y * (1.0 - t * t))
    return (1.0 + y) / 2.0


_E1 = 2.0 / math.sqrt(math.pi)  # erf'(0)
_E2 = math.sqrt(2.0 / math.pi)  # the slope of erf(z / sqrt 2) at 0
_S2 = 1.0 / (6.0 * math.sqrt(3.0))  # sup |sigma''|

ACTIVATIONS: dict[str, Activation] = {
    record.name: record
    for record in [
        Activation(
            "tanh", _tanh, (1.0, 1.0, 4.0 / (3.0 * math.sqrt(3.0)), 1.0, 2.0),
            parity="odd", pair=_tanh_pair, over=_tanh_over, slope=_tanh_slope,
        ),
        Activation(
            "erf", _erf, (1.0, _E1, math.sqrt(8.0 / (math.pi * math.e)), _E1, 2.0 * _E1),
            parity="odd", gram=closed_forms.erf, pair=_erf_pair,
        ),
        Activation(
            "erf_sqrt2", _erf_sqrt2, (1.0, _E2, math.sqrt(2.0 / (math.pi * math.e)), _E2, _E2),
            parity="odd", gram=closed_forms.erf_sqrt2, pair=_erf_sqrt2_pair,
        ),
        Activation("sigmoid", _sigmoid, (1.0, 0.25, _S2, 0.25, 0.125)),
        Activation(
            "relu", _relu, (math.inf, 1.0, math.inf, 1.0, math.inf),
            fails="h is unbounded, and h' jumps at 0, so that h'' and h''' are not bounded functions",
            homogeneous=True, gram=closed_forms.relu, over=_relu_over, slope=_relu_slope,
        ),
        Activation(
            "softplus", _softplus, (math.inf, 1.0, 0.25, _softplus_fourth(), _S2),
            fails="h is unbounded (h', h'', (z h')' and h''' are bounded)",
        ),
        Activation(
            "sin", _sin, (1.0, 1.0, 1.0, math.inf, 1.0),
            fails="(z h')' = cos z - z sin z is unbounded (h, h', h'' and h''' are bounded by 1)",
            parity="odd", gram=closed_forms.sin, over=_sin_over,
        ),
        Activation(
            "linear", _linear, (math.inf, 1.0, 0.0, 1.0, 0.0),
            fails="h is unbounded (h', h'', (z h')' and h''' are bounded)",
            parity="odd", homogeneous=True, gram=closed_forms.linear,
        ),
    ]
}  # fmt: skip


# --- is a record right?


def check_activation(activation: Activation) -> None:
    """Compare a record with itself: derivatives, suprema, parity, homogeneity, cheap pair, Gram matrix.

    Derivatives are compared with central difference quotients on |w| <= 4 (to 1e-6 of their size), suprema
    with the largest values on |w| <= 30, the Gram matrix with quadrature (to 5 %: a wrong constant is found,
    kinks pass). The first thing that is wrong raises InputError, with the place and what was expected.
    """
    with np.errstate(all="ignore"):
        for fault in (_jet_fault, _derivative_fault, _supremum_fault, _claim_fault, _gram_fault):
            sentence = fault(activation)
            if sentence:
                raise InputError(f"activation '{activation.name}': {sentence}.")


_GRID = np.linspace(-4.0, 4.0, 162)  # an even number: a kink at 0 is stepped over


def _jet_fault(activation: Activation) -> str:
    jet = activation.jet(_GRID.astype(np.float32))
    shapes = [np.shape(part) for part in jet]
    if shapes != 4 * [_GRID.shape]:
        return f"jet(w) must return four arrays of the shape of w, {_GRID.shape}; got {shapes}"
    wide = [what for what, part in zip(DERIVATIVES, jet, strict=True) if part.dtype != np.float32]
    return f"of a float32 array {', '.join(wide)} must be float32 too" if wide else ""


def _derivative_fault(activation: Activation) -> str:
    step = 1e-4
    jet, above, below = (activation.jet(w) for w in (_GRID, _GRID + step, _GRID - step))
    for order in (1, 2, 3):
        quotient = (above[order - 1] - below[order - 1]) / (2 * step)
        error = np.abs(jet[order] - quotient)
        at = int(np.argmax(error))
        if not error[at] <= 1e-6 * (1.0 + np.max(np.abs(jet[order]))):
            return (
                f"{DERIVATIVES[order]} is {jet[order][at]:.6g} at w = {_GRID[at]:.4g}, "
                f"the difference quotient of {DERIVATIVES[order - 1]} is {quotient[at]:.6g}"
            )
    return ""


def _supremum_fault(activation: Activation) -> str:
    w = np.linspace(-30.0, 30.0, 60_001)
    h, h1, h2, h3 = activation.jet(w)
    for what, part, bound in zip(BOUNDED, (h, h1, h2, h1 + w * h2, h3), activation.suprema, strict=True):
        at = int(np.argmax(np.abs(part)))
        if abs(part[at]) > bound * (1.0 + 1e-9):
            return f"sup |{what}| is stated as {bound:.6g}, but at w = {w[at]:.4g} {what} is {part[at]:.6g}"
    return ""


def _claim_fault(activation: Activation) -> str:
    h, h1, *_ = activation.jet(_GRID)
    mirrored, doubled = activation.jet(-_GRID)[0], activation.jet(2.0 * _GRID)[0]
    over = activation.value_over(_GRID.copy())
    slope = h1 if activation.slope is None else activation.slope(h, np.empty_like(h))
    claims = [
        (activation.parity == "odd", mirrored, -h, "it is not odd"),
        (activation.parity == "even", mirrored, h, "it is not even"),
        (activation.homogeneous, doubled, 2.0 * h, "it is not homogeneous: h(2 w) is not 2 h(w)"),
        (True, activation.value(_GRID), h, "pair and jet give different h"),
        (True, activation.first(_GRID), h1, "pair and jet give different h'"),
        (True, over, h, "over and jet give different h"),
        (True, slope, h1, "slope gives another h' than the jet"),
    ]
    faults = [fault for made, a, b, fault in claims if made and not np.allclose(a, b, rtol=1e-12, atol=1e-12)]
    return faults[0] if faults else ""


def _gram_fault(activation: Activation) -> str:
    if activation.gram is None:
        return ""
    x = np.array([[0.6, 0.3], [-0.2, 0.9], [1.1, -0.4]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    theta = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    mass = np.outer(weights, weights).ravel() / (2.0 * math.pi)
    values = activation.value_and_first(theta @ x.T)
    for what, part, closed in zip(DERIVATIVES[:2], values, activation.gram(x @ x.T), strict=True):
        quadrature = part.T @ (mass[:, None] * part)
        if not np.all(np.abs(closed - quadrature) <= 0.05 * np.max(np.abs(quadrature))):
            return f"gram gives {closed.tolist()} for E {what} {what}, quadrature {quadrature.tolist()}"
    return ""
