"""Exact W2 between two samples of equal size."""

from benchmarks.bench import Bench
from benchmarks.candidates import is_ours

TITLE = "Exact W2 between two samples in D = 21"
SIZES, QUICK = (500, 1000, 2000), (300,)


def run(bench: Bench) -> None:
    names = [name for name in bench.names if not is_ours(name) or name == "meanfield"]  # one way on every backend
    for m in bench.choose(SIZES, QUICK):
        bench.compare("w2", "w2", {"m": m, "D": 21, "dtype": "float64"}, f"m = {m:,}", names=names)
