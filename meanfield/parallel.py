"""Threads over blocks of particles, and sums whose bits do not depend on how many there are.

Particles are cut into blocks of a size that depends on the number of samples alone. Each block is worked by one
thread with a single-threaded BLAS, and partial sums are combined in a fixed dyadic tree over block numbers. So a
result is the same to the last bit for any number of threads.

Inside `sharing` the arrays at hand are a rank's rows of a cloud that several hold together: then `total` is the number
of all particles, and sums are those over all ranks: of blocks by `sum_blocks` and `sum_groups`, whose bits are those of
any number of ranks, of each rank's rows as one piece by `sum_ranks`.
"""

import contextlib
import functools
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from meanfield import mapped
from meanfield.cores import Apart
from meanfield.dyadic import DyadicSum as DyadicSum
from meanfield.dyadic import Tree as Tree
from meanfield.errors import InputError
from meanfield.ranks import Share

# A block of activations (block x n doubles) should stay within a core's second-level cache.
BLOCK_ELEMENTS = 1 << 16
LARGEST_BLOCK = 1024
SMALLEST_BLOCK = 64

MEMORY = 512 << 20  # bytes
MAPPED_SHARE = 0.25  # of the memory budget, for pages of clouds that are on disk

_state: dict[str, Any] = {"threads": None, "pool": None, "blas": None, "depth": 0, "memory": MEMORY}
_state["lock"] = threading.Lock()  # held to change the pool or BLAS: threads of the user's own may call at once
_inside = threading.local()  # whether this thread works for a call that is under way
_held = threading.local()  # the share that this thread's arrays are


def block_size(n: int) -> int:
    """Return the number of particles in a block for n samples: a power of two that depends on n alone."""
    size = LARGEST_BLOCK
    while size > SMALLEST_BLOCK and size * max(n, 1) > BLOCK_ELEMENTS:
        size //= 2
    return size


def blocks(m: int, size: int) -> list[slice]:
    """Return the slices that cut range(m) into blocks of `size`, the last one shorter."""
    return [slice(first, min(first + size, m)) for first in range(0, m, size)]


def threads() -> int:
    """Return how many threads work on blocks (default: the cores this process may use)."""
    if _state["threads"] is None:
        _state["threads"] = _cores()
    return int(_state["threads"])


@functools.cache
def _cores() -> int:
    """Return how many cores this process may use, asked once: threads are held on single ones later (`cores`)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, count or 1)


def set_threads(count: int | None) -> None:
    """Set the number of threads; None goes back to the cores this process may use."""
    if count is not None and count < 1:
        raise InputError(f"threads must be at least 1, got {count}; leave it out to use every core")
    with _state["lock"]:
        if _state["pool"] is not None:
            _state["pool"][0].shutdown(wait=False)  # what is under way is finished
        _state.update(threads=count, pool=None)


def _reset() -> None:
    """Forget what a fork does not copy: a child has none of the threads of its parent."""
    _state.update(pool=None, depth=0, lock=threading.Lock())
    _inside.work = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)


def memory() -> int:
    """Return the bytes that may be taken beside the clouds themselves; no number depends on it."""
    return int(_state["memory"])


def machine_memory() -> float:
    """Return the bytes that this process may have: the machine's, or less in a container; infinity if unknown."""
    found = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # no file, or the word "max"
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)


