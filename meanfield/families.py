"""Families of functions in which KL and the Fisher information are sought, for intervals from replicates.

Both are suprema over functions of quantities that are linear in the law,

    KL(p || p0) = sup_phi  E_p phi - log E_p0 e^phi                                     [DonskerVaradhan75]
    I(p || p0)  = sup_phi  -2 E_p A phi - E_p |grad phi|^2,   A phi = Laplace phi - z . grad phi    (Stein)

attained at phi = log dp/dp0 (up to a constant). A *family* fixes a linear or curved set of phi, and with it which
means over particles are needed (`statistics`), which member is best for given means (`fit`) and what a member yields at
other means (`measured`). A member fitted on some replicates and measured on others gives a lower bound for every law;
the supremum is reached where the family contains log dp/dp0.

    Quadratic         polynomials of degree 2: contains log dp/dp0 of every Gaussian
    Network           u g(theta) - omega g(theta)^2 / 2, g in the span of h(w_i), w_i h'(w_i): that of Gibbs laws
                      (omega = 0) and of networks of which u alone was trained (omega = 1)
    Functions         combinations of functions of yours: what you make it contain
    QuadraticScore, NetworkScore   as the first two (omega = 0), for the Fisher information

To add one, write a class with the four members of `Family`. Read next: `network_families`, `intervals`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from meanfield.concave import log_mean, maximised
from meanfield.errors import InputError, MeanfieldError
from meanfield.moments import Pair, centred_moments

Array = npt.NDArray[Any]


class Choice(NamedTuple):
    """A part of a family: how many of its functions, and of what form."""

    size: int
    form: float = 0.0


class Family(Protocol):
    """What an interval needs to know of a family of functions."""

    name: str

    def choices(self, dimension: int) -> Sequence[Choice]:
        """Return the parts of the family among which held-out replicates choose, the simplest first."""
        ...

    def statistics(self, pair: Pair) -> Array:
        """Return the centred means over a replicate that members are linear in, a vector."""
        ...

    def fit(self, statistics: Array, choice: Choice, used: slice | Array, start: Array | None) -> Array:
        """Return the best member for these means and the probes `used`; `start` is the member for all of them."""
        ...

    def measured(self, member: Array, statistics: Array, choice: Choice, used: slice | Array) -> float:
        """Return what a member yields at these means and these probes."""
        ...

    @property
    def probes(self) -> int:
        """How many samples of p0 the family rests on (0 where integrals are known)."""
        ...


class Quadratic:
    """Polynomials of degree 2: KL(N(mu, Sigma) || p0) at the moments of the law; O(m D^2 + D^3)."""

    name = "quadratic"
    probes = 0

    def choices(self, dimension: int) -> Sequence[Choice]:
        """Return the one choice there is."""
        return [Choice(dimension * (dimension + 3) // 2)]

    def statistics(self, pair: Pair) -> Array:
        """Return mean and second moment, centred."""
        mean, second = centred_moments(pair.z, pair.reference, pair.weights)
        return np.concatenate([mean, second.ravel()])

    def fit(self, statistics: Array, choice: Choice, used: slice | Array, start: Array | None) -> Array:
        """Return the precision minus 1 and the linear coefficient, as a vector, and the normaliser at its end."""
        mean, second = _moments(statistics)
        values, vectors = np.linalg.eigh(second - np.outer(mean, mean))
        if not values[0] > 0:
            raise MeanfieldError(
                f"the covariance that the replicates yield has an eigenvalue {values[0]:.2g}: raise m, or the law is "
                "singular beside p0 and has no finite KL."
            )
        precision = (vectors / values) @ vectors.T
        linear = precision @ mean
        normaliser = 0.5 * float(mean @ linear + np.log(values).sum())
        return np.concatenate([linear, (precision - np.eye(len(mean))).ravel(), [normaliser]])

    def measured(self, member: Array, statistics: Array, choice: Choice, used: slice | Array) -> float:
        """Return E log dN(mu, Sigma)/dp0 = linear . E z - E z' (precision - 1) z / 2 - normaliser."""
        mean, second = _moments(statistics)
        size = len(mean)
        quadratic = float(member[size:-1] @ second.ravel())
        return float(member[:size] @ mean) - 0.5 * quadratic - float(member[-1])


