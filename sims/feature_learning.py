"""Where features matter: targets that a mean-field network learns from samples too few for the kernel of its start.

Two targets of even degree, for which a kernel that sees all directions alike needs about d^2 samples, a network that
turns its neurons towards the right ones about d:

    parity    y = s_1 s_2 of signs s in {-1, 1}^d, x = s / sqrt d
    index     y = (|s| - .674) / .6, s = sqrt d x_1, x uniform on the sphere (a single-index model; half are positive)

On the same samples, by the accuracy of the sign on 2,000 fresh ones: noisy gradient descent in the mean-field scaling
(alpha = 1); kernel regression with the closed-form tangent kernel at p0 [CCGZ20], at the best of several ridges, chosen
by the test itself; a network in the scaling alpha = sqrt m, fitted; kernel regression with the tangent kernel of the
trained mean-field cloud.
"""

import math

import numpy as np

import meanfield as mf
from meanfield import canvas, noise, ntk
from meanfield.claims import Claim, at_least, at_most
from meanfield.noise import Stream

TITLE = "Test accuracy of a mean-field network beside kernels, a lazy network and its own final kernel"
STATEMENT = "feature learning: sparse parity and a single index at n where the tangent kernel fails"
MINUTES = 5

RIDGES = (1e-6, 1e-3, 1e-2, 0.1, 1.0, 10.0)
LAM, FRESH, SEEDS = 1e-3, 2000, 5
LEARNERS = {
    "network": ("mean-field network", canvas.BLUE, "o"),
    "final": ("regression, its final kernel", canvas.GREEN, "^"),
    "lazy": (r"network, $\alpha = \sqrt{m}$", canvas.PURPLE, "D"),
    "kernel": ("regression, kernel at $p_0$", canvas.ORANGE, "s"),
}
TASKS = {"parity": "2-sparse parity", "index": "single index"}
GRID = [
    *({"task": "parity", "d": 100, "n": 700, "m": 2000, "time": 180.0, "seed": seed} for seed in range(SEEDS)),
    *({"task": "index", "d": 70, "n": 700, "m": 2000, "time": 150.0, "seed": seed} for seed in range(SEEDS)),
]
SMOKE = [{"task": task, "d": 20, "n": 100, "m": 200, "time": 80.0, "seed": 0} for task in ("parity", "index")]


# --- data ---------------------------------------------------------------------------------------------------------


