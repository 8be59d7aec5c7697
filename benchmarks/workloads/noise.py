"""Normals alone, written into an array."""

from benchmarks.bench import Bench

TITLE = "Standard normals, written into an array"
FULL, QUICK = (1_000_000, 11), (100_000, 5)


def run(bench: Bench) -> None:
    m, width = bench.choose(FULL, QUICK)
    for dtype in ("float64", "float32"):
        rates = bench.rates(dtype)
        case = {"m": m, "D": width, "dtype": dtype}
        rows = bench.compare(
            "noise", "noise", case, f"{m:,} x {width}, {dtype}", floor=rates and m * width / rates.normals
        )
        for row in rows:
            if "median" in row:
                row["normals_per_second"] = m * width / row["median"]
