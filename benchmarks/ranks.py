"""Steps on one rank and on two, and what they wait for: `mpirun -n 2 python -m benchmarks.ranks [FILE.json]`.

Rank 0 makes steps of the whole cloud on its own, then both make steps of their halves, in turns; one thread each. While
one works the other sleeps. Then messages of several lengths go to and fro, and sums of several lengths are formed.
`python -m benchmarks.ranks --model FILE.json` says what the constants of such a file make of other sizes.
"""

import json
import math
import statistics
import sys
import time as clock
from collections.abc import Callable
from pathlib import Path

import numpy as np

from meanfield import Flow, Minibatch, Risk, Unit, mpi, parallel
from meanfield.cloud import Cloud, gaussian_cloud
from meanfield.ranks import GRAIN, Share
from meanfield.spread import share_of

M, N, D, ROUNDS = 1_000_000, 200, 20, 5
SIZES = [1, 200, 2_000, 10_000, 40_000, 250_000]  # numbers in a message
CASES = {"euler": (0, "float64"), "euler, float32": (0, "float32"), "kernel": (0, "float64")}


def flow(name: str) -> Flow:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    risk = Risk(x, np.sign(x[:, 0]), Unit("tanh"), 2.0, backend="cpu")
    batch = CASES[name][0]
    objective = Minibatch(risk, batch) if batch else risk
    return Flow(objective, 0.01, 0.01, name.split(",")[0], account=False, allow_unstable=True)


def wait(ranks: mpi.Mpi) -> None:
    """Wait for the others without keeping a core busy."""
    arrived = ranks.world.Ibarrier()
    while not arrived.Test():
        clock.sleep(0.002)


class Steps:
    """A cloud that moves on, and the seconds that its steps took."""

    def __init__(self, name: str, share: Share | None) -> None:
        self.flow, self.seconds = flow(name), []
        risk = self.flow.objective.full
        self.cloud: Cloud = gaussian_cloud(M, risk.unit, D, dtype=CASES[name][1], share=share)
        self.next()
        self.seconds.clear()

    def next(self) -> None:
        """Make a step; the cloud is given up, as in a run of this size."""
        begin = clock.perf_counter()
        self.cloud = self.flow.advance(self.cloud, 0.01)
        self.seconds.append(clock.perf_counter() - begin)


def compare(ranks: mpi.Mpi, name: str) -> dict[str, float]:
    """Return median seconds of a step on one rank and on all, and whether all have the bits of one."""
    risk = flow(name).objective.full
    share = share_of(risk, M, ranks)
    alone = Steps(name, None) if ranks.rank == 0 else None
    wait(ranks)
    all_ = Steps(name, share)
    for _ in range(ROUNDS):
        wait(ranks)
        if alone is not None:
            alone.next()
        wait(ranks)
        all_.next()
    own = None if alone is None else alone.cloud.z[: share.count]
    equal = 0.0 if own is None or np.array_equal(own, all_.cloud.z) else 1.0
    one = statistics.median(alone.seconds) if alone is not None else 0.0
    two = ranks.largest(statistics.median(all_.seconds))
    return {"one": ranks.broadcast(one), "all": two, "equal": 1.0 - ranks.largest(equal)}


def timed(work: Callable[[], object], times: int) -> float:
    """Return the median of five means over `times` calls."""
    means = []
    for _ in range(5):
        begin = clock.perf_counter()
        for _ in range(times):
            work()
        means.append((clock.perf_counter() - begin) / times)
    return statistics.median(means)


def messages(ranks: mpi.Mpi) -> dict[str, list[float]]:
    """Return seconds of a message one way, of a sum to all ranks, and of an agreement on one number."""
    out: dict[str, list[float]] = {"numbers": [float(size) for size in SIZES], "message": [], "sum": []}
    share = Share(ranks, tuple(range(ranks.size + 1)), 1)
    for size in SIZES:
        value, times = np.zeros(size), 100 if size < 20_000 else 5

        def to_and_fro(value: np.ndarray = value) -> None:
            if ranks.rank == 0:
                ranks.send(value, 1)
                ranks.receive(1)
            elif ranks.rank == 1:
                ranks.send(ranks.receive(0), 0)

        wait(ranks)
        out["message"].append(timed(to_and_fro, times) / 2)
        wait(ranks)
        out["sum"].append(timed(lambda v=value: share.sum(1, lambda tree: tree.add(ranks.rank, v)), times))
    wait(ranks)
    out["largest"] = [timed(lambda: ranks.largest(1.0), 200)]
    return out


