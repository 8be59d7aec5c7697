"""The numpy backend: the definition of every contraction, blocked over particles and threaded.

Each function cuts the cloud into blocks (`parallel.block_size`), so no array of n x m is ever held; sums over blocks
are combined in a fixed dyadic tree. Work is done in the dtype of the cloud, sums are float64. Costs are stated per
particle; `train` says which coordinates move ("both", "u", "theta") and so which derivatives enter.
"""

from typing import NamedTuple

import numpy as np

from meanfield import parallel
from meanfield.backends import Backend, Measurement, Moved
from meanfield.units import Activation

Array = np.ndarray


class Block(NamedTuple):
    """One block's neurons: inner products w = theta . x_i, h and its derivatives there (each (B, n)), and u (B, 1)."""

    w: Array
    h: Array
    h1: Array
    h2: Array
    h3: Array
    u: Array


def evaluate(activation: Activation, x: Array, z: Array) -> Block:
    """Return a block's activations. O(n d) a particle."""
    w = z[:, :-1] @ x.T
    return Block(w, *activation.jet(w), z[:, -1:])


def _masses(weights: Array | None, part: slice, m: int, dtype: np.dtype) -> Array:
    if weights is None:
        return np.full(part.stop - part.start, 1.0 / m, dtype)
    return weights[part].astype(dtype)


def predict(activation: Activation, x: Array, z: Array, weights: Array | None = None) -> Array:
    """Return sum_j w_j psi_i(z_j), shape (n,). O(n d) a particle."""
    x = x.astype(z.dtype, copy=False)

    def part_sum(part: slice) -> Array:
        block = z[part]
        mass = _masses(weights, part, len(z), z.dtype) * block[:, -1]
        return (mass @ activation.value(block[:, :-1] @ x.T)).astype(np.float64)

    return parallel.sum_blocks(part_sum, len(z), parallel.block_size(len(x)))


def pullback(activation: Activation, x: Array, z: Array, c: Array, train: str = "both") -> Array:
    """Return sum_i c_i grad psi_i(z_j), shape (m, D), zero where a coordinate is not trained. O(n d) a particle."""
    return kick(activation, x, np.zeros_like(z), None, None, c, 1.0, train, at=z).z


def measure(
    activation: Activation,
    x: Array,
    z: Array,
    reference: Array | None,
    weights: Array | None,
    train: str = "both",
    *,
    gram: bool = True,
    variance: float | None = None,
) -> Measurement:
    """Return the sums that residual, Gram matrix and generator need, over the cloud and its reference.

    Parameters
    ----------
    x : ndarray, shape (n, d)
        Inputs.
    z, reference : ndarray, shape (m, D)
        Particles and their coupled reference (or None).
    gram : bool
        Whether to form H, sum_j w_j <grad psi_i, grad psi_k>: O(n^2) a particle.
    variance : float, optional
        s^2; when given, the covariance of the mean of A_s psi(Z) - A_s psi(Zbar) over independent particles is formed,
        A_s psi = Laplace psi - z . grad psi / s^2: O(n^2) a particle.
    """
    x = x.astype(z.dtype, copy=False)
    inner = (x @ x.T).astype(np.float64)
    norms = np.einsum("ij,ij->i", x, x)
    m, n = len(z), len(x)
    mass_square = 1.0 / m if weights is None else float(weights @ weights)

    def part_sum(part: slice) -> tuple:
        mass = _masses(weights, part, m, z.dtype)
        here = evaluate(activation, x, z[part])
        sums = _first_order(here, mass, norms, train)
        zero = np.zeros(n)
        there, far, gap = None, (zero, zero, zero), zero
        if reference is not None:
            there = evaluate(activation, x, reference[part])
            far = _first_order(there, mass, norms, train)
        gap = _gap(here, there, mass, norms, train)
        out: tuple = (*sums, *far, gap)
        if gram:
            out += (_gram(here, mass, inner, train),)
        if variance is not None:
            out += _second_moment(here, there, mass, norms, train, variance)
        return out

    sums = list(parallel.sum_blocks(part_sum, m, parallel.block_size(n)))
    covariance = None
    if variance is not None:
        mean, square = sums.pop(), sums.pop()
        covariance = square - mass_square * np.outer(mean, mean)
    h = sums.pop() if gram else None
    psi, laplacian, pull, psi_ref, laplacian_ref, pull_ref, gap = sums
    return Measurement(psi, psi_ref, laplacian, laplacian_ref, pull, pull_ref, gap, h, covariance)


