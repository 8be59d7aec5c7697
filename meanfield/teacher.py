"""The teacher of least chi-square: the law rho p0 on neurons with given outputs that is nearest to p0.

    minimise chi^2 = E_p0 rho^2 - 1   over rho >= 0 with E_p0 rho = 1 and alpha E_p0 rho psi_i = y_i.

Theorem 4.5 of [CCGZ20] asks for labels that such a law makes, with alpha = 1, and bounds the test error by its chi^2.
The best one is rho = (mu + c . psi)_+, where (mu, c), n + 1 numbers, maximise the concave function

    F = mu + c . y / alpha - E (mu + c . psi)_+^2 / 2 - 1/2,     2 F <= chi^2 everywhere, with equality at the maximum.

Given theta, mu + c . psi = mu + g u is normal, g = c . h(w), s = mu / |g|, and u integrates out (phi, Phi: the normal
density and distribution function):

    E_u (mu + g u)_- = |g| phi(s) - mu Phi(-s),      E_u u (mu + g u)_+ = g Phi(s),
    E_u (mu + g u)_-^2 = (mu^2 + g^2) Phi(-s) - mu |g| phi(s).

Only the negative parts are integrated over theta, for E (mu + c . psi)^2 = mu^2 + c' K2 c is known: where the labels
are small, chi^2 = y' K2^-1 y / alpha^2 to exponential accuracy, and that is a lower bound always.

(mu, c) is fitted on one draw of the nodes; what is reported, chi^2 and outputs of the law normalised to mass 1, is
measured on another.

Read next: `quadrature` for errors, `complexity` for the other side of Theorem 4.5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import ntk
from meanfield.errors import InputError
from meanfield.estimate import Estimate
from meanfield.inputs import checked as checked_data
from meanfield.newton import maximise
from meanfield.quadrature import Average, HiddenLayer, elsewhere, gaussian_rule, hidden_layer, jackknife, smoothed, span
from meanfield.rejection import levels, lifted, rejection
from meanfield.units import Unit

Array = npt.NDArray[Any]

FARTHEST = 38.0  # standard deviations at which a normal tail leaves double precision
BISECTIONS = 60
LAST_DRAW = 1  # of the nodes on which the law is measured


@dataclass(frozen=True, eq=False)
class Teacher:
    """The law (mu + c . psi)_+ p0 / mass on neurons, with what quadrature says of it.

    Attributes
    ----------
    unit : Unit
    x : ndarray, shape (n, d)
        The inputs whose outputs were asked for.
    y : ndarray, shape (n,)
    alpha : float
    mu : float
    coefficients : ndarray, shape (n,)
        c.
    layer : HiddenLayer
        The nodes on which it is measured; mu and c do not come from them.
    """

    unit: Unit
    x: Array
    y: Array
    alpha: float
    mu: float
    coefficients: Array
    layer: HiddenLayer

    @cached_property
    def chi_square(self) -> Estimate:
        """The value chi^2 = E rho^2 / mass^2 - 1 of this law, whose outputs are `prediction`."""
        return self._estimate(lambda mass, _, square: square / mass**2 - 1)

    @cached_property
    def dual(self) -> Estimate:
        """The value 2 F, a lower bound on the least chi^2 of a law with outputs y, up to its error."""
        linear = self.mu + self.coefficients @ self.y / self.alpha
        return self._estimate(lambda mass, _, square: 2 * linear - square - 1)

    @cached_property
    def prediction(self) -> Average:
        """The outputs alpha E psi at the inputs, each with its error, shape (n,)."""
        mass, slope, _ = self._averages
        return jackknife(lambda m, s: self.alpha * s / m, mass, slope)

    def predict(self, x: npt.ArrayLike) -> Average:
        """Return the outputs at other inputs x (q, d), each with its error, shape (q,): labels for test points."""
        h, c = self.unit.h, self.coefficients
        there = elsewhere(h, self._inputs, self.unit.inputs(np.atleast_2d(np.asarray(x, dtype=np.float64))))

        def block(points: Array, hidden: Array, weights: Array) -> tuple[Array]:
            g = hidden @ c
            return ((weights * g * _tails(self.mu, g)[2]) @ smoothed(h, points @ there.along.T, there.width),)

        slope = c @ there.kernel - self.layer.averages(block)[0]
        return jackknife(lambda m, s: self.alpha * s / m, self._averages[0], slope)

    def log_density_ratio(self, z: Array) -> Array:
        """Return log of the density of the law over that of p0 at points z (m, D), -inf where it vanishes: (m,)."""
        z = np.atleast_2d(np.asarray(z, dtype=np.float64))
        rho = self.mu + z[:, -1] * (self.unit.h.value(z[:, :-1] @ self._inputs.T) @ self.coefficients)
        out = np.full(len(z), -np.inf)
        out[rho > 0] = np.log(rho[rho > 0] / self._averages[0].mean())
        return out

    def sample(self, m: int, seed: int = 0) -> Array:
        """Return m independent samples z (m, D), a function of the seed; `rejection.rejection` says what may fail."""
        basis, x = span(self._inputs)

        def log_ratio(points: Array, h: Array | None = None) -> Array:
            h = self.unit.h.value(points @ x.T) if h is None else h
            return np.log(np.maximum(_mass(self.mu, h @ self.coefficients), np.finfo(np.float64).tiny))

        theta, _ = rejection(
            log_ratio, np.eye(len(basis)), m, seed=seed, bound=float(self.layer.at_nodes(log_ratio).max())
        )
        z = lifted(theta, basis, seed)
        z[:, -1] = _outer(self.mu, self.unit.h.value(theta @ x.T) @ self.coefficients, levels(seed, m))
        return z

    @property
    def _inputs(self) -> Array:
        return self.unit.inputs(self.x)

    @cached_property
    def _averages(self) -> tuple[Array, Array, Array]:
        mass, slope, square, _ = _moments(self.layer, self.mu, self.coefficients)
        return mass, slope, square

    def _estimate(self, function: Callable[..., Array]) -> Estimate:
        found = jackknife(function, *self._averages)
        return Estimate(float(found.value), float(found.se), self.layer.rule.kind)


def least_chi_square(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    unit: Unit | str,
    *,
    alpha: float = 1.0,
    nodes: int | None = None,
    seed: int = 0,
) -> Teacher:
    """Return the law of least chi^2(p || p0) whose outputs alpha E_p psi(x_i) are y_i.

    Parameters
    ----------
    x : ndarray, shape (n, d)
        Inputs; those of training and test together if both are to have labels of one teacher.
    y : ndarray, shape (n,)
        What it must give there, for instance +-1.
    unit : Unit or str
    alpha : float
        1 in Theorem 4.5; another one gives the chi^2 that bounds KL of an interpolating law at that alpha.
    nodes, seed
        As in `quadrature.gaussian_rule`.

    Raises
    ------
    InputError
        If shapes or numbers make no sense.
    DivergedError
        If no law has these outputs: equal or opposite inputs with labels that do not agree.

    Notes
    -----
    O(nodes n^2) a Newton step, of which there are about 10. The question is that of [CCGZ20], Theorem 4.5.
    """
    x, y = checked_data(x, y)
    if not (isinstance(alpha, int | float | np.number) and np.isfinite(alpha) and alpha > 0):
        raise InputError(f"alpha must be a positive number, got {alpha!r}.")
    unit = unit if isinstance(unit, Unit) else Unit(unit)
    coordinates = span(unit.inputs(x))[1]
    kernel = ntk.gram_parts(unit.h, coordinates)[0]

    def layer(draw: int) -> HiddenLayer:
        rule = gaussian_rule(coordinates.shape[1], nodes, seed=seed, draw=draw)
        return hidden_layer(rule, unit.h, coordinates, kernel)

    start = np.zeros(len(y) + 1)
    start[0] = 1.0
    fitted = layer(0)
    point = maximise(lambda at: _dual(fitted, at, y / alpha), start).point
    return Teacher(unit, x, y, float(alpha), float(point[0]), point[1:], layer(LAST_DRAW))


def _dual(layer: HiddenLayer, point: Array, target: Array) -> tuple[float, Array, Array]:
    """Return F, its gradient and its Hessian in (mu, c)."""
    mu, c = float(point[0]), point[1:]
    mass, slope, square, bend = (part.mean(axis=0) for part in _moments(layer, mu, c, curvature=True))
    value = float(mu + c @ target - 0.5 * square - 0.5)
    return value, np.concatenate([[1 - mass], target - slope]), -bend


def _moments(layer: HiddenLayer, mu: float, c: Array, *, curvature: bool = False) -> tuple[Array, Array, Array, Array]:
    """Return E rho, E rho psi, E rho^2 and, if asked, E 1{rho > 0} (1, psi)(1, psi)'; copies on every first axis."""
    q = len(c) if curvature else 0

    def block(_: Array, h: Array, weights: Array) -> tuple[Array, ...]:
        g = h @ c
        size, density, tail = _tails(mu, g)
        s = _ratio(mu, size)
        few = h[:, :q]
        lowest = np.empty((q + 1, q + 1))
        lowest[0, 0] = weights @ tail
        lowest[0, 1:] = lowest[1:, 0] = -(weights * np.sign(g) * density) @ few
        lowest[1:, 1:] = (few.T * (weights * (tail + s * density))) @ few
        return (
            weights @ (size * density - mu * tail),
            (weights * g * tail) @ h,
            weights @ ((mu * mu + g * g) * tail - mu * size * density),
            lowest,
        )

    minus, push, square, lowest = layer.averages(block)
    kernel = layer.kernel @ c
    whole = np.eye(q + 1)
    whole[1:, 1:] = layer.kernel[:q, :q]
    return mu + minus, kernel - push, mu * mu + c @ kernel - square, whole - lowest


