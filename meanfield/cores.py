"""Where threads run: apart, while they share a pass.

A thread that is woken is often put on the core of the one that woke it, although another is idle, and stays there for
milliseconds: a share of up to a third of a pass. So the thread that calls stays on its core for the time of the pass,
and those that help are kept off it. Linux only; elsewhere nothing is done.
"""

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator


@functools.cache
def _current() -> Callable[[], int] | None:
    """Return a function that says on which core it is called, None where there is none."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    with contextlib.suppress(OSError, AttributeError):
        found: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
        return found
    return None


class Apart:
    """Keeps the helping threads of a pool off the core of the thread that called them last."""

    def __init__(self) -> None:
        self._helpers: list[int] = []
        self._cores: set[int] = set()  # where helpers are

    def join(self) -> None:
        """Count the thread that calls among the helpers: it began where the thread that made it was held."""
        self._helpers.append(threading.get_native_id())
        _move(0, self._cores)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the thread that calls on its core, and helpers off it."""
        current = _current()
        allowed = set() if current is None else os.sched_getaffinity(0)
        here = -1 if current is None else current()
        if len(allowed) < 2 or here not in allowed:
            yield
            return
        others = allowed - {here}
        try:
            _move(0, {here})
            if others != self._cores:
                self._cores = others
                for thread in tuple(self._helpers):
                    _move(thread, others)
            yield
        finally:
            _move(0, allowed)


def _move(thread: int, cores: set[int]) -> None:
    with contextlib.suppress(OSError):  # it has ended, or somebody took the cores away
        if cores:
            os.sched_setaffinity(thread, cores)
