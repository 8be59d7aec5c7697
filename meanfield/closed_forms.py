"""Closed Gram matrices of activations over theta ~ N(0, I): E h_i h_j and E h'_i h'_j from G = X X'.

Here h_i = h(theta . x_i). Every function maps G, shape (n, n), to both. To add one, write it here and name it in the
activation's record in `units`; `units.check_activation` compares it with quadrature.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def erf(g: Array) -> tuple[Array, Array]:
    """Return the arcsine kernel [Williams98]; expanded so that large inputs don't cancel."""
    q = np.diag(g)
    scale = np.sqrt(1.0 + 2.0 * q)
    sine = np.clip(2.0 * g / np.outer(scale, scale), -1.0, 1.0)
    determinant = 1.0 + 2.0 * np.add.outer(q, q) + 4.0 * np.maximum(np.outer(q, q) - g * g, 0.0)
    return (2.0 / math.pi) * np.arcsin(sine), (4.0 / math.pi) / np.sqrt(determinant)


def erf_sqrt2(g: Array) -> tuple[Array, Array]:
    """Return the arcsine kernel of erf(z / sqrt 2)."""
    values, slopes = erf(0.5 * g)
    return values, 0.5 * slopes


def relu(g: Array) -> tuple[Array, Array]:
    """Return the arc-cosine kernels of order 1 and 0 [ChoSaul09], exact for parallel, opposite and zero inputs."""
    length = np.sqrt(np.diag(g))
    norm = np.outer(length, length)
    gap = norm - np.abs(g)
    # Within rounding of parallel: an angle of 1e-8 there would be noise, and spoil the rank of duplicates.
    gap[gap <= 16 * np.finfo(norm.dtype).eps * norm] = 0.0
    sine = np.sqrt(gap * (norm + np.abs(g)))
    supplement = math.pi - np.arctan2(sine, g)
    slopes = np.where(norm > 0, supplement, 0.0)
    return (sine + supplement * g) / (2.0 * math.pi), slopes / (2.0 * math.pi)


def sin(g: Array) -> tuple[Array, Array]:
    """Return e^-s sinh G_ij and e^-s cosh G_ij, s = (G_ii + G_jj) / 2, without overflow."""
    q = np.diag(g)
    size = np.abs(g)
    half = 0.5 * np.exp(np.minimum(size - 0.5 * np.add.outer(q, q), 0.0))
    values = np.copysign(half * -np.expm1(-2.0 * size), g)
    return values, half * (1.0 + np.exp(-2.0 * size))


def linear(g: Array) -> tuple[Array, Array]:
    """Return G and 1."""
    return g.copy(), np.ones_like(g)
