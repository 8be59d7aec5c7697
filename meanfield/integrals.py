"""Integrals over a recorded series: of a rate and what the rule may be off by, of (I3), and of (I1) for C3.

`identities` has the rates. Pure functions of numbers; numpy alone is needed.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from meanfield.assumptions import Array, not_negative, series, stacked
from meanfield.errors import InputError
from meanfield.identities import kappa


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