def data(task: str, d: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n samples of a target, in rows of norm 1; the normals are named by the seed."""
    g = noise.normals(seed, Stream.DATA, step=0, count=n, width=d)
    if task == "parity":
        signs = np.where(g > 0, 1.0, -1.0)
        return signs / math.sqrt(d), signs[:, 0] * signs[:, 1]
    x = g / np.linalg.norm(g, axis=1, keepdims=True)
    return x, (np.abs(math.sqrt(d) * x[:, 0]) - 0.674) / 0.6


def accuracy(prediction: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.sign(prediction) == np.sign(y)))


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict):
    n, d = point["n"], point["d"]
    x, y = data(point["task"], d, n + FRESH, point["seed"])
    train, test = (x[:n], y[:n]), (x[n:], y[n:])
    out, cloud = _network(point, train, test)
    relu = mf.Unit("relu").h
    out["kernel"] = max(accuracy(ntk.kernel_regression(relu, *train, test[0], ridge), test[1]) for ridge in RIDGES)
    out["final"] = _final_kernel(cloud, train, test)
    out["lazy"], out["lazy_loss"] = _lazy(point, train, test)
    return out


def _network(point: dict, train, test):
    """Accuracy, loss and the share of the neurons' squared weights in the directions of the target, over time."""
    risk = mf.Risk(*train, mf.Unit("relu"), alpha=1.0)
    start = mf.gaussian_cloud(point["m"], risk.unit, point["d"], seed=point["seed"], dtype="float32")
    limit = mf.Flow(risk, lam=LAM, scheme="exponential", account=False).stability_limit(start)
    flow = mf.Flow(risk, lam=LAM, scheme="exponential", account=False, eta=0.3 * limit)
    relevant = 2 if point["task"] == "parity" else 1

    def tested(cloud, flow):
        return accuracy(risk.predict(cloud, test[0]), test[1])

    def share(cloud, flow):
        square = np.asarray(cloud.z, np.float64)
        square = square[:, -1:] ** 2 * square[:, :-1] ** 2
        return square[:, :relevant].sum() / square.sum()

    records = [mf.Record(tested, every=4), mf.Record(share, every=4)]
    run = mf.simulate(flow, start, point["time"], observables=["loss"], records=records, every=4, bounds=0, quiet=True)
    found = run.data
    series = {"time": found.tested_time.values, "tested": found.tested.values[0], "share": found.share.values[0]}
    end = {"loss": found.loss.values[0, -1], "network": series["tested"][-1], "chance": relevant / point["d"]}
    return series | end, run.clouds[0]


def _final_kernel(cloud, train, test) -> float:
    """Accuracy of regression with the tangent kernel of a cloud, at the best of the ridges."""
    n = len(train[0])
    H = ntk.gram_at_cloud(mf.Unit("relu").h, np.concatenate([train[0], test[0]]), cloud)
    scale = np.trace(H[:n, :n]) / n
    values, vectors = np.linalg.eigh(H[:n, :n])
    sides = H[n:, :n] @ vectors
    found = (sides @ ((vectors.T @ train[1]) / (values + ridge * scale)) for ridge in RIDGES)
    return max(accuracy(prediction, test[1]) for prediction in found)


def _lazy(point: dict, train, test) -> tuple[float, float]:
    """Accuracy and loss of the network with alpha = sqrt m, by gradient descent without noise until it fits."""
    risk = mf.Risk(*train, mf.Unit("relu"), alpha=math.sqrt(point["m"]))
    start = mf.gaussian_cloud(point["m"], risk.unit, point["d"], seed=point["seed"] + 1000, dtype="float32")
    slowest = risk.kappa * ntk.eigenvalue_range(risk.gram_start())[0]
    flow = mf.Flow(risk, lam=0.0, scheme="kernel", account=False)
    run = mf.simulate(flow, start, 3 / slowest, observables=["loss"], bounds=0, quiet=True)
    cloud = run.clouds[0]
    return accuracy(risk.predict(cloud, test[0]), test[1]), float(run.data.loss.values[0, -1])


# --- claims -------------------------------------------------------------------------------------------------------


def series(results, task: str, name: str) -> np.ndarray:
    """One number of every seed."""
    return np.array([float(r.data[name].values) for r in results.where(task=task)])


def claims(results) -> list[Claim]:
    out = []
    for task, text in TASKS.items():
        least = {name: series(results, task, name).min() for name in LEARNERS}
        most = {name: series(results, task, name).max() for name in LEARNERS}
        out += [
            at_least(f"{text}: mean-field network, least of the seeds", least["network"], 0.9, full=True),
            at_most(f"{text}: kernel at p0 at its best ridge, largest of the seeds", most["kernel"], 0.6, full=True),
            at_most(f"{text}: network with alpha = sqrt m, largest", most["lazy"], 0.65, full=True),
            at_most(f"{text}: its loss, largest", series(results, task, "lazy_loss").max(), 0.01, full=True),
            at_least(f"{text}: final kernel, least", least["final"], 0.9, full=True),
        ]
        turned = min(float(r.data.share.values[-1] / r.data.chance.values) for r in results.where(task=task))
        out.append(at_least(f"{text}: weight in the target's directions over its start, least", turned, 3.0))
    return out


# --- figures ------------------------------------------------------------------------------------------------------


def plot(results) -> dict:
    figure, axes = canvas.sheet(1, 3, width=4.6, height=3.8)
    for ax, task in zip(axes, TASKS, strict=False):
        _accuracy_panel(ax, results, task)
    _share_panel(axes[2], results)
    return {"accuracy": figure}


def _accuracy_panel(ax, results, task: str) -> None:
    found = results.where(task=task)
    for k, (_, data) in enumerate(found):
        ax.plot(data.time.values[1:], data.tested.values[1:], color=canvas.BLUE, lw=1.0, alpha=0.7,
                label="mean-field network over time" if k == 0 else None)  # fmt: skip
    end = float(found.found[0].data.time.values[-1])
    for place, (name, (label, colour, mark)) in enumerate(LEARNERS.items()):
        values = series(results, task, name)
        ax.plot(np.full(len(values), end * (1.05 + 0.05 * place)), values, color=colour, marker=mark, ls="none",
                mfc="white", ms=5, label=label)  # fmt: skip
    point = found.found[0].point
    ax.axhline(0.5, color=canvas.INK, lw=0.8, ls=":")
    ax.set(title=f"{TASKS[task]}: d = {point['d']}, n = {point['n']}", xlabel="time $t$; final values on the right",
           ylabel="test accuracy", ylim=(0.15, 1.02), yticks=np.arange(4, 11) / 10)  # fmt: skip
    canvas.legend(ax, "lower left", "dotted: chance")


def _share_panel(ax, results) -> None:
    for task, (colour, line) in zip(TASKS, ((canvas.BLUE, "-"), (canvas.ORANGE, "--")), strict=True):
        for k, (_, data) in enumerate(results.where(task=task)):
            ax.plot(data.time.values, data.share.values, color=colour, ls=line, lw=1.1,
                    label=TASKS[task] if k == 0 else None)  # fmt: skip
    ax.set(title="Neurons turn to the target's directions", xlabel="time $t$", ylim=(0, 1),
           ylabel=r"share of $u^2|\theta|^2$")  # fmt: skip
    canvas.legend(ax, "lower right")
