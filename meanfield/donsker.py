"""Donsker and Varadhan's lower bound on KL(p || p0), with the tilts that a network can make.

For every function phi, KL(p || p0) >= E_p phi - log E_p0 e^phi [DonskerVaradhan75]. Here z = (theta, u) and

    phi = tau u g(theta) - omega g(theta)^2 / 2 + (1 - tau^2)(u^2 - 1) / 2,     g in span{h(w_i), w_i h'(w_i)},

w_i = theta . x_i. Gibbs laws are phi = u g; a network of which only u was trained has omega = 1 (its theta is still
Gaussian); in between omega = 1/2 is better than both. Under p0 the integral over u is known,

    log E_p0 e^phi = log E_theta e^{(1 - omega) g^2 / 2} - log tau - (1 - tau^2) / 2,

so that only an average over theta is left to sampling, over `ProbeFeatures` drawn once a run. Any g, tau, omega give a
valid bound; they are fitted on one half of the replicates and of the probes and measured on the other half, so that
choosing them costs no validity. Safety of the measurement, on top of its standard error:

- g is clipped at the level where e^{(1 - omega) g^2 / 2} is a hundredth of the number of probes. The clipped tilt is a
  tilt like any other, and no single probe can carry more than a hundredth of the mean: the variance of the
  normaliser is finite and its error bar means something, whatever the tilt, for unbounded activations too.
- the mean of g^2 over theta is known exactly (Mehler's formula) and serves as control variate.
- -log of a sample mean is biased up by half its relative variance: that is taken off.

Read next: `tilts` for the directions of g, `moments` for what a pair is, `entropy` for the other bounds.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError
from meanfield.estimate import Estimate
from meanfield.moments import Clouds, Pair, coupled_pairs, each, halves, parts
from meanfield.tilts import ProbeFeatures, blocks
from meanfield.tilts import probe_features as probe_features

Array = npt.NDArray[Any]

RIDGES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
ROUGHNESS = 0.75  # power of |coefficients|^2 in h(w_i) by which a direction's ridge grows: digits gain 2 % over power 0
OMEGAS = (0.5, 0.0, 1.0)
GROUPS = 4  # of particles in a replicate: two halves, each of two halves
CURVATURE_ROWS = 4096
FINAL = 1e-6  # gain at which the last fit stops
CLIPPED_SHARE = 0.01


class Group(NamedTuple):
    """A group of particles and what a fit needs of it."""

    replicate: int
    mass: float
    pair: Pair
    push: Array  # (k,)    E_p u g_k, centred
    square: Array  # (k, k)  (E_p - E_p0) g_k g_l
    excess: float  # E_p u^2 - 1, centred


class Tilt(NamedTuple):
    """A member of the family: g = sum coefficients_k g_k over the first directions, tau, omega."""

    coefficients: Array
    tau: float = 1.0
    omega: float = 0.5


def donsker_varadhan(clouds: Clouds, features: ProbeFeatures, *, scale: float = 1.0) -> Estimate:
    """Return a lower bound on KL(p || p0) by Donsker and Varadhan's formula, cross-fitted [DonskerVaradhan75].

    One half of the replicates and of the probes chooses the tilt (by concave Newton steps with a ridge, larger for
    directions that oscillate; ridge, omega and the number of feature families by what is best on a held-out quarter),
    the other half measures it; then the
    halves change places, and each replicate yields one value. A single replicate is split into halves of its
    particles, and has no standard error.

    Parameters
    ----------
    clouds : sequence of (z, reference, weights)
        One entry a replicate, arrays of shape (m, D), (m, D), (m,) or None; u is the last column.
    features : ProbeFeatures
        From `probe_features`, once a run.
    scale : float
        Standard deviation s of the reference.

    Returns
    -------
    Estimate
        In nats; the error joins the scatter of replicates and that of the normaliser. 0, and exact, if every tilt
        that was tried is worse than none.

    Raises
    ------
    InputError
        If shapes don't fit, or a cloud has less than 4 particles. O(R m (n (d + k) + k^2) + N0 k iterations).
    """
    pairs = coupled_pairs(clouds, scale)
    d = features.x.shape[1]
    if pairs[0].z.shape[1] != d + 1:
        raise InputError(f"features of inputs in R^{d} need particles in R^{d + 1}, got R^{pairs[0].z.shape[1]}.")
    if min(len(pair.z) for pair in pairs) < GROUPS:
        raise InputError(f"a cloud needs at least {GROUPS} particles to be fitted on one part and measured on another.")
    several = [(r, mass, part) for r, pair in enumerate(pairs) for mass, part in parts(pair, GROUPS)]
    groups: list[Group] = each(lambda one: _group(one[0], one[1], one[2], features), several)
    folds, tables = halves(g.replicate for g in groups), _split(features.values)

    def crossed(fold: int) -> tuple[list[tuple[int, float, float]], float]:
        """Return (replicate, mass, value) of the groups of one fold at the tilt of the other, and a variance."""
        tilt = _choose([groups[i] for i in folds[1 - fold]], tables[1 - fold], features)
        normaliser, error = _log_normaliser(tilt, tables[fold], features.gram)
        measured = [groups[i] for i in folds[fold]]
        held = [(g.replicate, g.mass, _expectation(tilt, g.pair, features, len(tables[fold])) - normaliser)
                for g in measured]  # fmt: skip
        return held, (sum(g.mass for g in measured) / sum(g.mass for g in groups) * error) ** 2

    (first, one), (second, other) = each(crossed, (1, 0))
    return _combined(first + second, one + other)


def _split(table: Array) -> tuple[Array, Array]:
    """Return the two halves of the probes."""
    half = len(table) // 2
    return table[:half], table[half:]


def _combined(held: Sequence[tuple[int, float, float]], variance: float) -> Estimate:
    names = sorted({r for r, _, _ in held})
    values = [_weighted([(m, v) for r, m, v in held if r == name]) for name in names]
    scatter = np.var(values, ddof=1) / len(values) if len(values) > 1 else math.nan
    return Estimate(float(np.mean(values)), math.sqrt(scatter + variance), "Donsker-Varadhan")


def _weighted(items: Sequence[tuple[float, Any]]) -> Any:
    total = sum(mass for mass, _ in items)
    return sum(mass * value for mass, value in items) / total


def _group(replicate: int, mass: float, pair: Pair, features: ProbeFeatures) -> Group:
    """Return a group of a replicate's particles with the centred means over it; O(m n (d + n) + n^2 k)."""
    size, roots = len(features.transform), np.sqrt(pair.masses)
    push, square = np.zeros(size), np.zeros((size, size))
    for rows in blocks(len(roots)):
        for z, sign in ((pair.z[rows], 1.0), (pair.reference[rows], -1.0)):
            here = features.raw(z[:, :-1])
            here *= roots[rows, None]
            push += (sign * roots[rows] * z[:, -1]) @ here
            square += sign * (here.T @ here)
    turn, u, v = features.transform, pair.z[:, -1], pair.reference[:, -1]
    return Group(replicate, mass, pair, turn.T @ push, turn.T @ square @ turn, float(pair.masses @ (u * u - v * v)))


