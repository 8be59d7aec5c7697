"""The loop: step replicates together, record, checkpoint, survive signals and kills.

    run = simulate(flow, gaussian_cloud(m=4096, unit=risk.unit, d=risk.d, seed=0), time=2.0, replicates=4)

A run with a directory goes on from its last checkpoint when it is called again, and ends with the same bits as one
that was never stopped. To drive the parts yourself, call `flow.propose` and `flow.step` in a loop of your own.
"""

import signal
import threading
import time as clock
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meanfield import parallel, progress, results, store
from meanfield.cloud import Cloud
from meanfield.errors import DivergedError, InputError, Interrupted, MeanfieldError
from meanfield.flow import Flow
from meanfield.observables import Observable, Unavailable
from meanfield.planning import Plan, Record, describe_risk, identity, make_plan
from meanfield.results import Recorder, Run
from meanfield.risk import Risk

Array = np.ndarray


@dataclass(eq=False)
class Progress:
    """What changes while the loop runs."""

    clouds: list[Cloud]
    recorder: Recorder
    absent: dict[str, str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def time(self) -> float:
        """The time of equation (3.4)."""
        return self.clouds[0].time

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds spent inside to a part's timing."""
        begin = clock.perf_counter()
        try:
            yield
        finally:
            self.timings[part] = self.timings.get(part, 0.0) + clock.perf_counter() - begin


def simulate(
    flow: Flow,
    cloud: Cloud,
    time: float | None = None,
    *,
    steps: int | None = None,
    replicates: int = 4,
    observables: Sequence[str] | None = None,
    records: Sequence[Record] = (),
    every: int = 1,
    bounds: str | int | Sequence[float] = "auto",
    snapshots: Sequence[float] = (),
    directory: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    quiet: bool = False,
    on_failure: str = "raise",
    test: tuple[Array, Array] | None = None,
    extra: dict[str, Any] | None = None,
) -> Run:
    """Move replicates of a cloud along a flow and return what was recorded.

    Parameters
    ----------
    flow : Flow
        The dynamics.
    cloud : Cloud
        The start; replicate r gets the noise (and, where it was drawn, the start) of replicate r.
    time, steps : float, int
        How long to run: until a time of equation (3.4), or for a number of steps. Give one.
    replicates : int
        Independent clouds that share the step lengths; standard errors come from them.
    observables : sequence of str, optional
        Names from `observables.OBSERVABLES`; all that have a meaning here by default.
    records : sequence of Record
        Your own functions to save.
    every : int
        Cheap observables are recorded at every so many steps.
    bounds : "auto", int or sequence of float
        Times of the costly ones: 0 and `time` 2^-k, k = 7..0, by default; an int gives the number of dyadic times, 0
        none at all.
    snapshots : sequence of float
        Times at which the clouds are written to `cloud_<step>.npz`.
    directory : path, optional
        Run directory; the run goes on from a checkpoint found there.
    on_failure : str
        "raise" or "return": what to do with a run that diverged or was interrupted, once it is saved.
    test : tuple of ndarray, optional
        Inputs and labels to predict at the end: `test_prediction` and `test_label` of the results.

    Raises
    ------
    InputError
        If arguments make no sense, or the directory holds another run.
    DivergedError, Interrupted
        With everything recorded so far saved (and in the error's `run`), unless `on_failure` is "return".
    """
    begin = clock.perf_counter()
    plan = make_plan(flow, time, steps, observables, records, every, bounds, snapshots)
    if replicates < 1:
        raise InputError(f"replicates must be at least 1, got {replicates}")
    if on_failure not in ("raise", "return"):
        raise InputError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    loop = _Loop(flow, plan, cloud, replicates, directory, checkpoint_seconds, quiet, extra or {}, test)
    finished = loop.already_finished()
    if finished is not None:
        return finished
    with parallel.single_threaded_blas(), _signals() as caught:
        loop.open()
        loop.state.timings.setdefault("start", clock.perf_counter() - begin)
        return loop.run(caught, on_failure)


class _Loop:
    """One run of `simulate`: everything that changes is in `state`."""

    def __init__(
        self,
        flow: Flow,
        plan: Plan,
        cloud: Cloud,
        replicates: int,
        directory: str | Path | None,
        checkpoint_seconds: float,
        quiet: bool,
        extra: dict[str, Any],
        test: tuple[Array, Array] | None,
    ) -> None:
        self.flow, self.plan, self.start, self.replicates = flow, plan, cloud, replicates
        self.directory = None if directory is None else Path(directory)
        self.checkpoint_seconds, self.quiet, self.extra, self.test = checkpoint_seconds, quiet, extra, test
        self.identity = identity(flow, plan, cloud, replicates)
        self.state = Progress([], Recorder())
        self.stops = plan.stops()
        self.saved_at = clock.perf_counter()

    # Directory -------------------------------------------------------------------------------------------------

    def already_finished(self) -> Run | None:
        """Return the run that the directory holds if it is finished; refuse a directory of another run."""
        if self.directory is None or not (self.directory / "metadata.json").exists():
            return None
        metadata = store.read_json(self.directory / "metadata.json")
        other = metadata.get("identity", {})
        different = [k for k in self.identity if other.get(k) != self.identity[k]]
        if different:
            k = different[0]
            raise InputError(
                f"{self.directory} holds another run: {k} was {other.get(k)!r} there and is {self.identity[k]!r} here "
                f"({len(different)} differ); nothing was overwritten, choose another directory"
            )
        return load(self.directory, self.flow) if metadata.get("status") == "finished" else None

    def open(self) -> None:
        """Take the clouds from the last checkpoint, or make them and record the start."""
        found = None
        if self.directory is not None:
            store.prepare(self.directory)
            found = store.read_checkpoint(self.directory)
        if found is not None:
            clouds, records, saved = found
            self.state = Progress(clouds, Recorder.restore(records), saved["absent"], saved["timings"])
            return
        clouds = [self.start.replicated(self.start.replicate + r) for r in range(self.replicates)]
        self.state = Progress(clouds, Recorder())
        self.flow.propose(clouds)  # a wrong eta or scheme is refused before anything is written
        if self.directory is not None:
            self.describe("running", "")
        self.record()

    def describe(self, status: str, message: str) -> dict[str, Any]:
        """Return the metadata, and write it if there is a directory."""
        metadata = {
            "status": status,
            "message": message,
            "identity": self.identity,
            "versions": results.versions(),
            "machine": results.machine(),
            "timings": {k: round(v, 4) for k, v in self.state.timings.items()},
            "absent": self.state.absent,
            **self.extra,
        }
        if self.directory is not None:
            store.write_json(self.directory / "metadata.json", metadata)
        return metadata

    def checkpoint(self) -> None:
        """Write a checkpoint if there is a directory."""
        if self.directory is None:
            return
        with self.state.timed("checkpoint"):
            state = {"absent": self.state.absent, "timings": self.state.timings}
            store.write_checkpoint(self.directory, self.state.clouds, self.state.recorder.arrays(), state)
        self.saved_at = clock.perf_counter()

    # Loop ------------------------------------------------------------------------------------------------------

    def run(self, caught: list[int], on_failure: str) -> Run:
        """Step until the end; whatever happens, what was recorded is kept."""
        meter = progress.meter(self.plan.end, quiet=self.quiet)
        status = "finished"
        failure: MeanfieldError | None = None
        try:
            while self.state.time < self.plan.end:
                if caught:
                    now = f"{self.state.time:.6g}"
                    raise Interrupted(f"stopped by signal {caught[0]} at time {now}; run again to go on")
                with self.state.timed("steps"):
                    self.step()
                self.record()
                meter.update(self.state.time, self.state.clouds[0].step, self.last_loss())
                if clock.perf_counter() - self.saved_at >= self.checkpoint_seconds:
                    self.checkpoint()
        except Interrupted as error:
            status, failure = "interrupted", error
        except DivergedError as error:
            status, failure = "diverged", error
        finally:
            meter.close()
        return self.close(status, failure, on_failure)

    def step(self) -> None:
        """Move all replicates by one common step that ends on the next stop or short of it."""
        flow, clouds = self.flow, self.state.clouds
        eta = flow.propose(clouds)
        fixed = flow.eta != "auto"
        end = self.plan.end if fixed else next(t for t in self.stops if t > self.state.time)
        remaining = end - self.state.time
        if eta >= remaining * (1 - 1e-9):
            eta, lands = remaining, True
        else:
            # Two equal steps rather than a long one and a sliver.
            eta, lands = (eta if fixed or 2 * eta <= remaining else remaining / 2), False
        moved = [flow.step(cloud, eta) for cloud in clouds]
        self.state.clouds = [self._landed(cloud, end) for cloud in moved] if lands else moved

    def _landed(self, cloud: Cloud, end: float) -> Cloud:
        if cloud.time == end:
            return cloud
        exact = cloud.replace(time=end)
        if self.flow.objective.network is not None:
            self.flow.objective.network.remember(exact, cloud)
        return exact

    def last_loss(self) -> float:
        """Return the last recorded loss, or NaN."""
        values = self.state.recorder.columns.get("loss")
        return float(np.mean(values[-1])) if values else float("nan")

    def close(self, status: str, failure: MeanfieldError | None, on_failure: str) -> Run:
        """Save what there is, and return or raise."""
        message = "" if failure is None else str(failure)
        data = results.dataset(self.state.recorder, self.plan.observables, self.attrs(status), self.labels())
        data = self.with_test(data)
        if self.directory is not None:
            self.checkpoint()
            store.write_dataset(self.directory / "records.nc", data)
        run = Run(data, self.state.clouds, self.flow, status, message, self.describe(status, message), self.directory)
        if failure is not None and on_failure == "raise":
            failure.run = run  # type: ignore[attr-defined]
            raise failure
        return run

    def with_test(self, data: Any) -> Any:
        """Return the Dataset with predictions on the test inputs at the end, if there are any."""
        risk = self.flow.objective.full
        if self.test is None or not isinstance(risk, Risk):
            return data
        x, y = self.test
        predictions = np.array([risk.predict(cloud, x) for cloud in self.state.clouds])
        return data.assign(
            test_prediction=(("replicate", "test_sample"), predictions, {"long_name": "network output on test inputs"}),
            test_label=(("test_sample",), np.asarray(y, dtype=np.float64), {"long_name": "test label y"}),
        )

    # Records ---------------------------------------------------------------------------------------------------

    def record(self) -> None:
        """Record what is due at the present step and time."""
        step, now = self.state.clouds[0].step, self.state.time
        costly = self._due(self.plan.bound_times)
        cheap = step % self.plan.every == 0 or costly or now >= self.plan.end
        if cheap:
            self.state.recorder.add("time", now)
            self.state.recorder.add("eta", self.state.clouds[0].eta)
            self._measure(False, "records")
        if costly:
            self.state.recorder.add("bound_time", now)
            self._measure(True, "bounds")
            self._check_stability()
        for record in self.plan.records:
            if self._due(record.at) or (not record.at and (step % record.every == 0 or now >= self.plan.end)):
                self.state.recorder.add(f"at.{record.name}", now)
                self.state.recorder.add(record.name, [record.function(c, self.flow) for c in self.state.clouds])
        if self.directory is not None and self._due(self.plan.snapshots):
            store.write_npz(self.directory / f"cloud_{step}.npz", store.pack_clouds(self.state.clouds))

    def _due(self, times: Sequence[float]) -> bool:
        """Return whether one of the times was passed by the step just made (or is the start)."""
        cloud = self.state.clouds[0]
        if cloud.step == 0:
            return 0.0 in times
        before = cloud.time - cloud.eta * (1 - 1e-9)
        return any(before < t <= cloud.time * (1 + 1e-12) for t in times)

    def _measure(self, costly: bool, part: str) -> None:
        with self.state.timed(part):
            for item in self.plan.observables:
                if item.costly == costly and item.name not in self.state.absent:
                    self._measure_one(item)

    def _measure_one(self, item: Observable) -> None:
        clouds = self.state.clouds
        try:
            if item.pooled:
                value = item.function(tuple(clouds), self.flow)
            else:
                value = [item.function(cloud, self.flow) for cloud in clouds]
        except Unavailable as reason:
            self.state.absent[item.name] = str(reason)
            if item.name in self.state.recorder.columns:
                raise DivergedError(f"'{item.name}' could be measured before and cannot any more: {reason}") from reason
            return
        self.state.recorder.add_result(item.name, value)

    def _check_stability(self) -> None:
        """Stop an explicit run whose kernel has grown so that its step is not stable any more."""
        flow = self.flow
        if not flow.method.explicit or flow.allow_unstable or not self.state.clouds[0].eta:
            return
        for cloud in self.state.clouds:
            try:
                flow.check_stable(cloud, cloud.eta)
            except InputError as error:
                raise DivergedError(str(error)) from error

    # Description -----------------------------------------------------------------------------------------------

    def labels(self) -> Array | None:
        """Return the labels, for the records to be checked against."""
        full = self.flow.objective.full
        return full.y if isinstance(full, Risk) else None

    def attrs(self, status: str) -> dict[str, Any]:
        """Return the attributes of the Dataset: what a reader needs to check the records."""
        cloud = self.state.clouds[0]
        out: dict[str, Any] = {
            "title": self.extra.get("title", "noisy gradient descent of a two-layer network"),
            "status": status,
            "m": cloud.m,
            "D": cloud.dimension,
            "replicates": self.replicates,
            "lam": self.flow.lam,
            "scheme": self.flow.method.name,
            "train": self.flow.train,
            "decay": self.flow.decay,
            "seed": str(cloud.seed),
            "steps": cloud.step,
            "end": self.plan.end,
            "dtype": cloud.z.dtype.name,
        }
        risk = self.flow.objective.full
        if isinstance(risk, Risk):
            out |= describe_risk(risk, self.flow, cloud)
        return out


def load(directory: str | Path, flow: Flow | None = None) -> Run:
    """Return the run that a directory holds.

    Raises
    ------
    InputError
        If it is no run directory, or a file in it is damaged.
    """
    directory = Path(directory)
    metadata = store.read_json(directory / "metadata.json")
    data = store.read_dataset(directory / "records.nc")
    found = store.read_checkpoint(directory)
    clouds = [] if found is None else found[0]
    return Run(data, clouds, flow, metadata.get("status", "?"), metadata.get("message", ""), metadata, directory)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; only the main thread may."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handler(number: int, frame: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step to end
        caught.append(number)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
