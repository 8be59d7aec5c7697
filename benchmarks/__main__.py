"""The command: `python -m benchmarks`, see README.md here."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from benchmarks import charts, data, machine, tables
from benchmarks.bench import Bench
from benchmarks.pool import Pool
from benchmarks.workloads import NAMES

SCHEMA = 1
CHECK = {"n": 50, "d": 5, "m": 300}  # d as in the first workload: fewer formulas to compile


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this library beside its peers.")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions: about two minutes")
    parser.add_argument("--repeats", type=int, help="repetitions of each (15; quick: 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for results")
    return parser.parse_args(arguments)


def check(bench: Bench, dtype: str) -> list[dict]:
    """Return how far every candidate's step without noise is from the formula in float64."""
    case = data.step_case(**CHECK, dtype=dtype, noise=False, check=True)
    right, found = data.expected_step(case), []
    for name in bench.names:
        answer = bench.pool.state(name, "step", case)
        if "state" in answer:
            z = np.array(answer["state"])
            if answer["own_noise"]:
                z = z - data.noise_of_step(case)
            found.append({"candidate": name, "dtype": dtype, "error": float(np.abs(z - right).max())})
    return found


def kept(out: Path, measured: list[str]) -> list[dict]:
    """Return the rows of other workloads that stand in the folder already, from a run of the same schema."""
    path = out / "results.json"
    if not path.exists():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    date = before["machine"].get("date", "")
    rows = before["rows"] if before.get("schema") == SCHEMA else []
    return [{"measured": date} | row for row in rows if row["workload"] not in measured]


def results(bench: Bench, about: dict, checks: list[dict], older: Sequence[dict] = ()) -> dict:
    """Return what is written: one schema for the JSON, the tables and the charts."""
    dates = {row["workload"]: row["measured"] for row in older}
    if dates:
        about = about | {"measured before": ", ".join(f"{name} ({date})" for name, date in dates.items())}
    return {
        "schema": SCHEMA,
        "machine": about,
        "versions": machine.versions() | bench.pool.versions(),
        "missing": bench.pool.missing(),
        "rates": bench.known_rates(),
        "checks": checks,
        "rows": sorted([*older, *bench.rows], key=lambda row: NAMES.index(row["workload"])),
    }


def write(found: dict, out: Path) -> str:
    """Write results.json, tables.md and the charts; return the tables."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = tables.report(found)
    (out / "tables.md").write_text(page, encoding="utf-8")
    charts.draw(found, out)
    return page


def main(arguments: list[str] | None = None) -> int:
    chosen, begin, page = options(arguments), time.time(), ""
    repeats = chosen.repeats or (5 if chosen.quick else 15)
    pool = Pool(chosen.threads, repeats, inner=0.1, budget=0.4 if chosen.quick else 3.0)
    bench, about = Bench(pool, chosen.quick), machine.describe(chosen.threads)
    older = kept(chosen.out, chosen.only)
    try:
        checks = [row for dtype in ("float64", "float32") for row in check(bench, dtype)]
        for name in chosen.only:
            import_module(f"benchmarks.workloads.{name}").run(bench)
            about["minutes"] = round((time.time() - begin) / 60, 1)
            page = write(results(bench, about, checks, older), chosen.out)  # a run that is cut short leaves what it has
    finally:
        pool.close()
    print(page)
    print(f"\nWritten to {chosen.out}: results.json, tables.md, charts.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
