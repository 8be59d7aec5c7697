"""Means over a cloud, its reference and its start: how far particles are from one another, in one pass over the three.

`remembered` keeps what was found for as long as the cloud lives; `origin` where particles started, from record to
record. Where ranks hold a cloud together, sums are over all of them.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from meanfield import parallel
from meanfield.cloud import Cloud
from meanfield.flow import Flow

Array = np.ndarray
# Numbers of a cloud that are squared at a time: they stay in a cache. PIECE particles at most are summed as one, which
# no rank cuts.
BLOCK, PIECE = 1 << 15, 1 << 12
# Bytes of starting points that a flow's clouds may keep together; those of larger clouds are drawn again.
LARGEST_ORIGINS = 1 << 29
_memo: "weakref.WeakKeyDictionary[Any, dict]" = weakref.WeakKeyDictionary()


def remembered(key: Any, name: str, make: Callable[[], Any], of: Sequence[Any] = ()) -> Any:
    """Return what `make` makes, once for every object `key`, name and objects `of`, for as long as they live."""
    found = _memo.setdefault(key, {})
    if name not in found or [id(other()) for other in found[name][0]] != [id(other) for other in of]:
        found[name] = [weakref.ref(other) for other in of], make()
    return found[name][1]


def mean_square(cloud: Cloud, values: Array, other: Array | None = None) -> float:
    """Return the weighted mean of |values - other|^2 over the particles; arrays of shape (m, D)."""

    def part_sum(part: slice) -> float:
        total = 0.0
        for first in range(part.start, part.stop, rows):
            some = slice(first, min(first + rows, part.stop))
            gap = values[some] if other is None else values[some] - other[some]
            total += inner_product(gap, gap, None if cloud.weights is None else cloud.weights[some])
        return total

    rows = _rows(values.shape[1])
    with parallel.sharing(cloud.share):
        total = parallel.sum_blocks(part_sum, len(values), min(4 * rows, PIECE))
    return total / cloud.m if cloud.weights is None else total


def _rows(dimension: int) -> int:
    """Return how many particles are squared at a time, a power of two."""
    return min(1 << max((BLOCK // dimension).bit_length() - 1, 0), PIECE)


def keeps_origin(cloud: Cloud, flow: Flow) -> bool:
    """Return whether the start is at hand, so that `moments` costs no draw."""
    return cloud.start is not None or cloud.replicate in kept_origins(cloud, flow)


def kept_origins(cloud: Cloud, flow: Flow) -> dict:
    """Return what is kept of the starts of a flow's clouds; rows that ranks hold are kept beside whole clouds."""
    rows = "" if cloud.share is None else f" {cloud.share.first} to {cloud.share.last} of {cloud.share.m}"
    return remembered(flow, f"origins{rows}", dict)


class Moments(NamedTuple):
    """E|Z|^2, E|Z - Z_0|^2, E|Z - Zbar|^2, E|Zbar - Z_0|^2, E (Zbar - Z_0) . Z_0; the last three NaN without Zbar."""

    square: float
    travelled: float
    distance: float
    reference_travelled: float
    reference_along: float


def moments(cloud: Cloud, flow: Flow) -> Moments:
    """Return what a cloud, its reference and its start say of each other, in one pass over the three."""

    def make() -> Moments:
        start, far = origin(cloud, flow), cloud.reference
        rows = _rows(cloud.dimension)

        def part_sum(part: slice) -> Array:
            total = np.zeros(len(Moments._fields))
            for first in range(part.start, part.stop, rows):
                some = slice(first, min(first + rows, part.stop))
                weights = None if cloud.weights is None else cloud.weights[some]
                z, begun = cloud.z[some], start[some]
                moved = z - begun
                total[:2] += inner_product(z, z, weights), inner_product(moved, moved, weights)
                if far is not None:
                    gap, moved = z - far[some], far[some] - begun
                    total[2:4] += inner_product(gap, gap, weights), inner_product(moved, moved, weights)
                    total[4] += inner_product(moved, begun, weights)
            return total

        with parallel.sharing(cloud.share):
            sums = parallel.sum_blocks(part_sum, len(cloud.z), min(4 * rows, PIECE))
        sums = sums / (cloud.m if cloud.weights is None else 1)
        if far is None:
            sums[2:] = math.nan
        return Moments(*(float(v) for v in sums))

    return remembered(cloud, "moments", make)


def inner_product(a: Array, b: Array, weights: Array | None) -> float:
    """Return sum_j w_j a_j . b_j over rows in float64, w = 1 without weights."""
    a, b = a.astype(np.float64, copy=False), b.astype(np.float64, copy=False)
    return float(np.vdot(a, b) if weights is None else weights @ np.einsum("ij,ij->i", a, b))


def origin(cloud: Cloud, flow: Flow) -> Array:
    """Return where the particles started, kept from record to record for the clouds of one run that are not too large.

    To draw a start again costs as much as the noise of a step.
    """
    if cloud.start is not None:
        return cloud.start
    kept = kept_origins(cloud, flow)
    name = (cloud.seed, cloud.z.shape, cloud.z.dtype, cloud.start_std)
    if kept.get("name") != name:
        kept.clear()
        kept["name"] = name
    if cloud.replicate in kept:
        return kept[cloud.replicate]
    origin = cloud.z if cloud.step == 0 and cloud.z is cloud.reference else cloud.origin()
    if len(kept) * cloud.nbytes <= min(LARGEST_ORIGINS, parallel.memory()):
        kept[cloud.replicate] = origin
    return origin
