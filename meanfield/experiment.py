"""From a configuration to a finished run directory: data, network, cloud, flow, records, checks, report.

`build` makes the objects that a configuration names, `carry` simulates them in a run directory, `run` adds checks and
the report.
"""

import tempfile
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from meanfield import backends, datasets, parallel, results, spread, store
from meanfield import config as configuration
from meanfield.backends import Choice
from meanfield.cloud import Cloud, gaussian_cloud
from meanfield.config import RunConfig
from meanfield.errors import InputError
from meanfield.flow import Flow
from meanfield.footprint import check_memory
from meanfield.keeping import held
from meanfield.locks import claimed
from meanfield.minibatch import Minibatch
from meanfield.objectives import Objective
from meanfield.planning import check_fits, check_start, checked_test, make_plan
from meanfield.ranks import Alone, Communicator, on_first
from meanfield.recovery import understood
from meanfield.risk import Risk
from meanfield.simulate import load, simulate
from meanfield.units import Unit
from meanfield.verify import Verification, verify

CONFIG = "config.toml"
DRAWN = 1 << 18  # particles in the figure of the cloud
SAID = 8  # ranks whose devices are said; metadata.json has all
FEW = 64  # particles of a cloud that only stands for one of the configuration's size


@dataclass(frozen=True, eq=False)
class Experiment:
    """The objects that a configuration names."""

    config: RunConfig
    data: datasets.Data
    flow: Flow
    cloud: Cloud


def build(
    config: RunConfig,
    data: datasets.Data | None = None,
    folder: Path | None = None,
    communicator: Communicator | None = None,
) -> Experiment:
    """Return the data (loaded, unless given), the flow and the starting cloud of a configuration.

    Clouds on disk lie in `folder`, or where the system keeps temporary files. Where ranks come, the cloud is this
    one's rows.

    Raises
    ------
    InputError
        If data or numbers are unfit, or the clouds would not fit into memory or on the disk.
    """
    if config.flow.time is None and config.flow.steps is None:
        raise InputError("how long to run did not come: type flow.time = 2.0 (or flow.steps with a fixed eta)")
    folder = (folder or Path(tempfile.gettempdir())) if config.cloud.on_disk else None
    data = datasets.load(config.data) if data is None else data
    check_memory(config, len(data.x), data.x.shape[1], communicator)
    network, chosen = config.network, config.flow
    unit = Unit(network.activation, bias=network.bias)
    alpha = configuration.resolve_alpha(network.alpha, config.cloud.m)
    risk = Risk(data.x, data.y, unit, alpha, network.centred, network.loss, config.cloud.backend)
    objective: Objective = Minibatch(risk, chosen.batch) if chosen.batch else risk
    flow = Flow(
        objective, chosen.lam, chosen.eta, chosen.scheme, train=chosen.train, allow_unstable=chosen.allow_unstable,
        account=not config.cloud.on_disk,
    )  # fmt: skip
    shape = config.cloud
    share = None if communicator is None else spread.share_of(risk, shape.m, communicator)
    cloud = gaussian_cloud(shape.m, unit, risk.d, shape.seed, dtype=shape.dtype, folder=folder, share=share)
    return Experiment(config, data, flow, cloud)


def check(config: RunConfig, data: datasets.Data) -> None:
    """Refuse what `carry` would refuse, given the data, without a step; only explicit steps need the clouds for it.

    Raises
    ------
    InputError
        As `carry` raises it.
    """
    check_memory(config, len(data.x), data.x.shape[1])
    shape, record, length = config.cloud, config.record, config.flow
    alpha = configuration.resolve_alpha(config.network.alpha, shape.m)
    few = {"cloud.m": min(shape.m, FEW), "network.alpha": alpha}
    one = build(configuration.at(config, few), data)
    chosen, bounds, shots = record.observables or None, record.bounds_every, record.snapshots
    plan = make_plan(one.flow, length.time, length.steps, chosen, (), record.every, bounds, shots, shape.replicates)
    check_fits(one.flow, one.cloud)
    checked_test(one.flow, _test(data))
    if length.eta == "auto":
        return
    start = build(config, data).cloud if one.flow.method.explicit else one.cloud
    check_start(one.flow, plan, [start.replicated(r) for r in range(shape.replicates)])


def _test(data: datasets.Data) -> tuple[np.ndarray, np.ndarray] | None:
    return None if data.x_test is None or data.y_test is None else (data.x_test, data.y_test)


