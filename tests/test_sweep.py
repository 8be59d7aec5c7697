"""A sweep ends with one Dataset, whatever stopped it in between; bad points are refused before anything runs."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time as clock
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray

from meanfield import cli, config, ensemble, experiment, grid, locks, store, workers
from meanfield.cloud import gaussian_cloud
from meanfield.datasets import sphere
from meanfield.errors import InputError, Interrupted
from meanfield.flow import Flow
from meanfield.risk import Risk
from meanfield.simulate import simulate
from meanfield.sweep import summary, sweep
from meanfield.units import Unit

TEXT = """
[data]
source = "sphere"
n = 8
d = 2
[network]
activation = "tanh"
[cloud]
replicates = 2
[flow]
lam = 0.05
time = 0.6
eta = 0.02
[record]
observables = ["loss", "prediction", "coupled_distance", "w2_upper"]
bounds_every = 2
[output]
checkpoint_seconds = 0.05
[sweep]
network.alpha = ["1", "sqrt(m)"]
cloud.m = [32, 64]
cloud.seed = [0, 1, 2]
"""
COMMAND = [sys.executable, "-m", "meanfield", "sweep", "grid.toml", "--out", "out", "--jobs", "2"]


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> xarray.Dataset:
    """All points, one after the other, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "grid.toml").write_text(TEXT)
    return sweep(folder / "grid.toml", folder / "out")


def ended(directory: Path) -> int:
    return sum(workers.state(path)[0] in workers.ENDED for path in (directory / "points").glob("*"))


def small(**changes) -> config.RunConfig:
    """Two points of one step each, with other keys in the table [sweep]."""
    return config.parse(
        {
            "data": {"source": "sphere", "n": 6, "d": 2},
            "cloud": {"m": 32, "replicates": 1},
            "flow": {"steps": 1, "eta": 0.1},
            "record": {"observables": ["loss"], "bounds_every": []},
            "sweep": {"cloud.seed": [0, 1]},
        }
        | changes
    )


# --- what comes out


def test_a_point_is_the_run_that_anybody_would_make(whole):
    data = sphere(n=8, d=2)
    flow = Flow(Risk(data[0], data[1], Unit("tanh"), 8.0), 0.05, 0.02)
    run = simulate(flow, gaussian_cloud(64, Unit("tanh"), 2, 1), 0.6, replicates=2, observables=["loss"], bounds=2)
    point = whole.sel({"network.alpha": "sqrt(m)", "cloud.m": 64, "cloud.seed": 1})
    np.testing.assert_array_equal(point.loss, run.data.loss)
    assert point.alpha == 8.0 and point.steps == 30 and point.status == "finished"
    assert whole.loss.dims == ("network.alpha", "cloud.m", "cloud.seed", "replicate", "time")
    assert whole.attrs["coupling"] == "" and summary(whole) == (
        "12 points (2 network.alpha, 2 cloud.m, 3 cloud.seed): 12 finished", 0
    )  # fmt: skip


def test_points_of_a_seed_share_start_and_noise(tmp_path):
    """Without a loss to speak of, the cloud of 32 is the first half of the cloud of 64 at all times."""
    swept = small(sweep={"cloud.m": [32, 64]}, network={"alpha": 1e-12}, flow={"steps": 5, "eta": 0.1})
    data = sweep(swept, tmp_path)
    clouds = [store.read_checkpoint(tmp_path / str(name))[0][0] for name in data.directory.values]
    np.testing.assert_allclose(clouds[1].z[:32], clouds[0].z, rtol=1e-12)
    assert clouds[0].step == 5 and not np.allclose(clouds[0].z, clouds[0].origin())


