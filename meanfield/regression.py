r"""What tangent kernels predict: kernel regression, the linearised network, and the limit alpha -> infinity.

    f = H_test (H + ridge)^-1 y                                                       `kernel_regression`
    f' = -kappa H (f - y) - lam f                                                     `frozen_prediction`
    f = sum_k f_k,   f_k' = -kappa g_k M_k (f - y) - lam g_k f_k                      `lazy_prediction`

with kappa = 2 alpha^2 / n, H the tangent kernel at p0. The second is (I1) with H frozen at the start, e = -f / alpha:
the network linearised in its particles (objective `Linearised`), drawn back to the start by the weight decay; it
tends to kernel regression with ridge lam / kappa. The third is what the nonlinear dynamics themselves tend to as
alpha -> infinity: the noise renews the particles, so that the gradients of psi forget at the rates of their Hermite
degrees, M_k = a_k a_k' o rho^k the part of E psi psi' of degree k in theta, g_k = k + 1. Both agree while lam t is
small; then they part, and the third tends to kernel regression with H2, not H, and ridge lam / kappa. Derived for
this package; see the documentation.
"""

import math
import warnings

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError
from meanfield.gram import correlations, hermite_coefficients, kernel, series
from meanfield.units import Activation

Array = np.ndarray
# Nodes of the contour on which Laplace transforms are inverted: its error is about e^(-1.36 NODES).
NODES = 26
# Terms of Mehler's series whose share of a mean square is below this are left out.
NEGLIGIBLE = 1e-15


def kernel_regression(
    activation: Activation,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    x_test: npt.ArrayLike,
    ridge: float = 0.0,
    *,
    std: float = 1.0,
    train: str = "both",
) -> Array:
    """Return H(x_test, x) (H(x, x) + ridge I)^-1 y with the tangent kernel H of N(0, std^2 I), shape (p,).

    Parameters
    ----------
    activation : Activation
    x, x_test : array_like, shapes (n, d) and (p, d)
        Inputs as the neurons see them (`Unit.inputs`).
    y : array_like, shape (n,)
    ridge : float
        Not negative; lam / kappa = n lam / (2 alpha^2) is where the linearised flow ends.
    train : str
        "both": H = H1 + H2; "u": H2; "theta": H1.

    Raises
    ------
    InputError
        If shapes do not fit, or H is singular up to rounding and ridge is 0. O(n^3 + n p).
    """
    x, y, x_test = _checked(x, y, x_test)
    if not (math.isfinite(ridge) and ridge >= 0):
        raise InputError(f"ridge must be finite and not negative, got {ridge!r}")
    values, vectors = np.linalg.eigh(kernel(activation, x, x, std=std, train=train))
    if values[0] + ridge <= len(x) * np.finfo(np.float64).eps * values[-1]:
        raise InputError(
            "the tangent kernel is singular up to rounding (inputs repeat or are parallel): take ridge > 0, such as "
            f"{1e-8 * values[-1]:.1g}"
        )
    return kernel(activation, x_test, x, std=std, train=train) @ (vectors @ ((vectors.T @ y) / (values + ridge)))


def frozen_prediction(
    activation: Activation,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    t: npt.ArrayLike,
    *,
    alpha: float,
    lam: float,
    x_test: npt.ArrayLike | None = None,
    std: float = 1.0,
    train: str = "both",
) -> Array:
    """Return the predictions of the linearised network at times t from f = 0: f' = -kappa H (f - y) - (lam / std^2) f.

    With H = V mu V', f = H_test a, a = V [kappa (1 - e^{-s t}) / s] V' y, s = kappa mu + lam / std^2.

    Parameters
    ----------
    t : array_like
        Times of equation (3.4), not negative.
    alpha, lam : float
        Scale of the output, strength of noise and decay.
    x_test : array_like, shape (p, d), optional
        Where to predict; the training inputs if left out.

    Returns
    -------
    ndarray, shape t.shape + (p,)
    """
    x, y, x_test = _checked(x, y, x if x_test is None else x_test)
    times, kappa, decay = _rates(t, alpha, lam, len(x), std)
    mu, vectors = np.linalg.eigh(kernel(activation, x, x, std=std, train=train))
    rate = np.maximum(kappa * np.maximum(mu, 0.0) + decay, np.finfo(np.float64).tiny)
    a = (-np.expm1(-rate * times[..., None]) / rate * kappa * (vectors.T @ y)) @ vectors.T
    return a @ kernel(activation, x_test, x, std=std, train=train).T


