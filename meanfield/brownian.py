"""Brownian trees: runs with steps of different lengths that share one path of noise.

The noise of an Ornstein-Uhlenbeck channel over consecutive leaves of equal length, xi_l that of leaf l, is the normal

    xi = sum_i c^(k - 1 - i) xi_(l + i) / (sum_i c^(2 (k - 1 - i)))^(1/2),     c = e^(-rate leaf),   i = 0 .. k - 1,

so that a step over k leaves and k steps over one each move the reference alike, to rounding, and what differs between
two lengths of steps is the error of the scheme and not the luck of the draw. The normals of leaf l are those that step
l would draw without a tree. O(k m D) a step of k leaves. For Euler's schemes the coupling is right to first order.
"""

import math

import numpy as np

from meanfield.cloud import Cloud, cloud_noise
from meanfield.errors import InputError
from meanfield.noise import Stream

Array = np.ndarray
ROUNDING = 1e-6  # of a leaf


def whole(cloud: Cloud, eta: float, leaf: float, rate: float) -> Array:
    """Return the standard normals of the step of length eta that begins at the cloud's time.

    Parameters
    ----------
    eta, leaf : float
        Lengths of the step and of a leaf.
    rate : float
        Rate of decay in the channel, lam / std^2.

    Returns
    -------
    ndarray, shape (m, D)

    Raises
    ------
    InputError
        If eta or the cloud's time is not a multiple of the leaf.
    """
    return _joined(cloud, *_leaves(cloud, eta, leaf), leaf * rate)


def bridge(cloud: Cloud, eta: float, leaf: float, rate: float) -> Array:
    """Return (xi_1 - c xi_2) / (1 + c^2)^(1/2), xi_1 and xi_2 the normals of the two halves, c = e^(-rate eta / 2).

    They are standard normals, independent of the whole step's (c xi_1 + xi_2) / (1 + c^2)^(1/2). Parameters, shape and
    errors are those of `whole`; the step must have an even number of leaves.
    """
    first, count = _leaves(cloud, eta, leaf)
    if count % 2:
        raise InputError(f"a midpoint step needs an even number of leaves, got eta = {eta:g} of leaf = {leaf:g}")
    one, two = (_joined(cloud, first + k, count // 2, leaf * rate) for k in (0, count // 2))
    c = math.exp(-0.5 * rate * eta)
    return (one - c * two) / math.sqrt(1 + c * c)


def _leaves(cloud: Cloud, eta: float, leaf: float) -> tuple[int, int]:
    """Return the first leaf of a step and their number."""
    first, count = round(cloud.time / leaf), round(eta / leaf)
    if count < 1 or abs(cloud.time / leaf - first) > ROUNDING or abs(eta / leaf - count) > ROUNDING:
        raise InputError(f"a step of {eta:g} at time {cloud.time:g} is not made of whole leaves of length {leaf:g}")
    return first, count


def _joined(cloud: Cloud, first: int, count: int, decay: float) -> Array:
    weights = np.exp(-decay * np.arange(count)[::-1])
    weights = (weights / np.linalg.norm(weights)).astype(cloud.z.dtype)
    out = weights[0] * cloud_noise(cloud, Stream.DIFFUSION, step=first)
    for k in range(1, count):
        out += weights[k] * cloud_noise(cloud, Stream.DIFFUSION, step=first + k)
    return out
