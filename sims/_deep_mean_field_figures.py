"""Figures of the deep networks: variance of neurons over time, against m and layer by layer; the limit."""

import numpy as np

from meanfield import canvas

from ._deep_mean_field_reading import EARLY, at, deep, end, first_layer, table, times

COLOURS = {2: canvas.GREY, 3: canvas.BLUE, 4: canvas.GREEN, 5: canvas.PURPLE, 6: canvas.ORANGE}
MARKS = dict(zip(COLOURS, "Pos^D", strict=True))


def plot(results) -> dict:
    figure, axes = canvas.sheet(2, 2, width=5.4, height=3.9)
    _time_panel(axes[0], results)
    _width_panel(axes[1], results)
    _apart_panel(axes[2], results)
    _layer_panel(axes[3], results)
    return {"collapse": figure}


def _time_panel(ax, results) -> None:
    """m times the variance of the first inner layer (depth 4) and of the next."""
    m, values = table(results, "plain", 4, "variance")
    t = times(results)
    lines = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
    colours = (canvas.ORANGE, canvas.PURPLE, canvas.GREEN, canvas.BLUE, canvas.INK)
    for k, width in enumerate(m):
        for layer in (1, 2):
            ax.plot(t[1:], width * values[:, k, 1:, layer].mean(0), color=colours[k], ls=lines[k], lw=1.6,
                    label=f"$m$ = {width:,}" if layer == 1 else None)  # fmt: skip
    shown = m[:, None, None] * values[:, :, 1:, 1:3].mean(0)
    ax.set(title="The first inner layer spreads in time", xlabel="time $t$", ylabel="$m$ times variance of outputs")
    canvas.log_axis(ax.xaxis, t[1], t[-1])
    low, high = canvas.positive_limits(shown)
    canvas.log_axis(ax.yaxis, low, high * 1.5)
    for layer, text in ((1, "layer 1"), (2, "layer 2")):
        highest = (m * values[:, :, 4, layer].mean(0)).max()
        ax.annotate(text, (t[4], highest), textcoords="offset points", xytext=(0, 10), ha="right")
    canvas.legend(ax, "upper left", "4 hidden layers")


def _width_panel(ax, results) -> None:
    """Variance of outputs of the first inner layer against m, early and at the end."""
    remark = f"first inner layer; open: $t$ = {EARLY:g}, filled: {end(results):g}"
    _against_width(ax, results, lambda H: first_layer(results, H), -1, 0.5, 4, remark)
    ax.set(title="Collapse early; later only if $m$ is large", xlabel="width $m$", ylabel="variance of outputs")


def _apart_panel(ax, results) -> None:
    """Distance to the network with one neuron in every inner layer, the same way."""
    remark = f"open: $t$ = {EARLY:g}, filled: {end(results):g}"
    _against_width(ax, results, lambda H: table(results, "plain", H, "apart"), -2, 0.3, 30, remark)
    ax.set(title="To one neuron in every inner layer", xlabel="width $m$", ylabel="$E(f - f_1)^2$")


def _against_width(ax, results, read, power: int, below: float, room: float, remark: str) -> None:
    """Means over replicates at both times for every depth; `read` gives widths and values (R, K, times)."""
    shown, widths = [], np.array([])
    for H in deep(results):
        m, values = read(H)
        widths = np.union1d(widths, m)
        for t, line, fill in ((EARLY, "--", "white"), (end(results), "-", COLOURS[H])):
            shown.append(values[:, :, at(results, t)].mean(0))
            ax.plot(m, shown[-1], color=COLOURS[H], ls=line, marker=MARKS[H], mfc=fill, lw=1.4,
                    label=f"depth {H}" if line == "-" else None)  # fmt: skip
    guide = below * min(y[0] for y in shown) * (widths / widths[0]) ** power
    ax.plot(widths, guide, color=canvas.INK, ls=":", lw=1.2, label=f"slope −{-power}")
    canvas.log_axis(ax.xaxis, widths[0] / 1.2, widths[-1] * 1.2)
    low, high = canvas.positive_limits(guide, *shown)
    canvas.log_axis(ax.yaxis, low / room, high)
    canvas.legend(ax, "lower left", remark, columns=2)


def _layer_panel(ax, results) -> None:
    deepest = max(results.values("depth"))
    for form, colour, mark in (("residual", canvas.ORANGE, "s"), ("plain", canvas.BLUE, "o")):
        m, values = table(results, form, deepest, "spread")
        column = int(np.flatnonzero(m == min(m[-1], table(results, "residual", deepest, "spread")[0][-1]))[0])
        for k, line, fill in ((0, "--", "white"), (-1, "-", colour)):
            ax.plot(np.arange(deepest), values[:, column, k].mean(0), color=colour, marker=mark, ls=line, mfc=fill,
                    label=f"{form}, {'at the start' if k == 0 else 'trained'}")  # fmt: skip
    ax.set(title=f"Layer by layer, {deepest} hidden layers, $m$ = {m[column]}", xlabel="layer", xticks=range(deepest),
           ylabel="variance of outputs / mean square")  # fmt: skip
    low, high = canvas.positive_limits(*(line.get_ydata() for line in ax.lines))
    canvas.log_axis(ax.yaxis, low / 10, high)
    canvas.legend(ax, "lower left")
