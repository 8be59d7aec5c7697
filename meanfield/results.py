"""What a run leaves behind: records as they grow, the Dataset made of them, and the `Run` that holds it all."""

import contextlib
import functools
import platform
import time as clock
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meanfield.cloud import Cloud
from meanfield.estimate import Estimate
from meanfield.flow import Flow
from meanfield.observables import Observable

if TYPE_CHECKING:
    import xarray

Array = np.ndarray
# Bits depend on the first of them: what computes, and what compiles what computes.
VERSIONED = ("numpy", "scipy", "numba", "llvmlite", "cupy-cuda12x", "pykeops", "mpi4py",
             "xarray", "h5netcdf", "matplotlib", "scikit-learn", "POT", "threadpoolctl")  # fmt: skip


class Recorder:
    """Columns of recorded values, one row a record; kept as arrays in checkpoints and made into a Dataset."""

    def __init__(self, columns: dict[str, list] | None = None) -> None:
        self.columns: dict[str, list] = columns or {}

    def add(self, name: str, value: Any) -> None:
        """Append one value to a column."""
        self.columns.setdefault(name, []).append(value)

    def add_result(self, name: str, result: Any) -> None:
        """Append a result: an Estimate spreads over name, name_se and name_source, a dict over its own names."""
        if isinstance(result, dict):
            for key, value in result.items():
                self.add_result(key, value)
        elif isinstance(result, Estimate):
            self.add(name, result.value)
            self.add(f"{name}_se", result.se)
            self.add(f"{name}_source", result.source)
        else:
            self.add(name, result)

    def extend(self, row: "Recorder") -> None:
        """Append the rows of another recorder."""
        for name, values in row.columns.items():
            self.columns.setdefault(name, []).extend(values)

    def arrays(self) -> dict[str, Array]:
        """Return the columns as arrays, for a checkpoint."""
        return {name: np.asarray(values) for name, values in self.columns.items()}

    @classmethod
    def restore(cls, arrays: dict[str, Array]) -> "Recorder":
        """Return the recorder whose `arrays` these are."""
        return cls({name: list(values) for name, values in arrays.items()})


@dataclass(eq=False)
class Progress:
    """What changes while the loop runs; clouds and records always belong together.

    `errors` holds, by record, how often its function failed and what it said first.
    """

    clouds: list[Cloud]
    recorder: Recorder
    absent: dict[str, str] = field(default_factory=dict)
    errors: dict[str, dict[str, Any]] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def time(self) -> float:
        """The time of equation (3.4)."""
        return self.clouds[0].time

    def note_error(self, name: str, error: Exception, time: float) -> None:
        """Count what a record's function raised, and keep the first."""
        known = self.errors.setdefault(name, {"count": 0, "first": f"{type(error).__name__}: {error}", "time": time})
        known["count"] += 1

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds spent inside to a part's timing."""
        begin = clock.perf_counter()
        try:
            yield
        finally:
            spent = max(clock.perf_counter() - begin, 0.0)  # a clock may have been set back
            self.timings[part] = self.timings.get(part, 0.0) + spent


