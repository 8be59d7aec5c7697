"""This library through its public interface, on every backend that can run here and on the one that `auto` picks."""

import math
import time
from functools import partial

import numpy as np

from benchmarks import data
from benchmarks.candidates import Candidate, Job, Refused
from benchmarks.candidates.keops import LARGEST, LARGEST_PAIRS
from benchmarks.candidates.transport import clouds


class Ours(Candidate):
    package = "meanfield-nn"
    own_noise = True

    def __init__(self, backend: str, threads: int) -> None:
        self.backend = backend
        super().__init__(threads)

    def load(self) -> None:
        import meanfield as mf
        from meanfield import backends, parallel

        parallel.set_threads(self.threads)
        self.mf, self.backends = mf, backends
        if self.backend != backends.AUTO and (reason := backends.unavailable(self.backend)):
            raise ImportError(reason)

    def _engine(self, n: int, m: int):
        """Return the backend for n samples and m particles."""
        name = self.backends.choose(n, m).name if self.backend == self.backends.AUTO else self.backend
        return self.backends.get(name)

    def _start(self, case: dict, reference: bool):
        mf, (x, y) = self.mf, data.problem(case)
        risk = mf.Risk(x, y, mf.Unit("tanh"), case["alpha"], centred=reference, backend=self.backend)
        cloud = mf.gaussian_cloud(
            case["m"], risk.unit, case["d"], seed=1, reference=reference, dtype=case.get("dtype", "float64")
        )
        return risk, cloud

    def _loop(self, flow, cloud) -> Job:
        """Steps on donated buffers where the flow has them."""
        engine = self._engine(flow.objective.n, cloud.m)

        def run() -> None:
            nonlocal cloud
            cloud = flow.advance(cloud)

        return Job(run, state=lambda: engine.asnumpy(cloud.z), note=engine.name)

    def step(self, case: dict) -> Job:
        """An Euler step with noise, without reference and account."""
        if "keops" in self.backend and case["n"] * case["d"] * case["m"] > LARGEST:
            raise Refused("too slow at this size")
        risk, cloud = self._start(case, reference=False)
        if case.get("check"):
            cloud = cloud.replace(z=data.start(case))
        options = {"scheme": "euler", "account": False, "allow_unstable": True}
        return self._loop(self.mf.Flow(risk, lam=case["lam"], eta=case["eta"], **options), cloud)

    def kernel_step(self, case: dict) -> Job:
        """A step of `scheme` with reference, with or without account."""
        risk, cloud = self._start(case, reference=True)
        options = {"scheme": case["scheme"], "account": case["account"], "allow_unstable": True}
        return self._loop(self.mf.Flow(risk, lam=case["lam"], eta=case["eta"], **options), cloud)

    def solution(self, case: dict) -> Job:
        """A whole run by the kernel scheme; state: W2 upper bound, KL account, steps, seconds, Euler's limit."""
        out: list[float] = []

        def run() -> None:
            begin = time.perf_counter()
            risk, cloud = self._start(case, reference=True)
            flow = self.mf.Flow(risk, lam=case["lam"], scheme=case["scheme"])
            cloud = _until(flow, cloud, case["time"], case["refine"])
            w2, kl = observables.coupled_distance(cloud, flow), observables.kl_account(cloud, flow)
            seconds = time.perf_counter() - begin
            euler = self.mf.Flow(risk, lam=case["lam"], scheme="euler")
            limit = euler.stability_limit(self._start(case, reference=True)[1])
            out[:] = [math.sqrt(w2), kl, cloud.step, seconds, limit]

        from meanfield import observables

        return Job(run, state=lambda: out)

    def pairs(self, case: dict) -> Job:
        from meanfield.interactions import Gaussian

        if "keops" in self.backend and case["m"] ** 2 * case["D"] > LARGEST_PAIRS:
            raise Refused("too slow at this size")
        z, kernel, out = data.points(case), Gaussian(case["scale"]), None
        engine = self._engine(len(z), len(z))
        here = engine.asarray(z)

        def run() -> None:
            nonlocal out
            out = engine.interact(kernel, here, here)

        return Job(run, state=lambda: np.column_stack([engine.asnumpy(part) for part in out]), note=engine.name)

    def gram(self, case: dict) -> Job:
        """`measure` with the Gram matrix: the sums of a prediction and of e come along."""
        risk, _ = self._start({**case, "m": 1}, reference=False)
        engine, out = self._engine(case["n"], case["m"]), None
        z = engine.asarray(data.start(case))

        def run() -> None:
            nonlocal out
            out = engine.measure(risk.unit.h, risk.inputs, z, None, None, gram=True)

        return Job(run, state=lambda: out.gram, note=engine.name)

    def noise(self, case: dict) -> Job:
        from meanfield import noise

        auto = self.backend == self.backends.AUTO
        draw, step, out = self.backends.normals if auto else self.backends.get(self.backend).normals, 0, None

        def run() -> None:
            nonlocal step, out
            out = draw(1, noise.Stream.DIFFUSION, step=step, count=case["m"], width=case["D"], dtype=case["dtype"])
            step += 1

        return Job(run, state=lambda: out)

    def w2(self, case: dict) -> Job:
        from meanfield import transport

        (a, b), value = clouds(case), math.nan

        def run() -> None:
            nonlocal value
            value = transport.plugin(a, b)

        return Job(run, state=lambda: [value])


def _until(flow, cloud, time: float, refine: int):
    """Return the cloud at `time`: steps by the flow's rule, each in `refine` equal parts."""
    while time - cloud.time > 1e-9 * time:
        eta = min(flow.propose([cloud]), time - cloud.time)
        for _ in range(refine):
            cloud = flow.step(cloud, eta / refine)
        cloud = cloud.replace(eta=eta)  # the rule goes by the last whole step
    return cloud


def _names() -> list[str]:
    from meanfield import backends

    return list(backends.MODULES)


CANDIDATES = {"meanfield": partial(Ours, "auto")} | {f"meanfield, {name}": partial(Ours, name) for name in _names()}
