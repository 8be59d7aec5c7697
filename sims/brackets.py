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
from typing import Any, NamedTuple

import numpy as np

import meanfield as mf
from meanfield import (
    bounds,
    canvas,
    closures,
    datasets,
    distances,
    donsker,
    dual,
    entropy,
    fokker_planck,
    parallel,
    readings,
    theory,
    transport,
)
from meanfield.claims import Claim, at_least, at_most, deviation, near, rate
from meanfield.cloud import gaussian_cloud
from meanfield.estimate import Estimate, mean_estimate, student_factor

TITLE = "Every bound and estimator over the exact value; brackets over time on P1 and on digits"
STATEMENT = "bounds on W2(p_t, p0) and KL(p_t || p0) from both sides"
MINUTES = 8

LAM = 0.2
SIZES = {"m": 4000, "replicates": 8, "seed": 0}
# (D, alpha, time): exact value, upper and lower bound as printed; None where none was.
W2_SQUARED = {(2, 2.0, 0.5): (0.09307, 0.0976, 0.0931), (2, 2.0, 20.0): (0.09356, 0.103, 0.0945),
              (6, 10.0, 0.05): (0.00744, 0.00764, 0.00741), (11, 2.0, 20.0): (0.1824, 0.360, 0.178),
              (21, 10.0, 0.05): (0.00670, 0.00679, 0.00669), (21, 10.0, 10.0): (0.02002, 0.0392, 0.0198)}  # fmt: skip
KL = {(6, 2.0, 0.5): (0.11916, 0.1196, 0.1193), (11, 2.0, 10.0): (0.1692, 0.178, 0.1701),
      (21, 10.0, 0.05): (0.006693, 0.00670, 0.00673), (21, 10.0, 10.0): (0.01979, 0.0193, 0.0200)}  # fmt: skip
P1_KL = {(1.0, 1.0): (0.269960, 0.2816, 0.2577), (10.0, 20.0): (0.008044, 0.0084, 0.00795)}  # by (alpha, time)
# Without sampling error: log-Sobolev branch, energy, Girsanov; the row's KL.
LOOSE = {1.0: (0.345, 1.90, 0.58), 10.0: (0.01617, 4.45, 1.13)}
TANH = {6: 1.009 / 1.008, 11: 1.292 / 1.272, 21: 0.797 / 0.790}  # W2^2, upper over lower
# By alpha and time: upper over lower, of KL and of W2.
DIGITS = {3.0: {0.58: (2.5, 1.09), 2.0: (2.7, 1.08)},
          20.0: {0.0151: (1.09, 1.07), 0.123: (1.21, 1.11), 2.0: (1.50, 1.29)},
          100.0: {0.0016: (1.07, 1.03), 0.28: (1.20, 1.65), 2.0: (1.41, 2.4)}}  # fmt: skip
NONLINEAR = {(1.0, 0.2): 1.2, (3.0, 0.1): 1.2, (10.0, 0.1): 1.08}  # P1: largest ratio of central values

