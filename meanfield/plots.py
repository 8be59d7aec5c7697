"""Figures of a run, drawn from its Dataset alone: nothing here simulates, nothing touches pyplot.

Every figure is a function of (data, axes) decorated with `panel`; it draws and returns its title, the
message of the figure.  Its docstring is the caption that `report` prints: what is shown, what it reads when
the truth is zero, where the formula comes from.  To add a figure, write one such function: the summary, the
report and the tests find it in FIGURES.

    plots.loss(data)                  axes of one figure; plots.loss(data, ax) draws into yours
    plots.summary(data)               all of them on one sheet
    plots.save(data, directory)       PNG and PDF of each
    plots.regime_map(data)            of a sweep, as plots.coordinate_check (`maps`)

Read next: `readings`, which turns a Dataset into the curves drawn here; `canvas`, for style and numbers.
"""

from pathlib import Path
from typing import Any

import numpy as np

from meanfield import canvas, readings, theory
from meanfield.canvas import BLUE, GREEN, GREY, INK, MARKERS, ORANGE, PURPLE, number
from meanfield.errors import InputError
from meanfield.maps import coordinate_check, regime_map
from meanfield.panels import FIGURES, Panel, available, panel

__all__ = ["FIGURES", "Panel", "available", "coordinate_check", "panel", "regime_map", "save", "summary"]

TIME = r"time $t$ of equation (3.4)"


def _time_axis(ax: Any, *times: np.ndarray) -> None:
    ax.set_xlabel(TIME)
    low, high = canvas.positive_limits(*times, room=1.15)
    canvas.log_axis(ax.xaxis, low, high)


@panel("loss")
def loss(data: Any, ax: Any) -> str:
    """Square loss L(t) = |f − y|²/n: mean over replicates with the range of the single ones (band).

    The unbiased form (products of residuals of different replicates) removes the O(1/m) bias of a squared
    mean; where the truth is zero it scatters about zero and its negative values are not drawn. The
    certificate C2 is an upper bound computed from the measured smallest NTK eigenvalue and the measured
    e(t), √L(t) ≤ √L(0) E(0,t) + α λ ∫ E(s,t) |e(s)| ds, in place of Lemma 5.2 of [CCGZ20], whose constants
    ask for an α out of reach of any run (condition (4.1)).
    """
    t, values = data.time.values, data.loss.values
    mean, label = values.mean(0), "loss, mean over replicates" if len(values) > 1 else "loss"
    later = t > 0
    ax.fill_between(t[later], values.min(0)[later], values.max(0)[later], color=BLUE, alpha=0.25, lw=0)
    ax.plot(t[later], mean[later], color=BLUE, label=label)
    shown = [mean, values]
    if "loss_unbiased" in data:
        unbiased = np.where(data.loss_unbiased.values > 0, data.loss_unbiased.values, np.nan)
        ax.plot(t[later], unbiased[later], color=GREEN, ls=(0, (1, 1.2)), lw=1.6, label="loss, unbiased")
    bound = readings.loss_certificate(data)
    title = f"The loss falls from {number(mean[0])} to {number(mean[-1])}"
    if mean[-1] >= mean[0]:
        title = f"The loss goes from {number(mean[0])} to {number(mean[-1])}"
    if bound is not None:
        ax.plot(t[later], bound[later], color=ORANGE, ls="--", label="certificate C2 (upper bound)")
        shown.append(bound)
        above = np.flatnonzero(mean > bound * (1 + 1e-9))
        title += (
            f" and crosses its certificate at t = {number(t[above[0]])}" if len(above) else ", below its certificate"
        )
    if np.any(mean[later] > 0):
        canvas.log_axis(ax.yaxis, *canvas.positive_limits(*shown))
    _time_axis(ax, t)
    ax.set_ylabel(r"square loss $L$")
    canvas.legend(ax, "lower left", readings.apriori_note(data))
    return title


