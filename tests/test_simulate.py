"""The loop: what is recorded and when, how step lengths meet the times asked for, and what happens when it fails."""

import dataclasses
import io
import json
import sys
import threading

import numpy as np
import pytest
import small

from meanfield import bounds, config, store
from meanfield.cloud import cloud_at, gaussian_cloud
from meanfield.errors import DivergedError, InputError
from meanfield.flow import Flow
from meanfield.objectives import Potential
from meanfield.observables import OBSERVABLES
from meanfield.planning import Record, make_plan
from meanfield.results import Run
from meanfield.risk import Risk
from meanfield.simulate import load, simulate
from meanfield.units import ACTIVATIONS, Unit

FEW = ["loss", "prediction", "ntk_eigenvalue_min"]


def run(flow=None, time=0.5, *, m=64, replicates=2, observables=FEW, **options) -> Run:
    flow = small.flow() if flow is None else flow
    return simulate(flow, small.cloud(flow, m), time, replicates=replicates, observables=observables, **options)


def well(rate: float = 20.0) -> Potential:
    """A quadratic potential, whose explicit steps all have one length."""
    return Potential(lambda z: 0.5 * rate * (z**2).sum(1), lambda z: rate * z, rate)


# --- when


def test_bound_times_are_met_exactly() -> None:
    data = run(time=0.7, bounds=4).data
    assert np.array_equal(data.bound_time, [0, 0.7 / 8, 0.7 / 4, 0.7 / 2, 0.7])
    assert set(data.bound_time.values) <= set(data.time.values)
    assert np.array_equal(run(time=0.3, bounds=(0.1, 0.3)).data.bound_time, [0.1, 0.3])
    assert run(time=0.3, bounds=0).data.bound_time.size == 0


def test_every_so_many_steps_and_at_bounds_and_at_the_end() -> None:
    flow = small.flow("exponential", 0.01)
    data = run(flow, time=0.105, every=4, bounds=[0.05], observables=["loss"]).data
    assert np.allclose(data.time, [0, 0.04, 0.05, 0.08, 0.105], rtol=1e-12)
    assert data.attrs["steps"] == 11 and np.isclose(data.eta[-1], 0.005)


def test_fixed_grids_are_not_cut() -> None:
    flow = small.flow("exponential", 0.1, alpha=1.0)
    own = Record(lambda cloud, flow: cloud.step, name="when", at=[0.25, 0.0])
    data = run(flow, time=1.0, bounds=[0, 0.25, 0.55, 1.0], records=[own]).data
    assert np.allclose(data.time, np.arange(11) / 10) and data.time[-1] == 1.0
    assert np.allclose(data.bound_time, [0, 0.3, 0.6, 1.0])
    assert data.when[0].values.tolist() == [0, 3] and np.allclose(data.when_time, [0, 0.3])


def test_two_equal_steps_rather_than_a_sliver() -> None:
    flow = Flow(well(), lam=0.0, prior=None)
    cloud = gaussian_cloud(8, dimension=2)
    eta = flow.propose([cloud])
    assert np.isclose(eta, 1 / 20)
    data = simulate(flow, cloud, 3.5 * eta, replicates=1, observables=["loss"], bounds=[1.5 * eta]).data
    assert np.allclose(data.time / eta, [0, 0.75, 1.5, 2.5, 3.5])
    data = simulate(flow, cloud, 2.5 * eta, replicates=1, observables=["loss"], bounds=0).data
    assert np.allclose(data.time / eta, [0, 1, 1.75, 2.5])


def test_times_that_differ_by_rounding_are_one() -> None:
    assert 0.1 * 3 != 0.3
    own = Record(lambda cloud, flow: cloud.time, name="own", at=[0.1 * 3])
    result = run(time=0.6, bounds=[0.3], records=[own])
    assert result.data.own.shape == (2, 1) and result.data.bound_time.size == 1
    assert result.data.eta[1:].min() > 1e-4


