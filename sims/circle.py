"""A teacher spread uniformly over the circle: which starts a network of ReLUs turns into it, and which it cannot see.

Inputs are uniform on the unit circle, neurons are h(cos(x - phi)) with the angle phi alone to move, and the teacher is
f* = int h dp*, p* uniform (E, Ma, Wu; L. Wu's lecture at the summer school of Peking University, 2021). With h = relu

    R(p) = int int k(phi - phi') d(p - p*) d(p - p*),    k(t) = (sin t + (pi - t) cos t) / (4 pi), t in [0, pi],

and k has no odd harmonic but the first: k = sum_n k_n cos n t, k_n = c_n^2 / 2, h(cos t) = sum_n c_n cos n t. So
p = 1 + .5 cos 3 phi (over 2 pi) has no risk and stays; 1 + .5 cos phi grows a third harmonic on its way and stalls off
p*; starts that are symmetric under phi -> phi + pi converge. With a bias, h = relu(cos t + b), all harmonics are seen.
Near p* the n-th harmonic of the density falls at the rate n^2 k_n.
"""

import functools
import math

import numpy as np

import meanfield as mf
from meanfield import canvas, interactions
from meanfield.claims import Claim, at_least, at_most, near
from meanfield.cloud import cloud_at
from meanfield.population import Pairwise

TITLE = "Distance to a uniform teacher on the circle from starts of one harmonic; rates of the harmonics"
STATEMENT = "L. Wu's lecture (2021): circle neurons, ReLU does not see odd harmonics from the third on"
MINUTES = 2

BIAS = 0.15
HARMONICS, NODES = 128, 1 << 14
LARGE, SMALL, SHORT, STEPS = 0.5, 0.01, 0.05, 400
TIME = 2000.0
GRID = [
    *({"bias": bias, "harmonic": n, "size": LARGE, "m": 256 if n == 3 and not bias else 128, "eta": SHORT, "time": TIME}
      for bias in (0.0, BIAS) for n in (1, 2, 3)),
    {"bias": 0.0, "harmonic": 1, "size": LARGE, "m": 128, "eta": SHORT / 2, "time": TIME},
    *({"bias": bias, "harmonic": n, "size": SMALL, "m": 200} for bias in (0.0, BIAS) for n in (1, 2, 3, 4, 5)),
]  # fmt: skip
SMOKE = [
    *(point | {"m": 48, "eta": 0.5, "time": 600.0} for point in GRID[:3]),
    *(point | {"m": 150} for point in GRID[7:] if point["harmonic"] in (1, 3)),
]


# --- kernels of angles --------------------------------------------------------------------------------------------


class Arcs:
    """k(t) = (sin t + (pi - t) cos t) / (4 pi), t the angle between two unit neurons: ReLU, inputs on the circle."""

    def sums(self, points, z, mass):
        gap = points - z.T
        gap -= 2 * math.pi * np.round(gap / (2 * math.pi))
        t = np.abs(gap)
        rest = math.pi - t
        value = (np.sin(t) + rest * np.cos(t)) @ mass
        return value / (4 * math.pi), ((-np.sign(gap) * rest * np.sin(t)) @ mass)[:, None] / (4 * math.pi)


class Harmonics:
    """k(t) = sum_n k_n cos n t: sums over particles are a product of harmonics, with no pair in it."""

    def __init__(self, k):
        self.k, self.n = k, np.arange(len(k))

    def sums(self, points, z, mass):
        moments = self.k * (mass @ np.exp(-1j * z * self.n))
        waves = np.exp(1j * points * self.n)
        return (waves @ moments).real, (waves @ (1j * self.n * moments)).real[:, None]


@functools.cache
def harmonics(bias: float) -> np.ndarray:
    """k_n of h(cos t) = relu(cos t + bias), n < HARMONICS, by the trapezoidal rule."""
    t = 2 * math.pi * np.arange(NODES) / NODES
    c = 2 * np.fft.rfft(np.maximum(np.cos(t) + bias, 0)).real / NODES
    return np.r_[(c[0] / 2) ** 2, c[1:HARMONICS] ** 2 / 2]


