"""From a sparse network to random features as the width grows, n fixed; the scaled network has no such transition.

Networks start at a = 0, b ~ N(0, I/d) and follow the gradient flow of the empirical risk of n samples, x ~ N(0, I),
until they fit or tau = END: the conventional one, sum_j a_j relu(b_j . x), and the scaled one, (1/m) sum_j. Random
features (b frozen) end at the interpolant, or least-squares fit, of least |a|, which is computed directly. The target
is one neuron, relu(w . x), or a circle of neurons, the mean of relu(w . x) over {w_1^2 + w_2^2 = 1} (128 of them).
The test error E(f - f*)^2 / E f*^2 is exact (`population`); the path norm is sum |a||b| or its mean, 1 for both
targets.
"""

import numpy as np

import meanfield as mf
from meanfield import canvas, noise, parallel, population
from meanfield.claims import Claim, at_least, at_most, near
from meanfield.cloud import cloud_at, silent_cloud

TITLE = "Test error and path norm against the width for two targets; maps over width and samples"
STATEMENT = "lecture: transition between n/(d+1) and n, smooth in the scaled network"
MINUTES = 3

UNIT, D = mf.Unit("relu"), 10
END, FITTED, MOST = 1e5, 1e-6, 400  # time tau, loss over its start, steps
TARGETS = ("neuron", "circle")
KINDS = ("conventional", "scaled", "features")
N = 100
WIDTHS = (3, 5, 9, 14, 20, 32, 50, 71, 85, 100, 118, 141, 200, 320, 500, 800)
MAP = {"n": (25, 50, 100, 200), "m": (4, 10, 25, 50, 100, 200, 400)}
GRID = [
    *({"part": "line", "target": target, "n": N, "m": m, "replicates": 5} for target in TARGETS for m in WIDTHS),
    *({"part": "map", "target": target, "n": n, "m": m, "replicates": 2}
      for target in TARGETS for n in MAP["n"] for m in MAP["m"]),
]  # fmt: skip
SMOKE = [
    *({"part": "line", "target": target, "n": 33, "m": m, "replicates": 2} for target in TARGETS
      for m in (3, 11, 33, 99, 264)),
    *({"part": "map", "target": target, "n": n, "m": m, "replicates": 1} for target in TARGETS for n in (11, 33)
      for m in (4, 40)),
]  # fmt: skip


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict) -> dict:
    with parallel.single_threaded_blas():  # once, and not at every small step
        found = [_trained(point, seed) for seed in range(point["replicates"])]
    return {name: np.array([f[name] for f in found]) for name in ("error", "norm", "loss", "steps")}


def target(kind: str) -> np.ndarray:
    """Neurons (w, 1) of the target, each of mass one over their number."""
    angle = np.zeros(1) if kind == "neuron" else 2 * np.pi * (np.arange(128) + 0.5) / 128
    w = np.zeros((len(angle), D))
    w[:, 0], w[:, 1] = np.cos(angle), np.sin(angle)
    return np.column_stack([w, np.ones(len(angle))])


def _trained(point: dict, seed: int) -> dict[str, np.ndarray]:
    """Test error, path norm, loss and steps of the three KINDS on one draw of data and start."""
    q = target(point["target"])
    x = noise.normals(seed, noise.Stream.DATA, step=0, count=point["n"], width=D)
    y = np.maximum(x @ q[:, :-1].T, 0).mean(axis=1)
    start = silent_cloud(point["m"], UNIT, D, seed=seed)
    rows = [network(mf.Risk(x, y, UNIT, alpha, centred=False), start, q) for alpha in (float(point["m"]), 1.0)]
    rows.append(features(mf.Risk(x, y, UNIT, float(point["m"]), centred=False), start, q))
    return dict(zip(("error", "norm", "loss", "steps"), map(np.array, zip(*rows, strict=True)), strict=True))


