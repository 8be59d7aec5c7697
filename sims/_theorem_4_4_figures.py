"""The figures of `theorem_4_4`: each statement against alpha, travel of particles and law, the loss and its floor."""

import numpy as np

from meanfield import canvas, theory
from meanfield.observables import cross_product

from ._theorem_4_4_reading import (
    DIMENSION,
    END,
    LAM,
    MODES,
    decay_rate,
    floor,
    leading_floor,
    losses,
    problem,
    safe,
    symbols,
)


def plot(results) -> dict:
    return {"statements": _statements(results), "travel": _travel(results), "loss": _loss(results)}


def _band(ax, alphas, results, name: str, colour: str, label: str) -> None:
    """The bracket of a quantity at the end of the run against alpha, with its errors on the safe side."""
    data = [results.one(part="sweep", alpha=a) for a in alphas]
    low, high = (np.array([d[f"{name}_{side}"].values[-1] for d in data]) for side in ("lower", "upper"))
    far_low = np.array([safe(d, f"{name}_lower", -1)[-1] for d in data])
    far_high = np.array([safe(d, f"{name}_upper")[-1] for d in data])
    ax.fill_between(alphas, np.maximum(far_low, 1e-12), far_high, color=colour, alpha=0.2, lw=0)
    ax.plot(alphas, high, color=colour, marker="s", label=f"{label}, upper bound")
    ax.plot(alphas, low, color=colour, marker="s", mfc="white", ls="--", label=f"{label}, lower bound")


def _alpha_axis(ax, alphas) -> None:
    canvas.log_axis(ax.xaxis, min(alphas) / 1.4, max(alphas) * 1.4)
    ax.set_xlabel(r"output scale $\alpha$")


def _statements(results):
    alphas = results.where(part="sweep").values("alpha")
    figure, axes = canvas.sheet(2, 3, width=4.5, height=3.5)
    printed = np.array([theory.kl_bound(*symbols(a)) for a in alphas])
    _loss_panel(axes[0], results, alphas)
    _band(axes[1], alphas, results, "kl", canvas.BLUE, "measured")
    axes[1].plot(alphas, printed, color=canvas.ORANGE, ls="-.", label="printed bound")
    axes[1].set(title="Lemma 5.3: relative entropy", ylabel=r"KL$(p_t\,\|\,p_0)$ in nats, $t = 10$")
    _band(axes[2], alphas, results, "w2", canvas.PURPLE, "measured")
    axes[2].plot(alphas, theory.talagrand(printed, printed=True), color=canvas.ORANGE, ls="-.", label="printed bound")
    axes[2].set(title="Lemma 5.4: Wasserstein distance", ylabel=r"$W_2(p_t, p_0)$, $t = 10$")
    _entries_panel(axes[3], results, alphas)
    _eigenvalue_panel(axes[4], results, alphas)
    _rate_panel(axes[5], results)
    for ax in axes[:4]:
        canvas.log_axis(ax.yaxis, *canvas.positive_limits(*(line.get_ydata() for line in ax.lines), room=2.5))
        canvas.legend(ax, "lower left")
    for ax in axes:
        _alpha_axis(ax, alphas)
    return figure


def _loss_panel(ax, results, alphas) -> None:
    floors = [(r.point["alpha"], losses(r.data.residual.values)) for r in results.where(part="floor", lam=LAM)]
    ends, found = zip(*floors, strict=True)
    ax.errorbar(ends, [e.value for e in found], [2 * e.se for e in found], color=canvas.BLUE, marker="o", capsize=2,
                label="measured floor (2 s.e.)")  # fmt: skip
    ax.plot(
        alphas, [leading_floor(a, LAM) for a in alphas], color=canvas.INK, ls=":", label="kernel limit of the floor"
    )
    bound = [float(theory.loss_bound(END, *symbols(a))) for a in alphas]
    ax.plot(alphas, bound, color=canvas.ORANGE, ls="-.", label="printed bound")
    ax.set(title="Lemma 5.2: loss left", ylabel=r"square loss $L(p_t)$, late")


