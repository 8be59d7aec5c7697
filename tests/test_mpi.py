"""Runs under a real mpirun: equal bits for any number of ranks, restarts on others, sweeps, and one message of errors."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time as clock
from pathlib import Path

import numpy as np
import pytest

from meanfield import experiment, mpi, store
from meanfield.errors import InputError

BESIDE = Path(sys.executable).with_name("mpirun")
MPIRUN = str(BESIDE) if BESIDE.exists() else shutil.which("mpirun")
MISSING = MPIRUN is None or importlib.util.find_spec("mpi4py") is None
needs_mpi = pytest.mark.skipif(MISSING, reason='mpi4py or mpirun is missing: pip install "meanfield-nn[mpi]"')

BASE = """
[data]
source = "digits"
classes = [3, 8]
n = 60
[network]
activation = "tanh"
alpha = 3.0
[cloud]
m = 16500
replicates = 2
dtype = "{dtype}"
[flow]
lam = 0.01
eta = 0.02
steps = {steps}
scheme = "{scheme}"
{batch}
[record]
observables = ["loss", "loss_unbiased", "kl_account", "drift_rms", "travelled", "ntk_eigenvalue_min"]
bounds_every = 1
[output]
checkpoint_seconds = {seconds}
"""
CASES = [(scheme, dtype, batch) for scheme, batch in (("euler", 0), ("kernel", 0), ("euler", 16))
         for dtype in ("float64", "float32")]  # fmt: skip


def write(folder: Path, scheme="euler", dtype="float64", batch=0, steps=4, seconds=30.0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "config.toml"
    line = f"batch = {batch}" if batch else ""
    path.write_text(BASE.format(scheme=scheme, dtype=dtype, batch=line, steps=steps, seconds=seconds))
    return path


def environment(**more: str) -> dict[str, str]:
    """An environment in which Open MPI starts any number of ranks on any machine, as whoever runs the tests."""
    ours = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return {**os.environ, **ours, **more}


def command(ranks: int, *arguments: object) -> list[str]:
    start = [str(MPIRUN), "-n", str(ranks), "--oversubscribe"] if ranks else []
    return [*start, sys.executable, "-m", "meanfield", *map(str, arguments)]


def start(ranks: int, *arguments: object, expect: int = 0, **more: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(ranks, *arguments), capture_output=True, text=True, env=environment(**more), timeout=100
    )
    assert done.returncode == expect, done.stderr
    return done


@needs_mpi
@pytest.mark.parametrize(("scheme", "dtype", "batch"), CASES)
def test_two_ranks_write_what_one_process_writes(tmp_path, scheme, dtype, batch):
    path = write(tmp_path, scheme, dtype, batch)
    start(0, "run", path, "--out", tmp_path / "alone", "--quiet", "--threads", 1)
    start(2, "run", path, "--out", tmp_path / "ranks", "--quiet", "--threads", 1)
    assert experiment.compare(tmp_path / "alone", tmp_path / "ranks") == ([], True)
    metadata = store.read_json(tmp_path / "ranks" / "metadata.json")
    assert metadata["ranks"] == 2 and len(list((tmp_path / "ranks").glob("checkpoint.4.rows*"))) == 2
    again = start(2, "run", path, "--out", tmp_path / "ranks")
    assert again.stdout.count("is finished; nothing was changed") == 1


@needs_mpi
def test_two_ranks_that_were_told_to_stop_go_on_as_three(tmp_path):
    path = write(tmp_path, "kernel", steps=60, seconds=0)
    out = tmp_path / "ranks"
    with subprocess.Popen(
        command(2, "run", path, "--out", out, "--quiet", "--threads", 1), env=environment(), stderr=subprocess.PIPE
    ) as process:
        deadline = clock.monotonic() + 60
        while not list(out.glob("checkpoint.?.rows*")) and process.poll() is None and clock.monotonic() < deadline:
            clock.sleep(0.02)
        assert store.read_json(out / "metadata.json")["status"] == "running"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    wait_for_ranks_to_end(out)
    start(3, "run", path, "--out", out, "--quiet", "--threads", 1)
    start(0, "run", path, "--out", tmp_path / "alone", "--quiet", "--threads", 1)
    assert experiment.compare(out, tmp_path / "alone") == ([], True)


def wait_for_ranks_to_end(out: Path) -> None:
    """Wait until no process works in a directory: ranks end a moment after their mpirun was killed."""
    deadline = clock.monotonic() + 30
    while clock.monotonic() < deadline:
        lines = [Path(f"/proc/{pid}/cmdline") for pid in os.listdir("/proc") if pid.isdigit()]
        texts = []
        for line in lines:
            try:
                texts.append(line.read_bytes().decode(errors="replace"))
            except OSError:
                continue
        if not any(str(out) in text for text in texts):
            return
        clock.sleep(0.1)
    raise AssertionError("ranks outlived their mpirun")


@needs_mpi
def test_an_error_of_all_ranks_is_one_message(tmp_path):
    path = write(tmp_path)
    done = start(2, "run", path, "--set", "cloud.m=4096", "--out", tmp_path / "out", "--quiet", expect=2)
    assert done.stderr.count("which 2 ranks cannot share") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


FAILS = """
import sys
from meanfield import mpi
ranks = mpi.world()
with mpi.guarded(ranks):
    if ranks.rank == 1:
        mpi.GRACE = 0.2
        raise ArithmeticError("only here")
    ranks.broadcast(None, 1)
"""


@needs_mpi
def test_an_error_of_one_rank_ends_all_with_its_message(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    line = [str(MPIRUN), "-n", "2", "--oversubscribe", sys.executable, str(script)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 1 and "rank 1 of 2: only here; all ranks are stopped" in done.stderr


@needs_mpi
def test_a_sweep_hands_its_points_to_the_other_ranks(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text() + '[sweep]\n"flow.lam" = [0.01, 0.1, 1.0]\n')
    options = ["--set", "cloud.m=500", "--threads", 1]
    done = start(3, "sweep", path, "--out", tmp_path / "ranks", *options)
    assert "3 points (3 flow.lam): 3 finished" in done.stdout
    start(0, "sweep", path, "--out", tmp_path / "alone", *options)
    one, other = (store.read_dataset(tmp_path / name / "sweep.nc") for name in ("ranks", "alone"))
    assert np.array_equal(one.loss.values, other.loss.values) and one.sizes["flow.lam"] == 3


def test_a_process_on_its_own_has_no_ranks(monkeypatch):
    for name in mpi.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert mpi.world.__wrapped__() is None
    with mpi.guarded(None), pytest.raises(InputError, match="plain"):
        raise InputError("plain")


def test_mpirun_without_mpi4py_is_refused_with_what_to_type(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InputError, match=r'pip install "meanfield-nn\[mpi\]"'):
        mpi.world.__wrapped__()


@needs_mpi
def test_an_mpi_of_another_launcher_is_refused(tmp_path):
    """Ranks that a foreign mpirun started see themselves alone, and would all write to one directory."""
    path = write(tmp_path)
    done = start(0, "run", path, "--out", tmp_path / "out", expect=2, PMI_SIZE="2")
    assert "mpirun started 2 processes and mpi4py sees 1" in done.stderr and not (tmp_path / "out").exists()
