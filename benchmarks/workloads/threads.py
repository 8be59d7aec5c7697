"""One thread against all of them."""

from benchmarks import data, tables
from benchmarks.bench import Bench
from benchmarks.pool import Entry

TITLE = "One thread against several, an Euler step with noise at n = 100, d = 5"
SIZES, QUICK = (100_000, 1_000_000), (20_000,)
NAMES = ("meanfield", "C++ ceiling", "PyTorch by hand", "JAX jit + grad")


def run(bench: Bench) -> None:
    many = bench.pool.threads
    for m in bench.choose(SIZES, QUICK):
        for dtype in ("float64", "float32"):
            case = data.step_case(100, 5, m, dtype)
            entries = [Entry(name, "step", case, f"{name} x{t}", t) for name in NAMES for t in sorted({1, many})]
            rows = bench.compare("threads", "step", case, f"m = {m:,}, {dtype}", entries=entries)
            times = {row["candidate"]: row["median"] for row in rows if "median" in row}
            for row in rows:
                row.pop("ratios", None)
                name = row["candidate"].removesuffix(f" x{many}")
                if many > 1 and f"{name} x1" in times and "median" in row:
                    row["speedup"] = times[f"{name} x1"] / row["median"]


def table(rows: list[dict]) -> str:
    """Return milliseconds with one thread and with several, and what they gain."""
    lines = []
    for row in rows:
        if "speedup" in row:
            alone = 1e3 * row["median"] * row["speedup"]
            name = row["candidate"].rpartition(" x")
            lines.append(
                [row["case"], name[0], f"{alone:.4g}", name[2], f"{1e3 * row['median']:.4g}", f"{row['speedup']:.2f}"]
            )
    return tables.markdown(["case", "candidate", "1 thread, ms", "threads", "ms", "gain"], lines)
