"""Where the heavy contractions run: a family of plain records of functions, one file a member.

A backend is a `Backend`: functions from numpy arrays to numpy arrays over one cloud of neurons

    psi_i(z) = u h(theta . x_i),   z = (theta, u).

`reference` is the definition that others are compared with. To add one, write a module with a `BACKEND` record (and,
if it may be unable to run, a function `unavailable` that says why) and name it in `MODULES`.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from meanfield import interactions, noise, parallel
from meanfield.errors import InputError, did_you_mean
from meanfield.ranks import GRAIN, Share

Array = np.ndarray
Particles = tuple[Any, Any]  # the cloud and its reference (or None), both of shape (m, D)
AUTO = "auto"
MODULES = {
    "numpy": "meanfield.backends.dense",
    "cpu": "meanfield.backends.cpu",
    "keops": "meanfield.backends.keops",
    "cuda": "meanfield.backends.cuda",
}
# Activations a pass from which "auto" takes compiled code, and a GPU; normals from which compiled code draws them.
COMPILED_WORK, DEVICE_WORK, MANY_NORMALS = 1 << 16, 1 << 20, 1 << 15


class Measurement(NamedTuple):
    """Weighted sums over a cloud and its reference, all float64; see `reference.measure`.

    `psi`, `laplacian` (sum over trained coordinates of the second derivatives of psi) and `pull` (z . grad psi) have
    shape (n,), the same with `_reference` over Zbar (zeros where there is none); `gram` (n, n) or None; `gap` (n,) is
    sum_j w_j^2 |grad psi_i(Z_j) - grad psi_i(Zbar_j)|^2; `covariance` (n, n) or None is that of the centred generator.
    """

    psi: Array
    psi_reference: Array
    laplacian: Array
    laplacian_reference: Array
    pull: Array
    pull_reference: Array
    gap: Array
    gram: Array | None
    covariance: Array | None


class Moved(NamedTuple):
    """What a kick did: new particles, and the means that the account wants (None when it was not asked).

    `remainder` is a bound from above: a backend may work it in single precision if it adds what that can be off by.
    """

    z: Array
    speed: float = 0.0
    pull: float = 0.0
    remainder: float = 0.0
    push: Array | None = None
    push2: Array | None = None
    push3: Array | None = None


class Motion(NamedTuple):
    """A step without account: a kick of length `before`, a channel z <- decay z + sigma xi, a kick of length `after`.

    The noise xi of a particle is named by (seed, step, replicate) in stream DIFFUSION; see `noise`. `first` is the
    number of the first particle, where the arrays are rows of a larger cloud. `seen` is told whether all numbers of
    the new cloud are finite, once or more often, by a backend that looks as it writes them; others leave it alone.
    """

    before: float
    decay: float
    sigma: float
    after: float
    seed: int
    step: int
    replicate: int
    first: int = 0
    seen: Callable[[bool], None] | None = None


class Backend(NamedTuple):
    """The contractions that a step and its measurements need.

    `z`, `reference`, `points` and what is returned of their shape are arrays of the backend's own kind, which
    `asarray` makes and `asnumpy` turns back (both do nothing where that kind is numpy). Everything of shape (n,),
    (n, n) or smaller goes in and comes out as numpy.
    """

    name: str
    predict: Callable[..., Array]
    pullback: Callable[..., Array]
    measure: Callable[..., Measurement]
    kick: Callable[..., Moved]
    midpoint_kick: Callable[..., Moved]
    roughness: Callable[..., tuple[float, float, float]]
    move: Callable[..., Particles]
    descend: Callable[..., Particles]
    asarray: Callable[[Any], Any]
    asnumpy: Callable[[Any], Array]
    interact: Callable[..., tuple[Array, Array]] = interactions.interact
    neighbours: Callable[..., Array] = interactions.neighbours
    normals: Callable[..., Array] = noise.normals


class Choice(NamedTuple):
    """A backend's name, and why "auto" chose it."""

    name: str
    why: str


def get(name: str) -> Backend:
    """Return the backend of that name.

    Raises
    ------
    InputError
        If no backend has that name, or it cannot run here; then with the reason and what to type.
    """
    check_name(name)
    if name == AUTO:
        raise InputError("'auto' is no backend but a choice among them: ask `choose`")
    reason = unavailable(name)
    if reason:
        raise InputError(f"the backend '{name}' cannot run here: {reason}")
    return import_module(MODULES[name]).BACKEND


