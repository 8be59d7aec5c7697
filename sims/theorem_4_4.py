"""Theorem 4.4 of [CCGZ20] with Lemmas 5.1 to 5.4, a panel a statement, over a sweep of alpha.

Particles travel a distance of order one, E|Z_t - Z_0|^2 = 2 D (1 - e^(-lam t)) + O(1 / alpha^2), while their law moves
like 1 / alpha in W2 and sqrt(KL): noise and decay each move the law, together they hold it where it is. The loss falls
linearly, at the rate 2 kappa Lambda = 4 alpha^2 lambda0^2 in the kernel limit (the theorem promises 2 alpha^2
lambda0^2), down to that of the fixed point, n lam^2 |K2^-1 y|^2 / (4 alpha^4) for large alpha (the theorem's floor
falls as alpha^-2).

Points are of four parts: `sweep` (brackets at bound times), `modes` (decay alone, noise alone, both), `rate` (small
lam, times in units of 1 / (kappa Lambda)) and `floor` (the residual averaged over short steps after a long run).
"""

import functools

import numpy as np

import meanfield as mf
from meanfield import canvas, datasets, gibbs, parallel, theory
from meanfield.claims import Claim, at_least, jackknifed, near, slope
from meanfield.cloud import gaussian_cloud
from meanfield.estimate import Estimate, student_factor
from meanfield.objectives import Potential
from meanfield.observables import cross_product

TITLE = "Loss, distances and tangent kernel against their bounds; travel of particles and of their law; rate and floor"
STATEMENT = "Theorem 4.4, Lemmas 5.1 to 5.4"
MINUTES = 5

N, D_INPUT, DIMENSION = 6, 5, 6
LAM, END = 0.2, 10.0
SMALL_LAM = 0.01
MODES = {"both": "decay and noise", "decay": "decay alone", "noise": "noise alone"}
OBSERVABLES = ["loss", "travelled", "reference_travelled", "w2_lower", "w2_upper", "kl_lower", "kl_upper",
               "ntk_eigenvalue_min", "ntk_change_max"]  # fmt: skip


