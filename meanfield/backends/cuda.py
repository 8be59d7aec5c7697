"""The CUDA backend: particles stay on the GPU, steps run without asking the host for anything.

Two ways, chosen by d and by the activation:

- d <= 32 and one of the eight activations of `units`: fused kernels that hold a particle in registers and store
  nothing of size m n. `descend` launches three (predict, fold, move) beside what `coefficients` does to (n,) numbers.
- larger d, or an activation of your own: chunks of particles to a budget of memory, w = theta . x by cuBLAS, then
  elementwise kernels: three launches for predict, a chunk and cloud, and four for move, a chunk and kick. An activation
  of your own runs through its Python `jet`, which must then be written with numpy functions that dispatch.

Measurements and accounts use the formulas of `blocks` on chunks of device arrays; what they return is downloaded at
their end. Each launch costs the host some microseconds, so small steps wait for launches. A CUDA graph could hide
them, but a step's noise is named by its number, an argument that a captured graph would repeat; graphs are left out.

Sums are formed in a fixed order and two runs give equal bits. The noise, and with it the coupled reference, is equal
to that of other backends to the last bit; kicks differ from theirs by rounding. Arrays that cannot be written
to (such as a risk's inputs and a cloud's weights) are uploaded once and remembered; others at every call.

Where ranks hold a cloud together each has a GPU of its own (`of_rank`). What a rank's rows sum to, n or n^2 numbers,
comes to the host and is added up over the ranks in a fixed tree: equal numbers of ranks give equal bits, others differ
by rounding.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

from meanfield import parallel
from meanfield.backends import ARRAYS, SUMS, Backend, Measurement, Moved, around, arrays
from meanfield.backends.cuda_devices import own, seats, unavailable
from meanfield.backends.cuda_source import Launch, launch
from meanfield.backends.cuda_steps import BUDGET, LARGEST_CHUNK, STILL, Array, Steps
from meanfield.errors import InputError
from meanfield.units import Activation


def _frame(on: Steps, activation: Activation, x: Array, z: Array, reference: Any, weights: Any) -> arrays.Frame:
    numbers = 16 * len(x) + 6 * z.shape[1]
    weights = None if weights is None else on.upload(weights, z.dtype)
    return arrays.Frame(
        activation=on.on_device(activation),
        x=x,
        z=z,
        reference=None if reference is None else on.asarray(reference),
        chunks=list(on.chunks(z, numbers, LARGEST_CHUNK)),
        masses=lambda part: on.masses(weights, part, z),
    )


def _summed(on: Steps, work: Callable[[], tuple]) -> tuple:
    """Return the sums that `work` forms on the device, on the host: over the particles of all ranks."""
    return parallel.sum_ranks(lambda: tuple(on.asnumpy(value) for value in work()))


def measure(
    on: Steps,
    activation: Activation,
    x: Any,
    z: Array,
    reference: Array | None,
    weights: Any,
    train: str = "both",
    *,
    gram: bool = True,
    variance: float | None = None,
) -> Measurement:
    """Return the sums that residual, Gram matrix and generator need; see `reference.measure`."""
    s2 = None if variance is None else float(variance)

    def here() -> tuple:
        cloud = on.asarray(z)
        frame = _frame(on, activation, on.upload(x, cloud.dtype), cloud, reference, weights)
        return arrays.measure(frame, train, gram, s2)

    square = 1.0 / parallel.total(len(z)) if weights is None else float(weights @ weights)
    return arrays.measured(_summed(on, here), gram, None if s2 is None else square)


def _moved(on: Steps, work: Callable[[], tuple[Array, tuple]]) -> Moved:
    """Return what a kick did; `work` gives the particles of this rank and the sums that the account wants of them."""
    moved: list[Array] = []

    def here() -> tuple:
        z, (*means, first, second, third) = work()
        moved.append(z)
        return on.xp.stack(means), first, second, third

    (speed, pull, rest), *pushes = _summed(on, here)
    return Moved(moved[0], float(speed), float(pull), float(rest), *pushes)


def kick(
    on: Steps,
    activation: Activation,
    x: Any,
    z: Array,
    reference: Array | None,
    weights: Any,
    c: Any,
    eps: float,
    train: str = "both",
    *,
    account: bool = False,
    at: Array | None = None,
) -> Moved:
    """Return T(z) = z + eps b(z) and the means that the account wants; see `reference.kick`."""
    eps = float(eps)
    if at is None and not account:
        return Moved(on.move(activation, x, z, None, c, STILL._replace(before=eps), train)[0])

    def work() -> tuple[Array, tuple]:
        cloud = on.asarray(z)
        points, kind = cloud if at is None else on.asarray(at), cloud.dtype
        b = on.pullback(activation, x, points, c, train)
        moved = cloud + kind.type(eps) * b
        if not account:
            return moved, ()
        frame = _frame(on, activation, on.upload(x, kind), cloud, reference, weights)
        return moved, arrays.kick_account(frame, b, points, on.upload(c, kind), eps, train)

    return _moved(on, work) if account else Moved(work()[0])


def midpoint_kick(
    on: Steps,
    activation: Activation,
    x: Any,
    z: Array,
    reference: Array | None,
    weights: Any,
    c: Any,
    eps: float,
    train: str = "both",
    *,
    account: bool = False,
    variance: float = 1.0,
) -> Moved:
    """Return z + eps b(z + eps b(z) / 2) and the means that the account wants; see `reference.midpoint_kick`."""
    eps = float(eps)

    def work() -> tuple[Array, tuple]:
        cloud = on.asarray(z)
        kind = cloud.dtype
        b = on.pullback(activation, x, cloud, c, train)
        middle = cloud + kind.type(0.5 * eps) * b
        b_mid = on.pullback(activation, x, middle, c, train)
        moved = cloud + kind.type(eps) * b_mid
        if not account:
            return moved, ()
        frame = _frame(on, activation, on.upload(x, kind), cloud, reference, weights)
        sums = arrays.midpoint_account(frame, b, middle, b_mid, on.upload(c, kind), eps, train, float(variance))
        return moved, sums

    return _moved(on, work) if account else Moved(work()[0])


def roughness(
    on: Steps, activation: Activation, x: Any, z: Array, weights: Any, c: Any, train: str = "both"
) -> tuple[float, float, float]:
    """Return the means of |grad phi|^2, |grad^2 phi|^2 and |grad^3 phi|^2; see `reference.roughness`."""

    def here() -> tuple:
        cloud = on.asarray(z)
        b = on.pullback(activation, x, cloud, c, train)
        frame = _frame(on, activation, on.upload(x, cloud.dtype), cloud, None, weights)
        return (on.xp.stack(arrays.roughness(frame, b, on.upload(c, cloud.dtype), train)),)

    ((first, second, third),) = _summed(on, here)
    return float(first), float(second), float(third)


def make(xp: Any, start: Launch, budget: int = BUDGET) -> Backend:
    """Return the backend over the arrays of `xp` whose kernels `start` starts, within `budget` bytes of work arrays."""
    on = Steps(xp, start, budget)
    return Backend(
        name="cuda",
        predict=on.predict,
        pullback=on.pullback,
        measure=partial(measure, on),
        kick=partial(kick, on),
        midpoint_kick=partial(midpoint_kick, on),
        roughness=partial(roughness, on),
        move=on.move,
        descend=on.descend,
        asarray=on.asarray,
        asnumpy=on.asnumpy,
    )


@functools.lru_cache(maxsize=8)
def of_rank(communicator: Any) -> Backend:
    """Return the backend on the GPU of this rank of a `Communicator`; all ranks ask at once, the first time.

    Raises
    ------
    InputError
        On all ranks, if one of them has no GPU.
    """
    return _on_device(seats(communicator)[communicator.rank].number)


def _on_device(number: int | None) -> Backend:
    """Return the backend on a GPU, which every call makes current, for that is a matter of threads; None: as it is."""
    import cupy

    made = make(cupy, launch)
    return made if number is None else around(made, partial(cupy.cuda.Device, number), (*SUMS, *ARRAYS))


def __getattr__(name: str) -> Backend:
    """Return BACKEND, made when it is first asked for.

    Raises
    ------
    InputError
        Where CuPy or a GPU is missing.
    """
    if name != "BACKEND":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    reason = unavailable()
    if reason:
        raise InputError(f"the backend 'cuda' cannot run here. {reason}")
    globals()["BACKEND"] = made = _on_device(own())
    return made
