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
"""

import importlib.util
from functools import partial
from typing import Any

from meanfield.backends import Backend, Measurement, Moved, arrays
from meanfield.backends.cuda_source import Launch, launch
from meanfield.backends.cuda_steps import BUDGET, LARGEST_CHUNK, STILL, Array, Steps
from meanfield.errors import InputError
from meanfield.units import Activation


def _frame(on: Steps, activation: Activation, x: Array, z: Array, reference: Any, weights: Any) -> arrays.Frame:
    numbers = 16 * len(x) + 6 * z.shape[1]
    square = 1.0 / len(z) if weights is None else float(weights @ weights)
    weights = None if weights is None else on.upload(weights, z.dtype)
    return arrays.Frame(
        activation=on.on_device(activation),
        x=x,
        z=z,
        reference=None if reference is None else on.asarray(reference),
        chunks=list(on.chunks(z, numbers, LARGEST_CHUNK)),
        masses=lambda part: on.masses(weights, part, z),
        mass_square=square,
    )


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
    z, x = on.asarray(z), on.upload(x, z.dtype)
    frame = _frame(on, activation, x, z, reference, weights)
    found = arrays.measure(frame, train, gram, None if variance is None else float(variance))
    host: list[Any] = [None if value is None else on.asnumpy(value) for value in found]
    return Measurement(*host)


def _moved(on: Steps, z: Array, sums: tuple) -> Moved:
    speed, pull, rest, *pushes = sums
    means = on.asnumpy(on.xp.stack([speed, pull, rest]))
    return Moved(z, float(means[0]), float(means[1]), float(means[2]), *(on.asnumpy(push) for push in pushes))


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
    z, eps = on.asarray(z), float(eps)
    if at is None and not account:
        return Moved(on.move(activation, x, z, None, c, STILL._replace(before=eps), train)[0])
    at = z if at is None else on.asarray(at)
    b = on.pullback(activation, x, at, c, train)
    moved = z + z.dtype.type(eps) * b
    if not account:
        return Moved(moved)
    x, c = on.upload(x, z.dtype), on.upload(c, z.dtype)
    frame = _frame(on, activation, x, z, reference, weights)
    return _moved(on, moved, arrays.kick_account(frame, b, at, c, eps, train))


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
    z, eps = on.asarray(z), float(eps)
    b = on.pullback(activation, x, z, c, train)
    middle = z + z.dtype.type(0.5 * eps) * b
    b_mid = on.pullback(activation, x, middle, c, train)
    moved = z + z.dtype.type(eps) * b_mid
    if not account:
        return Moved(moved)
    x, c = on.upload(x, z.dtype), on.upload(c, z.dtype)
    frame = _frame(on, activation, x, z, reference, weights)
    sums = arrays.midpoint_account(frame, b, middle, b_mid, c, eps, train, float(variance))
    return _moved(on, moved, sums)


def roughness(
    on: Steps, activation: Activation, x: Any, z: Array, weights: Any, c: Any, train: str = "both"
) -> tuple[float, float, float]:
    """Return the means of |grad phi|^2, |grad^2 phi|^2 and |grad^3 phi|^2; see `reference.roughness`."""
    z = on.asarray(z)
    b = on.pullback(activation, x, z, c, train)
    x, c = on.upload(x, z.dtype), on.upload(c, z.dtype)
    sums = arrays.roughness(_frame(on, activation, x, z, None, weights), b, c, train)
    first, second, third = on.asnumpy(on.xp.stack(sums))
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


def unavailable() -> str:
    """Return why this backend cannot run here, as a sentence with what to do; empty where it can."""
    advice = 'Install CuPy on a machine with an NVIDIA GPU: pip install "meanfield-nn[gpu]".'
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed. {advice}"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({(str(error).strip() or 'no reason given').splitlines()[0]}). {advice}"
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"No GPU can be used ({error})."
    return "" if devices else "No GPU is there."


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
    import cupy

    globals()["BACKEND"] = made = make(cupy, launch)
    return made
