"""Runs over a grid: the product of the lists in [sweep], every point a run directory of its own.

    DIR/points/<id>/    what `meanfield run` writes, without a report: `verify`, `report` and `compare` take it
    DIR/sweep.json      which point is where, and how it ended
    DIR/sweep.nc        one Dataset of all points (`ensemble.combine`)
    DIR/config.toml     the resolved configuration with its table [sweep]

The id of a point is made of its resolved configuration, its data and the version of the package. So a sweep that was
stopped or killed goes on where it was, and one whose configuration was edited runs what is new alone.
"""

import signal
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanfield import __version__, ensemble, progress, signals, store
from meanfield import config as configuration
from meanfield.config import RunConfig
from meanfield.errors import DivergedError, InputError, Interrupted
from meanfield.grid import Point, coupling, plan
from meanfield.locks import claimed
from meanfield.workers import (
    DIVERGED,
    ENDED,
    FAILED,
    FINISHED,
    INTERRUPTED,
    REFUSED,
    STOPPING,
    WAITING,
    Outcome,
    pool,
    run_point,
    state,
)

if TYPE_CHECKING:
    import xarray

POINTS, INDEX, RECORDS, CONFIG = "points", "sweep.json", "sweep.nc", "config.toml"
POLL = 0.2  # seconds between two looks at whether a signal came
Say = Callable[[str], None]


def sweep(
    config: RunConfig | Mapping[str, Any] | str | Path,
    directory: str | Path | None = None,
    *,
    executor: Executor | None = None,
    jobs: int = 1,
    threads: int | None = None,
    backend: str | None = None,
    quiet: bool = True,
    say: Say = lambda text: None,
) -> "xarray.Dataset":
    """Run every point of a grid that has not ended yet, and return one Dataset of all.

    Points of one `cloud.seed` share their start: the cloud of m particles is the beginning of the cloud of 2m. They
    share their noise where they share their time grid, which flow.eta = "auto" does not promise (`coupling`).

    Parameters
    ----------
    config : RunConfig, mapping or path
        With a table [sweep] of dotted keys to lists.
    directory : path, optional
        Where results are kept; without one they are gone when the Dataset is made.
    executor : concurrent.futures.Executor, optional
        Where points run: the function and its arguments can be pickled, and nothing but `submit` is asked for. Workers
        must see the same files.
    jobs : int
        Without an executor: points that run at a time, in processes that are spawned (so a script that asks for more
        than one needs the guard ``if __name__ == "__main__":``).
    threads : int, optional
        Threads of one point; by default the threads of this process divided by `jobs`.
    backend : str, optional
        Where contractions run, in place of `cloud.backend`.
    quiet : bool
        Show no line of progress of the run that is under way (one point at a time).
    say : callable
        Is told of every point that ends, and of what keeps points from being coupled.

    Returns
    -------
    xarray.Dataset
        See `ensemble.combine`; `status` and `message` say how each point ended, `directory` where it is.

    Raises
    ------
    InputError
        If a point has bad input: before anything runs. Or if the directory holds something else, or a worker died.
    Interrupted
        After SIGINT or SIGTERM; what was computed is kept, and the same call goes on.
    """
    chosen = _checked_config(config)
    if not (isinstance(jobs, int) and jobs >= 1):
        raise InputError(f"jobs must be a whole number, at least 1, got {jobs!r}")
    if backend is not None:
        chosen = replace(chosen, cloud=replace(chosen.cloud, backend=backend))
    points = plan(chosen)
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="meanfield-") as folder:
            return _Sweep(chosen, points, Path(folder), say).run(executor, jobs, threads, quiet)
    store.check_writable(Path(directory))
    store.refuse_strangers(Path(directory), (POINTS, INDEX, RECORDS, CONFIG, STOPPING))
    return _Sweep(chosen, points, Path(directory), say).run(executor, jobs, threads, quiet)