def _choose(groups: Sequence[Group], table: Array, features: ProbeFeatures) -> Tilt:
    """Return the tilt fitted to these groups and probes, its ridge, omega and size chosen on a half of them."""
    fit, check = ([groups[i] for i in half] for half in halves(g.replicate for g in groups))
    fit_table, check_table = _split(table)
    rough = np.sum(features.transform**2, axis=0)
    rough = (rough / rough.min()) ** ROUGHNESS

    def tried(ridge: float, start: Tilt) -> tuple[float, float, Tilt]:
        tilt = _fit(fit, fit_table, ridge * rough, start)
        return _score(tilt, check, check_table, features), ridge, tilt

    best: tuple[float, float, Tilt] = (0.0, math.inf, Tilt(np.zeros(1)))
    middle = len(RIDGES) // 2
    for size in sorted({features.simple, table.shape[1]}):
        start = Tilt(np.concatenate([best[2].coefficients, np.zeros(size)])[:size])
        here = at = tried(RIDGES[middle], start)
        k = middle
        # Down the ridges while the score rises; up, if it did not rise at all.
        for way in (1, -1):
            while 0 <= k + way < len(RIDGES) and (at := tried(RIDGES[k + way], here[2]))[0] > here[0]:
                k, here = k + way, at
            if k != middle:
                break
        middle, best = k, max(best, here, key=lambda b: b[0])
    score, ridge, tilt = best
    if score <= 0:
        return tilt
    best = max([best, *(tried(ridge, tilt._replace(omega=omega)) for omega in OMEGAS[1:])], key=lambda b: b[0])
    return _fit(groups, table, best[1] * rough, best[2], gained=FINAL)


