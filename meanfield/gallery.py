"""Simulations that each reproduce a published figure or claim: found in sims/, run point by point, drawn, judged.

A simulation is one file with the constants TITLE, STATEMENT, MINUTES, GRID and SMOKE (lists of points, a point being a
dict of numbers and words) and the functions

    build(point)      -> xarray.Dataset or dict of arrays: what one point measures
    plot(results)     -> dict of matplotlib figures by name
    claims(results)   -> the claims (`claims.Claim`)

where `results` is a `Results`. Each finished point is a file of its own, so that an interrupted simulation goes on
where it was. To add a simulation, add a file; the command line, the tests and `--list` find it. What makes NAME.py too
long goes into files _NAME_*.py beside it, imported relatively: `from ._NAME_figures import plot`.
"""

import functools
import hashlib
import importlib.util
import json
import multiprocessing
import sys
import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from meanfield import __version__, canvas, parallel, store
from meanfield.claims import Claim
from meanfield.errors import InputError, MeanfieldError, did_you_mean

NEEDED = ("TITLE", "STATEMENT", "MINUTES", "GRID", "SMOKE", "build", "plot", "claims")
POINTS, FIGURES, CLAIMS = "points", "figures", "claims.json"
DPI = 200
Say = Callable[[str], None]


class Result(NamedTuple):
    """A point of the grid and the Dataset that was built there."""

    point: Mapping[str, Any]
    data: Any


@dataclass(frozen=True, eq=False)
class Results:
    """What was built, in the order of the grid; `full` says whether it is the full grid or the smoke's."""

    found: tuple[Result, ...]
    full: bool

    def __iter__(self) -> Iterator[Result]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def where(self, **parameters: Any) -> "Results":
        """Return the results at points with those parameters."""
        kept = (r for r in self.found if all(r.point.get(k) == v for k, v in parameters.items()))
        return Results(tuple(kept), self.full)

    def one(self, **parameters: Any) -> Any:
        """Return the Dataset of the only point with those parameters."""
        kept = self.where(**parameters).found
        if len(kept) != 1:
            raise InputError(f"{len(kept)} points have {parameters}, wanted one")
        return kept[0].data

    def values(self, name: str) -> list[Any]:
        """Return a parameter's values in the order in which they come, each once."""
        return list(dict.fromkeys(r.point[name] for r in self.found if name in r.point))


@dataclass(frozen=True)
class Outcome:
    """What a simulation ended with."""

    name: str
    claims: tuple[Claim, ...]
    figures: tuple[Path, ...]
    full: bool
    seconds: float

    @property
    def failed(self) -> list[Claim]:
        """The claims that do not hold."""
        return [claim for claim in self.claims if claim.verdict(self.full) == "fails"]

    def table(self) -> str:
        """Return the claims as lines of text."""
        judged = [c for c in self.claims if c.verdict(self.full) != "not judged"]
        head = f"{self.name}: {len(judged) - len(self.failed)} of {len(judged)} claims hold"
        if len(judged) < len(self.claims):
            head += f" ({len(self.claims) - len(judged)} speak of the full grid)"
        rows = [(c.verdict(self.full), c.text, c.reading(), c.wanted) for c in self.claims]
        return "\n".join([f"{head}; {self.seconds:.0f} s", *columns([("", "claim", "measured", "wanted"), *rows])])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


# --- finding ------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """Return the folder of the simulations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for place in (package / "sims", package.parent / "sims"):
        if place.is_dir():
            return place
    raise InputError(f"no folder sims was found in {package} or beside it; install the package anew")


def names() -> list[str]:
    """Return the names of all simulations."""
    return sorted(path.stem for path in folder().glob("[!_]*.py"))


def load(name: str) -> ModuleType:
    """Return the module of a simulation.

    Raises
    ------
    InputError
        If no simulation has that name, or it lacks something that every one has.
    """
    path = folder() / f"{name}.py"
    if name not in names():
        raise InputError(
            f"no simulation is called {name!r}.{did_you_mean(name, names())} `meanfield sim --list` has all"
        )
    return _module(str(path))


@functools.cache
def _module(path: str) -> ModuleType:
    # A package of its own, so that a simulation finds the files beside it.
    package = sys.modules.setdefault("meanfield_sims", ModuleType("meanfield_sims"))
    package.__path__ = [str(Path(path).parent)]
    name = f"{package.__name__}.{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [needed for needed in NEEDED if not hasattr(module, needed)]
    if missing:
        raise InputError(f"the simulation {path} lacks {', '.join(missing)}")
    return module


def listing() -> str:
    """Return every simulation with its statement, what its figures show, and its run time."""
    rows = [("name", "minutes", "statement", "figure")]
    for name in names():
        sim = load(name)
        rows.append((name, f"{sim.MINUTES:g}", sim.STATEMENT, sim.TITLE))
    return "\n".join(columns(rows))


# --- running ------------------------------------------------------------------------------------------------------


