"""The numbered statements of [CCGZ20] judged on a run, and the certificates C1 and C2 that stand in for them.

The hypothesis of Theorem 4.4 asks for an alpha far beyond any run, so its a-priori lines read `not applicable`; what
can be checked is what the proof needs along the way, from measured quantities.
"""

from typing import Any

import numpy as np

from meanfield import readings, theory
from meanfield.cloud import Cloud
from meanfield.verdicts import (
    BEYOND,
    HOLDS,
    NOT_APPLICABLE,
    Verdict,
    decide,
    judge,
    missing_variable,
    replicate_mean,
    safe_error,
)

Array = np.ndarray


def limit_law(data: Any) -> str:
    """Return why a run does not follow equation (3.4), whatever its network, or an empty string."""
    a = data.attrs
    if a.get("scheme") == "euler_literal":
        return "Algorithm 1 as printed does not follow equation (3.4)"
    if int(a.get("batch", 0)):
        return "minibatches add noise of their own, which equation (3.4) has not"
    if not int(a.get("centred", 1)):
        return "the theorem is about the limit law, this run is a network of width m (centred = false)"
    return ""


def _positive(data: Any) -> bool:
    return float(data.attrs["ntk_lambda"]) > float(data.attrs.get("ntk_rounding", 0))


def _hypothesis(data: Any) -> str:
    """Return why Theorem 4.4 does not apply to this run, or an empty string."""
    a = data.attrs
    if "ntk_lambda" not in a:
        return "the run is not of a network"
    if float(a.get("largest_input", 1)) > 1 + 1e-12 or float(a.get("largest_label", 1)) > 1 + 1e-12:
        return "Assumption 4.1 fails: inputs or labels are longer than 1"
    if a.get("assumption_4_2_fails"):
        return f"Assumption 4.2 fails: {a['assumption_4_2_fails']}"
    if not _positive(data):
        return "Lambda = 0: inputs repeat or are parallel, and the theorem says nothing"
    if a.get("loss_function", "square") != "square" or a.get("train", "both") != "both":
        return "the theorem is for the square loss with both layers trained"
    if float(a["lam"]) <= 0 or float(a.get("decay", 1)) != 1:
        return "the theorem needs lam > 0 and the standard Gaussian prior"
    return limit_law(data)


