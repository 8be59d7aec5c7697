"""Clouds beside their coupled reference: centred means, groups of particles, and the jackknife over them.

A *pair* is (z, reference, weights): particles z of shape (m, D), the coupled reference of the same shape, whose law is
p0 = N(0, I) exactly (start and noise are those of z), and masses of shape (m,) or None for 1/m each. Expectations
under the law p of z are measured centred,

    E_p F = E_p0 F + mean[F(Z) - F(Zbar)],

so that the sampling noise of the start cancels. Where the reference has variance s^2 (the Euler schemes), Zbar / s has
the law p0 exactly, and every estimator takes that: pass `scale` = s. For a prior N(0, v I) divide clouds and reference
by sqrt(v) and multiply the inputs x by it: KL stays, W2^2 is to be multiplied by v.

Read next: `transport` (W2), `entropy` (KL).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanfield import parallel
from meanfield.errors import InputError
from meanfield.estimate import Estimate, mean_estimate

Array = npt.NDArray[Any]
Clouds = Sequence[tuple[Array, Array, Array | None]]


class Pair(NamedTuple):
    """Particles, their coupled reference and their masses (None: all equal), checked and in double precision."""

    z: Array
    reference: Array
    weights: Array | None = None

    def mean(self, values: Array) -> Array:
        """Return the weighted mean of an array whose first axis runs over the particles."""
        if self.weights is None:
            return values.mean(axis=0)
        return np.tensordot(self.weights, values, axes=1)

    @property
    def masses(self) -> Array:
        """The masses, written out."""
        return np.full(len(self.z), 1 / len(self.z)) if self.weights is None else self.weights

    def thinned(self, stride: int) -> "Pair":
        """Return every `stride`-th particle, the masses scaled back to a sum of 1."""
        if stride <= 1:
            return self
        return parts(self, stride)[0][1]


def each(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Return [function(item) for every item], worked by the threads, BLAS single-threaded inside."""
    given = list(items)
    out: list[Any] = [None] * len(given)

    def work(part: slice) -> None:
        out[part.start] = function(given[part.start])

    parallel.each_block(work, len(given), 1)
    return out