def test_random_features_are_a_point_like_any_other(tmp_path):
    """flow.train = "u": theta stays where it was drawn, its kernel with it, and the loss falls all the same."""
    record = {"observables": ["loss", "kernel_drift", "travelled"], "bounds_every": [0.0, 1.0]}
    flow, swept = {"time": 1.0, "lam": 0.05}, {"flow.train": ["both", "u"], "flow.scheme": ["kernel", "exponential"]}
    data = sweep(small(flow=flow, record=record, sweep=swept, cloud={"m": 64}, network={"alpha": 5.0}), tmp_path)
    end, loss = ensemble.last(data), data.loss.mean("replicate").values
    assert (end.kernel_drift.sel({"flow.train": "u"}) < 1e-7).all()
    assert (end.kernel_drift.sel({"flow.train": "both"}) > 1e-3).all()
    assert np.nanmin(loss[1], axis=-1).max() < 0.9 * loss[1, 0, 0] and (end.status == "finished").all()
    (cloud, *_), _, _ = store.read_checkpoint(tmp_path / str(data.directory.values[1, 0]))
    start = cloud.origin()
    np.testing.assert_array_equal(cloud.z[:, :-1], start[:, :-1])
    assert not np.allclose(cloud.z[:, -1], start[:, -1])


def test_what_breaks_the_coupling_is_said():
    assert grid.coupling(small()) == []
    auto = small(flow={"time": 1.0}, sweep={"cloud.m": [8, 16], "cloud.seed": [0, 1]})
    assert len(grid.coupling(auto)) == 1 and "auto" in grid.coupling(auto)[0]
    assert grid.coupling(small(flow={"time": 1.0})) == []  # seeds alone: nothing is there to be coupled
    others = small(sweep={"data.d": [2, 3], "cloud.dtype": ["float64", "float32"], "flow.eta": [0.1, 0.2]})
    assert [sentence.split()[0] for sentence in grid.coupling(others)] == ["data.d", "cloud.dtype:", "flow.eta"]


def test_a_dataset_without_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = sweep(config.to_dict(small()))
    assert data.loss.sizes["cloud.seed"] == 2 and not list(tmp_path.iterdir())


# --- stopped, killed, edited


def test_terminated_killed_and_finished_it_is_the_same(text, whole):
    """Once SIGTERM, once kill -9 of the main process alone; its workers end by themselves."""
    out = text.parent / "out"
    for number, wanted in ((signal.SIGTERM, 2), (signal.SIGKILL, 4)):
        process = subprocess.Popen(COMMAND, cwd=text.parent, stderr=subprocess.PIPE, text=True, env=environment())
        deadline = clock.monotonic() + 60
        while ended(out) < wanted and process.poll() is None and clock.monotonic() < deadline:
            clock.sleep(0.01)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=60)
        assert wanted <= ended(out) < 12, errors
        if number == signal.SIGTERM:
            assert process.returncode == 130 and "of 12 points have ended and are kept" in errors, errors
            assert not (out / "sweep.nc").exists() and not (out / ".stopping").exists()
            states = {point["status"] for point in json.loads((out / "sweep.json").read_text())["points"]}
            assert states <= {"finished", "interrupted", "waiting"} and "finished" in states
    said: list[str] = []
    data = sweep(text, out, say=said.append)
    xarray.testing.assert_identical(data, whole)
    xarray.testing.assert_identical(store.read_dataset(out / "sweep.nc").astype(data.dtypes), whole)
    assert said[0].startswith("12 points") and int(said[0].split()[-3]) <= 8
    assert not any(process_works_in(out))


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def process_works_in(directory: Path) -> list[bool]:
    """Whether a lock is held on a point: what a worker holds while it runs one."""
    held = []
    for path in (directory / "points").glob("*"):
        try:
            with locks.claimed(path, wait=False):
                held.append(False)
        except InputError:
            held.append(True)
    return held


def test_a_signal_between_points_and_within_one(text, whole, tmp_path):
    out, small_text = tmp_path / "out", TEXT.replace("[0, 1, 2]", "[2]")
    text.write_text(small_text)

    def stop_after(count: int):
        return lambda line: os.kill(os.getpid(), signal.SIGINT) if line.startswith(f"[{count}/") else None

    with pytest.raises(Interrupted, match="2 of 4 points have ended"):
        sweep(text, out, say=stop_after(2))
    assert ended(out) == 2
    told: list[str] = []
    with pytest.raises(Interrupted, match="of 4 points have ended"), interrupted_when(out):
        sweep(text, out, say=told.append)
    assert any("interrupted, stopped by signal" in line for line in told)
    data = sweep(text, out)
    for name in ("loss", "prediction", "w2_upper", "w2_upper_se"):
        xarray.testing.assert_identical(data[name], whole[name].sel({"cloud.seed": [2]}))
    text.write_text(small_text.replace("[2]", "[2, 3]"))
    with pytest.raises(Interrupted, match="5 of 8 points"):
        sweep(text, out, say=stop_after(1))
    assert not (out / "sweep.nc").exists()  # the old one is not of these points


