"""How a run is kept, and the directory held for it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanfield.locks import claimed
from meanfield.ranks import Communicator, on_first


@contextlib.contextmanager
def held(directory: Path | None, communicator: Communicator) -> Iterator[None]:
    """Hold a directory against other runs (`locks.claimed`): rank 0 does it for all."""
    with contextlib.ExitStack() as stack:
        on_first(communicator, lambda: stack.enter_context(claimed(directory)))
        yield


@dataclass(frozen=True, eq=False)
class Keeping:
    """How a run is kept: where, how often, what more."""

    directory: Path | None
    checkpoint_seconds: float
    quiet: bool
    extra: dict[str, Any]
    files: dict[str, str]
