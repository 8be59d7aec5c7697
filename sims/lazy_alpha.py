"""What the scale alpha makes small: law, tangent kernel and distance to the linearised run, as powers of alpha.

At a fixed time of (3.4) the law of the limit equation moves as W2^2 and KL ~ alpha^-2, which Theorem 4.4 of [CCGZ20]
bounds in this order, while each particle travels a distance of order one. The tangent kernel then moves as alpha^-2:
Lemma 5.1 allows alpha^-1, but to first order p_t / p_0 - 1 is odd in u and the kernel is an average of even functions.

A network of m particles has no such symmetry. In the time t = s / alpha^2, in which the kernel dynamics are the same
for all alpha, [ChizatOyallonBach19] (Theorem 2.2) bounds the distance of parameters and the distance of outputs to the
linearised model by O(1 / alpha). Both orders are reached, with m^-1/2 before the outputs' and the kernel's.

Points are of two parts: `law` (a fixed time) and `network` (a fixed s; one network beside its linearisation, with one
noise).
"""

import numpy as np

import meanfield as mf
from meanfield import parallel, theory
from meanfield.claims import Claim, at_least, at_most, jackknifed, near, order, slope
from meanfield.cloud import gaussian_cloud
from meanfield.estimate import Estimate, student_factor
from meanfield.lockstep import distance_to_linearised

from ._lazy_alpha_figures import plot as plot
from ._lazy_alpha_reading import END, FAR, LAM, law_order, limit_distance, lowest, network_order, problem

TITLE = "Law, tangent kernel and distance to the linearised run against the output scale"
STATEMENT = "Theorem 4.4: W2^2, KL = O(alpha^-2); lazy training: parameters and outputs O(alpha^-1)"
MINUTES = 1.5

SPAN, STEPS = 3.0, 60  # of the network part: end in units of 1 / (kappa Lambda), and steps
OBSERVABLES = ["loss_unbiased", "travelled", "coupled_distance", "w2_lower", "w2_upper", "kl_lower", "kl_upper",
               "kernel_drift"]  # fmt: skip
DRIFTING = {"sphere": (30.0, 300.0), "digits": (30.0, 100.0)}  # lazy, and the kernel's drift well above its error
BOTH = (30.0, 100.0)  # the same for the distance of the limit law's outputs


def _points(law: dict, alphas, widths, near_alphas, replicates: int) -> list[dict]:
    common, twice = ({"replicates": k * replicates, "seed": 1} for k in (1, 2))
    return [
        *({"part": "law", "problem": p, "alpha": a, "m": m, **common} for p, m in law.items() for a in alphas),
        *({"part": "network", "alpha": a, "m": m, **twice} for m in widths for a in near_alphas),
    ]


GRID = _points({"sphere": 8192, "digits": 1024}, (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
               (64, 1024, 8192), (10.0, 30.0, 100.0, 300.0, 1000.0), 8)  # fmt: skip
SMOKE = _points({"sphere": 128, "digits": 64}, (10.0, 100.0), (64, 256), (30.0, 300.0), 3)


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict):
    with parallel.single_threaded_blas():
        return (_law if point["part"] == "law" else _network)(point)


def _start(risk: mf.Risk, point: dict) -> mf.Cloud:
    return gaussian_cloud(point["m"], dimension=risk.inputs.shape[1] + 1, seed=point["seed"])


def _law(point: dict):
    risk = problem(point["problem"], point["alpha"])
    run = mf.simulate(mf.Flow(risk, lam=LAM), _start(risk, point), END, replicates=point["replicates"], bounds=[END],
                      observables=OBSERVABLES, quiet=True)  # fmt: skip
    return run.data


