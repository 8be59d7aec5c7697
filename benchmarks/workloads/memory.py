"""Peak memory of a large cloud in a process of its own."""

import sys

from benchmarks import data, tables
from benchmarks.bench import Bench
from benchmarks.pool import Worker

TITLE = "Peak memory of drawing a cloud and making two Euler steps, float32, n = 100"
FULL, QUICK = (10_000_000, 20), (200_000, 20)


def run(bench: Bench) -> None:
    m, d = bench.choose(FULL, QUICK)
    case = data.step_case(100, d, m, "float32", scheme="euler", account=False)
    for task, label, clouds in (("step", "without reference", 1), ("kernel_step", "with reference", 2)):
        print(f"memory: {label}", file=sys.stderr, flush=True)
        worker = Worker("meanfield", bench.pool.threads)
        built = worker.ask("build", key="cloud", task=task, case=case)
        peak = worker.ask("peak").get("peak_mb")
        worker.close()
        state = clouds * m * (d + 1) * 4 / 2**20
        values = {"state_mb": state, "dense_mb": 100 * m * 4 / 2**20, "m": m, "d": d, "n": 100, "dtype": "float32"}
        if "refused" in built:
            values["refused"] = built["refused"]
        else:
            values |= {
                "median": built["seconds"],
                "peak_mb": peak,
                "before_mb": built["before_mb"],
                "note": built["note"],
            }
            values["budget_mb"] = peak - built["before_mb"] - state
        bench.keep("memory", f"m = {m:,}, d = {d}, {label}", "meanfield", **values)


def table(rows: list[dict]) -> str:
    """Return what the state is, what the process took, and what an n x m array would."""
    names = ("state_mb", "before_mb", "peak_mb", "budget_mb", "dense_mb")
    lines = [
        [row["case"], row.get("note", ""), *(f"{row[name]:,.0f}" for name in names)] for row in rows if "peak_mb" in row
    ]
    heads = ["case", "backend", "state, MB", "before, MB", "peak, MB", "beyond state, MB", "one n x m array, MB"]
    return tables.markdown(heads, lines)
