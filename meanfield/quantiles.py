r"""Minimising movements in one dimension [JKO98]: p_(k+1) = argmin Q(p) + W2^2(p, p_k) / (2 eta), by quantiles.

A law of theta on the line, with one fixed output weight u, is its quantiles X_1 < ... < X_m of mass 1/m each. There W2
is the Euclidean distance, and the entropy is a sum over spacings:

    W2^2 = (1/m) |X - Y|^2,     KL = (1/m) sum X_j^2 / 2 - (1/m) sum_{j<m} log(X_(j+1) - X_j) - least
    f_i = alpha u (1/m) sum_j h(x_i X_j)

A movement is the implicit Euler step of the gradient flow of Q in X: of first order in eta, Q falls whatever eta is,
and quantiles never cross. It starts from the quantiles that minimise KL, where KL is 0: what spacings leave out in the
tails is much the same at all times, and is taken off with `least`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from meanfield.errors import DivergedError, InputError
from meanfield.risk import Risk
from meanfield.solution import check_problem

Array = np.ndarray
# Newton stops at moves of this rms size; in their neighbourhood rounding of Q no longer judges a move.
ACCURACY, TRUSTED, MOST_MOVES = 1e-12, 1e-6, 200


class Movement(NamedTuple):
    """Minimising movements; K + 1 times from 0.

    `quantiles` has shape (K + 1, m), `prediction` (K + 1, n); `loss`, `kl`, `energy` (K + 1,). `w2`, of the same shape,
    is the distance of the quantiles from those of the start.
    """

    times: Array
    quantiles: Array
    prediction: Array
    loss: Array
    kl: Array
    energy: Array
    w2: Array


@dataclass(frozen=True)
class Functional:
    """Q of m quantiles, its gradient and its curvature, all times m; `scale` 0 leaves the loss out."""

    risk: Risk
    lam: float
    u: float
    scale: float = 1.0

    def prediction(self, X: Array) -> Array:
        """Return f, shape (n,)."""
        h = self.risk.unit.h.value(np.outer(self.risk.inputs[:, 0], X))
        return self.risk.alpha * self.u * h.mean(axis=1)

    def loss(self, X: Array) -> float:
        """Return L."""
        return float(((self.prediction(X) - self.risk.y) ** 2).mean())

    def value(self, X: Array) -> float:
        """Return Q up to a constant."""
        return self.scale * self.loss(X) + self.lam * kl(X)

    def derivatives(self, X: Array) -> tuple[Array, Array, Array, Array]:
        """Return the gradient, the diagonal and the neighbours' part of the Hessian, and vectors V: V'V is its rest."""
        x, m = self.risk.inputs[:, 0], len(X)
        _, h1, h2, _ = self.risk.unit.h.jet(np.outer(x, X))
        c = -self.scale * self.u * self.risk.coefficients(self.prediction(X) - self.risk.y)
        inverse = 1 / np.diff(X)
        gradient = (c * x) @ h1 + self.lam * (X - np.append(0.0, inverse) + np.append(inverse, 0.0))
        square = self.lam * inverse**2
        curvature = (c * x**2) @ h2
        diagonal = curvature + self.lam + np.append(0.0, square) + np.append(square, 0.0)
        spread = math.sqrt(self.scale * self.risk.kappa / m) * self.u * x[:, None] * h1
        return gradient, diagonal, -square, spread


def kl(X: Array) -> float:
    """Return KL(p || N(0, 1)) of quantiles up to a constant, the entropy through spacings."""
    return 0.5 * float((X**2).mean()) - float(np.log(np.diff(X)).sum()) / len(X)


def proximal(risk: Risk, lam: float, eta: float, steps: int, *, u: float = 1.0, m: int = 400) -> Movement:
    """Make minimising movements from p0 on the line of theta, with the output weight u fixed [JKO98].

    Parameters
    ----------
    risk : Risk
        One input, no bias, the square loss; h twice differentiable.
    lam : float
        Strength of noise and decay.
    eta : float
        Length of a movement in the time of (3.4).
    steps : int
        How many.
    u : float
        The output weight of all neurons.
    m : int
        Number of quantiles.

    Returns
    -------
    Movement

    Raises
    ------
    InputError
        For another problem.
    DivergedError
        If Newton's method does not find a minimum (eta far above 1 / |V''| of the potential V).

    Notes
    -----
    First order in eta and in 1 / m. O(m n^2) a Newton move, of which a step needs about four.
    """
    check_problem(risk, lam, "theta")
    _check_numbers(eta, steps, u, m)
    functional = Functional(risk, float(lam), float(u))
    X = minimum(Functional(risk, float(lam), float(u), scale=0.0), _normal_quantiles(int(m)), math.inf)
    path = [X]
    for _ in range(int(steps)):
        path.append(minimum(functional, path[-1], float(eta)))
    quantiles = np.array(path)
    prediction = np.array([functional.prediction(X) for X in path])
    loss = ((prediction - risk.y) ** 2).mean(axis=1)
    divergence = np.array([kl(X) for X in path]) - kl(path[0])
    w2 = np.sqrt(((quantiles - quantiles[0]) ** 2).mean(axis=1))
    return Movement(eta * np.arange(len(path)), quantiles, prediction, loss, divergence, loss + lam * divergence, w2)


def minimum(functional: Functional, anchor: Array, eta: float) -> Array:
    """Return argmin Q(X) + |X - anchor|^2 / (2 eta m), by Newton's method with backtracking from the anchor."""

    def value(Y: Array) -> float:
        return functional.value(Y) + 0.5 * float(((Y - anchor) ** 2).mean()) / eta

    X = anchor
    for _ in range(MOST_MOVES):
        gradient, move = _newton(functional, X, anchor, eta)
        size = float(np.sqrt((move**2).mean()))
        share, here = 1.0, value(X)
        while (np.diff(X + share * move) <= 0).any() or (
            size > TRUSTED and value(X + share * move) > here + 1e-4 * share * float((gradient * move).mean())
        ):
            share *= 0.5
            if share < 1e-12:
                raise DivergedError("a proximal step found no way down; make eta smaller.")
        X = X + share * move
        if share == 1.0 and size < ACCURACY * (1 + float(np.abs(X).max())):
            return X
    raise DivergedError(f"a proximal step found no minimum in {MOST_MOVES} moves; make eta smaller.")


