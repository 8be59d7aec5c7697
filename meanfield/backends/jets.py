"""The built-in activations one number at a time, in a form whose loops LLVM vectorises; `units` is their definition.

`JETS` maps a name to (pair, jet or rest, slope): (h, h') of w; all four of w, or the last two of (w, h, h') for the
names in `RESTS`; and h' as a function of h where there is one, so that a kept h is all that the pullback needs.
Constants take the type of w: with a plain 1 Numba would compute float32 in float64.
"""

import math

from numba.extending import register_jitable

from meanfield.backends.elementary import cos, erf, exp, log1p, sin, tanh

# Not a dispatcher: a plain function is known by its name when compiled rows are looked up in the cache.
scalar = register_jitable(error_model="numpy", fastmath={"contract"})

_ROOT_HALF = math.sqrt(0.5)
_ERF_SLOPE = 2.0 / math.sqrt(math.pi)


@scalar
def _tanh_pair(w):
    t = tanh(w)
    return t, type(w)(1) - t * t


@scalar
def _tanh_rest(w, h, slope):
    k = type(w)
    return k(-2) * h * slope, slope * (k(4) - k(6) * slope)


@scalar
def _tanh_slope(h):
    return type(h)(1) - h * h


@scalar
def _erf_pair(w):
    k = type(w)
    return erf(w), k(_ERF_SLOPE) * exp(-(w * w))


@scalar
def _erf_rest(w, h, slope):
    # Beyond 40 the slope is 0, and its factor must not be infinite.
    k = type(w)
    v = min(max(w, k(-40)), k(40))
    second = k(-2) * v * slope
    return second, k(-2) * (slope + v * second)


@scalar
def _erf_sqrt2_pair(w):
    k = type(w)
    h, slope = _erf_pair(w * k(_ROOT_HALF))
    return h, slope * k(_ROOT_HALF)


@scalar
def _erf_sqrt2_rest(w, h, slope):
    k = type(w)
    v = min(max(w, k(-40)), k(40))
    second = -v * slope
    return second, -(slope + v * second)


@scalar
def _logistic(w):
    """Return e^-|w|, sigma, sigma' and 1 - 2 sigma from one exponential, none of which can overflow."""
    e = exp(-abs(w))
    one = type(w)(1)
    larger = one / (one + e)
    smaller = e * larger
    gap = larger - smaller
    return e, (smaller if w < 0 else larger), smaller * larger, (gap if w < 0 else -gap)


@scalar
def _sigmoid_pair(w):
    _, value, slope, _ = _logistic(w)
    return value, slope


@scalar
def _sigmoid_jet(w):
    _, value, slope, tilt = _logistic(w)
    return value, slope, slope * tilt, slope * (type(w)(1) - type(w)(6) * slope)


@scalar
def _softplus_pair(w):
    e, sigma, _, _ = _logistic(w)
    return max(w, type(w)(0)) + log1p(e), sigma


@scalar
def _softplus_jet(w):
    e, sigma, slope, tilt = _logistic(w)
    return max(w, type(w)(0)) + log1p(e), sigma, slope, slope * tilt


@scalar
def _relu_pair(w):
    k = type(w)
    return max(w, k(0)), (k(1) if w > 0 else k(0))


@scalar
def _relu_jet(w):
    h, slope = _relu_pair(w)
    return h, slope, type(w)(0), type(w)(0)


@scalar
def _relu_slope(h):
    return type(h)(1) if h > 0 else type(h)(0)


@scalar
def _sin_pair(w):
    return sin(w), cos(w)


@scalar
def _sin_jet(w):
    s, c = sin(w), cos(w)
    return s, c, -s, -c


@scalar
def _linear_pair(w):
    return w, type(w)(1)


@scalar
def _linear_jet(w):
    return w, type(w)(1), type(w)(0), type(w)(0)


@scalar
def _linear_slope(h):
    return type(h)(1)


# The second is a rest where a second loop over (w, h, h') is faster than one over w: LLVM vectorises both halves.
RESTS = ("tanh", "erf", "erf_sqrt2")
JETS = {
    "tanh": (_tanh_pair, _tanh_rest, _tanh_slope),
    "erf": (_erf_pair, _erf_rest, None),
    "erf_sqrt2": (_erf_sqrt2_pair, _erf_sqrt2_rest, None),
    "sigmoid": (_sigmoid_pair, _sigmoid_jet, None),
    "softplus": (_softplus_pair, _softplus_jet, None),
    "relu": (_relu_pair, _relu_jet, _relu_slope),
    "sin": (_sin_pair, _sin_jet, None),
    "linear": (_linear_pair, _linear_jet, _linear_slope),
}
