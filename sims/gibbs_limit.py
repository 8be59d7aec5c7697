"""Where training ends: the law of the limit equation for long times is the Gibbs law p* ~ e^{c* . psi} p0.

P1 (x = 0.4 and 1, y = 0.5 and 0.8, h = erf, lam = 0.2) is solved by Hermite polynomials, p* by its dual, which share no
formula. Along the solution, with c_t = -(2 alpha / (n lam)) r_t,

    Q(p_t) - D(c_t) = lam KL(p_t || p_{c_t}),      Q(p_t) - Q* = |f_t - f*|^2 / n + lam KL(p_t || p*),

the first being certificate C5, which needs no p*. The right sides are integrated over the densities. Particles know
the same certificate, and what limits it is measured: the noise of the upper bound on KL, its slack, the noise of r_t.

At stationarity (5.4) and (5.5) of [CCGZ20] bound L and KL by the chi-square of a teacher that interpolates, and the
least KL of a law that interpolates is sharper,

    KL(p* || p0) <= Q* / lam <= KL_interp <= log(1 + alpha^-2 chi^2) <= alpha^-2 chi^2.

Points are of four parts: `pde` (P1 over time), `particles` (the certificate, over m and replicates), `alpha` (P1 at
stationarity), `sphere` (six signs in five dimensions: brackets of particles against the same chain).
"""

import functools

import numpy as np

import meanfield as mf
from meanfield import canvas, datasets, exponential_family, fokker_planck, gibbs, minimiser, teacher
from meanfield.claims import Claim, at_most, jackknifed, near, power_law, rate
from meanfield.estimate import Estimate, student_factor

TITLE = "The long-time law against the fixed point of the dual; certificate C5; (5.4), (5.5) and the least KL"
STATEMENT = "(5.4), (5.5), certificate C5"
MINUTES = 5

LAM = 0.2
X, Y = np.array([[0.4], [1.0]]), np.array([0.5, 0.8])
CLOSED = 4 / LAM  # when the certificate has to have closed
LATE = 12  # times over which noise is averaged
REACH, SPACING = 9.5, 0.1  # of the grid on which densities are integrated
TIMES = CLOSED * 2.0 ** np.arange(-7, 2)  # the last is 2 CLOSED
RUN = {"m": 1024, "replicates": 8, "seed": 3, "times": 8, "steps": 0}
GRID = [
    {"part": "pde", "modes": [128, 40], "reads": 100},
    *({"part": "particles", **RUN, "m": 1 << k} for k in (8, 9, 10, 11, 12, 13, 14)),
    *({"part": "particles", **RUN, "replicates": count} for count in (4, 16, 32)),
    *({"part": "particles", **RUN, "m": 4096, "steps": count} for count in (200, 400)),
    *({"part": "alpha", "alpha": a, "modes": [96, 32]} for a in (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)),
    *(
        {"part": "sphere", "alpha": a, "m": 2048, "replicates": 8, "seed": 1, "nodes": 1 << 17}
        for a in (2.0, 4.0, 10.0, 30.0)
    ),
]
SMOKE = [
    {"part": "pde", "modes": [64, 24], "reads": 16},
    *({"part": "particles", "m": m, "replicates": 3, "seed": 3, "times": 2, "steps": 0} for m in (64, 128)),
    {"part": "particles", "m": 64, "replicates": 3, "seed": 3, "times": 2, "steps": 40},
    {"part": "alpha", "alpha": 3.0, "modes": [48, 24]},
    {"part": "sphere", "alpha": 10.0, "m": 64, "replicates": 3, "seed": 1, "nodes": 1 << 13},
]


# --- building -----------------------------------------------------------------------------------------------------


def p1(alpha: float = 1.0) -> mf.Risk:
    return mf.Risk(X, Y, mf.Unit("erf"), alpha)


