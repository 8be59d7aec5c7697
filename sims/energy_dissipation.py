"""The free energy Q = L + lam KL falls along equation (3.4) of [CCGZ20], as fast as its identities say.

With B = E|b|^2, S = (2 alpha / n) r . e and I the relative Fisher information,

    (I2)  dL/dt  = -B + lam S
    (I3)  dKL/dt = -lam I + S
    (I4)  dQ/dt  = -E|b - lam grad log(p/p0)|^2 = -(B - 2 lam S + lam^2 I)

are integrated along measured series and compared with the measured change, the loss and its products unbiased by
pairs of replicates. (I2) needs averages over particles alone, and is measured on a nonlinear network with entropy and
without (lam = 0, where the loss is the free energy and falls at every step). KL and I are known of a bilinear network,
whose law stays Gaussian: there (I3) and (I4) are measured from second moments.

The equation itself, solved for one input by Hermite polynomials and by finite volumes, knows KL and I of a nonlinear
network: there all identities, (I1) df/dt = -kappa H r + alpha lam e too, are held against differences in time.
"""

import functools
import itertools

import numpy as np

import meanfield as mf
from meanfield import canvas, datasets, fokker_planck, readings
from meanfield.claims import Claim, at_most, jackknife, rate
from meanfield.cloud import gaussian_cloud
from meanfield.estimate import student_factor

TITLE = "Free energy bracket, loss and relative entropy over time; measured dissipation; defects of the identities"
STATEMENT = "gradient flow of Q, equation (3.4)"
MINUTES = 4

LAM, END = 0.1, 4.0
IDENTITIES = ("(I2)", "(I3)", "(I4)")
FINER = 8  # times at which a solution of the equation is read, to one at which it is differentiated
SOLVERS = {"spectral": "Hermite polynomials", "volumes": "finite volumes"}
GRID = [
    {"part": "network", "lam": LAM, "m": 4096, "steps": 300, "replicates": 8, "seed": 0},
    {"part": "network", "lam": 0.0, "m": 4096, "steps": 300, "replicates": 8, "seed": 0},
    *({"part": "gaussian", "lam": LAM, "m": 8192, "steps": 300, "replicates": 8, "seed": 100 * D, "D": D}
      for D in (3, 6, 11)),
    {"part": "equation", "solver": "spectral", "size": [96, 32], "times": 32},
    {"part": "equation", "solver": "volumes", "size": [160, 160], "times": 8},
]  # fmt: skip
SMOKE = [
    *(point | {"m": 256, "steps": 60, "replicates": 4} for point in GRID[:5]),
    {"part": "equation", "solver": "spectral", "size": [64, 24], "times": 2},
    {"part": "equation", "solver": "volumes", "size": [32, 32], "times": 2},
]


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict):
    return {"network": _network, "gaussian": _gaussian, "equation": _equation}[point["part"]](point)


def lengths(steps: int) -> list[float]:
    """Lengths of the steps that end at the times END (k / steps)^2."""
    return np.diff(END * (np.arange(steps + 1) / steps) ** 2).tolist()


def tangent(cloud, flow) -> np.ndarray:
    """r, e and H of a cloud, one after the other."""
    r, gram, e = flow.objective.tangent(cloud, flow.train, flow.decay)
    return np.concatenate([r, e, gram.ravel()])


def moments(cloud, flow) -> np.ndarray:
    """E Z Z' around the known moments of the coupled reference."""
    return np.eye(cloud.dimension) + (cloud.z.T @ cloud.z - cloud.reference.T @ cloud.reference) / cloud.m


def _simulate(point: dict, risk: mf.Risk, observables: list[str], records, bounds):
    eta = lengths(point["steps"])
    # The last step ends on END exactly; what is asked for after it is never made.
    flow = mf.Flow(risk, lam=point["lam"], scheme="kernel2", eta=lambda k: eta[min(k, len(eta) - 1)])
    start = gaussian_cloud(point["m"], risk.unit, risk.d, seed=point["seed"])
    return mf.simulate(flow, start, END, replicates=point["replicates"], observables=observables, records=records,
                       bounds=bounds, quiet=True)  # fmt: skip


def _network(point: dict):
    x, y = datasets.sphere(n=8, d=5, teacher="random", seed=2)
    bounds = 9 if point["lam"] else 0
    names = ["loss", "loss_unbiased", "energy_lower", "energy_upper", "kl_lower", "kl_upper"]
    risk = mf.Risk(x, y, mf.Unit("erf"), 4.0)
    return _simulate(point, risk, names[: 6 if bounds else 2], [mf.Record(tangent)], bounds).data