def _score(tilt: Tilt, groups: Sequence[Group], table: Array, features: ProbeFeatures) -> float:
    """Return the bound that held-out groups and probes give, less one standard error of the normaliser."""
    normaliser, error = _log_normaliser(tilt, table, features.gram)
    size = len(tilt.coefficients)
    push = _weighted([(g.mass, g.push[:size]) for g in groups])
    square = _weighted([(g.mass, g.square[:size, :size]) for g in groups])
    excess = _weighted([(g.mass, g.excess) for g in groups])
    c = tilt.coefficients
    linear = tilt.tau * (c @ push) - 0.5 * tilt.omega * (c @ square @ c) + 0.5 * (1 - tilt.tau**2) * excess
    return float(linear) - normaliser - error


def _fit(
    groups: Sequence[Group], table: Array, ridges: Array, start: Tilt, *, gained: float = 1e-4, iterations: int = 8
) -> Tilt:
    """Return the tilt that maximises the bound less sum ridges_k c_k^2 / 2, by Newton's method from `start`.

    Concave in the coefficients; tau is explicit given them. The curvature is taken once, on some of the probes, the
    gradient on all: the result need not be exact, any tilt is valid. It stops where a step promises less than a share
    `gained` of the bound. O(iterations N0 k + 4096 k^2).
    """
    c, omega = start.coefficients, start.omega
    size = len(c)
    push = _weighted([(g.mass, g.push[:size]) for g in groups])
    square = np.eye(size) + _weighted([(g.mass, g.square[:size, :size]) for g in groups])
    spread = 1 + _weighted([(g.mass, g.excess) for g in groups])
    table = table[:, :size]
    damped = omega * square + np.diag(ridges[:size])
    curvature = damped + _curvature(c, omega, table[:CURVATURE_ROWS])

    def objective(c: Array) -> tuple[float, float, Array]:
        along = float(c @ push)
        # d/d tau of tau A + (1 - tau^2) spread / 2 + log tau vanishes
        tau = (along + math.sqrt(along * along + 4 * max(spread, 1e-3))) / (2 * max(spread, 1e-3))
        log_mean, slope = _log_mean(c, omega, table)
        quadratic = 0.5 * float(c @ damped @ c)
        value = tau * along + 0.5 * (1 - tau * tau) * spread + math.log(tau) - quadratic - log_mean
        return value, tau, tau * push - damped @ c - slope

    value, tau, gradient = objective(c)
    for _ in range(iterations):
        step = np.linalg.solve(curvature, gradient)
        gain = float(step @ gradient)
        if not gain > gained * abs(value) + 1e-14:
            break
        length = 1.0
        while (trial := objective(c + length * step))[0] <= value and length > 1e-3:
            length /= 2
        if trial[0] <= value:
            break
        c, (value, tau, gradient) = c + length * step, trial
    return Tilt(c, tau, omega)


