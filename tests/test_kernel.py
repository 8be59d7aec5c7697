"""The Gram matrix that a cloud carries: when it is formed anew, whose it is, and what it changes."""

import numpy as np
import pytest

import meanfield as mf
from meanfield import risk as risk_module
from meanfield import store
from meanfield.cloud import Kernel, gaussian_cloud
from meanfield.flow import Flow
from meanfield.risk import Risk

RNG = np.random.default_rng(5)
X = RNG.standard_normal((8, 3)) / 2
Y = np.sign(X[:, 0])


def formed(flow: Flow, steps: int, monkeypatch) -> tuple[int, mf.Cloud]:
    """How many Gram matrices so many steps form, and the last cloud."""
    count, measure = [0], Risk.measure

    def counted(self, cloud, train="both", *, gram=True, variance=None):
        known = len(self._memo.get(cloud, {}))
        found = measure(self, cloud, train, gram=gram, variance=variance)
        count[0] += gram and len(self._memo[cloud]) > known
        return found

    monkeypatch.setattr(Risk, "measure", counted)
    cloud = gaussian_cloud(400, flow.objective.unit, 3, seed=1)
    for _ in range(steps):
        cloud = flow.step(cloud)
    monkeypatch.undo()
    return count[0], cloud


@pytest.mark.parametrize(
    ("scheme", "account", "least"), [("kernel", False, 1), ("kernel", True, 2), ("euler", True, 1)]
)
def test_short_steps_share_one(scheme: str, account: bool, least: int, monkeypatch) -> None:
    """At the start nothing is carried; an account forms its first at the end of a channel."""
    flow = Flow(Risk(X, Y, alpha=1.0), lam=1e-3, eta=1e-4, scheme=scheme, account=account, allow_unstable=True)
    assert formed(flow, 12, monkeypatch)[0] == least


@pytest.mark.parametrize("account", [False, True])
def test_long_steps_form_their_own(account: bool, monkeypatch) -> None:
    flow = Flow(Risk(X, Y, alpha=5.0), lam=1e-3, eta=0.02, scheme="kernel", account=account)
    count, cloud = formed(flow, 5, monkeypatch)
    assert count >= 5
    assert cloud.kernel.age > risk_module.HELD


def test_it_belongs_to_inputs_activation_and_layers() -> None:
    flow = Flow(Risk(X, Y, alpha=1.0), lam=1e-3, eta=1e-4, scheme="kernel", account=False)
    cloud = flow.step(gaussian_cloud(400, flow.objective.unit, 3, seed=1))
    assert flow.objective.held(cloud, "both") is cloud.kernel
    assert flow.objective.held(cloud, "u") is None
    assert Risk(2 * X, Y).held(cloud, "both") is None
    assert Risk(X, Y, mf.Unit("erf")).held(cloud, "both") is None
    assert Risk(X, -Y, alpha=9.0).held(cloud, "both") is cloud.kernel


def test_what_it_changes_is_far_below_a_hundredth(monkeypatch) -> None:
    flow = Flow(Risk(X, Y, alpha=2.0), lam=1e-2, eta=2e-3, scheme="kernel")
    _, carried = formed(flow, 30, monkeypatch)
    monkeypatch.setattr(risk_module, "HELD", 0.0)
    _, own = formed(flow, 30, monkeypatch)
    monkeypatch.undo()
    assert not np.array_equal(carried.z, own.z)
    f, g = (flow.objective.prediction(cloud) for cloud in (carried, own))
    assert np.abs(f - g).max() < 1e-4 * np.abs(g).max()
    assert carried.account.kl == pytest.approx(own.account.kl, rel=2e-3)


def test_midpoint_steps_carry_none() -> None:
    flow = Flow(Risk(X, Y, alpha=1.0), lam=1e-3, eta=1e-4, scheme="kernel2")
    assert flow.step(flow.step(gaussian_cloud(100, flow.objective.unit, 3, seed=1))).kernel is None


def test_checkpoints_hold_it() -> None:
    flow = Flow(Risk(X, Y, alpha=1.0), lam=1e-3, eta=1e-4, scheme="kernel")
    cloud = flow.step(gaussian_cloud(100, flow.objective.unit, 3, seed=1))
    (back,) = store.unpack_clouds(store.pack_clouds([cloud]))
    assert isinstance(back.kernel, Kernel)
    for a, b in zip(back.kernel, cloud.kernel, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(flow.step(back).z, flow.step(cloud).z)


def test_other_particles_carry_none() -> None:
    flow = Flow(Risk(X, Y, alpha=1.0), lam=1e-3, eta=1e-4, scheme="kernel", account=False)
    cloud = flow.step(gaussian_cloud(100, flow.objective.unit, 3, seed=1))
    assert cloud.kernel is not None and cloud.replace(time=9.0).kernel is cloud.kernel
    assert cloud.replace(z=3 * cloud.z).kernel is None
