"""Kills, signals, damage and full disks, one after the other on real runs, each followed by going on and a comparison.

    python -m tests.campaigns.faults --kills 208 --mpi-kills 72 --damage 200 --disks 24

A run is started in a process of its own. To kill it, it is first stopped (SIGSTOP), then looked at: the kill counts
only if this process has written "running" into metadata.json, and lives. After the last kill the run is carried to its
end, and records and clouds must have the bits of the run that was never stopped. Delays are drawn from --seed; where a
delay hits depends on the machine, the result must not. `ranks` does it under mpirun.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time as clock
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from meanfield import recovery, store
from meanfield.errors import InputError
from meanfield.simulate import load

from . import launch, ranks
from .looks import Counts, begun, compare, look, status, torn, written_at
from .runs import CASES, CLEAN, INTERRUPTED, REFUSED, SPREAD, Case, Shared, carry, ended, repeated, started

# --- kills and signals


def stopped(directory: Path, number: int, delay: float, before: tuple[int, int]) -> bool:
    """Stop a process some time after its run began; return whether it lives and the run is under way."""

    def lives() -> bool:
        return os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    if not begun(directory, before, lives):
        return False
    clock.sleep(delay)
    os.kill(number, signal.SIGSTOP)
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, number, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return lives() and status(directory) == "running"


def kill_once(case: Case, directory: Path, delay: float, sent: int, counts: Counts, threads: int) -> bool:
    """Start or go on with a run, send it a signal while it is running; return whether that landed."""
    written = Shared()
    before = written_at(directory)
    number = started(lambda: carry(case, directory, written, threads))
    landed = stopped(directory, number, delay, before)
    if landed:
        counts.seen["landed inside a write"] += torn(directory)
        os.kill(number, sent)
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGCONT)
    code = ended(number)
    if not landed:
        counts.check(code == CLEAN, f"{case.name}: ended with {code}")
        counts.seen["came too late"] += 1
        return False
    look(case.name, directory, written.get(), counts)
    if sent == signal.SIGKILL:
        counts.check(code == -signal.SIGKILL, f"{case.name}: {code} after kill -9")
        counts.seen["kill -9 landed"] += 1
    else:
        counts.check(code in (INTERRUPTED, CLEAN), f"{case.name}: {code} after signal {sent}")
        counts.check(status(directory) in ("interrupted", "finished"), f"{case.name}: {status(directory)}")
        counts.seen[f"{signal.Signals(sent).name} landed"] += 1
    counts.by_case[case.name] += 1
    return True


def kills(case: Case, count: int, rng: np.random.Generator, counts: Counts, in_one: int = 4) -> None:
    """Kill a case so many times, some in each directory, and compare what it ends with."""
    with tempfile.TemporaryDirectory() as folder:
        whole_time = clock.monotonic()
        whole = carry(case, Path(folder) / "whole")
        whole_time = clock.monotonic() - whole_time

        def once(directory: Path, trial: int) -> bool:
            sent = rng.choice([signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGINT])
            delay = float(rng.uniform(0, 0.9 * whole_time / in_one))
            return kill_once(case, directory, delay, int(sent), counts, 1 + trial % 2)

        repeated(count, in_one, Path(folder), once, lambda place: finish(case, place, whole, counts, "kills"))


def finish(case: Case, directory: Path, whole: Any, counts: Counts, after: str) -> None:
    """Carry a run to its end, and compare it, and what is read back, with the run that was never stopped."""
    done = carry(case, directory, threads=2)
    compare(case.name, directory, [done, load(directory)], whole, counts, after)


# --- damage


def hurt(raw: bytes, rng: np.random.Generator) -> bytes:
    """Return a file cut short, with one bit flipped, a stretch of zeros, or nothing in it."""
    place = int(rng.integers(len(raw)))
    kind = int(rng.integers(8))
    if kind == 0:
        return raw[:place]
    if kind == 1:
        return raw[:place] + bytes(min(512, len(raw) - place)) + raw[place + 512 :]
    if kind == 2:
        return b""
    return raw[:place] + bytes([raw[place] ^ 1 << int(rng.integers(8))]) + raw[place + 1 :]


def damage(case: Case, count: int, rng: np.random.Generator, counts: Counts) -> None:
    """Damage files of a stopped and of a finished run, go on, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        whole = carry(case, Path(folder) / "finished")
        half = Path(folder) / "half"
        while not (half / store.PREVIOUS).exists() or recovery.is_finished(half):
            shutil.rmtree(half, ignore_errors=True)
            kill_once(case, half, 0.1, signal.SIGKILL, Counts(), 1)
        for _ in range(count):
            source = Path(folder) / str(rng.choice(["finished", "half"]))
            directory = Path(folder) / "copy"
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(source, directory)
            names = [n for n in (store.CHECKPOINT, store.PREVIOUS, store.RECORDS, store.METADATA)
                     if (directory / n).exists()]  # fmt: skip
            hit = set(map(str, rng.choice(names, 1 + int(rng.random() < 0.1), replace=False)))
            for name in sorted(hit):
                path = directory / name
                path.write_bytes(hurt(path.read_bytes(), rng))
            kept = {store.CHECKPOINT, store.PREVIOUS} & set(names)
            _go_on(case, directory, whole, counts, hit, kept <= hit)


