"""Proposition 3.1 of [CCGZ20]: m particles follow the limit equation with an error of order m^(-1/2).

The cloud of m particles is the prefix of the cloud of 2 m, and all clouds share their noise and their grid of times, so
that particle j of a small cloud and particle j of the largest are two solutions of one equation with two drifts. The
distance of their paths and of the outputs falls as m^(-1/2). Centred clouds (output measured against the coupled
reference) have an error that does not depend on alpha; the error of plain ones, networks of width m, grows like alpha.
Outputs averaged over replicates and extrapolated in 1 / m meet the solution of the equation.

Points are of two parts: `network` (n = 8, d = 5) and `extrapolation` (problem P1, d = 1, whose solution is known).
"""

import numpy as np

import meanfield as mf
from meanfield import canvas, datasets, parallel
from meanfield.claims import Claim, agree, at_least, at_most, jackknifed, near, order
from meanfield.cloud import gaussian_cloud
from meanfield.estimate import Estimate, mean_estimate

TITLE = "Distance of paths and outputs to the limit against m, plain and centred; outputs extrapolated to m = infinity"
STATEMENT = "Proposition 3.1"
MINUTES = 5

LAM, END, STEPS = 0.1, 2.0, 30
FOLLOWED = 64  # particles whose paths are compared: those of the smallest cloud
P1_X, P1_Y, P1_LAM, P1_END, P1_STEPS = np.array([[0.4], [1.0]]), np.array([0.5, 0.8]), 0.2, 1.0, 40
P1_TRUTH = np.array([0.289496, 0.504201])  # outputs at t = 1, alpha = 1, by the spectral solution of the equation

SIZES = tuple(2**k for k in range(6, 17))
GRID = [
    *({"part": "network", "alpha": a, "largest": 16, "replicates": 24} for a in (1.0, 10.0, 100.0)),
    {"part": "extrapolation", "alpha": 1.0, "largest": 16, "replicates": 8},
]
SMOKE = [
    *({"part": "network", "alpha": a, "largest": 9, "replicates": 3} for a in (1.0, 100.0)),
    {"part": "extrapolation", "alpha": 1.0, "largest": 9, "replicates": 3},
]
MODES = ("centred", "plain")


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict) -> dict:
    sizes = [m for m in SIZES if m <= 2 ** point["largest"]]
    with parallel.single_threaded_blas():  # once, and not at every small step
        return (_network if point["part"] == "network" else _extrapolation)(point, sizes)


def grid(end: float, steps: int) -> np.ndarray:
    """Times t_k = end (k / steps)^2, the same for every cloud."""
    return end * (np.arange(steps + 1) / steps) ** 2


def _network(point: dict, sizes: list[int]) -> dict:
    x, y = datasets.sphere(n=8, d=5, teacher="network", seed=2)
    tests, _ = datasets.sphere(n=32, d=5, teacher="network", seed=3)
    flows = {mode: mf.Flow(mf.Risk(x, 3 * y, mf.Unit("erf"), point["alpha"], centred=mode == "centred"), lam=LAM,
                           scheme="kernel", account=False) for mode in MODES}  # fmt: skip
    paths, outputs, starts = np.zeros((3, 2, point["replicates"], len(sizes)))
    for r in range(point["replicates"]):
        limit = _followed(flows["centred"], sizes[-1], r, tests)
        for i, mode in enumerate(MODES):
            for k, m in enumerate(sizes[:-1]):
                path, output = _followed(flows[mode], m, r, tests)
                paths[i, r, k] = ((path - limit[0]) ** 2).sum(-1).max(0).mean()
                error = ((output - limit[1]) ** 2).mean(-1)
                outputs[i, r, k], starts[i, r, k] = error.max(), error[0]
    # E psi^2 at the tests is what the output of an untrained network varies by.
    variance = np.diag(mf.Risk(tests, np.zeros(len(tests)), mf.Unit("erf")).gram_start(train="u")).mean()
    found = {"paths": paths, "outputs": outputs, "starts": starts}
    return {"m": np.array(sizes[:-1]), "variance": variance} | {k: v[:, :, :-1] for k, v in found.items()}


