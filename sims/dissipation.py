"""A Wasserstein gradient flow: mass stays, energy falls as fast as its gradient says, small steps are proximal.

    dp/dt = div(p grad dJ/dp),    dJ/dt = -E_p |grad dJ/dp|^2

Without entropy: particles on the population risk of a network of erf neurons, which solve the equation exactly from
their own law. With it: finite volumes for the free energy Q = L + lam KL of equation (3.4) of [CCGZ20], one input,
output weights fixed. The population risk is convex along mixtures (1 - s) p + s q, where its second derivative is
2 int int k d(q - p) d(q - p), and not along displacement, where neurons travel from p to q. Minimising movements
p_(k+1) = argmin Q(p) + W2^2(p, p_k) / (2 eta) [JKO98] lower Q whatever eta is, and tend to the flow as eta does to 0.
"""

import numpy as np

import meanfield as mf
from meanfield import canvas, fokker_planck, population
from meanfield.claims import Claim, at_least, at_most, near, power_law
from meanfield.cloud import cloud_at

TITLE = "Energy lost and energy spent; risk along mixtures and displacements; order of minimising movements"
STATEMENT = "Wasserstein gradient flows: conservation, dissipation, convexity, minimising movements [JKO98]"
MINUTES = 1

LAM, END = 0.2, 1.0
X, Y, ALPHA = [[0.4], [1.0]], [0.5, 0.8], 3.0
GRID = [
    *({"part": "particles", "eta": eta, "time": 8.0, "m": 200} for eta in (0.04, 0.02, 0.01)),
    *({"part": "density", "cells": cells} for cells in (100, 200, 400)),
    {"part": "convexity", "m": 200},
    *({"part": "movement", "steps": steps, "m": 400} for steps in (1, 4, 8, 16, 32, 64, 128)),
    *({"part": "movement", "steps": steps, "m": m} for m in (50, 100, 200) for steps in (32, 64, 128)),
]
SMOKE = [
    *(point | {"time": 2.0, "m": 50} for point in GRID[:2]),
    *({"part": "density", "cells": cells} for cells in (60, 120)),
    {"part": "convexity", "m": 60},
    *({"part": "movement", "steps": steps, "m": m} for m in (50, 100) for steps in (1, 16, 32, 64, 128)),
]


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict):
    return {"particles": particles, "density": density, "convexity": convexity, "movement": movement}[point["part"]](
        point
    )


def particles(point: dict) -> dict:
    """Risk and |gradient|^2 over time, of Euler's steps without noise; the mass is what it was."""
    teacher = np.array([[1.2, 0.3, 3.0], [-0.5, 1.0, -2.0], [0.4, -1.4, 2.0]])
    objective = population.risk("erf", teacher)
    cloud = mf.gaussian_cloud(point["m"], dimension=3, seed=4, reference=False)
    flow = mf.Flow(objective, lam=0.0, eta=point["eta"], scheme="euler", prior=None)
    speed = mf.Record(lambda cloud, flow: cloud.mean((flow.objective.gradient(cloud) ** 2).sum(axis=1)), "speed")
    found = mf.simulate(flow, cloud, point["time"], observables=["loss"], records=[speed], bounds=0, quiet=True).data
    return {"time": found.speed_time.values, "J": found.loss.values[0], "speed": found.speed.values[0]}


def problem() -> mf.Risk:
    return mf.Risk(X, Y, mf.Unit("erf"), alpha=ALPHA)


def density(point: dict) -> dict:
    """Energy, mass and (I4) of the law on cells."""
    times = END * (np.arange(1, 25) / 24) ** 2
    solution = fokker_planck.frozen(problem(), LAM, times, cells=point["cells"], estimate=False)
    found = fokker_planck.identities(solution)["I4"]
    series = solution.series
    loss = ((series.prediction - np.asarray(Y)) ** 2).mean(axis=1)
    masses = np.array([[p.sum(), p.min()] for p in solution.states])
    return {
        "time": times, "Q": loss + LAM * series.kl, "loss": loss, "rate": found.rate, "formula": found.formula,
        "gap": found.gap, "prediction": series.prediction[-1], "mass": masses[:, 0], "least": masses[:, 1],
        "path": solution.path_energies,
    }  # fmt: skip


