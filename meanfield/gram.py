"""The tangent kernel at the Gaussian start, in closed form or by Hermite series: Gram matrices, and between two sets.

    H = H1 + H2,   H1_ij = E[u^2 h'(w_i) h'(w_j)] <x_i, x_j>,   H2_ij = E[h(w_i) h(w_j)],   w_i = theta . x_i

Over theta ~ N(0, std^2 I) the pair (w_i, w_j) is Gaussian, and for any activation Mehler's formula gives

    E f(w_i) g(w_j) = sum_k a_k(s_i) b_k(s_j) rho_ij^k,   s_i = std |x_i|,  rho_ij the correlation,

with a_k(s) = E f(s g) he_k(g) the coefficients in normalised Hermite polynomials he_k. `ntk` holds all that is said of
tangent kernels; read it next.
"""

import functools
import math
import warnings

import numpy as np

from meanfield.errors import InputError
from meanfield.units import Activation

Array = np.ndarray
# Nodes of the trapezoidal rule on [-REACH, REACH], terms of the series taken at a time, and at most.
NODES, REACH, TERMS, MOST_TERMS = 6145, 12.5, 64, 4096
# Inputs by inputs whose kernel is formed at a time.
TILE = 512


def gram_gaussian(activation: Activation, x: Array, *, std: float = 1.0, train: str = "both") -> Array:
    """Return the NTK Gram matrix at N(0, std^2 I), shape (n, n).

    Parameters
    ----------
    activation : Activation
        Closed forms are used where it has them, Mehler's series elsewhere.
    x : ndarray, shape (n, d)
        Inputs as the neurons see them.
    train : str
        "both": H1 + H2; "u": H2; "theta": H1.
    """
    second, first = gram_parts(activation, x, std=std)
    if train == "u":
        return second
    return first if train == "theta" else first + second


def gram_parts(activation: Activation, x: Array, *, std: float = 1.0) -> tuple[Array, Array]:
    """Return (H2, H1) at N(0, std^2 I): the part of the outer weights u and that of the inner weights theta."""
    x = np.asarray(x, dtype=np.float64)
    inner = x @ x.T
    if activation.gram is not None:
        values, slopes = activation.gram(std**2 * inner)
        return values, std**2 * slopes * inner
    values = mehler(activation, x, (0, 0), std=std)
    slopes = mehler(activation, x, (1, 1), std=std)
    return values, std**2 * slopes * inner


def mehler(activation: Activation, x: Array, orders: tuple[int, int], *, std: float = 1.0) -> Array:
    """Return E h^(a)(w_i) h^(b)(w_j) for the derivatives (a, b), by Mehler's series; shape (n, n).

    As many terms are taken as the inputs need: for tanh 192 at |x| = 1, 3,840 at |x| = 5. The diagonal with a = b is
    integrated directly. O(n^2 terms).

    Warns
    -----
    UserWarning
        If the series misses more than 1e-8 of a mean square after `MOST_TERMS` terms: nearly parallel inputs of norm
        above 10, or a kink.
    """
    scaled = std * np.asarray(x, dtype=np.float64)
    norms, _, rho = correlations(scaled, scaled)
    np.fill_diagonal(rho, np.where(norms > 0, 1.0, 0.0))
    left, square, missed = hermite_coefficients(activation, norms, orders[0])
    right = left
    if orders[0] != orders[1]:
        right, _, other = hermite_coefficients(activation, norms, orders[1])
        missed = max(missed, other)
    # The diagonal is exact; elsewhere what is left out comes with rho^terms.
    away = np.abs(rho - np.diag(np.diag(rho))).max() if len(rho) > 1 else 0.0
    missed *= float(away ** min(left.shape[1], right.shape[1])) if orders[0] == orders[1] else 1.0
    _warn(activation, missed, norms)
    total = series(left, right, rho)
    if orders[0] == orders[1]:
        np.fill_diagonal(total, square)
    return total


def _warn(activation: Activation, missed: float, norms: Array) -> None:
    """Warn where the series misses more than 1e-8 of a mean square."""
    if missed > 1e-8:
        warnings.warn(
            f"the Gram matrix of {activation.name} at p0 is right to about {missed:.0e} only: inputs of norm up to "
            f"{norms.max():.3g} are beyond {MOST_TERMS} terms of Mehler's series; scale the inputs, or give the "
            "activation a closed form (gram)",
            UserWarning,
            stacklevel=3,
        )


def series(left: Array, right: Array, rho: Array, weights: Array | None = None) -> Array:
    """Return sum_k w_k a_k(i) b_k(j) rho_ij^k, shape (n, p), from (n, terms) and (p, terms); w_k = 1 if None."""
    total, power = np.zeros_like(rho), np.ones_like(rho)
    for k in range(min(left.shape[1], right.shape[1])):
        weight = 1.0 if weights is None else weights[k]
        total += np.outer(weight * left[:, k], right[:, k]) * power
        power = power * rho
    return total


