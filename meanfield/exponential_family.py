"""The laws p_c ~ e^{c . psi} p0 on neurons z = (theta, u), psi_i = u h(w_i), w_i = theta . x_i.

Given theta, u integrates out. With g = c . h(w),

    u | theta ~ N(g, 1),     theta ~ e^{g^2 / 2} p0 / Z,     Z(c) = E_theta e^{g^2 / 2},     E_p psi = grad log Z.

The first terms of the series of Z are known exactly, E_theta g^2 = c' K2 c with K2 = E h h', and only the rest is
integrated (control variates): with a = g^2 / 2,

    Z = 1 + c' K2 c / 2 + E[e^a - 1 - a],   grad Z = K2 c + E (e^a - 1) g h,   Z'' = K2 + E (e^a (1 + g^2) - 1) h h'.

So little is left to integrate where a network moves little, which is where alpha multiplies every error.

Z is finite for bounded h. Elsewhere it is while |g(theta)| < |theta| far out; that is tested along directions, exactly
for linear h and in one dimension, by search for others, which is no proof.

Read next: `gibbs`, where these laws are the answer.
"""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanfield import pareto
from meanfield.errors import InputError
from meanfield.estimate import Estimate
from meanfield.pareto import tail_shape
from meanfield.quadrature import (
    GRID,
    SOBOL,
    Average,
    HiddenLayer,
    elsewhere,
    gaussian_rule,
    hidden_layer,
    jackknife,
    smoothed,
    span,
)
from meanfield.rejection import lifted, rejection
from meanfield.risk import Risk

Array = npt.NDArray[Any]

HIGHEST = 300.0  # of g^2 / 2 at a node: beyond, e^{g^2} would leave double precision
# The effective share of the nodes below which they are moved to where the law is: grids late, for they get coarser.
CONCENTRATED = {GRID: 0.5, SOBOL: 1.0}
EXCESS = 2.0  # of the spread of moved nodes over that of p0, in units of the law's
FEWEST, FEW = 100.0, 1000.0  # effective nodes below which a law is refused, its errors are doubted
PILOT = 8  # the first look at a law, and the first fit, have so many times fewer nodes
LAST_DRAW = 3  # of the nodes on which a law is measured
FAR = 1e6  # where the growth of an unbounded activation is read off
DIRECTIONS, CLIMBERS, ASCENTS = 512, 16, 30  # for the search of the fastest growth


class Partition(NamedTuple):
    """Z and its derivatives, a copy of the rule on every first axis; infinite where Z is, or overflows."""

    excess: Array  # (R,)  Z - 1
    slope: Array  # (R, n)  grad Z
    curvature: Array  # (R, n, n)  Z'', empty where it was not asked for
    total: Array  # (R,)  sum of w e^a
    square: Array  # (R,)  sum of w^2 e^{2 a}

    @property
    def effective(self) -> float:
        """The effective number of nodes, (sum w e^a)^2 / sum (w e^a)^2 [Kong92]; 0 where Z is infinite."""
        return float(self.total.sum() ** 2 / self.square.sum()) if np.isfinite(self.excess).all() else 0.0


def partition(layer: HiddenLayer, c: Array, *, curvature: bool = False) -> Partition:
    """Return Z(c) and its derivatives over the nodes of a layer. O(R N n), with curvature O(R N n^2)."""
    n, R = len(c), layer.rule.copies
    q = n if curvature else 0

    def block(_: Array, h: Array, weights: Array) -> tuple[Array, ...]:
        g = h @ c
        a = 0.5 * g * g
        if a.max() > HIGHEST:
            return np.array(math.inf), np.zeros(n), np.zeros((q, q)), np.zeros(()), np.zeros(())
        gain = np.expm1(a)
        tilt = weights * (gain + 1.0)
        bend = weights * (gain + (gain + 1.0) * g * g)
        return (
            weights @ (gain - a), (weights * gain * g) @ h, (h[:, :q].T * bend) @ h[:, :q], tilt.sum(), tilt @ tilt
        )  # fmt: skip

    if growth(layer, c) >= 1:
        infinite = np.full(R, math.inf)
        return Partition(infinite, np.zeros((R, n)), np.zeros((R, q, q)), infinite, infinite)
    excess, slope, bend, total, square = layer.averages(block)
    push = layer.kernel @ c
    return Partition(excess + 0.5 * float(c @ push), slope + push, bend + layer.kernel[:q, :q], total, square)


