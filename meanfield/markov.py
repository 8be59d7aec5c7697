r"""A drift and diffusion in the plane as a Markov chain on cells, and its exact exponential.

The flux between neighbouring cells is that of Scharfetter and Gummel [ScharfetterGummel69], exact where the slope of V
is constant between their centres,

    F = (lam / dz^2) (B(d) p_i - B(-d) p_(i+1)),   d = (V_(i+1) - V_i) / lam,   B(x) = x / (e^x - 1):

masses stay positive, add up to one, and rest at p_i ~ exp(-V_i / lam) in detailed balance. exp(tau A) is applied by
uniformisation [Jensen53], a Poisson mixture of powers of a stochastic matrix: of positive terms only.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import dia_matrix

Array = np.ndarray
# Jumps that one Poisson mixture covers on average: e^-400 times the smallest mass is far from underflow.
MOST_JUMPS = 400.0
# What is left out of a Poisson mixture.
LEFT_OUT = 1e-17


def bernoulli_pair(d: Array) -> tuple[Array, Array]:
    """Return B(d) and B(-d), B(x) = x / (e^x - 1), without overflow."""
    size = np.abs(d)
    small = size < 1e-8
    larger = np.where(small, 1 + 0.5 * size, np.where(small, 1.0, size) / -np.expm1(-np.where(small, 1.0, size)))
    smaller = larger * np.exp(-size)
    return np.where(d > 0, smaller, larger), np.where(d > 0, larger, smaller)


class Chain:
    """The chain of a potential on a grid of (theta, u).

    Parameters
    ----------
    steps : two arrays or None
        (V_(i+1) - V_i) / lam along theta, shape (N - 1, M), and along u, shape (N, M - 1); None: no flux that way.
    rates : two floats
        lam / dtheta^2 and lam / du^2.
    shape : (int, int)
        (N, M).
    """

    def __init__(self, steps: tuple[Array | None, Array | None], rates: tuple[float, float], shape: tuple[int, int]):
        self.shape = shape
        self.offsets: list[int] = []
        self.bands: list[Array] = []
        self.leaving = np.zeros(shape)
        for axis, (step, rate) in enumerate(zip(steps, rates, strict=True)):
            if step is not None:
                self._couple(axis, step, rate)

    def _couple(self, axis: int, step: Array, rate: float) -> None:
        forward, backward = (rate * part for part in bernoulli_pair(step))
        stride = self.shape[1] if axis == 0 else 1
        edge = [(0, 0), (0, 0)]
        for rates, sign, side in ((forward, 1, (0, 1)), (backward, -1, (1, 0))):
            edge[axis] = side  # nothing leaves the box
            out = np.pad(rates, edge)
            self.leaving += out
            self.offsets.append(-sign * stride)
            self.bands.append(out.ravel())

    def after(self, p: Array, tau: float) -> Array:
        """Return exp(tau A) p, shape (N, M): positive, and of the same mass to rounding. O(tau max rate) products."""
        fastest = float(self.leaving.max())
        if fastest * tau == 0:
            return p
        pieces = math.ceil(fastest * tau / MOST_JUMPS)
        jumps = fastest * tau / pieces
        stochastic = self._stochastic(fastest)
        flat = p.ravel()
        for _ in range(pieces):
            flat = _poisson_mixture(stochastic, flat, jumps)
        return (flat * (p.sum() / flat.sum())).reshape(self.shape)

    def _stochastic(self, fastest: float) -> "dia_matrix":
        """Return I + A / fastest; a column is where the mass of a cell goes."""
        from scipy.sparse import dia_matrix

        size = self.leaving.size
        bands = [1 - self.leaving.ravel() / fastest, *(band / fastest for band in self.bands)]
        return dia_matrix((np.array(bands), [0, *self.offsets]), shape=(size, size))


def _poisson_mixture(matrix: "dia_matrix", p: Array, mean: float) -> Array:
    term = p * math.exp(-mean)
    total = term.copy()
    weight, k = math.exp(-mean), 0
    while weight > LEFT_OUT or k < mean:
        k += 1
        term = matrix @ term
        term *= mean / k
        total += term
        weight *= mean / k
    return total
