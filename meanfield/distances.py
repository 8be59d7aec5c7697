"""W2^2 between samples, each figure beside what it reads for equal laws, and refused where it says nothing.

    exact        the optimal assignment, or the network simplex          W2^2 of the two empirical measures
    sinkhorn     the debiased entropic divergence S_epsilon              at most W2^2 of them
    sliced       mean of W2^2 over orthonormal frames of directions      D times it is at most W2^2
    max_sliced   W2^2 along a direction chosen on the other half         at most W2^2

These are for plain use: two samples of any laws, or one sample against p0 = N(0, I). The distance of two empirical
measures is not that of the laws: two samples of *one* law are apart, above D of about 5 by far more than the
distances one looks for. So every figure is measured again for samples of p0 of the same sizes (its `null`), and the
difference is the `debiased` figure. A figure that fresh samples of p0 would read too raises `Uninformative` (`force=True`
returns it all the same). Debiased is not unbiased: the bias follows the laws, and if these are wider than p0 by
a factor 1 + delta, about 2 delta null is left of it. Bounds that hold are in `transport`.

Read next: `slices` for exact quantiles, `transport` for bounds from coupled clouds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import noise, slices, transport
from meanfield.errors import InputError, MeanfieldError, Uninformative
from meanfield.estimate import student_factor

Array = npt.NDArray[Any]
Samples = Array | Sequence[Array]
# Fresh samples of p0 at which a figure is measured again; groups of particles that the jackknife deletes.
NULLS, GROUPS = 6, 6
LARGEST_EXPONENT = 300.0
FIRST, SECOND = 3, 4  # steps of the PROBE stream (see `slices`)


@dataclass(frozen=True)
class Distance:
    """A squared distance between samples, beside what it reads for equal laws.

    Attributes
    ----------
    value : float
        The plug-in figure, mean over replicates; length^2.
    null : float
        What it reads for samples of p0 of the same sizes, mean over fresh draws.
    spread : float
        Standard deviation of value - null for equal laws.
    se : float
        Standard error of `debiased`, from replicates; for a single one from deleted groups of its particles,
        which takes them as independent: those of one run are not, and the error is then off by up to 15 times.
    source : str
    replicates : int
    epsilon : float, optional
        Regularisation of the Sinkhorn divergence, length^2.
    """

    value: float
    null: float
    spread: float
    se: float
    source: str
    replicates: int
    epsilon: float | None = None

    @property
    def debiased(self) -> float:
        """Return value - null."""
        return self.value - self.null

    @property
    def informative(self) -> bool:
        """Return whether the value lies above what equal laws read, by Student's two-sigma factor times the spread."""
        return self.debiased > student_factor(NULLS) * self.spread


def exact(
    first: Samples, second: Samples | None = None, *, seed: int = 0, force: bool = False, iterations: int = 2_000_000
) -> Distance:
    """Return W2^2 between two empirical measures: exact assignment (equal sizes) or network simplex [Flamary21].

    Parameters
    ----------
    first : ndarray, shape (m, D), or a sequence of them
        A sample, or one for each replicate.
    second : ndarray, shape (k, D), or a sequence of them, optional
        As many as of the first. Without it: m fresh samples of p0 = N(0, I) for each replicate.
    seed : int
        Names the fresh samples.
    force : bool
        Whether a figure that says nothing is returned all the same.
    iterations : int
        Largest number of pivots of the simplex.

    Raises
    ------
    Uninformative
        If two samples of p0 are as far apart, within the spread.
    InputError
        If shapes don't fit.
    MeanfieldError
        If the simplex did not converge. 13 problems of O(m^3) for one replicate: 2 s at m = 1000.
    """

    def measured(a: Array, b: Array | None, name: int) -> float:
        return transport.plugin(a, _drawn(len(a), a.shape[1], seed, SECOND, name) if b is None else b, iterations)

    return _judged("exact", measured, first, second, seed, force)


