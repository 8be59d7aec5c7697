"""Kantorovich's dual lower bound on W2^2(p, p0), with potentials that a network can make.

For any function phi on the side of p0 and its transform T(z) = inf_z0 [|z - z0|^2 / 2 + phi(z0)],

    W2^2(p, p0) >= 2 (E_p T - E_p0 phi)                                                       [Villani03, thm 1.3]

The potential is phi = clip(u, U) G(theta), clip(u, U) = max(-U, min(u, U)), G = -(v . theta + sum_i c_i h(w_i)),
w_i = theta . x_i: to leading order a network is transported along such potentials, and W2^2 = f' H^-1 f / alpha^2.
E_p0 phi = 0 because u is symmetric and independent of theta. What is left is one average over the particles.

**The transform.** The infimum over u is explicit. Write g = -G; with s = clip(-u + g, U)

    B(g) = max over |s| <= U of s g - (s + u)^2 / 2, plus dist(u, [-U, U])^2 / 2,

is convex with a derivative s in [-U, U] that is 1-Lipschitz, and -T(z) <= sup_eta F(eta), F = B(g(eta)) -
|eta - theta|^2 / 2. (Where |u| > U this is larger than -T, the safe side.) The supremum over eta in R^d must be
bounded from above. A fixed point iteration eta = theta + s grad g gives a point eta* with a residual e; around it, for
|delta| = t, with R the second-order Taylor remainder of g there and Delta = grad g . delta + R,

    F(eta* + delta) <= F(eta*) + |s| |R| + |e| t + min(Delta^2 / 2, (U + |s|) |Delta|) - t^2 / 2,

    |R| <= min(M t^2 / 2, K t^2 / 2 + N t^3 / 6, (l + |grad g|) t),     |Delta| <= min(|grad g| t + |R|, l t),

    M = G3 lambda_max(sum |c_i| x_i x_i'),   K = |sum c_i h''(w_i) x_i x_i'|_F at eta*,
    N = G5 lambda_max(sum |c_i| |x_i| x_i x_i'),   l >= sup |grad g|.

The right side is a function of t alone; its maximum over all t >= 0 is bounded on a grid, each term taken at the end
of an interval where it is largest. This is a proof for every particle, and sharp (the excess is of the size of the
residual) as long as U M is below about 0.8; beyond, it jumps to something useless.

**The choice** of v, c, U is made on half of the replicates, the other half is measured, and the halves change places.
Because M is what limits the bound, c maximises the second-order value under a penalty on sum |c_i| |x_i|^2 (a lasso)
while v is free: linear parts cost no curvature. Against a ridge this keeps the certificate alive 5 to 20 times longer.

Read next: `transport` for the other bounds, `moments` for what a pair is.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError
from meanfield.estimate import Estimate, mean_estimate
from meanfield.moments import Clouds, Pair, coupled_pairs, each, halves, parts
from meanfield.units import Activation

Array = npt.NDArray[Any]

SOURCE = "Kantorovich dual"
PENALTIES = 0.8 ** np.arange(0, 24)  # relative to the least that makes c = 0
LIMITS = (0.75, 0.65, 0.5)  # of U M
LOWEST_CLIP, HIGHEST_CLIP = 1.1, 3.0
FITTED, TRIED = 4096, 256  # particles that the metric is averaged over, that candidates are compared on
ITERATIONS = 3  # towards the fixed point
RATIO = 1.05  # of the grid in t
BLOCK = 2048  # particles at a time
TABLE = 1 << 14  # numbers of a table over (t, particle): some of them stay in a cache


@dataclass(frozen=True, eq=False)
class Potential:
    """g(theta) = v . theta + sum_i c_i h(theta . x_i), clipped at |u| = `clip`, and what bounds its variation.

    Attributes
    ----------
    activation, x, linear, coefficients, clip
        h, inputs (n, d), v (d,), c (n,), U.
    curvature, third, slope : float
        M, N and l of the module's text.
    squares : ndarray, shape (n, n)
        (x_i . x_j)^2.
    """

    activation: Activation
    x: Array
    linear: Array
    coefficients: Array
    clip: float
    curvature: float
    third: float
    slope: float
    squares: Array

    def resized(self, size: float, limit: float) -> "Potential":
        """Return the potential for size * g, its clip U chosen such that U M is at most `limit`."""
        names = ("linear", "coefficients", "curvature", "third", "slope")
        scaled = {name: size * getattr(self, name) for name in names}
        return dataclasses.replace(self, clip=_clip(scaled["curvature"], limit), **scaled)

    def value(self, theta: Array) -> Array:
        """Return g(theta), shape (m,)."""
        return theta @ self.linear + self.activation.value(theta @ self.x.T) @ self.coefficients

    def slopes(self, theta: Array, h: Array, h1: Array) -> tuple[Array, Array]:
        """Return g and its gradient (m, d), from h(w_i) and h'(w_i) at theta."""
        gradient = (h1 * self.coefficients) @ self.x + self.linear
        return theta @ self.linear + h @ self.coefficients, gradient