def _entries_panel(ax, results, alphas) -> None:
    data = [results.one(part="sweep", alpha=a) for a in alphas]
    change = [d.ntk_change_max.values[:, -1] for d in data]
    ax.fill_between(alphas, [c.min() for c in change], [c.max() for c in change], color=canvas.GREEN, alpha=0.25, lw=0)
    ax.plot(alphas, [c.mean() for c in change], color=canvas.GREEN, marker="^", label="measured (range of replicates)")
    Ac, Bc = theory.kernel_constants(problem(1.0).unit.h.suprema)
    w2 = np.array([safe(d, "w2_upper")[-1] for d in data])
    ax.plot(alphas, Ac * w2**2 + Bc * w2, color=canvas.ORANGE, ls="-.", label=r"$A_c W_2^2 + B_c W_2$, $W_2$ measured")
    ax.set(
        title="Lemma 5.1: entries of the tangent kernel", ylabel=r"$\max_{ij} |H_{ij}(p_t) - H_{ij}(p_0)|$, $t = 10$"
    )


def _eigenvalue_panel(ax, results, alphas) -> None:
    low = symbols(1.0)[2]
    curves = [results.one(part="sweep", alpha=a).ntk_eigenvalue_min.values / low for a in alphas]
    worst = np.array([c[:, 1:].mean(0).min() for c in curves])
    best = np.array([c[:, 1:].mean(0).max() for c in curves])
    ax.fill_between(alphas, worst, best, color=canvas.GREEN, alpha=0.25, lw=0, label="range over time")
    ax.plot(alphas, worst, color=canvas.GREEN, marker="^", label="smallest over time")
    ax.axhline(0.5, color=canvas.ORANGE, ls="-.", label=r"Lemma 5.1 asks for 1/2")
    ax.set(title="Lemma 5.1: smallest eigenvalue", ylabel=r"$\lambda_{\min}(H(p_t)) / \Lambda$")
    ax.set_ylim(0, max(2.2, 1.1 * best.max()))
    canvas.legend(ax, "upper right")


def _rate_panel(ax, results) -> None:
    points = results.where(part="rate")
    rates = [decay_rate(r.data) for r in points]
    ax.errorbar(points.values("alpha"), [e.value for e in rates], [2 * e.se for e in rates], color=canvas.BLUE,
                marker="o", capsize=3, label=r"measured, $\lambda = 0.01$ (2 s.e.)")  # fmt: skip
    ax.axhline(2, color=canvas.INK, ls=":", label=r"kernel limit $2\kappa\Lambda$")
    ax.axhline(1, color=canvas.ORANGE, ls="-.", label="Theorem 4.4 promises 1")
    ax.set(title="Theorem 4.4: linear rate of the loss", ylabel=r"rate / $2\alpha^2\lambda_0^2$", ylim=(0, 2.8))
    canvas.legend(ax, "lower right")


STYLES = {"decay": (canvas.ORANGE, "--"), "noise": (canvas.GREEN, "-."), "both": (canvas.PURPLE, "-")}


def _travel(results):
    figure, axes = canvas.sheet(1, 3, width=4.5, height=3.6)
    for mode, name in MODES.items():
        data = results.one(part="modes", mode=mode)
        colour, line = STYLES[mode]
        t, far = data.time.values, np.sqrt(data.travelled.values)
        axes[0].fill_between(t, far.min(0), far.max(0), color=colour, alpha=0.25, lw=0)
        axes[0].plot(t, far.mean(0), color=colour, ls=line, label=name)
        s = data.bound_time.values
        low, high = np.maximum(safe(data, "w2_lower", -1), 0), safe(data, "w2_upper")
        axes[1].fill_between(s, low, high, color=colour, alpha=0.3, lw=0)
        axes[1].plot(s, data.w2_upper.values, color=colour, ls=line, marker="s", ms=3.5, label=name)
        axes[1].plot(s, data.w2_lower.values, color=colour, ls=line, marker="s", ms=3.5, mfc="white")
    free = np.linspace(0, END, 200)
    alpha = results.where(part="modes").found[0].point["alpha"]
    axes[0].plot(free, np.sqrt(theory.travelled(free, DIMENSION, LAM)), color=canvas.INK, ls=":", label="no loss, both")
    axes[0].set(title=f"How far a particle travels, α = {alpha:g}", xlabel=r"time $t$ of equation (3.4)",
                ylabel=r"$(E|Z_t - Z_0|^2)^{1/2}$")  # fmt: skip
    axes[1].set(title="How far their law moves (brackets)", xlabel=r"time $t$ of equation (3.4)",
                ylabel=r"$W_2(p_t, p_0)$")  # fmt: skip
    _alpha_travel(axes[2], results)
    for ax in axes[:2]:
        ax.set_ylim(bottom=0)
        canvas.legend(ax, "upper left")
    return figure


