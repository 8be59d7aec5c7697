"""A sparse teacher found exactly: a global phase, then linear convergence, with a certificate of the minimum.

    J(p) = E_x (E_p psi - E_q psi)^2 + nu int |a| |w| dp,    psi = a relu(w . x), x ~ N(0, I) in the plane,

with a teacher q of three neurons (Akiyama, Suzuki). J depends on p through the signed measure of directions w / |w|
with masses a |w|, in which it is convex. A step is a gradient step on the population risk, then the proximal step of
the other term: per neuron, argmin eta nu |a| |w| + |a - a'|^2 / 2 + |w - w'|^2 / 2 has a closed form, which sets a or w
to 0 where that is best. Start: a = 0, w on the unit circle.

**Certificate.** With r = E_p psi - E_q psi and V(w) = 2 E_x r relu(w . x) on the circle, every s in [0, 1] with
s sup |V| <= nu gives the lower bound -2 s E r y - s^2 E r^2 on the minimum (Fenchel's dual). The supremum is taken on a
grid of angles and enlarged by what it can miss: |V''| <= |V| + (2 / sqrt(2 pi)) E|xi|^3 (|p| + |q|), since |r(x)| is at
most |x| times the masses |p| + |q|.
"""

import functools
import math

import numpy as np

from meanfield import canvas, population
from meanfield.claims import Claim, at_least, at_most
from meanfield.cloud import cloud_at

TITLE = "Objective over its certified minimum, neurons over time, rate against the strength of the regulariser"
STATEMENT = "Akiyama, Suzuki: sparse regularisation finds a teacher, linearly after a global phase"
MINUTES = 1

ANGLES, MASSES = np.array([0.3, 2.0, 4.4]), np.array([1.0, 0.8, -0.6])
FINE, COARSE = 1 << 18, 1 << 12
HIGHEST, LOWEST = 2e-4, 1e-7  # the fit is over J - J* between these
GRID = [{"nu": nu, "m": 120, "eta": 0.1, "time": 80 / nu} for nu in (0.15, 0.1, 0.05, 0.025)]
SMOKE = [{"nu": nu, "m": 40, "eta": 0.25, "time": 80 / nu} for nu in (0.2, 0.15)]


# --- the problem --------------------------------------------------------------------------------------------------


@functools.cache
def risk() -> population.Pairwise:
    """The population risk; the teacher's masses are sums over its neurons, not means."""
    teacher = np.column_stack([np.cos(ANGLES), np.sin(ANGLES), len(ANGLES) * MASSES])
    return population.risk("relu", teacher)


def lengths(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.linalg.norm(z[:, :2], axis=1), np.abs(z[:, 2])


def objective(cloud, nu: float) -> float:
    w, a = lengths(cloud.z)
    return risk().value(cloud) + nu * float((a * w).mean())


def proximal(z: np.ndarray, s: float) -> np.ndarray:
    """argmin s |a| |w| + |z - z'|^2 / 2, s < 1: both lengths are stationary, or one of them is 0."""
    w, a = lengths(z)
    shorter_w, shorter_a = (w - s * a) / (1 - s * s), (a - s * w) / (1 - s * s)
    new_w = np.where(shorter_a <= 0, w, np.maximum(shorter_w, 0))
    new_a = np.where(shorter_w <= 0, a, np.maximum(shorter_a, 0))
    return np.column_stack([z[:, :2] * (new_w / np.where(w > 0, w, 1))[:, None], np.sign(z[:, 2]) * new_a])


def minimum(cloud, nu: float, angles: int) -> float:
    """A lower bound on min J by the dual; see above."""
    phi = 2 * math.pi * np.arange(angles) / angles
    V = risk().first_variation(cloud, np.column_stack([np.cos(phi), np.sin(phi), np.ones(angles)]))
    w, a = lengths(cloud.z)
    top = float(np.abs(V).max())
    bend = top + 4 / math.pi * (float((a * w).mean()) + float(np.abs(MASSES).sum()))
    step = 2 * math.pi / angles
    top = (top + bend * step**2 / 8) / (1 - step**2 / 8)
    s = min(1.0, nu / top)
    square = risk().value(cloud)
    pulled = -risk().V.value(cloud) - risk().constant  # E r y
    return -2 * s * pulled - s * s * square


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict):
    nu, m, eta = point["nu"], point["m"], point["eta"]
    phi = 2 * math.pi * (np.arange(m) + 0.5) / m
    z = np.column_stack([np.cos(phi), np.sin(phi), np.zeros(m)])
    steps = round(point["time"] / eta)
    records = sorted({round(k) for k in np.geomspace(1, steps, 120)} | {round(k) for k in np.linspace(0, steps, 200)})
    rows, clouds = [], []
    for k in range(steps + 1):
        cloud = cloud_at(z)
        if k in records:
            rows.append((k * eta, objective(cloud, nu), minimum(cloud, nu, COARSE)))
            clouds.append(z)
        z = proximal(z - eta * risk().gradient(cloud), eta * nu)
    time, value, lower = np.transpose(rows)
    lower[-1] = minimum(cloud_at(clouds[-1]), nu, FINE)
    return {"time": time, "J": value, "lower": lower, "neurons": np.array(clouds), "checks": checks()}


