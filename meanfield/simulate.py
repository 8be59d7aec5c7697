"""The loop: step replicates together, record, checkpoint, survive signals and kills.

    run = simulate(flow, gaussian_cloud(m=4096, unit=risk.unit, d=risk.d, seed=0), time=2.0, replicates=4)

A run with a directory goes on from its last checkpoint and ends with the same bits as one that was never stopped. To
drive the parts yourself, call `flow.propose` and `flow.step` in a loop of your own.
"""

import contextlib
import functools
import math
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meanfield import mapped, parallel, progress, recovery, results, signals, spread, store
from meanfield.cloud import Cloud, demand_finite
from meanfield.description import describe, identity, warn_of_no_gap
from meanfield.errors import DivergedError, InputError, Interrupted, MeanfieldError
from meanfield.flow import AUTO, Flow
from meanfield.keeping import Keeping, held
from meanfield.observables import Observable, Unavailable
from meanfield.planning import Plan, Record, check_fits, check_start, checked_test, make_plan
from meanfield.ranks import Alone, Communicator, all_here, on_first
from meanfield.results import Progress, Recorder, Run
from meanfield.risk import Risk

Array = np.ndarray
# Clouds larger than this share of the memory budget are written over by their steps: there is no second one.
GIVEN_UP = 0.25


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
    extra: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    communicator: Communicator | None = None,
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
        none at all. Step lengths chosen by "auto" end on them; a fixed grid is not cut, and the first step that
        reaches a time stands for it.
    snapshots : sequence of float
        Times at which the clouds are written to `cloud_<step>.npz`.
    directory : path, optional
        Run directory; the run goes on from a checkpoint found there.
    on_failure : str
        "raise" or "return": what to do with a run that diverged or was interrupted, once it is saved.
    test : tuple of ndarray, optional
        Inputs and labels to predict at the end: `test_prediction` and `test_label` of the results.
    extra : mapping, optional
        More to be kept in metadata.json.
    files : mapping, optional
        Texts to be laid into the run directory when it is made, by file name.
    communicator : Communicator, optional
        The ranks over which the cloud is spread, all of which make this call (`mpi.world()`); each gets its rows.

    Raises
    ------
    InputError
        If arguments make no sense, or the directory holds another run; then nothing was written.
    DivergedError, Interrupted
        With everything recorded so far saved (and in the error's `run`), unless `on_failure` is "return".
    """
    begin = clock.perf_counter()
    if on_failure not in ("raise", "return"):
        raise InputError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    plan = make_plan(flow, time, steps, observables, records, every, bounds, snapshots, replicates)
    check_fits(flow, cloud)
    if communicator is not None:
        cloud = spread.rows(flow, cloud, communicator)
    if plan.snapshots and directory is None:
        raise InputError("snapshots are written to the run directory: give directory='...'")
    keeping = Keeping(
        None if directory is None else Path(directory), checkpoint_seconds, quiet, dict(extra or {}), dict(files or {})
    )
    loop = _Loop(flow, plan, cloud, keeping, checked_test(flow, test))
    finished = loop.already_finished()
    if finished is not None:
        return finished
    with held(keeping.directory, loop.ranks), parallel.single_threaded_blas(), signals.collected() as caught:
        loop.open()
        loop.state.timings.setdefault("start", max(clock.perf_counter() - begin, 0.0))
        return loop.run(caught, on_failure)


class _Loop:
    """One run of `simulate`: everything that changes is in `state`."""

    def __init__(
        self, flow: Flow, plan: Plan, cloud: Cloud, keeping: Keeping, test: tuple[Array, Array] | None
    ) -> None:
        self.flow, self.plan, self.start, self.keeping, self.test = flow, plan.tested(flow, test), cloud, keeping, test
        self.directory, self.share = keeping.directory, cloud.share
        self.ranks: Communicator = Alone() if cloud.share is None else cloud.share.communicator
        self.identity = identity(flow, plan, cloud)
        self.state = Progress([], Recorder())
        self.saved_at = clock.perf_counter()
        self.attributes: dict[str, Any] = {}
        self.given_up = False  # whether the clouds of the state may have been written over by a step under way

    # Directory -------------------------------------------------------------------------------------------------

    def already_finished(self) -> Run | None:
        """Return the run that the directory holds if it is finished; refuse a directory of another run."""
        if self.directory is None:
            return None
        directory, files = self.directory, self.keeping.files
        whole = on_first(self.ranks, lambda: recovery.stands(directory, self.identity, files))
        return load(self.directory, self.flow) if whole else None

    def open(self) -> None:
        """Take the clouds from the last checkpoint, or make them; nothing is written before all is checked."""
        on_disk = mapped.folder_of(self.start.z)
        found = None if self.directory is None else store.read_checkpoint(self.directory, self.share, on_disk)
        if found is not None and self.directory is not None:
            clouds, records, saved = found
            recovery.refuse_other(self.directory, saved["identity"], self.identity)
            recovery.check_clouds(self.directory, clouds, self.start, self.plan.replicates)
            kept = saved["absent"], saved.get("errors", {}), saved["timings"]
            self.state = Progress(clouds, Recorder.restore(records), *kept)
        else:
            start, plan = self.start, self.plan
            self.state.clouds = [start.replicated(start.replicate + r) for r in range(plan.replicates)]
            check_start(self.flow, plan, self.state.clouds)
        self.attributes = {"title": self.keeping.extra.get("title", "noisy gradient descent of a two-layer network")}
        self.attributes |= describe(self.flow, self.plan, self.state.clouds[0])
        self.attributes |= spread.note(self.state.clouds[0])
        if not any("Lambda" in note for note in self.keeping.extra.get("data", {}).get("notes", ())):
            warn_of_no_gap(self.attributes)
        if self.directory is not None:
            on_first(self.ranks, functools.partial(self._begin, self.directory))
            self.describe("running", "")

    def _begin(self, directory: Path) -> None:
        store.prepare(directory)
        for name, text in self.keeping.files.items():
            if not (directory / name).exists():
                store.write_bytes(directory / name, text.encode())

    def describe(self, status: str, message: str) -> dict[str, Any]:
        """Return the metadata, and write it if there is a directory."""
        metadata = {
            "status": status,
            "message": message,
            "identity": self.identity,
            "versions": results.versions(),
            "machine": results.machine(),
            "ranks": self.ranks.size,
            "timings": {k: round(v, 4) for k, v in self.state.timings.items()},
            "absent": self.state.absent,
            **({"errors": self.state.errors} if self.state.errors else {}),
            **self.keeping.extra,
        }
        if self.directory is not None:
            path = self.directory / store.METADATA
            on_first(self.ranks, lambda: store.write_json(path, metadata))
        return metadata

    def checkpoint(self) -> None:
        """Write a checkpoint if there is a directory."""
        if self.directory is None:
            return
        state = self.state
        with state.timed("checkpoint"):
            state.clouds = [self.flow.home(cloud) for cloud in state.clouds]
            self._demand_finite()  # the checkpoint before is worth more than one that nothing can go on from
            saved = {"absent": state.absent, "errors": state.errors, "timings": state.timings}
            saved["identity"] = self.identity
            store.write_checkpoint(self.directory, state.clouds, state.recorder.arrays(), saved)
        self.saved_at = clock.perf_counter()

    def _demand_finite(self) -> None:
        """Raise DivergedError, on all ranks, if particles of the state are not finite."""
        for cloud in self.state.clouds:
            demand_finite(cloud)

    # Loop ------------------------------------------------------------------------------------------------------

    def run(self, caught: list[int], on_failure: str) -> Run:
        """Step until the end; whatever happens, what was recorded is kept."""
        failure: MeanfieldError | None = None
        status = "finished"
        try:
            self.advance(caught)
        except Interrupted as error:
            status, failure = "interrupted", error
        except DivergedError as error:
            status, failure = "diverged", error
        except (Exception, SystemExit) as error:  # a function of the user's may call sys.exit
            if all_here(self.ranks):
                with contextlib.suppress(MeanfieldError):
                    self.close("failed", f"{type(error).__name__}: {error}")
            raise
        if failure is not None and not all_here(self.ranks):
            raise failure
        run = self.close(status, "" if failure is None else str(failure))
        if failure is not None and on_failure == "raise":
            failure.run = run  # type: ignore[attr-defined]
            raise failure
        return run

    def advance(self, caught: list[int]) -> None:
        """Record the start, then step and record until the end or a signal."""
        state = self.state
        meter = progress.meter(self.plan.end, quiet=self.keeping.quiet or self.ranks.rank > 0)
        try:
            if not state.recorder.columns:
                with state.timed("steps"), self.checked_numbers(False):
                    for cloud in state.clouds:
                        self.flow.prepare(cloud)
                self.record(state.clouds, -math.inf)
            while state.time < self.plan.end:
                stopped = self._keep_up(caught)
                if stopped:
                    now = f"{state.time:.6g}"
                    raise Interrupted(f"stopped by signal {stopped} at time {now}; run again to go on")
                with state.timed("steps"), self.checked_numbers(True):
                    moved = self.moved()
                self.record(moved, state.time)
                meter.update(state.time, state.clouds[0].step, self.last_loss())
            self._keep_up([])  # the last checkpoint may be damaged later: the one before is then near
            self._demand_finite()  # nobody may have looked: there may be no observable
        finally:
            meter.close()

    def _keep_up(self, caught: list[int]) -> int:
        """Return the signal that came to any rank, 0 where none did; write a checkpoint if rank 0 says it is time."""
        spent = clock.perf_counter() - self.saved_at  # a clock may have been set back
        due = self.ranks.rank == 0 and not 0 <= spent < self.keeping.checkpoint_seconds
        word = int(self.ranks.largest((caught[0] if caught else 0) << 1 | due))
        if word == 1:
            self.checkpoint()
        return word >> 1

    def moved(self) -> list[Cloud]:
        """Return all replicates after one common step that ends on the next stop or short of it."""
        flow, clouds = self.flow, self.state.clouds
        eta, stop = self.plan.length(flow.propose(clouds), flow.eta == AUTO, clouds[0].time, clouds[0].step)
        self.given_up = self.gives_up(clouds[0])
        moved = [(flow.advance if self.given_up else flow.step)(cloud, eta) for cloud in clouds]
        return [self._landed(cloud, stop) for cloud in moved]

    def gives_up(self, cloud: Cloud) -> bool:
        """Return whether steps may write over the clouds: the start is the caller's, small clouds are not worth it."""
        risk = self.flow.objective.network
        if risk is not None and risk.choice(cloud.m).name == "cuda":
            return cloud.step > 0  # on a device clouds stay there between records
        ours = cloud.z is not self.start.z and cloud.z is not self.start.reference
        large = self.plan.replicates * cloud.nbytes > GIVEN_UP * parallel.memory()
        return ours and (large or mapped.folder_of(cloud.z) is not None)

    def _landed(self, cloud: Cloud, stop: float | None) -> Cloud:
        exact = cloud if stop in (None, cloud.time) else cloud.replace(time=stop)
        if self.flow.objective.network is not None and exact is not cloud:
            self.flow.objective.network.remember(exact, cloud)
        self.flow.prepare(exact)
        return exact

    @contextlib.contextmanager
    def checked_numbers(self, begun: bool) -> Iterator[None]:
        """Turn what cannot be computed any more into a divergence; of the start it is bad input."""
        try:
            yield
        except (InputError, ArithmeticError, np.linalg.LinAlgError) as error:
            if not begun:
                raise InputError(f"the start cannot be measured: {error}") from error
            if isinstance(error, DivergedError):
                raise
            what = "" if isinstance(error, InputError) else "the numbers broke down, "
            raise DivergedError(f"stopped after time {self.state.time:.6g}: {what}{error}") from error

    def last_loss(self) -> float:
        """Return the last recorded loss, or NaN."""
        return float(np.mean(self.state.recorder.columns.get("loss", [np.nan])[-1]))

    def close(self, status: str, message: str) -> Run:
        """Save what there is and return it."""
        state = self.state
        attrs = {**self.attributes, "status": status, "steps": state.clouds[0].step}
        full = self.flow.objective.full
        labels = full.y if isinstance(full, Risk) else None
        data = results.dataset(state.recorder, self.plan.observables, attrs, labels)
        clouds = [] if self.given_up else state.clouds
        if self.test is not None and isinstance(full, Risk) and clouds:
            data = results.with_test(data, [full.predict(c, self.test[0]) for c in clouds], self.test[1])
        if self.directory is not None:
            if clouds:
                with contextlib.suppress(DivergedError):
                    self.checkpoint()
            path = self.directory / store.RECORDS
            on_first(self.ranks, lambda: store.write_dataset(path, data))
        return Run(data, clouds, self.flow, status, message, self.describe(status, message), self.directory)

    # Records ---------------------------------------------------------------------------------------------------

    def record(self, clouds: list[Cloud], before: float) -> None:
        """Make `clouds` the state, with all that is due after the time `before`; both or neither."""
        state, row = self.state, Recorder()
        step, now = clouds[0].step, clouds[0].time
        cheap, costly, due, kept = self.plan.due_now(before, now, step)
        if cheap or due or kept:
            clouds = [self.flow.home(cloud) for cloud in clouds]
        if cheap:
            row.add("time", now)
            row.add("eta", clouds[0].eta)
            self._measure(row, clouds, False, "records", step > 0)
            if not np.isfinite(row.columns.get("loss", 0.0)).all():
                raise DivergedError(f"the loss is not finite any more at time {now:.6g}; take a smaller eta")
        whole = spread.gathered(clouds, self.flow) if costly or due else []
        if costly:
            row.add("bound_time", now)
            self._measure(row, whole, True, "bounds", step > 0)
        for record in due:
            row.add(f"at.{record.name}", now)
            values = functools.partial(record.values, whole, self.flow, state)
            row.add(record.name, on_first(self.ranks, values))
        if self.directory is not None and kept:
            store.write_clouds(self.directory / f"cloud_{step}.npz", clouds)
        state.clouds = clouds
        self.given_up = False
        state.recorder.extend(row)

    def _measure(self, row: Recorder, clouds: list[Cloud], costly: bool, part: str, begun: bool) -> None:
        with self.state.timed(part), self.checked_numbers(begun):
            for item in self.plan.observables:
                if item.costly == costly and item.name not in self.state.absent:
                    self._measure_one(row, clouds, item)

    def _measure_one(self, row: Recorder, clouds: list[Cloud], item: Observable) -> None:
        try:
            value = on_first(self.ranks, lambda: self._read(clouds, item)) if item.costly else self._read(clouds, item)
        except Unavailable as reason:
            if item.name in self.state.recorder.columns:
                raise DivergedError(f"'{item.name}' could be measured before and cannot any more: {reason}") from reason
            self.state.absent[item.name] = str(reason)
            return
        row.add_result(item.name, value)

    def _read(self, clouds: list[Cloud], item: Observable) -> Any:
        if item.pooled:
            return item.function(tuple(clouds), self.flow)
        return [item.function(cloud, self.flow) for cloud in clouds]


def load(directory: str | Path, flow: Flow | None = None) -> Run:
    """Return the run that a directory holds.

    Raises
    ------
    InputError
        If it is no run directory, or a file in it is damaged.
    """
    directory = Path(directory)
    metadata, data = store.read_metadata(directory), store.read_dataset(directory / store.RECORDS)
    on_disk = metadata.get("config", {}).get("cloud", {}).get("on_disk", False)
    found = store.read_checkpoint(directory, folder=directory if on_disk else None)
    # Records of an interruption lie beside later checkpoints while the run goes on: then clouds do not belong to them.
    clouds = found[0] if found is not None and found[0][0].step == data.attrs.get("steps") else []
    return Run(data, clouds, flow, metadata.get("status", "?"), metadata.get("message", ""), metadata, directory)
