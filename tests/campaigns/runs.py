"""The runs that the campaign of faults is made of: their configurations and their processes."""

import contextlib
import itertools
import mmap
import os
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    n: int = 12

    @property
    def name(self) -> str:
        parts = (self.scheme, self.dtype, self.backend, f"batch {self.batch}" if self.batch else "")
        return ", ".join([*filter(None, parts), *(f"{key} = {value}" for _, key, value in self.more)])

    def configuration(self) -> config.RunConfig:
        kernel = self.scheme.startswith("kernel")
        flow = {"scheme": self.scheme, "lam": 0.05, "batch": self.batch}
        flow |= {"time": 2.0 * self.length} if kernel else {"eta": 0.008, "time": 0.4 * self.length}
        tree: dict[str, dict[str, Any]] = {
            "data": {"source": "sphere", "n": self.n, "d": 3, "teacher": "random"},
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

# Under mpirun: large enough for three ranks, whose rows are cut at multiples of 4,096 particles where n is above 32.
SPREAD = [
    Case(*kind, m=12_500, length=0.6, n=36)
    for kind in (
        ("euler", "float64", "numpy"),
        ("euler", "float32", "cpu"),
        ("euler", "float32", "numpy", 7),
        ("exponential", "float64", "cpu", 7),
        ("exponential", "float32", "numpy"),
        ("kernel", "float64", "cpu"),
        ("kernel", "float32", "numpy"),
        ("kernel2", "float64", "numpy"),
        ("kernel2", "float32", "cpu"),
    )
]


class Shared:
    """One integer that processes see, in memory or in a file: the step of the last checkpoint written, -1 before."""

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            self.memory = mmap.mmap(-1, 8)
            return
        with open(path, "a+b") as handle:
            handle.truncate(8)  # zeros, where it is new
            self.memory = mmap.mmap(handle.fileno(), 8)

    def put(self, value: int) -> None:
        self.memory[:8] = struct.pack("q", value + 1)

    def get(self) -> int:
        return int(struct.unpack("q", self.memory[:8])[0]) - 1


def carry(case: Case, directory: Path, written: Shared | None = None, threads: int = 1) -> Any:
    """Run a case in a directory, or go on with it; `written` is told of every checkpoint once it is there."""
    parallel.set_threads(threads)
    with telling(written):
        return experiment.carry(case.configuration(), directory, quiet=True)


@contextlib.contextmanager
def telling(written: Shared | None) -> Iterator[None]:
    """Tell of every checkpoint that is written here once it is there."""
    keep = store.write_checkpoint

    def tell(place: Path, clouds: Any, records: Any, state: Any) -> None:
        keep(place, clouds, records, state)
        if written is not None:
            written.put(clouds[0].step)

    store.write_checkpoint = tell
    try:
        yield
    finally:
        store.write_checkpoint = keep


def repeated(
    count: int, in_one: int, folder: Path, once: Callable[[Path, int], bool], end: Callable[[Path], None]
) -> None:
    """Call `once` until so many have landed, a few in each directory, and `end` on each."""
    left, trial = count, 0
    while left > 0 and trial < 20 * count:
        trial += 1
        directory = folder / f"run{trial}"
        for _ in range(min(in_one, left)):
            left -= once(directory, trial)
        end(directory)


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
