"""Checks that the program makes on itself from its records: Gram matrices, C3, C4, (I4), and that records agree.

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


def gram_matrix(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge the Gram matrices: on a cloud against a pass without one, and at p0 against independent particles."""
    name, text = "C1 Gram matrix", "relative defect of H r against E <grad psi_i, sum_k r_k grad psi_k>, same particles"
    missing = missing_variable(data, name, text, "gram_defect")
    out = [missing] if missing else []
    if not missing:
        defect = data.gram_defect.values.max(0)
        allowed = np.full(len(defect), 1e-3 if data.attrs.get("dtype") == "float32" else 1e-8)
        out.append(judge(name, text, defect, allowed, np.zeros(len(defect)), data.bound_time.values))
    name, text = (
        "C1 H(p0)",
        "v' H(p0) v in closed form against the reference's particles, in standard errors; v = r at p0",
    )
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