def _gaussian(point: dict):
    d = point["D"] - 1
    x, y = datasets.sphere(n=d, d=d, teacher="linear", seed=4)
    risk = mf.Risk(x, y, mf.Unit("linear"), 2.0)
    return _simulate(point, risk, ["loss"], [mf.Record(tangent), mf.Record(moments)], 0).data


def _equation(point: dict):
    """Both sides of (I1) to (I4) along a solution with one input, and what the free energy is made of."""
    risk = mf.Risk([[0.4], [1.0]], [0.5, 0.8], mf.Unit("erf"), 4.0)
    size = tuple(point["size"])

    def solved(count: int) -> fokker_planck.Solution:
        times = END * (np.arange(count + 1) / count) ** 2
        if point["solver"] == "spectral":
            return fokker_planck.spectral(risk, LAM, times, modes=size, estimate=False)
        return fokker_planck.volumes(risk, LAM, times, cells=size, tolerance=1e-7, estimate=False)

    # Differences in time at few times; many for the integral of the dissipation.
    few, many = solved(point["times"]), solved(FINER * point["times"])
    held = fokker_planck.identities(few)
    out = {"t": few.times, "rate": held["I4"].rate, **{name: identity.gap for name, identity in held.items()}}
    return out | {"at": many.times, "Q": many.energy, "KL": many.kl, "I": many.fisher, "B": many.drift_square,
                  "S": many.noise_work, "dissipation": many.dissipation}  # fmt: skip


# --- reading ------------------------------------------------------------------------------------------------------