def sphere(alpha: float) -> mf.Risk:
    x, y = datasets.sphere(n=6, d=5, teacher="random", seed=2)
    return mf.Risk(x, 0.5 * y, mf.Unit("tanh"), alpha)


def build(point: dict):
    return {"pde": _pde, "particles": _particles, "alpha": _alpha, "sphere": _sphere}[point["part"]](point)


def _pde(point: dict):
    """Both sides of both identities at every time."""
    risk, star = p1(), gibbs.fixed_point(p1(), LAM)
    solution = fokker_planck.spectral(risk, LAM, TIMES, modes=tuple(point["modes"]), estimate=False)
    theta, u = np.meshgrid(*[np.arange(-REACH, REACH + SPACING / 2, SPACING)] * 2, indexing="ij")
    z = np.column_stack([theta.ravel(), u.ravel()])
    start = np.exp(-0.5 * (z**2).sum(1)) / (2 * np.pi)
    dual, to_star, to_tilt = [], [], []
    for state, r, energy in zip(solution.states, solution.residual, solution.energy, strict=True):
        bracket = gibbs.certificate(risk, LAM, r, float(energy))
        p = solution.model.density(state, theta, u).ravel()
        dual.append(bracket.lower.value)
        to_star.append(_entropy(p, start * np.exp(star.law.log_density_ratio(z))))
        to_tilt.append(_entropy(p, start * np.exp(bracket.law.log_density_ratio(z))))
    found = {
        "unseen": np.array(_unseen(risk, tuple(point["modes"]), point["reads"])),
        "f": solution.prediction,
        "loss": solution.loss,
    }
    return {"t": TIMES, **found, "kl": solution.kl, "energy": solution.energy,
            "dual": np.array(dual), "to_star": np.array(to_star), "to_tilt": np.array(to_tilt)}  # fmt: skip


def _unseen(risk: mf.Risk, modes: tuple[int, int], reads: int) -> float:
    """lam^2 int_0^{4 / lam} (I - e' H^-1 e) dt: what the account of the steps misses, for it knows e' H^-1 e <= I."""
    s = np.linspace(0.0, 1.0, reads + 1)
    found = fokker_planck.spectral(risk, LAM, CLOSED * s**2, modes=modes, estimate=False)
    e, H = found.series.generator, found.series.gram
    seen = np.einsum("ti,ti->t", e, np.linalg.solve(H, e[..., None])[..., 0])
    rate = 2 * s * CLOSED * LAM**2 * (found.fisher - seen)
    return float(((rate[1:] + rate[:-1]) / 2 * np.diff(s)).sum())