def checks() -> np.ndarray:
    """How far the proximal step is from a minimum found by descent; how far the gradient is from a quotient."""
    from scipy.optimize import minimize

    z = np.array([[0.8, 0.3, 0.5], [0.1, 0.05, -1.2], [1.0, -1.0, 0.02], [-0.4, 0.9, 0.7]])
    gap, s = 0.0, 0.3
    for row, near in zip(z, proximal(z, s), strict=True):

        def value(v, row=row):
            return s * abs(v[2]) * math.hypot(v[0], v[1]) + 0.5 * float(((v - row) ** 2).sum())

        starts = [near, row, np.r_[row[:2], 0], np.r_[0, 0, row[2]]]
        found = [minimize(value, v, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14}) for v in starts]
        gap = max(gap, value(near) - min(f.fun for f in found))
    cloud, step = cloud_at(z), 1e-5
    quotient = [
        (risk().first_variation(cloud, z + e) - risk().first_variation(cloud, z - e)) / (2 * step)
        for e in step * np.eye(3)
    ]
    return np.array([gap, np.abs(np.transpose(quotient) - risk().gradient(cloud)).max()])


# --- reading ------------------------------------------------------------------------------------------------------


def above(data) -> tuple[np.ndarray, np.ndarray]:
    """Times and J - J*, J* the last value: the certificate says how far it may be off."""
    return data.time.values[:-1], data.J.values[:-1] - data.J.values[-1]


def fit(data) -> tuple[float, float, float]:
    """Rate of J - J* between HIGHEST and LOWEST, R^2 of the line in logarithms, and decades between its ends."""
    t, gap = above(data)
    inside = (gap < HIGHEST) & (gap > LOWEST)
    y = np.log(gap[inside])
    slope, start = np.polyfit(t[inside], y, 1)
    left = y - start - slope * t[inside]
    return -float(slope), 1 - float(left.var() / y.var()), float((y.max() - y.min()) / math.log(10))


def clusters(data) -> tuple[np.ndarray, np.ndarray]:
    """Angles and masses a |w| / m of what is left at the end, neurons of one sign within 0.2 taken together."""
    z = data.neurons.values[-1]
    w, a = lengths(z)
    keep = a * w > 1e-6 * (a * w).max()
    phi, mass = np.arctan2(z[keep, 1], z[keep, 0]) % (2 * math.pi), np.sign(z[keep, 2]) * (a * w)[keep] / len(z)
    near = np.array([np.argmin(np.abs(np.angle(np.exp(1j * (p - ANGLES))))) for p in phi])
    off = np.abs(np.angle(np.exp(1j * (phi - ANGLES[near]))))
    assert off.max() < 0.5, "a neuron is left far from all of the teacher's"
    masses = np.array([mass[near == k].sum() for k in range(len(ANGLES))])
    return np.array([(phi * mass)[near == k].sum() for k in range(len(ANGLES))]) / masses, masses


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    gap, slope = results.found[0].data.checks.values
    out = [at_most("proximal step: how far its value is above the least found by descent", float(gap), 1e-9),
           at_most("gradient of the risk against difference quotients", float(slope), 1e-8)]  # fmt: skip
    for point, data in results:
        nu = point["nu"]
        rate, square, decades = fit(data)
        out += [
            at_most(f"nu = {nu:g}: largest rise of J between records", float(np.diff(data.J.values).max()), 1e-14),
            at_most(f"nu = {nu:g}: J at the end over its certified minimum, difference",
                    float(data.J.values[-1] - data.lower.values[-1]), LOWEST / 10),
            at_least(f"nu = {nu:g}: decades of J - J* in the fit of the rate {canvas.number(rate)}", decades, 3.0,
                     full=True),
            at_least(f"nu = {nu:g}: R^2 of the line in logarithms", square, 0.99, full=True),
        ]  # fmt: skip
    least = min(float((r.data.J.values - r.data.lower.values).min()) for r in results)
    out.append(at_least("J less its lower bound, at all records", least, -1e-12))
    angles, masses = clusters(min(results, key=lambda r: r.point["nu"]).data)
    out.append(
        at_most("least nu: largest distance of an angle from the teacher's", np.abs(angles - ANGLES).max(), 0.15)
    )
    out.append(at_most("least nu: largest distance of a mass from the teacher's", np.abs(masses - MASSES).max(), 0.3))
    return out


