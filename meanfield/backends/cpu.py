"""The fused CPU backend: Numba kernels over blocks of particles, threads over groups of blocks.

`predict`, `pullback`, `move` and `descend` are single passes (`fused`), with the noise drawn inside; what the account
needs is in `sums`. Kernels are compiled when first used and kept in Numba's cache on disk; they release the
interpreter, and every thread takes groups of blocks, of its own share first, so that none waits in a loop. Any number
of threads gives the same bits.

An activation that Numba cannot compile (see `rows`) goes through the numpy backend.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from meanfield import mapped, parallel
from meanfield.backends import Backend, Motion, Particles, dense, fused, pairwise, philox, sums
from meanfield.backends.caching import discard_stale
from meanfield.backends.fused import BLOCK
from meanfield.backends.rows import Rows, rows_for
from meanfield.backends.samples import Samples, blocks_of, samples
from meanfield.noise import Stream, round_keys
from meanfield.units import Activation
from meanfield.workspace import lent

Array = np.ndarray
_compiled: Any = fused.predict
discard_stale(Path(_compiled._cache.cache_path))
# A group of blocks holds at least so many (particle, sample) pairs: about 40 microseconds of work.
GROUP = 1 << 16
GROUPS = 16  # for each thread, at most: an even share, and little time spent on handing out
LEAST = 4  # blocks: what the last groups are cut into, where any cut gives the same bits
LARGEST_GROUP = 1 << 9  # blocks: of a cloud on disk, what is worked at a time is in memory
# Activations are kept between predicting and moving where the last cache has room for them, or where forming them
# again costs more than the memory's bandwidth: inner products over at least KEEP_FROM coordinates. They take at
# most KEEP_SHARE of the memory budget.
KEEP_CACHE, KEEP_FROM, KEEP_SHARE = 1 << 24, 16, 0.5


def group_size(m: int, n: int) -> int:
    """Return the number of blocks a thread takes at a time, a power of two, on which no bit depends."""
    size, most = 1, parallel.largest_group(BLOCK)
    while size < most and (size * BLOCK * n < GROUP or -(-blocks_of(m) // size) > GROUPS * parallel.threads()):
        size *= 2
    return min(size, LARGEST_GROUP)


def keeps(n: int, d: int, m: int, dtype: np.dtype) -> bool:
    """Return whether activations are kept between predicting and moving: the same bits either way."""
    size, most = n * m * dtype.itemsize, KEEP_SHARE * parallel.memory()
    return size <= (most if d >= KEEP_FROM else min(most, KEEP_CACHE))


def _nothing(dtype: np.dtype) -> Array:
    return np.empty((0, 0, BLOCK), dtype)


def _predict(compiled: Rows, inputs: Samples, z: Array, weights: Array | None, kept: Array) -> Array:
    mass = np.empty(0, z.dtype) if weights is None else weights.astype(z.dtype)
    inverse = z.dtype.type(1.0 / parallel.total(len(z)))

    def group(part: slice) -> Array:
        out = np.empty(len(inputs.x))
        fused.predict(inputs.x, z, mass, inverse, part.start, part.stop, compiled.value, kept, out)
        return out

    total = parallel.sum_groups(group, blocks_of(len(z)), group_size(len(z), inputs.n), BLOCK)
    return total[: inputs.n]


def predict(activation: Activation, x: Array, z: Array, weights: Array | None = None) -> Array:
    """Return sum_j w_j psi_i(z_j), shape (n,). O(n d) a particle, one pass."""
    compiled = rows_for(activation, x, z)
    if compiled is None:
        return dense.predict(activation, x, z, weights)
    return _predict(compiled, samples(x, z.dtype), _rowwise(z), weights, _nothing(z.dtype))


def _rowwise(z: Array) -> Array:
    return np.ascontiguousarray(z)


def pullback(activation: Activation, x: Array, z: Array, c: Array, train: str = "both") -> Array:
    """Return sum_i c_i grad psi_i(z_j), shape (m, D), zero where a coordinate is not trained. O(n d) a particle."""
    return sums.kick(activation, x, np.zeros_like(z), None, None, c, 1.0, train, at=z).z


def move(
    activation: Activation,
    x: Array,
    z: Array,
    reference_cloud: Array | None,
    c: Array,
    motion: Motion,
    train: str = "both",
    *,
    out: Particles | None = None,
) -> Particles:
    """Return cloud and reference after kick, channel and kick, in one pass; see `reference.move`."""
    compiled = rows_for(activation, x, z)
    if compiled is None:
        return dense.move(activation, x, z, reference_cloud, c, motion, train, out=out)
    inputs = samples(x, z.dtype)
    return _move(compiled, inputs, _rowwise(z), reference_cloud, inputs.pad(c), motion, train, out, _nothing(z.dtype))


def _move(
    compiled: Rows, inputs: Samples, z: Array, far: Array | None, c: Array, motion: Motion, train: str,
    out: Particles | None, kept: Array,
) -> Particles:  # fmt: skip
    there, beyond = out or (mapped.like(z), None if far is None else mapped.like(far))
    none = np.empty((0, z.shape[1]), z.dtype)
    lengths = tuple(z.dtype.type(v) for v in (motion.before, motion.decay, motion.sigma, motion.after))
    last_word = np.uint64(int(Stream.DIFFUSION) << 24 | motion.replicate)
    names = (np.uint64(motion.step), last_word, motion.sigma != 0, np.int64(motion.first))
    trained = (train != "u", train != "theta")
    keys, cx = _keys(motion.seed), c[:, None] * inputs.x
    source, target = (none, none) if far is None else (_rowwise(far), beyond)

    def group(part: slice) -> None:
        fine = fused.move(
            inputs.x, cx, c, z, there, source, target, part.start, part.stop, lengths, names, keys, trained,
            compiled.pair, compiled.slope, kept,
        )  # fmt: skip
        if motion.seen:
            motion.seen(fine)

    # Backwards: of what was kept, the last blocks are still in a cache.
    parallel.each_group(group, blocks_of(len(z)), group_size(len(z), inputs.n), backwards=True, least=LEAST)
    return there, beyond


_keys = functools.lru_cache(maxsize=64)(round_keys)


def descend(
    activation: Activation,
    x: Array,
    z: Array,
    reference_cloud: Array | None,
    weights: Array | None,
    coefficients: Callable[[Array], Array],
    motion: Motion,
    train: str = "both",
    *,
    centred: bool = False,
    out: Particles | None = None,
) -> Particles:
    """Return cloud and reference after an explicit step; see `reference.descend`. Two passes, three where centred."""
    compiled = rows_for(activation, x, z)
    if compiled is None:
        return dense.descend(
            activation, x, z, reference_cloud, weights, coefficients, motion, train, centred=centred, out=out
        )
    inputs, z = samples(x, z.dtype), _rowwise(z)
    keep = compiled.slope and motion.before and keeps(inputs.n, x.shape[1], len(z), z.dtype)
    with lent((blocks_of(len(z)) if keep else 0, len(inputs.x), BLOCK), z.dtype) as kept:
        psi = _predict(compiled, inputs, z, weights, kept)
        if centred and reference_cloud is not None:
            psi = psi - _predict(compiled, inputs, _rowwise(reference_cloud), weights, _nothing(z.dtype))
        c = inputs.pad(coefficients(psi))
        return _move(compiled, inputs, z, reference_cloud, c, motion, train, out, kept)


BACKEND = Backend(
    "cpu", predict, pullback, sums.measure, sums.kick, sums.midpoint_kick, sums.roughness, move,
    descend, np.asarray, np.asarray, pairwise.interact, pairwise.neighbours, philox.normals,
)  # fmt: skip
