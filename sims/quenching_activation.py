"""Quenching and activation: a narrow network first follows its random features, then few neurons take over.

The conventional network f = sum_j a_j relu(b_j . x) starts at a = 0, b ~ N(0, I/d) and follows the gradient flow of the
population risk E(f - f*)^2 / 2, x ~ N(0, I), whose kernel is known in closed form (`population`). As |a| << |b| at
first, a moves and b does not: random features. Then neurons near the target's grow, and the others fade. The scaled
network (1/m) sum_j has one time scale, and its neurons behave alike.

Points are of four parts: `one` (one target neuron, several starts), `half` (one start again with half the step),
`many` (targets of 5 and 40 neurons) and `scaled`. The size of a neuron is |a||b|, its share that over the sum.
"""

import numpy as np

import meanfield as mf
from meanfield import canvas, noise, parallel, population
from meanfield.claims import Claim, at_least, at_most, near, power_law
from meanfield.cloud import cloud_at, silent_cloud

TITLE = "Risk beside random features; shares of single neurons over time; targets of 5 and 40 neurons; scaled networks"
STATEMENT = "lecture: quenching and activation, population flow"
MINUTES = 3

UNIT = mf.Unit("relu")
ONE = {"m": 100, "d": 200, "teachers": 1, "end": 400.0, "step": 0.09}
MANY = {"m": 50, "d": 100, "end": 2000.0, "step": 0.15, "seed": 0}
SCALED = {"d": 100, "teachers": 1, "end": 400.0, "step": 0.5, "seed": 0}
GRID = [
    *({"part": "one", **ONE, "seed": seed} for seed in range(8)),
    {"part": "half", **ONE, "step": ONE["step"] / 2, "seed": 0},
    *({"part": "many", **MANY, "teachers": M} for M in (5, 40)),
    *({"part": "scaled", **SCALED, "m": m} for m in (50, 100, 200, 400)),
]
SMOKE = [
    *({"part": "one", **ONE, "m": 30, "d": 20, "end": 100.0, "step": 0.2, "seed": seed} for seed in range(3)),
    {"part": "half", **ONE, "m": 30, "d": 20, "end": 100.0, "step": 0.1, "seed": 0},
    *({"part": "many", **MANY, "teachers": M, "d": 20, "end": 100.0} for M in (5, 40)),
    *({"part": "scaled", **SCALED, "m": m, "end": 100.0} for m in (50, 200)),
]
RECORDS = 40
# Times until which random features are followed closely, and until which they learn: their risk is constant from there.
EARLY, FEATURES = 1.0, 20.0


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict) -> dict:
    with parallel.single_threaded_blas():  # once, and not at every small step
        found = _followed(point, "both", recorded(point["end"]))
        z = found.pop("z")
        if point["part"] == "one":
            features = _followed(point, "u", [t for t in recorded(point["end"]) if t <= FEATURES])
            found["features_risk"] = features["risk"]
            found["apart"] = np.array([apart_from(a, b) for a, b in zip(z, features["z"], strict=False)])
        return found


def teacher(M: int, d: int) -> np.ndarray:
    """Target (1/M) sum_k relu(w_k . x), w_k independent and uniform on the sphere; for M = 1 the first axis."""
    if M == 1:
        return np.concatenate([np.eye(1, d), np.ones((1, 1))], axis=1)
    w = noise.normals(0, noise.Stream.DATA, step=0, count=M, width=d)
    return np.column_stack([w / np.linalg.norm(w, axis=1, keepdims=True), np.ones(M)])


def recorded(end: float) -> np.ndarray:
    return np.geomspace(0.5, end, RECORDS)


def _followed(point: dict, train: str, times) -> dict[str, np.ndarray]:
    """Risk E(f - f*)^2, sizes and alignments of all neurons at the times tau."""
    m, d, alpha = point["m"], point["d"], 1.0 if point["part"] == "scaled" else float(point["m"])
    risk = population.risk(UNIT, teacher(point["teachers"], d), alpha=alpha)
    # Half the risk, and dtau = alpha dt: tau = 2 alpha t. The largest rate is near m / (2 pi), three times below the
    # bound that `stability_limit` knows: hence the permission. `half` shows that the step is short enough.
    flow = mf.Flow(risk, lam=0.0, prior=None, scheme="euler", train=train, allow_unstable=True)
    cloud, now = silent_cloud(m, UNIT, d, seed=point["seed"]), 0.0
    rows: list[tuple] = [(risk.value(cloud), *neurons(cloud, alpha), cloud.z)]
    for tau in times:
        count = int(np.ceil((tau - now) / point["step"]))
        for _ in range(count):
            cloud = flow.step(cloud, (tau - now) / count / (2 * alpha))
        now = tau
        rows.append((risk.value(cloud), *neurons(cloud, alpha), cloud.z))
    columns = map(np.array, zip(*rows, strict=True))
    return {"tau": np.r_[0.0, times]} | dict(zip(("risk", "size", "alignment", "z"), columns, strict=True))