def check_name(name: str) -> None:
    """Refuse a name that is neither "auto" nor that of a backend, with the nearest one."""
    if name != AUTO and name not in MODULES:
        known = ", ".join(MODULES)
        raise InputError(f"no backend is called {name!r}; there are: auto, {known}.{did_you_mean(name, MODULES)}")


@functools.cache
def installed(package: str) -> bool:
    """Return whether a package is installed, looked up once: every step asks."""
    return find_spec(package) is not None


@functools.cache
def unavailable(name: str) -> str:
    """Return why a backend cannot run here, as a sentence with the line that installs it; empty where it can."""
    if name == "cpu" and not installed("numba"):
        return "Numba is not installed: pip install numba"
    try:
        module = import_module(MODULES[name])
    except ImportError as error:
        return f"{error}"
    except RuntimeError as error:
        if "cannot cache" not in f"{error}":
            raise
        return "Numba finds no folder to keep compiled code in: name one that can be written to in NUMBA_CACHE_DIR"
    return getattr(module, "unavailable", str)()


def choose(n: int, m: int) -> Choice:
    """Return the backend that "auto" stands for with n samples and m particles: a rule of sizes and what is here.

    A GPU for at least `DEVICE_WORK` activations a pass, compiled code for at least `COMPILED_WORK`, numpy below, where
    loading a compiler costs more than it saves.
    """
    work = n * m
    if work >= DEVICE_WORK and installed("cupy") and not unavailable("cuda"):
        return Choice("cuda", f"a GPU is there and n m = {work:,} is at least {DEVICE_WORK:,}")
    if work < COMPILED_WORK:
        return Choice("numpy", f"n m = {work:,} is below {COMPILED_WORK:,}, too little for compiled code")
    reason = unavailable("cpu")
    if reason:
        return Choice("numpy", reason)
    return Choice("cpu", f"n m = {work:,} is at least {COMPILED_WORK:,}")


SPREAD = ("numpy", "cpu", "cuda")  # backends whose sums run over all ranks
SUMS = ("predict", "measure", "kick", "midpoint_kick", "roughness", "move", "descend")
ARRAYS = ("pullback", "asarray", "asnumpy")  # what else takes or gives a backend's own arrays


@functools.lru_cache(maxsize=32)
def shared(name: str, share: Share) -> Backend:
    """Return the backend of that name for arrays that are a rank's rows of larger ones: its sums are over all ranks.

    A backend with devices takes one for this rank; all ranks have to ask at once, the first time.

    Raises
    ------
    InputError
        If the backend is one that cannot; on all ranks, if one of them has no device.
    """
    if name == "cuda":
        backend = import_module(MODULES[name]).of_rank(share.communicator)
    else:
        backend = get(name)
    if name not in SPREAD:
        raise InputError(f"the backend '{name}' works on whole clouds, which ranks cannot share; type --backend cpu")
    return around(backend, lambda: parallel.sharing(share), SUMS)


def around(
    backend: Backend, surroundings: Callable[[], AbstractContextManager[Any]], fields: tuple[str, ...]
) -> Backend:
    """Return a backend some of whose functions run inside of what `surroundings` makes for each call."""

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with surroundings():
                return function(*args, **kwargs)

        return functools.update_wrapper(wrapped, function)

    changed: dict[str, Any] = {field: within(getattr(backend, field)) for field in fields}
    return backend._replace(**changed)


def settle(place: int) -> None:
    """Say which place this process has among those of its machine; it takes the device of that number."""
    import_module("meanfield.backends.cuda_devices").settle(place)


def devices(name: str, share: Share | None) -> list[str]:
    """Return which device each rank works on, a line a rank: nothing where there are no ranks or no devices."""
    if name != "cuda" or share is None:
        return []
    found = import_module("meanfield.backends.cuda_devices").seats(share.communicator)
    return [f"rank {rank}: device {seat.number}, {seat.name}" for rank, seat in enumerate(found)]


def grain(name: str, n: int) -> int:
    """Return how many particles ranks must not cut: what a backend measures in one piece over n samples."""
    if name != "cpu":
        return GRAIN
    module = import_module("meanfield.backends.sums")
    return max(GRAIN, module.BLOCK * module.chunk_size(n))


def normals(seed: int, stream: int, *, count: int, width: int, **place: Any) -> Array:
    """Return `noise.normals`, compiled where there are many of them: the same bits, about ten times faster."""
    if count * width >= MANY_NORMALS and not unavailable("cpu"):
        return import_module("meanfield.backends.philox").normals(seed, stream, count=count, width=width, **place)
    return noise.normals(seed, stream, count=count, width=width, **place)