def _bracket(data: Any, ax: Any, name: str, symbol: str, colour: str) -> str:
    """Draw a bracket with its errors and sources, and return the title."""
    b = readings.bracket(data, name)
    ax.fill_between(b.t, b.lower, b.upper, color=colour, alpha=0.38, lw=0, label=f"between the bounds on {symbol}")
    label = f"± {b.factor:.1f} standard errors" if b.factor else "one replicate: no standard errors"
    ax.fill_between(b.t, b.upper, b.safe_upper, color=colour, alpha=0.14, lw=0, label=label)
    ax.fill_between(b.t, np.maximum(b.safe_lower, 1e-300), np.maximum(b.lower, 1e-300), color=colour, alpha=0.14, lw=0)
    for values, sources, side, face in (
        (b.upper, b.upper_source, "upper", colour),
        (b.lower, b.lower_source, "lower", "white"),
    ):
        ax.plot(b.t, np.where(values > 0, values, np.nan), color=colour, lw=1.3)
        for k, source in enumerate(dict.fromkeys(sources)):
            here = (np.asarray(sources) == source) & (values > 0)
            if not here.any():
                continue
            mark = {"marker": MARKERS[k % len(MARKERS)], "mfc": face, "mec": colour, "ls": "none"}
            ax.plot(b.t[here], values[here], label=f"{side}: {source}", **mark)
    _time_axis(ax, b.t)
    return b.message(symbol)


@panel("kl_lower", "kl_upper")
def kl(data: Any, ax: Any) -> str:
    """Relative entropy KL(pₜ ‖ p₀) in nats: the truth lies in the dark band, up to errors.

    Lighter bands are the standard errors over replicates, taken to the safe side by the Student factor;
    markers name the candidate that won. Upper: discrete account of the steps (log-Sobolev contraction of
    the noise, exact entropy change of each kick); lower: Donsker and Varadhan's variational formula
    [DonskerVaradhan75] and the Gaussian of the same moments. Crosses: nearest-neighbour point estimate
    [KozachenkoLeonenko87], debiased by the coupled reference; it shrinks with the dimension and is no
    bound. Without training both bounds read 0.
    """
    title = _bracket(data, ax, "kl", "KL(pₜ ‖ p₀)", BLUE)
    b = readings.bracket(data, "kl")
    if "kl_estimate" in data:
        estimate = data.kl_estimate.values[data.bound_time.values > 0]
        estimate = np.where(estimate > 0, estimate, np.nan)
        ax.plot(b.t, estimate, ls="none", marker="x", color=INK, label="point estimate (no bound)", alpha=0.7)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(b.lower, b.upper, room=2.5))
    ax.set_ylabel(r"KL$(p_t\,\|\,p_0)$ in nats")
    ax.legend(loc="lower right")
    return title


@panel("w2_lower", "w2_upper")
def w2(data: Any, ax: Any) -> str:
    """Wasserstein distance W₂(pₜ, p₀) in units of the parameters: the truth lies in the dark band.

    Upper: distance to the coupled reference (same start, same noise, no loss), or Talagrand's inequality
    √(2 KL); lower: Gelbrich's bound from the first two moments [Gelbrich90], or a Kantorovich dual
    potential. Grey line or remark: what the plug-in distance of two subsamples reads, here and for two
    samples of the same p₀ (where the truth is 0): above a few dimensions it measures the sample size. R is
    the radius within which Lemma 5.1 of [CCGZ20], with explicit constants, keeps the smallest NTK
    eigenvalue above Λ/2. Without training both bounds read 0.
    """
    title = _bracket(data, ax, "w2", "W₂(pₜ, p₀)", PURPLE)
    b = readings.bracket(data, "w2")
    shown, readout = [b.lower, b.upper], []
    for name, style, text in (
        ("w2_plugin", "-.", "plug-in W₂ reads"),
        ("w2_plugin_null", ":", "where the truth is 0 it reads"),
    ):
        if readings.recorded(data, name):
            values = readings.at_bounds(data, name)
            ax.plot(b.t, values, color=GREY, ls=style, lw=1.5)
            readout.append(f"{text} {number(values[-1])}")
            # A plug-in far above the bracket would squeeze it; then its reading is told, not drawn.
            shown += [values] if np.nanmax(values) < 6 * np.nanmax(b.upper) else []
    if readout:
        canvas.note(ax, ("↑ " if len(shown) == 2 else "grey: ") + "; ".join(readout), "upper left")
    low, high = canvas.positive_limits(*shown, room=2.0)
    R, remark = readings.radius(data), ""
    if R is not None and R > low / 30:
        low = min(low, R / 2)
        ax.axhline(R, color=INK, ls="--", lw=1.2, label=f"radius R = {number(R)} of Lemma 5.1")
    elif R is not None:
        remark = f"radius R of Lemma 5.1: {number(R)}, below the figure"
    canvas.log_axis(ax.yaxis, low, high)
    ax.set_ylabel(r"$W_2(p_t, p_0)$ in units of the parameters")
    canvas.legend(ax, "lower right", remark)
    return title


