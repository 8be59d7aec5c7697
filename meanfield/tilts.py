"""Directions in which a network tilts a law: functions of theta spanned by h(w_i) and w_i h'(w_i), w_i = theta . x_i.

They are made orthonormal over samples theta ~ N(0, I) (the *probes*) and kept with their values there, once a run.
E_theta g_k g_l is known besides: with a_k(s) = E f(s xi) he_k(xi), he_k the normalised Hermite polynomials, Mehler's
formula gives

    E f(w_i) f'(w_j) = sum_k a_k(|x_i|) a'_k(|x_j|) rho_ij^k,     rho_ij the correlation of w_i and w_j.

Read next: `donsker`, which fits tilts in these directions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import parallel
from meanfield.errors import InputError
from meanfield.units import Activation

Array = npt.NDArray[Any]

BLOCK = 1024
INPUTS = 512  # of which directions are made
LARGEST_TABLE = 100_000_000  # bytes of values kept for the probes
SMALLEST_SQUARE = 1e-7  # of a direction's mean square before it is scaled, against the largest
DEGREE, NODES = 80, 180  # of Mehler's series; of the quadrature for its coefficients


@dataclass(frozen=True, eq=False)
class ProbeFeatures:
    """Tilt directions g_k(theta), orthonormal over samples theta ~ N(0, I), and their values there.

    Attributes
    ----------
    activation : Activation
    x : ndarray, shape (n, d)
        Inputs as the neurons see them.
    transform : ndarray, shape (n or 2 n, k)
        The directions in terms of h(w_i), then w_i h'(w_i).
    simple : int
        How many of the first directions use h(w_i) alone.
    values : ndarray, shape (N0, k), float32
        Their values at the probes.
    gram : ndarray, shape (k, k), or None
        E_theta g_k g_l, exact; None where Mehler's series does not converge fast enough.
    """

    activation: Activation
    x: Array
    transform: Array
    simple: int
    values: Array
    gram: Array | None

    def at(self, theta: Array) -> Array:
        """Return the directions at theta, shape (m, k) for theta of shape (m, d). O(m n (d + k))."""
        return self.raw(theta) @ self.transform

    def combination(self, theta: Array, coefficients: Array) -> Array:
        """Return g(theta) = sum coefficients_k g_k(theta) over the first directions, shape (m,). O(m n d)."""
        direction = self.transform[:, : len(coefficients)] @ coefficients
        return np.concatenate([self.raw(theta[rows]) @ direction for rows in blocks(len(theta))])

    def raw(self, theta: Array) -> Array:
        """Return h(w_i), then w_i h'(w_i) where the directions use it, shape (m, n or 2 n); O(m n d)."""
        return _raw(self.activation, self.x, theta, len(self.transform) // len(self.x))


def probe_features(probes: Array, x: Array, activation: Activation, *, largest: int | None = None) -> ProbeFeatures:
    """Return the tilt directions for inputs x with their values at samples of p0; to be made once a run.

    Parameters
    ----------
    probes : ndarray, shape (N0, D)
        Independent samples of p0 = N(0, I); their first d columns are used. N0 of 1e5 is good.
    x : ndarray, shape (n, d)
        Inputs as the neurons see them (`Unit.inputs`); the first INPUTS of them are taken, for directions are few
        against them, and matrices of n x n many.
    activation : Activation
    largest : int, optional
        At most that many directions, those of the largest mean square; without it what fits into 100 MB.

    Raises
    ------
    InputError
        If shapes don't fit. O(N0 n (d + n)).
    """
    x, probes = np.asarray(x, dtype=np.float64), np.asarray(probes)
    if x.ndim != 2 or probes.ndim != 2 or probes.shape[1] < x.shape[1] or len(probes) < 100:
        raise InputError(
            f"probes must have shape (N0, D), N0 >= 100 and D > d for inputs (n, d); got {probes.shape} and {x.shape}."
        )
    families = 1 if activation.homogeneous else 2  # w h'(w) = h(w) for a homogeneous one
    theta, x = probes[:, : x.shape[1]], x[:INPUTS]

    def square(rows: slice) -> Array:
        raw = _raw(activation, x, theta[rows], families)
        return raw.T @ raw / len(theta)

    sample = parallel.sum_blocks(square, len(theta), BLOCK)
    most = largest or max(LARGEST_TABLE // (4 * len(theta)), 1)
    transform, simple = _orthonormal(sample, len(x), most)
    values = np.empty((len(theta), transform.shape[1]), dtype=np.float32)

    def fill(rows: slice) -> None:
        values[rows] = _raw(activation, x, theta[rows], families) @ transform

    parallel.each_block(fill, len(theta), BLOCK)
    exact = _exact_gram(activation, x, families)
    gram = None if exact is None else transform.T @ exact @ transform
    return ProbeFeatures(activation, x, transform, simple, values, gram)


def blocks(rows: int) -> Iterator[slice]:
    """Yield slices that cover so many rows, a block at a time."""
    return (slice(first, first + BLOCK) for first in range(0, rows, BLOCK))


def _raw(activation: Activation, x: Array, theta: Array, families: int) -> Array:
    w = np.asarray(theta, dtype=np.float64) @ x.T
    if families == 1:
        return activation.value(w)
    out = np.empty((len(w), 2 * len(x)))
    out[:, : len(x)], h1 = activation.value_and_first(w)
    np.multiply(w, h1, out=out[:, len(x) :])
    return out


def _orthonormal(sample: Array, n: int, largest: int) -> tuple[Array, int]:
    """Return combinations that are orthonormal under the Gram matrix `sample`, the first family on its own first."""
    both = len(sample) > n
    first = _whitened(sample[:n, :n], max(2 * largest // 3, 1) if both else largest)
    simple = first.shape[1]
    if not both:
        return first, simple
    # Gram-Schmidt: what the first family does not span of the second.
    overlap = first.T @ sample[:n, n:]
    own = float(np.linalg.eigvalsh(sample[n:, n:])[-1])
    second = _whitened(sample[n:, n:] - overlap.T @ overlap, largest - simple, own)
    transform = np.zeros((2 * n, simple + second.shape[1]))
    transform[:n, :simple] = first
    transform[:n, simple:] = -first @ (overlap @ second)
    transform[n:, simple:] = second
    return transform, simple


def _whitened(matrix: Array, largest: int, size: float = 0.0) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    kept = np.flatnonzero(values > SMALLEST_SQUARE * max(size, float(values[-1]), 1e-300))[::-1][:largest]
    return vectors[:, kept] / np.sqrt(values[kept])


def _exact_gram(activation: Activation, x: Array, families: int) -> Array | None:
    """Return E f_i f_j over theta ~ N(0, I) for f = h(w_i), w_i h'(w_i), by Mehler's series, or None.

    None where the series misses more than 1e-6 of a mean square, as it does for kinks.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    polynomials = np.polynomial.hermite_e.hermevander(nodes, DEGREE - 1)
    polynomials /= np.sqrt(np.cumprod(np.maximum(np.arange(DEGREE, dtype=np.float64), 1.0)))
    norms = np.linalg.norm(x, axis=1)
    functions = _raw(activation, np.eye(1), np.outer(norms, nodes).reshape(-1, 1), families)
    functions = functions.T.reshape(families * len(x), NODES)
    coefficients = functions @ (polynomials * weights[:, None])
    squares = functions**2 @ weights
    if (np.abs((coefficients**2).sum(axis=1) - squares) > 1e-6 * squares + 1e-12).any():
        return None
    unit = x / np.where(norms > 0, norms, 1.0)[:, None]
    rho = np.tile(np.clip(unit @ unit.T, -1.0, 1.0), (families, families))
    total, power = np.zeros_like(rho), np.ones_like(rho)
    for k in range(DEGREE):
        total += np.outer(coefficients[:, k], coefficients[:, k]) * power
        power = power * rho
    return total
