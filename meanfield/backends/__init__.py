"""Where the heavy contractions run: a family of plain records of functions, one file a member.

A backend is a `Backend`: functions from numpy arrays to numpy arrays over one cloud of neurons

    psi_i(z) = u h(theta . x_i),   z = (theta, u).

`reference` is the definition that others are compared with. To add one, write a module with a `BACKEND` record and
name it in `MODULES`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from meanfield.errors import InputError, did_you_mean

Array = np.ndarray
Particles = tuple[Any, Any]  # the cloud and its reference (or None), both of shape (m, D)
MODULES = {"numpy": "meanfield.backends.reference"}


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
    """What a kick did: new particles, and the means that the account wants (None when it was not asked)."""

    z: Array
    speed: float = 0.0
    pull: float = 0.0
    remainder: float = 0.0
    push: Array | None = None
    push2: Array | None = None
    push3: Array | None = None


class Motion(NamedTuple):
    """A step without account: a kick of length `before`, a channel z <- decay z + sigma xi, a kick of length `after`.

    The noise xi of a particle is named by (seed, step, replicate) in stream DIFFUSION; see `noise`.
    """

    before: float
    decay: float
    sigma: float
    after: float
    seed: int
    step: int
    replicate: int


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


def get(name: str = "auto") -> Backend:
    """Return the backend of that name; "auto" takes the fastest that can run here.

    Raises
    ------
    InputError
        If no backend has that name.
    """
    if name == "auto":
        name = "numpy"
    if name not in MODULES:
        known = ", ".join(MODULES)
        raise InputError(f"no backend is called {name!r}; there are: auto, {known}.{did_you_mean(name, MODULES)}")
    return import_module(MODULES[name]).BACKEND
