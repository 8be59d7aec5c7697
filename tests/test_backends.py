"""One contract for every backend that can run here, and what the choice among them promises."""

import functools
import multiprocessing
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import meanfield as mf
from meanfield import backends, parallel
from meanfield.backends import Motion, Moved, reference
from meanfield.cloud import cloud_at, gaussian_cloud
from meanfield.errors import InputError
from meanfield.noise import Stream
from meanfield.units import ACTIVATIONS, Activation

HERE = [name for name in backends.MODULES if name != "numpy" and not backends.unavailable(name)]
TRAIN = ("both", "u", "theta")
# KeOps compiles for seconds a formula: there two activations stand for all.
MEMBERS = [(b, a) for b in ("numpy", *HERE) for a in ACTIVATIONS if b != "keops" or a in ("tanh", "relu")]
CLOSE = {"float64": 1e-11, "float32": 2e-4}
ROUNDED = 2e-5  # what a bound worked in single precision may add, relative, for so few samples


class Problem:
    """A cloud of odd sizes, its reference, weights, inputs and coefficients."""

    def __init__(self, dtype: str, n: int = 7, d: int = 3, m: int = 301) -> None:
        rng = np.random.default_rng(n * m + d)
        self.x, self.c = rng.standard_normal((n, d)), rng.standard_normal(n)
        self.z, self.far = (rng.standard_normal((m, d + 1)).astype(dtype) for _ in range(2))
        self.weights = rng.random(m) / m
        self.motion = Motion(before=0.07, decay=0.9, sigma=0.3, after=0.05, seed=2**63 + 5, step=3, replicate=2)


def calls(name: str, p: Problem, backend: backends.Backend, activation: Activation, train: str) -> list:
    """What a function of the contract returns, as a list of arrays and numbers."""
    x, z, far, w, c = p.x, backend.asarray(p.z), backend.asarray(p.far), p.weights, p.c
    if name == "predict":
        return [backend.predict(activation, x, z), backend.predict(activation, x, z, w)]
    if name == "pullback":
        return [backend.pullback(activation, x, z, c, train)]
    if name == "measure":
        out = [*backend.measure(activation, x, z, far, w, train, variance=1.3)]
        return [part for part in [*out, *backend.measure(activation, x, z, None, None, train)] if part is not None]
    if name in ("kick", "midpoint_kick"):
        kick = getattr(backend, name)
        return [
            *kick(activation, x, z, far, w, c, 0.02, train, account=True),
            kick(activation, x, z, None, None, c, 0.1)[0],
        ]
    if name == "roughness":
        return [*backend.roughness(activation, x, z, w, c, train)]
    if name == "move":
        still = p.motion._replace(before=0.0, after=0.0)
        parts = [backend.move(activation, x, z, far, c, motion, train) for motion in (p.motion, still)]
        return [part for pair in parts for part in pair] + [backend.move(activation, x, z, None, c, p.motion, train)[0]]
    assert name == "descend"
    explicit = p.motion._replace(after=0.0)
    both = backend.descend(activation, x, z, far, w, lambda psi: 0.5 - psi, explicit, train, centred=True)
    return [*both, backend.descend(activation, x, z, None, None, lambda psi: 0.5 - psi, explicit, train)[0]]


def agree(function: str, found: list, wanted: list, close: float) -> None:
    """Fail unless every part is that of the definition; a kick's remainder is a bound that may be larger."""
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        a, b = np.asarray(a, float), np.asarray(b, float)
        if not np.isfinite(b).all():
            assert not np.isfinite(a).all(), function
            continue
        atol = close * max(1.0, float(np.abs(b).max()))
        if function == "kick" and Moved._fields[k : k + 1] == ("remainder",):
            assert b - atol <= a <= (1 + ROUNDED) * b + atol
        else:
            np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=function)


FUNCTIONS = ("predict", "pullback", "measure", "kick", "midpoint_kick", "roughness", "move", "descend")


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("name", "activation"), MEMBERS)
def test_every_backend_computes_what_the_reference_does(name: str, activation: str, dtype: str) -> None:
    backend, h = backends.get(name), ACTIVATIONS[activation]
    for problem in (Problem(dtype), Problem(dtype, n=1, d=1, m=5)):
        for function in FUNCTIONS:
            for train in TRAIN if function not in ("predict",) else ("both",):
                found = calls(function, problem, backend, h, train)
                wanted = calls(function, problem, reference.BACKEND, h, train)
                agree(function, [backend.asnumpy(part) for part in found], wanted, CLOSE[dtype])