def dual_lower(
    clouds: Clouds, x: Array, activation: Activation, *, scale: float = 1.0, beat: float = 0.0, largest: int = 2048
) -> Estimate:
    """Return Kantorovich's dual lower bound on W2^2 at potentials of the network [Villani03, theorem 1.3].

    Parameters
    ----------
    clouds : sequence of (z, reference, weights)
        One entry a replicate, arrays of shape (m, D), (m, D), (m,) or None; u is the last column. A single replicate
        is split into halves of its particles, and has no standard error.
    x : ndarray, shape (n, d)
        Inputs as the neurons see them (`Unit.inputs`).
    activation : Activation
        h' and h'' must be bounded.
    scale : float
        Standard deviation s of the reference.
    beat : float
        What the bound should exceed to be of interest (another lower bound): if it does not where the potential is
        chosen, the rest is not computed.
    largest : int
        Transforms are computed for that many particles of a replicate (all, if they have weights).

    Returns
    -------
    Estimate
        Value NaN if there is no useful bound; `source` then says why.

    Raises
    ------
    InputError
        If shapes don't fit. O(R m n d + R largest n (n + 8 d) + 3000 n^2).
    """
    x = np.asarray(x, dtype=np.float64)
    pairs = coupled_pairs(clouds, scale)
    if x.ndim != 2 or pairs[0].z.shape[1] != x.shape[1] + 1:
        raise InputError(f"inputs {x.shape} need particles in R^(d + 1), got R^{pairs[0].z.shape[1]}.")
    if not (math.isfinite(activation.suprema[1]) and math.isfinite(activation.suprema[2])):
        return _absent(f"h' or h'' of {activation.name} is not bounded")
    groups = pairs if len(pairs) > 1 else [part for _, part in parts(pairs[0], 2)]
    folds = halves(range(len(groups)))
    if len(folds[1]) == 0 or min(len(group.z) for group in groups) < 2:
        raise InputError("the dual needs at least two particles in each of two groups.")
    chosen = each(lambda mine: _choose([groups[i] for i in mine], x, activation), folds)
    for _, expected in chosen:
        if not expected > beat:
            return _absent(f"its potentials reach {expected:.3g}, not more than {beat:.3g}")
    tasks = [(i, potential) for (potential, _), others in zip(chosen, folds[::-1], strict=True) for i in others]
    found = each(lambda task: _measured(task[1], groups[task[0]], largest), tasks)
    values = np.empty(len(groups))
    values[[i for i, _ in tasks]] = found
    estimate = mean_estimate(values, SOURCE)
    return estimate if len(pairs) > 1 else estimate._replace(se=math.nan)


def _absent(reason: str) -> Estimate:
    return Estimate(math.nan, math.nan, f"{SOURCE} absent: {reason}")