def rate(bias: float, n: int) -> float:
    """n^2 k_n, at which a small n-th harmonic of the density falls; without a bias exactly."""
    if bias:
        return float(n**2 * harmonics(bias)[n])
    if n == 1:
        return 0.125
    return 0.0 if n % 2 else 2 * (n / (math.pi * (n**2 - 1))) ** 2


def objective(bias: float) -> Pairwise:
    """R: the uniform teacher takes the mean of the kernel off."""
    k = harmonics(bias)
    return Pairwise(None, Harmonics(k) if bias else Arcs(), constant=-float(k[0]) if bias else -1 / math.pi**2)


# --- laws on the circle -------------------------------------------------------------------------------------------


def quantiles(n: int, size: float, m: int) -> np.ndarray:
    """m quantiles of the density (1 + size cos n phi) / (2 pi), by Newton's method."""
    level = 2 * math.pi * (np.arange(m) + 0.5) / m
    phi = level.copy()
    for _ in range(60):
        phi -= (phi + size * np.sin(n * phi) / n - level) / (1 + size * np.cos(n * phi))
    return phi


def distance(cloud, flow) -> float:
    """W2 to p*, through m quantiles of each: optimal pairs on a circle are quantiles, up to a rotation.

    In the lift phi_j - 2 pi j / m is periodic in j; p* is rotated by the mean of it, so that its variance is W2^2.
    """
    phi = np.sort(np.mod(cloud.z[:, 0], 2 * math.pi))
    return float(np.std(phi - 2 * math.pi * np.arange(len(phi)) / len(phi)))


def modes(cloud, flow) -> np.ndarray:
    """2 |E e^(i n phi)|, n = 1..8: sizes of the harmonics of the density."""
    return 2 * np.abs(np.exp(1j * np.arange(1, 9)[:, None] * cloud.z[:, 0]).mean(axis=1))


def risk(cloud, flow) -> float:
    return flow.objective.value(cloud)


def angles(cloud, flow) -> np.ndarray:
    return cloud.z[:, 0]


# --- building -----------------------------------------------------------------------------------------------------


def lengths(eta: float, time: float) -> list[float]:
    """Lengths of steps: eta while the law moves, up to t = 40, then growing by 3 % a step up to 80 eta."""
    found, t = [], 0.0
    while t < time - 1e-9:
        found.append(min(eta if t < 40 else min(1.03 * found[-1], 80 * eta), time - t))
        t += found[-1]
    return found


def build(point: dict):
    start = cloud_at(quantiles(point["harmonic"], point["size"], point["m"])[:, None])
    if point["size"] == LARGE:
        steps = lengths(point["eta"], point["time"])
        at = [0.0, *(point["time"] * 2.0 ** np.linspace(-11, 0, 56))]
    else:
        time = 2 / (rate(point["bias"], point["harmonic"]) or 0.125)
        steps, at = [time / STEPS] * STEPS, [0.0, time]
    kept = [mf.Record(what, at=at) for what in (distance, modes, risk)]
    kept.append(mf.Record(angles, at=[0.0, at[-1]]))
    flow = mf.Flow(objective(point["bias"]), lam=0.0, eta=lambda k: steps[min(k, len(steps) - 1)], scheme="euler")
    return mf.simulate(flow, start, at[-1], observables=[], records=kept, bounds=0, quiet=True).data


# --- claims -------------------------------------------------------------------------------------------------------


def large(results, bias: float, n: int, eta: float = 0.0):
    """The run from a start of one large harmonic, with the longest steps if not said otherwise."""
    found = results.where(bias=bias, harmonic=n, size=LARGE)
    return max(found, key=lambda r: r.point["eta"] if not eta else r.point["eta"] == eta).data


