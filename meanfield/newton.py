"""Newton's method for smooth concave functions, with a line search; read `gibbs` and `teacher` for what it climbs.

    step = -H^-1 grad F,   accepted once F rises by a quarter of what the slope along the step promises.

The least that the quadratic model leaves to be gained, grad F . step / 2, tells when to stop.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanfield.errors import DivergedError
from meanfield.parallel import serial_blas

Array = npt.NDArray[Any]
Function = Callable[[Array], tuple[float, Array, Array]]

LEAST_STEP = 1e-10
STALLED = 1e-8  # of the value: a decrement below which a search that finds no better point has met rounding
SINGULAR = 1e-13  # of the largest curvature: what is flatter counts as flat
ROUNDING = 4 * float(np.finfo(np.float64).eps)


class Peak(NamedTuple):
    """Where a concave function is largest, its value there, the last decrement grad F . step, and the steps taken."""

    point: Array
    value: float
    decrement: float
    iterations: int


@serial_blas  # bits that no thread count changes
def maximise(function: Function, start: Array, *, tolerance: float = 1e-14, iterations: int = 100) -> Peak:
    """Return the maximum of a concave function.

    Parameters
    ----------
    function : callable
        Maps a point (n,) to the value, the gradient (n,) and the Hessian (n, n); the value is -inf outside the domain.
    start : ndarray, shape (n,)
        Halved until it is inside the domain, which holds 0.
    tolerance : float
        The decrement, in units of the value, below which the search ends; rounding ends it too.
    iterations : int
        At most that many steps.

    Raises
    ------
    DivergedError
        If the value still rises after `iterations` steps, or along directions that are flat: no maximum is attained.
    """
    point = np.array(start, dtype=np.float64)
    value, gradient, hessian = function(point)
    while not math.isfinite(value) and point.any():
        point = 0.5 * point if np.abs(point).max() > LEAST_STEP else np.zeros_like(point)
        value, gradient, hessian = function(point)
    for k in range(iterations):
        step = _ascent(gradient, hessian)
        decrement = float(gradient @ step)
        if decrement <= tolerance * abs(value):
            return Peak(point + step, value, decrement, k)  # the value is level here, the gradient falls once more
        moved = _search(function, point, value, decrement, step)
        if moved is None:
            break
        point, (value, gradient, hessian) = moved
    if decrement <= STALLED * abs(value):  # no step rises by more than rounding
        return Peak(point, value, decrement, k)
    raise DivergedError(
        f"Newton's method stopped after {k + 1} steps with {decrement:.1e} still to gain on {value:.6g}: the maximum "
        "is not attained or out of reach; are there nearly equal or opposite inputs with labels that do not agree?"
    )


def _ascent(gradient: Array, hessian: Array) -> Array:
    """Return -H^-1 gradient, curvatures made positive (they are, but for the sampling error of a Hessian)."""
    values, vectors = np.linalg.eigh(-hessian)
    sizes = np.abs(values)
    return vectors @ ((vectors.T @ gradient) / np.maximum(sizes, SINGULAR * sizes.max() + np.finfo(np.float64).tiny))


def _search(
    function: Function, point: Array, value: float, decrement: float, step: Array
) -> tuple[Array, tuple[float, Array, Array]] | None:
    """Return the first of point + step, point + step / 2, ... that rises enough, with what the function is there."""
    length = 1.0
    slack = ROUNDING * abs(value)
    while length >= LEAST_STEP:
        there = point + length * step
        found = function(there)
        if math.isfinite(found[0]) and found[0] >= value + 0.25 * length * decrement - slack:
            return there, found
        length /= 2
    return None