def lazy_prediction(
    activation: Activation,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    t: npt.ArrayLike,
    *,
    alpha: float,
    lam: float,
    x_test: npt.ArrayLike | None = None,
    std: float = 1.0,
    train: str = "both",
) -> Array:
    """Return the predictions of the nonlinear limit law at times t to leading order in 1 / alpha, from f = 0.

    f_k' = -kappa g_k M_k (f - y) - (lam / std^2) d_k f_k for the part of Hermite degree k in theta, f = sum_k f_k,
    where g_k, d_k are k + 1 ("both"), 1 ("u", exact for every alpha), k ("theta"). Its Laplace transform is a linear
    system, (1 + kappa sum_k g_k M_k / (s + lam d_k)) r(s) = -y / s, inverted along Talbot's contour
    [WeidemanTrefethen07].

    Parameters
    ----------
    t : array_like
        Times of equation (3.4), not negative.
    alpha, lam : float
        Scale of the output, strength of noise and decay. Error O(1 / alpha) of f at fixed kappa t.
    x_test : array_like, shape (p, d), optional
        Where to predict; the training inputs if left out.

    Returns
    -------
    ndarray, shape t.shape + (p,)

    Raises
    ------
    InputError
        If shapes or numbers do not fit. O((n^3 + n (n + p) terms) nodes) a time.
    """
    x, y, x_test = _checked(x, y, x if x_test is None else x_test)
    times, kappa, decay = _rates(t, alpha, lam, len(x), std)
    degrees = _Degrees(activation, std * x, std * x_test, train)
    angles = (2 * np.arange(NODES // 2) + 1) * math.pi / NODES
    contour = NODES * (0.5017 * angles / np.tan(0.6407 * angles) - 0.6122 + 0.2645j * angles)
    slope = NODES * (
        0.5017 / np.tan(0.6407 * angles) - 0.5017 * 0.6407 * angles / np.sin(0.6407 * angles) ** 2 + 0.2645j
    )
    out = np.zeros((*times.shape, len(x_test)))
    for index in np.ndindex(times.shape):
        if times[index] == 0:
            continue
        for z, dz in zip(contour, slope, strict=True):
            s = z / times[index]
            here, there = (kappa * part for part in degrees.transform(s, decay))
            r = np.linalg.solve(np.eye(len(x)) + here, -y / s)
            out[index] += 2 / NODES * np.imag(np.exp(z) * dz / times[index] * -(there @ r))
    return out


class _Degrees:
    """Coefficients of psi by Hermite degree, at training and test inputs scaled by std, with their rates."""

    def __init__(self, activation: Activation, x: Array, x_test: Array, train: str) -> None:
        norms, lengths, self.rho = correlations(x, x_test)
        here, square, missed = hermite_coefficients(activation, norms, 0)
        there, _, more = hermite_coefficients(activation, lengths, 0)
        terms = min(here.shape[1], there.shape[1])
        share = (here[:, :terms] ** 2 / np.maximum(square, np.finfo(float).tiny)[:, None]).max(axis=0)
        self.degree = np.flatnonzero(share > NEGLIGIBLE)
        self.here, self.there = here[:, :terms], there[:, :terms]
        self.own = correlations(x, x)[2]
        self.train = train
        if max(missed, more) > 1e-8:
            warnings.warn(
                f"the Hermite series of {activation.name} is right to {max(missed, more):.0e} only: scale the inputs, "
                "or take an activation without a kink",
                UserWarning,
                stacklevel=3,
            )

    def transform(self, s: complex, decay: float) -> tuple[Array, Array]:
        """Return sum_k g_k M_k / (s + decay d_k) on the training inputs (n, n) and from them to the others (p, n)."""
        k = np.arange(self.here.shape[1])
        gain = {"both": k + 1, "u": np.ones_like(k), "theta": k}[self.train]
        weights = np.zeros(len(k), dtype=complex)
        weights[self.degree] = (gain / (s + decay * gain))[self.degree]
        here = series(self.here, self.here, self.own.astype(complex), weights)
        return here, series(self.here, self.there, self.rho.astype(complex), weights).T


def _checked(x: npt.ArrayLike, y: npt.ArrayLike, x_test: npt.ArrayLike) -> tuple[Array, Array, Array]:
    inputs, labels, others = (np.asarray(values, dtype=np.float64) for values in (x, y, x_test))
    if inputs.ndim != 2 or labels.shape != (len(inputs),) or others.ndim != 2 or inputs.shape[1] != others.shape[1]:
        raise InputError(
            f"x (n, d), y (n,) and x_test (p, d) must fit, got {inputs.shape}, {labels.shape} and {others.shape}"
        )
    return inputs, labels, others


def _rates(t: npt.ArrayLike, alpha: float, lam: float, n: int, std: float) -> tuple[Array, float, float]:
    """Return the times, kappa and lam / std^2, checked."""
    times = np.asarray(t, dtype=np.float64)
    if not (np.isfinite(times) & (times >= 0)).all():
        raise InputError("times must be finite and not negative")
    if not (math.isfinite(alpha) and alpha > 0 and math.isfinite(lam) and lam >= 0 and std > 0):
        raise InputError(f"alpha and std must be positive and lam not negative, got {alpha!r}, {std!r} and {lam!r}")
    return times, 2 * alpha**2 / n, lam / std**2
