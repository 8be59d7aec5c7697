"""The figures of `brackets`: every estimate over the exact value, brackets on P1 over the truth, brackets on digits."""

import numpy as np

from meanfield import canvas, readings
from meanfield.estimate import student_factor

from ._brackets_rows import estimates, title

MARKS = {
    "coupling": ("v", canvas.BLUE), "paired anew": ("<", canvas.BLUE), "Gelbrich": ("^", canvas.BLUE),
    "Kantorovich dual": (">", canvas.BLUE), "Gelbrich, plain": ("x", canvas.ORANGE), "plug-in": ("s", canvas.ORANGE),
    "Sinkhorn": ("D", canvas.ORANGE), "max-sliced": ("P", canvas.ORANGE),
    "account": ("v", canvas.BLUE), "Gaussian": ("^", canvas.BLUE), "Donsker-Varadhan": (">", canvas.BLUE),
    "log-Sobolev": ("1", canvas.GREY), "energy": ("2", canvas.GREY), "Girsanov": ("3", canvas.GREY),
    "neighbours, debiased": ("P", canvas.ORANGE), "neighbours": ("x", canvas.ORANGE),
}  # fmt: skip


def plot(results) -> dict:
    return {"estimators": _estimators(results), "p1": _p1_figure(results), "digits": _digits_figure(results)}


def _estimators(results):
    figure, axes = canvas.sheet(1, 2, width=6.6, height=4.4)
    for ax, part, symbol in zip(axes, ("w2", "kl"), (r"$W_2^2$", "KL"), strict=True):
        rows = list(results.where(part=part))
        for k, (_, data) in enumerate(rows):
            found, exact = estimates(data), float(data.exact)
            c = student_factor(8)
            low, high = found["lower"], found["upper"]
            ends = (max(low.value - c * low.se, 1e-3 * exact), high.value + c * high.se)
            ax.plot([e / exact for e in ends], [k, k], color=canvas.BLUE, lw=7, alpha=0.25, solid_capstyle="butt",
                    label="bracket with its errors" if k == 0 else None)  # fmt: skip
            for name, (marker, colour) in MARKS.items():
                if name in found and found[name].value > 0:
                    ax.plot(found[name].value / exact, k, marker=marker, color=colour, ls="none", mfc="none", ms=6.5,
                            mew=1.3, label=name if k == 0 else None)  # fmt: skip
        ax.axvline(1, color=canvas.INK, lw=1)
        ax.set_yticks(range(len(rows)), [title(p) for p, _ in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        values = np.concatenate([line.get_xdata() for line in ax.lines])
        canvas.log_axis(ax.xaxis, max(values.min() / 1.3, 0.05), values.max() * 1.6)
        ax.set(title=f"{symbol}: read over exact (bilinear networks)", xlabel=f"estimate of {symbol} / exact value")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return figure


def _p1_figure(results):
    points = list(results.where(part="p1"))
    figure, axes = canvas.sheet(2, len(points), width=4.6, height=3.3)
    for k, (point, data) in enumerate(points):
        for row, (name, symbol, colour) in enumerate((("kl", "KL$(p_t\\,\\|\\,p_0)$ in nats", canvas.BLUE),
                                                      ("w2", "$W_2(p_t, p_0)$", canvas.PURPLE))):  # fmt: skip
            ax, b = axes[row * len(points) + k], readings.bracket(data, name)
            true = data[f"true_{name}"].values
            ax.axhline(1, color=canvas.INK, lw=1)
            ax.fill_between(b.t, b.safe_lower / true, b.safe_upper / true, color=colour, alpha=0.18, lw=0,
                            label=f"± {b.factor:.1f} standard errors")  # fmt: skip
            ax.plot(b.t, b.upper / true, color=colour, marker="s", label="upper bound")
            ax.plot(b.t, b.lower / true, color=colour, marker="s", mfc="white", ls="--", label="lower bound")
            if name == "w2":
                off = 2 * data.true_w2_error.values / true
                ax.fill_between(b.t, 1 - off, 1 + off, color=canvas.GREY, alpha=0.4, lw=0, label="error of the truth")
            ax.set(title=f"α = {point['alpha']:g}, λ = {point['lam']:g}", xlabel=r"time $t$ of equation (3.4)",
                   ylabel=f"{symbol} / truth")  # fmt: skip
            canvas.log_axis(ax.xaxis, b.t[0] / 1.2, b.t[-1] * 1.2)
            low, high = ax.get_ylim()
            ax.set_ylim(low, high + (0.45 if name == "w2" else 0) * (high - low))  # room for the legend
            canvas.legend(ax, "upper left")
    return figure


def _digits_figure(results):
    figure, axes = canvas.sheet(1, 2, width=5.2, height=3.8)
    for (point, data), colour, marker in zip(results.where(part="digits"), (canvas.BLUE, canvas.GREEN, canvas.PURPLE),
                                             canvas.MARKERS, strict=False):  # fmt: skip
        for ax, name, symbol in zip(axes, ("kl", "w2"), ("KL", r"$W_2$"), strict=True):
            b = readings.bracket(data, name)
            ax.fill_between(b.t, np.maximum(b.safe_lower, 1e-9), b.safe_upper, color=colour, alpha=0.2, lw=0)
            ax.plot(b.t, b.upper, color=colour, marker=marker, label=f"α = {point['alpha']:g}, upper")
            ax.plot(b.t, b.lower, color=colour, marker=marker, mfc="white", ls="--", label="lower")
            ax.set(title=f"{symbol} on digits 3 and 8 (D = 65)", xlabel=r"time $t$ of equation (3.4)",
                   ylabel=f"{symbol}$(p_t, p_0)$" if name == "w2" else "KL in nats")  # fmt: skip
    for ax in axes:
        lines = [line.get_ydata() for line in ax.lines]
        canvas.log_axis(ax.yaxis, *canvas.positive_limits(*lines, room=2.0))
        times = np.concatenate([line.get_xdata() for line in ax.lines])
        canvas.log_axis(ax.xaxis, times.min() / 1.5, times.max() * 1.5)
        canvas.legend(ax, "best", columns=2)
    return figure
