"""Solutions of the equation (3.4) that stay in a family of few numbers, to the last digits: what runs are judged by.

*Gaussian closure*, h(w) = w, both layers trained: the drift is linear in z given f, so that the law stays N(0, S),

    S' = -(lam I + B) S - S (lam I + B) + 2 lam I,   B = [[0, v], [v', 0]],   v = (2 alpha / n) X' r,   S(0) = I,

with f = alpha X S_theta_u. For any loss; r is half its slope in f.

*Frozen features*, u alone trained, square loss: u | theta ~ N(a . h(w), 1),

    a' = -(2 alpha / n) r - lam a,   f = alpha K2 a,   K2 = E h h',   a(0) = 0,

linear, and solved by the eigenvectors of K2. W2 lies between Gelbrich's bound at the exact moments and the cost
a' K2 a of the coupling that moves u alone.

Either way every term of the identities is known: e, B = E|b|^2, S = (2 alpha / n) r . e and the Fisher information I.
With frozen features I is that of u given theta, which is what the equation without noise in theta dissipates.

Read next: `gibbs` for where these solutions end, `fokker_planck` for solutions on grids.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield import ntk, parallel
from meanfield.entropy import gaussian_kl
from meanfield.errors import DivergedError, InputError
from meanfield.quadrature import span
from meanfield.risk import Risk
from meanfield.transport import gelbrich

Array = npt.NDArray[Any]

RELATIVE, ABSOLUTE = 1e-11, 1e-13  # of the solver of the Gaussian closure
NODES, REACH = 400, 12.5  # of the rule for means over one normal variable, on each side of 0
STIFF = 1e3  # kappa lambda_max(H) times the length of time beyond which the solver is implicit


@dataclass(frozen=True, eq=False)
class Closure:
    """A solution at times t_k, k = 1 .. K, with everything the identities speak of.

    Attributes
    ----------
    risk : Risk
    lam : float
    train : str
        "both" (Gaussian closure) or "u" (frozen features).
    time : ndarray, shape (K,)
        Times of equation (3.4) of [CCGZ20].
    prediction : ndarray, shape (K, n)
        f.
    covariance : ndarray, shape (K, D, D)
        E z z'; the mean is zero for the Gaussian closure.
    mean : ndarray, shape (K, D)
    kl : ndarray, shape (K,)
        KL(p_t || p0) in nats.
    w2_lower, w2_upper : ndarray, shape (K,)
        Bounds on W2(p_t, p0), equal where it is known.
    gram : ndarray, shape (K, n, n)
        H over the trained coordinates.
    generator : ndarray, shape (K, n)
        e.
    fisher : ndarray, shape (K,)
        I = E|grad log(p / p0)|^2 over the trained coordinates.
    """

    risk: Risk
    lam: float
    train: str
    time: Array
    prediction: Array
    covariance: Array
    mean: Array
    kl: Array
    w2_lower: Array
    w2_upper: Array
    gram: Array
    generator: Array
    fisher: Array

    @property
    def loss(self) -> Array:
        """The loss L, shape (K,)."""
        return self.risk.losses(self.prediction).mean(axis=1)

    @property
    def residual(self) -> Array:
        """The residual r, half the slope of the loss, shape (K, n)."""
        return np.array([self.risk.residual(f) for f in self.prediction])

    @property
    def energy(self) -> Array:
        """The energy Q = L + lam KL, which falls, shape (K,)."""
        return self.loss + self.lam * self.kl

    @property
    def drift_square(self) -> Array:
        """B = E|b|^2 = (4 alpha^2 / n^2) r' H r, shape (K,)."""
        factor = (2 * self.risk.alpha / self.risk.n) ** 2
        return factor * np.einsum("ki,kij,kj->k", self.residual, self.gram, self.residual)

    @property
    def source(self) -> Array:
        """S = (2 alpha / n) r . e, of dKL/dt = -lam I + S (I3), shape (K,)."""
        return (2 * self.risk.alpha / self.risk.n) * np.einsum("ki,ki->k", self.residual, self.generator)

    @property
    def dissipation(self) -> Array:
        """B - 2 lam S + lam^2 I = -dQ/dt (I4), shape (K,)."""
        return self.drift_square - 2 * self.lam * self.source + self.lam**2 * self.fisher

    @cached_property
    def eigenvalue_min(self) -> Array:
        """The smallest eigenvalue of H, shape (K,)."""
        return np.linalg.eigvalsh(self.gram)[:, 0]


