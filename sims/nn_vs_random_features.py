"""A wide network that starts at a = 0 is a network with random features: how nearly, against its width m.

The conventional network f = sum_j a_j relu(b_j . x) starts at a = 0, b ~ N(0, I/d), and is trained by gradient flow on
n samples, once with both layers and once with b frozen. The lecture [Wu21] bounds

    sup_{x, t} |f_NN - f_RF| <= poly(n) / sqrt(m),    sup_t |B(t) - B(0)| <= poly(n) / m    for m >= poly(n).

Both hold, and neither is sharp. In A = m a and s = m tau the flow is dA/ds = O(1), db/ds = O(m^-2): neurons move by
m^-2, all of them together by m^(-3/2), and so the outputs by m^-2. The supremum over the unit sphere is bracketed by
the largest difference at probes and by sum_j |a_j - a'_j| |b_j| + |a'_j| |b_j - b'_j|.

The labels are those of one neuron, relu(w . x), or random signs, for which m has to be larger before the orders show.
"""

import numpy as np

import meanfield as mf
from meanfield import canvas, datasets, parallel
from meanfield.claims import Claim, at_most, near, order
from meanfield.cloud import silent_cloud

TITLE = "Network minus random features, and how far inner weights move, against the width"
STATEMENT = "lecture: f_NN - f_RF = O(m^-1/2), |B(t) - B(0)| = O(m^-1); true orders -2, -3/2"
MINUTES = 2

N, D, PROBES = 20, 10, 400
SIZES = (80, 160, 320, 640, 1280, 2560, 5120, 10240)
# From which width on constants are fitted, and orders.
FIRST = {"neuron": (4 * N, 8 * N), "random": (32 * N, 32 * N)}
GRID = [{"labels": labels, "m": m, "steps": 60, "replicates": 8} for labels in FIRST for m in SIZES]
SMOKE = [
    {"labels": labels, "m": m, "steps": 30, "replicates": 2}
    for labels, sizes in (("neuron", SIZES[:3]), ("random", SIZES[3:5]))
    for m in sizes
]


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict) -> dict:
    with parallel.single_threaded_blas():  # once, and not at every small step
        found = [_compared(point, seed) for seed in range(point["replicates"])]
    return {name: np.array([f[name] for f in found]) for name in found[0]}


def _compared(point: dict, seed: int) -> dict[str, float | np.ndarray]:
    """Both networks from one start on one grid of times: suprema over time, and the loss at the end."""
    m, steps = point["m"], point["steps"]
    x, signs = datasets.sphere(n=N, d=D, teacher="random", seed=seed)
    y = signs if point["labels"] == "random" else np.maximum(x[:, 0], 0)
    probes = np.vstack([x, datasets.sphere(n=PROBES, d=D, teacher="random", seed=1000)[0]])
    risk = mf.Risk(x, y, mf.Unit("relu"), alpha=float(m), centred=False)
    flows = [mf.Flow(risk, lam=0.0, prior=None, scheme="kernel2", train=train) for train in ("both", "u")]
    start = silent_cloud(m, risk.unit, D, seed=seed)
    network = features = start
    series = []
    for eta in np.diff(times(risk, start, steps)):
        network, features = (flow.step(c, float(eta)) for flow, c in zip(flows, (network, features), strict=True))
        series.append(distances(risk, network, features, probes))
    suprema = np.max(series, axis=0)
    # In the time of the conventional network, tau = m t.
    return dict(zip(("lower", "upper", "frobenius", "neuron"), suprema, strict=True)) | {
        "loss": risk.value(network) / risk.value(start), "tau": m * network.time, "series": np.array(series)[:, 0],
        "taus": m * times(risk, start, steps)[1:],
    }  # fmt: skip


def times(risk: mf.Risk, start: mf.Cloud, steps: int) -> np.ndarray:
    """0 and times spaced by a factor, from a twentieth of the fastest rate to 14 times the slowest of frozen b."""
    rates = risk.kappa * np.linalg.eigvalsh(risk.gram(start, "u"))
    return np.r_[0, np.geomspace(0.05 / rates[-1], 14 / rates[0], steps)]


def distances(risk: mf.Risk, network: mf.Cloud, features: mf.Cloud, probes: np.ndarray) -> tuple[float, ...]:
    """sup_x |f_NN - f_RF| from below and above, |B - B(0)|, and the largest |b_j - b_j(0)|."""
    lower = np.abs(risk.predict(network, probes) - risk.predict(features, probes)).max()
    (b, a), (b0, a0) = ((c.z[:, :-1], c.z[:, -1]) for c in (network, features))
    moved = np.linalg.norm(b - b0, axis=1)
    # The particles' u is a, and alpha / m = 1.
    upper = (np.abs(a - a0) * np.linalg.norm(b, axis=1) + np.abs(a0) * moved).sum()
    return float(lower), float(upper), float(np.sqrt((moved**2).sum())), float(moved.max())


