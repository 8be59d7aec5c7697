"""Clouds on disk: the bits of clouds in memory, and memory for no more than the blocks at work."""

import errno
import os
import signal

import numpy as np
import pytest

from meanfield import Flow, Record, Risk, Unit, description, gaussian_cloud, mapped, parallel, simulate, store
from meanfield.errors import InputError

M = 3000


def risk(backend="numpy", centred=True, n=12):
    return Risk(*data(n), Unit("tanh"), 3.0, centred, backend=backend)


def data(n):
    x = np.random.default_rng(0).normal(size=(n, 4))
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.where(x[:, 0] < 0, -1.0, 1.0)


def clouds(folder, dtype="float64", m=M):
    return [gaussian_cloud(m, Unit("tanh"), 4, seed=5, dtype=dtype, folder=where) for where in (None, folder)]


def test_an_array_in_a_file_is_an_array(tmp_path):
    a = mapped.empty(tmp_path / "new", (7, 3), "float32")
    assert type(a) is np.ndarray and a.shape == (7, 3) and a.dtype == np.float32 and not a.any()
    a[:] = np.arange(21).reshape(7, 3)
    other = mapped.like(a)
    other[:] = 0
    assert a.sum() == 210
    assert mapped.folder_of(a) == mapped.folder_of(a[2:4].T) == mapped.folder_of(other) == tmp_path / "new"
    assert mapped.folder_of(np.ones(3)) is None and mapped.folder_of(mapped.like(np.ones(3))) is None
    assert not list((tmp_path / "new").iterdir())  # the files have no names that a kill could leave behind


def test_pages_given_back_are_read_again(tmp_path, monkeypatch):
    a = mapped.empty(tmp_path, (1000, 1000), "float64")
    a[:] = np.arange(1000)
    monkeypatch.setattr(mapped, "_resident", lambda: float("nan"))
    mapped.relieve(0)
    assert np.array_equal(a, np.broadcast_to(np.arange(1000.0), a.shape))


