"""A stiff integrator for y' = F(y) of which a part of the Jacobian is cheap to invert.

Linearly implicit Euler steps of length tau = h / j, j = 1..`COLUMNS`, with J kept over the step h,

    (I - tau J) (y_{i+1} - y_i) = tau F(y_i),

are extrapolated to tau = 0 [HairerWanner96, section IV.9]. Their error has an expansion in powers of tau whatever J is,
so the order does not depend on J; what J holds of the stiffness no longer limits the step.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from meanfield.errors import DivergedError

Array = np.ndarray
Solver = Callable[[Array], Array]
COLUMNS = 8
SMALLEST, LARGEST, SAFETY = 0.1, 4.0, 0.9
MOST_STEPS = 200_000


class System(NamedTuple):
    """y' = rate(y); `implicit(y)` returns a function of tau, which returns a function that solves (I - tau J) x = b."""

    rate: Callable[[Array], Array]
    implicit: Callable[[Array], Callable[[float], Solver]]


def advance(
    system: System, state: Array, duration: float, *, step: float, tolerance: float, largest: float = math.inf
) -> Array:
    """Return the state after `duration`.

    Parameters
    ----------
    state : ndarray
        Any shape.
    step : float
        Length of the first step.
    tolerance : float
        Largest error of a step, estimated, in the Euclidean norm and relative to the state.
    largest : float
        Norm from which the state is taken to run away.

    Raises
    ------
    DivergedError
        If the state runs away, or steps become so short that time stands still.
    """
    done, count = 0.0, 0
    while done < duration:
        h = min(step, duration - done)
        if count == MOST_STEPS or not done + h > done:
            raise DivergedError(f"the solver stands still {done:.6g} after its start, at steps of {h:.3g}.")
        with np.errstate(over="ignore", invalid="ignore"):  # of a step that is too long, and will be shorter
            moved, error = _columns(system, state, h)
            size = error / (tolerance * float(np.linalg.norm(state)))
        factor = SAFETY * max(size, 1e-12) ** (-1 / COLUMNS) if math.isfinite(size) else SMALLEST
        if size <= 1:
            state, done = moved, duration if h == duration - done else done + h
            if np.linalg.norm(state) > largest:
                raise DivergedError(f"the solution runs away {done:.6g} after its start.")
        step = h * min(max(factor, SMALLEST), LARGEST)
        count += 1
    return state


def _columns(system: System, state: Array, h: float) -> tuple[Array, float]:
    """Return the extrapolated state after h, and the norm of what the last column changed."""
    rate, at = system.rate(state), system.implicit(state)
    row: list[Array] = []
    for j in range(1, COLUMNS + 1):
        solve = at(h / j)
        y = state + solve(h / j * rate)
        for _ in range(j - 1):
            y = y + solve(h / j * system.rate(y))
        fresh = [y]
        for k, above in enumerate(row, start=1):
            fresh.append(fresh[-1] + (fresh[-1] - above) * ((j - k) / k))
        row = fresh
    return row[-1], float(np.linalg.norm(row[-1] - row[-2]))
