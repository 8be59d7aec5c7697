"""Physics checks against closed forms, on the backends that can run here; a minute at most.

Each check returns what was measured, what is right, and the tolerance; `CHECKS` lists them.
"""

import math
import time as clock
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from meanfield import backends, noise, ntk, parallel
from meanfield.cloud import gaussian_cloud
from meanfield.flow import Flow
from meanfield.noise import Stream
from meanfield.risk import Risk
from meanfield.units import ACTIVATIONS, Unit

Array = np.ndarray
# Problem P1 of the documentation: d = 1, erf; values at t = 1 from a spectral solution of the limit equation.
P1_X, P1_Y = np.array([[0.4], [1.0]]), np.array([0.5, 0.8])
P1_PREDICTION = np.array([0.289496, 0.504201])


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


def random_bits() -> Check:
    """Compare Philox4x32-10 with the published known-answer vector of the zero counter and key [Salmon11]."""
    words = noise.philox(np.zeros((4, 1), np.uint32), np.zeros(2, np.uint32))
    return Check("Philox4x32-10 known answer", float(int(words[0, 0])), float(0x6627E8D5), 0.0)


def normal_moments() -> Check:
    """Return the variance of a million normals; 4 standard errors."""
    values = noise.normals(1, Stream.PROBE, step=0, count=50_000, width=20)
    return Check("variance of 10^6 normals", float(values.var()), 1.0, 4 * math.sqrt(2 / values.size))


def gram_closed_form() -> Check:
    """Compare the smallest NTK eigenvalue of two inputs under erf with its closed form."""
    gram = ntk.gram_gaussian(ACTIVATIONS["erf"], np.array([[1.0, 0.0], [0.6, 0.8]]))
    return Check("lambda_min of the NTK, erf, closed form", ntk.eigenvalue_range(gram)[0], 0.4941456810, 1e-9)


def gram_series() -> Check:
    """Compare Mehler's series with the closed form for erf."""
    erf, x = ACTIVATIONS["erf"], np.array([[1.0, 0.0], [0.6, 0.8]])
    series = ntk.mehler(erf, x, (0, 0))
    assert erf.gram is not None
    return Check("Mehler series against closed form", float(np.abs(series - erf.gram(x @ x.T)[0]).max()), 0.0, 1e-12)


def limit_law() -> Check:
    """Compare predictions of a centred cloud at t = 1 with the spectral solution of the limit equation."""
    risk = Risk(P1_X, P1_Y, Unit("erf"), alpha=1.0)
    flow, cloud = Flow(risk, lam=0.2), gaussian_cloud(20_000, risk.unit, 1, seed=0)
    while cloud.time < 1.0:
        cloud = flow.step(cloud, min(flow.propose([cloud]), 1.0 - cloud.time))
    gap = float(np.abs(risk.prediction(cloud) - P1_PREDICTION).max())
    return Check("prediction of the limit law, m = 20,000", gap, 0.0, 5e-3)


def stationary_variance() -> Check:
    """Return the variance of a cloud without loss under the exact decay: it stays 1; 4 standard errors."""
    risk = Risk(np.zeros((1, 2)) + 0.5, np.zeros(1), Unit("tanh"), alpha=1.0)
    flow, cloud = Flow(risk, lam=1.0, eta=0.2), gaussian_cloud(20_000, risk.unit, 2, seed=3)
    for _ in range(10):
        cloud = flow.step(cloud)
    assert cloud.reference is not None
    variance = float((cloud.reference**2).mean())
    return Check("variance of the reference after 10 steps", variance, 1.0, 4 * math.sqrt(2 / cloud.z.size))


def threads_agree() -> Check:
    """Compare a step on one thread with the same step on all: equal bits."""
    risk = Risk(P1_X, P1_Y, Unit("tanh"), alpha=3.0)
    flow, cloud = Flow(risk, lam=0.1, eta=0.01), gaussian_cloud(5000, risk.unit, 1, seed=0)
    before = parallel.threads()
    try:
        parallel.set_threads(1)
        one = flow.step(cloud).z
    finally:
        parallel.set_threads(before)
    return Check("difference between one thread and all", float(np.abs(one - flow.step(cloud).z).max()), 0.0, 0.0)


CHECKS: tuple[Callable[[], Check], ...] = (
    random_bits,
    normal_moments,
    gram_closed_form,
    gram_series,
    limit_law,
    stationary_variance,
    threads_agree,
)


def run() -> tuple[str, bool]:
    """Return the table of all checks, and whether all passed."""
    begin = clock.perf_counter()
    checks = [check() for check in CHECKS]
    width = max(len(c.name) for c in checks)
    lines = [
        f"{'ok  ' if c.passed else 'FAIL'}  {c.name.ljust(width)}  {c.measured:.10g}  (right: {c.expected:.10g} "
        f"+- {c.tolerance:.2g})"
        for c in checks
    ]
    passed = all(c.passed for c in checks)
    count = sum(c.passed for c in checks)
    lines.append(f"{count} of {len(checks)} passed in {clock.perf_counter() - begin:.1f} s")
    return "\n".join(lines), passed


def speeds() -> str:
    """Return which backends can run here, why the others cannot, and the measured speed of a step on each."""
    lines = []
    for name in backends.MODULES:
        reason = backends.unavailable(name)
        if reason:
            lines.append(f"{name}: cannot run here. {reason}")
            continue
        rate = _speed(name)
        lines.append(
            f"{name}: runs here, {parallel.threads()} threads, {rate / 1e6:.0f} million neuron evaluations a second "
            "(kernel step, n = 100, d = 20, m = 8192, float64)"
        )
    return "\n".join(lines)


def _speed(name: str) -> float:
    """Return how many activations a second a backend's steps come to."""
    risk = Risk(*_sphere(100, 20), Unit("tanh"), alpha=10.0, backend=name)
    flow = Flow(risk, lam=0.01, eta=1e-4, account=False)
    cloud = gaussian_cloud(8192, risk.unit, 20, seed=0)
    times = []
    for _ in range(5):
        begin = clock.perf_counter()
        cloud = flow.step(cloud)
        times.append(clock.perf_counter() - begin)
    return cloud.m * risk.n / float(np.median(times))


def _sphere(n: int, d: int) -> tuple[Array, Array]:
    x = noise.normals(0, Stream.DATA, step=0, count=n, width=d)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, np.sign(x[:, 0])
