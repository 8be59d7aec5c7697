"""Exact W2 between two samples of equal size."""

from benchmarks.bench import Bench

TITLE = "Exact W2 between two samples in D = 21"
SIZES, QUICK = (500, 1000, 2000), (300,)


def run(bench: Bench) -> None:
    for m in bench.choose(SIZES, QUICK):
        bench.compare("w2", "w2", {"m": m, "D": 21, "dtype": "float64"}, f"m = {m:,}")
