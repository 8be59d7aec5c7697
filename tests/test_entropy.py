"""KL without tilts: Gaussians known exactly, bias, Stein's bound on Fisher information, nearest neighbours."""

import math

import numpy as np
import pytest

from meanfield import entropy
from meanfield.errors import InputError
from meanfield.moments import centred_moments

STRETCH = np.array([[1.3, 0.2, 0.0], [0.2, 0.9, -0.1], [0.0, -0.1, 1.1]])
SHIFT = np.array([0.3, 0.0, -0.2])


def affine(matrix, shift, *, replicates=8, m=2000, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    references = scale * rng.standard_normal((replicates, m, len(matrix)))
    return [(r / scale @ np.transpose(matrix) + shift, r, None) for r in references]


def exact_kl(matrix, shift):
    s = matrix @ np.transpose(matrix)
    return 0.5 * (np.trace(s) + shift @ shift - len(s) - math.log(np.linalg.det(s)))


def test_gaussian_kl():
    assert entropy.gaussian_kl(SHIFT, STRETCH @ STRETCH.T) == pytest.approx(exact_kl(STRETCH, SHIFT), rel=1e-12)
    assert entropy.gaussian_kl(np.zeros(2), np.eye(2)) == 0
    assert entropy.gaussian_kl(np.zeros(1), np.array([[1 + 1e-7]])) == pytest.approx(2.5e-15, rel=1e-2)
    assert entropy.gaussian_kl(np.zeros(2), np.diag([1.0, 0.0])) == math.inf


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_gaussian_lower_is_exact_for_gaussians(scale):
    exact = exact_kl(STRETCH, SHIFT)
    lower = entropy.gaussian_lower(affine(STRETCH, SHIFT, scale=scale), scale=scale)
    assert abs(lower.value - exact) < 4 * lower.se < 0.1 * exact


def test_gaussian_lower_is_below_the_kl_of_a_shear():
    """Z = (theta + b sin u, u): KL = b^2 E sin(u)^2 / 2, and its moments tell only a part of it."""
    rng = np.random.default_rng(1)
    references = rng.standard_normal((4, 4000, 2))
    clouds = [(r + 0.6 * np.sin(2 * r[:, ::-1]) * [1, 0], r, None) for r in references]
    truth = 0.5 * 0.36 * 0.5 * (1 - math.exp(-8))
    lower = entropy.gaussian_lower(clouds)
    assert 0 < lower.value - 4 * lower.se < lower.value < 0.5 * truth


@pytest.mark.parametrize("size", [0.0, 0.1])
def test_gaussian_lower_of_a_nearly_singular_cloud_stays_below(size):
    rng = np.random.default_rng(2)
    clouds = [(r * [1, size], r, None) for r in rng.standard_normal((4, 2000, 2))]
    lower = entropy.gaussian_lower(clouds)
    truth = entropy.gaussian_kl(np.zeros(2), np.diag([1, size**2]))
    assert 0.5 < lower.value < truth + 4 * lower.se
    assert lower.value < 2


def test_jackknife_takes_the_bias_off():
    raw, corrected = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        clouds = [tuple(rng.standard_normal((2, 500, 10))) + (None,) for _ in range(4)]
        mean, second = (
            np.mean(column, axis=0) for column in zip(*(centred_moments(z, r) for z, r, _ in clouds), strict=True)
        )
        raw.append(entropy.gaussian_kl(mean, second - np.outer(mean, mean)))
        corrected.append(entropy.gaussian_lower(clouds).value)
    assert np.mean(raw) > 0.02
    assert abs(np.mean(corrected)) < 0.2 * np.mean(raw)


def test_equal_laws_read_zero():
    z = np.random.default_rng(3).standard_normal((300, 4))
    assert entropy.gaussian_lower([(z, z, None)] * 3).value == pytest.approx(0.0, abs=1e-12)
    assert entropy.knn_estimate([(z, z, None)] * 3)[:2] == (0.0, 0.0)


def test_weights_count_as_mass():
    z, r, _ = affine(STRETCH, SHIFT, replicates=1, m=600)[0]
    equal = entropy.gaussian_lower([(z, r, np.full(600, 1 / 600))])
    assert equal.value == pytest.approx(entropy.gaussian_lower([(z, r, None)]).value, rel=1e-10)
    with pytest.raises(InputError, match="equal mass"):
        entropy.knn_estimate([(z, r, np.full(600, 1 / 600))])


# --- Fisher information


def gaussian_fisher(seed=4):
    """Bilinear features under N(0, S): e, H and the exact Fisher information."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 3))
    root = np.eye(4) + 0.2 * rng.standard_normal((4, 4))
    s = root @ root.T
    e = -2 * x @ s[:-1, -1]
    gram = s[-1, -1] * x @ x.T + x @ s[:-1, :-1] @ x.T
    excess = np.eye(4) - np.linalg.inv(s)
    return e, gram, float(np.trace(excess @ s @ excess))


def test_stein_is_below_the_fisher_information():
    for seed in range(10):
        e, gram, exact = gaussian_fisher(seed)
        assert 0 < entropy.stein_fisher(e, gram, np.zeros((3, 3))) < exact


def test_stein_is_tight_where_the_score_is_a_feature():
    """Score of p in the span of grad psi: e = H a and I = a' H a."""
    gram, a = np.diag([2.0, 0.5]), np.array([0.3, -0.7])
    exact = float(a @ gram @ a)
    assert entropy.stein_fisher(gram @ a, gram, np.zeros((2, 2))) == pytest.approx(exact, rel=1e-12)


def test_stein_with_duplicate_features():
    e, gram, _ = gaussian_fisher()
    twice = np.array([0, 1, 2, 1])
    plain = entropy.stein_fisher(e, gram, np.zeros((3, 3)))
    singular = entropy.stein_fisher(e[twice], gram[np.ix_(twice, twice)], np.zeros((4, 4)))
    assert singular == pytest.approx(plain, rel=1e-8)
    assert entropy.stein_fisher(np.zeros(2), np.zeros((2, 2)), np.zeros((2, 2))) == 0


def test_stein_takes_its_bias_off_and_is_never_negative():
    e, gram, _ = gaussian_fisher()
    rng = np.random.default_rng(5)
    noise = 0.05 * rng.standard_normal((400, 3))
    covariance = 0.0025 * np.eye(3)
    values = [entropy.stein_fisher(e + d, gram, covariance) for d in noise]
    exact = entropy.stein_fisher(e, gram, np.zeros((3, 3)))
    assert abs(np.mean(values) - exact) < 4 * np.std(values) / 20
    assert entropy.stein_fisher(np.zeros(3), gram, covariance) == 0


def test_stein_refuses_shapes():
    with pytest.raises(InputError, match="entries"):
        entropy.stein_fisher(np.zeros(3), np.eye(2), np.eye(3))


# --- nearest neighbours


def test_neighbours_estimate_a_gaussian_in_the_plane():
    matrix, shift = np.diag([1.5, 0.8]), np.array([0.5, 0.0])
    estimate = entropy.knn_estimate(affine(matrix, shift, replicates=4))
    assert estimate.value == pytest.approx(exact_kl(matrix, shift), rel=0.1)
    assert estimate.se < 0.1 * estimate.value


def test_neighbours_read_zero_for_a_copy():
    rng = np.random.default_rng(6)
    clouds = [tuple(rng.standard_normal((2, 1000, 5))) + (None,) for _ in range(6)]
    estimate = entropy.knn_estimate(clouds)
    assert abs(estimate.value) < 4 * estimate.se < 0.2


def test_neighbours_agree_with_a_tree():
    from scipy.spatial import cKDTree

    points = np.random.default_rng(7).standard_normal((700, 3))
    distance = cKDTree(points).query(points, k=4)[0][:, 3]
    np.testing.assert_allclose(entropy._log_distances(points, 3), np.log(distance), atol=1e-9)


def test_neighbours_of_coinciding_particles_are_finite():
    z = np.zeros((20, 2))
    r = np.random.default_rng(8).standard_normal((20, 2))
    assert entropy.knn_estimate([(z, r, None)]).value > 5


def test_neighbours_refuse_too_few():
    z = np.zeros((5, 2))
    with pytest.raises(InputError, match="more than 5"):
        entropy.knn_estimate([(z, z, None)])
