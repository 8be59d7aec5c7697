"""W2: closed forms, couplings known exactly, bias, weights, bad input."""

import math

import numpy as np
import pytest

from meanfield import transport
from meanfield.errors import InputError, MeanfieldError
from meanfield.estimate import Estimate
from meanfield.moments import centred_moments, coupled_pairs, halves, parts


def affine(matrix, shift, *, replicates=8, m=2000, scale=1.0, seed=0):
    """Clouds Z = A Zbar / s + b beside a reference of law N(0, s^2 I); the law of Z is N(b, A A')."""
    rng = np.random.default_rng(seed)
    references = scale * rng.standard_normal((replicates, m, len(matrix)))
    return [(r / scale @ np.transpose(matrix) + shift, r, None) for r in references]


def independent(dimension, *, replicates=4, m=500, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(rng.standard_normal((2, m, dimension))) + (None,) for _ in range(replicates)]


STRETCH = np.array([[1.3, 0.2, 0.0], [0.2, 0.9, -0.1], [0.0, -0.1, 1.1]])
SHIFT = np.array([0.3, 0.0, -0.2])


def test_gelbrich_of_a_diagonal():
    assert transport.gelbrich(np.array([3.0, 0.0]), np.diag([4.0, 0.25])) == pytest.approx(9 + 1 + 0.25, abs=1e-14)


def test_bures_agrees_with_the_formula_and_with_gelbrich():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = (g @ g.T for g in rng.standard_normal((2, 4, 4)))
    root = sqrtm(a)
    assert transport.bures(a, b) == pytest.approx(np.trace(a + b - 2 * np.real(sqrtm(root @ b @ root))), rel=1e-7)
    assert transport.bures(a, np.eye(4)) == pytest.approx(transport.gelbrich(np.zeros(4), a), rel=1e-10)
    assert transport.bures(a, a) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_optimal_coupling_of_gaussians_closes_the_bracket(scale):
    exact = transport.gelbrich(SHIFT, STRETCH @ STRETCH)
    clouds = affine(STRETCH, SHIFT, scale=scale)
    upper, lower = transport.coupled_upper(clouds, scale=scale), transport.gelbrich_lower(clouds, scale=scale)
    assert abs(upper.value - exact) < 4 * upper.se < 0.1 * exact
    assert abs(lower.value - exact) < 4 * lower.se < 0.1 * exact


def test_rotation_separates_the_coupling_from_the_distance():
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    clouds = affine(turn, np.zeros(2), m=1000)
    assert transport.coupled_upper(clouds).value == pytest.approx(4.0, rel=0.1)
    lower = transport.gelbrich_lower(clouds)
    assert abs(lower.value) < 5 * lower.se


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_pairing_anew_undoes_a_rotation(scale):
    """The coupling of a quarter turn costs 4, and the law has not moved: the distance of two samples is left."""
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    clouds = affine(turn, np.zeros(2), replicates=2, m=1000, scale=scale)
    repaired = transport.repaired_upper(clouds, scale=scale)
    assert 0 < repaired.value < 0.12 and repaired.source == "repaired"
    assert transport.coupled_upper(clouds, scale=scale).value > 30 * repaired.value
    assert transport.repaired_upper(clouds, scale=scale, block=500).value < 0.06


def test_pairing_anew_is_an_upper_bound_that_approaches_the_distance_as_the_cloud_grows():
    """Z = A Zbar + noise: the coupling pays for the noise, W2 does not."""
    rng = np.random.default_rng(11)
    A = np.array([[1.2, 0.1], [0.1, 0.8]])
    exact = transport.gelbrich(np.zeros(2), A @ A + 0.04 * np.eye(2))
    left = []
    for m in (250, 1000, 4000):
        references = rng.standard_normal((6, m, 2))
        clouds = [(r @ A + 0.2 * rng.standard_normal((m, 2)), r, None) for r in references]
        repaired, coupled = transport.repaired_upper(clouds), transport.coupled_upper(clouds)
        assert exact - 4 * repaired.se < repaired.value < coupled.value
        left.append((repaired.value - exact) / (coupled.value - exact))
    assert left[0] > left[1] > left[2] and left[2] < 0.15


def test_pairing_anew_comes_close_to_the_optimal_pairing():
    r = np.random.default_rng(12).standard_normal((600, 2))
    z = r @ [[1.2, 0.3], [-0.1, 0.8]] + 0.3 * np.random.default_rng(13).standard_normal((600, 2))
    best = transport.plugin(z, r)
    blocks = transport.repaired_upper([(z, r, None)])
    assert best <= blocks.value < 1.1 * best < 0.9 * transport.coupled_upper([(z, r, None)]).value
    assert transport.repaired_upper([(z, r, None)], block=600, rounds=1).value == pytest.approx(best, rel=1e-12)
    order = np.random.default_rng(4).permutation(600)
    assert transport.repaired_upper([(z[order], r[order], None)]).value == pytest.approx(blocks.value, rel=1e-12)


