"""How far a finite cloud is from the limit law, and how many steps a scheme needs. Cost: 12 s.

Bilinear problems, whose limit law is known under each scheme without sampling error (`cases.Closure`), at the same
times of the kernel dynamics, kappa t = 0.1 .. 2, for every alpha. Seeds were fixed beforehand.
"""

import cases
import numpy as np
import pytest
from cases import Closure, bilinear

from meanfield import datasets, parallel
from meanfield.cloud import gaussian_cloud
from meanfield.flow import Flow
from meanfield.risk import Risk
from meanfield.units import Unit

LAM = 0.01


def rms_error(problem, m, count, *, centred=True, seed=5):
    """Root mean square error of the predictions over samples, replicates and times."""
    kernel_times = np.concatenate([[0.0], np.geomspace(0.1, 2.0, 4)])
    times = kernel_times * len(problem.y) / (2 * problem.alpha**2)
    law = Closure(Flow(problem.risk(), lam=problem.lam, scheme="kernel2", account=False), problem.dimension)
    exact = [problem.prediction(law.step(float(eta)).covariance) for eta in np.diff(times)]
    flow = Flow(problem.risk(centred=centred), lam=problem.lam, scheme="kernel2", account=False)
    start = gaussian_cloud(m, dimension=problem.dimension, seed=seed)
    found = [
        [flow.objective.prediction(cloud) for cloud in cases.travel(flow, replicate, times)]
        for replicate in cases.replicates(start, count)
    ]
    return float(np.sqrt(np.mean((np.array(found) - exact) ** 2)))


@pytest.mark.parametrize("alpha", [1.0, 100.0])
def test_centred_predictions_converge_with_the_root_of_m(alpha):
    sizes = (128, 512, 2048)
    problem = bilinear(11, alpha, LAM)
    errors = [rms_error(problem, m, 32) for m in sizes]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1)


def test_the_constant_does_not_depend_on_alpha_where_particles_are_centred():
    """Plain clouds, networks of width m, are off by alpha times as much: that is what they are."""
    alphas = (1.0, 10.0, 100.0)
    centred = [rms_error(bilinear(6, alpha, LAM), 512, 24) * np.sqrt(512) for alpha in alphas]
    assert max(centred) < 2 * min(centred)
    assert max(centred) < 0.4
    plain = [rms_error(bilinear(6, alpha, LAM), 512, 8, centred=False) * np.sqrt(512) for alpha in alphas]
    assert np.polyfit(np.log(alphas), np.log(plain), 1)[0] == pytest.approx(1.0, abs=0.25)
    assert plain[-1] > 50 * centred[-1]


def upper(cloud):
    """U1 = sqrt(E|Z - Zbar / s|^2), an upper bound on W2(p_t, p0)."""
    gap = cloud.z - cloud.reference / np.sqrt(cloud.reference_variance)
    return float(np.sqrt(np.mean(np.sum(gap**2, axis=1))))


def test_the_kernel_scheme_needs_two_hundred_times_fewer_steps_than_euler():
    """alpha = 300, n = 50, d = 5, T = 0.2: eta by its rule against half the stability limit, the same particles."""
    x, y = datasets.sphere(n=50, d=5, seed=0)
    risk, time = Risk(x, y, Unit("tanh"), alpha=300.0), 0.2
    kernel, euler = (Flow(risk, lam=LAM, scheme=scheme, account=False) for scheme in ("kernel", "euler"))
    cloud = start = gaussian_cloud(256, risk.unit, 5, seed=0)
    with parallel.single_threaded_blas():
        while cloud.time < time * (1 - 1e-12):
            cloud = kernel.step(cloud, min(kernel.propose([cloud]), time - cloud.time))
        count = int(np.ceil(time / (0.5 * euler.stability_limit(start))))
        slow = start
        for _ in range(count):
            slow = euler.step(slow, time / count)
    assert count >= 200 * cloud.step
    assert upper(cloud) == pytest.approx(upper(slow), rel=0.02)
    assert risk.value(cloud) < 1e-4 and risk.value(slow) < 1e-4
