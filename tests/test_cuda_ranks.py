"""Ranks with a GPU each: their sums are those of the whole cloud, their noise has its bits, their runs are its run.

Ranks are threads of one process and GPUs stand-ins, as in test_ranks and test_cuda. An array that is used while
another device is current fails, and so does a numpy array where CuPy would refuse it. Cost: 10 s.
"""

import threading
import warnings

import numpy as np
import pytest
from crew import crew
from stand_in import KINDS, D, Processor, installed
from test_cuda import ARCTAN, POWERS, TRAIN, WIDE, all_kinds, assert_near, problem, residual
from test_ranks import carry, failures, joined
from test_resume import assert_equal_bits

from meanfield import backends
from meanfield.backends import Motion, Moved, cuda, reference
from meanfield.backends.cuda_source import instance
from meanfield.ranks import Share
from meanfield.units import ACTIVATIONS, Activation

FIRST = [
    instance("fold", KINDS[0]),
    *(instance("channel", kind) for kind in KINDS),
    *(instance(kernel, kind, "tanh") for kernel in ("jets", "values", "slopes") for kind in KINDS),
    *(instance(kernel, kind, "tanh", D) for kernel in ("predict", "move") for kind in KINDS),
]
M = 101
FEW = 4100  # particles that two ranks can share: 4096 and 4
CUTS = {1: (0, M), 2: (0, 37, M), 3: (0, 37, 38, M)}  # one rank has a single particle
TANH = ACTIVATIONS["tanh"]
CHANNEL = Motion(0.0, 0.9, 0.3, 0.0, 2**40 + 3, 7, 2)
STEP = Motion(0.2, 0.9, 0.2, 0.1, 5, 2**32 - 1, 0)
all_sizes = pytest.mark.parametrize("size", CUTS)
all_d = pytest.mark.parametrize("d", [D, WIDE])


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return Processor(FIRST, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(autouse=True)
def gpus(processor, monkeypatch):
    """A machine with two GPUs."""
    return installed(processor, monkeypatch)


def on_ranks(size, work):
    """What work(engine, rows, first) returns on every rank: its backend, what takes its rows, its first particle."""

    def on_rank(communicator):
        share = Share(communicator, CUTS[size], 1)
        rows = slice(share.first, share.last)
        return work(backends.shared("cuda", share), lambda z: None if z is None else z[rows], share.first)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if size > 2 else "error")  # three ranks on two GPUs
        return crew(size, on_rank)


def whole(parts):
    return np.concatenate(parts)


# --- sums


def sums(engine, h, x, z, far, c, train):
    """All that a backend sums over particles."""
    return [
        engine.predict(h, x, z),
        *engine.measure(h, x, z, far, None, train, variance=1.3),
        *engine.measure(h, x, z, None, None, train, gram=False),
        engine.kick(h, x, z, far, None, c, 0.1, train, account=True),
        engine.kick(h, x, z, None, None, c, 0.1, train, account=True, at=far),
        engine.midpoint_kick(h, x, z, far, None, c, 0.1, train, account=True, variance=1.3),
        *engine.roughness(h, x, z, None, c, train),
    ]


@all_sizes
@all_kinds
@all_d
@pytest.mark.parametrize("h", [TANH, ARCTAN], ids=lambda h: h.name)
def test_sums_are_those_of_the_whole_cloud(size, kind, d, h):
    x, z, far, _, c = problem(kind, m=M, d=d)
    for train in TRAIN if d == D else TRAIN[:1]:

        def work(engine, rows, first, train=train):
            return sums(engine, h, x, rows(z), rows(far), 0.1 * c, train), engine.asnumpy

        found = on_ranks(size, work)
        alone = sums(reference.BACKEND, h, x, z, far, 0.1 * c, train)
        for wanted, first, *others in zip(alone, *(values for values, _ in found), strict=True):
            if not isinstance(wanted, Moved):
                assert_equal_on_all(first, others)
                assert (first is None) == (wanted is None)
                if wanted is not None:
                    assert_near(first, wanted, kind)
                continue
            moved = whole([back(move.z) for move, (_, back) in zip((first, *others), found, strict=True)])
            assert_near(moved, wanted.z, kind)
            for name in Moved._fields[1:]:
                mine, known, power = getattr(first, name), getattr(wanted, name), POWERS.get(name)
                assert_equal_on_all(mine, [getattr(other, name) for other in others])
                assert_near(mine, known, kind, power and max(wanted.speed**power, np.max(np.abs(known))))