def run(
    name: str,
    directory: Path,
    *,
    smoke: bool = False,
    plot_only: bool = False,
    jobs: int = 1,
    say: Say = lambda text: None,
) -> Outcome:
    """Build the points that are not there yet, draw the figures and judge the claims.

    Parameters
    ----------
    name : str
        One of `names()`.
    directory : path
        Where points/, figures/ and claims.json go; points found there are not built again. A point is known by its
        parameters, the text of the simulation's files and the version of the package.
    smoke : bool
        Take the small points SMOKE instead of GRID.
    plot_only : bool
        Build nothing: draw and judge what is there.
    jobs : int
        Points built at a time, each in a process of its own with its share of the threads.
    say : callable
        Is told of every point that is finished.

    Raises
    ------
    InputError
        If the name is unknown, the directory holds something else, or a point that `plot_only` wants is not there.
    """
    if not (isinstance(jobs, int) and jobs >= 1):
        raise InputError(f"jobs must be a whole number, at least 1, got {jobs!r}")
    begin, sim = clock.perf_counter(), load(name)
    store.check_writable(directory)
    store.refuse_strangers(directory, (POINTS, FIGURES, CLAIMS))
    grid = sim.SMOKE if smoke else sim.GRID
    paths = [directory / POINTS / f"{fingerprint(sim, point)}.nc" for point in grid]
    todo = [(point, path) for point, path in zip(grid, paths, strict=True) if not path.exists()]
    if plot_only and todo:
        raise InputError(f"{len(todo)} of {len(grid)} points are not in {directory}; run without --plot-only first")
    if todo:
        say(f"{name}: {len(todo)} of {len(grid)} points to build")
        store.prepare(directory / POINTS)
        _build_all(str(sim.__file__), todo, jobs, say)
    read = (Result(point, store.read_dataset(path)) for point, path in zip(grid, paths, strict=True))
    results = Results(tuple(read), not smoke)
    with canvas.style():
        figures = sim.plot(results)
        claims = tuple(sim.claims(results))
    drawn = [path for key, figure in figures.items() for path in canvas.save(figure, directory / FIGURES / key, DPI)]
    outcome = Outcome(name, claims, tuple(drawn), results.full, clock.perf_counter() - begin)
    _write_claims(directory / CLAIMS, sim, outcome)
    return outcome


def fingerprint(sim: ModuleType, point: Mapping[str, Any]) -> str:
    """Return the name of a point's file."""
    path = Path(str(sim.__file__))
    source = b"".join(file.read_bytes() for file in (path, *sorted(path.parent.glob(f"_{path.stem}_*.py"))))
    text = json.dumps([store.plain(dict(point)), __version__, hashlib.sha256(source).hexdigest()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _build_all(source: str, todo: Sequence[tuple[Mapping[str, Any], Path]], jobs: int, say: Say) -> None:
    """Build points; one that fails does not keep the others from being finished."""
    failures: list[MeanfieldError] = []
    for number, (point, outcome) in enumerate(_outcomes(source, todo, min(jobs, len(todo))), 1):
        text = ", ".join(f"{key} = {value}" for key, value in point.items())
        if isinstance(outcome, MeanfieldError):
            failures.append(outcome)
            say(f"[{number}/{len(todo)}] {text}: failed, {outcome}")
        else:
            say(f"[{number}/{len(todo)}] {text}: {outcome:.1f} s")
    if failures:
        raise failures[0]


def _outcomes(
    source: str, todo: Sequence[tuple[Mapping[str, Any], Path]], jobs: int
) -> Iterable[tuple[Mapping[str, Any], float | MeanfieldError]]:
    """Yield every point as it ends, with its seconds or with what went wrong."""
    if jobs == 1:
        for point, path in todo:
            yield point, _attempt(source, point, path)
        return
    context = multiprocessing.get_context("spawn")
    share = max(1, parallel.threads() // jobs)
    with ProcessPoolExecutor(jobs, context, parallel.set_threads, (share,)) as pool:
        waiting = {pool.submit(_attempt, source, point, path): point for point, path in todo}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _attempt(source: str, point: Mapping[str, Any], path: Path) -> float | MeanfieldError:
    """Build one point and write its file; return its seconds, or what is a message for the user."""
    begin, sim = clock.perf_counter(), _module(source)
    try:
        data = as_dataset(sim.build(dict(point)))
    except MeanfieldError as error:
        if error.exit_code == 130:
            raise
        return error
    seconds = clock.perf_counter() - begin
    data.attrs |= {"simulation": Path(source).stem, "point": json.dumps(store.plain(dict(point))), "seconds": seconds}
    store.write_dataset(path, data)
    return seconds


def as_dataset(built: Any) -> Any:
    """Return a Dataset as it is, and a dict of arrays as a Dataset whose dimensions are called after their array."""
    import xarray

    if isinstance(built, xarray.Dataset):
        return built
    if not isinstance(built, dict):
        raise InputError(f"build must return a Dataset or a dict of arrays, got {type(built).__name__}")
    arrays = {key: np.asarray(value) for key, value in built.items()}
    return xarray.Dataset(
        {key: (tuple(f"{key}_{axis}" for axis in range(value.ndim)), value) for key, value in arrays.items()}
    )


def _write_claims(path: Path, sim: ModuleType, outcome: Outcome) -> None:
    claims = [{**asdict(claim), "verdict": claim.verdict(outcome.full)} for claim in outcome.claims]
    record = {
        "simulation": outcome.name,
        "statement": sim.STATEMENT,
        "grid": "full" if outcome.full else "smoke",
        "version": __version__,
        "seconds": round(outcome.seconds, 2),
        "claims": claims,
    }
    store.write_json(path, record)
