"""A run that was stopped, killed or damaged at any moment ends with the bits of one that never was."""

import json
import multiprocessing
import os
import signal
import time as clock
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import small

from meanfield import bounds, store
from meanfield.errors import InputError, Interrupted
from meanfield.flow import Flow
from meanfield.objectives import Potential
from meanfield.planning import Record
from meanfield.results import Run
from meanfield.simulate import load, simulate

CHEAP = ["loss", "loss_unbiased", "prediction", "residual_defect", "coupling_defect", "kl_account", "noise_variance"]
# name -> options of the flow, of the run; every run has some twenty steps
CASES = {
    "kernel": (dict(scheme="kernel"), dict(time=1.0, observables=[*CHEAP, "w2_upper", "ntk_eigenvalue_min"])),
    "kernel2": (dict(scheme="kernel2"), dict(time=1.0)),
    "exponential": (dict(scheme="exponential"), dict(time=1.0)),
    "euler": (dict(scheme="euler", eta=0.04), dict(steps=20)),
    "euler_literal": (dict(scheme="euler_literal", eta=0.02), dict(time=0.4)),
    "minibatch": (dict(batch=4, eta=0.02), dict(time=0.39, every=3)),
    "float32": (dict(scheme="kernel"), dict(time=1.0, dtype="float32")),
    "float32 minibatch": (dict(batch=5, scheme="exponential", eta=0.02), dict(time=0.4, dtype="float32")),
    "logistic, a layer": (dict(loss="logistic", train="u", alpha=3.0), dict(time=4.0, m=300)),
    "network": (dict(scheme="kernel", centred=False, unit="relu"), dict(time=1.0)),
}


def carry(name: str, directory: Path | None, wait: tuple[int, float] = (1000, 0.0)) -> Run:
    """Run a case; its records wait a little before a step, and long enough to be stopped from that step on."""
    chosen, options = CASES[name]
    options = dict(observables=CHEAP) | options

    def slow(cloud, flow):
        if wait[1]:
            clock.sleep(wait[1] if cloud.step == wait[0] else 0.005)
        return cloud.z[:2].astype(np.float64)

    flow = small.flow(**chosen)
    cloud = small.cloud(flow, options.pop("m", 256), dtype=options.pop("dtype", "float64"))
    with mock.patch.object(bounds, "PROBES", 2000), np.errstate(all="raise", under="ignore"):
        return simulate(
            flow, cloud, replicates=2, records=[Record(slow)], bounds=[0.1, 0.3], directory=directory,
            checkpoint_seconds=0, snapshots=[0.1] if directory else [], **options,
        )  # fmt: skip


def child(name: str, directory: Path, wait: tuple[int, float]) -> None:
    try:
        carry(name, directory, wait)
    except Interrupted as error:
        os._exit(error.exit_code)


