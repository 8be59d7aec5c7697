"""Theorem 4.4 of [CCGZ20] with Lemmas 5.1 to 5.4, a panel a statement, over a sweep of alpha.

Particles travel a distance of order one, E|Z_t - Z_0|^2 = 2 D (1 - e^(-lam t)) + O(1 / alpha^2), while their law moves
like 1 / alpha in W2 and sqrt(KL): noise and decay each move the law, together they hold it where it is. The loss falls
linearly, at the rate 2 kappa Lambda = 4 alpha^2 lambda0^2 in the kernel limit (the theorem promises 2 alpha^2
lambda0^2), down to that of the fixed point, n lam^2 |K2^-1 y|^2 / (4 alpha^4) for large alpha (the theorem's floor
falls as alpha^-2).

Points are of four parts: `sweep` (brackets at bound times), `modes` (decay alone, noise alone, both), `rate` (small
lam, times in units of 1 / (kappa Lambda)) and `floor` (the residual averaged over short steps after a long run).
"""

import numpy as np

import meanfield as mf
from meanfield import parallel, theory
from meanfield.claims import Claim, at_least, near, slope
from meanfield.cloud import gaussian_cloud
from meanfield.estimate import Estimate
from meanfield.objectives import Potential

from ._theorem_4_4_figures import plot as plot
from ._theorem_4_4_reading import (
    DIMENSION,
    END,
    LAM,
    MODES,
    SMALL_LAM,
    N,
    at_end,
    decay_rate,
    floor,
    leading_floor,
    losses,
    lowest,
    margins,
    problem,
    safe,
    travel_excess,
)

TITLE = "Loss, distances and tangent kernel against their bounds; travel of particles and of their law; rate and floor"
STATEMENT = "Theorem 4.4, Lemmas 5.1 to 5.4"
MINUTES = 5

OBSERVABLES = ["loss", "travelled", "reference_travelled", "w2_lower", "w2_upper", "kl_lower", "kl_upper",
               "ntk_eigenvalue_min", "ntk_change_max"]  # fmt: skip


def _points(alphas, modes_alpha, rates, floors, sizes) -> list[dict]:
    few = sizes | {"m": sizes["m"] // 4}
    return [
        *({"part": "sweep", "alpha": a, **sizes} for a in alphas),
        *({"part": "modes", "mode": mode, "alpha": modes_alpha, **few} for mode in MODES),
        *({"part": "rate", "alpha": a, **sizes} for a in rates),
        *({"part": "floor", "alpha": a, "lam": lam, **sizes, "m": 2 * sizes["m"]} for a, lam in floors),
    ]


FLOORS = [*((a, LAM) for a in (10.0, 30.0, 100.0, 300.0)), *((30.0, lam) for lam in (0.025, 0.1, 0.4))]
GRID = _points((3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0), 30.0, (10.0, 30.0, 100.0, 300.0), FLOORS,
               {"m": 4096, "replicates": 8, "seed": 1})  # fmt: skip
SMOKE = _points((30.0, 100.0), 3.0, (100.0,), [(30.0, LAM), (30.0, 0.4)],
                {"m": 120, "replicates": 3, "seed": 1})  # fmt: skip


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict):
    return {"sweep": _sweep, "modes": _modes, "rate": _rate, "floor": _floor}[point["part"]](point)


def _start(point: dict):
    return gaussian_cloud(point["m"], dimension=DIMENSION, seed=point["seed"])


def _sweep(point: dict):
    flow = mf.Flow(problem(point["alpha"]), lam=LAM)
    run = mf.simulate(flow, _start(point), END, replicates=point["replicates"], observables=OBSERVABLES,
                      quiet=True)  # fmt: skip
    return run.data


def _modes(point: dict):
    risk, mode = problem(point["alpha"]), point["mode"]
    flow = mf.Flow(risk, lam=LAM, prior=None) if mode == "noise" else mf.Flow(risk, lam=LAM)
    if mode == "decay":
        # Without noise the decay is a potential, and the reference stays where it started.
        bowl = Potential(lambda z: 0.5 * LAM * (z**2).sum(1), lambda z: LAM * z, rate=LAM)
        flow = mf.Flow(risk + bowl, lam=0.0)
    every = 20 if mode == "decay" else 1  # an explicit scheme takes many steps
    run = mf.simulate(flow, _start(point), END, replicates=point["replicates"], every=every, quiet=True,
                      observables=["loss", "travelled", "w2_lower", "w2_upper"])  # fmt: skip
    return run.data


def _rate(point: dict):
    risk = problem(point["alpha"])
    unit = 1 / (risk.kappa * lowest())
    flow = mf.Flow(risk, lam=SMALL_LAM, eta=0.05 * unit, account=False)
    run = mf.simulate(flow, _start(point), steps=100, replicates=point["replicates"], bounds=0, quiet=True,
                      observables=["prediction"])  # fmt: skip
    return {"time": run.data.time.values / unit, "residual": run.data.prediction.values - risk.y}


