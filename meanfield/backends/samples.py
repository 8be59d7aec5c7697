"""Inputs, coefficients and particles in the shapes that the Numba kernels want."""

from typing import NamedTuple

import numpy as np

from meanfield.backends.fused import BLOCK
from meanfield.backends.lanes import SAMPLES

Array = np.ndarray


class Samples(NamedTuple):
    """Inputs and coefficients as the kernels want them: in one dtype, rows padded with zeros to a multiple of four."""

    n: int
    x: Array

    def pad(self, c: Array) -> Array:
        """Return coefficients for the padded rows."""
        out = np.zeros(len(self.x), self.x.dtype)
        out[: self.n] = c
        return out


def samples(x: Array, dtype: np.dtype) -> Samples:
    """Return the inputs padded for the kernels."""
    out = np.zeros((-(-len(x) // SAMPLES) * SAMPLES, x.shape[1]), dtype)
    out[: len(x)] = x
    return Samples(len(x), out)


def blocks_of(m: int) -> int:
    """Return how many blocks m particles fill."""
    return -(-m // BLOCK)
