"""What is minimised: functionals F of the law of the particles, which add and scale.

Every objective knows its value, its first variation dF/dp (a function of a point) and the gradient of that at the
particles, with no 1/m in it: the drift of a particle is -grad dF/dp. Objectives whose drift is spanned by finitely
many neurons also have a `tangent`, (r, H, e), with which the kernel schemes solve the stiff part of a step exactly.

`risk` holds the objectives of networks. To add one: subclass `Objective` with `value`, `first_variation` and
`gradient`; the identity tests run over it once it is listed in `tests/cases.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from meanfield.backends import Moved
from meanfield.cloud import Cloud
from meanfield.errors import InputError

Array = np.ndarray
Tangent = tuple[Array, Array, Array]


class Objective:
    """A functional F of a law of particles. Interface; see the module for what a member supplies."""

    preferred_scheme = "exponential"

    def value(self, cloud: Cloud) -> float:
        """Return F at the law of the cloud."""
        raise NotImplementedError

    def first_variation(self, cloud: Cloud, points: Array) -> Array:
        """Return dF/dp at points (k, D), up to a constant: shape (k,)."""
        raise NotImplementedError

    def gradient(self, cloud: Cloud) -> Array:
        """Return the gradient of the first variation at the particles, shape (m, D)."""
        raise NotImplementedError

    def tangent(self, cloud: Cloud, train: str = "both", decay: float = 1.0) -> Tangent | None:
        """Return (r, H, e) of (I1), or None where the drift is not spanned by neurons."""
        return None

    def stiffness(self, cloud: Cloud, train: str = "both") -> float:
        """Return the fastest rate of the linearised dynamics; an explicit step must stay below 2 / stiffness."""
        return 0.0

    def stiffness_start(self, cloud: Cloud, train: str = "both") -> float | None:
        """Return the stiffness at the cloud's Gaussian start where it costs nothing, None elsewhere."""
        return None

    @property
    def network(self) -> Any:
        """The `risk.Risk` whose neurons span the drift, so that the KL account can be kept; None elsewhere."""
        return None

    @property
    def full(self) -> "Objective":
        """The objective over all data, which is what gets recorded."""
        return self

    def plain(self, cloud: Cloud) -> Any:
        """Return the risk whose step is this objective's at the cloud, where one pass makes it; None elsewhere."""
        return None

    def kick(self, cloud: Cloud, residual: Array | None, eps: float, train: str = "both", **options: object) -> Moved:
        """Return the particles moved along the drift for a length eps (`residual`: the frozen r, if there is one)."""
        drift = -self.gradient(cloud)
        if train == "u":
            drift[:, :-1] = 0
        elif train == "theta":
            drift[:, -1] = 0
        return Moved((cloud.z + eps * drift).astype(cloud.z.dtype, copy=False))

    def __add__(self, other: "Objective") -> "Objective":
        """Return the sum of two objectives."""
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum((*terms(self), *terms(other)))

    def __mul__(self, factor: float) -> "Objective":
        """Return the objective times a number."""
        if not isinstance(factor, int | float | np.number):
            return NotImplemented
        return Scaled(float(factor), self)

    __rmul__ = __mul__


def terms(objective: Objective) -> tuple[Objective, ...]:
    """Return the terms of a sum, or the objective itself."""
    return objective.terms if isinstance(objective, Sum) else (objective,)


@dataclass(frozen=True, eq=False)
class Sum(Objective):
    """F_1 + F_2 + ..., made by writing a + b."""

    terms: tuple[Objective, ...]

    def value(self, cloud: Cloud) -> float:
        """Return the sum of the values."""
        return sum(term.value(cloud) for term in self.terms)

    def first_variation(self, cloud: Cloud, points: Array) -> Array:
        """Return the sum of the first variations."""
        return np.sum([term.first_variation(cloud, points) for term in self.terms], axis=0)

    def gradient(self, cloud: Cloud) -> Array:
        """Return the sum of the gradients."""
        return np.sum([term.gradient(cloud) for term in self.terms], axis=0)

    @property
    def full(self) -> Objective:
        """The sum over all data."""
        return Sum(tuple(term.full for term in self.terms))

    def stiffness(self, cloud: Cloud, train: str = "both") -> float:
        """Return the sum of the rates, an upper bound on the rate of the sum."""
        return sum(term.stiffness(cloud, train) for term in self.terms)


@dataclass(frozen=True, eq=False)
class Scaled(Objective):
    """factor * F, made by writing factor * objective."""

    factor: float
    objective: Objective

    def value(self, cloud: Cloud) -> float:
        """Return the scaled value."""
        return self.factor * self.objective.value(cloud)

    def first_variation(self, cloud: Cloud, points: Array) -> Array:
        """Return the scaled first variation."""
        return self.factor * self.objective.first_variation(cloud, points)

    def gradient(self, cloud: Cloud) -> Array:
        """Return the scaled gradient."""
        return self.factor * self.objective.gradient(cloud)

    @property
    def full(self) -> Objective:
        """The multiple of the objective over all data."""
        return Scaled(self.factor, self.objective.full)

    def stiffness(self, cloud: Cloud, train: str = "both") -> float:
        """Return the scaled rate."""
        return abs(self.factor) * self.objective.stiffness(cloud, train)


@dataclass(frozen=True, eq=False)
class Potential(Objective):
    """The linear functional F(p) = int V dp, whose drift is -grad V: Langevin dynamics on V.

    Parameters
    ----------
    potential : callable
        V on points (k, D), returns (k,).
    slope : callable
        grad V on points (k, D), returns (k, D).
    rate : float
        Largest curvature of V, if known: the stability limit of explicit steps is 2 / rate.
    """

    potential: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    rate: float = 0.0

    def value(self, cloud: Cloud) -> float:
        """Return the mean of V over the cloud."""
        return float(cloud.mean(self._checked(self.potential(cloud.z), cloud.z.shape[:1], "potential")))

    def first_variation(self, cloud: Cloud, points: Array) -> Array:
        """Return V at the points."""
        return self._checked(self.potential(points), np.shape(points)[:1], "potential")

    def gradient(self, cloud: Cloud) -> Array:
        """Return grad V at the particles."""
        return self._checked(self.slope(cloud.z), cloud.z.shape, "slope")

    def stiffness(self, cloud: Cloud, train: str = "both") -> float:
        """Return the largest curvature that was stated."""
        return self.rate

    @staticmethod
    def _checked(values: Array, shape: tuple[int, ...], name: str) -> Array:
        values = np.asarray(values)
        if values.shape != tuple(shape):
            raise InputError(f"the {name} of Potential must return shape {tuple(shape)}, it returned {values.shape}")
        return values