def gaussian_closure(risk: Risk, lam: float, time: npt.ArrayLike) -> Closure:
    """Return the solution of a bilinear network, h(w) = w, both layers trained.

    The covariance is integrated to 1e-11 in the span of the inputs; across it theta stays N(0, I). W2 is that of
    Gaussians (Bures), KL and I are closed forms of S, and e = -2 f / alpha.

    Parameters
    ----------
    risk : Risk
        With the unit "linear", any loss.
    lam : float
        Not negative.
    time : ndarray, shape (K,)
        Increasing, not negative.

    Returns
    -------
    Closure

    Raises
    ------
    InputError
        If the activation is another one, or a number makes no sense.

    Notes
    -----
    O(K (n^2 d + d^3)) and the solver's steps, each O(k^3), k the rank of the inputs: a second at D = 21.
    """
    times = _checked(risk, lam, time)
    if risk.unit.h.name != "linear":
        raise InputError(f"the law stays Gaussian for Unit('linear'), not for '{risk.unit.h.name}'.")
    basis, x = span(risk.inputs)
    inner = _covariances(risk, float(lam), x, times)
    D, k = risk.inputs.shape[1] + 1, len(basis)
    lift = np.zeros((k + 1, D))
    lift[:k, :-1], lift[k, -1] = basis, 1.0
    S = np.eye(D) + lift.T @ (inner - np.eye(k + 1)) @ lift
    f = risk.alpha * S[:, -1, :-1] @ risk.inputs.T
    w2 = np.sqrt([gelbrich(np.zeros(D), s) for s in S])
    gram = S[:, -1:, -1:] * (risk.inputs @ risk.inputs.T) + risk.inputs @ S[:, :-1, :-1] @ risk.inputs.T
    return Closure(
        risk, float(lam), "both", times, f, S, np.zeros((len(times), D)),
        np.array([gaussian_kl(np.zeros(D), s) for s in S]), w2, w2, gram, -2 * f / risk.alpha,
        np.array([np.trace(s) - 2 * D + np.trace(np.linalg.inv(s)) for s in S]),
    )  # fmt: skip


class _Moments:
    """The ordinary differential equation of S in the span of the inputs, for its upper triangle."""

    def __init__(self, risk: Risk, lam: float, x: Array) -> None:
        self.risk, self.lam, self.x, self.size = risk, lam, x, x.shape[1] + 1
        self.upper = np.triu_indices(self.size)
        self.pull = 2 * risk.alpha / risk.n * x.T
        place = np.zeros((self.size, self.size), dtype=int)
        place[self.upper] = np.arange(len(self.upper[0]))
        self.place = np.maximum(place, place.T)
        self.copies = np.eye(len(self.upper[0]))[self.place.ravel()]  # of the triangle in the whole matrix

    def matrix(self, flat: Array) -> Array:
        """Return S of its upper triangle."""
        return flat[self.place]

    def field(self, f: Array) -> Array:
        """Return lam I + B at predictions f."""
        A = self.lam * np.eye(self.size)
        A[:-1, -1] = A[-1, :-1] = self.pull @ self.risk.residual(f)
        return A

    def rate(self, _: float, flat: Array) -> Array:
        """Return S'."""
        S = self.matrix(flat)
        moved = self.field(self.risk.alpha * self.x @ S[:-1, -1]) @ S
        return (2 * self.lam * np.eye(self.size) - moved - moved.T)[self.upper]

    def jacobian(self, _: float, flat: Array) -> Array:
        """Return the derivative of S' along every entry of the upper triangle."""
        S, one = self.matrix(flat), np.eye(self.size)
        f = self.risk.alpha * self.x @ S[:-1, -1]
        A = self.field(f)
        full = -np.kron(A, one) - np.kron(one, A)
        # B changes with S_theta_u alone.
        slope = self.pull @ (self.risk.curvature(f)[:, None] * self.risk.alpha * self.x)
        for j in range(self.size - 1):
            change = np.zeros_like(A)
            change[:-1, -1] = change[-1, :-1] = slope[:, j]
            moved = change @ S
            full[:, (j + 1) * self.size - 1] -= (moved + moved.T).ravel()
        return full[self.upper[0] * self.size + self.upper[1]] @ self.copies


