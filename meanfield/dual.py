"""Kantorovich's dual lower bound on W2^2(p, p0), with potentials that a network makes.

For every pair of functions with T(z) - Phi(z0) <= |z - z0|^2 / 2,

    W2^2(p, p0) >= 2 (E_p T - E_p0 Phi)                                                       [Villani03, thm 1.3]

The pairs are those of `potentials`: T is u g(theta) smoothed over a width sigma, g in the span of h(theta . x_i). To
leading order a network is transported along such functions, W2^2 = f' H^-1 f / alpha^2, and the bound is tight there as
sigma falls. Both averages are over particles: T centred, Phi over the reference, whose law is p0. Its leading term
c' H c / 2, H at p0, is known, and serves as control variate.

**The choice** of the coefficients c and of sigma is made on half of the replicates, the other half is measured, and the
halves change places: any choice is valid. c maximises the bound less ridge |c|^2 / 2 by Newton's method, with H for the
curvature; the ridge and sigma are those that do best on the half of the particles that was not fitted.

Read next: `potentials` for why it is a bound, `transport` for the other bounds, `moments` for what a pair is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError
from meanfield.estimate import Estimate, mean_estimate
from meanfield.moments import Clouds, Pair, coupled_pairs, each, halves, parts
from meanfield.potentials import PAIRS, SMALLEST, Family, Potential, draws, losses, pull
from meanfield.units import Activation

Array = npt.NDArray[Any]

SOURCE = "Kantorovich dual"
RIDGES = (0.1, 0.03, 0.01, 0.003, 0.001)  # relative to the diagonal of H
GUESS = 0.01  # the ridge at which the size of W2 is first guessed
WIDTHS = (0.75, 0.5)  # sigma over that size
FITTED = 512  # particles that Phi is averaged over while c is fitted, and again where it is checked
BETTER = 1.002  # factor on the bound for which the search goes on
STEPS = 3  # of Newton's method a ridge
LENGTHS = (1.0, 0.4, 0.1)  # of a step
MOST_INPUTS = 512
# Steps of the stream of probes that name draws: for Phi and for T, in the choice and in the measurement.
CHOOSING, MEASURING = (2, 3), (4, 5)


Objective = Callable[[Array], tuple[float, Array]]


class State(NamedTuple):
    """Coefficients, what the objective is there, and its gradient."""

    c: Array
    value: float
    gradient: Array


class Side(NamedTuple):
    """Particles on which a potential is fitted (number 0) or checked (1): `groups` for T, some of them for Phi."""

    groups: list[Pair]
    number: int
    pull: Array  # at sigma = 0
    sample: Pair
    draws: Array


def dual_lower(
    clouds: Clouds,
    x: Array,
    activation: Activation,
    *,
    gram: Array | None = None,
    scale: float = 1.0,
    beat: float = 0.0,
    largest: int = 2048,
    seed: int = 0,
) -> Estimate:
    """Return Kantorovich's dual lower bound on W2^2 at potentials of the network [Villani03, theorem 1.3].

    Parameters
    ----------
    clouds : sequence of (z, reference, weights)
        One entry a replicate, arrays of shape (m, D), (m, D), (m,) or None; u is the last column. A single replicate
        is split into halves of its particles, and has no standard error.
    x : ndarray, shape (n, d)
        Inputs as the neurons see them (`Unit.inputs`). Of more than 512 every k-th is used.
    activation : Activation
        Its h' must be bounded.
    gram : ndarray, shape (n, n), optional
        H at p0, E <grad psi_i, grad psi_j>. Without it H is measured on the reference, and there is no control variate.
    scale : float
        Standard deviation s of the reference.
    beat : float
        What the bound should exceed to be of interest (another lower bound): if it does not where the potential is
        chosen, the rest is not computed.
    largest : int
        Phi is measured at that many particles of a replicate (all, if they have weights).
    seed : int
        Names the draws of the smoothing, which are the same at every call.

    Returns
    -------
    Estimate
        Value NaN if there is no useful bound; `source` then says why.

    Raises
    ------
    InputError
        If shapes don't fit. O(R m n d + 8 R (largest + 10^4) n (d + 10) + n^3): .3 s for n = 100, d = 64.
    """
    x = np.asarray(x, dtype=np.float64)
    pairs = coupled_pairs(clouds, scale)
    if x.ndim != 2 or pairs[0].z.shape[1] != x.shape[1] + 1:
        raise InputError(f"inputs {x.shape} need particles in R^(d + 1), got R^{pairs[0].z.shape[1]}.")
    if gram is not None and np.shape(gram) != (len(x), len(x)):
        raise InputError(f"H of {len(x)} inputs must have shape {(len(x), len(x))}, got {np.shape(gram)}.")
    if not math.isfinite(activation.suprema[1]):
        return _absent(f"h' of {activation.name} is not bounded")
    kept = slice(None, None, -(-len(x) // MOST_INPUTS))
    family, gram = Family(activation, x[kept], seed), None if gram is None else np.asarray(gram)[kept, kept]
    groups = pairs if len(pairs) > 1 else [part for _, part in parts(pairs[0], 2)]
    if min(len(group.z) for group in groups) < 2:
        raise InputError("the dual needs at least two particles in each of two groups.")
    estimate = _crossed(family, gram, groups, beat, largest)
    return estimate if len(pairs) > 1 else estimate._replace(se=math.nan)


def _absent(reason: str) -> Estimate:
    return Estimate(math.nan, math.nan, f"{SOURCE} absent: {reason}")


def _crossed(family: Family, gram: Array | None, groups: list[Pair], beat: float, largest: int) -> Estimate:
    """Return the mean over groups of the bound at the potential chosen on the other half of them."""
    folds = halves(range(len(groups)))
    chosen = each(lambda mine: _choose(family, gram, [groups[i] for i in mine]), folds)
    for _, expected in chosen:
        if not expected > max(beat, 0.0):
            return _absent(f"its potentials reach {expected:.3g}, not more than {beat:.3g}")
    work = [(i, potential) for (potential, _), others in zip(chosen, folds[::-1], strict=True) for i in others]
    return mean_estimate(
        each(lambda one: _measured(family, gram, one[1], groups[one[0]], largest, one[0]), work), SOURCE
    )


def _measured(family: Family, gram: Array | None, potential: Potential, pair: Pair, largest: int, index: int) -> float:
    """Return 2 (E_p T - E_p0 Phi) for one group: T over all its particles, centred, Phi over some of the reference."""
    some = pair if pair.weights is not None else pair.thinned(-(-len(pair.z) // largest))
    c = potential.coefficients
    found = losses(family, potential, some, lambda rows: draws(family, (MEASURING[0], index), rows, PAIRS))
    loss, quadratic = float(some.mean(found.values)), found.quadratic
    if gram is not None:
        centred = quadratic - some.mean(quadratic)
        share = float(some.mean(centred * found.values)) / max(float(some.mean(centred * centred)), SMALLEST)
        loss -= share * (float(some.mean(quadratic)) - 0.5 * float(c @ gram @ c))
    return 2 * (float(c @ pull(family, potential.sigma, pair, (MEASURING[1], index))) - loss)


# --- the choice of a potential


def _choose(family: Family, gram: Array | None, groups: Sequence[Pair]) -> tuple[Potential, float]:
    """Return the potential whose bound is best where it was not fitted, and that bound; 0 if there is none."""
    several = zip(*[[part for _, part in parts(group, 2)] for group in groups], strict=True)
    fit, check = (_side(family, list(half), k) for k, half in enumerate(several))
    metric = _metric(family, fit.sample) if gram is None else gram
    guess = np.linalg.solve(metric + GUESS * np.diag(_sizes(metric)), fit.pull)
    square = float(guess @ check.pull)
    best, ridges = (Potential(np.zeros(len(guess)), 0.0), 0.0), list(RIDGES)
    for width in WIDTHS if square > 0 else ():
        sigma = width * math.sqrt(square)
        fitted, checked = (_objective(family, gram, side, sigma) for side in (fit, check))
        at = State(best[0].coefficients, *fitted(best[0].coefficients))
        for ridge in ridges:
            at = _climbed(fitted, metric, ridge, at)
            before, expected = best[1], 2 * checked(at.c)[0]
            if expected > before:
                best, ridges = (Potential(at.c, sigma), expected), [ridge]
            if not expected > BETTER * before:
                break
    return best


def _side(family: Family, groups: list[Pair], number: int) -> Side:
    stride = max(1, -(-sum(len(g.z) for g in groups) // FITTED))
    thin = [g.thinned(stride) for g in groups]
    columns = ([g.z for g in thin], [g.reference for g in thin], [g.masses / len(thin) for g in thin])
    sample = Pair(*(np.concatenate(column) for column in columns))
    drawn = draws(family, (CHOOSING[0], number), slice(0, len(sample.z)), PAIRS)
    return Side(groups, number, _pulled(family, 0.0, groups, number), sample, drawn)


def _pulled(family: Family, sigma: float, groups: Sequence[Pair], number: int) -> Array:
    return np.mean([pull(family, sigma, g, (CHOOSING[1], 2 * k + number)) for k, g in enumerate(groups)], axis=0)


def _objective(family: Family, gram: Array | None, side: Side, sigma: float) -> Objective:
    """Return the function of c that gives half the bound on this side and its gradient."""
    along = _pulled(family, sigma, side.groups, side.number)

    def objective(c: Array) -> tuple[float, Array]:
        found = losses(family, Potential(c, sigma), side.sample, lambda rows: side.draws[rows])
        value, gradient = float(c @ along - side.sample.mean(found.values)), along - found.slope
        if gram is not None:
            value += float(side.sample.mean(found.quadratic)) - 0.5 * float(c @ gram @ c)
            gradient = gradient + found.quadratic_slope - gram @ c
        return value, gradient

    return objective


def _climbed(objective: Objective, metric: Array, ridge: float, at: State) -> State:
    """Return where Newton's method arrives from there, for the objective less a ridge."""
    c, value, gradient = at
    penalty = ridge * _sizes(metric)
    for _ in range(STEPS):
        step = np.linalg.solve(metric + np.diag(penalty), gradient - penalty * c)
        before = value - 0.5 * float(penalty @ c**2)
        for length in LENGTHS:
            trial = c + length * step
            found = objective(trial)
            gain = found[0] - 0.5 * float(penalty @ trial**2) - before
            if gain > 0:
                break
        else:
            break
        c, (value, gradient) = trial, found
        if gain < (BETTER - 1) * abs(value):
            break
    return State(c, value, gradient)


def _sizes(metric: Array) -> Array:
    """Return the diagonal of H; of an input that no neuron sees, something above zero."""
    diagonal = np.diag(metric)
    return np.maximum(diagonal, max(1e-9 * float(diagonal.max()), SMALLEST))


def _metric(family: Family, sample: Pair) -> Array:
    """Return H at p0, measured on the reference."""
    x, masses = family.x, sample.masses
    h, h1 = family.activation.value_and_first(sample.reference[:, :-1] @ x.T)
    return (h.T * masses) @ h + (h1.T * masses) @ h1 * (x @ x.T)
