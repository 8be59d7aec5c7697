r"""How well the minimiser of Q predicts: (5.2) to (5.5), Lemmas 5.5 and 5.6, Theorem 4.5 of [CCGZ20].

    f(p, x) = alpha E_p[u h(theta . x)],     Q(p) = L(p) + lam KL(p || p0),     p* the minimiser of Q

The proof has three parts. (5.2) to (5.5): the mixture p^ = (1 - 1/alpha) p0 + p_true / alpha of the start with a law
that interpolates the labels, alpha E_{p^} psi = E_{p_true} psi = y, has no loss, so that Q(p*) <= Q(p^) = lam KL(p^
|| p0). Lemma 5.5: the Rademacher complexity of a ball of relative entropy. Lemma 5.6: from there to the error on new
data.

The constants here are *explicit*: derived for this package, with the proof in the documentation ("Where the printed
text is loose or wrong"); they hold for every radius M of the ball and with G1 = sup |h| in place of G. The printed
ones need alpha^-2 chi^2 <= 1/2 and are not repeated here. Labels are +1 or -1, alpha >= 1, and the zero-one loss is
1{y f < 0}. Pure functions of numbers; numpy alone is needed.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from meanfield.assumptions import Array, not_negative, positive
from meanfield.errors import InputError

# --- (5.2) to (5.5) -------------------------------------------------------------------------------


def _scale(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha >= 1):
        raise InputError(f"alpha must be at least 1, got {alpha!r}: (1 - 1/alpha) p0 + p_true / alpha is no law below.")


def mixture_chi2(alpha: float, chi2: float) -> float:
    """Return chi^2(p^ || p0) = alpha^-2 chi^2(p_true || p0) for p^ = (1 - 1/alpha) p0 + p_true / alpha.

    Its density over p0 is 1 + (rho_true - 1) / alpha. A law for alpha >= 1 alone, which (5.2) to (5.5) leave unsaid.
    """
    _scale(alpha)
    not_negative(chi2=chi2)
    return chi2 / alpha**2


def mixture_kl(alpha: float, chi2: float) -> float:
    """Return log(1 + alpha^-2 chi^2) >= KL(p^ || p0), by Jensen's inequality; at most the alpha^-2 chi^2 of (5.5)."""
    return math.log1p(mixture_chi2(alpha, chi2))


def minimiser_energy(alpha: float, lam: float, chi2: float) -> float:
    """Return lam log(1 + alpha^-2 chi^2) >= Q(p*) = min Q: p^ has no loss, so Q(p*) <= Q(p^) = lam KL(p^ || p0)."""
    positive(lam=lam)
    return lam * mixture_kl(alpha, chi2)


def minimiser_loss(alpha: float, lam: float, chi2: float) -> float:
    """Return lam log(1 + alpha^-2 chi^2) >= L(p*): (5.4), from L <= Q, sharpened by the logarithm."""
    return minimiser_energy(alpha, lam, chi2)


def minimiser_kl(alpha: float, chi2: float) -> float:
    """Return log(1 + alpha^-2 chi^2) >= KL(p* || p0): (5.5), from lam KL <= Q, sharpened by the logarithm."""
    return mixture_kl(alpha, chi2)


