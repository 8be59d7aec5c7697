"""Measurements and accounts over chunks of particles, for arrays of any kind that follow numpy's dispatch protocols.

Each function adds up the sums of `blocks` over the chunks of a `Frame` in a dyadic tree and returns arrays of the
frame's own kind, so that a backend transfers once, at the end. All of them are linear in the particles: where ranks
hold a cloud together, theirs are added up, and `measured` takes what is not linear from the whole cloud's. What they
mean is said in `reference`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from meanfield.backends import Measurement, blocks
from meanfield.parallel import DyadicSum
from meanfield.units import Activation

Array = Any


class Frame(NamedTuple):
    """A cloud, its inputs, and how it is cut: `masses` maps a chunk to its masses."""

    activation: Activation
    x: Array
    z: Array
    reference: Array | None
    chunks: Sequence[slice]
    masses: Callable[[slice], Array]

    def block(self, part: slice) -> blocks.Block:
        """Return the activations of a chunk of the cloud."""
        return blocks.evaluate(self.activation, self.x, self.z[part])

    def shadow(self, part: slice) -> blocks.Block | None:
        """Return the activations of a chunk of the reference, if there is one."""
        return None if self.reference is None else blocks.evaluate(self.activation, self.x, self.reference[part])

    def total(self, function: Callable[[slice], tuple]) -> tuple:
        """Return the sum of function(chunk) over the chunks."""
        total = DyadicSum()
        for part in self.chunks:
            total.add(function(part))
        return tuple(total.total())


def measure(frame: Frame, train: str, gram: bool, variance: float | None) -> tuple:
    """Return the sums that `measured` makes a `Measurement` of."""
    x = frame.x
    inner, norms = (x @ x.T).astype(np.float64), np.einsum("ij,ij->i", x, x)

    def part_sum(part: slice) -> tuple:
        mass, here, there = frame.masses(part), frame.block(part), frame.shadow(part)
        sums: tuple = blocks.first_order(here, mass, norms, train)
        sums += tuple(0 * s for s in sums) if there is None else blocks.first_order(there, mass, norms, train)
        sums += (blocks.gap(here, there, mass, norms, train),)
        if gram:
            sums += (blocks.gram(here, mass, inner, train),)
        if variance is not None:
            sums += blocks.second_moment(here, there, mass, norms, train, variance)
        return sums

    return frame.total(part_sum)


def measured(found: tuple, gram: bool, mass_square: float | None) -> Measurement:
    """Return the measurement that the sums of `measure` over a whole cloud tell, as numpy arrays.

    `mass_square` is sum_j w_j^2, for the covariance of the mean; None where the generator was not measured.
    """
    sums = list(found)
    covariance = None
    if mass_square is not None:
        mean, square = sums.pop(), sums.pop()
        covariance = square - mass_square * np.outer(mean, mean)
    h = sums.pop() if gram else None
    psi, laplacian, pull, psi_reference, laplacian_reference, pull_reference, gap = sums
    return Measurement(psi, psi_reference, laplacian, laplacian_reference, pull, pull_reference, gap, h, covariance)


def kick_account(frame: Frame, b: Array, at: Array, c: Array, eps: float, train: str) -> tuple:
    """Return the means of `Moved` for a kick of length eps along the field b, taken at the particles `at`."""
    square = (frame.x @ frame.x.T) ** 2

    def part_sum(part: slice) -> tuple:
        mass, block = frame.masses(part), blocks.evaluate(frame.activation, frame.x, at[part])
        frobenius = eps * np.sqrt(blocks.curvature2(block, frame.x, c, square, train))
        rest = blocks.remainder(frobenius)
        return (*_along(frame, part, mass, b[part], rest), *blocks.push(block, b[part], frame.x, mass))

    return frame.total(part_sum)


def midpoint_account(
    frame: Frame, b: Array, middle: Array, b_mid: Array, c: Array, eps: float, train: str, variance: float
) -> tuple:
    """Return the means of `Moved` for the midpoint map, b the field at the particles and b_mid that at `middle`."""
    x = frame.x
    square, norms = (x @ x.T) ** 2, np.einsum("ij,ij->i", x, x)

    def part_sum(part: slice) -> tuple:
        mass, first = frame.masses(part), frame.block(part)
        half_way = blocks.evaluate(frame.activation, x, middle[part])
        rest = blocks.midpoint_remainder(first, half_way, x, c, square, norms, train, eps)
        rest = rest + eps / variance * np.einsum("ij,ij->i", frame.z[part], b_mid[part] - b[part])
        return (*_along(frame, part, mass, b_mid[part], rest), *blocks.push(first, b_mid[part], x, mass))

    return frame.total(part_sum)


def _along(frame: Frame, part: slice, mass: Array, b: Array, rest: Array) -> tuple:
    """Return E|b|^2, E (Z - Zbar) . b and the mean remainder of a chunk."""
    gap = b if frame.reference is None else frame.z[part] - frame.reference[part]
    values = (np.einsum("ij,ij->i", b, b), np.einsum("ij,ij->i", b, gap), rest)
    return tuple(blocks.weighted(mass, value) for value in values)


def roughness(frame: Frame, b: Array, c: Array, train: str) -> tuple:
    """Return the means of |grad phi|^2, |grad^2 phi|^2 and |grad^3 phi|^2, phi = sum_i c_i psi_i and b = grad phi."""
    inner = frame.x @ frame.x.T
    square, cube = inner * inner, inner * inner * inner

    def part_sum(part: slice) -> tuple:
        mass, block = frame.masses(part), frame.block(part)
        third = np.zeros_like(block.w[:, 0])
        if train != "u":
            q = block.h3 * (block.u * c)
            third += np.einsum("ij,ij->i", q @ cube, q)
        if train == "both":
            q = block.h2 * c
            third += 3 * np.einsum("ij,ij->i", q @ square, q)
        second = blocks.curvature2(block, frame.x, c, square, train)
        values = (np.einsum("ij,ij->i", b[part], b[part]), second, third)
        return tuple(blocks.weighted(mass, value) for value in values)

    return frame.total(part_sum)