def assert_equal_on_all(first, others):
    assert all(np.array_equal(first, other) for other in others)


@all_kinds
def test_what_ranks_say_to_one_another_does_not_grow_with_the_cloud(kind):
    """n or n^2 numbers in double precision, whatever m is."""
    x, z, far, _, c = problem(kind, m=4 * M, n=17)
    longest = {}
    for many in (1, 4):

        def work(communicator, many=many):
            share = Share(communicator, tuple(many * cut for cut in CUTS[2]), 1)
            rows, engine = slice(share.first, share.last), backends.shared("cuda", share)
            arguments = (TANH, x, z[rows], far[rows], None)
            engine.predict(TANH, x, z[rows])
            engine.kick(*arguments, c, 0.1, account=True)
            engine.descend(*arguments, residual, STEP, centred=True)
            vectors = communicator.crew.longest
            engine.measure(*arguments, variance=1.0)
            return vectors, communicator.crew.longest

        longest[many] = crew(2, work)[0]
    assert longest[1] == longest[4]
    assert longest[1][0] <= 8 * 5 * 17 + 800 and longest[1][1] <= 8 * 2 * (17**2 + 5 * 17) + 2000


# --- steps


@all_sizes
@all_kinds
@all_d
def test_noise_is_named_by_the_number_in_the_whole_cloud(size, kind, d):
    """A channel without kicks has equal bits on any number of ranks, also with chunks and far up in the numbers."""
    x, z, far, _, c = problem(kind, m=M, d=d)
    for start in (0, 2**32 - M):
        motion = CHANNEL._replace(first=start)
        wanted = reference.move(TANH, x, z, far, c, motion)

        def work(engine, rows, first, start=start):
            there = engine.move(TANH, x, rows(z), rows(far), c, CHANNEL._replace(first=start + first))
            return [engine.asnumpy(array) for array in there]

        found = on_ranks(size, work)
        for k, name in enumerate(("cloud", "reference")):
            np.testing.assert_array_equal(whole([parts[k] for parts in found]), wanted[k], name)


@all_kinds
def test_noise_of_chunks_is_too(processor, gpus, kind):
    x, z, far, _, c = problem(kind, m=M, d=WIDE)
    small = cuda.make(gpus, processor, budget=3000 * kind.itemsize)
    motion = STEP._replace(first=5000)
    moved = small.move(TANH, x, z, far, c, motion)
    wanted = reference.move(TANH, x, z, far, c, motion)
    np.testing.assert_array_equal(small.asnumpy(moved[1]), wanted[1])
    assert_near(small.asnumpy(moved[0]), wanted[0], kind)


@all_sizes
@all_kinds
@all_d
@pytest.mark.parametrize("centred", [True, False])
def test_an_explicit_step_is_that_of_the_whole_cloud(size, kind, d, centred):
    x, z, far, _, _ = problem(kind, m=M, d=d)
    wanted = reference.descend(TANH, x, z, far, None, residual, STEP, centred=centred)

    def work(engine, rows, first):
        here = engine.asarray(rows(z)), engine.asarray(rows(far))
        motion = STEP._replace(first=first)
        got = engine.descend(TANH, x, *here, None, residual, motion, centred=centred, out=here)
        return [engine.asnumpy(array) for array in got]

    found, again = on_ranks(size, work), on_ranks(size, work)
    assert_near(whole([parts[0] for parts in found]), wanted[0], kind)
    np.testing.assert_array_equal(whole([parts[1] for parts in found]), wanted[1])
    for once, twice in zip(found, again, strict=True):
        np.testing.assert_array_equal(once[0], twice[0])


