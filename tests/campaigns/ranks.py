"""Kills of runs under a real mpirun: of one rank, of all, of mpirun itself; they go on with another number of ranks.

    python -m tests.campaigns.faults --kills 0 --damage 0 --disks 0 --mpi-kills 72

What is killed is `mpirun -n K meanfield run`, started through this module, which notes the number of every rank's
process and the step of the last checkpoint. What carries a run to its end is the plain command, under mpirun or not.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time as clock
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meanfield import cli, config, mpi
from meanfield.simulate import load

from .launch import environment, line
from .looks import Counts, begun, compare, look, status, torn, written_at
from .runs import CLEAN, INTERRUPTED, Case, Shared, carry, repeated, telling

NUMBERS = (1, 2, 3)
# Whom a signal is sent to, and which.
STRIKES = (
    *[("one rank", signal.SIGKILL)] * 4,
    *[("all ranks", signal.SIGKILL)] * 2,
    ("mpirun", signal.SIGKILL),
    *(("one rank", sent) for sent in (signal.SIGTERM, signal.SIGINT)),
    *(("mpirun", sent) for sent in (signal.SIGTERM, signal.SIGINT)),
)
SECONDS = 60  # until mpirun, and every rank of it, has to be gone


class Start:
    """A run under mpirun that is under way."""

    def __init__(self, case: Case, folder: Path, directory: Path, ranks: int, threads: int) -> None:
        self.place = Path(tempfile.mkdtemp(dir=folder))
        self.written = Shared(self.place / "written")
        words = ("-m", "tests.campaigns.ranks", self.place, *command(case, folder, directory, threads))
        with open(self.place / "said", "wb") as said:
            self.mpirun = subprocess.Popen(
                line(ranks, *words), env=surroundings(folder), stdout=said, stderr=said, start_new_session=True
            )

    def said(self) -> str:
        """What mpirun and the ranks have printed."""
        return (self.place / "said").read_text(errors="replace")

    def numbers(self) -> list[int]:
        """The process of every rank that has begun."""
        return [int(path.read_text()) for path in sorted(self.place.glob("*.pid"))]

    def stopped(self, directory: Path, before: tuple[int, int], delay: float, aimed: bool) -> bool:
        """Stop all ranks some time after the run began; return whether all live and the run is under way.

        One that is aimed waits for a file that is being written, for a second at most.
        """
        if not begun(directory, before, lambda: self.mpirun.poll() is None):
            return False
        clock.sleep(delay)
        deadline = clock.monotonic() + aimed
        while clock.monotonic() < deadline and not torn(directory):
            pass
        numbers = self.numbers()
        self.send(signal.SIGSTOP, numbers)
        while {state(number) for number in numbers} - {"T", ""}:
            clock.sleep(0.001)
        return all(state(number) == "T" for number in numbers) and status(directory) == "running"

    def send(self, sent: int, numbers: Sequence[int]) -> None:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, sent)

    def strike(self, whom: str, sent: int, rng: np.random.Generator) -> None:
        """Send a signal to a rank, to all of them or to mpirun, while all ranks are stopped; let them go on."""
        if whom == "mpirun":
            self.mpirun.send_signal(sent)
        else:
            numbers = self.numbers()
            self.send(sent, numbers if whom == "all ranks" else [int(rng.choice(numbers))])

    def end(self) -> tuple[int | None, list[int]]:
        """Let all go on and wait; return its exit code, None if it hangs, and ranks that outlive it (until now)."""
        self.send(signal.SIGCONT, self.numbers())
        deadline = clock.monotonic() + SECONDS
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.mpirun.wait(SECONDS)
        code = self.mpirun.poll()
        while (left := [number for number in self.numbers() if state(number)]) and clock.monotonic() < deadline:
            clock.sleep(0.01)
        self.send(signal.SIGKILL, left)
        if code is None:
            self.mpirun.kill()
            self.mpirun.wait()
        return code, left


def state(number: int) -> str:
    """The letter that Linux has for what a process does, nothing where it is gone or waits for its burial."""
    try:
        letter = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
    return "" if letter in "ZX" else letter


def surroundings(folder: Path) -> dict[str, str]:
    """What a killed mpirun leaves behind stays in the folder."""
    return environment(TMPDIR=str(folder), OMPI_MCA_btl_sm_backing_directory=str(folder))


def command(case: Case, folder: Path, directory: Path, threads: int) -> list[str]:
    path = folder / "config.toml"
    path.write_text(config.dumps(case.configuration()))
    return ["run", str(path), "--out", str(directory), "--threads", str(threads), "--quiet"]


def kill_once(case: Case, directory: Path, ranks: int, delay: float, rng: np.random.Generator, counts: Counts) -> bool:
    """Start or go on with a run on so many ranks, strike while it is running; return whether that landed."""
    before, name = written_at(directory), f"{case.name}, mpirun -n {ranks}"
    start = Start(case, directory.parent, directory, ranks, int(rng.integers(1, 3)))
    landed = start.stopped(directory, before, delay, bool(rng.integers(2)))
    whom, sent = STRIKES[rng.integers(len(STRIKES))]
    if landed:
        counts.seen["mpirun: landed inside a write"] += torn(directory)
        start.strike(whom, sent, rng)
    code, left = start.end()
    struck = f"{name}: {signal.Signals(sent).name} to {whom}" if landed else name
    counts.check(code is not None, f"{struck}: mpirun hangs")
    counts.check(not left, f"{struck}: {len(left)} ranks outlive their mpirun")
    found, said = status(directory), start.said()
    right = allowed(whom, sent, code, found) if landed else code == CLEAN
    counts.check(right and "Traceback" not in said, f"{struck}: {code}, {found}: {said[-2000:]}")
    if not landed:
        counts.seen["mpirun: came too late"] += 1
        return False
    look(struck, directory, start.written.get(), counts)
    counts.seen[f"mpirun: {signal.Signals(sent).name} to {whom}, then {found}"] += 1
    counts.seen[f"mpirun -n {ranks}: landed"] += 1
    counts.by_case[f"{case.name}, ranks"] += 1
    return True


def allowed(whom: str, sent: int, code: int | None, found: str) -> bool:
    """Return whether a strike may leave this exit code of mpirun and this status of the run."""
    if sent == signal.SIGKILL:
        return code != CLEAN and found in ("running", "finished")  # the others may have heard all of one that is gone
    if whom == "one rank":
        return (code, found) in ((INTERRUPTED, "interrupted"), (CLEAN, "finished"))
    return found in ("running", "interrupted", "finished")  # it ends its ranks at once, whatever they do


def finish(case: Case, directory: Path, ranks: int, whole: Any, counts: Counts, after: str) -> Any:
    """Carry a run to its end with the plain command on so many ranks, 0 for a process on its own; compare it."""
    words = ("-m", "meanfield", *command(case, directory.parent, directory, 2))
    done = subprocess.run(
        line(ranks, *words), env=surroundings(directory.parent), capture_output=True, text=True, timeout=5 * SECONDS
    )
    counts.check(done.returncode == CLEAN, f"{case.name}: {ranks} ranks ended with {done.returncode}: {done.stderr}")
    run = load(directory)
    compare(f"{case.name}, ends on {ranks} ranks", directory, [run], whole, counts, after)
    return run


def kills(case: Case, count: int, rng: np.random.Generator, counts: Counts, in_one: int = 4) -> None:
    """Kill a case so many times, on changing numbers of ranks, and compare what it ends with."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        whole = carry(case, folder / "whole")
        first = finish(case, folder / "first", max(NUMBERS), whole, counts, "nothing, under mpirun")
        lasted = sum(first.metadata["timings"][part] for part in ("steps", "records", "bounds", "checkpoint"))
        last = 0

        def once(directory: Path, trial: int) -> bool:
            nonlocal last
            last = int(rng.choice(NUMBERS))
            return kill_once(case, directory, last, float(rng.uniform(0, 0.9 * lasted / in_one)), rng, counts)

        def end(directory: Path) -> None:
            ranks = int(rng.choice([number for number in (0, *NUMBERS) if number != last]))
            finish(case, directory, ranks, whole, counts, f"kills under mpirun, on {ranks or 'no'} ranks")

        repeated(count, in_one, folder, once, end)


def main(place: str, *words: str) -> int:
    """Be one rank of a run that is going to be killed: the command line, with notes of what happens."""
    ranks = mpi.world()
    Path(place, f"{0 if ranks is None else ranks.rank}.pid").write_text(str(os.getpid()))
    with telling(Shared(Path(place) / "written")):
        return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
