"""Ranks: processes that hold a cloud together, each some rows of it, and what they say to one another.

A `Share` says which rows of a cloud of m particles a process holds, and a `Communicator` carries messages between the
processes: `Mpi` under mpirun, anything with the same few methods elsewhere (the tests have one of threads). Sums over
particles follow the tree of `dyadic` over the numbers of blocks in the whole cloud: a rank forms the nodes that lie in
its rows, a node that two ranks have halves of is formed by the one that has the left half, and rank 0 tells all what
came out. So the bits are those of one process, for any number of ranks. A message is O(n) numbers, or O(n^2) where a
Gram matrix is summed; there are O(log K) of them for K ranks. GPUs sum a rank's rows as one piece, in their own order
(`Share.across`): then bits are those of one number of ranks.

What goes wrong on one rank inside of a sum, or inside of `together` and `on_first`, is raised on all of them.
"""

import bisect
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

from meanfield.dyadic import Tree, plus
from meanfield.errors import InputError, MeanfieldError

T = TypeVar("T")
# The cuts between ranks are multiples of at least so many particles, and of what is summed as one piece (`grain` of
# `backends`): the largest piece of what is summed in Python.
GRAIN = 4096


class Communicator(Protocol):
    """What ranks need of one another; values are anything that can be pickled, calls come in one order on all."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0 on."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def send(self, value: Any, to: int) -> None:
        """Send a value to a rank that waits for it in `receive`."""

    def receive(self, source: int) -> Any:
        """Return what a rank sent to this one."""

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return the value of the rank `root`, on all ranks."""

    def everyone(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on all ranks."""

    def largest(self, value: float) -> float:
        """Return the largest of the values of all ranks, on all ranks."""


class Alone:
    """The communicator of a process on its own."""

    rank, size = 0, 1

    def send(self, value: Any, to: int) -> None:
        """Refuse: there is nobody."""
        raise InputError(f"a process on its own has no rank {to} to send to")

    def receive(self, source: int) -> Any:
        """Refuse: there is nobody."""
        raise InputError(f"a process on its own has no rank {source} to hear from")

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return the value."""
        return value

    def everyone(self, value: Any) -> list[Any]:
        """Return the value in a list."""
        return [value]

    def largest(self, value: float) -> float:
        """Return the value."""
        return value


class Failure(NamedTuple):
    """What takes the place of a value that could not be had."""

    error: BaseException


def together(communicator: Communicator, work: Callable[[], T]) -> list[T]:
    """Return what `work` returned on every rank; what one of them raised is raised on all."""
    if communicator.size == 1:
        return [work()]
    values = communicator.everyone(_attempt(work, communicator.rank))
    return [_value(value) for value in values]


def on_first(communicator: Communicator, work: Callable[[], T]) -> T:
    """Return on all ranks what `work` returned, or raised, on rank 0; the others do not call it."""
    if communicator.size == 1:
        return work()
    return _value(communicator.broadcast(_attempt(work, 0) if communicator.rank == 0 else None))


def _attempt(work: Callable[[], Any], rank: int) -> Any:
    try:
        return work()
    except Exception as error:  # noqa: BLE001
        return _failure(error, rank)


def _failure(error: Exception, rank: int) -> Failure:
    """Return an error that can be sent, with a note of where it came from if it is none of ours."""
    if not isinstance(error, MeanfieldError):
        error.add_note(f"on rank {rank}:\n{''.join(traceback.format_exception(error))}")
    try:
        return pickle.loads(pickle.dumps(Failure(error)))
    except Exception:  # noqa: BLE001
        return Failure(RuntimeError(f"rank {rank}: {type(error).__name__}: {error}"))


def _value(value: Any) -> Any:
    if isinstance(value, Failure):
        raise value.error
    return value


def _added(a: Any, b: Any) -> Any:
    return next((v for v in (a, b) if isinstance(v, Failure)), None) or plus(a, b)


@dataclass(frozen=True, eq=False)
class Share:
    """The rows of a cloud that this process holds: bounds[rank] to bounds[rank + 1] of m = bounds[-1] particles.

    Attributes
    ----------
    communicator : Communicator
        The ranks that hold the cloud together.
    bounds : tuple of int, length size + 1
        Where the rows of each rank begin; the last is m.
    grain : int
        A power of two that all bounds but m are multiples of: no sum's piece is cut that is at most so large.
    """

    communicator: Communicator
    bounds: tuple[int, ...]
    grain: int

    @property
    def m(self) -> int:
        """The number of particles of the whole cloud."""
        return self.bounds[-1]

    @property
    def first(self) -> int:
        """The number of the first particle here."""
        return self.bounds[self.communicator.rank]

    @property
    def last(self) -> int:
        """One more than the number of the last particle here."""
        return self.bounds[self.communicator.rank + 1]

    @property
    def count(self) -> int:
        """The number of particles here."""
        return self.last - self.first

    @cached_property
    def most(self) -> int:
        """The largest number of particles that a rank holds."""
        return max(b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False))

    def owner(self, particle: int) -> int:
        """Return the rank that holds a particle."""
        return bisect.bisect_right(self.bounds, particle) - 1

    def thinned(self, start: int, step: int) -> "Share":
        """Return the share of the cloud of every step-th particle from `start` < `step` on, `step` a power of two."""
        m = len(range(start, self.m, step))
        return Share(self.communicator, (*(min(b // step, m) for b in self.bounds[:-1]), m), self.grain // step)

    def agreed(self, value: T) -> T:
        """Return rank 0's value: ranks on other kinds of processors would round some of them otherwise."""
        return self.communicator.broadcast(value)

    def sum(self, size: int, work: Callable[[Tree], None]) -> Any:
        """Return the sum in the tree over pieces of `size` particles, of which `work` adds those that are here."""
        if self.grain % size:
            raise InputError(
                f"sums over pieces of {size} particles are cut by ranks that hold multiples of {self.grain}"
            )
        tree = Tree()
        done = _attempt(lambda: work(tree), self.communicator.rank)
        held = _Nodes(self, size, tree.nodes(), done if isinstance(done, Failure) else None)
        return _value(self.communicator.broadcast(held.total()))

    def across(self, work: Callable[[], Any]) -> Any:
        """Return the sum of what `work` returns on every rank, in the tree over their numbers, the same bits on all.

        Each rank's rows are one piece: for another number of ranks the sum is rounded otherwise.
        """
        rank, size = self.communicator.rank, self.communicator.size
        pieces = Share(self.communicator, tuple(range(size + 1)), 1)
        return pieces.sum(1, lambda tree: tree.add(rank, work()))


class _Nodes:
    """The nodes of the tree of one sum that a rank has: (level, number) over blocks of `size` particles."""

    def __init__(self, share: Share, size: int, nodes: dict[tuple[int, int], Any], failure: Failure | None) -> None:
        self.communicator, self.nodes, self.failure = share.communicator, nodes, failure
        self.blocks = -(-share.m // size)
        self.edges = [-(-bound // size) for bound in share.bounds]

    def owner(self, level: int, number: int) -> int:
        """Return the rank that has the first block of a node, and so forms it."""
        return bisect.bisect_right(self.edges, number << level) - 1

    def take(self, level: int, number: int) -> Any:
        return self.failure or self.nodes.pop((level, number))

    def total(self) -> Any:
        """Return the sum of all blocks on rank 0, whatever elsewhere."""
        first, last = self.edges[self.communicator.rank : self.communicator.rank + 2]
        for level in range(self.blocks.bit_length()):
            self.join(level, -(-first >> level), min(-(-last >> level), self.blocks >> level))
        return self.fold()

    def join(self, level: int, first: int, last: int) -> None:
        """Form the nodes above first .. last - 1, which are those of a level that begin here and are whole."""
        if first >= last:
            return
        if first % 2:
            self.communicator.send(self.take(level, first), self.owner(level, first - 1))
        end = last - 1
        if end % 2 == 0 and end + 1 < self.blocks >> level:
            other = self.communicator.receive(self.owner(level, end + 1))
            self.nodes[level + 1, end >> 1] = _added(self.take(level, end), other)
        elif end % 2 and end > first and (level, end) in self.nodes:
            self.nodes[level + 1, end >> 1] = _added(self.take(level, end - 1), self.take(level, end))

    def fold(self) -> Any:
        """Add up the nodes that have no neighbour, the lowest first, on their way to rank 0."""
        here, holder, value = self.communicator.rank, -1, None
        for level in (k for k in range(self.blocks.bit_length()) if self.blocks >> k & 1):
            number = (self.blocks >> level) - 1
            owner = self.owner(level, number)
            if here == holder != owner:
                self.communicator.send(value, owner)
            if here == owner:
                node = self.take(level, number)
                if holder >= 0:
                    value = _added(self.communicator.receive(holder) if holder != here else value, node)
                else:
                    value = node
            holder = owner
        return value


def split(communicator: Communicator, m: int, grain: int = GRAIN) -> Share:
    """Return this rank's share of m particles: contiguous, in whole grains, as even as they allow.

    Raises
    ------
    InputError
        If there are fewer grains than ranks: some would have nothing to do.
    """
    grains, size = -(-m // grain), communicator.size
    if grains < size:
        raise InputError(
            f"m = {m} particles are {grains} pieces of {grain}, which {size} ranks cannot share: take at most "
            f"`mpirun -n {grains}`, or cloud.m of at least {grain * (size - 1) + 1}"
        )
    return Share(communicator, (*(grain * (-(-grains * r // size)) for r in range(size)), m), grain)
