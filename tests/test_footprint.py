"""Memory is asked for before it is taken, and who asks for too much learns what would fit."""

import re

import numpy as np
import pytest

from meanfield import config, datasets, experiment, footprint, limits
from meanfield.errors import InputError

GB = 10**9


class Ranks:
    """Two machines of two ranks each."""

    rank, size, neighbours = 0, 4, 2


def ask(n=100, d=10, ranks=None, bounds=False, **cloud):
    tree = {"cloud": {"m": 10**6, "replicates": 1, **cloud}, "flow": {"time": 1.0}}
    footprint.check_memory(config.parse(tree), n, d, ranks, bounds=bounds)


@pytest.fixture
def machine(monkeypatch):
    return lambda size: monkeypatch.setattr(limits, "machine_memory", lambda: size)


def test_clouds_that_do_not_fit_and_those_that_do(machine):
    machine(1 * GB)
    ask(d=10)  # 8 copies of 88 MB
    with pytest.raises(InputError, match="1 clouds of m = 1000000 .* about 1.3 GB.* has 1.0 GB; take a smaller"):
        ask(d=19)
    ask(d=19, dtype="float32")
    ask(d=19, on_disk=True)
    with pytest.raises(InputError, match="needs about 1.1 GB of disk"):
        ask(d=19)
    ask(d=19, ranks=Ranks())  # half of it is on another machine
    with pytest.raises(InputError, match="fewer cloud.replicates.* or ranks on more machines$"):
        ask(d=19, ranks=Ranks(), replicates=2)


def test_matrices_that_do_not_fit_name_the_samples_that_would(machine):
    machine(10 * GB)
    with pytest.raises(
        InputError, match=r"n = 20000 samples and 2 replicates.* smaller data.n \(at most (\d+)\)"
    ) as told:
        ask(n=20_000, m=64, replicates=2)
    most = int(re.search(r"at most (\d+)", str(told.value))[1])
    ask(n=most, m=64, replicates=2)
    with pytest.raises(InputError, match="matrices of n x n"):
        ask(n=most + 1, m=64, replicates=2)
    with pytest.raises(InputError, match="matrices of n x n"):  # clouds on disk are no help
        ask(n=most + 1, m=64, replicates=2, on_disk=True)
    with pytest.raises(InputError, match="matrices of n x n"):
        ask(n=most, m=64, replicates=2, ranks=Ranks())


def test_bounds_take_more_matrices_than_steps(machine):
    """47 of 8 n^2 bytes were measured with four replicates, 25 without bounds."""
    machine(1 * GB)
    ask(n=2000, m=64, replicates=4)
    ask(n=1500, m=64, replicates=4, bounds=True)
    with pytest.raises(InputError, match=r"matrices of n x n .* take about 1.6 GB .* \(at most 1581\)"):
        ask(n=2000, m=64, replicates=4, bounds=True)


def test_bounds_on_wide_clouds_that_do_not_fit_may_be_left_out(machine):
    def asked(d, **record):
        tree = {"data": {"source": "sphere", "n": 5, "d": d}, "cloud": {"m": 64}, "flow": {"time": 1.0}}
        return experiment.build(config.parse(tree | {"record": record}))

    machine(2 * GB)
    asked(784)
    with pytest.raises(InputError, match=r"bounds on clouds with d = 3000 inputs .* 7.5 GB .* record no bounds"):
        asked(3000)
    asked(3000, observables=["loss"])


def test_inputs_are_counted_as_they_are(tmp_path, machine):
    """Whoever gives a file does not say how many columns it has."""
    np.savez(tmp_path / "wide.npz", x=np.eye(3, 5000), y=np.array([1.0, -1.0, 1.0]))
    tree = {
        "data": {"source": "npz", "path": str(tmp_path / "wide.npz")},
        "cloud": {"m": 10_000, "replicates": 1},
        "flow": {"time": 1.0},
        "record": {"observables": ["loss"]},
    }
    one = config.parse(tree)
    machine(2 * GB)
    for refused in (lambda: experiment.build(one), lambda: experiment.check(one, datasets.load(one.data))):
        with pytest.raises(InputError, match="need about 3.2 GB"):
            refused()


def test_generated_data_are_asked_for_before_they_are_made(machine, monkeypatch):
    tree = {"data": {"source": "sphere", "n": 20_000, "d": 5}, "flow": {"time": 1.0}}
    monkeypatch.setattr(datasets, "load", lambda one: pytest.fail("made"))
    machine(1 * GB)
    with pytest.raises(InputError, match="matrices of n x n"):
        experiment.build(config.parse(tree))


def test_clouds_on_disk_are_asked_for_with_their_checkpoints(tmp_path, monkeypatch):
    tree = {
        "data": {"source": "sphere", "n": 5, "d": 9},
        "cloud": {"m": 10_000, "replicates": 1, "on_disk": True},
        "flow": {"time": 1.0},
    }
    one, folder = config.parse(tree), tmp_path / "run"
    monkeypatch.setattr(limits, "disk", lambda there: 5.5e6 if there == folder else 0)
    with pytest.raises(InputError, match=r"on disk and their checkpoints need about 0.0 GB, .*on a larger disk"):
        experiment.build(one, folder=folder)
    assert not folder.exists()
    folder.mkdir()
    (folder / "checkpoint.npz").write_bytes(bytes(200_000))  # of this run: the next one takes its place
    experiment.build(one, folder=folder)


@pytest.mark.parametrize(
    ("membership", "file", "granted"),
    [
        ("0::/job_7/step_0\n", "job_7/memory.max", 3 * GB),
        ("0::/job_7/step_0\n", "job_7/step_0/memory.max", 3 * GB),
        ("5:cpu,memory:/slurm/uid_1/job_7\n0::/\n", "memory/slurm/uid_1/memory.limit_in_bytes", 3 * GB),
        ("5:cpu:/slurm/job_7\n", "cpu/slurm/job_7/memory.limit_in_bytes", None),
        ("not what Linux writes", "memory.max", 3 * GB),
    ],
)
def test_a_job_has_the_memory_that_its_groups_were_granted(tmp_path, monkeypatch, membership, file, granted):
    whole = limits.machine_memory()
    (tmp_path / "cgroup").write_text(membership)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(f"{3 * GB}\n")
    monkeypatch.setattr(limits, "GROUPS", tmp_path)
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "cgroup")
    assert limits.machine_memory() == min(granted or whole, whole)
