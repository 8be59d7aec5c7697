"""Datasets of many runs: put together with gaps as NaN, read at each one's end, averaged with standard errors."""

import math

import numpy as np
import pytest
import xarray

from meanfield import ensemble
from meanfield.errors import InputError

SEEDS = {"cloud.seed": [3, 4, 5]}


def records(times, loss, bound=(0.0, 1.0), replicates=2, n=3, **attrs):
    """A run whose loss at a time is loss * (1 + time), equal in all replicates."""
    times, bound = np.array(times, dtype=float), np.array(bound)
    values = np.broadcast_to(loss * (1 + times), (replicates, len(times)))
    variables = {
        "loss": (("replicate", "time"), values, {"units": "1"}),
        "prediction": (("replicate", "time", "sample"), values[..., None] * np.arange(n)),
        "w2_upper": (("bound_time",), loss * bound),
        "w2_upper_se": (("bound_time",), 0.1 * bound),
        "w2_upper_source": (("bound_time",), np.array(["start", "coupling"][: len(bound)], dtype=object)),
        "label": (("sample",), np.arange(n) * 1.0),
    }
    coords = {"time": times, "bound_time": bound, "replicate": np.arange(replicates), "sample": np.arange(n)}
    return xarray.Dataset(variables, coords, {"alpha": 2.0, "scheme": "kernel", "steps": len(times) - 1, **attrs})


def test_one_grid_of_times_stays_a_coordinate_and_a_run_that_ended_early_is_padded():
    found = [records([0, 1, 2], 1.0), records([0, 1], 2.0, bound=(0.0,)), None]
    data = ensemble.combine(SEEDS, found, {"status": ["finished", "diverged", "failed"]})
    assert data.loss.dims == ("cloud.seed", "replicate", "time") and data.time.values.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(data.loss[:, 0], [[1, 2, 3], [2, 4, math.nan], [math.nan] * 3])
    assert data.records.values.tolist() == [3, 2, 0] and data.bounds.values.tolist() == [2, 1, 0]
    assert data.w2_upper_source.values.tolist() == [["start", "coupling"], ["start", ""], ["", ""]]
    assert data.status.sel({"cloud.seed": 4}) == "diverged" and data.loss.attrs == {"units": "1"}
    assert data.prediction.dims == ("cloud.seed", "replicate", "sample")  # at the last record
    np.testing.assert_array_equal(data.prediction[1, 0], [0.0, 4.0, 8.0])
    assert data.label.dims == ("sample",)  # belongs to the data, which is not swept


def test_differing_times_become_variables():
    found = [records([0, 1, 2], 1.0), records([0, 0.5, 1, 2], 2.0), records([0, 2], 3.0, scheme="euler")]
    data = ensemble.combine(SEEDS, found)
    assert data.loss.dims == ("cloud.seed", "replicate", "record") and data.time.dims == ("cloud.seed", "record")
    np.testing.assert_array_equal(data.time[0], [0, 1, 2, math.nan])
    assert data.w2_upper.dims == ("cloud.seed", "bound_time")
    assert "scheme" not in data.attrs
    assert data.scheme.values.tolist() == ["kernel", "kernel", "euler"] and data.alpha.values.tolist() == [2.0] * 3


def test_points_are_in_the_order_of_the_product_and_data_has_its_own_keys():
    axes = {"data.n": [2, 3], "flow.lam": [0.1, 0.2]}
    found = [records([0, 1], loss, n=n) for n in (2, 3) for loss in (1.0, 2.0)]
    data = ensemble.combine(axes, found)
    np.testing.assert_array_equal(data.loss[:, :, 0, 0], [[1, 2], [1, 2]])
    assert data.label.dims == ("data.n", "sample")
    np.testing.assert_array_equal(data.label, [[0, 1, math.nan], [0, 1, 2]])
    assert np.isnan(data.prediction.sel({"data.n": 2, "sample": 2})).all()