def neurons(cloud: mf.Cloud, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Signed sizes alpha a |b| / m and the first coordinate of b / |b|, each of shape (m,)."""
    length = np.linalg.norm(cloud.z[:, :-1], axis=1)
    return alpha * cloud.z[:, -1] * length / cloud.m, cloud.z[:, 0] / length


def apart_from(z: np.ndarray, features: np.ndarray) -> float:
    """E(f_NN - f_RF)^2 of two conventional networks of m neurons."""
    target = features.copy()
    target[:, -1] *= len(z)
    return population.risk(UNIT, target, alpha=float(len(z))).value(cloud_at(z))


# --- reading ------------------------------------------------------------------------------------------------------


def shares(data) -> np.ndarray:
    """|a||b| over its sum for every neuron, (times after the start, m)."""
    size = np.abs(data["size"].values[1:])
    return size / size.sum(axis=1, keepdims=True)


def carrying(share: np.ndarray, part: float = 0.95) -> int:
    """How many neurons carry that part of the sum of sizes."""
    return int(np.searchsorted(np.cumsum(np.sort(share)[::-1]), part) + 1)


def effective(data) -> np.ndarray:
    """1 / sum of squared shares over time: the number of neurons that would share alike."""
    return 1 / (shares(data) ** 2).sum(axis=1)


def lead(data) -> float:
    """How many times as large as the second is the neuron that does most for the target when random features end."""
    k = int(np.searchsorted(data.tau.values, FEATURES))
    first, second = np.sort(np.abs(data["size"].values[k]) * data.alignment.values[k])[::-1][:2]
    return float(first / second)


def ends(results) -> tuple[np.ndarray, np.ndarray]:
    """The lead at tau = 20 and the largest share at the end, for every start."""
    found = [(lead(r.data), shares(r.data)[-1].max()) for r in results.where(part="one")]
    return tuple(np.array(found).T)  # type: ignore[return-value]


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    starts = [r.data for r in results.where(part="one")]
    alone, winners = [shares(d)[-1].max() for d in starts], [carrying(shares(d)[-1]) for d in starts]
    return [*_early(starts), *_late(results, starts, np.array(alone), winners), *_others(results)]


def _early(starts) -> list[Claim]:
    first = [float(np.sqrt(d.apart / d.risk[0])[d.tau.values[: d.sizes["apart_0"]] <= EARLY].max()) for d in starts]
    gain = [float(d.risk.values[-1] / d.features_risk.values[-1]) for d in starts]
    return [
        at_most(f"rms f_NN - f_RF until tau = {EARLY:g} over rms f*, all starts", max(first), 0.1),
        at_most("risk at the end over that of random features, all starts", max(gain), 0.05),
    ]


def _late(results, starts, alone: np.ndarray, winners: list[int]) -> list[Claim]:
    from scipy.stats import spearmanr

    aligned = [float((shares(d)[-1] * (d.alignment.values[-1] > 0.9)).sum()) for d in starts]
    half = shares(results.one(part="half"))[-1].max()
    return [
        at_most("neurons that carry 95 % of the output norm at the end, all starts", max(winners), 3, full=True),
        at_least("share of the neurons within cos > .9 of the target, median", float(np.median(aligned)), 0.95,
                 full=True),
        at_least("share of the largest neuron, median", float(np.median(alone)), 0.9, full=True),
        at_most("share of the largest neuron, worst start: a tie", alone.min(), 0.9, full=True),
        at_least("rank correlation of that share with the lead at tau = 20", float(spearmanr(*ends(results))[0]), 0.6,
                 full=True),
        near("the same share with half the step, one start", half / alone[0], 1.0, 0.02),
    ]  # fmt: skip


def _others(results) -> list[Claim]:
    few, many = (effective(results.one(part="many", teachers=M))[-1] for M in (5, 40))
    scaled = results.where(part="scaled")
    m, top = [r.point["m"] for r in scaled], [shares(r.data)[-1].max() for r in scaled]
    return [
        at_most("5 target neurons: effective number of the 50 neurons", few, 8.0, full=True),
        at_least("40 target neurons: effective number of the 50 neurons", many, 30.0),
        near("scaled network: order in m of the share of its largest neuron", power_law(m, top)[0], -1.0, 0.25),
        at_most("scaled network: that share at the largest m", top[-1], 0.05),
    ]


# --- figures ------------------------------------------------------------------------------------------------------


def plot(results) -> dict:
    figure, axes = canvas.sheet(2, 2, width=5.4, height=3.7)
    starts = results.where(part="one")
    order = np.argsort(ends(results)[1])
    _risk_panel(axes[0], starts.found[order[-1]].data)
    _share_panel(axes[1], [starts.found[order[k]].data for k in (-1, 0)])
    _lead_panel(axes[2], results)
    _number_panel(axes[3], results)
    for ax in axes[:2] + axes[3:]:
        ax.set_xlabel(r"time $\tau$ of the conventional network")
    axes[3].set_xlabel(r"time $\tau$ (scaled network: $2t$)")
    return {"shares": figure}


def _risk_panel(ax, data) -> None:
    tau, start = data.tau.values[1:], float(data.risk[0])
    features, count = data.features_risk.values[1:] / start, data.sizes["apart_0"] - 1
    ax.plot(tau, data.risk.values[1:] / start, color=canvas.BLUE, label="network")
    ax.plot(np.r_[tau[:count], tau[-1]], np.r_[features, features[-1]], color=canvas.ORANGE, ls="--",
            label="random features")  # fmt: skip
    ax.plot(tau[:count], data.apart.values[1:] / start, color=canvas.INK, ls=":", label=r"$E(f_{NN} - f_{RF})^2$")
    ax.set(title="First random features, then more", ylabel=r"risk over $E f_*^2$")
    canvas.log_axis(ax.xaxis, tau[0], tau[-1])
    canvas.log_axis(ax.yaxis, 1e-8, 2.0)
    canvas.legend(ax, "lower left")


def _share_panel(ax, found) -> None:
    for data, colour, line, text in zip(found, (canvas.BLUE, canvas.ORANGE), ("-", "--"),
                                        ("one neuron wins", "a tie"), strict=True):  # fmt: skip
        largest = np.argsort(shares(data)[-1])[::-1][:8]
        for k, j in enumerate(largest):
            ax.plot(data.tau.values[1:], shares(data)[:, j], color=colour, ls=line, lw=1.8 if k == 0 else 0.9,
                    label=text if k == 0 else None)  # fmt: skip
    ax.set(title="Shares of the 8 largest neurons, two starts", ylabel="|a||b| over its sum", ylim=(0, 1.02))
    canvas.log_axis(ax.xaxis, data.tau.values[1], data.tau.values[-1])
    canvas.legend(ax, "upper left")


def _lead_panel(ax, results) -> None:
    leads, top = ends(results)
    ax.plot(leads, top, color=canvas.BLUE, ls="none", marker="o", label="largest neuron")
    winners = [carrying(shares(r.data)[-1]) for r in results.where(part="one")]
    for x, y, count in zip(leads, top, winners, strict=True):
        ax.annotate(str(count), (x, y), textcoords="offset points", xytext=(5, -9), fontsize=7.5)
    ax.axhline(0.9, color=canvas.INK, ls=":", lw=1)
    ax.set(title="Who wins alone: who leads in time", xlabel=r"first over second neuron at $\tau$ = 20",
           ylabel="share at the end", ylim=(0, 1.05))  # fmt: skip
    canvas.log_axis(ax.xaxis, 1.0, 1.1 * leads.max())
    canvas.legend(ax, "lower right", "numbers: neurons that carry 95 %")


def _number_panel(ax, results) -> None:
    one = results.where(part="one").found[int(np.argmax(ends(results)[1]))].data
    found = [(one, "1 target neuron", canvas.BLUE, "-")]
    for M, colour, line in ((5, canvas.GREEN, "--"), (40, canvas.PURPLE, "-.")):
        found.append((results.one(part="many", teachers=M), f"{M} target neurons", colour, line))
    found += [(results.where(part="scaled").found[0].data, "1, scaled network", canvas.ORANGE, ":")]
    for data, label, colour, line in found:
        ax.plot(data.tau.values[1:], effective(data), color=colour, ls=line, label=label)
    ax.set(title="Effective number of neurons", ylabel="1 / sum of squared shares")
    canvas.log_axis(ax.xaxis, 0.5, max(float(d.tau[-1]) for d, *_ in found))
    canvas.log_axis(ax.yaxis, 0.8, 200.0)
    canvas.legend(ax, "lower left")