@all_kinds
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_move_tells_whether_all_numbers_are_finite(kind, value):
    """Also of particles whose sum is not finite though they are."""

    def work(engine, rows, first):
        z, seen = np.full((M, D + 1), 0.9 * np.finfo(kind).max, kind), []
        z[60, 2] = value
        engine.move(TANH, np.zeros((5, D)), rows(z), None, np.zeros(5), Motion(0, 1, 0, 0, 0, 0, 0, seen=seen.append))
        return all(seen) and bool(seen)

    assert on_ranks(2, work) == [True, bool(np.isfinite(value))]


# --- failures


def test_what_goes_wrong_on_one_rank_is_raised_on_all():
    here = threading.local()

    def jet(w):
        if here.rank == 1:
            raise MemoryError("no room on the device")
        return ARCTAN.jet(w)

    broken = Activation("mine", jet)
    x, z, far, _, c = problem(KINDS[0], m=M)
    calls = {
        "predict": lambda on, z, far: on.predict(broken, x, z),
        "measure": lambda on, z, far: on.measure(broken, x, z, far, None),
        "kick": lambda on, z, far: on.kick(broken, x, z, far, None, c, 0.1, account=True),
        "midpoint": lambda on, z, far: on.midpoint_kick(broken, x, z, far, None, c, 0.1, account=True),
        "roughness": lambda on, z, far: on.roughness(broken, x, z, None, c),
        "descend": lambda on, z, far: on.descend(broken, x, z, far, None, residual, STEP),
    }
    for name, call in calls.items():

        def work(communicator, call=call):
            here.rank = communicator.rank
            share = Share(communicator, CUTS[2], 1)
            rows = slice(share.first, share.last)
            return call(backends.shared("cuda", share), z[rows], far[rows])

        assert failures(2, work, MemoryError) == ["no room on the device"] * 2, name


# --- runs


RUNS = {
    "kernel": dict(time=0.05),
    "kernel without account": dict(time=0.05, bounds=0, replicates=1),
    "minibatch": dict(steps=3, bounds=0, replicates=1),
    "kernel2": dict(time=0.02, bounds=0, replicates=1),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_that_of_the_other_backends(name):
    """With and without an account, midpoints, batches; no ranks, and two: records, bounds, the last clouds."""
    alone = carry(name, m=FEW, **RUNS[name])

    def work(ranks):
        return carry(name, ranks, m=FEW, backend="cuda", **RUNS[name])

    for size in (0, 2):
        found = joined(crew(size, work)) if size else work(None)
        for key in alone.data.data_vars:
            got, wanted = found.data[key].values, alone.data[key].values
            if wanted.dtype.kind == "f":
                np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-14, err_msg=str(key))
        for got, wanted in zip(found.clouds, alone.clouds, strict=True):
            assert_near(got.z, wanted.z, KINDS[0])
            # The lengths of steps are off by rounding where they are measured, and so is the reference.
            assert_near(got.reference, wanted.reference, KINDS[0])
            assert name != "minibatch" or np.array_equal(got.reference, wanted.reference)
            assert got.step == wanted.step > 1


def test_equal_numbers_of_ranks_give_equal_bits_and_a_process_on_its_own_its_own(gpus):
    options = dict(m=FEW, backend="cuda", dtype="float32", bounds=0, steps=3, observables=["loss"])

    def work(ranks):
        return carry("without account", ranks, **options)

    one, two = joined(crew(2, work)), joined(crew(2, work))
    assert_equal_bits(one, two)
    alone, single = carry("without account", **options), joined(crew(1, work))
    assert_equal_bits(alone, single)
    assert_near(one.clouds[0].z, alone.clouds[0].z, KINDS[1])
