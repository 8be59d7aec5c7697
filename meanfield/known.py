"""Numbers that are known in closed form, and what this installation makes of them: the checks of `selftest`.

A check returns what was measured, what is right, and how far apart the two may be: rounding, the error of a series or
a grid, or standard errors of what is random. `CHECKS` holds those that need no backend, `ON_BACKENDS` those that are
made on every backend that can run here. To add one, write a function and put it into its table.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from meanfield import backends, closures, distances, fokker_planck, gibbs, noise, ntk, parallel, transport
from meanfield.cloud import Cloud, gaussian_cloud
from meanfield.entropy import gaussian_kl
from meanfield.estimate import student_factor
from meanfield.flow import Flow
from meanfield.noise import Stream
from meanfield.risk import Risk
from meanfield.simulate import simulate
from meanfield.units import ACTIVATIONS, Unit

Array = np.ndarray
# Problem P1 of the documentation: d = 1, erf; values at t = 1 from a spectral solution of the limit equation.
P1_X, P1_Y = np.array([[0.4], [1.0]]), np.array([0.5, 0.8])
P1_PREDICTION = np.array([0.289496, 0.504201])
# Two linear neurons of a bilinear network, whose law stays Gaussian.
P2_X, P2_Y = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([0.7, -0.2])
TURN = 0.3 * np.pi
ERRORS = 4.0  # standard errors that a random number may be off
REPLICATES, M = 8, 4000
SMOOTH = ("tanh", "erf", "sin", "linear")


class Check(NamedTuple):
    """A measured number, the right one, and how far apart they may be."""

    name: str
    measured: float
    expected: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the measured number is within the tolerance."""
        return abs(self.measured - self.expected) <= self.tolerance


# --- Noise


def random_bits() -> Check:
    """Compare Philox4x32-10 with the published known-answer vector of the zero counter and key [Salmon11]."""
    words = noise.philox(np.zeros((4, 1), np.uint32), np.zeros(2, np.uint32))
    return Check("Philox4x32-10, first word of the known answer", float(int(words[0, 0])), float(0x6627E8D5), 0.0)


def normal_moments() -> Check:
    """Return the variance of a million normals."""
    values = noise.normals(1, Stream.PROBE, step=0, count=50_000, width=20)
    return Check("variance of 10^6 normals", float(values.var()), 1.0, ERRORS * math.sqrt(2 / values.size))


def normal_tails() -> Check:
    """Return the fourth moment of a million normals, whose variance is 105 - 9."""
    values = noise.normals(2, Stream.PROBE, step=0, count=50_000, width=20)
    return Check("fourth moment of 10^6 normals", float((values**4).mean()), 3.0, ERRORS * math.sqrt(96 / values.size))


def normals_on(backend: str) -> Check:
    """Count the normals of a backend that are not, to the last bit, those that numpy makes."""
    place = {"step": 3, "replicate": 1, "first": 11, "count": 4000, "width": 7}
    differ = 0
    for dtype in (np.float64, np.float32):
        made = backends.get(backend).normals(5, Stream.DIFFUSION, dtype=dtype, **place)
        differ += int(np.count_nonzero(made != noise.normals(5, Stream.DIFFUSION, dtype=dtype, **place)))
    return Check("normals with other bits than the definition's", differ, 0.0, 0.0)


# --- Kernels


def gram_closed_form() -> Check:
    """Compare the smallest NTK eigenvalue of two inputs under erf with its closed form."""
    gram = ntk.gram_gaussian(ACTIVATIONS["erf"], P2_X)
    return Check("lambda_min of the NTK at p0, erf", ntk.eigenvalue_range(gram)[0], 0.4941456810, 1e-9)


def gram_series() -> Check:
    """Compare Mehler's series with the closed forms of smooth activations."""
    gaps = []
    for name in SMOOTH:
        activation = ACTIVATIONS[name]
        if activation.gram is not None:
            closed = activation.gram(P2_X @ P2_X.T)
            gaps += [float(np.abs(ntk.mehler(activation, P2_X, (k, k)) - closed[k]).max()) for k in (0, 1)]
    return Check("Mehler series less closed forms of E hh, E h'h'", max(gaps), 0.0, 1e-9)


def gram_on(backend: str) -> Check:
    """Compare the Gram matrix of clouds with its closed form at p0, in standard errors over replicates."""
    risk = Risk(P2_X, P2_Y, Unit("erf"), backend=backend)
    found = np.array([risk.gram(gaussian_cloud(M, risk.unit, 2, seed=4, replicate=r)) for r in range(REPLICATES)])
    return _in_errors("NTK of clouds less E NTK at p0, erf", found, ntk.gram_gaussian(ACTIVATIONS["erf"], P2_X))


