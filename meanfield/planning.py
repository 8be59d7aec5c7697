"""What a run is going to do, worked out and checked before anything runs.

`Record` is how a user's own function gets saved; `Plan` holds the times at which something is due. `description` says
what names a run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

import meanfield.bounds  # noqa: F401  (registers the costly observables)
import meanfield.increments  # noqa: F401  (registers the checks of the noise)
import meanfield.minimum  # noqa: F401  (registers the bounds on min Q)
import meanfield.rates  # noqa: F401  (registers what the identities are checked by)
import meanfield.regimes  # noqa: F401  (registers what tells the kernel regime from feature learning)
from meanfield import schemes
from meanfield.cloud import Cloud
from meanfield.errors import DivergedError, InputError, MeanfieldError
from meanfield.flow import Flow
from meanfield.inputs import checked
from meanfield.objectives import Scaled, terms
from meanfield.observables import Observable, select
from meanfield.results import Progress
from meanfield.risk import Risk
from meanfield.sections import MOST_TIMES

Array = np.ndarray
DYADIC_BOUNDS = 8
# Names in the results that are no observables.
RESERVED = ("time", "bound_time", "replicate", "sample", "eta", "label", "test_sample", "test_label", "test_prediction")


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
    on_error : str
        What to do when the function raises: "raise" ends the run as failed, with all that was recorded before kept;
        "nan" records NaN there and goes on, and metadata.json keeps what it said first, and how often.
    """

    function: Callable[[Cloud, Flow], Any]
    name: str = ""
    every: int = 1
    at: Sequence[float] = ()
    on_error: str = "raise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or getattr(self.function, "__name__", ""))
        object.__setattr__(self, "at", _times(f"at= of the record {self.name!r}", self.at))
        if self.every < 1:
            raise InputError(f"every must be at least 1 step, got {self.every}")
        if self.on_error not in ("raise", "nan"):
            raise InputError(f"on_error must be 'raise' or 'nan', got {self.on_error!r}")
        if not self.name.isidentifier():
            raise InputError(f"the record needs a name that is an identifier, got {self.name!r}; give name='...'")

    def values(self, clouds: Sequence[Cloud], flow: Flow, state: Progress) -> Array:
        """Return what the function says of each replicate, shape (R, ...), or refuse what cannot be kept.

        Where it fails and may, the column is NaN; one that began with NaN takes the shape that comes first.
        """
        before = state.recorder.columns.get(self.name, [])
        try:
            said = [self.function(cloud, flow) for cloud in clouds]
        except Exception as error:
            if self.on_error == "raise" or isinstance(error, MeanfieldError):
                raise
            state.note_error(self.name, error, clouds[0].time)
            return np.full(np.shape(before[0]) if before else len(clouds), np.nan)
        try:
            found = np.asarray(said)
        except ValueError as error:
            raise InputError(f"the record {self.name!r} gave no numbers of one shape: {error}") from error
        if found.dtype.kind not in "biuf":
            raise InputError(f"the record {self.name!r} must give a number or an array of numbers, not {found.dtype}")
        if before and np.shape(before[0]) != found.shape:
            if state.errors.get(self.name, {}).get("count") != len(before):
                raise InputError(
                    f"the record {self.name!r} must give one shape at all times: {np.shape(before[0])[1:]} came first, "
                    f"then {found.shape[1:]}"
                )
            before[:] = [np.full(found.shape, np.nan) for _ in before]
        return found


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
    replicates: int

    @property
    def rounding(self) -> float:
        """Times closer than this are one time."""
        return 1e-12 * self.end

    @cached_property
    def stops(self) -> list[float]:
        """Return all times at which something is due, in order, the end last."""
        own = [t for record in self.records for t in record.at]
        kept: list[float] = []
        for t in sorted({*self.bound_times, *self.snapshots, *own}):
            if (kept[-1] if kept else 0.0) + self.rounding < t < self.end - self.rounding:
                kept.append(t)
        return [*kept, self.end]

    def length(self, eta: float, auto: bool, now: float, step: int) -> tuple[float, float | None]:
        """Return the length of the next step, given what the flow proposes, and the stop that it ends on if any."""
        if not (math.isfinite(eta) and eta > 0):
            raise InputError(f"eta must be positive and finite, but the flow gave {eta!r} for step {step}")
        if not auto:
            # A fixed grid is cut by nothing but the end; sums of eta are off by rounding.
            last = step + 1 == self.steps or abs(self.end - now - eta) <= 1e-6 * eta
            if last or (self.steps is None and eta > self.end - now):
                return (eta if last else self.end - now), self.end
            return eta, None
        stop = next(t for t in self.stops if t > now + self.rounding or t == self.end)
        if eta >= (stop - now) * (1 - 1e-9):
            return stop - now, stop
        # Two equal steps rather than a long one and a sliver.
        return (eta if 2 * eta <= stop - now else (stop - now) / 2), None

    def tested(self, flow: Flow, test: tuple[Array, Array] | None) -> "Plan":
        """Return the plan whose observables know the test set."""
        risk = flow.objective.full
        if test is None or not isinstance(risk, Risk):
            return self
        held_out = replace(risk, x=test[0], y=test[1])
        bound = (
            replace(item, function=partial(item.function, test=held_out)) if item.on_test else item
            for item in self.observables
        )
        return replace(self, observables=tuple(bound))

    def due(self, times: Sequence[float], before: float, now: float) -> bool:
        """Return whether one of the times lies in (before, now], so that every time is due once."""
        return any(before + self.rounding < t <= now + self.rounding for t in times)

    def due_now(self, before: float, now: float, step: int) -> tuple[bool, bool, list[Record], bool]:
        """Return what a step to the time `now` asks for: cheap ones, costly ones, the user's own records, snapshots."""
        costly, ending = self.due(self.bound_times, before, now), now >= self.end
        own = [
            record
            for record in self.records
            if self.due(record.at, before, now) or (not record.at and (step % record.every == 0 or ending))
        ]
        cheap = step % self.every == 0 or costly or ending
        return cheap, costly, own, self.due(self.snapshots, before, now)