@panel("travelled", "w2_lower", "w2_upper")
def travel(data: Any, ax: Any) -> str:
    """How far single particles travel, √E|Zₜ − Z₀|², against how far their law moves, W₂(pₜ, p₀).

    The dashed curve √(2D(1 − e^(−λt))) is what decay and noise alone do to a particle whose law stays p₀:
    there the law moves by exactly 0. That particles travel far while the law hardly moves is why the kernel
    picture survives noise and weight decay [CCGZ20].
    """
    t, b = data.time.values, readings.bracket(data, "w2")
    later = t > 0
    far = np.sqrt(data.travelled.values)
    ax.fill_between(t[later], far.min(0)[later], far.max(0)[later], color=ORANGE, alpha=0.25, lw=0)
    ax.plot(t[later], far.mean(0)[later], color=ORANGE, label=r"a particle: $(E|Z_t - Z_0|^2)^{1/2}$")
    free = np.sqrt(theory.travelled(t, data.attrs["D"], data.attrs["lam"]))
    label = r"decay and noise alone: $(2D(1 - e^{-\lambda t}))^{1/2}$"
    ax.plot(t[later], free[later], color=INK, ls="--", lw=1.2, label=label)
    ax.fill_between(b.t, np.maximum(b.lower, 1e-300), b.upper, color=PURPLE, alpha=0.38, lw=0)
    ax.plot(
        b.t,
        b.upper,
        color=PURPLE,
        ls="-.",
        lw=1.3,
        marker="s",
        ms=3.5,
        label=r"their law: $W_2(p_t, p_0)$, bracket",
    )
    ax.plot(
        b.t,
        np.where(b.lower > 0, b.lower, np.nan),
        color=PURPLE,
        ls="-.",
        lw=1.3,
        marker="s",
        ms=3.5,
        mfc="white",
    )
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(far, free, b.lower, b.upper))
    _time_axis(ax, t)
    ax.set_ylabel("distance in parameter space")
    ax.legend(loc="best")
    if not b.upper[-1] > 0:
        return "Particles travel, their law stays where it was"
    ratio = far.mean(0)[-1] / b.upper[-1]
    return f"Particles travel {number(ratio, 2)} times as far as their law"


@panel("ntk_eigenvalue_min")
def kernel(data: Any, ax: Any) -> str:
    """Smallest eigenvalue of the tangent kernel H(pₜ): every replicate (thin) and their mean.

    Λ is its value at p₀ (closed form or Mehler series). Lemma 5.1 of [CCGZ20] and certificate C1 ask for at
    least Λ/2. H is measured centred, as its value at p₀ plus the mean change against the coupled reference;
    sampling can only lower the mean of a smallest eigenvalue, which is the safe side. If the kernel does
    not move, it reads Λ.
    """
    t, low = data.bound_time.values, data.ntk_eigenvalue_min.values
    later, Lambda = t > 0, readings.Lambda(data)
    for k, one in enumerate(low):
        label = "single replicates" if k == 0 and len(low) > 1 else None
        ax.plot(t[later], one[later], color=GREEN, lw=0.8, alpha=0.5, label=label)
    mean = low.mean(0)
    ax.plot(t[later], mean[later], color=GREEN, marker="o", label=r"$\lambda_{\min}(H(p_t))$, mean")
    ax.axhline(Lambda, color=INK, ls="--", lw=1.2, label=rf"$\Lambda$ = {number(Lambda)}, at $p_0$")
    ax.axhline(Lambda / 2, color=ORANGE, ls=":", lw=1.8, label=r"$\Lambda/2$")
    top = max(float(np.nanmax(low)), Lambda)
    ax.set_ylim(min(0.0, 1.1 * float(np.nanmin(low))), 1.22 * top if top > 0 else 1.0)
    _time_axis(ax, t)
    ax.set_ylabel(r"smallest NTK eigenvalue")
    ax.legend(loc="lower left", ncols=2)
    worst = float(np.nanmin(mean))
    if worst >= Lambda:
        return "The smallest NTK eigenvalue does not fall below Λ"
    if worst >= Lambda / 2:
        return f"The smallest NTK eigenvalue keeps {int(100 * worst / Lambda)} % of Λ or more"
    return f"The smallest NTK eigenvalue falls below Λ/2, at t = {number(t[int(np.nanargmin(mean))])}"