def _first_order(block: Block, mass: Array, norms: Array, train: str) -> tuple[Array, Array, Array]:
    """Return mean psi, its trained Laplacian, and mean z . grad psi over the trained coordinates."""
    mass_u = mass * block.u[:, 0]
    psi = (mass_u @ block.h).astype(np.float64)
    laplacian, pull = np.zeros_like(psi), np.zeros_like(psi)
    if train != "u":
        laplacian = (mass_u @ block.h2).astype(np.float64) * norms
        pull = (mass_u @ (block.w * block.h1)).astype(np.float64)
    if train != "theta":
        pull = pull + psi
    return psi, laplacian, pull


def _gram(block: Block, mass: Array, inner: Array, train: str) -> Array:
    root = np.sqrt(mass)[:, None]
    total = np.zeros_like(inner)
    if train != "u":
        a = block.h1 * (root * block.u)
        total += (a.T @ a) * inner
    if train != "theta":
        a = block.h * root
        total += a.T @ a
    return total


def _gap(here: Block, there: Block | None, mass: Array, norms: Array, train: str) -> Array:
    """Return sum_j w_j^2 |grad psi_i(Z_j) - grad psi_i(Zbar_j)|^2: the noise of a mean over finitely many particles."""
    square = mass * mass
    total = np.zeros(len(norms))
    if train != "u":
        slope = here.u * here.h1
        if there is not None:
            slope = slope - there.u * there.h1
        total += (square @ (slope * slope)).astype(np.float64) * norms
    if train != "theta":
        value = here.h if there is None else here.h - there.h
        total += (square @ (value * value)).astype(np.float64)
    return total


def generator(block: Block, norms: Array, train: str, variance: float) -> Array:
    """Return A_s psi_i = Laplace psi_i - z . grad psi_i / s^2 over the trained coordinates, shape (B, n)."""
    total = np.zeros_like(block.h)
    if train != "u":
        total += block.h2 * norms - block.w * block.h1 / variance
    if train != "theta":
        total -= block.h / variance
    return block.u * total


def _second_moment(
    here: Block, there: Block | None, mass: Array, norms: Array, train: str, variance: float
) -> tuple[Array, Array]:
    a = generator(here, norms, train, variance)
    if there is not None:
        a -= generator(there, norms, train, variance)
    weighted = a * mass[:, None]
    return (weighted.T @ weighted).astype(np.float64), (mass @ a).astype(np.float64)


def kick(
    activation: Activation,
    x: Array,
    z: Array,
    reference: Array | None,
    weights: Array | None,
    c: Array,
    eps: float,
    train: str = "both",
    *,
    account: bool = False,
    at: Array | None = None,
) -> Moved:
    """Return T(z) = z + eps b(z), b = sum_i c_i grad psi_i, and the means that the account wants.

    Parameters
    ----------
    c : ndarray, shape (n,)
        Coefficients of the field.
    account : bool
        Whether to form the means: E|b|^2, E (Z - Zbar) . b, the remainder of the log-determinant, and the first three
        derivatives of E psi along b; O(n^2) a particle more.
    at : ndarray, shape (m, D), optional
        Where the field is taken, if not at z.
    """
    x, m = x.astype(z.dtype, copy=False), len(z)
    c = c.astype(z.dtype)
    square = (x @ x.T) ** 2
    out = np.empty_like(z)

    def part_sum(part: slice) -> tuple:
        block = evaluate(activation, x, (z if at is None else at)[part])
        b = _field(block, x, c, train)
        out[part] = z[part] + z.dtype.type(eps) * b
        if not account:
            return ()
        mass = _masses(weights, part, m, z.dtype)
        gap = b if reference is None else z[part] - reference[part]
        frobenius = float(eps) * np.sqrt(_curvature2(block, x, c, square, train))
        return (
            _weighted(mass, np.einsum("ij,ij->i", b, b)),
            _weighted(mass, np.einsum("ij,ij->i", b, gap)),
            _weighted(mass, remainder(frobenius)),
            *_push(block, b, x, mass),
        )

    sums = parallel.sum_blocks(part_sum, m, parallel.block_size(len(x)))
    return _moved(out, sums) if account else Moved(out)


