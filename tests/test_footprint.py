"""Memory is asked for before it is taken, and who asks for too much learns what would fit."""

import re

import numpy as np
import pytest

from meanfield import config, datasets, experiment, footprint, parallel
from meanfield.errors import InputError

GB = 10**9


class Ranks:
    """Two machines of two ranks each."""

    rank, size, neighbours = 0, 4, 2


def ask(n=100, d=10, ranks=None, **cloud):
    tree = {"cloud": {"m": 10**6, "replicates": 1, **cloud}, "flow": {"time": 1.0}}
    footprint.check_memory(config.parse(tree), n, d, ranks)


@pytest.fixture
def machine(monkeypatch):
    return lambda size: monkeypatch.setattr(parallel, "machine_memory", lambda: size)


def test_clouds_that_do_not_fit_and_those_that_do(machine):
    machine(1 * GB)
    ask(d=10)  # 8 copies of 88 MB
    with pytest.raises(InputError, match="1 clouds of m = 1000000 .* about 1.3 GB.* has 1.0 GB; take a smaller"):
        ask(d=19)
    ask(d=19, dtype="float32")
    ask(d=19, on_disk=True)
    with pytest.raises(InputError, match="needs about 0.5 GB of disk"):
        ask(d=19)
    ask(d=19, ranks=Ranks())  # half of it is on another machine
    with pytest.raises(InputError, match="fewer cloud.replicates"):
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


def test_inputs_are_counted_as_they_are(tmp_path, machine):
    """Whoever gives a file does not say how many columns it has."""
    np.savez(tmp_path / "wide.npz", x=np.eye(3, 5000), y=np.array([1.0, -1.0, 1.0]))
    tree = {
        "data": {"source": "npz", "path": str(tmp_path / "wide.npz")},
        "cloud": {"m": 10_000, "replicates": 1},
        "flow": {"time": 1.0},
    }
    one = config.parse(tree)
    machine(2 * GB)
    for refused in (lambda: experiment.build(one), lambda: experiment.check(one, datasets.load(one.data))):
        with pytest.raises(InputError, match="need about 3.2 GB"):
            refused()
