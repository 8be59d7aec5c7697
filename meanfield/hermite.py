r"""The limit equation for one input by a Hermite-Galerkin expansion of p / p0, both layers trained or one of them.

    p / p0 = sum_kl C_kl he_k(theta) he_l(u),   he_k the Hermite polynomials normalised under N(0, 1)
    dC_kl/dt = -lam (k + l) C_kl + sum_i c_i E_p0[(p / p0) grad psi_i . grad(he_k he_l)],   c = -(2 alpha / n) r

Every moment is linear in C: f_i = alpha sum_k a_ik C_k1 with a_ik = E h_i he_k, and e_i = -sum_k (k + 1) a_ik C_k1. For
analytic h the coefficients fall exponentially; mass is exact (C_00 = 1), positivity is not kept (`Reading.lowest`).
The stiff part of the equation, decay and the rank n part -kappa G a' of the feedback through r, is inverted exactly
(Woodbury) by the integrator of `extrapolation`, so that steps do not shrink like alpha^-2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np

from meanfield import extrapolation
from meanfield.errors import DivergedError, InputError
from meanfield.ntk import largest_eigenvalue
from meanfield.risk import Risk
from meanfield.solution import Moved, Reading

Array = np.ndarray
# Integrals over theta are trapezoidal sums over |theta| <= 2 sqrt(modes) + MARGIN, SPACING apart for |x| <= 1.
MARGIN, SPACING = 8.0, 0.03
# Integrals of log p: over the square |theta|, |u| <= EDGE; beyond it p0 has a mass of 1e-17.
EDGE, EDGE_SPACING = 8.5, 0.1
# p / p0 is looked at for its smallest value where |z| is at most this: outside, p0 has a mass of 4e-6.
LOOKED_AT = 5.0
# Below this the root-weighted density is rounding, and 1 / p of the Fisher information noise.
ROUNDING = 1e-14
# Norm of p / p0 in L2(p0), the root of 1 + chi^2, beyond which the expansion has failed.
LARGEST = 1e4
# Outermost modes whose size is the tail; the parity of odd activations empties every other one.
OUTERMOST = 4


def hermite_functions(modes: int, points: Array) -> Array:
    """Return he_k(z) p0(z)^(1/2) for k < modes at the points, shape (modes, len(points)); nothing overflows."""
    table = np.empty((modes, len(points)))
    table[0] = np.exp(-0.25 * points**2) / (2 * math.pi) ** 0.25
    if modes > 1:
        table[1] = points * table[0]
    for k in range(1, modes - 1):
        table[k + 1] = (points * table[k] - math.sqrt(k) * table[k - 1]) / math.sqrt(k + 1)
    return table


def lowered(table: Array) -> Array:
    """Return the table of derivatives, he_k' = sqrt(k) he_(k-1), weighted as the table is."""
    out = np.zeros_like(table)
    out[1:] = np.sqrt(np.arange(1, len(table)))[:, None] * table[:-1]
    return out


class Features(NamedTuple):
    """What the activation looks like among Hermite polynomials.

    `drift` (n, N, 2 N) maps (u C, C d/du) to the drift of C; `values` (n, N) are E h_i he_k. On q nodes in theta: h_i
    and x_i h'_i, shapes (n, q), and the weights of E[. he_k], shape (N, q).
    """

    drift: Array
    values: Array
    h: Array
    slopes: Array
    weights: Array


def features(risk: Risk, modes: int, train: str) -> Features:
    """Return the integrals over theta; the sums are exact to rounding for activations analytic near the line."""
    x = risk.inputs[:, 0]
    reach = 2 * math.sqrt(modes) + MARGIN
    count = 2 * math.ceil(reach * max(1.0, float(np.abs(x).max())) / SPACING) + 1
    theta = np.linspace(-reach, reach, count)
    table = hermite_functions(modes, theta) * math.sqrt(theta[1] - theta[0])
    slope = lowered(table)
    h, h1 = risk.unit.h.value_and_first(np.outer(x, theta))
    h1 = h1 * x[:, None]
    drift = np.zeros((risk.n, modes, 2 * modes))
    for i in range(risk.n):
        if train != "u":
            drift[i, :, :modes] = (slope * h1[i]) @ table.T
        if train != "theta":
            drift[i, :, modes:] = (table * h[i]) @ table.T
    first = table[0] * table
    _check_parts(risk, h @ first.T, h1 @ first.T)
    return Features(drift, h @ first.T, h, h1, first)


