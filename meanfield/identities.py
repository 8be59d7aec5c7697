r"""The identities (I1) to (I5) of equation (3.4), as rates; and their integrals over a recorded series.

With the generator A phi = Laplace phi - z . grad phi, e_i = E_p[A psi_i], H_ij = E_p <grad psi_i, grad psi_j>,

    df/dt  = -kappa H r + alpha lam e                                                              (I1)
    dL/dt  = -B + lam S,   B = E abs(b)^2 = (4 alpha^2 / n^2) r' H r,   S = (2 alpha / n) r . e      (I2)
    dKL/dt = -lam I + S,   I = E_p abs(grad log(p / p0))^2 >= 2 KL, S^2 / B                            (I3)
    dQ/dt  = -(B - 2 lam S + lam^2 I) <= -(B - lam S)^2 / B,   Q = L + lam KL                         (I4)
    d/dt E abs(Z - Zbar)^2 = 2 E[(Z - Zbar) . b] - 2 lam E abs(Z - Zbar)^2                           (I5)

for the gradient flow (3.4) of [CCGZ20], kappa = 2 alpha^2 / n. Derived for this package; the documentation has the
proofs. Everything is a pure function of numbers; numpy alone is needed.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from meanfield.assumptions import Array, not_negative, positive, series, stacked
from meanfield.errors import InputError


def kappa(alpha: float, n: int) -> float:
    """Return kappa = 2 alpha^2 / n of dr/dt = -kappa H r + alpha lam e, from (3.4) of [CCGZ20]."""
    positive(alpha=alpha, n=n)
    return 2.0 * alpha**2 / n


def prediction_rate(H: ArrayLike, r: ArrayLike, e: ArrayLike, *, alpha: float, lam: float) -> Array:
    """Return df/dt = -kappa H r + alpha lam e, shape (n,): identity (I1)."""
    H, r, e = np.asarray(H, dtype=np.float64), np.asarray(r, dtype=np.float64), np.asarray(e, dtype=np.float64)
    return -kappa(alpha, len(r)) * (H @ r) + alpha * lam * e


def drift_square(H: ArrayLike, r: ArrayLike, *, alpha: float) -> float:
    """Return B = (4 alpha^2 / n^2) r' H r, the mean square of the drift b = -(2 alpha / n) sum_i r_i grad psi_i."""
    H, r = np.asarray(H, dtype=np.float64), np.asarray(r, dtype=np.float64)
    return 4 * alpha**2 / len(r) ** 2 * float(r @ H @ r)


def entropy_source(r: ArrayLike, e: ArrayLike, *, alpha: float) -> float:
    """Return S = (2 alpha / n) r . e = E_p[b . grad log(p / p0)], what feeds the relative entropy in (I3)."""
    r, e = np.asarray(r, dtype=np.float64), np.asarray(e, dtype=np.float64)
    return 2 * alpha / len(r) * float(r @ e)


def loss_rate(B: ArrayLike, S: ArrayLike, lam: float) -> Array:
    """Return dL/dt = -B + lam S: identity (I2)."""
    return -np.asarray(B, dtype=np.float64) + lam * np.asarray(S, dtype=np.float64)


def entropy_rate(S: ArrayLike, lam: float, KL: ArrayLike, I: ArrayLike | None = None) -> Array:  # noqa: E741
    """Return S - lam max(I, 2 KL) >= dKL/dt: identity (I3) with the log-Sobolev inequality of N(0, I) [Gross75].

    `I` may be any lower bound on the Fisher information; equality holds for the information itself.
    """
    information = 2.0 * np.asarray(KL, dtype=np.float64)
    if I is not None:
        information = np.maximum(information, np.asarray(I, dtype=np.float64))
    return np.asarray(S, dtype=np.float64) - lam * information


def dissipation(B: ArrayLike, S: ArrayLike, lam: float) -> Array:
    """Return (B - lam S)^2 / B <= -dQ/dt: identity (I4) without the Fisher information.

    -dQ/dt = E abs(b - lam v)^2 with v = grad log(p / p0), E b . v = S; the least value over all v with that product
    is (B - lam S)^2 / B (Cauchy-Schwarz). Zero where B is.
    """
    b, s = np.broadcast_arrays(np.asarray(B, dtype=np.float64), np.asarray(S, dtype=np.float64))
    not_negative(B=b)
    return np.where(b > 0, (b - lam * s) ** 2 / np.where(b > 0, b, 1.0), 0.0)


def distance_rate(pull: ArrayLike, distance: ArrayLike, lam: float) -> Array:
    """Return 2 E[(Z - Zbar) . b] - 2 lam E abs(Z - Zbar)^2: identity (I5), the reference coupled by the same noise."""
    return 2.0 * np.asarray(pull, dtype=np.float64) - 2.0 * lam * np.asarray(distance, dtype=np.float64)


# --- integrals over a recorded series -------------------------------------------------------------