@dataclass(eq=False)
class Run:
    """What came out of a simulation.

    Attributes
    ----------
    data : xarray.Dataset
        Everything recorded; names and dimensions as documented for `records.nc`.
    clouds : list of Cloud
        The last cloud of each replicate.
    flow : Flow or None
        The dynamics; None for a run read from a directory.
    status : str
        "finished", "interrupted", "diverged" or "failed".
    message : str
        Why it is not finished, or empty.
    metadata : dict
        Versions, timings in seconds, what was left out and why.
    """

    data: "xarray.Dataset"
    clouds: list[Cloud]
    flow: Flow | None
    status: str
    message: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    directory: "Path | None" = None

    def plot(self, **options: Any) -> Any:
        """Return a matplotlib Figure that sums up the run."""
        from meanfield import plots

        return plots.summary(self.data, **options)

    def lines(self) -> list[str]:
        """Return the run in a few lines: size, status, and the last reading of what was measured."""
        d, a = self.data, self.data.attrs
        head = (
            f"Run: {self.status}, time {float(d.time[-1]) if d.time.size else 0:.4g}, {a.get('steps', '?')} steps of "
            f"'{a.get('scheme')}', m = {a.get('m')}, replicates = {a.get('replicates')}"
        )
        out = [head + (f" ({self.message})" if self.message else "")]
        if "loss" in d and d.time.size:
            text = f"loss {float(d.loss[:, 0].mean()):.4g} -> {float(d.loss[:, -1].mean()):.4g}"
            if "loss_unbiased" in d:
                text += f" (unbiased {float(d.loss_unbiased[-1]):.4g})"
            out.append(text)
        for name, unit in (("w2", ""), ("kl", " nats")):
            if f"{name}_lower" in d and d.bound_time.size:
                out.append(self._bracket(name, unit))
        if "ntk_eigenvalue_min" in d and d.bound_time.size:
            value = float(d.ntk_eigenvalue_min[:, -1].mean())
            out.append(f"NTK lambda_min {value:.4g}, at p0 {a.get('ntk_lambda', float('nan')):.4g}")
        return out

    def _bracket(self, name: str, unit: str) -> str:
        d = self.data
        label = {"w2": "W2(p_t, p0)", "kl": "KL(p_t || p0)"}[name]
        ends = []
        for side in ("lower", "upper"):
            key = f"{name}_{side}"
            if key not in d:
                continue
            source = d[f"{key}_source"].values[-1]
            ends.append(f"{side} {float(d[key][-1]):.4g} +- {float(d[key + '_se'][-1]):.2g} ({source})")
        return f"{label}: " + ", ".join(ends) + unit

    def __repr__(self) -> str:
        """Return the run in a few lines."""
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        import html

        body = "".join(f"<div>{html.escape(line)}</div>" for line in self.lines())
        return body + self.data._repr_html_()


def dataset(
    recorder: Recorder, chosen: Sequence[Observable], attrs: dict[str, Any], labels: Array | None
) -> "xarray.Dataset":
    """Return the records as a Dataset: `time` and `bound_time` are times of equation (3.4)."""
    import xarray

    known = {item.name: item for item in chosen}
    coords: dict[str, Any] = {
        "time": np.asarray(recorder.columns.get("time", []), dtype=np.float64),
        "bound_time": np.asarray(recorder.columns.get("bound_time", []), dtype=np.float64),
        "replicate": np.arange(attrs["replicates"]),
    }
    variables: dict[str, Any] = {}
    for name, values in recorder.columns.items():
        if name in coords or name.startswith("at."):
            continue
        base = name.removesuffix("_se").removesuffix("_source")
        item = known.get(name) or known.get(base)
        array = np.asarray(values)
        dims = _dims(name, array, item, recorder)
        if dims[0] == "replicate":
            array = np.moveaxis(array, 0, 1)
        notes = {} if item is None else {"units": item.unit, "long_name": item.text, "at_zero": item.zero}
        variables[name] = (dims, array, notes)
        own = f"{name}_time"
        if own in dims:
            coords[own] = np.asarray(recorder.columns[f"at.{name}"])
    if labels is not None:
        coords["sample"] = np.arange(len(labels))
        variables["label"] = (("sample",), labels, {"long_name": "label y"})
    return xarray.Dataset(variables, coords, attrs)


def _dims(name: str, array: Array, item: Observable | None, recorder: Recorder) -> tuple[str, ...]:
    """Return the dimensions of a column: (replicate, time, ...) unless it is pooled over replicates."""
    if f"at.{name}" in recorder.columns:
        rest = tuple(f"{name}_{k}" for k in range(array.ndim - 2))
        return ("replicate", f"{name}_time", *rest)
    if item is None:
        return ("time",)
    when = "bound_time" if item.costly else "time"
    if item.pooled and item.dims[:1] == ("replicate",):
        return ("replicate", when, *item.dims[1:])
    return (when, *item.dims) if item.pooled else ("replicate", when, *item.dims)


def with_test(data: "xarray.Dataset", predictions: Sequence[Array], labels: Array) -> "xarray.Dataset":
    """Return the Dataset with what each replicate predicts on test inputs at the end."""
    return data.assign(
        test_prediction=(("replicate", "test_sample"), np.array(predictions), {"long_name": "output on test inputs"}),
        test_label=(("test_sample",), np.asarray(labels, dtype=np.float64), {"long_name": "test label y"}),
    )


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    from meanfield import __version__

    found = {"meanfield": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what kind of machine this is: equal bits are promised on one kind of processor."""
    from meanfield import parallel

    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "model": _model(),
        "blas": ", ".join(parallel.blas_names()),
        "threads": parallel.threads(),
    }


@functools.cache
def _model() -> str:
    """Return the name of the processor, "" where nobody tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