def test_a_full_disk_is_an_error_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match="on a larger disk"):
        gaussian_cloud(M, Unit("tanh"), 4, folder=tmp_path)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_start_has_the_bits_of_the_start_in_memory(tmp_path, dtype):
    inside, outside = clouds(tmp_path, dtype)
    assert np.array_equal(inside.z, outside.z)
    assert outside.reference is outside.z
    assert np.array_equal(inside.replicated(2).z, outside.replicated(2).z)
    assert mapped.folder_of(outside.replicated(2).z) == tmp_path
    assert np.array_equal(outside.origin(), inside.z)


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("scheme", ["euler", "kernel"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_steps_have_the_bits_of_steps_in_memory(tmp_path, backend, scheme, dtype):
    pytest.importorskip("numba") if backend == "cpu" else None
    inside, outside = clouds(tmp_path, dtype)
    flow = Flow(risk(backend), lam=0.05, eta=0.02, scheme=scheme, account=False)
    pure = flow.step(outside)
    for _ in range(4):
        inside, outside = flow.advance(inside), flow.advance(outside)
        assert np.array_equal(inside.z, outside.z)
        assert np.array_equal(inside.reference, outside.reference)
    assert mapped.folder_of(pure.z) == mapped.folder_of(outside.z) == mapped.folder_of(outside.reference) == tmp_path


def test_a_pass_holds_the_blocks_at_work(tmp_path, monkeypatch):
    pytest.importorskip("numba")
    unit, seen, threads = Unit("tanh"), [], 2
    flow = Flow(Risk(*data(4), unit, 1.0, False, backend="cpu"), eta=0.02, scheme="euler", account=False)
    options = {"dtype": "float32", "folder": tmp_path, "reference": False}
    flow.advance(flow.advance(gaussian_cloud(200_000, unit, 4, **options)))  # libraries and kernels are loaded
    begin = mapped._resident()
    if not np.isfinite(begin):
        pytest.skip("this system does not tell how much of a file is in memory")
    monkeypatch.setattr(mapped, "_resident", lambda real=mapped._resident: seen.append(real()) or seen[-1])
    monkeypatch.setitem(mapped._before, "bytes", begin)
    parallel.set_threads(threads)
    parallel.set_memory(16 << 20)
    try:
        cloud = flow.advance(flow.advance(gaussian_cloud(2_000_000, unit, 4, **options)))
    finally:
        parallel.set_threads(None)
        parallel.set_memory(None)
    group = 65_536 * 5 * 4
    assert cloud.z.nbytes == 40_000_000
    assert max(seen) - begin < parallel.MAPPED_SHARE * (16 << 20) + 2 * threads * group + (2 << 20)
    assert len(seen) > 2 * 2 * 2_000_000 // 65_536


def test_the_name_of_a_start_holds_pieces_of_it(tmp_path):
    cloud = gaussian_cloud(2_000_000, Unit("tanh"), 4, dtype="float32", folder=tmp_path, reference=False)
    mapped.relieve(0)
    begin = mapped._resident()
    if not np.isfinite(begin):
        pytest.skip("this system does not tell how much of a file is in memory")
    description._digest_start(cloud)
    assert cloud.z.nbytes == 40_000_000
    assert mapped._resident() - begin < 2 * mapped.LARGE + (1 << 20)


def run(folder, on_disk, steps=6, **more):
    start = gaussian_cloud(M, Unit("tanh"), 4, seed=5, folder=folder / "scratch" if on_disk else None)
    flow = Flow(risk(), lam=0.05, eta=0.02, scheme="euler", account=False)
    observables = ["loss", "travelled", "coupled_distance", "second_moment", "w2_upper"]
    return simulate(
        flow, start, steps=steps, replicates=2, observables=observables, directory=folder / "run", quiet=True, **more
    )


def test_a_run_records_what_one_in_memory_does(tmp_path):
    inside, outside = run(tmp_path / "in", False, bounds=0), run(tmp_path / "out", True)
    for name in ("loss", "travelled", "coupled_distance", "second_moment"):
        np.testing.assert_array_equal(inside.data[name], outside.data[name])
    assert "on disk" in outside.metadata["absent"]["w2_upper"]


def test_a_run_goes_on_from_a_checkpoint_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "LARGE", 1000)
    whole = run(tmp_path / "whole", True)

    def stop(cloud, flow):
        if cloud.step == 3 and cloud.replicate == 0 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    stopped = run(tmp_path / "cut", True, records=[Record(stop, every=1)], on_failure="return")
    assert stopped.status == "interrupted"
    assert mapped.folder_of(store.read_checkpoint(tmp_path / "cut" / "run", folder=tmp_path)[0][0].z) == tmp_path
    done = run(tmp_path / "cut", True, records=[Record(stop, every=1)])
    for a, b in zip(whole.clouds, done.clouds, strict=True):
        np.testing.assert_array_equal(a.z, b.z)
        np.testing.assert_array_equal(a.reference, b.reference)
    np.testing.assert_array_equal(whole.data.loss, done.data.loss)


def test_archives_written_in_pieces_are_those_of_numpy(tmp_path, monkeypatch):
    arrays = {"a": np.arange(5000.0).reshape(1000, 5), "b": np.asarray("text"), "c": np.arange(7)[::2]}
    monkeypatch.setattr(mapped, "LARGE", 512)
    store.write_npz(tmp_path / "pieces.npz", arrays)
    with np.load(tmp_path / "pieces.npz", allow_pickle=False) as found:
        assert list(found) == list(arrays)
        for name, value in arrays.items():
            np.testing.assert_array_equal(found[name], value)
    for folder in (None, tmp_path):
        again = store.read_npz(tmp_path / "pieces.npz", folder)
        np.testing.assert_array_equal(again["a"], arrays["a"])
        assert (mapped.folder_of(again["a"]) is None) == (folder is None)
