"""One problem in two dimensions by particles, Hermite polynomials and finite volumes: whose error is what.

The network has one input and two samples (P1: x = 0.4 and 1, y = 0.5 and 0.8, h = erf, alpha = 1, lam = 0.2). No two of
the three solvers share a formula of the dynamics: particles know no density, the expansion no noise, the cells neither.
The spectral solution, whose own error is below 1e-8, is the referee. The gap to it is split into its parts,

    particles = (sampling: m) + (time steps: eta),        finite volumes = (cells),

and each part has its own order: -1/2 in m, 1 or 2 in eta by the scheme, 2 in the width of a cell. Sampling errs by more
than short steps do, so the part of time steps is measured on one Brownian tree: runs whose steps are halved share
start and noise, their difference f(eta) - f(eta/2) has the order of the scheme, and the sampling error all but drops
out of it. What is left at eta = 0, by extrapolation, is sampling alone and must be zero within its standard error.

Points are of four parts: `run` (each solver up to t = 20), `cells`, `steps` (halved steps on one tree), `particles`
(few particles, short steps of second order).
"""

import numpy as np

import meanfield as mf
from meanfield import canvas, fokker_planck
from meanfield.claims import Claim, at_most, jackknifed, near, power_law, rate
from meanfield.estimate import Estimate, student_factor

TITLE = "Predictions and entropy by three solvers; their gaps against m, eta and the width of a cell"
STATEMENT = "Equation (3.4), Proposition 3.1"
MINUTES = 3

LAM, ALPHA, END = 0.2, 1.0, 20.0
READ = 1.0  # the time at which orders are measured
X, Y = np.array([[0.4], [1.0]]), np.array([0.5, 0.8])
SCHEMES = {"euler": 1, "exponential": 1, "kernel": 1, "kernel2": 2}  # by order
LEAF = 1 / 64  # of the Brownian tree
SECOND = [1 / 4, 1 / 8, 1 / 16, 1 / 32]  # a midpoint step has at least two leaves
FIRST = [1 / 8, 1 / 16, 1 / 32, 1 / 64]
BOX = 7.0


def _points(cells, steps, sizes, run, few) -> list[dict]:
    many, replicates = steps
    return [
        {"part": "run", "solver": "spectral"},
        {"part": "run", "solver": "volumes", "cells": cells[-1]},
        {"part": "run", "solver": "particles", **run},
        *({"part": "cells", "cells": count} for count in cells),
        *({"part": "steps", "scheme": scheme, "eta": eta, "m": many, "replicates": replicates, "seed": 3}
          for scheme, order in SCHEMES.items() for eta in (SECOND if order == 2 else FIRST)),
        *({"part": "particles", "m": m, "replicates": few, "seed": 5} for m in sizes),
    ]  # fmt: skip


GRID = _points((40, 80, 160, 320), (1 << 17, 8), [1 << k for k in range(8, 17)],
               {"m": 100_000, "replicates": 8, "seed": 7}, 32)  # fmt: skip
SMOKE = _points((24, 48), (1 << 10, 3), (256, 1024), {"m": 1000, "replicates": 3, "seed": 7}, 4)


# --- building -----------------------------------------------------------------------------------------------------


def problem() -> mf.Risk:
    return mf.Risk(X, Y, mf.Unit("erf"), ALPHA)


def times() -> np.ndarray:
    return END * 0.5 ** np.arange(7, -1, -1)


def build(point: dict):
    return {"run": _run, "cells": _cells, "steps": _steps, "particles": _particles}[point["part"]](point)


