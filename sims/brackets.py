"""Brackets on W2 and KL against the truth wherever it is known, beside the plug-in estimators that fail.

Truth is known of bilinear networks, whose law stays Gaussian; of networks with frozen features, whose outer weight is
Gaussian given the inner ones; and of the nonlinear problem P1 with one input, by solutions of the equation itself. For
each stand the bounds a run records and the candidates they are chosen from; single candidates show what each is worth.

Every row that was printed when the bounds were designed is measured again: the exact value must lie inside the bracket,
up to its errors, and the ratio of a central value to the exact one may be at most the printed one times 1.1 and two
standard errors. Rows without an exact value (tanh networks, handwritten digits) are judged by upper over lower.

Points are of seven parts: `w2` and `kl` (bilinear), `frozen`, `tanh`, `p1`, `digits`, and `solution` (bounds evaluated
on a solution of the equation, without sampling error).
"""

import warnings
from typing import Any

import numpy as np
from scipy.integrate import trapezoid

import meanfield as mf
from meanfield import (
    bounds,
    closures,
    datasets,
    distances,
    donsker,
    dual,
    entropy,
    fokker_planck,
    parallel,
    theory,
    transport,
)
from meanfield.claims import Claim, at_least, at_most, near, rate
from meanfield.cloud import gaussian_cloud
from meanfield.estimate import Estimate, mean_estimate

from ._brackets_figures import plot as plot
from ._brackets_rows import DIGITS, KL, LOOSE, P1_KL, TANH, W2_SQUARED, Side, estimates, sides, title

TITLE = "Every bound and estimator over the exact value; brackets over time on P1 and on digits"
STATEMENT = "bounds on W2(p_t, p0) and KL(p_t || p0) from both sides"
MINUTES = 8

LAM = 0.2
SIZES = {"m": 4000, "replicates": 8, "seed": 0}
NONLINEAR = {(1.0, 0.2): 1.2, (3.0, 0.1): 1.2, (10.0, 0.1): 1.08}  # P1: largest ratio of central values

GRID = [
    *({"part": "w2", "D": D, "alpha": a, "end": T, **SIZES} for D, a, T in W2_SQUARED),
    *({"part": "kl", "D": D, "alpha": a, "end": T, **SIZES} for D, a, T in KL),
    *({"part": "frozen", "D": D, "alpha": a, "end": 2.0, **SIZES} for D, a in ((2, 3.0), (6, 10.0), (11, 3.0))),
    *({"part": "tanh", "D": D, "alpha": 30.0, "end": 0.005, **SIZES} for D in TANH),
    # So many particles that standard errors stay below half the width of the bracket, which at t = 0.2 is 1 %.
    *({"part": "p1", "alpha": a, "lam": lam, "end": 20.0, **SIZES, "m": 1 << 16} for a, lam in NONLINEAR),
    *({"part": "solution", "alpha": a, "lam": lam, "end": T} for a, lam, T in ((1.0, 0.2, 1.0), (10.0, 0.1, 20.0))),
    *({"part": "digits", "alpha": a, "end": 2.0, **SIZES, "replicates": 4} for a in DIGITS),
]  # fmt: skip
FEW = {"m": 400, "replicates": 4, "seed": 0}
SMOKE = [
    {"part": "w2", "D": 2, "alpha": 2.0, "end": 0.5, **FEW},
    {"part": "kl", "D": 6, "alpha": 2.0, "end": 0.5, **FEW},
    {"part": "frozen", "D": 2, "alpha": 3.0, "end": 2.0, **FEW},
    {"part": "tanh", "D": 6, "alpha": 30.0, "end": 0.005, **FEW},
    {"part": "p1", "alpha": 1.0, "lam": 0.2, "end": 1.0, **FEW},
    {"part": "solution", "alpha": 1.0, "lam": 0.2, "end": 1.0},
    {"part": "digits", "alpha": 100.0, "end": 0.0016, **FEW, "m": 100},
]


# --- problems -----------------------------------------------------------------------------------------------------


