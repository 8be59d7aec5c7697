"""The empirical risk over random batches of the samples: minibatch SGD, and SGD with added noise.

A batch is a uniformly chosen subset, drawn anew at every step from the cloud's own stream, so that its gradients
average to the full one and a restart draws the same batches.
"""

from dataclasses import dataclass

import numpy as np

from meanfield.backends import Moved
from meanfield.cloud import Cloud
from meanfield.errors import InputError
from meanfield.noise import random_subset
from meanfield.objectives import Objective
from meanfield.risk import Risk

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Minibatch(Objective):
    """The risk over a random batch, drawn anew at every step from the cloud's own stream.

    Parameters
    ----------
    risk : Risk
        The risk over all samples.
    size : int
        Samples in a batch; each batch is a uniformly chosen subset, so gradients average to the full one.
    """

    risk: Risk
    size: int

    preferred_scheme = "euler"

    def __post_init__(self) -> None:
        if not isinstance(self.risk, Risk):
            raise InputError(f"Minibatch takes a Risk, got {type(self.risk).__name__}; sum other terms outside of it")
        if not 1 <= self.size <= self.risk.n:
            raise InputError(f"the batch size must be between 1 and n = {self.risk.n}, got {self.size}")

    @property
    def network(self) -> Risk:
        """The risk over all samples, whose neurons span the drift."""
        return self.risk

    @property
    def full(self) -> Risk:
        """The risk over all samples."""
        return self.risk

    def batch(self, cloud: Cloud) -> Array:
        """Return the sorted indices of the batch at the cloud's step."""
        return random_subset(cloud.seed, step=cloud.step, replicate=cloud.replicate, n=self.risk.n, size=self.size)

    def on(self, rows: Array) -> Risk:
        """Return the risk over the given samples alone."""
        r = self.risk
        return Risk(r.x[rows], r.y[rows], r.unit, r.alpha, r.centred, r.loss, r.backend)

    def plain(self, cloud: Cloud) -> Risk:
        """Return the risk over the batch."""
        return self.on(self.batch(cloud))

    def value(self, cloud: Cloud) -> float:
        """Return the risk over the batch."""
        return self.on(self.batch(cloud)).value(cloud)

    def first_variation(self, cloud: Cloud, points: Array) -> Array:
        """Return the first variation of the risk over the batch."""
        return self.on(self.batch(cloud)).first_variation(cloud, points)

    def gradient(self, cloud: Cloud) -> Array:
        """Return the gradient of the risk over the batch."""
        return self.on(self.batch(cloud)).gradient(cloud)

    def stiffness(self, cloud: Cloud, train: str = "both") -> float:
        """Return the rate of the full risk times n / size, above which no batch goes."""
        return self.risk.stiffness(cloud, train) * self.risk.n / self.size

    def stiffness_start(self, cloud: Cloud, train: str = "both") -> float | None:
        """Return the same at the Gaussian start, None where the start is another."""
        rate = self.risk.stiffness_start(cloud, train)
        return None if rate is None else rate * self.risk.n / self.size

    def residual(self, cloud: Cloud) -> Array:
        """Return the residual that stands for the batch in a sum over all samples: n / size r on it, 0 elsewhere."""
        rows = self.batch(cloud)
        r = self.risk.residual(self.risk.prediction(cloud))
        out = np.zeros_like(r)
        out[rows] = r[rows] * (self.risk.n / self.size)
        return out

    def kick(self, cloud: Cloud, residual: Array | None, eps: float, train: str = "both", **options: object) -> Moved:
        """Return the particles moved along the batch's drift (over the batch alone unless the account asks for all)."""
        if options.get("account"):
            return self.risk.kick(cloud, residual, eps, train, **options)
        return self.on(self.batch(cloud)).kick(cloud, None, eps, train, **options)