@pytest.mark.parametrize("name", ["numpy", *HERE])
def test_every_backend_draws_the_same_bits(name: str) -> None:
    """Without a kick and with unit decay, a move adds sigma times the noise that is defined in `noise`."""
    backend, p = backends.get(name), Problem("float64", m=130)
    still = Motion(0.0, 1.0, 1.0, 0.0, seed=7, step=11, replicate=3)
    zero = backend.asarray(np.zeros_like(p.z))
    moved, _ = backend.move(ACTIVATIONS["tanh"], p.x, zero, None, p.c, still)
    noise = mf.noise.normals(7, Stream.DIFFUSION, step=11, replicate=3, count=130, width=4)
    np.testing.assert_array_equal(backend.asnumpy(moved), noise)


cpu = pytest.mark.skipif("cpu" not in HERE, reason=backends.unavailable("cpu") or "it can run")


@cpu
@pytest.mark.parametrize("dtype", CLOSE)
def test_equal_bits_for_any_threads_and_any_cut_of_the_blocks(dtype: str, monkeypatch) -> None:
    from meanfield.backends import cpu as module

    p, h = Problem(dtype, n=50, d=6, m=128 * 37 + 11), ACTIVATIONS["tanh"]
    engine = module.BACKEND

    def results() -> list:
        return [
            part for f in ("predict", "measure", "kick", "move", "descend") for part in calls(f, p, engine, h, "both")
        ]

    wanted = results()
    for threads, group in ((1, 1 << 16), (2, 1 << 13), (3, 1 << 11), (2, 1 << 30)):
        monkeypatch.setattr(module, "GROUP", group)
        monkeypatch.setattr(module, "GROUPS", 1 << 20)
        parallel.set_threads(threads)
        try:
            for a, b in zip(results(), wanted, strict=True):
                np.testing.assert_array_equal(a, b)
        finally:
            parallel.set_threads(None)


@cpu
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_keeping_activations_changes_no_bit(activation: str, dtype: str, monkeypatch) -> None:
    from meanfield.backends import cpu as module

    p, h, found = Problem(dtype, n=9, d=5, m=300), ACTIVATIONS[activation], []
    for keep in (False, True):
        monkeypatch.setattr(module, "keeps", lambda *sizes, keep=keep: keep)
        found.append(calls("descend", p, module.BACKEND, h, "both"))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@cpu
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_predictions_measured_and_predicted_have_the_same_bits(activation: str, dtype: str) -> None:
    p, h, engine = Problem(dtype, n=10, d=4, m=700), ACTIVATIONS[activation], backends.get("cpu")
    for weights in (None, p.weights):
        measured = engine.measure(h, p.x, p.z, p.far, weights)
        np.testing.assert_array_equal(measured.psi, engine.predict(h, p.x, p.z, weights))
        np.testing.assert_array_equal(measured.psi_reference, engine.predict(h, p.x, p.far, weights))


def arctan_jet(w):
    c = 1 / (1 + w * w)
    return np.arctan(w), c, -2 * w * c * c, (6 * w * w - 2) * c**3


def clipped_jet(w):
    """Not for a number: it writes into its result."""
    h, h1 = np.array(w), np.ones_like(w)
    h1[np.abs(w) > 1] = 0
    return np.clip(h, -1, 1), h1, 0 * h1, 0 * h1


@cpu
@pytest.mark.parametrize("jet", [arctan_jet, clipped_jet])
def test_an_activation_of_the_users_own(jet) -> None:
    from meanfield.backends.rows import rows

    own, p, engine = Activation("own", jet), Problem("float64"), backends.get("cpu")
    assert (rows(own, np.dtype("float64")) is not None) == (jet is arctan_jet)
    for function in ("predict", "measure", "kick", "move", "descend"):
        agree(function, *(calls(function, p, b, own, "both") for b in (engine, reference.BACKEND)), 1e-11)


@pytest.mark.parametrize("name", ["numpy", *[name for name in HERE if name != "keops"]])
@pytest.mark.parametrize("scheme", ["euler", "exponential", "kernel"])
@pytest.mark.parametrize("centred", [True, False])
def test_advancing_gives_the_bits_of_stepping(name: str, scheme: str, centred: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 3)) / 2, np.sign(rng.standard_normal(6))
    risk = mf.Risk(x, y, mf.Unit("tanh"), 3.0, centred=centred, backend=name)
    flow = mf.Flow(risk, lam=0.1, eta=0.01, scheme=scheme, account=False)
    pure = given = gaussian_cloud(300, risk.unit, 3, seed=4, reference=centred)
    first = pure.z.copy()
    for _ in range(3):
        pure, given = flow.step(pure), flow.advance(given)
    np.testing.assert_array_equal(pure.z, flow.home(given).z)
    if centred:
        np.testing.assert_array_equal(pure.reference, flow.home(given).reference)
        assert pure.reference_variance == given.reference_variance
    pure = flow.step(gaussian_cloud(300, risk.unit, 3, seed=4, reference=centred))
    assert not np.array_equal(pure.z, first)