def sinkhorn(
    first: Samples,
    second: Samples | None = None,
    *,
    epsilon: float | None = None,
    seed: int = 0,
    force: bool = False,
    iterations: int = 5000,
    tolerance: float = 1e-5,
) -> Distance:
    """Return the Sinkhorn divergence OT(p, q) - OT(p, p) / 2 - OT(q, q) / 2 of two empirical measures [Feydy19].

    OT(p, q) = min over couplings of E|x - y|^2 + epsilon KL(coupling || p x q), by POT's iteration
    [Flamary21] (for logarithms where scalings would underflow), read at its dual potentials. It lies between 0 and W2^2 of the same measures, tends to W2^2 as
    epsilon -> 0 and to |difference of the means|^2 as epsilon -> infinity; its null falls as epsilon grows.

    Parameters
    ----------
    first, second, seed, force
        As for `exact`.
    epsilon : float, optional
        Regularisation, length^2; by default D / 4, an eighth of what E|x - y|^2 is for independent samples of p0.
    iterations : int
        Largest number of iterations.
    tolerance : float
        Largest error of the marginals (in the 2-norm) that counts as converged.

    Raises
    ------
    Uninformative, InputError
        As for `exact`.
    MeanfieldError
        If the iteration did not converge, or POT is absent. 13 times 3 problems of O(m^2 iterations) for one replicate:
        5 s at m = 1000 and the default epsilon.
    """
    size = np.shape(first[0] if _several(first) else first)[-1]
    regularisation = size / 4 if epsilon is None else float(epsilon)
    if not (math.isfinite(regularisation) and regularisation > 0):
        raise InputError(f"epsilon must be positive and finite, got {epsilon}.")

    def solved(a: Array, b: Array) -> float:
        return _entropic(a, b, regularisation, iterations, tolerance)

    def measured(a: Array, b: Array | None, name: int) -> float:
        b = _drawn(len(a), a.shape[1], seed, SECOND, name) if b is None else b
        return solved(a, b) - 0.5 * (solved(a, a) + solved(b, b))

    return _judged("sinkhorn", measured, first, second, seed, force, regularisation)


def _entropic(first: Array, second: Array, epsilon: float, iterations: int, tolerance: float) -> float:
    try:
        import ot
    except ImportError as error:
        raise MeanfieldError("the Sinkhorn divergence needs POT: pip install POT") from error
    shift = first.mean(axis=0)
    cost = np.asarray(ot.dist(first - shift, second - shift))
    masses = ot.unif(len(first)), ot.unif(len(second))
    # Scalings are a tenth of the work of their logarithms, and as good while e^{-cost / epsilon} stays far from underflow.
    plain = float(cost.max()) < LARGEST_EXPONENT * epsilon
    method = "sinkhorn" if plain else "sinkhorn_log"
    _, log = ot.sinkhorn(
        *masses, cost, epsilon, method=method, numItermax=iterations, stopThr=tolerance, log=True, warn=False
    )
    if not log["err"][-1] <= tolerance:
        raise MeanfieldError(
            f"Sinkhorn's iteration did not converge: the marginals are off by {log['err'][-1]:.1e} after {iterations} "
            f"iterations, wanted {tolerance:.1e}. Raise epsilon ({epsilon:g}) or `iterations`."
        )
    # The coupling is u v e^{-cost / epsilon}: the potentials against p x q lack the logarithms of the masses.
    logarithms = (np.log(log["u"]), np.log(log["v"])) if plain else (log["log_u"], log["log_v"])
    return epsilon * sum(float(one.mean()) + math.log(len(one)) for one in logarithms)


def sliced(
    first: Samples, second: Samples | None = None, *, directions: int = 128, seed: int = 0, force: bool = False
) -> Distance:
    """Return the mean of W2^2 along directions, by exact quantiles: squared sliced W2 [Bonneel15].

    The directions form orthonormal frames; summed over a frame, W2^2 along its directions is at most W2^2, so that
    D times the figure is a lower bound on W2^2 of the same measures.

    Parameters
    ----------
    first, second, seed, force
        As for `exact`; without the second, the quantiles are those of N(0, 1), and nothing is drawn for them.
    directions : int
        How many, rounded up to a multiple of D.

    Raises
    ------
    Uninformative, InputError
        As for `exact`. O(13 directions m (D + log m)) for one replicate: 1 s at m = 1000.
    """

    def measured(a: Array, b: Array | None, name: int) -> float:
        v = slices.directions(a.shape[1], directions, seed).T
        along = slices.gaussian_quantiles(a @ v) if b is None else slices.quantiles(a @ v, b @ v)
        return float(along.mean())

    return _judged("sliced", measured, first, second, seed, force)