def network(risk: mf.Risk, cloud: mf.Cloud, q: np.ndarray) -> tuple[float, float, float, float]:
    """The end of the flow; tau = alpha t."""
    flow, first = mf.Flow(risk, lam=0.0, prior=None, account=False), risk.value(cloud)
    while risk.alpha * cloud.time < END and risk.value(cloud) > FITTED * first and cloud.step < MOST:
        after = fallen(flow, cloud)
        if after is None:
            break
        cloud = after
    return *measured(risk, cloud, q), risk.value(cloud) / first, cloud.step


def fallen(flow: mf.Flow, cloud: mf.Cloud) -> mf.Cloud | None:
    """The cloud after a step so short that the loss falls, as it does along the flow; None where none is that short.

    The rule of `propose` looks at kicks, and a kick over a kink of the ReLU may be one too far: 3 runs of 544 leapt.
    """
    eta, loss = flow.propose([cloud]), flow.objective.value(cloud)
    for halvings in range(30):
        after = flow.step(cloud, eta / 2**halvings)
        if flow.objective.value(after) < loss:
            return after
    return None


def features(risk: mf.Risk, cloud: mf.Cloud, q: np.ndarray) -> tuple[float, float, float, float]:
    """The limit of the flow with `train="u"` from a = 0: the least-squares solution of least |a|."""
    z = cloud.z.copy()
    hidden = UNIT.h.value(risk.inputs @ z[:, :-1].T)
    z[:, -1] = np.linalg.lstsq(hidden, risk.y, rcond=None)[0] * cloud.m / risk.alpha
    end = cloud_at(z)
    return *measured(risk, end, q), risk.value(end) / risk.value(cloud), 0


def measured(risk: mf.Risk, cloud: mf.Cloud, q: np.ndarray) -> tuple[float, float]:
    """E(f - f*)^2 over E f*^2, x ~ N(0, I), and the path norm."""
    test = population.risk(UNIT, q, alpha=risk.alpha)
    size = np.abs(cloud.z[:, -1]) * np.linalg.norm(cloud.z[:, :-1], axis=1)
    return test.value(cloud) / test.constant, risk.alpha * float(size.mean())


# --- reading ------------------------------------------------------------------------------------------------------