def _run(point: dict):
    if point["solver"] == "spectral":
        solution = fokker_planck.spectral(problem(), LAM, times())
        return {"t": solution.times, "f": solution.prediction, "kl": solution.kl, "error": solution.error["prediction"]}
    if point["solver"] == "volumes":
        solution = fokker_planck.volumes(problem(), LAM, times(), cells=point["cells"], box=BOX, estimate=False)
        return {"t": solution.times, "f": solution.prediction, "kl": solution.kl}
    start = mf.gaussian_cloud(point["m"], mf.Unit("erf"), 1, seed=point["seed"])
    # Steps of second order: those of first order are 9e-4 off at t = 2.5, three standard errors of m = 100,000.
    flow = mf.Flow(problem(), lam=LAM, scheme="kernel2")
    run = mf.simulate(flow, start, END, replicates=point["replicates"], quiet=True, bounds=list(times()), every=1,
                      observables=["prediction", "kl_lower", "kl_upper"])  # fmt: skip
    data = run.data
    here = [int(np.abs(data.time.values - t).argmin()) for t in times()]
    out = {"t": data.time.values[here], "f": data.prediction.values[:, here]}
    at = np.isin(np.round(data.bound_time.values, 12), np.round(times(), 12))
    for name in ("kl_lower", "kl_upper", "kl_lower_se", "kl_upper_se"):
        out[name] = data[name].values[at]
    return out


def _cells(point: dict):
    solution = fokker_planck.volumes(
        problem(), LAM, [READ], cells=point["cells"], box=BOX, tolerance=1e-7, estimate=False
    )
    return {"f": solution.prediction[-1], "kl": np.array(solution.kl[-1])}


def _predictions(scheme: str, eta: float, m: int, replicates: int, seed: int, leaf: float | None = None) -> np.ndarray:
    """f at time READ of each replicate, shape (R, n)."""
    flow = mf.Flow(problem(), lam=LAM, eta=eta, scheme=scheme, account=False, leaf=leaf)
    out = []
    for replicate in range(replicates):
        cloud = mf.gaussian_cloud(m, mf.Unit("erf"), 1, seed=seed, replicate=replicate)
        for _ in range(round(READ / eta)):
            cloud = flow.step(cloud)
        out.append(flow.objective.prediction(cloud))
    return np.array(out)


def _steps(point: dict):
    names = ("scheme", "eta", "m", "replicates", "seed")
    return {"f": _predictions(*(point[name] for name in names), leaf=LEAF)}


def _particles(point: dict):
    return {"f": _predictions("kernel2", 1 / 16, point["m"], point["replicates"], point["seed"])}


# --- reading ------------------------------------------------------------------------------------------------------


def truth() -> tuple[np.ndarray, float]:
    """f and KL at time READ by the referee."""
    solution = fokker_planck.spectral(problem(), LAM, [READ], modes=(128, 40), estimate=False)
    return solution.prediction[-1], float(solution.kl[-1])


def rms(gaps: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.asarray(gaps) ** 2)))


def halvings(results, scheme: str) -> tuple[list[float], list[np.ndarray], list[np.ndarray]]:
    """Lengths of steps, f of the replicates at each, (R, n), and f(eta) - f(eta / 2) at all but the last."""
    points = results.where(part="steps", scheme=scheme)
    f = [r.data.f.values for r in points]
    return points.values("eta"), f, [a - b for a, b in zip(f, f[1:], strict=False)]


def size_of_mean(gaps: np.ndarray) -> Estimate:
    """The rms over samples of the mean gap over replicates: what no number of replicates removes."""
    return jackknifed(lambda g: rms(g.mean(0)), gaps)


def order_in_eta(etas, gaps) -> Estimate:
    """The exponent of eta with its jackknife error; replicate r is left out at all lengths together."""
    return jackknifed(lambda *g: power_law(etas[: len(g)], [rms(one.mean(0)) for one in g])[0], *gaps)


def extrapolated(results, scheme: str) -> np.ndarray:
    """f of each replicate at eta = 0, from its two shortest steps and the scheme's order, (R, n)."""
    _, f, gaps = halvings(results, scheme)
    return f[-1] - gaps[-1] / (2 ** SCHEMES[scheme] - 1)


def order_in_m(results, f: np.ndarray) -> tuple[list[int], list[Estimate], Estimate]:
    """Numbers of particles, rms gaps of one replicate at each, and the fitted exponent."""
    points = results.where(part="particles")
    sizes, gaps = points.values("m"), [r.data.f.values - f for r in points]
    found = [jackknifed(rms, g) for g in gaps]
    return sizes, found, jackknifed(lambda *g: power_law(sizes, [rms(one) for one in g])[0], *gaps)


