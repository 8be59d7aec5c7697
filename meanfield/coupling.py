"""Checks of the coupled reference: its noise and its time (C0), and that it shares its noise with the particles (I5).

Everything else is measured against the reference, so that a wrong noise level or a wrong time cancels there.
"""

import math
from typing import Any

import numpy as np

from meanfield.cloud import Cloud
from meanfield.verdicts import NOT_APPLICABLE, Verdict, judge, missing_variable, normal_limits, surprise

Array = np.ndarray


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


def c0_reference(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge whether the reference is the process of (3.4) without loss: its law, how far it travels, what it keeps."""
    texts = {
        "C0 law": "distance of the reference's variance s^2 from what lam and the steps make of it",
        "C0 time": "E|Zbar_t - Z_0|^2 of the reference against 2 D (1 - e^(-lam t)), in standard errors",
        "C0 drift": "what the reference keeps of its start, Zbar . Z_0 / |Z_0|^2, against e^(-lam t), in errors",
    }
    judges = {"C0 law": _law, "C0 time": _travel, "C0 drift": _overlap}
    needed = {"C0 law": ("reference_variance",), "C0 time": ("reference_travelled", "reference_travelled_se"),
              "C0 drift": ("reference_overlap", "reference_overlap_se")}  # fmt: skip
    lam, scheme = float(data.attrs["lam"]), data.attrs.get("scheme")
    note = "no noise was drawn" if lam <= 0 else ""
    note = note or ("Algorithm 1 as printed does not follow equation (3.4)" if scheme == "euler_literal" else "")
    note = note or ("" if (data.time.values > 0).any() else "no time has passed")
    out = []
    for name, text in texts.items():
        missing = missing_variable(data, name, text, *needed[name])
        if missing or note:
            out.append(missing or Verdict(name, text, NOT_APPLICABLE, note=note))
            continue
        score, limits = judges[name](data)
        out.append(surprise(name, text, score, data.time.values, limits))
    return out


def _free(data: Any) -> tuple[Array, Array, Array, Array]:
    """Return the least and the most that the reference may keep of its start, and that its variance over p0's may be.

    Of equation (3.4) they are e^(-lam t) and 1. With x = lam eta at most, Euler's steps keep between
    e^(-lam t (1 + x / (2 (1 - x)))) and that, and have a variance between 1 and 1 / (1 - x / 2). Without a prior
    nothing decays, and the variance grows by 2 lam t. Single precision rounds a decay by 2^-24 a step.
    """
    a, times = data.attrs, data.time.values
    lam, decay = float(a["lam"]), float(a.get("decay", 1))
    rounding = int(a.get("steps", 0)) * (2.0**-24 if a.get("dtype") == "float32" else 2.0**-53)
    one = np.ones(len(times))
    if not decay:
        grown = 1 + 2 * lam * times
        return one - rounding, one + rounding, grown - rounding, grown + rounding
    x = min(lam * decay * float(data.eta.values.max()) if a.get("scheme") == "euler" else 0.0, 0.999)
    high = np.exp(-lam * decay * times)
    low = np.exp(-lam * decay * times * (1 + x / (2 * (1 - x))))
    return low - rounding, high + rounding, one - rounding, one * (1 / (1 - x / 2) + rounding)


def _outside(found: Array, low: Array, high: Array) -> Array:
    return np.maximum(np.maximum(low - found, found - high), 0.0)


def _law(data: Any) -> tuple[Array, tuple[float, float]]:
    """Return how far s^2, which the scheme computes exactly, lies outside, and what rounding may do."""
    _, _, low, high = _free(data)
    found = data.reference_variance.values * (float(data.attrs.get("decay", 1)) or 1.0)
    return _outside(found, low, high).max(0), (1e-9, 1e-9)


def _trained(data: Any) -> int:
    return {"both": int(data.attrs["D"]), "u": 1, "theta": int(data.attrs["D"]) - 1}[data.attrs.get("train", "both")]


def _travel(data: Any) -> tuple[Array, tuple[float, float]]:
    """Return the distance in standard errors of the truth: were it found far too small, so would be its own error."""
    kept_low, kept_high, low, high = _free(data)
    unit = _trained(data) / (float(data.attrs.get("decay", 1)) or 1.0)
    least, most = unit * (low + 1 - 2 * kept_high), unit * (high + 1 - 2 * kept_low)
    found, spread = data.reference_travelled.values, data.reference_travelled_se.values
    share = (spread / np.maximum(found, np.finfo(float).tiny)).mean(0) / math.sqrt(len(found))
    later = data.time.values > 0
    scale = np.where(later, np.maximum(share * most, np.finfo(float).tiny), 1.0)
    return np.where(later, _outside(found.mean(0), least, most) / scale, 0.0), normal_limits()


def _overlap(data: Any) -> tuple[Array, tuple[float, float]]:
    """Return how many standard errors what is kept lies outside."""
    kept_low, kept_high, _, _ = _free(data)
    spread = data.reference_overlap_se.values.mean(0) / math.sqrt(data.sizes["replicate"])
    scale = np.where(data.time.values > 0, np.maximum(spread, 1e-12), np.inf)
    return _outside(data.reference_overlap.values.mean(0), kept_low, kept_high) / scale, normal_limits()


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
