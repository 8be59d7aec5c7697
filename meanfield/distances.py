"""W2^2 between samples, each figure beside what it reads for equal laws, and refused where it says nothing.

    exact        the optimal assignment, or the network simplex          W2^2 of the two empirical measures
    sinkhorn     the debiased entropic divergence                        tends to that as epsilon -> 0
    sliced       mean of W2^2 over orthonormal frames of directions      D times it is at most W2^2
    max_sliced   W2^2 along a direction chosen on the other half         at most W2^2

These are for plain use: two samples of any laws, or one sample against p0 = N(0, I). The distance of two empirical
measures is not that of the laws: two samples of *one* law are apart, above D of about 5 by far more than the
distances one looks for. So every figure is measured again for samples of p0 of the same sizes (its `null`), and the
difference is the `debiased` figure. A figure that fresh samples of p0 would read too raises `Uninformative`
(`force=True` returns it all the same). Debiased is not unbiased: the bias follows the laws, and if one is wider than p0
by a factor 1 + delta, about delta null is left of it. Bounds that hold are in `transport`.

Read next: `slices` for exact quantiles, `transport` for bounds from coupled clouds.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import directions, slices
from meanfield.assignment import plugin
from meanfield.errors import InputError, MeanfieldError
from meanfield.nulls import SECOND, Samples, drawn, judged, several
from meanfield.nulls import Distance as Distance

Array = npt.NDArray[Any]
LARGEST_EXPONENT = 300.0


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
        If the simplex did not converge. 17 problems of O(m^3) for one replicate: 2 s at m = 1000.
    """

    def measured(a: Array, b: Array | None, name: int) -> float:
        return plugin(a, drawn(len(a), a.shape[1], seed, SECOND, name) if b is None else b, iterations)

    return judged("exact", measured, first, second, seed, force)


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

    OT(p, q) = min over couplings of E|x - y|^2 + epsilon KL(coupling || p x q), by POT's iteration [Flamary21] (for
    logarithms where scalings would underflow), read at its dual potentials. It is not negative, tends to W2^2 of the
    same measures as epsilon -> 0 and to |difference of their means|^2 as epsilon -> infinity; its null falls as epsilon
    grows.

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
        If the iteration did not converge, or POT is absent. 17 times 3 problems of O(m^2 iterations) for one replicate:
        5 s at m = 1000 and the default epsilon.
    """
    size = np.shape(first[0] if several(first) else first)[-1]
    regularisation = size / 4 if epsilon is None else float(epsilon)
    if not (math.isfinite(regularisation) and regularisation > 0):
        raise InputError(f"epsilon must be positive and finite, got {epsilon}.")

    def solved(a: Array, b: Array) -> float:
        return _entropic(a, b, regularisation, iterations, tolerance)

    def measured(a: Array, b: Array | None, name: int) -> float:
        b = drawn(len(a), a.shape[1], seed, SECOND, name) if b is None else b
        return solved(a, b) - 0.5 * (solved(a, a) + solved(b, b))

    return judged("sinkhorn", measured, first, second, seed, force, regularisation)


def _entropic(first: Array, second: Array, epsilon: float, iterations: int, tolerance: float) -> float:
    try:
        import ot
    except ImportError as error:
        raise MeanfieldError("the Sinkhorn divergence needs POT: pip install POT") from error
    shift = first.mean(axis=0)
    cost = np.asarray(ot.dist(first - shift, second - shift))
    masses = ot.unif(len(first)), ot.unif(len(second))
    # Scalings are a tenth of the work of their logarithms, and as good while e^{-cost / epsilon} is far from underflow.
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
    first: Samples, second: Samples | None = None, *, count: int = 128, seed: int = 0, force: bool = False
) -> Distance:
    """Return the mean of W2^2 along directions, by exact quantiles: squared sliced W2 [Bonneel15].

    The directions form orthonormal frames; summed over a frame, W2^2 along its directions is at most W2^2, so that
    D times the figure is a lower bound on W2^2 of the same measures.

    Parameters
    ----------
    first, second, seed, force
        As for `exact`; without the second, the quantiles are those of N(0, 1), and nothing is drawn for them.
    count : int
        How many directions, rounded up to a multiple of D.

    Raises
    ------
    Uninformative, InputError
        As for `exact`. O(17 count m (D + log m)) for one replicate: 1 s at m = 1000.
    """

    def measured(a: Array, b: Array | None, name: int) -> float:
        v = directions.frames(a.shape[1], count, seed).T
        along = slices.gaussian_quantiles(a @ v) if b is None else slices.quantiles(a @ v, b @ v)
        return float(along.mean())

    return judged("sliced", measured, first, second, seed, force)


def max_sliced(
    first: Samples,
    second: Samples | None = None,
    *,
    starts: int = 8,
    iterations: int = 50,
    seed: int = 0,
    force: bool = False,
) -> Distance:
    """Return W2^2 along the direction where it is largest, chosen and measured apart: squared max-sliced W2.

    The direction is found by ascent over the sphere on one half of the particles and W2^2 along it measured, by exact
    quantiles, on the other; then the halves change places [Deshpande19]. On the half where it was chosen the figure
    would be the largest of many and no bound on anything; measured apart it is, but for the bias of W2^2 on a line
    (`null`, of order 1/m), at most W2^2 along the best direction, and so at most W2^2 of the laws.

    Parameters
    ----------
    first, second, seed, force
        As for `exact`; without the second, the quantiles are those of N(0, 1), and nothing is drawn for them.
    starts, iterations : int
        Of the ascent.

    Raises
    ------
    Uninformative, InputError
        As for `exact`. O(17 starts iterations (m D + m log m)) for one replicate: 5 s at m = 1000.
    """

    def measured(a: Array, b: Array | None, name: int) -> float:
        halves = [(a[k::2], None if b is None else b[k::2]) for k in (0, 1)]
        values = []
        for (here, there), (seen, other) in (halves, halves[::-1]):
            v = directions.farthest(here, there, seed=seed, starts=starts, iterations=iterations)
            along = slices.gaussian_quantiles(seen @ v) if other is None else slices.quantiles(seen @ v, other @ v)
            values.append(float(along))
        return float(np.mean(values))

    return judged("max-sliced", measured, first, second, seed, force)