def check_claim(config: RunConfig, directory: Path) -> None:
    """Refuse a directory that belongs to another configuration, holds something else, or could not be written to.

    Raises
    ------
    InputError
        In each of these cases; nothing is written.
    """
    store.check_writable(directory)
    path = directory / CONFIG
    if not path.exists():
        if not (directory / "metadata.json").exists():
            store.refuse_strangers(directory, ())
        return
    try:
        different = configuration.differences(configuration.load(path), config)
    except InputError as error:
        raise InputError(f"{error} Remove that file, and the same command goes on: it is written anew.") from error
    if different:
        raise InputError(
            f"{directory} was made by another configuration ({'; '.join(different[:3])}"
            f"{'; ...' if len(different) > 3 else ''}); nothing was overwritten, choose another directory with --out"
        )


def run(
    config: RunConfig,
    directory: Path,
    *,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    communicator: Communicator | None = None,
) -> results.Run:
    """Carry a configuration through: the run goes on where it stopped, and ends with checks and a report.

    `say` is told, before anything runs, what was done to the data. With a communicator all ranks make this call, and
    rank 0 judges and reports.

    Returns
    -------
    Run
        With `verify.json`, `report.html` and `figures/` in its directory.
    """
    check_claim(config, directory)
    with held(directory, communicator or Alone()):
        done = carry(config, directory, quiet=quiet, say=say, communicator=communicator)
        if communicator is None:
            report(directory, done)
            return done
        assert done.flow is not None
        clouds = spread.gathered(done.clouds, done.flow) if done.clouds else []

        def reported() -> dict[str, Any]:
            shown = replace(done, clouds=clouds)
            report(directory, shown)
            return shown.metadata

        done.metadata = on_first(communicator, reported)
    return done


def carry(
    config: RunConfig,
    directory: Path,
    *,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    communicator: Communicator | None = None,
) -> results.Run:
    """Carry a configuration through as `run` does, without checks and report."""
    begin = clock.perf_counter()
    check_claim(config, directory)
    parallel.set_memory(config.output.memory_mb << 20)
    experiment = build(config, folder=directory, communicator=communicator)
    choice = (
        Choice("", "")
        if experiment.flow.objective.network is None
        else experiment.flow.objective.network.choice(experiment.cloud.m)
    )
    devices = backends.devices(choice.name, experiment.cloud.share)
    for note in [*_notes(experiment), f"backend {choice.name}: {choice.why}", *_taken(devices)] if say else ():
        say(note)  # type: ignore[misc]
    config = _resolved(config, choice.name, experiment.data)
    record = config.record
    return simulate(
        experiment.flow,
        experiment.cloud,
        config.flow.time,
        steps=config.flow.steps,
        replicates=config.cloud.replicates,
        observables=record.observables or None,
        every=record.every,
        bounds=record.bounds_every,
        snapshots=record.snapshots,
        directory=directory,
        checkpoint_seconds=config.output.checkpoint_seconds,
        quiet=quiet,
        test=_test(experiment.data),
        files={CONFIG: configuration.dumps(config)},
        communicator=communicator,
        extra={
            "title": config.output.title or directory.name,
            "config": configuration.to_dict(config),
            "data": {"notes": list(experiment.data.notes), "names": list(experiment.data.names)},
            "backend": choice.name,
            "backend_reason": choice.why,
            **({"devices": devices} if devices else {}),
            "startup_seconds": round(clock.perf_counter() - begin, 4),
        },
    )


def _resolved(config: RunConfig, backend: str, data: datasets.Data) -> RunConfig:
    """Return the configuration that repeats a run: with the backend that was chosen and the names of its files."""
    found = {"cloud.backend": backend, "data.sha256": data.sha256}
    return configuration.at(config, {key: value for key, value in found.items() if value})


def _taken(devices: Sequence[str]) -> list[str]:
    """Return the line that says which device each rank took, if there are any."""
    more = "; ..." if len(devices) > SAID else ""
    return [f"devices: {'; '.join(devices[:SAID])}{more}"] if devices else []


def _notes(experiment: Experiment) -> list[str]:
    """Return what was selected and scaled (what was warned of is left out), and whether Assumption 4.1 fails."""
    notes = [note for note in experiment.data.notes if "Lambda" not in note]
    longest = float(np.linalg.norm(experiment.data.x, axis=1).max())
    if longest > 1 + 1e-12 or float(np.abs(experiment.data.y).max()) > 1 + 1e-12:
        notes.append("Assumption 4.1 fails: inputs or labels are longer than 1; data.scale = true would scale them")
    return notes


def report(directory: Path, done: results.Run | None = None) -> tuple[Path, Verification]:
    """Judge a run, write `verify.json`, the figures and `report.html`; return the page and the verdicts.

    Raises
    ------
    InputError
        If the directory holds no run or is damaged, another process works on it, or it cannot be written to.
    """
    if done is not None:
        return _report(directory, done)
    store.read_metadata(directory)  # before it is claimed: whatever is no run directory is left as it is
    with claimed(directory), understood(directory):
        return _report(directory, load(directory))


