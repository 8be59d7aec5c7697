r"""The statements of the kernel theorem, one function each, in the paper's symbols.

Statements are those of Chen, Cao, Gu and Zhang [CCGZ20], for the equation (3.4)

    dz = (b(z) - lam z) dt + sqrt(2 lam) dW,     b(z) = -(2 alpha / n) sum_i r_i grad psi_i(z),

with psi_i(z) = u h(theta . x_i), the residual r = alpha E psi - y and the loss L = abs(r)^2 / n.  Lambda is
the smallest eigenvalue of the tangent kernel H(p0), lambda0 = sqrt(Lambda / n), kappa = 2 alpha^2 / n.

Two kinds of function stand here, and each docstring says which it is:

*printed*   the constants of the paper (A1, A2, Theorem 4.4, condition (4.1), Lemmas 5.2 to 5.4);
*explicit*  constants derived for this package where the paper hides a polynomial in G (Lemma 5.1, R), is loose, or
            where its printed constant is not at hand (Lemmas 5.5 and 5.6, Theorem 4.5).

    symbols, Lemmas 5.1 to 5.4, Theorem 4.4      here
    (5.2) to (5.5), Lemmas 5.5 and 5.6, Theorem 4.5      `generalisation`
    C0 to C5, t*, bounds from measured series      `aposteriori`
    (I1) to (I5), and integrated over a series, C3      `identities`, `integrals`

All of it can be called from here (`theory.rademacher_bound`). Everything is a pure function of numbers; numpy alone is
needed.  The verdicts drawn from these numbers are in `verify`.  To add a theorem, write one function whose parameters
carry the paper's symbols and whose docstring gives formula, statement number and key.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from meanfield.aposteriori import bracket_margin as bracket_margin
from meanfield.aposteriori import dual_coefficients as dual_coefficients
from meanfield.aposteriori import dual_energy as dual_energy
from meanfield.aposteriori import energy_kl as energy_kl
from meanfield.aposteriori import exit_time as exit_time
from meanfield.aposteriori import gibbs_log_sobolev as gibbs_log_sobolev
from meanfield.aposteriori import girsanov as girsanov
from meanfield.aposteriori import kernel_margin as kernel_margin
from meanfield.aposteriori import loss_certificate as loss_certificate
from meanfield.aposteriori import noise_scores as noise_scores
from meanfield.aposteriori import reference_travelled as reference_travelled
from meanfield.aposteriori import safe_minimum as safe_minimum
from meanfield.aposteriori import travelled as travelled
from meanfield.assumptions import Array, not_negative, positive, suprema_of
from meanfield.errors import InputError
from meanfield.generalisation import ball as ball
from meanfield.generalisation import classification_after as classification_after
from meanfield.generalisation import classification_bound as classification_bound
from meanfield.generalisation import classification_simple as classification_simple
from meanfield.generalisation import frozen_energy as frozen_energy
from meanfield.generalisation import minimiser_energy as minimiser_energy
from meanfield.generalisation import minimiser_kl as minimiser_kl
from meanfield.generalisation import minimiser_loss as minimiser_loss
from meanfield.generalisation import mixture_chi2 as mixture_chi2
from meanfield.generalisation import mixture_kl as mixture_kl
from meanfield.generalisation import rademacher_bound as rademacher_bound
from meanfield.generalisation import rademacher_simple as rademacher_simple
from meanfield.generalisation import ramp as ramp
from meanfield.generalisation import zero_one as zero_one
from meanfield.generalisation import zero_one_bound as zero_one_bound
from meanfield.identities import dissipation as dissipation
from meanfield.identities import distance_rate as distance_rate
from meanfield.identities import drift_square as drift_square
from meanfield.identities import entropy_input as entropy_input
from meanfield.identities import entropy_rate as entropy_rate
from meanfield.identities import kappa as kappa
from meanfield.identities import loss_rate as loss_rate
from meanfield.identities import prediction_rate as prediction_rate
from meanfield.integrals import entropy_bound as entropy_bound
from meanfield.integrals import integral as integral
from meanfield.integrals import residual_from as residual_from

# --- symbols --------------------------------------------------------------------------------------


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
    positive(n=n)
    return math.sqrt(Lambda / n)


def common_bound(suprema: Sequence[float]) -> float:
    """Return G = max(G1, .., G5), the one constant of Assumption 4.2 [CCGZ20]."""
    return max(suprema_of(suprema))


def A1(G: float, d: int) -> float:
    """Return A1 = 2 G (d + 1) + 4 G sqrt(d + 1), the printed bound on abs(e_i) [CCGZ20, Theorem 4.4]."""
    positive(G=G, d=d)
    return 2.0 * G * (d + 1) + 4.0 * G * math.sqrt(d + 1)


def A2(G: float, d: int) -> float:
    """Return A2 = 16 G sqrt(d + 1) + 4 G, printed in the bound on KL [CCGZ20, Theorem 4.4]."""
    positive(G=G, d=d)
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
    G1, G2, G3, _, _ = suprema_of(suprema)
    return G2**2, 2 * G2**2 + 2 * math.sqrt(3) * G2 * G3 + 2 * G1 * G2


def kernel_floor(Lambda: float, n: int, W2: ArrayLike, suprema: Sequence[float]) -> Array:
    """Return Lambda - n (Ac W2^2 + Bc W2), at most the smallest eigenvalue of H(p) [CCGZ20, Lemma 5.1].

    Explicit (ours): an n x n matrix whose entries change by at most c changes its eigenvalues by at most n c.
    """
    not_negative(W2=W2)
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
    positive(d=d)
    # The conjugate form loses no digits when lambda0^2 is small beside Bc^2.
    root = l0**2 / (Bc + math.sqrt(Bc**2 + 2 * Ac * l0**2))
    return min(math.sqrt(d + 1), root)


def radius_printed(Lambda: float, n: int, d: int, poly: float) -> float:
    """Return R = min(sqrt(d + 1), lambda0^2 / poly), printed in Theorem 4.4 of [CCGZ20].

    The paper writes poly(G, log(1 / lambda0)) and gives no polynomial: `poly` is the value that you put in its place.
    `radius` is R with constants that are derived, and has no logarithm.
    """
    positive(d=d, poly=poly)
    return min(math.sqrt(d + 1), lambda0(Lambda, n) ** 2 / poly)


def Le(suprema: Sequence[float], W2: ArrayLike) -> Array:
    """Return Le of abs(e_i(p)) <= Le W2(p, p0): Le = G1 + G3 + G2 (2 + W2) + G4 + G5, norms of x at most 1.

    e_i = E_p[u (h''(w_i) abs(x_i)^2 - h(w_i) - w_i h'(w_i))] is zero at p0.  Explicit (ours); [CCGZ20] uses
    the constant A1 for every p with W2(p, p0) <= sqrt(d + 1).
    """
    G1, G2, G3, G4, G5 = suprema_of(suprema)
    not_negative(W2=W2)
    return G1 + G3 + G2 * (2.0 + np.asarray(W2, dtype=np.float64)) + G4 + G5


# --- Theorem 4.4 and Lemmas 5.2 to 5.4 ------------------------------------------------------------


def threshold(Lambda: float, n: int, d: int, lam: float, suprema: Sequence[float]) -> float:
    """Return the smallest alpha that condition (4.1) of Theorem 4.4 admits [CCGZ20].

    alpha >= 8 sqrt(A2^2 + lam A1^2) / (lambda0^2 R): printed, with the explicit `radius` for R.  It makes
    2 sqrt(KL) <= R / 2 in Lemmas 5.3 and 5.4, so that the law cannot leave the ball in which Lemmas 5.1 and
    5.2 hold.  About 2e7 for tanh, n = 5, d = 5 on the sphere, and 7e11 for n = 500, d = 50.
    """
    positive(lam=lam)
    G = common_bound(suprema)
    size = math.hypot(A2(G, d), math.sqrt(lam) * A1(G, d))
    return 8.0 * size / (lambda0(Lambda, n) ** 2 * radius(Lambda, n, d, suprema))


def threshold_explicit(Lambda: float, n: int, d: int, lam: float, suprema: Sequence[float]) -> float:
    """Return 2 sqrt(2) sqrt(A2^2 + lam A1^2) / (lambda0^2 R): every larger alpha will do in place of (4.1).

    Explicit (ours): with Talagrand's sqrt(2 KL) Lemma 5.3 gives W2(p_t, p0) < R up to t*, and W2 is continuous, so
    that t* is infinite. The printed 8 has a margin of 2 in W2 and loses sqrt(2) in Lemma 5.4.
    """
    return threshold(Lambda, n, d, lam, suprema) / math.sqrt(8)


def loss_floor(alpha: float, lam: float, Lambda: float, n: int, d: int, G: float) -> float:
    """Return A1 lam / (alpha lambda0^2), where the bound of Lemma 5.2 on sqrt(L) ends (printed) [CCGZ20]."""
    positive(alpha=alpha, lam=lam)
    return A1(G, d) * lam / (alpha * lambda0(Lambda, n) ** 2)


def root_loss_bound(
    t: ArrayLike, alpha: float, lam: float, Lambda: float, n: int, d: int, G: float, L0: float = 1.0
) -> Array:
    """Return exp(-alpha^2 lambda0^2 t) sqrt(L0) + A1 lam / (alpha lambda0^2) >= sqrt L(t).

    Printed with L0 = 1 (labels in [-1, 1]) in Lemma 5.2 of [CCGZ20]; holds while W2(p_s, p0) <= R.
    """
    not_negative(t=t, L0=L0)
    rate = alpha**2 * lambda0(Lambda, n) ** 2
    decay = np.exp(-rate * np.asarray(t, dtype=np.float64))
    return decay * math.sqrt(L0) + loss_floor(alpha, lam, Lambda, n, d, G)


def loss_bound(t: ArrayLike, alpha: float, lam: float, Lambda: float, n: int, d: int, G: float) -> Array:
    """Return 2 exp(-2 alpha^2 lambda0^2 t) + 2 A1^2 lam^2 / (alpha^2 lambda0^4) >= L(t).

    Printed in Theorem 4.4 of [CCGZ20]: it is (a + b)^2 <= 2 a^2 + 2 b^2 applied to `root_loss_bound`.
    """
    not_negative(t=t)
    rate = alpha**2 * lambda0(Lambda, n) ** 2
    floor = loss_floor(alpha, lam, Lambda, n, d, G)
    return 2.0 * np.exp(-2.0 * rate * np.asarray(t, dtype=np.float64)) + 2.0 * floor**2


def kl_bound(alpha: float, lam: float, Lambda: float, n: int, d: int, G: float) -> float:
    """Return 4 (A2^2 + lam A1^2) / (alpha^2 lambda0^4) >= KL(p_t || p0) for every t, in nats.

    Printed: Theorem 4.4 and Lemma 5.3 of [CCGZ20].  The first part pays for the exponential phase, the second
    is the loss that is left, divided by lam (the energy L + lam KL falls).
    """
    positive(alpha=alpha, lam=lam)
    size = A2(G, d) ** 2 + lam * A1(G, d) ** 2
    return 4.0 * size / (alpha**2 * lambda0(Lambda, n) ** 4)


def talagrand(KL: ArrayLike, printed: bool = False) -> Array:
    """Return the bound of Lemma 5.4 on W2(p, N(0, I)): sqrt(2 KL), or 2 sqrt(KL) as printed [CCGZ20].

    Both are right; the first is the sharp inequality of [Talagrand96], the second sqrt(2) times looser.
    """
    not_negative(KL=KL)
    return np.sqrt((4.0 if printed else 2.0) * np.asarray(KL, dtype=np.float64))
