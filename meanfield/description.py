"""What a run is: the attributes of its records, and what determines its numbers.

`identity` is how a run directory is recognised, `describe` what a reader needs to check the records.
"""

import hashlib
import warnings
from typing import Any

import numpy as np

from meanfield import mapped, ntk, theory
from meanfield.cloud import Cloud
from meanfield.flow import Flow
from meanfield.objectives import Objective
from meanfield.planning import Plan
from meanfield.ranks import GRAIN
from meanfield.risk import Risk

Array = np.ndarray


def describe(flow: Flow, plan: Plan, cloud: Cloud) -> dict[str, Any]:
    """Return what a reader needs to check the records of a run: its attributes."""
    out: dict[str, Any] = {
        "m": cloud.m,
        "D": cloud.dimension,
        "replicates": plan.replicates,
        "lam": float(flow.lam),
        "scheme": flow.method.name,
        "train": flow.train,
        "decay": float(flow.decay),
        "seed": str(cloud.seed),
        "end": plan.end,
        "dtype": cloud.z.dtype.name,
        "batch": int(getattr(flow.objective, "size", 0)),
    }
    risk = flow.objective.full
    return out | describe_risk(risk, flow, cloud) if isinstance(risk, Risk) else out


def describe_risk(risk: Risk, flow: Flow, cloud: Cloud) -> dict[str, Any]:
    """Return what theorems need to know of a risk: sizes, scale, suprema of h, extreme eigenvalues of H(p0)."""
    lowest, highest = ntk.eigenvalue_range(risk.gram_start(cloud.start_std, flow.train))
    norms = np.linalg.norm(risk.inputs, axis=1)
    return {
        "n": risk.n,
        "d": risk.d,
        "alpha": risk.alpha,
        "activation": risk.unit.h.name,
        "bias": int(risk.unit.bias),
        "loss_function": risk.loss,
        "centred": int(risk.centred),
        "suprema": [float(g) for g in risk.unit.h.suprema],
        "assumption_4_2_fails": risk.unit.h.fails,
        "largest_input": float(norms.max()),
        "largest_label": float(np.abs(risk.y).max()),
        "ntk_lambda": lowest,
        "ntk_lambda_max": highest,
        "ntk_rounding": float(len(norms) * np.finfo(float).eps * max(highest, 0.0)),
    } | _least_over_frozen_features(risk, flow, cloud)


def _least_over_frozen_features(risk: Risk, flow: Flow, cloud: Cloud) -> dict[str, Any]:
    """Return the bound on min Q of kernel ridge regression with H2, where it is about this problem and cheap."""
    standard = cloud.start_std == 1 and flow.decay == 1 and flow.lam > 0
    if risk.loss != "square" or not standard or risk.n > ntk.DENSE:
        return {}
    second = risk.gram_start(1.0, "u")
    return {"frozen_energy": theory.frozen_energy(second, risk.y, risk.alpha, float(flow.lam))}


def identity(flow: Flow, plan: Plan, cloud: Cloud) -> dict[str, Any]:
    """Return all that determines the numbers of a run, in a form that can be compared and written as JSON."""
    objective = flow.objective
    risk = objective.full
    out: dict[str, Any] = {
        "objective": type(objective).__name__,
        "lam": float(flow.lam),
        "eta": "schedule" if callable(flow.eta) else flow.eta,
        "scheme": flow.method.name,
        "train": flow.train,
        "prior_std": None if flow.prior is None else float(flow.prior.std),
        "account": bool(flow.account),
        "leaf": flow.leaf,
        "allow_unstable": bool(flow.allow_unstable),
        "start": _digest_start(cloud),
        "start_std": float(cloud.start_std),
        "reference": cloud.reference is not None,
        "m": cloud.m,
        "dtype": cloud.z.dtype.name,
        "seed": int(cloud.seed),
        "replicate": int(cloud.replicate),
        "replicates": plan.replicates,
        "end": plan.end,
        "every": plan.every,
        "bound_times": list(plan.bound_times),
        "snapshots": list(plan.snapshots),
        "observables": [item.name for item in plan.observables],
        "records": [[record.name, int(record.every), list(record.at)] for record in plan.records],
        "batch": int(getattr(objective, "size", 0)),
    }
    return out | (_identity_of_risk(risk, cloud) if isinstance(risk, Risk) else {"drift": _start_of(objective, cloud)})


def _identity_of_risk(risk: Risk, cloud: Cloud) -> dict[str, Any]:
    return {
        "backend": risk.choice(cloud.m).name,
        "data": _digest(risk.x, risk.y),
        "alpha": float(risk.alpha),
        "activation": risk.unit.h.name,
        "bias": bool(risk.unit.bias),
        "loss": risk.loss,
        "centred": bool(risk.centred),
    }


def _start_of(objective: Objective, cloud: Cloud) -> list[str]:
    """Return what the objective says of the start, up to rounding: functions themselves cannot be compared."""
    slope = np.sqrt(np.mean(np.asarray(objective.gradient(cloud), dtype=np.float64) ** 2, axis=0))
    return [f"{value:.6g}" for value in (objective.value(cloud), *slope)]


def _digest_start(cloud: Cloud) -> str:
    """Return a digest of particles and masses, made of those of GRAIN rows each, whoever holds them."""
    pieces = []
    for first in range(0, len(cloud.z), GRAIN):
        pieces.append(_digest(cloud.z[first : first + GRAIN]))
        mapped.relieve(2 * mapped.LARGE)
    if cloud.share is not None:
        pieces = [piece for found in cloud.share.communicator.everyone(pieces) for piece in found]
    weights = "" if cloud.weights is None else _digest(cloud.weights)
    return hashlib.sha256("".join([*pieces, weights]).encode()).hexdigest()[:16]


def _digest(*arrays: Array | None) -> str:
    total = hashlib.sha256()
    for array in arrays:
        if array is not None:
            total.update(str(array.shape).encode())
            total.update(np.ascontiguousarray(array).view(np.uint8).data)
    return total.hexdigest()[:16]


def warn_of_no_gap(attributes: dict[str, Any]) -> None:
    """Warn where Lambda, the smallest eigenvalue of H(p0), is zero up to rounding."""
    lowest, rounding = attributes.get("ntk_lambda"), attributes.get("ntk_rounding", 0.0)
    if lowest is not None and lowest <= rounding:
        warnings.warn(
            f"Lambda = {max(lowest, 0.0):.1e} is zero up to rounding (inputs repeat or are parallel): Theorem 4.4 and "
            "what rests on Lambda say nothing about this run, its measurements stand",
            UserWarning,
            stacklevel=2,
        )