def frozen_energy(K2: ArrayLike, y: ArrayLike, alpha: float, lam: float) -> float:
    """Return (lam / (2 alpha^2)) y' (K2 + n lam / (2 alpha^2))^-1 y >= Q(p*), without a teacher; square loss.

    It is the least energy over laws with theta ~ N(0, I) and u | theta ~ N(a . h(theta), 1), for which f = alpha K2 a
    and KL = a' K2 a / 2: kernel ridge regression. Explicit (ours); holds for every h, alpha > 0 and label. L(p*) is
    at most it, and KL(p* || p0) at most it over lam: (5.4) and (5.5) with numbers that the data give.

    Parameters
    ----------
    K2 : ndarray, shape (n, n)
        E h(theta . x_i) h(theta . x_j) at p0 (`ntk.gram_parts`).
    y : ndarray, shape (n,)
    """
    positive(alpha=alpha, lam=lam)
    K, y = np.asarray(K2, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if K.shape != (len(y), len(y)):
        raise InputError(f"{len(y)} labels need K2 of shape ({len(y)}, {len(y)}), got {K.shape}.")
    weight = lam / (2 * alpha**2)
    return weight * float(y @ np.linalg.solve(K + len(y) * weight * np.eye(len(y)), y))


# --- Lemma 5.5 ------------------------------------------------------------------------------------


def rademacher_bound(M: float, alpha: float, n: int, G1: float) -> float:
    """Return (alpha G1 / sqrt n) inf_{0<s<1} (M - log(1 - s^2) / 2) / s, at least R_n of {f(p, .) : KL(p || p0) <= M}.

    Lemma 5.5 for every M >= 0, explicit. R_n is the empirical Rademacher complexity, E_sigma sup (1/n) sum sigma_i
    f(x_i), of any n inputs. At the best s, s^2 / (1 - s^2) + log(1 - s^2) / 2 = M, the value is s / (1 - s^2): sqrt(2
    M) for small M, growing like M.

    Parameters
    ----------
    M : float
        Radius of the ball, in nats.
    G1 : float
        sup |h|.
    """
    not_negative(M=M)
    positive(alpha=alpha, n=n, G1=G1)
    if M == 0:
        return 0.0
    # In v = s^2 / (1 - s^2), v - log(1 + v) / 2 = M: increasing and convex, so Newton from above decreases to it.
    v = 2.0 * M
    for _ in range(20):
        v = max(v - (v - 0.5 * math.log1p(v) - M) / (1 - 0.5 / (1 + v)), 0.0)
    return alpha * G1 / math.sqrt(n) * math.sqrt(v * (1 + v))


def rademacher_simple(M: float, alpha: float, n: int, G1: float) -> float:
    """Return 2 alpha G1 sqrt(M / n) >= `rademacher_bound` for M <= 1/2.

    From s = sqrt(M) and -log(1 - x) <= 2 x log 2 for x <= 1/2. Refused for M > 1/2: at M = 2 it would be too small.
    """
    not_negative(M=M)
    positive(alpha=alpha, n=n, G1=G1)
    if M > 0.5:
        raise InputError(f"the simple form of Lemma 5.5 is for M <= 1/2, got {M}: take rademacher_bound.")
    return 2.0 * alpha * G1 * math.sqrt(M / n)


# --- Lemma 5.6 ------------------------------------------------------------------------------------


def _signs(y: ArrayLike) -> Array:
    y = np.asarray(y, dtype=np.float64)
    if not np.isin(y, (-1.0, 1.0)).all():
        raise InputError("the zero-one loss needs labels +1 and -1.")
    return y


def _outputs(f: ArrayLike) -> Array:
    f = np.asarray(f, dtype=np.float64)
    if np.isnan(f).any():
        raise InputError(f"{np.count_nonzero(np.isnan(f))} predictions are NaN: neither right nor wrong.")
    return f


def zero_one(y: ArrayLike, f: ArrayLike) -> Array:
    """Return 1{y f < 0}, the zero-one loss of a prediction f; the printed inequality is the other way round."""
    return (_signs(y) * _outputs(f) < 0).astype(np.float64)


def ramp(y: ArrayLike, f: ArrayLike) -> Array:
    """Return min(1, max(0, 1 - y f)): at least `zero_one`, at most |f - y|, and 1-Lipschitz in f."""
    return np.clip(1.0 - _signs(y) * _outputs(f), 0.0, 1.0)


def zero_one_bound(mean_ramp: float, R_n: float, n: int, delta: float) -> float:
    """Return mean ramp + 2 R_n + sqrt(log(1 / delta) / (2 n)) >= E 1{y f < 0}, with probability 1 - delta (Lemma 5.6).

    Explicit: for all f of a class at once, the mean ramp that of the n independent samples, R_n the expectation of
    the class's Rademacher complexity or a bound on it for every sample [BartlettMendelson02]. At most sqrt(L) may
    stand for the mean ramp, since ramp <= |f - y|.
    """
    not_negative(mean_ramp=mean_ramp, R_n=R_n)
    positive(n=n)
    _probability(delta)
    return mean_ramp + 2.0 * R_n + math.sqrt(math.log(1 / delta) / (2 * n))


def _probability(delta: float) -> None:
    if not 0 < delta < 1:
        raise InputError(f"delta must be a probability between 0 and 1, got {delta!r}.")


# --- Theorem 4.5 ----------------------------------------------------------------------------------


def classification_bound(chi2: float, alpha: float, lam: float, n: int, delta: float, G1: float) -> float:
    """Return Theorem 4.5 in explicit form: a bound on E 1{y f(p*, x) < 0} with probability 1 - delta.

    sqrt(lam M) + 2 R_n(M) + sqrt(log(1 / delta) / (2 n)) with M = log(1 + alpha^-2 chi^2), chi^2 that of a law p_true
    with E_{p_true} u h(theta . x) = y = +-1 for all data, and R_n(M) of `rademacher_bound`. It holds for every alpha
    >= 1 and every chi^2 < infinity; for alpha^-2 chi^2 -> 0 it is (sqrt(lam) / alpha + 2 sqrt(2) G1 / sqrt(n)) chi +
    the last term.
    """
    M = minimiser_kl(alpha, chi2)
    return zero_one_bound(math.sqrt(minimiser_loss(alpha, lam, chi2)), rademacher_bound(M, alpha, n, G1), n, delta)


def classification_simple(chi2: float, alpha: float, lam: float, n: int, delta: float, G1: float) -> float:
    """Return (4 G1 + 1) sqrt(chi^2 / n) + sqrt(log(1 / delta) / (2 n)), Theorem 4.5 as a rate (explicit).

    At least `classification_bound` where alpha >= max(1, sqrt(n lam)) and alpha^-2 chi^2 <= 1/2; refused elsewhere.
    """
    positive(n=n, lam=lam, G1=G1)
    _probability(delta)
    if mixture_chi2(alpha, chi2) > 0.5 or alpha < math.sqrt(n * lam):
        raise InputError(
            f"the simple form needs alpha >= sqrt(n lam) = {math.sqrt(n * lam):.4g} and alpha >= sqrt(2 chi^2) = "
            f"{math.sqrt(2 * chi2):.4g}, got {alpha}: take classification_bound."
        )
    return (4 * G1 + 1) * math.sqrt(chi2 / n) + math.sqrt(math.log(1 / delta) / (2 * n))


def classification_after(
    mean_ramp: float, KL: float, alpha: float, n: int, delta: float, G1: float, smallest: float = 1e-3
) -> float:
    """Return a bound on E 1{y f(p, x) < 0} for whatever law p training ends at, with probability 1 - delta (explicit).

    Lemma 5.6 on the balls KL <= M_k = 2^k `smallest` at once, the k-th with probability delta / ((k + 1) (k + 2)),
    which sum to delta; the ball taken is the first that holds p. No teacher, no minimiser: KL is an upper bound on
    the entropy of the law that was reached.

    Parameters
    ----------
    mean_ramp : float
        Mean of `ramp` over the n training samples.
    KL : float
        Upper bound on KL(p || p0).
    smallest : float
        Radius of the first ball; it must not depend on the data.
    """
    M, share = ball(KL, delta, smallest)
    return zero_one_bound(mean_ramp, rademacher_bound(M, alpha, n, G1), n, share) if math.isfinite(M) else math.inf


def ball(KL: float, delta: float, smallest: float = 1e-3) -> tuple[float, float]:
    """Return (M_k, delta_k) of the first ball that holds a law of entropy KL, as `classification_after` takes it.

    M_k = 2^k `smallest` and delta_k = delta / ((k + 1) (k + 2)); a complexity measured at M_k goes into
    `zero_one_bound` with delta_k.
    """
    not_negative(KL=KL)
    _probability(delta)
    positive(smallest=smallest)
    if not math.isfinite(KL):
        return math.inf, 0.0
    k = max(0, math.ceil(math.log2(KL / smallest))) if KL > 0 else 0
    return 2.0**k * smallest, delta / ((k + 1) * (k + 2))