def line(results, goal: str, name: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Widths (K,) and values (K, R) with n fixed."""
    found = results.where(part="line", target=goal)
    values = [r.data[name].values[:, KINDS.index(kind)] for r in found]
    return np.array([r.point["m"] for r in found]), np.array(values)


def medians(results, goal: str, name: str, kind: str) -> np.ndarray:
    return np.median(line(results, goal, name, kind)[1], axis=1)


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    out = []
    n = results.where(part="line").values("n")[0]
    for goal in TARGETS:
        m, _ = line(results, goal, "error", "features")
        errors, norms = ({kind: medians(results, goal, name, kind) for kind in KINDS} for name in ("error", "norm"))
        peak = m[np.argmax(errors["features"])]
        over = norms["features"][m == n][0] / norms["features"][-1]
        wide = errors["conventional"][-1] / errors["features"][-1]
        scaled = errors["scaled"]
        text = f"{goal}: scaled network, largest over smallest error among m >= n"
        out += [
            at_most(
                f"{goal}: random features, m of the largest error over n (or n over m)", max(peak / n, n / peak), 1.5
            ),
            at_least(f"{goal}: random features, path norm at m = n over that at the largest m", over, 5.0),
            near(f"{goal}: network over random features, error at the largest m", wide, 1.0, 0.2),
            at_most(text, scaled[m >= n].max() / scaled[m >= n].min(), 1.5),
        ]
        text = f"{goal}: scaled network, error at the largest m over its minimum"
        out.append(at_least(f"{text}: narrow networks are better", scaled[-1] / scaled.min(), 1.2, full=True))
    out.append(at_most(f"{text} among m >= n", scaled[-1] / scaled[m >= n].min(), 1.2, full=True))
    return [*out, *_sparse(results, n)]


def _sparse(results, n: int) -> list[Claim]:
    """What networks of fewer weights than samples find: the target itself."""
    m, _ = line(results, "neuron", "norm", "conventional")
    narrow = m <= n / (D + 1)
    norm, error = (medians(results, "neuron", name, "conventional")[narrow] for name in ("norm", "error"))
    return [
        at_most(
            "neuron: network, m <= n/(d+1), median path norm minus 1, largest",
            float(np.abs(norm - 1).max()),
            0.05,
            full=True,
        ),
        at_most("neuron: network, m <= n/(d+1), median test error, largest", float(error.max()), 1e-3, full=True),
        at_least(
            "neuron: network, path norm at m = n", medians(results, "neuron", "norm", "conventional")[m == n][0], 2.0
        ),
    ]


# --- figures ------------------------------------------------------------------------------------------------------

STYLES = {"conventional": (canvas.BLUE, "o", "-"), "scaled": (canvas.GREEN, "^", "-."),
          "features": (canvas.ORANGE, "s", "--")}  # fmt: skip
LABELS = {"conventional": "network", "scaled": "scaled network", "features": "random features"}
NAMES = {"neuron": "one neuron", "circle": "circle"}


def plot(results) -> dict:
    lines, axes = canvas.sheet(2, 2, width=5.4, height=3.6)
    for goal, pair in zip(TARGETS, (axes[:2], axes[2:]), strict=True):
        for name, ax in zip(("error", "norm"), pair, strict=True):
            _line_panel(ax, results, goal, name)
    maps, axes = canvas.sheet(2, 2, width=5.0, height=3.2)
    for k, ax in enumerate(axes):
        _map_panel(ax, results, TARGETS[k // 2], KINDS[k % 2])
    return {"width": lines, "maps": maps}


def _line_panel(ax, results, goal: str, name: str) -> None:
    n = results.where(part="line").values("n")[0]
    for kind, (colour, marker, style) in STYLES.items():
        m, values = line(results, goal, name, kind)
        values = np.maximum(values, 1e-9)
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=1)
        ax.fill_between(m, low, high, color=colour, alpha=0.15, lw=0)
        ax.plot(m, middle, color=colour, marker=marker, ls=style, lw=1.3, ms=4, label=LABELS[kind])
    for at, text in ((n / (D + 1), "$n/(d+1)$"), (n, "$n$")):
        ax.axvline(at, color=canvas.INK, ls=":", lw=1.0)
        ax.annotate(text, (at, 0.9), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points")
    canvas.log_axis(ax.xaxis, m[0] / 1.1, m[-1] * 1.1)
    low, high = canvas.positive_limits(*(curve.get_ydata() for curve in ax.lines[:3]), room=3.0)
    canvas.log_axis(ax.yaxis, low / 30, high)
    what = "test error over $E f_*^2$" if name == "error" else "path norm"
    ax.set(title=f"{NAMES[goal]}: {'test error' if name == 'error' else 'path norm'}", xlabel="width $m$", ylabel=what)
    canvas.legend(ax, "lower right", "medians, quartiles")


def _map_panel(ax, results, goal: str, kind: str) -> None:
    found = results.where(part="map", target=goal)
    m, n = (np.array(found.values(key)) for key in ("m", "n"))
    cells = np.empty((len(n), len(m)))
    for point, data in found:
        cells[list(n).index(point["n"]), list(m).index(point["m"])] = np.median(data.error.values[:, KINDS.index(kind)])
    image = ax.imshow(np.log10(np.maximum(cells, 1e-9)), origin="lower", cmap="viridis", vmin=-6, vmax=0, aspect="auto")
    for row, column in np.ndindex(cells.shape):
        value = cells[row, column]
        ax.text(column, row, canvas.number(np.log10(max(value, 1e-9)), 2), ha="center", va="center", fontsize=7,
                color="white" if value < 10**-1.5 else "black")  # fmt: skip
    ax.set(xticks=range(len(m)), xticklabels=m, yticks=range(len(n)), yticklabels=n, xlabel="width $m$",
           ylabel="samples $n$", title=f"{NAMES[goal]}, {LABELS[kind]}")  # fmt: skip
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, label="log₁₀ test error")