def integral(times: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    """Return int_0^t of recorded values by the trapezoidal rule at every time, and what it may be off by.

    On an interval of length h where the integrand is monotone, rule and integral both lie between h times its two end
    values, hence within h abs(g_1 - g_0) / 2 of each other: the second result is the sum of these. A scheme of first
    order, which moves by a mean of the two rates, is within the same distance.

    Parameters
    ----------
    times : ndarray, shape (K,)
    values : ndarray, shape (..., K)

    Returns
    -------
    integral, slack : ndarray, shape (..., K)
    """
    t, g = stacked(times, values=values)
    h = np.diff(t)
    return _running(0.5 * h * (g[..., 1:] + g[..., :-1])), _running(0.5 * h * np.abs(np.diff(g)))


def entropy_bound(times: ArrayLike, S: ArrayLike, lam: float, KL0: float = 0.0) -> tuple[Array, Array]:
    """Return e^{-2 lam t} KL0 + int_0^t e^{-2 lam (t - s)} S(s) ds >= KL(p_t || p0), and the slack of the rule.

    From dKL/dt <= S - 2 lam KL, (I3) with the log-Sobolev inequality [Gross75]; it needs no account of the steps. S is
    taken linear between the times, and the slack is that of `integral`.

    Parameters
    ----------
    times : ndarray, shape (K,)
    S : ndarray, shape (..., K)
        (2 alpha / n) r . e at the times.
    lam, KL0 : float
        KL0 bounds KL at the first time.

    Returns
    -------
    bound, slack : ndarray, shape (..., K)
    """
    t, source = stacked(times, S=S)
    not_negative(lam=lam, KL0=KL0)
    h = np.diff(t)
    x = 2.0 * lam * h
    small = x < 1e-4
    safe = np.where(small, 1.0, x)
    late = np.where(small, 0.5 - x / 6, (safe + np.expm1(-safe)) / safe**2)
    early = np.where(small, 0.5 - x / 3, -np.expm1(-safe) / safe - late)
    bound, slack = [np.full(source.shape[:-1], float(KL0))], [np.zeros(source.shape[:-1])]
    for k, step in enumerate(h):
        first, last = source[..., k], source[..., k + 1]
        kept = math.exp(-x[k])
        bound.append(kept * bound[-1] + step * (early[k] * first + late[k] * last))
        slack.append(kept * slack[-1] + 0.5 * step * np.abs(last - first))
    return np.stack(bound, axis=-1), np.stack(slack, axis=-1)


def residual_from(times: ArrayLike, H: ArrayLike, e: ArrayLike, r0: ArrayLike, *, alpha: float, lam: float) -> Array:
    """Return r at every time from (I1) with recorded H and e: certificate C3, to be compared with the recorded r.

    r' = -kappa H(t) r + alpha lam e(t) over each interval by the Magnus expansion of fourth order [BlanesCasas09], with
    H and e interpolated by cubics through the four nearest times; stable however stiff kappa H is.

    Parameters
    ----------
    times : ndarray, shape (K,)
    H : ndarray, shape (K, n, n)
    e : ndarray, shape (K, n)
    r0 : ndarray, shape (n,)
        Residual at the first time.
    alpha, lam : float

    Returns
    -------
    ndarray, shape (K, n)
        The error is of fourth order in the intervals; O(K n^3).

    Raises
    ------
    InputError
        On series whose shapes do not fit.
    """
    (t,) = series(times)
    H, e, r = np.asarray(H, dtype=np.float64), np.asarray(e, dtype=np.float64), np.asarray(r0, dtype=np.float64)
    n = len(r)
    if H.shape != (len(t), n, n) or e.shape != (len(t), n):
        raise InputError(f"{len(t)} times and r0 {r.shape} need H (K, n, n) and e (K, n), got {H.shape} and {e.shape}.")
    system = np.zeros((len(t), n + 1, n + 1))
    system[:, :n, :n], system[:, :n, n] = -kappa(alpha, n) * H, alpha * lam * e
    state, out = np.append(r, 1.0), [r]
    for k, h in enumerate(np.diff(t)):
        one, two = (_cubic(t, system, k, t[k] + h * (0.5 + sign * math.sqrt(3) / 6)) for sign in (-1, 1))
        state = _exponential(0.5 * h * (one + two) + math.sqrt(3) / 12 * h * h * (two @ one - one @ two)) @ state
        out.append(state[:n])
    return np.asarray(out)


def _running(pieces: Array) -> Array:
    return np.concatenate([np.zeros((*pieces.shape[:-1], 1)), np.cumsum(pieces, axis=-1)], axis=-1)


def _cubic(t: Array, values: Array, k: int, at: float) -> Array:
    """Return values interpolated at a time of interval k, by Lagrange's polynomial through up to four times."""
    first = min(max(k - 1, 0), max(len(t) - 4, 0))
    near = range(first, min(first + 4, len(t)))
    total = np.zeros_like(values[0])
    for i in near:
        total += values[i] * math.prod((at - t[j]) / (t[i] - t[j]) for j in near if j != i)
    return total


def _exponential(matrix: Array) -> Array:
    """Return exp(matrix) by scaling, a Taylor series of degree 16 and squaring; 1e-15 of the norm of what it is."""
    squarings = max(0, math.ceil(math.log2(max(float(np.abs(matrix).sum(axis=1).max()), 1e-300))) + 2)
    scaled = matrix / 2.0**squarings
    out = np.eye(len(matrix))
    for k in range(16, 0, -1):
        out = np.eye(len(matrix)) + scaled @ out / k
    for _ in range(squarings):
        out = out @ out
    return out
