"""Brownian trees: one path of noise for every length of steps. Cost: 2 s."""

import math

import cases
import numpy as np
import pytest

from meanfield import brownian
from meanfield.cloud import cloud_noise, gaussian_cloud
from meanfield.errors import InputError
from meanfield.flow import Flow
from meanfield.noise import Stream

LEAF, LAM = 1 / 16, 0.7
EXACT = ("kernel", "kernel2", "exponential")


def start(m=300, **options):
    return gaussian_cloud(m, dimension=cases.D, seed=2, **options)


def travel(scheme, eta, time=1.0, cloud=None, leaf=LEAF, **options):
    cloud = cloud or start()
    flow = Flow(cases.network(alpha=2.0), lam=LAM, scheme=scheme, eta=eta, leaf=leaf, account=False, **options)
    for _ in range(round(time / eta)):
        cloud = flow.step(cloud)
    return cloud


@pytest.mark.parametrize("scheme", EXACT)
def test_the_reference_follows_one_path_whatever_the_steps(scheme):
    """The reference is an exact Ornstein-Uhlenbeck process: with every eta it is the same path, to rounding."""
    ends = [travel(scheme, eta).reference for eta in (1 / 8, 1 / 4, 1 / 2)]
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=0, atol=1e-13)
    other = travel(scheme, 1 / 4, leaf=1 / 8).reference
    assert np.abs(other - ends[0]).mean() > 0.5


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_bridge_splits_the_noise_of_a_step_at_its_middle(dtype):
    cloud = start(dtype=dtype).replace(time=0.25)
    c = math.exp(-LAM / 4)
    step, across = (f(cloud, 0.5, LEAF, LAM) for f in (brownian.whole, brownian.bridge))
    first, second = (brownian.whole(cloud.replace(time=t), 0.25, LEAF, LAM) for t in (0.25, 0.5))
    assert step.dtype == across.dtype == dtype
    size = math.sqrt(1 + c * c)
    tolerance = 1e-14 if dtype == "float64" else 4e-6
    np.testing.assert_allclose((c * step + across) / size, first, rtol=0, atol=tolerance)
    np.testing.assert_allclose((step - c * across) / size, second, rtol=0, atol=tolerance)


def test_normals_of_a_tree_are_standard_and_independent():
    cloud = start(20_000)
    x, y = (f(cloud, 0.5, LEAF, LAM).ravel() for f in (brownian.whole, brownian.bridge))
    n = len(x)
    for a in (x, y):
        assert abs(a.mean()) < 4 / math.sqrt(n) and abs((a**2).mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x * y).mean()) < 4 / math.sqrt(n)


def test_steps_of_one_leaf_are_steps_without_a_tree():
    cloud = start()
    np.testing.assert_array_equal(
        brownian.whole(cloud.replace(time=5 * LEAF), LEAF, LEAF, LAM), cloud_noise(cloud, Stream.DIFFUSION, step=5)
    )
    one, two = (travel("exponential", LEAF, cloud=cloud, leaf=leaf) for leaf in (LEAF, None))
    np.testing.assert_allclose(one.z, two.z, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scheme", ["euler", *EXACT])
def test_paths_meet_as_steps_are_halved(scheme):
    """Noise is additive: on one path particles differ by O(eta), not by eta^(1/2) (kernel2 is of order two in law)."""
    etas = [2.0**-k for k in range(3, 7)]
    ends = [travel(scheme, eta, leaf=1 / 128, cloud=start(100)).z for eta in etas]
    gaps = [np.sqrt(((a - b) ** 2).mean()) for a, b in zip(ends, ends[1:], strict=False)]
    assert np.polyfit(np.log(etas[:-1]), np.log(gaps), 1)[0] == pytest.approx(1, abs=0.2)


def test_steps_that_are_not_made_of_leaves_are_refused():
    with pytest.raises(InputError, match="whole leaves"):
        travel("kernel", 0.1)
    with pytest.raises(InputError, match="whole leaves"):
        travel("kernel", LEAF, cloud=start().replace(time=0.03))
    with pytest.raises(InputError, match="even number"):
        travel("kernel2", LEAF)
    for leaf, eta in ((-1.0, 0.5), (math.nan, 0.5), (0.1, "auto")):
        with pytest.raises(InputError, match="leaf must be"):
            Flow(cases.network(), leaf=leaf, eta=eta)
