"""Plain numpy, as one writes the formulas down."""

import numpy as np

from benchmarks import data
from benchmarks.candidates import Candidate, Job

CHUNK = 1 << 20  # elements of a block of pairs


class PlainNumpy(Candidate):
    package = "numpy"

    def step(self, case: dict) -> Job:
        (x, y), z, rng = data.problem(case), data.start(case), np.random.default_rng(2)
        alpha, lam, eta = case["alpha"], case["lam"], case["eta"]
        sigma = np.sqrt(2 * lam * eta).astype(z.dtype) if case.get("noise", True) else None

        def run() -> None:
            nonlocal z
            h = np.tanh(z[:, :-1] @ x.T)
            r = alpha * (z[:, -1:] * h).mean(0) - y
            c = (-(2 * alpha / len(y)) * r).astype(z.dtype)
            b = np.hstack([(z[:, -1:] * (1 - h * h) * c) @ x, (h @ c)[:, None]])
            z = z + eta * (b - lam * z)
            if sigma is not None:
                z += sigma * rng.standard_normal(z.shape, dtype=z.dtype.type)

        return Job(run, state=lambda: z)

    def pairs(self, case: dict) -> Job:
        z, h2 = data.points(case), case["scale"] ** 2
        rows, half, out = max(1, CHUNK // len(z)), 0.5 * (z * z).sum(1) / h2, None

        def run() -> None:
            nonlocal out
            value, gradient = np.empty(len(z), z.dtype), np.empty_like(z)
            for i in range(0, len(z), rows):
                part = slice(i, i + rows)
                k = z[part] @ (z.T / h2)
                k -= half[part, None]
                k -= half
                np.exp(k, out=k)
                value[part] = k.mean(1)
                gradient[part] = (k @ z / len(z) - value[part, None] * z[part]) / h2
            out = value, gradient

        return Job(run, state=lambda: np.column_stack(out))

    def gram(self, case: dict) -> Job:
        (x, _), z, out = data.problem(case), data.start(case), None

        def run() -> None:
            nonlocal out
            h = np.tanh(z[:, :-1] @ x.T)
            a = (1 - h * h) * z[:, -1:]
            out = ((a.T @ a) * (x @ x.T) + h.T @ h) / len(z)

        return Job(run, state=lambda: out)

    def noise(self, case: dict) -> Job:
        rng, dtype = np.random.default_rng(2), np.dtype(case["dtype"])
        out = np.empty((case["m"], case["D"]), dtype)
        return Job(lambda: rng.standard_normal(out=out, dtype=dtype.type))


class FastGenerator(Candidate):
    package = "numpy"

    def noise(self, case: dict) -> Job:
        rng, dtype = np.random.Generator(np.random.SFC64(2)), np.dtype(case["dtype"])
        out = np.empty((case["m"], case["D"]), dtype)
        return Job(lambda: rng.standard_normal(out=out, dtype=dtype.type))


CANDIDATES = {"numpy": PlainNumpy, "numpy, SFC64": FastGenerator}
