"""The communicator of processes that were started by mpirun or srun; mpi4py is imported where it is asked for.

    mpirun -n 4 meanfield run CONFIG.toml          the cloud is spread over four ranks (`ranks`)
    mpirun -n 4 meanfield sweep CONFIG.toml        rank 0 hands out points, the others run them

Every message carries its number, so that ranks which went different ways say so instead of mixing up their numbers.
"""

import contextlib
import functools
import os
import sys
import time as clock
from collections.abc import Iterator
from typing import Any

from meanfield.errors import InputError, MeanfieldError

# What launchers tell a process of how many there are; the last two tell no number.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCHED = (*SIZES, "PMI_RANK", "PMIX_RANK")
# Seconds that a rank which cannot go on waits for the others to come to the same end, before it stops them.
GRACE = 10.0


class Apart(RuntimeError):
    """Ranks that should do the same do different things."""


class Mpi:
    """The ranks of an MPI communicator; see `ranks.Communicator`."""

    def __init__(self, communicator: Any) -> None:
        self.world = communicator
        self.rank, self.size = int(communicator.rank), int(communicator.size)
        self._errors = communicator.Dup()
        self._turn = 0
        self._apart = False  # whether this rank has waited for the others in vain

    @functools.cached_property
    def neighbours(self) -> int:
        """The number of ranks on this machine."""
        return int(self._near.size)

    @functools.cached_property
    def place(self) -> int:
        """The number of this rank among those on its machine."""
        return int(self._near.rank)

    @functools.cached_property
    def _near(self) -> Any:
        """The communicator of the ranks on this machine; all ranks have to ask at once, the first time."""
        from mpi4py import MPI

        return self.world.Split_type(MPI.COMM_TYPE_SHARED)

    def threads(self) -> int:
        """Return how many threads this rank may use: its cores, shared with the ranks that were given the same."""
        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        others = self._near.allgather(mine)
        return max(1, len(mine) // sum(bool(mine & other) for other in others))

    def send(self, value: Any, to: int) -> None:
        """Send a value to a rank that waits for it in `receive`."""
        self.world.send((self._turn, value), to)

    def receive(self, source: int) -> Any:
        """Return what a rank sent to this one."""
        return self._checked(self.world.recv(source=source), source)

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return the value of the rank `root`, on all ranks."""
        self._turn += 1
        return self._checked(self.world.bcast((self._turn, value), root), root) if self.size > 1 else value

    def everyone(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on all ranks."""
        self._turn += 1
        return [self._checked(found, r) for r, found in enumerate(self.world.allgather((self._turn, value)))]

    def largest(self, value: float) -> float:
        """Return the largest of the values of all ranks, on all ranks."""
        from mpi4py import MPI

        self.world.Iprobe()  # a rank on its own sends nothing, and would not notice that its mpirun is gone
        return float(self.world.allreduce(float(value), MPI.MAX))

    def _checked(self, message: tuple[int, Any], source: int) -> Any:
        turn, value = message
        if turn != self._turn:
            raise Apart(
                f"rank {self.rank} is at its message {self._turn}, rank {source} at {turn}: a bug, please report"
            )
        return value

    def alone(self) -> bool:
        """Return whether the others do not come to the same end as this rank within `GRACE` seconds."""
        if self._apart:
            return True
        arrived, begin = self._errors.Ibarrier(), clock.monotonic()
        while not arrived.Test():
            if clock.monotonic() - begin > GRACE:
                self._apart = True
                return True
            clock.sleep(0.01)
        return False

    def abort(self, code: int) -> None:
        """End all ranks at once."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.world.Abort(code)


def launched() -> bool:
    """Return whether mpirun, srun or the like started this process."""
    return any(name in os.environ for name in LAUNCHED)


def started(*names: str) -> int:
    """Return how many processes the launcher says it started, by the first of these variables; 0 if it does not say."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


def refuse_several(command: str) -> None:
    """Refuse a command that every process would carry out on its own, where there are several."""
    if started(*SIZES) > 1:
        raise InputError(
            f"`meanfield {command}` is not spread over ranks, `run` and `sweep` are: type it without mpirun"
        )


@functools.cache
def world() -> Mpi | None:
    """Return all processes that were started together by mpirun or the like, None where this one was not.

    Raises
    ------
    InputError
        If mpi4py is missing, or belongs to another MPI than the launcher.
    """
    if not launched():
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if started(*SIZES, "SLURM_STEP_NUM_TASKS") == 1:
            return None
        raise InputError(
            f"this was started by mpirun, and mpi4py cannot be used ({error}): every process would do the same; type "
            'pip install "meanfield-nn[mpi]", or on a cluster pip install --no-binary mpi4py mpi4py with its MPI loaded'
        ) from error
    found = Mpi(MPI.COMM_WORLD)
    asked = started(*SIZES) or found.size
    if asked != found.size:
        raise InputError(
            f"mpirun started {asked} processes and mpi4py sees {found.size}: they belong to different MPIs; call the "
            "mpirun that lies beside this python, or build mpi4py with the cluster's MPI (pip install --no-binary "
            "mpi4py mpi4py)"
        )
    return found


@contextlib.contextmanager
def workers(ranks: Mpi) -> Iterator[Any]:
    """Yield on rank 0 an executor whose workers are the other ranks; the others work until rank 0 is through."""
    from mpi4py.futures import MPICommExecutor

    with MPICommExecutor(ranks.world, root=0) as executor:
        yield executor


@contextlib.contextmanager
def guarded(ranks: Mpi | None) -> Iterator[None]:
    """Let an error that all ranks meet be raised on rank 0 and end the others silently; one of a rank's own ends all.

    The others might wait for that rank for ever, so it says what happened first.
    """
    try:
        yield
    except BaseException as error:
        if ranks is None or ranks.size == 1:
            raise
        code = (
            error.exit_code if isinstance(error, MeanfieldError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        )
        if ranks.alone():
            _say(ranks, error)
            ranks.abort(code)
        if ranks.rank == 0:
            raise
        raise SystemExit(code) from error


def _say(ranks: Mpi, error: BaseException) -> None:
    import traceback

    if not isinstance(error, MeanfieldError | KeyboardInterrupt):
        traceback.print_exception(error)
    what = str(error) or type(error).__name__
    print(f"meanfield: rank {ranks.rank} of {ranks.size}: {what}; all ranks are stopped", file=sys.stderr)  # noqa: T201
