"""Identities (I2), (I3) and (I4) held against what a run recorded, by differences in time.

Each is a rate; integrated over the records it must give the change that was measured. What the rule of integration
may be off by is bounded (`integrals.integral`), what finitely many particles do is estimated from replicates. They
are checks of the program that do not use its own integrals along the steps: a gradient with a wrong factor breaks
them, though it agrees with itself. Derived in the documentation.
"""

import math
from typing import Any

import numpy as np

from meanfield import identities, integrals
from meanfield.certificates import bound_index, euler_excess
from meanfield.cloud import Cloud
from meanfield.estimate import student_factor
from meanfield.statements import limit_law
from meanfield.verdicts import NOT_APPLICABLE, Verdict, brackets, missing_variable, safe_error

Array = np.ndarray


def jackknife(shares: Array) -> tuple[Array, Array]:
    """Return mean and standard error of a statistic of pairs of replicates, from the share of each in its pairs.

    Without replicate a the mean is (R U - 2 U_a) / (R - 2), U the mean of the shares U_a. Infinite for fewer than
    three.

    Parameters
    ----------
    shares : ndarray, shape (R, ...)
    """
    count = len(shares)
    mean = shares.mean(0)
    if count < 3:
        return mean, np.full(mean.shape, np.inf)
    square = ((shares - mean) ** 2).sum(0)
    return mean, 2 * np.sqrt((count - 1) / count * square) / (count - 2)


def safe_jackknife(shares: Array) -> tuple[Array, Array]:
    """Return the mean over replicates (R, K) of a running sum, and c standard errors of it, shape (K,).

    The error is the larger of the jackknife's at that time and the root of the sum of squares of its increments'
    errors so far: the noise of different steps is independent, and few replicates' spread at one time is small by
    chance.
    """
    mean, error = jackknife(shares)
    steps = jackknife(np.diff(shares, axis=1))[1]
    running = np.sqrt(np.concatenate([[0.0], np.cumsum(steps**2)]))
    return mean, student_factor(len(shares)) * np.maximum(error, running) if len(shares) > 2 else error


def _reason(data: Any) -> str:
    """Return why (I2) to (I4) are not about a run, or an empty string."""
    a = data.attrs
    if a.get("loss_function", "square") != "square":
        return "the identity is that of the square loss"
    return limit_law(data)


def _shares(data: Any) -> tuple[Array, Array, Array]:
    """Return each replicate's share of the unbiased loss, of B and of S, arrays of shape (R, K)."""
    r = data.prediction.values - data.label.values
    rest = (r.sum(0) - r) / (len(r) - 1)
    return (r * rest).mean(-1), data.drift_square.values, data.entropy_input.values


def _not_judged(data: Any, name: str, text: str, *needed: str) -> Verdict | None:
    missing = missing_variable(data, name, text, *needed)
    if missing:
        return missing
    reason = _reason(data)
    if reason:
        return Verdict(name, text, NOT_APPLICABLE, note=reason)
    if data.sizes["time"] < 2:
        return Verdict(name, text, NOT_APPLICABLE, note="one record has no change")
    return None


