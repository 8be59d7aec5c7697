"""Time to solution: our kernel scheme against the best Euler loop of any peer."""

import math

from benchmarks import candidates, data, tables
from benchmarks.bench import CEILING, Bench, best_peer

TITLE = "Time to solution: W2 upper bound and KL account at time T within 2 % of a fine reference"
FULL, QUICK = (100.0, 5.0, 50, 10, 10_000), (20.0, 0.5, 20, 5, 1000)
REFINE = 4  # the reference: kernel2, each step in so many parts


def run(bench: Bench) -> None:
    alpha, time, n, d, m = bench.choose(FULL, QUICK)
    case = data.step_case(n, d, m, "float64", alpha=alpha, time=time)
    label = f"alpha = {alpha:g}, T = {time:g}, (n, d, m) = ({n}, {d}, {m:,})"
    bench.pool.state(
        "meanfield", "solution", {**case, "time": 0.01 * time, "scheme": "kernel", "refine": 1}
    )  # compiles
    answers = {
        what: bench.pool.state("meanfield", "solution", {**case, "scheme": scheme, "refine": refine})
        for what, scheme, refine in (("kernel", "kernel", 1), ("fine", "kernel2", REFINE))
    }
    if any("state" not in answer for answer in answers.values()):
        bench.keep("solution", label, "meanfield", refused=str(answers))
        return
    w2, kl, steps, seconds, limit = answers["kernel"]["state"]
    fine = answers["fine"]["state"]
    errors = {"w2_error": w2 / fine[0] - 1, "kl_error": kl / fine[1] - 1}
    row = bench.keep(
        "solution", label, "meanfield, kernel scheme", median=seconds, steps=int(steps), w2=w2, kl=kl, **errors
    )
    bench.keep("solution", label, "fine reference", median=fine[3], steps=int(fine[2]), w2=fine[0], kl=fine[1])
    euler = {**case, "eta": 0.5 * limit}
    names = [name for name in bench.names if candidates.is_peer(name) or name in ("meanfield", CEILING)]
    loops = bench.compare(
        "solution", "step", euler, f"Euler loops at half the stability limit {limit:.3g}", names=names
    )
    needed = math.ceil(time / euler["eta"])
    best = best_peer(loops)
    for loop in loops:
        if "median" in loop:
            loop.update(step_seconds=loop["median"], median=loop["median"] * needed, steps=needed, extrapolated=True)
    if best:
        row["ratios"] = {"best peer": row["median"] / best["median"]}


def table(rows: list[dict]) -> str:
    """Return who needs how long; loops were timed for some steps, and multiplied by the number needed."""
    lines = []
    for row in rows:
        if "median" not in row:
            continue
        errors = [f"{100 * row[name]:+.2f} %" if name in row else "" for name in ("w2_error", "kl_error")]
        how = f"{1e3 * row['step_seconds']:.3g} ms a step, timed and multiplied" if "step_seconds" in row else "run"
        lines.append([row["candidate"], f"{row['steps']:,}", f"{row['median']:.3g}", *errors, how])
    text = tables.markdown(["candidate", "steps", "seconds", "W2 upper bound", "KL account", "how"], lines)
    headline = [row for row in rows if row.get("ratios", {}).get("best peer") and "w2" in row]
    if headline:
        text += f"\n\nThe best Euler loop of a peer takes {1 / headline[0]['ratios']['best peer']:.3g} times as long.\n"
    return f"{rows[0]['case']}\n\n{text}"
