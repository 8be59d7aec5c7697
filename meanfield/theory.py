r"""Bounds of the kernel theorem, one function a statement, in the paper's symbols.

Statements are those of Chen, Cao, Gu and Zhang [CCGZ20], for the equation (3.4)

    dz = (b(z) - lam z) dt + sqrt(2 lam) dW,     b(z) = -(2 alpha / n) sum_i r_i grad psi_i(z),

with psi_i(z) = u h(theta . x_i), the residual r = alpha E psi - y and the loss L = abs(r)^2 / n.  Lambda is
the smallest eigenvalue of the tangent kernel H(p0), lambda0 = sqrt(Lambda / n), kappa = 2 alpha^2 / n.

Two kinds of function stand here, and each docstring says which it is:

*printed*   the constants of the paper (A1, A2, Theorem 4.4, condition (4.1), Lemmas 5.2 to 5.4);
*explicit*  constants derived for this package where the paper hides a polynomial in G (Lemma 5.1), and bounds
            evaluated on measured series instead of constants (`loss_certificate`, `girsanov`, `energy_kl`).

Everything is a pure function of numbers; numpy alone is needed.  The verdicts drawn from these numbers are in
`verify`.  To add a theorem, write one function whose parameters carry the paper's symbols and whose docstring
gives formula, statement number and key.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meanfield.errors import InputError

Array: TypeAlias = NDArray[np.float64]


def _positive(**named: float) -> None:
    for name, value in named.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a finite positive number, got {value!r}.")


def _not_negative(**named: ArrayLike) -> None:
    for name, value in named.items():
        if not np.all(np.asarray(value) >= 0):
            raise InputError(f"{name} must not be negative or NaN, got {value!r}.")


def _suprema(suprema: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(g) for g in suprema)
    if len(values) != 5 or not all(math.isfinite(g) and g > 0 for g in values):
        raise InputError(
            f"suprema must be five finite positive numbers G1..G5 (Assumption 4.2), got {values}: "
            "an activation without them, such as relu or sin, is outside the theorem."
        )
    return values


# --- symbols --------------------------------------------------------------------------------------


def kappa(alpha: float, n: int) -> float:
    """Return kappa = 2 alpha^2 / n of dr/dt = -kappa H r + alpha lam e, from (3.4) of [CCGZ20]."""
    _positive(alpha=alpha, n=n)
    return 2.0 * alpha**2 / n


def lambda0(Lambda: float, n: int) -> float:
    """Return lambda0 = sqrt(Lambda / n), Lambda the smallest eigenvalue of H(p0) [CCGZ20, Theorem 4.4].

    Raises
    ------
    InputError
        If Lambda is not positive: Assumption 4.3 fails (parallel or repeated inputs), nothing below applies.
    """
    if not Lambda > 0:
        raise InputError(
            f"Lambda must be positive (Assumption 4.3), got {Lambda!r}: inputs that are equal or parallel "
            "make the tangent kernel singular; remove the repeated rows."
        )
    _positive(n=n)
    return math.sqrt(Lambda / n)


def common_bound(suprema: Sequence[float]) -> float:
    """Return G = max(G1, .., G5), the one constant of Assumption 4.2 [CCGZ20]."""
    return max(_suprema(suprema))


def A1(G: float, d: int) -> float:
    """Return A1 = 2 G (d + 1) + 4 G sqrt(d + 1), the printed bound on abs(e_i) [CCGZ20, Theorem 4.4]."""
    _positive(G=G, d=d)
    return 2.0 * G * (d + 1) + 4.0 * G * math.sqrt(d + 1)


def A2(G: float, d: int) -> float:
    """Return A2 = 16 G sqrt(d + 1) + 4 G, printed in the bound on KL [CCGZ20, Theorem 4.4]."""
    _positive(G=G, d=d)
    return 16.0 * G * math.sqrt(d + 1) + 4.0 * G


# --- Lemma 5.1 with explicit constants ------------------------------------------------------------


def kernel_constants(suprema: Sequence[float]) -> tuple[float, float]:
    """Return (Ac, Bc) of abs(H_ij(p) - H_ij(p0)) <= Ac W^2 + Bc W, W = W2(p, p0), norms of x at most 1.

    Ac = G2^2 and Bc = 2 G2^2 + 2 sqrt(3) G2 G3 + 2 G1 G2.  Explicit (ours): with the optimal coupling,
    E abs(u^2 - u0^2) <= W^2 + 2 W; E u0^2 abs(h'_i h'_j - h0'_i h0'_j) <= 2 G2 G3 sqrt(E u0^4) W, E u0^4 = 3;
    and E abs(h_i h_j - h0_i h0_j) <= 2 G1 G2 W.  Lemma 5.1 of [CCGZ20] hides them in poly(G).

    Parameters
    ----------
    suprema : sequence of five floats
        G1..G5 = sup abs(h), abs(h'), abs(h''), abs((z h')'), abs(h''').
    """
    G1, G2, G3, _, _ = _suprema(suprema)
    return G2**2, 2 * G2**2 + 2 * math.sqrt(3) * G2 * G3 + 2 * G1 * G2


def kernel_floor(Lambda: float, n: int, W2: ArrayLike, suprema: Sequence[float]) -> Array:
    """Return Lambda - n (Ac W2^2 + Bc W2), at most the smallest eigenvalue of H(p) [CCGZ20, Lemma 5.1].

    Explicit (ours): an n x n matrix whose entries change by at most c changes its eigenvalues by at most n c.
    """
    _not_negative(W2=W2)
    Ac, Bc = kernel_constants(suprema)
    W = np.asarray(W2, dtype=np.float64)
    return Lambda - n * (Ac * W**2 + Bc * W)


def radius(Lambda: float, n: int, d: int, suprema: Sequence[float]) -> float:
    """Return R such that W2(p, p0) <= R keeps the smallest eigenvalue of H(p) above Lambda / 2.

    R = min(sqrt(d + 1), [-Bc + sqrt(Bc^2 + 2 Ac lambda0^2)] / (2 Ac)), where the second solves
    Ac R^2 + Bc R = lambda0^2 / 2.  Explicit (ours); Lemma 5.1 of [CCGZ20] has
    min(sqrt(d + 1), lambda0^2 / poly(G, log 1/lambda0)).  The first term is where A1 bounds abs(e_i).
    """
    Ac, Bc = kernel_constants(suprema)
    l0 = lambda0(Lambda, n)
    _positive(d=d)
    # The conjugate form loses no digits when lambda0^2 is small beside Bc^2.
    root = l0**2 / (Bc + math.sqrt(Bc**2 + 2 * Ac * l0**2))
    return min(math.sqrt(d + 1), root)


def Le(suprema: Sequence[float], W2: ArrayLike) -> Array:
    """Return Le of abs(e_i(p)) <= Le W2(p, p0): Le = G1 + G3 + G2 (2 + W2) + G4 + G5, norms of x at most 1.

    e_i = E_p[u (h''(w_i) abs(x_i)^2 - h(w_i) - w_i h'(w_i))] is zero at p0.  Explicit (ours); [CCGZ20] uses
    the constant A1 for every p with W2(p, p0) <= sqrt(d + 1).
    """
    G1, G2, G3, G4, G5 = _suprema(suprema)
    _not_negative(W2=W2)
    return G1 + G3 + G2 * (2.0 + np.asarray(W2, dtype=np.float64)) + G4 + G5


# --- Theorem 4.4 and Lemmas 5.2 to 5.4 ------------------------------------------------------------


def threshold(Lambda: float, n: int, d: int, lam: float, suprema: Sequence[float]) -> float:
    """Return the smallest alpha that condition (4.1) of Theorem 4.4 admits [CCGZ20].

    alpha >= 8 sqrt(A2^2 + lam A1^2) / (lambda0^2 R): printed, with the explicit `radius` for R.  It makes
    2 sqrt(KL) <= R / 2 in Lemmas 5.3 and 5.4, so that the law cannot leave the ball in which Lemmas 5.1 and
    5.2 hold.  About 2e7 for tanh, n = 5, d = 5 on the sphere, and 7e11 for n = 500, d = 50.
    """
    _positive(lam=lam)
    G = common_bound(suprema)
    size = math.hypot(A2(G, d), math.sqrt(lam) * A1(G, d))
    return 8.0 * size / (lambda0(Lambda, n) ** 2 * radius(Lambda, n, d, suprema))


def loss_floor(alpha: float, lam: float, Lambda: float, n: int, d: int, G: float) -> float:
    """Return A1 lam / (alpha lambda0^2), where the bound of Lemma 5.2 on sqrt(L) ends (printed) [CCGZ20]."""
    _positive(alpha=alpha, lam=lam)
    return A1(G, d) * lam / (alpha * lambda0(Lambda, n) ** 2)


def root_loss_bound(
    t: ArrayLike, alpha: float, lam: float, Lambda: float, n: int, d: int, G: float, L0: float = 1.0
) -> Array:
    """Return exp(-alpha^2 lambda0^2 t) sqrt(L0) + A1 lam / (alpha lambda0^2) >= sqrt L(t).

    Printed with L0 = 1 (labels in [-1, 1]) in Lemma 5.2 of [CCGZ20]; holds while W2(p_s, p0) <= R.
    """
    _not_negative(t=t, L0=L0)
    rate = alpha**2 * lambda0(Lambda, n) ** 2
    decay = np.exp(-rate * np.asarray(t, dtype=np.float64))
    return decay * math.sqrt(L0) + loss_floor(alpha, lam, Lambda, n, d, G)


def loss_bound(t: ArrayLike, alpha: float, lam: float, Lambda: float, n: int, d: int, G: float) -> Array:
    """Return 2 exp(-2 alpha^2 lambda0^2 t) + 2 A1^2 lam^2 / (alpha^2 lambda0^4) >= L(t).

    Printed in Theorem 4.4 of [CCGZ20]: it is (a + b)^2 <= 2 a^2 + 2 b^2 applied to `root_loss_bound`.
    """
    _not_negative(t=t)
    rate = alpha**2 * lambda0(Lambda, n) ** 2
    floor = loss_floor(alpha, lam, Lambda, n, d, G)
    return 2.0 * np.exp(-2.0 * rate * np.asarray(t, dtype=np.float64)) + 2.0 * floor**2


def kl_bound(alpha: float, lam: float, Lambda: float, n: int, d: int, G: float) -> float:
    """Return 4 (A2^2 + lam A1^2) / (alpha^2 lambda0^4) >= KL(p_t || p0) for every t, in nats.

    Printed: Theorem 4.4 and Lemma 5.3 of [CCGZ20].  The first part pays for the exponential phase, the second
    is the loss that is left, divided by lam (the energy L + lam KL falls).
    """
    _positive(alpha=alpha, lam=lam)
    size = A2(G, d) ** 2 + lam * A1(G, d) ** 2
    return 4.0 * size / (alpha**2 * lambda0(Lambda, n) ** 4)


def talagrand(KL: ArrayLike, printed: bool = False) -> Array:
    """Return the bound of Lemma 5.4 on W2(p, N(0, I)): sqrt(2 KL), or 2 sqrt(KL) as printed [CCGZ20].

    Both are right; the first is the sharp inequality of [Talagrand96], the second sqrt(2) times looser.
    """
    _not_negative(KL=KL)
    return np.sqrt((4.0 if printed else 2.0) * np.asarray(KL, dtype=np.float64))


# --- certificates from measured series ------------------------------------------------------------


def _series(times: ArrayLike, **named: ArrayLike) -> tuple[Array, ...]:
    t = np.asarray(times, dtype=np.float64)
    if t.ndim != 1 or len(t) == 0 or not np.all(np.isfinite(t)) or np.any(np.diff(t) <= 0):
        raise InputError("times must be a one-dimensional, finite, strictly increasing array.")
    out = [t]
    for name, values in named.items():
        v = np.asarray(values, dtype=np.float64)
        if v.shape != t.shape:
            raise InputError(f"{name} must have one value a time, shape {t.shape}, got {v.shape}.")
        out.append(v)
    return tuple(out)


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
    t, (s, v) = _series(times)[0], _series(bound_times, values=values)
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
    t, e = _series(times, e_rms=e_rms)
    _not_negative(e_rms=e, L0=L0, lam=lam)
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
    _positive(lam=lam)
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
    t, b = _series(times, drift_rms=drift_rms)
    _positive(lam=lam)
    pieces = np.diff(t) * np.maximum(b[1:], b[:-1]) ** 2
    return np.concatenate(([0.0], np.cumsum(pieces))) / (4.0 * lam)


def travelled(t: ArrayLike, D: int, lam: float) -> Array:
    """Return 2 D (1 - e^(-lam t)) = E abs(z_t - z_0)^2 of a particle that decay and noise alone move.

    From the Ornstein-Uhlenbeck part of (3.4) [CCGZ20], started at p0 = N(0, I_D).
    """
    _positive(D=D)
    _not_negative(t=t, lam=lam)
    return -2.0 * D * np.expm1(-lam * np.asarray(t, dtype=np.float64))