def _points(alphas, modes_alpha, rates, floors, sizes) -> list[dict]:
    few = sizes | {"m": sizes["m"] // 4}
    return [
        *({"part": "sweep", "alpha": a, **sizes} for a in alphas),
        *({"part": "modes", "mode": mode, "alpha": modes_alpha, **few} for mode in MODES),
        *({"part": "rate", "alpha": a, **sizes} for a in rates),
        *({"part": "floor", "alpha": a, "lam": lam, **sizes, "m": 2 * sizes["m"]} for a, lam in floors),
    ]


FLOORS = [*((a, LAM) for a in (10.0, 30.0, 100.0, 300.0)), *((30.0, lam) for lam in (0.025, 0.1, 0.4))]
GRID = _points((3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0), 30.0, (10.0, 30.0, 100.0, 300.0), FLOORS,
               {"m": 4096, "replicates": 8, "seed": 1})  # fmt: skip
SMOKE = _points((30.0, 100.0), 3.0, (100.0,), [(30.0, LAM), (30.0, 0.4)],
                {"m": 120, "replicates": 3, "seed": 1})  # fmt: skip


# --- building -----------------------------------------------------------------------------------------------------


@functools.cache
def problem(alpha: float) -> mf.Risk:
    """Six random signs on the sphere in R^5, for which Lambda = 0.0946 and the next eigenvalue is 0.3007."""
    x, y = datasets.sphere(n=N, d=D_INPUT, teacher="random", seed=2)
    return mf.Risk(x, y, mf.Unit("tanh"), alpha)


def build(point: dict):
    return {"sweep": _sweep, "modes": _modes, "rate": _rate, "floor": _floor}[point["part"]](point)


def _start(point: dict):
    return gaussian_cloud(point["m"], dimension=DIMENSION, seed=point["seed"])


def _sweep(point: dict):
    flow = mf.Flow(problem(point["alpha"]), lam=LAM)
    run = mf.simulate(flow, _start(point), END, replicates=point["replicates"], observables=OBSERVABLES,
                      quiet=True)  # fmt: skip
    return run.data


def _modes(point: dict):
    risk, mode = problem(point["alpha"]), point["mode"]
    flow = mf.Flow(risk, lam=LAM, prior=None) if mode == "noise" else mf.Flow(risk, lam=LAM)
    if mode == "decay":
        # Without noise the decay is a potential, and the reference stays where it started.
        bowl = Potential(lambda z: 0.5 * LAM * (z**2).sum(1), lambda z: LAM * z, rate=LAM)
        flow = mf.Flow(risk + bowl, lam=0.0)
    every = 20 if mode == "decay" else 1  # an explicit scheme takes many steps
    run = mf.simulate(flow, _start(point), END, replicates=point["replicates"], every=every, quiet=True,
                      observables=["loss", "travelled", "w2_lower", "w2_upper"])  # fmt: skip
    return run.data


def _rate(point: dict):
    risk = problem(point["alpha"])
    unit = 1 / (risk.kappa * lowest())
    flow = mf.Flow(risk, lam=SMALL_LAM, eta=0.05 * unit, account=False)
    run = mf.simulate(flow, _start(point), steps=100, replicates=point["replicates"], bounds=0, quiet=True,
                      observables=["prediction"])  # fmt: skip
    return {"time": run.data.time.values / unit, "residual": run.data.prediction.values - risk.y}


def _floor(point: dict):
    """Run to rest, then average the residual over short steps: one alone is mostly noise of order 1/sqrt(m)."""
    risk, lam = problem(point["alpha"]), point["lam"]
    flow = mf.Flow(risk, lam=lam, account=False)
    run = mf.simulate(flow, _start(point), 5 / lam, replicates=point["replicates"], bounds=0, quiet=True,
                      observables=["loss"])  # fmt: skip
    short, count = min(0.5 / (risk.kappa * lowest()), 0.01 / lam), point["m"] // 20
    means = []
    with parallel.single_threaded_blas():
        for cloud in run.clouds:
            total = np.zeros(N)
            for _ in range(count):
                cloud = flow.step(cloud, short)
                total += risk.residual(risk.prediction(cloud))
            means.append(total / count)
    return {"residual": np.array(means)}


@functools.cache
def lowest() -> float:
    """Lambda, the smallest eigenvalue of H(p0)."""
    return float(np.linalg.eigvalsh(problem(1.0).gram_start())[0])


@functools.cache
def floor(alpha: float, lam: float) -> float:
    """The loss of the fixed point: r = -(n lam / (2 alpha)) c, with c from its dual."""
    c = gibbs.fixed_point(problem(alpha), lam).coefficients
    return N * lam**2 / (4 * alpha**2) * float(c @ c)


@functools.cache
def leading() -> float:
    """|K2^-1 y|^2, of which c is the alpha^-2 part in the kernel limit."""
    coefficients = np.linalg.solve(problem(1.0).gram_start(train="u"), problem(1.0).y)
    return float(coefficients @ coefficients)


# --- reading ------------------------------------------------------------------------------------------------------


def symbols(alpha: float) -> tuple:
    """(alpha, lam, Lambda, n, d, G), as the functions of `theory` take them."""
    return alpha, LAM, lowest(), N, D_INPUT, theory.common_bound(problem(1.0).unit.h.suprema)


def losses(residual: np.ndarray) -> Estimate:
    """The loss from residuals (R, n), unbiased by products across replicates, with its jackknife error."""
    return jackknifed(cross_product, residual)


def at_end(results, name: str, alphas) -> tuple[np.ndarray, np.ndarray]:
    """A bound and its standard error at the end, at each alpha."""
    data = [results.one(part="sweep", alpha=a) for a in alphas]
    return tuple(np.array([float(d[key].values[-1]) for d in data]) for key in (name, f"{name}_se"))


def safe(data, name: str, sign: float = 1.0) -> np.ndarray:
    """A series c standard errors up (or down); those of its mean where it has values of replicates."""
    c = student_factor(data.sizes["replicate"])
    if "replicate" in data[name].dims:
        values = data[name].values
        return values.mean(0) + sign * c * values.std(0, ddof=1) / np.sqrt(len(values))
    return data[name].values + sign * c * data[f"{name}_se"].values


def margins(data, alpha: float) -> dict[str, float]:
    """How many times each statement's bound exceeds what was measured, on the safe side, where it is nearest."""
    numbers, later = symbols(alpha), slice(1, None)
    alpha, lam, low, n, d, G = numbers
    w2 = safe(data, "w2_upper")[later]
    Ac, Bc = theory.kernel_constants(problem(1.0).unit.h.suprema)
    return {
        "Lemma 5.2, loss": np.min(theory.loss_bound(data.time.values, *numbers) / safe(data, "loss")),
        "Lemma 5.3, KL": np.min(theory.kl_bound(*numbers) / safe(data, "kl_upper")[later]),
        "Lemma 5.4, W2": np.min(theory.talagrand(theory.kl_bound(*numbers), printed=True) / w2),
        "Lemma 5.1, entries of H": np.min((Ac * w2**2 + Bc * w2) / safe(data, "ntk_change_max")[later]),
        "Lemma 5.1, smallest eigenvalue": np.min(safe(data, "ntk_eigenvalue_min", -1) / (low / 2)),
    }


def travel_excess(results, alpha: float) -> Estimate:
    """E|Z_t - Z_0|^2 - 2 D (1 - e^(-lam t)) at the end, measured against the reference's own travel."""
    data = results.one(part="sweep", alpha=alpha)
    gap = data.travelled.values[:, -1] - data.reference_travelled.values[:, -1]
    return jackknifed(lambda v: v.mean(), gap)


def leading_floor(alpha: float, lam: float) -> float:
    """n lam^2 |K2^-1 y|^2 / (4 alpha^4): at rest c = -(2 alpha / (n lam)) r is K2^-1 y / alpha to leading order."""
    return N * lam**2 / (4 * alpha**4) * leading()


def decay_rate(data) -> Estimate:
    """The rate of the loss over 2 alpha^2 lambda0^2, from the slope of log L while the slowest mode leads."""
    t = data.time.values
    window = (t > 1.2) & (t < 3.2)

    def fitted(residual: np.ndarray) -> float:
        curve = np.array([cross_product(residual[:, k]) for k in np.flatnonzero(window)])
        return -float(np.polyfit(t[window], np.log(np.maximum(curve, 1e-300)), 1)[0])

    # In units of 1 / (kappa Lambda), 2 alpha^2 lambda0^2 = kappa Lambda is 1.
    return jackknifed(fitted, data.residual.values)


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    sweep = results.where(part="sweep")
    large = [a for a in sweep.values("alpha") if a >= 100] if results.full else sweep.values("alpha")
    out = []
    for name, power in (("w2_lower", 1), ("w2_upper", 1), ("kl_lower", 2), ("kl_upper", 2)):
        value, error = at_end(results, name, large)
        root = slope(large, value ** (1 / power), error * value ** (1 / power - 1) / power)
        text = f"{'sqrt ' if power == 2 else ''}{name} falls as a power of alpha"
        out.append(near(text, root, -1.0, 0.05, full=True))
    worst = [margins(r.data, r.point["alpha"]) for r in sweep]
    for name in worst[0]:
        text = f"{name}: bound over measured, at worst over alpha and t"
        out.append(at_least(text, min(w[name] for w in worst), 1.0))
    return [*out, *_travel_claims(results), *_mode_claims(results), *_rate_claims(results), *_floor_claims(results)]


def _travel_claims(results) -> list[Claim]:
    free = float(theory.travelled(END, DIMENSION, LAM))
    alphas = results.where(part="sweep").values("alpha")
    largest = travel_excess(results, alphas[-1])
    share = Estimate(1 + largest.value / free, largest.se / free)
    text = f"E|Z_t - Z_0|^2 over 2 D (1 - e^(-lam t)), alpha = {alphas[-1]:g}"
    w2 = at_end(results, "w2_upper", alphas[-1:])[0][0]
    ratio = np.sqrt(free * share.value) / w2
    return [near(text, share, 1.0, 0.002, full=True),
            at_least("distance travelled over distance of the law, there", ratio, 100.0, full=True)]  # fmt: skip


def _mode_claims(results) -> list[Claim]:
    together = float(safe(results.one(part="modes", mode="both"), "w2_upper")[-1])
    out = []
    for mode in ("decay", "noise"):
        alone = float(safe(results.one(part="modes", mode=mode), "w2_lower", -1)[-1])
        text = f"W2 with {MODES[mode]} (lower bound) over W2 with both (upper bound)"
        out.append(at_least(text, alone / together, 3.0, full=True))
    return out


def _rate_claims(results) -> list[Claim]:
    points = results.where(part="rate")
    rates = [decay_rate(r.data) for r in points]
    slowest = min(rates, key=lambda e: e.value)
    text = "rate of the loss over 2 alpha^2 lambda0^2, smallest over alpha"
    last = f"the same at alpha = {points.found[-1].point['alpha']:g}: the kernel limit has 2"
    return [at_least(text, slowest, 1.0), near(last, rates[-1], 2.0, 0.05, full=True)]


def _floor_claims(results) -> list[Claim]:
    floors = {(r.point["alpha"], r.point["lam"]): losses(r.data.residual.values) for r in results.where(part="floor")}
    out = []
    for (a, lam), e in floors.items():
        size = floor(a, lam)
        if e.se < 0.05 * size:
            text = f"loss at rest over that of the fixed point, alpha = {a:g}, lam = {lam:g}"
            out.append(near(text, Estimate(e.value / size, e.se / size), 1.0, 0.1, full=True))
    largest = max(a for a, _ in floors)
    ratio = floor(largest, LAM) / leading_floor(largest, LAM)
    text = f"loss of the fixed point over n lam^2 |K2^-1 y|^2 / (4 alpha^4), alpha = {largest:g}"
    out.append(near(text, ratio, 1.0, 0.02, full=True))
    lams, found = zip(*sorted((lam, e) for (a, lam), e in floors.items() if a == 30.0), strict=True)
    fitted = slope(lams, [e.value for e in found], np.array([e.se for e in found]))
    return [*out, near("loss at rest as a power of lam (bound: 2)", fitted, 2.0, 0.1, full=True)]


# --- figures ------------------------------------------------------------------------------------------------------


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
        canvas.legend(ax, "lower left" if ax is not axes[0] else "upper right")
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