def _log_mean(c: Array, omega: float, table: Array) -> tuple[float, Array]:
    """Return log mean e^{(1 - omega) g^2 / 2} over the probes and its gradient in the coefficients."""
    if omega == 1:
        return 0.0, np.zeros(len(c))
    g = table @ c.astype(np.float32)
    exponent = 0.5 * (1 - omega) * g.astype(np.float64) ** 2
    top = float(exponent.max())
    weights = np.exp(exponent - top)
    total = float(weights.sum())
    slope = ((weights * g / total * (1 - omega)).astype(np.float32) @ table).astype(np.float64)
    return top + math.log(total / len(g)), slope


def _curvature(c: Array, omega: float, table: Array) -> Array:
    """Return the Hessian of `_log_mean`: (1 - omega) E g_k g_l + (1 - omega)^2 Cov(g g_k, g g_l), tilted."""
    if omega == 1:
        return np.zeros((len(c), len(c)))
    g = table @ c.astype(np.float32)
    exponent = 0.5 * (1 - omega) * g.astype(np.float64) ** 2
    weights = np.exp(exponent - exponent.max())
    weights /= weights.sum()
    root = np.sqrt((1 - omega) * weights * (1 + (1 - omega) * g.astype(np.float64) ** 2)).astype(np.float32)
    first = (1 - omega) * ((weights * g).astype(np.float32) @ table).astype(np.float64)
    scaled = table * root[:, None]
    return (scaled.T @ scaled).astype(np.float64) - np.outer(first, first)


def _ceiling(omega: float, probes: int) -> float:
    """Return the level M at which g is clipped: e^{(1 - omega) M^2 / 2} = probes / 100."""
    if omega >= 1:
        return math.inf
    return math.sqrt(2 * math.log(max(CLIPPED_SHARE * probes, math.e)) / (1 - omega))


def _log_normaliser(tilt: Tilt, table: Array, gram: Array | None) -> tuple[float, float]:
    """Return log E_p0 e^phi + omega E_p0 g^2 / 2 for the clipped g, moved up by its bias, and its standard error."""
    c, tau, omega = tilt
    known = -math.log(tau) - 0.5 * (1 - tau * tau)
    if not c.any():
        return known, 0.0
    g = (table[:, : len(c)] @ c.astype(np.float32)).astype(np.float64)
    level = _ceiling(omega, len(g))
    clipped = np.clip(g, -level, level) ** 2
    weights = np.exp(0.5 * (1 - omega) * clipped)
    mean = float(weights.mean())
    value = math.log(mean) + 0.5 * omega * float(clipped.mean())
    ratio = weights / mean - 1
    bias = 0.5 * float(ratio @ ratio) / len(g) ** 2
    influence = ratio + 0.5 * omega * (clipped - clipped.mean())
    if gram is not None:
        # The mean of g^2, unclipped, is known: regress on it (the coefficient's own error is of second order).
        square = g * g - float(c @ gram[: len(c), : len(c)] @ c)
        centred = square - square.mean()
        slope = float(centred @ influence) / max(float(centred @ centred), 1e-300)
        value -= slope * float(square.mean())
        influence = influence - slope * centred
    return known + value + bias, float(influence.std()) / math.sqrt(len(g))


def _expectation(tilt: Tilt, pair: Pair, features: ProbeFeatures, probes: int) -> float:
    """Return E_p phi + omega E_p0 g^2 / 2 for the clipped g, a centred mean."""
    c, tau, omega = tilt
    level = _ceiling(omega, probes)

    def phi(z: Array) -> Array:
        g = np.clip(features.combination(z[:, :-1], c), -level, level)
        u = z[:, -1]
        return tau * u * g - 0.5 * omega * g * g + 0.5 * (1 - tau * tau) * (u * u - 1)

    return float(pair.mean(phi(pair.z) - phi(pair.reference)))