def set_memory(size: int | None) -> None:
    """Set the bytes that may be taken beside the clouds; None goes back to 512 MB."""
    if size is not None and size < 1:
        raise InputError(f"the memory budget must be positive, got {size} bytes")
    _state["memory"] = MEMORY if size is None else size


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep BLAS on one thread inside: its results may depend on its thread count, and ours must not."""
    with _state["lock"]:
        if not _state["depth"]:  # of all threads that are inside, the first sets the limit
            _state["blas_threads"] = [library.num_threads for library in _blas()]
            _set_blas([1 for _ in _blas()])
        _state["depth"] += 1
    try:
        yield
    finally:
        with _state["lock"]:
            _state["depth"] = max(_state["depth"] - 1, 0)  # a child of a fork does not know that its parent was inside
            if not _state["depth"]:  # and the last takes it off
                _set_blas(_state["blas_threads"])


def _blas() -> list[Any]:
    """Return what controls the BLAS libraries that are loaded."""
    if _state["blas"] is None:
        from threadpoolctl import ThreadpoolController

        _state["blas"] = ThreadpoolController().select(user_api="blas").lib_controllers
    libraries: list[Any] = _state["blas"]
    return libraries


def blas_names() -> list[str]:
    """Return which BLAS libraries are loaded, and for which processor each has chosen its kernels."""
    named = [(library.internal_api, library.version, getattr(library, "architecture", "")) for library in _blas()]
    return [" ".join(str(part) for part in parts if part) for parts in named]


def _set_blas(counts: list[int]) -> None:
    for library, count in zip(_blas(), counts, strict=True):
        # threadpoolctl lets one Python thread set OpenBLAS, and does nothing for others; ours take turns.
        free = getattr(library, "clear_controlling_thread", lambda **_: None)
        free(force=True)
        library.set_num_threads(count)
        free(force=True)


def serial_blas(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function so that BLAS runs on one thread inside it."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with single_threaded_blas():
            return function(*args, **kwargs)

    return wrapped


@contextlib.contextmanager
def sharing(share: Share | None) -> Iterator[None]:
    """Say that the arrays that are worked inside are a rank's rows of larger ones; None says that they are whole."""
    before, _held.share = held(), share
    try:
        yield
    finally:
        _held.share = before


def held() -> Share | None:
    """Return the share that the arrays at hand are, None where they are whole."""
    return getattr(_held, "share", None)


def total(count: int) -> int:
    """Return the number of particles of the whole cloud of which `count` are at hand."""
    share = held()
    return count if share is None else share.m


