"""Independent samples of a law q(theta) = e^{w(theta)} N(0, C) / Z on R^k, by rejection [Caffo02].

A proposal theta ~ N(0, C) is accepted with probability e^{w - bound}. That is exact where bound >= sup w. The bound
starts above the largest w at the nodes of a rule; a proposal that exceeds it raises it, and the draw starts afresh with
the same proposals: what comes out is a function of the seed alone.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError
from meanfield.noise import Stream, normals, uniforms

Array = npt.NDArray[Any]

HEADROOM = math.log(2.0)  # of the bound above the largest w that was seen
BATCH = 1 << 14  # proposals at a time
MOST_PROPOSALS = 1 << 26
AFTER = MOST_PROPOSALS // BATCH  # the first step that proposals leave free
PILOT = 16  # batches after which a hopeless draw is given up
PROPOSAL_BLOCK = 1  # coordinate block from which proposals begin; the uniforms of the same counters are block 0


def rejection(
    log_ratio: Callable[[Array], Array], scale: Array, m: int, *, seed: int, bound: float
) -> tuple[Array, float]:
    """Return m samples theta and the share of proposals accepted.

    Parameters
    ----------
    log_ratio : callable
        w at points (b, k): shape (b,).
    scale : ndarray, shape (k, k)
        C^1/2.
    m : int
    seed : int
    bound : float
        The largest w that is known; log 2 is added.

    Returns
    -------
    theta : ndarray, shape (m, k)
    share : float

    Raises
    ------
    InputError
        If m is no count, or more than 2^26 proposals would be needed.
    """
    if not isinstance(m, int | np.integer) or m < 1:
        raise InputError(f"the number of samples must be a whole number of at least 1, got {m!r}.")
    limit = bound + HEADROOM
    while True:
        found, share, highest = _attempt(log_ratio, scale, int(m), seed, limit)
        if highest <= limit:
            return found, share
        limit = highest + HEADROOM


def _attempt(
    log_ratio: Callable[[Array], Array], scale: Array, m: int, seed: int, limit: float
) -> tuple[Array, float, float]:
    """Return samples, the share accepted and the largest w; it ends early where that exceeds the limit."""
    taken: list[Array] = []
    count = 0
    for batch in range(AFTER):
        proposals = (
            normals(seed, Stream.SAMPLE, step=batch, count=BATCH, width=len(scale), first_block=PROPOSAL_BLOCK)
            @ scale.T
        )
        w = log_ratio(proposals)
        if w.max() > limit:
            return proposals, 0.0, float(w.max())
        done = (batch + 1) * BATCH
        kept = proposals[np.log(uniforms(seed, Stream.SAMPLE, step=batch, count=BATCH)) < w - limit]
        taken.append(kept)
        count += len(kept)
        if count >= m:
            return np.concatenate(taken)[:m], count / done, limit
        if batch >= PILOT and count * MOST_PROPOSALS < m * done:
            break
    raise InputError(
        f"{count} of {done} proposals were accepted, and {m} samples are wanted: more than {MOST_PROPOSALS} proposals. "
        "The law is too far from p0 for rejection; take fewer samples."
    )


def lifted(theta: Array, basis: Array, seed: int) -> Array:
    """Return z (m, d + 1): theta (m, k) in the span of the rows of `basis` (k, d), standard normals in every other way.

    No proposal uses these normals.
    """
    z = normals(seed, Stream.SAMPLE, step=AFTER, count=len(theta), width=basis.shape[1] + 1)
    z[:, :-1] += (theta - z[:, :-1] @ basis.T) @ basis
    return z


def levels(seed: int, count: int) -> Array:
    """Return uniforms (count,) that no proposal uses."""
    return uniforms(seed, Stream.SAMPLE, step=AFTER + 1, count=count)