# --- reading ------------------------------------------------------------------------------------------------------


def table(results, labels: str, name: str, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Widths (K,) from `first` on and values (R, K)."""
    found = [r for r in results.where(labels=labels) if r.point["m"] >= first]
    return np.array([r.point["m"] for r in found], float), np.array([r.data[name].values for r in found]).T


def excess(results, labels: str, name: str, printed: float) -> float:
    """The largest value over C m^printed, C fitted in each replicate at the smallest of the widths."""
    m, values = table(results, labels, name, FIRST[labels][0])
    scaled = values * m**-printed
    return float((scaled[:, 1:] / scaled[:, :1]).max())


# --- claims -------------------------------------------------------------------------------------------------------

TEXTS = {"lower": "f_NN - f_RF at probes", "upper": "f_NN - f_RF, from above", "frobenius": "|B(t) - B(0)|"}
PRINTED = {"lower": -0.5, "upper": -0.5, "frobenius": -1.0}
TRUE = {"lower": (-2, 0.25), "upper": (-2, 0.25), "frobenius": (-1.5, 0.15)}


def claims(results) -> list[Claim]:
    out = []
    for labels, (fitted, first) in FIRST.items():
        for name, text in TEXTS.items():
            here = f"{labels}: {text}"
            over = excess(results, labels, name, PRINTED[name])
            out.append(at_most(f"{here}, largest over C m^{PRINTED[name]:g}, C from m = {fitted}", over, 1.0))
            found = order(*table(results, labels, name, first))
            out.append(near(f"{here}, order in m from {first} on", found, *TRUE[name], full=True))
    left = max(float(r.data.loss.max()) for r in results)
    return [*out, at_most("loss at the end over its start", left, 1e-12)]


# --- figures ------------------------------------------------------------------------------------------------------

STYLES = {"neuron": (canvas.BLUE, "o", "one neuron"), "random": (canvas.ORANGE, "s", "random signs")}


def plot(results) -> dict:
    figure, axes = canvas.sheet(1, 3, width=4.5, height=3.8)
    _against_width(axes[0], results, ("lower", "upper"), (-0.5, -2))
    axes[0].set(title="Network minus random features", ylabel=r"$\sup_{x,t}|f_{NN} - f_{RF}|$")
    _against_width(axes[1], results, ("frobenius",), (-1, -1.5))
    axes[1].set(title="Inner weights", ylabel=r"$\sup_t|B(t) - B(0)|$")
    _over_time(axes[2], results)
    return {"orders": figure}


def _against_width(ax, results, names: tuple[str, ...], slopes: tuple[float, float]) -> None:
    for labels, (colour, marker, text) in STYLES.items():
        m, low = table(results, labels, names[0])
        error = 2 * low.std(0, ddof=1) / np.sqrt(len(low))
        ax.errorbar(m, low.mean(0), error, color=colour, marker=marker, capsize=2, label=text)
        if len(names) > 1:
            high = table(results, labels, names[1])[1].mean(0)
            ax.plot(m, high, color=colour, marker=marker, mfc="white", lw=1.0, ls="-.", label=f"{text}, from above")
    m, values = table(results, "neuron", names[0])
    for slope, line, what in zip(slopes, (":", "--"), ("printed bound", "rescaled flow"), strict=True):
        ax.plot(m, values.mean(0)[0] * (m / m[0]) ** slope, color=canvas.INK, ls=line, lw=1.1,
                label=f"{what}, slope {canvas.number(slope)}")  # fmt: skip
    low, high = canvas.positive_limits(*(line.get_ydata() for line in ax.lines))
    canvas.log_axis(ax.xaxis, m[0] / 1.3, m[-1] * 1.3)
    canvas.log_axis(ax.yaxis, low / (3e3 if len(names) > 1 else 100), high)
    ax.set_xlabel("width $m$")
    canvas.legend(ax, "lower left", "means of replicates, 2 standard errors")


def _over_time(ax, results) -> None:
    colours = (canvas.GREEN, canvas.PURPLE, canvas.BLUE)
    some = results.where(labels="neuron").found[1::2]
    for (point, data), colour, line in zip(some, colours, ("--", "-.", "-"), strict=False):
        m, s = point["m"], data.taus.values[0] * point["m"]
        late = s > 3
        ax.plot(s[late], data.series.values[0][late] * m**2, color=colour, ls=line, label=f"$m$ = {m:,}")
    ax.set(title="In rescaled time the curves meet", ylabel=r"$m^2\max|f_{NN} - f_{RF}|$ at probes",
           xlabel=r"rescaled time $s = m\tau$")  # fmt: skip
    canvas.log_axis(ax.xaxis, *canvas.positive_limits(*(line.get_xdata() for line in ax.lines), room=1.0))
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(*(line.get_ydata() for line in ax.lines)))
    canvas.legend(ax, "lower right", "one neuron, one replicate")
