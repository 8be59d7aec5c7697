"""Pair interaction through a Gaussian kernel: value and gradient at every particle.

Points are the particles, so that ours works each pair once; the ceiling and the peers work every pair from both sides.
"""

from benchmarks import ceiling
from benchmarks.bench import Bench

TITLE = "Pair interaction: sums of a Gaussian kernel and its gradient over all pairs"
SIZES = tuple((m, D, t) for m in (2000, 10_000) for D in (2, 10) for t in ("float64", "float32"))
LARGE = tuple((50_000, D, "float64") for D in (2, 10))
FEW = ("meanfield", "C++ ceiling", "PyTorch by hand", "JAX jit + grad", "KeOps")  # at the large sizes
QUICK = ((2000, 2, "float64"), (2000, 10, "float32"))


def run(bench: Bench) -> None:
    for m, width, dtype in bench.choose(SIZES + LARGE, QUICK):
        rates = bench.rates(dtype)
        floor = rates and ceiling.pairs_floor(m, width, rates)
        case = {"m": m, "D": width, "dtype": dtype, "scale": 1.0}
        names = FEW if m >= LARGE[0][0] else ()
        bench.compare("pairs", "pairs", case, f"m = {m:,}, D = {width}, {dtype}", floor=floor, names=names)
