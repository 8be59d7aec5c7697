"""One Euler step with noise, all candidates."""

from benchmarks import data
from benchmarks.bench import Bench

TITLE = "A step of noisy gradient descent (scheme euler, with noise, no account)"
SIZES = (
    (100, 5, 1000),
    (100, 5, 100_000),
    (500, 20, 10_000),
    (1000, 64, 10_000),
    (1797, 64, 10_000),
    (200, 10, 1_000_000),
)
QUICK = ((100, 5, 1000), (500, 20, 2000))


def run(bench: Bench) -> None:
    for n, d, m in bench.choose(SIZES, QUICK):
        for dtype in ("float64", "float32"):
            case = data.step_case(n, d, m, dtype)
            rows = bench.compare("step", "step", case, f"({n}, {d}, {m:,}) {dtype}", floor=bench.step_floor(case))
            for row in rows:
                if "median" in row:
                    row["neuron_samples_per_second"] = n * m / row["median"]