def _followed(flow: mf.Flow, m: int, replicate: int, tests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first particles at every time, (times, FOLLOWED, D), and outputs at test inputs, (times, tests)."""
    risk = flow.objective
    cloud = gaussian_cloud(m, risk.unit, risk.d, seed=replicate)
    path, output = [cloud.z[:FOLLOWED]], [risk.predict(cloud, tests)]
    for eta in np.diff(grid(END, STEPS)):
        cloud = flow.step(cloud, float(eta))
        path.append(cloud.z[:FOLLOWED])
        output.append(risk.predict(cloud, tests))
    return np.array(path), np.array(output)


def _extrapolation(point: dict, sizes: list[int]) -> dict:
    found = np.zeros((2, point["replicates"], len(sizes), len(P1_Y)))
    for i, mode in enumerate(MODES):
        risk = mf.Risk(P1_X, P1_Y, mf.Unit("erf"), point["alpha"], centred=mode == "centred")
        flow = mf.Flow(risk, lam=P1_LAM, scheme="kernel2", account=False)
        for r in range(point["replicates"]):
            for k, m in enumerate(sizes):
                cloud = gaussian_cloud(m, risk.unit, 1, seed=100 + r)
                for eta in np.diff(grid(P1_END, P1_STEPS)):
                    cloud = flow.step(cloud, float(eta))
                found[i, r, k] = risk.prediction(cloud)
    return {"m": np.array(sizes), "output": found}


# --- reading ------------------------------------------------------------------------------------------------------


def sizes(point: dict, data, mode: str) -> np.ndarray:
    """What the error is measured against: m, or 1 / (1/m - 1/M) for a prefix of the M particles it is compared with.

    Means over m particles and over M >= m that contain them differ by the variance (1/m - 1/M) sigma^2.
    """
    m = data.m.values.astype(float)
    return 1 / (1 / m - 1 / 2.0 ** point["largest"]) if mode == "centred" else m


def root_mean(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root of the mean over replicates, with its jackknife error; squares of shape (R, K)."""
    found = [jackknifed(lambda v: np.sqrt(v.mean()), column) for column in squares.T]
    return np.array([e.value for e in found]), np.array([e.se for e in found])


def fitted_order(point: dict, data, quantity: str, mode: str) -> Estimate:
    """The exponent of the root mean square in m."""
    half = order(sizes(point, data, mode), data[quantity].values[MODES.index(mode)])
    return Estimate(half.value / 2, half.se / 2)


def amplitude(point: dict, data, quantity: str, mode: str) -> float:
    """c of the rms c m^(-1/2), the geometric mean over m."""
    scaled = data[quantity].values[MODES.index(mode)].mean(0) * sizes(point, data, mode)
    return float(np.exp(np.log(scaled).mean() / 2))


def limits(data) -> np.ndarray:
    """Outputs at m = infinity, (mode, replicate, sample): the intercept in 1 / m, weights m."""
    m = data.m.values.astype(float)
    return np.array([[np.polyfit(1 / m, f, 1, w=np.sqrt(m))[1] for f in mode] for mode in data.output.values])


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    out, networks = [], results.where(part="network")
    for point, data in networks:
        for mode in MODES:
            for quantity, name in (("paths", "distance of paths"), ("outputs", "error of outputs")):
                text = f"order in m of the {name}, {mode}, alpha = {point['alpha']:g}"
                out.append(near(text, fitted_order(point, data, quantity, mode), -0.5, 0.05, full=True))
    sizes_of = {mode: [amplitude(p, d, "outputs", mode) for p, d in networks] for mode in MODES}
    alphas = networks.values("alpha")
    last = networks.found[-1].data
    start = jackknifed(lambda v: np.sqrt((v.mean(0) * last.m.values).mean()), last.starts.values[1])
    size = alphas[-1] * float(np.sqrt(last.variance))
    text = f"untrained plain network: rms output over alpha (E psi^2 / m)^(1/2), alpha = {alphas[-1]:g}"
    out.append(near(text, Estimate(start.value / size, start.se / size), 1.0, 0.1, full=True))
    spread = max(sizes_of["centred"]) / min(sizes_of["centred"])
    span = alphas[-1] / alphas[0]
    out.append(at_most(f"centred error of outputs, largest over smallest, alpha over a range of {span:g}", spread, 10))
    ratio = sizes_of["plain"][-1] / sizes_of["centred"][-1]
    out.append(at_least(f"plain over centred error of outputs, alpha = {alphas[-1]:g}", ratio, 10))
    data = results.one(part="extrapolation")
    for mode, found in zip(MODES, limits(data), strict=True):
        for i, truth in enumerate(P1_TRUTH):
            value = mean_estimate(found[:, i])
            text = f"output {i + 1} of P1 at m = infinity, {mode}, against the solution of the equation"
            out.append(agree(text, value, float(truth), len(found)))
    return out


# --- figures ------------------------------------------------------------------------------------------------------

COLOURS = (canvas.GREEN, canvas.BLUE, canvas.PURPLE)
MARKS = {"centred": ("o", "-", None), "plain": ("s", "--", "white")}


def plot(results) -> dict:
    figure, axes = canvas.sheet(1, 3, width=4.6, height=3.8)
    for (point, data), colour in zip(results.where(part="network"), COLOURS, strict=False):
        for mode, (marker, line, face) in MARKS.items():
            m = data.m.values
            for ax, quantity in zip(axes, ("paths", "outputs"), strict=False):
                value, error = root_mean(data[quantity].values[MODES.index(mode)])
                ax.errorbar(m, value, 2 * error, color=colour, marker=marker, ls=line, mfc=face or colour, lw=1.3,
                            capsize=2, label=f"{mode}, α = {point['alpha']:g}")  # fmt: skip
    titles = ("Paths approach the limit as $m^{-1/2}$", "Output error: only plain grows with α")
    labels = (r"$(E \sup_t |Z^m_t - Z^M_t|^2)^{1/2}$", r"rms error at test inputs, $\sup_t$")
    for ax, title, label in zip(axes, titles, labels, strict=False):
        low, high = canvas.positive_limits(*(line.get_ydata() for line in ax.lines), room=1.5)
        ends = np.array([m[0], m[-1]], float)
        ax.plot(ends, 0.7 * low * np.sqrt(m[-1] / ends), color=canvas.INK, ls=":", lw=1.2, label="slope −1/2")
        canvas.log_axis(ax.xaxis, m[0] / 1.4, m[-1] * 1.4)
        canvas.log_axis(ax.yaxis, low / 2, high)
        ax.set(title=title, xlabel="number of particles $m$", ylabel=label)
    canvas.legend(axes[0], "upper right", columns=2)
    axes[0].set_ylim(top=axes[0].get_ylim()[1] * 8)
    _extrapolated(axes[2], results.one(part="extrapolation"))
    return {"orders": figure}


def _extrapolated(ax, data) -> None:
    inverse = 1 / np.sqrt(data.m.values[data.m.values >= 256])
    for i, (mode, colour) in enumerate(zip(MODES, (canvas.BLUE, canvas.ORANGE), strict=True)):
        found = data.output.values[i, :, -len(inverse) :, 0]
        mean, error = found.mean(0), found.std(0, ddof=1) / np.sqrt(len(found))
        marker, line, face = MARKS[mode]
        ax.fill_between(inverse, mean - 2.4 * error, mean + 2.4 * error, color=colour, alpha=0.2, lw=0)
        ax.plot(inverse, mean, color=colour, marker=marker, ls=line, mfc=face or colour, label=f"{mode}, mean")
        end = mean_estimate(limits(data)[i, :, 0])
        ax.errorbar([0], [end.value], [2.4 * end.se], color=colour, marker="*", ms=10, capsize=4)
    ax.axhline(P1_TRUTH[0], color=canvas.INK, ls=":", label="solution of the equation")
    ax.set(title=r"P1: outputs extrapolated to $m = \infty$ ($\star$)", xlabel=r"$m^{-1/2}$",
           ylabel=r"output $f(x_1)$ at $t = 1$")  # fmt: skip
    canvas.legend(ax, "upper left", "bands: 2.4 standard errors of 8 replicates")