# --- Distances and entropies


def gaussian_distance() -> Check:
    """Compare W2 of N(mu, R diag(4, 1/4) R') to N(0, I) with |mu|^2 + 1 + 1/4."""
    covariance = _turned(np.diag([4.0, 0.25]))
    value = math.sqrt(transport.gelbrich(np.array([3.0, 0.0]), covariance))
    return Check("W2 between Gaussians", value, math.sqrt(10.25), 1e-12)


def gaussian_entropy() -> Check:
    """Compare KL of the same law with (|mu|^2 + 4 + 1/4 - 2 - log 1) / 2."""
    value = gaussian_kl(np.array([3.0, 0.0]), _turned(np.diag([4.0, 0.25])))
    return Check("KL between Gaussians", value, 5.625, 1e-12)


def moved_sample() -> Check:
    """Return exact W2^2 from a sample to itself moved by (0.6, -0.8, 2): moving is optimal, so it is 5."""
    sample = noise.normals(6, Stream.PROBE, step=0, count=200, width=3)
    found = distances.exact(sample, sample + np.array([0.6, -0.8, 2.0]), force=True)
    return Check("exact W2^2 of a sample that was moved", found.value, 5.0, 1e-10)


def _turned(matrix: Array) -> Array:
    c, s = math.cos(TURN), math.sin(TURN)
    turn = np.array([[c, -s], [s, c]])
    return turn @ matrix @ turn.T


# --- Solutions


def solvers() -> Check:
    """Compare the spectral solution with frozen features, where the law stays Gaussian, at t = 1/2."""
    risk = Risk(P1_X, P1_Y, Unit("erf"), alpha=3.0)
    exact = closures.frozen_closure(risk, 0.1, [0.5])
    found = fokker_planck.spectral(risk, 0.1, [0.5], modes=(48, 24), train="u", estimate=False)
    gap = float(np.abs(found.prediction - exact.prediction).max())
    return Check("spectral solution less frozen closure, f", gap, 0.0, 1e-7)


def minimiser() -> Check:
    """Return by how much the energy of the Gibbs law is above its dual bound: both are min Q."""
    found = gibbs.fixed_point(Risk(P1_X, P1_Y, Unit("erf")), 0.2)
    return Check("Q of the Gibbs law less its dual", found.energy.value - found.dual.value, 0.0, 1e-9)


# --- Dynamics


def limit_law(backend: str) -> Check:
    """Compare predictions of a centred cloud at t = 1 with the spectral solution of the limit equation."""
    risk = Risk(P1_X, P1_Y, Unit("erf"), alpha=1.0, backend=backend)
    cloud = _until(Flow(risk, lam=0.2), gaussian_cloud(20_000, risk.unit, 1, seed=0), 1.0)
    gap = float(np.abs(risk.prediction(cloud) - P1_PREDICTION).max())
    return Check("prediction less the limit law's, erf, t = 1", gap, 0.0, 5e-3)


def gaussian_law(backend: str) -> Check:
    """Compare predictions of a bilinear network at t = 1 with its Gaussian closure, in standard errors."""
    risk = Risk(P2_X, P2_Y, Unit("linear"), alpha=2.0, backend=backend)
    exact = closures.gaussian_closure(risk, 0.2, [1.0]).prediction[0]
    flow = Flow(risk, lam=0.2, eta=0.05, scheme="kernel2")
    clouds = [_until(flow, gaussian_cloud(M, risk.unit, 2, seed=7, replicate=r), 1.0) for r in range(REPLICATES)]
    return _in_errors("prediction less the Gaussian closure's", np.array([risk.prediction(c) for c in clouds]), exact)


def frozen_law(backend: str) -> Check:
    """Compare predictions with frozen features at t = 1/2 with the linear equation's, in standard errors."""
    risk = Risk(P1_X, P1_Y, Unit("erf"), alpha=3.0, backend=backend)
    exact = closures.frozen_closure(risk, 0.1, [0.5]).prediction[0]
    flow = Flow(risk, lam=0.1, eta=0.05, scheme="kernel2", train="u")
    clouds = [_until(flow, gaussian_cloud(M, risk.unit, 1, seed=8, replicate=r), 0.5) for r in range(REPLICATES)]
    return _in_errors(
        "prediction less frozen features', t = 1/2", np.array([risk.prediction(c) for c in clouds]), exact
    )


def stationary_variance(backend: str) -> Check:
    """Return the variance of a cloud without loss under the exact decay: it stays 1."""
    risk = Risk(np.zeros((1, 2)) + 0.5, np.zeros(1), Unit("tanh"), alpha=1.0, backend=backend)
    cloud = _until(Flow(risk, lam=1.0, eta=0.2), gaussian_cloud(20_000, risk.unit, 2, seed=3), 2.0)
    assert cloud.reference is not None
    variance = float((cloud.reference**2).mean())
    return Check("variance of the reference at t = 2", variance, 1.0, ERRORS * math.sqrt(2 / cloud.z.size))