def _moved(z: Array, sums: tuple) -> Moved:
    speed, pull, rest, push, push2, push3 = sums
    return Moved(z, float(speed), float(pull), float(rest), push, push2, push3)


def _weighted(mass: Array, values: Array) -> Array:
    return np.asarray(mass.astype(np.float64) @ values.astype(np.float64))


def _field(block: Block, x: Array, c: Array, train: str) -> Array:
    b = np.zeros((len(block.u), x.shape[1] + 1), block.h.dtype)
    if train != "u":
        b[:, :-1] = (block.h1 * (block.u * c)) @ x
    if train != "theta":
        b[:, -1] = block.h @ c
    return b


def _curvature2(block: Block, x: Array, c: Array, square: Array, train: str) -> Array:
    """Return |Db|_F^2 = q' (G o G) q + 2 |X' (h' c)|^2 with q = u h'' c, one number a particle."""
    total = np.zeros(len(block.u), block.h.dtype)
    if train != "u":
        q = block.h2 * (block.u * c)
        total += np.einsum("ij,ij->i", q @ square, q)
    if train == "both":
        v = (block.h1 * c) @ x
        total += 2 * np.einsum("ij,ij->i", v, v)
    return np.maximum(total, 0)


def remainder(frobenius: Array) -> Array:
    """Return an upper bound on tr A - log det(I + A) for |A|_F given: f^2 / (2 (1 - f)), infinite from f = 1 on."""
    f = frobenius.astype(np.float64)
    inside = f < 1
    return np.where(inside, f * f / (2 * np.where(inside, 1 - f, 1.0)), np.inf)


def _push(block: Block, b: Array, x: Array, mass: Array) -> tuple[Array, Array, Array]:
    """Return the mean first, second and third derivative of psi_i along b, each shape (n,)."""
    along = b[:, :-1] @ x.T
    mass_u, mass_b = mass * block.u[:, 0], mass * b[:, -1]
    slope = block.h1 * along
    square = along * along
    bend = block.h2 * square
    first = mass_u @ slope + mass_b @ block.h
    second = mass_u @ bend + 2 * (mass_b @ slope)
    square *= along
    square *= block.h3
    third = mass_u @ square + 3 * (mass_b @ bend)
    return first.astype(np.float64), second.astype(np.float64), third.astype(np.float64)


def midpoint_kick(
    activation: Activation,
    x: Array,
    z: Array,
    reference: Array | None,
    weights: Array | None,
    c: Array,
    eps: float,
    train: str = "both",
    *,
    account: bool = False,
    variance: float = 1.0,
) -> Moved:
    """Return the midpoint map z + eps b(z + eps b(z) / 2), and the means that the account wants.

    Its Jacobian is I + eps M, M = Db(z_mid) (I + eps Db(z) / 2). `remainder` bounds E[eps z . (b_mid - b) / s^2 +
    eps tr Db - log det(I + eps M)], s^2 = `variance`; `speed` and `pull` are those of the midpoint field.
    """
    x, m = x.astype(z.dtype, copy=False), len(z)
    c = c.astype(z.dtype)
    square, norms = (x @ x.T) ** 2, np.einsum("ij,ij->i", x, x)
    out = np.empty_like(z)
    half = 0.5 * float(eps)

    def part_sum(part: slice) -> tuple:
        first = evaluate(activation, x, z[part])
        b = _field(first, x, c, train)
        middle = evaluate(activation, x, z[part] + z.dtype.type(half) * b)
        b_mid = _field(middle, x, c, train)
        out[part] = z[part] + z.dtype.type(eps) * b_mid
        if not account:
            return ()
        mass = _masses(weights, part, m, z.dtype)
        gap = b_mid if reference is None else z[part] - reference[part]
        rest = _midpoint_remainder(first, middle, x, c, square, norms, train, eps)
        rest = rest + eps / variance * np.einsum("ij,ij->i", z[part], b_mid - b)
        return (
            _weighted(mass, np.einsum("ij,ij->i", b_mid, b_mid)),
            _weighted(mass, np.einsum("ij,ij->i", b_mid, gap)),
            _weighted(mass, rest),
            *_push(first, b_mid, x, mass),
        )

    sums = parallel.sum_blocks(part_sum, m, parallel.block_size(len(x)))
    return _moved(out, sums) if account else Moved(out)


