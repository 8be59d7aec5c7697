"""The definition of every contraction as plain array code, blocked over particles and threaded.

It is what other backends are compared with. The numpy backend itself is `dense`: the same functions, with the passes
of a step without an account made fast.

Each function cuts the cloud into blocks (`parallel.block_size`), so no array of n x m is ever held; sums over blocks
are combined in a fixed dyadic tree. Work is done in the dtype of the cloud, sums are float64. Costs are stated per
particle; `train` says which coordinates move ("both", "u", "theta") and so which derivatives enter.
"""

from collections.abc import Callable

import numpy as np

from meanfield import noise, parallel
from meanfield.backends import Backend, Measurement, Motion, Moved, Particles, blocks
from meanfield.noise import Stream
from meanfield.units import Activation

Array = np.ndarray


def predict(activation: Activation, x: Array, z: Array, weights: Array | None = None) -> Array:
    """Return sum_j w_j psi_i(z_j), shape (n,). O(n d) a particle."""
    x, m = x.astype(z.dtype, copy=False), parallel.total(len(z))

    def part_sum(part: slice) -> Array:
        block = z[part]
        mass = blocks.masses(weights, part, m, z.dtype) * block[:, -1]
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
    x = np.ascontiguousarray(x.T, z.dtype).T  # products that predict have the same bits
    inner = (x @ x.T).astype(np.float64)
    norms = np.einsum("ij,ij->i", x, x)
    m, n = parallel.total(len(z)), len(x)
    mass_square = 1.0 / m if weights is None else float(weights @ weights)

    def part_sum(part: slice) -> tuple:
        mass = blocks.masses(weights, part, m, z.dtype)
        here = blocks.evaluate(activation, x, z[part])
        sums = blocks.first_order(here, mass, norms, train)
        zero = np.zeros(n)
        there, far, gap = None, (zero, zero, zero), zero
        if reference is not None:
            there = blocks.evaluate(activation, x, reference[part])
            far = blocks.first_order(there, mass, norms, train)
        gap = blocks.gap(here, there, mass, norms, train)
        out: tuple = (*sums, *far, gap)
        if gram:
            out += (blocks.gram(here, mass, inner, train),)
        if variance is not None:
            out += blocks.second_moment(here, there, mass, norms, train, variance)
        return out

    sums = list(parallel.sum_blocks(part_sum, len(z), parallel.block_size(n)))
    covariance = None
    if variance is not None:
        mean, square = sums.pop(), sums.pop()
        covariance = square - mass_square * np.outer(mean, mean)
    h = sums.pop() if gram else None
    psi, laplacian, pull, psi_ref, laplacian_ref, pull_ref, gap = sums
    return Measurement(psi, psi_ref, laplacian, laplacian_ref, pull, pull_ref, gap, h, covariance)


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
    x, m = x.astype(z.dtype, copy=False), parallel.total(len(z))
    c = c.astype(z.dtype)
    square = (x @ x.T) ** 2 if account else np.empty(0)
    out = np.empty_like(z)

    def part_sum(part: slice) -> tuple:
        evaluate = blocks.evaluate if account else blocks.evaluate_pair
        block = evaluate(activation, x, (z if at is None else at)[part])
        b = blocks.field(block, x, c, train)
        out[part] = z[part] + z.dtype.type(eps) * b
        if not account:
            return ()
        mass = blocks.masses(weights, part, m, z.dtype)
        gap = b if reference is None else z[part] - reference[part]
        frobenius = float(eps) * np.sqrt(blocks.curvature2(block, x, c, square, train))
        return (
            blocks.weighted(mass, np.einsum("ij,ij->i", b, b)),
            blocks.weighted(mass, np.einsum("ij,ij->i", b, gap)),
            blocks.weighted(mass, blocks.remainder(frobenius)),
            *blocks.push(block, b, x, mass),
        )

    sums = parallel.sum_blocks(part_sum, len(z), parallel.block_size(len(x)))
    return _moved(out, sums) if account else Moved(out)


def _moved(z: Array, sums: tuple) -> Moved:
    speed, pull, rest, push, push2, push3 = sums
    return Moved(z, float(speed), float(pull), float(rest), push, push2, push3)


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
    x, m = x.astype(z.dtype, copy=False), parallel.total(len(z))
    c = c.astype(z.dtype)
    square, norms = (x @ x.T) ** 2, np.einsum("ij,ij->i", x, x)
    out = np.empty_like(z)
    half = 0.5 * float(eps)

    def part_sum(part: slice) -> tuple:
        first = blocks.evaluate(activation, x, z[part])
        b = blocks.field(first, x, c, train)
        middle = blocks.evaluate(activation, x, z[part] + z.dtype.type(half) * b)
        b_mid = blocks.field(middle, x, c, train)
        out[part] = z[part] + z.dtype.type(eps) * b_mid
        if not account:
            return ()
        mass = blocks.masses(weights, part, m, z.dtype)
        gap = b_mid if reference is None else z[part] - reference[part]
        rest = blocks.midpoint_remainder(first, middle, x, c, square, norms, train, eps)
        rest = rest + eps / variance * np.einsum("ij,ij->i", z[part], b_mid - b)
        return (
            blocks.weighted(mass, np.einsum("ij,ij->i", b_mid, b_mid)),
            blocks.weighted(mass, np.einsum("ij,ij->i", b_mid, gap)),
            blocks.weighted(mass, rest),
            *blocks.push(first, b_mid, x, mass),
        )

    sums = parallel.sum_blocks(part_sum, len(z), parallel.block_size(len(x)))
    return _moved(out, sums) if account else Moved(out)


