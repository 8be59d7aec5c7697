"""Sweeps that are killed again and again, and sweeps on two processes: what docs/sweeps.md says of them.

    python -m tests.campaigns.sweeps kills     # 200 points, killed at random and started again: are the bits the same?
    python -m tests.campaigns.sweeps speed     # the same sweep serial and on two processes, in turns

Moments are drawn from --seed; what they hit depends on the machine, the result must not. Each takes minutes.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray

from meanfield import config, store, workers
from meanfield.sweep import sweep

ROOT = Path(__file__).parents[2]
TEXT = """
[data]
source = "sphere"
n = 10
d = 3
[cloud]
replicates = 2
[flow]
scheme = "euler"
lam = 0.05
time = 0.6
eta = 0.02
allow_unstable = true
[record]
observables = ["loss", "prediction", "coupled_distance", "w2_upper", "kernel_drift"]
bounds_every = 3
[output]
checkpoint_seconds = 0.02
[sweep]
network.activation = ["tanh", "linear"]
network.alpha = ["1", "m^0.25", "sqrt(m)", 25.0]
cloud.m = [16, 32, 64, 128, 256]
cloud.seed = [0, 1, 2, 3, 4]
"""  # 200 points; some of the linear ones at alpha = 25 diverge
SPEED = {
    "network.activation": ["tanh"],
    "network.alpha": ["1", "sqrt(m)"],
    "cloud.m": [256],
    "cloud.seed": [*range(50)],
}
OTHERS = 0.1  # cores
POINTS, PATIENCE = 200, 600  # points, and seconds that a process may take to end
GROUP, MAIN, WORKER, NOBODY = "main process and workers", "main process alone", "one worker", "nobody"


def command(folder: Path, jobs: int) -> list[str]:
    return [sys.executable, "-m", "meanfield", "sweep", "grid.toml", "--out", str(folder), "--jobs", str(jobs)]


def begin(folder: Path, out: Path, jobs: int) -> subprocess.Popen:
    """Start the command in a session of its own, so that it can be killed with its workers and nobody else."""
    return subprocess.Popen(
        command(out, jobs), cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


# --- killed at random ---------------------------------------------------------------------------------------------


def workers_of(process: subprocess.Popen) -> list[int]:
    """Return the processes in which a sweep runs its points, without the one that looks after their semaphores."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue  # it has just ended
    return found


def strike(process: subprocess.Popen, whom: str, pause: float, rng: random.Random, out: Path) -> dict:
    """Send SIGKILL after a pause, wait until everybody has ended, and return what was hit."""
    time.sleep(pause)
    children = workers_of(process)
    alive = process.poll() is None
    whom = MAIN if whom == WORKER and not children else whom
    if alive and whom == GROUP:
        os.killpg(process.pid, signal.SIGKILL)
    elif alive:
        os.kill(rng.choice(children) if whom == WORKER else process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    while any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.01)
    after = states(out)
    return {
        "whom": whom if alive else NOBODY, "exit": process.returncode, "ended": ended(after),
        "half made": sum(after.values()) - ended(after),
    }  # fmt: skip


def states(out: Path) -> Counter:
    return Counter(workers.state(path)[0] for path in (out / "points").glob("*"))


def kill_until(folder: Path, out: Path, wanted: int, seed: int) -> list[dict]:
    """Start the sweep and kill it, until so many kills have hit points under way; return all of them.

    One kill in eight comes in the first second, while the points are planned; the others at a random moment after a few
    more points have ended: it counts if the process lived and a point was left half made.
    """
    rng, kills = random.Random(seed), []
    while sum(kill["hit"] for kill in kills) < wanted and ended(states(out)) < POINTS:
        early, more, pause = rng.random() < 1 / 8, rng.randint(1, 8), rng.uniform(0, 0.5)
        process, whom, before = begin(folder, out, 2), rng.choice([GROUP, MAIN, WORKER]), ended(states(out))
        while not early and ended(states(out)) < before + more and process.poll() is None:
            time.sleep(0.1)
        kills.append(strike(process, whom, pause * (1 + early), rng, out))
        kills[-1]["hit"] = not early and kills[-1]["whom"] != NOBODY and kills[-1]["half made"] > 0
        sys.stderr.write(f"{kills[-1]}\n")
    return kills


def kill_collecting(folder: Path, out: Path, count: int, seed: int) -> list[dict]:
    """Kill the sweep whose points have all ended, at random moments up to when it would end by itself."""
    process, first = begin(folder, out, 2), time.monotonic()
    process.communicate()
    rng, seconds = random.Random(seed), time.monotonic() - first
    return [strike(begin(folder, out, 2), GROUP, rng.uniform(0.5, 1) * seconds, rng, out) for _ in range(count)]


def ended(counts: Counter) -> int:
    return sum(counts[status] for status in workers.ENDED)