def fitted(data, point: dict) -> float:
    """The rate r at which the harmonic falls in steps c <- (1 - eta r) c."""
    c = data.modes.values[0, :, point["harmonic"] - 1]
    return float((1 - (c[-1] / c[0]) ** (1 / STEPS)) / (data.modes_time.values[-1] / STEPS))


def claims(results) -> list[Claim]:
    out = [*_tools(results)]
    one, two, three = (large(results, 0.0, n) for n in (1, 2, 3))
    w2 = [data.distance.values[0] for data in (one, two, three)]
    out.append(at_most("1 + .5 cos 2 phi: W2 at the end over its start", w2[1][-1] / w2[1][0], 0.02))
    out.append(at_most("1 + .5 cos 2 phi: largest rise of W2 between records", float(np.diff(w2[1]).max()), 0.0))
    still = abs(w2[2][-1] / w2[2][0] - 1)
    out.append(at_most("1 + .5 cos 3 phi: change of W2 over its start", float(still), 1e-4, full=True))
    spacing = 2 * math.pi / three.angles.shape[-1]
    moved = np.abs(three.angles.values[0, -1] - three.angles.values[0, 0]).max() / spacing
    out.append(at_most("1 + .5 cos 3 phi: farthest that a particle moved, in spacings", float(moved), 0.05))
    out.append(at_most("1 + .5 cos 3 phi: risk at the start", float(three.risk.values[0, 0]), 1e-7))
    out.append(at_least("1 + .5 cos phi: W2 at the end", w2[0][-1], 0.009))
    late = float(np.searchsorted(one.distance_time.values, one.distance_time.values[-1] / 2))
    out.append(at_most("1 + .5 cos phi: share of W2 lost in the last half of the time",
                       1 - w2[0][-1] / w2[0][int(late)], 0.01))  # fmt: skip
    out.append(at_most("1 + .5 cos phi: risk at the end over its start",
                       float(one.risk.values[0, -1] / one.risk.values[0, 0]), 1e-4))  # fmt: skip
    if results.full:
        fine = large(results, 0.0, 1, SHORT / 2).distance.values[0][-1]
        out.append(
            near("1 + .5 cos phi: W2 at the end, steps halved and extrapolated", 2 * fine - w2[0][-1], 0.0099, 1e-4)
        )
        for n in (1, 2, 3):
            w2 = large(results, BIAS, n).distance.values[0]
            out.append(at_most(f"with a bias, 1 + .5 cos {n} phi: W2 at the end over its start", w2[-1] / w2[0], 0.02))
    return [*out, *_rates(results)]


def _tools(results) -> list[Claim]:
    """The kernel against the library's of two weights, W2 against POT."""
    import ot

    phi = large(results, 0.0, 1).angles.values[0, 0]
    plane = np.column_stack([np.cos(phi), np.sin(phi), np.ones_like(phi)])
    mass = 1 + np.cos(phi - 1) / 2
    arcs, value = (
        Arcs().sums(phi[:, None], phi[:, None], mass),
        interactions.ReluPair("sphere").sums(plane, plane, mass),
    )
    along = (value[1][:, :2] * np.column_stack([-np.sin(phi), np.cos(phi)])).sum(axis=1)
    gap = max(np.abs(arcs[0] - value[0]).max(), np.abs(arcs[1][:, 0] - along).max())
    ours = large(results, 0.0, 1).distance.values[0, 0] ** 2 + (2 * math.pi / len(phi)) ** 2 / 12
    theirs = (2 * math.pi) ** 2 * float(ot.semidiscrete_wasserstein2_unif_circle(phi[:, None] / (2 * math.pi))[0])
    return [at_most("kernel of angles against the pair kernel of two weights: largest gap", float(gap), 1e-12),
            near("W2^2 of the particles to the uniform law over that of POT", ours / theirs, 1.0, 1e-9)]  # fmt: skip


