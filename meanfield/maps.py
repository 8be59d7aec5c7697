"""Figures of a sweep, drawn from its Dataset: a map of regimes, and the sizes of changes against the width.

    regime_map(data, x="network.alpha", y="cloud.m", colour="kernel_drift", contour="test_loss")
    coordinate_check(data)

Both take what `sweep` returns, read every point at its end and average over seeds. `plots` has them under its name.
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from meanfield import canvas, ensemble
from meanfield.canvas import BLUE, GREEN, GREY, INK, MARKERS, ORANGE, PURPLE, number
from meanfield.errors import InputError

if TYPE_CHECKING:
    import xarray

Array = np.ndarray
SEEDS = ("cloud.seed", "replicate")
SYMBOLS = {
    "network.alpha": r"$\alpha$",
    "cloud.m": r"width $m$",
    "flow.lam": r"$\lambda$",
    "data.n": r"samples $n$",
    "flow.eta": r"step $\eta$",
    "kernel_drift": r"kernel drift $\|H_t - H_0\|_F / \|H_0\|_F$",
    "kernel_alignment": "alignment of the kernel with the labels",
    "test_loss": "test loss",
    "test_loss_unbiased": "test loss",
    "loss": r"loss $L$",
}
# What `coordinate_check` draws: title, names to be tried in this order, root taken or not.
CHANGES = (
    (r"output $f$: rms change", ("output_change",), False),
    (r"particles $z$: rms distance to the reference", ("coupled_distance", "travelled"), True),
    (r"kernel $H$: relative change", ("kernel_drift",), False),
)


def at_the_end(data: "xarray.Dataset", over: Sequence[str] = SEEDS) -> "xarray.Dataset":
    """Return means and standard errors over seeds and replicates of what every point reads at its end."""
    end = ensemble.last(data)
    return ensemble.over(end, *(key for key in over if key in end.dims))


def exponents(labels: Sequence[Any]) -> Array | None:
    """Return e for labels "1", "m^e", "sqrt(m)" and "m"; None where one is not of this form."""
    out = []
    for label in labels:
        text = str(label).replace(" ", "")
        power = re.fullmatch(r"m(?:\^(-?[0-9.]+))?", text)
        if text not in ("1", "1.0", "sqrt(m)") and not power:
            return None
        out.append(0.5 if text == "sqrt(m)" else float(power[1] or 1) if power else 0.0)
    return np.array(out)


def _axis(data: "xarray.Dataset", key: str) -> tuple[Array, str, bool]:
    """Return the numbers along a key, in the order of the Dataset, words for them, and whether they are spread out."""
    labels = data[key].values
    if labels.dtype.kind in "iuf":
        spread = bool((labels > 0).all()) and len(labels) > 1 and labels.max() >= 4 * labels.min()
        return labels.astype(float), SYMBOLS.get(key, key), spread
    powers = exponents(labels.tolist())
    if powers is None:
        raise InputError(f"the values of {key} are words without an order: {', '.join(map(str, labels))}")
    return powers, r"exponent $a$ of $\alpha = m^a$", False


def _plane(data: "xarray.Dataset", name: str, x: str, y: str) -> Array:
    """Return a variable as a matrix (y, x), or say what is in the way."""
    if name not in data or data[name].dtype.kind not in "biuf":
        known = sorted(str(n) for n, v in data.data_vars.items() if {x, y} <= set(v.dims) and v.dtype.kind in "biuf")
        raise InputError(f"the sweep has no numbers {name!r} at the end of its points; it has {', '.join(known)}")
    more = [str(dim) for dim in data[name].dims if dim not in (x, y)]
    if more:
        raise InputError(f"{name} also depends on {', '.join(more)}: choose with data.sel({{{more[0]!r}: ...}}) first")
    both = data[[x, y]].coords
    return np.asarray(data[name].broadcast_like(both.to_dataset()).transpose(y, x).values)


def regime_map(
    data: "xarray.Dataset",
    x: str = "network.alpha",
    y: str = "cloud.m",
    *,
    colour: str = "kernel_drift",
    contour: str | None = "test_loss",
    ax: Any = None,
) -> Any:
    """Draw where training stays in the kernel regime and where features are learned, and return the axes.

    Every point of the sweep is a field with the value of `colour` at its end, mean over seeds and replicates; a value
    within two standard errors of 0 has a cross: there the colour is noise. Lines join equal values of `contour`.

    Parameters
    ----------
    data : Dataset
        Of a sweep over `x` and `y`; other keys but seeds must have been chosen (`data.sel`).
    x, y : str
        Swept keys: of numbers, or of alpha as powers of m, whose exponents are then the axis.
    colour, contour : str
        Variables; None for no lines. `contour` is left out where the sweep has not got it.

    Raises
    ------
    InputError
        If a key was not swept, a variable is not there, or depends on more.
    """
    for key in (x, y):
        if key not in data.dims:
            raise InputError(f"{key!r} was not swept: this Dataset has {', '.join(map(str, data.dims))}")
    mean = at_the_end(data, [key for key in SEEDS if key not in (x, y)])
    values = _plane(mean, colour, x, y)
    with canvas.style():
        ax = canvas.sheet()[1][0] if ax is None else ax
        edges = [_draw_axis(ax, mean, key, which) for key, which in ((x, "x"), (y, "y"))]
        order = np.ix_(edges[1][1], edges[0][1])
        shown, log = values[order], bool((values[np.isfinite(values)] > 0).all())
        mesh = ax.pcolormesh(edges[0][0], edges[1][0], shown, cmap="viridis", norm=_norm(shown, log))
        ax.figure.colorbar(mesh, ax=ax, label=SYMBOLS.get(colour, colour))
        _cross(ax, edges, shown, _errors(mean, colour, x, y)[order])
        if contour is not None and contour in mean and min(shown.shape) > 1:
            _lines(ax, edges, _plane(mean, contour, x, y)[order], SYMBOLS.get(contour, contour))
        ax.grid(False)
        finite = shown[np.isfinite(shown)]
        least, most = (number(float(f(finite)), 2) if finite.size else "?" for f in (np.min, np.max))
        ax.set_title(f"{colour.replace('_', ' ').capitalize()}: from {least} to {most}")
    return ax


def _draw_axis(ax: Any, data: "xarray.Dataset", key: str, which: str) -> tuple[Array, Array, Array]:
    """Prepare an axis; return the edges of the fields, the order of the values, and their places."""
    values, label, log = _axis(data, key)
    order = np.argsort(values)
    places = np.log(values[order]) if log else values[order]
    middle = (places[1:] + places[:-1]) / 2
    ends = (places[:1] - 0.5, places[:1] + 0.5)
    if len(places) > 1:
        ends = places[:1] - (middle[0] - places[0]), places[-1:] + (places[-1] - middle[-1])
    getattr(ax, f"set_{which}label")(label)
    axis = getattr(ax, f"{which}axis")
    axis.set_ticks(places, [number(float(v)) for v in values[order]])
    return np.concatenate([ends[0], middle, ends[1]]), order, places


def _norm(values: Array, log: bool) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return LogNorm(low, high if high > low else 1.1 * low) if log and finite.size else Normalize(low, high)


def _errors(data: "xarray.Dataset", name: str, x: str, y: str) -> Array:
    """Return the standard errors over seeds; NaN where there are none."""
    if f"{name}_se" in data:
        return _plane(data, f"{name}_se", x, y)
    return np.full((data.sizes[y], data.sizes[x]), math.nan)


def _cross(ax: Any, edges: Sequence[tuple[Array, Array, Array]], values: Array, errors: Array) -> None:
    rows, columns = np.nonzero(np.abs(values) <= 2 * errors)
    if len(rows):
        ax.plot(edges[0][2][columns], edges[1][2][rows], "x", color="white", ms=7, mew=1.6, label="0 within 2 errors")
        ax.legend(loc="upper left", labelcolor="black", facecolor=GREY)


def _lines(ax: Any, edges: Sequence[tuple[Array, Array, Array]], values: Array, label: str) -> None:
    if np.isfinite(values).sum() < 4 or np.nanmax(values) == np.nanmin(values):
        return
    from matplotlib.patheffects import withStroke

    drawn = ax.contour(edges[0][2], edges[1][2], values, levels=6, colors=INK, linewidths=1.1)
    halo = [withStroke(linewidth=3.0, foreground="white", alpha=0.75)]  # seen on every colour
    drawn.set(path_effects=halo)
    for text in ax.clabel(drawn, fontsize=7.5, fmt=lambda level: number(float(f"{level:.6g}"))):
        text.set(path_effects=halo)
    canvas.note(ax, f"lines: {label}", "lower left")


def coordinate_check(data: "xarray.Dataset", scaling: str = "network.alpha", axes: Sequence[Any] | None = None) -> Any:
    """Draw the size of the change of output, particles and kernel against the width, a line for each scaling.

    What stays flat keeps its size as the width grows; what falls is frozen in the limit. The legend has the slope of
    log change against log m by least squares, with its standard error over seeds where there are two or more; bars are
    two standard errors over seeds and replicates.

    Parameters
    ----------
    data : Dataset
        Of a sweep over "cloud.m" and, for several lines, `scaling`; `output_change`, `coupled_distance` and
        `kernel_drift` are drawn where they were recorded.
    axes : sequence of Axes, optional
        One for each.

    Returns
    -------
    list of Axes

    Raises
    ------
    InputError
        If "cloud.m" was not swept over two widths, none of the variables was recorded, or they depend on more.
    """
    if data.sizes.get("cloud.m", 0) < 2:
        raise InputError('a coordinate check needs two widths at least: sweep "cloud.m"')
    end = ensemble.last(data)
    found = [
        (title, next(n for n in names if n in end), root)
        for title, names, root in CHANGES
        if any(n in end for n in names)
    ]
    if not found:
        raise InputError("nothing to check: record output_change, coupled_distance or kernel_drift")
    with canvas.style():
        drawn = list(canvas.sheet(1, len(found), width=4.6, height=4.0)[1] if axes is None else axes)
        for ax, (title, name, root) in zip(drawn, found, strict=False):
            variable = end[name] ** 0.5 if root else end[name]
            _check_one(ax, variable, scaling)
            ax.set_title(title)
            ax.set_xlabel(SYMBOLS["cloud.m"])
            ax.set_ylabel("size of the change at the end")
    return drawn


def _check_one(ax: Any, variable: "xarray.DataArray", scaling: str) -> None:
    pooled = [dim for dim in SEEDS if dim in variable.dims]
    more = [dim for dim in variable.dims if dim not in (*pooled, "cloud.m", scaling)]
    if more:
        raise InputError(f"{variable.name} also depends on {', '.join(map(str, more))}: choose with data.sel first")
    lines = variable[scaling].values if scaling in variable.dims else [None]
    m = variable["cloud.m"].values.astype(float)
    seen = []
    for k, label in enumerate(lines):
        one = variable if label is None else variable.sel({scaling: label})
        rows = one.transpose("cloud.m", *pooled).values.reshape(len(m), -1)
        mean, count = rows.mean(1), rows.shape[1]
        error = rows.std(1, ddof=1) / math.sqrt(count) if count > 1 else np.zeros(len(m))
        style = {"color": (BLUE, ORANGE, GREEN, PURPLE, GREY)[k % 5], "marker": MARKERS[k % len(MARKERS)]}
        name = "" if label is None else f"α = {label}: "
        ax.errorbar(m, mean, 2 * error, lw=1.4, ls=("-", "--", "-.", ":")[k % 4], label=name + _slope(m, rows), **style)
        seen.append(mean)
    ax.set_xscale("log", base=2)
    ax.set_xticks(m, [number(v) for v in m])
    ax.minorticks_off()
    if all((mean[np.isfinite(mean)] > 0).all() for mean in seen):
        canvas.log_axis(ax.yaxis, *canvas.positive_limits(*seen))
    canvas.legend(ax, "best")


def _slope(m: Array, rows: Array) -> str:
    """Return the slope of log change against log m, with its error over the columns, in words."""
    if not (np.isfinite(rows) & (rows > 0)).all():
        return "no slope (zero or missing)"
    slopes = np.polyfit(np.log(m), np.log(rows), 1)[0]
    error = f" ± {slopes.std(ddof=1) / math.sqrt(len(slopes)):.2f}" if len(slopes) > 1 else ""
    return f"slope {round(slopes.mean(), 2) + 0.0:.2f}{error}".replace("-", "−")