def convexity(point: dict) -> dict:
    """The population risk along the mixtures and the displacement of two laws of one-dimensional neurons."""
    objective, s = population.risk("erf", np.array([[2.0, 1.0]])), np.linspace(0, 1, 41)
    spread = 0.3 * np.linspace(-1, 1, point["m"])
    p, q = (np.column_stack([theta + spread, np.ones_like(spread)]) for theta in (-1.0, 9.0))
    both = np.concatenate([p, q])
    mixed = [objective.value(cloud_at(both, weights=np.repeat([1 - part, part], len(p)))) for part in s]
    displaced = [objective.value(cloud_at((1 - part) * p + part * q)) for part in s]
    signs = np.repeat([-1.0, 1.0], len(p)) / len(p)
    square = signs @ objective.U.sums(both, both, signs)[0]
    return {"s": s, "mixture": mixed, "displacement": displaced, "square": square}


def movement(point: dict) -> dict:
    """Minimising movements over [0, END]."""
    steps = point["steps"]
    moves = fokker_planck.proximal(problem(), LAM, END / steps, steps, m=point["m"])
    return {"Q": moves.energy, "quantiles": moves.quantiles[-1], "prediction": moves.prediction[-1]}


# --- reading ------------------------------------------------------------------------------------------------------


def defect(data) -> float:
    """Energy lost less the integral of the squared gradient by Simpson's rule, over the energy lost."""
    from scipy.integrate import simpson

    lost = float(data.J.values[0] - data.J.values[-1])
    return (lost - float(simpson(data.speed.values, x=data.time.values))) / lost