def _entropy(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) on the grid, p log(p / q) - p + q >= 0 at every node, so that small values keep their digits."""
    p = np.maximum(p, 1e-300)
    with np.errstate(over="ignore"):
        gap = p * np.log(p / np.maximum(q, 1e-300)) - p + q
    return float(gap.sum() * SPACING**2)


def _particles(point: dict):
    start = mf.gaussian_cloud(point["m"], mf.Unit("erf"), 1, seed=point["seed"])
    times = [float(t) for t in TIMES if t <= CLOSED][-point["times"] :]
    names = ["prediction", "loss_unbiased", "kl_upper", "energy_lower", "energy_upper", "gibbs_dual", "gibbs_energy",
             "gibbs_prediction"]  # fmt: skip
    flow = mf.Flow(p1(), lam=LAM, **_steps(point["steps"]))
    run = mf.simulate(flow, start, CLOSED, replicates=point["replicates"], bounds=times,
                      observables=names, quiet=True)  # fmt: skip
    return run.data


def _steps(count: int) -> dict:
    """Steps that end at the times CLOSED (k / count)^2; the rule of the scheme for 0."""
    if not count:
        return {}
    lengths = np.diff(CLOSED * (np.arange(count + 1) / count) ** 2).tolist()
    return {"eta": lambda k: lengths[min(k, count - 1)]}


def _alpha(point: dict):
    risk = p1(point["alpha"])
    end = fokker_planck.spectral(risk, LAM, [2 * CLOSED], modes=tuple(point["modes"]), estimate=False)
    return {"kl": end.kl[-1], "loss": end.loss[-1], **chain(risk)}


def chain(risk: mf.Risk, nodes: int | None = None) -> dict:
    """KL*, L*, Q* / lam, KL_interp and chi^2 of the least chi-square teacher, each with its error."""
    star, least = gibbs.fixed_point(risk, LAM, nodes=nodes), gibbs.interpolation(risk, nodes=nodes)
    chi = teacher.least_chi_square(risk.x, risk.y, risk.unit, nodes=nodes).chi_square
    energy = Estimate(star.energy.value / LAM, star.energy.se / LAM)
    found = {"star": star.kl, "star_loss": star.loss, "bound_energy": energy, "interpolation": least.law.kl, "chi": chi}
    return {name: np.array([estimate.value, estimate.se]) for name, estimate in found.items()}


def _sphere(point: dict):
    risk = sphere(point["alpha"])
    start = mf.gaussian_cloud(point["m"], risk.unit, risk.d, seed=point["seed"])
    run = mf.simulate(mf.Flow(risk, lam=LAM), start, CLOSED, replicates=point["replicates"], bounds=[CLOSED],
                      observables=["kl_lower", "kl_upper", "loss_unbiased"], every=50, quiet=True)  # fmt: skip
    names = ("kl_lower", "kl_lower_se", "kl_upper", "kl_upper_se")
    return {name: run.data[name].values[-1] for name in names} | chain(risk, point["nodes"])


# --- reading ------------------------------------------------------------------------------------------------------


@functools.cache
def fixed() -> gibbs.FixedPoint:
    return gibbs.fixed_point(p1(), LAM)


def deficit(r: np.ndarray) -> float:
    """Q* - D(c) at the c of a residual."""
    c = p1().coefficients(r) / LAM
    return fixed().energy.value - gibbs.FixedPoint(exponential_family.law_at(p1(), c), LAM).dual.value


def runs(results, which: str) -> list:
    """Runs of particles in the order of m, of replicates or of steps, the others as in RUN."""
    found = results.where(part="particles").found
    own = {"m": lambda p: not p["steps"] and p["replicates"] == _common(found),
           "replicates": lambda p: not p["steps"] and p["m"] == RUN["m"],
           "steps": lambda p: p["steps"]}[which]  # fmt: skip
    return sorted((r for r in found if own(r.point)), key=lambda r: r.point[which])


def _common(found) -> int:
    counts = [r.point["replicates"] for r in found]
    return max(set(counts), key=counts.count)


def noise_of_dual(result) -> np.ndarray:
    """Q* - D(c) that the noise of one replicate's residual costs, averaged over late times; shape (R,)."""
    r = result.data.prediction.values[:, result.data.time.values >= CLOSED / 4]
    r = r[:, :: max(1, r.shape[1] // LATE)]
    off = (r - r.mean(0)) * np.sqrt(len(r) / (len(r) - 1))
    centre = fixed().prediction.value - Y
    return np.array([[deficit(centre + one) for one in each] for each in off]).mean(1)


def slack(data) -> tuple[float, float]:
    """Q+(p_t) - Q* at the end of a run, and c standard errors of it."""
    upper, se = float(data.energy_upper.values[-1]), float(data.energy_upper_se.values[-1])
    return upper - fixed().energy.value, student_factor(data.sizes["replicate"]) * se


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    return [*_pde_claims(results.one(part="pde")), *_particle_claims(results), *_chain_claims(results)]


def _pde_claims(data) -> list[Claim]:
    star, t, energy = fixed(), data.t.values, data.energy.values
    closed = int(np.argmin(np.abs(t - CLOSED)))
    off = ((data.f.values - star.prediction.value) ** 2).mean(-1)
    tilt = np.abs(energy - data.dual.values - LAM * data.to_tilt.values).max()
    fixed_point = np.abs(energy - star.energy.value - off - LAM * data.to_star.values).max()
    return [
        at_most(f"KL(p_t || p*) at t = {t[-1]:g}, over the densities", float(data.to_star.values[-1]), 1e-6),
        at_most(f"gap Q(p_t) - D(c_t) of the equation at t = 4 / lam = {CLOSED:g}",
                float(energy[closed] - data.dual.values[closed]), 1e-4),
        at_most("largest |gap - lam KL(p_t || p_c)|, any time", float(tilt), 1e-6, full=True),
        at_most("largest |Q(p_t) - Q* - |f - f*|^2 / n - lam KL(p_t || p*)|", float(fixed_point), 1e-6, full=True),
        at_most("weak duality: largest D(c_t) - Q*", float((data.dual.values - star.energy.value).max()), 1e-10),
        at_most("KL(p_t || p0) at the end against that of p*", abs(float(data.kl.values[-1]) - star.kl.value), 1e-6,
                full=True),
    ]  # fmt: skip


def _particle_claims(results) -> list[Claim]:
    star, found = fixed().energy.value, runs(results, "m")
    above, below = [], []
    for r in results.where(part="particles").found:
        d = r.data
        below += list((d.gibbs_dual.values - star) / np.maximum(d.gibbs_dual_se.values, 1e-9))
        above += list(((star - d.energy_upper.values) / np.maximum(d.energy_upper_se.values, 1e-9))[1:])
    text = "particles: D <= Q* <= Q+ at every bound time"
    out = [rate(text, np.concatenate([above, below]), found[0].point["replicates"], full=True)]
    m = [r.point["m"] for r in found]
    spread = [slack(r.data)[1] for r in found]
    out.append(near("order in m of the standard error of Q+", power_law(m, spread)[0], -0.5, 0.15, full=True))
    noise = [noise_of_dual(r) for r in found]
    fitted = jackknifed(lambda *v: power_law(m, [one.mean() for one in v])[0], *noise)
    out.append(near("order in m of what the noise of r_t costs D(c_t)", fitted, -1.0, 0.2, full=True))
    last, short = found[-1], runs(results, "steps")[-1]
    text = f"particles, m = {last.point['m']}: certified Q(p_t) - min Q at t = {CLOSED:g} over Q*"
    out.append(at_most(text, float(minimiser.gap(last.data).energy_upper[-1]) / star, 0.12, full=True))
    unseen = float(results.one(part="pde").unseen)
    for name, run in (("steps by the rule", last), (f"{short.point['steps']} shorter steps", short)):
        above, error = slack(run.data)
        text = f"{name}, m = {run.point['m']}: Q+ - Q* over lam^2 int (I - e' H^-1 e)"
        se = error / student_factor(run.point["replicates"]) / unseen
        out.append(near(text, Estimate(above / unseen, se), 1.5, 0.5, full=True))
    return out


def _chain_claims(results) -> list[Claim]:
    out = []
    for part, name in (("alpha", "P1"), ("sphere", "sphere")):
        points = results.where(part=part)
        alpha = np.array(points.values("alpha"))
        value = {k: np.array([r.data[k].values[0] for r in points]) for k in CHAIN}
        error = {k: np.array([r.data[k].values[1] for r in points]) for k in CHAIN}
        chi = np.log1p(value["chi"] / alpha**2)
        steps = (("star", "bound_energy"), ("bound_energy", "interpolation"))
        for low, high in steps:
            room = value[low] - value[high] - 2 * (error[low] + error[high])
            text = f"{name}: {CHAIN[low]} - {CHAIN[high]}, largest over alpha"
            out.append(at_most(text, float(room.max()), 0.0))
        out.append(at_most(f"{name}: KL_interp over log(1 + chi^2 / alpha^2), largest",
                           float((value["interpolation"] / chi).max()), 1.0))  # fmt: skip
        out.append(at_most(f"{name}: (5.4), L* over lam log(1 + chi^2 / alpha^2), largest",
                           float((value["star_loss"] / (LAM * chi)).max()), 1.0))  # fmt: skip
        if part == "alpha":
            kl = np.array([float(r.data.kl.values) for r in points])
            out.append(at_most("P1: KL(p_t || p0) at the end over KL_interp, largest",
                               float((kl / value["interpolation"]).max()), 1.0))  # fmt: skip
            out.append(at_most("P1: KL(p_t || p0) at the end against KL*, relative",
                               float(np.abs(kl / value["star"] - 1).max()), 1e-5, full=True))  # fmt: skip
        else:
            out += _sphere_claims(points, value)
    return out


def _sphere_claims(points, value) -> list[Claim]:
    low, high = ([float(r.data[f"kl_{side}"].values) for r in points] for side in ("lower", "upper"))
    low_se, high_se = ([float(r.data[f"kl_{side}_se"].values) for r in points] for side in ("lower", "upper"))
    off = np.concatenate([(np.array(low) - value["star"]) / low_se, (value["star"] - np.array(high)) / high_se])
    replicates = next(iter(points)).point["replicates"]
    return [rate("sphere: KL* lies in the bracket of the particles at the end", off, replicates, full=True)]


CHAIN = {"star": "KL*", "bound_energy": "Q* / lam", "interpolation": "KL_interp", "star_loss": "L*", "chi": "chi^2"}


# --- figures ------------------------------------------------------------------------------------------------------


def plot(results) -> dict:
    figure, axes = canvas.sheet(2, 2, width=5.3, height=3.9)
    _closing(axes[0], results)
    _limits(axes[1], results)
    _chain(axes[2], results.where(part="alpha"), "One input (P1): the equation")
    _chain(axes[3], results.where(part="sphere"), "Six signs in five dimensions: particles")
    return {"limit": figure}


def _closing(ax, results) -> None:
    data, star = results.one(part="pde"), fixed()
    t = data.t.values
    gap = data.energy.values - data.dual.values
    ax.plot(t, gap, color=canvas.BLUE, marker="o", ms=4, label=r"equation: gap $Q(p_t) - D(c_t)$")
    ax.plot(t, LAM * data.to_star.values, color=canvas.ORANGE, ls="--", marker="s", ms=4,
            label=r"equation: $\lambda$KL$(p_t\,\|\,p^*)$")  # fmt: skip
    ax.plot(t, np.maximum(star.energy.value - data.dual.values, 1e-16), color=canvas.GREEN, ls=":",
            label=r"equation: $Q^* - D(c_t)$")  # fmt: skip
    for run, colour, mark, name in ((runs(results, "m")[-1], canvas.INK, "x", "steps by the rule"),
                                    (runs(results, "steps")[-1], canvas.PURPLE, "+", "short steps")):  # fmt: skip
        known = minimiser.gap(run.data)
        ax.plot(known.times, known.energy_upper, color=colour, marker=mark, ls="-.", lw=1,
                label=f"particles, m = {run.point['m']:,}, {name}")  # fmt: skip
    ax.axhline(1e-4, color=canvas.GREY, lw=0.8, ls="--")
    ax.set(title="Certificate C5 closes", xlabel=r"time $t$ of equation (3.4)", ylabel="free energy")
    canvas.log_axis(ax.xaxis, t[0] / 1.2, t[-1] * 1.2)
    canvas.log_axis(ax.yaxis, 1e-13, 30.0)
    canvas.legend(ax, "lower left")


def _limits(ax, results) -> None:
    """What the particles' certificate is made of at t = 4 / lam, over m and over replicates."""
    found = runs(results, "m")
    m = np.array([r.point["m"] for r in found])
    above, spread = np.abs([slack(r.data) for r in found]).T
    noise = np.array([noise_of_dual(r).mean() / r.point["replicates"] for r in found])
    ax.plot(m, above, color=canvas.BLUE, marker="o", ms=4, ls="-", label=r"$Q_+ - Q^*$: slack of the account")
    ax.plot(m, spread, color=canvas.ORANGE, marker="s", ms=4, ls="--", label=r"$c$ standard errors of $Q_+$")
    ax.plot(m, noise, color=canvas.GREEN, marker="^", ms=4, ls=":", label=r"$Q^* - D(c_t)$: noise of $r_t$")
    unseen = float(results.one(part="pde").unseen)
    ax.axhline(unseen, color=canvas.GREY, ls="-", lw=1, label=r"$\lambda^2\int(I - e'H^{-1}e)$ of the equation")
    for which, colour, mark, values, text in (
        ("replicates", canvas.INK, "_", lambda r: slack(r.data)[1], "standard errors, R"),
        ("steps", canvas.PURPLE, "+", lambda r: abs(slack(r.data)[0]), "slack, steps"),
    ):
        several = runs(results, which)
        numbers = ", ".join(str(r.point[which]) for r in several)
        at = [r.point["m"] for r in several]
        ax.plot(at, [values(r) for r in several], color=colour, marker=mark, ms=8, ls="none",
                label=f"{text} = {numbers}")  # fmt: skip
    ax.set(title=f"What limits the particles' gap at t = {CLOSED:g}", xlabel="particles $m$", ylabel="free energy")
    canvas.log_axis(ax.xaxis, m.min() / 1.4, m.max() * 1.4)
    canvas.log_axis(ax.yaxis, *canvas.positive_limits(above, spread, noise / 30, room=2))
    canvas.legend(ax, "lower left")


def _chain(ax, points, title: str) -> None:
    alpha = np.array(points.values("alpha"))
    scaled = {k: alpha**2 * np.array([r.data[k].values[0] for r in points]) for k in ("star", "bound_energy",
                                                                                      "interpolation")}  # fmt: skip
    chi = np.array([r.data.chi.values[0] for r in points])
    for values, colour, line, label in (
        (chi, canvas.GREY, "-", r"$\chi^2$: (5.5)"),
        (alpha**2 * np.log1p(chi / alpha**2), canvas.PURPLE, "-.", r"$\alpha^2\log(1 + \alpha^{-2}\chi^2)$"),
        (scaled["interpolation"], canvas.GREEN, "--", r"$\alpha^2$KL$_{\mathrm{interp}}$"),
        (scaled["bound_energy"], canvas.ORANGE, ":", r"$\alpha^2Q^*/\lambda$"),
        (scaled["star"], canvas.BLUE, "-", r"$\alpha^2$KL$(p^*\,\|\,p_0)$"),
    ):
        ax.plot(alpha, values, color=colour, ls=line, label=label)
    first = next(iter(points)).data
    if "kl" in first:
        ax.plot(alpha, alpha**2 * np.array([float(r.data.kl.values) for r in points]), color=canvas.INK, marker="x",
                ls="none", label="measured at the end")  # fmt: skip
    else:
        low, high = (alpha**2 * np.array([float(r.data[f"kl_{s}"].values) for r in points]) for s in ("lower", "upper"))
        ax.errorbar(alpha, (low + high) / 2, np.abs(high - low) / 2, color=canvas.INK, ls="none", capsize=5, lw=2,
                    label="bracket of particles")  # fmt: skip
    ax.set(title=title, xlabel=r"$\alpha$", ylabel=r"$\alpha^2$ times relative entropy")
    canvas.log_axis(ax.xaxis, alpha.min() / 1.2, alpha.max() * 1.2)
    canvas.log_axis(ax.yaxis, 0.7 * float(scaled["star"].min()), 15 * float(chi.max()))
    canvas.legend(ax, "upper left", columns=2)
