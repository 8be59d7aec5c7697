"""Runs under a real mpirun: equal bits for any number of ranks, restarts on others, sweeps, and errors told once."""

import os
import signal
import subprocess
import sys
import time as clock
from pathlib import Path

import numpy as np
import pytest
import test_ranks
from campaigns import looks, runs
from campaigns import ranks as campaign
from campaigns.launch import MISSING, WHY, environment, line
from test_resume import assert_equal_bits

from meanfield import cli, experiment, mpi, parallel, store
from meanfield.errors import InputError, MeanfieldError
from meanfield.planning import Record
from meanfield.results import Run
from meanfield.simulate import load

needs_mpi = pytest.mark.skipif(MISSING, reason=WHY)

CONFIG = """
[data]
source = "digits"
classes = [3, 8]
n = 20
[network]
activation = "tanh"
[cloud]
m = 16500
replicates = 2
[flow]
lam = 0.01
eta = 0.02
steps = 3
scheme = "euler"
[record]
observables = ["loss", "kl_account"]
bounds_every = 1
"""
CASES = [(name, dtype) for name in test_ranks.MAIN for dtype in ("float64", "float32")]


def start(ranks: int, *words: object, expect: int = 0, **more: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        line(ranks, *words), capture_output=True, text=True, env=environment(**more), timeout=100
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done


def run(folder: Path, name: str, dtype: str, communicator: object = None, **more: object) -> Run:
    """Run a case in a directory of its own, on the ranks that come."""
    return test_ranks.carry(name, communicator, dtype=dtype, directory=folder / f"{name}-{dtype}", **more)


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_write_what_one_process_writes(tmp_path, ranks):
    """Of `euler` and `kernel`, in both precisions, over all samples and over batches."""
    (tmp_path / "ranks").mkdir()
    start(ranks, __file__, "cases", tmp_path / "ranks")
    for name, dtype in CASES:
        alone, place = run(tmp_path / "alone", name, dtype), tmp_path / "ranks" / f"{name}-{dtype}"
        assert_equal_bits(load(place), alone)
        assert store.read_json(place / "metadata.json")["ranks"] == ranks
        assert len(list(place.glob("checkpoint.*.rows*.npz"))) == ranks


def slow(cloud, flow):
    clock.sleep(0.05 if os.environ.get("SLOW") else 0.0)
    return 0.0


RESTART: dict = dict(checkpoint_seconds=0, observables=["loss", "kl_account"], records=[Record(slow)])


@needs_mpi
def test_two_ranks_that_were_killed_go_on_as_three(tmp_path):
    place = tmp_path / "kernel-float64"
    with subprocess.Popen(line(2, __file__, "restart", tmp_path), env=environment(SLOW="1")) as process:
        deadline = clock.monotonic() + 60
        while not list(place.glob("checkpoint.*.rows*")) and process.poll() is None and clock.monotonic() < deadline:
            clock.sleep(0.01)
        assert store.read_json(place / "metadata.json")["status"] == "running"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    wait_for_ranks_to_end(tmp_path)
    assert store.read_json(place / "metadata.json")["status"] == "running"
    start(3, __file__, "restart", tmp_path)
    assert_equal_bits(load(place), run(tmp_path / "alone", "kernel", "float64", **RESTART))


@needs_mpi
def test_a_signal_to_one_rank_stops_all_with_their_state(tmp_path):
    place = tmp_path / "kernel-float64"
    with subprocess.Popen(
        line(2, __file__, "restart", tmp_path), env=environment(SLOW="1"), stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = clock.monotonic() + 60
        while not list(place.glob("checkpoint.*.rows*")) and process.poll() is None and clock.monotonic() < deadline:
            clock.sleep(0.01)
        os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    metadata = store.read_json(place / "metadata.json")
    assert metadata["status"] == "interrupted" and "stopped by signal 15" in metadata["message"]
    assert process.returncode == 130 and "stopped by signal 15" in said
    assert load(place).clouds[0].m == 13_000


@needs_mpi
def test_kills_of_ranks_and_of_mpirun():
    """The campaign of docs/robustness.md, one of its kills."""
    counts = looks.Counts()
    campaign.kills(runs.Case("euler", m=8_200, length=0.2, n=36), 1, np.random.default_rng(3), counts)
    assert counts.wrong == [] and sum(counts.by_case.values()) == 1
    assert counts.seen["finished with equal bits after nothing, under mpirun"] == 1


@needs_mpi
def test_a_rank_on_its_own_ends_when_its_mpirun_is_killed(tmp_path, monkeypatch):
    """It went on to the end of the run, and held its directory: it had nobody to hear of it from."""
    monkeypatch.setattr(campaign, "SECONDS", 20)
    long = runs.Case("euler", m=2_000, length=1000.0, n=36)
    start = campaign.Start(long, tmp_path, tmp_path / "run", ranks=1, threads=1)
    assert start.stopped(tmp_path / "run", (0, 0), delay=0.0, aimed=False)
    start.strike("mpirun", signal.SIGKILL, np.random.default_rng(0))
    assert start.end() == (-signal.SIGKILL, [])
    assert looks.status(tmp_path / "run") == "running"


def wait_for_ranks_to_end(out: Path) -> None:
    """Wait until no process works in a directory: ranks end a moment after their mpirun was killed."""
    deadline = clock.monotonic() + 30
    while clock.monotonic() < deadline:
        paths = [Path(f"/proc/{pid}/cmdline") for pid in os.listdir("/proc") if pid.isdigit()]
        texts = []
        for path in paths:
            try:
                texts.append(path.read_bytes().decode(errors="replace"))
            except OSError:
                continue
        if not any(str(out) in text for text in texts):
            return
        clock.sleep(0.1)
    raise AssertionError("ranks outlived their mpirun")


def configured(folder: Path) -> Path:
    path = folder / "config.toml"
    path.write_text(CONFIG)
    return path


@needs_mpi
def test_the_command_line_spreads_a_run(tmp_path):
    words = ("-m", "meanfield", "run", configured(tmp_path), "--out")
    said = [start(ranks, *words, tmp_path / f"{ranks}").stdout for ranks in (0, 2)]
    assert experiment.compare(tmp_path / "0", tmp_path / "2") == ([], True)
    assert said[1].count("Run: finished") == 1 and (tmp_path / "2" / "report.html").exists()
    assert start(2, *words, tmp_path / "2").stdout.count("is finished; nothing was changed") == 1


@needs_mpi
def test_an_error_of_all_ranks_is_one_message(tmp_path):
    path = configured(tmp_path)
    words = ("-m", "meanfield", "run", path, "--set", "cloud.m=4096", "--out", tmp_path / "out", "--quiet")
    done = start(2, *words, expect=2)
    assert done.stderr.count("which 2 ranks cannot share") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@needs_mpi
def test_an_error_of_the_configuration_is_one_message(tmp_path):
    done = start(3, "-m", "meanfield", "run", configured(tmp_path), "--set", "flow.lamm=1", expect=2)
    assert done.stderr.count("unknown key 'flow.lamm'") == 1 and "Traceback" not in done.stderr


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
    done = start(2, script, expect=1)
    assert "rank 1 of 2: only here; all ranks are stopped" in done.stderr


FAILS_IN_THE_LOOP = """
import sys
import meanfield as mf
from meanfield import mpi
from tests import small
ranks = mpi.world()
mpi.GRACE = 0.5
def eta(step):
    if ranks.rank == 1 and step == 2:
        raise {error}("only here")
    return 0.01
with mpi.guarded(ranks):
    risk = mf.Risk(*small.data(), mf.Unit("tanh"))
    cloud = mf.gaussian_cloud(9000, risk.unit, risk.d)
    flow = mf.Flow(risk, eta=eta, scheme="euler")
    mf.simulate(flow, cloud, 0.1, replicates=1, bounds=0, quiet=True, directory=sys.argv[1], communicator=ranks)
"""


@needs_mpi
@pytest.mark.parametrize("error", ["LookupError", "ZeroDivisionError"])  # the second is a divergence, code 3
def test_an_error_of_one_rank_between_sums_ends_all_with_its_message(tmp_path, error):
    script = tmp_path / "fails.py"
    script.write_text(FAILS_IN_THE_LOOP.format(error=error))
    done = start(2, script, tmp_path / "run", expect=1 if error == "LookupError" else 3)
    assert "only here; all ranks are stopped" in done.stderr


@needs_mpi
def test_a_sweep_hands_its_points_to_the_other_ranks(tmp_path):
    path = configured(tmp_path)
    path.write_text(path.read_text() + '[sweep]\n"flow.lam" = [0.01, 0.1, 1.0]\n')
    words = ("-m", "meanfield", "sweep", path, "--set", "cloud.m=500", "--threads", 1, "--out")
    done = start(3, *words, tmp_path / "ranks")
    assert "3 points (3 flow.lam): 3 finished" in done.stdout
    start(0, *words, tmp_path / "alone")
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


def test_one_process_of_a_launcher_needs_no_mpi4py(monkeypatch):
    for name in mpi.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PMIX_RANK", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert mpi.launched() and mpi.world.__wrapped__() is None


def test_commands_that_all_ranks_would_repeat_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert cli.main(["sim", "--list"]) == 2 and "`meanfield sim` is not spread over ranks" in capsys.readouterr().err
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    assert cli.main(["sim", "--list"]) == 0


@needs_mpi
def test_an_mpi_of_another_launcher_is_refused(tmp_path):
    """Ranks that a foreign mpirun started see themselves alone, and would all write to one directory."""
    words = ("-m", "meanfield", "run", configured(tmp_path), "--out", tmp_path / "out")
    done = start(0, *words, expect=2, PMI_SIZE="2")
    assert "mpirun started 2 processes and mpi4py sees 1" in done.stderr and not (tmp_path / "out").exists()


def main(task: str, folder: str) -> None:
    """Do on every rank what a test above has started mpirun for."""
    communicator = mpi.world()
    assert communicator is not None
    parallel.set_threads(1)
    Path(folder, f"{communicator.rank}.pid").write_text(str(os.getpid()))
    with mpi.guarded(communicator):
        assert (communicator.place, communicator.neighbours) == (communicator.rank, communicator.size)
        for name, dtype in CASES if task == "cases" else [("kernel", "float64")]:
            run(Path(folder), name, dtype, communicator, **({} if task == "cases" else RESTART))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MeanfieldError as failed:
        print(failed, file=sys.stderr)  # noqa: T201
        sys.exit(failed.exit_code)
