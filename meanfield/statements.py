"""The numbered statements of [CCGZ20] judged on a run, and the certificates C1 and C2 that stand in for them.

The hypothesis of Theorem 4.4 asks for an alpha far beyond any run, so its a-priori lines read `not applicable`; what
can be checked is what the proof needs along the way, from measured quantities.
"""

from typing import Any

import numpy as np

from meanfield import readings, theory
from meanfield.cloud import Cloud
from meanfield.verdicts import HOLDS, NOT_APPLICABLE, Verdict, judge, missing_variable, replicate_mean

Array = np.ndarray


def _hypothesis(data: Any) -> str:
    """Return why Theorem 4.4 does not apply to this run, or an empty string."""
    a = data.attrs
    if "ntk_lambda" not in a:
        return "the run is not of a network"
    if float(a.get("largest_input", 1)) > 1 + 1e-12 or float(a.get("largest_label", 1)) > 1 + 1e-12:
        return "Assumption 4.1 fails: inputs or labels are longer than 1"
    if a.get("assumption_4_2_fails"):
        return f"Assumption 4.2 fails: {a['assumption_4_2_fails']}"
    if not float(a["ntk_lambda"]) > float(a.get("ntk_rounding", 0)):
        return "Lambda = 0: inputs repeat or are parallel, and the theorem says nothing"
    if a.get("loss_function", "square") != "square" or a.get("train", "both") != "both":
        return "the theorem is for the square loss with both layers trained"
    if not int(a.get("centred", 1)):
        return "the theorem is about the limit law, this run is a network of width m (centred = false)"
    if float(a["lam"]) <= 0 or float(a.get("decay", 1)) != 1:
        return "the theorem needs lam > 0 and the standard Gaussian prior"
    return ""


def theorem(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge Theorem 4.4: its hypothesis, and its a-priori bounds on loss and KL."""
    a, reason = data.attrs, _hypothesis(data)
    text = "alpha is at least the threshold (4.1), with the explicit radius R"
    if reason:
        return [Verdict("Theorem 4.4, hypothesis", text, NOT_APPLICABLE, note=reason)]
    suprema = tuple(float(g) for g in np.atleast_1d(a["suprema"]))
    n, dim, lam, alpha, low = int(a["n"]), int(a["D"]) - 1, float(a["lam"]), float(a["alpha"]), float(a["ntk_lambda"])
    asked = theory.threshold(low, n, dim, lam, suprema)
    met = alpha >= asked
    positive = Verdict(
        "Assumption 4.3, Lambda > 0", "smallest eigenvalue of the NTK Gram matrix at p0", HOLDS, low, 0.0, low, 0.0
    )
    hypothesis = Verdict(
        "Theorem 4.4, hypothesis (4.1)", text, HOLDS if met else NOT_APPLICABLE, alpha, asked, alpha - asked, None,
        "" if met else "alpha is below it, so the a-priori bounds promise nothing",
    )  # fmt: skip
    return [positive, hypothesis, *_apriori(data, met, (alpha, lam, low, n, dim, theory.common_bound(suprema)))]


def _apriori(data: Any, met: bool, symbols: tuple) -> list[Verdict]:
    alpha, lam, low, n, dim, common = symbols
    loss, error = replicate_mean(data, "loss")
    times = data.time.values
    bound = theory.loss_bound(times, alpha, lam, low, n, dim, common)
    out = [judge("Theorem 4.4, loss", "L(p_t) <= printed a-priori bound (Lemma 5.2)", loss, bound, error, times)]
    if "kl_upper" in data:
        upper, se = data.kl_upper.values, readings.factor(data) * np.nan_to_num(data.kl_upper_se.values)
        bound = np.full(len(upper), theory.kl_bound(alpha, lam, low, n, dim, common))
        text = "KL(p_t || p0) <= printed a-priori bound (Lemma 5.3)"
        out.append(judge("Theorem 4.4, KL", text, upper, bound, se, data.bound_time.values))
    if met:
        return out
    note = "hypothesis (4.1) is not met"
    return [
        Verdict(v.statement, v.description, NOT_APPLICABLE, v.measured, v.bound, v.margin, v.time, note) for v in out
    ]


def lemma_5_1(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge Lemma 5.1 with explicit constants: the smallest eigenvalue within R, and every entry of H."""
    name, text = "Lemma 5.1", "lambda_min(H(p_t)) >= Lambda / 2 wherever W2(p_t, p0) <= R (explicit)"
    reason = _hypothesis(data)
    missing = missing_variable(data, name, text, "w2_upper", "ntk_eigenvalue_min")
    if reason or missing:
        return [missing or Verdict(name, text, NOT_APPLICABLE, note=reason)]
    a = data.attrs
    suprema = tuple(float(g) for g in np.atleast_1d(a["suprema"]))
    n, dim, low = int(a["n"]), int(a["D"]) - 1, float(a["ntk_lambda"])
    radius = theory.radius(low, n, dim, suprema)
    w2 = data.w2_upper.values + readings.factor(data) * np.nan_to_num(data.w2_upper_se.values)
    value, error = replicate_mean(data, "ntk_eigenvalue_min")
    inside = w2 <= radius
    out = [
        judge(
            name, text, np.where(inside, value, np.nan), np.full(len(value), low / 2), error, data.bound_time.values,
            lower=True, note=f"R = {radius:.3g}; W2 is below it at {int(inside.sum())} of {len(inside)} bound times",
        )
    ]  # fmt: skip
    if "ntk_change_max" in data:
        change, spread = replicate_mean(data, "ntk_change_max")
        ac, bc = theory.kernel_constants(suprema)
        text = "max |H_ij(p_t) - H_ij(p0)| <= Ac W^2 + Bc W, W the upper bound on W2"
        bound = ac * w2**2 + bc * w2
        out.append(judge("Lemma 5.1, entries", text, change, bound, spread, data.bound_time.values))
    return out


def c1(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge C1: the measured smallest eigenvalue keeps half of its start."""
    name, text = "C1", "measured lambda_min(H(p_t)) >= Lambda / 2"
    missing = missing_variable(data, name, text, "ntk_eigenvalue_min")
    if missing:
        return [missing]
    low = float(data.attrs["ntk_lambda"])
    if not low > float(data.attrs.get("ntk_rounding", 0)):
        return [Verdict(name, text, NOT_APPLICABLE, note="Lambda = 0 up to rounding")]
    value, error = replicate_mean(data, "ntk_eigenvalue_min")
    return [judge(name, text, value, np.full(len(value), low / 2), error, data.bound_time.values, lower=True)]


def c2(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge C2: the loss stays below the certificate from measured quantities."""
    name, text = "C2 (replaces Lemma 5.2)", "L(p_t) <= certificate from the measured lambda_min(H) and e"
    certificate = readings.loss_certificate(data)
    if certificate is None or data.attrs.get("loss_function", "square") != "square":
        note = "needs the limit law, the square loss, and lambda_min(H) and e recorded"
        return [Verdict(name, text, NOT_APPLICABLE, note=note)]
    loss, error = replicate_mean(data, "loss")
    return [judge(name, text, loss, certificate, error, data.time.values)]