def _newton(functional: Functional, X: Array, anchor: Array, eta: float) -> tuple[Array, Array]:
    """Return the gradient and -Hessian^-1 gradient, both times m; negative curvature is cut so that it leads down."""
    from scipy.linalg import solveh_banded

    gradient, diagonal, neighbours, spread = functional.derivatives(X)
    gradient = gradient + (X - anchor) / eta
    least = -np.append(0.0, neighbours) - np.append(neighbours, 0.0) + 0.5 * (functional.lam + 1 / eta)
    bands = np.array([np.append(0.0, neighbours), np.maximum(diagonal + 1 / eta, least)])
    solved = solveh_banded(bands, np.column_stack([gradient, spread.T]))
    along, columns = solved[:, 0], solved[:, 1:]
    inner = np.linalg.solve(np.eye(len(spread)) + spread @ columns, spread @ along)
    return gradient, columns @ inner - along


def _normal_quantiles(m: int) -> Array:
    from scipy.special import ndtri

    return ndtri((np.arange(m) + 0.5) / m)


def _check_numbers(eta: float, steps: int, u: float, m: int) -> None:
    if not (np.isfinite(eta) and eta > 0):
        raise InputError(f"eta, the length of a movement, must be positive and finite, got {eta!r}.")
    if not (isinstance(steps, int | np.integer) and steps >= 1):
        raise InputError(f"steps is a whole number of movements, at least 1; got {steps!r}.")
    if not np.isfinite(u):
        raise InputError(f"u, the output weight, must be finite, got {u!r}.")
    if not (isinstance(m, int | np.integer) and m >= 8):
        raise InputError(f"m is a whole number of quantiles, at least 8; got {m!r}.")
