"""From the start of a process to its first step, and to a thousand: caches on disk are warm, nothing else is."""

import json
import statistics
import subprocess
import sys
import time

from benchmarks import data, tables
from benchmarks.bench import Bench
from benchmarks.pool import ROOT

TITLE = "Fresh process to the end of the first step, and of 1,000 steps, at (n, d, m) = (100, 5, 1,000)"
STEPS = 1000


def run(bench: Bench) -> None:
    for dtype in bench.choose(("float64", "float32"), ("float64",)):
        case = data.step_case(100, 5, 1000, dtype)
        steps, repeats = bench.choose((STEPS, 3), (100, 1))
        names = [name for name in bench.names if not bench.pool.worker(name).missing]
        found: dict[str, list[tuple[float, float]]] = {}
        print(f"first_call: {dtype}", file=sys.stderr, flush=True)
        for turn in range(repeats + 1):  # the first one warms caches, and finds out who has such a step
            for name in list(found) if turn else names:
                times = once(name, bench.pool.threads, case, steps)
                if times:
                    found.setdefault(name, []).append(times)
        for name, runs in found.items():
            firsts, lasts = zip(*runs[1:], strict=True)
            values = {"median": statistics.median(lasts), "min": min(lasts), "first": statistics.median(firsts)}
            bench.keep("first_call", f"{steps:,} steps, {dtype}", name, steps=steps, dtype=dtype, **values)


def once(name: str, threads: int, case: dict, steps: int) -> tuple[float, float] | None:
    """Return seconds from the start of a process to the end of its first and of its last step."""
    begin = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", name, str(threads), json.dumps(case), str(steps)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return None
    times = json.loads(done.stderr.splitlines()[-1])
    return times["first"] - begin, times["last"] - begin


def table(rows: list[dict]) -> str:
    """Return seconds to the first and to the last step."""
    lines = [[row["case"], row["candidate"], f"{row['first']:.2f}", f"{row['median']:.2f}"] for row in rows]
    return tables.markdown(["case", "candidate", "first step after, s", "last step after, s"], lines)
