"""Bounds and estimates of the relative entropy KL(p_t || p0), in nats.

    lower   KL(N(mu, Sigma) || p0)                the Gaussian of the same moments      `gaussian_lower`
    lower   E_p phi - log E_p0 e^phi              Donsker and Varadhan's formula        `donsker.donsker_varadhan`
    upper   the discrete account of a run         `account`, fed by Fisher information  `stein_fisher`
    about   kNN(Z) - kNN(Zbar)                    nearest neighbours, no bound          `knn_estimate`

Read next: `donsker`; `intervals` for estimates that cover; `moments` for what a pair is.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError
from meanfield.estimate import Estimate, mean_estimate
from meanfield.moments import Clouds, Pair, coupled_pairs, each, jackknifed

Array = npt.NDArray[Any]
# Columns whose smallest entry is looked at first when neighbours are searched.
GROUP = 32


def gaussian_kl(mean: Array, covariance: Array) -> float:
    """Return KL(N(mean, covariance) || N(0, I)) = (tr S + |mu|^2 - D - log det S) / 2.

    Parameters
    ----------
    mean : ndarray, shape (D,)
    covariance : ndarray, shape (D, D)
        A singular one gives infinity. O(D^3).
    """
    return _spectral_kl(mean, np.linalg.eigvalsh(covariance))


def _spectral_kl(mean: Array, eigenvalues: Array) -> float:
    if not (eigenvalues > 0).all():
        return math.inf
    # x - log(1 + x) of the excess x = eigenvalue - 1: near p0 the two halves cancel to second order.
    excess = eigenvalues - 1.0
    return 0.5 * float(mean @ mean + (excess - np.log1p(excess)).sum())


def gaussian_lower(clouds: Clouds, *, scale: float = 1.0, blocks: int = 8) -> Estimate:
    """Return KL(N(mu, Sigma) || p0) at the centred moments of all replicates, bias removed: a lower bound on KL.

    With phi = log dN(mu, Sigma)/dp0, a quadratic, Donsker and Varadhan's formula [DonskerVaradhan75] gives
    KL(p || p0) >= E_p phi = KL(N(mu, Sigma) || p0) for every p with these moments. Convex in the moments, hence
    biased up by sampling; `moments.jackknifed` takes that off. Eigenvalues of Sigma below 4 sqrt(2 / (R m)), four
    standard errors of a sample variance, count as that much: below, the logarithm is beyond what moments resolve, and
    a larger variance is the safe side. Two-sided coverage is not claimed: it reads 88 to 94 % of KL for laws that are
    not Gaussian in docs/mathematics.md. O(R m D^2 + R blocks D^3).

    Parameters
    ----------
    clouds : sequence of (z, reference, weights)
        One entry a replicate, arrays of shape (m, D), (m, D), (m,) or None.
    scale : float
        Standard deviation s of the reference.
    blocks : int
        Groups of particles a replicate for the jackknife.

    Raises
    ------
    InputError
        If shapes or weights don't fit.
    """
    pairs = coupled_pairs(clouds, scale)
    least = min(4 * math.sqrt(2 / sum(len(pair.z) for pair in pairs)), 1.0)

    def floored(mean: Array, covariance: Array) -> float:
        return _spectral_kl(mean, np.maximum(np.linalg.eigvalsh(covariance), least))

    return jackknifed(floored, pairs, "Gaussian", blocks)


def stein_fisher(
    e: Array, gram: Array, covariance: Array, cutoff: float = 1e-10, spectrum: tuple[Array, Array] | None = None
) -> float:
    """Return a lower bound e' H^-1 e - tr(H^-1 Cov e) on the Fisher information I = E_p |grad log(p / p0)|^2.

    For a field v, Stein's identity reads E_p[grad log(p/p0) . v] = -E_p[div v - z . v]. With v = sum a_i grad psi_i
    the right side is -a . e, and Cauchy-Schwarz gives I >= (a . e)^2 / a' H a for every a; the best is a = H^-1 e.
    The quadratic form is convex in e and biased up by tr(H^-1 Cov e), Cov e the covariance of the measured mean;
    what is left is clipped at 0. Directions where H is below `cutoff` lambda_max are left out: the supremum over
    fewer fields is smaller, and there the quotient of two roundings would be anything.

    Parameters
    ----------
    e : ndarray, shape (n,)
        E_p[Laplace psi_i - z . grad psi_i].
    gram : ndarray, shape (n, n)
        H_ij = E_p <grad psi_i, grad psi_j>.
    covariance : ndarray, shape (n, n)
        Covariance of the estimate `e`.
    cutoff : float
        Relative size of the smallest eigenvalue used.
    spectrum : tuple, optional
        Eigenvalues and eigenvectors of `gram`, if they are known.

    Raises
    ------
    InputError
        If shapes don't fit. O(n^3).
    """
    n = len(e)
    if np.shape(gram) != (n, n) or np.shape(covariance) != (n, n):
        raise InputError(f"e has {n} entries, but H and Cov e have shapes {np.shape(gram)}, {np.shape(covariance)}.")
    values, vectors = np.linalg.eigh(gram) if spectrum is None else spectrum
    kept = values > cutoff * max(float(values[-1]), 0.0)
    vectors = vectors[:, kept]
    along = vectors.T @ e
    spread = np.einsum("ik,ik->k", vectors, covariance @ vectors)
    return max(float(((along**2 - spread) / values[kept]).sum()), 0.0)


def knn_estimate(clouds: Clouds, *, scale: float = 1.0, k: int = 5, largest: int = 2048) -> Estimate:
    """Return a point estimate of KL by nearest neighbours, debiased by the reference: kNN(Z) - kNN(Zbar).

    kNN is the Kozachenko-Leonenko estimate of -entropy [KozachenkoLeonenko87] plus the exact Gaussian cross-entropy,
    -log p0 = |z|^2 / 2 + const, so that constants drop out of

        D mean log(r_k(Zbar) / r_k(Z)) + mean(|Z|^2 - |Zbar|^2) / 2,   r_k the distance to the k-th neighbour.

    The mean over the full cloud serves for the last term. No bound, and its errors claim no coverage: at m = 500 it
    shrinks the truth by 0 to 2 % at D = 2, 7 to 9 % at D = 6, 14 to 27 % at D = 11 and 21 to 44 % at D = 21, and 95 %
    intervals around it cover 95, 70, 10 and 0 % of Gaussians (docs/mathematics.md). `intervals` covers.

    Parameters
    ----------
    clouds : sequence of (z, reference, weights)
        One entry a replicate; weights must be None (neighbours of unequal masses are not counted here).
    scale : float
        Standard deviation s of the reference.
    k : int
        Which neighbour.
    largest : int
        At most that many particles of a cloud are used; O(largest^2 D).

    Raises
    ------
    InputError
        If there are weights, shapes don't fit, or a cloud has not more than k particles.
    """
    pairs = coupled_pairs(clouds, scale)
    return mean_estimate(each(lambda pair: _knn(pair, k, largest), pairs), "nearest neighbours")


def _knn(pair: Pair, k: int, largest: int) -> float:
    if pair.weights is not None:
        raise InputError("the nearest-neighbour estimate takes particles of equal mass; leave the weights out.")
    used = slice(0, largest)
    here, there = pair.z[used], pair.reference[used]
    if not 1 <= k < len(here):
        raise InputError(f"the neighbour k = {k} needs more than {k} particles, got {len(here)}.")
    if pair.z is pair.reference:
        return 0.0
    ratio = _log_distances(there, k) - _log_distances(here, k)
    squares = np.einsum("ij,ij->i", pair.z, pair.z) - np.einsum("ij,ij->i", pair.reference, pair.reference)
    return float(here.shape[1] * ratio.mean() + 0.5 * squares.mean())


def _log_distances(points: Array, k: int, block: int = 256) -> Array:
    """Return the logarithm of every point's distance to its k-th neighbour."""
    squares = np.einsum("ij,ij->i", points, points)
    ones = np.ones_like(squares)
    # |x - y|^2 as one product: the rows (-2 x, |x|^2, 1) against (y, 1, |y|^2).
    left, right = np.column_stack([-2.0 * points, squares, ones]), np.column_stack([points, ones, squares]).T
    out = np.empty(len(points))
    for first in range(0, len(points), block):
        rows = slice(first, first + block)
        out[rows] = _kth_smallest(left[rows] @ right, k)  # the smallest is the point itself
    # Coinciding particles would give minus infinity; rounding of the expanded square hides what is below this.
    return 0.5 * np.log(np.maximum(out, 1e-15 * (1.0 + squares)))


def _kth_smallest(rows: Array, k: int) -> Array:
    """Return the k-th smallest entry of every row, counted from 0: of numpy's partition, at a fifth of its cost.

    The k-th smallest of the minima over groups of columns is no less than it, and few entries are below that.
    """
    groups = rows.shape[1] // GROUP
    if groups <= k:
        return np.partition(rows, k, axis=1)[:, k]
    minima = rows[:, : groups * GROUP].reshape(len(rows), GROUP, groups).min(axis=1)
    low = np.flatnonzero(rows <= np.partition(minima, k, axis=1)[:, k, None])
    row, few = low // rows.shape[1], rows.ravel()[low]
    first = np.searchsorted(row, np.arange(len(rows)))
    return few[np.lexsort((few, row))][first + k]