def _go_on(case: Case, directory: Path, whole: Any, counts: Counts, hit: set[str], all_hit: bool) -> None:
    counts.seen["files damaged"] += len(hit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            finish(case, directory, whole, counts, "damage")
        except InputError as error:
            counts.check(all_hit, f"{case.name}: {sorted(hit)}: {error}")
            counts.seen["refused, every checkpoint being damaged"] += 1
    counts.seen["damage that was warned of"] += bool(caught)


# --- disks


def small_disk(size: int, place: Path) -> Callable[[], Any] | None:
    """Mount a file system of so many bytes; return what takes it away, or None where nobody may."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        return None
    return lambda: subprocess.run(["umount", "-l", str(place)], capture_output=True, check=True)


def disks(case: Case, count: int, rng: np.random.Generator, counts: Counts) -> None:
    """Let a disk fill up, a file grow too large or a file system become read-only; mend it, go on, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        whole = carry(case, Path(folder) / "whole")
        largest = max(path.stat().st_size for path in (Path(folder) / "whole").iterdir())
        for trial in range(count):
            kind = ("full disk", "largest file", "read-only")[trial % 3]
            place = Path(folder) / f"disk{trial}"
            size = int(rng.uniform(0.05, 3.2) * largest) if kind == "full disk" else 20 * largest
            unmount = small_disk(max(size, 1 << 14), place)
            directory = place / "run"
            if unmount is None and kind != "largest file":
                counts.seen[f"{kind}: nothing may be mounted here"] += 1
                continue
            try:
                _fail(case, directory, kind, rng, counts, int(rng.uniform(0.05, 1.0) * largest))
                finish(case, directory, whole, counts, kind)
            finally:
                if unmount is not None:
                    unmount()


def _fail(case: Case, directory: Path, kind: str, rng: np.random.Generator, counts: Counts, limit: int) -> None:
    """Run into one fault, expect a message and exit code 2 (or an end in spite of it), and mend it."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        carry(case, directory)

    number = started(limited if kind == "largest file" else lambda: carry(case, directory))
    if kind == "read-only":
        stopped(directory, number, float(rng.uniform(0, 0.2)), (0, 0))
        while not remounted("ro", directory.parent):  # busy while a file is open for writing
            for sent in (signal.SIGCONT, signal.SIGSTOP):
                os.kill(number, sent)
                clock.sleep(0.002)
        os.kill(number, signal.SIGCONT)
    code = ended(number)
    counts.check(code in (REFUSED, CLEAN), f"{case.name}: {kind} ended with {code}")
    counts.seen[f"{kind}: {'refused' if code == REFUSED else 'never reached'}"] += 1
    if kind == "full disk":
        remounted("size=64m", directory.parent)
    elif kind == "read-only":
        remounted("rw", directory.parent)


def remounted(options: str, place: Path) -> bool:
    return not subprocess.run(
        ["mount", "-o", f"remount,{options}", str(place)], capture_output=True, check=False
    ).returncode


# --- all of it


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=208, help="kills and signals that must land, over all cases")
    parser.add_argument(
        "--mpi-kills", type=int, default=0, help="the same under mpirun -n 1, 2, 3; needs mpi4py (default 0)"
    )
    parser.add_argument("--damage", type=int, default=200, help="runs of which files are damaged")
    parser.add_argument("--disks", type=int, default=24, help="full disks, largest files, read-only file systems")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.mpi_kills and launch.MISSING:
        parser.error(f"--mpi-kills {options.mpi_kills} came, and {launch.WHY}")
    rng, counts, begin = np.random.default_rng(options.seed), Counts(), clock.monotonic()
    for name, part, cases, count in (
        ("kills", kills, CASES, options.kills),
        ("kills under mpirun", ranks.kills, SPREAD, options.mpi_kills),
        ("damage", damage, (CASES[0], CASES[11]), options.damage),
        ("disks", disks, (CASES[0], CASES[11]), options.disks),
    ):
        for k, case in enumerate(cases if count else []):
            known = len(counts.wrong)
            with quiet():
                part(case, count // len(cases) + (k < count % len(cases)), rng, counts)
            print(f"{name} {k + 1}/{len(cases)}: {case.name}: {len(counts.wrong)} wrong, "
                  f"{clock.monotonic() - begin:.0f} s", flush=True)  # fmt: skip
            print("".join(f"    {wrong}\n" for wrong in counts.wrong[known:]), end="", flush=True)
    print(json.dumps({"seen": dict(sorted(counts.seen.items())), "kills by case": counts.by_case}, indent=1))
    print("\n".join(["", *counts.wrong, f"{len(counts.wrong)} wrong"]))
    return 1 if counts.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