def test_pairing_anew_refuses_what_it_cannot_pair():
    z, r, _ = affine(STRETCH, SHIFT, replicates=1, m=10)[0]
    with pytest.raises(InputError, match="leave the weights out"):
        transport.repaired_upper([(z, r, np.full(10, 0.1))])
    for options in ({"block": 0}, {"rounds": 0}):
        with pytest.raises(InputError, match="at least 1"):
            transport.repaired_upper([(z, r, None)], **options)


def test_equal_laws_read_zero():
    rng = np.random.default_rng(2)
    z = rng.standard_normal((300, 4))
    assert transport.coupled_upper([(z, z, None)] * 3) == Estimate(0.0, 0.0, "coupling")
    assert transport.repaired_upper([(z, z, None)] * 3) == Estimate(0.0, 0.0, "repaired")
    assert transport.gelbrich_lower([(z, z, None)] * 3).value == pytest.approx(0.0, abs=1e-12)


def test_jackknife_takes_the_bias_off():
    raw, corrected = [], []
    for seed in range(20):
        clouds = independent(10, seed=seed)
        moments = [centred_moments(z, r) for z, r, _ in clouds]
        mean, second = (np.mean(column, axis=0) for column in zip(*moments, strict=True))
        raw.append(transport.gelbrich(mean, second - np.outer(mean, mean)))
        corrected.append(transport.gelbrich_lower(clouds).value)
    error = np.std(corrected, ddof=1) / math.sqrt(len(corrected))
    assert np.mean(raw) > 0.02
    assert -5 * error - 0.1 * np.mean(raw) < np.mean(corrected) < 4 * error
    assert np.mean(np.abs(corrected)) < 0.3 * np.mean(raw)


def test_jackknife_sees_what_all_particles_of_a_replicate_share():
    """A shift of zero mean, common to a replicate: blocks of particles are blind to it, replicates are not."""
    rng = np.random.default_rng(3)
    values = []
    for _ in range(40):
        references = rng.standard_normal((6, 40, 3))
        clouds = [(r + 0.3 * rng.standard_normal(3), r, None) for r in references]
        values.append(transport.gelbrich_lower(clouds, blocks=4).value)
    # The law of a particle is N(0, 1.09 I).
    exact = transport.gelbrich(np.zeros(3), 1.09 * np.eye(3))
    assert np.mean(values) < exact + 4 * np.std(values) / math.sqrt(len(values)) < 0.045  # 3 * 0.09 / 6 of bias


def test_one_replicate_has_no_error_but_a_value():
    clouds = affine(STRETCH, SHIFT, replicates=1, m=20_000)
    estimate = transport.gelbrich_lower(clouds)
    assert estimate.value == pytest.approx(transport.gelbrich(SHIFT, STRETCH @ STRETCH), rel=0.05)
    assert math.isnan(estimate.se) and math.isnan(transport.coupled_upper(clouds).se)


def test_order_of_replicates_and_particles_does_not_matter():
    clouds = affine(STRETCH, SHIFT, replicates=4, m=800)
    order = np.random.default_rng(4).permutation(800)
    shuffled = [(z[order], r[order], None) for z, r, _ in clouds[::-1]]
    for bound in (transport.coupled_upper, transport.gelbrich_lower):
        one, other = bound(clouds), bound(shuffled)
        assert other.value == pytest.approx(one.value, rel=1e-3)
        assert transport.coupled_upper(clouds[::-1]).se == pytest.approx(transport.coupled_upper(clouds).se, rel=1e-9)


def test_two_particles_of_half_the_weight_count_as_one():
    z, r, _ = affine(STRETCH, SHIFT, replicates=1, m=600)[0]
    masses = np.random.default_rng(5).random(600)
    masses /= masses.sum()
    split = (np.repeat(z, 2, axis=0), np.repeat(r, 2, axis=0), np.repeat(masses / 2, 2))
    for one, other in zip(centred_moments(z, r, masses), centred_moments(*split), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-12)
    assert transport.coupled_upper([(z, r, masses)]).value == pytest.approx(transport.coupled_upper([split]).value)
    equal = transport.gelbrich_lower([(z, r, np.full(600, 1 / 600))])
    assert equal.value == pytest.approx(transport.gelbrich_lower([(z, r, None)]).value, rel=1e-10)