def coupled_pairs(clouds: Clouds, scale: float = 1.0) -> list[Pair]:
    """Return the replicates as checked pairs whose reference has the law N(0, I).

    Parameters
    ----------
    clouds : sequence of (z, reference, weights)
        One entry a replicate; arrays of shape (m, D), (m, D), (m,) or None.
    scale : float
        Standard deviation s of a coordinate of the reference; the reference is divided by it.

    Raises
    ------
    InputError
        If there is no replicate, a shape does not fit, a number is not finite, or weights are not masses.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"the scale of the reference must be positive and finite, got {scale}.")
    pairs = [_checked(cloud, scale) for cloud in clouds]
    if not pairs:
        raise InputError("an estimate needs at least one replicate (z, reference, weights), got none.")
    widths = {pair.z.shape[1] for pair in pairs}
    if len(widths) > 1:
        raise InputError(f"replicates must share their dimension D, got {sorted(widths)}.")
    return pairs


def _checked(cloud: tuple[Array, Array, Array | None], scale: float) -> Pair:
    z, reference, weights = (*cloud, None)[:3]
    if z is None or reference is None:
        raise InputError("a replicate is (z, reference, weights); without a coupled reference there is no estimate.")
    z, reference = np.asarray(z, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if z.ndim != 2 or z.shape != reference.shape or z.shape[0] < 1 or z.shape[1] < 1:
        raise InputError(f"cloud and reference must share a shape (m, D), got {z.shape} and {reference.shape}.")
    if not (np.isfinite(z).all() and np.isfinite(reference).all()):
        raise InputError("cloud or reference holds NaN or infinity.")
    if weights is not None:
        weights = np.asarray(weights, dtype=np.float64)
        if weights.shape != (len(z),) or not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-6:
            raise InputError(f"weights must be {len(z)} masses that sum to 1.")
    return Pair(z, reference if scale == 1.0 else reference / scale, weights)


def parts(pair: Pair, count: int) -> list[tuple[float, Pair]]:
    """Return `count` groups of particles as (mass, pair), each with its own weights summing to 1.

    Group b holds the particles b, b + count, ...: all alike in law, also for a cloud that lies sorted on a grid.
    """
    groups = []
    for first in range(count):
        chosen = slice(first, None, count)
        z, reference = pair.z[chosen], pair.reference[chosen]
        if pair.weights is None:
            groups.append((len(z) / len(pair.z), Pair(z, reference)))
        else:
            weights = pair.weights[chosen]
            mass = float(weights.sum())
            groups.append((mass, Pair(z, reference, weights / mass if mass > 0 else weights)))
    return groups


def halves(labels: Iterable[int]) -> tuple[Array, Array]:
    """Return two index arrays that split groups by their replicate, or one replicate's groups among themselves.

    `labels` names the replicate of every group. What is fitted on one half and measured on the other is unbiased.
    """
    label = np.asarray(list(labels))
    names = np.unique(label)
    rank = np.searchsorted(names, label) if len(names) > 1 else np.arange(len(label))
    return np.flatnonzero(rank % 2 == 0), np.flatnonzero(rank % 2 == 1)


def centred_moments(z: Array, reference: Array, weights: Array | None = None, blocks: int = 1) -> tuple[Array, Array]:
    """Return the centred mean mean(Z - Zbar) and second moment I + mean(Z Z' - Zbar Zbar').

    Parameters
    ----------
    z, reference : ndarray, shape (m, D)
        Particles and their coupled reference with law N(0, I).
    weights : ndarray, shape (m,), optional
        Masses that sum to 1.
    blocks : int
        Number of groups of particles.

    Returns
    -------
    mean, second : ndarray
        Shapes (D,) and (D, D); with several blocks those of each, (blocks, D) and (blocks, D, D). O(m D^2).

    Raises
    ------
    InputError
        As `coupled_pairs`.
    """
    pair = _checked((z, reference, weights), 1.0)
    _, mean, second = _block_moments(pair, blocks)
    return (mean[0], second[0]) if blocks == 1 else (mean, second)


def _block_moments(pair: Pair, blocks: int) -> tuple[Array, Array, Array]:
    groups = parts(pair, blocks)
    mean = np.array([group.mean(group.z - group.reference) for _, group in groups])
    second = np.array([_second(group) for _, group in groups])
    return np.array([mass for mass, _ in groups]), mean, second


def _second(pair: Pair) -> Array:
    z, reference = pair.z, pair.reference
    identity = np.eye(z.shape[1])
    if pair.weights is None:
        return identity + (z.T @ z - reference.T @ reference) / len(z)
    return identity + (z.T * pair.weights) @ z - (reference.T * pair.weights) @ reference


def jackknifed(
    function: Callable[[Array, Array], float], pairs: Sequence[Pair], source: str, blocks: int = 8
) -> Estimate:
    """Return function(mean, covariance) at the centred moments of all replicates, its sampling bias removed.

    A function that is convex in the moments is biased up by their noise, E f(M) >= f(E M): the unsafe side for a lower
    bound. The delete-one-group jackknife removes the leading term: pseudo-values h f - (h - 1) f_(-g), 1/h the mass of
    group g, averaged with those masses (weights of groups: [BusingMeijerLeeden99]). It is done twice, deleting blocks
    of particles (low noise, but blind to what all particles of a replicate share) and deleting replicates (sees it),
    and the smaller result is taken. The standard error is that of the replicates' mean pseudo-values, NaN for one.

    Parameters
    ----------
    function : callable
        Of the mean (D,) and the covariance (D, D).
    pairs : sequence of Pair
        The replicates.
    source : str
        Name of the estimate.
    blocks : int
        Groups of particles a replicate.
    """
    groups = [_block_moments(pair, min(blocks, len(pair.z))) for pair in pairs]
    owner = np.repeat(np.arange(len(pairs)), [len(mass) for mass, _, _ in groups])
    mass, mean, second = (np.concatenate(list(column)) for column in zip(*groups, strict=True))
    pseudo = _pseudo_values(function, mass, mean, second)
    share = np.bincount(owner, weights=mass)
    per_replicate = np.bincount(owner, weights=mass * pseudo) / share
    estimate = mean_estimate(per_replicate, source)
    if len(pairs) > 1:
        totals = [np.array([np.average(v[owner == r], axis=0, weights=mass[owner == r]) for r in range(len(pairs))])
                  for v in (mean, second)]  # fmt: skip
        whole = float(_pseudo_values(function, share, *totals).mean())
        estimate = estimate._replace(value=min(estimate.value, whole))
    return estimate


def _pseudo_values(function: Callable[[Array, Array], float], mass: Array, mean: Array, second: Array) -> Array:
    total = mass.sum()
    first_sum, second_sum = np.tensordot(mass, mean, axes=1), np.tensordot(mass, second, axes=1)
    everything = _at(function, first_sum / total, second_sum / total)
    values = np.full(len(mass), everything)
    for g in range(len(mass)):
        rest = total - mass[g]
        if 0 < mass[g] and 0 < rest:
            without = _at(function, (first_sum - mass[g] * mean[g]) / rest, (second_sum - mass[g] * second[g]) / rest)
            values[g] = (total * everything - rest * without) / mass[g]
    return values


def _at(function: Callable[[Array, Array], float], mean: Array, second: Array) -> float:
    return function(mean, second - np.outer(mean, mean))
