"""Eigenvalues of tangent kernels: dense, from products alone (Lanczos), against n, and from replicates.

A matrix is solved densely (`smallest`), an operator by Lanczos (`lanczos`), which asks for products H v alone: at a
cloud they take one pass over the particles (`product`), at p0 the matrix, or tiles of it (`start_operator`).
`smallest_at_start` and `smallest_at_cloud` choose by size; `against_n` gives lambda_min and lambda0 over prefixes of
the inputs; `between` takes lambda_min from replicates' matrices, biased down and biased up. `ntk` holds all that is
said of tangent kernels.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from meanfield import gram as gaussian
from meanfield import noise
from meanfield.cloud import Cloud, demand_values
from meanfield.errors import InputError
from meanfield.estimate import Estimate, mean_estimate
from meanfield.noise import Stream
from meanfield.products import gram_at_cloud, product, start_operator
from meanfield.units import Activation

Array = np.ndarray
# Up to so many samples a matrix is formed and solved, which is faster; beyond, eigenvalues come from products.
DENSE = 4000
# Products at most, and relative size of the residual at which Lanczos stops.
PRODUCTS, TOLERANCE = 400, 1e-10


class Eigenvalue(NamedTuple):
    """An eigenvalue, and how far from it an eigenvalue of the matrix may lie at most.

    `error` is the rounding of a dense solver, or the norm of the residual |H v - value v| of Lanczos; the latter's
    value is a Rayleigh quotient, so that the smallest eigenvalue is never above it.
    """

    value: float
    error: float
    method: str


def largest_eigenvalue(gram: Array) -> float:
    """Return lambda_max of a symmetric matrix; refuse one that is not finite. O(n^3)."""
    return float(np.linalg.eigvalsh(demand_finite(gram))[-1])


def eigenvalue_range(gram: Array) -> tuple[float, float]:
    """Return (lambda_min, lambda_max) of a symmetric matrix; refuse one that is not finite. O(n^3)."""
    values = np.linalg.eigvalsh(demand_finite(gram))
    return float(values[0]), float(values[-1])


def eigen(matrix: Array) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors of a cloud's D^1/2 H D^1/2; DivergedError if it is not finite."""
    values, vectors = np.linalg.eigh(demand_values(matrix, "the Gram matrix"))
    return values, vectors


def demand_finite(gram: Array) -> Array:
    """Return the matrix; refuse one that holds NaN or infinity, of which numpy says that nothing converged."""
    if not np.isfinite(gram).all():
        raise InputError("the Gram matrix holds NaN or infinity")
    return gram


def smallest(gram: Array) -> Eigenvalue:
    """Return lambda_min of a symmetric matrix with its rounding error n eps lambda_max. O(n^3)."""
    low, high = eigenvalue_range(gram)
    return Eigenvalue(low, len(gram) * float(np.finfo(np.float64).eps) * max(high, 0.0), "dense")


def lanczos(
    product: Callable[[Array], Array], n: int, *, products: int = PRODUCTS, tolerance: float = TOLERANCE
) -> tuple[Eigenvalue, Eigenvalue]:
    """Return the smallest and the largest eigenvalue of a symmetric operator from its products with vectors.

    Lanczos with full reorthogonalisation from a random vector (stream PROBE, seed 0) [GolubVanLoan13, section 10.1]. It
    stops when the residual of the smallest Ritz pair is below `tolerance` times the largest Ritz value, or after
    `products` products; the residual is the error that is returned.

    Parameters
    ----------
    product : callable
        Maps a vector (n,) to H v.
    n : int
        Size of the operator.

    Raises
    ------
    InputError
        If a product is not finite. O(products) calls and O(n products^2).
    """
    basis = np.zeros((min(products, n) + 1, n))
    start = noise.normals(0, Stream.PROBE, step=0, count=n, width=1)[:, 0]
    basis[0] = start / np.linalg.norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    found = None
    for k in range(min(products, n)):
        w = np.asarray(product(basis[k]), dtype=np.float64)
        if w.shape != (n,) or not np.isfinite(w).all():
            raise InputError(f"the product must map a vector ({n},) to finite numbers of that shape, got {w.shape}")
        diagonal.append(float(basis[k] @ w))
        for _ in range(2):
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        beside.append(float(np.linalg.norm(w)))
        last = k + 1 == min(products, n) or beside[-1] <= np.finfo(np.float64).eps * max(map(abs, diagonal))
        if last or k % 10 == 9:
            found = _ritz(diagonal, beside)
            if last or found[0].error <= tolerance * abs(found[1].value):
                break
        basis[k + 1] = w / beside[-1]
    assert found is not None
    return found


