"""How heavy the tail of importance weights is, and whether their mean can be believed [Vehtari24].

The largest weights are fitted by a generalised Pareto law of shape k. Below 1/2 their variance is finite and a standard
error means what it says; between 1/2 and 0.7 it is too small at times; above 0.7 the mean itself hangs on weights that
were not drawn, which no effective number of nodes reveals.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DOUBTFUL, HOPELESS = 0.5, 0.7
FEWEST = 20  # weights in a tail


def tail_shape(log_weights: Array) -> float:
    """Return the shape k of the tail of weights given by their logarithms, -inf where all are equal.

    The tail is the largest min(N / 5, 3 sqrt(N)) of N weights. O(N).

    Parameters
    ----------
    log_weights : ndarray
        Of any shape; at least 100 of them.
    """
    flat = np.ravel(log_weights)
    size = max(int(min(0.2 * len(flat), 3.0 * len(flat) ** 0.5)), FEWEST)
    largest = np.sort(np.partition(flat, len(flat) - size - 1)[len(flat) - size - 1 :])
    weights = np.exp(largest - largest[-1])
    excess = weights[1:] - weights[0]
    excess = excess[excess > 0]
    return _shape(excess) if len(excess) >= FEWEST else -np.inf


def _shape(excess: Array) -> float:
    """Return the shape of a generalised Pareto law of sorted positive excesses, a posterior mean [ZhangStephens09]."""
    n = len(excess)
    count = 30 + int(n**0.5)
    quartile = excess[int(n / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - np.sqrt(count / (np.arange(1, count + 1) - 0.5))) / (3 * quartile)
    k = np.log1p(-theta[:, None] * excess).mean(axis=1)
    likelihood = n * (np.log(-theta / k) - k - 1)
    posterior = np.exp(likelihood - likelihood.max())
    best = float(posterior @ theta / posterior.sum())
    return float(np.log1p(-best * excess).mean())