class QuadraticScore(Quadratic):
    """Gradients of polynomials of degree 2: the Fisher information of a Gaussian, |mu|^2 + tr(Sigma - 2 + Sigma^-1)."""

    name = "quadratic score"

    def measured(self, member: Array, statistics: Array, choice: Choice, used: slice | Array) -> float:
        """Return -2 E A phi - E |grad phi|^2 for grad phi = linear - (precision - 1) z."""
        mean, second = _moments(statistics)
        size = len(mean)
        linear, excess = member[:size], member[size:-1].reshape(size, size)
        generator = -float(np.trace(excess)) - float(linear @ mean) + float((excess * second).sum())
        image = excess @ second @ excess
        square = float(linear @ linear) - 2 * float(linear @ excess @ mean) + float(np.trace(image))
        return -2 * generator - square


def _moments(statistics: Array) -> tuple[Array, Array]:
    size = int(round(math.sqrt(len(statistics) + 0.25) - 0.5))
    return statistics[:size], statistics[size:].reshape(size, size)


class Functions:
    """Combinations phi = a . f(z) of functions f: (m, D) -> (m, k), in the order in which they are to be tried.

    It needs centred means of f, and samples of p0 (`probes`, shape (N0, D), fresh and apart from the references):
    constants drop out. The first `sizes[0]`, `sizes[1]`, ... of them compete on held-out replicates.
    """

    name = "functions"

    def __init__(self, function: Callable[[Array], Array], probes: Array, sizes: Sequence[int] | None = None):
        self.function, self.table = function, _values(function, np.asarray(probes, dtype=np.float64))
        # A function's mean under p0 then comes from the probes, here and in the normaliser: its error cancels.
        self.centre = self.table.mean(axis=0)
        most = self.table.shape[1]
        self.sizes = tuple(sizes) if sizes else tuple(doubling(most, most))
        if any(not 1 <= size <= most for size in self.sizes):
            raise InputError(f"sizes are numbers of functions from 1 to {most}, got {self.sizes}.")

    @property
    def probes(self) -> int:
        """Return how many samples of p0 the normaliser rests on."""
        return len(self.table)

    def choices(self, dimension: int) -> Sequence[Choice]:
        """Return the sizes."""
        return [Choice(size) for size in self.sizes]

    def statistics(self, pair: Pair) -> Array:
        """Return mean f(Z) - f(Zbar)."""
        return pair.mean(_values(self.function, pair.z) - _values(self.function, pair.reference))

    def fit(self, statistics: Array, choice: Choice, used: slice | Array, start: Array | None) -> Array:
        """Return the coefficients."""
        table = self.table[used, : choice.size]
        return maximised(statistics[: choice.size] + table.mean(axis=0), table, False, start)

    def measured(self, member: Array, statistics: Array, choice: Choice, used: slice | Array) -> float:
        """Return E_p phi - log E_p0 e^phi."""
        phi = self.table[used, : choice.size] @ member
        return float(member @ statistics[: choice.size]) - log_mean(phi - phi.mean())


def _values(function: Callable[[Array], Array], z: Array) -> Array:
    values = np.asarray(function(z), dtype=np.float64)
    if values.ndim != 2 or len(values) != len(z) or not values.shape[1] or not np.isfinite(values).all():
        raise InputError(f"fields map {z.shape} to finite numbers of shape ({len(z)}, k), got shape {values.shape}.")
    return values


def doubling(*ends: int) -> list[int]:
    """Return 4, 8, 16, ... up to the largest end, and the ends."""
    most = max(ends)
    return sorted({*(4 << k for k in range(most.bit_length()) if 4 << k < most), *ends})
