"""How the cost of a step grows with m, n and d."""

import numpy as np

from benchmarks import data, tables
from benchmarks.bench import Bench

TITLE = "Cost of an Euler step with noise against m, n and d (float64): slope in log-log axes over the larger half"
NAMES = ("meanfield", "C++ ceiling", "PyTorch by hand", "JAX jit + grad", "numpy")
AXES = {
    "m": [(100, 5, m) for m in (1000, 4000, 16_000, 64_000, 256_000)],
    "n": [(n, 10, 10_000) for n in (50, 100, 200, 400, 800, 1600)],
    "d": [(200, d, 10_000) for d in (2, 4, 8, 16, 32, 64, 128)],
}
QUICK = {"m": [(100, 5, m) for m in (1000, 4000, 16_000)]}


def run(bench: Bench) -> None:
    for axis, sizes in bench.choose(AXES, QUICK).items():
        series: dict[str, list[dict]] = {}
        for n, d, m in sizes:
            case = data.step_case(n, d, m, "float64")
            label = f"{axis}: ({n}, {d}, {m:,})"
            for row in bench.compare("scaling", "step", case, label, floor=bench.step_floor(case), names=NAMES):
                if "median" in row:
                    row.update(axis=axis, neuron_samples_per_second=n * m / row["median"])
                    series.setdefault(row["candidate"], []).append(row)
        for rows in (rows for rows in series.values() if len(rows) > 1):
            rows[-1]["slope"] = slope([row[axis] for row in rows], [row["median"] for row in rows])


def slope(sizes: list[float], seconds: list[float]) -> float:
    """Return the exponent of a power law through the larger half of the points (at least two)."""
    first = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[first:]), np.log(seconds[first:]), 1)[0])


def table(rows: list[dict]) -> str:
    """Return the slopes, and the throughput at the largest size."""
    lines = [
        [row["axis"], row["candidate"], f"{row['slope']:.2f}", row["case"].partition(": ")[2],
         f"{1e3 * row['median']:.4g}", f"{row['neuron_samples_per_second']:.3g}"]
        for row in rows if "slope" in row
    ]  # fmt: skip
    return tables.markdown(["axis", "candidate", "slope", "at", "ms", "m n steps / s"], lines)
