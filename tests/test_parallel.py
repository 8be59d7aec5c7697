"""Who works on which part: every part once, the same parts pass after pass, and nothing is waited for in vain."""

import contextlib
import os
import random
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from meanfield import parallel
from meanfield.workspace import lent

PARTS = 40


@pytest.fixture(autouse=True)
def _default_threads():
    yield
    parallel.set_threads(None)


def passes(threads, count=2, **options):
    """Per pass, thread -> numbers of its parts in the order worked, where every thread gets half of them."""
    parallel.set_threads(threads)
    found = []
    for _ in range(count):
        taken, both = defaultdict(list), threading.Barrier(threads)

        def work(part, taken=taken, both=both):
            mine = taken[threading.get_ident()]
            if len(mine) < PARTS // threads:
                both.wait(10)  # in step: none is through with its own before the others are
            mine.append(part.start)

        parallel.each_group(work, PARTS, 1, **options)
        found.append(dict(taken))
    return found


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_part_is_worked_once(threads):
    for taken in passes(threads):
        assert sorted(sum(taken.values(), [])) == list(range(PARTS))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("backwards", [False, True])
def test_last_parts_are_cut_down_to_the_least_length(threads, backwards):
    parallel.set_threads(threads)
    taken = []
    parallel.each_group(taken.append, 100, 16, backwards=backwards, least=2)
    assert sorted(i for part in taken for i in range(part.start, part.stop)) == list(range(100))
    lengths = [part.stop - part.start for part in taken]
    assert max(lengths) == 16
    if threads == 1:
        assert len(lengths) == 7  # nobody to end together with
    else:
        assert min(lengths) == 2
        last = [part for part in taken if part.stop - part.start < 16]
        assert len(last) >= 3 * threads


