"""What a run says of the minimiser of Q: (5.2) to (5.5), C5, and the error on new data of Theorem 4.5 of [CCGZ20].

A run does not know min Q, but its free energy lies above, and the dual of Gibbs below.
"""

from typing import Any, NamedTuple

import numpy as np

from meanfield import theory
from meanfield.certificates import bound_index, euler_excess
from meanfield.cloud import Cloud
from meanfield.estimate import student_factor
from meanfield.statements import limit_law
from meanfield.verdicts import (
    BEYOND,
    HOLDS,
    NOT_APPLICABLE,
    VIOLATED,
    Verdict,
    brackets,
    judge,
    missing_variable,
    safe_error,
)

Array = np.ndarray
# The probability with which the bound of Theorem 4.5 may fail.
DELTA = 0.05
# The longest step, in units of 1 / lam, after which a law at rest is taken for that of the equation.
LONGEST = 0.15
# What the distance from the fixed point is read off.
GAP = ("gibbs_dual", "gibbs_energy", "gibbs_prediction", "energy_lower", "energy_upper", "prediction", "label")


def energy(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge (5.2) to (5.5) without a teacher: the run has shown that min Q is below what frozen features reach."""
    name = "(5.2) to (5.5)"
    text = "min Q <= (lam / (2 alpha^2)) y' (K2 + n lam / (2 alpha^2))^-1 y, which bounds L(p*) and lam KL(p* || p0)"
    missing, reason = missing_variable(data, name, text, "energy_upper"), limit_law(data)
    if missing or reason or "frozen_energy" not in data.attrs:
        note = reason or "it needs the square loss, lam > 0 and the standard Gaussian prior"
        return [missing or Verdict(name, text, NOT_APPLICABLE, note=note)]
    bound = float(data.attrs["frozen_energy"])
    energy = data.energy_upper.values + safe_error(data, "energy_upper")
    best = int(np.nanargmin(np.where(np.isfinite(energy), energy, np.inf)))
    room, time = bound - float(energy[best]), float(data.bound_time.values[best])
    if room < 0 and "gibbs_dual" in data:
        dual, error = _dual(data)
        if (dual - BEYOND * error > bound).any():
            return [Verdict(name, text, VIOLATED, float((dual - BEYOND * error).max()), bound, room, time, "by C5")]
    if room < 0 or not np.isfinite(energy[best]):
        note = "Q(p_t) has not come down to it, so that the run says nothing of the minimiser"
        return [Verdict(name, text, NOT_APPLICABLE, float(data.energy_upper.values[best]), bound, None, time, note)]
    return [Verdict(name, text, HOLDS, float(data.energy_upper.values[best]), bound, room, time)]


def _dual(data: Any) -> tuple[Array, Array]:
    """Return the recorded values of the dual of Gibbs with their safe errors."""
    return data.gibbs_dual.values, safe_error(data, "gibbs_dual")


class Gap(NamedTuple):
    """How far a run is from the fixed point p* at its bound times, errors on the safe side; arrays of shape (B,).

    `energy_lower` <= Q(p_t) - Q(p*) <= `energy_upper`, and `kl_lower` <= KL(p_t || p*) <= `kl_upper` in nats.
    """

    times: Array
    energy_lower: Array
    energy_upper: Array
    kl_lower: Array
    kl_upper: Array


def gap(data: Any) -> Gap:
    """Return the duality gap of a run's records: gibbs_dual, _energy, _prediction, both sides of Q, predictions.

    With D the largest of the recorded D(c) <= Q* and Q+ the least known upper bound on Q*,

        Q-(p_t) - Q+ <= Q(p_t) - Q* <= min_{s <= t} Q+(p_s) - D,     Q(p_t) - Q* = |f_t - f*|^2 / n + lam KL(p_t || p*),

    since Q falls. The outputs f* lie within sqrt(n (Q+ - D)) of those that belong to D, which bounds |f_t - f*| from
    both sides, and with it KL.
    """
    lam = float(data.attrs["lam"])
    low = data.energy_lower.values - safe_error(data, "energy_lower")
    high = data.energy_upper.values + safe_error(data, "energy_upper")
    high = np.minimum.accumulate(np.where(np.isnan(high), np.inf, high)) + euler_excess(data)
    least = min(float(high[-1]), _least(data))
    dual, best = _best_dual(data)
    dual -= float(_dual(data)[1][best])
    off = data.prediction.values[:, bound_index(data)] - data.gibbs_prediction.values[best]
    away, doubt = np.sqrt((off.mean(0) ** 2).mean(-1)), _spread(off) + np.sqrt(max(least - dual, 0.0))
    kl_lower = np.maximum(low - least - (away + doubt) ** 2, 0.0) / lam
    kl_upper = (high - dual - np.maximum(away - doubt, 0.0) ** 2) / lam
    return Gap(data.bound_time.values, np.maximum(low - least, 0.0), high - dual, kl_lower, kl_upper)


def _least(data: Any) -> float:
    """Return the least upper bound on min Q that does not come from the run's own law."""
    others = data.gibbs_energy.values + safe_error(data, "gibbs_energy")
    return min(float(data.attrs.get("frozen_energy", np.inf)), float(np.nanmin(others)))


def _best_dual(data: Any) -> tuple[float, int]:
    """Return the recorded D that is largest after its own margin, and where it stands."""
    dual, error = _dual(data)
    known = np.where(np.isfinite(error) & ~np.isnan(dual), dual - error, -np.inf)
    best = int(np.argmax(known)) if np.isfinite(known).any() else int(np.nanargmax(dual))
    return float(dual[best]), best


def _spread(off: Array) -> Array:
    """Return c standard errors of the rms over samples of a mean over replicates; off has shape (R, B, n)."""
    count = len(off)
    if count < 2:
        return np.full(off.shape[1], np.inf)
    return student_factor(count) * np.sqrt((off.var(0, ddof=1) / count).mean(-1))


def c5(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge C5: the best dual of Gibbs lies below the free energy at all times, and how far off the fixed point is."""
    name, text = "C5 dual of Gibbs", "max over s of D(c_s) <= min Q <= Q upper(p_t)"
    missing = missing_variable(data, name, text, "gibbs_dual", "energy_upper")
    reason = limit_law(data)
    if missing or reason:
        return [missing or Verdict(name, text, NOT_APPLICABLE, note=reason)]
    dual, best = _best_dual(data)
    lower, upper = np.full(data.sizes["bound_time"], dual), data.energy_upper.values
    doubt = _dual(data)[1][best] + safe_error(data, "energy_upper")
    return [brackets(name, text, lower, upper, doubt, data.bound_time.values, _distance(data))]


def _distance(data: Any) -> str:
    """Return in words how far the run ended from the fixed point, or an empty string where that is not known."""
    if any(name not in data for name in GAP):
        return ""
    found = gap(data)
    if not np.isfinite(found.kl_upper[-1]):
        return ""
    energy, kl = ((low[-1], high[-1]) for low, high in ((found.energy_lower, found.energy_upper),
                                                         (found.kl_lower, found.kl_upper)))  # fmt: skip
    return (
        f"at t = {found.times[-1]:.3g}, errors on the safe side: Q(p_t) - min Q in [{energy[0]:.3g}, {energy[1]:.3g}], "
        f"KL(p_t || p*) in [{kl[0]:.3g}, {kl[1]:.3g}]"
    )


def relaxation(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge whether the free energy has come down as fast as it must: no run stays away from the fixed point.

    dQ/dt = -lam^2 I(p_t | p_{c_t}) <= -2 lam^2 a_t KL(p_t || p_{c_t}) = -2 lam a_t (Q(p_t) - D(c_t)), a_t the
    log-Sobolev constant of p_{c_t} [NitandaWuSuzuki22].
    """
    name, text = "C5 relaxation", "Q lower(t) - min Q <= e^(-2 lam int_s^t a) (Q upper(s) - D), a of e^(c_s . psi) p0"
    missing = missing_variable(data, name, text, *GAP)
    reason = limit_law(data) or _no_log_sobolev(data)
    if missing or reason:
        return [missing or Verdict(name, text, NOT_APPLICABLE, note=reason)]
    times, at, a = data.time.values, bound_index(data), _log_sobolev(data)
    spent = (
        2 * float(data.attrs["lam"]) * np.concatenate([[0.0], np.cumsum(np.diff(times) * np.minimum(a[1:], a[:-1]))])
    )
    known = gap(data)
    # What is left at t of each earlier gap; its errors are on the safe side already.
    left = np.exp(-(spent[at][:, None] - spent[at])) * known.energy_upper
    allowed = np.where(np.arange(len(at)) < np.arange(len(at))[:, None], left, np.inf).min(1) + euler_excess(data)
    lower, error = data.energy_lower.values - _least(data), safe_error(data, "energy_lower")
    note = f"int 2 lam a = {spent[-1]:.3g}"
    if not len(at) > 1:
        return [Verdict(name, text, NOT_APPLICABLE, note="it needs two bound times")]
    later = slice(1, None)
    return [brackets(name, text, lower[later], allowed[later], error[later], known.times[later], note)]


def _no_log_sobolev(data: Any) -> str:
    """Return why the log-Sobolev constant of the laws p_c is not known for a run, or an empty string."""
    a = data.attrs
    if not np.isfinite(np.atleast_1d(a.get("suprema", np.inf))[:2]).all():
        return "h or its slope is not bounded"
    if a.get("train", "both") != "both" or float(a.get("decay", 1)) != 1:
        return "it is about both layers trained and the standard Gaussian prior"
    if float(a["lam"]) * float(data.eta.values.max()) > LONGEST:
        return f"steps are longer than {LONGEST:g} / lam: the law they end at is not that of the equation"
    return ""


def _log_sobolev(data: Any) -> Array:
    """Return a_t at every time, for coefficients as large as the errors of the residuals allow."""
    a, r = data.attrs, data.prediction.values - data.label.values
    count = len(r)
    error = student_factor(count) * r.std(0, ddof=1) / np.sqrt(count) if count > 1 else 0.0
    c = 2 * float(a["alpha"]) / (r.shape[-1] * float(a["lam"])) * (np.abs(r.mean(0)) + error)
    first, second = (float(g) for g in np.atleast_1d(a["suprema"])[:2])
    return theory.gibbs_log_sobolev(c, first, second, float(a.get("largest_input", 1)))


def theorem_4_5(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge the explicit Theorem 4.5 for the law that the run ended at: its error on new data, its KL measured."""
    name = "Theorem 4.5, after training"
    text = f"share of test inputs with y f < 0 <= mean ramp + 2 R_n + chance, with probability {1 - DELTA:g}"
    needed = ("test_prediction", "test_label", "prediction", "label", "kl_upper")
    missing, reason = missing_variable(data, name, text, *needed), limit_law(data)
    if missing or reason:
        return [missing or Verdict(name, text, NOT_APPLICABLE, note=reason)]
    a, y, new = data.attrs, data.label.values, data.test_label.values
    bounded = float(np.atleast_1d(a["suprema"])[0])
    labels = np.isin(y, (-1.0, 1.0)).all() and np.isin(new, (-1.0, 1.0)).all()
    ended = len(data.bound_time) and data.bound_time.values[-1] == data.time.values[-1]
    if not labels or not np.isfinite(bounded) or float(a.get("decay", 1)) != 1 or not ended:
        note = "it needs labels +1 and -1, a bounded h, the standard Gaussian prior, and KL at the end"
        return [Verdict(name, text, NOT_APPLICABLE, note=note)]
    wrong = float(theory.zero_one(new, data.test_prediction.values.mean(0)).mean())
    ramp = float(theory.ramp(y, data.prediction.values[:, -1].mean(0)).mean())
    doubt = float(safe_error(data, "kl_upper")[-1])  # infinite for a single replicate, which proves nothing
    kl = max(float(data.kl_upper.values[-1]) + (doubt if np.isfinite(doubt) else 0.0), 0.0)
    bound = theory.classification_after(ramp, kl, float(a["alpha"]), len(y), DELTA, bounded)
    error = 2 * np.sqrt(wrong * (1 - wrong) / len(new)) + 1 / len(new) + (0.0 if np.isfinite(doubt) else np.inf)
    note = _parts(ramp, kl, float(a["alpha"]), len(y), bounded)
    note += "; a bound above 1 says nothing" if bound >= 1 else ""
    end = data.time.values[-1:]
    return [judge(name, text, np.array([wrong]), np.array([bound]), np.array([error]), end, note=note)]


def _parts(ramp: float, kl: float, alpha: float, n: int, bounded: float) -> str:
    """Return the parts of the bound after training: mean ramp, 2 R_n of the first ball that holds the law, chance."""
    M, share = theory.ball(kl, DELTA)
    if not np.isfinite(M):
        return "KL has no upper bound here"
    twice = 2 * theory.rademacher_bound(M, alpha, n, bounded)
    chance = theory.zero_one_bound(0.0, 0.0, n, share)
    return f"{ramp:.3g} + {twice:.3g} + {chance:.3g}, with KL <= {kl:.3g} in the ball M = {M:.3g} nats"
