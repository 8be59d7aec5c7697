"""What bounds are judged by: the exact law of a scheme in several dimensions, and the rule of rates.

`cases` holds the problems. The laws here are those of the scheme's own steps, without sampling error: a test of a
bound then needs few steps, and does not mix the bound's error with the scheme's.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from cases import Bilinear, Closure, Frozen, gaussian_kl, gaussian_w2
from scipy.special import stdtrit

from meanfield.cloud import Cloud, gaussian_cloud
from meanfield.flow import Flow
from meanfield.observables import cross_product
from meanfield.risk import Risk
from meanfield.schemes import mean_residual

REPLICATES = 8
LARGEST_RATE = 0.05


class Truth(NamedTuple):
    """What is known exactly of the law of a scheme; of W2 perhaps only an interval."""

    kl: float
    w2: tuple[float, float]
    loss: float
    eigenvalue: float


def bilinear_truth(problem: Bilinear, flow: Flow, times: Sequence[float]) -> Iterator[Truth]:
    """Yield the truth after every step of a bilinear network (both layers or theta trained), by moments."""
    closure = Closure(flow, problem.dimension)
    for eta in np.diff(times):
        closure = closure.step(float(eta))
        S = closure.covariance
        gram = problem.gram(S) if flow.train == "both" else S[-1, -1] * problem.x @ problem.x.T
        yield Truth(gaussian_kl(S), (gaussian_w2(S),) * 2, problem.loss(S), float(np.linalg.eigvalsh(gram)[0]))


def frozen_truth(problem: Frozen, flow: Flow, times: Sequence[float]) -> Iterator[Truth]:
    """Yield the truth after every step of `kernel` on a network of which u alone is trained.

    u | theta ~ N(a . h, 1) for every step: a kick adds to a, the channel shrinks it. KL = a' K2 a / 2; W2 lies between
    Gelbrich's bound at the exact moments and sqrt(2 KL).
    """
    K2, alpha, n = problem.kernel, problem.alpha, len(problem.y)
    spectrum = tuple(np.linalg.eigh(K2))
    a = np.zeros(n)
    for eta in np.diff(times):
        residual, forcing = alpha * K2 @ a - problem.y, -alpha * problem.lam * K2 @ a
        J = mean_residual(spectrum, residual, np.ones(n), forcing, 2 * alpha**2 / n, eta)
        push = -alpha / n * eta * J
        a = np.exp(-problem.lam * eta) * (a + push) + push
        square = float(a @ K2 @ a)
        loss = float(np.mean((alpha * K2 @ a - problem.y) ** 2))
        yield Truth(
            square / 2, (gaussian_w2(frozen_covariance(problem, a)), np.sqrt(square)), loss, float(spectrum[0][0])
        )


def frozen_covariance(problem: Frozen, a: np.ndarray) -> np.ndarray:
    """E z z': E theta u = sum_i a_i E[h'(w_i)] x_i (Stein), E u^2 = 1 + a' K2 a."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    norms = np.linalg.norm(problem.x, axis=1)
    slopes = problem.unit.h.first(np.outer(norms, nodes)) @ weights / weights.sum()
    S = np.eye(problem.x.shape[1] + 1)
    S[:-1, -1] = S[-1, :-1] = (a * slopes) @ problem.x
    S[-1, -1] += a @ problem.kernel @ a
    return S


def travelled(flow: Flow, clouds: Sequence[Cloud], times: Sequence[float]) -> Iterator[tuple[Cloud, ...]]:
    """Yield the replicates after each step of a time grid that starts at 0."""
    moved = tuple(clouds)
    for eta in np.diff(times):
        moved = tuple(flow.step(cloud, float(eta)) for cloud in moved)
        yield moved


def arrived(flow: Flow, clouds: Sequence[Cloud], times: Sequence[float]) -> tuple[Cloud, ...]:
    """Return the replicates at the end of a time grid that starts at 0."""
    *_, last = travelled(flow, clouds, times)
    return last


def seeded(m: int, dimension: int, replicates: int = REPLICATES, first: int = 0, **options) -> tuple[Cloud, ...]:
    """Return replicates of the seeds 0, 1, ..., fixed beforehand."""
    return tuple(gaussian_cloud(m, dimension=dimension, seed=first + r, **options) for r in range(replicates))


def quadratic_grid(end: float, steps: int) -> np.ndarray:
    """Return t_k = end (k / steps)^2."""
    return end * (np.arange(steps + 1) / steps) ** 2


def jackknifed_loss(risk: Risk, clouds: Sequence[Cloud]) -> tuple[float, float]:
    """Return the loss unbiased by products across replicates, and its jackknife error."""
    residuals = np.array([risk.residual(risk.prediction(cloud)) for cloud in clouds])
    count = len(residuals)
    without = np.array([cross_product(np.delete(residuals, r, axis=0)) for r in range(count)])
    return cross_product(residuals), float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))


def off(value: float, se: float, truth: float) -> float:
    """Return how many standard errors a value lies above the truth; what is exact up to rounding lies at 0."""
    if abs(value - truth) <= 1e-9 * max(abs(truth), 1e-3):
        return 0.0
    return (value - truth) / se if se > 0 else float(np.copysign(np.inf, value - truth))


def judge(pairs: dict[str, list[float]], replicates: int = REPLICATES) -> None:
    """Assert that at most 5 % of (record, side) pairs lie beyond t_{R-1, .975} on the unsafe side, none beyond twice.

    A pair is how many standard errors a measured number lies on the side of the truth where it must not be.
    """
    t = float(stdtrit(replicates - 1, 0.975))
    everything = np.concatenate([np.asarray(values) for values in pairs.values()])
    worst = {name: round(float(np.max(values)), 2) for name, values in pairs.items()}
    assert np.mean(everything > t) <= LARGEST_RATE, (np.mean(everything > t), worst)
    assert everything.max() <= 2 * t, worst