def _ritz(diagonal: list[float], beside: list[float]) -> tuple[Eigenvalue, Eigenvalue]:
    """Return the outer eigenvalues of the tridiagonal matrix, with the norms of their residuals."""
    from scipy.linalg import eigh_tridiagonal

    values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside[:-1]))
    rounding = len(diagonal) * np.finfo(np.float64).eps * float(np.abs(values).max())
    text = f"Lanczos, {len(diagonal)} products"
    ends = (0, -1)
    low, high = (Eigenvalue(float(values[k]), beside[-1] * abs(float(vectors[-1, k])) + rounding, text) for k in ends)
    return low, high


def smallest_at_start(
    activation: Activation, x: Array, *, std: float = 1.0, train: str = "both", dense: int = DENSE
) -> Eigenvalue:
    """Return Lambda = lambda_min(H(p0)): dense up to `dense` samples, by Lanczos beyond."""
    if len(x) <= dense:
        return smallest(gaussian.gram_gaussian(activation, x, std=std, train=train))
    return lanczos(start_operator(activation, x, std=std, train=train), len(x))[0]


def smallest_at_cloud(
    activation: Activation, x: Array, cloud: Cloud, *, train: str = "both", dense: int = DENSE
) -> Eigenvalue:
    """Return lambda_min of the cloud's own H: its error is that of the solver, not of sampling (see `between`).

    By Lanczos beyond `dense` samples: O(m n d) a product. With n > m D it is zero, for H has rank m D at most.
    """
    if len(x) <= dense:
        return smallest(gram_at_cloud(activation, x, cloud, train=train))
    return lanczos(lambda v: product(activation, x, cloud.z, v, cloud.weights, train), len(x))[0]


class AgainstN(NamedTuple):
    """Eigenvalues of H(p0) over prefixes of the inputs, one entry each; lambda0 = sqrt(lambda_min / n)."""

    n: Array
    lambda_min: Array
    error: Array
    lambda_max: Array
    lambda0: Array


def against_n(
    activation: Activation,
    x: Array,
    sizes: Sequence[int] | None = None,
    *,
    std: float = 1.0,
    train: str = "both",
    dense: int = DENSE,
) -> AgainstN:
    """Return Lambda(n) and lambda0(n) = sqrt(Lambda / n) over the first n inputs; both fall as n grows.

    Parameters
    ----------
    x : ndarray, shape (n, d)
        Inputs as the neurons see them.
    sizes : sequence of int, optional
        Lengths of the prefixes; powers of two and n by default.
    dense : int
        Prefixes beyond are solved by Lanczos.

    Raises
    ------
    InputError
        If a size is not between 1 and n.
    """
    sizes = sorted({*(1 << k for k in range(len(x).bit_length())), len(x)}) if sizes is None else list(sizes)
    if not sizes or min(sizes) < 1 or max(sizes) > len(x):
        raise InputError(f"sizes of prefixes must lie between 1 and n = {len(x)}, got {sizes}")
    whole = gaussian.gram_gaussian(activation, x[: min(max(sizes), dense)], std=std, train=train)
    rows = []
    for n in sizes:
        if n <= dense:
            low, high = smallest(whole[:n, :n]), largest_eigenvalue(whole[:n, :n])
        else:
            low, top = lanczos(start_operator(activation, x[:n], std=std, train=train), n)
            high = top.value
        rows.append((n, low.value, low.error, high, math.sqrt(max(low.value, 0.0) / n)))
    return AgainstN(*(np.array(column) for column in zip(*rows, strict=True)))


def between(grams: Sequence[Array]) -> tuple[Estimate, Estimate]:
    """Return lambda_min of the mean of random matrices from replicates: an estimate biased down, and one biased up.

    E lambda_min(H_r) <= lambda_min(E H), since it is concave. v' H_r v with v the lowest eigenvector of the other
    replicates' mean knows nothing of H_r, so that its expectation is at least lambda_min(E H).

    Parameters
    ----------
    grams : sequence of ndarray, shape (n, n)
        One matrix a replicate, at least two.

    Returns
    -------
    low, high : Estimate
        Means over replicates with standard errors.
    """
    if len(grams) < 2:
        raise InputError("an eigenvector from other replicates needs at least two")
    stack = np.array(grams)
    values = []
    for r, matrix in enumerate(stack):
        v = np.linalg.eigh(np.delete(stack, r, axis=0).mean(0))[1][:, 0]
        values.append(float(v @ matrix @ v))
    low = [eigenvalue_range(matrix)[0] for matrix in stack]
    return mean_estimate(low, "each replicate's own"), mean_estimate(values, "held-out eigenvector")
