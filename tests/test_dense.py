"""The numpy backend's steps: equal bits however they are cut, and the memory they take."""

import tracemalloc

import numpy as np
import pytest
from test_backends import CLOSE, Problem, calls

from meanfield import counters, parallel, workspace
from meanfield.backends import dense
from meanfield.units import ACTIVATIONS


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numpy_steps_have_equal_bits_however_they_are_made(activation: str, dtype: str, monkeypatch) -> None:
    """For any threads and tiles, with activations kept or formed again, and for predictions that are measured."""
    p, h, engine = Problem(dtype, n=130, d=4, m=512 * 5 + 77), ACTIVATIONS[activation], dense.BACKEND

    def results() -> list:
        return [part for f in ("predict", "move", "descend") for part in calls(f, p, engine, h, "both")]

    wanted = results()
    for weights, psi in ((None, wanted[0]), (p.weights, wanted[1])):
        measured = engine.measure(h, p.x, p.z, p.far, weights, gram=False)
        np.testing.assert_array_equal(measured.psi, psi)
        np.testing.assert_array_equal(measured.psi_reference, engine.predict(h, p.x, p.far, weights))
    for threads, tile, chunk, share in ((1, 1, 64, 0.0), (2, 1 << 18, 1 << 10, 0.5), (3, 1 << 20, 1 << 12, 0.0)):
        monkeypatch.setattr(dense, "TILE", tile)
        monkeypatch.setattr(dense, "KEEP_SHARE", share)
        monkeypatch.setattr(counters, "CHUNK", chunk)
        parallel.set_threads(threads)
        try:
            for a, b in zip(results(), wanted, strict=True):
                np.testing.assert_array_equal(a, b)
        finally:
            parallel.set_threads(None)


@pytest.mark.parametrize("kept", [False, True])
def test_a_numpy_step_takes_no_more_than_it_says(kept: bool, monkeypatch) -> None:
    """Beside the clouds: the activations where they are kept, and work space that does not grow with m."""
    n, m, h = 60, 40_000, ACTIVATIONS["tanh"]
    p = Problem("float64", n=n, d=3, m=m)
    monkeypatch.setattr(dense, "TILE", 1 << 18)
    monkeypatch.setattr(counters, "CHUNK", 1 << 12)
    monkeypatch.setattr(dense, "KEEP_SHARE", 0.5 if kept else 0.0)
    monkeypatch.setattr(workspace, "_spare", [])
    monkeypatch.setattr(dense, "_own", workspace.WorkSpace())
    out, motion = (p.z, None), p.motion._replace(after=0.0)
    tracemalloc.start()
    try:
        dense.descend(h, p.x, p.z, None, None, lambda psi: 0.5 - psi, motion, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    activations = 8 * n * m
    assert (peak > activations) == kept
    assert peak - (activations if kept else 0) < 4 << 20 < activations
