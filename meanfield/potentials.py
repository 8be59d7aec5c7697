"""Pairs of potentials for Kantorovich's dual, T(z) - Phi(z0) <= |z - z0|^2 / 2, that networks make and samples measure.

To leading order a network is transported along potentials u g(theta), g = sum_i c_i h(w_i), w_i = theta . x_i. The
best Phi for T = u g is a supremum over R^d, which a sample cannot bound. With smoothing in place of the supremum,

    T(theta, u)   = clip(u) E g(theta + sigma xi),                             xi ~ N(0, I_d), clip(u) in [-U, U],
    Phi(theta, u) = sigma^2 log E exp(B(u, g(theta + sigma xi)) / sigma^2),
    B(u, g)       = s g - (s - u)^2 / 2 + dist(u, [-U, U])^2 / 2,              s = clip(u + g),

are a pair for every g and sigma. Indeed B(u, g) >= clip(v) g - (v - u)^2 / 2 for all v; N(theta, sigma^2 I) has the
entropy |theta - theta0|^2 / (2 sigma^2) relative to N(theta0, sigma^2 I); and E_q phi <= KL(q || q0) + log E_q0 e^phi
[DonskerVaradhan75] with phi = (clip(u) g - (u - u0)^2 / 2) / sigma^2 is the inequality that is wanted. (For the heat
semigroup it is the log-Harnack inequality [RocknerWang10].) As sigma falls Phi becomes the supremum; smoothing costs a
share of about sigma^2 (k - 1) / 2 of W2^2, k the degree of u g as a polynomial.

**Measuring Phi.** E_p0 Phi is an average over the reference, whose law is p0, of the logarithm of an average over xi.
The draws are moved to where the exponent is about largest and weighted by the ratio of densities: only the curvature of
s g is left to fluctuate. The logarithm is bounded by log x <= log a + x / a - 1, x a pair +-xi and a the mean over the
other pairs. As a and x are independent this is an upper bound in expectation for any number of draws, however unequal
the weights; it loses sigma^2 times their relative variance over that number. E_p0 clip(u) g = 0 is subtracted.

Read next: `dual`, which chooses c and sigma.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanfield import noise
from meanfield.moments import Pair
from meanfield.noise import Stream
from meanfield.units import Activation

Array = npt.NDArray[Any]

CLIP = 2.5  # U
PAIRS = 8  # of draws +-xi a particle
CLIMBS = 3  # iterations towards the largest exponent
LINE = (0.0, -8.0, -4.0, -2.0, 2.0, 4.0, 8.0)  # where they start, in units of sigma
BLOCK = 1 << 18  # numbers of a table over (particle, draw, input)
SMALLEST = 1e-300


class Family(NamedTuple):
    """The functions h(theta . x_i) that potentials are made of, and the seed that names their draws."""

    activation: Activation
    x: Array
    seed: int


class Potential(NamedTuple):
    """g = sum_i coefficients_i h(theta . x_i) and the width sigma of the smoothing."""

    coefficients: Array
    sigma: float


class Losses(NamedTuple):
    """Upper bounds on Phi - clip(u) g at particles, |grad u g|^2 / 2 there, and the gradients in c of both means."""

    values: Array
    quadratic: Array
    slope: Array
    quadratic_slope: Array


def pull(family: Family, sigma: float, pair: Pair, where: tuple[int, int]) -> Array:
    """Return E_p clip(u) h(theta . x_i + sigma xi . x_i), centred, shape (n,); O(m n d).

    `where` = (step, replicate) names the draws in the stream of probes.
    """
    total, masses = np.zeros(len(family.x)), pair.masses
    for rows in _blocks(len(masses), len(family.x)):
        moved = np.float32(sigma) * draws(family, where, rows, 1)[:, 0] if sigma else np.float32(0)
        for z, sign in ((pair.z[rows], 1.0), (pair.reference[rows], -1.0)):
            h = family.activation.value((z[:, :-1] @ family.x.T).astype(np.float32) + moved)
            total += sign * ((masses[rows] * np.clip(z[:, -1], -CLIP, CLIP)) @ h)
    return total


def losses(family: Family, potential: Potential, pair: Pair, drawn: Callable[[slice], Array]) -> Losses:
    """Return the losses of a potential at the reference of a pair, for `draws` at slices of it; O(m n (d + 2 K))."""
    masses, found = pair.masses, []
    for rows in _blocks(len(masses), PAIRS * len(family.x)):
        found.append(_losses(family, potential, pair.reference[rows], masses[rows], drawn(rows)))
    values, quadratic, *slopes = zip(*found, strict=True)
    return Losses(np.concatenate(values), np.concatenate(quadratic), *(np.sum(slope, axis=0) for slope in slopes))


def _blocks(count: int, width: int) -> Iterator[slice]:
    size = max(BLOCK // width, 1)
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def draws(family: Family, where: tuple[int, int], rows: slice, several: int) -> Array:
    """Return xi . x_i for `several` xi at every particle of the rows, shape (rows, several, n); `where` as in `pull`.

    In single precision: rounded is 1e-7 of a width sigma, which is itself of the size of W2.
    """
    (step, replicate), (n, d), count = where, family.x.shape, rows.stop - rows.start
    place = {"step": step, "replicate": replicate, "first": rows.start, "count": count, "width": several * d}
    xi = noise.normals(family.seed, Stream.PROBE, dtype=np.float32, **place)
    return (xi.reshape(-1, d) @ family.x.T.astype(np.float32)).reshape(count, several, n)


def _losses(family: Family, potential: Potential, z: Array, masses: Array, drawn: Array) -> Losses:
    (c, sigma), u, w = potential, z[:, -1], z[:, :-1] @ family.x.T
    h, h1 = family.activation.value_and_first(w)
    g, gradient = h @ c, (h1 * c) @ family.x
    clipped, square = np.clip(u, -CLIP, CLIP), u * u
    quadratic = 0.5 * (square * np.einsum("mi,mi->m", gradient, gradient) + g * g)
    quadratic_slope = (masses * g) @ h + (masses * square) @ (h1 * (gradient @ family.x.T))
    exponents, pulls = _exponents(family, potential, w, u, _towards_top(family, potential, w, u), drawn)
    top = exponents.max(axis=(0, 2))
    weights = np.exp(exponents - top[:, None])
    values = sigma**2 * (top + _log_mean(weights.mean(axis=0))) - clipped * g
    shares = (weights * (masses / weights.sum(axis=(0, 2)))[:, None]).astype(np.float32)
    slope = shares.ravel() @ pulls.reshape(-1, len(c)) - (masses * clipped) @ h
    return Losses(values, quadratic, slope, quadratic_slope)


def _towards_top(family: Family, potential: Potential, w: Array, u: Array) -> Array:
    """Return q, (m, n), such that B(u, g) - |move|^2 / 2 is about largest at theta + move, move = sum_i q_i x_i.

    Stationary is move = s grad g. That is iterated from theta or from where it is best along a line, halfway back where
    it does not lead up. Any move is valid, but one to a lesser of two tops would not see the other: hence the line, the
    direction along which inputs lie and g bends most.
    """
    w, u, c, x = (array.astype(np.float32) for array in (w, u, potential.coefficients, family.x))
    metric = x @ x.T

    def height(g: Array, square: Array) -> tuple[Array, Array]:
        s = np.clip(u + g, -CLIP, CLIP)
        return s * g - 0.5 * (s - u) ** 2 - 0.5 * square, s

    best = tried = _along_line(family, potential, w, metric, height)
    highest = np.full(len(u), -np.inf, dtype=np.float32)
    for _ in range(1 + CLIMBS):
        moved = tried @ metric
        h, h1 = family.activation.value_and_first(w + moved)
        found, s = height(h @ c, np.einsum("mi,mi->m", tried, moved))
        up = (found > highest)[:, None]
        best, highest = np.where(up, tried, best), np.maximum(found, highest)
        tried = np.where(up, s[:, None] * (h1 * c), 0.5 * (best + tried))
    return best


def _along_line(family: Family, potential: Potential, w: Array, metric: Array, height: Callable) -> Array:
    """Return the best q among multiples of the first eigenvector of X X', 0 included."""
    values, vectors = np.linalg.eigh(metric)
    unit = vectors[:, -1] / np.sqrt(max(float(values[-1]), SMALLEST))
    lengths = (potential.sigma * np.asarray(LINE)).astype(np.float32)
    there, c = unit @ metric, potential.coefficients.astype(np.float32)
    heights = [height(family.activation.value(w + t * there) @ c, t * t)[0] for t in lengths]
    return lengths[np.argmax(heights, axis=0)][:, None] * unit