def parts(data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """r (R, K, n), e (R, K, n) and H (R, K, n, n)."""
    n, values = int(data.attrs["n"]), data.tangent.values
    return values[..., :n], values[..., n : 2 * n], values[..., 2 * n :].reshape(*values.shape[:2], n, n)


def pairs(function, *arrays: np.ndarray) -> np.ndarray:
    """Mean of function over pairs of distinct replicates: unbiased for what is bilinear in two of them."""
    both = itertools.permutations(range(len(arrays[0])), 2)
    return np.mean([function(*((a[i], a[j]) for a in arrays)) for i, j in both], axis=0)


def pieces(data, r, e, H) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L, B and S over time, from replicates on axis 0."""
    n, alpha = r.shape[-1], float(data.attrs["alpha"])
    loss = pairs(lambda r: (r[0] * r[1]).sum(-1) / n, r)
    speed = pairs(lambda r, H: 4 * alpha**2 / n**2 * np.einsum("ki,kij,kj->k", r[0], H[0], r[1]), r, H)
    return loss, speed, pairs(lambda r, e: 2 * alpha / n * (r[0] * e[1]).sum(-1), r, e)


def gaussian_parts(S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(N(0, S) || N(0, I)) and I = tr S - 2 D + tr S^-1 over time."""
    D, trace = S.shape[-1], np.trace(S, axis1=-2, axis2=-1)
    return (trace - D - np.linalg.slogdet(S)[1]) / 2, trace - 2 * D + np.trace(np.linalg.inv(S), axis1=-2, axis2=-1)


def integral(t: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The integral from the first time on, by cubic splines in sqrt(t), in which the grid is even."""
    from scipy.interpolate import CubicSpline

    s = np.sqrt(t)
    return CubicSpline(s, 2 * s * values).antiderivative()(s)


def curves(data, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Series over time from replicated parts: what is measured, and the defects of the identities."""
    lam, t = float(data.attrs["lam"]), data.tangent_time.values
    loss, speed, source = pieces(data, *arrays[:3])
    out = {"L": loss, "B": speed, "S": source, "(I2)": loss - loss[0] + integral(t, speed - lam * source)}
    if len(arrays) > 3:
        kl, fisher = gaussian_parts(arrays[3].mean(0))
        energy, dissipation = loss + lam * kl, speed - 2 * lam * source + lam**2 * fisher
        out |= {"KL": kl, "I": fisher, "Q": energy, "dissipation": dissipation}
        out["(I3)"] = kl - kl[0] + integral(t, lam * fisher - source)
        out["(I4)"] = energy - energy[0] + integral(t, dissipation)
    return out


def measured(data) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The `curves` with their jackknife errors, freed of the bias of KL and I, which are convex in the moments."""
    arrays = (*parts(data), *((data.moments.values,) if "moments" in data else ()))
    names = list(curves(data, *arrays))
    values, errors = jackknife(lambda *a: np.array(list(curves(data, *a).values())), *arrays, corrected=True)
    return dict(zip(names, zip(values, errors, strict=True), strict=True))


@functools.cache
def everything(results) -> list[tuple]:
    """(Dataset, its measured curves) of the networks with an entropy: bilinear ones in order of D, then the other."""
    found = [r.data for r in results.where(part="gaussian")] + [results.one(part="network", lam=LAM)]
    return [(data, measured(data)) for data in found]


def scores(value: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Defects in standard errors, after the first time (where they are zero by definition)."""
    return value[1:] / error[1:]


def judged(data) -> np.ndarray:
    """Which of the `scores` are judged: those at the dyadic times END 2^-k, for neighbours in time are hardly two."""
    t = data.tangent_time.values[1:]
    return np.searchsorted(t, END * 2.0 ** -np.arange(8) * (1 - 1e-9))


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    warm, cold = results.one(part="network", lam=LAM), results.one(part="network", lam=0.0)
    found = {
        name: np.concatenate([scores(*c[name])[judged(data)] for data, c in everything(results) if name in c])
        for name in IDENTITIES
    }
    together = np.concatenate(list(found.values()))
    replicates = warm.sizes["replicate"]
    # Few steps leave an error of integration beside the noise: those of the full grid are short.
    text = "(I2) to (I4), integrated minus measured, both sides"
    out = [rate(text, np.concatenate([together, -together]), replicates, full=True)]
    for name, values in found.items():
        text = f"{name}: largest defect in standard errors"
        out.append(at_most(text, float(np.abs(values).max()), 2 * student_factor(replicates, 0.975), full=True))
    return [*out, *_bracket_claims(warm), *_cold_claims(cold), *_equation_claims(results)]


def _equation_claims(results) -> list[Claim]:
    spectral, volumes = (results.where(part="equation", solver=s).found[0].data for s in SOLVERS)
    names = ("I1", "I2", "I3", "I4")
    out = []
    for data, name, bound in ((spectral, "Hermite polynomials", 1e-6), (volumes, "finite volumes", 2e-2)):
        gap = max(float(data[k].max()) for k in names)
        text = f"the equation by {name}: largest relative gap of (I1) to (I4)"
        out.append(at_most(text, gap, bound, full=True))
    t, energy = spectral["at"].values, spectral.Q.values
    defect = np.abs(energy[0] - energy - integral(t, spectral.dissipation.values)).max() / energy[0]
    text = "the equation: Q lost minus integral of the dissipation, over Q at the start"
    out.append(at_most(text, float(defect), 1e-5, full=True))
    rises = max(float(np.diff(data.Q.values).max()) for data in (spectral, volumes))
    out.append(at_most("the equation: largest rise of Q from one time to the next", rises, 0.0))
    least = float((spectral.I.values - 2 * spectral.KL.values).min())
    out.append(at_most("the equation: log-Sobolev inequality, largest 2 KL - I", -least, 1e-9))
    return out


def _bracket_claims(data) -> list[Claim]:
    b = readings.bracket(data, "energy")
    rises = float(np.max(b.safe_lower[1:] - b.safe_upper[:-1]))
    start = float(data.loss.values[:, 0].mean())
    text = "Q at the end over its start, safe upper bound"
    return [at_most("Q: largest certified rise from one bound time to the next", rises, 0.0),
            at_most(text, float(b.safe_upper[-1]) / start, 0.5)]  # fmt: skip


def _cold_claims(data) -> list[Claim]:
    """Without noise every replicate is an exact gradient flow of its own loss: nothing is averaged here."""
    r, _, H = parts(data)
    n, alpha, t = r.shape[-1], float(data.attrs["alpha"]), data.tangent_time.values
    speed = 4 * alpha**2 / n**2 * np.einsum("rki,rkij,rkj->rk", r, H, r)
    loss = data.loss.values
    spent = np.array([integral(t, b) for b in speed])
    defect = np.abs(loss[:, :1] - loss - spent).max() / float(loss[:, 0].mean())
    text = "lam = 0: loss lost minus integral of E|b|^2, over the loss at the start"
    return [at_most("lam = 0: largest rise of the loss over a step", float(np.diff(loss, axis=1).max()), 0.0),
            at_most(text, defect, 1e-4, full=True)]  # fmt: skip


# --- figures ------------------------------------------------------------------------------------------------------


def plot(results) -> dict:
    figure, axes = canvas.sheet(3, 2, width=5.4, height=3.8)
    warm, cold = results.one(part="network", lam=LAM), results.one(part="network", lam=0.0)
    _energy_panel(axes[0], warm)
    _cold_panel(axes[1], cold)
    _dissipation_panel(axes[2], *everything(results)[-3])
    _defect_panel(axes[3], everything(results))
    _equation_panel(axes[4], results.where(part="equation", solver="spectral").found[0].data)
    _gap_panel(axes[5], results)
    return {"energy": figure}


def _time(ax) -> None:
    ax.set_xlabel(r"time $t$ of equation (3.4)")


def _energy_panel(ax, data) -> None:
    b, lam = readings.bracket(data, "energy"), float(data.attrs["lam"])
    start = float(data.loss.values[:, 0].mean())
    t = np.r_[0, b.t]
    ax.fill_between(t, np.r_[start, b.safe_lower], np.r_[start, b.safe_upper], color=canvas.BLUE, alpha=0.3, lw=0)
    ax.plot(t, np.r_[start, b.upper], color=canvas.BLUE, marker="s", ms=4, label=r"$Q = L + \lambda$KL, upper bound")
    ax.plot(t, np.r_[start, b.lower], color=canvas.BLUE, marker="s", ms=4, mfc="white", label="lower bound")
    ax.plot(data.time.values, data.loss_unbiased.values, color=canvas.ORANGE, ls="--", label="loss $L$")
    kl = readings.bracket(data, "kl")
    ax.fill_between(t, np.r_[0, lam * kl.safe_lower], np.r_[0, lam * kl.safe_upper], color=canvas.GREEN, alpha=0.35,
                    lw=0, label=r"$\lambda$KL, between its bounds")  # fmt: skip
    ax.set(title=f"With entropy, λ = {lam:g}: Q falls", ylabel="free energy", ylim=(0, None))
    _time(ax)
    canvas.legend(ax, "upper right")


def _cold_panel(ax, data) -> None:
    r, _, H = parts(data)
    n, alpha, t = r.shape[-1], float(data.attrs["alpha"]), data.tangent_time.values
    speed = 4 * alpha**2 / n**2 * np.einsum("rki,rkij,rkj->rk", r, H, r)
    left = data.loss.values[:, :1] - np.array([integral(t, b) for b in speed])
    later = t > 0
    mean = data.loss.values.mean(0)
    ax.fill_between(t[later], data.loss.values.min(0)[later], data.loss.values.max(0)[later], color=canvas.ORANGE,
                    alpha=0.3, lw=0)  # fmt: skip
    ax.plot(t[later], mean[later], color=canvas.ORANGE, label="loss $L$ (band: replicates)")
    ax.plot(t[later][::12], left.mean(0)[later][::12], color=canvas.INK, ls="none", marker="x",
            label=r"$L(0) - \int_0^t E|b|^2$")  # fmt: skip
    ax.set(title="Without entropy, λ = 0: L falls, by E|b|² a unit of time", ylabel="loss")
    canvas.log_axis(ax.xaxis, t[1], t[-1] * 1.1)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(mean[later]))
    _time(ax)
    canvas.legend(ax, "lower left")


def _dissipation_panel(ax, data, found) -> None:
    t, lam = data.tangent_time.values, float(data.attrs["lam"])
    later = t > 0
    s = np.sqrt(t)
    # Differences over a few steps: over one the noise of the particles would show, not the curve.
    gap = 6
    middle = ((s[gap:] + s[:-gap]) / 2) ** 2
    falling = -(found["Q"][0][gap:] - found["Q"][0][:-gap]) / (t[gap:] - t[:-gap])
    ax.plot(middle[::gap], falling[::gap], color=canvas.INK, ls="none", marker="x", ms=4, label=r"$-\Delta Q/\Delta t$")
    for values, colour, line, label in (
        (found["dissipation"][0], canvas.BLUE, "-", r"$E|b - \lambda\nabla\log(p/p_0)|^2$"),
        (found["B"][0], canvas.ORANGE, "--", r"$E|b|^2$"),
        (lam**2 * found["I"][0], canvas.GREEN, "-.", r"$\lambda^2 I$"),
        (2 * lam * found["S"][0], canvas.PURPLE, ":", r"$2\lambda S$"),
    ):
        ax.plot(t[later], np.where(values > 0, values, np.nan)[later], color=colour, ls=line, label=label)
    ax.set(title=f"(I4) on a bilinear network, D = {data.attrs['D']}", ylabel="free energy a unit of time")
    canvas.log_axis(ax.xaxis, t[3], t[-1] * 1.1)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(found["dissipation"][0][later], lam**2 * found["I"][0][t > 0.01]))
    _time(ax)
    canvas.legend(ax, "lower left")


