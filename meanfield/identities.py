r"""The identities (I1) to (I5) of equation (3.4), as rates.

With the generator A phi = Laplace phi - z . grad phi, e_i = E_p[A psi_i], H_ij = E_p <grad psi_i, grad psi_j>,

    df/dt  = -kappa H r + alpha lam e                                                              (I1)
    dL/dt  = -B + lam S,   B = E abs(b)^2 = (4 alpha^2 / n^2) r' H r,   S = (2 alpha / n) r . e      (I2)
    dKL/dt = -lam I + S,   I = E_p abs(grad log(p / p0))^2 >= 2 KL, S^2 / B                            (I3)
    dQ/dt  = -(B - 2 lam S + lam^2 I) <= -(B - lam S)^2 / B,   Q = L + lam KL                         (I4)
    d/dt E abs(Z - Zbar)^2 = 2 E[(Z - Zbar) . b] - 2 lam E abs(Z - Zbar)^2                           (I5)

for the gradient flow (3.4) of [CCGZ20], kappa = 2 alpha^2 / n. Derived for this package; the documentation has the
proofs, `integrals` their integrals over a recorded series. Pure functions of numbers; numpy alone is needed.
"""

import numpy as np
from numpy.typing import ArrayLike

from meanfield.assumptions import Array, not_negative, positive


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


def entropy_input(r: ArrayLike, e: ArrayLike, *, alpha: float) -> float:
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
