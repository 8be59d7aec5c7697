"""Tangent kernels at any cloud, as a matrix and as products H v without one.

`spectrum` takes eigenvalues from them; `ntk` holds all that is said of tangent kernels.
"""

from collections.abc import Callable

import numpy as np

from meanfield import backends, parallel
from meanfield import gram as gaussian
from meanfield.cloud import Cloud
from meanfield.units import Activation

Array = np.ndarray
BLOCK = 512  # particles of a product at a time: few, so that a small cloud keeps all threads busy


def gram_at_cloud(
    activation: Activation, x: Array, cloud: Cloud, *, train: str = "both", backend: str = backends.AUTO
) -> Array:
    """Return H = sum_j w_j <grad psi_i(z_j), grad psi_k(z_j)> of a cloud, shape (n, n): H1 + H2, or one by `train`.

    Parameters
    ----------
    x : ndarray, shape (n, d)
        Inputs as the neurons see them.
    backend : str
        A name of `backends.MODULES`, or "auto". O(n^2) a particle.
    """
    x = np.asarray(x, dtype=np.float64)
    name = backends.choose(len(x), cloud.m).name if backend == backends.AUTO else backend
    found = backends.get(name).measure(activation, x, cloud.z, None, cloud.weights, train).gram
    return np.asarray(found)


def product(
    activation: Activation, x: Array, z: Array, v: Array, weights: Array | None = None, train: str = "both",
    *, dtype: type = np.float64,
) -> Array:  # fmt: skip
    """Return H v at a cloud without H: (H v)_i = E <grad psi_i, sum_k v_k grad psi_k>, shape (n,).

    One pass over the particles, O(n d) each, and no array of n x m beyond a block.

    Parameters
    ----------
    x : ndarray, shape (n, d)
        Inputs as the neurons see them.
    z : ndarray, shape (m, d + 1)
        Particles.
    v : ndarray, shape (n,)
    weights : ndarray, shape (m,), optional
    train : str
        "both": H1 + H2; "u": H2; "theta": H1.
    dtype : type
        What blocks are worked in; they are added in float64.
    """
    x, m = np.asarray(x, dtype=dtype), parallel.total(len(z))
    v = np.asarray(v, dtype=dtype)

    def part_sum(part: slice) -> Array:
        theta: Array = z[part, :-1].astype(dtype, copy=False)
        u: Array = z[part, -1:].astype(dtype, copy=False)
        mass: Array = np.full(len(u), 1.0 / m, dtype) if weights is None else weights[part].astype(dtype, copy=False)
        h, h1 = activation.value_and_first(theta @ x.T)
        total = np.zeros(len(x))
        if train != "u":
            h1 = h1 * u
            total += mass @ (h1 * (((h1 * v) @ x) @ x.T))
        if train != "theta":
            total += (mass * (h @ v)) @ h
        return total

    return np.asarray(parallel.sum_blocks(part_sum, len(z), min(BLOCK, parallel.block_size(len(x)))))


def start_operator(
    activation: Activation, x: Array, *, std: float = 1.0, train: str = "both"
) -> Callable[[Array], Array]:
    """Return v -> H(p0) v, from the closed form or Mehler's series by tiles of rows.

    The matrix is kept where half of the memory budget holds it (n up to 5,792 at 512 MB), and a product then costs n^2;
    beyond, every product forms the tiles anew, which for a series of 192 terms is a thousand times dearer
    (`parallel.set_memory` raises the budget).
    """
    x = np.asarray(x, dtype=np.float64)
    n = len(x)
    rows = [slice(first, first + gaussian.TILE) for first in range(0, n, gaussian.TILE)]

    def tile(part: slice) -> Array:
        return gaussian.kernel(activation, x[part], x, std=std, train=train)

    if 8 * n * n > parallel.memory() // 2:
        return lambda v: np.concatenate([tile(part) @ v for part in rows])
    matrix = np.empty((n, n))
    for part in rows:
        matrix[part] = tile(part)
    return lambda v: matrix @ v