@panel(material="clouds")
def cloud(data: Any, ax: Any, clouds: Any) -> str:
    """Cloud before and after in its two most telling coordinates: u against s = θ·v.

    v is the direction of θ in which E[uθ] changed most. Colour: density gained (solid contours) and lost
    (dashed) between the start and the end; grey points: particles at the end. Learning a function writes
    itself as a correlation between u and s; the marginals hardly change. Where the law did not move, the
    picture shows the sampling noise of two histograms.
    """
    picture = readings.cloud_picture(*clouds)
    change, grid = picture.change, picture.grid
    top = float(np.abs(change).max()) or 1.0
    ax.pcolormesh(grid, grid, change.T, cmap="RdBu_r", vmin=-top, vmax=top, shading="gouraud", rasterized=True)
    ax.scatter(picture.s, picture.u, s=2.0, color="#333333", alpha=0.25, lw=0, rasterized=True)
    levels = np.array([0.25, 0.5, 0.75]) * top
    ax.contour(grid, grid, change.T, levels=levels, colors=ORANGE, linewidths=1.1, linestyles="solid")
    ax.contour(grid, grid, change.T, levels=-levels[::-1], colors=BLUE, linewidths=1.1, linestyles="dashed")
    for sign, where in (("+", change.argmax()), ("−", change.argmin())):
        row, column = np.unravel_index(where, change.shape)
        ax.text(grid[row], grid[column], sign, color="white", fontsize=15, fontweight="bold", ha="center", va="center")
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=ORANGE, label="density gained"),
        Line2D([], [], color=BLUE, ls="--", label="density lost"),
        Line2D([], [], color="#333333", marker=".", ls="none", label="particles at the end"),
    ]
    ax.legend(handles=handles, loc="upper left")
    ax.set(xlim=(grid[0], grid[-1]), ylim=(grid[0], grid[-1]))
    ax.set_xlabel(r"$s = \theta \cdot v$, $v$ along the change of $E[u\theta]$")
    ax.set_ylabel(r"output weight $u$")
    ax.grid(False)
    canvas.note(
        ax,
        f"largest change {number(100 * top / picture.peak, 2)} % of the peak of the density",
        "lower right",
    )
    return f"The cloud tilts: E[u s] goes from {number(picture.before, 2)} to {number(picture.after, 2)}"


@panel("prediction", "label", optional="test")
def predictions(data: Any, ax: Any, test: Any = None) -> str:
    """Network output f against the labels y at the end of the run, mean over replicates.

    Test data are shown where given. For labels ±1 the histograms of both classes, the sign of f being the
    decision; otherwise f against y with the range over replicates. At the start the limit law predicts 0
    everywhere.
    """
    y, f = data.label.values, data.prediction.values[:, -1]
    if test is None and "test_prediction" in data:
        test = data.test_label.values, data.test_prediction.values.mean(0)
    ax.axvline(0, color=GREY, lw=0.8)
    if set(np.unique(y)) <= {-1.0, 1.0}:
        return _classes(ax, y, f.mean(0), test)
    return _regression(ax, y, f, test)