def i2(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge (I2): the loss changes by the integral of -B + lam S."""
    name, text = "(I2) loss", "|L(t) - L(0) - int_0^t (-B + lam S)| <= what the rule of integration may be off by"
    verdict = _not_judged(data, name, text, "prediction", "label", "drift_square", "entropy_input")
    if verdict:
        return [verdict]
    loss, b, s = _shares(data)
    times, lam = data.time.values, float(data.attrs["lam"])
    rate = identities.loss_rate(b, s, lam)
    defect, error = safe_jackknife(loss - loss[:, :1] - integrals.integral(times, rate)[0])
    slack = integrals.integral(times, rate.mean(0))[1] + _rounding(data, loss)
    fall = max(float(np.abs(loss.mean(0) - loss[:, 0].mean()).max()), np.finfo(float).tiny)
    doubt = float(np.max(np.where(np.isinf(error), 0.0, error) + slack))
    note = f"resolved to {100 * doubt / fall:.2g} % of the loss's change"
    note = note if np.isfinite(error).all() else ""
    later = slice(1, None)  # at the start both sides are one number
    return [brackets(name, text, np.abs(defect)[later], slack[later], error[later], times[later], note)]


def _rounding(data: Any, loss: Array) -> Array:
    """Return what rounding may do to the loss, (2 / n) r . df: that of means, and that of every kick (`coupling`)."""
    a = data.attrs
    eps = 2.0**-23 if a.get("dtype") == "float32" else 2.0**-52
    steps, slope = int(a.get("steps", 0)) + 1, math.sqrt(1 + float(a.get("largest_input", 1)) ** 2)
    df = float(a["alpha"]) * eps * (8 + steps * slope / math.sqrt(int(a["m"])))
    return 2 * np.sqrt(np.maximum(loss.mean(0), 0.0)) * df + df * df


def _bounded(data: Any, *names: str) -> tuple[Array, Array]:
    """Return times of bounds and where they stand among the records."""
    return data.bound_time.values, np.array(bound_index(data))


def i3(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge (I3): between any two bounds KL grows by no more than its source, less what log-Sobolev takes."""
    name = "(I3) entropy"
    text = "KL lower(t) <= e^(-2 lam (t-s)) KL upper(s) + int_s^t e^(-2 lam (t-q)) S(q) dq for all s < t"
    needed = ("entropy_input", "kl_lower", "kl_upper")
    verdict = _not_judged(data, name, text, *needed)
    if verdict:
        return [verdict]
    lam, rate = float(data.attrs["lam"]), float(data.attrs["lam"]) * float(data.attrs.get("decay", 1))
    if lam <= 0 or rate <= 0:
        return [Verdict(name, text, NOT_APPLICABLE, note="it needs lam > 0 and a prior")]
    made, slack = integrals.entropy_bound(data.time.values, data.entropy_input.values, rate)
    return [_over_pairs(data, name, text, "kl", made, slack.mean(0), rate)]


def _over_pairs(data: Any, name: str, text: str, key: str, made: Array, slack: Array, rate: float) -> Verdict:
    """Judge lower(t) <= kept upper(s) + made(t) - kept made(s), kept = e^(-2 rate (t - s)), at the worst s for each t.

    `made` (R, K) is each replicate's share of a running integral, `slack` (K,) what it may be off by.
    """
    times, at = _bounded(data)
    lower, upper = data[f"{key}_lower"].values, data[f"{key}_upper"].values
    low_error, high_error = safe_error(data, f"{key}_lower"), safe_error(data, f"{key}_upper")
    excess = euler_excess(data) / (float(data.attrs["lam"]) if key == "kl" else 1.0)
    measured, bound, doubt = lower.copy(), np.full(len(times), np.inf), np.zeros(len(times))
    for late in range(1, len(times)):
        room = np.inf
        for early in range(late):
            kept = math.exp(-2 * rate * (times[late] - times[early]))
            between = made[:, at[early] : at[late] + 1] - kept * made[:, at[early], None]
            mean, spread = safe_jackknife(between)
            allowed = kept * upper[early] + mean[-1] + slack[at[late]] - kept * slack[at[early]] + excess
            error = low_error[late] + kept * high_error[early] + spread[-1]
            if allowed + error - lower[late] < room or not np.isfinite(bound[late]):
                room, bound[late], doubt[late] = allowed + error - lower[late], allowed, error
    return brackets(name, text, measured[1:], bound[1:], doubt[1:], times[1:])


def i4(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge (I4): between any two bounds the free energy falls by at least the integral of (B - lam S)^2 / B."""
    name = "(I4) dissipation"
    text = "Q lower(t) <= Q upper(s) - int_s^t (B - lam S)^2 / B for all s < t"
    verdict = _not_judged(data, name, text, "drift_square", "entropy_input", "energy_lower", "energy_upper")
    if verdict:
        return [verdict]
    lam, count = float(data.attrs["lam"]), int(data.sizes["replicate"])
    b, s = data.drift_square.values, data.entropy_input.values
    factor = student_factor(count) if count > 2 else math.inf
    (work, work_error), (fall, fall_error) = jackknife(b), jackknife(b - lam * s)
    if not math.isfinite(factor):
        return [Verdict(name, text, NOT_APPLICABLE, note="the error of B and S needs three replicates")]
    # The rate with its errors to the safe side, the smaller of two neighbours on each interval.
    fall = np.maximum(np.abs(fall) - factor * fall_error, 0.0)
    work = np.maximum(work, 0.0) + factor * work_error
    least = np.where(work > 0, fall**2 / np.where(work > 0, work, 1.0), 0.0)
    pieces = np.diff(data.time.values) * np.minimum(least[1:], least[:-1])
    lost = -np.concatenate([[0.0], np.cumsum(pieces)])
    made = np.broadcast_to(lost, b.shape)
    return [_over_pairs(data, name, text, "energy", made, np.zeros(len(lost)), 0.0)]
