"""Hostile files for every reader: whatever they hold, the outcome is a result or one sentence, soon and in little memory.

    python -m tests.campaigns.fuzz --inputs 100000 --coverage
    python -m tests.campaigns.fuzz --atheris --inputs 20000 --target csv     (guided by coverage; needs atheris)

A target takes the bytes of one file. Most inputs are mutations of valid files (`mutations`), half of their meaning and
half of their bytes. Each target runs in a process of its own with a limit on its memory; an input that takes longer than
SECONDS, ends the process, raises anything but what the command line turns into a message, prints a traceback, or runs
what a file says is a finding, and is kept. Without atheris every input is a function of its number and --seed.
"""

import argparse
import builtins
import contextlib
import faulthandler
import hashlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time as clock
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np

from meanfield import cli, config, datasets, experiment, netcdf, plots, readers, store
from meanfield.config import DataConfig
from meanfield.errors import InputError

try:
    from . import mutations
    from .tracing import Lines
except ImportError:  # imported by the suite, whose folder is on the path
    from campaigns import mutations
    from campaigns.tracing import Lines

SECONDS = 20  # for one input, on a machine that is busy
BUDGET, ROOM = 64 << 20, 3 << 30  # bytes that a file of data may unpack to here; address space beside what is there
FIGURES = 0.01  # share of reports that are drawn with their figures
FOLDER = Path("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())

TOML = """[data]
source = "sphere"
n = 6
d = 2
seed = 3
[network]
activation = "tanh"
alpha = "m^0.3"
[cloud]
m = 16
replicates = 2
[flow]
time = 0.06
eta = 0.02
scheme = "exponential"
[record]
observables = ["loss", "loss_unbiased", "prediction", "kl_upper", "kl_lower", "w2_lower", "w2_upper", "travelled"]
bounds_every = 2
[output]
title = "a title"
checkpoint_seconds = 0
"""
SWEEP = '[sweep]\n"cloud.m" = [8, 16]\nflow.lam = [0.1, 0.2]\n'
CSV = "day,a,b,y\n" + "".join(f"{k},{k % 3},{k * 0.25},{(-1) ** k}\n" for k in range(12))


class Hang(BaseException):
    """An input took too long."""


class Finding(Exception):
    """What an input should not have done."""


# --- what files are


def valid(folder: Path) -> dict[str, list[bytes]]:
    """Return valid files of every kind; a run that was stopped half-way lies in folder/run, the finished one beside it."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)) / 4, np.array([1.0, -1, 1, -1, 1, -1])
    images = b"\0\0\x08\x03" + b"".join(int(k).to_bytes(4, "big") for k in (12, 2, 3)) + rng.bytes(72)
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, x=x, y=y, x_test=x[:2], y_test=y[:2])
    np.savez_compressed(packed, x=x.astype("f4"), y=y.astype(int))
    (folder / "run.toml").write_text(TOML)
    make_runs(folder)
    run = folder / "run"
    return {
        "toml": [TOML.encode(), (TOML + SWEEP).encode()],
        "csv": [CSV.encode(), CSV.replace("\n", "\r\n").encode("utf-8-sig")],
        "idx": [images, zlib.compress(images, wbits=31)],
        "labels": [b"\0\0\x08\x01\0\0\0\x0c" + bytes(k % 3 for k in range(12))],
        "npz": [plain.getvalue(), packed.getvalue()],
        "config": [(run / "config.toml").read_bytes()],
        "metadata": [(run / "metadata.json").read_bytes(), (folder / "finished/metadata.json").read_bytes()],
        "records": [(folder / "finished/records.nc").read_bytes()],
        "foreign records": [(folder / "finished/records.nc").read_bytes()[: -netcdf.LENGTH]],
        "checkpoint": [(run / "checkpoint.npz").read_bytes(), (folder / "finished/checkpoint.npz").read_bytes()],
    }


def make_runs(folder: Path) -> None:
    """Make the finished run, and one that was stopped by a signal after its first step."""
    command(["run", str(folder / "run.toml"), "--out", str(folder / "finished"), "--quiet"])
    write = store.write_checkpoint

    def stop(*arguments: Any) -> None:
        write(*arguments)
        signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(store, "write_checkpoint", stop):
        command(["run", str(folder / "run.toml"), "--out", str(folder / "run"), "--quiet"])
    assert store.read_json(folder / "run/metadata.json")["status"] == "interrupted"


def mutation(target: str, seeds: list[bytes], rng: np.random.Generator) -> bytes:
    """Return a mutation of a valid file."""
    raw, meaning = mutations.pick(rng, seeds), MEANING.get(target)
    if meaning is not None and rng.random() < 0.5:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = meaning(raw, rng)
        return out if rng.random() < 0.8 else mutations.of_bytes(out, rng)
    return mutations.of_bytes(raw, rng)


MEANING: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "toml": mutations.of_toml,
    "config": mutations.of_toml,
    "csv": mutations.of_csv,
    "idx": mutations.of_idx,
    "labels": mutations.of_idx,
    "npz": mutations.of_npz,
    "checkpoint": mutations.of_npz,
    "metadata": mutations.of_json,
    "records": mutations.of_records,
    "foreign records": mutations.of_records,
}


# --- what is done with them


def command(arguments: list[str], figures: bool = False) -> int:
    """Run the command line in this process; return its exit code, having looked at what it says."""
    said, complained = io.StringIO(), io.StringIO()
    drawn = contextlib.nullcontext() if figures else mock.patch.object(plots, "save", lambda *a, **k: ({}, []))
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained), drawn, np.errstate(all="ignore"):
        try:
            code = cli.main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
    text = complained.getvalue()
    if "Traceback" in text or any(not line.startswith("meanfield") for line in text.splitlines()):
        raise Finding(f"the command said {text[-500:]!r}")
    if code not in (0, 1, 2, 3, 130) or (code == 2 and not text):
        raise Finding(f"{arguments[0]} ended with {code} and {text!r}")
    return code


def read_toml(path: Path, folder: Path, choice: int) -> str:
    code = command(["run", str(path), "--show"])
    if code:
        return "refused"
    one = config.load(path)
    again = config.parse(config.to_dict(one))
    if config.dumps(again) != config.dumps(one) or config.digest(again) != config.digest(one):
        raise Finding("a configuration is not what its resolved text says")
    small = one.cloud.m * one.cloud.replicates <= 4096 and (one.data.n or 0) <= 1000 and (one.data.d or 0) <= 100
    if choice % 4 == 0 and small and one.data.source in ("sphere", "sine", "digits"):
        with contextlib.suppress(InputError):
            experiment.check(config.at(one, {}), "numpy", datasets.load(one.data))
    return "accepted"


def read_data(options: list[dict[str, Any]]) -> Callable[[Path, Path, int], str]:
    def read(path: Path, folder: Path, choice: int) -> str:
        try:
            data = datasets.load(DataConfig(path=str(path), **options[choice % len(options)]))
        except InputError:
            return "refused"
        if not (np.isfinite(data.x).all() and np.isfinite(data.y).all() and len(data.x) == len(data.y)):
            raise Finding("data are not finite")
        return "accepted"

    return read


def read_run(name: str) -> Callable[[Path, Path, int], str]:
    """Put the file into a run directory, and let a command at it."""

    def read(path: Path, folder: Path, choice: int) -> str:
        source = folder / ("run" if choice % 2 else "finished")
        place = folder / "hurt"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("figures", "*.pdf"))
        shutil.copy(path, place / name)
        kind = choice // 2 % 4
        if kind == 0:
            return str(command(["verify", str(place)]))
        if kind == 1:
            code = command(["report", str(place)], figures=choice // 8 % 10_000 < FIGURES * 10_000)
            escaped(place)
            return str(code)
        if kind == 2:
            return str(command(["compare", str(place), str(folder / "finished")]))
        code = command(["run", str(folder / "run.toml"), "--out", str(place), "--quiet"])
        if code == 0 and choice // 8 % 2:
            same(place, folder / "finished", path)
        return str(code)

    return read


def escaped(place: Path) -> None:
    """Look for marks of the hostile texts in a report as they would be executed."""
    page = (place / "report.html").read_text(encoding="utf-8") if (place / "report.html").exists() else ""
    if "<script" in page or "<img src=x" in page:
        raise Finding("a text from outside stands in the report as it came")


def same(place: Path, finished: Path, path: Path) -> None:
    """A run that says it finished after a byte was changed has the numbers of the one that nothing happened to."""
    mine, right = store.read_dataset(place / "records.nc"), store.read_dataset(finished / "records.nc")
    for name in right.variables:
        if name not in mine or not np.array_equal(mine[name].values, right[name].values):
            if not path.with_suffix(".meant").exists():
                raise Finding(f"the run finished with other values of {name}")


TARGETS: dict[str, tuple[str, Callable[[Path, Path, int], str], float]] = {
    # name: (file name, what is done with it, share of the inputs)
    "toml": ("hostile.toml", read_toml, 0.2),
    "csv": ("hostile.csv", read_data([{"source": "csv", "target": "y"}, {"source": "csv", "target": "a", "lags": 2},
                                      {"source": "csv", "target": "y", "columns": ("a", "b"), "n": 6, "n_test": 2}]), 0.2),
    "idx": ("hostile-images-idx3-ubyte.gz", read_data([{"source": "mnist", "classes": (0, 1)}]), 0.16),
    "labels": ("hostile-labels-idx1-ubyte", read_data([{"source": "mnist", "classes": (0, 1)}]), 0.08),
    "npz": ("hostile.npz", read_data([{"source": "npz"}, {"source": "npz", "n": 4, "n_test": 0, "scale": True}]), 0.2),
    "config": ("config.toml", read_run("config.toml"), 0.02),
    "metadata": ("metadata.json", read_run("metadata.json"), 0.04),
    "records": ("records.nc", read_run("records.nc"), 0.03),
    "foreign records": ("records.nc", read_run("records.nc"), 0.02),
    "checkpoint": ("checkpoint.npz", read_run("checkpoint.npz"), 0.05),
}  # fmt: skip


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)  # where a handler does not get its turn
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


class Fuzzer:
    """One target with its valid files, its folder, and what it came to."""

    def __init__(self, target: str, folder: Path, seed: int = 0) -> None:
        self.target, self.folder, self.seed = target, folder, seed
        self.seeds = valid(folder)[target]
        (folder / "data").mkdir(exist_ok=True)
        if target in ("idx", "labels"):
            other = valid(folder)["labels" if target == "idx" else "idx"][0]
            (
                folder / "data" / ("hostile-labels-idx1-ubyte" if target == "idx" else "hostile-images-idx3-ubyte.gz")
            ).write_bytes(other)
        self.outcomes: Counter[str] = Counter()
        self.findings: dict[str, tuple[int, str]] = {}

    def input(self, number: int) -> tuple[bytes, int]:
        rng = np.random.default_rng([self.seed, zlib.crc32(self.target.encode()), number])
        return mutation(self.target, self.seeds, rng), int(rng.integers(1 << 30))

    def one(self, raw: bytes, choice: int, number: int = -1) -> None:
        """Give one file to the target, and keep what it should not have done."""
        name, read, _ = TARGETS[self.target]
        path = self.folder / "data" / name
        path.write_bytes(raw)
        meant = path.with_suffix(".meant")
        meant.touch() if self.meant(raw) else meant.unlink(missing_ok=True)
        place = self.folder / "data"
        try:
            with within(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                given = place / name if self.target != "labels" else place / "hostile-images-idx3-ubyte.gz"
                self.outcomes[read(given, self.folder, choice)] += 1
            if hasattr(builtins, "meanfield_was_hacked"):
                raise Finding("what a file says was executed")
        except (Exception, Hang) as error:  # noqa: BLE001
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = str(error)[:300] if isinstance(error, Finding) else ""
            key = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno} {text}"
            self.outcomes["FOUND"] += 1
            if key not in self.findings:
                self.findings[key] = number, "".join(traceback.format_exception(error))[-3000:]

    def meant(self, raw: bytes) -> bool:
        """Return whether a file is sound in itself, so that its other numbers are no damage."""
        try:
            if self.target == "checkpoint":
                readers.arrays(io.BytesIO(raw), len(raw) + BUDGET, checked=True)
            elif "records" in self.target:
                netcdf.loads(raw)
            return True
        except (InputError, *readers.DAMAGE):
            return False


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Small budgets, so that what goes beyond them is seen soon."""
    with mock.patch.object(readers, "BUDGET", BUDGET), mock.patch.object(netcdf, "SPARE", BUDGET // 4):
        yield


def work(target: str, first: int, count: int, seed: int, coverage: bool, report: Path) -> None:
    """Run inputs of one target in this process, and write what it came to."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as place, prepared():
        fuzzer = Fuzzer(target, Path(place), seed)
        begin, peak = clock.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        lines = Lines() if coverage else None
        done = 0
        for number in range(first, first + count):
            raw, choice = fuzzer.input(number)
            report.with_suffix(".last").write_bytes(raw)
            with lines.watched() if lines is not None and number % 5 == 0 else contextlib.nullcontext():
                fuzzer.one(raw, choice, number)
            done += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) >> 10
    report.write_text(json.dumps({"target": target, "inputs": done, "outcomes": fuzzer.outcomes, "findings": fuzzer.findings,
                                  "seconds": clock.monotonic() - begin, "megabytes": grown,
                                  "lines": lines.found() if lines else {}}))  # fmt: skip


# --- all of it


def campaign(
    inputs: int, seed: int, coverage: bool, only: str | None, part: int = 4000
) -> tuple[list[dict], list[str]]:
    """Run all targets in processes, a part of the inputs at a time; return what each part came to, and who died."""
    results, died = [], []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for target in [only] if only else TARGETS:
            count = inputs if only else round(inputs * TARGETS[target][2])
            for first in range(0, count, part):
                report = Path(folder) / f"{hashlib.sha256(f'{target}{first}'.encode()).hexdigest()[:8]}.json"
                process = context.Process(
                    target=work, args=(target, first, min(part, count - first), seed, coverage, report)
                )
                process.start()
                process.join()
                if report.exists():
                    results.append(json.loads(report.read_text()))
                    show(results[-1])
                else:
                    last = report.with_suffix(".last")
                    kept = Path(tempfile.gettempdir()) / f"died-{report.stem}"
                    if last.exists():
                        shutil.copy(last, kept)
                    died.append(
                        f"{target}, inputs from {first}: exit code {process.exitcode}, the last input is {kept}"
                    )
                    print(died[-1], flush=True)
    return results, died


def show(result: dict) -> None:
    text = ", ".join(f"{key} {count}" for key, count in sorted(result["outcomes"].items()))
    print(
        f"{result['target']}: {result['inputs']} inputs, {result['seconds']:.0f} s, +{result['megabytes']} MB: {text}",
        flush=True,
    )
    for key, (number, trace) in result["findings"].items():
        print(f"  FOUND {key} (input {number})\n{trace}", flush=True)


def covered(results: list[dict]) -> str:
    """Return a table of the share of lines that ran, by module."""
    from .tracing import WATCHED, executable

    rows, total, all_lines = [], 0, 0
    for name in WATCHED:
        wanted = executable(name)
        ran = {line for result in results for line in result["lines"].get(name, [])} & wanted
        rows.append(f"{name:14}{len(ran):5} of {len(wanted):4} lines  {len(ran) / len(wanted):4.0%}")
        total, all_lines = total + len(ran), all_lines + len(wanted)
    return "\n".join([*rows, f"{'all':14}{total:5} of {all_lines:4} lines  {total / all_lines:4.0%}"])


def guided(target: str, inputs: int, seed: int) -> None:
    """Let atheris choose the inputs by the coverage they reach; it ends the process."""
    import atheris

    for module in [
        m for name, m in list(sys.modules.items()) if name.startswith("meanfield.") and name.count(".") == 1
    ]:
        for name, item in vars(module).items():
            if callable(item) and getattr(item, "__module__", "") == module.__name__ and hasattr(item, "__code__"):
                setattr(module, name, atheris.instrument_func(item))
    place = Path(tempfile.mkdtemp(dir=FOLDER))
    fuzzer = Fuzzer(target, place, seed)
    corpus = place / "corpus"
    corpus.mkdir()
    for k, raw in enumerate(fuzzer.seeds):
        (corpus / str(k)).write_bytes(raw)

    def test(raw: bytes) -> None:
        fuzzer.one(raw, zlib.crc32(raw))
        if fuzzer.outcomes["FOUND"] == 1:
            for key, (_, trace) in fuzzer.findings.items():
                print(f"FOUND {key}\n{trace}", flush=True)
        if fuzzer.outcomes.total() % 2000 == 0:
            print(dict(fuzzer.outcomes), list(fuzzer.findings), flush=True)

    def mutate(raw: bytes, most: int, number: int) -> bytes:
        rng = np.random.default_rng(number)
        try:
            return mutation(target, [raw, *fuzzer.seeds], rng)[:most]
        except Exception:  # noqa: BLE001  (what is no longer valid has no meaning to be changed)
            return mutations.of_bytes(raw, rng)[:most]

    arguments = [
        sys.argv[0],
        str(corpus),
        f"-runs={inputs}",
        f"-seed={seed + 1}",
        "-max_len=200000",
        "-timeout=120",
        "-print_final_stats=1",
    ]
    atheris.Setup(arguments, test, custom_mutator=mutate)
    with prepared():
        atheris.Fuzz()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="over all targets, or of the one that is named")
    parser.add_argument("--target", choices=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", action="store_true", help="count the lines that every fifth input runs")
    parser.add_argument("--atheris", action="store_true")
    options = parser.parse_args(arguments)
    if options.atheris:
        guided(options.target or "csv", options.inputs, options.seed)
    begin = clock.monotonic()
    results, died = campaign(options.inputs, options.seed, options.coverage, options.target)
    found = {key for result in results for key in result["findings"]}
    if options.coverage:
        print(covered(results))
    print(f"{sum(result['inputs'] for result in results)} inputs, {len(found)} findings, {len(died)} processes died, "
          f"{clock.monotonic() - begin:.0f} s")  # fmt: skip
    return 1 if found or died else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
