"""KeOps on the CPU: sums over pairs that never hold an n x m array; no tanh, so 1 - 2 / (1 + e^2w)."""

import numpy as np

from benchmarks import data
from benchmarks.candidates import Candidate, Job, Refused

LARGEST, LARGEST_PAIRS = 2e8, 6e9  # n m d of a step, and m m D: above them, many seconds


class KeOps(Candidate):
    package = "pykeops"
    openmp = True

    def load(self) -> None:
        import pykeops

        pykeops.set_verbose(False)
        from pykeops.numpy import Genred

        self.genred = Genred

    def step(self, case: dict) -> Job:
        (x, y), z, rng = data.problem(case), data.start(case), np.random.default_rng(2)
        n, d, m, dtype = case["n"], case["d"], case["m"], case["dtype"]
        if n * m * d > LARGEST:
            raise Refused("too slow at this size")
        h = "(IntCst(1) - IntCst(2) * Inv(IntCst(1) + Exp(IntCst(2) * (t | x))))"
        predict = self.genred(f"u * {h}", [f"x = Vi({d})", f"t = Vj({d})", "u = Vj(1)"], "Sum", axis=1)
        pullback = self.genred(
            f"Concat(c * (IntCst(1) - Square({h})) * x, c * {h})",
            [f"t = Vi({d})", f"x = Vj({d})", "c = Vj(1)"], "Sum", axis=1,
        )  # fmt: skip
        alpha, lam, eta = case["alpha"], case["lam"], case["eta"]
        sigma = np.sqrt(2 * lam * eta).astype(dtype) if case.get("noise", True) else None

        def run() -> None:
            nonlocal z
            theta, u = np.ascontiguousarray(z[:, :-1]), np.ascontiguousarray(z[:, -1:])
            f = (alpha / m) * predict(x, theta, u, backend="CPU")[:, 0]
            c = (-(2 * alpha / n) * (f - y)).astype(dtype)
            b = pullback(theta, x, np.ascontiguousarray(c[:, None]), backend="CPU")
            b[:, :-1] *= u
            z = z + eta * (b - lam * z)
            if sigma is not None:
                z += sigma * rng.standard_normal(z.shape, dtype=z.dtype.type)

        return Job(run, state=lambda: z)

    def pairs(self, case: dict) -> Job:
        z, width, h2, out = data.points(case), case["D"], case["scale"] ** 2, None
        if len(z) ** 2 * width > LARGEST_PAIRS:
            raise Refused("too slow at this size")
        formula = "Exp(s * SqDist(p, z)) * Concat(IntCst(1), z - p)"  # one exponential a pair
        aliases = [f"p = Vi({width})", f"z = Vj({width})", "s = Pm(1)"]
        sums = self.genred(formula, aliases, "Sum", axis=1)
        rate, factor = np.array([-0.5 / h2], z.dtype), 1 / len(z)

        def run() -> None:
            nonlocal out
            out = factor * sums(z, z, rate, backend="CPU")
            out[:, 1:] /= h2

        return Job(run, state=lambda: out)


CANDIDATES = {"KeOps": KeOps}
