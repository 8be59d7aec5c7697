"""Whatever happens to a run or to its files, nothing is lost beyond the last checkpoint and nothing wrong is kept."""

import errno
import json
import os
import shutil
import signal
import time as clock
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import small
from campaigns import faults, looks
from test_resume import assert_equal_bits

from meanfield import locks, netcdf, store
from meanfield.cloud import Cloud
from meanfield.errors import DivergedError, InputError
from meanfield.flow import Flow
from meanfield.planning import Record
from meanfield.results import Run
from meanfield.risk import Risk
from meanfield.simulate import load, simulate
from meanfield.units import ACTIVATIONS, Activation, Unit

OPTIONS = dict(steps=6, replicates=2, observables=["loss", "prediction", "kl_account"], bounds=0, checkpoint_seconds=0)


def run(directory: Path | None, **options) -> Run:
    flow = options.pop("flow", None) or small.flow("exponential", 0.02)
    return simulate(flow, small.cloud(flow, 32), directory=directory, **OPTIONS | options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Run]:
    place = tmp_path_factory.mktemp("faults") / "run"
    with np.errstate(all="raise", under="ignore"):
        return place, run(place)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


# --- the campaign, small


def test_kills_signals_damage_and_full_disks() -> None:
    """The campaign of docs/robustness.md, a few of each."""
    counts, rng = looks.Counts(), np.random.default_rng(1)
    with faults.quiet():
        faults.kills(faults.Case("kernel", m=128, length=0.4), 3, rng, counts, in_one=3)
        faults.damage(faults.Case("euler", "float32", m=64, length=0.2), 6, rng, counts)
        faults.disks(faults.Case("exponential", batch=5, m=64, length=0.2), 3, rng, counts)
    assert counts.wrong == []
    assert sum(counts.by_case.values()) == 3 and counts.seen["largest file: refused"] == 1
    assert (
        counts.seen["finished with equal bits after damage"] + counts.seen["refused, every checkpoint being damaged"]
        == 6
    )


def test_kills_under_mpirun_are_refused_where_there_is_none(monkeypatch, capsys) -> None:
    monkeypatch.setattr(faults.launch, "MISSING", True)
    with pytest.raises(SystemExit):
        faults.main(["--mpi-kills", "4"])
    assert 'mpirun is missing: pip install "meanfield-nn[mpi]"' in capsys.readouterr().err


def test_a_difference_would_be_seen(finished) -> None:
    """What the campaign compares with: it is not satisfied by everything."""
    other = run(None, flow=small.flow("exponential", 0.02, seed=1))
    wrong = looks.differences(finished[1], other)
    assert {"loss", "prediction", "cloud0.z"} <= set(wrong)
    assert looks.differences(finished[1], load(finished[0])) == []


# --- two at a time


def child_that_holds(directory: Path) -> int:
    """Start a process that takes a directory and keeps it."""
    reading, writing = os.pipe()
    number = os.fork()
    if not number:
        with locks.claimed(directory):
            os.write(writing, b"!")
            clock.sleep(60)
        os._exit(0)
    assert os.read(reading, 1) == b"!"
    os.close(reading), os.close(writing)
    return number


def test_two_processes_do_not_run_in_one_directory(tmp_path) -> None:
    holder = child_that_holds(tmp_path / "run")
    try:
        with pytest.raises(InputError, match="another process works on .*: wait for it, or choose another --out"):
            run(tmp_path / "run")
        assert list((tmp_path / "run").iterdir()) == []
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert run(tmp_path / "run").status == "finished"  # the lock went with its process


def test_a_finished_run_is_read_while_another_process_holds_it(finished) -> None:
    holder = child_that_holds(finished[0])
    try:
        assert_equal_bits(run(finished[0]), finished[1])
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


