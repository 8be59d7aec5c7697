"""The benchmark measures the same arithmetic for everyone, and writes what it says. Nothing here is timed."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import meanfield as mf
from meanfield import backends, noise, parallel

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import __main__ as command
from benchmarks import ceiling, data
from benchmarks.candidates import Candidate, Job, cpp, everyone
from benchmarks.candidates.ours import Ours
from benchmarks.candidates.plain_numpy import PlainNumpy
from benchmarks.pool import summary
from benchmarks.workloads import NAMES, scaling

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
CASE = {"n": 103, "d": 7, "m": 331}  # nothing divides anything


@pytest.fixture(autouse=True)
def all_threads() -> Iterator[None]:
    yield
    parallel.set_threads(None)


def ready(candidate: Candidate) -> Candidate:
    candidate.load()
    return candidate


def state(job: Job) -> np.ndarray:
    job.run()
    job.finish()
    return np.asarray(job.state(), dtype=np.float64)


def our_step(case: dict) -> np.ndarray:
    """One step of ours on the reference backend in float64, less its noise."""
    risk = mf.Risk(*data.problem(case), mf.Unit("tanh"), case["alpha"], centred=False, backend="numpy")
    flow = mf.Flow(risk, lam=case["lam"], eta=case["eta"], scheme="euler", account=False, allow_unstable=True)
    start = mf.gaussian_cloud(case["m"], risk.unit, case["d"], seed=1, reference=False)
    z = flow.step(start.replace(z=data.start(case).astype(np.float64))).z
    drawn = noise.normals(1, noise.Stream.DIFFUSION, step=0, count=case["m"], width=case["d"] + 1)
    return z - math.sqrt(2 * case["lam"] * case["eta"]) * drawn


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_formula_that_candidates_are_checked_with_is_our_step(dtype: str) -> None:
    case = data.step_case(**CASE, dtype=dtype)
    np.testing.assert_allclose(data.expected_step(case), our_step(case), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["numpy", "meanfield", "meanfield, numpy"])
def test_candidates_make_our_step(name: str, dtype: str) -> None:
    candidate = ready(everyone()[name](2))
    case = data.step_case(**CASE, dtype=dtype, noise=False, check=True)
    z = state(candidate.step(case))
    if candidate.own_noise:
        z -= data.noise_of_step(case)
    np.testing.assert_allclose(z, data.expected_step(case), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("keep", [0, 200, CASE["m"]], ids="keep={}".format)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_ceiling_makes_our_steps_with_our_noise(dtype: str, keep: int, threads: int) -> None:
    case = data.step_case(**CASE, dtype=dtype)
    x, y = data.problem(case)
    run, z = ceiling.stepper(x, y, data.start(case), case["alpha"], 0.01, 0.1, 1, keep=keep, threads=threads)
    risk = mf.Risk(x, y, mf.Unit("tanh"), case["alpha"], centred=False, backend="numpy")
    flow = mf.Flow(risk, lam=0.01, eta=0.1, scheme="euler", account=False, allow_unstable=True)
    cloud = mf.gaussian_cloud(case["m"], risk.unit, case["d"], seed=1, reference=False, dtype=dtype)
    cloud = cloud.replace(z=data.start(case))
    for _ in range(3):
        run()
        cloud = flow.step(cloud)
    np.testing.assert_allclose(z, cloud.z, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_ceiling_has_an_accurate_tanh(dtype: str) -> None:
    w = np.concatenate([np.linspace(-25, 25, 40_000), np.geomspace(1e-9, 1, 999)]).astype(dtype)
    right = np.tanh(w.astype(np.longdouble))
    assert np.max(np.abs(ceiling.tanh(w) - right) / np.spacing(np.abs(right).astype(dtype))) <= 3


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_ceiling_draws_our_normals(dtype: str) -> None:
    out = np.empty((133, 7), dtype)
    ceiling.normals(out, seed=3, step=5, threads=2)
    drawn = noise.normals(3, noise.Stream.DIFFUSION, step=5, count=133, width=7, dtype=dtype)
    np.testing.assert_allclose(out, drawn, rtol=0, atol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [2, 10])
def test_pairs_are_the_same_sums(width: int, dtype: str) -> None:
    case = {"m": 150, "D": width, "dtype": dtype, "scale": 1.3}
    z = data.points(case).astype(np.float64)
    gap = z[:, None] - z
    k = np.exp(-0.5 * np.sum(gap**2, axis=-1) / 1.3**2)
    right = np.column_stack([k.mean(1), -np.mean(k[..., None] * gap, axis=1) / 1.3**2])
    for candidate in map(ready, (cpp.Ceiling(2), PlainNumpy(2), Ours("numpy", 2))):
        np.testing.assert_allclose(state(candidate.pairs(case)), right, rtol=0, atol=TOLERANCE[dtype])


def test_gram_is_the_same_matrix() -> None:
    case = data.step_case(n=11, d=3, m=200, dtype="float64")
    grams = [state(candidate.gram(case)) for candidate in map(ready, (PlainNumpy(2), Ours("numpy", 2)))]
    np.testing.assert_allclose(*grams, rtol=0, atol=1e-13)


def test_the_floor_is_its_formula() -> None:
    rates = ceiling.Rates(flops=2.0, tanh=5.0, exp=1.0, normals=10.0, bandwidth=1e9)
    assert ceiling.step_floor(3, 2, 100, "float64", rates) == 3 * 100 * 15 / 2 + 3 * 100 / 5 + 100 * 3 / 10
    assert ceiling.step_floor(3, 2, 100, "float64", rates._replace(bandwidth=0.1)) == 2 * 100 * 3 * 8 / 0.1
    assert ceiling.pairs_floor(10, 2, rates) == 100 * (12 / 2 + 1)


def test_every_backend_is_a_candidate() -> None:
    named = {f"meanfield, {name}" for name in backends.MODULES}
    assert named | {"meanfield", "C++ ceiling", "numpy"} <= set(everyone())


def test_disturbed_repetitions_are_left_out_where_enough_others_remain() -> None:
    kept = summary([1, 9, 1.2, 9, 1.1, 9, 1.3, 9, 1.4], [0, 0.5, 0, 0.5, 0, 0.5, 0, 0.5, 0])
    assert kept == {"median": 1.2, "min": 1, "raw_median": 1.4, "clean": 5, "repeats": 9}
    assert summary([4, 1, 2, 3], [0.5, 0.5, 0.5, 0.5])["median"] == 1.5  # the faster half


def test_slopes_are_those_of_power_laws() -> None:
    assert scaling.slope([1, 2, 4, 8], [5.0, 3.0, 24.0, 192.0]) == pytest.approx(3)


def test_a_small_run_writes_json_tables_and_charts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = ("meanfield", "C++ ceiling", "numpy", "numpy, SFC64")
    monkeypatch.setattr("benchmarks.bench.everyone", lambda: dict.fromkeys(some))
    monkeypatch.setattr("benchmarks.workloads.step.QUICK", ((20, 3, 200),))
    monkeypatch.setattr("benchmarks.workloads.noise.QUICK", (500, 3))
    options = ["--only", "step", "noise", "--quick", "--repeats", "2", "--threads", "1"]
    code = command.main([*options, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert code == 0 and found["schema"] == 1 and found["missing"] == {}
    assert {"processor", "cores", "threads used", "memory_gb", "date", "python", "compiler"} <= set(found["machine"])
    assert found["versions"]["numpy"] == np.__version__ and found["versions"]["meanfield-nn"] == mf.__version__
    assert {check["candidate"] for check in found["checks"]} == set(some[:3])
    assert all(check["error"] <= TOLERANCE[check["dtype"]] for check in found["checks"])
    assert set(found["rates"]) == set(TOLERANCE) and all(v > 0 for r in found["rates"].values() for v in r.values())
    steps = [row for row in found["rows"] if row["workload"] == "step"]
    assert [row["candidate"] for row in steps] == 2 * list(some[:3])
    for row in steps:
        assert 0 < row["min"] <= row["median"] and row["first"] > 0 and row["peak_mb"] >= row["before_mb"] > 0
        assert set(row["ratios"]) == {"ceiling", "floor", "best peer"} and row["repeats"] == 2
    page = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert all(name in page for name in (*some, "(20, 3, 200) float32", "500 x 3, float64"))
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_every_workload_says_what_it_measures() -> None:
    for name in NAMES:
        module = __import__(f"benchmarks.workloads.{name}", fromlist=["run"])
        assert module.TITLE and callable(module.run)


def test_rows_of_other_workloads_stay_with_their_date(tmp_path: Path) -> None:
    assert command.kept(tmp_path, ["step"]) == []
    rows = [{"workload": "step", "case": "a"}, {"workload": "gram", "case": "b"}]
    written = {"schema": command.SCHEMA, "machine": {"date": "2026-01-02"}, "rows": rows}
    (tmp_path / "results.json").write_text(json.dumps(written), encoding="utf-8")
    assert command.kept(tmp_path, ["step"]) == [{"measured": "2026-01-02", "workload": "gram", "case": "b"}]
    (tmp_path / "results.json").write_text(json.dumps(written | {"schema": -1}), encoding="utf-8")
    assert command.kept(tmp_path, ["step"]) == []