def _exponents(
    family: Family, potential: Potential, w: Array, u: Array, direction: Array, drawn: Array
) -> tuple[Array, Array]:
    """Return log weights, (2, m, K), and s h_i, (2, m, K, n), at theta + sum_i direction_i x_i +- sigma xi."""
    (c, sigma), moved, height = potential, direction @ family.x, u[:, None]
    centre, wide = (w + moved @ family.x.T).astype(np.float32)[:, None], np.float32(sigma) * drawn
    along = (drawn @ direction[:, :, None])[:, :, 0].astype(np.float64) / sigma
    fixed = 0.5 * (np.maximum(np.abs(u) - CLIP, 0.0) ** 2 - np.einsum("mi,mi->m", moved, moved))[:, None]
    exponents, pulls = np.empty((2, *along.shape)), np.empty((2, *drawn.shape), dtype=np.float32)
    for sign, exponent, out in zip((1, -1), exponents, pulls, strict=True):
        h = family.activation.value(centre + sign * wide)
        g = (h @ c.astype(np.float32)).astype(np.float64)
        s = np.clip(height + g, -CLIP, CLIP)
        exponent[:] = (s * g - 0.5 * (s - height) ** 2 + fixed) / sigma**2 - sign * along
        np.multiply(h, s[:, :, None], out=out, casting="same_kind")
    return exponents, pulls


def _log_mean(x: Array) -> Array:
    """Return the mean over k of log a + x_k / a - 1, a the mean of the others: in expectation at least log E x."""
    a = np.maximum((x.sum(axis=1, keepdims=True) - x) / (x.shape[1] - 1), SMALLEST)
    return (np.log(a) + x / a - 1).mean(axis=1)
