"""Bounds on the squared Wasserstein distance W2^2(p_t, p0) from coupled clouds.

Everything here is W2 *squared* unless its name says otherwise; `root` turns an estimate into one of W2.

    upper   E|Z - Zbar|^2            the cost of one coupling                                  `coupled_upper`
    upper   E|Z_j - Zbar_s(j)|^2     the same clouds, paired anew                              `repaired_upper`
    lower   |mu|^2 + sum (sqrt(eig Sigma) - 1)^2   the distance of the Gaussians of the same moments `gelbrich_lower`
    lower   2 (E_p T - E_p0 Phi)     Kantorovich's dual at smoothed potentials of the network  `dual.dual_lower`

Plug-in distances between samples (`plugin`) are there to be looked at beside what they read for two samples of p0
(`plugin_null`): above D of about 5 they measure the sample size. Read next: `dual`; `distances` for distances between
samples; `moments` for what a pair is.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import noise
from meanfield.assignment import optimal, plugin, plugin_null
from meanfield.errors import InputError
from meanfield.estimate import Estimate, mean_estimate
from meanfield.moments import Clouds, Pair, coupled_pairs, each, jackknifed

__all__ = ["bures", "coupled_upper", "gelbrich", "gelbrich_lower", "plugin", "plugin_null", "repaired_upper", "root"]

Array = npt.NDArray[Any]
BLOCK, ROUNDS = 100, 20  # particles that are paired anew with each other; most frames in which they are sorted
WORTH = 0.01  # share of the cost that a round must save for another one to follow


def gelbrich(mean: Array, covariance: Array) -> float:
    """Return W2^2 between N(mean, covariance) and N(0, I).

    It is |mean|^2 + sum (sqrt(eig covariance) - 1)^2, and at most W2^2(p, N(0, I)) for every law p with these moments
    [Gelbrich90].

    Parameters
    ----------
    mean : ndarray, shape (D,)
    covariance : ndarray, shape (D, D)
        Negative eigenvalues (of a centred estimate) count as zero. O(D^3).
    """
    eigenvalues = np.linalg.eigvalsh(covariance)
    return float(mean @ mean + ((np.sqrt(np.maximum(eigenvalues, 0.0)) - 1.0) ** 2).sum())


def bures(first: Array, second: Array) -> float:
    """Return W2^2 between N(0, first) and N(0, second), tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2; shapes (D, D).

    The last trace is the nuclear norm of A^1/2 B^1/2. Raises InputError for shapes that don't fit. O(D^3).
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 2 or first.shape[0] != first.shape[1] or first.shape != second.shape:
        raise InputError(f"two covariances must share a shape (D, D), got {first.shape} and {second.shape}.")
    fidelity = np.linalg.norm(_root(first) @ _root(second), "nuc")
    return max(float(np.trace(first) + np.trace(second) - 2 * fidelity), 0.0)


def _root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def coupled_upper(clouds: Clouds, *, scale: float = 1.0) -> Estimate:
    """Return E|Z - Zbar / s|^2, the cost of the coupling of a cloud with its reference: W2^2 <= it.

    In expectation it is an upper bound for every m and every step, on the distance of the law of one particle.

    Parameters
    ----------
    clouds : sequence of (z, reference, weights)
        One entry a replicate, arrays of shape (m, D), (m, D), (m,) or None.
    scale : float
        Standard deviation s of the reference: not 1 with Euler-Maruyama, whose reference is N(0, s^2 I).

    Raises
    ------
    InputError
        If shapes or weights don't fit.
    """
    return mean_estimate([_gap(pair) for pair in coupled_pairs(clouds, scale)], "coupling")


def _gap(pair: Pair) -> float:
    gap = pair.z - pair.reference
    return float(pair.mean(np.einsum("ij,ij->i", gap, gap)))


