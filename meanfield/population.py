"""The population risk of a two-layer network: particles that act on one another through a closed-form kernel.

    F(p) = alpha^2 int int U dp dp + 2 alpha int V dp + C

With U(z, z') = E_x psi psi', V(z) = -E_x y psi and C = E_x y^2 this is R(p) = E_x (alpha E_p psi - y)^2, the risk
over infinitely many samples. `risk` makes it for labels y = E_q psi of a teacher, a finite cloud q: then U, V and C
come from one kernel. `interactions` holds the kernels; any record with `sums` does. To add a closed form, write its
kernel there and a line of `CLOSED`: the tests compare every line with means over inputs.
"""

import functools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from meanfield import backends
from meanfield.cloud import Cloud, cloud_at
from meanfield.errors import InputError
from meanfield.interactions import ErfPair, Gaussian, Kernel, ReluPair
from meanfield.objectives import Objective, Potential
from meanfield.risk import LARGEST_ALPHA, SMALLEST_ALPHA
from meanfield.units import ACTIVATIONS, Unit

Array = np.ndarray
Rates = Callable[[Array], tuple[Array, Array]]
INPUTS = ("gaussian", "sphere")


class Closed(NamedTuple):
    """A kernel E_x psi psi' in closed form, and the rates of its neurons (see `Pairwise`)."""

    kernel: Kernel
    rates: Rates


def _erf_rates(z: Array) -> tuple[Array, Array]:
    square = np.einsum("ij,ij->i", z[:, :-1], z[:, :-1])
    inner = z[:, -1] ** 2 * (4 / math.pi) / np.sqrt(1 + 4 * square)
    return inner, (2 / math.pi) * np.arcsin(2 * square / (1 + 2 * square))


def _relu_rates(z: Array) -> tuple[Array, Array]:
    return 0.5 * z[:, -1] ** 2, 0.5 * np.einsum("ij,ij->i", z[:, :-1], z[:, :-1])


def _relu_sphere_rates(z: Array) -> tuple[Array, Array]:
    inner, outer = _relu_rates(z)
    return inner / (z.shape[1] - 1), outer / (z.shape[1] - 1)


CLOSED = {
    ("erf", "gaussian"): Closed(ErfPair(), _erf_rates),
    ("relu", "gaussian"): Closed(ReluPair(), _relu_rates),
    ("relu", "sphere"): Closed(ReluPair("sphere"), _relu_sphere_rates),
}
# Kernels that compiled code knows; another record is worked in numpy.
COMPILED = (ErfPair, Gaussian, ReluPair)


@dataclass(frozen=True, eq=False)
class Pairwise(Objective):
    """F(p) = alpha^2 int int U dp dp + 2 alpha int V dp + C, whose drift is -2 alpha (alpha int grad U dp + grad V).

    Parameters
    ----------
    V : Potential or None
        The outer potential; None for none.
    U : ErfPair, ReluPair, Gaussian, or a record with `sums`
        The symmetric kernel of the interaction.
    constant : float
        C.
    alpha : float
        Scale of the output: 1 is the mean-field scaling, m a conventional network.
    rates : callable, optional
        Maps particles (m, D) to two arrays (m,), the largest eigenvalues over inputs of E_x d psi d psi' for the
        derivatives in theta and in u: 2 alpha^2 times their mean bounds the fastest rate of the dynamics, from which
        explicit steps get their limit. Without it nothing is known of one.
    backend : str
        Where pairs are worked: "numpy", "cpu", "keops", or "auto": compiled code for at least 2^16 pairs.

    Raises
    ------
    InputError
        If the parts are not what they should be.

    Notes
    -----
    O(m^2 D) a step; no array of m x m is held. A cloud of m weighted particles solves the limit equation started
    from its own law exactly, so that no error falls with m but that of the start.
    """

    V: Potential | None
    U: Kernel
    constant: float = 0.0
    alpha: float = 1.0
    rates: Rates | None = None
    backend: str = backends.AUTO
    _memo: "weakref.WeakKeyDictionary[Cloud, tuple[Array, Array]]" = field(
        default_factory=weakref.WeakKeyDictionary, init=False, repr=False
    )

    def __post_init__(self) -> None:
        backends.check_name(self.backend)
        given: object = self.V
        if given is not None and not isinstance(given, Potential):
            raise InputError(
                f"V of Pairwise is a Potential(potential, slope) or None, got {type(given).__name__}; "
                "for a network and its teacher write population.risk(unit, teacher)"
            )
        if not callable(getattr(self.U, "sums", None)):
            raise InputError(
                f"U of Pairwise is a kernel such as interactions.ReluPair(), or a record with a method "
                f"sums(points, z, mass); got {type(self.U).__name__}"
            )
        number = isinstance(self.alpha, int | float | np.number)
        if not (number and SMALLEST_ALPHA <= self.alpha <= LARGEST_ALPHA):
            raise InputError(f"alpha must be a number from {SMALLEST_ALPHA:g} to {LARGEST_ALPHA:g}, got {self.alpha!r}")
        if not (isinstance(self.constant, int | float | np.number) and math.isfinite(self.constant)):
            raise InputError(f"the constant of Pairwise must be a finite number, got {self.constant!r}")

    def __reduce__(self) -> tuple:
        """Pickle what the objective was made from; what it remembers stays behind."""
        return Pairwise, (self.V, self.U, self.constant, self.alpha, self.rates, self.backend)

    def value(self, cloud: Cloud) -> float:
        """Return F at the law of the cloud."""
        total = self.alpha**2 * float(cloud.mean(self._among(cloud)[0])) + float(self.constant)
        return total if self.V is None else total + 2 * self.alpha * self.V.value(cloud)

    def first_variation(self, cloud: Cloud, points: Array) -> Array:
        """Return dF/dp = 2 alpha^2 int U(., z) dp(z) + 2 alpha V at points (k, D)."""
        found = 2 * self.alpha**2 * interact(self.U, points, cloud.z, cloud.weights, self.backend)[0]
        return found if self.V is None else found + 2 * self.alpha * self.V.first_variation(cloud, points)

    def gradient(self, cloud: Cloud) -> Array:
        """Return grad dF/dp at the particles, shape (m, D); O(m^2 D)."""
        found = 2 * self.alpha**2 * self._among(cloud)[1]
        return found if self.V is None else found + 2 * self.alpha * self.V.gradient(cloud)

    def stiffness(self, cloud: Cloud, train: str = "both") -> float:
        """Return a bound on the fastest rate of the predictions: at most twice it where all neurons are equal."""
        outer = 0.0 if self.V is None else 2 * self.alpha * self.V.rate
        if self.rates is None:
            return outer
        inner, last = (float(cloud.mean(rate)) for rate in self.rates(cloud.z))
        moving = {"both": inner + last, "u": last, "theta": inner}[train]
        return 2 * self.alpha**2 * moving + outer

    def _among(self, cloud: Cloud) -> tuple[Array, Array]:
        """Return int U dp and its gradient at the particles, remembered while the cloud lives."""
        if cloud not in self._memo:
            self._memo[cloud] = interact(self.U, cloud.z, cloud.z, cloud.weights, self.backend)
        return self._memo[cloud]


