"""What the symbols of the statements must be: checks that `theory`, `aposteriori` and `generalisation` share.

Assumption 4.1 of [CCGZ20] is |x_i| <= 1 and |y_i| <= 1, Assumption 4.2 that G1..G5, the suprema of h, h', h'', (z h')'
and h''', are finite, Assumption 4.3 that Lambda, the smallest eigenvalue of H(p0), is positive.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meanfield.errors import InputError

Array: TypeAlias = NDArray[np.float64]


def positive(**named: float) -> None:
    """Refuse numbers that are not finite and positive, by name."""
    for name, value in named.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a finite positive number, got {value!r}.")


def not_negative(**named: ArrayLike) -> None:
    """Refuse arrays that hold a negative number or NaN, by name."""
    for name, value in named.items():
        if not np.all(np.asarray(value) >= 0):
            raise InputError(f"{name} must not be negative or NaN, got {value!r}.")


def suprema_of(suprema: Sequence[float]) -> tuple[float, ...]:
    """Return G1..G5 as floats; refuse what Assumption 4.2 does not admit."""
    values = tuple(float(g) for g in suprema)
    if len(values) != 5 or not all(math.isfinite(g) and g > 0 for g in values):
        raise InputError(
            f"suprema must be five finite positive numbers G1..G5 (Assumption 4.2), got {values}: "
            "an activation without them, such as relu or sin, is outside the theorem."
        )
    return values


def series(times: ArrayLike, **named: ArrayLike) -> tuple[Array, ...]:
    """Return times and values, all of shape (K,), as float64; refuse times out of order and series of other lengths."""
    t, *values = stacked(times, **named)
    for name, v in zip(named, values, strict=True):
        if v.ndim != 1:
            raise InputError(f"{name} must have one value a time, shape {t.shape}, got {v.shape}.")
    return (t, *values)


def stacked(times: ArrayLike, **named: ArrayLike) -> tuple[Array, ...]:
    """Return times (K,) and values (..., K) as float64; refuse times out of order and series of other lengths."""
    t = np.asarray(times, dtype=np.float64)
    if t.ndim != 1 or len(t) == 0 or not np.all(np.isfinite(t)) or np.any(np.diff(t) <= 0):
        raise InputError("times must be a one-dimensional, finite, strictly increasing array.")
    out = [t]
    for name, values in named.items():
        v = np.asarray(values, dtype=np.float64)
        if v.shape[-1:] != t.shape:
            raise InputError(f"{name} must have one value a time, {len(t)} in its last dimension, got shape {v.shape}.")
        out.append(v)
    return tuple(out)