def _measured(potential: Potential, pair: Pair, largest: int) -> float:
    """Return 2 E_p T for one group: the first order over all its particles, centred, the rest over some of them."""
    gain = _first_order(potential, pair.z) - _first_order(potential, pair.reference)
    some = pair if pair.weights is not None else pair.thinned(-(-len(pair.z) // largest))
    return 2 * float(pair.mean(gain)) - 2 * float(some.mean(_second_order(potential, some.z)))


def _first_order(potential: Potential, z: Array) -> Array:
    blocks = [potential.value(z[i : i + BLOCK, :-1]) for i in range(0, len(z), BLOCK)]
    return np.clip(z[:, -1], -potential.clip, potential.clip) * np.concatenate(blocks)


def _second_order(potential: Potential, z: Array) -> Array:
    """Return upper bounds on q = -T(z) + clip(u) g(theta) >= 0 for particles z, shape (m,)."""
    blocks = [_transform(potential, z[i : i + BLOCK, :-1], -z[i : i + BLOCK, -1]) for i in range(0, len(z), BLOCK)]
    return np.concatenate(blocks)


def _transform(potential: Potential, theta: Array, u: Array, start: tuple[Array, Array] | None = None) -> Array:
    """Return upper bounds on sup_eta [B(u, g(eta)) - |eta - theta|^2 / 2] - clip(u) g(theta).

    `start` are h(w_i) and h'(w_i) at theta, where they are known.
    """
    clip, activation, x = potential.clip, potential.activation, potential.x
    g, gradient = potential.slopes(theta, *(activation.value_and_first(theta @ x.T) if start is None else start))
    before = np.clip(u, -clip, clip) * g
    for k in range(ITERATIONS):
        moved = np.clip(u + g, -clip, clip)[:, None] * gradient
        there = theta + moved
        w = there @ x.T
        h, h1, *more = activation.jet(w) if k == ITERATIONS - 1 else activation.value_and_first(w)
        g, gradient = potential.slopes(there, h, h1)
    bend = more[0] * potential.coefficients
    s = np.clip(u + g, -clip, clip)
    outside = np.maximum(np.abs(u) - clip, 0.0)
    reached = s * g - 0.5 * (s - u) ** 2 + 0.5 * outside**2 - 0.5 * (moved**2).sum(axis=1)
    residual = np.linalg.norm(s[:, None] * gradient - moved, axis=1)
    local = np.sqrt(np.maximum(np.einsum("mi,mi->m", bend @ potential.squares, bend), 0.0))
    slope = np.linalg.norm(gradient, axis=1)
    return reached - before + _excess(potential, np.abs(s), residual, slope, local)


def _excess(potential: Potential, s: Array, residual: Array, slope: Array, local: Array) -> Array:
    """Return upper bounds on what the supremum exceeds the value at the point reached by, at least 0."""
    clip, sup = potential.clip, potential.slope
    # Beyond t = 2 `steepest` everything linear in t has lost against t^2 / 2.
    steepest = float((s * (sup + slope) + residual + (clip + s) * sup).max())
    first = 1e-3 * max(float(slope.mean()), 1e-12)
    points = 2 + max(int(math.log(max(2 * steepest / first, 1.0)) / math.log(RATIO)), 1)
    grid = first * RATIO ** np.arange(points)
    before = np.concatenate([[0.0], grid[:-1]])
    worst = np.zeros_like(s)
    rows = max(TABLE // len(s), 1)
    for k in range(0, points, rows):
        t = grid[k : k + rows, None]
        bend = np.minimum(potential.curvature, local + potential.third / 3 * t)
        bend *= t * t / 2
        remainder = np.minimum(bend, (sup + slope) * t, out=bend)
        change = slope * t
        change += remainder
        np.minimum(change, sup * t, out=change)
        # s |R| + |e| t + min(Delta^2 / 2, (U + s) |Delta|)
        rise = np.minimum(0.5 * change, clip + s)
        rise *= change
        rise += s * remainder
        rise += residual * t
        rise -= 0.5 * before[k : k + rows, None] ** 2
        np.maximum(worst, rise.max(axis=0), out=worst)
    return worst


# --- the choice of a potential


def _choose(groups: Sequence[Pair], x: Array, activation: Activation) -> tuple[Potential, float]:
    """Return the potential whose certified bound is best on some of these particles, and that bound."""
    sample = _pooled(groups)
    here, there = (_features(z, x, activation) for z in (sample.z, sample.reference))
    some = sample.thinned(-(-len(sample.z) // TRIED))
    theta, u = np.ascontiguousarray(some.z[:, :-1]), -some.z[:, -1]
    start = activation.value_and_first(theta @ x.T)
    best = _potential(activation, x, np.zeros(x.shape[1]), np.zeros(len(x)), LIMITS[0]), 0.0
    stale = 0
    for linear, coefficients in _path(groups, sample, here, x, activation):
        whole = _potential(activation, x, linear, coefficients, LIMITS[0])
        along, against = (values @ np.concatenate([coefficients, linear]) for values in (here, there))
        size, before = 1.0, best[1]
        for limit in LIMITS:
            potential = whole.resized(size, limit)
            if potential.clip < LOWEST_CLIP:
                continue
            # Gain and cost per unit of 2: the bound is 2 (gain - cost).
            clipped, other = (np.clip(z[:, -1], -potential.clip, potential.clip) for z in (sample.z, sample.reference))
            gain = size * float(sample.mean(clipped * along - other * against))
            cost = float(some.mean(_transform(potential, theta, u, start)))
            if 2 * (gain - cost) > best[1]:
                best = potential, 2 * (gain - cost)
            if 0 < cost < gain:  # else it was not certified
                # gain grows like size, cost about like its square: their difference is largest at gain / (2 cost).
                size *= min(max(gain / (2 * cost), 0.7), 1.25)
        stale = 0 if best[1] > 1.002 * before else stale + 1
        if stale == 4 or LOWEST_CLIP * potential.curvature > LIMITS[0]:
            break
    return best


def _pooled(groups: Sequence[Pair]) -> Pair:
    stride = max(1, -(-sum(len(g.z) for g in groups) // FITTED))
    thin = [g.thinned(stride) for g in groups]
    columns = ([g.z for g in thin], [g.reference for g in thin], [g.masses / len(thin) for g in thin])
    return Pair(*(np.concatenate(column) for column in columns))


def _potential(activation: Activation, x: Array, linear: Array, coefficients: Array, limit: float) -> Potential:
    """Return the potential with its constants, its clip U chosen such that U M is at most `limit`."""
    _, g2, g3, _, g5 = activation.suprema
    size, norms = np.abs(coefficients), np.linalg.norm(x, axis=1)
    bend = _largest_eigenvalue(x, size)
    curvature = g3 * bend if bend else 0.0
    third = g5 * _largest_eigenvalue(x, size * norms) if bend else 0.0
    # |sum c_i a_i x_i| for |a_i| <= 1, in two ways; h' = middle + radius a_i.
    mixed = min(float(size @ norms), math.sqrt(bend * float(size.sum())))
    slopes = []
    for low, high in ((-g2, g2), _range_of_slope(activation)):
        middle, radius = 0.5 * (low + high), 0.5 * (high - low)
        slopes.append(float(np.linalg.norm(linear + middle * (coefficients @ x))) + radius * mixed)
    squares = (x @ x.T) ** 2
    return Potential(
        activation, x, linear, coefficients, _clip(curvature, limit), curvature, third, min(slopes), squares
    )


def _clip(curvature: float, limit: float) -> float:
    return HIGHEST_CLIP if curvature == 0 else min(HIGHEST_CLIP, limit / curvature)


def _largest_eigenvalue(x: Array, weights: Array) -> float:
    """Return lambda_max(sum_i weights_i x_i x_i'), weights not negative."""
    rows = x * np.sqrt(weights)[:, None]
    return max(float(np.linalg.eigvalsh(rows.T @ rows if len(x) > x.shape[1] else rows @ rows.T)[-1]), 0.0)


@functools.cache
def _range_of_slope(activation: Activation) -> tuple[float, float]:
    """Return an interval that holds h'(w): the range on a mesh widened by G3 mesh / 2; |w| > 60 as at the ends."""
    mesh = 0.01
    slope = activation.first(np.arange(-60.0, 60.0 + mesh / 2, mesh))
    slack = 0.5 * mesh * activation.suprema[2]
    bound = activation.suprema[1]
    return max(float(slope.min()) - slack, -bound), min(float(slope.max()) + slack, bound)


def _path(
    groups: Sequence[Pair], sample: Pair, here: Array, x: Array, activation: Activation
) -> Iterator[tuple[Array, Array]]:
    """Yield pairs (v, c) that maximise 2 b . (c, v) - (c, v)' H (c, v) - 2 penalty sum |c_i| |x_i|^2.

    b = E_p u f_k, centred, over all particles; H = E <grad u f_k, grad u f_l> over the sample, f_k = h(w_i), theta_a.
    The first member has c = 0; the penalty falls along the path.
    """
    n = len(x)
    b = np.mean([_pull(g, x, activation) for g in groups], axis=0)
    gram = _metric(sample, here, x, activation)
    inner = np.linalg.solve(gram[n:, n:], np.column_stack([b[n:], gram[n:, :n]]))
    reduced, target = gram[:n, :n] - gram[:n, n:] @ inner[:, 1:], b[:n] - gram[:n, n:] @ inner[:, 0]
    penalty = np.maximum((x * x).sum(axis=1), 1e-12)
    top = float((np.abs(target) / penalty).max())
    # Where the linear parts span all h(w_i), `reduced` is rounding: below this a step would only amplify it.
    floor = 1e-10 * max(float(np.linalg.eigvalsh(gram)[-1]), 1e-300)
    step = 1 / max(float(np.linalg.eigvalsh(reduced)[-1]), floor)
    c = np.zeros(n)
    for share in PENALTIES:
        c = _lasso(reduced, target, top * share * penalty, c, step)
        yield inner[:, 0] - inner[:, 1:] @ c, c


def _lasso(matrix: Array, target: Array, penalty: Array, start: Array, step: float, iterations: int = 300) -> Array:
    """Return about argmin c' A c / 2 - b . c + sum penalty |c|, by accelerated proximal gradients [BeckTeboulle09]."""
    c = ahead = start
    momentum = 1.0
    for _ in range(iterations):
        moved = ahead + step * (target - matrix @ ahead)
        new = np.sign(moved) * np.maximum(np.abs(moved) - step * penalty, 0.0)
        following = 0.5 * (1 + math.sqrt(1 + 4 * momentum * momentum))
        change = new - c
        ahead = new + (momentum - 1) / following * change
        c, momentum = new, following
        if np.abs(change).max() <= 1e-4 * np.abs(c).max():
            break
    return c


def _features(z: Array, x: Array, activation: Activation) -> Array:
    """Return f_k = h(w_i), then theta_a, at particles z; shape (m, n + d)."""
    theta = z[:, :-1]
    return np.concatenate([activation.value(theta @ x.T), theta], axis=1)


def _pull(pair: Pair, x: Array, activation: Activation) -> Array:
    """Return E_p u f_k, centred, shape (n + d,)."""
    total = np.zeros(sum(x.shape))
    weights = pair.masses
    for first in range(0, len(pair.z), BLOCK):
        rows = slice(first, first + BLOCK)
        for z, sign in ((pair.z[rows], 1.0), (pair.reference[rows], -1.0)):
            total += sign * ((weights[rows] * z[:, -1]) @ _features(z, x, activation))
    return total


def _metric(sample: Pair, here: Array, x: Array, activation: Activation) -> Array:
    """Return E_p <grad u f_k, grad u f_l>, shape (n + d, n + d); `here` are the features at the sample."""
    theta, u2 = sample.z[:, :-1], sample.z[:, -1] ** 2
    n, d = x.shape
    weights = sample.masses
    h1 = activation.first(theta @ x.T)
    gram = (here.T * weights) @ here
    gram[:n, :n] += (h1.T * (weights * u2)) @ h1 * (x @ x.T)
    cross = ((weights * u2) @ h1)[:, None] * x
    gram[:n, n:] += cross
    gram[n:, :n] += cross.T
    gram[n:, n:] += float(weights @ u2) * np.eye(d)
    return gram