def test_moments_of_blocks_average_to_those_of_the_cloud():
    z, r, _ = affine(STRETCH, SHIFT, replicates=1, m=600)[0]
    whole, blocks = centred_moments(z, r), centred_moments(z, r, blocks=6)
    assert blocks[0].shape == (6, 3) and blocks[1].shape == (6, 3, 3)
    np.testing.assert_allclose(blocks[1].mean(axis=0), whole[1], atol=1e-12)


def test_parts_and_halves():
    pair = coupled_pairs(independent(2, replicates=1, m=7))[0]
    assert [len(part.z) for _, part in parts(pair, 3)] == [3, 2, 2]
    assert sum(mass for mass, _ in parts(pair, 3)) == pytest.approx(1)
    assert [h.tolist() for h in halves([0, 0, 1, 1, 2, 2])] == [[0, 1, 4, 5], [2, 3]]
    assert [h.tolist() for h in halves([5, 5, 5, 5])] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("c", [1.0, 2.4, 3.3])
def test_root_is_exact_on_the_side_that_is_read(c):
    upper = transport.root(Estimate(0.09, 0.02, "x"), c)
    lower = transport.root(Estimate(0.09, 0.02, "x"), c, side=-1)
    assert upper.value == lower.value == pytest.approx(0.3) and upper.source == "x"
    assert upper.value + c * upper.se == pytest.approx(math.sqrt(0.09 + c * 0.02))
    assert lower.value - c * lower.se == pytest.approx(math.sqrt(0.09 - c * 0.02))


def test_root_near_and_below_zero():
    assert transport.root(Estimate(0.01, 0.02), 2.0, side=-1) == Estimate(0.1, 0.05, "")  # reads 0
    assert transport.root(Estimate(-0.01, 0.04)) == Estimate(0.0, 0.2, "")
    assert math.isnan(transport.root(Estimate(0.04, math.nan)).se)
    assert math.isnan(transport.root(Estimate(math.nan, math.nan)).value)


def test_plugin_of_a_shift_and_of_itself():
    a = np.random.default_rng(6).standard_normal((80, 3))
    assert transport.plugin(a, a[::-1] + [0.5, 0, 0]) == pytest.approx(0.25, rel=1e-9)
    assert transport.plugin(a, a[::-1]) == pytest.approx(0.0, abs=1e-10)
    assert transport.plugin([[0.0], [1.0]], [[2.0]]) == pytest.approx(2.5)


def test_plugin_measures_the_sample_size_in_ten_dimensions():
    draws = np.random.default_rng(7).standard_normal((600, 10))
    null = transport.plugin_null(draws)
    assert 3 < null < 8
    assert transport.plugin(draws[:300], draws[300:] + 0.05) == pytest.approx(null, rel=0.05)


def test_plugin_says_when_it_did_not_converge():
    a, b = np.random.default_rng(8).standard_normal((2, 60, 3))
    with pytest.raises(MeanfieldError, match="did not converge"):
        transport.plugin(a[1:], b, iterations=3)


def test_assignment_and_simplex_agree():
    """Each particle of one sample taken twice is the same law, but other sizes: those go through the simplex."""
    a, b = np.random.default_rng(9).standard_normal((2, 50, 4))
    assert transport.plugin(a, b) == pytest.approx(transport.plugin(np.tile(a, (2, 1)), b), rel=1e-10)


GOOD = np.zeros((4, 2))


@pytest.mark.parametrize(
    ("clouds", "message"),
    [
        ([], "at least one replicate"),
        ([(GOOD, GOOD[:3], None)], "share a shape"),
        ([(GOOD, None, None)], "coupled reference"),
        ([(GOOD[:, 0], GOOD[:, 0], None)], "share a shape"),
        ([(GOOD + np.nan, GOOD, None)], "NaN"),
        ([(GOOD, GOOD, np.full(4, 0.3))], "sum to 1"),
        ([(GOOD, GOOD, np.full(3, 1 / 3))], "masses"),
        ([(GOOD, GOOD, None), (np.zeros((4, 3)), np.zeros((4, 3)), None)], "share their dimension"),
    ],
)
def test_bad_clouds(clouds, message):
    with pytest.raises(InputError, match=message):
        transport.coupled_upper(clouds)


def test_bad_scale_and_samples():
    with pytest.raises(InputError, match="scale"):
        transport.gelbrich_lower([(GOOD, GOOD, None)], scale=0.0)
    with pytest.raises(InputError, match="samples"):
        transport.plugin(GOOD, np.zeros((4, 3)))
    with pytest.raises(InputError, match="covariances"):
        transport.bures(np.eye(2), np.eye(3))
    with pytest.raises(InputError, match="draws"):
        transport.plugin_null(np.zeros(3))
