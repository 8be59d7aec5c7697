"""One candidate in a process of its own: reads a request a line from standard input, answers a line of JSON.

    python -m benchmarks.worker NAME THREADS          serve requests until the input ends
    python -m benchmarks.worker NAME THREADS CASE N   N steps of a case (JSON) at once, and end; for first-call times

The cores that the process may use are cut down to THREADS before anything else is imported.
"""

import json
import os
import sys
import time
from pathlib import Path


def limit(threads: int) -> None:
    """Leave so many cores to this process, and tell every library."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)


class Worker:
    """The candidate, and the jobs that were built."""

    def __init__(self, name: str, threads: int) -> None:
        from benchmarks import candidates

        self.refused = candidates.Refused
        self.candidate = candidates.everyone()[name](threads)
        if self.candidate.openmp:  # other threads would all inherit the core that the first is bound to
            os.environ["OMP_PROC_BIND"] = "true"
        self.candidate.load()
        self.jobs: dict[str, object] = {}

    def hello(self) -> dict:
        from importlib import metadata

        package = self.candidate.package
        return {"package": package, "version": metadata.version(package) if package else ""}

    def build(self, key: str, task: str, case: dict) -> dict:
        """Make a job and run it twice: the first run compiles."""
        method = getattr(self.candidate, task, None)
        if method is None:
            return {"refused": "has no such task"}
        reset_peak()
        before = resident()
        try:
            job = method(case)
            first = timed(job, 1)[0]
        except (self.refused, MemoryError) as error:
            return {"refused": str(error) or type(error).__name__}
        self.jobs[key] = job
        return {"first": first, "before_mb": before, "note": job.note, "seconds": timed(job, 1)[0]}

    def measure(self, key: str, inner: int) -> dict:
        seconds, delay = timed(self.jobs[key], inner)
        return {"seconds": seconds / inner, "delay": delay}

    def peak(self) -> dict:
        return {"peak_mb": peak()}

    def state(self, task: str, case: dict) -> dict:
        """Run a job once and return what came out, as lists."""
        import numpy as np

        try:
            job = getattr(self.candidate, task)(case)
            job.run()
        except self.refused as error:
            return {"refused": str(error)}
        job.finish()
        return {"state": np.asarray(job.state(), dtype=float).tolist(), "own_noise": self.candidate.own_noise}

    def drop(self) -> dict:
        self.jobs.clear()
        return {}


def timed(job, inner: int) -> tuple[float, float]:
    """Return the wall time of so many repetitions, and the share of it in which a thread of ours waited for a core."""
    waited, begin = waiting(), time.perf_counter()
    for _ in range(inner):
        job.run()
    job.finish()
    seconds = time.perf_counter() - begin
    return seconds, max(0.0, waiting() - waited) / seconds


def waiting() -> float:
    """Return how long the threads of this process have been runnable without a core, in seconds; 0 where unknown."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError):
            continue  # a thread that has just ended
    return 1e-9 * total


def _memory(field: str) -> float:
    try:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    except (OSError, ValueError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(line.split()[1]) / 1024


def resident() -> float:
    """Return the memory that this process holds, in MB."""
    return _memory("VmRSS")


def peak() -> float:
    """Return the most it held since `reset_peak`, in MB."""
    return _memory("VmHWM")


def reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak is then that of the whole process


def serve(name: str, threads: int) -> None:
    # Libraries print; what is meant for the caller has a channel of its own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        worker = Worker(name, threads)
    except ImportError as error:
        say({"missing": str(error)})
        return
    say(worker.hello())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(getattr(worker, request.pop("do"))(**request))
        except Exception as error:  # noqa: BLE001 - whatever a candidate does, the run goes on without it
            say({"refused": f"{type(error).__name__}: {error}"})


def once(name: str, threads: int, case: dict, steps: int) -> None:
    """Make `steps` steps in a fresh process; prints when the first and the last were done (time.time())."""
    job = Worker(name, threads).candidate.step(case)
    job.run()
    job.finish()
    first = time.time()
    for _ in range(steps - 1):
        job.run()
    job.finish()
    sys.stderr.write(json.dumps({"first": first, "last": time.time()}) + "\n")


if __name__ == "__main__":
    limit(int(sys.argv[2]))
    if len(sys.argv) == 3:
        serve(sys.argv[1], int(sys.argv[2]))
    else:
        once(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]))
