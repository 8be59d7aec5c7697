"""The numpy backend: what `reference` defines, with steps made of few, long passes over arrays that are used again.

`predict`, `move` and `descend` are the passes of a step without an account; the rest of the contract is `reference`'s
own. Threads of Python wait for one another between numpy's calls, and a call of some microseconds is followed by a
wait that is longer. So a thread takes groups of many blocks; their inner products are one call for a tile of blocks
(a stack of matrices, each multiplied as if it were alone), their noise is made in the long passes of `counters`.

A field comes from products with c_i x_i, so that a particle and a sample cost an inner product, an activation, and
what forms h' and the two sums. Where h' is a function of h, predicting keeps h (an m x n array, within the memory
budget) for the move that follows. Sums have the order of `reference.measure`, so that predictions have its bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from meanfield import counters, mapped, parallel
from meanfield.backends import Motion, Particles, blocks, reference
from meanfield.dyadic import tree_sum
from meanfield.units import Activation
from meanfield.workspace import WorkSpace, lent

Array = np.ndarray
KEEP_SHARE = 0.5  # of the memory budget may hold activations between predicting and moving
TILE = 1 << 21  # bytes of activations that are made at a time, and the least that is worth waking a thread
_own = WorkSpace()


class Layer(NamedTuple):
    """An activation and its inputs, x' in rows of its own, shape (d, n); the particles of a block and of a tile.

    A tile is a power of two of blocks, so that sums have the same tree for any.
    """

    activation: Activation
    x: Array
    n: int
    block: int
    tile: int

    def values(self, z: Array, out: Array | None = None) -> Array:
        """Return h of particles, shape (B, n); in `out` where the activation writes over its argument."""
        if out is None:
            out = _own.array("h", (len(z), self.n), z.dtype)
        return self.activation.value_over(self.inner(z, out))

    def inner(self, z: Array, out: Array) -> Array:
        """Write theta . x of particles into `out`, shape (B, n)."""
        _blockwise(lambda theta, w: np.matmul(theta, self.x, out=w), self.block, z[:, :-1], out)
        return out

    def pair(self, z: Array) -> tuple[Array, Array]:
        """Return h and h' of particles."""
        if self.activation.slope is not None:
            h = self.values(z)
            return h, self.slope(h)
        w = _own.array("h", (len(z), self.n), z.dtype)
        return self.activation.value_and_first(self.inner(z, w))

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
    n = len(x)
    block = tile = parallel.block_size(n)
    while 2 * tile * n * z.dtype.itemsize <= TILE and 2 * tile <= parallel.largest_group():
        tile *= 2
    return Layer(activation, np.ascontiguousarray(x.T, z.dtype), n, block, tile)


def _predict(layer: Layer, z: Array, weights: Array | None, kept: Array | None) -> Array:
    """Return what `predict` does, leaving h in `kept`, shape (m, n)."""
    m = parallel.total(len(z))

    def tile_sum(tile: slice) -> Array:
        h = layer.values(z[tile], None if kept is None else kept[tile])
        mass = blocks.masses(weights, tile, m, z.dtype) * z[tile, -1]
        sums: list[Array] = []
        _blockwise(lambda v, h: sums.extend(np.matmul(v.swapaxes(1, 2), h)[:, 0]), layer.block, mass[:, None], h)
        return tree_sum(np.array(sums, np.float64))

    return parallel.sum_groups(tile_sum, len(z), layer.tile)


def _blockwise(function: Callable[..., object], block: int, *arrays: Array) -> None:
    """Call a function of arrays of shape (blocks, B, k) with all whole blocks at once, and with what is left."""
    rows = len(arrays[0])
    whole = rows - rows % block
    if whole:
        function(*[array[:whole].reshape(-1, block, array.shape[1]) for array in arrays])
    if whole < rows:
        function(*[array[None, whole:] for array in arrays])


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
    there, beyond = out or (mapped.like(z), None if far is None else mapped.like(far))
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
    parallel.each_group(group, len(z), _group(z, layer), backwards=True)
    return there, beyond


def _group(z: Array, layer: Layer) -> int:
    """Return how many particles a thread takes at a time, whole tiles; no number depends on it.

    Their noise is made in one go, and every thread gets as many groups, if there is work for all.
    """
    threads, row = parallel.threads(), z.shape[1] * z.dtype.itemsize
    most = max(min(16 * counters.CHUNK, parallel.memory() // (16 * threads)) // row, 1)
    rounds = -(-len(z) // (threads * most))
    return -(-len(z) // (threads * rounds * layer.tile)) * layer.tile


def _kick(
    layer: Layer, z: Array, out: Array, eps: float, back: Array, c: Array, train: str, kept: Array | None
) -> None:  # fmt: skip
    """Write z + eps b(z) of a group; `back` is c_i x_i, `out` may be z."""
    if not eps:
        if out is not z:
            out[...] = z
        return
    b = _own.array("b", z.shape, z.dtype)
    for part in parallel.blocks(len(z), layer.tile):
        h, slope = layer.pair(z[part]) if kept is None else (kept[part], layer.slope(kept[part]))
        if train != "u":
            _blockwise(lambda a, out: np.matmul(a, back, out=out), layer.block, slope, b[part, :-1])
        if train != "theta":
            _blockwise(lambda a, out: np.matmul(a, c[:, None], out=out), layer.block, h, b[part, -1:])
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
