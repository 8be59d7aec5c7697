"""Families of functions in which KL and the Fisher information are sought, for intervals from replicates.

Both are suprema over functions of quantities that are linear in the law,

    KL(p || p0) = sup_phi  E_p phi - log E_p0 e^phi                                     [DonskerVaradhan75]
    I(p || p0)  = sup_phi  -2 E_p A phi - E_p |grad phi|^2,   A phi = Laplace phi - z . grad phi    (Stein)

attained at phi = log dp/dp0 (up to a constant). A *family* fixes a linear or curved set of phi, and with it which
means over particles are needed (`statistics`), which member is best for given means (`fit`) and what a member yields at
other means (`measured`). A member fitted on some replicates and measured on others gives a lower bound for every law;
the supremum is reached where the family contains log dp/dp0.

| family | phi | contains log dp/dp0 of |
|---|---|---|
| `Quadratic` | polynomials of degree 2 | every Gaussian |
| `Network` | u g(theta) - omega g(theta)^2 / 2, g in the span of h(w_i), w_i h'(w_i) | Gibbs laws (omega = 0); networks of which u alone was trained (omega = 1) |
| `Functions` | combinations of functions of yours | what you make it contain |
| `QuadraticScore`, `NetworkScore` | as the first two (omega = 0), for the Fisher information | the same |

To add one, write a class with the four members of `Family`. Read next: `intervals`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError, MeanfieldError
from meanfield.moments import Pair, centred_moments
from meanfield.tilts import ProbeFeatures, blocks

Array = npt.NDArray[Any]
# Share of the mean of e^phi that one probe may carry before the mean is taken to rest on too few.
LARGEST_SHARE = 0.05
ITERATIONS = 50


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
    """Polynomials of degree 2: KL(N(mu, Sigma) || p0) at the moments of the law. Exact for Gaussians; O(m D^2 + D^3)."""

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
    """Gradients of polynomials of degree 2: the Fisher information of N(mu, Sigma), |mu|^2 + tr(Sigma - 2 + Sigma^-1)."""

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


class Network:
    """Tilts of networks, phi = u g(theta) - omega g(theta)^2 / 2 - log-normaliser, g over the first directions.

    omega = 1: u given theta is N(g, 1) and theta stays Gaussian, no integral is left, KL = E g^2 / 2. omega = 0: a Gibbs
    law, whose normaliser log E_theta e^{g^2/2} is a mean over the probes. Number of directions and omega are chosen on
    held-out replicates. O(m n (d + k)) a replicate, O(N0 k) an iteration.
    """

    name = "network"

    def __init__(self, features: ProbeFeatures, omegas: Sequence[float] = (1.0, 0.0)):
        if not omegas or any(omega not in (0.0, 1.0) for omega in omegas):
            raise InputError(f"omega is 1 (u alone was trained) or 0 (a Gibbs law), got {tuple(omegas)}.")
        self.features, self.omegas = features, tuple(omegas)

    @property
    def probes(self) -> int:
        """Return how many probes there are, if a normaliser needs them."""
        return len(self.features.values) if 0.0 in self.omegas else 0

    def choices(self, dimension: int) -> Sequence[Choice]:
        """Return the forms by doubling numbers of directions."""
        _inputs(self.features, dimension)
        sizes = _doubling(self.features.simple, self.features.transform.shape[1])
        return [Choice(size, omega) for size in sizes for omega in self.omegas]

    def statistics(self, pair: Pair) -> Array:
        """Return E u g_k and E g_k g_l, centred; E g_k g_l under p0 is taken from the exact Gram matrix or the probes."""
        k = self.features.transform.shape[1]
        push, square = np.zeros(k), np.zeros((k, k))
        for rows in blocks(len(pair.z)):
            for z, sign in ((pair.z[rows], 1.0), (pair.reference[rows], -1.0)):
                g = self.features.at(z[:, :-1])
                weighted = sign * pair.masses[rows, None] * g
                push += z[:, -1] @ weighted
                square += g.T @ weighted
        return np.concatenate([push, (square + self._gram()).ravel()])

    def _gram(self) -> Array:
        if self.features.gram is not None:
            return self.features.gram
        values = self.features.values.astype(np.float64)
        return values.T @ values / len(values)

    def fit(self, statistics: Array, choice: Choice, used: slice | Array, start: Array | None) -> Array:
        """Return the coefficients of g."""
        push, square = self._split(statistics, choice)
        if choice.form == 1.0:
            return np.linalg.solve(square, push)
        return maximised(push, self.features.values[used, : choice.size], True, start)

    def measured(self, member: Array, statistics: Array, choice: Choice, used: slice | Array) -> float:
        """Return E_p phi - log E_p0 e^phi."""
        push, square = self._split(statistics, choice)
        if choice.form == 1.0:
            return float(member @ push) - 0.5 * float(member @ square @ member)
        table = self.features.values[used, : choice.size]
        return float(member @ push) - log_mean(0.5 * (table @ member.astype(table.dtype)).astype(np.float64) ** 2)

    def _split(self, statistics: Array, choice: Choice) -> tuple[Array, Array]:
        k = self.features.transform.shape[1]
        square = statistics[k:].reshape(k, k)
        return statistics[: choice.size], square[: choice.size, : choice.size]


class NetworkScore:
    """Gradients of phi = u g(theta), g over the first directions: e' H^-1 e, of which `entropy.stein_fisher` is a part.

    e_k = E_p A(u g_k), H_kl = E_p <grad u g_k, grad u g_l>. How many directions is chosen on held-out replicates.
    O(m n (d + n)) a replicate.
    """

    name = "network score"
    probes = 0

    def __init__(self, features: ProbeFeatures):
        self.features = features

    def choices(self, dimension: int) -> Sequence[Choice]:
        """Return doubling numbers of directions."""
        _inputs(self.features, dimension)
        return [Choice(size) for size in _doubling(self.features.simple, self.features.transform.shape[1])]

    def statistics(self, pair: Pair) -> Array:
        """Return e, centred, and H."""
        transform, x = self.features.transform, self.features.x
        families = len(transform) // len(x)
        inner = np.tile(x @ x.T, (families, families))
        e, gram = np.zeros(len(transform)), np.zeros((len(transform),) * 2)
        for rows in blocks(len(pair.z)):
            masses, z = pair.masses[rows], pair.z[rows]
            value, slope, generator = self._jet(z)
            e += masses @ (generator - self._jet(pair.reference[rows])[2])
            gram += (value.T * masses) @ value + inner * ((slope.T * (masses * z[:, -1] ** 2)) @ slope)
        return np.concatenate([transform.T @ e, (transform.T @ gram @ transform).ravel()])

    def _jet(self, z: Array) -> tuple[Array, Array, Array]:
        """Return f(w_i), f'(w_i) and A(u f(w_i)) = u (f'' |x_i|^2 - f - w_i f') for f = h, then w h'."""
        x = self.features.x
        w, u, square = z[:, :-1] @ x.T, z[:, -1:], np.einsum("ij,ij->i", x, x)
        h, h1, h2, h3 = self.features.activation.jet(w)
        jets = [(h, h1, h2), (w * h1, h1 + w * h2, 2 * h2 + w * h3)][: len(self.features.transform) // len(x)]
        columns = [(f, f1, u * (f2 * square - f - w * f1)) for f, f1, f2 in jets]
        value, slope, generator = (np.concatenate(parts, axis=1) for parts in zip(*columns, strict=True))
        return value, slope, generator

    def fit(self, statistics: Array, choice: Choice, used: slice | Array, start: Array | None) -> Array:
        """Return the coefficients of g."""
        e, gram = self._split(statistics, choice)
        return -np.linalg.solve(gram, e)

    def measured(self, member: Array, statistics: Array, choice: Choice, used: slice | Array) -> float:
        """Return -2 E A phi - E |grad phi|^2."""
        e, gram = self._split(statistics, choice)
        return -2 * float(member @ e) - float(member @ gram @ member)

    def _split(self, statistics: Array, choice: Choice) -> tuple[Array, Array]:
        k = self.features.transform.shape[1]
        return statistics[: choice.size], statistics[k:].reshape(k, k)[: choice.size, : choice.size]


class Functions:
    """Combinations phi = a . f(z) of functions f: (m, D) -> (m, k), in the order in which they are to be tried.

    Centred means of f and samples of p0 (`probes`, shape (N0, D), fresh and apart from the references) are all it needs:
    constants drop out. The first `sizes[0]`, `sizes[1]`, ... of them compete on held-out replicates.
    """

    name = "functions"

    def __init__(self, function: Callable[[Array], Array], probes: Array, sizes: Sequence[int] | None = None):
        self.function, self.table = function, _values(function, np.asarray(probes, dtype=np.float64))
        # A function's mean under p0 then comes from the probes, here and in the normaliser: its error cancels.
        self.centre = self.table.mean(axis=0)
        most = self.table.shape[1]
        self.sizes = tuple(sizes) if sizes else tuple(_doubling(most, most))
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


def _doubling(*ends: int) -> list[int]:
    """Return 4, 8, 16, ... up to the largest end, and the ends."""
    most = max(ends)
    return sorted({*(4 << k for k in range(most.bit_length()) if 4 << k < most), *ends})


def _inputs(features: ProbeFeatures, dimension: int) -> None:
    if features.x.shape[1] + 1 != dimension:
        raise InputError(f"features of inputs in R^{features.x.shape[1]} do not fit particles in R^{dimension}.")


def log_mean(exponents: Array) -> float:
    """Return log mean e^exponents."""
    top = float(exponents.max())
    return top + math.log(float(np.exp(exponents - top).mean()))


def maximised(push: Array, table: Array, squared: bool, start: Array | None) -> Array:
    """Return the a that maximises a . push - log mean e^q, q = (table a)^2 / 2 if `squared`, table a otherwise.

    Concave in a; Newton's method with halved steps. `start` saves iterations. O(N0 k^2) an iteration.

    Raises
    ------
    MeanfieldError
        If there is no maximum, or it rests on few of the samples of p0: they do not reach as far as the law.
    """
    a = np.zeros(table.shape[1]) if start is None else start

    def state(a: Array) -> tuple[float, Array, Array, Array]:
        g = (table @ a.astype(table.dtype)).astype(np.float64)
        q = 0.5 * g * g if squared else g
        top = float(q.max())
        weights = np.exp(q - top)
        total = float(weights.sum())
        weights /= total
        slope = g[:, None].astype(table.dtype) * table if squared else table
        mean = weights.astype(table.dtype) @ slope
        return float(a @ push) - top - math.log(total / len(g)), push - mean, weights.astype(table.dtype), slope

    value, gradient, weights, slope = state(a)
    converged = False
    for _ in range(ITERATIONS):
        mean = push - gradient
        hessian = ((slope.T * weights) @ slope).astype(np.float64) - np.outer(mean, mean)
        if squared:
            hessian += (table.T * weights) @ table
        hessian[np.diag_indices_from(hessian)] += 1e-12 * np.trace(hessian)
        step = np.linalg.solve(hessian, gradient)
        gain = float(step @ gradient)
        length = 1.0
        while gain > 1e-12 + 1e-9 * abs(value) and (trial := state(a + length * step))[0] <= value and length > 1e-6:
            length /= 2
        converged = gain <= 1e-12 + 1e-9 * abs(value) or trial[0] <= value
        if converged:
            break
        a = a + length * step
        value, gradient, weights, slope = trial
    if not converged or weights.max() > LARGEST_SHARE:
        raise MeanfieldError(
            f"no best combination of {len(push)} fields was found, or it rests on few of the {len(table)} samples of p0 "
            f"(one carries {weights.max():.0%} of the mean): the law is too far from p0. Take more probes, or fewer fields."
        )
    return a
