"""Problems that take milliseconds a step, for tests of the loop and of what surrounds it; no tests stand here."""

import numpy as np

from meanfield.cloud import Cloud, gaussian_cloud
from meanfield.flow import Flow
from meanfield.minibatch import Minibatch
from meanfield.risk import Risk
from meanfield.units import Unit

# Measured in no time; the others of the contract are costly or have tests of their own.
CHEAP = ["loss", "loss_unbiased", "prediction", "residual_defect", "residual_defect_se", "second_moment", "drift_rms",
         "travelled", "coupled_distance", "coupling_defect", "kl_account", "noise_variance", "noise_variance_se",
         "noise_mean", "noise_kurtosis", "noise_state_correlation"]  # fmt: skip
EXPLICIT = ("exponential", "euler", "euler_literal")


def data(n: int = 12, d: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs on the unit sphere, labels +1 and -1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.where(np.arange(n) % 2, 1.0, -1.0)


def flow(scheme="auto", eta="auto", *, n=12, d=3, seed=0, alpha=5.0, lam=0.05, unit="tanh", batch=0, centred=True,
         loss="square", **options) -> Flow:  # fmt: skip
    risk = Risk(*data(n, d, seed), Unit(unit), alpha, centred, loss)
    return Flow(Minibatch(risk, batch) if batch else risk, lam, eta, scheme, **options)


def cloud(flow: Flow, m: int = 128, **options) -> Cloud:
    risk = flow.objective.full
    return gaussian_cloud(m, risk.unit, risk.d, **options)
