"""The runs that the campaign of faults is made of: their configurations, their processes, and how they are compared."""

import itertools
import json
import mmap
import os
import signal
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meanfield import config, experiment, parallel, store
from meanfield.errors import InputError, Interrupted

SCHEMES = ("kernel", "kernel2", "exponential", "euler", "euler_literal")
OBSERVABLES = ["loss", "loss_unbiased", "prediction", "residual_defect", "kl_account", "travelled", "w2_upper"]
CLEAN, INTERRUPTED, REFUSED = 0, 130, 2


@dataclass(frozen=True)
class Case:
    """One configuration on one backend, a few tenths of a second long."""

    scheme: str
    dtype: str = "float64"
    backend: str = "numpy"
    batch: int = 0
    more: tuple[tuple[str, str, Any], ...] = ()
    m: int = 768
    length: float = 1.0

    @property
    def name(self) -> str:
        parts = (self.scheme, self.dtype, self.backend, f"batch {self.batch}" if self.batch else "")
        return ", ".join([*filter(None, parts), *(f"{key} = {value}" for _, key, value in self.more)])

    def configuration(self) -> config.RunConfig:
        kernel = self.scheme.startswith("kernel")
        flow = {"scheme": self.scheme, "lam": 0.05, "batch": self.batch}
        flow |= {"time": 2.0 * self.length} if kernel else {"eta": 0.008, "time": 0.4 * self.length}
        tree: dict[str, dict[str, Any]] = {
            "data": {"source": "sphere", "n": 12, "d": 3, "teacher": "random"},
            "network": {"alpha": 5.0},
            "cloud": {"m": self.m, "replicates": 2, "dtype": self.dtype, "backend": self.backend},
            "flow": flow,
            "record": {"observables": OBSERVABLES, "bounds_every": 3, "snapshots": [0.1 * self.length]},
            "output": {"checkpoint_seconds": 0.0},
        }
        for section, key, value in self.more:
            tree[section][key] = value
        return config.parse(tree)


CASES = [
    *(Case(*kind) for kind in itertools.product(SCHEMES, ("float64", "float32"), ("numpy", "cpu"))),
    *(Case("exponential", *kind, batch=5) for kind in itertools.product(("float64", "float32"), ("numpy", "cpu"))),
    Case("kernel", more=(("network", "loss", "logistic"),)),
    Case("kernel", backend="cpu", more=(("flow", "train", "u"),)),
]


class Shared:
    """One integer that a process and its parent see: the step of the last checkpoint that was written."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)
        self.put(-1)

    def put(self, value: int) -> None:
        self.memory[:8] = struct.pack("q", value)

    def get(self) -> int:
        return int(struct.unpack("q", self.memory[:8])[0])


def carry(case: Case, directory: Path, written: Shared | None = None, threads: int = 1) -> Any:
    """Run a case in a directory, or go on with it; `written` is told of every checkpoint once it is there."""
    parallel.set_threads(threads)
    keep = store.write_checkpoint

    def tell(place: Path, clouds: Any, records: Any, state: Any) -> None:
        keep(place, clouds, records, state)
        if written is not None:
            written.put(clouds[0].step)

    store.write_checkpoint = tell
    try:
        return experiment.carry(case.configuration(), directory, quiet=True)
    finally:
        store.write_checkpoint = keep


def started(work: Callable[[], Any]) -> int:
    """Start a process that does some work and exits as the command line does; return its number."""
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = CLEAN
    except Interrupted:
        code = INTERRUPTED
    except InputError:
        code = REFUSED
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def ended(number: int) -> int:
    """Wait for a process; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def status(directory: Path) -> str:
    try:
        return str(json.loads((directory / "metadata.json").read_text())["status"])
    except (OSError, ValueError):
        return ""


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
