"""Predictions, kicks and noise of the CUDA backend: what its kernels are given, and in which pieces.

`Steps` holds the array module, the way to start kernels, and what was uploaded. `cuda` says what a step launches.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from meanfield import parallel
from meanfield.backends import Motion, Particles
from meanfield.backends.cuda_source import PARTICLES, SAMPLES, SMALL_D, Launch, instance
from meanfield.errors import InputError
from meanfield.noise import Stream
from meanfield.parallel import DyadicSum
from meanfield.units import ACTIVATIONS, Activation

Array = Any  # of the backend's kind, unless a comment says numpy
BUDGET = 512 << 20  # bytes of work arrays
LARGEST_CHUNK = 1 << 14  # particles of a measurement: sums within a chunk are in the cloud's precision
THREADS = 128
FULL = 1 << 18  # threads that fill a GPU
MASKS = {"theta": 1, "u": 2, "both": 3}
NOWHERE = np.int64(0)  # a null pointer
REMEMBERED = 8
STILL = Motion(0.0, 1.0, 0.0, 0.0, 0, 0, 0)


def _up(count: int, size: int) -> int:
    """Return how many pieces of `size` hold `count`."""
    return -(-count // size)


@dataclass(frozen=True)
class Steps:
    """The steps of the contract over the arrays of `xp` (cupy), with kernels started by `start`."""

    xp: Any
    start: Launch
    budget: int = BUDGET
    _kept: "OrderedDict[tuple[int, np.dtype], tuple[Any, Any]]" = field(default_factory=OrderedDict, repr=False)

    # Arrays -----------------------------------------------------------------------------------------------------

    def asarray(self, array: Any) -> Array:
        """Return the array on the device, its rows one after another; one that is there already is not copied."""
        return self.xp.ascontiguousarray(self.xp.asarray(array))

    def asnumpy(self, array: Array) -> np.ndarray:
        """Return the array on the host."""
        return self.xp.asnumpy(array)

    def upload(self, array: Any, dtype: np.dtype) -> Array:
        """Return small data on the device in a dtype; what cannot be written to is remembered."""
        fixed = isinstance(array, np.ndarray) and array.flags.owndata and not array.flags.writeable
        key = (id(array), np.dtype(dtype))
        if fixed and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][1]
        found = self.xp.ascontiguousarray(self.xp.asarray(array, dtype=dtype))
        if fixed:
            self._kept[key] = (array, found)
            if len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)
        return found

    def masses(self, weights: Array | None, part: slice, z: Array) -> Array:
        """Return the masses of a chunk of the particles z, shape (B,)."""
        if weights is None:
            return self.xp.full(part.stop - part.start, 1.0 / parallel.total(len(z)), z.dtype)
        return weights[part]

    def chunks(self, z: Array, numbers: int, largest: int = 1 << 30) -> Iterator[slice]:
        """Cut the cloud so that `numbers` of its dtype for each particle fit into the budget."""
        size = max(1, min(largest, self.budget // (numbers * z.dtype.itemsize)))
        for first in range(0, len(z), size):
            yield slice(first, min(first + size, len(z)))

    # Activations ------------------------------------------------------------------------------------------------

    def on_device(self, activation: Activation) -> Activation:
        """Return the record with a jet for device arrays."""
        if not built_in(activation):
            return replace(activation, jet=_dispatching(activation, activation.jet), pair=None)

        def jet(w: Array) -> tuple[Array, Array, Array, Array]:
            w = self.xp.ascontiguousarray(w)
            out = [self.xp.empty_like(w) for _ in range(4)]
            name = instance("jets", w.dtype, activation.name)
            self.start(name, (_up(w.size, THREADS),), (THREADS,), (w, np.int64(w.size), *out), 0)
            return out[0], out[1], out[2], out[3]

        return replace(activation, jet=jet, pair=None)

    def _fused(self, activation: Activation, x: Array) -> bool:
        return built_in(activation) and 1 <= x.shape[1] <= SMALL_D

    # Sums of psi ------------------------------------------------------------------------------------------------

    def predict(self, activation: Activation, x: Any, z: Array, weights: Any = None) -> np.ndarray:
        """Return sum_j w_j psi_i(z_j), shape (n,); see `reference.predict`. O(n d) a particle."""
        return parallel.sum_ranks(lambda: self.asnumpy(self._psi(activation, x, z, None, weights)))

    def _psi(self, activation: Activation, x: Any, z: Array, reference: Array | None, weights: Any) -> Array:
        """Return sum_j w_j (psi_i(z_j) - psi_i(zbar_j)) over the particles at hand on the device, float64."""
        z, x = self.asarray(z), self.upload(x, z.dtype)
        reference = None if reference is None else self.asarray(reference)
        weights = None if weights is None else self.upload(weights, z.dtype)
        way = self._psi_fused if self._fused(activation, x) else self._psi_products
        return way(activation, x, z, reference, weights)

    def _psi_fused(self, activation: Activation, x: Array, z: Array, reference: Array | None, weights: Any) -> Array:
        (m, width), n = z.shape, len(x)
        threads = min(THREADS, 32 * _up(n, 32))
        across = _up(n, threads)
        per = _particles_of_a_row(m, threads * across)
        rows = _up(m, per)
        partial = self.xp.empty((rows, n), np.float64)
        self.start(
            instance("predict", z.dtype, activation.name, width - 1), (rows, across), (threads,),
            (x, z, NOWHERE if reference is None else reference, NOWHERE if weights is None else weights,
             z.dtype.type(1.0 / parallel.total(m)),
             np.int64(m), np.int64(n), np.int64(per), partial),
            PARTICLES * width * z.dtype.itemsize,
        )  # fmt: skip
        return self._fold(partial)

    def _fold(self, partial: Array) -> Array:
        rows, n = partial.shape
        out = self.xp.empty(n, np.float64)
        arguments = (partial, np.int64(rows), np.int64(n), out)
        self.start(instance("fold", partial.dtype), (_up(n, 32),), (32, 32), arguments, 32 * 32 * 8)
        return out

    def _psi_products(self, activation: Activation, x: Array, z: Array, reference: Array | None, weights: Any) -> Array:
        total = DyadicSum()
        if not built_in(activation):
            h = self.on_device(activation)
            for part in self.chunks(z, 6 * len(x) + 2 * z.shape[1], LARGEST_CHUNK):
                mass = self.masses(weights, part, z)
                psi = [
                    ((mass * cloud[part, -1]) @ h.value(cloud[part, :-1] @ x.T)).astype(np.float64)
                    for cloud in (z, reference)
                    if cloud is not None
                ]
                total.add(psi[0] if reference is None else psi[0] - psi[1])
            return total.total()
        padded = self._padded(x)
        w = None
        for part in self.chunks(z, len(x)):
            w = self.xp.empty((part.stop, len(x)), z.dtype) if w is None else w
            for sign, cloud in ((1, z), (-1, reference)):
                if cloud is not None:
                    total.add(self._values(activation, w, cloud, part, padded, weights, sign))
        return total.total()

    def _values(
        self, activation: Activation, w: Array, cloud: Array, part: slice, padded: Array, weights: Any, sign: int
    ) -> Array:
        """Return sign sum_j w_j psi_i(z_j) over a chunk, with w to work in."""
        (m, width), n, kind = cloud.shape, len(padded), cloud.dtype
        z, count = cloud[part], part.stop - part.start
        self.xp.matmul(z, padded.T, out=w[:count])
        per = _particles_of_a_row(count, n)
        rows = _up(count, per)
        partial = self.xp.empty((rows, n), np.float64)
        mass = NOWHERE if weights is None else weights[part]
        self.start(
            instance("values", kind, activation.name), (rows, _up(n, THREADS)), (THREADS,),
            (w, z, mass, kind.type(1.0 / parallel.total(m)), kind.type(sign),
             np.int64(count), np.int64(n), np.int64(width), np.int64(per), partial),
            0,
        )  # fmt: skip
        return self._fold(partial)

    def _padded(self, x: Array) -> Array:
        """Return the inputs with a column of zeros, so that products take whole rows of particles."""
        return self.xp.concatenate([x, self.xp.zeros((len(x), 1), x.dtype)], axis=1)

    # Moves ------------------------------------------------------------------------------------------------------

    def move(
        self,
        activation: Activation,
        x: Any,
        z: Array,
        reference: Array | None,
        c: Any,
        motion: Motion,
        train: str = "both",
        *,
        out: Particles | None = None,
        keep: bool = True,
    ) -> Particles:
        """Return cloud and reference after kick, channel and kick; see `reference.move`. O(n d) a particle and kick.

        Without `keep` the first kick starts from zero: z <- before b(z).
        """
        z, x, c = self.asarray(z), self.upload(x, z.dtype), self.upload(c, np.dtype(np.float64))
        reference = None if reference is None else self.asarray(reference)
        there, far = out or (self.xp.empty_like(z), None if reference is None else self.xp.empty_like(z))
        way = self._move_fused if self._fused(activation, x) else self._move_products
        way(activation, x, z, reference, c, motion, train, there, far, keep)
        if motion.seen is not None:
            looks = [self.xp.all(self.xp.isfinite(there[part])) for part in self.chunks(there, there.shape[1])]
            motion.seen(all(bool(look) for look in looks))
        return there, far

    def _move_fused(
        self, activation: Activation, x: Array, z: Array, reference: Array | None, c: Array, motion: Motion,
        train: str, there: Array, far: Array | None, keep: bool,
    ) -> None:  # fmt: skip
        (m, width), kind = z.shape, z.dtype.type
        particles, slices = shape_of_blocks(m, len(x), width, z.dtype.itemsize)
        shared = (2 * width * (particles + 1) + SAMPLES * width) * z.dtype.itemsize
        none = reference is None
        self.start(
            instance("move", z.dtype, activation.name, width - 1), (_up(m, particles),), (particles, slices),
            (x, c, z, NOWHERE if none else reference, there, NOWHERE if none else far,
             np.int64(m), np.int64(len(x)), np.int32(keep),
             kind(motion.before), kind(motion.decay), kind(motion.sigma), kind(motion.after),
             np.int32(MASKS[train]), np.uint32(motion.first), *_name(motion)),
            shared,
        )  # fmt: skip

    def _move_products(
        self, activation: Activation, x: Array, z: Array, reference: Array | None, c: Array, motion: Motion,
        train: str, there: Array, far: Array | None, keep: bool,
    ) -> None:  # fmt: skip
        padded = self._padded(x)
        numbers = (1 if built_in(activation) else 6) * len(x) + 2 * z.shape[1]
        work: list[Array] = []
        for part in self.chunks(z, numbers):
            if not work:
                work = [self.xp.empty((part.stop, columns), z.dtype) for columns in (len(x), z.shape[1])]
            here, shadow = z[part], None if reference is None else reference[part]
            target, shadow_target = there[part], None if far is None else far[part]
            b = self._field(activation, padded, here, c, train, work) if motion.before else None
            own = motion._replace(after=0.0, first=motion.first + part.start)
            self._channel(here, b, shadow, target, shadow_target, own, train, keep)
            if motion.after:
                b = self._field(activation, padded, target, c, train, work)
                self._channel(target, b, None, target, None, STILL._replace(before=motion.after), train)

    def _field(
        self, activation: Activation, padded: Array, z: Array, c: Array, train: str, work: list[Array]
    ) -> tuple[Array, Array]:
        """Return b = sum_i c_i grad psi_i of a chunk: the columns of theta (the last one is not set), and that of u."""
        n, (count, width) = len(padded), z.shape
        w, b = work[0][:count], work[1][:count]
        self.xp.matmul(z, padded.T, out=w)
        if built_in(activation):
            bu = self.xp.empty(count, z.dtype)
            self.start(
                instance("slopes", z.dtype, activation.name), (count,), (THREADS,),
                (w, z, c, np.int64(n), np.int64(width), bu), THREADS * z.dtype.itemsize,
            )  # fmt: skip
        else:
            h, h1 = self.on_device(activation).value_and_first(w)
            weights = c.astype(z.dtype)
            bu = h @ weights
            w = h1 * (z[:, -1:] * weights)
        if train != "u":
            self.xp.matmul(w, padded, out=b)
        return b, bu

    def _channel(
        self, z: Array, b: tuple[Array, Array] | None, reference: Array | None, out: Array, far: Array | None,
        motion: Motion, train: str, keep: bool = True,
    ) -> None:  # fmt: skip
        (rows, width), kind = z.shape, z.dtype.type
        none = reference is None
        size = rows * _up(width, 16 // z.dtype.itemsize)
        self.start(
            instance("channel", z.dtype), (_up(size, THREADS),), (THREADS,),
            (z, *(b or (NOWHERE, NOWHERE)), NOWHERE if none else reference, out, NOWHERE if none else far,
             np.int64(rows), np.int64(width), np.int32(keep),
             kind(motion.before), kind(motion.decay), kind(motion.sigma),
             np.int32(MASKS[train]), np.uint32(motion.first), *_name(motion)),
            0,
        )  # fmt: skip

    def descend(
        self,
        activation: Activation,
        x: Any,
        z: Array,
        reference: Array | None,
        weights: Any,
        coefficients: Callable[[Array], Array],
        motion: Motion,
        train: str = "both",
        *,
        centred: bool = False,
        out: Particles | None = None,
    ) -> Particles:
        """Return cloud and reference after an explicit step; `coefficients` maps device arrays to device arrays.

        Where ranks hold the cloud together, psi goes through the host and their sum comes back.
        """

        def here() -> Array:
            return self._psi(activation, x, z, reference if centred else None, weights)

        alone = parallel.held() is None
        psi = here() if alone else self.asarray(parallel.sum_ranks(lambda: self.asnumpy(here())))
        return self.move(activation, x, z, reference, coefficients(psi), motion, train, out=out)

    def pullback(self, activation: Activation, x: Any, z: Array, c: Any, train: str = "both") -> Array:
        """Return sum_i c_i grad psi_i(z_j), shape (m, D), zero where a coordinate is not trained."""
        return self.move(activation, x, z, None, c, STILL._replace(before=1.0), train, keep=False)[0]

    # Noise ------------------------------------------------------------------------------------------------------

    def normals(
        self, seed: int, stream: int, *, step: int, replicate: int = 0, first: int = 0, count: int, width: int,
        dtype: Any = np.float64, first_block: int = 0,
    ) -> Array:  # fmt: skip
        """Return the numbers of `noise.normals`, equal to the last bit, made on the device."""
        out = self.xp.empty((count, width), dtype)
        size = count * _up(width, 16 // out.dtype.itemsize)
        if size:
            self.start(
                instance("gaussian", out.dtype), (_up(size, THREADS),), (THREADS,),
                (out, np.int64(count), np.int64(width), np.uint32(first), np.uint32(first_block),
                 *_name(STILL._replace(seed=seed, step=step, replicate=replicate), stream)),
                0,
            )  # fmt: skip
        return out


def _name(motion: Motion, stream: int = Stream.DIFFUSION) -> tuple[np.uint64, np.uint32, np.uint32]:
    """Return key, step and the last word of the counters."""
    return np.uint64(motion.seed), np.uint32(motion.step), np.uint32(stream << 24 | motion.replicate)


def _particles_of_a_row(m: int, threads: int) -> int:
    """Return how many particles a row of partial sums takes: rows fill the GPU, each of at least a tile if it can."""
    return _up(m, min(_up(m, PARTICLES), max(1, FULL // threads)))


def built_in(activation: Activation) -> bool:
    """Tell whether the kernels know this record."""
    return ACTIVATIONS.get(activation.name) is activation


def shape_of_blocks(m: int, n: int, width: int, itemsize: int) -> tuple[int, int]:
    """Return particles and slices of samples of a block of `move`: slices where particles alone would not fill a GPU.

    Shared memory holds two copies of the particles; with 32 it always fits into 48 KiB.
    """
    if m < 1 << 17:
        return 32, min(8 if m < 1 << 15 else 4, _up(n, 4))
    return (128 if 2 * 129 * width * itemsize <= 36 << 10 else 64 if 2 * 65 * width * itemsize <= 36 << 10 else 32), 1


def _dispatching(activation: Activation, jet: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Return the jet, saying what is wrong where it cannot take device arrays."""

    def checked(w: Array) -> Any:
        try:
            return jet(w)
        except TypeError as error:
            raise InputError(
                f"activation '{activation.name}' cannot run on the GPU: {error}. Write its jet with numpy functions "
                "of w alone (np.tanh(w), not np.asarray(w) or scipy), or take --backend numpy."
            ) from error

    return checked
