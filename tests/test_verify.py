"""Verdicts: right runs hold, tampered ones are caught under the statement that breaks, and chance is no violation."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
import xarray

from meanfield import bounds, certificates, noise, observables, statements, steps, store, verdicts
from meanfield.cloud import gaussian_cloud
from meanfield.flow import Flow
from meanfield.objectives import Potential
from meanfield.observables import OBSERVABLES
from meanfield.results import Run
from meanfield.risk import Risk
from meanfield.simulate import load, simulate
from meanfield.units import Unit
from meanfield.verdicts import HOLDS, INCONCLUSIVE, NOT_APPLICABLE, VIOLATED
from meanfield.verify import CHECKS, verify

# All that verdicts are made of: everything but the plug-in figures and the point estimate.
NEEDED = [name for name in OBSERVABLES if "plugin" not in name and name != "kl_estimate"]
INFINITE = np.inf


def small_run(alpha=20.0, *, seed=0, m=1000, time=0.4, at=(0.02, 0.4), replicates=4, names=NEEDED, directory=None,
              **options) -> Run:  # fmt: skip
    flow = small.flow(n=20, d=5, alpha=alpha, seed=seed, **options)
    cloud = small.cloud(flow, m, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "PROBES", 5000)
        return simulate(flow, cloud, time, replicates=replicates, observables=names, bounds=[0.0, *at],
                        directory=directory)  # fmt: skip


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> Run:
    return small_run(directory=tmp_path_factory.mktemp("right"))


@pytest.fixture
def copy(right, tmp_path) -> Path:
    return Path(shutil.copytree(right.directory, tmp_path / "copy"))


def violated(run) -> set[str]:
    return {v.statement for v in verify(run).violated}


def found(run, name: str) -> verdicts.Verdict:
    return next(v for v in verify(run).verdicts if v.statement == name)


# --- the table


def test_every_line_names_its_statement(right) -> None:
    verification = verify(right)
    names = [v.statement for v in verification.verdicts]
    assert len(set(names)) == len(names) > 20
    for name in names:
        assert re.match(
            r"Assumption 4\.\d|Theorem 4\.\d|Lemma 5\.\d|\(5\.2\)|Talagrand \(Lemma 5\.4\)|C\d|\(I\d\)|records: ", name
        )
    text = " ".join(names)
    wanted = ["Theorem 4.4, hypothesis (4.1)", *(f"Lemma 5.{k}" for k in (1, 2, 3, 4)), *(f"C{k}" for k in range(5))]
    assert all(name in text for name in [*wanted, "(I1)", "(I4)", "(I5)"])
    lines = verification.table().splitlines()
    assert [line[: len(name)] for line, name in zip(lines[2::2], names, strict=True)] == names
    assert all(line.startswith("    ") for line in lines[3::2]) and repr(verification) == verification.table()


def test_a_right_run_holds(right) -> None:
    verification = verify(right)
    assert not verification.violated
    for v in verification.verdicts:
        assert v.verdict in (HOLDS, NOT_APPLICABLE), v
        assert v.verdict == NOT_APPLICABLE or v.margin >= 0
    applicable = {v.statement for v in verification.verdicts if v.verdict == HOLDS}
    wanted = {"C1", "C2 (replaces Lemma 5.2)", "C3, identity (I1)", "(I5) coupling", "(I4) energy", "records: loss"}
    wanted |= {"C4 bracket of KL", "C4 bracket of W2", "C4 bracket of Q", "Talagrand (Lemma 5.4)", "records: account"}
    assert wanted <= applicable
    hypothesis = found(right, "Theorem 4.4, hypothesis (4.1)")
    assert hypothesis.verdict == NOT_APPLICABLE and hypothesis.bound > 1e6 > hypothesis.measured == 20.0


def test_a_stored_run_has_the_same_verdicts(right) -> None:
    stored = verify(load(right.directory))
    assert stored.table() == verify(right).table()
    assert json.loads(json.dumps(store.plain(stored.records())))[0].keys() >= {"statement", "verdict", "margin", "time"}
    records_alone = verify(right.data)
    assert not records_alone.violated and len(records_alone.verdicts) == len(stored.verdicts)


# --- tampered records and checkpoints


def times(factor: float, *names: str):
    def change(data: xarray.Dataset) -> xarray.Dataset:
        return data.assign({name: (data[name].dims, factor * data[name].values) for name in names})

    return change


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (times(1.01, "prediction"), {"records: loss"}),
        (times(-1.0, "label"), {"records: loss", "(I2) loss"}),
        (times(0.5, "kl_upper"), {"records: account", "C4 bracket of KL"}),
        (times(0.5, "kl_upper", "kl_account"), {"C4 bracket of KL", "C4 KL account"}),
        (times(2.0, "kl_lower"), {"C4 bracket of KL", "C4 KL account"}),
        (times(0.8, "w2_upper"), {"C4 bracket of W2"}),
        (times(2.5, "w2_lower"), {"C4 bracket of W2", "Talagrand (Lemma 5.4)"}),
        (times(0.1, "ntk_eigenvalue_min", "ntk_eigenvalue_min_upper"), {"C1", "Lemma 5.1"}),
        (times(1.05**2, "noise_variance"), {"C0 noise: variance"}),
        (times(10.0, "residual_defect"), {"C3, identity (I1)"}),
        (times(1.001, "coupled_distance"), {"(I5) coupling"}),
    ],
)
def test_tampered_records_are_caught(change, broken, right) -> None:
    assert violated(SimpleNamespace(data=change(right.data), clouds=right.clouds)) == broken


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (times(1.2, "loss"), {"records: loss"}),
        (times(0.5, "kl_account"), {"records: account", "C4 KL account"}),
    ],
)
def test_tampered_files_are_caught(change, broken, copy) -> None:
    store.write_dataset(copy / "records.nc", change(store.read_dataset(copy / "records.nc")))
    assert violated(load(copy)) == broken


def test_another_reference_in_the_checkpoint_is_caught(copy) -> None:
    clouds, records, state = store.read_checkpoint(copy)
    assert not violated(load(copy))
    fresh = gaussian_cloud(clouds[0].m, dimension=clouds[0].dimension, seed=99)
    store.write_checkpoint(copy, [clouds[0].replace(reference=fresh.z), *clouds[1:]], records, state)
    assert violated(load(copy)) == {"(I5) coupling"}


# --- a program that is wrong


CHEAP = [*small.CHEAP, "generator_rms", "w2_upper", "kl_upper"]


def test_noise_five_per_cent_too_large_is_caught(monkeypatch) -> None:
    draw = steps.cloud_noise
    monkeypatch.setattr(steps, "cloud_noise", lambda *args, **options: 1.05 * draw(*args, **options))
    assert violated(small_run(m=500, names=CHEAP)) >= {"C0 noise: variance"}


@pytest.mark.parametrize("scheme", ["kernel", "euler"])
def test_a_decoupled_reference_is_caught(scheme, monkeypatch) -> None:
    """The reference gets noise of its own: its law is right, and so are its increments."""
    linear, calls = steps._linear, []

    def decoupled(z, decay, increment, columns):
        calls.append(1)
        if len(calls) % 2 == 0:  # a cloud first, then its reference
            own = noise.normals(77, noise.Stream.PROBE, step=len(calls), count=len(z), width=z.shape[1])
            increment = own * np.std(increment)
        return linear(z, decay, increment, columns)

    monkeypatch.setattr(steps, "_linear", decoupled)
    caught = violated(small_run(m=500, names=CHEAP, scheme=scheme))
    assert "(I5) coupling" in caught and not any(name.startswith("C0") for name in caught)


def test_an_account_that_keeps_half_is_caught(monkeypatch) -> None:
    whole = observables.account_bound
    for module in (observables, bounds):
        monkeypatch.setattr(module, "account_bound", lambda cloud, flow: 0.5 * whole(cloud, flow))
    assert violated(small_run(names=[*CHEAP, "kl_lower"])) == {"C4 bracket of KL", "C4 KL account"}


def test_kicks_that_are_too_short_are_caught(monkeypatch) -> None:
    """Particles move by 97 % of what the account was told."""
    kicked = steps.kicked

    def short(dynamics, cloud, residual, eps):
        done = kicked(dynamics, cloud, residual, eps)
        return done.replace(z=cloud.z + 0.97 * (done.z - cloud.z))

    monkeypatch.setattr(steps, "kicked", short)
    assert violated(small_run(m=500, names=CHEAP)) >= {"(I5) coupling", "C3, identity (I1)"}


# --- runs to which little applies


def test_chance_is_no_violation() -> None:
    """Alphas from the mean-field to the lazy regime: nothing is violated, and nearly everything holds.

    lambda_min(H) grows along these runs, so C1 holds in truth too (where it fails, see the next test).
    """
    counts = {HOLDS: 0, INCONCLUSIVE: 0, NOT_APPLICABLE: 0}
    for alpha in (1.0, 3.0, 20.0, 100.0):
        for seed in (1, 2):
            run = small_run(alpha, seed=seed, time=min(0.5, 10 / alpha), at=[min(0.5, 10 / alpha)])
            above = run.data.ntk_eigenvalue_min_upper + verdicts.safe_error(run.data, "ntk_eigenvalue_min_upper")
            assert np.all(above > 0.5 * run.data.attrs["ntk_lambda"])
            for v in verify(run).verdicts:
                assert v.verdict != VIOLATED, (alpha, seed, v)
                counts[v.verdict] += 1
    assert counts[INCONCLUSIVE] <= 0.05 * (counts[HOLDS] + counts[INCONCLUSIVE])
    assert counts[HOLDS] >= 8 * 18


def test_c1_is_violated_where_it_fails_in_truth() -> None:
    """Two inputs of one label in the mean-field regime: features align, and the kernel keeps a quarter of Lambda."""
    risk = Risk(np.array([[1.0, 0.0], [0.5, 0.75**0.5]]), np.ones(2), Unit("erf"), alpha=0.25)
    flow, names = Flow(risk, lam=1e-3), ["ntk_eigenvalue_min", "ntk_eigenvalue_min_upper"]
    start = gaussian_cloud(600, risk.unit, 2)
    run = simulate(flow, start, 24.0, replicates=3, observables=names, bounds=[0.0, 24.0])
    assert violated(run) == {"C1"}
    # The truth: another cloud, of another seed, with ten times the particles.
    other = simulate(
        flow, gaussian_cloud(6000, risk.unit, 2, seed=5), 24.0, replicates=1, observables=names[:1], bounds=1
    )
    assert other.data.ntk_eigenvalue_min[0, -1] < 0.35 * run.data.attrs["ntk_lambda"]


def test_one_replicate_proves_nothing() -> None:
    names = [*CHEAP, "ntk_eigenvalue_min", "kl_lower", "w2_lower", "energy_lower", "energy_upper"]
    run = small_run(m=200, replicates=1, time=0.1, at=[0.1], names=names)
    for v in verify(run).verdicts:
        assert v.verdict != VIOLATED and (v.margin is None or np.isfinite(v.margin))
    for name in ("C1", "C4 bracket of KL", "C4 bracket of W2", "(I4) energy", "Talagrand (Lemma 5.4)"):
        verdict = found(run, name)
        assert verdict.verdict == INCONCLUSIVE and "more replicates" in verdict.note
    assert found(run, "C0 noise: variance").verdict == found(run, "(I5) coupling").verdict == HOLDS


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(scheme="euler_literal", eta=0.02), "Algorithm 1 as printed does not follow equation (3.4)"),
        (dict(batch=5), "minibatches add noise of their own"),
        (dict(centred=False), "this run is a network of width m"),
        (dict(unit="relu"), "Assumption 4.2 fails"),
        (dict(loss="logistic"), "the theorem is for the square loss"),
        (dict(train="u"), "with both layers trained"),
        (dict(lam=0.0), "needs lam > 0"),
    ],
)
def test_what_the_theorem_is_not_about(options, reason) -> None:
    run = small_run(3.0, m=200, time=0.1, at=[0.1], replicates=3, names=CHEAP, **options)
    verification = verify(run)
    assert not verification.violated
    assert reason in found(run, "Theorem 4.4, hypothesis (4.1)").note
    if "scheme" in options or "batch" in options or "centred" in options:
        assert reason in found(run, "C2 (replaces Lemma 5.2)").note
        # The energy falls along (3.4) alone, so it bounds KL nowhere else.
        assert set(run.data.kl_upper_source.values) == {"account"}


def test_float32_and_other_schemes_are_no_violation() -> None:
    for options in (dict(scheme="kernel2"), dict(scheme="exponential"), dict(scheme="euler"), dict(batch=5)):
        assert not violated(small_run(5.0, m=500, time=0.3, at=[0.3], names=CHEAP, **options)), options
    flow = small.flow(alpha=20.0)
    single = simulate(flow, small.cloud(flow, 500, dtype="float32"), 0.5, observables=CHEAP, bounds=1)
    assert single.data.attrs["dtype"] == "float32" and not violated(single)


def test_a_potential_has_little_to_judge() -> None:
    well = Potential(lambda z: (z**2).sum(1), lambda z: 2 * z, 2.0)
    names = ["loss", "w2_upper", "w2_lower"]
    run = simulate(Flow(well, lam=0.1), gaussian_cloud(300, dimension=3), 0.5, observables=names, bounds=1)
    verification = verify(run)
    assert {v.statement for v in verification.verdicts if v.verdict != NOT_APPLICABLE} == {"C4 bracket of W2"}
    assert found(run, "Theorem 4.4, hypothesis (4.1)").note == "the run is not of a network"


def test_checks_cope_with_any_selection_of_observables(right) -> None:
    def variables(name: str) -> list[str]:
        return [
            key for key in (name, f"{name}_se", f"{name}_source") if key in right.data and key != "residual_defect_se"
        ]

    for name in NEEDED:
        without = right.data.drop_vars(variables(name))
        alone = right.data.drop_vars(
            [key for key in right.data.data_vars if key not in (*variables(name), "eta", "label")]
        )
        for data in (without, alone):
            found = [v for check in CHECKS for v in check(data, right.clouds)]
            assert {v.verdict for v in found} <= {HOLDS, NOT_APPLICABLE} and len(found) >= 15


# --- the logic


T = np.array([0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("measured", "bound", "error", "verdict", "margin", "time"),
    [
        ([1, 2, 3], [2, 3, 5], 0.5, HOLDS, 0.5, 0.0),
        ([1, 2, 3], [2, 3, 3.4], 0.5, INCONCLUSIVE, -0.1, 2.0),
        ([1, 2, 3], [2, 0.9, 5], 0.5, VIOLATED, -0.1, 1.0),  # beyond twice the error
        ([1, 2, 3], [2, 1.4, 5], 0.5, INCONCLUSIVE, -1.1, 1.0),
        ([1, 2, 3], [2, 1.6, 5], [0, 0.5, 0], INCONCLUSIVE, -0.9, 1.0),
        ([1, 2, 3], [1, 2, 3], 0.0, HOLDS, 0.0, 0.0),
        ([1, 2, 3], [1 - 1e-12, 2, 3], 0.0, HOLDS, -1e-12, 0.0),
        ([1, np.nan, 3], [2, 0, 4], 0.0, HOLDS, 1.0, 0.0),
        ([1, 2, 3], [2, 3, 5], INFINITE, INCONCLUSIVE, 1.0, 0.0),
        ([1, 2, 3], [2, np.inf, 3.5], 0.0, HOLDS, 0.5, 2.0),
    ],
)
def test_judge(measured, bound, error, verdict, margin, time) -> None:
    got = verdicts.judge("S", "text", np.array(measured, float), np.array(bound, float), np.array(error, float), T)
    assert (got.verdict, got.time) == (verdict, time) and np.isclose(got.margin, margin, rtol=1e-9, atol=1e-11)
    assert got.measured == measured[int(time)] and got.bound == bound[int(time)]
    turned = verdicts.judge(
        "S", "", -np.array(measured, float), -np.array(bound, float), np.array(error, float), T, lower=True
    )
    assert (turned.verdict, turned.margin, turned.time) == (got.verdict, got.margin, got.time)


def test_judge_without_anything() -> None:
    got = verdicts.judge("S", "", np.full(3, np.nan), np.zeros(3), np.zeros(3), T)
    assert got.verdict == NOT_APPLICABLE and got.note == "nothing to judge was recorded" and got.margin is None


@pytest.mark.parametrize(
    ("crossing", "verdict"), [(-1.0, HOLDS), (0.9, HOLDS), (1.1, INCONCLUSIVE), (1.9, INCONCLUSIVE), (2.1, VIOLATED)]
)
def test_brackets_may_cross_by_their_errors(crossing, verdict) -> None:
    upper, error = np.array([5.0, 5.0, 5.0]), np.full(3, 0.1)
    got = verdicts.brackets("S", "", upper + [-1, crossing * 0.1, -2], upper, error, T)
    assert got.verdict == verdict and got.time == (1.0 if crossing > -1 else 1.0)
    assert verdicts.brackets("S", "", upper + 9, upper, np.full(3, np.inf), T).verdict == INCONCLUSIVE


def test_surprise() -> None:
    for worst, verdict in ((1.0, HOLDS), (3.0, INCONCLUSIVE), (5.0, VIOLATED)):
        got = verdicts.surprise("S", "", np.array([0.5, worst, np.nan]), T, (2.0, 4.0))
        assert (got.verdict, got.measured, got.bound, got.margin, got.time) == (verdict, worst, 4.0, 4.0 - worst, 1.0)
    assert verdicts.surprise("S", "", np.full(3, np.nan), T, (2.0, 4.0)).verdict == NOT_APPLICABLE
    assert np.allclose(verdicts.normal_limits(), (3.2905, 4.8916), atol=1e-4)


def table(replicates: int = 3, **columns) -> xarray.Dataset:
    data = {name: (("replicate", "bound_time") if np.ndim(v) == 2 else "bound_time", v) for name, v in columns.items()}
    return xarray.Dataset(data, {"bound_time": T, "replicate": np.arange(replicates), "time": T})


def test_errors_of_replicates() -> None:
    values = np.array([[1.0, 2, 3], [2, 2, np.inf], [3, 2, 3]])
    mean, error = verdicts.replicate_mean(table(a=values), "a")
    assert mean.tolist() == [2, 2, np.inf] and np.allclose(error, [4.5266 / np.sqrt(3), 0, 0], atol=1e-3)
    assert np.all(verdicts.replicate_mean(table(1, a=values[:1]), "a")[1] == np.inf)
    bounds_of = dict(low=np.array([1.0, 1, 1]), high=np.array([2.0, 2, np.inf]))
    errors = dict(low_se=np.array([0.0, 0.1, 0.1]), high_se=np.array([0.2, np.nan, np.nan]))
    c = 4.5266
    assert np.allclose(
        verdicts.safe_error(table(**bounds_of, **errors), "low", "high"), [0.2 * c, np.inf, 0.1 * c], atol=1e-3
    )
    single = verdicts.safe_error(table(1, **bounds_of, **errors), "low")
    assert single.tolist() == [0.0, np.inf, np.inf]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.8, 0.9, HOLDS), (0.4, 0.7, INCONCLUSIVE), (0.4, 0.45, VIOLATED), (0.4, None, INCONCLUSIVE)],
)
def test_c1_is_violated_by_the_estimate_from_above_alone(low, high, verdict) -> None:
    column = np.array([1.0, 1.0, low]) + 0.001 * np.arange(3)[:, None]
    above = {} if high is None else {"ntk_eigenvalue_min_upper": np.array([1.0, 1, high])}
    above |= {f"{name}_se": np.full(3, 1e-3) for name in list(above)}
    data = table(ntk_eigenvalue_min=column, **above).assign_attrs(ntk_lambda=1.0)
    (got,) = statements.c1(data, [])
    assert got.verdict == verdict and got.bound == 0.5 and got.time == 2.0


def test_stored_clouds_must_be_those_of_the_records(right) -> None:
    moved = [dataclasses.replace(c, z=c.z * 1.001) for c in right.clouds]
    assert violated(SimpleNamespace(data=right.data, clouds=moved)) == {"(I5) coupling"}


def test_the_excess_of_euler_at_rest() -> None:
    """KL(N(0, v) || N(0, 1)) of D = 4 coordinates, v = 1 / (1 - 0.1), times lam."""
    attrs = dict(lam=0.5, decay=1.0, D=4, scheme="euler")
    data = xarray.Dataset({"eta": ("time", np.array([0.0, 0.4]))}, attrs=attrs)
    v = 1 / 0.9
    assert np.isclose(certificates.euler_excess(data), 0.5 * 4 * 0.5 * (v - 1 - np.log(v)))
    assert certificates.euler_excess(data.assign_attrs(scheme="kernel")) == 0


def test_numbers_that_are_missing_from_a_finished_run_are_no_secret(right) -> None:
    """NaN in the stored loss contradicts the predictions, NaN in a bound the account it is made of."""
    for name, statement in (("loss", "records: loss"), ("kl_upper", "records: account")):
        data = right.data.copy(deep=True)
        data[name][..., -1] = np.nan
        assert statement in [v.statement for v in verify(data).violated]