def _checked_config(config: RunConfig | Mapping[str, Any] | str | Path) -> RunConfig:
    if isinstance(config, str | Path):
        config = configuration.load(config)
    elif not isinstance(config, RunConfig):
        config = configuration.parse(config)
    if not config.sweep:
        raise InputError('there is nothing to sweep: wanted a table [sweep] with lists, as "flow.lam" = [0.01, 0.1]')
    return config


# --- all of them --------------------------------------------------------------------------------------------------


def summary(data: "xarray.Dataset") -> tuple[str, int]:
    """Return how the points of a sweep ended, in words, and the exit code of the command."""
    states = data.status.values.ravel().tolist()
    counts = {status: states.count(status) for status in dict.fromkeys(states)}
    sizes = ", ".join(f"{size} {dim}" for dim, size in data.status.sizes.items())
    text = f"{len(states)} points ({sizes}): " + ", ".join(f"{count} {status}" for status, count in counts.items())
    if counts.keys() <= {FINISHED}:
        return text, 0
    return text, DivergedError.exit_code if counts.keys() <= set(ENDED) else InputError.exit_code


class _Sweep:
    """One call of `sweep`: its points, and the outcomes as they come."""

    def __init__(self, config: RunConfig, points: Sequence[Point], directory: Path, say: Say) -> None:
        self.config, self.points, self.directory, self.say = config, points, directory, say
        self.outcomes: dict[str, Outcome] = {}
        self.bugs: list[BaseException] = []

    def place(self, point: Point) -> Path:
        return self.directory / POINTS / point.name

    def todo(self) -> list[Point]:
        """Return the points that have not ended, each directory once."""
        waiting = {p.name: p for p in reversed(self.points) if state(self.place(p))[0] not in ENDED}
        return [p for p in self.points if waiting.get(p.name) is p]

    def run(self, executor: Executor | None, jobs: int, threads: int | None, quiet: bool) -> "xarray.Dataset":
        store.prepare(self.directory / POINTS)
        with claimed(self.directory, wait=False), signals.collected() as caught:
            (self.directory / STOPPING).unlink(missing_ok=True)
            store.write_bytes(self.directory / CONFIG, configuration.dumps(self.config).encode())
            todo = self.todo()
            self.announce(todo)
            if todo:  # what is there belongs to another set of points
                (self.directory / RECORDS).unlink(missing_ok=True)
            self.write_index()
            try:
                with pool(executor, min(jobs, len(todo)), threads) as (workers, share, forward):
                    tasks = [(p, (p.config, self.place(p), share, quiet)) for p in todo]
                    self.carry(tasks, workers, caught, forward)
            finally:
                (self.directory / STOPPING).unlink(missing_ok=True)
                self.write_index()
            self.complain(caught)
            data = self.collect()
            store.write_dataset(self.directory / RECORDS, data)
        return data

    def announce(self, todo: Sequence[Point]) -> None:
        sizes = " x ".join(f"{len(values)} {key}" for key, values in self.config.sweep.items())
        self.say(f"{len(self.points)} points ({sizes}), {len(todo)} to run")
        for sentence in coupling(self.config):
            self.say(f"points are not coupled by their noise: {sentence}")
        known = {p.name for p in self.points}
        others = [path.name for path in (self.directory / POINTS).iterdir() if path.name not in known]
        if others:
            self.say(
                f"{len(others)} points of other configurations stay in {self.directory / POINTS}, out of {RECORDS}"
            )

    def carry(
        self,
        tasks: Sequence[tuple[Point, tuple[Any, ...]]],
        executor: Executor | None,
        caught: list[int],
        forward: Callable[[], None],
    ) -> None:
        """Run the points; one that ends badly keeps no other from being run."""
        count = progress.Count(len(tasks))
        if executor is None:
            for point, task in tasks:
                if caught:
                    break
                outcome = run_point(*task)
                self.note(point, outcome, count)
                if outcome.status == INTERRUPTED:
                    caught.append(caught[0] if caught else signal.SIGINT)
            return
        pending = {executor.submit(run_point, *task): point for point, task in tasks}
        while pending:
            done, _ = wait(pending, POLL, FIRST_COMPLETED)
            for future in done:
                self.note(pending.pop(future), self.outcome(future), count)
            if caught:
                (self.directory / STOPPING).touch()
                pending = {future: point for future, point in pending.items() if not future.cancel()}
                forward()

    def outcome(self, future: "Future[Outcome]") -> Outcome:
        """Return what a worker returned; what it raised is kept for the end."""
        try:
            return future.result()
        except BrokenExecutor as error:
            raise InputError(
                "a worker died (killed, or out of memory): finished points are kept, and the same command goes on; "
                "take fewer --jobs or a smaller cloud.m"
            ) from error
        except Exception as error:  # noqa: BLE001
            self.bugs.append(error)
            return Outcome(FAILED, f"{type(error).__name__}: {error}")

    def note(self, point: Point, outcome: Outcome, count: progress.Count) -> None:
        if outcome.status == WAITING:
            return
        self.outcomes[point.name] = outcome
        why = f", {outcome.message}" if outcome.message else ""
        self.say(f"{count.next()} {point.label}: {outcome.status}{why}")
        for text in outcome.warned:
            self.say(f"warning: {text}")

    def found(self, point: Point) -> tuple[str, str]:
        """Return status and message of a point: of its directory if it ended, else as this call has seen it."""
        status, message = state(self.place(point))
        seen = self.outcomes.get(point.name)
        return (seen.status, seen.message) if seen is not None and status not in ENDED else (status, message)

    def write_index(self) -> None:
        rows = [
            {
                "values": dict(p.values),
                "directory": f"{POINTS}/{p.name}",
                "status": status,
                "message": message,
            }
            for p, (status, message) in ((p, self.found(p)) for p in self.points)
        ]
        index = {
            "version": __version__,
            "keys": dict(self.config.sweep),
            "coupling": coupling(self.config),
            "points": rows,
        }
        store.write_json(self.directory / INDEX, index)

    def complain(self, caught: list[int]) -> None:
        """Raise what stopped the sweep; warn of points that did not finish."""
        states = [self.found(p) for p in self.points]
        ended = sum(status in ENDED for status, _ in states)
        if caught:
            raise Interrupted(
                f"stopped by signal {int(caught[0])}: {ended} of {len(states)} points have ended and are kept, those "
                "that had begun go on from their last checkpoint; the same command goes on"
            )
        if self.bugs:
            raise self.bugs[0]
        for kind in (DIVERGED, REFUSED, FAILED):
            hit = [(p, why) for p, (status, why) in zip(self.points, states, strict=True) if status == kind]
            if hit:
                text = f"{len(hit)} of {len(states)} points {kind}; the first is {hit[0][0].label}: {hit[0][1]}"
                warnings.warn(text, UserWarning, stacklevel=4)

    def records(self, point: Point) -> "xarray.Dataset":
        """Return what a point recorded: what its worker has read already, or what its directory has."""
        seen = self.outcomes.get(point.name)
        if seen is not None and seen.records is not None:
            return seen.records
        return store.read_dataset(self.place(point) / "records.nc")

    def collect(self) -> "xarray.Dataset":
        """Return the Dataset of all points."""
        states = [self.found(p) for p in self.points]
        found = [
            self.records(p) if status in ENDED else None for p, (status, _) in zip(self.points, states, strict=True)
        ]
        words = {
            "status": [status for status, _ in states],
            "message": [message for _, message in states],
            "directory": [f"{POINTS}/{p.name}" for p in self.points],
        }
        data = ensemble.combine(self.config.sweep, found, words)
        title = self.config.output.title
        more = {"title": title} if title else {}
        return data.assign_attrs(more | {"version": __version__, "coupling": "; ".join(coupling(self.config))})