def test_a_thread_has_the_same_neighbouring_parts_in_every_pass_forwards_and_backwards():
    (forwards,), (backwards,) = passes(2, 1), passes(2, 1, backwards=True)
    caller = threading.get_ident()
    assert forwards[caller] == list(range(PARTS // 2))
    assert backwards[caller] == forwards[caller][::-1]
    first, second = passes(2)
    assert first == second


def test_one_that_is_through_takes_over_from_the_far_end():
    parallel.set_threads(2)
    caller, order, free = threading.get_ident(), [], threading.Event()

    def work(part):
        if threading.get_ident() == caller:
            order.append(part.start)
            if len(order) == PARTS - 1:
                free.set()
        else:
            free.wait(10)  # a helper that is held up at its first part

    parallel.each_group(work, PARTS, 1)
    own, taken_over = order[: PARTS // 2], order[PARTS // 2 :]
    assert own == list(range(PARTS // 2))
    assert taken_over == sorted(taken_over, reverse=True)
    assert set(taken_over) < set(range(PARTS // 2, PARTS))


def test_a_helper_that_does_not_come_is_not_waited_for():
    parallel.set_threads(2)
    hold, begun = threading.Event(), threading.Event()

    def occupy():
        begun.set()
        hold.wait(10)

    parallel._pool()[0].submit(occupy)
    begun.wait(10)
    done = []
    parallel.each_group(lambda part: done.append(part.start), PARTS, 1)
    assert not hold.is_set()
    assert sorted(done) == list(range(PARTS))
    hold.set()


def test_what_fails_in_a_helper_is_raised():
    parallel.set_threads(2)
    caller, failed = threading.get_ident(), threading.Event()

    def work(_):
        if threading.get_ident() == caller:
            failed.wait(10)
        else:
            failed.set()
            raise ValueError("in a helper")

    with pytest.raises(ValueError, match="in a helper"):
        parallel.each_group(work, PARTS, 1)


def test_after_a_failure_no_part_is_begun():
    parallel.set_threads(2)
    caller, helped, begun = threading.get_ident(), threading.Event(), []

    def work(part):
        begun.append(part.start)
        if threading.get_ident() == caller:
            helped.wait(10)
            raise ValueError("in the caller")
        helped.set()
        time.sleep(0.01)

    with pytest.raises(ValueError, match="in the caller"):
        parallel.each_group(work, PARTS, 1)
    count = len(begun)
    assert count < PARTS // 2
    time.sleep(0.03)
    assert len(begun) == count  # and no helper is still at work


def test_a_helper_is_waited_for_where_the_next_one_cannot_be_had(monkeypatch):
    parallel.set_threads(3)
    pool, helped, done = parallel._pool()[0], threading.Event(), []

    class Full:
        def submit(self, work):
            if helped.is_set():
                raise RuntimeError("can't start new thread")
            pool.submit(work)
            helped.wait(10)

    apart = parallel._pool()[1]
    monkeypatch.setattr(parallel, "_pool", lambda: (Full(), apart))
    caller = threading.get_ident()

    def work(part):
        if threading.get_ident() != caller:
            helped.set()
            time.sleep(0.05)
        done.append(part.start)

    parallel.each_group(work, 6, 1)
    assert sorted(done) == list(range(6))


@pytest.fixture
def eager():
    """Threads change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def at_once(*works):
    """Run functions in threads of their own; return what they raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(work) for work in works]
    return [future.exception() for future in futures if future.exception() is not None]


def test_callers_in_several_threads_get_their_own_sums_while_the_number_of_threads_changes(eager):
    values = np.random.default_rng(1).standard_normal((17, 3))
    expected = parallel.sum_groups(lambda part: values[part].sum(0), 17, 1).tobytes()
    calling = [True] * 3

    def call(k):
        try:
            for _ in range(400):
                total = parallel.sum_blocks(lambda part: values[part].sum(0), 17, 1)
                assert total.tobytes() == expected
        finally:
            calling[k] = False

    def change():
        rng = random.Random(2)
        while any(calling):
            parallel.set_threads(rng.choice([1, 2, 3, 7, None]))
            time.sleep(1e-4)

    assert not at_once(*[lambda k=k: call(k) for k in range(3)], change)


def test_large_arrays_are_lent_to_several_threads(eager):
    def borrow():
        for k in range(2000):
            with lent((16,), np.float64) as array:
                array[:] = k
                assert (array == k).all()

    assert not at_once(borrow, borrow, borrow)


class Library:
    """Stands for a BLAS library of four threads."""

    num_threads = 4

    def set_num_threads(self, count):
        self.num_threads = count


def test_blas_has_one_thread_until_the_last_caller_leaves(monkeypatch):
    library = Library()
    monkeypatch.setitem(parallel._state, "blas", [library])
    inside, left, found = threading.Event(), threading.Event(), []

    def second():
        with parallel.single_threaded_blas():
            inside.set()
            left.wait(10)
            found.append(library.num_threads)

    with parallel.single_threaded_blas():
        thread = threading.Thread(target=second)
        thread.start()
        inside.wait(10)
    left.set()
    thread.join(10)
    assert found == [1]
    assert library.num_threads == 4


def test_blas_is_limited_whichever_thread_was_the_first_to_limit_it():
    def count():
        return parallel._blas()[0].num_threads

    found, usual = [], count()

    def inside():
        with parallel.single_threaded_blas():
            found.append(count())

    inside()
    assert not at_once(inside)
    assert found == [1, 1]
    assert count() == usual


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # this child runs nothing that waits for a thread
def test_a_child_of_a_fork_inside_a_call_counts_its_own():
    with parallel.single_threaded_blas():
        child = os.fork()
    if not child:  # it has left what its parent entered
        kept = parallel._state["depth"] == 0
        with parallel.single_threaded_blas():
            kept = kept and parallel._blas()[0].num_threads == 1
        os._exit(0 if kept else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- on which cores

APART = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores on Linux"
)


@APART
@pytest.mark.parametrize("fails", [False, True])
def test_threads_run_apart_and_are_let_go(fails):
    """While parts are worked the caller has one core and helpers the others; then it has all of its own again."""
    parallel.set_threads(2)
    allowed, caller, seen = os.sched_getaffinity(0), threading.get_ident(), {}
    both = threading.Barrier(2)

    def work(part):
        if part.start in (0, PARTS // 2):
            both.wait(10)
            seen[threading.get_ident() == caller] = os.sched_getaffinity(0)
            both.wait(10)
        if fails:
            raise ValueError("in a part")

    for _ in range(2):  # a thread that has just begun, and one that was there
        seen.clear()
        with pytest.raises(ValueError, match="in a part") if fails else contextlib.nullcontext():
            parallel.each_group(work, PARTS, 1)
        assert len(seen[True]) == 1 and seen[False] == allowed - seen[True]
        assert os.sched_getaffinity(0) == allowed


@APART
def test_a_process_of_one_core_is_left_alone():
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    parallel.set_threads(2)
    try:
        os.sched_setaffinity(0, one)
        assert sum(parallel.sum_groups(lambda part: np.arange(part.start, part.stop), 2, 1)) == 1
        assert os.sched_getaffinity(0) == one
    finally:
        os.sched_setaffinity(0, allowed)


@APART
def test_how_many_cores_there_are_does_not_depend_on_who_asks():
    parallel.set_threads(2)
    found = []

    def ask(_):
        parallel.set_threads(None)
        found.append(parallel.threads())

    parallel.each_group(ask, 2, 1)
    assert set(found) == {len(os.sched_getaffinity(0))}
