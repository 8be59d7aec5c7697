"""Expectations over theta ~ N(0, I) of functions of w_i = theta . x_i, with an error beside each.

Such functions see theta only in the span of the inputs, so R^d is turned into R^k, k the rank of the inputs: two
samples need two dimensions whatever d is. Up to k = 3 the rule is the product trapezoidal rule, whose error falls
exponentially for analytic integrands [TrefethenWeideman14]; above, digitally shifted Sobol points [Dick10].

Every rule comes in `copies`: grids shifted against each other, or point sets with independent random shifts. The
result is that of all copies together, its error comes from leaving out one copy at a time (`jackknife`). For shifted
points that is a standard error. For the two grids, of which one ends earlier, it is half their difference: about the
error of a single one.

Where an integrand is concentrated, nodes are drawn from N(0, C) and weighted by p0 / N(0, C). Weights are not divided
by their sum: every average is unbiased.

Read next: `gibbs` and `teacher`, which integrate; `rejection` draws samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanfield import ntk, parallel
from meanfield.errors import InputError
from meanfield.noise import Stream, uniforms
from meanfield.units import Activation

Array = npt.NDArray[Any]

GRID, SOBOL = "trapezoid", "Sobol"  # kinds of rules
GRID_RANK = 3  # products of grids up to that rank
REACH = {0: 0.0, 1: 16.0, 2: 12.0, 3: 11.0}  # radius of the ball of nodes
SHORTER = 0.9  # of it, in the second grid, so that the two differ by what is cut off too
NODES = {0: 64, 1: 1 << 13, 2: 1 << 16, 3: 1 << 18}  # in all copies, by rank
SOBOL_NODES, FEWEST = 1 << 17, 64
GRID_COPIES, SOBOL_COPIES = 2, 8
BITS = 52  # of a Sobol coordinate
RANK = 1e-12  # singular values below that part of the largest count as zero
SMOOTHING, SMOOTHING_REACH = 0.25, 8.5  # spacing and reach of the rule across the span


class Average(NamedTuple):
    """Values and their errors, arrays of one shape."""

    value: Array
    se: Array


@dataclass(frozen=True, eq=False)
class Rule:
    """Nodes and weights for E_theta, theta ~ N(0, I_k), in independent copies.

    Attributes
    ----------
    points : ndarray, shape (R, N, k)
    weights : ndarray, shape (R, N)
        Their expectation over the shifts sums to 1 in each copy.
    kind : str
        "trapezoid" or "Sobol".
    scale : ndarray, shape (k, k)
        C^1/2: the points are this times nodes for N(0, I).
    moved : bool
        Whether C was given.
    capacity : float
        The effective number of nodes where they lie as the law does, (sum w)^2 / sum w^2 for C = I.
    """

    points: Array
    weights: Array
    kind: str
    scale: Array
    moved: bool
    capacity: float

    @property
    def copies(self) -> int:
        """The number of copies."""
        return len(self.points)


def span(x: Array) -> tuple[Array, Array]:
    """Return an orthonormal basis (k, d) of the span of the rows of x, and x in that basis (n, k); O(n d min(n, d))."""
    _, sizes, rows = np.linalg.svd(np.asarray(x, dtype=np.float64), full_matrices=False)
    basis = rows[sizes > RANK * max(float(sizes[0]), np.finfo(np.float64).tiny)]
    return basis, x @ basis.T


def gaussian_rule(
    k: int,
    nodes: int | None = None,
    *,
    seed: int = 0,
    draw: int = 0,
    covariance: Array | None = None,
    share: int = 1,
) -> Rule:
    """Return a rule for theta ~ N(0, I_k).

    Parameters
    ----------
    k : int
        The dimension.
    nodes : int, optional
        In all copies together, about; by default 2^13, 2^16 and 2^18 for k = 1, 2, 3 and 2^17 above.
    seed : int
        Names the random shifts, with `draw`.
    draw : int
        Rules of different draws have other shifts: what is fitted on one is measured on another.
    covariance : ndarray, shape (k, k), optional
        C, where the nodes lie; N(0, I) by default.
    share : int
        Take so many times fewer nodes.

    Raises
    ------
    InputError
        If the number of nodes makes no sense.
    """
    wanted = NODES.get(k, SOBOL_NODES) if nodes is None else nodes
    if not isinstance(wanted, int | np.integer) or not FEWEST <= wanted <= 1 << 30:
        raise InputError(f"nodes must be a whole number from {FEWEST} to 2^30, got {wanted!r}; the default is good.")
    if 8 * wanted * k > parallel.memory():
        raise InputError(
            f"{wanted} nodes in {k} dimensions take {8 * wanted * k >> 20} MB, more than the memory budget of "
            f"{parallel.memory() >> 20} MB; take fewer nodes=, or raise the budget (parallel.set_memory)."
        )
    wanted = max(int(wanted) // share, FEWEST)
    if k <= GRID_RANK:
        points, weights = _grids(k, wanted // GRID_COPIES, draw)
        kind = GRID
    else:
        points = _sobol(k, wanted // SOBOL_COPIES, seed, draw)
        weights, kind = np.full(points.shape[:2], 1 / points.shape[1]), SOBOL
    capacity = float(weights.sum() ** 2 / (weights**2).sum())
    if covariance is None:
        return Rule(points, weights, kind, np.eye(k), False, capacity)
    values, vectors = np.linalg.eigh(covariance)
    scale = vectors * np.sqrt(values)
    placed = points @ scale.T
    ratio = 0.5 * (np.einsum("rik,rik->ri", points, points) - np.einsum("rik,rik->ri", placed, placed))
    return Rule(placed, weights * np.exp(ratio + 0.5 * np.log(values).sum()), kind, scale, True, capacity)


def _grids(k: int, nodes: int, draw: int) -> tuple[Array, Array]:
    """Return two trapezoidal grids in a ball, shifted by half a diagonal; another draw shifts both by an eighth."""
    volume = math.pi ** (k / 2) / math.gamma(k / 2 + 1)
    spacing = (volume * REACH[k] ** k / nodes) ** (1 / max(k, 1))
    steps = np.arange(-math.ceil(REACH[k] / spacing), math.ceil(REACH[k] / spacing) + 1) if k else np.zeros(1)
    grids, masses = [], []
    for shift, reach in ((0.0, math.inf), (0.5, SHORTER * REACH[k])):
        axis = spacing * (steps + (shift + 0.125 * (draw % 4)) % 1.0)
        mesh = np.stack(np.meshgrid(*[axis] * k, indexing="ij"), axis=-1).reshape(-1, k) if k else np.zeros((1, 0))
        square = np.einsum("ik,ik->i", mesh, mesh)
        inside = np.sort(np.argsort(square, kind="stable")[:nodes])  # as many nodes in every copy
        density = np.exp(-0.5 * square[inside]) * (square[inside] <= reach**2)
        grids.append(mesh[inside])
        masses.append(density / density.sum())
    return np.stack(grids), np.stack(masses)


def _sobol(k: int, nodes: int, seed: int, draw: int) -> Array:
    """Return Sobol points of N(0, I_k), a random digital shift a copy; a power of two in each."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    power = int(math.log2(nodes))
    bits = (qmc.Sobol(k, scramble=False, bits=BITS).random_base2(power) * 2.0**BITS).astype(np.uint64)
    points = np.empty((SOBOL_COPIES, *bits.shape))
    for copy, out in enumerate(points):
        shift = uniforms(seed, Stream.QUADRATURE, step=draw, replicate=copy, count=k)
        shifted = bits ^ (shift * 2.0**BITS).astype(np.uint64)
        ndtri((shifted.astype(np.float64) + 0.5) * 2.0**-BITS, out=out)
    return points