def test_a_thread_may_claim_again_and_leaves_nothing(tmp_path) -> None:
    with locks.claimed(tmp_path / "a" / "b"), locks.claimed(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with locks.claimed(tmp_path / "a"):
        (tmp_path / "a" / "kept").touch()
    assert (tmp_path / "a" / "kept").exists()
    with locks.claimed(None):
        pass
    with (
        pytest.raises(InputError, match="cannot write to the run directory /proc/run"),
        locks.claimed(Path("/proc/run")),
    ):
        pass


# --- damage


@pytest.mark.parametrize("hurt", [lambda raw: raw[:-500], lambda raw: raw[:500] + b"\1" + raw[501:], lambda raw: b""])
def test_damaged_records_are_made_again(hurt, copy, finished) -> None:
    path = copy / "records.nc"
    path.write_bytes(hurt(path.read_bytes()))
    with pytest.raises(InputError, match="records.nc cannot be read as NetCDF"):
        load(copy)
    with pytest.warns(UserWarning, match="records.nc .*; it is made again from the checkpoint"):
        assert_equal_bits(run(copy), finished[1])
    assert_equal_bits(load(copy), finished[1])


def test_every_flipped_bit_of_records_is_seen_or_harmless(finished) -> None:
    raw = (finished[0] / "records.nc").read_bytes()
    right, rng, seen = netcdf.loads(raw), np.random.default_rng(0), 0
    for place in [*rng.integers(0, len(raw), 60), *range(len(raw) - netcdf.LENGTH, len(raw))]:
        try:
            found = netcdf.loads(raw[:place] + bytes([raw[place] ^ 1 << int(rng.integers(8))]) + raw[place + 1 :])
        except InputError:
            seen += 1
            continue
        assert found.identical(right)
    assert seen == 60 + netcdf.LENGTH


def test_records_of_other_programs_and_of_earlier_versions_are_read(finished, tmp_path) -> None:
    data = store.read_dataset(finished[0] / "records.nc")
    data.to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    assert store.read_dataset(tmp_path / "other.nc").identical(data)
    raw = (finished[0] / "records.nc").read_bytes()
    with pytest.raises(InputError, match="checksum is missing"):
        netcdf.loads(raw[: -netcdf.LENGTH])


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"status": 3}', '{"status": "finished", "identity": {"m": 7}}'])
def test_lost_or_damaged_metadata_are_made_again(text, copy, finished) -> None:
    path = copy / "metadata.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.warns(UserWarning, match="going by the checkpoint"):
        assert_equal_bits(run(copy), finished[1])
    assert store.read_metadata(copy)["status"] == "finished"


def test_without_a_checkpoint_damaged_metadata_are_an_error(copy) -> None:
    (copy / "metadata.json").write_text("{")
    (copy / "checkpoint.npz").unlink()
    (copy / store.PREVIOUS).unlink()
    with pytest.raises(InputError, match="JSON.*and there is no checkpoint of this run; remove the directory"):
        run(copy)
    (copy / "metadata.json").unlink()
    with pytest.raises(InputError, match="is not empty and is no run directory"):
        run(copy)


def test_a_checkpoint_of_another_size_is_refused(copy) -> None:
    clouds, records, state = store.read_checkpoint(copy)
    (copy / "records.nc").unlink()
    store.write_checkpoint(
        copy, [cloud.replace(z=cloud.z[:5], reference=cloud.reference[:5]) for cloud in clouds], records, state
    )
    with (
        pytest.warns(UserWarning),
        pytest.raises(InputError, match="does not hold the clouds of the run that it names"),
    ):
        run(copy)