def repaired_upper(clouds: Clouds, *, scale: float = 1.0, block: int = BLOCK, rounds: int = ROUNDS) -> Estimate:
    """Return E mean_j |Z_j - Zbar_s(j)|^2, s the best pairing that is found of a cloud with its reference.

    What is bounded is W2^2(p, p0), p the law of one particle. Let s be any pairing (permutation), chosen by looking at
    both clouds, and J uniform on the particles. Given the clouds, (Z_J, Zbar_s(J)) has their empirical measures as
    marginals, because s is a permutation; averaged over the clouds its marginals are the mean law of the Z_j and that
    of the Zbar_j, which are p and p0, since all particles of a cloud have one law. So it is a coupling of p with p0,
    and its cost, the expectation of what is returned, is at least W2^2(p, p0): for any number of particles, however
    they depend on each other, and whether s is optimal or not. s = identity gives `coupled_upper`, never below.

    From the identity, the pairs are sorted by (Z_j + Zbar_s(j)) . v, cut into blocks, and each block is paired anew by
    the optimal assignment; v runs through orthonormal frames, until a frame saves less than 1 %. For clouds of a run
    (4,000 particles) that ends within 1 % (D = 2) or 3 % (D = 3) of the optimal pairing at a twentieth of its cost, and
    the cost grows like m; a coupling that is far from optimal, such as a quarter turn, wants larger blocks. What is
    left above W2^2 is the distance of samples of this size, which falls with m quickly where D <= 3, slowly beyond.

    Parameters
    ----------
    clouds : sequence of (z, reference, weights)
        One entry a replicate; weights must be None (particles of unequal masses have no pairing).
    scale : float
        Standard deviation s of the reference.
    block : int
        Particles in a block. O(R m block rounds D) and more: 0.2 s a replicate at m = 4000.
    rounds : int
        Largest number of frames.

    Raises
    ------
    InputError
        If there are weights, shapes don't fit, or block or rounds is not positive.
    """
    if block < 1 or rounds < 1:
        raise InputError(f"wanted blocks of at least 1 particle and at least 1 round, got {block} and {rounds}.")
    pairs = coupled_pairs(clouds, scale)
    if any(pair.weights is not None for pair in pairs):
        raise InputError("particles are paired anew where all have equal mass; leave the weights out.")
    return mean_estimate(each(lambda pair: _gap(_repaired(pair, block, rounds)), pairs), "repaired")


def _repaired(pair: Pair, block: int, rounds: int) -> Pair:
    z, reference = pair.z, pair.reference.copy()
    cost = _gap(pair)
    for k in range(rounds):
        drawn = noise.normals(k, noise.Stream.PROBE, step=2, count=z.shape[1], width=z.shape[1])
        for direction in np.linalg.qr(drawn)[0]:
            order = np.argsort((z + reference) @ direction, kind="stable")
            for first in range(0, len(order), block):
                some = order[first : first + block]
                mine, yours = optimal(z[some], reference[some])
                reference[some[mine]] = reference[some[yours]]
        before, cost = cost, _gap(Pair(z, reference))
        if not cost < (1 - WORTH) * before:
            break
    return Pair(z, reference)


def gelbrich_lower(clouds: Clouds, *, scale: float = 1.0, blocks: int = 8) -> Estimate:
    """Return Gelbrich's lower bound on W2^2 at the centred moments of all replicates, bias removed [Gelbrich90].

    |mu|^2 + sum (sqrt(eig Sigma) - 1)^2 is convex in mean and second moment (M -> M - mu mu' is operator concave, and
    so is the square root, which increases), hence biased up by sampling; `moments.jackknifed` takes that off. It may
    be negative where the truth is within the noise of zero. O(R m D^2 + R blocks D^3).

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
    return jackknifed(gelbrich, coupled_pairs(clouds, scale), "Gelbrich", blocks)


def root(estimate: Estimate, factor: float = 1.0, side: int = 1) -> Estimate:
    """Return the estimate of W2 from one of W2^2.

    The value is sqrt(max(v, 0)). Near zero the square root has no derivative, so the error is a finite difference
    taken on the side to which the bound will be read: (sqrt(v + c se) - sqrt(v)) / c for an upper bound (`side` 1),
    (sqrt(v) - sqrt(v - c se)) / c, zero for what is below zero, for a lower one (`side` -1). With c = `factor` the
    number of standard errors that the reader will take, value + side c se is then exactly the root of the safe side.
    """
    value = math.sqrt(max(estimate.value, 0.0)) if not math.isnan(estimate.value) else math.nan
    if math.isnan(value) or not math.isfinite(estimate.se):
        return Estimate(value, estimate.se, estimate.source)
    c = factor if math.isfinite(factor) and factor > 0 else 1.0
    moved = math.sqrt(max(max(estimate.value, 0.0) + side * c * estimate.se, 0.0))
    return Estimate(value, abs(moved - value) / c, estimate.source)
