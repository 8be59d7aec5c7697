"""JAX: a jitted step with `grad`, buffers donated."""

import math
from functools import partial

import numpy as np

from benchmarks import data
from benchmarks.candidates import Candidate, Job

PAIRS = 500_000  # points times particles at a time: faster than fewer and more, for m = 10^4


class JaxGrad(Candidate):
    package = "jax"

    def load(self) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax = jax

    def step(self, case: dict) -> Job:
        jax, (x, y), z = self.jax, data.problem(case), data.start(case)
        alpha, lam, eta, m = case["alpha"], case["lam"], case["eta"], len(z)
        sigma, dtype = math.sqrt(2 * lam * eta) if case.get("noise", True) else 0.0, z.dtype

        def loss(p):
            f = (alpha / m) * (jax.numpy.tanh(x @ p[0].T) @ p[1])
            return ((f - y) ** 2).mean()

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(p, key):
            slopes = jax.grad(loss)(p)
            key, *keys = jax.random.split(key, 3)
            moved = [(1 - eta * lam) * a - (eta * m) * g for a, g in zip(p, slopes, strict=True)]
            if sigma:
                moved = [a + sigma * jax.random.normal(k, a.shape, dtype) for a, k in zip(moved, keys, strict=True)]
            return moved, key

        x, y = jax.numpy.asarray(x), jax.numpy.asarray(y)
        now = [jax.numpy.asarray(z[:, :-1]), jax.numpy.asarray(z[:, -1])], jax.random.key(2)

        def run() -> None:
            nonlocal now
            now = step(*now)

        return Job(run, lambda: jax.block_until_ready(now[0]), lambda: np.column_stack(list(map(np.asarray, now[0]))))

    def pairs(self, case: dict) -> Job:
        jax, z, out = self.jax, self.jax.numpy.asarray(data.points(case)), None
        h2, m = case["scale"] ** 2, len(z)
        rows = max(rows for rows in range(1, PAIRS // m + 1) if m % rows == 0)

        @jax.jit
        def interact(z):
            half = 0.5 * (z * z).sum(1) / h2

            def block(p):
                k = jax.numpy.exp(p @ z.T / h2 - 0.5 * (p * p).sum(1)[:, None] / h2 - half)
                value = k.mean(1)
                return value, (k @ z / m - value[:, None] * p) / h2

            value, gradient = jax.lax.map(block, z.reshape(-1, rows, z.shape[1]))
            return value.ravel(), gradient.reshape(z.shape)

        def run() -> None:
            nonlocal out
            out = interact(z)

        return Job(run, lambda: jax.block_until_ready(out), lambda: np.column_stack(list(map(np.asarray, out))))

    def gram(self, case: dict) -> Job:
        jax, (x, _), z, out = self.jax, data.problem(case), self.jax.numpy.asarray(data.start(case)), None
        x = jax.numpy.asarray(x)

        @jax.jit
        def gram(z):
            h = jax.numpy.tanh(z[:, :-1] @ x.T)
            a = (1 - h * h) * z[:, -1:]
            return ((a.T @ a) * (x @ x.T) + h.T @ h) / len(z)

        def run() -> None:
            nonlocal out
            out = gram(z)

        return Job(run, lambda: jax.block_until_ready(out), lambda: np.asarray(out))

    def noise(self, case: dict) -> Job:
        jax, key, out = self.jax, self.jax.random.key(2), None
        shape, dtype = (case["m"], case["D"]), np.dtype(case["dtype"])
        draw = jax.jit(lambda key: jax.random.normal(key, shape, dtype))

        def run() -> None:
            nonlocal key, out
            key, now = jax.random.split(key)
            out = draw(now)

        return Job(run, lambda: jax.block_until_ready(out))


CANDIDATES = {"JAX jit + grad": JaxGrad}