def jackknife(function: Callable[..., Array], *means: Array, corrected: bool = False) -> Average:
    """Return function(means over the copies) and its error, from leaving out one copy at a time.

    Parameters
    ----------
    function : callable
        Of arrays of the shapes of `means` without their first axis; returns one array.
    means : ndarrays, shape (R, ...)
        Averages over each of the R copies.
    corrected : bool
        Take the leading bias off, which a nonlinear function of noisy averages has.
    """
    copies = len(means[0])
    whole = np.asarray(function(*(mean.mean(axis=0) for mean in means)))
    without = np.stack(
        [function(*((mean.sum(axis=0) - mean[r]) / (copies - 1) for mean in means)) for r in range(copies)]
    )
    centre = without.mean(axis=0)
    se = np.sqrt((copies - 1) / copies * ((without - centre) ** 2).sum(axis=0))
    return Average(copies * whole - (copies - 1) * centre if corrected else whole, se)


@dataclass(frozen=True, eq=False)
class HiddenLayer:
    """The values h(w_i) of n neurons at the nodes of a rule, and E_theta h_i h_j, which is known exactly.

    Attributes
    ----------
    rule : Rule
    activation : Activation
    x : ndarray, shape (n, k)
        Inputs in the basis of their span.
    kernel : ndarray, shape (n, n)
        E_theta h(w_i) h(w_j), closed form or Mehler's series.
    """

    rule: Rule
    activation: Activation
    x: Array
    kernel: Array
    _kept: Array | None = None

    def averages(self, function: Callable[[Array, Array, Array], Any]) -> tuple[Array, ...]:
        """Return sums over the nodes of each copy, stacked: every array of the tuple has first axis R.

        `function` maps a block (points (b, k), h (b, n), weights (b,)) to a tuple of arrays, which are added up. The
        same bits for any number of threads.
        """
        copies = [self._sum(function, copy) for copy in range(self.rule.copies)]
        return tuple(np.stack(arrays) for arrays in zip(*copies, strict=True))

    def _sum(self, function: Callable[[Array, Array, Array], Any], copy: int) -> Any:
        points, weights = self.rule.points[copy], self.rule.weights[copy]

        def block(part: slice) -> Any:
            return function(points[part], self._rows(copy, part), weights[part])

        return parallel.sum_blocks(block, len(weights), parallel.block_size(len(self.x)))

    def at_nodes(self, function: Callable[[Array, Array], Array]) -> Array:
        """Return function(points (b, k), h (b, n)) at every node, shape (R, N)."""
        out = np.empty(self.rule.weights.shape)
        for copy, points in enumerate(self.rule.points):
            for part in parallel.blocks(len(points), parallel.block_size(len(self.x))):
                out[copy, part] = function(points[part], self._rows(copy, part))
        return out

    def values(self, copy: int) -> Array:
        """Return h at all nodes of a copy, shape (N, n)."""
        return self._rows(copy, slice(None))

    def _rows(self, copy: int, part: slice) -> Array:
        if self._kept is not None:
            return self._kept[copy, part]
        return self.activation.value(self.rule.points[copy, part] @ self.x.T)


