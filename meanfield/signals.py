"""SIGINT and SIGTERM as something that a loop can look at between two steps, instead of dying of them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def collected() -> Iterator[list[int]]:
    """Yield a list that grows by the number of every signal; a second SIGINT does not wait and raises.

    Only the main thread may catch signals: elsewhere the list stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handler(number: int, frame: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