def cell_errors(results, f: np.ndarray, kl: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Widths of cells, rms gaps of f, gaps of KL."""
    points = results.where(part="cells")
    widths = np.array([2 * BOX / count for count in points.values("cells")])
    return widths, np.array([rms(r.data.f.values - f) for r in points]), np.array(
        [abs(float(r.data.kl.values) - kl) for r in points]
    )  # fmt: skip


def claims(results) -> list[Claim]:
    f, kl = truth()
    spectral, volumes, particles = (results.where(part="run", solver=s).found[0] for s in ("spectral", "volumes",
                                                                                          "particles"))  # fmt: skip
    out = [at_most("the referee's own error in f (a quarter fewer modes)", float(spectral.data.error.max()), 1e-6)]
    finest = np.abs(volumes.data.f.values - spectral.data.f.values).max()
    out.append(at_most("finite volumes against the referee: f, any time up to 20", float(finest), 1e-3, full=True))
    entropy = np.abs(volumes.data.kl.values / spectral.data.kl.values - 1).max()
    out.append(at_most("the same: KL, relative", float(entropy), 1e-3, full=True))
    out += _particle_claims(particles, spectral)
    out += _step_claims(results, f)
    out.append(near("order of sampling in m (kernel2, eta = 1/16)", order_in_m(results, f)[2], -0.5, 0.05, full=True))
    widths, gaps, entropies = cell_errors(results, f, kl)
    for name, values in (("f", gaps), ("KL", entropies)):
        text = f"order of finite volumes in the width of a cell: {name}"
        out.append(near(text, power_law(widths, values)[0], 2.0, 0.2, full=True))
    return out


def _step_claims(results, f: np.ndarray) -> list[Claim]:
    out, left = [], []
    for scheme, order in SCHEMES.items():
        etas, found, gaps = halvings(results, scheme)
        fitted = order_in_eta(etas, gaps)
        out.append(near(f"order of {scheme} in eta", fitted, order, 0.15 if order == 1 else 0.3, full=True))
        gap = extrapolated(results, scheme) - f
        left.append(np.abs(gap.mean(0)) / (gap.std(0, ddof=1) / np.sqrt(len(gap))))
    text = "what is left of the gap to the referee at eta = 0, every scheme"
    return [*out, rate(text, np.array(left), len(found[0]), full=True)]


def _particle_claims(particles, spectral) -> list[Claim]:
    data, replicates = particles.data, particles.point["replicates"]
    text = f"particles, m = {particles.point['m']:,}: f lies within its errors of the referee's"
    gaps = data.f.values - spectral.data.f.values
    scores = gaps.mean(0) / (gaps.std(0, ddof=1) / np.sqrt(replicates))
    out = [rate(f"{text}, both sides", np.array([scores, -scores]), replicates, full=True)]
    largest = float(np.abs(gaps.mean(0)).max())
    out.append(at_most("the same: largest gap, any time up to 20", largest, 1e-3, full=True))
    truth = spectral.data.kl.values
    low = (data.kl_lower.values - truth) / np.maximum(data.kl_lower_se.values, 1e-12)
    high = (truth - data.kl_upper.values) / np.maximum(data.kl_upper_se.values, 1e-12)
    out.append(rate("the bracket on KL holds the referee's", np.array([low, high]), replicates, full=True))
    return out


# --- figures ------------------------------------------------------------------------------------------------------

MARKS = {"euler": ("o", canvas.ORANGE), "exponential": ("s", canvas.GREEN), "kernel": ("^", canvas.BLUE),
         "kernel2": ("D", canvas.PURPLE)}  # fmt: skip


def plot(results) -> dict:
    figure, axes = canvas.sheet(2, 2, width=5.2, height=3.9)
    f, kl = truth()
    _solutions(axes[0], results)
    _against_m(axes[1], results, f)
    _against_eta(axes[2], results)
    _against_cells(axes[3], results, f, kl)
    return {"orders": figure}


def _solutions(ax, results) -> None:
    spectral = results.one(part="run", solver="spectral")
    volumes = results.one(part="run", solver="volumes")
    particles = results.where(part="run", solver="particles").found[0]
    t = spectral.t.values
    ax.plot(t, spectral.kl.values, color=canvas.INK, label="Hermite polynomials")
    ax.plot(t, volumes.kl.values, color=canvas.ORANGE, ls="none", marker="x", ms=7, label="finite volumes")
    factor = student_factor(particles.point["replicates"])
    data = particles.data
    low, high = data.kl_lower.values, data.kl_upper.values
    low, high = low - factor * data.kl_lower_se.values, high + factor * data.kl_upper_se.values
    text = f"bracket of particles, m = {particles.point['m']:,}"
    ax.fill_between(t, low, high, color=canvas.BLUE, alpha=0.3, lw=0, label=text)
    ax.set(title="Relative entropy by three solvers", xlabel=r"time $t$ of equation (3.4)",
           ylabel=r"KL$(p_t\,\|\,p_0)$ in nats")  # fmt: skip
    canvas.log_axis(ax.xaxis, t[0] / 1.2, t[-1] * 1.2)
    ax.set_ylim(bottom=0)
    canvas.legend(ax, "lower right")


def _against_m(ax, results, f) -> None:
    sizes, found, order = order_in_m(results, f)
    values = np.array([e.value for e in found])
    ax.errorbar(sizes, values, [2 * e.se for e in found], color=canvas.BLUE, marker="o", ls="none", capsize=3,
                label="one replicate, rms (2 s.e.)")  # fmt: skip
    _power(ax, sizes, values, order, "m")
    ax.set(title="Sampling", xlabel="particles $m$", ylabel=r"rms gap of $f$ at $t = 1$")
    canvas.log_axis(ax.xaxis, min(sizes) / 1.5, max(sizes) * 1.5)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(values))
    canvas.legend(ax, "upper right")


def _power(ax, at, values, order: Estimate, symbol: str, colour: str = canvas.INK) -> None:
    """A fitted power law with its exponent."""
    power, scale = power_law(at, values)
    grid = np.geomspace(min(at), max(at), 20)
    error = f" ± {canvas.number(order.se, 1)}" if order.se > 0 else ""
    ax.plot(grid, scale * grid**power, color=colour, ls=":", label=f"${symbol}^{{{power:.2f}}}${error}")


def _against_eta(ax, results) -> None:
    limits = []
    for scheme in SCHEMES:
        mark, colour = MARKS[scheme]
        etas, _, gaps = halvings(results, scheme)
        etas = etas[:-1]
        found = [size_of_mean(g) for g in gaps]
        values = np.array([e.value for e in found])
        ax.errorbar(etas, values, [2 * e.se for e in found], color=colour, marker=mark, ls="none", capsize=3,
                    label=scheme)  # fmt: skip
        _power(ax, etas, values, order_in_eta(etas, gaps), r"\eta", colour)
        limits.append(values)
    ax.set(title="Time steps", xlabel=r"length of a step $\eta$", ylabel=r"$f(\eta) - f(\eta/2)$ at $t = 1$ (2 s.e.)")
    canvas.log_axis(ax.xaxis, min(FIRST[:-1]) / 1.3, max(SECOND) * 1.3)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(*limits, room=2))
    box = ax.legend(loc="upper left", ncols=2, fontsize=7.5)
    box.set_zorder(7)
    ax.set_ylim(top=ax.get_ylim()[1] * 8)


def _against_cells(ax, results, f, kl) -> None:
    widths, gaps, entropies = cell_errors(results, f, kl)
    for values, mark, colour, name in ((gaps, "o", canvas.BLUE, r"$f$, rms"), (entropies, "s", canvas.ORANGE, "KL")):
        ax.plot(widths, values, color=colour, marker=mark, ls="none", label=name)
        _power(ax, widths, values, Estimate(0.0, 0.0), r"\Delta", colour)
    ax.set(title="Cells", xlabel=r"width of a cell $\Delta$", ylabel=r"gap at $t = 1$")
    canvas.log_axis(ax.xaxis, widths.min() / 1.3, widths.max() * 1.3)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(gaps, entropies))
    canvas.legend(ax, "lower right")
