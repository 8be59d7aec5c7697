"""The formulas of a block of neurons, as array code: sums over particles, fields, curvatures, bounds.

Every function takes a `Block` of B neurons (w, h and its derivatives of shape (B, n), u of shape (B, 1)) and masses
(B,). They use operations that numpy and cupy share, and create arrays like their arguments, so that one text serves
every backend that works on arrays.
"""

from typing import NamedTuple

import numpy as np

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


def evaluate_pair(activation: Activation, x: Array, z: Array) -> Block:
    """Return a block's activations and first derivatives, which is all that a field needs; h' stands for the others."""
    w = z[:, :-1] @ x.T
    h, h1 = activation.value_and_first(w)
    return Block(w, h, h1, h1, h1, z[:, -1:])


def masses(weights: Array | None, part: slice, m: int, dtype: np.dtype) -> Array:
    """Return the masses of a block's particles, shape (B,)."""
    if weights is None:
        return np.full(part.stop - part.start, 1.0 / m, dtype)
    return weights[part].astype(dtype)


def first_order(block: Block, mass: Array, norms: Array, train: str) -> tuple[Array, Array, Array]:
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


def gram(block: Block, mass: Array, inner: Array, train: str) -> Array:
    """Return the block's part of H, sum_j w_j <grad psi_i, grad psi_k>, shape (n, n); `inner` is X X'."""
    root = np.sqrt(mass)[:, None]
    total = np.zeros_like(inner)
    if train != "u":
        a = block.h1 * (root * block.u)
        total += (a.T @ a) * inner
    if train != "theta":
        a = block.h * root
        total += a.T @ a
    return total


def gap(here: Block, there: Block | None, mass: Array, norms: Array, train: str) -> Array:
    """Return sum_j w_j^2 |grad psi_i(Z_j) - grad psi_i(Zbar_j)|^2: the noise of a mean over finitely many particles."""
    square = mass * mass
    total = np.zeros(len(norms), like=norms)
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


def second_moment(
    here: Block, there: Block | None, mass: Array, norms: Array, train: str, variance: float
) -> tuple[Array, Array]:
    """Return sums of products and sum of A_s psi(Z) - A_s psi(Zbar): shapes (n, n) and (n,)."""
    a = generator(here, norms, train, variance)
    if there is not None:
        a -= generator(there, norms, train, variance)
    weighted = a * mass[:, None]
    return (weighted.T @ weighted).astype(np.float64), (mass @ a).astype(np.float64)


def weighted(mass: Array, values: Array) -> Array:
    """Return sum_j w_j values_j in float64."""
    return mass.astype(np.float64) @ values.astype(np.float64)


def field(block: Block, x: Array, c: Array, train: str) -> Array:
    """Return b = sum_i c_i grad psi_i at the block's particles, shape (B, D)."""
    b = np.zeros((len(block.u), x.shape[1] + 1), block.h.dtype, like=block.h)
    if train != "u":
        b[:, :-1] = (block.h1 * (block.u * c)) @ x
    if train != "theta":
        b[:, -1] = block.h @ c
    return b


def curvature2(block: Block, x: Array, c: Array, square: Array, train: str) -> Array:
    """Return |Db|_F^2 = q' (G o G) q + 2 |X' (h' c)|^2 with q = u h'' c, one number a particle."""
    total = np.zeros(len(block.u), block.h.dtype, like=block.h)
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


def push(block: Block, b: Array, x: Array, mass: Array) -> tuple[Array, Array, Array]:
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


def midpoint_remainder(
    first: Block, middle: Block, x: Array, c: Array, square: Array, norms: Array, train: str, eps: float
) -> Array:
    """Return an upper bound on eps tr Db - log det(I + eps M), one number a particle.

    With A = Db(z_mid), B = Db(z): log det(I + X) >= tr X - tr X^2 / 2 - |X|^3 / (3 (1 - |X|)) for X = eps M, and
    tr M^2 <= |A|^2 + eps |A|^2 |B| + eps^2 |A|^2 |B|^2 / 4; tr M = tr A + eps tr(A B) / 2.
    """
    a2 = curvature2(middle, x, c, square, train)
    b2 = curvature2(first, x, c, square, train)
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
