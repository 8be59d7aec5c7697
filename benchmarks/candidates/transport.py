"""Exact optimal transport between two clouds of equal size: POT's network simplex and scipy's assignment."""

import numpy as np

from benchmarks import data
from benchmarks.candidates import Candidate, Job


def clouds(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return two samples (m, D) of one normal law, the second shifted."""
    both = data.points({**case, "m": 2 * case["m"], "dtype": "float64"})
    return both[: case["m"]], both[case["m"] :] + 0.1


class Simplex(Candidate):
    package = "POT"

    def load(self) -> None:
        import ot

        self.ot = ot

    def w2(self, case: dict) -> Job:
        ot, (a, b), value = self.ot, clouds(case), None
        mass = ot.unif(len(a))

        def run() -> None:
            nonlocal value
            value = ot.emd2(mass, mass, ot.dist(a, b), numItermax=2_000_000)

        return Job(run, state=lambda: [value])


class Assignment(Candidate):
    package = "scipy"

    def load(self) -> None:
        from scipy.optimize import linear_sum_assignment
        from scipy.spatial.distance import cdist

        self.solve, self.distance = linear_sum_assignment, cdist

    def w2(self, case: dict) -> Job:
        (a, b), value = clouds(case), None

        def run() -> None:
            nonlocal value
            cost = self.distance(a, b, "sqeuclidean")
            value = cost[self.solve(cost)].mean()

        return Job(run, state=lambda: [value])


CANDIDATES = {"POT emd2": Simplex, "scipy assignment": Assignment}