def _report(directory: Path, done: results.Run) -> tuple[Path, Verification]:
    from meanfield import report as page

    begin = clock.perf_counter()
    verification = verify(done)
    store.write_json(directory / "verify.json", verification.records())
    clouds, test = None, None
    if done.clouds:
        clouds = _picture(done.clouds)
    if "test_prediction" in done.data:
        test = (done.data.test_label.values, done.data.test_prediction.values.mean(0))
    config_text = (
        (directory / CONFIG).read_text(encoding="utf-8", errors="replace") if (directory / CONFIG).exists() else ""
    )
    path = page.write(
        directory,
        done.data,
        config_text=config_text,
        metadata=done.metadata,
        verdicts=verification.records(),
        clouds=clouds,
        test=test,
    )
    _record_report(directory, done, verification, clock.perf_counter() - begin)
    return path, verification


def _picture(clouds: Sequence[Cloud]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return particles before and after (the first of each replicate, DRAWN in all), for the figure of the cloud.

    The coupled reference has the law of the start and the noise of the end, so the difference shows what was learned.
    """
    some = slice(DRAWN // len(clouds) + 1)
    before = [(cloud.origin() if cloud.reference is None else cloud.reference)[some] for cloud in clouds]
    weights = None
    if clouds[0].weights is not None:
        weights = np.concatenate([cloud.weights[some] for cloud in clouds])  # type: ignore[index]
        weights /= weights.sum()
    return np.concatenate(before), np.concatenate([cloud.z[some] for cloud in clouds]), weights


def _record_report(directory: Path, done: results.Run, verification: Verification, seconds: float) -> None:
    metadata: dict[str, Any] = dict(done.metadata)
    metadata["timings"] = {**metadata.get("timings", {}), "report": round(seconds, 4)}
    metadata["violated"] = [v.statement for v in verification.violated]
    store.write_json(directory / "metadata.json", metadata)
    done.metadata.update(metadata)


def compare(first: Path, second: Path) -> tuple[list[str], bool]:
    """Return lines that say where two runs differ and by how much, and whether their numbers are equal bit for bit."""
    with understood(first):
        a = load(first)
    with understood(second):
        b = load(second)
    lines = []
    if (first / CONFIG).exists() and (second / CONFIG).exists():
        lines += configuration.differences(configuration.load(first / CONFIG), configuration.load(second / CONFIG))
    equal = True
    for name in sorted(map(str, {*a.data.variables, *b.data.variables})):
        text = _difference(a.data, b.data, name)
        equal = equal and not text
        lines += [f"{name}: {text}"] if text else []
    for index, (x, y) in enumerate(zip(a.clouds, b.clouds, strict=False)):
        if x.z.shape != y.z.shape or not np.array_equal(x.z, y.z):
            equal = False
            gap = f"largest difference {np.abs(x.z - y.z).max():.3g}" if x.z.shape == y.z.shape else "other shapes"
            lines.append(f"last cloud of replicate {index}: {gap}")
    if len(a.clouds) != len(b.clouds):
        equal = False
        lines.append(f"replicates: {len(a.clouds)} and {len(b.clouds)}")
    return lines if equal else [*lines, *_circumstances(a.metadata, b.metadata)], equal


def _circumstances(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return what two runs that differ were made by, where that differs too: it may be why."""
    lines = []
    for table in ("versions", "machine"):
        first, second = a.get(table, {}), b.get(table, {})
        lines += [
            f"{table}: {key} {first.get(key, 'not there')} -> {second.get(key, 'not there')}"
            for key in [*first, *(key for key in second if key not in first)]
            if first.get(key) != second.get(key) and key != "threads"
        ]
    return lines


def _difference(a: Any, b: Any, name: str) -> str:
    """Return how a variable differs between two Datasets, or an empty string."""
    if name not in a.variables or name not in b.variables:
        return f"only in the {'first' if name in a.variables else 'second'}"
    x, y = a[name].values, b[name].values
    if x.shape != y.shape:
        return f"shape {x.shape} and {y.shape}"
    if x.dtype.kind in "fc" and y.dtype.kind in "fc":
        if np.array_equal(x, y, equal_nan=True):
            return ""
        with np.errstate(invalid="ignore"):
            gap = np.abs(x - y)
        largest = float(np.nanmax(gap)) if np.isfinite(gap).any() else float("nan")
        scale = float(np.nanmax(np.abs(x))) if np.isfinite(x).any() else 1.0
        return f"largest difference {largest:.3g} (largest value {scale:.3g})"
    return "" if np.array_equal(x, y) else f"{int(np.sum(x != y))} of {x.size} values differ"
