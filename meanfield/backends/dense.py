"""The numpy backend: what `reference` defines, with steps made of few, large passes over arrays that are used again.

`predict`, `move` and `descend` are the passes of a step without an account; the rest of the contract is `reference`'s
own. A thread takes a group of blocks of particles: blocks are as large as its second-level cache likes for inner
products and activations, a group is large enough that the noise of its particles is made in long passes (`counters`).
The field comes from products with c_i x_i, so that a particle and a sample cost an inner product, an activation, and
what forms h' and the two sums.

Where h' is a function of h, predicting keeps h (an m x n array, within the memory budget) for the move that follows.
Everything is worked in the order of `reference.measure`, so that predictions have the bits that it would give them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from meanfield import counters, parallel
from meanfield.backends import Motion, Particles, blocks, reference
from meanfield.dyadic import DyadicSum
from meanfield.units import Activation
from meanfield.workspace import WorkSpace, lent

Array = np.ndarray
KEEP_SHARE = 0.5  # of the memory budget may hold activations between predicting and moving
# A thread takes at least so many (particle, sample) pairs at a time: less is not worth waking it.
GROUP = 1 << 18
GROUPS = 16  # for each thread, at most
_own = WorkSpace()


class Layer(NamedTuple):
    """An activation and its inputs, x' in rows of its own: shape (d, n)."""

    activation: Activation
    x: Array

    def values(self, z: Array, out: Array | None = None) -> Array:
        """Return h of particles, shape (B, n); in `out` where the activation writes over its argument."""
        if out is None:
            out = _own.array("h", (len(z), self.x.shape[1]), z.dtype)
        return self.activation.value_over(np.matmul(z[:, :-1], self.x, out=out))

    def pair(self, z: Array) -> tuple[Array, Array]:
        """Return h and h' of particles."""
        if self.activation.slope is not None:
            h = self.values(z)
            return h, self.slope(h)
        w = _own.array("h", (len(z), self.x.shape[1]), z.dtype)
        return self.activation.value_and_first(np.matmul(z[:, :-1], self.x, out=w))

    def slope(self, h: Array) -> Array:
        """Return h' from h."""
        assert self.activation.slope is not None
        return self.activation.slope(h, _own.array("h'", h.shape, h.dtype))


def keeps(activation: Activation, n: int, m: int, dtype: np.dtype) -> bool:
    """Return whether activations are kept between predicting and moving."""
    able = activation.over is not None and activation.slope is not None
    return able and n * m * dtype.itemsize <= KEEP_SHARE * parallel.memory()


@parallel.serial_blas
def predict(activation: Activation, x: Array, z: Array, weights: Array | None = None) -> Array:
    """Return sum_j w_j psi_i(z_j), shape (n,). O(n d) a particle."""
    return _predict(_layer(activation, x, z), z, weights, None)


def _layer(activation: Activation, x: Array, z: Array) -> Layer:
    return Layer(activation, np.ascontiguousarray(x.T, z.dtype))


def _predict(layer: Layer, z: Array, weights: Array | None, kept: Array | None) -> Array:
    """Return what `predict` does, leaving h in `kept`, shape (m, n)."""
    n, m = layer.x.shape[1], len(z)
    size = parallel.block_size(n)

    def block_sum(part: slice) -> Array:
        block = z[part]
        mass = blocks.masses(weights, part, m, z.dtype) * block[:, -1]
        return (mass @ layer.values(block, None if kept is None else kept[part])).astype(np.float64)

    def group_sum(group: slice) -> Array:
        total = DyadicSum()
        for part in parallel.blocks(group.stop - group.start, size):
            total.add(block_sum(slice(group.start + part.start, group.start + part.stop)))
        return total.total()

    return parallel.sum_groups(group_sum, m, size * _blocks(m, n))


def _blocks(m: int, n: int) -> int:
    """Return how many blocks a thread predicts at a time, a power of two: then sums have the same tree for any."""
    count, size = 1, parallel.block_size(n)
    while count * size * n < GROUP or m > count * size * GROUPS * parallel.threads():
        count *= 2
    return count


