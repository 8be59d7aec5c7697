"""One step of noisy gradient descent: this library's schemes beside the dense numpy loop that a user would write.

    python benchmarks/step.py [--repeats 9] [--out step.json]

All candidates do the same arithmetic on the same data, take turns within one process, and are reported as medians
and as multiples of the dense loop. The floor is the time numpy needs for one tanh of each neuron and sample.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import meanfield as mf
from meanfield import parallel

SIZES = ((100, 5, 1000), (100, 5, 50_000), (500, 20, 10_000), (1000, 64, 4096))


def problem(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, np.sign(x[:, 0])


def dense(x: np.ndarray, y: np.ndarray, m: int, alpha: float, lam: float, eta: float) -> Callable[[], None]:
    """Algorithm 1 in the time of (3.4), as one writes it down."""
    rng = np.random.default_rng(1)
    z = rng.standard_normal((m, x.shape[1] + 1))

    def step() -> None:
        nonlocal z
        h = np.tanh(z[:, :-1] @ x.T)
        r = alpha * (z[:, -1:] * h).mean(0) - y
        c = -(2 * alpha / len(y)) * r
        b = np.hstack([(z[:, -1:] * (1 - h * h) * c) @ x, (h @ c)[:, None]])
        z = z + eta * (b - lam * z) + np.sqrt(2 * lam * eta) * rng.standard_normal(z.shape)

    return step


def ours(x: np.ndarray, y: np.ndarray, m: int, alpha: float, eta: float, **options: object) -> Callable[[], None]:
    centred = bool(options.pop("centred", False))
    risk = mf.Risk(x, y, mf.Unit("tanh"), alpha, centred=centred)
    flow = mf.Flow(risk, lam=0.01, eta=eta, allow_unstable=True, **options)  # type: ignore[arg-type]
    cloud = mf.gaussian_cloud(m, risk.unit, x.shape[1], seed=1, reference=centred)

    def step() -> None:
        nonlocal cloud
        cloud = flow.step(cloud)

    return step


def floor(n: int, m: int) -> Callable[[], None]:
    """Every neuron's activation once, cut over the threads."""
    parts = np.array_split(np.zeros((m, n)), 4 * parallel.threads())
    pool = ThreadPoolExecutor(parallel.threads())
    return lambda: list(pool.map(np.tanh, parts)) and None


def measure(size: tuple[int, int, int], repeats: int) -> dict[str, float]:
    n, d, m = size
    x, y = problem(n, d)
    eta = 1e-4
    candidates = {
        "floor (one tanh)": floor(n, m),
        "dense numpy": dense(x, y, m, 10.0, 0.01, eta),
        "euler, plain": ours(x, y, m, 10.0, eta, scheme="euler", account=False),
        "kernel, centred": ours(x, y, m, 10.0, eta, scheme="kernel", account=False, centred=True),
        "kernel, centred, account": ours(x, y, m, 10.0, eta, scheme="kernel", centred=True),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, step in candidates.items():
            begin = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - begin)
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    results = {str(size): measure(size, options.repeats) for size in SIZES}
    for size, times in results.items():
        print(f"(n, d, m) = {size}, {parallel.threads()} threads")
        for name, seconds in times.items():
            print(f"  {name:26s} {1e3 * seconds:9.2f} ms   {seconds / times['dense numpy']:5.2f} x dense numpy")
    if options.out:
        with open(options.out, "w", encoding="utf-8") as handle:
            json.dump(results, handle, indent=2)


if __name__ == "__main__":
    main()
