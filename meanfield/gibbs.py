"""The fixed point p* of Q = L + lam KL(p || p0), square loss, both layers trained: where the equation ends.

p* is one of the laws p_c ~ e^{c . psi} p0 of `exponential_family`. Fenchel's dual of Q is concave in the n numbers c,

    D(c) = (lam / alpha) c . y - (n lam^2 / (4 alpha^2)) |c|^2 - lam log Z(c),     D(c) <= Q* <= Q(p)

for every c and every law p, and c* = -(2 alpha / (n lam)) r* at the fixed point. Two identities say how far off one is:

    Q(p_c) - D(c) = |r + (n lam / (2 alpha)) c|^2 / n,  r = f(p_c) - y;
    Q(p) - Q* = |f(p) - f*|^2 / n + lam KL(p || p*)   for every p.

So a gap bounds distances to the fixed point. Of a run with residuals r_t the choice is c_t = -(2 alpha / (n lam)) r_t,
`certificate`; early, where D(c_t) is far below zero, `duality` has others. Without the quadratic term D is the dual of
the least KL of a law that interpolates, `interpolation`.

What is on the safe side. c is fitted on one draw of the nodes, and everything reported is measured on another: D(c) is
a lower bound on Q* up to the error beside it, the bias of a logarithm being taken off. Q(p_c) is convex in the measured
f, so sampling moves it up. Read D - t se <= Q* <= Q + t se with Student's t for copies - 1 degrees of freedom. With
quadrature (theta in three dimensions or fewer) both errors are rounding. With quasi-Monte-Carlo an error means what it
says while the weights of the nodes have a thin tail: laws for which they do not are refused (`GibbsLaw.doubt`), for
then log Z misses what no node saw, and D(c) would be too large.

For a prior N(0, v I) multiply x and alpha by sqrt(v); particles are then in units of sqrt(v).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError
from meanfield.estimate import Estimate
from meanfield.exponential_family import (
    LAST_DRAW,
    PILOT,
    GibbsLaw,
    checked,
    law_at,
    neurons,
    partition,
    spread,
)
from meanfield.newton import Function, maximise
from meanfield.quadrature import Average, HiddenLayer, jackknife
from meanfield.risk import Risk

Array = npt.NDArray[Any]

ENOUGH = 0.5  # effective share of the nodes that ends the fit; otherwise it goes on, on nodes that were moved


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """The fixed point p* of Q = L + lam KL: a law p_c, and what is known of it and of Q*.

    `FixedPoint(law_at(risk, c), lam)` says the same of any other c: D(c) <= Q* <= Q(p_c).

    Attributes
    ----------
    law : GibbsLaw
        p_c, within `gap` of p*: its outputs, KL, samples, density.
    lam : float
    """

    law: GibbsLaw
    lam: float

    @property
    def coefficients(self) -> Array:
        """The n numbers c."""
        return self.law.coefficients

    @property
    def prediction(self) -> Average:
        """The outputs f(p_c) with their errors, shape (n,); |f(p_c) - f*|^2 / n <= gap."""
        return self.law.prediction

    @property
    def kl(self) -> Estimate:
        """KL(p_c || p0) in nats."""
        return self.law.kl

    @property
    def loss(self) -> Estimate:
        """L(p_c), biased up by the variance of f."""
        return self._primal[0]

    @property
    def energy(self) -> Estimate:
        """Q(p_c) = L + lam KL, an upper bound on Q*."""
        return self._primal[1]

    @property
    def gap(self) -> Estimate:
        """Q(p_c) - D(c), an upper bound on Q(p_c) - Q* and on lam KL(p_c || p*)."""
        return self._primal[2]

    @cached_property
    def _primal(self) -> tuple[Estimate, Estimate, Estimate]:
        risk, c, lam = self.law.risk, self.coefficients, self.lam

        def numbers(excess: Array, slope: Array) -> Array:
            r = risk.alpha * slope / (1 + excess) - risk.y
            kl = c @ slope / (1 + excess) - np.log1p(excess)
            loss = r @ r / risk.n
            stray = r + risk.n * lam / (2 * risk.alpha) * c
            return np.array([loss, loss + lam * kl, stray @ stray / risk.n])

        found = jackknife(numbers, self.law.partition.excess, self.law.partition.slope)
        loss, energy, gap = (
            Estimate(float(value), float(se), self.law.layer.rule.kind) for value, se in zip(*found, strict=True)
        )
        return loss, energy, gap

    @cached_property
    def dual(self) -> Estimate:
        """D(c), a lower bound on Q* up to its error."""
        return _dual(self.law, self.lam, penalty_of(self.law.risk, self.lam))


def fixed_point(risk: Risk, lam: float, *, nodes: int | None = None, seed: int = 0) -> FixedPoint:
    """Return the fixed point of Q = L + lam KL(p || p0) for a network of which both layers are trained.

    c maximises D by Newton's method, to 1e-14 of its value, on one draw of the nodes; what is reported is measured on
    another.

    Parameters
    ----------
    risk : Risk
        With the square loss; `centred` does not matter.
    lam : float
    nodes : int, optional
        Of the rule for theta; see `quadrature.gaussian_rule`.
    seed : int
        Names the random shifts of quasi-Monte-Carlo points.

    Returns
    -------
    FixedPoint

    Raises
    ------
    InputError
        If the loss is not the square loss, lam is not positive, or the law lies on too few effective nodes.

    Warns
    -----
    UserWarning
        If it lies on fewer than 1000.

    Notes
    -----
    O(nodes n (n + k)) a Newton step, of which there are 3 to 10. For laws of this form see also (5.4) and (5.5) of
    [CCGZ20].
    """
    check_problem(risk, lam)
    return FixedPoint(checked(_fitted(risk, penalty_of(risk, lam), nodes, seed)), float(lam))


class Interpolation(NamedTuple):
    """The law of least KL(p || p0) among those with f = y.

    `law.kl` is that least KL for the outputs `law.prediction`, which are y up to their errors. `dual` = c . y / alpha -
    log Z is a lower bound on it for y itself, up to its error.
    """

    law: GibbsLaw
    dual: Estimate


def interpolation(risk: Risk, *, nodes: int | None = None, seed: int = 0) -> Interpolation:
    """Return the law of least KL(p || p0) among those with outputs y, max_c [c . y / alpha - log Z(c)] nats.

    KL(p*) <= Q* / lam <= this <= alpha^-2 chi^2, sharper than (5.5) of [CCGZ20]: the law interpolates, so that its Q is
    lam KL; the mixture (1 - 1/alpha) p0 + rho p0 / alpha of the teacher rho interpolates too, and KL <= chi^2.

    Raises
    ------
    InputError
        As `fixed_point`.
    DivergedError
        If no law interpolates: equal or opposite inputs with labels that do not agree.
    """
    check_problem(risk, 1.0)
    law = checked(_fitted(risk, 0.0, nodes, seed))
    return Interpolation(law, _dual(law, 1.0, 0.0))


class Certificate(NamedTuple):
    """D(c) <= Q* <= Q(p): how far a law p may be from the fixed point.

    `lower` is -inf, with the reason as its source, where the law p_c lies on too few effective nodes.
    """

    lower: Estimate
    upper: Estimate
    law: GibbsLaw
    lam: float

    @property
    def gap(self) -> Estimate:
        """Q(p) - D(c) >= Q(p) - Q*, errors joined."""
        return Estimate(self.upper.value - self.lower.value, math.hypot(self.upper.se, self.lower.se))

    @property
    def kl(self) -> Estimate:
        """An upper bound on KL(p || p*), the gap over lam."""
        return Estimate(self.gap.value / self.lam, self.gap.se / self.lam)


def certificate(
    risk: Risk, lam: float, residual: Array, energy: Estimate | float, *, nodes: int | None = None, seed: int = 0
) -> Certificate:
    """Return the bracket D(c_t) <= Q* <= Q(p_t) of a run, c_t = -(2 alpha / (n lam)) r_t (certificate C5).

    The lower side holds whatever the error of the residuals is, for D(c) <= Q* at every c; its own error is that of
    log Z alone. The upper side is as good as the energy that is given.

    Parameters
    ----------
    risk : Risk
        With the square loss.
    lam : float
    residual : ndarray, shape (n,) or (R, n)
        r_t = f(p_t) - y; the mean is taken over replicates.
    energy : Estimate or float
        Q(p_t) = L + lam KL, or an upper bound on it.
    nodes, seed
        As in `fixed_point`.

    Raises
    ------
    InputError
        As `fixed_point`, but few effective nodes only make the lower side -inf; or if shapes don't fit.
    """
    law = law_at(risk, coefficients_of(risk, lam, residual), nodes=nodes, seed=seed)
    doubt = law.doubt
    lower = Estimate(-math.inf, 0.0, doubt) if doubt else _dual(law, lam, penalty_of(risk, lam))
    upper = energy if isinstance(energy, Estimate) else Estimate(float(energy), 0.0, "given")
    return Certificate(lower, upper, law, float(lam))


def coefficients_of(risk: Risk, lam: float, residual: Array) -> Array:
    """Return c_t = -(2 alpha / (n lam)) r_t, r_t of shape (n,) or the mean over replicates of shape (R, n)."""
    check_problem(risk, lam)
    r = np.atleast_2d(np.asarray(residual, dtype=np.float64)).mean(axis=0)
    if r.shape != (risk.n,):
        raise InputError(f"residuals must have shape ({risk.n},) or (R, {risk.n}), got {np.shape(residual)}.")
    return risk.coefficients(r) / lam


def _fitted(risk: Risk, penalty: float, nodes: int | None, seed: int) -> GibbsLaw:
    """Return the law that maximises c . y / alpha - penalty |c|^2 / 2 - log Z(c), with nodes of its own."""
    c, covariance = np.zeros(risk.n), None
    for draw, share in enumerate((PILOT, 1, 1)):
        layer = neurons(risk, nodes, seed, draw, covariance, share)
        c = maximise(_climb(layer, risk.y / risk.alpha, penalty), c).point
        found = partition(layer, c)
        covariance = spread(layer, c, found)
        if draw and found.effective >= ENOUGH * layer.rule.capacity:
            break
    return GibbsLaw(risk, c, neurons(risk, nodes, seed, LAST_DRAW, covariance))


def _climb(layer: HiddenLayer, target: Array, penalty: float) -> Function:
    """Return the function that is maximised, with its gradient and Hessian."""

    def climbed(c: Array) -> tuple[float, Array, Array]:
        found = partition(layer, c, curvature=True)
        Z = 1 + found.excess.mean()
        mean, bend = found.slope.mean(axis=0) / Z, found.curvature.mean(axis=0) / Z
        value = float(c @ target - 0.5 * penalty * (c @ c) - np.log1p(found.excess.mean()))
        return value, target - penalty * c - mean, np.outer(mean, mean) - bend - penalty * np.eye(len(c))

    return climbed


def _dual(law: GibbsLaw, lam: float, penalty: float) -> Estimate:
    """Return lam (c . y / alpha - penalty |c|^2 / 2 - log Z) on the nodes of the law."""
    c, risk, log_z = law.coefficients, law.risk, law.log_normaliser
    value = c @ risk.y / risk.alpha - 0.5 * penalty * (c @ c) - log_z.value
    return Estimate(float(lam * value), lam * log_z.se, log_z.source)


def penalty_of(risk: Risk, lam: float) -> float:
    """Return n lam / (2 alpha^2), the weight of |c|^2 / 2 in D(c) / lam."""
    return risk.n * lam / (2 * risk.alpha**2)


def check_problem(risk: Risk, lam: float) -> None:
    """Refuse a problem of which the dual is not known here."""
    if not isinstance(risk, Risk) or risk.loss != "square":
        raise InputError("Gibbs laws are for a Risk with loss='square'; the dual of other losses is not here.")
    if not (isinstance(lam, int | float | np.number) and math.isfinite(lam) and lam > 0):
        raise InputError(f"lam must be a positive number, got {lam!r}; without noise there is no fixed point law.")
