"""Figures from a synthetic Dataset: each is drawn, or left out with a sentence; nothing stays behind."""

import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic import clouds, held_out, run_dataset

from meanfield import canvas, plots, readings
from meanfield.errors import InputError

MATERIAL = {"clouds": clouds(m=500), "test": held_out()}


@pytest.fixture(scope="module")
def data():
    return run_dataset()


@pytest.mark.parametrize("name", plots.FIGURES)
def test_every_figure_is_drawn_and_says_what_it_shows(name, data):
    ax = plots.FIGURES[name](data, **MATERIAL)
    assert isinstance(ax.figure, Figure)
    assert ax.get_title(loc="left") and ax.get_xlabel() and ax.get_ylabel()
    assert len(plots.FIGURES[name].caption) > 200
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", plots.FIGURES)
def test_one_replicate_has_no_error_bands(name):
    ax = plots.FIGURES[name](run_dataset(replicates=1), **MATERIAL)
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", plots.FIGURES)
def test_a_figure_without_its_variables_is_left_out_with_a_sentence(name, data):
    item = plots.FIGURES[name]
    for needed in item.needs:
        bare = data.drop_vars(needed)
        assert needed in item.missing(bare, **MATERIAL)
        with pytest.raises(InputError, match="left out"):
            item(bare, **MATERIAL)
    if item.material:
        assert item.material in item.missing(data)


def test_a_run_without_an_account_keeps_the_other_figures(data):
    relu = data.drop_vars(["kl_upper", "kl_upper_se", "kl_upper_source", "generator_rms"])
    relu.attrs |= dict(activation="relu", suprema=[np.inf] * 5, assumption_4_2_fails="h is unbounded")
    panels, reasons = plots.available(relu, **MATERIAL)
    assert {p.name for p in panels} == set(plots.FIGURES) - {"kl"} and "kl_upper" in reasons[0]
    assert readings.radius(relu) is None and readings.loss_certificate(relu) is None
    assert "Assumption 4.2 fails for relu" in readings.apriori_note(relu)
    plots.summary(relu).canvas.draw()


def test_all_nan_counts_as_not_recorded(data):
    hollow = data.assign(kl_upper=data.kl_upper * np.nan)
    assert "kl_upper" in plots.kl.missing(hollow)


def test_a_run_that_has_just_begun_or_has_no_decay(data):
    start = data.isel(time=[0], bound_time=[0])
    assert {p.name for p in plots.available(start, **MATERIAL)[0]} == {"cloud"}
    still = data.copy()
    still.attrs["lam"] = 0.0
    plots.summary(still.drop_vars("generator_rms")).canvas.draw()


def test_summary_holds_what_there_is(data):
    figure = plots.summary(data)
    titled = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert len(titled) == len(plots.FIGURES) - 1  # no clouds given
    assert figure._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="nothing to draw"):
        plots.summary(data[["drift_rms"]])


def test_nothing_stays_behind(data):
    before = dict(matplotlib.rcParams)
    plots.loss(data)
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_saved_files_are_the_same_twice(data, tmp_path):
    small = data[["loss"]]
    pictures, reasons = plots.save(small, tmp_path / "a")
    plots.save(small, tmp_path / "b")
    assert set(pictures) == {"loss"} and len(reasons) == len(plots.FIGURES) - 1
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_drawing_into_given_axes(data):
    _, axes = canvas.sheet(1, 2)
    assert plots.loss(data, axes[1]) is axes[1]


def test_titles_report_what_went_wrong(data):
    crossed = data.assign(w2_upper=data.w2_upper * 0.5)
    assert "contradict" in plots.w2(crossed).get_title(loc="left")
    above = data.assign(loss=data.loss * 1.0)
    above.loss.values[:, -1] = 5.0
    assert "crosses its certificate" in plots.loss(above).get_title(loc="left")
    low = data.assign(ntk_eigenvalue_min=data.ntk_eigenvalue_min * 0.3)
    assert "below Λ/2" in plots.kernel(low).get_title(loc="left")


def test_radius_is_drawn_where_it_can_be_seen(data):
    near = data.copy()
    near.attrs["ntk_lambda"] = 20.0
    labels = [text.get_text() for text in plots.w2(near).get_legend().get_texts()]
    assert any("radius R" in label for label in labels)


def test_lower_bounds_that_are_not_positive(data):
    null = data.assign(kl_lower=-abs(data.kl_lower))
    ax = plots.kl(null)
    ax.figure.canvas.draw()
    assert "at most" in ax.get_title(loc="left")


@pytest.mark.parametrize("replicates", [1, 4])
def test_predictions_of_a_regression(replicates):
    ax = plots.predictions(run_dataset(replicates=replicates, classes=False), test=held_out())
    assert "mean square" in ax.get_title(loc="left")


def test_brackets_take_errors_to_the_safe_side(data):
    b = readings.bracket(data, "kl")
    assert b.factor == pytest.approx(3.307, abs=1e-3)
    assert np.all(b.safe_lower < b.lower) and np.all(b.safe_upper > b.upper)
    assert len(b.t) == data.sizes["bound_time"] - 1
    assert readings.last(data, "kl_upper").endswith("]")


def test_certificate_lies_above_a_loss_it_certifies(data):
    bound = readings.loss_certificate(data)
    assert np.all(bound >= data.loss.values.mean(0) * (1 - 1e-12))


def test_cloud_picture_finds_the_direction_that_moved():
    start, end, _ = clouds(m=3000)
    end = end[:, ::1].copy()
    picture = readings.cloud_picture(start, end)
    assert abs(picture.before) < 0.1 < picture.after
    weights = np.linspace(0.5, 1.5, len(end))
    weighted = readings.cloud_picture(start, end, weights)
    assert weighted.after == pytest.approx(picture.after, abs=0.1)
    still = readings.cloud_picture(start, start)
    assert np.all(still.change == 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.02854, "0.0285"), (20.0, "20"), (1234.0, "1,234"), (6.5e-7, "6.5×10⁻⁷"), (-0.5, "−0.5"), (0, "0")],
)
def test_numbers_are_printed_as_a_reader_would_write_them(value, text):
    assert canvas.number(value) == text


def test_numbers_that_are_none():
    assert canvas.number(float("nan")) == "not available" and canvas.number(float("inf")) == "not finite"


@pytest.mark.parametrize("name", [name for name in plots.FIGURES if name not in ("cloud", "predictions")])
def test_a_law_that_never_moves_is_drawn_without_a_warning(name, data):
    still = data.copy(deep=True)
    for variable in still.data_vars:
        if still[variable].dtype.kind == "f":
            still[variable][...] = 0.0
    still.attrs["ntk_lambda"] = 0.0
    plots.FIGURES[name](still).figure.canvas.draw()