@pytest.mark.parametrize("times", [[[0, 1, 2], [0, 1], [0, 1, 2]], [[0, 1, 3], [0, 2], [0, 1, 2, 4]]])
def test_last_values_are_those_of_each_run(times):
    found = [records(t, loss, bound=(0.0, 1.0)[: len(t) - 1]) for t, loss in zip(times, (1.0, 2.0, 3.0), strict=True)]
    end = ensemble.last(ensemble.combine(SEEDS, found))
    finals = [t[-1] for t in times]
    np.testing.assert_array_equal(end.time, finals)
    np.testing.assert_array_equal(end.loss[:, 1], [(1 + t) * loss for t, loss in zip(finals, (1, 2, 3), strict=True)])
    assert end.w2_upper.values.tolist() == [1.0, 0.0, 3.0]
    assert end.w2_upper_source.values.tolist() == ["coupling", "start", "coupling"]
    assert not {"record", "time", "bound_time"} & set(end.dims) and end.label.dims == ("sample",)


def test_last_of_what_never_began_is_not_a_number():
    end = ensemble.last(ensemble.combine({"flow.lam": [0.1, 0.2]}, [records([0, 1], 1.0), None]))
    np.testing.assert_array_equal(end.loss, [[2, 2], [math.nan] * 2])
    np.testing.assert_array_equal(end.time, [1, math.nan])


def test_means_and_standard_errors_over_seeds():
    data = ensemble.last(ensemble.combine(SEEDS, [records([0, 1], loss) for loss in (1.0, 2.0, 6.0)]))
    mean = ensemble.over(data, "cloud.seed")
    assert mean.loss.values.tolist() == [6.0, 6.0] and mean.w2_upper == 3.0  # twice the mean of 1, 2 and 6
    spread = np.std([1.0, 2.0, 6.0], ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(mean.w2_upper_se, spread)  # not the error within runs
    np.testing.assert_allclose(mean.loss_se, 2 * spread)
    assert mean.alpha == 2.0 and "alpha_se" not in mean and mean.w2_upper_source == "coupling"
    both = ensemble.over(data, "cloud.seed", "replicate")
    assert both.loss == 6.0 and both.loss.dims == () and both.w2_upper_se == pytest.approx(spread)


def test_what_is_not_averaged_keeps_its_error():
    data = ensemble.last(ensemble.combine(SEEDS, [records([0, 1], loss) for loss in (1.0, 2.0, 6.0)]))
    mean = ensemble.over(data, "replicate")
    np.testing.assert_allclose(mean.w2_upper_se, 0.1)
    assert mean.loss_se.dims == ("cloud.seed",) and "w2_upper_se" not in mean.left_out


def test_a_mean_over_seeds_is_none_where_one_is_missing_or_times_differ():
    gone = ensemble.over(ensemble.last(ensemble.combine(SEEDS, [records([0, 1], 1.0)] * 2 + [None])), "cloud.seed")
    assert np.isnan(gone.loss).all() and np.isnan(gone.w2_upper_se)
    found = [records([0, 1, 2], 1.0), records([0, 0.5, 2], 2.0), records([0, 1, 2], 3.0)]
    mean = ensemble.over(ensemble.combine(SEEDS, found), "cloud.seed")
    assert "loss" not in mean and {"loss", "time"} <= set(mean.left_out) and mean.w2_upper.dims == ("bound_time",)
    single = ensemble.over(ensemble.combine({"cloud.seed": [0]}, [records([0, 1], 1.0)]), "cloud.seed")
    assert np.isnan(single.loss_se).all() and not np.isnan(single.loss).any()
    with pytest.raises(InputError, match="no dimension"):
        ensemble.over(mean, "cloud.seed")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 2], [1, 2]),
        ([0, 0.5], [0.0, 0.5]),
        (["1", "sqrt(m)", 20.0], ["1", "sqrt(m)", "20.0"]),
        ([[3, 8], [1, 7]], ["[3, 8]", "[1, 7]"]),
        ([True, False], [True, False]),
    ],
)
def test_values_of_a_key_become_a_coordinate(values, labels):
    assert ensemble.coordinate("a.b", values).tolist() == labels


@pytest.mark.parametrize("values", [[1, 1.0], ["1", 1, "m"], [0.1, 0.1]])
def test_a_value_twice_is_refused(values):
    with pytest.raises(InputError, match=r"sweep\.a\.b .* twice"):
        ensemble.coordinate("a.b", values)
