"""The figures of `scaling_comparison`."""

import numpy as np
import xarray

from meanfield import canvas, plots

from ._scaling_comparison_reading import FIRST, at_widths, limits

STYLES = {"1": (canvas.BLUE, "o", "-", "α = 1"), "sqrt(m)": (canvas.ORANGE, "s", "--", "α = √m"),
          "m": (canvas.GREEN, "^", "-.", "α = m")}  # fmt: skip
NAMES = {"digits": "Digits", "neuron": "One neuron"}


def plot(results) -> dict:
    return {"comparison": _comparison(results), "coordinates": _coordinates(results), "regimes": _regimes(results),
            "width": _width(results)}  # fmt: skip


def _comparison(results):
    names = results.values("data")
    figure, axes = canvas.sheet(len(names), 4, width=3.9, height=3.4)
    for k, name in enumerate(names):
        still, noisy = (results.one(part=part, data=name) for part in ("gradient", "noisy"))
        row, m = axes[4 * k : 4 * k + 4], noisy["cloud.m"].values.astype(float)
        for alpha, style in STYLES.items():
            _line(row[0], m, *_over_networks(at_widths(still, "loss", alpha)[1]), style)
            _line(row[0], m, *_over_networks(at_widths(still, "test_loss", alpha)[1]), style, hollow=True)
            for data in (noisy, still):
                one = data.sel({"network.alpha": alpha})
                _line(row[1], m, one.kernel_drift.values, one.kernel_drift_se.values, style, hollow=data is still)
            for ax, kind in ((row[2], "w2"), (row[3], "kl")):
                _bracket(ax, m, noisy.sel({"network.alpha": alpha}), kind, style)
        row[0].set(title=f"{NAMES[name]}: loss (hollow: test)", ylabel=r"square loss, $\lambda = 0$")
        row[1].set(title="Kernel's drift (hollow: no noise)", ylabel=r"$\|H_t - H_0\|_F / \|H_0\|_F$")
        row[2].set(title="$W_2$, from below and above", ylabel=r"$W_2(p_t, p_0)$, $\lambda = 0.01$")
        row[3].set(title="KL, from below and above", ylabel=r"KL$(p_t\,\|\,p_0)$ in nats, $\lambda = 0.01$")
        for ax in row:
            series = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == len(m)]
            canvas.log_axis(ax.yaxis, *canvas.positive_limits(*series, room=2.0))
            _width_axis(ax, m)
        row[0].set_ylim(bottom=max(1e-6, row[0].get_ylim()[0]))
        canvas.legend(row[1], "lower left")
    return figure


def _over_networks(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows.mean(0), rows.std(0, ddof=1) / np.sqrt(len(rows))


def _line(ax, m, mean, error, style, hollow: bool = False) -> None:
    colour, marker, line, label = style
    ax.errorbar(m, mean, 2 * error, color=colour, marker=marker, ls=line, lw=0.9 if hollow else 1.6, capsize=2,
                mfc="white" if hollow else colour, label=None if hollow else label)  # fmt: skip


def _bracket(ax, m, data, kind: str, style) -> None:
    colour, marker, line, _ = style
    low, high = data[f"{kind}_lower"].values, data[f"{kind}_upper"].values
    seen = low > 2 * data[f"{kind}_lower_se"].values
    if seen.all():
        ax.fill_between(m, low, high, color=colour, alpha=0.18, lw=0)
    ax.plot(m, high, color=colour, marker=marker, ls=line)
    ax.plot(m, np.where(seen, low, np.nan), color=colour, marker=marker, ls=line, lw=0.9, mfc="white")


def _width_axis(ax, m) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(m[::2], [canvas.number(v) for v in m[::2]])
    ax.minorticks_off()
    ax.tick_params(axis="y", which="minor", length=0)
    ax.set_xlabel("width $m$")


def _coordinates(results):
    names = results.values("data")
    figure, axes = canvas.sheet(len(names), 3, width=4.5, height=3.7)
    for k, name in enumerate(names):
        data = results.one(part="gradient", data=name)
        row = axes[3 * k : 3 * k + 3]
        plots.coordinate_check(data, axes=row)
        for ax, what in zip(row, ("output, rms", "particles, rms", "tangent kernel, relative"), strict=True):
            ax.set_title(f"{NAMES[name]}: {what}")
            canvas.log_axis(ax.yaxis, ax.get_ylim()[0] / 6, ax.get_ylim()[1])
            _width_axis(ax, data["cloud.m"].values.astype(float))
            canvas.legend(ax, "lower left")
    return figure


def _regimes(results):
    names = results.values("data")
    figure, axes = canvas.sheet(1, len(names), width=6.2, height=4.3)
    for ax, name in zip(axes, names, strict=True):
        between = results.one(part="between", data=name)
        widths = {"cloud.m": between["cloud.m"].values}
        shown = [d[["kernel_drift", "kernel_drift_se", "test_loss"]] for d in
                 (results.one(part="gradient", data=name).sel(widths), between)]  # fmt: skip
        both = xarray.concat(shown, "network.alpha")
        lines = "log10 of the test loss"
        plots.regime_map(both.assign({lines: np.log10(both.test_loss)}), contour=lines, ax=ax)
        ax.set_title(f"{NAMES[name]}: drift of the kernel, $\\lambda = 0$")
    return figure


def _width(results):
    names = results.values("data")
    figure, axes = canvas.sheet(1, len(names), width=5.6, height=3.8)
    for ax, name in zip(axes, names, strict=True):
        data = results.one(part="noisy", data=name)
        law = results.one(part="limit", data=name).isel({"network.alpha": 0, "cloud.m": 0})
        m, values = at_widths(data, "test_loss", "1", FIRST)
        m, values = (m, values) if len(m) else at_widths(data, "test_loss", "1")
        mean, error = _over_networks(values)
        ax.errorbar(1 / m, mean, 2 * error, color=canvas.BLUE, marker="o", ls="none", capsize=2,
                    label="networks of width m (2 s.e. over 5)")  # fmt: skip
        fit = limits(data, "test_loss")
        if fit is not None:
            at = np.r_[1e9, np.geomspace(1e6, m.min(), 60)]
            low, high = fit.band(at)
            ax.fill_between(1 / at, low, high, color=canvas.BLUE, alpha=0.2, lw=0, label="$a + b/m$, band of 95 %")
            ax.plot(1 / at, fit.at(at)[0], color=canvas.BLUE, lw=1.2)
        ax.errorbar([0], [float(law.test_loss_unbiased)], [2 * float(law.test_loss_unbiased_se)], color=canvas.ORANGE,
                    marker="D", capsize=3, ls="none", label="limit law (2 s.e.)")  # fmt: skip
        ax.set(title=f"{NAMES[name]}: test loss for α = 1", xlabel="$1/m$", ylabel="test loss")
        canvas.legend(ax, "upper left")
    return figure