def gaps(results) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of movements and W2 to the end of movements of half the length, at the m with most lengths."""
    m = movements(results)[0]
    steps = sorted(r.point["steps"] for r in results.where(part="movement", m=m))[1:]
    X = [results.one(part="movement", m=m, steps=k).quantiles.values for k in steps]
    return END / np.array(steps[:-1]), np.sqrt([((a - b) ** 2).mean() for a, b in zip(X, X[1:], strict=False)])


def movements(results) -> list[int]:
    """Numbers of quantiles, that with most lengths first."""
    found = [r.point["m"] for r in results.where(part="movement")]
    return sorted(set(found), key=lambda m: (-found.count(m), m))


def limits(results) -> tuple[np.ndarray, np.ndarray]:
    """m, and how far predictions by movements are from those by finite volumes, each extrapolated.

    The movements to eta = 0 by a parabola through three lengths, the volumes to cells of no width by the last two.
    """
    wide, narrow = (r.data.prediction.values for r in results.where(part="density").found[-2:])
    exact = (4 * narrow - wide) / 3
    m, off = np.array(sorted(movements(results))), []
    for k in m:
        long, middle, short = (
            results.one(part="movement", m=int(k), steps=steps).prediction.values for steps in (32, 64, 128)
        )
        off.append((8 * short - 6 * middle + long) / 3 - exact)
    return m, np.abs(off).max(axis=1)


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    runs = [r.data for r in results.where(part="particles")]
    eta, defects = np.array([r.point["eta"] for r in results.where(part="particles")]), [defect(d) for d in runs]
    rise = max(float(np.diff(d.J.values).max()) for d in runs)
    out = [
        at_most("without entropy: largest rise of J over a step", rise, 0.0),
        near("without entropy: order in eta of the defect of dJ/dt = -E|grad|^2", power_law(eta, np.abs(defects))[0],
             1.0, 0.1),
        at_most("without entropy: that defect extrapolated to eta = 0, over the energy lost",
                abs(2 * defects[-1] - defects[-2]), 1e-3),
    ]  # fmt: skip
    return [*out, *_density_claims(results), *_convexity_claims(results), *_movement_claims(results)]


def _density_claims(results) -> list[Claim]:
    found = [r.data for r in results.where(part="density")]
    cells = np.array([r.point["cells"] for r in results.where(part="density")])
    worst = [float(d.gap.values.max()) for d in found]
    return [
        at_most("with entropy: mass gained or lost", max(float(np.abs(d.mass.values - 1).max()) for d in found), 1e-12),
        at_least("with entropy: least mass of a cell", min(float(d.least.values.min()) for d in found), 0.0),
        at_most("with entropy: largest rise of Q over a step", max(float(np.diff(d.path).max()) for d in found), 1e-14),
        at_most("with entropy: largest gap of dQ/dt = -E|grad dQ/dp|^2, finest cells", worst[-1], 1e-3, full=True),
        near("with entropy: its order in the width of the cells", power_law(1 / cells, worst)[0], 2.0, 0.3),
    ]


def _convexity_claims(results) -> list[Claim]:
    (result,) = results.where(part="convexity").found
    data, step = result.data, float(np.diff(result.data.s.values)[0])
    mixed, displaced = (np.diff(data[name].values, 2) / step**2 for name in ("mixture", "displacement"))
    wanted = 2 * float(data.square.values)
    return [
        at_least("second derivative of the risk along mixtures, least", float(mixed.min()), 0.0),
        at_most("its gap from 2 int int k d(q - p) d(q - p), over that", float(np.abs(mixed / wanted - 1).max()), 1e-8),
        at_most("second derivative of the risk along displacement, least", float(displaced.min()), -0.1),
    ]


def _movement_claims(results) -> list[Claim]:
    eta, distances = gaps(results)
    m, off = limits(results)
    rise = max(float(np.diff(r.data.Q.values).max()) for r in results.where(part="movement"))
    return [
        at_most("movements: largest rise of Q, eta from 1 / 128 to 1", rise, 0.0),
        near("movements: order in eta of the distance W2 to half the length, three shortest",
             power_law(eta[-3:], distances[-3:])[0], 1.0, 0.1),
        at_least("movements at eta = 0: order in 1 / m of the predictions' gap from finite volumes",
                 power_law(1 / m, off)[0], 1.0, full=True),
        at_most("movements at eta = 0: that gap at the largest m", float(off[-1]), 1e-4, full=True),
    ]  # fmt: skip


# --- figures ------------------------------------------------------------------------------------------------------


def plot(results) -> dict:
    figure, axes = canvas.sheet(2, 2, width=5.2, height=3.6)
    _particle_panel(axes[0], results)
    _density_panel(axes[1], results)
    _convexity_panel(axes[2], results)
    _movement_panel(axes[3], results)
    return {"flow": figure}


def _particle_panel(ax, results) -> None:
    data = results.where(part="particles").found[-1].data
    t, J, speed = data.time.values, data.J.values, data.speed.values
    spent = np.append(0.0, np.cumsum(np.diff(t) * (speed[1:] + speed[:-1]) / 2))
    ax.plot(t, J, color=canvas.BLUE, label="$J(t)$")
    every = max(len(t) // 20, 1)
    ax.plot(t[::every], (J[0] - spent)[::every], color=canvas.INK, ls="none", marker="x",
            label=r"$J(0) - \int_0^t E|\nabla\delta J/\delta p|^2$")  # fmt: skip
    ax.set(title="Without entropy: particles", xlabel="time $t$", ylabel="population risk $J$", ylim=(0, None))
    canvas.legend(ax, "upper right")


def _density_panel(ax, results) -> None:
    data = results.where(part="density").found[-1].data
    t = data.time.values
    ax.plot(t, -data.formula.values, color=canvas.BLUE, label=r"$E|\nabla\delta Q/\delta p|^2$")
    ax.plot(t, -data.rate.values, color=canvas.INK, ls="none", marker="x", label="$-dQ/dt$, measured")
    ax.plot(t, data.Q.values, color=canvas.GREEN, ls="-.", label="$Q$")
    ax.set(title=f"With entropy, λ = {LAM:g}: densities", xlabel="time $t$", ylabel="energy; its loss a unit of time")
    canvas.log_axis(ax.xaxis, t[0] / 1.2, t[-1] * 1.2)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(-data.formula.values, data.Q.values))
    canvas.legend(ax, "lower left")


def _convexity_panel(ax, results) -> None:
    data = results.where(part="convexity").found[0].data
    for name, colour, line, label in (
        ("mixture", canvas.BLUE, "-", r"mixtures $(1 - s)p + sq$"),
        ("displacement", canvas.ORANGE, "--", r"displacement $(1 - s)Z + sT(Z)$"),
    ):
        ax.plot(data.s.values, data[name].values, color=colour, ls=line, label=label)
    ax.set(title="Convex along mixtures only", xlabel="$s$", ylabel="population risk", ylim=(0, None))
    canvas.legend(ax, "upper right")


def _movement_panel(ax, results) -> None:
    eta, distances = gaps(results)
    ax.plot(eta, distances, color=canvas.BLUE, marker="o", ls="none", label=r"$W_2$ to movements of $\eta/2$")
    ax.plot(eta, distances[-1] * eta / eta[-1], color=canvas.GREY, ls="--", label=r"proportional to $\eta$")
    ax.set(title=r"Minimising movements: first order in $\eta$", xlabel=r"length $\eta$ of a movement",
           ylabel="$W_2$ at the end")  # fmt: skip
    canvas.log_axis(ax.xaxis, eta.min() / 1.5, eta.max() * 1.5)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(distances))
    canvas.legend(ax, "upper left")