def _rates(results) -> list[Claim]:
    out = []
    for result in results.where(size=SMALL):
        bias, n = result.point["bias"], result.point["harmonic"]
        text = f"{'with a bias' if bias else 'ReLU'}: rate of harmonic {n}"
        found, wanted = fitted(result.data, result.point), rate(bias, n)
        if wanted:
            out.append(near(f"{text} over n^2 k_n = {canvas.number(wanted)}", found / wanted, 1.0, 0.01))
        else:
            out.append(at_most(f"{text}, which has none", abs(found), 1e-4))
    return out


# --- figures ------------------------------------------------------------------------------------------------------

STYLES = {1: (canvas.BLUE, "-", "o"), 2: (canvas.ORANGE, "--", "s"), 3: (canvas.GREEN, "-.", "^")}


def named(n: int) -> str:
    return rf"$1 + .5\cos {n if n > 1 else ''}\varphi$"


def plot(results) -> dict:
    figure, axes = canvas.sheet(1, 3, width=4.6, height=3.8)
    _distance_panel(axes[0], results)
    _density_panel(axes[1], results)
    _rate_panel(axes[2], results)
    return {"distance": figure}


def _distance_panel(ax, results) -> None:
    for bias in dict.fromkeys(r.point["bias"] for r in results.where(size=LARGE)):
        for n, (colour, line, mark) in STYLES.items():
            data = large(results, bias, n)
            kind = {"mfc": "white", "alpha": 0.6, "lw": 1.0} if bias else {"label": named(n)}
            ax.plot(data.distance_time.values[1:], data.distance.values[0, 1:], color=colour, ls=line, marker=mark,
                    markevery=6, ms=4, **kind)  # fmt: skip
    ax.set(title="ReLU sees two of three starts", xlabel="time $t$", ylabel="$W_2(p_t, p^*)$")
    end = float(max(r.data.distance_time.values[-1] for r in results.where(size=LARGE)))
    canvas.log_axis(ax.xaxis, 1.0, end * 1.1)
    canvas.log_axis(ax.yaxis, 2e-5, 1.0)
    canvas.legend(ax, "lower left", "open, thin: with a bias" if results.full else "")


def _density_panel(ax, results) -> None:
    """Densities by differences of quantiles."""
    for n, (colour, line, _) in STYLES.items():
        for when, style in ((0, {"lw": 0.9, "alpha": 0.6}), (-1, {"label": f"from {named(n)}"})):
            phi = large(results, 0.0, n).angles.values[0, when]
            rho = 2 * math.pi / (len(phi) * np.diff(phi, append=phi[0] + 2 * math.pi))
            ax.plot(phi, rho, color=colour, ls=line, **style)
    ax.set(title="ReLU: density, start (thin) and end", xlabel=r"angle $\varphi$", ylabel=r"$2\pi p(\varphi)$",
           ylim=(0.4, 2.1))  # fmt: skip
    canvas.legend(ax, "upper center")


def _rate_panel(ax, results) -> None:
    for bias, colour, mark, label in ((0.0, canvas.BLUE, "o", "ReLU"), (BIAS, canvas.ORANGE, "s", f"bias {BIAS:g}")):
        found = results.where(size=SMALL, bias=bias)
        n = np.arange(1, 10)
        wanted = np.array([rate(bias, k) for k in n])
        ax.plot(n[wanted > 0], wanted[wanted > 0], color=colour, ls="none", marker=mark, mfc="white", ms=9,
                label=f"{label}: $n^2k_n$")  # fmt: skip
        at = [(r.point["harmonic"], fitted(r.data, r.point)) for r in found if rate(bias, r.point["harmonic"])]
        if at:
            ax.plot(*zip(*at, strict=True), color=colour, ls="none", marker=mark, ms=4, label=f"{label}: fitted")
    ax.set(title="Rates of small harmonics", xlabel="harmonic $n$", ylabel="rate", xticks=range(1, 10))
    canvas.log_axis(ax.yaxis, 1e-4, 0.5)
    canvas.legend(ax, "upper right", "of ReLU's odd ones only n = 1 moves")