def _classes(ax: Any, y: np.ndarray, f: np.ndarray, test: Any) -> str:
    pools = [f] if test is None else [f, np.asarray(test[1])]
    reach = max(1.05, *(float(np.abs(pool).max()) for pool in pools)) * 1.04
    bins = np.linspace(-reach, reach, 41)
    for label, colour, hatch in ((1.0, BLUE, ""), (-1.0, ORANGE, "////")):
        fill = {"facecolor": colour, "alpha": 0.55, "hatch": hatch, "edgecolor": "white"}
        ax.hist(
            f[y == label],
            bins,
            density=True,
            label=f"training, y = {int(label):+d}".replace("-", "−"),
            **fill,
        )
        if test is not None:
            of_test = np.asarray(test[1])[np.asarray(test[0]) == label]
            line = {"histtype": "step", "color": colour, "lw": 1.6, "ls": "-" if label > 0 else "--"}
            ax.hist(of_test, bins, density=True, label=f"test, y = {int(label):+d}".replace("-", "−"), **line)
        ax.axvline(label, color=colour, lw=1.0, ls=":")
    ax.set(xlabel=r"network output $f(x_i)$ at the end", ylabel="density of samples in each class")
    ax.set_ylim(0, ax.get_ylim()[1] * 1.3)
    ax.legend(loc="upper center", ncols=2)
    title = f"{int(np.sum(f * y <= 0))} of {len(y)} training samples misclassified"
    if test is None:
        return title
    return title + f", {int(np.sum(np.asarray(test[0]) * np.asarray(test[1]) <= 0))} of {len(test[0])} test samples"


def _regression(ax: Any, y: np.ndarray, f: np.ndarray, test: Any) -> str:
    mean = f.mean(0)
    spread = np.stack([mean - f.min(0), f.max(0) - mean])
    ax.errorbar(y, mean, spread, fmt="o", ms=4, color=BLUE, ecolor=BLUE, elinewidth=0.8, label="training")
    if test is not None:
        ax.plot(test[0], test[1], "^", ms=4, mfc="white", mec=ORANGE, label="test")
    ends = np.array([min(y.min(), mean.min()), max(y.max(), mean.max())])
    ax.plot(ends, ends, color=INK, ls="--", lw=1.0, label="f = y")
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set(xlabel=r"label $y_i$", ylabel=r"network output $f(x_i)$ at the end")
    ax.legend(loc="upper left")
    share = 1 - float(np.mean((y - mean) ** 2)) / (float(np.mean(y**2)) or 1.0)
    return f"The network reproduces {number(100 * share, 2)} % of the labels' mean square"


def summary(data: Any, clouds: Any = None, test: Any = None) -> Any:
    """Return one sheet with every figure that the Dataset allows.

    Parameters
    ----------
    data : xarray.Dataset
    clouds : (start, end, weights or None), optional
        Two (m, D) arrays of particles, u in the last column.
    test : (labels, predictions), optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    panels, reasons = available(data, clouds=clouds, test=test)
    if not panels:
        raise InputError("There is nothing to draw. " + " ".join(reasons))
    columns = {1: 1, 2: 2, 4: 2, 7: 4, 8: 4}.get(len(panels), 3)
    with canvas.style():
        figure, axes = canvas.sheet(-(-len(panels) // columns), columns, width=5.6, height=4.0)
        for item, ax in zip(panels, axes, strict=False):
            item(data, ax, clouds=clouds, test=test)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        if len(axes) > len(panels):
            canvas.table(axes[len(panels)], "At the end; bounds: value [safe side]", readings.key_numbers(data))
        title = str(data.attrs.get("title", ""))
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=13, parse_math=False)  # a dollar is a dollar
    return figure


def save(data: Any, directory: Path, clouds: Any = None, test: Any = None) -> tuple[dict[str, bytes], list[str]]:
    """Write PNG and PDF of every figure; return the PNG bytes by name, and a sentence for each left out."""
    panels, reasons = available(data, clouds=clouds, test=test)
    pictures = {}
    for item in panels:
        figure = item(data, clouds=clouds, test=test).figure
        pictures[item.name] = canvas.save(figure, Path(directory) / item.name)[0].read_bytes()
    return pictures, reasons
