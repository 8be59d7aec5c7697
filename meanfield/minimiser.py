"""What a run says of the minimiser of Q: (5.2) to (5.5), C5, and the error on new data of Theorem 4.5 of [CCGZ20].

A run does not know min Q, but its free energy lies above, and the dual of Gibbs below.
"""

from typing import Any

import numpy as np

from meanfield import theory
from meanfield.cloud import Cloud
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
    dual = _dual(data)
    if room < 0 and dual is not None and (dual[0] - BEYOND * dual[1] > bound).any():
        return [Verdict(name, text, VIOLATED, float((dual[0] - BEYOND * dual[1]).max()), bound, room, time, "by C5")]
    if room < 0 or not np.isfinite(energy[best]):
        note = "Q(p_t) has not come down to it, so that the run says nothing of the minimiser"
        return [Verdict(name, text, NOT_APPLICABLE, float(data.energy_upper.values[best]), bound, None, time, note)]
    return [Verdict(name, text, HOLDS, float(data.energy_upper.values[best]), bound, room, time)]


def _dual(data: Any) -> tuple[Array, Array] | None:
    """Return the recorded values D(c_t) of the dual of Gibbs with their safe errors, or None."""
    if "gibbs_dual" not in data:
        return None
    return data.gibbs_dual.values, safe_error(data, "gibbs_dual")


def c5(data: Any, clouds: list[Cloud]) -> list[Verdict]:
    """Judge C5: the dual of Gibbs at c_t = -(2 alpha / (n lam)) r_t lies below the free energy, and how far."""
    name, text = "C5 dual of Gibbs", "D(c_t) <= min Q <= Q upper(p_t)"
    missing, reason = missing_variable(data, name, text, "gibbs_dual", "energy_upper"), limit_law(data)
    if missing or reason:
        return [missing or Verdict(name, text, NOT_APPLICABLE, note=reason)]
    lower, upper = data.gibbs_dual.values, data.energy_upper.values
    gap = float(np.nanmin(np.where(np.isfinite(upper - lower), upper - lower, np.inf)))
    note = f"least gap {gap:.3g}" if np.isfinite(gap) else ""
    error = safe_error(data, "gibbs_dual", "energy_upper")
    return [brackets(name, text, lower, upper, error, data.bound_time.values, note)]


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