def threads_agree(backend: str) -> Check:
    """Compare a step on one thread with the same step on all: equal bits."""
    risk = Risk(P1_X, P1_Y, Unit("tanh"), alpha=3.0, backend=backend)
    flow, cloud = Flow(risk, lam=0.1, eta=0.01), gaussian_cloud(5000, risk.unit, 1, seed=0)
    before = parallel.threads()
    try:
        parallel.set_threads(1)
        one = flow.step(cloud).z
    finally:
        parallel.set_threads(before)
    return Check("a step on one thread less that on all", float(np.abs(one - flow.step(cloud).z).max()), 0.0, 0.0)


def step_of_numpy(backend: str) -> Check:
    """Compare a step of every smooth activation with that of the numpy backend: rounding."""
    gaps = []
    for name in SMOOTH:
        made = []
        for one in (backend, "numpy"):
            risk = Risk(P2_X, P2_Y, Unit(name), alpha=3.0, backend=one)
            flow = Flow(risk, lam=0.1, eta=0.01, scheme="euler")
            made.append(flow.step(gaussian_cloud(1000, risk.unit, 2, seed=9)).z)
        gaps.append(float(np.abs(made[0] - made[1]).max()))
    return Check("a step less that of numpy, all activations", max(gaps), 0.0, 1e-12)


def _until(flow: Flow, cloud: Cloud, time: float) -> Cloud:
    while cloud.time < time - 1e-12:
        cloud = flow.step(cloud, min(flow.propose([cloud]), time - cloud.time))
    return cloud


def _in_errors(name: str, found: Array, exact: Array) -> Check:
    """Compare means over replicates with what is right, in standard errors: the farthest entry."""
    se = found.std(axis=0, ddof=1) / math.sqrt(len(found))
    away = np.abs(found.mean(axis=0) - exact) / np.where(se > 0, se, 1.0)
    return Check(f"{name} [s.e.]", float(away.max()), 0.0, ERRORS)


# --- Bounds


@cache
def _bracketed() -> dict[str, Array]:
    risk = Risk(P2_X, P2_Y, Unit("linear"), alpha=2.0)
    start = gaussian_cloud(M, risk.unit, 2, seed=10)
    wanted = ["w2_lower", "w2_upper", "kl_lower", "kl_upper"]
    data = simulate(
        Flow(risk, lam=0.2), start, 1.0, replicates=4, observables=wanted, bounds=[0.0, 1.0], quiet=True
    ).data
    return {name: data[name].values for name in (*wanted, *(f"{name}_se" for name in wanted))}


def _truth(distance: str) -> float:
    exact = closures.gaussian_closure(Risk(P2_X, P2_Y, Unit("linear"), alpha=2.0), 0.2, [1.0])
    return float((exact.w2_upper if distance == "w2" else exact.kl)[0])


def _bracket(distance: str) -> Check:
    """Return how far the bracket of a bilinear network at t = 1 reaches beyond the truth, which is inside it."""
    found, right = _bracketed(), _truth(distance)
    ends = [found[f"{distance}_{side}"][-1] / right for side in ("lower", "upper")]
    errors = [student_factor(4) * found[f"{distance}_{side}_se"][-1] / right for side in ("lower", "upper")]
    inside = ends[0] - errors[0] <= 1.0 <= ends[1] + errors[1]
    name = f"{distance.upper()} bracket over the truth, upper end"
    return Check(name, float(ends[1]) if inside else math.nan, 1.0, 0.2)


def w2_bracket() -> Check:
    """Compare the two-sided bound on W2(p_t, p0) with the Gaussian closure."""
    return _bracket("w2")


def kl_bracket() -> Check:
    """Compare the two-sided bound on KL(p_t || p0) with the Gaussian closure."""
    return _bracket("kl")


def zero() -> Check:
    """Return the largest of all bounds at the start, where the law is p0."""
    return Check("bounds and errors at the start", max(float(v[0]) for v in _bracketed().values()), 0.0, 0.0)


CHECKS: Sequence[Callable[[], Check]] = (
    random_bits, normal_moments, normal_tails, gram_closed_form, gram_series, gaussian_distance, gaussian_entropy,
    moved_sample, solvers, minimiser, zero, w2_bracket, kl_bracket,
)  # fmt: skip
ON_BACKENDS: Sequence[Callable[[str], Check]] = (
    normals_on, gram_on, step_of_numpy, threads_agree, stationary_variance, frozen_law, gaussian_law, limit_law,
)  # fmt: skip
