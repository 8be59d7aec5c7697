"""Theorem 4.5 of [CCGZ20] end to end: error on new data of networks whose labels a law of known chi-square makes.

The teacher is the law of least chi^2 with one output, alpha = 1, at the pole e_1 of the sphere in R^10. Its outputs f*
depend on x_1 alone, which gives two problems with exact labels on a continuous set of inputs and a known chi^2:

    margin   x uniform on the parallels x_1 = +-1/2 of the sphere, where f* = +-1: labels +-1, as the theorem has them
    values   x uniform on the sphere, y = f*(x), |y| <= 1: the theorem's proof with min(1, |f - y|) for the ramp

(An analytic f* is +-1 on surfaces at most, never on an open set.) Points are of three parts: `minimiser`, p* itself by
its dual, its error on new data, KL and the Rademacher complexity of the ball, beside a ladder of bounds; `trained`,
networks trained by particles on margin labels of which a share is flipped, 1/2 being random labels; `few`, what labels
+-1 at random points cost in chi^2. The bounds are the explicit ones of `theory`, with delta = 0.05.
"""

import functools
import math

import numpy as np
from scipy.optimize import brentq

import meanfield as mf
from meanfield import canvas, complexity, datasets, gibbs, noise, ntk, teacher, theory
from meanfield.claims import Claim, agree, at_least, at_most, near, slope
from meanfield.cloud import gaussian_cloud
from meanfield.estimate import mean_estimate, student_factor

TITLE = "Test error, KL and Rademacher complexity of p* against n, beside explicit and sharpened bounds; random labels"
STATEMENT = "Theorem 4.5, Lemmas 5.5 and 5.6, (5.2) to (5.5)"
MINUTES = 3

D_INPUT, LATITUDE, ALPHA, LAM, DELTA = 10, 0.5, 10.0, 0.02, 0.05
UNIT = mf.Unit("erf")
G1 = UNIT.h.suprema[0]
TESTS, NODES, SIGNS, END = 2000, 1 << 13, 32, 2 / LAM
POLE, PARALLEL = np.eye(2, D_INPUT)[:1], np.array([[LATITUDE, math.sqrt(1 - LATITUDE**2)]]) @ np.eye(2, D_INPUT)
LABELS = ("margin", "values")
FLIPS = (0.0, 0.1, 0.5)


