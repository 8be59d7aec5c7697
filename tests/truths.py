"""What bounds are judged by: problems of known truth in several dimensions, and the rule of rates.

`cases` holds the problems; here are the moments of the frozen network, runs of replicates, and how many standard
errors a bound may lie on the wrong side of the truth.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from cases import Bilinear, Frozen, gaussian_kl, gaussian_w2
from scipy.special import stdtrit

from meanfield.cloud import Cloud, gaussian_cloud
from meanfield.flow import Flow
from meanfield.observables import cross_product
from meanfield.risk import Risk

REPLICATES = 8
LARGEST_RATE = 0.05


class Truth(NamedTuple):
    """What is known exactly of p_t; of W2 perhaps only an interval."""

    kl: float
    w2: tuple[float, float]
    loss: float
    eigenvalue: float
    prediction: np.ndarray


class Case(NamedTuple):
    """A problem, what it trains, and the times at which its truth is compared."""

    problem: Bilinear | Frozen
    train: str
    end: float

    @property
    def dimension(self) -> int:
        return self.problem.x.shape[1] + 1

    @property
    def risk(self) -> Risk:
        return self.problem.risk()

    def truth(self, times: Sequence[float]) -> list[Truth]:
        return (bilinear_truth if self.train == "both" else frozen_truth)(self.problem, times)


def bilinear_truth(problem: Bilinear, times: Sequence[float]) -> list[Truth]:
    """The Gaussian closure."""
    return [
        Truth(
            gaussian_kl(S),
            (gaussian_w2(S),) * 2,
            problem.loss(S),
            float(np.linalg.eigvalsh(problem.gram(S))[0]),
            problem.prediction(S),
        )
        for S in problem.covariance(np.concatenate([[0.0], times]))[1:]
    ]


def frozen_truth(problem: Frozen, times: Sequence[float]) -> list[Truth]:
    """u | theta ~ N(a . h, 1): KL = a' K2 a / 2; W2 lies between Gelbrich's bound at the exact moments and sqrt(2 KL)."""
    lowest = float(np.linalg.eigvalsh(problem.kernel)[0])
    return [
        Truth(
            problem.kl(t),
            (gaussian_w2(frozen_covariance(problem, t)), np.sqrt(2 * problem.kl(t))),
            problem.loss(t),
            lowest,
            problem.prediction(t),
        )
        for t in times
    ]


def frozen_covariance(problem: Frozen, t: float) -> np.ndarray:
    """E z z': E theta u = sum_i a_i E[h'(w_i)] x_i (Stein), E u^2 = 1 + a' K2 a."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    norms = np.linalg.norm(problem.x, axis=1)
    slopes = problem.unit.h.first(np.outer(norms, nodes)) @ weights / weights.sum()
    a = problem.coefficients(t)
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


def seeded(m: int, dimension: int, replicates: int = REPLICATES, **options) -> tuple[Cloud, ...]:
    """Return replicates of the seeds 0, 1, ..., fixed beforehand."""
    return tuple(gaussian_cloud(m, dimension=dimension, seed=seed, **options) for seed in range(replicates))


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