def largest_group(particles: int = 1) -> int:
    """Return how many things of so many particles each a sum may take as one piece and not be cut by a rank."""
    share = held()
    return 1 << 62 if share is None else max(1, share.grain // particles)


@serial_blas
def sum_blocks(function: Callable[[slice], Any], m: int, size: int) -> Any:
    """Return the dyadic sum of function(block) over the blocks of range(m), worked by the threads."""
    return sum_groups(function, m, size)


@serial_blas
def each_block(function: Callable[[slice], Any], m: int, size: int) -> None:
    """Call function(block) for every block of range(m), worked by the threads."""
    each_group(function, m, size)


def sum_groups(function: Callable[[slice], Any], count: int, size: int, particles: int = 1) -> Any:
    """Return the dyadic sum of function(group) over groups of `size` of range(count); no limit is put on BLAS.

    What is counted are things of so many `particles` each; a share's groups are numbered in the whole cloud.
    """
    share = held()
    if share is None:
        tree = Tree()
        _add_groups(tree, function, count, size, 0)
        return tree.total()
    piece = size * particles
    return share.sum(piece, lambda tree: _add_groups(tree, function, count, size, share.first // piece))


def _add_groups(tree: Tree, function: Callable[[slice], Any], count: int, size: int, number: int) -> None:
    with sharing(None):
        each_group(lambda part: tree.add(number + part.start // size, function(part)), count, size)


def sum_ranks(work: Callable[[], Any]) -> Any:
    """Return the sums that `work` forms over the particles at hand, added up over the ranks that hold the cloud.

    For backends that do not form sums in pieces: ranks are added in a tree over their numbers, so that bits are equal
    for one number of ranks. `work` gives numpy arrays, or a tuple of them, that are linear in the particles.
    """
    share = held()
    return work() if share is None else share.across(work)


def each_group(
    function: Callable[[slice], Any], count: int, size: int, *, backwards: bool = False, least: int = 0
) -> None:
    """Call function(group) for groups of `size` of range(count), worked by the threads; no limit is put on BLAS.

    With `least` the last groups are cut, down to so many things, that threads end together.
    """
    _share(function, blocks(count, size), backwards=backwards, least=least)


def each_pair(function: Callable[[int, int], Any], count: int) -> None:
    """Call function(a, b) for every a <= b < count, worked by the threads, never two calls that share a number at once.

    All calls that share a number come in one order, whatever the threads: that of a tournament, where every round but
    the first has each number once. So sums that two numbers keep for themselves have the same bits always.
    """
    meetings = [(a, a) for a in range(count)] + tournament(count)
    under_way = [threading.Lock() for _ in meetings]
    last: dict[int, threading.Lock] = {}
    before = []
    for meeting, lock in zip(meetings, under_way, strict=True):
        lock.acquire()
        before.append([last[number] for number in set(meeting) if number in last])
        last.update(dict.fromkeys(meeting, lock))

    def work(part: slice) -> None:
        k = part.start
        try:
            for lock in before[k]:  # of meetings that were handed out earlier: none of them waits for this one
                with lock:
                    pass
            function(*meetings[k])
        finally:
            under_way[k].release()

    _share(work, blocks(len(meetings), 1), whole=True)


def tournament(count: int) -> list[tuple[int, int]]:
    """Return every pair a < b < count, round after round, where a round has no number twice (the circle method)."""
    size = count + count % 2
    pairs = [
        sorted((size - 1 if k == 0 else (turn - k) % (size - 1), (turn + k) % (size - 1)))
        for turn in range(size - 1)
        for k in range(size // 2)
    ]
    return [(a, b) for a, b in pairs if b < count]


def _share(
    function: Callable[[slice], Any],
    parts: list[slice],
    *,
    backwards: bool = False,
    whole: bool = False,
    least: int = 0,
) -> None:
    """Call function(part) for every part; the calling thread works too, and so wakes one thread fewer.

    Each thread has a run of neighbouring parts of its own, the same in every pass over as many: what it wrote is in
    caches near it. One that is through takes over from the far end of the longest run. `whole`: all parts are one
    run, handed out in order. Of clouds on disk, the pages that were worked are given back.
    """
    relief = int(MAPPED_SHARE * memory())

    def done(part: slice) -> None:
        function(part)
        mapped.relieve(relief)

    workers = min(threads(), len(parts))
    if workers <= 1 or getattr(_inside, "work", False):
        for part in parts[::-1] if backwards else parts:
            done(part)
        return
    count = 1 if whole else workers
    runs = [deque(parts[len(parts) * k // count : len(parts) * (k + 1) // count]) for k in range(count)]

    def work() -> None:
        _inside.work = True
        try:
            while (part := _next(runs, getattr(_inside, "number", 0), backwards, least)) is not None:
                done(part)
        except BaseException:
            for run in runs:  # nothing more is begun
                run.clear()
            raise
        finally:
            _inside.work = False

    _with_helpers(work, workers - 1)


def _with_helpers(work: Callable[[], None], count: int) -> None:
    """Call work() here and in so many helping threads, wait for all that have begun, raise what went wrong anywhere."""
    begun: list[Future[None]] = []

    def helper() -> None:
        mine: Future[None] = Future()
        begun.append(mine)  # before a part is taken: when none is left, all that must be waited for are here
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            mine.set_exception(error)
        else:
            mine.set_result(None)

    with _call(helper, count).held():
        try:
            work()
        finally:
            wait(begun)
    for helped in begun:
        helped.result()


def _call(helper: Callable[[], None], count: int) -> Apart:
    """Ask so many threads for help, and return where they run. One that comes late, or not at all, is not missed."""
    with _state["lock"]:
        pool, apart = _pool()
        # No thread can be started: there are too many, or the interpreter is about to end.
        with contextlib.suppress(RuntimeError):
            for _ in range(count):
                pool.submit(helper)
    return apart


def _pool() -> tuple[ThreadPoolExecutor, Apart]:
    """Return the helping threads, numbered from 1, and what keeps them apart."""
    if _state["pool"] is None:
        numbers, apart = itertools.count(1), Apart()

        def begin() -> None:
            _inside.number = next(numbers)
            apart.join()

        size = max(1, threads() - 1)
        _state["pool"] = ThreadPoolExecutor(size, thread_name_prefix="meanfield", initializer=begin), apart
    pool: tuple[ThreadPoolExecutor, Apart] = _state["pool"]
    return pool


def _next(runs: list[deque[slice]], number: int, backwards: bool, least: int) -> slice | None:
    """Take the next part of a thread's own run, or the last one of the longest other; None: nothing is left.

    Of a run's very last part half is taken, as long as it has twice the `least` length (0: no part is cut).
    """
    own = runs[number % len(runs)]
    while run := own or max(runs, key=len):
        with contextlib.suppress(IndexError):  # another thread has just taken the last part
            part = run.pop() if (run is own) == backwards else run.popleft()
            if run or not least or part.stop - part.start < 2 * least:
                return part
            middle = (part.start + part.stop) // 2
            halves = slice(part.start, middle), slice(middle, part.stop)
            run.append(halves[1 - backwards])
            return halves[backwards]
    return None