@parallel.serial_blas
def move(
    activation: Activation,
    x: Array,
    z: Array,
    far: Array | None,
    c: Array,
    motion: Motion,
    train: str = "both",
    *,
    out: Particles | None = None,
) -> Particles:
    """Return cloud and reference after kick, channel and kick; see `reference.move`. O(n d) a particle and kick."""
    return _move(_layer(activation, x, z), z, far, c, motion, train, out, None)


def _move(
    layer: Layer, z: Array, far: Array | None, c: Array, motion: Motion, train: str, out: Particles | None,
    kept: Array | None,
) -> Particles:  # fmt: skip
    there, beyond = out or (np.empty_like(z), None if far is None else np.empty_like(far))
    c = c.astype(z.dtype)
    back = np.ascontiguousarray(layer.x.T * c[:, None])
    columns = reference.columns(train)

    def group(part: slice) -> None:
        here, xi = there[part], reference.diffusion(motion, z, part, columns)
        _kick(layer, z[part], here, motion.before, back, c, train, None if kept is None else kept[part])
        _channel(here, here, motion.decay, xi, columns)
        if far is not None and beyond is not None:
            _channel(far[part], beyond[part], motion.decay, xi, columns)
        _kick(layer, here, here, motion.after, back, c, train, None)

    # Backwards: of what was kept, the last blocks are still in a cache.
    parallel.each_group(group, len(z), _group(z, layer.x.shape[1]), backwards=True)
    return there, beyond


def _group(z: Array, n: int) -> int:
    """Return how many particles a thread takes at a time, whole blocks; no number depends on it."""
    m, block = len(z), parallel.block_size(n)
    most = counters.CHUNK * 16 // (z.shape[1] * z.dtype.itemsize)
    rounds = -(-m // (parallel.threads() * most))  # every thread gets as many groups
    share = max(-(-m // (parallel.threads() * rounds)), GROUP // n)
    return -(-share // block) * block


def _kick(
    layer: Layer, z: Array, out: Array, eps: float, back: Array, c: Array, train: str, kept: Array | None
) -> None:  # fmt: skip
    """Write z + eps b(z) of a group; `back` is c_i x_i, `out` may be z."""
    if not eps:
        if out is not z:
            out[...] = z
        return
    b = _own.array("b", z.shape, z.dtype)
    for part in parallel.blocks(len(z), parallel.block_size(len(c))):
        h, slope = layer.pair(z[part]) if kept is None else (kept[part], layer.slope(kept[part]))
        if train != "u":
            np.matmul(slope, back, out=b[part, :-1])
        if train != "theta":
            np.matmul(h, c, out=b[part, -1])
    columns = reference.columns(train)
    if train != "u":
        b[:, :-1] *= z[:, -1:]
    b[:, columns] *= z.dtype.type(eps)
    if columns != slice(None) and out is not z:
        out[...] = z
    np.add(z[:, columns], b[:, columns], out=out[:, columns])


def _channel(z: Array, out: Array, decay: float, xi: Array, columns: slice) -> None:
    """Write z <- decay z + sigma xi of a group's trained coordinates; `out` may be z."""
    if columns != slice(None) and out is not z:
        out[...] = z
    moving = out[:, columns]
    np.multiply(z[:, columns], z.dtype.type(decay), out=moving)
    moving += xi


@parallel.serial_blas
def descend(
    activation: Activation,
    x: Array,
    z: Array,
    far: Array | None,
    weights: Array | None,
    coefficients: Callable[[Array], Array],
    motion: Motion,
    train: str = "both",
    *,
    centred: bool = False,
    out: Particles | None = None,
) -> Particles:
    """Return cloud and reference after an explicit step; see `reference.descend`. Two passes, three where centred."""
    layer, m, n = _layer(activation, x, z), len(z), len(x)
    keep = bool(motion.before) and keeps(activation, n, m, z.dtype)
    with lent((m if keep else 0, n), z.dtype) as room:
        kept = room if keep else None
        psi = _predict(layer, z, weights, kept)
        if centred and far is not None:
            psi = psi - _predict(layer, far, weights, None)
        return _move(layer, z, far, coefficients(psi), motion, train, out, kept)


BACKEND = reference.BACKEND._replace(predict=predict, move=move, descend=descend)