def growth(layer: HiddenLayer, c: Array) -> float:
    """Return the largest |g(theta)| / |theta| far out that was found: below 1, Z is finite. 0 for a bounded h."""
    if math.isfinite(layer.activation.suprema[0]) or not layer.x.size:
        return 0.0
    at = _unit(layer.rule.points[0, :: max(layer.rule.points.shape[1] // DIRECTIONS, 1)])
    found, uphill = _far(layer, c, at)
    best = np.argsort(-found, kind="stable")[:CLIMBERS]
    at, found, uphill = at[best], found[best], uphill[best]
    step = np.full((len(at), 1), np.inf)
    for _ in range(ASCENTS):
        # The first step goes all the way to the gradient: for linear h it arrives.
        there = _unit(np.where(np.isinf(step), uphill, at + np.where(np.isinf(step), 0.0, step) * uphill))
        reached, slope = _far(layer, c, there)
        higher = (reached > found)[:, None]
        at, uphill = np.where(higher, there, at), np.where(higher, slope, uphill)
        step = np.where(higher, step, np.where(np.isinf(step), 1.0, 0.5 * step))
        found = np.maximum(found, reached)
    return float(found.max())


def _far(layer: HiddenLayer, c: Array, directions: Array) -> tuple[Array, Array]:
    """Return |g| / |theta| far out along directions (b, k), and the directions in which it rises."""
    h, slopes = layer.activation.value_and_first(FAR * directions @ layer.x.T)
    g = h @ c
    return np.abs(g) / FAR, _unit(np.sign(g)[:, None] * ((slopes * c) @ layer.x))


def _unit(rows: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def neurons(
    risk: Risk, nodes: int | None, seed: int, draw: int, covariance: Array | None = None, share: int = 1
) -> HiddenLayer:
    """Return the hidden layer of a risk at the nodes of a rule, or of one with `share` times fewer nodes."""
    _, x = span(risk.inputs)
    rule = gaussian_rule(x.shape[1], nodes, seed=seed, draw=draw, covariance=covariance, share=share)
    return hidden_layer(rule, risk.unit.h, x, risk.gram_start(train="u"))


def spread(layer: HiddenLayer, c: Array, found: Partition) -> Array | None:
    """Return the covariance C of nodes for the law at c, None for N(0, I).

    C is the law's own E theta theta' with its excess over I doubled: with thinner tails a few nodes far out would carry
    the average. No eigenvalue is below 1, so that the ratio of the law to N(0, C) stays bounded for bounded h. Nodes
    that were moved are not moved back.
    """
    if not (layer.rule.moved or found.effective < CONCENTRATED[layer.rule.kind] * layer.rule.capacity) or not found.effective:
        return None

    def block(points: Array, h: Array, weights: Array) -> tuple[Array]:
        tilt = weights * np.exp(np.minimum(0.5 * (h @ c) ** 2, HIGHEST))
        return ((points.T * tilt) @ points,)

    second = layer.averages(block)[0].sum(axis=0) / found.total.sum()
    values, vectors = np.linalg.eigh(second)
    return (vectors * (1 + EXCESS * np.maximum(values - 1, 0.0))) @ vectors.T


@dataclass(frozen=True, eq=False)
class GibbsLaw:
    """The law p_c ~ e^{c . psi} p0 of a neuron, with what quadrature says of it.

    Attributes
    ----------
    risk : Risk
        The network: inputs, unit and alpha.
    coefficients : ndarray, shape (n,)
        c.
    layer : HiddenLayer
        The nodes on which expectations are measured; c does not come from them.
    """

    risk: Risk
    coefficients: Array
    layer: HiddenLayer

    @cached_property
    def partition(self) -> Partition:
        """Z and grad Z at the nodes."""
        return partition(self.layer, self.coefficients)

    @property
    def effective(self) -> float:
        """The effective number of nodes."""
        return self.partition.effective

    @cached_property
    def tail(self) -> float:
        """The shape k of the tail of the nodes' weights; above 0.7 no mean over them can be believed [Vehtari24]."""
        c = self.coefficients
        masses = np.log(np.maximum(self.layer.rule.weights, np.finfo(np.float64).tiny))
        return tail_shape(masses + self.layer.at_nodes(lambda _, h: 0.5 * (h @ c) ** 2))

    @property
    def doubt(self) -> str:
        """Why the nodes say little of the law, as a sentence; empty where they do. Grids are compared instead."""
        return self._doubt(FEWEST, pareto.HOPELESS)

    def _doubt(self, fewest: float, heaviest: float) -> str:
        if self.partition.effective == 0:
            return "Z is infinite, or beyond double precision"
        if self.layer.rule.kind != SOBOL:
            return ""
        if self.effective < fewest:
            return f"it lies on {self.effective:.0f} effective nodes of {self.layer.rule.weights.size}"
        if self.tail > heaviest:
            return f"the weights of its nodes have a tail of shape {self.tail:.2f}, above {heaviest:g}"
        return ""

    @property
    def copies(self) -> int:
        """The number of copies of the rule: errors have one degree of freedom less."""
        return self.layer.rule.copies

    @cached_property
    def log_normaliser(self) -> Estimate:
        """The value log Z, the bias of a logarithm of averages taken off."""
        found = jackknife(np.log1p, self.partition.excess, corrected=True)
        return Estimate(float(found.value), float(found.se), self.layer.rule.kind)

    @cached_property
    def prediction(self) -> Average:
        """The outputs f = alpha E psi at the inputs, each with its error, shape (n,)."""
        return jackknife(lambda e, s: self.risk.alpha * s / (1 + e), self.partition.excess, self.partition.slope)

    @cached_property
    def kl(self) -> Estimate:
        """KL(p_c || p0) = c . E psi - log Z, in nats."""
        c = self.coefficients
        found = jackknife(lambda e, s: c @ s / (1 + e) - np.log1p(e), self.partition.excess, self.partition.slope)
        return Estimate(float(found.value), float(found.se), self.layer.rule.kind)

    def predict(self, x: npt.ArrayLike) -> Average:
        """Return f at other inputs x (q, d), each with its error, shape (q,). O(R N q)."""
        h, c = self.risk.unit.h, self.coefficients
        there = elsewhere(h, self.risk.inputs, self.risk.unit.inputs(np.atleast_2d(np.asarray(x, dtype=np.float64))))

        def block(points: Array, hidden: Array, weights: Array) -> tuple[Array]:
            g = hidden @ c
            return ((weights * np.expm1(0.5 * g * g) * g) @ smoothed(h, points @ there.along.T, there.width),)

        slope = self.layer.averages(block)[0] + c @ there.kernel
        return jackknife(lambda e, s: self.risk.alpha * s / (1 + e), self.partition.excess, slope)

    def moments(self) -> tuple[Average, Average]:
        """Return the mean (D,) and the second moment E z z' (D, D), each with its error. O(R N (n + k^2))."""
        c, k = self.coefficients, self.layer.x.shape[1]

        def block(points: Array, h: Array, weights: Array) -> tuple[Array, Array]:
            g = h @ c
            z = np.column_stack([points, g])
            tilt = weights * np.exp(0.5 * g * g)
            return tilt @ z, (z.T * tilt) @ z

        first, second = self.layer.averages(block)
        basis = span(self.risk.inputs)[0]
        lift = np.zeros((k + 1, basis.shape[1] + 1))
        lift[:k, :-1], lift[k, -1] = basis, 1.0
        rest = (
            np.eye(lift.shape[1]) - lift.T @ lift + np.outer(lift[k], lift[k])
        )  # across the span, and of u given theta
        mean = jackknife(lambda t, s: s / t @ lift, self.partition.total, first)
        square = jackknife(lambda t, s: rest + lift.T @ (s / t) @ lift, self.partition.total, second)
        return mean, square

    def log_density_ratio(self, z: Array) -> Array:
        """Return log(p_c / p0) at points z (m, D): c . psi - log Z, shape (m,)."""
        z = _points(z, self.risk)
        return z[:, -1] * self._field(z[:, :-1]) - self.log_normaliser.value

    def _field(self, theta: Array) -> Array:
        return self.risk.unit.h.value(theta @ self.risk.inputs.T) @ self.coefficients

    def sample(self, m: int, seed: int = 0) -> Array:
        """Return m independent samples z (m, D), a function of the seed; `rejection.rejection` says what may fail."""
        basis, x = span(self.risk.inputs)
        scale = self.layer.rule.scale
        inverse = np.linalg.inv(scale)

        def log_ratio(points: Array, h: Array | None = None) -> Array:
            h = self.risk.unit.h.value(points @ x.T) if h is None else h
            unscaled = points @ inverse.T
            far = np.einsum("bk,bk->b", points, points) - np.einsum("bk,bk->b", unscaled, unscaled)
            return 0.5 * ((h @ self.coefficients) ** 2 - far)

        theta, _ = rejection(log_ratio, scale, m, seed=seed, bound=float(self.layer.at_nodes(log_ratio).max()))
        z = lifted(theta, basis, seed)
        z[:, -1] += self._field(z[:, :-1])
        return z


def law_at(risk: Risk, c: Array, *, nodes: int | None = None, seed: int = 0) -> GibbsLaw:
    """Return the law p_c with nodes put where it is; the looks at it that tell where use others."""
    c = np.asarray(c, dtype=np.float64)
    if c.shape != (risk.n,) or not np.isfinite(c).all():
        raise InputError(f"coefficients must be {risk.n} finite numbers, got {c!r}.")
    covariance = None
    for draw, share in ((0, PILOT), (1, 1)):
        layer = neurons(risk, nodes, seed, draw, covariance, share)
        covariance = spread(layer, c, partition(layer, c))
    return GibbsLaw(risk, c, neurons(risk, nodes, seed, LAST_DRAW, covariance))


def checked(law: GibbsLaw) -> GibbsLaw:
    """Return the law; refuse one of which the nodes say nothing, warn where errors are doubtful."""
    if law.doubt:
        raise InputError(
            f"the law is too far from p0 for its nodes: {law.doubt}. Take more nodes=, or a larger lam or alpha."
        )
    doubt = law._doubt(FEW, pareto.DOUBTFUL)
    if doubt:
        warnings.warn(f"errors may be too small: {doubt}; more nodes= help", UserWarning, stacklevel=3)
    return law


def _points(z: Array, risk: Risk) -> Array:
    z = np.atleast_2d(np.asarray(z, dtype=np.float64))
    if z.ndim != 2 or z.shape[1] != risk.inputs.shape[1] + 1:
        raise InputError(f"points must have shape (m, {risk.inputs.shape[1] + 1}), got {z.shape}.")
    return z
