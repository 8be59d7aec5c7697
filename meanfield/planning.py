"""What a run is going to do, worked out and checked before anything runs, and what names it.

`Record` is how a user's own function gets saved; `Plan` holds the times at which something is due; `identity` is all
that determines the numbers of a run, by which a run directory is recognised.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import meanfield.bounds  # noqa: F401  (registers the costly observables)
from meanfield import ntk
from meanfield.cloud import Cloud
from meanfield.errors import InputError
from meanfield.flow import Flow
from meanfield.observables import Observable, select
from meanfield.risk import Risk

Array = np.ndarray
DYADIC_BOUNDS = 8


@dataclass(frozen=True, eq=False)
class Record:
    """What to save and when: any function of (cloud, flow), every k steps or at given times.

    Parameters
    ----------
    function : callable
        Of (cloud, flow); returns a number or an array of fixed shape.
    name : str
        Its name in the results; by default the function's.
    every : int
        Save at every so many steps (and at the end).
    at : sequence of float, optional
        Save at these times instead.
    """

    function: Callable[[Cloud, Flow], Any]
    name: str = ""
    every: int = 1
    at: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.function.__name__)
        object.__setattr__(self, "at", tuple(float(t) for t in self.at))
        if self.every < 1:
            raise InputError(f"every must be at least 1 step, got {self.every}")
        if not self.name.isidentifier():
            raise InputError(f"the record needs a name that is an identifier, got {self.name!r}; give name='...'")


@dataclass(frozen=True, eq=False)
class Plan:
    """When to stop and what to record, worked out before anything runs."""

    end: float
    steps: int | None
    every: int
    bound_times: tuple[float, ...]
    snapshots: tuple[float, ...]
    observables: tuple[Observable, ...]
    records: tuple[Record, ...]

    def stops(self) -> list[float]:
        """Return all times at which something is due, in order."""
        own = [t for record in self.records for t in record.at]
        times = {*self.bound_times, *self.snapshots, *own, self.end}
        return sorted(t for t in times if 0 < t <= self.end)


def make_plan(
    flow: Flow,
    time: float | None,
    steps: int | None,
    observables: Sequence[str] | None,
    records: Sequence[Record],
    every: int,
    bounds: str | int | Sequence[float],
    snapshots: Sequence[float],
) -> Plan:
    """Return the plan of a run, or refuse arguments that make no sense (see `simulate.simulate`)."""
    if (time is None) == (steps is None):
        raise InputError("say how long to run: time=... or steps=..., one of them")
    if steps is not None:
        if steps < 1:
            raise InputError(f"steps must be at least 1, got {steps}")
        if isinstance(flow.eta, str) or callable(flow.eta):
            raise InputError("steps=... needs a fixed eta; with eta='auto' give time=...")
        time = steps * float(flow.eta)
    assert time is not None
    if not (np.isfinite(time) and time > 0):
        raise InputError(f"time must be positive and finite, got {time!r}")
    if every < 1:
        raise InputError(f"every must be at least 1 step, got {every}")
    chosen = select(observables)
    names = [r.name for r in records]
    clash = {o.name for o in chosen} & set(names) or {n for n in names if names.count(n) > 1}
    if clash:
        raise InputError(f"two records are called {sorted(clash)[0]!r}; give one of them another name=")
    for t in (*snapshots, *(t for r in records for t in r.at)):
        if not 0 <= t <= time:
            raise InputError(f"a record is asked for at time {t}, outside of the run's [0, {time}]")
    times = bound_times(float(time), bounds)
    return Plan(float(time), steps, every, times, tuple(map(float, snapshots)), tuple(chosen), tuple(records))


def bound_times(end: float, bounds: str | int | Sequence[float]) -> tuple[float, ...]:
    """Return the times of the costly observables: 0 and end 2^-k by default."""
    if isinstance(bounds, str):
        if bounds != "auto":
            raise InputError(f"bounds must be 'auto', a number of times or a list of times, got {bounds!r}")
        bounds = DYADIC_BOUNDS
    if isinstance(bounds, int):
        if bounds < 0:
            raise InputError(f"the number of bound times must be at least 0, got {bounds}")
        return (0.0, *(end * 2.0**-k for k in range(bounds - 1, -1, -1))) if bounds else ()
    times = sorted({float(t) for t in bounds})
    if times and not (times[0] >= 0 and times[-1] <= end):
        raise InputError(f"bound times must lie in [0, {end}], got {times[0]} to {times[-1]}")
    return tuple(times)


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
    }


def identity(flow: Flow, plan: Plan, cloud: Cloud, replicates: int) -> dict[str, Any]:
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
        "allow_unstable": bool(flow.allow_unstable),
        "start": _digest(cloud.z, cloud.weights),
        "m": cloud.m,
        "seed": int(cloud.seed),
        "replicates": int(replicates),
        "end": plan.end,
        "every": plan.every,
        "bound_times": list(plan.bound_times),
        "snapshots": list(plan.snapshots),
        "observables": [item.name for item in plan.observables],
        "records": [record.name for record in plan.records],
        "batch": int(getattr(objective, "size", 0)),
    }
    if isinstance(risk, Risk):
        out |= {
            "data": _digest(risk.x, risk.y),
            "alpha": float(risk.alpha),
            "activation": risk.unit.h.name,
            "bias": bool(risk.unit.bias),
            "loss": risk.loss,
            "centred": bool(risk.centred),
        }
    return out


def _digest(*arrays: Array | None) -> str:
    total = hashlib.sha256()
    for array in arrays:
        if array is not None:
            total.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]
