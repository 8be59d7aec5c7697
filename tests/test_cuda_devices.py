"""Which GPU a rank takes, that it stays there, and what is said of it. Cost: 4 s.

GPUs are stand-ins: an array that is used while another device is current fails.
"""

import threading
import warnings

import numpy as np
import pytest
import small
from crew import crew
from stand_in import KINDS, D, Processor, installed
from test_cuda import assert_near, problem
from test_cuda_ranks import CUTS, FEW, FIRST, TANH, M, on_ranks, whole
from test_ranks import failures

from meanfield import backends, experiment, spread
from meanfield import config as configuration
from meanfield.backends import cuda, cuda_devices, cuda_steps, reference
from meanfield.errors import InputError
from meanfield.ranks import Alone, Share
from meanfield.risk import Risk


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return Processor(FIRST, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(autouse=True)
def gpus(processor, monkeypatch):
    """A machine with two GPUs."""
    return installed(processor, monkeypatch)


def seated(size, place=None, buses=None, gpus=None):
    """The devices of ranks, at `place` on their machines, that see these buses."""

    def work(communicator):
        if place is not None:
            communicator.place = place[communicator.rank]
        if buses is not None:
            gpus.visible.buses = buses[communicator.rank]
        return cuda_devices.seats(communicator)

    found = crew(size, work)
    assert all(seats == found[0] for seats in found)
    return [seat.number for seat in found[0]]


def test_every_rank_takes_the_device_of_its_place_on_its_machine(gpus):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seated(1) == [0]
        assert seated(2) == [0, 1]
        # Two machines of two GPUs, and ranks that a scheduler gave one each: all call theirs 0.
        one, two = ("a:17", "a:65"), ("b:17", "b:65")
        assert seated(4, (0, 1, 0, 1), (one, one, two, two), gpus) == [0, 1, 0, 1]
        assert seated(3, (0, 0, 1), (one, two, two), gpus) == [0, 0, 1]
        assert seated(3, (0, 1, 2), (("a:17",), ("a:65",), ("a:90",)), gpus) == [0, 0, 0]


def test_ranks_that_share_a_device_are_told_once(gpus):
    with pytest.warns(UserWarning, match="5 ranks work on 2 GPUs: .* start one rank for each GPU") as told:
        assert seated(5) == [0, 1, 0, 1, 0]
    assert len(told) == 1
    with pytest.warns(UserWarning, match="2 ranks work on 1 GPU:"):
        assert seated(2, buses=[("a:17",)] * 2, gpus=gpus) == [0, 0]


def test_a_rank_without_a_device_stops_all(gpus):
    def work(communicator):
        gpus.visible.buses = () if communicator.rank == 1 else ("a:17",)
        return backends.shared("cuda", Share(communicator, CUTS[2], 1))

    wanted = "the backend 'cuda' cannot run on rank 1: No GPU is there. Type --backend cpu"
    assert all(said.startswith(wanted) for said in failures(2, work, InputError))


def test_ranks_that_would_choose_different_backends_are_stopped(monkeypatch):
    here, x = threading.local(), np.ones((2, D))
    monkeypatch.setattr(backends, "choose", lambda n, m: backends.Choice(here.name, "a test says so"))

    def work(communicator):
        here.name = ("cpu", "cuda")[communicator.rank]
        return spread.share_of(Risk(x, np.ones(2)), 8200, communicator)

    said = failures(2, work, InputError)
    assert len(set(said)) == 1 and "('cpu' on rank 0, 'cuda' on rank 1)" in said[0] and "--backend cpu" in said[0]


def test_a_rank_stays_on_its_device_in_any_thread():
    x, z, *_ = problem(KINDS[0], m=M)

    def work(engine, rows, first):
        held, found = engine.asarray(rows(z)), []

        def elsewhere():
            found.append(engine.asnumpy(engine.pullback(TANH, x, held, np.ones(len(x)))))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return held.device, found[0]

    found = on_ranks(2, work)
    assert [device for device, _ in found] == [0, 1]
    assert_near(whole([b for _, b in found]), reference.pullback(TANH, x, z, np.ones(len(x))), KINDS[0])


def test_what_a_risk_does_with_rows_stays_on_the_device_of_their_rank(gpus, monkeypatch):
    upload, places = gpus.asarray, set()

    def asarray(value, dtype=None):
        places.add((threading.get_ident(), gpus.current.number))
        return upload(value, dtype)

    monkeypatch.setattr(gpus, "asarray", asarray)
    known = small.flow("euler", 0.04)

    def work(communicator):
        flow = small.flow("euler", 0.04)
        object.__setattr__(flow.objective, "backend", "cuda")
        rows = spread.rows(flow, small.cloud(flow, FEW), communicator)
        return flow.objective.gradient(rows), flow.step(rows).z

    found = crew(2, work)
    assert sorted(device for _, device in places) == [0, 1]
    cloud = small.cloud(known, FEW)
    for got, wanted in zip(
        zip(*found, strict=True), (known.objective.gradient(cloud), known.step(cloud).z), strict=True
    ):
        assert_near(whole(got), wanted, KINDS[0])


def test_a_process_that_was_settled_takes_the_device_of_its_place(gpus, monkeypatch):
    monkeypatch.setattr(cuda_devices, "_own", {})
    monkeypatch.setattr(cuda, "unavailable", lambda: "")
    for place, number in ((None, 0), (0, 0), (3, 1)):
        if place is not None:
            backends.settle(place)
        monkeypatch.delitem(vars(cuda), "BACKEND", raising=False)
        assert backends.get("cuda").asarray(np.ones(3)).device == number


def test_a_backend_without_devices_has_none_to_tell():
    share = Share(Alone(), (0, 5000), 4096)
    assert backends.devices("cpu", share) == backends.devices("cuda", None) == []
    assert backends.devices("cuda", share) == ["rank 0: device 0, Stand-in"]


CONFIG = """
[data]
source = "sphere"
n = 5
d = 3
[network]
activation = "tanh"
[cloud]
m = 4100
backend = "cuda"
replicates = 1
[flow]
lam = 0.01
eta = 0.02
steps = 1
scheme = "euler"
[record]
observables = ["loss"]
bounds_every = [0.02]
"""


def test_devices_are_said_and_written_down(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    config = configuration.load(tmp_path / "config.toml")

    def work(communicator):
        lines = []
        done = experiment.carry(config, tmp_path / "run", quiet=True, say=lines.append, communicator=communicator)
        return lines, done.metadata

    (lines, metadata), _ = crew(2, work)
    told = ["rank 0: device 0, Stand-in", "rank 1: device 1, Stand-in"]
    assert metadata["backend"] == "cuda" and metadata["devices"] == told
    assert f"devices: {told[0]}; {told[1]}" in lines


def test_the_stand_in_refuses_arrays_of_another_device(gpus):
    steps = cuda_steps.Steps(gpus, cuda.launch)
    array = gpus.asarray(np.ones(3))
    with gpus.device(1):
        for wrong in (lambda: array + 1.0, lambda: gpus.sum(array), lambda: steps.on_device(TANH).jet(array)):
            with pytest.raises(AssertionError):
                wrong()
