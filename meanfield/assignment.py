"""W2^2 between two samples, exactly: assignment for equal sizes, the network simplex for others.

Between samples, not between their laws: `distances` has it beside what it reads for equal laws. Read next: `distances`.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError, MeanfieldError

Array = npt.NDArray[Any]


def plugin(first: Array, second: Array, iterations: int = 2_000_000) -> float:
    """Return W2^2 between two samples with equal masses, exactly.

    Samples of equal size are assigned to each other by scipy; others need the network simplex of POT [Flamary21].

    Parameters
    ----------
    first, second : ndarray, shapes (m, D) and (k, D)
    iterations : int
        Largest number of pivots of the simplex.

    Raises
    ------
    InputError
        If the samples don't share their dimension.
    MeanfieldError
        If the simplex did not converge, or POT is absent. Cost about O(m^3); half a second at m = 2000.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not len(first) or not len(second):
        raise InputError(f"two samples must have shapes (m, D) and (k, D), got {first.shape} and {second.shape}.")
    # The distance does not see a common shift, but the rounding of |x|^2 + |y|^2 - 2 x.y does.
    shift = first.mean(axis=0)
    first, second = first - shift, second - shift
    return _assigned(first, second) if len(first) == len(second) else _simplex(first, second, iterations)


def _assigned(first: Array, second: Array) -> float:
    mine, yours = optimal(first, second)
    return float(((first[mine] - second[yours]) ** 2).sum() / len(first))


def optimal(first: Array, second: Array) -> tuple[Array, Array]:
    """Return the rows of two samples of equal size that belong together when the sum of |x - y|^2 is least.

    O(m^3) at worst; scipy's assignment.
    """
    from scipy.optimize import linear_sum_assignment

    cost = (second**2).sum(axis=1) - 2 * first @ second.T
    # What depends on one side alone does not change the assignment, but it is found sooner without.
    cost -= cost.min(axis=1)[:, None]
    cost -= cost.min(axis=0)
    rows, partners = linear_sum_assignment(cost)
    return rows, partners


def _simplex(first: Array, second: Array, iterations: int) -> float:
    try:
        import ot
    except ImportError as error:
        raise MeanfieldError("plug-in W2 of samples of different size needs POT: pip install POT") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it has to say is in the log, and raised below
        cost = np.asarray(ot.dist(first, second))
        value, log = ot.emd2(ot.unif(len(first)), ot.unif(len(second)), cost, numItermax=iterations, log=True)
    if log.get("warning"):
        raise MeanfieldError(f"optimal transport did not converge: {log['warning']} Raise `iterations` ({iterations}).")
    return float(value)


def plugin_null(samples: Sequence[Array] | Array) -> float:
    """Return what `plugin` reads for two independent samples of p0: `samples` are p0 draws, shape (2 m, D)."""
    draws = np.asarray(samples, dtype=np.float64)
    if draws.ndim != 2 or len(draws) < 2:
        raise InputError(f"draws of p0 must have shape (2 m, D), got {draws.shape}.")
    half = len(draws) // 2
    return plugin(draws[:half], draws[half : 2 * half])