@pytest.fixture(scope="module")
def processes():
    """Starts processes from one that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["meanfield.simulate", "xarray", "h5netcdf", "scipy.special", "pytest"])
    return context


def reached(directory: Path) -> int:
    """The step of the last checkpoint, or -1."""
    try:
        with np.load(directory / "checkpoint.npz") as arrays:
            return int(arrays["cloud0.step"])
    except OSError:
        return -1


def status(directory: Path) -> str:
    return json.loads((directory / "metadata.json").read_text())["status"]


def stop_at(processes, name: str, directory: Path, step: int, number: int) -> tuple[str, int]:
    """Start a case, send it a signal once a checkpoint is at `step`; return its status just then and exit code."""
    wait = (step + 3, 60.0 if number == signal.SIGKILL else 1.0)
    process = processes.Process(target=child, args=(name, directory, wait))
    process.start()
    deadline = clock.monotonic() + 30
    while reached(directory) < step and process.is_alive() and clock.monotonic() < deadline:
        clock.sleep(0.002)
    found = status(directory)
    os.kill(process.pid, number)
    process.join(30)
    return found, process.exitcode


def assert_equal_bits(a: Run, b: Run) -> None:
    assert set(a.data.variables) == set(b.data.variables)
    for name in a.data.variables:
        x, y = a.data[name].values, b.data[name].values
        assert x.dtype.kind == y.dtype.kind and np.array_equal(x, y, equal_nan=x.dtype.kind == "f"), name
    left, right = store.pack_clouds(a.clouds), store.pack_clouds(b.clouds)
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name]), name


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("name", CASES)
def test_killed_twice_and_finished(name, processes, tmp_path) -> None:
    whole = carry(name, None)
    assert 14 <= whole.data.attrs["steps"] <= 30
    for step in (2, 7):
        assert stop_at(processes, name, tmp_path, step, signal.SIGKILL) == ("running", -signal.SIGKILL)
        assert 0 < step <= reached(tmp_path) < whole.data.attrs["steps"]
    result = carry(name, tmp_path)
    assert result.status == status(tmp_path) == "finished"
    for run in (result, load(tmp_path)):
        assert_equal_bits(run, whole)
    assert len(list(tmp_path.glob("cloud_*.npz"))) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_go_on(number, processes, tmp_path) -> None:
    whole = carry("kernel2", None)
    assert stop_at(processes, "kernel2", tmp_path, 5, number) == ("running", 130)
    stopped = load(tmp_path)
    assert stopped.status == stopped.data.attrs["status"] == "interrupted"
    assert f"stopped by signal {int(number)}" in stopped.message and "run again to go on" in stopped.message
    assert stopped.clouds[0].step >= 5 and stopped.data.time[-1] == stopped.clouds[0].time
    assert np.array_equal(stopped.data.loss, whole.data.loss[:, : stopped.data.sizes["time"]])
    # While it goes on it says so, and records of the interruption are not mixed with later clouds.
    assert stop_at(processes, "kernel2", tmp_path, stopped.clouds[0].step + 2, signal.SIGKILL)[0] == "running"
    assert load(tmp_path).clouds == [] and load(tmp_path).data.equals(stopped.data)
    assert_equal_bits(carry("kernel2", tmp_path), whole)


def test_bounds_that_remember_go_on_exactly(tmp_path) -> None:
    """The probes and their features are made once a flow; another flow makes them again."""
    stopping = [False]

    def stop(cloud, flow):
        if stopping[0] and cloud.time > 0.1 and cloud.replicate == 1:
            signal.raise_signal(signal.SIGINT)
        return cloud.step

    def go(directory):
        flow = small.flow()
        return simulate(flow, small.cloud(flow, 64), 0.2, replicates=2, observables=["kl_lower", "w2_lower"],
                        bounds=[0.1, 0.2], records=[Record(stop)], directory=directory,
                        on_failure="return")  # fmt: skip

    with mock.patch.object(bounds, "PROBES", 2000):
        whole = go(None)
        stopping[0] = True
        assert go(tmp_path).status == "interrupted"
        stopping[0] = False
        assert_equal_bits(go(tmp_path), whole)
    assert whole.data.kl_lower[-1] > 0


def test_a_second_interrupt_does_not_wait(tmp_path) -> None:
    whole = carry("exponential", None)

    def impatient(cloud, flow):
        for _ in range(2 * (cloud.step == 4 and cloud.replicate == 1)):
            signal.raise_signal(signal.SIGINT)
        return 0

    flow = small.flow(**CASES["exponential"][0])
    options = dict(
        time=1.0, replicates=2, observables=CHEAP, bounds=[0.1, 0.3], directory=tmp_path, checkpoint_seconds=0
    )
    with pytest.raises(KeyboardInterrupt):
        simulate(flow, small.cloud(flow, 256), records=[Record(impatient, name="slow", every=1)], **options)
    assert status(tmp_path) == "running" and reached(tmp_path) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    options["records"] = [Record(lambda cloud, flow: 0, name="slow")]
    again = simulate(flow, small.cloud(flow, 256), **options)
    assert np.array_equal(again.data.loss, whole.data.loss)


def test_on_failure_returns_an_interrupted_run(tmp_path) -> None:
    def stop(cloud, flow):
        if cloud.step == 3 and cloud.replicate == 1:
            signal.raise_signal(signal.SIGTERM)
        return cloud.step

    flow = small.flow(**CASES["euler"][0])
    run = simulate(flow, small.cloud(flow), steps=6, replicates=2, observables=CHEAP, records=[Record(stop)],
                   on_failure="return")  # fmt: skip
    assert run.status == "interrupted" and run.data.attrs["steps"] == 3 and run.clouds[0].step == 3


class Killed(BaseException):
    """What no handler of ours catches, as nobody catches SIGKILL."""


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_single_write(after, tmp_path) -> None:
    """Before or after each renaming of a file, from the first to the last of a run."""
    replace, count = os.replace, 0
    flow = small.flow("exponential", 0.02)
    options = dict(
        steps=3, replicates=2, observables=["loss", "kl_account"], bounds=1, checkpoint_seconds=0, snapshots=[0.05]
    )
    options["files"] = {"config.toml": "# mine\n"}
    whole = simulate(flow, small.cloud(flow, 16), directory=tmp_path / "whole", **options)
    for moment in range(100):
        directory, count = tmp_path / str(moment), 0

        def deadly(source, target, moment=moment):
            nonlocal count
            count += 1
            if count == moment and not after:
                raise Killed
            replace(source, target)
            if count == moment:
                raise Killed

        with mock.patch.object(store.os, "replace", deadly):
            try:
                simulate(flow, small.cloud(flow, 16), directory=directory, **options)
            except Killed:
                pass
        assert_equal_bits(simulate(flow, small.cloud(flow, 16), directory=directory, **options), whole)
        if moment and count < moment:
            break
    assert 10 < moment < 30
    assert {path.name for path in directory.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


# --- damage


@pytest.fixture
def interrupted(tmp_path) -> Path:
    """A directory with two checkpoints, of a run that stopped half-way."""

    def stop(cloud, flow):
        if cloud.step == 6 and cloud.replicate == 1 and not again:
            signal.raise_signal(signal.SIGINT)
        return 0

    again = False
    with pytest.raises(Interrupted), mock.patch.object(clock, "sleep", lambda seconds: None):
        flow = small.flow(**CASES["euler"][0])
        simulate(flow, small.cloud(flow, 256), steps=20, replicates=2, observables=CHEAP, directory=tmp_path / "run",
                 records=[Record(stop, name="slow")], checkpoint_seconds=0, bounds=3)  # fmt: skip
    return tmp_path / "run"


def go_on(directory: Path | None, **changes) -> Run:
    flow = small.flow(**CASES["euler"][0] | changes.pop("flow", {}))
    options = dict(steps=20, replicates=2, observables=CHEAP, records=[Record(lambda c, f: 0, name="slow")], bounds=3)
    cloud = small.cloud(flow, changes.pop("m", 256), **changes.pop("cloud", {}))
    return simulate(flow, cloud, directory=directory, **options | changes)


@pytest.mark.parametrize("hurt", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: raw[:-40] + bytes(40),
                                  lambda raw: raw[:700] + b"\0\1\2\3" + raw[704:]])  # fmt: skip
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(hurt, interrupted) -> None:
    whole, path = go_on(None), interrupted / "checkpoint.npz"
    path.write_bytes(hurt(path.read_bytes()))
    with pytest.warns(UserWarning, match="checkpoint.npz is damaged .*; going on from checkpoint.previous.npz"):
        result = go_on(interrupted)
    assert_equal_bits(result, whole)


def test_a_missing_checkpoint_is_replaced_by_the_one_before(interrupted) -> None:
    (interrupted / "checkpoint.npz").unlink()
    assert_equal_bits(go_on(interrupted), go_on(None))


def test_two_damaged_checkpoints_are_an_error(interrupted) -> None:
    for name in ("checkpoint.npz", "checkpoint.previous.npz"):
        (interrupted / name).write_bytes(b"PK")
    before = contents(interrupted)
    with pytest.raises(InputError, match="damaged .* and there is no other; remove the directory to start again"):
        go_on(interrupted)
    assert contents(interrupted) == before


def test_any_flipped_byte_is_seen_or_harmless(interrupted) -> None:
    path = interrupted / "checkpoint.npz"
    raw, right = path.read_bytes(), store.read_npz(path)
    rng = np.random.default_rng(0)
    places = {*rng.integers(0, len(raw), 150), *rng.integers(0, 200, 50), *(len(raw) - rng.integers(1, 3000, 100))}
    seen = 0
    for place in map(int, places):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << int(rng.integers(8))]) + raw[place + 1 :])
        try:
            found = store.read_npz(path)
        except InputError:
            seen += 1
            continue
        assert all(np.array_equal(found[name], right[name]) for name in right if name in found)
    assert seen > len(places) / 2


# --- other runs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(flow=dict(alpha=6.0)), "alpha was 5.0 there and is 6.0 here"),
        (dict(flow=dict(seed=1)), "data was"),
        (dict(flow=dict(lam=0.06)), "lam was 0.05 there and is 0.06 here"),
        (dict(flow=dict(eta=0.05)), "eta was 0.04 there and is 0.05 here"),
        (dict(flow=dict(batch=3)), "objective was 'Risk' there and is 'Minibatch' here"),
        (dict(cloud=dict(seed=3)), "start was"),
        (dict(m=128), "start was"),
        (dict(cloud=dict(dtype="float32")), "start was"),
        (dict(cloud=dict(reference=False), flow=dict(centred=False)), "reference was True there"),
        (dict(steps=21), "end was 0.8 there and is 0.84 here"),
        (dict(replicates=3), "replicates was 2 there and is 3 here"),
        (dict(observables=["loss"]), "observables was"),
        (dict(records=[Record(lambda c, f: 0, name="slow", every=2)]), "records was"),
    ],
)
def test_the_directory_of_another_run_is_refused(changes, words, interrupted) -> None:
    before = contents(interrupted)
    with pytest.raises(InputError) as caught:
        go_on(interrupted, **changes)
    assert words in str(caught.value) and "nothing was overwritten, choose another directory" in str(caught.value)
    assert contents(interrupted) == before


def test_the_checkpoint_of_another_run_is_refused(interrupted, tmp_path) -> None:
    with pytest.raises(ZeroDivisionError):
        go_on(tmp_path / "other", flow=dict(alpha=6.0), records=[Record(lambda c, f: 1 // (8 - c.step), name="slow")])
    (interrupted / "checkpoint.npz").write_bytes((tmp_path / "other/checkpoint.npz").read_bytes())
    with pytest.raises(InputError, match="holds another run: alpha was 6.0 there and is 5.0 here"):
        go_on(interrupted)


def test_objectives_without_names_are_told_apart_by_what_they_say(tmp_path) -> None:
    def go(rate, directory):
        flow = Flow(Potential(lambda z: rate * (z**2).sum(1), lambda z: 2 * rate * z), eta=0.1)
        return simulate(
            flow, small.cloud(small.flow(), 32), 0.3, replicates=1, observables=["loss"], directory=directory
        )

    go(1.0, tmp_path / "run")
    assert go(1.0, tmp_path / "run").status == "finished"
    with pytest.raises(InputError, match="holds another run: drift was"):
        go(1.01, tmp_path / "run")


def test_a_directory_with_other_things_in_it_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "records.nc").write_text("of another program")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"is not empty and is no run directory \(it holds records.nc\)"):
        go_on(tmp_path)
    assert contents(tmp_path) == before
    with pytest.raises(InputError, match="thesis.tex is a file, wanted a directory"):
        go_on(tmp_path / "thesis.tex")


def test_a_finished_run_is_left_alone(tmp_path) -> None:
    first = go_on(tmp_path / "run")
    before = contents(tmp_path / "run")
    second = go_on(tmp_path / "run", checkpoint_seconds=0, quiet=True)
    assert contents(tmp_path / "run") == before and second.status == "finished"
    assert_equal_bits(first, second)