def correlations(x: Array, other: Array) -> tuple[Array, Array, Array]:
    """Return the norms of two sets of inputs, and their correlations (0 with an input that is zero)."""
    norms, lengths = np.linalg.norm(x, axis=1), np.linalg.norm(other, axis=1)
    unit = x / np.where(norms > 0, norms, 1.0)[:, None]
    return norms, lengths, np.clip(unit @ (other / np.where(lengths > 0, lengths, 1.0)[:, None]).T, -1.0, 1.0)


def kernel(activation: Activation, x: Array, other: Array, *, std: float = 1.0, train: str = "both") -> Array:
    """Return the tangent kernel at N(0, std^2 I) between two sets of inputs, shape (n, p).

    Parameters
    ----------
    activation : Activation
        Closed forms are used where it has them, Mehler's series elsewhere.
    x, other : ndarray, shapes (n, d) and (p, d)
        Inputs as the neurons see them.
    train : str
        "both": H1 + H2; "u": H2; "theta": H1.
    """
    x, other = np.asarray(x, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if x.ndim != 2 or other.ndim != 2 or x.shape[1] != other.shape[1]:
        raise InputError(f"two sets of inputs must have shapes (n, d) and (p, d), got {x.shape} and {other.shape}.")
    values, slopes = (_closed if activation.gram is not None else _mehler_between)(activation, std * x, std * other)
    first = std**2 * slopes * (x @ other.T)
    return {"both": first + values, "u": values, "theta": first}[train]


def _closed(activation: Activation, x: Array, other: Array) -> tuple[Array, Array]:
    """Return E h h and E h' h' between two sets from the closed form, which takes one set: in tiles of both."""
    assert activation.gram is not None
    out = np.empty((2, len(x), len(other)))
    for rows in range(0, len(x), TILE):
        for columns in range(0, len(other), TILE):
            here, there = slice(rows, rows + TILE), slice(columns, columns + TILE)
            both = np.concatenate([x[here], other[there]])
            count = len(x[here])
            out[:, here, there] = [part[:count, count:] for part in activation.gram(both @ both.T)]
    return out[0], out[1]


def _mehler_between(activation: Activation, x: Array, other: Array) -> tuple[Array, Array]:
    norms, lengths, rho = correlations(x, other)
    values = []
    for order in (0, 1):
        left, missed = _remembered_coefficients(activation, norms.tobytes(), order)
        right, more = _remembered_coefficients(activation, lengths.tobytes(), order)
        # What is left out comes with rho^terms, as in `mehler`.
        away = float(np.abs(rho).max(initial=0.0) ** min(left.shape[1], right.shape[1]))
        _warn(activation, away * max(missed, more), np.append(norms, lengths))
        values.append(series(left, right, rho))
    return values[0], values[1]


@functools.lru_cache(maxsize=8)
def _remembered_coefficients(activation: Activation, norms: bytes, order: int) -> tuple[Array, float]:
    """Return coefficients and what they miss; a product with a kernel asks for those of the same inputs each time."""
    found, _, missed = hermite_coefficients(activation, np.frombuffer(norms), order)
    found.flags.writeable = False
    return found, missed


def hermite_coefficients(activation: Activation, scales: Array, order: int) -> tuple[Array, Array, float]:
    """Return a_k(s) = E h^(order)(s g) he_k(g), the mean squares E h^(order)(s g)^2, and what the series misses.

    The trapezoidal rule is exact to rounding for analytic functions that decay; terms are added until their squares sum
    to the mean square (Parseval).

    Returns
    -------
    coefficients : ndarray, shape (len(scales), terms)
    square : ndarray, shape (len(scales),)
    missed : float
        Largest share of a mean square that the terms leave out.
    """
    nodes = np.linspace(-REACH, REACH, NODES)
    root = np.sqrt(np.exp(-0.5 * nodes**2) / math.sqrt(2 * math.pi) * (2 * REACH / (NODES - 1)))
    values = activation.jet(np.outer(scales, nodes))[order] * root
    square = np.einsum("ij,ij->i", values, values)
    scale = np.maximum(square, np.finfo(np.float64).tiny)
    found: list[Array] = []
    left, missed = square.copy(), 1.0
    before, here, k = np.zeros_like(root), root, 0
    while missed > 1e-14 and k < MOST_TERMS:
        rows = np.empty((TERMS, NODES))
        for row in rows:
            row[:] = here
            # The recurrence of normalised Hermite polynomials, weighted so that nothing overflows.
            here, before = (nodes * here - math.sqrt(k) * before) / math.sqrt(k + 1), here
            k += 1
        found.append(values @ rows.T)
        left = left - np.einsum("ij,ij->i", found[-1], found[-1])
        missed = float((np.maximum(left, 0.0) / scale).max())
    return np.concatenate(found, axis=1), square, missed
