"""KeOps against numpy: the contract, every activation's words, pair kernels, its cache. 40 s, most of it compilation.

One formula costs 5 to 8 seconds, so there is one test for each that is compiled, in one size and dtype.
"""

import subprocess
import sys

import numpy as np
import pytest

from meanfield import interactions
from meanfield.backends import Motion, keops, reference
from meanfield.errors import InputError
from meanfield.interactions import ErfPair, Gaussian, ReluPair
from meanfield.units import ACTIVATIONS, Activation

needs_keops = pytest.mark.skipif(bool(keops.unavailable()), reason=keops.unavailable() or "it is here")
TANH = ACTIVATIONS["tanh"]
MOTION = Motion(before=0.3, decay=0.9, sigma=0.2, after=0.1, seed=3, step=5, replicate=1)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Compile into an empty folder of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("KEOPS_CACHE_FOLDER", raising=False)
        yield


def problem(n=7, d=3, m=2500):
    rng = np.random.default_rng(0)
    x, z, far, c = (rng.normal(size=shape) for shape in ((n, d), (m, d + 1), (m, d + 1), n))
    weights = rng.uniform(size=m)
    return x, z, far, weights / weights.sum(), c


@needs_keops
def test_the_contract(capfd):
    """Predictions, fields, kicks and moves in the numpy backend's numbers; nothing is printed."""
    x, z, far, weights, c = problem()
    for mass in (None, weights):
        np.testing.assert_allclose(
            keops.predict(TANH, x, z, mass), reference.predict(TANH, x, z, mass), rtol=1e-11, atol=1e-14
        )
    for train in ("both", "u", "theta"):
        ours, exact = (backend.pullback(TANH, x, z, c, train) for backend in (keops, reference))
        np.testing.assert_allclose(ours, exact, atol=1e-12)
        pairs = [
            (backend.kick(TANH, x, z, far, None, c, 0.2, train).z,
             backend.kick(TANH, x, z, far, None, c, 0.2, train, at=far).z,
             backend.midpoint_kick(TANH, x, z, far, None, c, 0.2, train).z,
             *backend.move(TANH, x, z, far, c, MOTION, train),
             *backend.descend(TANH, x, z, far, weights, lambda psi: 3 * psi, MOTION, train, centred=True),
             backend.move(TANH, x, z, None, c, MOTION._replace(after=0.0), train)[0])
            for backend in (keops, reference)
        ]  # fmt: skip
        for left, right in zip(*pairs, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-12)
    moved = keops.kick(TANH, x, z, far, None, c, 0.1, account=True)
    assert moved.speed == reference.kick(TANH, x, z, far, None, c, 0.1, account=True).speed
    here, there = z.copy(), far.copy()
    keops.move(TANH, x, here, there, c, MOTION, out=(here, there))
    np.testing.assert_allclose(here, reference.move(TANH, x, z, far, c, MOTION)[0], atol=1e-12)
    assert capfd.readouterr() == ("", "")


@needs_keops
def test_every_activation_is_said_right():
    """h and h' of all in one formula, also where exponentials overflow."""
    w = np.array([0.0, 1e-9, -1e-9, 0.3, -0.7, 2.5, -6.0, 40.0, -40.0, 800.0, -800.0])[:, None]
    said = [word for pair in keops.WORDS.values() for word in pair]
    formula = said[-1]
    for word in reversed(said[:-1]):
        formula = f"Concat({word}, {formula})"
    found = keops.reduce(f"{formula} * one", ("i w", w), ("j one", np.ones((1, 1))))
    exact = [part for name in keops.WORDS for part in ACTIVATIONS[name].value_and_first(w[:, 0])]
    np.testing.assert_allclose(found, np.transpose(exact), atol=1e-15, rtol=1e-14)


@needs_keops
@pytest.mark.parametrize(
    ("kernel", "dtype"), [(Gaussian(0.8), np.float64), (ErfPair(), np.float32), (ReluPair("sphere"), np.float64)]
)
def test_pair_interactions(kernel, dtype):
    rng = np.random.default_rng(1)
    points, z, weights = rng.normal(size=(30, 4)), rng.normal(size=(300, 4)), rng.normal(size=300)
    points[:3] = z[:3]
    points[3, :-1] = 0
    points, z, weights = (array.astype(dtype) for array in (points, z, weights))
    for mass in (None, weights):
        found = keops.interact(kernel, points, z, mass)
        for left, right in zip(found, interactions.interact(kernel, points, z, mass), strict=True):
            assert left.dtype == dtype and left.shape == right.shape
            np.testing.assert_allclose(left, right, atol=1000 * np.finfo(dtype).eps * np.abs(right).max())


@needs_keops
def test_tensors_of_torch_give_tensors():
    torch = pytest.importorskip("torch")
    z = np.random.default_rng(2).normal(size=(50, 4))
    value, gradient = keops.interact(Gaussian(0.8), torch.from_numpy(z), torch.from_numpy(z))
    exact = interactions.interact(Gaussian(0.8), z, z)
    np.testing.assert_allclose(value.numpy(), exact[0], atol=1e-13)
    np.testing.assert_allclose(gradient.numpy(), exact[1], atol=1e-13)


def test_what_a_killed_process_left_is_made_again(tmp_path, monkeypatch):
    """Under the mark of a compilation that did not end, everything goes; a failure leaves its mark and says where."""
    build = tmp_path / "build"
    build.mkdir()
    monkeypatch.setattr(keops, "_state", {"folder": tmp_path, "build": str(build)})
    calls = []

    def reduction(*rows):
        calls.append(((tmp_path / "compiling").exists(), len(list(build.iterdir())), [len(row) for row in rows]))

    for mark in (False, True):
        (build / "half_a_library.so").touch()
        if mark:
            (tmp_path / "compiling").touch()
        keops._compile(reduction, [np.ones((5, 2))])
        assert not (tmp_path / "compiling").exists()
    assert calls == [(True, 1, [1]), (True, 0, [1])]

    def broken(*rows):
        raise ImportError("no such symbol")

    with pytest.raises(InputError, match=f"{tmp_path} and try again. no such symbol"):
        keops._compile(broken, [np.ones((5, 2))])
    assert (tmp_path / "compiling").exists()


def test_what_keops_cannot_say_is_refused():
    x, z, _, _, c = problem()
    mine = Activation("tanh", TANH.jet)
    for activation in (ACTIVATIONS["erf"], ACTIVATIONS["erf_sqrt2"], mine):
        with pytest.raises(InputError, match=f"no words for the activation '{activation.name}'"):
            keops.predict(activation, x, z)
        with pytest.raises(InputError, match="Use another backend"):
            keops.pullback(activation, x, z, c)
    with pytest.raises(InputError, match="Gaussian, ErfPair, ReluPair"):
        keops.interact(object(), z, z)


def test_without_pykeops_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(keops, "find_spec", lambda name: None)
    assert 'pip install "meanfield-nn[keops]"' in keops.unavailable()
    monkeypatch.setattr(keops, "_state", {**keops._state, "folder": None})
    with pytest.raises(InputError, match="pykeops is not installed"):
        keops.reduce("x * y", ("i x", np.ones((1, 1))), ("j y", np.ones((1, 1))))


def test_without_a_compiler_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(keops, "find_spec", lambda name: object())
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in keops.unavailable()


def test_it_is_imported_when_used():
    code = "import sys, meanfield.backends.keops; print([m for m in ('pykeops', 'torch', 'numba') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
