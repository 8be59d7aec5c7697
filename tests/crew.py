"""Ranks that are threads of one process, of which one runs at a time: what several processes do, without an MPI.

`crew(size, work)` calls work(communicator) for every rank. A rank runs until it has to wait for another one; then the
next that can go on does. So runs are deterministic, and nothing that a process has but once is used by two at a time.
"""

import pickle
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from meanfield import parallel


class Deadlock(RuntimeError):
    """Every rank waits for another."""


class Crew:
    """What the ranks of a crew share: mail boxes, and whose turn it is."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.boxes: dict[tuple[int, int], deque[bytes]] = {(a, b): deque() for a in range(size) for b in range(size)}
        self.turn = threading.Condition()
        self.running = 0
        self.ended: set[int] = set()
        self.waiting: dict[int, int] = {}  # rank: whom it waits for
        self.messages = self.longest = 0
        self.stuck = False

    def hand_over(self) -> None:
        """Give the turn to the next rank that can go on."""
        for step in range(1, self.size + 1):
            rank = (self.running + step) % self.size
            waits = self.waiting.get(rank)
            if rank not in self.ended and (waits is None or self.boxes[waits, rank]):
                self.running = rank
                break
        else:
            self.stuck = len(self.ended) < self.size
        self.turn.notify_all()

    def wait(self, rank: int) -> None:
        """Wait for the turn; the caller holds the condition."""
        self.turn.wait_for(lambda: self.running == rank or self.stuck)
        if self.stuck:
            raise Deadlock(f"ranks wait for one another, {self.waiting}, and {sorted(self.ended)} have ended")


class Member:
    """One rank of a crew; see `meanfield.ranks.Communicator`."""

    def __init__(self, crew: Crew, rank: int) -> None:
        self.crew, self.rank, self.size = crew, rank, crew.size

    def send(self, value: Any, to: int) -> None:
        assert to != self.rank
        message = pickle.dumps(value)
        self.crew.messages += 1
        self.crew.longest = max(self.crew.longest, len(message))
        self.crew.boxes[self.rank, to].append(message)

    def receive(self, source: int) -> Any:
        assert source != self.rank
        crew, box = self.crew, self.crew.boxes[source, self.rank]
        with crew.turn:
            if not box:
                crew.waiting[self.rank] = source
                crew.hand_over()
                crew.wait(self.rank)
                del crew.waiting[self.rank]
        return pickle.loads(box.popleft())

    def broadcast(self, value: Any, root: int = 0) -> Any:
        if self.rank != root:
            return self.receive(root)
        for rank in range(self.size):
            if rank != root:
                self.send(value, rank)
        return value

    def everyone(self, value: Any) -> list[Any]:
        if self.rank:
            self.send(value, 0)
            return self.broadcast(None)
        return self.broadcast([value, *(self.receive(rank) for rank in range(1, self.size))])

    def largest(self, value: float) -> float:
        return max(self.everyone(float(value)))


def crew(size: int, work: Callable[[Member], Any]) -> list[Any]:
    """Return what work(communicator) returned on every rank; raise what the first rank that failed raised."""
    shared = Crew(size)
    results: list[Any] = [None] * size
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            with shared.turn:
                shared.wait(rank)
            results[rank] = work(Member(shared, rank))
        except BaseException as error:  # noqa: BLE001
            errors[rank] = error
        finally:
            with shared.turn:
                shared.ended.add(rank)
                shared.hand_over()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    with parallel.single_threaded_blas():  # one limit for all: a rank that ends would lift it for the others
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # A rank that fails on its own leaves the others stuck: its error is the one that matters.
    for error in sorted(errors.values(), key=lambda error: isinstance(error, Deadlock)):
        raise error
    return results
