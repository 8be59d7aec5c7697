"""Lower bounds on min Q that are cheap enough to be taken along a run: the dual of Gibbs where it is large.

D(c) <= Q* holds for every c (`gibbs`), so that c may be chosen by any rule. Two directions are tried,

    c_t = -(2 alpha / (n lam)) r_t     that of the fixed point, where the run is near it;
    c_frozen = (K2 + n lam / (2 alpha^2))^-1 y / alpha,  K2 = E h h'     that of frozen features,

the second because log Z = c' K2 c / 2 to second order, so that it is right where the law has little to move. Far from
p* both are too long: D falls far below zero, and e^{c . psi} p0 lies where no node is. So a multiple s c is taken, s in
(0, 1]: of those whose nodes can be trusted the one of largest D. Direction and multiple are chosen on nodes of their
own, D is measured on others, twice: weights of nodes are skewed, so that a draw which misses the far ones has a D that
is too large and an error that is too small, and the smaller of two is taken. For every law p

    Q(p) - D(c) = |f(p) - y + (n lam / (2 alpha)) c|^2 / n + lam KL(p || p_c),

at p* in particular, so that D(c) also says where the outputs f* of the fixed point are (`Bound`).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanfield import parallel
from meanfield.estimate import Estimate
from meanfield.exponential_family import HIGHEST, LAST_DRAW, PILOT, GibbsLaw, growth, neurons, partition, spread
from meanfield.gibbs import FixedPoint, check_problem, coefficients_of, penalty_of
from meanfield.quadrature import SOBOL, HiddenLayer
from meanfield.risk import Risk

Array = npt.NDArray[Any]

MULTIPLES = 2.0 ** (-np.arange(97) / 8)
TRUSTED = 0.25  # effective share of the nodes below which no multiple is chosen
RETREAT, RETREATS = 0.8, 4  # of the multiple, while its nodes cannot be trusted
LAST_DRAWS = (LAST_DRAW, LAST_DRAW + 1)  # of the nodes on which D is measured
ZERO = "zero"  # the source of D(0)
INSIDE = 0.95  # of the multiple at which Z becomes infinite, for unbounded h


class Bound(NamedTuple):
    """D(c) <= Q* <= Q(p_c) = `above`, and outputs near those of p*: |f* - prediction|^2 / n <= Q* - D(c).

    `energy.source` is "c_t", "0.25 c_t", "0.5 c_frozen" and the like, or "zero" for D(0) = 0. Its error is that of the
    copies of the nodes: read it with Student's factor for 8 of them; with three dimensions or fewer it is rounding.
    """

    energy: Estimate
    above: Estimate
    prediction: Array


class Choice(NamedTuple):
    """A multiple s of a direction, and D(s c) / lam on the nodes on which it was chosen; s = 0 is D(0) = 0."""

    multiple: float
    value: float


@dataclass(frozen=True, eq=False)
class Dual:
    """The dual of Gibbs of a problem, to be asked for bounds many times.

    Parameters
    ----------
    risk : Risk
        With the square loss.
    lam : float
    nodes : int, optional
        Of the rule for theta; see `quadrature.gaussian_rule`.
    seed : int
        Names the random shifts of quasi-Monte-Carlo points.

    Raises
    ------
    InputError
        If the loss is not the square loss, or lam is not positive.
    """

    risk: Risk
    lam: float
    nodes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_problem(self.risk, self.lam)

    def bound(self, residual: Array) -> Bound:
        """Return D(s c) <= Q* for the better of c_t and c_frozen.

        Parameters
        ----------
        residual : ndarray, shape (n,) or (R, n)
            r_t = f(p_t) - y; the mean is taken over replicates.

        Notes
        -----
        O(nodes n k): two passes over the nodes, one over an eighth of them; where c_frozen wins, only once.
        """
        with parallel.single_threaded_blas():
            c = coefficients_of(self.risk, self.lam, residual)
            choice = self._choose(self._pilot, c)
            if choice.value <= self._frozen_choice.value:
                return self._frozen
            found = self._measured("c_t", c, choice)
            return self._frozen if found.energy.source == ZERO else found

    @cached_property
    def _pilot(self) -> HiddenLayer:
        return neurons(self.risk, self.nodes, self.seed, 0, None, PILOT)

    @cached_property
    def _direction(self) -> Array:
        K2, risk = self.risk.gram_start(train="u"), self.risk
        return np.linalg.solve(K2 + penalty_of(risk, self.lam) * np.eye(risk.n), risk.y / risk.alpha)

    @cached_property
    def _frozen_choice(self) -> Choice:
        return self._choose(self._pilot, self._direction)

    @cached_property
    def _frozen(self) -> Bound:
        return self._measured("c_frozen", self._direction, self._frozen_choice)

    def _measured(self, name: str, c: Array, choice: Choice) -> Bound:
        """Return D at a multiple of c that is chosen anew on nodes moved to where the first choice is."""
        layer = neurons(self.risk, self.nodes, self.seed, 1, self._spread(self._pilot, choice.multiple * c), PILOT)
        s = self._choose(layer, c).multiple
        for _ in range(RETREATS + 1 if s else 0):
            covariance = self._spread(layer, s * c)
            laws = [GibbsLaw(self.risk, s * c, self._nodes(draw, covariance)) for draw in LAST_DRAWS]
            if not any(law.doubt for law in laws):
                law = min(laws, key=lambda law: FixedPoint(law, float(self.lam)).dual.value)
                return self._bound(law, name if s == 1 else f"{s:.3g} {name}")
            s *= RETREAT
        start = float((self.risk.y**2).mean())
        return Bound(Estimate(0.0, 0.0, ZERO), Estimate(start, 0.0, ZERO), self.risk.y)

    def _bound(self, law: GibbsLaw, source: str) -> Bound:
        point = FixedPoint(law, float(self.lam))
        energy, above = (e._replace(source=source) for e in (point.dual, point.energy))
        slope = self.risk.alpha * penalty_of(self.risk, self.lam)
        return Bound(energy, above, self.risk.y - slope * law.coefficients)

    def _nodes(self, draw: int, covariance: Array | None) -> HiddenLayer:
        return neurons(self.risk, self.nodes, self.seed, draw, covariance)

    def _spread(self, layer: HiddenLayer, c: Array) -> Array | None:
        return spread(layer, c, partition(layer, c))

    def _choose(self, layer: HiddenLayer, c: Array) -> Choice:
        """Return the multiple of c at which D is largest on the nodes of a layer."""
        half = 0.5 * layer.at_nodes(lambda _, h: h @ c) ** 2
        target, penalty = self.risk.y / self.risk.alpha, penalty_of(self.risk, self.lam)
        rate, square = growth(layer, c), 0.5 * float(c @ layer.kernel @ c)
        linear, bend = float(c @ target), 0.5 * penalty * float(c @ c)
        best = Choice(0.0, 0.0)
        for s in MULTIPLES:
            if s * s * float(half.max()) > HIGHEST or s * rate > INSIDE:
                continue
            excess, share = _excess(layer, s * s * half)
            value = s * linear - s * s * bend - math.log1p(s * s * square + excess)
            if value > best.value and (layer.rule.kind != SOBOL or share >= TRUSTED):
                best = Choice(float(s), value)
        return best


def _excess(layer: HiddenLayer, a: Array) -> tuple[float, float]:
    """Return E[e^a - 1 - a] over the nodes, and the effective share of them under e^a."""
    rule = layer.rule
    tilt = rule.weights * np.exp(a)
    share = float(tilt.sum() ** 2 / (tilt * tilt).sum()) / rule.capacity
    return float((rule.weights * (np.expm1(a) - a)).sum()) / rule.copies, share