def test_every_time_is_due_once() -> None:
    rng = np.random.default_rng(0)
    flow = small.flow("exponential", 1e-3)
    for _ in range(50):
        asked = tuple(sorted(rng.choice(np.arange(0, 1001) / 1000, 20, replace=False)))
        plan = make_plan(flow, 1.0, None, ["loss"], (), 1, asked, (), 1)
        grid = np.cumsum(np.full(1000, 1e-3))
        moments = list(zip([-np.inf, 0, *grid[:-1]], [0, *grid], strict=True))
        hits = [sum(plan.due((t,), before, now) for before, now in moments) for t in asked]
        assert hits == [1] * 20


def test_steps() -> None:
    flow = small.flow("euler", 0.003)
    result = simulate(flow, small.cloud(flow, 64), steps=7, replicates=2, observables=["loss"], bounds=0)
    assert result.data.attrs["steps"] == 7 and result.data.time.size == 8
    assert result.data.time[-1] == 7 * 0.003 and np.all(result.data.eta[1:] == 0.003)


def test_sums_of_eta_make_no_sliver_at_the_end() -> None:
    flow = Flow(well(1.0), lam=0.0, eta=0.1, prior=None)
    assert np.cumsum(np.full(2000, 0.1))[-1] != 200.0
    for length in ({"steps": 2000}, {"time": 200.0}):
        data = simulate(flow, gaussian_cloud(2, dimension=1), replicates=1, observables=[], every=500, **length).data
        assert data.attrs["steps"] == 2000 and data.time[-1] == 200.0


def test_a_schedule_gives_every_step() -> None:
    flow = small.flow("exponential", lambda step: 0.002 * (step + 1))
    assert np.allclose(run(flow, time=0.03, observables=["loss"]).data.time, [0, 0.002, 0.006, 0.012, 0.02, 0.03])


def test_snapshots(tmp_path) -> None:
    result = run(time=0.4, snapshots=[0.0, 0.15, 0.4], directory=tmp_path, bounds=0)
    found = sorted(tmp_path.glob("cloud_*.npz"), key=lambda path: int(path.stem[6:]))
    assert found[0].name == "cloud_0.npz" and len(found) == 3
    kept = [store.unpack_clouds(store.read_npz(path)) for path in found]
    assert [clouds[1].time for clouds in kept] == [0.0, 0.15, 0.4]
    assert np.array_equal(kept[2][1].z, result.clouds[1].z)


def test_own_records() -> None:
    records = [
        Record(lambda cloud, flow: cloud.time, name="clock", every=3),
        Record(lambda cloud, flow: cloud.z.mean(0), name="centre", at=(0.1, 0.25)),
        Record(lambda cloud, flow: np.full((2, 3), cloud.replicate), name="table", at=[0.3]),
    ]
    data = run(time=0.3, replicates=3, records=records).data
    assert data.clock.dims == ("replicate", "clock_time")
    assert np.array_equal(data.clock[2], data.clock_time) and data.clock_time[-1] == 0.3
    assert np.array_equal(data.clock_time[:-1], data.time[:-1:3])
    assert data.centre.dims == ("replicate", "centre_time", "centre_0") and data.centre.shape == (3, 2, 4)
    assert data.table.shape == (3, 1, 2, 3) and np.all(data.table[2] == 2)


# --- what


def test_replicates_are_the_runs_of_their_numbers() -> None:
    flow = small.flow("exponential", 0.01)
    together = run(flow, time=0.05, replicates=3)
    alone = simulate(flow, small.cloud(flow, 64, replicate=2), 0.05, replicates=1, observables=FEW)
    assert together.data.sizes["replicate"] == 3 and together.data.attrs["replicates"] == 3
    assert np.array_equal(together.data.prediction[2], alone.data.prediction[0])
    assert np.array_equal(together.clouds[2].z, alone.clouds[0].z)
    assert not np.array_equal(together.data.loss[0, 1:], together.data.loss[1, 1:])


COMBINED = ("w2_lower", "w2_upper", "kl_lower", "kl_upper", "energy_lower", "energy_upper", "kl_estimate",
            "ntk_eigenvalue_min_upper", "kernel_drift", "kernel_alignment", "test_loss_unbiased", "gibbs_dual",
            "gibbs_energy")  # fmt: skip