def sum_seconds(found: dict, numbers: float, ranks: int) -> float:
    """Return the seconds of a sum to all ranks: 2 ceil(log2 K) messages in a row, each alpha + beta numbers."""
    sizes, seconds = np.array(found["messages"]["numbers"]), np.array(found["messages"]["sum"])
    messages = 2 * math.ceil(math.log2(found["ranks"]))
    alpha = seconds[sizes <= 200].min() / messages
    beta = max(float(seconds[-1] / messages - alpha), 0.0) / sizes[-1]
    return 2 * math.ceil(math.log2(ranks)) * (alpha + beta * numbers) if ranks > 1 else 0.0


def step_seconds(found: dict, name: str, m: float, ranks: int) -> float:
    """Return the seconds of a step: the particles of the fullest rank, sums of psi and of its reference, two flags."""
    grains = math.ceil(m / GRAIN)
    here = min(math.ceil(grains / ranks) * GRAIN, m)
    sums = 2 * sum_seconds(found, found["n"], ranks) + 2 * sum_seconds(found, 1, ranks)
    if name == "kernel":  # the Gram matrix, if it is measured at this step, and the residual that all agree on
        sums += sum_seconds(found, found["n"] ** 2, ranks) + sum_seconds(found, found["n"], ranks)
    return found["steps"][name]["one"] / found["m"] * here + sums


def model(path: str) -> None:
    """Print what the constants of a file make of other sizes."""
    found = json.loads(Path(path).read_text())
    for name in found["steps"]:
        two = step_seconds(found, name, found["m"], 2)
        print(f"{name}: two ranks {two:.3f} s by the model, {found['steps'][name]['all']:.3f} s measured")
    for name in ("euler", "kernel"):
        print(f"\n{name}: ranks, then seconds a step and efficiency at m = 10^6, at 10^9, and at 10^6 for each rank")
        for ranks in (1, 2, 8, 64, 244, 1000):
            row = []
            for m in (1e6, 1e9, 1e6 * ranks):
                if math.ceil(m / GRAIN) < ranks:
                    row.append("refused")
                    continue
                seconds = step_seconds(found, name, m, ranks)
                ideal = found["steps"][name]["one"] / found["m"] * m / ranks
                row.append(f"{seconds:.4g} s {ideal / seconds:.1%}")
            print(f"{ranks:5}  " + "  |  ".join(row))


def main() -> None:
    """Measure and write, or read and predict."""
    if sys.argv[1:2] == ["--model"]:
        return model(sys.argv[2])
    ranks = mpi.world()
    if ranks is None or ranks.size < 2:
        raise SystemExit("type mpirun -n 2 python -m benchmarks.ranks")
    parallel.set_threads(1)
    found = {"ranks": ranks.size, "m": M, "n": N, "d": D, "rounds": ROUNDS}
    with parallel.single_threaded_blas():
        found["steps"] = {}
        for name in CASES:
            row = found["steps"][name] = compare(ranks, name)
            if ranks.rank == 0:
                bits = "equal bits" if row["equal"] else "OTHER BITS"
                said = f"one rank {row['one']:.3f} s, {ranks.size} ranks {row['all']:.3f} s"
                print(f"{name:15} {said}, {row['one'] / row['all']:.2f}x, {bits}", flush=True)
    found["messages"] = messages(ranks)
    if ranks.rank == 0:
        for k, size in enumerate(SIZES):
            print(f"{size:9} numbers: message {found['messages']['message'][k] * 1e6:.1f} us, "
                  f"sum {found['messages']['sum'][k] * 1e6:.1f} us")  # fmt: skip
        print(f"largest of one number each: {found['messages']['largest'][0] * 1e6:.1f} us")
        if len(sys.argv) > 1:
            Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
