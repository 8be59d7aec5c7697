"""Which GPU a rank works on: its number among the ranks of its machine, modulo the number of GPUs that it sees.

`seats` says it of ranks that hold a cloud together, `settle` of a process that works on its own beside others (a rank
of a sweep). A scheduler that gives each rank a GPU of its own (`--gpus-per-task=1`) lets it see that one alone, and
then all take device 0, each of its own. Ranks that share a GPU take turns on it, which gains nothing; that is warned of
once.
"""

import functools
import importlib.util
import platform
import warnings
from typing import NamedTuple

from meanfield.errors import InputError
from meanfield.ranks import Communicator, together


class Seat(NamedTuple):
    """The GPU of a rank: its number among those that the rank sees, its name, and what no other GPU anywhere has."""

    number: int
    name: str
    identity: tuple[str, ...]


_own: dict[str, int] = {}


def settle(place: int) -> None:
    """Let this process, when it first uses a GPU, take that of its place among the processes of its machine."""
    _own["place"] = place


def own() -> int | None:
    """Return the number of the GPU that this process was settled on, None where nobody said: then the current one."""
    import cupy

    return _own["place"] % cupy.cuda.runtime.getDeviceCount() if _own else None


def unavailable() -> str:
    """Return why this backend cannot run here, as a sentence with what to do; empty where it can."""
    advice = 'Install CuPy on a machine with an NVIDIA GPU: pip install "meanfield-nn[gpu]".'
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed. {advice}"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({(str(error).strip() or 'no reason given').splitlines()[0]}). {advice}"
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"No GPU can be used ({error})."
    return "" if devices else "No GPU is there."


@functools.lru_cache(maxsize=8)
def seats(communicator: Communicator) -> tuple[Seat, ...]:
    """Return the GPU of every rank; all ranks ask at once, the first time, and nothing is allocated.

    Raises
    ------
    InputError
        On all ranks, if one of them has none.
    """
    found = tuple(together(communicator, lambda: _seat(communicator)))
    different = len({seat.identity for seat in found})
    if different < len(found) and communicator.rank == 0:
        warnings.warn(
            f"{len(found)} ranks work on {different} GPU{'s' if different > 1 else ''}: those that share one take "
            "turns, which is no faster than one of them alone; start one rank for each GPU",
            stacklevel=2,
        )
    return found


def _seat(communicator: Communicator) -> Seat:
    reason = unavailable()
    if reason:
        raise InputError(
            f"the backend 'cuda' cannot run on rank {communicator.rank}: {reason} Type --backend cpu, or start ranks "
            "only where GPUs are."
        )
    import cupy

    runtime = cupy.cuda.runtime
    # A communicator that does not tell which rank of its machine this is has all of them on one.
    number = int(getattr(communicator, "place", communicator.rank)) % runtime.getDeviceCount()
    properties = runtime.getDeviceProperties(number)
    name = properties["name"].decode(errors="replace")
    # Parts of one GPU (MIG) have one bus and different uuids; CuPy cuts a uuid at its first zero, or not at its end.
    unique = bytes(properties.get("uuid", b""))[:16].hex()
    return Seat(number, name, (platform.node(), runtime.deviceGetPCIBusId(number), unique))