def _defect_panel(ax, found) -> None:
    t_factor = student_factor(found[0][0].sizes["replicate"], 0.975)
    styles = {"(I2)": (canvas.ORANGE, "--"), "(I3)": (canvas.GREEN, "-."), "(I4)": (canvas.BLUE, "-")}
    for k, (data, series) in enumerate(found):
        for name in (name for name in IDENTITIES if name in series):
            colour, line = styles[name] if "KL" in series else (canvas.GREY, ":")
            kind = "bilinear" if "KL" in series else "nonlinear"
            values, t, at = scores(*series[name]), data.tangent_time.values[1:], judged(data)
            label = f"{name}, {kind}" if k in (0, len(found) - 1) else None
            ax.plot(t, values, color=colour, ls=line, lw=1.2, label=label)
            ax.plot(t[at], values[at], color=colour, ls="none", marker=canvas.MARKERS[k], ms=4)
    for size, style in ((1, "--"), (2, ":")):
        for sign in (-1, 1):
            ax.axhline(sign * size * t_factor, color=canvas.INK, ls=style, lw=0.8)
    ax.set(title="Integrated identity minus measured change", ylabel="defect in standard errors")
    ax.set_ylim(-2.3 * t_factor, 3.6 * t_factor)
    canvas.log_axis(ax.xaxis, END / 300, END * 1.1)
    _time(ax)
    canvas.legend(ax, "upper left", f"judged at the markers; lines: {t_factor:.2f}, {2 * t_factor:.2f}", columns=2)