def _check_parts(risk: Risk, values: Array, slopes: Array) -> None:
    """Refuse an activation whose sums over theta don't obey sqrt(k) E h he_k = x E h' he_(k-1): one with a kink."""
    gap = np.abs(np.sqrt(np.arange(1, values.shape[1])) * values[:, 1:] - slopes[:, :-1]).max()
    if not gap <= 1e-8 * np.abs(slopes).max():
        raise InputError(
            f"{risk.unit.h.name} is not smooth enough for Hermite polynomials (integration by parts is {gap:.1g} off); "
            "finite volumes take it: fokker_planck.volumes(risk, lam, times)."
        )


@dataclass(frozen=True)
class Hermite:
    """The spectral solver; see the module.

    Attributes
    ----------
    risk : Risk
        One input, the square loss.
    lam : float
    modes : (int, int)
        Polynomials in theta and in u.
    tolerance : float
        Relative error of a time step in the norm of L2(p0).
    train : str
        "both", "u" or "theta"; what is not trained keeps its law N(0, 1).
    """

    risk: Risk
    lam: float
    modes: tuple[int, int]
    tolerance: float = 1e-10
    train: str = "both"
    sharpest: ClassVar[float] = 1e-12

    @cached_property
    def features(self) -> Features:
        """The integrals over theta."""
        return features(self.risk, self.modes[0], self.train)

    @cached_property
    def degree(self) -> Array:
        """Degrees k + l over what is trained, shape `modes`."""
        theta, u = (np.arange(count, dtype=np.float64) for count in self.modes)
        return np.add.outer(theta * (self.train != "u"), u * (self.train != "theta"))

    @cached_property
    def generator_values(self) -> Array:
        """E[A psi_i he_k he_1] = -(k + 1) a_ik over what is trained, shape (n, N)."""
        return -self.degree[:, 1] * self.features.values

    def start(self) -> Array:
        """Return the coefficients of p0."""
        state = np.zeros(self.modes)
        state[0, 0] = 1.0
        return state

    # The equation -------------------------------------------------------------------------------------------------

    def prediction(self, state: Array) -> Array:
        """Return f, shape (n,)."""
        return self.risk.alpha * self.features.values @ state[:, 1]

    def _pushed(self, state: Array) -> Array:
        """Return (u C, C d/du): u p / p0 and the transpose of d/du, one above the other."""
        root = np.sqrt(np.arange(1, self.modes[1]))
        out = np.zeros((2 * self.modes[0], self.modes[1]))
        lower, upper = out[self.modes[0] :], out[: self.modes[0]]
        lower[:, 1:] = root * state[:, :-1]
        upper[:] = lower
        upper[:, :-1] += root * state[:, 1:]
        return out

    def rate(self, state: Array) -> Array:
        """Return dC/dt."""
        c = self.risk.coefficients(self.prediction(state) - self.risk.y)
        return -self.lam * self.degree * state + np.tensordot(c, self.features.drift, 1) @ self._pushed(state)

    def implicit(self, state: Array) -> Callable[[float], extrapolation.Solver]:
        """Return what solves (I - tau J) x = b, J = -lam (k + l) - kappa sum_i G_i a_i', G_i the drift along psi_i."""
        values, n = self.features.values, self.risk.n
        push = self.features.drift @ self._pushed(state)

        def at(tau: float) -> extrapolation.Solver:
            diagonal = 1 / (1 + tau * self.lam * self.degree)
            columns = tau * self.risk.kappa * push * diagonal
            small = np.linalg.inv(np.eye(n) + values @ columns[:, :, 1].T)

            def solve(b: Array) -> Array:
                x = diagonal * b
                return x - np.tensordot(small @ (values @ x[:, 1]), columns, 1)

            return solve

        return at

    def advance(self, state: Array, duration: float, tolerance: float | None = None) -> Moved:
        """Return the coefficients after `duration`."""
        stiffness = self.lam + self.risk.kappa * largest_eigenvalue(self.gram(state))
        step = min(duration, 0.1 / stiffness)
        system = extrapolation.System(self.rate, self.implicit)
        tolerance = self.tolerance if tolerance is None else tolerance
        try:
            moved = extrapolation.advance(system, state, duration, step=step, tolerance=tolerance, largest=LARGEST)
        except DivergedError as error:
            raise DivergedError(
                f"p / p0 leaves L2(p0) or what {self.modes} modes hold of it: {error} Take finite volumes, "
                "fokker_planck.volumes(risk, lam, times), a larger lam, or more modes."
            ) from error
        return Moved(moved)

    # Readings -----------------------------------------------------------------------------------------------------

    def gram(self, state: Array) -> Array:
        """Return H, shape (n, n), over what is trained."""
        square = state[:, 0] + math.sqrt(2) * state[:, 2]
        gram = np.zeros((self.risk.n, self.risk.n))
        if self.train != "theta":
            gram += (self.features.h * (state[:, 0] @ self.features.weights)) @ self.features.h.T
        if self.train != "u":
            gram += (self.features.slopes * (square @ self.features.weights)) @ self.features.slopes.T
        return gram

    def read(self, state: Array) -> Reading:
        """Return what is read of the coefficients."""
        kl, fisher, lowest = self._integrals(state)
        mean = np.array([state[1, 0], state[0, 1]])
        square = np.array(
            [[1 + math.sqrt(2) * state[2, 0], state[1, 1]], [state[1, 1], 1 + math.sqrt(2) * state[0, 2]]]
        )
        outer = max(np.linalg.norm(state[-OUTERMOST:]), np.linalg.norm(state[:, -OUTERMOST:]))
        return Reading(
            self.prediction(state), kl, fisher, mean, square - np.outer(mean, mean), self.gram(state),
            self.generator_values @ state[:, 1], lowest, float(outer),
        )  # fmt: skip

    @cached_property
    def _grid(self) -> tuple[Array, Array, Array]:
        """Nodes of the integrals of log p, and the tables of Hermite functions in theta and u there."""
        nodes = np.linspace(-EDGE, EDGE, 2 * round(EDGE / EDGE_SPACING) + 1)
        return nodes, hermite_functions(self.modes[0], nodes), hermite_functions(self.modes[1], nodes)

    def _integrals(self, state: Array) -> tuple[float, float, float]:
        """Return KL = E_p0[rho log rho], I = E_p0[|grad rho|^2 / rho] and the smallest rho, rho = p / p0."""
        nodes, theta, u = self._grid
        base = np.exp(-0.25 * nodes**2) / (2 * math.pi) ** 0.25
        root = np.outer(base, base)
        weight = (nodes[1] - nodes[0]) ** 2 * root
        rooted = theta.T @ state @ u
        seen = rooted > ROUNDING
        positive = np.where(seen, rooted, 1.0)
        kl = (weight * np.where(seen, rooted * np.log(positive / root), 0.0)).sum()
        square = np.zeros_like(rooted)
        if self.train != "u":
            square += (lowered(theta).T @ state @ u) ** 2
        if self.train != "theta":
            square += (theta.T @ state @ lowered(u)) ** 2
        fisher = (weight * np.where(seen, square / positive, 0.0)).sum()
        near = np.add.outer(nodes**2, nodes**2) <= LOOKED_AT**2
        return float(kl), float(fisher), float((rooted / root)[near].min())

    def density(self, state: Array, theta: Array, u: Array) -> Array:
        """Return p at points, arrays of one shape."""
        left, right = hermite_functions(self.modes[0], theta.ravel()), hermite_functions(self.modes[1], u.ravel())
        rooted = np.einsum("kp,kp->p", left, state @ right)
        return (rooted * np.exp(-0.25 * (theta.ravel() ** 2 + u.ravel() ** 2)) / math.sqrt(2 * math.pi)).reshape(
            theta.shape
        )