SCHEMA = {
    **dict.fromkeys(
        ("loss", "residual_defect", "residual_defect_se", "second_moment", "drift_rms", "travelled", "kl_account",
         "generator_rms", "coupled_distance", "coupling_defect", "noise_variance", "noise_variance_se", "noise_mean",
         "noise_state_correlation", "noise_kurtosis", "drift_square", "entropy_input", "reference_travelled",
         "reference_travelled_se", "reference_overlap", "reference_overlap_se",
         "reference_variance", "kick_fault"), ("replicate", "time")),
    "test_prediction": ("replicate", "test_sample"), "test_label": ("test_sample",),
    "loss_unbiased": ("time",), "eta": ("time",), "prediction": ("replicate", "time", "sample"), "label": ("sample",),
    **dict.fromkeys(("ntk_eigenvalue_min", "ntk_eigenvalue_max", "ntk_change_max", "gram_defect", "gram_start_score",
                     "output_change", "test_loss"),
                    ("replicate", "bound_time")),
    **dict.fromkeys(("w2_plugin", "w2_plugin_null"), ("bound_time",)), "gibbs_prediction": ("bound_time", "sample"),
    **{name + end: ("bound_time",) for name in COMBINED for end in ("", "_se", "_source")},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """A run of everything that can be recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "PROBES", 2000)
        directory = tmp_path_factory.mktemp("whole")
        test = small.data(5, 3, seed=9)
        return run(time=0.1, replicates=3, observables=None, bounds=1, directory=directory, test=test)


def test_schema(whole) -> None:
    data = whole.data
    assert {name: data[name].dims for name in data.data_vars} == SCHEMA
    assert set(data.coords) == {"time", "bound_time", "replicate", "sample"}
    assert data.time[0] == 0 and data.time[-1] == data.bound_time[-1] == 0.1
    assert not whole.metadata["absent"]
    for name in COMBINED:
        assert data[f"{name}_source"].values.dtype.kind in "UO" and data[name].attrs["long_name"]
    needed = {"n": 12, "d": 3, "D": 4, "m": 64, "replicates": 3, "alpha": 5.0, "lam": 0.05, "activation": "tanh",
              "scheme": "kernel", "centred": 1, "status": "finished", "batch": 0}  # fmt: skip
    assert {name: data.attrs[name] for name in needed} == needed


def test_all_observables_of_the_library_are_in_the_schema() -> None:
    beside = {"eta", "label", "test_prediction", "test_label"} | {name for name in SCHEMA if name.endswith("_source")}
    errors = {name for name in SCHEMA if name.endswith("_se") and name not in OBSERVABLES}
    assert set(OBSERVABLES) == set(SCHEMA) - beside - errors


def test_what_was_written_is_what_was_returned(whole) -> None:
    again = load(whole.directory)
    assert again.data.equals(whole.data) and again.data.attrs.keys() == whole.data.attrs.keys()
    assert again.status == "finished" and np.array_equal(again.clouds[2].z, whole.clouds[2].z)
    timings = json.loads((whole.directory / "metadata.json").read_text())["timings"]
    assert {"start", "steps", "records", "bounds"} <= timings.keys()


def test_words_for_a_notebook(whole) -> None:
    text = repr(whole)
    assert text.startswith("Run: finished, time 0.1") and "W2(p_t, p0): lower" in text and "nan" not in text
    html = whole._repr_html_()
    assert "Run: finished" in html and "xr-wrap" in html and "<script>" not in html.split("xr-wrap")[0]
    single = run(time=0.05, replicates=1, observables=["loss", "w2_upper"], bounds=[0.05])
    assert "nan" not in repr(single)


def test_plot(whole) -> None:
    assert type(whole.plot()).__name__ == "Figure"


def test_no_observables_at_all() -> None:
    data = run(observables=[]).data
    assert set(data.data_vars) == {"eta", "label"}


def absent(flow, cloud, time=0.02, observables=(*small.CHEAP, "ntk_eigenvalue_min", "kl_upper", "w2_upper")) -> dict:
    result = simulate(flow, cloud, time, replicates=2, observables=list(observables), bounds=1)
    assert not set(result.metadata["absent"]) & set(result.data.data_vars)
    return result.metadata["absent"]


def test_a_start_without_reference_says_what_it_gives_up() -> None:
    risk = Risk(*small.data(), Unit("tanh"), 5.0, centred=False)
    reasons = absent(Flow(risk), cloud_at(np.random.default_rng(0).normal(size=(64, 4))))
    for name in ("kl_account", "coupled_distance", "residual_defect", "noise_variance", "w2_upper", "kl_upper"):
        assert "no coupled reference" in reasons[name]
    assert "width m" in reasons["loss_unbiased"]
    assert "loss" not in reasons and "ntk_eigenvalue_min" not in reasons


def test_relu_has_no_account() -> None:
    flow = small.flow(unit="relu")
    reasons = absent(flow, small.cloud(flow, 64))
    assert "bounded h' and h''" in reasons["kl_account"] and "relu" in reasons["residual_defect"]
    assert "coupled_distance" not in reasons and "w2_upper" not in reasons


def test_a_potential_is_no_network() -> None:
    reasons = absent(
        Flow(well(), lam=0.1), gaussian_cloud(64, dimension=3), observables=("loss", "prediction", "w2_upper")
    )
    assert reasons == {"prediction": "the objective is not the risk of a network"}


def test_minibatches_have_no_identity_1() -> None:
    flow = small.flow(batch=4)
    reasons = absent(flow, small.cloud(flow, 64))
    assert reasons.keys() == {"residual_defect", "residual_defect_se"} and "minibatches" in reasons["residual_defect"]


def test_one_replicate_has_no_unbiased_loss() -> None:
    reasons = run(time=0.02, replicates=1, observables=None, bounds=0).metadata["absent"]
    assert "two replicates" in reasons["loss_unbiased"]


def test_predictions_on_test_data() -> None:
    flow, (x, y) = small.flow(), small.data(5, 3, seed=9)
    result = run(flow, time=0.05, test=(x, y))
    assert result.data.test_prediction.dims == ("replicate", "test_sample")
    assert np.array_equal(result.data.test_prediction[1], flow.objective.predict(result.clouds[1], x))
    assert np.array_equal(result.data.test_label, y)
    with pytest.raises(InputError, match="test inputs have 2 columns, the network was given 3"):
        run(flow, test=(x[:, :2], y))


# --- words while it runs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_silent_where_nobody_watches(capfd) -> None:
    run(time=0.05)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_is_told(monkeypatch) -> None:
    for quiet, said in ((False, True), (True, False)):
        monkeypatch.setattr(sys, "stderr", Terminal())
        run(time=0.05, quiet=quiet)
        assert ("100%" in sys.stderr.getvalue() and "loss" in sys.stderr.getvalue()) is said


def test_other_threads_may_run_too() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(run(time=0.02)))
    thread.start()
    thread.join()
    assert found[0].status == "finished"


# --- what fails on the way


def test_allow_unstable_lets_it_happen() -> None:
    flow = small.flow("exponential", 0.5, alpha=50.0, allow_unstable=True)
    assert run(flow, time=2.0, observables=["loss"]).status == "finished"


def brittle() -> tuple[Flow, Record]:
    """A network whose activation becomes NaN for large arguments once its record has seen time 0.2."""
    tanh, limit = ACTIVATIONS["tanh"], [np.inf]

    def jet(w):
        h, *slopes = tanh.jet(w)
        return np.where(np.abs(w) > limit[0], np.nan, h), *slopes

    def breaking(cloud, flow):
        limit[0] = 2.0 if cloud.time > 0.2 else np.inf
        return limit[0]

    flow = small.flow(unit=dataclasses.replace(tanh, name="brittle", jet=jet, gram=None))
    flow.objective.gram_start()
    return flow, Record(breaking)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_that_diverges_keeps_its_records(tmp_path) -> None:
    with np.errstate(all="ignore"):
        flow, record = brittle()
        options = dict(time=2.0, records=[record], directory=tmp_path)
        result = run(flow, **options, on_failure="return")
        assert result.status == "diverged" and "particles are not finite after step" in result.message
        again = load(tmp_path)
        assert 3 < again.data.time.size and 0.2 < again.data.time[-1] < 0.5
        assert again.status == again.data.attrs["status"] == "diverged" and again.data.equals(result.data)
        assert np.isfinite(again.data.loss).all() and again.data.attrs["steps"] == again.clouds[0].step > 2
        with pytest.raises(DivergedError) as caught:
            run(flow, **options)
    assert caught.value.exit_code == 3 and caught.value.run.data.equals(again.data)


def test_an_explicit_run_whose_kernel_grows_is_stopped(tmp_path) -> None:
    x, _ = small.data()
    risk = Risk(x, 8 * x[:, 0], Unit("linear"), 2.0)
    cloud = gaussian_cloud(64, risk.unit, 3)
    start = Flow(risk, scheme="exponential")
    flow = Flow(risk, scheme="exponential", eta=0.3 * min(start.stability_limit(cloud.replicated(r)) for r in (0, 1)))
    result = simulate(
        flow, cloud, steps=60, replicates=2, observables=["loss"], bounds=0, directory=tmp_path, on_failure="return"
    )  # fmt: skip
    assert result.status == "diverged" and "above the stability limit" in result.message
    assert 2 < result.data.time.size < 60 and load(tmp_path).data.equals(result.data)


def test_a_record_of_nan_is_kept_and_hurts_nobody() -> None:
    data = run(records=[Record(lambda cloud, flow: np.nan, name="nothing")]).data
    assert np.isnan(data.nothing).all() and np.isfinite(data.loss).all()


@pytest.mark.parametrize("value", [None, "text", {}, 1j, [1, [2, 3]]])
def test_a_record_must_give_numbers(value) -> None:
    with pytest.raises(InputError, match="the record 'odd'"):
        run(records=[Record(lambda cloud, flow: value, name="odd")])


def test_a_record_must_keep_its_shape() -> None:
    with pytest.raises(InputError, match="'odd' must give one shape at all times"):
        run(records=[Record(lambda cloud, flow: np.zeros(cloud.step + 1), name="odd")])


def test_an_error_in_a_record_loses_nothing(tmp_path) -> None:
    broken = [True]

    def fragile(cloud, flow):
        if cloud.time > 0.2 and broken[0]:
            raise KeyError("mine")
        return cloud.time

    options = dict(records=[Record(fragile)], directory=tmp_path, bounds=2)
    with pytest.raises(KeyError, match="mine"):
        run(**options)
    kept = load(tmp_path)
    assert kept.status == "failed" and "KeyError" in kept.message and kept.data.time[-1] <= 0.2
    assert kept.data.sizes["time"] == kept.data.sizes["fragile_time"] > 2
    broken[0] = False
    again = run(**options)
    assert again.status == "finished" and again.data.equals(run(records=[Record(fragile)], bounds=2).data)


def test_defaults_agree_with_the_configuration() -> None:
    assert simulate.__kwdefaults__["checkpoint_seconds"] == config.OutputConfig().checkpoint_seconds
    assert simulate.__kwdefaults__["replicates"] == config.CloudConfig().replicates


def test_repeated_inputs_warn_that_the_theorem_says_nothing():
    x = np.array([[0.6, 0.8], [0.6, 0.8], [1.0, 0.0]])
    risk = Risk(x, np.array([0.5, 0.5, -0.5]), alpha=2.0)
    flow = Flow(risk, lam=0.1)
    with pytest.warns(UserWarning, match="Theorem 4.4"):
        simulate(flow, gaussian_cloud(64, risk.unit, 2), 0.01, replicates=1, observables=["loss"], bounds=0)


@pytest.mark.parametrize("m", [1, 2, 5, 16])
def test_very_few_particles_are_measured_as_far_as_it_goes(m):
    risk = Risk(np.eye(2), np.array([0.5, -0.5]), alpha=2.0)
    run = simulate(Flow(risk, lam=0.1), gaussian_cloud(m, risk.unit, 2), 0.05, replicates=2, bounds=1)
    assert run.status == "finished" and np.isfinite(run.data.w2_upper.values).all()
    assert ("kl_estimate" in run.metadata["absent"]) == (m <= bounds.NEIGHBOURS)