def test_a_cloud_that_started_somewhere_keeps_its_start() -> None:
    risk = mf.Risk(np.eye(2), np.ones(2), mf.Unit("tanh"), 1.0, centred=False)
    flow = mf.Flow(risk, lam=0.1, eta=0.01, scheme="euler", account=False)
    cloud = cloud_at(np.ones((40, 3)))
    moved = flow.advance(flow.advance(cloud))
    np.testing.assert_array_equal(moved.start, 1.0)


@cpu
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (130, 2), (299, -1)])
def test_compiled_moves_tell_of_what_is_not_finite(value: float, place: tuple[int, int], dtype: str) -> None:
    engine, x = backends.get("cpu"), np.zeros((5, 3))
    z = np.full((300, 4), 0.9 * np.finfo(dtype).max, dtype)  # finite, though their sums are not
    for flaw in (0.0, value):
        z[place] = flaw
        seen: list[bool] = []
        engine.move(ACTIVATIONS["tanh"], x, z, None, np.zeros(5), Motion(0, 1, 0, 0, 0, 0, 0, seen=seen.append))
        assert all(seen) == np.isfinite(flaw) and seen


def test_what_auto_chooses(monkeypatch) -> None:
    here = {"cpu": "", "cuda": "no GPU"}
    monkeypatch.setattr(backends, "unavailable", here.__getitem__)
    monkeypatch.setattr(backends, "installed", lambda name: True)
    assert backends.choose(10, 100).name == "numpy"
    assert backends.choose(100, 1000).name == "cpu"
    assert backends.choose(1000, 10_000).name == "cpu"
    here["cuda"] = ""
    assert backends.choose(1000, 10_000).name == "cuda"
    assert backends.choose(100, 1000).name == "cpu"
    here |= {"cpu": "Numba is not installed: pip install numba", "cuda": "no GPU"}
    assert backends.choose(1000, 10_000) == ("numpy", "Numba is not installed: pip install numba")


def test_a_missing_package_is_named_with_its_line(monkeypatch) -> None:
    monkeypatch.setattr(backends, "unavailable", lambda name: "Numba is not installed: pip install numba")
    with pytest.raises(
        InputError, match="the backend 'cpu' cannot run here: Numba is not installed: pip install numba"
    ):
        backends.get("cpu")
    with pytest.raises(InputError, match="no backend is called 'nunpy'"):
        backends.get("nunpy")
    with pytest.raises(InputError, match="'auto' is no backend"):
        backends.get("auto")