def _floor(point: dict):
    """Run to rest, then average the residual over short steps: one alone is mostly noise of order 1/sqrt(m)."""
    risk, lam = problem(point["alpha"]), point["lam"]
    flow = mf.Flow(risk, lam=lam, account=False)
    run = mf.simulate(flow, _start(point), 5 / lam, replicates=point["replicates"], bounds=0, quiet=True,
                      observables=["loss"])  # fmt: skip
    short, count = min(0.5 / (risk.kappa * lowest()), 0.01 / lam), point["m"] // 20
    means = []
    with parallel.single_threaded_blas():
        for cloud in run.clouds:
            total = np.zeros(N)
            for _ in range(count):
                cloud = flow.step(cloud, short)
                total += risk.residual(risk.prediction(cloud))
            means.append(total / count)
    return {"residual": np.array(means)}


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    sweep = results.where(part="sweep")
    large = [a for a in sweep.values("alpha") if a >= 100] if results.full else sweep.values("alpha")
    out = []
    for name, power in (("w2_lower", 1), ("w2_upper", 1), ("kl_lower", 2), ("kl_upper", 2)):
        value, error = at_end(results, name, large)
        root = slope(large, value ** (1 / power), error * value ** (1 / power - 1) / power)
        text = f"{'sqrt ' if power == 2 else ''}{name} falls as a power of alpha"
        out.append(near(text, root, -1.0, 0.05, full=True))
    worst = [margins(r.data, r.point["alpha"]) for r in sweep]
    for name in worst[0]:
        text = f"{name}: bound over measured, at worst over alpha and t"
        out.append(at_least(text, min(w[name] for w in worst), 1.0))
    return [*out, *_travel_claims(results), *_mode_claims(results), *_rate_claims(results), *_floor_claims(results)]


def _travel_claims(results) -> list[Claim]:
    free = float(theory.travelled(END, DIMENSION, LAM))
    alphas = results.where(part="sweep").values("alpha")
    largest = travel_excess(results, alphas[-1])
    share = Estimate(1 + largest.value / free, largest.se / free)
    text = f"E|Z_t - Z_0|^2 over 2 D (1 - e^(-lam t)), alpha = {alphas[-1]:g}"
    w2 = at_end(results, "w2_upper", alphas[-1:])[0][0]
    ratio = np.sqrt(free * share.value) / w2
    return [near(text, share, 1.0, 0.002, full=True),
            at_least("distance travelled over distance of the law, there", ratio, 100.0, full=True)]  # fmt: skip


def _mode_claims(results) -> list[Claim]:
    together = float(safe(results.one(part="modes", mode="both"), "w2_upper")[-1])
    out = []
    for mode in ("decay", "noise"):
        alone = float(safe(results.one(part="modes", mode=mode), "w2_lower", -1)[-1])
        text = f"W2 with {MODES[mode]} (lower bound) over W2 with both (upper bound)"
        out.append(at_least(text, alone / together, 3.0, full=True))
    return out


def _rate_claims(results) -> list[Claim]:
    points = results.where(part="rate")
    rates = [decay_rate(r.data) for r in points]
    slowest = min(rates, key=lambda e: e.value)
    text = "rate of the loss over 2 alpha^2 lambda0^2, smallest over alpha"
    last = f"the same at alpha = {points.found[-1].point['alpha']:g}: the kernel limit has 2"
    return [at_least(text, slowest, 1.0), near(last, rates[-1], 2.0, 0.05, full=True)]


def _floor_claims(results) -> list[Claim]:
    floors = {(r.point["alpha"], r.point["lam"]): losses(r.data.residual.values) for r in results.where(part="floor")}
    out = []
    for (a, lam), e in floors.items():
        size = floor(a, lam)
        if e.se < 0.05 * size:
            text = f"loss at rest over that of the fixed point, alpha = {a:g}, lam = {lam:g}"
            out.append(near(text, Estimate(e.value / size, e.se / size), 1.0, 0.1, full=True))
    largest = max(a for a, _ in floors)
    ratio = floor(largest, LAM) / leading_floor(largest, LAM)
    text = f"loss of the fixed point over n lam^2 |K2^-1 y|^2 / (4 alpha^4), alpha = {largest:g}"
    out.append(near(text, ratio, 1.0, 0.02, full=True))
    lams, found = zip(*sorted((lam, e) for (a, lam), e in floors.items() if a == 30.0), strict=True)
    fitted = slope(lams, [e.value for e in found], np.array([e.se for e in found]))
    return [*out, near("loss at rest as a power of lam (bound: 2)", fitted, 2.0, 0.1, full=True)]
