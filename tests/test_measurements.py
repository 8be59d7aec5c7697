"""What a step measures of its clouds, and what it need not measure again."""

from collections import Counter

import numpy as np
import pytest

from meanfield import backends
from meanfield.cloud import gaussian_cloud
from meanfield.flow import Flow
from meanfield.risk import Risk
from meanfield.units import Unit

RNG = np.random.default_rng(5)
X = RNG.standard_normal((8, 3)) / 2
Y = np.sign(X[:, 0])
RUNNING = [name for name in backends.MODULES if not backends.unavailable(name)]


def passes(monkeypatch, steps: int, **options) -> Counter:
    """How often clouds with and without their reference are passed over, after a first step."""
    engine, counts = Risk.engine, Counter()

    def counting(self, *which):
        made = engine(self, *which)

        def measure(activation, x, z, reference, *rest, **more):
            counts["alone" if reference is None else "with reference"] += 1
            return made.measure(activation, x, z, reference, *rest, **more)

        def kick(*rest, **more):
            counts["kick"] += 1
            return made.kick(*rest, **more)

        return made._replace(measure=measure, kick=kick)

    flow = Flow(Risk(X, Y, alpha=1.0), lam=1e-3, eta=1e-4, allow_unstable=True, **options)
    cloud = flow.step(gaussian_cloud(400, Unit("tanh"), 3, seed=1))
    monkeypatch.setattr(Risk, "engine", counting)
    for _ in range(steps):
        cloud = flow.step(cloud)
    return counts


def test_a_kernel_step_with_account_passes_over_its_reference_once(monkeypatch) -> None:
    """At the end of the channel with the reference; at the start of the step and after its first kick without."""
    assert passes(monkeypatch, 5, scheme="kernel") == {"with reference": 5, "alone": 10, "kick": 10}


def test_an_explicit_step_with_account_passes_over_its_reference_once(monkeypatch) -> None:
    assert passes(monkeypatch, 5, scheme="euler") == {"with reference": 5, "alone": 5, "kick": 5}


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sums_over_particles_do_not_depend_on_a_reference(name: str, dtype: str) -> None:
    """So that sums over a reference that has not moved can be used again, and a run's bits are its own."""
    cloud = gaussian_cloud(300, Unit("tanh"), 3, seed=1, dtype=dtype)
    engine, far = backends.get(name), cloud.z[::-1].copy()
    arguments = (Unit("tanh").h, X, cloud.z)
    both = engine.measure(*arguments, far, None)
    alone = engine.measure(*arguments, None, None)
    other = engine.measure(Unit("tanh").h, X, far, None, None)
    for field in ("psi", "laplacian", "pull", "gram"):
        assert np.array_equal(getattr(both, field), getattr(alone, field)), field
    for field in ("psi", "laplacian", "pull"):
        assert np.array_equal(getattr(both, f"{field}_reference"), getattr(other, field)), field


def test_remembered_sums_of_a_reference_are_those_of_the_cloud() -> None:
    flow = Flow(Risk(X, Y, alpha=1.0), lam=1e-3, eta=1e-4, scheme="kernel")
    cloud = flow.step(gaussian_cloud(400, Unit("tanh"), 3, seed=1))
    fresh = Risk(X, Y, alpha=1.0).measure(cloud, gram=False)
    found = flow.objective.measure(cloud, gram=False)
    assert np.isnan(found.gap).all() and np.isfinite(fresh.gap).all()
    for field in ("psi", "laplacian", "pull", "psi_reference", "laplacian_reference", "pull_reference"):
        assert np.array_equal(getattr(found, field), getattr(fresh, field)), field