@cpu
def test_where_compiled_code_cannot_be_kept_numpy_works() -> None:
    """A read-only installation and no home, as in some containers."""
    text = """
import numba.core.caching as caching

def refuse(self):
    raise OSError("read-only")

for kind in vars(caching).values():
    if isinstance(kind, type) and issubclass(kind, caching._CacheLocator):
        kind.ensure_cache_path = refuse
from meanfield import backends
print(*backends.choose(1000, 1000), sep=": ")
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("numpy: Numba finds no folder") and "NUMBA_CACHE_DIR" in done.stdout


def test_the_memory_budget_decides_what_is_kept() -> None:
    from meanfield.backends.cpu import keeps

    size = np.dtype("float64")
    assert keeps(500, 20, 10_000, size)
    assert not keeps(500, 20, 10_000_000, size)
    assert not keeps(100, 5, 100_000, size)
    parallel.set_memory(1 << 20)
    try:
        assert not keeps(500, 20, 10_000, size)
    finally:
        parallel.set_memory(None)
    with pytest.raises(InputError, match="must be positive"):
        parallel.set_memory(0)


def test_kernels_of_other_sources_are_thrown_away(tmp_path) -> None:
    from meanfield.backends.caching import discard_stale

    source, cache = tmp_path / "kernel.py", tmp_path / "__pycache__"
    source.write_text("one", encoding="utf-8")
    assert discard_stale(cache, tmp_path)
    (cache / "kernel.nbc").touch()
    assert not discard_stale(cache, tmp_path)
    assert (cache / "kernel.nbc").exists()
    source.write_text("two", encoding="utf-8")
    assert discard_stale(cache, tmp_path)
    assert not (cache / "kernel.nbc").exists()
    assert len(list(cache.glob("compiled-*"))) == 1


@cpu
def test_the_accuracy_table_of_the_documentation() -> None:
    from meanfield.backends.elementary import ULP

    text = (Path(__file__).parents[1] / "docs" / "backends.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([0-9.]+) \| ([0-9.]+) \|$", text, re.MULTILINE)
    assert {name: (float(a), float(b)) for name, a, b in rows} == {name: tuple(e.values()) for name, e in ULP.items()}


@pytest.mark.parametrize("name", ["numpy", *HERE])
@pytest.mark.parametrize("dtype", CLOSE)
def test_small_coefficients_are_not_lost(name: str, dtype: str) -> None:
    p, h, engine = Problem(dtype), ACTIVATIONS["tanh"], backends.get(name)
    for size in (1.0, 1e-20):
        found = np.asarray(engine.asnumpy(engine.pullback(h, p.x, engine.asarray(p.z), size * p.c)), float)
        wanted = size * reference.pullback(h, p.x, p.z.astype(float), p.c)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE[dtype] * np.abs(wanted).max())


@cpu
@pytest.mark.parametrize("dtype", CLOSE)
def test_sines_of_large_arguments_go_through_numpy(dtype: str) -> None:
    p, h, engine = Problem(dtype), ACTIVATIONS["sin"], backends.get("cpu")
    x = 1e10 * p.x
    for function in ("predict", "measure", "move"):
        p.x = x
        for a, b in zip(*(calls(function, p, b, h, "both") for b in (engine, backends.get("numpy"))), strict=True):
            assert np.isfinite(np.asarray(a)).all()
            np.testing.assert_array_equal(a, b)


@cpu
def test_activations_that_are_not_plain_functions() -> None:
    p, engine = Problem("float64"), backends.get("cpu")

    def scaled(w, b=1.0):
        return tuple(b * part for part in arctan_jet(w))

    class Callable:
        def __call__(self, w):
            return arctan_jet(w)

    for jet in (scaled, functools.partial(scaled, b=1.0), Callable(), Callable().__call__):
        own = Activation("own", jet)
        for a, b in zip(*(calls("measure", p, b, own, "both") for b in (engine, reference.BACKEND)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * max(1.0, float(np.abs(b).max())))


def _stepped(flow: mf.Flow, cloud: mf.Cloud, queue) -> None:
    queue.put(flow.step(cloud).z)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process")  # newer Pythons warn of forks with threads
def test_a_forked_process_can_step() -> None:
    risk = mf.Risk(np.eye(3), np.ones(3), mf.Unit("tanh"), 1.0)
    flow, cloud = mf.Flow(risk, lam=0.1, eta=0.01), gaussian_cloud(5000, risk.unit, 3, seed=0)
    parallel.set_threads(2)
    try:
        wanted = flow.step(cloud).z
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_stepped, args=(flow, cloud, queue), daemon=True)
        child.start()
        np.testing.assert_array_equal(queue.get(timeout=60), wanted)
        child.join(60)
    finally:
        parallel.set_threads(None)


def test_flows_can_be_pickled() -> None:
    risk = mf.Risk(np.eye(3), np.ones(3), mf.Unit("tanh"), 2.0, centred=False)
    flow, cloud = mf.Flow(risk, lam=0.1, eta=0.01), gaussian_cloud(50, risk.unit, 3, seed=0)
    wanted = flow.step(cloud).z
    again = pickle.loads(pickle.dumps(flow))
    np.testing.assert_array_equal(again.step(pickle.loads(pickle.dumps(cloud))).z, wanted)


@pytest.mark.parametrize("name", ["numpy", *[name for name in HERE if name != "keops"]])
@pytest.mark.parametrize("scheme", ["euler", "exponential", "kernel"])
def test_one_pass_makes_the_step_that_its_parts_make(name: str, scheme: str, monkeypatch) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((6, 3)) / 2, np.sign(rng.standard_normal(6))
    risk = mf.Risk(x, y, mf.Unit("tanh"), 3.0, backend=name)
    flow, cloud = (
        mf.Flow(risk, lam=0.1, eta=0.01, scheme=scheme, account=False),
        gaussian_cloud(300, risk.unit, 3, seed=4),
    )
    whole = flow.step(flow.step(cloud))
    monkeypatch.setattr(mf.Risk, "plain", lambda self, cloud: None)
    parts = flow.step(flow.step(cloud))
    np.testing.assert_allclose(whole.z, parts.z, rtol=0, atol=1e-6 if scheme == "kernel" else 1e-13)
    np.testing.assert_allclose(whole.reference, parts.reference, rtol=0, atol=1e-13)
    assert whole.reference_variance == parts.reference_variance
