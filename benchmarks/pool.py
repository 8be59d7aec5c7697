"""Processes of candidates that take turns, and what their times say."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
CONTENDED = 0.04  # share of a repetition's time that a thread may have waited for a core
CLEAN = 5  # so many undisturbed repetitions are enough to drop the others
PAUSE = 0.004  # seconds before a repetition: threads of the one before stop spinning
LEAST, SLOW = 3, 5.0  # fewest repetitions, and from how many seconds on there is one


class Entry(NamedTuple):
    """One thing to be timed beside others: `label` names its row."""

    candidate: str
    task: str
    case: dict
    label: str = ""
    threads: int = 0  # 0: the pool's

    @property
    def key(self) -> str:
        return self.label or self.candidate


class Worker:
    """A candidate's process; `missing` says why it has none."""

    def __init__(self, name: str, threads: int) -> None:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, str(threads)], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        hello = self._answer()
        self.missing: str = hello.get("missing", "")
        self.version = hello if hello.get("version") else {}

    def ask(self, do: str, **request: Any) -> dict:
        """Send a request and return its answer; a process that has died answers {"refused": ...} for ever."""
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            reason = f"its process ended with status {self.process.wait()}"
            return {"refused": reason, "missing": reason}
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Pool:
    """Workers, started when first asked for.

    Parameters
    ----------
    repeats : int
        Repetitions of each entry.
    inner : float
        Least length of a repetition in seconds: short jobs are run several times in one.
    budget : float
        About how many seconds an entry may take; slow ones are repeated less.
    """

    def __init__(self, threads: int, repeats: int, inner: float, budget: float) -> None:
        self.threads, self.repeats, self.inner, self.budget = threads, repeats, inner, budget
        self.workers: dict[tuple[str, int], Worker] = {}

    def worker(self, name: str, threads: int = 0) -> Worker:
        key = name, threads or self.threads
        if key not in self.workers:
            self.workers[key] = Worker(*key)
        return self.workers[key]

    def missing(self) -> dict[str, str]:
        """Return the reasons of candidates that cannot run here."""
        return {name: worker.missing for (name, _), worker in self.workers.items() if worker.missing}

    def versions(self) -> dict[str, str]:
        """Return package -> version of the candidates that ran."""
        known = [worker.version for worker in self.workers.values() if worker.version]
        return {version["package"]: version["version"] for version in known}

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()

    def state(self, name: str, task: str, case: dict) -> dict:
        """Return what a job gives, or why not."""
        worker = self.worker(name)
        return {"refused": worker.missing} if worker.missing else worker.ask("state", task=task, case=case)

    def compare(self, entries: Iterable[Entry]) -> dict[str, dict]:
        """Time entries in turns; return key -> measurements, or {"refused": reason}."""
        found: dict[str, dict] = {}
        running: dict[str, tuple[Worker, int, int]] = {}
        for entry in entries:
            worker = self.worker(entry.candidate, entry.threads)
            if worker.missing:
                continue
            found[entry.key] = built = worker.ask("build", key=entry.key, task=entry.task, case=entry.case)
            if "refused" not in built:
                built.update(times=[], delays=[])
                running[entry.key] = worker, *self._plan(built["seconds"])
        for turn in range(self.repeats):
            for key, (worker, inner, repeats) in list(running.items()):
                if turn < repeats:
                    time.sleep(PAUSE)
                    answer = worker.ask("measure", key=key, inner=inner)
                    if "refused" in answer:
                        found[key] = answer
                        del running[key]
                        continue
                    found[key]["times"].append(answer["seconds"])
                    found[key]["delays"].append(answer["delay"])
        for key, (worker, *_) in running.items():
            found[key].update(summary(found[key]["times"], found[key]["delays"]), **worker.ask("peak"))
        for worker in {id(worker): worker for worker, *_ in running.values()}.values():
            worker.ask("drop")
        return found

    def _plan(self, seconds: float) -> tuple[int, int]:
        """Return how often a job is run in a repetition, and how many repetitions there are."""
        inner = max(1, min(100_000, round(self.inner / max(seconds, 1e-9))))
        least = 1 if seconds > SLOW else min(LEAST, self.repeats)
        return inner, max(least, min(self.repeats, int(self.budget / (inner * seconds))))


def summary(times: Sequence[float], delays: Sequence[float]) -> dict[str, Any]:
    """Return median, minimum and raw median in seconds.

    Where at least `CLEAN` repetitions (or all) were undisturbed, the median is theirs, else that of the faster half.
    """
    clean = [t for t, delay in zip(times, delays, strict=True) if delay <= CONTENDED]
    if len(clean) < min(CLEAN, len(times)):
        chosen = sorted(times)[: max(1, (len(times) + 1) // 2)]
    else:
        chosen = clean
    return {
        "median": statistics.median(chosen), "min": min(times), "raw_median": statistics.median(times),
        "clean": len(clean), "repeats": len(times),
    }  # fmt: skip
