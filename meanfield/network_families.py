"""Families of a network's own functions, u g(theta) with g in the span of h(w_i) and w_i h'(w_i), w_i = theta . x_i.

See `families` for what a family is, `tilts` for the directions of g.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.concave import log_mean, maximised
from meanfield.errors import InputError
from meanfield.families import Choice, doubling
from meanfield.moments import Pair
from meanfield.tilts import ProbeFeatures, blocks

Array = npt.NDArray[Any]


class Network:
    """Tilts of networks, phi = u g(theta) - omega g(theta)^2 / 2 - log-normaliser, g over the first directions.

    omega = 1: u given theta is N(g, 1) and theta stays Gaussian, no integral is left, KL = E g^2 / 2. omega = 0: a
    Gibbs law, whose normaliser log E_theta e^{g^2/2} is a mean over the probes. Number of directions and omega are
    chosen on held-out replicates. O(m n (d + k)) a replicate, O(N0 k) an iteration.
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
        _fits(self.features, dimension)
        sizes = doubling(self.features.simple, self.features.transform.shape[1])
        return [Choice(size, omega) for size in sizes for omega in self.omegas]

    def statistics(self, pair: Pair) -> Array:
        """Return E u g_k and E g_k g_l, centred; under p0 the latter is the exact Gram matrix or the probes'."""
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
        _fits(self.features, dimension)
        return [Choice(size) for size in doubling(self.features.simple, self.features.transform.shape[1])]

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


def _fits(features: ProbeFeatures, dimension: int) -> None:
    if features.x.shape[1] + 1 != dimension:
        raise InputError(f"features of inputs in R^{features.x.shape[1]} do not fit particles in R^{dimension}.")