def problem(D: int, alpha: float, activation: str = "linear") -> mf.Risk:
    """Normalised normal rows and a linear teacher scaled to 0.9; n = max(2, d) samples."""
    d = D - 1
    generator = np.random.default_rng(0)  # as the rows were printed
    x = generator.normal(size=(max(2, d), d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    w = generator.normal(size=d)
    y = x @ (w / np.linalg.norm(w))
    return mf.Risk(x, 0.9 * y / np.abs(y).max(), mf.Unit(activation), alpha)


def p1(alpha: float) -> mf.Risk:
    return mf.Risk([[0.4], [1.0]], [0.5, 0.8], mf.Unit("erf"), alpha)


# --- building -----------------------------------------------------------------------------------------------------


def build(point: dict) -> Any:
    parts = {
        "w2": _w2,
        "kl": _kl,
        "frozen": _frozen,
        "tanh": _tanh,
        "p1": _p1,
        "solution": _solution,
        "digits": _digits,
    }
    return parts[point["part"]](point)


def _run(point: dict, flow: mf.Flow, observables: list[str], times, **options) -> mf.Run:
    warnings.filterwarnings("ignore", message="Lambda = ")  # two inputs on a line: known, and no matter here
    start = gaussian_cloud(point["m"], flow.objective.unit, flow.objective.d, seed=point["seed"])
    return mf.simulate(flow, start, point["end"], replicates=point["replicates"], observables=observables, bounds=times,
                       quiet=True, **options)  # fmt: skip


def quadratic(end: float, steps: int):
    """Steps that end at end (k / steps)^2."""
    lengths = np.diff(end * (np.arange(steps + 1) / steps) ** 2).tolist()
    return lambda k: lengths[min(k, steps - 1)]


def squared(e: Estimate) -> Estimate:
    return Estimate(e.value**2, 2 * e.value * e.se)


def stored(exact: dict[str, float], estimates: dict[str, Estimate]) -> dict[str, Any]:
    """What a point keeps: truths as numbers, estimates as pairs (value, standard error)."""
    return {**exact, **{name: np.array([e.value, e.se]) for name, e in estimates.items()}}


@parallel.serial_blas
def _w2(point: dict) -> dict:
    risk = problem(point["D"], point["alpha"])
    flow = mf.Flow(risk, lam=LAM, scheme="kernel2", eta=point["end"] / 60)
    clouds = _run(point, flow, [], 0).clouds
    pairs = bounds.standardised(clouds, flow)
    some = [z[:1000] for z, _, _ in pairs]
    found = {
        "lower": squared(bounds.w2_lower(clouds, flow)),
        "upper": squared(bounds.w2_upper(clouds, flow)),
        "coupling": transport.coupled_upper(pairs),
        "paired anew": transport.repaired_upper(pairs) if point["D"] <= 6 else Estimate(np.nan, np.nan),
        "Gelbrich": transport.gelbrich_lower(pairs),
        "Kantorovich dual": dual.dual_lower(pairs, risk.inputs, risk.unit.h),
        "Gelbrich, plain": mean_estimate([transport.gelbrich(z.mean(0), np.cov(z.T)) for z, _, _ in pairs]),
    }
    for name, measure in (
        ("plug-in", distances.exact),
        ("Sinkhorn", distances.sinkhorn),
        ("max-sliced", distances.max_sliced),
    ):
        d = measure(some[0], force=True)
        found |= {name: Estimate(d.value, d.spread), f"{name}, null": Estimate(d.null, 0.0)}
    truth = closures.gaussian_closure(risk, LAM, [point["end"]])
    return stored({"exact": float(truth.w2_lower[-1] ** 2)}, found)


@parallel.serial_blas
def _kl(point: dict) -> dict:
    risk = problem(point["D"], point["alpha"])
    flow = mf.Flow(risk, lam=LAM, scheme="kernel", eta=quadratic(point["end"], 80))
    run = _run(point, flow, ["loss_unbiased", "entropy_input", "drift_rms", "kl_account"], 0)
    truth = closures.gaussian_closure(risk, LAM, [point["end"]])
    return stored({"exact": float(truth.kl[-1])}, kl_estimates(run, flow))


def kl_estimates(run: mf.Run, flow: mf.Flow) -> dict[str, Estimate]:
    """The bracket on KL at the end of a run, the candidates, what needs no account, and nearest neighbours."""
    clouds, data, lam = run.clouds, run.data, flow.lam
    pairs = bounds.standardised(clouds, flow)
    t = data.time.values
    sobolev = theory.entropy_bound(t, data.entropy_input.values, lam)[0][:, -1]
    lost = (data.loss_unbiased.values[0] - data.loss_unbiased.values[-1]) / lam
    return {
        "lower": bounds.kl_lower(clouds, flow),
        "upper": bounds.kl_upper(clouds, flow),
        "account": mean_estimate(data.kl_account.values[:, -1]),
        "log-Sobolev": mean_estimate(sobolev),
        "energy": Estimate(float(lost), 0.0),
        "Girsanov": mean_estimate([theory.girsanov(t, b, lam)[-1] for b in data.drift_rms.values]),
        "Gaussian": entropy.gaussian_lower(pairs),
        "Donsker-Varadhan": donsker.donsker_varadhan(pairs, bounds.features(clouds, flow)),
        "neighbours, debiased": entropy.knn_estimate(pairs),
        "neighbours": mean_estimate([raw_neighbours(z) for z, _, _ in pairs]),
    }


def raw_neighbours(z: np.ndarray, k: int = 5) -> float:
    """Kozachenko and Leonenko's estimate of -entropy plus the Gaussian cross-entropy, of a cloud alone."""
    from scipy.spatial import cKDTree
    from scipy.special import digamma, gammaln

    m, D = z.shape
    far = cKDTree(z).query(z, k + 1)[0][:, k]
    ball = 0.5 * D * np.log(np.pi) - gammaln(0.5 * D + 1)
    negative = digamma(k) - digamma(m) - ball - D * np.log(far).mean()
    return float(negative + 0.5 * D * np.log(2 * np.pi) + 0.5 * (z**2).sum(1).mean())


@parallel.serial_blas
def _frozen(point: dict) -> dict:
    risk = problem(point["D"], point["alpha"], "erf")
    flow = mf.Flow(risk, lam=LAM, scheme="kernel", eta=quadratic(point["end"], 80), train="u")
    clouds = _run(point, flow, [], 0).clouds
    truth = closures.frozen_closure(risk, LAM, [point["end"]])
    low, high = float(truth.w2_lower[-1] ** 2), float(truth.w2_upper[-1] ** 2)
    found = {"lower": bounds.kl_lower(clouds, flow), "upper": bounds.kl_upper(clouds, flow),
             "W2 lower": squared(bounds.w2_lower(clouds, flow)),
             "W2 upper": squared(bounds.w2_upper(clouds, flow))}  # fmt: skip
    return stored({"exact": float(truth.kl[-1]), "w2_low": low, "w2_high": high}, found)


@parallel.serial_blas
def _tanh(point: dict) -> dict:
    risk = problem(point["D"], point["alpha"], "tanh")
    flow = mf.Flow(risk, lam=LAM, scheme="kernel", eta=quadratic(point["end"], 8))
    clouds = _run(point, flow, [], 0).clouds
    pairs = bounds.standardised(clouds, flow)
    return stored({}, {"coupling": transport.coupled_upper(pairs), "lower": squared(bounds.w2_lower(clouds, flow)),
                       "Kantorovich dual": dual.dual_lower(pairs, risk.inputs, risk.unit.h)})  # fmt: skip


BRACKETS = ["kl_lower", "kl_upper", "w2_lower", "w2_upper"]


def _p1(point: dict):
    times = [t for t in (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if t <= point["end"]]
    risk = p1(point["alpha"])
    data = _run(point, mf.Flow(risk, lam=point["lam"]), ["loss", *BRACKETS], [0.0, *times]).data
    solution = fokker_planck.spectral(risk, point["lam"], times, estimate=False)
    cells = (60, 60) if point["m"] < 1000 else (160, 160)
    distance = fokker_planck.wasserstein(fokker_planck.volumes(risk, point["lam"], times, cells=cells))
    truth = {"true_time": times, "true_kl": solution.kl, "true_w2": distance.value, "true_w2_error": distance.error}
    return data.assign({name: (("true_time",), np.asarray(values)) for name, values in truth.items()})


def _digits(point: dict):
    x, y = datasets.digits(classes=(3, 8), n=100)
    flow = mf.Flow(mf.Risk(x, y, mf.Unit("tanh"), point["alpha"]), lam=0.01)
    times = [t for t in DIGITS[point["alpha"]] if t <= point["end"]]
    return _run(point, flow, ["loss", *BRACKETS], times).data


def _solution(point: dict) -> dict:
    """The bounds on KL that need no particles, on the spectral solution; and the certificate C2."""
    risk, lam, end = p1(point["alpha"]), point["lam"], point["end"]
    t = end * (np.arange(401) / 400) ** 3  # E|b|^2 falls within t of order 0.01
    s = fokker_planck.spectral(risk, lam, t, estimate=False)
    e, H, S = s.series.generator, s.series.gram, s.noise_work
    fisher = np.einsum("ti,tij,tj->t", e, np.linalg.inv(H), e)  # Stein's lower bound on I
    root = theory.loss_certificate(t, np.sqrt((e**2).mean(1)), t, s.eigenvalues[:, 0], alpha=risk.alpha, lam=lam,
                                   n=risk.n, L0=float(s.loss[0]))  # fmt: skip
    return {
        "exact": s.kl[-1],
        "log-Sobolev": theory.entropy_bound(t, S, lam)[0][-1],
        "account": continuous_account(t, S, fisher, lam),
        "energy": (s.loss[0] - s.loss[-1]) / lam,
        "Girsanov": trapezoid(s.drift_square, t) / (4 * lam),  # `theory.girsanov` is the upper sum, 6 % more here
        "Donsker-Varadhan": donsker_varadhan(risk, s),
        "root_loss": np.sqrt(s.loss[-1]),
        "C2": root[-1],
        "Lambda": s.eigenvalues[0, 0],
    }


def continuous_account(t: np.ndarray, S: np.ndarray, fisher: np.ndarray, lam: float) -> float:
    """K of K' = S - lam max(2 K, I_lb), by Heun's method."""
    K = 0.0

    def slope(K: float, k: int) -> float:
        return S[k] - lam * max(2 * K, fisher[k])

    for k, h in enumerate(np.diff(t)):
        first = slope(K, k)
        K += 0.5 * h * (first + slope(K + h * first, k + 1))
    return K


def donsker_varadhan(risk: mf.Risk, solution) -> float:
    """sup over g in the span of h_i and w_i h'_i of E_p[u g] - log E_theta e^{g^2 / 2}, by quadrature."""
    from scipy.optimize import minimize

    nodes = np.linspace(-8, 8, 321)
    w = np.outer(nodes, risk.inputs[:, 0])
    features = np.concatenate([risk.unit.h.value(w), w * risk.unit.h.first(w)], axis=1)
    law = solution.density(nodes[:, None], nodes[None, :]) * (nodes[1] - nodes[0]) ** 2
    tilt = features.T @ law @ nodes
    normal = np.exp(-0.5 * nodes**2) / np.exp(-0.5 * nodes**2).sum()

    def negative(c: np.ndarray) -> float:
        return float(np.log(normal @ np.exp(0.5 * np.minimum((features @ c) ** 2, 1400))) - c @ tilt)

    return -float(minimize(negative, np.zeros(len(tilt)), method="BFGS", options={"gtol": 1e-9}).fun)


# --- claims -------------------------------------------------------------------------------------------------------


def claims(results) -> list[Claim]:
    known = sides(results)
    replicates = known[0].replicates
    text = "every bound against the truth, on the unsafe side"
    out = [rate(text, np.array([s.unsafe for s in known]), replicates, full=True)]
    out += [_ratio_claim(s) for s in known if s.printed is not None]
    exacts = [abs(float(r.data.exact) / t[r.point["D"], r.point["alpha"], r.point["end"]][0] - 1)
              for part, t in (("w2", W2_SQUARED), ("kl", KL)) for r in results.where(part=part)]  # fmt: skip
    out.append(at_most("exact values against the printed ones, largest relative difference", max(exacts), 1e-3))
    out += [c for r in results.where(part="tanh") for c in _tanh_claims(r)]
    out += [c for r in results.where(part="p1") for c in _p1_claims(r)]
    out += [c for r in results.where(part="solution") for c in _solution_claims(r)]
    out += [c for r in results.where(part="digits") for c in _digits_claims(r)]
    return [*out, *_failing_claims(results)]


def _ratio_claim(side: Side) -> Claim:
    ratio, allowed = side.ratio, 1.1 * side.printed
    which = "upper over exact" if side.upper else "exact over lower"
    holds = ratio.value <= allowed + 2 * ratio.se
    wanted = f"≤ {allowed:.3f} + 2 standard errors"
    return Claim(f"{side.name}, {side.row}: {which}", ratio.value, wanted, bool(holds), ratio.se, full=True)


def _tanh_claims(result) -> list[Claim]:
    found = estimates(result.data)
    ratio = found["coupling"].value / found["lower"].value
    text = f"W2^2, tanh, {title(result.point)}: upper over lower"
    return [at_most(text, ratio, 1.1 * TANH[result.point["D"]], full=True)]


def _p1_claims(result) -> list[Claim]:
    alpha, lam, data = result.point["alpha"], result.point["lam"], result.data
    lower, upper = (data[f"kl_{side}"].values[1:] for side in ("lower", "upper"))
    errors = np.array([data[f"kl_{side}_se"].values[1:] for side in ("lower", "upper")])
    text = f"KL, P1, α = {alpha:g}, λ = {lam:g}, t to {result.point['end']:g}: largest"
    share = float(np.max(errors / (upper - lower)))
    return [at_most(f"{text} upper over lower", float(np.max(upper / lower)), NONLINEAR[alpha, lam], full=True),
            at_most(f"{text} standard error over the width of the bracket", share, 0.5, full=True)]  # fmt: skip


def _solution_claims(result) -> list[Claim]:
    alpha, data = result.point["alpha"], result.data
    row, out = f"on the solution of P1, α = {alpha:g}", []
    for name, printed in zip(("log-Sobolev", "energy", "Girsanov"), LOOSE[alpha], strict=True):
        out.append(near(f"KL {row}: {name} bound over the printed one", float(data[name]) / printed, 1.0, 0.01))
    for name, sign in (("account", 1), ("Donsker-Varadhan", -1)):
        ratio = (float(data[name]) / float(data.exact)) ** sign
        printed = P1_KL[alpha, result.point["end"]]
        allowed = 1.1 * (printed[1] / printed[0] if sign > 0 else printed[0] / printed[2])
        inside = ratio >= 1 and ratio <= allowed
        out.append(Claim(f"KL {row}: {name}, ratio to the exact value", ratio, f"1 to {allowed:.3f}", inside))
    if alpha == 10.0:
        suprema = p1(alpha).unit.h.suprema
        symbols = (alpha, result.point["lam"], float(data.Lambda), 2, 1, theory.common_bound(suprema))
        for name, value, printed in (("root of the loss", float(data.root_loss), 0.0042), ("C2", float(data.C2), 0.053),
                                     ("printed floor", theory.loss_floor(*symbols), 18.7),
                                     ("printed bound on KL", theory.kl_bound(*symbols), 1.1e6)):  # fmt: skip
            out.append(near(f"tightness {row}: {name} over what was printed", value / printed, 1.0, 0.05))
    return out


def _digits_claims(result) -> list[Claim]:
    alpha, data, out = result.point["alpha"], result.data, []
    for k, t in enumerate(data.bound_time.values):
        # Steps end on bound times, so that a time is found to rounding.
        printed = next(v for at, v in DIGITS[alpha].items() if abs(at - t) < 1e-9)
        for name, ratio, widest in zip(("kl", "w2"), printed, (1.8, 1.5), strict=True):
            value = float(data[f"{name}_upper"][k] / data[f"{name}_lower"][k])
            text = f"{name.upper()}, digits, α = {alpha:g}, t = {t:g}: upper over lower"
            out.append(at_most(text, value, min(1.1 * ratio, widest), full=True))
    return out


def _failing_claims(results) -> list[Claim]:
    """What a plug-in estimator reads where the truth is small and D is not."""
    out = []
    for point, data in results.where(part="w2"):
        if point["D"] >= 6:
            value = estimates(data)["plug-in"].value / float(data.exact)
            out.append(at_least(f"W2^2, {title(point)}: plug-in (1000 particles) over exact", value, 10.0))
    for point, data in results.where(part="kl"):
        if point["D"] >= 21:
            value = estimates(data)["neighbours"].value
            out.append(at_most(f"KL, {title(point)}: nearest neighbours alone, in nats", value, 0.0))
    return out
