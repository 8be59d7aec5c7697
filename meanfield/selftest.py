"""Physics checks against closed forms, on every backend that can run here; a minute at most. And their speeds.

The checks themselves are in `known`.
"""

import time as clock
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from meanfield import backends, noise, parallel
from meanfield.cloud import gaussian_cloud
from meanfield.errors import MeanfieldError
from meanfield.flow import Flow
from meanfield.known import CHECKS, ON_BACKENDS, Check
from meanfield.noise import Stream
from meanfield.risk import Risk
from meanfield.units import Unit

Array = np.ndarray
HEADER = ("", "check", "backend", "measured", "right", "within", "s")


class Outcome(NamedTuple):
    """A check that was made: on which backend, in how many seconds; or why it could not be."""

    backend: str
    check: Check
    seconds: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether it was made and the number is right."""
        return not self.failure and self.check.passed

    def row(self) -> tuple[str, ...]:
        """Return the texts of a line of the table."""
        check = self.check
        numbers = (f"{check.measured:.10g}", f"{check.expected:.10g}", f"{check.tolerance:.2g}")
        mark = "ok" if self.passed else "FAIL"
        return mark, check.name, self.backend, *(("", "", "") if self.failure else numbers), f"{self.seconds:.1f}"


def outcomes() -> list[Outcome]:
    """Make every check, those that need a backend on each that can run here."""
    made = [_made("", check.__name__, check) for check in CHECKS]
    for name in available():
        made += [_made(name, check.__name__, partial(check, name)) for check in ON_BACKENDS]
    return made


def available() -> list[str]:
    """Return the backends that can run here."""
    return [name for name in backends.MODULES if not backends.unavailable(name)]


def _made(backend: str, name: str, check: Callable[[], Check]) -> Outcome:
    begin = clock.perf_counter()
    try:
        return Outcome(backend, check(), clock.perf_counter() - begin)
    except (MeanfieldError, ArithmeticError, ImportError, OSError, RuntimeError) as error:
        nothing = Check(name.replace("_", " "), float("nan"), float("nan"), 0.0)
        return Outcome(backend, nothing, clock.perf_counter() - begin, f"{type(error).__name__}: {error}")


def run() -> tuple[str, bool]:
    """Return the table of all checks, and whether all passed."""
    begin = clock.perf_counter()
    made = outcomes()
    rows = [HEADER, *(outcome.row() for outcome in made)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    sides = "<<<>>>>"
    lines = [
        "  ".join(f"{cell:{side}{w}}" for cell, side, w in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    lines += [f"{outcome.check.name}, {outcome.backend}: {outcome.failure}" for outcome in made if outcome.failure]
    count = sum(outcome.passed for outcome in made)
    lines.append(f"{count} of {len(made)} passed in {clock.perf_counter() - begin:.1f} s")
    return "\n".join(lines), count == len(made)


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