def hidden_layer(rule: Rule, activation: Activation, x: Array, kernel: Array | None = None) -> HiddenLayer:
    """Return the neurons at the nodes of a rule; kept where half the memory budget allows, made anew elsewhere."""
    kernel = ntk.gram_parts(activation, x)[0] if kernel is None else kernel
    size = 8 * rule.weights.size * len(x)
    kept = activation.value(rule.points @ x.T) if size <= parallel.memory() // 2 else None
    return HiddenLayer(rule, activation, x, kernel, kept)


class Elsewhere(NamedTuple):
    """Other inputs as the nodes see them: in the basis of the span (q, k), their lengths across it (q,), E h_i h_q."""

    along: Array
    width: Array
    kernel: Array


def elsewhere(activation: Activation, inputs: Array, others: Array) -> Elsewhere:
    """Return what expectations at other inputs (q, d) need beside those at `inputs` (n, d). O(n q)."""
    basis, _ = span(inputs)
    along = others @ basis.T
    rest = np.linalg.norm(others - along @ basis, axis=1)
    width = np.where(rest > RANK * np.linalg.norm(others, axis=1), rest, 0.0)
    return Elsewhere(along, width, ntk.kernel(activation, inputs, others, train="u"))


def smoothed(activation: Activation, w: Array, width: Array) -> Array:
    """Return E h(w + width xi), xi ~ N(0, 1), by the trapezoidal rule.

    Parameters
    ----------
    w : ndarray, shape (b, q)
    width : ndarray, shape (q,)
        The length of an input across the span of the nodes; zero within.
    """
    if not width.any():
        return activation.value(w)
    steps = np.arange(-SMOOTHING_REACH, SMOOTHING_REACH + SMOOTHING / 2, SMOOTHING)
    masses = np.exp(-0.5 * steps**2)
    total = np.zeros_like(w)
    for step, mass in zip(steps, masses / masses.sum(), strict=True):
        total += mass * activation.value(w + step * width)
    return total