def roughness(
    activation: Activation, x: Array, z: Array, weights: Array | None, c: Array, train: str = "both"
) -> tuple[float, float, float]:
    """Return the means of |grad phi|^2, |grad^2 phi|^2 and |grad^3 phi|^2, phi = sum_i c_i psi_i; O(n^2) a particle.

    Derivatives are over the trained coordinates, norms are Frobenius: with G = X X' and q_k = c h^(k),

        |grad^2 phi|^2 = u^2 q_2' (G o G) q_2 + 2 |X' q_1|^2
        |grad^3 phi|^2 = u^2 q_3' (G o G o G) q_3 + 3 q_2' (G o G) q_2
    """
    x, m, c = x.astype(z.dtype, copy=False), parallel.total(len(z)), c.astype(z.dtype)
    inner = x @ x.T

    def part_sum(part: slice) -> Array:
        block = blocks.evaluate(activation, x, z[part])
        mass = blocks.masses(weights, part, m, z.dtype)
        field = blocks.field(block, x, c, train)
        third = np.zeros(len(field), z.dtype)
        if train != "u":
            q = block.h3 * (block.u * c)
            third += np.einsum("ij,ij->i", q @ inner**3, q)
        if train == "both":
            q = block.h2 * c
            third += 3 * np.einsum("ij,ij->i", q @ inner**2, q)
        first = np.einsum("ij,ij->i", field, field)
        second = blocks.curvature2(block, x, c, inner**2, train)
        return np.array([blocks.weighted(mass, values) for values in (first, second, third)])

    sums = parallel.sum_blocks(part_sum, len(z), parallel.block_size(len(x)))
    return float(sums[0]), float(sums[1]), float(sums[2])


def move(
    activation: Activation,
    x: Array,
    z: Array,
    reference: Array | None,
    c: Array,
    motion: Motion,
    train: str = "both",
    *,
    out: Particles | None = None,
) -> Particles:
    """Return cloud and reference after kick, channel and kick along b = sum_i c_i grad psi_i, in one pass.

    Parameters
    ----------
    c : ndarray, shape (n,)
        Coefficients of the field, the same in both kicks.
    motion : Motion
        Lengths, channel and the names of the noise, which cloud and reference share.
    out : tuple of two arrays, optional
        Where to write; may be (z, reference) themselves.

    Notes
    -----
    O(n d) a particle and a kick. Coordinates that `train` freezes stay as they are.
    """
    x, c = x.astype(z.dtype, copy=False), c.astype(z.dtype)
    there, far = out or (np.empty_like(z), None if reference is None else np.empty_like(reference))
    moving = columns(train)
    decay = z.dtype.type(motion.decay)

    def kicked(at: Array, eps: float) -> Array:
        if not eps:
            return at.copy()
        return at + z.dtype.type(eps) * blocks.field(blocks.evaluate_pair(activation, x, at), x, c, train)

    def part_move(part: slice) -> None:
        xi = diffusion(motion, z, part, moving)
        here = kicked(z[part], motion.before)
        here[:, moving] = decay * here[:, moving] + xi
        if reference is not None and far is not None:
            far[part] = reference[part]
            far[part, moving] = decay * far[part, moving] + xi
        there[part] = kicked(here, motion.after) if motion.after else here

    parallel.each_block(part_move, len(z), parallel.block_size(len(x)))
    return there, far


def columns(train: str) -> slice:
    """Return the coordinates that are trained."""
    return {"both": slice(None), "u": slice(-1, None), "theta": slice(None, -1)}[train]


def diffusion(motion: Motion, z: Array, part: slice, moving: slice) -> Array:
    """Return sigma xi of the moving coordinates of a slice of the particles."""
    if not motion.sigma:
        return np.zeros((1, 1), z.dtype)
    xi = noise.normals(
        motion.seed, Stream.DIFFUSION, step=motion.step, replicate=motion.replicate,
        first=motion.first + part.start,
        count=part.stop - part.start, width=z.shape[1], dtype=z.dtype,
    )  # fmt: skip
    xi *= z.dtype.type(motion.sigma)
    return xi[:, moving]


def descend(
    activation: Activation,
    x: Array,
    z: Array,
    reference: Array | None,
    weights: Array | None,
    coefficients: Callable[[Array], Array],
    motion: Motion,
    train: str = "both",
    *,
    centred: bool = False,
    out: Particles | None = None,
) -> Particles:
    """Return cloud and reference after an explicit step: `predict`, then `move` along coefficients(psi).

    Parameters
    ----------
    coefficients : callable
        Maps psi = sum_j w_j psi(z_j), shape (n,), less that of the reference where `centred`, to c; written with
        operations that all kinds of arrays share.
    """
    psi = predict(activation, x, z, weights)
    if centred and reference is not None:
        psi = psi - predict(activation, x, reference, weights)
    return move(activation, x, z, reference, coefficients(psi), motion, train, out=out)


BACKEND = Backend(
    "numpy", predict, pullback, measure, kick, midpoint_kick, roughness, move, descend, np.asarray, np.asarray
)
