"""Arrays that are used again: fresh pages would cost about as much as a pass over them."""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 8 << 20  # bytes of an array that a thread keeps

Array = npt.NDArray[Any]


class WorkSpace(threading.local):
    """Named arrays of a thread's own, whose content is whatever was left in them."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return the array of that name, in the shape and dtype that are wanted."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        raw = self._arrays.get(name)
        if raw is None or raw.size < size:
            raw = np.empty(size, np.uint8)
            if size <= LARGEST:
                self._arrays[name] = raw
        return raw[:size].view(kind).reshape(shape)


_spare: list[Array] = []


@contextlib.contextmanager
def lent(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Iterator[Array]:
    """Lend a large array for the time of a step; the last one that came back is lent again."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    try:
        raw = _spare.pop()
    except IndexError:  # lent to another thread
        raw = np.empty(0, np.uint8)
    if raw.size < size or raw.size > 4 * size:
        raw = np.empty(size, np.uint8)
    try:
        yield raw[:size].view(kind).reshape(shape)
    finally:
        _spare[:] = [raw]