# --- figures ------------------------------------------------------------------------------------------------------


def plot(results) -> dict:
    figure, axes = canvas.sheet(1, 3, width=4.6, height=3.8)
    _objective_panel(axes[0], results)
    _neuron_panel(axes[1], results.found[-1])
    _rate_panel(axes[2], results)
    return {"convergence": figure}


COLOURS = ((canvas.BLUE, "-"), (canvas.ORANGE, "--"), (canvas.GREEN, "-."), (canvas.PURPLE, ":"))


def _objective_panel(ax, results) -> None:
    for (point, data), (colour, line) in zip(results, COLOURS, strict=False):
        t, gap = above(data)
        scaled = t * point["nu"]
        ax.plot(scaled, np.maximum(gap, 1e-15), color=colour, ls=line, label=rf"$\nu$ = {point['nu']:g}")
    for level in (HIGHEST, LOWEST):
        ax.axhline(level, color=canvas.INK, lw=0.7, ls=":")
    ax.set(title="A global phase, then a line", xlabel=r"$\nu t$", ylabel=r"$J - J^*$", xlim=(0, 25))
    canvas.log_axis(ax.yaxis, 1e-12, 2.0)
    canvas.legend(ax, "upper right", "fitted between the dotted lines")


def _neuron_panel(ax, result) -> None:
    """Paths of the neurons, as wide as their masses."""
    point, data = result
    t, z = data.time.values, data.neurons.values
    for j in range(z.shape[1]):
        mass = np.abs(z[:, j, 2]) * np.linalg.norm(z[:, j, :2], axis=1)
        phi = np.where(mass > 1e-9, np.arctan2(z[:, j, 1], z[:, j, 0]) % (2 * math.pi), np.nan)
        phi[1:][np.abs(np.diff(phi)) > 3] = np.nan
        colour = canvas.BLUE if z[len(t) // 4, j, 2] > 0 else canvas.ORANGE
        ax.plot(t[1:], phi[1:], color=colour, lw=0.7, ls="-" if colour == canvas.BLUE else "--", alpha=0.7)
    for angle, mass in zip(ANGLES, MASSES, strict=True):
        ax.axhline(angle, color=canvas.INK, lw=0.8, ls=":")
        text = f"{mass:+g}".replace("-", "−")
        ax.text(1.15 * t[-1], angle, text, va="center", fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 1.5})
    ax.set(title=rf"Neurons, $\nu$ = {point['nu']:g}; dotted: teacher", xlabel="time $t$", ylabel=r"angle of $w$",
           ylim=(0, 2 * math.pi))  # fmt: skip
    canvas.log_axis(ax.xaxis, t[1], t[-1] * 1.6)


def _rate_panel(ax, results) -> None:
    nu = np.array([r.point["nu"] for r in results])
    rates = np.array([fit(r.data)[0] for r in results])
    ax.plot(nu, rates, color=canvas.BLUE, marker="o", ls="none", label="fitted rate")
    ax.plot(nu, rates[0] * nu / nu[0], color=canvas.GREY, ls="--", label=r"proportional to $\nu$")
    ax.set(title="Rate of the last phase", xlabel=r"$\nu$", ylabel="rate")
    canvas.log_axis(ax.xaxis, nu.min() / 1.5, nu.max() * 1.5)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(rates))
    canvas.legend(ax, "upper left")