def theorem(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge Theorem 4.4: its hypothesis, and its a-priori bounds on loss and KL."""
    a, reason = data.attrs, _hypothesis(data)
    out = []
    if "ntk_lambda" in a:
        low, positive = float(a["ntk_lambda"]), _positive(data)
        text = "smallest eigenvalue of the NTK Gram matrix at p0"
        out.append(
            Verdict("Assumption 4.3, Lambda > 0", text, HOLDS if positive else NOT_APPLICABLE, low, 0.0, low, 0.0,
                    "" if positive else "zero up to rounding")
        )  # fmt: skip
    text = "alpha is at least the threshold (4.1), with the explicit radius R"
    if reason:
        return [*out, Verdict("Theorem 4.4, hypothesis (4.1)", text, NOT_APPLICABLE, note=reason)]
    suprema = tuple(float(g) for g in np.atleast_1d(a["suprema"]))
    n, dim, lam, alpha = int(a["n"]), int(a["D"]) - 1, float(a["lam"]), float(a["alpha"])
    asked = theory.threshold(low, n, dim, lam, suprema)
    met = alpha >= asked
    hypothesis = Verdict(
        "Theorem 4.4, hypothesis (4.1)", text, HOLDS if met else NOT_APPLICABLE, alpha, asked, alpha - asked, None,
        "" if met else "alpha is below it, so the a-priori bounds promise nothing",
    )  # fmt: skip
    return [*out, hypothesis, *_apriori(data, met, (alpha, lam, low, n, dim, theory.common_bound(suprema)))]


def _apriori(data: Any, met: bool, symbols: tuple) -> list[Verdict]:
    alpha, lam, low, n, dim, common = symbols
    times = data.time.values
    out = []
    if "loss" in data:
        text = "L(p_t) <= printed a-priori bound (Lemma 5.2)"
        bound = theory.loss_bound(times, alpha, lam, low, n, dim, common)
        out.append(_judge_loss(data, "Theorem 4.4, loss (Lemma 5.2)", text, bound, slice(None)))
    if "kl_upper" in data and "kl_lower" in data:
        upper, lower = data.kl_upper.values, data.kl_lower.values
        bound = np.full(len(upper), theory.kl_bound(alpha, lam, low, n, dim, common))
        text = "KL(p_t || p0) <= printed a-priori bound (Lemma 5.3)"
        sure, possible = bound - upper - safe_error(data, "kl_upper"), bound - lower + safe_error(data, "kl_lower")
        name, at = "Theorem 4.4, KL (Lemma 5.3)", data.bound_time.values
        out.append(decide(name, text, upper, bound, at, bound - upper, sure, possible))
    if met:
        return out
    note = "hypothesis (4.1) is not met"
    return [
        Verdict(v.statement, v.description, NOT_APPLICABLE, v.measured, v.bound, v.margin, v.time, note) for v in out
    ]


def _judge_loss(data: Any, name: str, text: str, bound: Array, part: slice) -> Verdict:
    """Judge loss <= bound; the plain loss of finitely many particles is biased up, so the unbiased one must violate."""
    loss, error = replicate_mean(data, "loss")
    low = data.loss_unbiased.values if "loss_unbiased" in data else loss
    room = (bound - loss)[part], (bound - loss - error)[part], (bound - low + BEYOND * error)[part]
    return decide(name, text, loss[part], bound[part], data.time.values[part], *room)


def lemma_5_1(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge Lemma 5.1 with explicit constants: the smallest eigenvalue within R, and every entry of H."""
    name, text = "Lemma 5.1", "lambda_min(H(p_t)) >= Lambda / 2 wherever W2(p_t, p0) <= R (explicit)"
    reason = _hypothesis(data)
    missing = missing_variable(data, name, text, "w2_upper", "ntk_eigenvalue_min")
    if reason or missing:
        return [missing or Verdict(name, text, NOT_APPLICABLE, note=reason)]
    a = data.attrs
    suprema = tuple(float(g) for g in np.atleast_1d(a["suprema"]))
    radius = theory.radius(float(a["ntk_lambda"]), int(a["n"]), int(a["D"]) - 1, suprema)
    doubt = safe_error(data, "w2_upper")
    w2 = data.w2_upper.values + np.where(np.isinf(doubt), 0.0, doubt)
    inside = w2 <= radius
    note = f"R = {radius:.3g}; W2 is below it at {int(inside.sum())} of {len(inside)} bound times"
    out = [_judge_eigenvalue(data, name, text, inside, note)]
    if "ntk_change_max" in data:
        change, spread = replicate_mean(data, "ntk_change_max")
        ac, bc = theory.kernel_constants(suprema)
        text = "max |H_ij(p_t) - H_ij(p0)| <= Ac W^2 + Bc W, W the upper bound on W2"
        bound = ac * w2**2 + bc * w2
        spread = np.where(np.isinf(doubt), np.inf, spread)
        out.append(judge("Lemma 5.1, entries", text, change, bound, spread, data.bound_time.values))
    return out


def _judge_eigenvalue(data: Any, name: str, text: str, where: Array, note: str = "") -> Verdict:
    """Judge lambda_min(H) >= Lambda / 2: it holds by an estimate biased down, is violated by one biased up."""
    value, error = replicate_mean(data, "ntk_eigenvalue_min")
    half = np.where(where, float(data.attrs["ntk_lambda"]) / 2, np.nan)
    possible = np.where(where, np.inf, np.nan)
    if "ntk_eigenvalue_min_upper" in data:
        above = data.ntk_eigenvalue_min_upper.values
        above = above + BEYOND * safe_error(data, "ntk_eigenvalue_min_upper")
        # A Gram matrix has no negative eigenvalue: there the error is what is wrong.
        possible = np.where(above < 0, np.where(where, np.inf, np.nan), above - half)
    times = data.bound_time.values
    return decide(name, text, value, half, times, value - half, value - error - half, possible, note)


def c1(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge C1: the measured smallest eigenvalue keeps half of its start."""
    name, text = "C1", "measured lambda_min(H(p_t)) >= Lambda / 2"
    missing = missing_variable(data, name, text, "ntk_eigenvalue_min")
    if missing:
        return [missing]
    if not _positive(data):
        return [Verdict(name, text, NOT_APPLICABLE, note="Lambda = 0 up to rounding")]
    return [_judge_eigenvalue(data, name, text, np.ones(data.sizes["bound_time"], bool))]


def c2(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge C2: the loss stays below the certificate from measured quantities (at the start both are one number)."""
    name, text = "C2 (replaces Lemma 5.2)", "L(p_t) <= certificate from the measured lambda_min(H) and e"
    certificate, reason = readings.loss_certificate(data), limit_law(data)
    if certificate is None or reason:
        note = reason or "needs the limit law, the square loss, and lambda_min(H) and e recorded"
        return [Verdict(name, text, NOT_APPLICABLE, note=note)]
    return [_judge_loss(data, name, text, certificate, slice(1, None) if len(certificate) > 1 else slice(None))]


def exit_time(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge whether the law stays in the ball of Lemma 5.1: t*, the time of its exit, is beyond the end of the run."""
    name, text = "Theorem 4.4, exit time t*", "W2(p_t, p0) <= R (explicit) for all t, so that Lemmas 5.2 and 5.3 apply"
    missing, reason = missing_variable(data, name, text, "w2_upper", "w2_lower"), _hypothesis(data)
    if missing or reason:
        return [missing or Verdict(name, text, NOT_APPLICABLE, note=reason)]
    a, times = data.attrs, data.bound_time.values
    symbols = float(a["ntk_lambda"]), int(a["n"]), int(a["D"]) - 1
    suprema = tuple(float(g) for g in np.atleast_1d(a["suprema"]))
    radius = theory.radius(*symbols, suprema)
    upper, doubt = data.w2_upper.values, safe_error(data, "w2_upper")
    lower = np.nan_to_num(data.w2_lower.values - safe_error(data, "w2_lower"), nan=-np.inf)
    room = radius - upper
    verdict = decide(name, text, upper, np.full(len(times), radius), times, room, room - doubt, radius - lower)
    if verdict.verdict == HOLDS or float(a["alpha"]) >= theory.threshold(*symbols, float(a["lam"]), suprema):
        return [verdict]
    first, last = theory.exit_time(times, lower, upper + doubt, radius)
    note = f"alpha is below (4.1); t* lies between {first:.3g} and {last:.3g}, as far as the bounds tell"
    return [Verdict(name, text, NOT_APPLICABLE, float(upper.max()), radius, float(room.min()), note=note)]
