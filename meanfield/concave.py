"""The concave maximum behind Donsker and Varadhan's formula, where the normaliser is a mean over samples of p0."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.errors import MeanfieldError

Array = npt.NDArray[Any]
# Share of the mean of e^phi that one sample may carry before the mean is taken to rest on too few.
LARGEST_SHARE = 0.05
ITERATIONS, ACCURACY, SMALLEST_STEP = 50, 1e-9, 1e-6


def log_mean(exponents: Array) -> float:
    """Return log mean e^exponents."""
    top = float(exponents.max())
    return top + math.log(float(np.exp(exponents - top).mean()))


def maximised(push: Array, table: Array, squared: bool, start: Array | None) -> Array:
    """Return the a that maximises a . push - log mean e^q, q = (table a)^2 / 2 if `squared`, table a otherwise.

    Concave in a; Newton's method with halved steps. `start` saves iterations. O(N0 k^2) an iteration.

    Raises
    ------
    MeanfieldError
        If there is no maximum, or it rests on few of the samples of p0: they do not reach as far as the law.
    """
    a = np.zeros(table.shape[1]) if start is None else start

    def state(a: Array) -> tuple[float, Array, Array, Array]:
        return _state(a, push, table, squared)

    value, gradient, weights, slope = state(a)
    converged = False
    for _ in range(ITERATIONS):
        mean = push - gradient
        hessian = ((slope.T * weights) @ slope).astype(np.float64) - np.outer(mean, mean)
        if squared:
            hessian += (table.T * weights) @ table
        hessian[np.diag_indices_from(hessian)] += 1e-12 * np.trace(hessian)
        try:
            step = np.linalg.solve(hessian, gradient)
        except np.linalg.LinAlgError:  # all the weight lies on one sample
            break
        gain = float(step @ gradient)
        length = 1.0
        while (trial := state(a + length * step))[0] <= value and length > SMALLEST_STEP:
            length /= 2
        converged = gain <= ACCURACY * (1e-3 + abs(value)) or trial[0] <= value
        if trial[0] > value:
            a = a + length * step
            value, gradient, weights, slope = trial
        if converged:
            break
    if not converged or weights.max() > LARGEST_SHARE:
        raise MeanfieldError(
            f"no best combination of {len(push)} fields was found, or it rests on few of the {len(table)} samples of "
            f"p0 (one carries {weights.max():.0%} of the mean): the law is too far from p0. Take more probes or fewer "
            "fields."
        )
    return a


def _state(a: Array, push: Array, table: Array, squared: bool) -> tuple[float, Array, Array, Array]:
    """Return value and gradient at a, the shares of the samples, and their slopes."""
    g = (table @ a.astype(table.dtype)).astype(np.float64)
    q = 0.5 * g * g if squared else g
    top = float(q.max())
    weights = np.exp(q - top)
    total = float(weights.sum())
    weights /= total
    slope = g[:, None].astype(table.dtype) * table if squared else table
    mean = weights.astype(table.dtype) @ slope
    return float(a @ push) - top - math.log(total / len(g)), push - mean, weights.astype(table.dtype), slope