# --- disks


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    store.write_bytes(tmp_path / "a", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with mock.patch.object(store.os, "fsync", full):
        with pytest.raises(
            InputError, match="No space left on device; free some space and go on with the same command"
        ):
            store.write_bytes(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_a_checkpoint_on_a_file_system_that_became_read_only_is_a_message(copy) -> None:
    """The renaming of the checkpoint before was no message."""

    def forbidden(source, target):
        raise OSError(30, "Read-only file system")

    with mock.patch.object(store.os, "replace", forbidden), pytest.raises(InputError, match="Read-only file system"):
        store.write_checkpoint(copy, *store.read_checkpoint(copy))


def test_records_are_made_in_memory(finished, tmp_path, monkeypatch) -> None:
    """On a full disk libhdf5 ends the process; it never gets to write to one."""
    data = store.read_dataset(finished[0] / "records.nc")
    monkeypatch.setattr("builtins.open", lambda *arguments, **more: pytest.fail("a file was opened"))
    raw = netcdf.dumps(data)
    monkeypatch.undo()
    assert netcdf.loads(raw).identical(data)


# --- clocks


def test_a_clock_that_goes_backwards(finished, tmp_path) -> None:
    times = iter(np.concatenate([[1e6], 1e6 - 7.0 * np.arange(1, 10_000)]).tolist())
    written: list[int] = []
    keep = store.write_checkpoint

    def count(directory, clouds, records, state) -> None:
        written.append(clouds[0].step)
        keep(directory, clouds, records, state)

    with (
        mock.patch.object(store, "write_checkpoint", count),
        mock.patch.object(clock, "perf_counter", lambda: next(times)),
    ):
        assert_equal_bits(run(tmp_path / "run", checkpoint_seconds=1e5), finished[1])
    assert len(set(written)) > 3, "checkpoints wait for a clock that was set back"
    assert min(store.read_metadata(tmp_path / "run")["timings"].values()) >= 0


# --- functions of the user's


def spoilt(step_of: list[int]) -> Activation:
    """tanh whose derivative is not a number from some step on."""

    def jet(w):
        h, first, second, third = ACTIVATIONS["tanh"].jet(w)
        return h, first * (np.nan if step_of[0] >= 4 else 1.0), second, third

    return Activation("spoilt", jet, suprema=ACTIVATIONS["tanh"].suprema, parity="odd")


def test_nan_of_an_activation_is_a_divergence_and_the_last_good_checkpoint_stays(tmp_path) -> None:
    """Even where no observable looks at the particles: NaN was saved as a finished run."""
    step = [0]

    def tell(cloud, flow):
        step[0] = cloud.step
        return 0

    flow = Flow(Risk(*small.data(), Unit(spoilt(step)), 5.0, backend="numpy"), 0.05, 0.02, "euler", account=False,
                allow_unstable=True)  # fmt: skip
    options = OPTIONS | dict(steps=8, observables=[], records=[Record(tell)])
    with pytest.raises(DivergedError), np.errstate(all="ignore"):
        simulate(flow, small.cloud(flow, 32), directory=tmp_path / "run", **options)
    assert store.read_metadata(tmp_path / "run")["status"] == "diverged"
    clouds, _, _ = store.read_checkpoint(tmp_path / "run")
    assert 0 < clouds[0].step <= 4 and all(np.isfinite(cloud.z).all() for cloud in clouds)


def failing(*steps: int, shape: tuple[int, ...] = (), error: type[BaseException] = LookupError):
    def mine(cloud: Cloud, flow: Flow) -> np.ndarray:
        if cloud.step in steps and cloud.replicate == 1:
            raise error(f"no value at step {cloud.step}")
        return np.full(shape, cloud.step)

    return mine


@pytest.mark.parametrize("shape", [(), (2, 3)])
@pytest.mark.parametrize("steps", [(0, 1), (3,), (0, 4, 6)])
def test_a_record_that_raises_may_be_nan(shape, steps, tmp_path) -> None:
    record = Record(failing(*steps, shape=shape), on_error="nan")
    done = run(tmp_path / "run", records=[record])
    values = done.data.mine.values
    assert values.shape == (2, 7, *shape) and done.status == "finished"
    assert [k for k in range(7) if np.isnan(values[:, k]).all()] == list(steps)
    assert all((values[:, k] == k).all() for k in range(7) if k not in steps)
    noted = store.read_metadata(tmp_path / "run")["errors"]["mine"]
    assert noted["count"] == len(steps) and noted["first"] == f"LookupError: 'no value at step {steps[0]}'".replace(
        "'", ""
    )
    assert noted["time"] == pytest.approx(0.02 * steps[0])
    assert np.array_equal(done.data.loss, run(None).data.loss)


def test_a_record_that_always_raises_is_nan() -> None:
    done = run(None, records=[Record(failing(*range(7)), on_error="nan")])
    assert (
        done.data.mine.shape == (2, 7)
        and np.isnan(done.data.mine).all()
        and done.metadata["errors"]["mine"]["count"] == 7
    )


def test_what_a_record_raised_is_counted_across_a_restart(tmp_path) -> None:
    whole = run(None, records=[Record(failing(1, 2, 5), on_error="nan")])
    stop = mock.patch.object(store, "write_checkpoint", side_effect=stop_after(4))
    with stop, pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", records=[Record(failing(1, 2, 5), on_error="nan")])
    done = run(tmp_path / "run", records=[Record(failing(1, 2, 5), on_error="nan")])
    assert_equal_bits(done, whole)
    assert done.metadata["errors"] == whole.metadata["errors"] and done.metadata["errors"]["mine"]["count"] == 3


def stop_after(count: int):
    keep, left = store.write_checkpoint, [count]

    def write(*arguments) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        keep(*arguments)

    return write


@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_a_record_that_raises_ends_the_run_by_default_and_all_before_is_kept(error, tmp_path) -> None:
    with pytest.raises(error):
        run(tmp_path / "run", records=[Record(failing(3, error=error))])
    kept = load(tmp_path / "run")
    assert kept.status == "failed" and "no value at step 3" in kept.message
    assert np.array_equal(kept.data.mine[0], [0, 1, 2]) and kept.clouds[0].step == 2
    assert_equal_bits(run(tmp_path / "run", records=[Record(failing())]), run(None, records=[Record(failing())]))
    with pytest.raises(InputError, match="on_error must be 'raise' or 'nan', got 'ignore'"):
        Record(failing(), on_error="ignore")


def test_a_record_that_changes_its_shape_is_still_refused() -> None:
    record = Record(lambda cloud, flow: np.zeros(1 + cloud.step // 2), name="mine", on_error="nan")
    with pytest.raises(InputError, match="must give one shape at all times"), warnings.catch_warnings():
        run(None, records=[record])


def test_a_record_that_writes_to_the_particles_changes_nothing() -> None:
    """It would change the run that it looks at, and nobody would know."""

    def meddling(cloud: Cloud, flow: Flow) -> float:
        for array in (cloud.z, cloud.reference):
            array[:] = 0.0
        return 1.0

    with pytest.raises(ValueError, match="read-only"):
        run(None, records=[Record(meddling)])
    done = run(None, records=[Record(meddling, on_error="nan")])
    assert done.metadata["errors"]["meddling"]["count"] == 7 and done.clouds[0].z.flags.writeable
    assert np.array_equal(done.data.loss, run(None).data.loss)


def test_a_checkpoint_that_is_withheld_is_not_called_damaged(finished, tmp_path, monkeypatch) -> None:
    """Who is told to remove a directory because of a permission loses a run that is whole."""
    (tmp_path / store.CHECKPOINT).write_bytes((finished[0] / store.CHECKPOINT).read_bytes())

    def withheld(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(store.readers, "opened", withheld)
    with pytest.raises(InputError, match="cannot be read: Permission denied; nothing was changed") as told:
        store.read_checkpoint(tmp_path)
    assert "remove" not in str(told.value)


def test_metadata_say_nothing_of_errors_that_were_none(finished) -> None:
    assert "errors" not in json.loads((finished[0] / "metadata.json").read_text())