def make_plan(
    flow: Flow,
    time: float | None,
    steps: int | None,
    observables: Sequence[str] | None,
    records: Sequence[Record],
    every: int,
    bounds: str | int | Sequence[float],
    snapshots: Sequence[float],
    replicates: int,
) -> Plan:
    """Return the plan of a run, or refuse arguments that make no sense (see `simulate.simulate`)."""
    if (time is None) == (steps is None):
        raise InputError("say how long to run: time=... or steps=..., one of them")
    for name, value, unit in (("steps", steps, "step"), ("every", every, "step"), ("replicates", replicates, "cloud")):
        if value is not None and not (isinstance(value, int | np.integer) and value >= 1):
            raise InputError(f"{name} must be a whole number, at least 1 {unit}, got {value!r}")
    if steps is not None:
        if isinstance(flow.eta, str) or callable(flow.eta):
            raise InputError("steps=... needs a fixed eta; with eta='auto' give time=...")
        time = steps * float(flow.eta)
    assert time is not None
    if not (np.isfinite(time) and time > 0):
        raise InputError(f"time must be positive and finite, got {time!r}")
    chosen = select(observables)
    _check_names(chosen, records)
    shots = _times("snapshots", snapshots)
    for t in (*shots, *(t for r in records for t in r.at)):
        if not 0 <= t <= time:
            raise InputError(f"a record is asked for at time {t}, outside of the run's [0, {time}]")
    times = bound_times(float(time), bounds)
    return Plan(float(time), steps, int(every), times, shots, tuple(chosen), tuple(records), int(replicates))


def _check_names(chosen: Sequence[Observable], records: Sequence[Record]) -> None:
    """Refuse records whose names the results have for something else."""
    taken = set(RESERVED)
    for item in chosen:
        taken |= {item.name, f"{item.name}_se", f"{item.name}_source"}
    for record in records:
        if record.name in taken:
            raise InputError(f"two records are called {record.name!r}; give one of them another name=")
        taken |= {record.name, f"{record.name}_time"}


def _times(what: str, times: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(sorted(float(t) for t in times))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be a list of times such as [0.5, 1.0], got {times!r}") from error


def bound_times(end: float, bounds: str | int | Sequence[float]) -> tuple[float, ...]:
    """Return the times of the costly observables: 0 and end 2^-k by default."""
    if isinstance(bounds, str):
        if bounds != "auto":
            raise InputError(f"bounds must be 'auto', a number of times or a list of times, got {bounds!r}")
        bounds = DYADIC_BOUNDS
    if isinstance(bounds, int):
        if not 0 <= bounds <= MOST_TIMES:
            raise InputError(f"the number of bound times must be at least 0 and at most {MOST_TIMES}, got {bounds}")
        return (0.0, *(end * 2.0**-k for k in range(bounds - 1, -1, -1))) if bounds else ()
    times = sorted(set(_times("bounds", bounds)))
    if times and not (times[0] >= 0 and times[-1] <= end):
        raise InputError(f"bound times must lie in [0, {end}], got {times[0]} to {times[-1]}")
    return tuple(times)


def check_fits(flow: Flow, cloud: Cloud) -> None:
    """Refuse a cloud whose particles are not the neurons of the flow's networks."""
    for term in terms(flow.objective):
        inner = term.objective if isinstance(term, Scaled) else term
        risk = inner if isinstance(inner, Risk) else getattr(inner, "risk", None)
        if isinstance(risk, Risk) and cloud.dimension != risk.inputs.shape[1] + 1:
            raise InputError(
                f"the cloud has D = {cloud.dimension} coordinates, a network with {risk.d} inputs"
                f"{' and a bias' if risk.unit.bias else ''} needs D = {risk.inputs.shape[1] + 1}; "
                "take gaussian_cloud(m, unit=risk.unit, d=risk.d)"
            )


def check_start(flow: Flow, plan: Plan, clouds: Sequence[Cloud]) -> None:
    """Refuse what the first step would refuse, before anything is written.

    Raises
    ------
    InputError
        If the loss is not finite, or the step is unstable or none.
    """
    for cloud in clouds:
        advice = "check the activation, the data and the particles"
        try:
            value = flow.objective.full.value(cloud)
        except DivergedError as error:
            raise InputError(f"there is no loss at the start ({error}); {advice}") from error
        if not np.isfinite(value):
            raise InputError(f"the loss at the start is {value}; {advice}")
    eta = min(flow.propose(clouds), plan.end)
    if not (np.isfinite(eta) and eta > 0):
        raise InputError(f"eta must be positive and finite, but the flow gave {eta!r} for step 0")
    schemes.plan(flow.method, eta, flow.lam, flow.decay, clouds[0].m, clouds[0].reference_variance)
    if flow.method.explicit and not flow.allow_unstable:
        for cloud in clouds:
            flow.check_stable(cloud, eta)


def checked_test(flow: Flow, test: tuple[Array, Array] | None) -> tuple[Array, Array] | None:
    """Return the test inputs and labels, refused now if they could not be predicted at the end."""
    full = flow.objective.full
    if test is None or not isinstance(full, Risk):
        return None
    x, y = checked(*test)
    if x.shape[1] != full.d:
        raise InputError(f"test inputs have {x.shape[1]} columns, the network was given {full.d}")
    return x, y