def _equation_panel(ax, data) -> None:
    few = data.t.values > 0
    ax.plot(data.t.values[few], -data.rate.values[few], color=canvas.INK, ls="none", marker="x", ms=4,
            label=r"$-dQ/dt$, differences")  # fmt: skip
    t = data["at"].values
    later = t > 0
    terms = (
        (data.dissipation.values, canvas.BLUE, "-", r"$E|b - \lambda\nabla\log(p/p_0)|^2$"),
        (data.B.values, canvas.ORANGE, "--", r"$E|b|^2$"),
        (LAM**2 * data.I.values, canvas.GREEN, "-.", r"$\lambda^2 I$"),
        (2 * LAM * data.S.values, canvas.PURPLE, ":", r"$2\lambda S$"),
    )
    for values, colour, line, label in terms:
        ax.plot(t[later], np.where(values > 0, values, np.nan)[later], color=colour, ls=line, label=label)
    ax.set(title="(I4) of the equation itself, one input (P1, α = 4)", ylabel="free energy a unit of time")
    canvas.log_axis(ax.xaxis, t[1], t[-1] * 1.1)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(data.dissipation.values[later], data.B.values[later]))
    _time(ax)
    canvas.legend(ax, "lower left")


def _gap_panel(ax, results) -> None:
    styles = {"I1": canvas.PURPLE, "I2": canvas.ORANGE, "I3": canvas.GREEN, "I4": canvas.BLUE}
    limits = []
    for solver, line in zip(SOLVERS, ("-", "--"), strict=True):
        data = results.where(part="equation", solver=solver).found[0].data
        for k, (name, colour) in enumerate(styles.items()):
            label = f"({name}), {SOLVERS[solver]}"
            gaps = np.maximum(data[name].values[1:], 1e-14)
            ax.plot(data.t.values[1:], gaps, color=colour, ls=line, marker=canvas.MARKERS[k], ms=3, lw=1, label=label)
            limits.append(gaps)
    ax.set(title="The equation: both sides of each identity", ylabel="relative gap")
    canvas.log_axis(ax.xaxis, END / 6400, END * 1.1)
    canvas.log_axis(ax.yaxis, min(map(np.min, limits)) / 2, 1e4 * max(map(np.max, limits)))
    _time(ax)
    canvas.legend(ax, "upper left", columns=2)