def _points(sizes, sets, trained, particles, few) -> list[dict]:
    return [
        *({"part": "minimiser", "labels": kind, "n": n, "sets": sets if n < 400 else max(sets // 2, 2)}
          for kind in LABELS for n in sizes),
        *({"part": "trained", "flip": flip, "n": n, **particles} for flip in FLIPS for n in trained),
        *({"part": "few", "count": k, "sets": min(sets, 4)} for k in few),
    ]  # fmt: skip


GRID = _points((12, 25, 50, 100, 200, 400, 800), 8, (25, 50), {"m": 512, "sets": 4, "replicates": 4},
               (1, 2, 3, 4, 5))  # fmt: skip
SMOKE = _points((25, 50), 2, (12, 25), {"m": 64, "sets": 2, "replicates": 3, "time": 5.0}, (1, 2))
SMOKE = [point | {"tests": 500} for point in SMOKE]


@functools.cache
def truth(kind: str) -> teacher.Teacher:
    """The law with one output at the pole: 1 for `values`; for `margin` that which makes f* = 1 on the latitude."""

    def found(output: float) -> teacher.Teacher:
        return teacher.least_chi_square(POLE, [output], UNIT)

    if kind == "values":
        return found(1.0)
    return found(brentq(lambda v: found(v).predict(PARALLEL).value[0] - 1, 1.9, 2.2, xtol=1e-10))


@functools.cache
def radius(kind: str) -> tuple[float, float]:
    """M, a priori bounds in nats on KL(p* || p0): log(1 + chi^2 / alpha^2), and the KL of a law that is nearer.

    Every law with outputs y on all data will do in (5.2). `margin`: the law of least KL among those with one output at
    the pole, at this alpha. `values`: the mixture of (5.2) itself, integrated.
    """
    printed = theory.mixture_kl(ALPHA, truth(kind).chi_square.value)
    if kind == "values":
        return printed, _mixture_kl(truth(kind))

    def law(output: float):
        return gibbs.interpolation(mf.Risk(POLE, [output], UNIT, ALPHA)).law

    output = brentq(lambda v: law(v).predict(PARALLEL).value[0] - 1, 1.9, 2.2, xtol=1e-10)
    return printed, law(output).kl.value


def _mixture_kl(law: teacher.Teacher) -> float:
    """KL of (1 - 1/alpha) p0 + rho p0 / alpha, by a sum over a grid in (theta_1, u)."""
    axis = np.linspace(-9, 9, 401)
    z = np.zeros((axis.size**2, D_INPUT + 1))
    z[:, 0], z[:, -1] = (part.ravel() for part in np.meshgrid(axis, axis))
    p0 = np.exp(-0.5 * (z**2).sum(1)) * (axis[1] - axis[0]) ** 2 / (2 * np.pi)
    ratio = 1 + (np.exp(law.log_density_ratio(z)) - 1) / ALPHA
    return float(p0 @ (ratio * np.log(ratio)))


@functools.cache
def outputs() -> np.ndarray:
    """Chebyshev coefficients of f* as a function of x_1 on the sphere, an analytic one, to 1e-9 (`values`)."""

    def f(first: np.ndarray) -> np.ndarray:
        x = np.zeros((len(first), D_INPUT))
        x[:, 0], x[:, 1] = first, np.sqrt(1 - first**2)
        return truth("values").predict(x).value

    return np.polynomial.chebyshev.chebinterpolate(f, 31)


def draw(kind: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n independent inputs, and their labels."""
    g = noise.normals(seed, noise.Stream.DATA, step=0, count=n, width=D_INPUT)
    if kind == "values":
        x = g / np.linalg.norm(g, axis=1, keepdims=True)
        return x, np.polynomial.chebyshev.chebval(x[:, 0], outputs())
    y, along = np.sign(g[:, 0]), g[:, 1:] / np.linalg.norm(g[:, 1:], axis=1, keepdims=True)
    return np.column_stack([LATITUDE * y, math.sqrt(1 - LATITUDE**2) * along]), y


def loss(kind: str, y: np.ndarray, f: np.ndarray) -> float:
    """The mean loss of the bound: bounded by 1, 1-Lipschitz in f, at most |f - y|."""
    return float((theory.ramp(y, f) if kind == "margin" else np.minimum(np.abs(f - y), 1)).mean())


def build(point: dict) -> dict:
    made = {"minimiser": _minimiser, "trained": _trained, "few": _few}[point["part"]]
    rows = [made(point, seed) for seed in range(point["sets"])]
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def _minimiser(point: dict, seed: int) -> dict:
    kind = point["labels"]
    x, y = draw(kind, point["n"], seed)
    new, labels = draw(kind, point.get("tests", TESTS), 1000 + seed)
    risk = mf.Risk(x, y, UNIT, ALPHA)
    found = gibbs.fixed_point(risk, LAM, nodes=NODES, seed=seed)
    f = found.law.predict(new).value
    # As in `theory.zero_one`, but the sign of the label where that is a number.
    out = {"wrong": (labels * f < 0).mean(), "test": loss(kind, labels, f), "zero": loss(kind, labels, 0 * f),
           "train": loss(kind, y, found.prediction.value), "loss": found.loss.value, "kl": found.kl.value}  # fmt: skip
    sup = complexity.rademacher_complexity(risk, radius(kind)[1], signs=SIGNS, nodes=NODES, seed=seed)
    return out | {"complexity": sup.value}


def _trained(point: dict, seed: int) -> dict:
    (x, y), (new, labels) = draw("margin", point["n"], seed), draw("margin", point.get("tests", TESTS), 1000 + seed)
    y, labels = (_flipped(v, point["flip"], s) for v, s in ((y, seed), (labels, 1000 + seed)))
    risk = mf.Risk(x, y, UNIT, ALPHA)
    asked = ["prediction", "kl_upper", *(["kl_lower"] if point["flip"] == 0 else [])]
    run = mf.simulate(mf.Flow(risk, lam=LAM), gaussian_cloud(point["m"], risk.unit, D_INPUT, seed=seed),
                      point.get("time", END),
                      replicates=point["replicates"], bounds=1, quiet=True, observables=asked)  # fmt: skip
    upper = _safe(run.data, "kl_upper", 1)
    f = np.mean([risk.predict(cloud, new) for cloud in run.clouds], axis=0)
    train = loss("margin", y, run.data.prediction.values[:, -1].mean(0))
    K2 = risk.gram_start(train="u")
    out = {"wrong": theory.zero_one(labels, f).mean(), "test": loss("margin", labels, f), "train": train,
           "kl_upper": upper, "chi_square": y @ np.linalg.solve(K2, y),
           "bound": theory.classification_after(train, upper, ALPHA, risk.n, DELTA, G1)}  # fmt: skip
    if point["flip"] == 0:
        best = gibbs.fixed_point(risk, LAM, nodes=NODES, seed=seed)
        gap = f - best.law.predict(new).value
        out |= {
            "gap": math.sqrt(gap @ gap / len(gap)),
            "kl": best.kl.value,
            "kl_lower": _safe(run.data, "kl_lower", -1),
        }
    return out


def _flipped(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    uniform = noise.uniforms(seed, noise.Stream.DATA, step=1, count=len(y))
    return np.where(np.ravel(uniform) < share, -y, y)


def _safe(data, name: str, sign: int) -> float:
    """A bound on KL at the end with its error to the safe side, at least 0."""
    margin = student_factor(data.sizes["replicate"]) * float(data[f"{name}_se"].values[-1])
    return max(float(data[name].values[-1]) + sign * margin, 0.0)


def _few(point: dict, seed: int) -> dict:
    x, _ = datasets.sphere(n=point["count"], d=D_INPUT, seed=seed)
    y = (-1.0) ** np.arange(point["count"])
    law = teacher.least_chi_square(x, y, UNIT, nodes=1 << 15)
    K2 = ntk.gram_parts(UNIT.h, x)[0]
    return {"primal": law.chi_square.value, "dual": law.dual.value, "dual_se": law.dual.se,
            "linear": y @ np.linalg.solve(K2, y)}  # fmt: skip


LADDER = {
    "rate form": r"$(4G_1 + 1)\sqrt{\chi^2/n}$, simplest",
    "explicit": "explicit, every $n$",
    "nearer law": "the same, $M$ of a nearer law",
    "measured": "mean loss and complexity measured",
}


def ladder(kind: str, n: int, data) -> dict[str, np.ndarray]:
    """Four bounds on the loss on new data, from the crudest to the sharpest; the last has a value for every data set.

    All take M from the teacher, before there are data. The complexity of the last is the mean over data sets, since
    the expectation is what Lemma 5.6 asks for.
    """
    chi2, M = truth(kind).chi_square.value, radius(kind)[1]
    common = (ALPHA, LAM, n, DELTA, G1)
    measured = [theory.zero_one_bound(t, data.complexity.values.mean(), n, DELTA) for t in data.train.values]
    near_law = theory.zero_one_bound(math.sqrt(LAM * M), theory.rademacher_bound(M, ALPHA, n, G1), n, DELTA)
    return {
        "rate form": np.array(theory.classification_simple(chi2, *common)),
        "explicit": np.array(theory.classification_bound(chi2, *common)),
        "nearer law": np.array(near_law),
        "measured": np.array(measured),
    }


def series(results, name: str, **where) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n, means over data sets and their standard errors."""
    found = results.where(**where)
    means = [mean_estimate(data[name].values) for _, data in found]
    return np.array(found.values("n"), float), np.array([e.value for e in means]), np.array([e.se for e in means])


def exceeded(results) -> tuple[int, int]:
    """How often a bound of the ladder lay below the loss measured on new data, and of how many."""
    over = [np.ravel(data.test.values > bound) for point, data in results.where(part="minimiser")
            for bound in ladder(point["labels"], point["n"], data).values()]  # fmt: skip
    return int(np.concatenate(over).sum()), np.concatenate(over).size


def claims(results) -> list[Claim]:
    count, of = exceeded(results)
    out = [at_most(f"share of {of} pairs (data set, bound) with a larger loss on new data", count / of, DELTA)]
    for kind in LABELS:
        out += _claims_of(results, kind)
    return [*out, *_ladder_claims(results), *_trained_claims(results), *_few_claims(results)]


def _claims_of(results, kind: str) -> list[Claim]:
    where = {"part": "minimiser", "labels": kind}
    found, (printed, sharp) = results.where(**where), radius(kind)
    lemma = max((d.complexity.values / theory.rademacher_bound(sharp, ALPHA, p["n"], G1)).max() for p, d in found)
    out = [
        at_most(f"{kind}: KL(p*) over its bound (5.5), largest", max(d.kl.values.max() for _, d in found) / sharp, 1),
        at_most(f"{kind}: L(p*) over its bound (5.4), largest",
                max(d.loss.values.max() for _, d in found) / (LAM * sharp), 1),
        at_most(f"{kind}: complexity of the ball over Lemma 5.5, largest", lemma, 1),
        at_most(f"{kind}: KL of the nearer law over log(1 + chi^2 / alpha^2)", sharp / printed, 1),
    ]  # fmt: skip
    text = f"{kind}: order in n of the complexity of the ball, M = {canvas.number(sharp)}"
    out.append(near(text, slope(*series(results, "complexity", **where)), -0.5, 0.05, full=True))
    n, value, error = series(results, "test", **where)
    order = slope(n[n >= 25], value[n >= 25], error[n >= 25])
    return [*out, at_most(f"{kind}: order in n of the loss on new data", order, -0.5, full=True)]


def _ladder_claims(results) -> list[Claim]:
    out = []
    for kind, most in (("margin", (1.0, 0.25)), ("values", (1.0, 0.25))):
        n = max(p["n"] for p, _ in results.where(part="minimiser"))
        data = results.one(part="minimiser", labels=kind, n=n)
        bounds = {name: float(b.mean()) for name, b in ladder(kind, n, data).items()}
        for name, largest in zip(("explicit", "measured"), most, strict=True):
            out.append(at_most(f"{kind}: bound at n = {n}, {name}", bounds[name], largest, full=True))
        ratio = bounds["measured"] / data.test.values.mean()
        out.append(at_least(f"{kind}: the sharpest bound over the loss at n = {n}", ratio, 5, full=True))
    return out


def _trained_claims(results) -> list[Claim]:
    found = results.where(part="trained")
    over = np.concatenate([d.wrong.values > d.bound.values for _, d in found])
    out = [at_most(f"trained: share of {over.size} runs with more errors than the bound", float(over.mean()), DELTA)]
    clean, random = found.where(flip=0.0), found.where(flip=0.5)
    lower = max(float(d.kl_lower.values.max()) for _, d in clean)
    out.append(at_most("trained: KL from below over the bound (5.5) on p*, largest", lower / radius("margin")[1], 1))
    gap = max(float(d.gap.values.max()) for _, d in clean)
    out.append(at_most("trained: rms distance of outputs from those of p* on new data, largest", gap, 0.15, full=True))
    chi2 = truth("margin").chi_square.value
    linear = max(float(d.chi_square.values.max()) for _, d in clean)
    out.append(at_most("teacher's labels: y' K2^-1 y over chi^2, largest", linear / chi2, 1))
    out.append(at_least("random labels: order in n of y' K2^-1 y, below the chi^2 of any law",
                        slope(*series(results, "chi_square", part="trained", flip=0.5)), 0.7, full=True))  # fmt: skip
    wrong = np.mean([d.wrong.values for _, d in random], axis=0)
    out.append(agree("random labels: share of errors on new data", mean_estimate(wrong), 0.5, len(wrong), full=True))
    for flip in FLIPS[1:]:
        least = min(float(d.bound.values.min()) for _, d in found.where(flip=flip))
        out.append(at_least(f"{flip:.0%} of labels flipped: bound after training, least", least, 1.0))
    return out


def _few_claims(results) -> list[Claim]:
    k = max(results.values("count"))
    data = results.one(part="few", count=k)
    ratio = mean_estimate(data.dual.values / data.linear.values)
    return [at_least(f"{k} random points, labels +-1: least chi^2 over y' K2^-1 y", ratio, 1.0)]


STYLES = dict(zip(LADDER, ((canvas.GREY, ":"), (canvas.PURPLE, "-."), (canvas.ORANGE, "--"), (canvas.BLUE, "-")),
                  strict=True))  # fmt: skip


def plot(results) -> dict:
    bounds, axes = canvas.sheet(1, 3, width=4.6, height=3.9)
    for ax, kind, title in zip(axes, LABELS, ("Labels ±1, margin 1/2", "Labels $f^*(x)$ on the sphere"), strict=False):
        _draw_ladder(ax, results, kind)
        ax.set_title(title)
    _draw_complexity(axes[2], results)
    control, axes = canvas.sheet(1, 3, width=4.6, height=3.9)
    _draw_trained(axes[0], results)
    _draw_chi_square(axes[1], results)
    _draw_few(axes[2], results)
    return {"bounds": bounds, "control": control}


def _draw_ladder(ax, results, kind: str) -> None:
    found = results.where(part="minimiser", labels=kind)
    n = found.values("n")
    ladders = [ladder(kind, p["n"], d) for p, d in found]
    for name, (colour, line) in STYLES.items():
        ax.plot(n, [bounds[name].mean() for bounds in ladders], color=colour, ls=line, label=LADDER[name])
    for name, text, marker in (("zero", "loss of $f = 0$", "x"), ("test", "loss of $p^*$ on new data", "o"),
                               ("wrong", "share with $yf < 0$", "s")):  # fmt: skip
        at, value, error = series(results, name, part="minimiser", labels=kind)
        kept = value > 0
        if not kept.any() or (name == "zero" and kind == "margin"):
            continue
        ax.errorbar(at[kept], value[kept], 2 * error[kept], color=canvas.INK, marker=marker, ls="", capsize=2,
                    mfc="white" if name == "wrong" else None, label=text)  # fmt: skip
    ax.axhline(1, color=canvas.GREY, lw=0.8)
    lines = [line.get_ydata() for line in ax.lines]
    canvas.log_axis(ax.xaxis, n[0] / 1.3, n[-1] * 1.3)
    canvas.log_axis(ax.yaxis, canvas.positive_limits(*lines)[0] / 3, 2e5)
    ax.set(xlabel="number of samples $n$", ylabel="loss on new data, and bounds")
    canvas.legend(ax, "upper right", "bounds hold with probability 0.95")


def _draw_complexity(ax, results) -> None:
    for kind, colour, marker in zip(LABELS, (canvas.BLUE, canvas.ORANGE), ("o", "s"), strict=True):
        n, value, error = series(results, "complexity", part="minimiser", labels=kind)
        for M, line in zip(radius(kind), (":", "-"), strict=True):
            bound = [theory.rademacher_bound(M, ALPHA, int(k), G1) for k in n]
            ax.plot(n, bound, color=colour, ls=line, lw=1.2, label=f"Lemma 5.5, {kind}, $M$ = {M:.3g}")
        ax.errorbar(n, value, 2 * error, color=colour, marker=marker, ls="", capsize=2,
                    label=f"estimate, {kind}, $M$ = {M:.3g}")  # fmt: skip
    lines = [line.get_ydata() for line in ax.lines]
    canvas.log_axis(ax.xaxis, n[0] / 1.3, n[-1] * 1.3)
    low, high = canvas.positive_limits(*lines, room=2)
    canvas.log_axis(ax.yaxis, low / 12, high)
    ax.set(title="Complexity of the ball KL ≤ M", xlabel="number of samples $n$", ylabel="$R_n(M)$")
    canvas.legend(ax, "lower left")


NAMES = dict(zip(FLIPS, ("teacher's labels", "10 % flipped", "random labels"), strict=True))
LOOKS = dict(zip(FLIPS, ((canvas.BLUE, "o", "-"), (canvas.GREEN, "^", "--"), (canvas.ORANGE, "s", ":")), strict=True))


def _draw_trained(ax, results) -> None:
    for flip, (colour, marker, line) in LOOKS.items():
        n, bound, error = series(results, "bound", part="trained", flip=flip)
        ax.errorbar(n, bound, 2 * error, color=colour, marker=marker, ls=line, capsize=2, label=NAMES[flip])
        n, wrong, error = series(results, "wrong", part="trained", flip=flip)
        kept = wrong > 0
        ax.errorbar(n[kept], wrong[kept], 2 * error[kept], color=colour, marker=marker, mfc="white", ls=line, lw=0.8,
                    capsize=2)  # fmt: skip
    ax.axhline(1, color=canvas.GREY, lw=0.8)
    canvas.log_axis(ax.xaxis, n[0] / 1.3, n[-1] * 1.3)
    low, high = canvas.positive_limits(*(line.get_ydata() for line in ax.lines), room=4)
    canvas.log_axis(ax.yaxis, low, 8 * high)
    ax.set(title="Bound after training, and errors", xlabel="number of samples $n$", ylabel="share of errors, bound")
    canvas.legend(ax, "upper right", "full: bound; hollow: errors on new data")


def _draw_chi_square(ax, results) -> None:
    for flip, (colour, marker, line) in LOOKS.items():
        n, value, error = series(results, "chi_square", part="trained", flip=flip)
        ax.errorbar(n, value, 2 * error, color=colour, marker=marker, ls=line, capsize=2, label=NAMES[flip])
    ax.axhline(truth("margin").chi_square.value, color=canvas.INK, ls="--", label=r"$\chi^2$ of the teacher")
    canvas.log_axis(ax.xaxis, n[0] / 1.3, n[-1] * 1.3)
    low, high = canvas.positive_limits(*(line.get_ydata() for line in ax.lines), room=3)
    canvas.log_axis(ax.yaxis, low, 8 * high)
    ax.set(title=r"What labels cost: $\chi^2 \geq y^\prime K_2^{-1} y$", xlabel="number of samples $n$",
           ylabel=r"$y^\prime K_2^{-1} y$")  # fmt: skip
    canvas.legend(ax, "upper left")


def _draw_few(ax, results) -> None:
    k = results.values("count")
    for name, text, colour, marker, line in (
        ("primal", r"least $\chi^2$, of the law found", canvas.BLUE, "o", "-"),
        ("dual", r"least $\chi^2$, from below", canvas.GREEN, "^", "--"),
        ("linear", r"$y^\prime K_2^{-1} y$", canvas.ORANGE, "s", ":"),
    ):
        values = np.array([d[name].values for _, d in results.where(part="few")])
        ax.plot(k, values, color=colour, marker=marker, ls="", ms=3, alpha=0.5)
        ax.plot(k, np.exp(np.log(values).mean(1)), color=colour, marker=marker, ls=line, label=text)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(*(line.get_ydata() for line in ax.lines), room=2))
    ax.set(title="Labels ±1 at random points in $R^{10}$", xlabel="number of points", ylabel=r"$\chi^2$", xticks=k)
    canvas.legend(ax, "upper left")
