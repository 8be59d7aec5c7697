"""The figures of `lazy_alpha`: the law at a fixed time, and networks beside their linearisation at a fixed s."""

import numpy as np

from meanfield import canvas, theory

from ._lazy_alpha_reading import END, LAM, limit_distance

LAWS = {"sphere": (canvas.BLUE, "o", "sphere, $D = 6$"), "digits": (canvas.ORANGE, "s", "digits, $D = 65$")}
SHADES = (canvas.GREEN, canvas.PURPLE, canvas.BLUE)
LINES = ("--", "-.", "-")
DIMENSIONS = {"sphere": 6, "digits": 65}


def plot(results) -> dict:
    return {"law": _law(results), "network": _network(results)}


def _series(results, name: str, value: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = results.where(part="law", problem=name).found
    alphas = np.array([r.point["alpha"] for r in found])
    return alphas, *(np.array([float(r.data[key].values[-1]) for r in found]) for key in (value, f"{value}_se"))


def _guide(ax, alphas, level: float, power: int, label: str) -> None:
    """A dotted line of a given slope, through a level at the last alpha."""
    line = level * (alphas / alphas[-1]) ** power
    ax.plot(alphas, line, color=canvas.INK, ls=":", lw=1.1, label=label, zorder=1)


def _finish(ax, alphas, limits: tuple[float, float]) -> None:
    canvas.log_axis(ax.xaxis, alphas[0] / 1.4, alphas[-1] * 1.4)
    canvas.log_axis(ax.yaxis, *limits)
    ax.set_xlabel(r"output scale $\alpha$")


def _law(results):
    figure, axes = canvas.sheet(1, 3, width=4.5, height=3.9)
    lowest = {"w2": [], "kl": []}
    for name, (colour, marker, text) in LAWS.items():
        for ax, kind in ((axes[0], "w2"), (axes[1], "kl")):
            alphas, low, low_se = _series(results, name, f"{kind}_lower")
            _, high, high_se = _series(results, name, f"{kind}_upper")
            ax.fill_between(alphas, np.maximum(low - 2 * low_se, 1e-12), high + 2 * high_se, color=colour, alpha=0.25,
                            lw=0)  # fmt: skip
            ax.plot(alphas, high, color=colour, marker=marker, label=f"{text}, upper bound")
            ax.plot(alphas, low, color=colour, marker=marker, mfc="white", ls="--", label=f"{text}, lower bound")
            lowest[kind].append(low[-1])
        travel = [float(r.data.travelled.values[:, -1].mean()) for r in results.where(part="law", problem=name)]
        axes[0].plot(alphas, np.sqrt(travel), color=colour, marker=marker, ls="-.", lw=1.2, mfc="white")
        axes[0].plot(alphas, 0 * alphas + np.sqrt(theory.travelled(END, DIMENSIONS[name], LAM)), color=canvas.INK,
                     ls=(0, (1, 2)), lw=1.0)  # fmt: skip
        _drift(axes[2], results, name)
    _guide(axes[0], alphas, 0.5 * min(lowest["w2"]), -1, r"slope −1")
    _guide(axes[1], alphas, 0.3 * min(lowest["kl"]), -2, r"slope −2 (Theorem 4.4)")
    top = float(_series(results, "sphere", "kernel_drift")[1][0])
    _guide(axes[2], alphas, top * alphas[0] / alphas[-1], -1, "slope −1 (Lemma 5.1 allows)")
    axes[2].plot(alphas, 30 * top * (alphas / alphas[0]) ** -2, color=canvas.INK, ls="--", lw=1.0, label="slope −2")
    axes[0].set(title="Particles travel O(1), their law O(1/α)", ylabel="distance in parameter space, $t = 2$")
    axes[1].set(title="Relative entropy", ylabel=r"KL$(p_t\,\|\,p_0)$ in nats, $t = 2$")
    axes[2].set(title="Tangent kernel of the limit law", ylabel=r"$\|H(p_t) - H(p_0)\|_F / \|H(p_0)\|_F$, $t = 2$")
    for ax in axes[:2]:
        series = [line.get_ydata() for line in ax.lines]
        _finish(ax, alphas, canvas.positive_limits(*series, room=2.0))
    _finish(axes[2], alphas, (1e-6, 30.0))
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low / 30, high)
    axes[1].set_ylim(axes[1].get_ylim()[0] / 10, axes[1].get_ylim()[1])
    canvas.legend(axes[0], "lower left", "dash-dotted: particles; dotted: without loss")
    canvas.legend(axes[1], "lower left")
    canvas.legend(axes[2], "lower left", "bars: 2 standard errors")
    return figure


def _drift(ax, results, name: str) -> None:
    colour, marker, text = LAWS[name]
    alphas, drift, error = _series(results, name, "kernel_drift")
    seen = drift > 2 * error
    ax.errorbar(alphas[seen], drift[seen], 2 * error[seen], color=colour, marker=marker, capsize=2, label=text)
    if not seen.all():
        ax.plot(alphas[~seen], (drift + 2 * error)[~seen], color=colour, marker="v", mfc="white", ls="none",
                label=f"{text}: below this")  # fmt: skip


def _network(results):
    part = results.where(part="network")
    alphas = np.array(part.values("alpha"))
    figure, axes = canvas.sheet(1, 3, width=4.5, height=3.9)
    for k, m in enumerate(part.values("m")):
        found = part.where(m=m).found
        style = {"color": SHADES[k % 3], "marker": canvas.MARKERS[k], "ls": LINES[k % 3]}
        for ax, name, root in ((axes[0], "travelled", 2), (axes[1], "own_drift", 1), (axes[2], "largest", 1)):
            rows = np.array([r.data[name].values for r in found]) ** (1 / root)
            ax.errorbar(alphas, rows.mean(1), 2 * rows.std(1, ddof=1) / np.sqrt(rows.shape[1]), capsize=2,
                        label=f"$m$ = {m:,}", **style)  # fmt: skip
    found = [limit_distance(r.data) for r in part.where(m=part.values("m")[-1])]
    value, error = (np.array(column) for column in zip(*((e.value, e.se) for e in found), strict=True))
    seen = value > 2 * error
    axes[2].errorbar(alphas[seen], value[seen], 2 * error[seen], color=canvas.ORANGE, marker="D", capsize=2,
                     label="limit law (rms over time)")  # fmt: skip
    titles = ("Distance travelled", "Drift of the network's own kernel", "Distance to the linearised run, one noise")
    labels = (r"$(E|Z_t - Z_0|^2)^{1/2}$ at $s = 3$", r"$\|H_t - H_0\|_F / \|H_0\|_F$ at $s = 3$",
              r"$\sup_t$ rms $|f_t - f^{\mathrm{lin}}_t|$")  # fmt: skip
    for ax, title, label in zip(axes, titles, labels, strict=True):
        first = float(ax.containers[0][0].get_ydata()[-1])
        _guide(ax, alphas, 1.6 * first, -1, "slope −1")
        ax.set(title=title, ylabel=label)
        _finish(ax, alphas, canvas.positive_limits(*(line.get_ydata() for line in ax.lines), room=2.0))
    canvas.legend(axes[0], "upper right")
    canvas.legend(axes[1], "upper right")
    canvas.legend(axes[2], "lower left")
    return figure