@parallel.serial_blas  # small matrices, and bits that no thread count changes
def _covariances(risk: Risk, lam: float, x: Array, times: Array) -> Array:
    """Return S in the span of the inputs at the times, shape (K, k + 1, k + 1)."""
    from scipy.integrate import solve_ivp

    moments = _Moments(risk, lam, x)
    start = np.eye(moments.size)[moments.upper]
    speed = risk.kappa * ntk.largest_eigenvalue(2 * x @ x.T)
    stiff = {"method": "LSODA", "jac": moments.jacobian} if speed * times[-1] > STIFF else {"method": "DOP853"}
    found = solve_ivp(
        moments.rate, (0.0, max(times[-1], 1e-300)), start, t_eval=times, rtol=RELATIVE, atol=ABSOLUTE, **stiff
    )
    if not found.success:
        raise DivergedError(f"the covariance could not be integrated to time {times[-1]:g}: {found.message}")
    return np.array([moments.matrix(flat) for flat in found.y.T])


def frozen_closure(risk: Risk, lam: float, time: npt.ArrayLike) -> Closure:
    """Return the solution of a network of which u alone is trained, for any activation.

    a = sum_k v_k (v_k . y) (2 alpha / n)(1 - e^{-s_k t}) / s_k with s_k = (2 alpha^2 / n) mu_k + lam and (mu_k, v_k)
    the eigenpairs of K2; KL = a' K2 a / 2 = I / 2, e = -f / alpha.

    Parameters
    ----------
    risk : Risk
        With the square loss.
    lam : float
        Not negative.
    time : ndarray, shape (K,)
        Increasing, not negative.

    Returns
    -------
    Closure

    Raises
    ------
    InputError
        If the loss is another one, or a number makes no sense. O(n^3 + K (n^2 + n d)).
    """
    times = _checked(risk, lam, time)
    if risk.loss != "square":
        raise InputError("frozen features have a closed form for loss='square' alone.")
    kernel = risk.gram_start(train="u")
    a = _coefficients(risk, float(lam), kernel, times)
    output = a @ kernel
    square = np.einsum("ki,ki->k", a, output)
    zero, first = _theta_means(risk)
    D = risk.inputs.shape[1] + 1
    mean, S = np.zeros((len(times), D)), np.broadcast_to(np.eye(D), (len(times), D, D)).copy()
    mean[:, -1] = a @ zero
    S[:, :-1, -1] = S[:, -1, :-1] = (a * first) @ risk.inputs
    S[:, -1, -1] += square
    lower = [gelbrich(m, s - np.outer(m, m)) for m, s in zip(mean, S, strict=True)]
    return Closure(
        risk, float(lam), "u", times, risk.alpha * output, S, mean, 0.5 * square, np.sqrt(lower), np.sqrt(square),
        np.broadcast_to(kernel, (len(times), *kernel.shape)), -output, square,
    )  # fmt: skip


def _coefficients(risk: Risk, lam: float, kernel: Array, times: Array) -> Array:
    """Return a(t), shape (K, n)."""
    values, vectors = np.linalg.eigh(kernel)
    exponents = (risk.kappa * np.maximum(values, 0.0) + lam) * times[:, None]
    # (1 - e^-x) / x, and its limit 1.
    growth = np.where(exponents > 0, -np.expm1(-exponents) / np.where(exponents > 0, exponents, 1.0), 1.0)
    return (growth * times[:, None] * (2 * risk.alpha / risk.n * (vectors.T @ risk.y))) @ vectors.T


def _theta_means(risk: Risk) -> tuple[Array, Array]:
    """Return E h(w_i) and E h'(w_i) = E h(w_i) xi / |x_i|, w_i = |x_i| xi, by Gauss-Legendre on either side of 0."""
    norms = np.linalg.norm(risk.inputs, axis=1)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half, mass = 0.5 * REACH * (nodes + 1), 0.5 * REACH * weights
    xi = np.concatenate([-half, half])
    mass = np.concatenate([mass, mass]) * np.exp(-0.5 * xi**2) / math.sqrt(2 * math.pi)
    values = risk.unit.h.value(np.outer(norms, xi))
    return values @ mass, (values @ (mass * xi)) / np.where(norms > 0, norms, np.inf)


def _checked(risk: Risk, lam: float, time: npt.ArrayLike) -> Array:
    if not isinstance(risk, Risk):
        raise InputError(f"a closure is that of a Risk, got {type(risk).__name__}.")
    if not (isinstance(lam, int | float | np.number) and math.isfinite(lam) and lam >= 0):
        raise InputError(f"lam must be finite and at least 0, got {lam!r}.")
    times = np.atleast_1d(np.asarray(time, dtype=np.float64))
    if (
        times.ndim != 1
        or not len(times)
        or not (np.isfinite(times).all() and times[0] >= 0 and (np.diff(times) > 0).all())
    ):
        raise InputError("times must be finite, not negative and strictly increasing, shape (K,).")
    return times
