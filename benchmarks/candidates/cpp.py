"""The ceiling: fused C++ loops that use no library, see `ceiling`."""

import time

import numpy as np

from benchmarks import ceiling, data
from benchmarks.candidates import Candidate, Job

KEEP_AT_MOST = 3 << 29  # bytes of kept activations


class Ceiling(Candidate):
    own_noise = True  # that of meanfield, up to rounding
    openmp = True

    def load(self) -> None:
        if reason := ceiling.missing():
            raise ImportError(reason)
        ceiling.library()

    def step(self, case: dict) -> Job:
        """Activations kept or computed twice, whichever is faster here."""
        (x, y), z = data.problem(case), data.start(case)
        best = None
        room = len(x) * len(z) * z.dtype.itemsize
        for keep in (0, len(z)) if room <= KEEP_AT_MOST else (0,):
            run, now = ceiling.stepper(
                x, y, z, case["alpha"], case["lam"], case["eta"], seed=1, keep=keep, threads=self.threads
            )
            if case.get("check"):
                return Job(run, state=lambda now=now: now)
            seconds = _seconds(run)
            if best is None or seconds < best[0]:
                best = seconds, Job(run, state=lambda now=now: now, note="kept" if keep else "computed twice")
        return best[1]

    def pairs(self, case: dict) -> Job:
        z = data.points(case)
        value, gradient = np.empty(len(z), z.dtype), np.empty_like(z)

        def run() -> None:
            ceiling.pairs(z, case["scale"], value, gradient, self.threads)

        return Job(run, state=lambda: np.column_stack([value, gradient]))

    def noise(self, case: dict) -> Job:
        out = np.empty((case["m"], case["D"]), case["dtype"])
        return Job(lambda: ceiling.normals(out, seed=1, step=0, threads=self.threads))

    def rates(self, case: dict) -> Job:
        """Not a task to be timed: what the machine can do, for the floor."""
        return Job(lambda: None, state=lambda: list(ceiling.rates(case["dtype"], self.threads)))


def _seconds(run) -> float:
    run()
    times, begin = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begin < 0.05:
        now = time.perf_counter()
        run()
        times.append(time.perf_counter() - now)
        if sum(times) > 1.5:
            break
    return min(times)


CANDIDATES = {"C++ ceiling": Ceiling}
