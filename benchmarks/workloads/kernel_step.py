"""What the kernel scheme costs beside our own Euler step."""

from benchmarks import data, tables
from benchmarks.bench import Bench, library
from benchmarks.pool import Entry

TITLE = "A kernel step beside an Euler step, each with the coupled reference"
SIZES, QUICK = ((100, 10, 10_000),), ((50, 5, 1000),)
VARIANTS = {
    "euler": {"scheme": "euler", "account": False},
    "kernel": {"scheme": "kernel", "account": False},
    "kernel, account": {"scheme": "kernel", "account": True},
    "kernel2, account": {"scheme": "kernel2", "account": True},
}


def run(bench: Bench) -> None:
    for n, d, m in bench.choose(SIZES, QUICK):
        case = data.step_case(n, d, m, "float64")
        for name in library(bench.names):
            if "keops" in name:
                continue
            entries = [Entry(name, "kernel_step", {**case, **options}, label) for label, options in VARIANTS.items()]
            label = f"({n}, {d}, {m:,}) {name}"
            bench.compare("kernel_step", "kernel_step", case, label, entries=entries, beside="euler")


def table(rows: list[dict]) -> str:
    """Return milliseconds, and multiples of the Euler step."""
    lines = []
    for row in rows:
        if "median" in row:
            times = [f"{1e3 * row['median']:.4g}", f"{1e3 * row['min']:.4g}"]
            lines.append([row["case"], row["candidate"], *times, f"{row['ratios']['euler']:.2f}"])
    return tables.markdown(["case", "step", "median, ms", "least, ms", "Euler steps"], lines)
