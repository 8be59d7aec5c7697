"""How a step is made: which residual drives its kicks, how long they are, and what its linear part does.

Every scheme is kick, channel, kick. A kick moves particles along b with the residual frozen at J; the channel is
linear and Gaussian, z <- c z + sigma xi, and moves the coupled reference by the same noise.

    name            kick before     J                    channel c, sigma^2                      kick after
    kernel          eta / 2         mean residual        e^{-lam eta}, 1 - c^2                   eta / 2
    kernel2         eta / 2         the same, midpoint   e^{-lam eta}, 1 - c^2                   eta / 2
    exponential     phi / c         r                    e^{-lam eta}, 1 - c^2; phi = (1-c)/lam  -
    euler           eta / c         r                    1 - eta lam, 2 eta lam                  -
    euler_literal   (eta / m) / c   r                    1 - eta lam / m, 2 eta lam              -

The mean residual solves the frozen-kernel equation (I1), r' = -kappa H r + alpha lam e, over the step,

    J = phi1(kappa H eta) r + eta phi2(kappa H eta) alpha lam e,

so that the stiff direction of the dynamics puts no limit on eta. `euler` is Algorithm 1 of [CCGZ20] in the time of
their equation (3.4), t = k eta; `euler_literal` is Algorithm 1 as printed, with 1/m in the gradient and not in the
noise, whose law without loss tends to variance m / (1 - eta lam / (2 m)) and not to p0.
"""

import math
from typing import NamedTuple

import numpy as np

from meanfield.account import Channel
from meanfield.errors import InputError

Array = np.ndarray


class Scheme(NamedTuple):
    """A way of making a step: its name, its family, and whether its stability limits eta."""

    name: str
    explicit: bool
    exact_decay: bool
    midpoint: bool = False
    literal: bool = False


class Plan(NamedTuple):
    """The parts of one step: lengths of the kicks, the channel, and what it does to a mean.

    The channel is an Ornstein-Uhlenbeck flow over the time `decay_time` = -log c, along which E psi moves at the rate
    E[v Laplace psi - z . grad psi], v = sigma^2 / (1 - c^2), `noise_time` = v `decay_time`: exact for every scheme.
    """

    before: float
    channel: Channel
    after: float
    noise_time: float
    decay_time: float


SCHEMES = {
    "kernel": Scheme("kernel", explicit=False, exact_decay=True),
    "kernel2": Scheme("kernel2", explicit=False, exact_decay=True, midpoint=True),
    "exponential": Scheme("exponential", explicit=True, exact_decay=True),
    "euler": Scheme("euler", explicit=True, exact_decay=False),
    "euler_literal": Scheme("euler_literal", explicit=True, exact_decay=False, literal=True),
}


def plan(scheme: Scheme, eta: float, lam: float, decay: float, m: int, variance: float) -> Plan:
    """Return the parts of a step of length eta.

    Parameters
    ----------
    eta, lam : float
        Length of the step in the time of (3.4), strength of noise and decay.
    decay : float
        1 / std^2 of the prior, 0 without a prior.
    m : int
        Number of particles (for `euler_literal`).
    variance : float
        s^2 of the reference before the step.

    Raises
    ------
    InputError
        If an Euler step is so long that the decay overshoots.
    """
    share = 1.0 / m if scheme.literal else 1.0
    rate = lam * decay * share
    if scheme.exact_decay:
        c, decay_time = math.exp(-rate * eta), rate * eta
        sigma2 = -math.expm1(-2 * rate * eta) / decay if rate else 2 * lam * eta
        length = -math.expm1(-rate * eta) / rate if rate else eta
    else:
        c, sigma2, length = 1 - rate * eta, 2 * lam * eta, share * eta
        if c <= 0:
            raise InputError(
                f"eta * lam = {rate * eta:.3g} makes the decay of an Euler step overshoot; "
                f"take eta below {1 / rate:.3g}"
            )
        decay_time = -math.log1p(-rate * eta)
    if c == 0 and scheme.explicit:
        raise InputError(
            f"eta * lam = {rate * eta:.3g} leaves nothing of a particle after a step; take eta below {1 / rate:.3g}"
        )
    channel = Channel(c, math.sqrt(sigma2), variance)
    noise_time = sigma2 * decay_time / -math.expm1(-2 * decay_time) if decay_time else 0.5 * sigma2
    if scheme.explicit:
        return Plan(length / c, channel, 0.0, noise_time, decay_time)
    return Plan(0.5 * eta, channel, 0.5 * eta, noise_time, decay_time)


def mean_residual(
    spectrum: tuple[Array, Array], residual: Array, curvature: Array, forcing: Array, kappa: float, eta: float
) -> Array:
    """Return J, the mean over [0, eta] of the solution of r' = -kappa D H r + D forcing from r(0) = residual.

    Parameters
    ----------
    spectrum : tuple
        Eigenvalues and eigenvectors of D^1/2 H D^1/2, D = diag(curvature) (the identity for the square loss).
    forcing : ndarray, shape (n,)
        alpha lam e.
    """
    values, vectors = spectrum
    root = np.sqrt(curvature)
    safe = np.where(root > 0, root, 1.0)
    x = kappa * np.maximum(values, 0.0) * eta
    inner = phi1(x) * (vectors.T @ (residual / safe)) + eta * phi2(x) * (vectors.T @ (root * forcing))
    return np.where(root > 0, root * (vectors @ inner), residual)


def phi1(x: Array) -> Array:
    """Return (1 - e^-x) / x, and 1 at 0."""
    small = x < 1e-5
    safe = np.where(small, 1.0, x)
    return np.where(small, 1 - x / 2 + x * x / 6, -np.expm1(-safe) / safe)


def phi2(x: Array) -> Array:
    """Return (x - 1 + e^-x) / x^2, and 1/2 at 0."""
    small = x < 1e-2
    safe = np.where(small, 1.0, x)
    series = 0.5 - x / 6 + x**2 / 24 - x**3 / 120 + x**4 / 720 - x**5 / 5040
    return np.where(small, series, (safe + np.expm1(-safe)) / safe**2)