def _network(point: dict) -> dict:
    risk = problem("sphere", point["alpha"])
    span = SPAN / (risk.kappa * lowest("sphere"))
    flow, start = mf.Flow(risk, lam=LAM, eta=span / STEPS, account=False), _start(risk, point)
    pair = distance_to_linearised(flow, start, span, replicates=point["replicates"])
    run = mf.simulate(flow, start, steps=STEPS, replicates=point["replicates"], bounds=0, quiet=True,
                      observables=["travelled"])  # fmt: skip
    # Measured anew: the matrix that a cloud carries from step to step may be some steps old.
    begun = [risk.measure(start.replicated(r)).gram for r in range(point["replicates"])]
    moved = [risk.measure(cloud).gram for cloud in run.clouds]
    own = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(begun, moved, strict=True)]
    return {"difference": pair.difference.values, "largest": pair.distance.values.max(1), "own_drift": np.array(own),
            "travelled": run.data.travelled.values[:, -1]}  # fmt: skip


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    out = []
    for name in results.where(part="law").values("problem"):
        for value, wanted in (("w2_lower", -1), ("w2_upper", -1), ("kl_lower", -2), ("kl_upper", -2)):
            text = f"{name}: exponent in alpha of {value}, alpha from {FAR[0]:g} to {FAR[1]:g}"
            found = law_order(results, name, value, FAR)
            out.append(near(text, found, wanted, 0.05 * abs(wanted), full=True))
        drift = law_order(results, name, "kernel_drift", DRIFTING[name])
        text = "{}: exponent of the kernel's relative drift, alpha from {:g} to {:g} (Lemma 5.1: −1)"
        out.append(near(text.format(name, *DRIFTING[name]), drift, -2.0, 0.25, full=True))
        out += _travel_claims(results, name)
    return [*out, _printed_claim(results), *_network_claims(results)]


def _travel_claims(results, name: str) -> list[Claim]:
    law = results.where(part="law", problem=name)
    top = law.values("alpha")[-1]
    data = law.one(alpha=top)
    risk = problem(name, top)
    free = float(theory.travelled(END, risk.inputs.shape[1] + 1, LAM))
    share = jackknifed(lambda v: v.mean() / free, data.travelled.values[:, -1])
    text = f"{name}: E|Z_t - Z_0|^2 over 2 D (1 - e^(-lam t)), alpha = {top:g}"
    return [near(text, share, 1.0, 0.01, full=True), *_order_claims(results, name)]


def _order_claims(results, name: str) -> list[Claim]:
    out = []
    for kind in ("w2", "kl"):
        worst = -np.inf
        for _, data in results.where(part="law", problem=name):
            factor = student_factor(data.sizes["replicate"])
            low, low_se, high, high_se = (
                float(data[f"{kind}_{key}"].values[-1]) for key in ("lower", "lower_se", "upper", "upper_se")
            )
            worst = max(worst, (low - factor * low_se) / (high + factor * high_se))
        text = f"{name}: lower over upper bound on {kind}, Student's factor of errors apart, at worst over alpha"
        out.append(at_most(text, worst, 1.0))
    return out


def _printed_claim(results) -> Claim:
    law = results.where(part="law", problem="sphere")
    G = theory.common_bound(problem("sphere", 1.0).unit.h.suprema)
    bounds = [
        float(theory.kl_bound(point["alpha"], LAM, lowest("sphere"), 6, 5, G)) / float(data.kl_upper.values[-1])
        for point, data in law
    ]
    return at_least("sphere: KL as bounded in Theorem 4.4 over the measured upper bound, at worst", min(bounds), 1.0)


def _network_claims(results) -> list[Claim]:
    part = results.where(part="network")
    widths = part.values("m")
    small, large = widths[0], widths[-1]
    out = []
    for name, text in (("travelled", "E|Z_t - Z_0|^2"), ("own_drift", "drift of its own kernel"),
                       ("largest", "largest distance to the linearised run")):  # fmt: skip
        wanted = -2.0 if name == "travelled" else -1.0
        found = network_order(results, name, small)
        out.append(near(f"network, m = {small}, fixed s: exponent of {text}", found, wanted, 0.05, full=True))
    top = part.values("alpha")[-1]
    for name, text in (("own_drift", "drift of its own kernel"), ("largest", "distance to the linearised run")):
        values = np.array([part.one(alpha=top, m=m)[name].values for m in widths]).T
        text = f"network, alpha = {top:g}: exponent in m of the {text}"
        out.append(near(text, order(widths, values), -0.5, 0.1, full=True))
    near_part = [r for r in part.where(m=large) if BOTH[0] <= r.point["alpha"] <= BOTH[1]]
    found = [limit_distance(r.data) for r in near_part]
    text = f"limit law, m = {large}, fixed s: exponent of the distance to the linearised run, alpha from 30 to 100"
    ok = len(found) > 1 and all(e.value > 0 for e in found)
    fitted = Estimate(np.nan, np.nan)
    if ok:
        fitted = slope([r.point["alpha"] for r in near_part], [e.value for e in found], np.array([e.se for e in found]))
    return [*out, near(text, fitted, -2.0, 0.25, full=True)]
