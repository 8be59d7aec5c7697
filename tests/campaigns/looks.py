"""How the campaign of faults looks at a run that is under way, that ended in the middle, or is at its end."""

import contextlib
import json
import time as clock
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meanfield import store
from meanfield.errors import InputError


@dataclass
class Counts:
    """What happened, and every way in which it should not have."""

    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    by_case: Counter[str] = field(default_factory=Counter)

    def check(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(what)


# --- under way


def status(directory: Path) -> str:
    try:
        return str(json.loads((directory / "metadata.json").read_text())["status"])
    except (OSError, ValueError):
        return ""


def written_at(directory: Path) -> tuple[int, int]:
    """Which metadata.json lies there: every writing makes a new one."""
    try:
        found = (directory / store.METADATA).stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def begun(directory: Path, before: tuple[int, int], alive: Callable[[], bool]) -> bool:
    """Wait until another metadata.json than before says that a run is under way; False where the process ended."""
    deadline = clock.monotonic() + 60
    while (written_at(directory) == before or status(directory) != "running") and clock.monotonic() < deadline:
        if not alive():
            return False
        clock.sleep(0.001)
    return True


def torn(directory: Path) -> bool:
    """Return whether a file is being written."""
    return any(path.name.endswith(store.WRITING) for path in directory.iterdir())


# --- ended in the middle


def look(name: str, directory: Path, written: int, counts: Counts) -> None:
    """Check that a checkpoint is there, whole, and none older than the last that was written."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = store.read_checkpoint(directory)
        except InputError as error:
            counts.wrong.append(f"{name}: {error}")
            return
    counts.check(not caught, f"{name}: {[str(w.message) for w in caught]}")
    step = -1 if found is None else found[0][0].step
    counts.check(step >= written, f"{name}: step {written} was kept, {step} is there")


# --- at its end


def compare(name: str, directory: Path, runs: list[Any], whole: Any, counts: Counts, after: str) -> None:
    """Compare runs that were carried to their end in a directory with the one that was never stopped."""
    wrong = [(run.status, differences(run, whole)) for run in runs]
    equal = all(found == ("finished", []) for found in wrong)
    counts.check(equal, f"{name}: after {after} {wrong} differ")
    left = left_behind(directory)
    counts.check(not left, f"{name}: {left} left behind")
    counts.seen[f"finished with equal bits after {after}"] += equal


def left_behind(directory: Path) -> list[str]:
    """Return names of files that are half written, or hold rows that no checkpoint or snapshot says are its own."""
    rows = {path.name for path in directory.glob("*.rows*")}
    for path in directory.glob("*.npz"):
        with contextlib.suppress(InputError):  # damaged on purpose
            rows -= {str(name) for name in store.read_npz(path).get("rows.files", ())}
    return sorted(rows | {path.name for path in directory.iterdir() if path.name.endswith(store.WRITING)})


def differences(one: Any, other: Any) -> list[str]:
    """What differs between two runs: variables of the records, arrays of the last clouds."""
    out = [f"variables {set(one.data.variables) ^ set(other.data.variables)}"] * (
        set(one.data.variables) != set(other.data.variables)
    )
    for name in set(one.data.variables) & set(other.data.variables):
        x, y = one.data[name].values, other.data[name].values
        if x.dtype.kind != y.dtype.kind or not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
            out.append(str(name))
    left, right = store.pack_clouds(one.clouds), store.pack_clouds(other.clouds)
    return out + [name for name in left.keys() | right.keys() if not _equal(left.get(name), right.get(name))]


def _equal(x: Any, y: Any) -> bool:
    return x is not None and y is not None and x.dtype == y.dtype and np.array_equal(x, y)
