"""The empirical Rademacher complexity of the laws within a given KL of p0, estimated; Lemma 5.5 of [CCGZ20] bounds it.

    R_n(M) = E_sigma sup {(alpha / n) sum_i sigma_i E_p psi_i : KL(p || p0) <= M},     sigma_i = +-1, fair coins.

For one sigma the supremum has a dual [DonskerVaradhan75], with G = (alpha / n) sigma . h(w) and u integrated out,

    sup = inf_{s > 0} (M + Lambda(s)) / s,     Lambda(s) = log E_theta e^{s^2 G^2 / 2},

attained where s Lambda' - Lambda = M, that is where the tilted law e^{s u G} p0 has KL M. Every s gives an upper
bound: s is found on one draw of the nodes and the bound measured on another, so that the search adds no bias downwards.
As in `exponential_family` the first terms of E e^{s^2 G^2 / 2} are exact, E G^2 = (alpha / n)^2 sigma' K2 sigma; for
small M they are all, and R_n is E_sigma sqrt(2 M E G^2).

Read next: `teacher` for the labels of Theorem 4.5.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError
from meanfield.estimate import Estimate
from meanfield.exponential_family import HIGHEST, GibbsLaw, checked, growth, neurons
from meanfield.noise import Stream, uniforms
from meanfield.quadrature import HiddenLayer, jackknife
from meanfield.risk import Risk

Array = npt.NDArray[Any]

SIGNS_STEP = 1 << 20  # where the signs of the stream of quadrature begin
TABLE = 1 << 22  # numbers of a table over nodes and signs
ITERATIONS = 60
ACCURACY = 1e-8  # of M: the bound depends on s to second order
INSIDE = 0.999  # of the largest s at which Lambda is finite
FEWER = 8  # times fewer nodes for the search of s
SMALLEST = 1e-100  # what is divided by
RELATIVE = 1e-28  # of E G^2, below which it is rounding


def rademacher_complexity(
    risk: Risk, M: float, *, signs: int = 256, nodes: int | None = None, seed: int = 0
) -> Estimate:
    """Return R_n(M) for the outputs of laws with KL(p || p0) <= M nats.

    Parameters
    ----------
    risk : Risk
        Inputs, unit and alpha; labels do not matter.
    M : float
    signs : int
        Number of independent sigma; all of them are taken where 2^(n - 1) is no more than that.
    nodes : int, optional
        Of the rule for theta, as in `quadrature.gaussian_rule`.
    seed : int
        Names signs and nodes.

    Returns
    -------
    Estimate
        Its error joins that of the mean over signs and that of the nodes.

    Raises
    ------
    InputError
        If a number makes no sense, or the nodes say nothing of the most tilted law: M is too large for them.

    Warns
    -----
    UserWarning
        If they say little of it.

    Notes
    -----
    O(nodes signs n + nodes signs iterations / copies), about 10 iterations.
    """
    if not (isinstance(M, int | float | np.number) and math.isfinite(M) and M > 0):
        raise InputError(f"M must be a positive number of nats, got {M!r}.")
    if not isinstance(signs, int | np.integer) or signs < 2:
        raise InputError(f"signs must be a whole number of at least 2, got {signs!r}.")
    sigma, random = _signs(risk.n, int(signs), seed)
    search, measure = (neurons(risk, nodes, seed, draw, share=share) for draw, share in ((0, FEWER), (1, 1)))
    chunks = -(-len(sigma) * measure.rule.weights.shape[1] // TABLE)
    tilted, excess, effective = [], [], []
    for c in np.array_split(sigma * (risk.alpha / risk.n), chunks):
        tilted.append(c * _tilts(search, c, float(M))[:, None])
        found, share = _normalisers(measure, tilted[-1])
        excess.append(found)
        effective.append(share)
    c = np.concatenate(tilted)
    checked(GibbsLaw(risk, c[np.argmin(np.concatenate(effective))], measure))
    s, e = np.linalg.norm(c, axis=1) * math.sqrt(risk.n) / risk.alpha, np.concatenate(excess, axis=1)
    mean = jackknife(lambda e: np.mean((M + np.log1p(e)) / s), e, corrected=True)
    values = (M + np.log1p(e.mean(axis=0))) / s
    chance = float(values.std(ddof=1)) / math.sqrt(len(s)) if random else 0.0
    which = f"{len(s)} random signs" if random else "all signs"
    return Estimate(float(mean.value), math.hypot(float(mean.se), chance), f"{which}, {measure.rule.kind}")


def _signs(n: int, count: int, seed: int) -> tuple[Array, bool]:
    """Return signs (S, n) and whether they are random: all of one half (sigma and -sigma give the same), or drawn."""
    if n <= 24 and 1 << (n - 1) <= count:
        bits = np.arange(1 << (n - 1))[:, None] >> np.arange(n) & 1
        return 1.0 - 2.0 * bits, False
    drawn = [uniforms(seed, Stream.QUADRATURE, step=SIGNS_STEP, replicate=i, count=n) for i in range(count)]
    return np.where(np.stack(drawn) < 0.5, -1.0, 1.0), True


def _tilts(layer: HiddenLayer, c: Array, M: float) -> Array:
    """Return for each row of c (S, n) the s at which e^{s u G} p0, G = c . h, has KL M; shape (S,).

    With t = s^2 / 2 and Lambda = log E e^{t G^2}, the KL is 2 t Lambda' - Lambda >= t E G^2: Newton's method from
    t = M / E G^2 downwards, kept between bounds.
    """
    variance = np.einsum("si,ij,sj->s", c, layer.kernel, c)
    variance = np.maximum(variance, RELATIVE * np.einsum("si,ii,si->s", c, layer.kernel, c) + SMALLEST)
    square = (layer.values(0) @ c.T) ** 2
    weights = layer.rule.weights[0]
    finite = np.array([growth(layer, row) for row in c])
    most = 0.5 * (INSIDE / np.maximum(finite, SMALLEST)) ** 2
    high = np.minimum(np.minimum(M / variance, most), HIGHEST / np.maximum(square.max(axis=0), SMALLEST))
    low, t = np.zeros_like(high), high.copy()
    for _ in range(ITERATIONS):
        gain = np.expm1(square * t)
        Z = 1 + t * variance + weights @ (gain - square * t)
        slope = (variance + weights @ (gain * square)) / Z
        bend = (weights @ ((gain + 1) * square**2)) / Z - slope**2
        kl = 2 * t * slope - np.log(Z)
        low, high = np.where(kl < M, t, low), np.where(kl < M, high, t)
        if (np.abs(kl - M) <= ACCURACY * M).all() or (high - low <= ACCURACY * high).all():
            break
        step = t - (kl - M) / (slope + 2 * t * np.maximum(bend, 0.0))
        t = np.where((step > low) & (step < high), step, 0.5 * (low + high))
    return np.sqrt(2 * t)


def _normalisers(layer: HiddenLayer, c: Array) -> tuple[Array, Array]:
    """Return E e^{(c . h)^2 / 2} - 1 by copy for each row of c, (R, S), and the effective numbers of nodes (S,)."""

    def block(_: Array, h: Array, weights: Array) -> tuple[Array, ...]:
        a = np.minimum(0.5 * (h @ c.T) ** 2, HIGHEST)
        gain = np.expm1(a)
        tilt = weights[:, None] * (gain + 1)
        return weights @ (gain - a), tilt.sum(axis=0), np.einsum("bs,bs->s", tilt, tilt)

    rest, total, square = layer.averages(block)
    effective = total.sum(axis=0) ** 2 / square.sum(axis=0)
    return rest + 0.5 * np.einsum("si,ij,sj->s", c, layer.kernel, c), effective