def differences(one: xarray.Dataset, other: xarray.Dataset, here: Path, there: Path) -> list[str]:
    """Return what two sweeps differ in: the Dataset with its attributes, every value's bits, every last cloud's."""
    found = [] if one.identical(other) else ["Dataset"]
    names = [str(name) for name in one.variables if one[name].dtype.kind in "fiu"]
    found += [name for name in names if one[name].values.tobytes() != other[name].values.tobytes()]
    for place in one.directory.values.ravel():
        pairs = zip(store.read_checkpoint(here / place)[0], store.read_checkpoint(there / place)[0], strict=True)
        found += [str(place) for a, b in pairs if a.z.tobytes() != b.z.tobytes() or a.step != b.step]
    return found


def kills(folder: Path, wanted: int, seed: int) -> tuple[str, bool]:
    """Return what was found in a sentence, and whether nothing differs after so many hits."""
    (folder / "grid.toml").write_text(TEXT)
    whole = sweep(folder / "grid.toml", folder / "whole")
    out = folder / "killed"
    struck = kill_until(folder, out, wanted, seed)
    hit = [kill for kill in struck if kill["hit"]]
    said: list[str] = []
    sweep(folder / "grid.toml", out, say=said.append)
    struck += kill_collecting(folder, out, 5, seed)
    data = sweep(folder / "grid.toml", out)
    found = differences(data, whole, out, folder / "whole")
    ends = Counter(whole.status.values.ravel().tolist())
    whom = Counter(kill["whom"] for kill in hit)
    sentence = (
        f"{whole.status.size} points ({ends['finished']} finish, {ends['diverged']} diverge), {len(struck)} times "
        f"killed with SIGKILL, {len(hit)} times with points under way ("
        + ", ".join(f"{count} {name}" for name, count in whom.items())
        + f"); {said[0].split(', ')[-1]} at the end: "
        + (f"differs in {found}" if found else "Dataset identical, every value and every last cloud equal to the bit")
    )
    return sentence, not found and len(hit) >= wanted


# --- two processes ------------------------------------------------------------------------------------------------


def whole_sweep(folder: Path, jobs: int) -> tuple[float, float]:
    """Return the seconds of the command from a fresh process to its end, and how many cores others used meanwhile."""
    out, first, busy, ours = folder / f"speed-{time.monotonic_ns()}", time.perf_counter(), busy_cores(), spent()
    process = begin(folder, out, jobs)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors)
    seconds = time.perf_counter() - first
    return seconds, (busy_cores() - busy - (spent() - ours)) / seconds


def busy_cores() -> float:
    """Return the seconds that all cores have worked since the machine started."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # but for idling and waiting for disks


def spent() -> float:
    """Return the seconds of all cores that this process and those that it waited for have had."""
    return sum(os.times()[:4])


def speed(folder: Path, repeats: int, patience: float = 1800) -> tuple[str, bool]:
    """Return what was measured in a sentence, and whether two processes are 1.7 times faster.

    A run in which other processes had more than `OTHERS` of a core does not count.
    """
    (folder / "grid.toml").write_text(TEXT)
    chosen = config.to_dict(config.load(folder / "grid.toml")) | {"sweep": SPEED}
    chosen["flow"]["time"] = 1.2
    (folder / "grid.toml").write_text(config.dumps(config.parse(chosen)))
    times: dict[int, list[float]] = {1: [], 2: []}
    first = time.monotonic()
    while min(map(len, times.values())) < repeats and time.monotonic() < first + patience:
        jobs = min(times, key=lambda jobs: len(times[jobs]))
        seconds, others = whole_sweep(folder, jobs)
        sys.stderr.write(f"--jobs {jobs}: {seconds:.2f} s, others had {others:.2f} cores\n")
        if others <= OTHERS:
            times[jobs].append(seconds)
    if not all(times.values()):
        return "the machine was never quiet: nothing was measured", False
    points = int(np.prod([len(values) for values in SPEED.values()]))
    serial, double = (statistics.median(times[jobs]) for jobs in (1, 2))
    sentence = (
        f"{points} points of {serial / points:.2f} s: {serial:.1f} s serial, {double:.1f} s with --jobs 2, "
        f"{serial / double:.2f} times faster (medians of {len(times[1])} and {len(times[2])}, in turns)"
    )
    return sentence, serial / double >= 1.7


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.sweeps", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("kills", "speed"))
    parser.add_argument("--kills", type=int, default=25, help="so many have to hit points under way")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message=".* points diverged", category=UserWarning)  # they are meant to
    with tempfile.TemporaryDirectory(prefix="meanfield-sweeps-") as name:
        folder = Path(name)
        sentence, good = (
            kills(folder, chosen.kills, chosen.seed) if chosen.what == "kills" else speed(folder, chosen.repeats)
        )
    sys.stdout.write(sentence + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
