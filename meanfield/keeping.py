"""What a run carries along while it goes on: the state of its loop, and how it is kept."""

import contextlib
import time as clock
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meanfield.cloud import Cloud
from meanfield.results import Recorder


@dataclass(eq=False)
class Progress:
    """What changes while the loop runs; clouds and records always belong together."""

    clouds: list[Cloud]
    recorder: Recorder
    absent: dict[str, str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def time(self) -> float:
        """The time of equation (3.4)."""
        return self.clouds[0].time

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds spent inside to a part's timing."""
        begin = clock.perf_counter()
        try:
            yield
        finally:
            self.timings[part] = self.timings.get(part, 0.0) + clock.perf_counter() - begin


@dataclass(frozen=True, eq=False)
class Keeping:
    """How a run is kept: where, how often, what more."""

    directory: Path | None
    checkpoint_seconds: float
    quiet: bool
    extra: dict[str, Any]
    files: dict[str, str]