def _tails(mu: float, g: Array) -> tuple[Array, Array, Array]:
    """Return |g|, phi(s) and Phi(-s) at s = mu / |g|."""
    from scipy.special import ndtr

    size = np.abs(g)
    s = _ratio(mu, size)
    return size, np.exp(-0.5 * s * s) / np.sqrt(2 * np.pi), ndtr(-s)


def _ratio(mu: float, size: Array) -> Array:
    """Return mu / size, kept within what a normal tail can tell."""
    return np.clip(mu / np.maximum(size, max(abs(mu) / (2 * FARTHEST), np.finfo(np.float64).tiny)), -FARTHEST, FARTHEST)


def _mass(mu: float, g: Array) -> Array:
    """Return E_u (mu + g u)_+."""
    size, density, tail = _tails(mu, g)
    return mu + size * density - mu * tail


def _outer(mu: float, g: Array, uniform: Array) -> Array:
    """Return u of density (mu + g u)_+ phi(u) / mass, by bisection of v = sign(g) u in its distribution function.

    P(V > v) = (s Phi(-v) + phi(v)) / (s Phi(s) + phi(s)) for v >= -s.
    """
    from scipy.special import ndtr

    s = _ratio(mu, np.abs(g))

    def above(v: Array) -> Array:
        return s * ndtr(-v) + np.exp(-0.5 * v * v) / np.sqrt(2 * np.pi)

    level = uniform * above(-s)
    low, high = np.maximum(-s, -FARTHEST), np.maximum(-s, 0.0) + FARTHEST
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        higher = above(middle) > level
        low, high = np.where(higher, middle, low), np.where(higher, high, middle)
    return np.where(g < 0, -1.0, 1.0) * 0.5 * (low + high)