def interact(
    kernel: Kernel, points: Array, z: Array, weights: Array | None, backend: str = backends.AUTO
) -> tuple[Array, Array]:
    """Return sum_j w_j k(p, z_j) and its gradient in p, worked where `backend` says; see `interactions.interact`."""
    if backend == backends.AUTO:
        compiled = isinstance(kernel, COMPILED) and len(points) * len(z) >= backends.COMPILED_WORK
        backend = "cpu" if compiled and not backends.unavailable("cpu") else "numpy"
    return backends.get(backend).interact(kernel, points, z, weights)


def risk(
    unit: Unit | str,
    teacher: Cloud | Array | None = None,
    *,
    inputs: str = "gaussian",
    alpha: float = 1.0,
    backend: str = backends.AUTO,
) -> Pairwise:
    """Return the population risk R(p) = E_x (alpha E_p psi - y)^2, y = E_q psi, of a network and its teacher.

    R(p) = alpha^2 int int k dp dp - 2 alpha int g dp + C,  k = E_x psi psi',  g = int k dq,  C = int int k dq dq

    Parameters
    ----------
    unit : Unit or str
        One neuron: "relu" or "erf", without a bias.
    teacher : Cloud or ndarray of shape (M, D), optional
        The law q of the teacher's neurons, of mass 1/M each unless it is a cloud with weights; signs and sizes go into
        their u. None: y = 0.
    inputs : str
        "gaussian", x ~ N(0, I), or "sphere", x uniform on the unit sphere of R^d.
    alpha : float
        Scale of the output.
    backend : str
        See `Pairwise`.

    Raises
    ------
    InputError
        If the pair of activation and inputs has no closed form here, or the teacher makes no sense.

    Notes
    -----
    Kernels: arcsine [Williams98] and arc-cosine [ChoSaul09]. O(m (m + M) D) a step.
    """
    closed = _closed(unit if isinstance(unit, Unit) else Unit(unit), inputs)
    if teacher is None:
        return Pairwise(None, closed.kernel, 0.0, alpha, closed.rates, backend)
    q = teacher if isinstance(teacher, Cloud) else cloud_at(teacher)
    constant = float(q.mean(interact(closed.kernel, q.z, q.z, q.weights, backend)[0]))
    pull = (closed.kernel, np.asarray(q.z, np.float64), q.weights, backend)
    V = Potential(functools.partial(_potential, *pull), functools.partial(_slope, *pull))
    return Pairwise(V, closed.kernel, constant, alpha, closed.rates, backend)


def _potential(kernel: Kernel, teacher: Array, weights: Array | None, backend: str, points: Array) -> Array:
    """Return V = -E_x y psi at points (k, D)."""
    return -interact(kernel, points, teacher, weights, backend)[0]


def _slope(kernel: Kernel, teacher: Array, weights: Array | None, backend: str, points: Array) -> Array:
    return -interact(kernel, points, teacher, weights, backend)[1]


def _closed(unit: Unit, inputs: str) -> Closed:
    """Return the closed form of an activation over inputs, or refuse with the reason."""
    if inputs not in INPUTS:
        raise InputError(f"inputs of a population risk are 'gaussian' or 'sphere', got {inputs!r}.")
    if unit.bias:
        raise InputError(
            "a population risk has no closed form here for neurons with a bias: leave it out, or draw samples and take "
            "Risk"
        )
    name = unit.h.name if unit.h is ACTIVATIONS.get(unit.h.name) else f"{unit.h.name} of your own"
    if (name, inputs) not in CLOSED:
        other = [kind for kind in INPUTS if (name, kind) in CLOSED]
        over = "inputs uniform on the sphere" if inputs == "sphere" else "Gaussian inputs"
        instead = f"inputs='{other[0]}'" if other else "one of " + ", ".join(sorted({key[0] for key in CLOSED}))
        raise InputError(
            f"E_x psi psi' has no closed form here for '{name}' and {over}: take {instead}, or draw samples and take "
            "Risk"
        )
    return CLOSED[name, inputs]