def max_sliced(
    first: Samples,
    second: Samples | None = None,
    *,
    starts: int = 8,
    iterations: int = 50,
    seed: int = 0,
    force: bool = False,
) -> Distance:
    """Return W2^2 along the direction where it is largest: squared max-sliced W2, chosen and measured apart [Deshpande19].

    The direction is found by ascent over the sphere on one half of the particles and W2^2 along it measured, by exact
    quantiles, on the other; then the halves change places. On the half where it was chosen the figure would be the
    largest of many and no bound on anything; measured apart it is, but for the bias of W2^2 on a line (`null`, of
    order 1/m), at most W2^2 along the best direction, and so at most W2^2 of the laws.

    Parameters
    ----------
    first, second, seed, force
        As for `exact`; without the second, the quantiles are those of N(0, 1), and nothing is drawn for them.
    starts, iterations : int
        Of the ascent.

    Raises
    ------
    Uninformative, InputError
        As for `exact`. O(13 starts iterations (m D + m log m)) for one replicate: 5 s at m = 1000.
    """

    def measured(a: Array, b: Array | None, name: int) -> float:
        halves = [(a[k::2], None if b is None else b[k::2]) for k in (0, 1)]
        values = []
        for (here, there), (seen, other) in (halves, halves[::-1]):
            v = slices.largest_direction(here, there, seed=seed, starts=starts, iterations=iterations)
            along = slices.gaussian_quantiles(seen @ v) if other is None else slices.quantiles(seen @ v, other @ v)
            values.append(float(along))
        return float(np.mean(values))

    return _judged("max-sliced", measured, first, second, seed, force)


def _several(samples: Any) -> bool:
    return not (isinstance(samples, np.ndarray) and samples.ndim == 2) and np.ndim(samples[0]) == 2


def _drawn(count: int, width: int, seed: int, step: int, name: int) -> Array:
    return noise.normals(seed, noise.Stream.PROBE, step=step, replicate=name, count=count, width=width)


def _judged(
    source: str,
    measured: Callable[[Array, Array | None, int], float],
    first: Samples,
    second: Samples | None,
    seed: int,
    force: bool,
    epsilon: float | None = None,
) -> Distance:
    """Return the figure of `measured` (of two samples, and an integer that names fresh ones) beside its null."""
    pairs = _pairs(first, second)
    a, b = pairs[0]
    count, width = len(pairs), a.shape[1]
    values = [measured(a, b, r) for r, (a, b) in enumerate(pairs)]
    nulls = []
    for k in range(NULLS):
        other = None if b is None else _drawn(len(b), width, seed, SECOND, count + k)
        nulls.append(measured(_drawn(len(a), width, seed, FIRST, k), other, count + k))
    scatter = float(np.var(nulls, ddof=1))
    variance = np.var(values, ddof=1) / count if count > 1 else _jackknife(measured, a, b)
    found = Distance(
        value=float(np.mean(values)),
        null=float(np.mean(nulls)),
        spread=math.sqrt(scatter * (1 / count + 1 / NULLS)),
        se=math.sqrt(variance + scatter / NULLS),
        source=source,
        replicates=count,
        epsilon=epsilon,
    )
    if not (found.informative or force):
        raise Uninformative(
            f"the plug-in figure W2^2 = {found.value:.4g} ({source}) says nothing: samples of p0 of the same sizes "
            f"({len(a)} and {len(a) if b is None else len(b)}, D = {width}) read {found.null:.4g}, and the difference "
            f"may be {student_factor(NULLS) * found.spread:.2g} by chance. Take bounds from coupled clouds "
            "(transport.coupled_upper, transport.gelbrich_lower) or more particles; force=True returns it all the same."
        )
    return found


def _pairs(first: Samples, second: Samples | None) -> list[tuple[Array, Array | None]]:
    ones = [_sample(one) for one in (first if _several(first) else [first])]
    others: list[Array | None] = [None] * len(ones)
    if second is not None:
        others = [_sample(other) for other in (second if _several(second) else [second])]
    shapes = {one.shape for one in ones}, {None if other is None else other.shape for other in others}
    widths = {shape[1] for group in shapes for shape in group if shape is not None}
    if len(ones) != len(others) or len(widths) > 1 or max(map(len, shapes)) > 1:
        raise InputError(
            f"wanted as many samples (k, D) as samples (m, D), with one m, k and D for all replicates; got "
            f"{[one.shape for one in ones]} and {[None if o is None else o.shape for o in others]}."
        )
    return list(zip(ones, others, strict=True))


def _sample(values: Array) -> Array:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 2 or len(sample) < 2 * GROUPS or not sample.shape[1] or not np.isfinite(sample).all():
        raise InputError(f"a sample has shape (m, D), m >= {2 * GROUPS}, and finite entries; got shape {sample.shape}.")
    return sample


def _jackknife(measured: Callable[[Array, Array | None, int], float], a: Array, b: Array | None) -> float:
    """Return the variance of a figure from deleted groups of particles, those of both samples at a time."""

    def without(sample: Array, g: int) -> Array:
        return sample[np.arange(len(sample)) % GROUPS != g]

    values = [measured(without(a, g), None if b is None else without(b, g), 0) for g in range(GROUPS)]
    return float((GROUPS - 1) * np.var(values))