def _midpoint_remainder(
    first: Block, middle: Block, x: Array, c: Array, square: Array, norms: Array, train: str, eps: float
) -> Array:
    """Return an upper bound on eps tr Db - log det(I + eps M), one number a particle.

    With A = Db(z_mid), B = Db(z): log det(I + X) >= tr X - tr X^2 / 2 - |X|^3 / (3 (1 - |X|)) for X = eps M, and
    tr M^2 <= |A|^2 + eps |A|^2 |B| + eps^2 |A|^2 |B|^2 / 4; tr M = tr A + eps tr(A B) / 2.
    """
    a2 = _curvature2(middle, x, c, square, train)
    b2 = _curvature2(first, x, c, square, train)
    size_a, size_b = np.sqrt(a2), np.sqrt(b2)
    trace_a = trace_b = cross = np.zeros_like(a2)
    if train != "u":
        qa, qb = middle.h2 * (middle.u * c), first.h2 * (first.u * c)
        trace_a, trace_b = qa @ norms, qb @ norms
        cross = np.einsum("ij,ij->i", qa @ square, qb)
    if train == "both":
        cross = cross + 2 * np.einsum("ij,ij->i", (middle.h1 * c) @ x, (first.h1 * c) @ x)
    whole = eps * size_a * (1 + 0.5 * eps * size_b)
    inside = whole < 1
    tail = np.where(inside, whole**3 / (3 * np.where(inside, 1 - whole, 1.0)), np.inf)
    square_trace = a2 * (1 + eps * size_b + 0.25 * eps * eps * b2)
    return eps * (trace_b - trace_a) - 0.5 * eps**2 * cross + 0.5 * eps**2 * square_trace + tail


def roughness(
    activation: Activation, x: Array, z: Array, weights: Array | None, c: Array, train: str = "both"
) -> tuple[float, float, float]:
    """Return the means of |grad phi|^2, |grad^2 phi|^2 and |grad^3 phi|^2, phi = sum_i c_i psi_i; O(n^2) a particle.

    Derivatives are over the trained coordinates, norms are Frobenius: with G = X X' and q_k = c h^(k),

        |grad^2 phi|^2 = u^2 q_2' (G o G) q_2 + 2 |X' q_1|^2
        |grad^3 phi|^2 = u^2 q_3' (G o G o G) q_3 + 3 q_2' (G o G) q_2
    """
    x, m, c = x.astype(z.dtype, copy=False), len(z), c.astype(z.dtype)
    inner = x @ x.T

    def part_sum(part: slice) -> Array:
        block = evaluate(activation, x, z[part])
        mass = _masses(weights, part, m, z.dtype)
        field = _field(block, x, c, train)
        third = np.zeros(len(field), z.dtype)
        if train != "u":
            q = block.h3 * (block.u * c)
            third += np.einsum("ij,ij->i", q @ inner**3, q)
        if train == "both":
            q = block.h2 * c
            third += 3 * np.einsum("ij,ij->i", q @ inner**2, q)
        first = np.einsum("ij,ij->i", field, field)
        second = _curvature2(block, x, c, inner**2, train)
        return np.array([_weighted(mass, values) for values in (first, second, third)])

    sums = parallel.sum_blocks(part_sum, m, parallel.block_size(len(x)))
    return float(sums[0]), float(sums[1]), float(sums[2])


BACKEND = Backend("numpy", predict, pullback, measure, kick, midpoint_kick, roughness)
