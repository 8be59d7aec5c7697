r"""What can be certified afterwards, from what a run measured: certificates C0 to C5 and loose bounds on KL.

The hypothesis of Theorem 4.4 of [CCGZ20] asks for an alpha beyond any run; these take measured series in place of its
constants. All are explicit (ours). Pure functions of numbers; numpy alone is needed.

    C0   increments of the reference are N(0, I), and it travels as it must     `noise_scores`, `reference_travelled`
    C1   lambda_min(H(p_t)) >= Lambda / 2                                       `kernel_margin`
    C2   sqrt L(t) stays below what lambda_min(H) and e allow                   `loss_certificate`
    C3   (I1) with measured H and e gives the measured residual                 `integrals.residual_from`
    C4   lower bounds lie below upper bounds                                    `bracket_margin`
    C5   D(c_t) <= Q* <= Q(p_t), D the dual of Gibbs                            `dual_coefficients`, `dual_energy`
         Q(p_t) - Q* falls at least as fast as log-Sobolev says                 `gibbs_log_sobolev`
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from meanfield.assumptions import Array, not_negative, positive, series
from meanfield.identities import kappa


def noise_scores(count: float, total: float, square: float, fourth: float, cross: float) -> dict[str, float]:
    """Return C0: how many standard errors the moments of increments xi = (Zbar' - c Zbar) / sigma lie off N(0, 1).

    Keys "variance", "mean", "fourth moment" and "decay", the last for the correlation with the position before.

    Parameters
    ----------
    count, total, square, fourth, cross : float
        Number of increments, and the sums of xi, xi^2, xi^4 and xi Zbar / s over them.
    """
    positive(count=count)
    root = math.sqrt(count)
    return {
        "variance": abs(square / count - 1) * root / math.sqrt(2),
        "mean": abs(total) / root,
        "fourth moment": abs(fourth / count - 3) * root / math.sqrt(96),
        "decay": abs(cross) / root,
    }


def reference_travelled(t: ArrayLike, lam: float, variance: ArrayLike = 1.0, decayed: ArrayLike | None = None) -> Array:
    """Return E abs(Zbar_t - Z_0)^2 / D = v + 1 - 2 a for the reference of (3.4) started at p0 = N(0, I) (C0).

    a = e^{-lam t} and v = 1; a scheme that decays by other factors has its own a (`decayed`) and v (`variance`). Over m
    independent particles its mean has the standard error sqrt(2 / (m D)) times itself.
    """
    not_negative(t=t, lam=lam, variance=variance)
    if decayed is None:
        return np.asarray(variance, dtype=np.float64) - 1.0 - 2.0 * np.expm1(-lam * np.asarray(t, dtype=np.float64))
    return np.asarray(variance, dtype=np.float64) + 1.0 - 2.0 * np.asarray(decayed, dtype=np.float64)


def kernel_margin(lambda_min: ArrayLike, Lambda: float) -> Array:
    """Return C1: lambda_min(H(p_t)) - Lambda / 2, not negative wherever the conclusion of Lemma 5.1 holds."""
    return np.asarray(lambda_min, dtype=np.float64) - 0.5 * Lambda


def bracket_margin(lower: ArrayLike, upper: ArrayLike) -> Array:
    """Return C4: upper - lower, not negative for two bounds on one number."""
    return np.asarray(upper, dtype=np.float64) - np.asarray(lower, dtype=np.float64)


def dual_coefficients(r: ArrayLike, alpha: float, lam: float) -> Array:
    """Return c_t = -(2 alpha / (n lam)) r_t, where the dual of Gibbs is tried in C5; shape (n,).

    At the minimiser p* of Q, p* is proportional to e^(c . psi) p0 with this c.
    """
    positive(alpha=alpha, lam=lam)
    r = np.asarray(r, dtype=np.float64)
    return -2.0 * alpha / (len(r) * lam) * r


def dual_energy(c: ArrayLike, y: ArrayLike, log_partition: float, *, alpha: float, lam: float) -> float:
    """Return D(c) = (lam / alpha) c . y - (n lam^2 / (4 alpha^2)) abs(c)^2 - lam log Z(c) <= Q* (C5), square loss.

    log Z(c) = log E_p0 e^(c . psi) = log E_theta e^(g^2 / 2), g = sum_i c_i h(theta . x_i), is given as
    `log_partition`: an upper bound on it keeps D(c) a lower bound. For every c and p, Q(p) - D(c) is (1/n) sum (f - y
    + n lam c / (2 alpha))^2 + lam KL(p || e^(c . psi) p0 / Z), which also proves the statement.
    """
    positive(alpha=alpha, lam=lam)
    c, y = np.asarray(c, dtype=np.float64), np.asarray(y, dtype=np.float64)
    linear, square = lam / alpha * float(c @ y), len(y) * lam**2 / (4 * alpha**2) * float(c @ c)
    return linear - square - lam * log_partition


def gibbs_log_sobolev(c: ArrayLike, G1: float, G2: float, largest_input: float = 1.0) -> Array:
    """Return a with KL(q || p_c) <= I(q | p_c) / (2 a) for every law q, p_c ~ e^{c . psi} p0; bounded h.

    a = e^{-G1^2 k^2 / 2} / L^2, k = sum_i abs(c_i), L = (s + sqrt(s^2 + 4)) / 2, s = G2 k max abs(x_i). Explicit
    (ours): with g = c . h, p_c is the image of (theta, v), theta ~ e^{g^2 / 2} p0 / Z, v ~ N(0, 1), under v -> u = v +
    g(theta). The first has e^{-osc} by [HolleyStroock87], osc <= G1^2 k^2 / 2; the second 1 [Gross75]; a product the
    smaller of both; and a map of Lipschitz constant L divides by L^2.

    Parameters
    ----------
    c : ndarray, shape (..., n)
        Coefficients; or upper bounds on their sizes.
    G1, G2 : float
        sup abs(h), sup abs(h').
    largest_input : float
        The largest norm of an input.
    """
    positive(G1=G1, G2=G2, largest_input=largest_input)
    k = np.abs(np.asarray(c, dtype=np.float64)).sum(axis=-1)
    slope = G2 * k * largest_input
    stretch = 0.5 * (slope + np.sqrt(slope**2 + 4.0))
    return np.exp(-0.5 * (G1 * k) ** 2) / stretch**2


def exit_time(times: ArrayLike, W2_lower: ArrayLike, W2_upper: ArrayLike, R: float) -> tuple[float, float]:
    """Return an interval for t* = inf {t : W2(p_t, p0) > R} of [CCGZ20, section 5], from bounds at the times.

    The first number is the last time up to which every upper bound is at most R, the second the first time at which a
    lower bound exceeds R (infinity if none does). Nothing is known of what happens between two times.

    Parameters
    ----------
    times, W2_lower, W2_upper : ndarray, shape (K,)
    R : float
    """
    t, low, high = series(times, W2_lower=W2_lower, W2_upper=W2_upper)
    positive(R=R)
    inside, beyond = np.logical_and.accumulate(high <= R), np.flatnonzero(low > R)
    earliest = float(t[inside][-1]) if inside.any() else 0.0
    return earliest, float(t[beyond[0]]) if len(beyond) else math.inf


def safe_minimum(times: ArrayLike, bound_times: ArrayLike, values: ArrayLike) -> Array:
    """Return for every interval of `times` the least of `values` at the bound times around and inside it.

    Nothing is interpolated upwards: an interval takes the smaller of its two neighbours, clipped at zero (H
    is positive semidefinite).  After the last bound time the last value is used.

    Parameters
    ----------
    times : ndarray, shape (K,)
    bound_times, values : ndarray, shape (B,)

    Returns
    -------
    ndarray, shape (K - 1,)
    """
    t, (s, v) = series(times)[0], series(bound_times, values=values)
    first = np.clip(np.searchsorted(s, t[:-1], side="right") - 1, 0, len(s) - 1)
    last = np.clip(np.searchsorted(s, t[1:], side="left"), 0, len(s) - 1)
    lowest = [v[a : b + 1].min() for a, b in zip(first, last, strict=True)]
    return np.maximum(np.asarray(lowest, dtype=np.float64), 0.0)


def loss_certificate(
    times: ArrayLike,
    e_rms: ArrayLike,
    bound_times: ArrayLike,
    lambda_min: ArrayLike,
    *,
    alpha: float,
    lam: float,
    n: int,
    L0: float,
) -> Array:
    """Return an upper bound on sqrt(L) at every time from measured series (C2, in place of Lemma 5.2).

    sqrt L(t) <= sqrt(L0) E(0, t) + alpha lam int_0^t E(s, t) e_rms(s) ds,
    E(s, t) = exp(-kappa int_s^t lambda_min(H)): from dr/dt = -kappa H r + alpha lam e.  Explicit (ours).  On
    each interval lambda_min is the smaller, e_rms the larger of the neighbouring values; the integral is then
    exact.

    Parameters
    ----------
    times, e_rms : ndarray, shape (K,)
        Times of equation (3.4), the first being 0, and sqrt(abs(e)^2 / n).
    bound_times, lambda_min : ndarray, shape (B,)
        Smallest eigenvalue of H(p_t) where it was measured.
    alpha, lam, n, L0 : float
        L0 is the loss at the first time.

    Returns
    -------
    ndarray, shape (K,)

    Raises
    ------
    InputError
        On series of different lengths, times out of order, or negative e_rms.
    """
    t, e = series(times, e_rms=e_rms)
    not_negative(e_rms=e, L0=L0, lam=lam)
    rate = kappa(alpha, n) * safe_minimum(t, bound_times, lambda_min)
    step = np.diff(t)
    decay = np.exp(-rate * step)
    # (1 - e^-x) / x, and its limit 1 where the measured eigenvalue is zero.
    x = rate * step
    weight = np.where(x > 0, -np.expm1(-x) / np.where(x > 0, x, 1.0), 1.0) * step
    source = alpha * lam * np.maximum(e[1:], e[:-1]) * weight
    bound = [math.sqrt(L0)]
    for factor, added in zip(decay, source, strict=True):
        bound.append(bound[-1] * factor + added)
    return np.asarray(bound)


def energy_kl(lam: float, L_s: ArrayLike, L_t: ArrayLike, KL_s: ArrayLike = 0.0) -> Array:
    """Return KL_s + (L_s - L_t) / lam >= KL(p_t || p0), s <= t: the energy L + lam KL falls along (3.4).

    It does not shrink as alpha grows; with s fixed beforehand and KL_s a bound at s it is sharp late in a
    run.
    Explicit (ours), from the gradient-flow identity dQ/dt <= 0 [CCGZ20, (3.4)].
    """
    positive(lam=lam)
    return np.asarray(KL_s, dtype=np.float64) + (np.asarray(L_s) - np.asarray(L_t)) / lam


def girsanov(times: ArrayLike, drift_rms: ArrayLike, lam: float) -> Array:
    """Return (1 / (4 lam)) int_0^t E abs(b)^2 ds >= KL(p_t || p0) at every time, by an upper sum.

    Compares the laws of whole paths with and without the loss, and is therefore 3 to 1000 times loose; kept
    because it needs nothing but the drift.

    Parameters
    ----------
    times, drift_rms : ndarray, shape (K,)
        Times and sqrt(E abs(b)^2).
    lam : float

    Returns
    -------
    ndarray, shape (K,)
    """
    t, b = series(times, drift_rms=drift_rms)
    positive(lam=lam)
    pieces = np.diff(t) * np.maximum(b[1:], b[:-1]) ** 2
    return np.concatenate(([0.0], np.cumsum(pieces))) / (4.0 * lam)


def travelled(t: ArrayLike, D: int, lam: float) -> Array:
    """Return 2 D (1 - e^(-lam t)) = E abs(z_t - z_0)^2 of a particle that decay and noise alone move.

    From the Ornstein-Uhlenbeck part of (3.4) [CCGZ20], started at p0 = N(0, I_D).
    """
    positive(D=D)
    not_negative(t=t, lam=lam)
    return -2.0 * D * np.expm1(-lam * np.asarray(t, dtype=np.float64))
