"""The Gram matrix H of the tangent kernel."""

from benchmarks import ceiling, data
from benchmarks.bench import Bench

TITLE = "Gram matrix H = mean <grad psi_i, grad psi_k> (ours with the sums of a step beside it)"
SIZES, QUICK = ((100, 5, 100_000), (500, 20, 10_000), (1000, 64, 10_000)), ((100, 5, 5000),)


def run(bench: Bench) -> None:
    for n, d, m in bench.choose(SIZES, QUICK):
        for dtype in ("float64", "float32"):
            case, rates = data.step_case(n, d, m, dtype), bench.rates(dtype)
            floor = rates and ceiling.gram_floor(n, d, m, rates)
            bench.compare("gram", "gram", case, f"({n}, {d}, {m:,}) {dtype}", floor=floor)
