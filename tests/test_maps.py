"""Figures of a sweep: fields, crosses, lines and slopes where the numbers are known."""

import re

import numpy as np
import pytest
import xarray

from meanfield import maps, plots
from meanfield.errors import InputError

WIDTHS, SCALINGS, SEEDS = [64, 128, 256], ["sqrt(m)", "1", "m^0.25"], [0, 1, 2]


def swept(noise: float = 0.0) -> xarray.Dataset:
    """Changes that are powers of m with exponents -a, at the end of three bounds; alpha = m^a."""
    rng = np.random.default_rng(0)
    powers = np.array([0.5, 0.0, 0.25])[:, None, None] * np.ones((3, 3, 3))
    m = np.array(WIDTHS, dtype=float)[None, :, None]
    size = m**-powers * (1 + noise * rng.normal(size=powers.shape))
    dims = ("network.alpha", "cloud.m", "cloud.seed")
    times = np.array([0.0, 0.5, 1.0])
    return xarray.Dataset(
        {
            "bounds": (dims, np.full((3, 3, 3), 3)),
            "records": (dims, np.full((3, 3, 3), 3)),
            "kernel_drift": ((*dims, "bound_time"), size[..., None] * times),
            "test_loss": ((*dims, "replicate", "bound_time"), np.stack([size, size], -1)[..., None] * (2 - times)),
            "output_change": ((*dims, "replicate", "bound_time"), np.stack([size, size], -1)[..., None] * times),
            "coupled_distance": ((*dims, "replicate", "time"), np.stack([size, size], -1)[..., None] ** 2 * times),
            "status": (dims, np.full((3, 3, 3), "finished", dtype=object)),
        },
        {"network.alpha": SCALINGS, "cloud.m": WIDTHS, "cloud.seed": SEEDS, "bound_time": times, "time": times},
    )


def test_the_map_has_the_values_in_the_order_of_the_axes():
    ax = plots.regime_map(swept())
    (mesh,) = [c for c in ax.collections if type(c).__name__ == "QuadMesh"]
    m = np.array(WIDTHS, dtype=float)[:, None]
    np.testing.assert_allclose(np.asarray(mesh.get_array()), m ** -np.array([0.0, 0.25, 0.5]))  # alpha in order
    assert "exponent" in ax.get_xlabel() and [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.25", "0.5"]
    assert "width" in ax.get_ylabel() and [t.get_text() for t in ax.get_yticklabels()] == ["64", "128", "256"]
    assert ax.get_title(loc="left") == "Kernel drift: from 0.062 to 1" and "lines: test loss" in ax.texts[-1].get_text()
    ax.figure.canvas.draw()


def test_values_within_their_error_have_a_cross():
    data = swept()
    data["kernel_drift"][1, 0, :, -1] = [-0.1, 0.1, 0.2]
    ax = plots.regime_map(data, contour=None)
    (cross,) = [line for line in ax.lines if line.get_marker() == "x"]
    np.testing.assert_allclose(cross.get_xydata(), [[0.0, np.log(64)]])
    assert not [line for line in plots.regime_map(swept()).lines if line.get_marker() == "x"]


def test_without_seeds_the_errors_are_those_of_the_runs():
    data = swept().isel({"cloud.seed": 0}, drop=True)
    data["kernel_drift_se"] = data.kernel_drift * [0.0, 1.0, 0.4]
    data["kernel_drift_se"][1, 0, -1] = 10.0
    data["kernel_drift"][2, 1, -1] = data["kernel_drift_se"][2, 1, -1] = 0.0
    (cross,) = [line for line in plots.regime_map(data, contour=None).lines if line.get_marker() == "x"]
    np.testing.assert_allclose(np.sort(cross.get_xydata(), axis=0), [[0.0, np.log(64)], [0.25, np.log(128)]])


def test_lines_have_short_labels():
    data = swept()
    data["test_loss"] = data.test_loss * 0.3
    texts = [text.get_text() for text in plots.regime_map(data).texts]
    assert len(texts) > 2 and not any(re.fullmatch(r"[0-9]*[.][0-9]*0", text) for text in texts)


def test_what_a_map_cannot_show_is_said():
    data = swept()
    for options, words in (
        ({"x": "flow.lam"}, "'flow.lam' was not swept"),
        ({"colour": "drift"}, "no numbers 'drift' .*kernel_drift"),
        ({"x": "cloud.seed"}, r"kernel_drift also depends on network\.alpha"),
    ):
        with pytest.raises(InputError, match=words):
            plots.regime_map(data, **options)
    more = data.expand_dims({"flow.lam": [0.1, 0.2]})
    with pytest.raises(InputError, match=r"also depends on flow\.lam"):
        plots.regime_map(more)
    plots.regime_map(more.sel({"flow.lam": 0.1}), "network.alpha", "cloud.m", contour="nothing")
    words = data.assign_coords({"network.alpha": ["tanh", "erf", "relu"]})
    with pytest.raises(InputError, match="words without an order"):
        plots.regime_map(words)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_maps_of_nothing_are_drawn(value):
    data = swept()
    data["kernel_drift"][...] = value
    plots.regime_map(data).figure.canvas.draw()
    axes = plots.coordinate_check(data)
    assert all("no slope" in text.get_text() for text in axes[2].get_legend().get_texts())
    axes[0].figure.canvas.draw()


def test_slopes_are_the_exponents():
    axes = plots.coordinate_check(swept())
    assert len(axes) == 3
    for ax in axes:
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert [text.partition(": ")[0] for text in texts] == [f"α = {label}" for label in SCALINGS]
        assert [text.split()[-3:] for text in texts] == [[slope, "±", "0.00"] for slope in ("−0.50", "0.00", "−0.25")]
        ax.figure.canvas.draw()


def test_slopes_have_the_error_over_seeds():
    m, rows = np.array(WIDTHS, dtype=float), np.array([[1.0, 2.0], [1.0, 1.0], [1.0, 0.5]])
    assert maps._slope(m, rows) == "slope −0.50 ± 0.50"  # 0 and -1
    assert maps._slope(m, rows[:, 1:]) == "slope −1.00"


def test_what_cannot_be_checked_is_refused():
    data = swept()
    with pytest.raises(InputError, match="two widths"):
        plots.coordinate_check(data.isel({"cloud.m": [0]}))
    with pytest.raises(InputError, match="nothing to check"):
        plots.coordinate_check(data[["status", "bounds", "records"]])
    with pytest.raises(InputError, match=r"also depends on flow\.lam"):
        plots.coordinate_check(data.expand_dims({"flow.lam": [0.1, 0.2]}))
    (ax,) = plots.coordinate_check(data.sel({"network.alpha": "1"})[["kernel_drift", "bounds", "records"]])
    assert "slope" in ax.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize(
    ("labels", "found"),
    [(["1", "m^0.3", "sqrt(m)", "m"], [0, 0.3, 0.5, 1]), (["1.0", "m^-1"], [0, -1]), (["1", "20.0"], None)],
)
def test_exponents_of_alpha(labels, found):
    powers = maps.exponents(labels)
    assert powers is None if found is None else powers.tolist() == found
