"""Checks that the program makes on itself, from what a run recorded: C0, C3, C4, (I4), (I5), and that records agree.

Each takes the Dataset and the last clouds and returns verdicts named after what breaks. The certificates C0 to C4 and
the identities (I1), (I4), (I5) are derived in the documentation.
"""

import math
from typing import Any

import numpy as np

from meanfield import theory
from meanfield.cloud import Cloud
from meanfield.statements import limit_law
from meanfield.verdicts import (
    DOUBT,
    NOT_APPLICABLE,
    SURPRISE,
    Verdict,
    brackets,
    judge,
    missing_variable,
    normal_limits,
    replicate_mean,
    safe_error,
    surprise,
)

Array = np.ndarray


def records_agree(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge the loss against prediction and labels, the account against the bound that is made of it."""
    out = []
    text = "stored loss equals the loss of the stored predictions on the stored labels"
    missing = missing_variable(data, "records: loss", text, "loss", "prediction", "label")
    if missing:
        out.append(missing)
    else:
        f, y = data.prediction.values, data.label.values
        square = data.attrs.get("loss_function", "square") == "square"
        again = ((f - y) ** 2 if square else np.logaddexp(0.0, -y * f)).mean(-1)
        scale = np.maximum(np.abs(again).max(0), 1e-12)
        ratio = _no_number_disagrees(np.abs(again - data.loss.values).max(0) / scale, data)
        zeros = np.zeros(len(ratio))
        out.append(judge("records: loss", text, ratio, zeros + 1e-6, zeros, data.time.values))
    if "kl_account" in data and "kl_upper" in data:
        text = "stored KL upper bound equals the mean account it is made of"
        at = data.kl_account.values[:, bound_index(data)]
        made = data.kl_upper_source.values.astype(str) == "account"
        if made.any():
            mean, upper = at.mean(0)[made], data.kl_upper.values[made]
            with np.errstate(invalid="ignore"):
                gap = np.where(mean == upper, 0.0, np.abs(mean - upper) / np.maximum(np.abs(mean), 1e-300))
            gap, zeros = _no_number_disagrees(gap, data), np.zeros(len(gap))
            out.append(judge("records: account", text, gap, zeros + 1e-6, zeros, data.bound_time.values[made]))
    return out


def _no_number_disagrees(gap: Array, data: Any) -> Array:
    """Return the gaps with NaN as infinity: a finished run has stored numbers (a diverged one may not have)."""
    return np.where(np.isnan(gap), np.inf, gap) if data.attrs.get("status") == "finished" else gap


def bound_index(data: Any) -> list[int]:
    """Return where the bound times stand among the times."""
    return [int(np.argmin(np.abs(data.time.values - t))) for t in data.bound_time.values]


def c0(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge whether the increments of the reference are standard normal."""
    name, text = "C0 noise", "increments of the coupled reference are N(0, I)"
    needed = ("noise_variance", "noise_variance_se", "noise_mean", "noise_kurtosis", "noise_state_correlation")
    missing = missing_variable(data, name, text, *needed)
    if missing:
        return [missing]
    root = math.sqrt(len(data.replicate))
    error = data.noise_variance_se.values[:, -1].mean() / root
    if not math.isfinite(error):
        return [Verdict(name, text, NOT_APPLICABLE, note="no noise was drawn")]
    scores = [
        ("variance", abs(data.noise_variance.values[:, -1].mean() - 1) / error),
        ("mean", abs(data.noise_mean.values[:, -1].sum()) / root),
        ("fourth moment", abs(data.noise_kurtosis.values[:, -1].mean() - 3) / (math.sqrt(48) * error)),
        ("decay", abs(data.noise_state_correlation.values[:, -1].sum()) / root),
    ]
    end, limits = data.time.values[-1:], normal_limits()
    what = {"decay": "correlation with the position", "fourth moment": "fourth moment 3"}
    return [
        surprise(f"{name}: {k}", f"{text}: {what.get(k, k)}, in standard errors", np.array([v]), end, limits)
        for k, v in scores
    ]


def c0_time(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge whether the reference travels as (3.4) says: the right lam in noise and decay, and the right time."""
    name, text = "C0 time", "E|Zbar_t - Z_0|^2 of the reference against 2 D (1 - e^(-lam t)), in standard errors"
    missing = missing_variable(data, name, text, "reference_travelled", "reference_travelled_se")
    if missing:
        return [missing]
    a = data.attrs
    lam, decay = float(a["lam"]), float(a.get("decay", 1))
    if lam <= 0 or a.get("scheme") == "euler_literal":
        note = "no noise was drawn" if lam <= 0 else "Algorithm 1 as printed does not follow equation (3.4)"
        return [Verdict(name, text, NOT_APPLICABLE, note=note)]
    dim = {"both": int(a["D"]), "u": 1, "theta": int(a["D"]) - 1}[a.get("train", "both")]
    low, high = (dim * v for v in _travel(data, lam, decay))
    found, spread = data.reference_travelled.values.mean(0), data.reference_travelled_se.values
    # Its error is that of the truth, not of what was found: were the distance far too small, so would be its own error.
    share = spread.mean(0) / np.maximum(found, np.finfo(float).tiny) / math.sqrt(len(spread))
    off = np.maximum(np.maximum(low - found, found - high), 0.0)
    later = data.time.values > 0
    if not later.any():
        return [Verdict(name, text, NOT_APPLICABLE, note="no time has passed")]
    # In single precision every step rounds.
    rounding = 1e-3 if a.get("dtype") == "float32" else 0.0
    scale = np.where(later, (share + rounding) * np.where(low > 0, low, 1.0), 1.0)
    return [surprise(name, text, np.where(later, off / scale, 0.0), data.time.values, normal_limits())]


def _travel(data: Any, lam: float, decay: float) -> tuple[Array, Array]:
    """Return the least and the most that E|Zbar_t - Z_0|^2 / D may be: one number but for Euler's steps.

    With x = lam eta, a decay by 1 - x a step lies between e^(-lam t (1 + x / (2 (1 - x)))) and e^(-lam t), and the
    variance between 1 and 1 / (1 - x / 2).
    """
    times = data.time.values
    if not decay:
        return 2 * lam * times, 2 * lam * times
    rate = lam * decay
    x = rate * float(data.eta.values.max()) if data.attrs.get("scheme") == "euler" else 0.0
    if not 0 <= x < 1:
        return np.zeros(len(times)), np.full(len(times), np.inf)
    low = theory.reference_travelled(times, rate)
    high = theory.reference_travelled(times * (1 + x / (2 * (1 - x))), rate, 1 / (1 - x / 2))
    return low / decay, high / decay


def gram_matrix(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge the Gram matrices: on a cloud against a pass without one, and at p0 against independent particles."""
    name, text = "C1 Gram matrix", "relative defect of H r against E <grad psi_i, sum_k r_k grad psi_k>, same particles"
    missing = missing_variable(data, name, text, "gram_defect")
    out = [missing] if missing else []
    if not missing:
        defect = data.gram_defect.values.max(0)
        allowed = np.full(len(defect), 1e-3 if data.attrs.get("dtype") == "float32" else 1e-8)
        out.append(judge(name, text, defect, allowed, np.zeros(len(defect)), data.bound_time.values))
    name, text = "C1 H(p0)", "r' H(p0) r in closed form against the reference's particles, in standard errors"
    missing = missing_variable(data, name, text, "gram_start_score")
    if missing:
        return [*out, missing]
    score = np.abs(data.gram_start_score.values.sum(0)) / math.sqrt(data.sizes["replicate"])
    return [*out, surprise(name, text, score, data.bound_time.values, normal_limits())]


def injective(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge whether the kicks were one-to-one, without which the KL account counts too little."""
    name, text = "C4 injective kicks", "kicks: 0 proved one-to-one, 1 not proved, 2 seen to fold"
    missing = missing_variable(data, name, text, "kick_fault")
    if missing:
        return [missing]
    fault = data.kick_fault.values.max(0)
    note = {
        0.0: "",
        1.0: "the steps are too long to prove it; the KL account is void from then on",
        2.0: "det DT < 0 at a particle: the steps are far too long, and the KL account is void from then on",
    }[float(fault.max())]
    return [surprise(name, text, fault, data.time.values, (0.0, 1.0), note)]


def i5(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge whether the reference is coupled: E|Z - Zbar|^2 is what (I5) expects, up to rounding."""
    name, text = "(I5) coupling", "defect of E|Z - Zbar|^2 against (I5) along the steps, over its rounding error"
    missing = missing_variable(data, name, text, "coupling_defect", "coupled_distance")
    if missing:
        return [missing]
    defect, size = np.abs(data.coupling_defect.values), data.coupled_distance.values
    times = data.time.values
    if clouds and all(c.reference is not None for c in clouds):
        # What was recorded must also be what the stored clouds say.
        last = [float(c.mean(((c.z - c.reference).astype(np.float64) ** 2).sum(1))) for c in clouds]
        stored = np.abs(np.array(last) - size[:, -1])[:, None]
        defect, size = np.hstack([defect, stored]), np.hstack([size, size[:, -1:]])
        times = np.append(times, times[-1])
    tolerance = _rounded_distance(data, size)
    ratio = (defect / tolerance).max(0)
    return [judge(name, text, ratio, np.ones_like(ratio), np.zeros_like(ratio), times)]


def _rounded_distance(data: Any, size: Array) -> Array:
    """Return what rounding may do to E|Z - Zbar|^2 = `size` along the steps of a run.

    A kick is rounded to the grid of its particle's coordinates, which are of size one, by up to u, half the spacing
    of the numbers there (the reference is not kicked, and the same channel leaves both on one grid). Over the steps
    it is nearly the same kick, so that these errors add up: to s = u K in K kicks, of either sign from coordinate to
    coordinate. Together

        E|Z - Zbar + error|^2 - E|Z - Zbar|^2 = 2 mean (Z - Zbar) . error + mean |error|^2,

    of which the first is at most about 4 s sqrt(size / m) by chance, and the second D s^2; beside them stands what one
    pass rounds in its sums, and K roundings of the decay, relative to the size.
    """
    a = data.attrs
    unit = 2.0**-24 if a.get("dtype", "float64") == "float32" else 2.0**-53
    kicks = 2 * (int(a.get("steps", 0)) + 1)
    error = unit * kicks
    relative = (2e-4 if unit > 1e-10 else 1e-8) + 2 * error
    absolute = int(a["D"]) * (error**2 + kicks * (8 * unit) ** 2)
    return relative * size + 4 * error * np.sqrt(size / int(a["m"])) + absolute


def c3(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge whether (I1) integrated along the steps gives the measured predictions."""
    name, text = "C3, identity (I1)", "rms defect of (I1) over its expected error (sampling noise, integration rule)"
    missing = missing_variable(data, name, text, "residual_defect", "residual_defect_se")
    if missing:
        return [missing]
    from scipy.special import chdtri

    count = len(data.replicate)
    defect, error = data.residual_defect.values, data.residual_defect_se.values
    scale = np.maximum(error, 1e-9)
    ratio = np.sqrt(np.mean((defect / scale) ** 2, axis=0))
    # At worst the defect lives in one direction: then its square over the variance is chi-square with one degree.
    limits = tuple(math.sqrt(float(chdtri(count, p)) / count) for p in (DOUBT, SURPRISE))
    return [surprise(name, text, ratio, data.time.values, (limits[0], limits[1]))]


def c4(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge whether lower bounds lie below upper bounds."""
    out = []
    for key, symbol in (("kl", "KL(p_t || p0)"), ("w2", "W2(p_t, p0)"), ("energy", "Q(p_t)")):
        name, text = (
            f"C4 bracket of {key.upper() if key != 'energy' else 'Q'}",
            f"lower bound on {symbol} <= upper bound",
        )
        missing = missing_variable(data, name, text, f"{key}_lower", f"{key}_upper")
        if missing:
            out.append(missing)
            continue
        lower, upper = data[f"{key}_lower"].values, data[f"{key}_upper"].values
        out.append(
            brackets(name, text, lower, upper, safe_error(data, f"{key}_lower", f"{key}_upper"), data.bound_time.values)
        )
    return [*out, *_account_above(data), *_w2_from_kl(data)]


def _account_above(data: Any) -> list[Verdict]:
    name, text = "C4 KL account", "KL account of the steps >= lower bound on KL"
    missing = missing_variable(data, name, text, "kl_account", "kl_lower")
    if missing:
        return [missing]
    mean, spread = replicate_mean(data, "kl_account")
    at = bound_index(data)
    error = spread[at] + safe_error(data, "kl_lower")
    return [brackets(name, text, data.kl_lower.values, mean[at], error, data.bound_time.values)]


def _w2_from_kl(data: Any) -> list[Verdict]:
    name, text = "Talagrand (Lemma 5.4)", "W2 lower bound <= sqrt(2 KL upper bound)"
    missing = missing_variable(data, name, text, "w2_lower", "kl_upper")
    if missing:
        return [missing]
    if float(data.attrs.get("decay", 1)) != 1:
        return [Verdict(name, text, NOT_APPLICABLE, note="it is about the standard Gaussian prior")]
    # A missing number bounds nothing here; that it is missing is said by another line.
    upper = np.where(np.isnan(data.kl_upper.values), np.inf, data.kl_upper.values)
    high, safe = (theory.talagrand(np.maximum(v, 0)) for v in (upper, upper + safe_error(data, "kl_upper")))
    spread = np.zeros_like(safe)
    np.subtract(safe, high, out=spread, where=np.isfinite(safe))
    error = safe_error(data, "w2_lower") + spread
    return [brackets(name, text, data.w2_lower.values, high, error, data.bound_time.values)]


def i4(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge whether the free energy stays below its start, as it does along (3.4)."""
    name, text = "(I4) energy", "Q(p_t) = L + lam KL never exceeds Q(p0) = L(p0)"
    missing, reason = missing_variable(data, name, text, "energy_lower", "loss"), limit_law(data)
    if missing or reason:
        return [missing or Verdict(name, text, NOT_APPLICABLE, note=reason)]
    error = safe_error(data, "energy_lower")
    start = np.full(len(error), float(data.loss.values[:, 0].mean())) + euler_excess(data)
    return [judge(name, text, data.energy_lower.values, start, error, data.bound_time.values)]


def euler_excess(data: Any) -> float:
    """Return lam KL(N(0, v I) || p0), v = 1 / (1 - eta lam / 2): what the law of an Euler scheme is off by at rest."""
    a = data.attrs
    rate = float(a["lam"]) * float(a.get("decay", 1)) * float(data.eta.values.max())
    if a.get("scheme") != "euler" or not 0 < rate < 2:
        return 0.0
    v = 1 / (1 - rate / 2)
    return 0.5 * float(a["lam"]) * int(a["D"]) * (v - 1 - math.log(v))