class interrupted_when:  # noqa: N801
    """A thread that sends SIGTERM to this process once a third point has a checkpoint."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> None:
        from threading import Thread

        self.thread = Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        deadline = clock.monotonic() + 30
        while len(list(self.out.glob("points/*/checkpoint.npz"))) < 3 and clock.monotonic() < deadline:
            clock.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *exception: object) -> None:
        self.thread.join()


def test_an_edited_sweep_runs_what_is_new_alone(tmp_path):
    said: list[str] = []
    first = sweep(small(), tmp_path, say=said.append)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("points/*/*")}
    more = small(sweep={"cloud.seed": [1, 2, 0]}, output={"title": "more", "checkpoint_seconds": 1.0})
    data = sweep(more, tmp_path, say=said.append)
    assert [line for line in said if "to run" in line] == [
        "2 points (2 cloud.seed), 2 to run", "3 points (3 cloud.seed), 1 to run"
    ]  # fmt: skip
    assert before.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("points/*/*")}.items()
    np.testing.assert_array_equal(data.loss.sel({"cloud.seed": [0, 1]}), first.loss)
    sweep(small(flow={"steps": 2, "eta": 0.1}), tmp_path, say=said.append)
    assert any(line.startswith("3 points of other configurations stay") for line in said)


def test_points_know_their_data(tmp_path):
    def name(value: float) -> str:
        np.savez(tmp_path / "data.npz", x=np.eye(3), y=np.array([1.0, value, 1.0]))
        return grid.plan(small(data={"source": "npz", "path": str(tmp_path / "data.npz")}))[0].name

    assert name(0.5) == name(0.5) != name(0.25)


# --- points that end badly


def test_bad_points_are_refused_before_anything_runs(tmp_path):
    for bad, words in (
        (small(sweep={"data.source": ["sphere", "sphera"]}), "the point data.source = sphera: "),
        (small(sweep={"flow.scheme": ["kernel", "euler"]}, flow={"time": 1.0, "eta": 1.0}, network={"alpha": 9.0}),
         "the point flow.scheme = euler: .*limit"),
        (small(sweep={"cloud.m": [32, 2**32]}), r"the point cloud.m = \d+: .*GB"),
        (small(record={"observables": ["lost"]}), "no observable is called 'lost'"),
        (small(sweep={"cloud.seed": [1, 1]}), "twice"),
        (small(sweep={}), "nothing to sweep"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            sweep(bad, tmp_path / "out")
    with pytest.raises(InputError, match="jobs must be"):
        sweep(small(), tmp_path / "out", jobs=0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"thesis\.tex"):
        sweep(small(), tmp_path / "other")


def diverging() -> config.RunConfig:
    flow = {"steps": 20, "eta": 0.5, "scheme": "euler", "allow_unstable": True, "lam": 0.0}
    return small(flow=flow, network={"alpha": 10.0}, sweep={"network.activation": ["tanh", "linear", "sin"]})


def test_a_diverged_point_is_recorded_and_the_others_go_on(tmp_path):
    with pytest.warns(UserWarning, match=r"1 of 3 points diverged; the first is network\.activation = linear"):
        data = sweep(diverging(), tmp_path)
    assert data.status.values.tolist() == ["finished", "diverged", "finished"]
    assert "not finite" in data.message.values[1] or "stopped after" in data.message.values[1]
    assert data.records.values[1] < 21 == data.records.values[0] and np.isnan(data.loss[1, 0, -1])
    assert np.isfinite(ensemble.last(data).loss).all() and summary(data)[1] == 3
    said: list[str] = []
    with pytest.warns(UserWarning, match="diverged"):
        again = sweep(diverging(), tmp_path, say=said.append)
    assert said[0].endswith("0 to run")
    xarray.testing.assert_identical(again, data)


class Pickling(Executor):
    """Runs at once what survives pickling, as a pool on other machines would."""

    def submit(self, function, /, *arguments, **options):
        future: Future = Future()
        function, arguments, options = pickle.loads(pickle.dumps((function, arguments, options)))
        try:
            future.set_result(pickle.loads(pickle.dumps(function(*arguments, **options))))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future


def test_any_executor_gives_the_same(tmp_path):
    swept = small(sweep={"cloud.m": [16, 32], "network.alpha": ["1", "sqrt(m)"]})
    serial = sweep(swept, tmp_path / "serial")
    xarray.testing.assert_identical(sweep(swept, tmp_path / "out", executor=Pickling()), serial)


def test_records_are_read_once_where_the_point_ran(tmp_path, monkeypatch):
    """What workers have read is collected; what had ended before is read then, and gives the same Dataset."""
    read, seen = store.read_dataset, []
    monkeypatch.setattr(store, "read_dataset", lambda path: seen.append(path) or read(path))
    data = sweep(small(), tmp_path, executor=Pickling())
    assert len(seen) == len(set(seen)) == 2
    xarray.testing.assert_identical(sweep(small(), tmp_path), data)
    assert len(seen) == 4


@pytest.mark.parametrize("executor", [None, Pickling()], ids=["serial", "executor"])
def test_what_fails_keeps_nothing_else_from_running(tmp_path, monkeypatch, executor):
    carry, swept = experiment.carry, small(sweep={"cloud.seed": [0, 1, 2]})

    def failing(config, directory, **options):
        if config.cloud.seed == 1:
            raise MemoryError("no room")
        return carry(config, directory, **options)

    monkeypatch.setattr(experiment, "carry", failing)
    with pytest.warns(UserWarning, match="1 of 3 points failed"):
        data = sweep(swept, tmp_path, executor=executor)
    assert data.status.values.tolist() == ["finished", "failed", "finished"] and summary(data)[1] == 2
    assert np.isnan(data.loss[1]).all() and "no room" in str(data.message.values[1])
    monkeypatch.setattr(experiment, "carry", carry)
    assert (sweep(swept, tmp_path, executor=executor).status == "finished").all()


def test_a_fault_in_the_code_is_raised_once_the_others_are_done(tmp_path, monkeypatch):
    def broken(config, directory, **options):
        if config.cloud.seed == 0:
            raise KeyError("a fault")
        return carry(config, directory, **options)

    carry = experiment.carry
    monkeypatch.setattr(experiment, "carry", broken)
    with pytest.raises(KeyError, match="a fault"):
        sweep(small(), tmp_path, executor=Pickling())
    assert ended(tmp_path) == 1


def test_two_sweeps_do_not_work_in_one_directory(tmp_path):
    with locks.claimed(tmp_path), ThreadPoolExecutor(1) as other:
        with pytest.raises(InputError, match="another process works on"):
            other.submit(sweep, small(), tmp_path).result()


# --- the command


def test_the_command_says_what_it_did(text, tmp_path, capsys):
    text.write_text(config.dumps(small()))
    assert cli.main(["sweep", str(text), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "2 points (2 cloud.seed): 2 finished" in shown.out and "sweep.nc" in shown.out
    assert "[1/2, " in shown.err and "] cloud.seed = 0: finished" in shown.err
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
    assert "summary of 2 runs" in capsys.readouterr().out
    assert cli.main(["sweep", str(text), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(["sweep", str(text), "--set", "cloud.seed=4"]) == 2
    assert "type --set sweep.cloud.seed=[...]" in capsys.readouterr().err
    more = ["--set", "sweep.cloud.seed=[0, 5]", "--set", "record.every=1"]
    assert cli.main(["sweep", str(text), "--out", str(tmp_path / "out"), *more]) == 0
    assert "2 points (2 cloud.seed), 1 to run" in capsys.readouterr().err


def test_the_command_counts_what_diverged(tmp_path, capsys):
    (tmp_path / "grid.toml").write_text(config.dumps(diverging()))
    assert cli.main(["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "out")]) == 3
    assert "warning: 1 of 3 points diverged" in capsys.readouterr().err
