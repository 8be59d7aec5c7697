"""Sums in a fixed binary tree over numbered values: the same bits however the work was shared out."""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt


class DyadicSum:
    """A running sum over numbered blocks, combined as a fixed binary tree over the numbers.

    Works on arrays and on tuples of arrays; at most log2(blocks) partial sums are held.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[int, Any]] = []

    def add(self, value: Any) -> None:
        """Add the next block's value."""
        level = 0
        while self._stack and self._stack[-1][0] == level:
            value = plus(self._stack.pop()[1], value)
            level += 1
        self._stack.append((level, value))

    def total(self) -> Any:
        """Return the sum of all blocks."""
        stack = list(self._stack)
        value = stack.pop()[1]
        while stack:
            value = plus(stack.pop()[1], value)
        return value


def tree_sum(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the sum over the first axis, in the tree of `DyadicSum`."""
    while len(rows) > 1:
        sums = rows[: len(rows) // 2 * 2 : 2] + rows[1::2]
        rows = sums if len(rows) % 2 == 0 else np.concatenate([sums, rows[-1:]])
    return rows[0]


class Tree:
    """The sum of `DyadicSum` over numbered values that come in any order from any thread.

    Only values and sums whose neighbour is still missing are held.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    def add(self, number: int, value: Any) -> None:
        """Add a value and every sum that it completes."""
        level = 0
        while True:
            with self._lock:
                other = self._nodes.pop((level, number ^ 1), None)
                if other is None:
                    self._nodes[level, number] = value
                    return
            value = plus(value, other)
            level, number = level + 1, number >> 1

    def nodes(self) -> dict[tuple[int, int], Any]:
        """Return the sums that are held, by level and number."""
        return dict(self._nodes)

    def total(self) -> Any:
        """Return the sum of all values."""
        first, *rest = [self._nodes[key] for key in sorted(self._nodes)]
        for node in rest:
            first = plus(first, node)
        return first


def plus(a: Any, b: Any) -> Any:
    """Return a + b of numbers, arrays or tuples of them."""
    if isinstance(a, tuple):
        return tuple(plus(x, y) for x, y in zip(a, b, strict=True))
    return a + b
