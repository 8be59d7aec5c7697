"""One point of a sweep, and the processes that points run in.

`run_point` is the function that executors are given: it and its arguments can be pickled, it keeps all it does in the
point's directory, and a point that diverges or is refused is an outcome, no exception.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from meanfield import ensemble, experiment, parallel, store
from meanfield.config import RunConfig
from meanfield.errors import DivergedError, InputError, Interrupted, MeanfieldError
from meanfield.locks import claimed

STOPPING = ".stopping"  # beside the points: none begins where it is
WAITING, FINISHED, DIVERGED, INTERRUPTED, REFUSED, FAILED = (
    "waiting", "finished", "diverged", "interrupted", "refused", "failed",
)  # fmt: skip
ENDED = (FINISHED, DIVERGED)  # a point that ended so is not run again


class Outcome(NamedTuple):
    """How a point ended, why if it did not finish, what it warned of, and its records as far as a sweep keeps them.

    Records are read where the point ran: that takes a tenth of a second, which in one process for all points would be
    a good part of a sweep of short ones.
    """

    status: str
    message: str = ""
    warned: tuple[str, ...] = ()
    records: Any = None


def run_point(config: RunConfig, directory: Path, threads: int | None, quiet: bool) -> Outcome:
    """Run one point in its directory, or go on with it; the function that executors are given.

    A point that diverges or is refused is an outcome; only what nobody expected is raised.
    """
    if (directory.parents[1] / STOPPING).exists():
        return Outcome(WAITING)
    if threads is not None and threads != parallel.threads():
        parallel.set_threads(threads)
    status, message, records = FINISHED, "", None
    with warnings.catch_warnings(record=True) as caught, claimed(directory, wait=True):
        warnings.simplefilter("always", UserWarning)
        try:
            if state(directory)[0] not in ENDED:
                experiment.carry(config, directory, quiet=quiet)
        except (DivergedError, Interrupted) as error:
            status, message = DIVERGED if isinstance(error, DivergedError) else INTERRUPTED, str(error)
        except InputError as error:
            status, message = REFUSED, str(error)
        except (MeanfieldError, MemoryError, ArithmeticError, OSError) as error:
            status, message = FAILED, f"{type(error).__name__}: {error}"
        if state(directory)[0] in ENDED:
            with contextlib.suppress(InputError):  # who collects the points meets it again, and says it
                records = ensemble.prepared(store.read_dataset(directory / "records.nc"))
    return Outcome(status, message, tuple(dict.fromkeys(str(one.message) for one in caught)), records)


def state(directory: Path) -> tuple[str, str]:
    """Return the status and the message of the run in a directory, "waiting" where none has begun."""
    if not (directory / "metadata.json").exists():
        return WAITING, ""
    metadata = store.read_json(directory / "metadata.json")
    status = str(metadata.get("status", WAITING))
    if status in ENDED and not (directory / "records.nc").exists():
        status = WAITING
    return status, str(metadata.get("message", ""))


@contextlib.contextmanager
def pool(
    executor: Executor | None, jobs: int, threads: int | None
) -> Iterator[tuple[Executor | None, int | None, Callable[[], None]]]:
    """Yield where points run, the threads of each, and a function that passes a signal on to the workers."""
    if executor is not None or jobs <= 1:
        yield executor, threads, lambda: None
        return
    share = threads or max(1, parallel.threads() // jobs)
    before = set(multiprocessing.active_children())

    def forward() -> None:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()  # what runs saves its state; a worker that waits takes no notice

    processes = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin)
    try:
        yield processes, share, forward
    finally:
        processes.shutdown(cancel_futures=True)


def _begin() -> None:
    """Prepare a worker: signals are looked at while a point runs, and it ends with the process that made it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
