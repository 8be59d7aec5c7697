"""A line on stderr that says how a run goes: share of the time, steps a second, loss, time left.

`meter` gives an object with `update` and `close`; where nobody watches (no terminal, or quiet) it is one that
does nothing, so that the loop has no question to ask.
"""

import math
import sys
import time as clock
from typing import Protocol, TextIO

INTERVAL = 0.2  # seconds between two lines at least


class Meter(Protocol):
    """What the loop sees."""

    def update(self, time: float, steps: int, loss: float) -> None:
        """Say that the run is at `time` after `steps` steps."""

    def close(self) -> None:
        """End the line."""


class Silence:
    """A meter that says nothing."""

    def update(self, time: float, steps: int, loss: float) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Line:
    """A meter that rewrites one line of `stream`, at most five times a second.

    Rates count from the first update, so that a run that goes on from a checkpoint shows its own speed.
    """

    def __init__(self, total_time: float, stream: TextIO) -> None:
        self._total = total_time
        self._stream = stream
        self._first: tuple[float, float, int] | None = None  # seconds, time, steps
        self._shown = -INTERVAL
        self._last = ""
        self._gone = False

    def update(self, time: float, steps: int, loss: float) -> None:
        """Show where the run is, unless the line was written a moment ago."""
        now = clock.monotonic()
        self._first = self._first or (now, time, steps)
        text = self._text(now, time, steps, loss)
        if now - self._shown >= INTERVAL:
            self._show(text)
            self._shown = now
        self._last = text

    def close(self) -> None:
        """Show the last state and end the line."""
        if self._last:
            self._show(self._last)
            self._write("\n")
            self._last = ""

    def _text(self, now: float, time: float, steps: int, loss: float) -> str:
        assert self._first is not None
        seconds, start, before = now - self._first[0], self._first[1], self._first[2]
        share = min(time / self._total, 1.0) if self._total > 0 else 1.0
        if seconds <= 0 or steps <= before:
            return f"{share:4.0%}  loss {loss:.4g}"
        left = duration(seconds * (self._total - time) / (time - start) if time > start else math.inf)
        return f"{share:4.0%}  {(steps - before) / seconds:.3g} steps/s  loss {loss:.4g}  {left} left"

    def _show(self, text: str) -> None:
        self._write("\r\x1b[K" + text)

    def _write(self, text: str) -> None:
        if self._gone:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal went away or the stream is closed; the run goes on
            self._gone = True


def meter(total_time: float, quiet: bool = False, stream: TextIO | None = None) -> Meter:
    """Return a meter for a run of length `total_time`, silent when `quiet` or when nobody watches.

    Parameters
    ----------
    total_time : float, in the time of equation (3.4) of [CCGZ20]
    stream : text stream, default stderr
    """
    stream = sys.stderr if stream is None else stream
    if quiet or stream is None or not stream.isatty():
        return Silence()
    return Line(total_time, stream)


def duration(seconds: float) -> str:
    """Return "48 s", "3 min 20 s" or "2 h 05 min", or "?" if it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Count:
    """Points of a grid as they end: "[3/12], 2 min 05 s left", the time by the mean of those that have ended."""

    def __init__(self, total: int) -> None:
        self._total, self._ended, self._first = total, 0, clock.monotonic()

    def next(self) -> str:
        """Count one more, and say how many there are and what time is left."""
        self._ended += 1
        left = (clock.monotonic() - self._first) * (self._total - self._ended) / self._ended
        rest = f", {duration(left)} left" if self._ended < self._total else ""
        return f"[{self._ended}/{self._total}{rest}]"
