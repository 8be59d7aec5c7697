"""Hostile files for every reader: the outcome is a result or one sentence, soon and in little memory.

    python -m tests.campaigns.fuzz --inputs 100000 --coverage
    python -m tests.campaigns.fuzz --atheris --inputs 20000 --target csv     (guided by coverage; needs atheris)

A target takes the bytes of one file: a mutation of a valid one (`mutations`), half of them of its meaning and half of
its bytes. Each target runs in a process of its own with a limit on its memory. A finding is an input that takes longer
than SECONDS, ends the process, raises anything but what the command line turns into a message, prints a traceback, or
has something executed. Without atheris every input is a function of its number and --seed.
"""

import argparse
import builtins
import contextlib
import faulthandler
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
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
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from unittest import mock

import numpy as np

from meanfield import netcdf, readers
from meanfield.errors import InputError

from . import mutations
from .targets import TARGETS, Finding, mutation, valid
from .tracing import WATCHED, Lines, executable

SECONDS = 20  # of a processor, for one input
PART, TRACED = 4000, 10  # inputs of a process; one of so many is traced
BUDGET, ROOM = 64 << 20, 3 << 30  # bytes that a file of data may unpack to here; address space beside what is there
FOLDER = Path("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())


class Hang(BaseException):
    """An input took too long."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of a processor: the machine may be busy
    faulthandler.dump_traceback_later(15 * seconds, exit=True)  # where it waits, or a handler does not get its turn
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


class Fuzzer:
    """One target with its valid files, its folder, and what it came to."""

    def __init__(self, target: str, folder: Path, seed: int = 0, seeds: dict[str, list[bytes]] | None = None) -> None:
        self.target, self.folder, self.seed = target, folder, seed
        files = valid(folder) if seeds is None else seeds
        self.seeds = files[target]
        (folder / "data").mkdir(exist_ok=True)
        for kind in {"idx", "labels"} & {target, "labels" if target == "idx" else "idx"}:  # one needs the other
            (folder / "data" / TARGETS[kind][0]).write_bytes(files[kind][0])
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
        meant, place = path.with_suffix(".meant"), self.folder / "data"
        try:
            with within(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                meant.touch() if self.meant(raw) else meant.unlink(missing_ok=True)
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
    with (
        mock.patch.object(readers, "BUDGET", BUDGET),
        mock.patch.object(netcdf, "SPARE", BUDGET // 4),
        mock.patch.object(netcdf, "SECONDS", 10),
    ):
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
            with lines.watched() if lines is not None and number % TRACED == 0 else contextlib.nullcontext():
                fuzzer.one(raw, choice, number)
            done += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) >> 10
    result = {"target": target, "inputs": done, "outcomes": fuzzer.outcomes, "findings": fuzzer.findings}
    result |= {"seconds": clock.monotonic() - begin, "megabytes": grown, "lines": lines.found() if lines else {}}
    report.write_text(json.dumps(result))


# --- all of it


def campaign(options: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Run all targets in processes, a part of the inputs at a time; return what each part came to, and who died."""
    parts = []
    for target in [options.target] if options.target else TARGETS:
        count = options.inputs if options.target else round(options.inputs * TARGETS[target][2])
        size = PART if count > PART else max(1, -(-count // options.jobs))
        parts += [(target, first, min(size, count - first)) for first in range(0, count, size)]
    results: list[dict] = []
    died: list[str] = []
    context, running = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        while parts or running:
            while parts and len(running) < options.jobs:
                part = parts.pop()
                report = Path(folder) / f"{hashlib.sha256(str(part).encode()).hexdigest()[:8]}.json"
                running.append(
                    (context.Process(target=work, args=(*part, options.seed, options.coverage, report)), report)
                )
                running[-1][0].start()
            multiprocessing.connection.wait([process.sentinel for process, _ in running])
            for process, report in [one for one in running if not one[0].is_alive()]:
                running.remove((process, report))
                if report.exists():
                    results.append(json.loads(report.read_text()))
                    show(results[-1])
                else:
                    died.append(f"exit code {process.exitcode}, the last input is {kept(report)}")
                    print(died[-1], flush=True)
    return results, died


def kept(report: Path) -> Path | None:
    """Keep the last input of a process that died."""
    last, place = report.with_suffix(".last"), Path(tempfile.gettempdir()) / f"died-{report.stem}"
    return Path(shutil.copy(last, place)) if last.exists() else None


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
    parser.add_argument("--coverage", action="store_true", help="count the lines that every tenth input runs")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--atheris", action="store_true", help="let coverage choose the inputs of --target")
    options = parser.parse_args(arguments)
    if options.atheris:
        guided(options.target or "csv", options.inputs, options.seed)
    begin = clock.monotonic()
    results, died = campaign(options)
    found = {key for result in results for key in result["findings"]}
    if options.coverage:
        print(covered(results))
    print(f"{sum(result['inputs'] for result in results)} inputs, {len(found)} findings, {len(died)} processes died, "
          f"{clock.monotonic() - begin:.0f} s")  # fmt: skip
    return 1 if found or died else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