GRID = [
    *({"part": "w2", "D": D, "alpha": a, "end": T, **SIZES} for D, a, T in W2_SQUARED),
    *({"part": "kl", "D": D, "alpha": a, "end": T, **SIZES} for D, a, T in KL),
    *({"part": "frozen", "D": D, "alpha": a, "end": 2.0, **SIZES} for D, a in ((2, 3.0), (6, 10.0), (11, 3.0))),
    *({"part": "tanh", "D": D, "alpha": 30.0, "end": 0.005, **SIZES} for D in TANH),
    *({"part": "p1", "alpha": a, "lam": lam, "end": 20.0, **SIZES} for a, lam in NONLINEAR),
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
    risk, lam = p1(point["alpha"]), point["lam"]
    t = point["end"] * (np.arange(401) / 400) ** 2
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
        "Girsanov": theory.girsanov(t, np.sqrt(s.drift_square), lam)[-1],
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


# --- reading ------------------------------------------------------------------------------------------------------


class Side(NamedTuple):
    """One bound of one row: the estimate, what it bounds, on which side, and the printed ratio to it (None: none)."""

    row: str
    name: str
    estimate: Estimate
    exact: float
    upper: bool
    printed: float | None
    replicates: int

    @property
    def unsafe(self) -> float:
        """How many standard errors the bound lies on the wrong side of the truth."""
        return (-1 if self.upper else 1) * deviation(*self.estimate[:2], self.exact)

    @property
    def ratio(self) -> Estimate:
        """Upper over exact, or exact over lower, at least 1 for a bound that is one."""
        value, se = self.estimate[:2]
        ratio = value / self.exact if self.upper else self.exact / value
        return Estimate(ratio, ratio * se / value)


def estimates(data) -> dict[str, Estimate]:
    return {name: Estimate(*map(float, v.values)) for name, v in data.data_vars.items() if v.shape == (2,)}


def title(point: dict) -> str:
    size = f"D = {point['D']}, " if "D" in point else "P1, " if point["part"] == "p1" else ""
    return f"{size}α = {point['alpha']:g}, t = {point['end']:g}"


def sides(results) -> list[Side]:
    """Both bounds of every row whose truth is known."""
    out = []
    for point, data in results:
        row, count = title(point), point.get("replicates", 0)
        if point["part"] in ("w2", "kl"):
            table, name = (W2_SQUARED, "W2^2") if point["part"] == "w2" else (KL, "KL")
            exact, found = float(data.exact), estimates(data)
            printed = table[point["D"], point["alpha"], point["end"]]
            out.append(Side(row, name, found["upper"], exact, True, printed[1] / printed[0], count))
            out.append(Side(row, name, found["lower"], exact, False, printed[0] / printed[2], count))
        elif point["part"] == "frozen":
            found, row = estimates(data), f"u alone, {row}"
            for name, low, high in (("KL", float(data.exact), float(data.exact)),
                                    ("W2^2", float(data.w2_low), float(data.w2_high))):  # fmt: skip
                prefix = "W2 " if name == "W2^2" else ""
                out.append(Side(row, name, found[f"{prefix}upper"], low, True, None, count))
                out.append(Side(row, name, found[f"{prefix}lower"], high, False, None, count))
        elif point["part"] == "p1":
            out += _p1_sides(point, data)
    return out


def _p1_sides(point: dict, data) -> list[Side]:
    out = []
    for k, t in enumerate(data.true_time.values):
        printed = P1_KL.get((point["alpha"], float(t)))
        for name in ("kl", "w2"):
            true = float(data[f"true_{name}"][k])
            slack = 2 * float(data.true_w2_error[k]) if name == "w2" else 0.0
            for side in ("upper", "lower"):
                e = Estimate(float(data[f"{name}_{side}"][k + 1]), float(data[f"{name}_{side}_se"][k + 1]))
                ratio = None
                if printed and name == "kl":
                    ratio = printed[1] / printed[0] if side == "upper" else printed[0] / printed[2]
                exact = true - slack if side == "upper" else true + slack
                row = f"P1, α = {point['alpha']:g}, t = {t:g}"
                label = "W2" if name == "w2" else "KL"
                out.append(Side(row, label, e, exact, side == "upper", ratio, point["replicates"]))
    return out


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
    text = f"KL, P1, α = {alpha:g}, λ = {lam:g}, t to {result.point['end']:g}: largest upper over lower"
    return [at_most(text, float(np.max(upper / lower)), NONLINEAR[alpha, lam], full=True)]


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


# --- figures ------------------------------------------------------------------------------------------------------

MARKS = {
    "coupling": ("v", canvas.BLUE), "paired anew": ("<", canvas.BLUE), "Gelbrich": ("^", canvas.BLUE),
    "Kantorovich dual": (">", canvas.BLUE), "Gelbrich, plain": ("x", canvas.ORANGE), "plug-in": ("s", canvas.ORANGE),
    "Sinkhorn": ("D", canvas.ORANGE), "max-sliced": ("P", canvas.ORANGE),
    "account": ("v", canvas.BLUE), "Gaussian": ("^", canvas.BLUE), "Donsker-Varadhan": (">", canvas.BLUE),
    "log-Sobolev": ("1", canvas.GREY), "energy": ("2", canvas.GREY), "Girsanov": ("3", canvas.GREY),
    "neighbours, debiased": ("P", canvas.ORANGE), "neighbours": ("x", canvas.ORANGE),
}  # fmt: skip


def plot(results) -> dict:
    return {"estimators": _estimators(results), "p1": _p1_figure(results), "digits": _digits_figure(results)}


def _estimators(results):
    figure, axes = canvas.sheet(1, 2, width=6.6, height=4.4)
    for ax, part, symbol in zip(axes, ("w2", "kl"), (r"$W_2^2$", "KL"), strict=True):
        rows = list(results.where(part=part))
        for k, (_, data) in enumerate(rows):
            found, exact = estimates(data), float(data.exact)
            c = student_factor(8)
            low, high = found["lower"], found["upper"]
            ends = (max(low.value - c * low.se, 1e-3 * exact), high.value + c * high.se)
            ax.plot([e / exact for e in ends], [k, k], color=canvas.BLUE, lw=7, alpha=0.25, solid_capstyle="butt",
                    label="bracket with its errors" if k == 0 else None)  # fmt: skip
            for name, (marker, colour) in MARKS.items():
                if name in found and found[name].value > 0:
                    ax.plot(found[name].value / exact, k, marker=marker, color=colour, ls="none", mfc="none", ms=6.5,
                            mew=1.3, label=name if k == 0 else None)  # fmt: skip
        ax.axvline(1, color=canvas.INK, lw=1)
        ax.set_yticks(range(len(rows)), [title(p) for p, _ in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        values = np.concatenate([line.get_xdata() for line in ax.lines])
        canvas.log_axis(ax.xaxis, max(values.min() / 1.3, 0.05), values.max() * 1.6)
        ax.set(title=f"{symbol}: read over exact (bilinear networks)", xlabel=f"estimate of {symbol} / exact value")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return figure


def _p1_figure(results):
    points = list(results.where(part="p1"))
    figure, axes = canvas.sheet(2, len(points), width=4.6, height=3.3)
    for k, (point, data) in enumerate(points):
        for row, (name, symbol, colour) in enumerate((("kl", "KL$(p_t\\,\\|\\,p_0)$ in nats", canvas.BLUE),
                                                      ("w2", "$W_2(p_t, p_0)$", canvas.PURPLE))):  # fmt: skip
            ax, b = axes[row * len(points) + k], readings.bracket(data, name)
            true = data[f"true_{name}"].values
            ax.axhline(1, color=canvas.INK, lw=1)
            ax.fill_between(b.t, b.safe_lower / true, b.safe_upper / true, color=colour, alpha=0.18, lw=0,
                            label=f"± {b.factor:.1f} standard errors")  # fmt: skip
            ax.plot(b.t, b.upper / true, color=colour, marker="s", label="upper bound")
            ax.plot(b.t, b.lower / true, color=colour, marker="s", mfc="white", ls="--", label="lower bound")
            if name == "w2":
                off = 2 * data.true_w2_error.values / true
                ax.fill_between(b.t, 1 - off, 1 + off, color=canvas.GREY, alpha=0.4, lw=0, label="error of the truth")
            ax.set(title=f"α = {point['alpha']:g}, λ = {point['lam']:g}", xlabel=r"time $t$ of equation (3.4)",
                   ylabel=f"{symbol} / truth")  # fmt: skip
            canvas.log_axis(ax.xaxis, b.t[0] / 1.2, b.t[-1] * 1.2)
            canvas.legend(ax, "best")
    return figure


def _digits_figure(results):
    figure, axes = canvas.sheet(1, 2, width=5.2, height=3.8)
    for (point, data), colour, marker in zip(results.where(part="digits"), (canvas.BLUE, canvas.GREEN, canvas.PURPLE),
                                             canvas.MARKERS, strict=False):  # fmt: skip
        for ax, name, symbol in zip(axes, ("kl", "w2"), ("KL", r"$W_2$"), strict=True):
            b = readings.bracket(data, name)
            ax.fill_between(b.t, np.maximum(b.safe_lower, 1e-9), b.safe_upper, color=colour, alpha=0.2, lw=0)
            ax.plot(b.t, b.upper, color=colour, marker=marker, label=f"α = {point['alpha']:g}, upper")
            ax.plot(b.t, b.lower, color=colour, marker=marker, mfc="white", ls="--", label="lower")
            ax.set(title=f"{symbol} on digits 3 and 8 (D = 65)", xlabel=r"time $t$ of equation (3.4)",
                   ylabel=f"{symbol}$(p_t, p_0)$" if name == "w2" else "KL in nats")  # fmt: skip
    for ax in axes:
        lines = [line.get_ydata() for line in ax.lines]
        canvas.log_axis(ax.yaxis, *canvas.positive_limits(*lines, room=2.0))
        times = np.concatenate([line.get_xdata() for line in ax.lines])
        canvas.log_axis(ax.xaxis, times.min() / 1.5, times.max() * 1.5)
        canvas.legend(ax, "best", columns=2)
    return figure
