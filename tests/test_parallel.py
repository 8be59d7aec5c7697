"""Who works on which part: every part once, the same parts pass after pass, and nothing is waited for in vain."""

import threading
from collections import defaultdict

import pytest

from meanfield import parallel

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

    parallel._pool().submit(occupy)
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