def _alpha_travel(ax, results) -> None:
    sweep = results.where(part="sweep")
    alphas = sweep.values("alpha")
    far = [float(np.sqrt(r.data.travelled.values[:, -1].mean())) for r in sweep]
    ax.plot(alphas, far, color=canvas.ORANGE, marker="o", label=r"a particle: $(E|Z_t - Z_0|^2)^{1/2}$")
    ax.axhline(float(np.sqrt(theory.travelled(END, DIMENSION, LAM))), color=canvas.INK, ls=":",
               label=r"$(2D(1 - e^{-\lambda t}))^{1/2}$")  # fmt: skip
    _band(ax, alphas, results, "w2", canvas.PURPLE, "law")
    ax.set(title=r"Particles move by O(1), their law by 1/α", ylabel=r"distance in parameter space, $t = 10$")
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(*(np.atleast_1d(line.get_ydata()) for line in ax.lines), room=2))
    _alpha_axis(ax, alphas)
    canvas.legend(ax, "lower left")


def _loss(results):
    figure, axes = canvas.sheet(1, 3, width=4.5, height=3.6)
    shades = [canvas.GREY, canvas.GREEN, canvas.BLUE, canvas.PURPLE]
    for k, (point, data) in enumerate(results.where(part="rate")):
        t, r = data.time.values, data.residual.values
        curve = np.array([cross_product(r[:, i]) for i in range(len(t))])
        axes[0].plot(t, np.where(curve > 0, curve, np.nan), color=shades[k % 4], ls=["-", "--", "-.", ":"][k % 4],
                     label=f"α = {point['alpha']:g}")  # fmt: skip
    axes[0].plot(
        t, 2 * np.exp(-t), color=canvas.ORANGE, lw=1.2, label=r"$2 e^{-2\alpha^2\lambda_0^2 t}$ of Theorem 4.4"
    )
    axes[0].plot(t, np.exp(-2 * t), color=canvas.INK, lw=1.0, ls=(0, (1, 2)), label=r"slope of $e^{-2\kappa\Lambda t}$")
    axes[0].set(title="The loss falls linearly, λ = 0.01", xlabel=r"time in units of $1/(\kappa\Lambda)$",
                ylabel="square loss, unbiased")  # fmt: skip
    canvas.log_axis(axes[0].yaxis, 1e-7, 3.0)
    canvas.legend(axes[0], "lower left")
    floors = {(r.point["alpha"], r.point["lam"]): losses(r.data.residual.values) for r in results.where(part="floor")}
    common = max({a for a, _ in floors}, key=lambda a: sum(a == b for b, _ in floors))
    _floor_panel(axes[1], {a: e for (a, lam), e in sorted(floors.items()) if lam == LAM}, lambda a: (a, LAM))
    _floor_panel(axes[2], {lam: e for (a, lam), e in sorted(floors.items()) if a == common}, lambda lam: (common, lam))
    axes[1].set(title=f"Floor against α, λ = {LAM:g}", xlabel=r"output scale $\alpha$")
    axes[2].set(title=f"Floor against λ, α = {common:g}", xlabel=r"weight decay $\lambda$")
    return figure


def _floor_panel(ax, floors: dict, arguments) -> None:
    at = np.array(list(floors))
    ax.errorbar(at, [e.value for e in floors.values()], [2 * e.se for e in floors.values()], color=canvas.BLUE,
                marker="o", ls="none", capsize=3, label="measured at rest (2 s.e.)")  # fmt: skip
    grid = np.geomspace(at.min(), at.max(), 6)
    ax.plot(grid, [floor(*arguments(g)) for g in grid], color=canvas.INK, lw=1.2, label="fixed point (Gibbs law)")
    ax.plot(grid, [leading_floor(*arguments(g)) for g in grid], color=canvas.INK, ls=":",
            label=r"$n\lambda^2 |K_2^{-1} y|^2 / (4\alpha^4)$")  # fmt: skip
    ax.set_ylabel("loss at rest")
    canvas.log_axis(ax.xaxis, at.min() / 1.3, at.max() * 1.3)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(*(e.value for e in floors.values()), room=3))
    canvas.legend(ax, "lower left" if at.max() > 2 else "upper left")
