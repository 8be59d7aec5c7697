"""Distances between samples: closed forms on the line, other solvers, what is refused, errors."""

import math

import numpy as np
import pytest
from scipy import integrate
from scipy.special import ndtri

from meanfield import assignment, directions, distances, nulls, slices
from meanfield.errors import InputError, MeanfieldError, Uninformative


def samples(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# --- on the line, against N(0, 1)


def test_one_point_against_the_normal_law():
    """W2^2(delta_a, N(0, 1)) = a^2 + 1."""
    assert slices.gaussian_quantiles([0.7]) == pytest.approx(1.49, abs=1e-15)
    assert slices.gaussian_quantiles([0.7, 0.7, 0.7]) == pytest.approx(1.49, abs=1e-14)


def test_two_points_against_the_normal_law():
    """(-a, a): E|X|^2 + 1 - 2 a E|N(0, 1)|."""
    for a in (0.0, 0.5, 2.0):
        assert slices.gaussian_quantiles([a, -a]) == pytest.approx(
            a * a + 1 - 2 * a * math.sqrt(2 / math.pi), abs=1e-14
        )


def test_quantile_integrals_against_quadrature():
    x = np.sort(samples(7, seed=1))
    pieces = (
        integrate.quad(lambda q, i=i: (x[i] - ndtri(q)) ** 2, i / 7, (i + 1) / 7, epsabs=1e-12)[0] for i in range(7)
    )
    assert slices.gaussian_quantiles(x) == pytest.approx(sum(pieces), abs=1e-9)


def test_weights_count_as_repeated_points():
    x = np.array([[0.3, 1.0], [-1.2, 0.1], [0.8, -0.4]])
    repeated = np.repeat(x, [2, 1, 3], axis=0)
    np.testing.assert_allclose(
        slices.gaussian_quantiles(x, np.array([2, 1, 3]) / 6), slices.gaussian_quantiles(repeated), atol=1e-14
    )


def test_a_sample_of_the_normal_law_is_near_it_at_the_known_rate():
    """Its quantiles at (i - 1/2)/m are at distance O(1/m); random points at O(log log m / m)."""
    m = 2000
    assert slices.gaussian_quantiles(ndtri((np.arange(m) + 0.5) / m)) < 2 / m
    assert 0.5 / m < slices.gaussian_quantiles(samples(m, 40, seed=2)).mean() < 5 / m


# --- on the line, between samples


def test_unequal_sizes_agree_with_repeated_points_and_with_the_simplex():
    x, y = samples(6, seed=3), samples(4, seed=4) + 0.5
    value = slices.quantiles(x, y)
    assert value == pytest.approx(slices.quantiles(np.repeat(x, 2), np.repeat(y, 3)), abs=1e-14)
    assert value == pytest.approx(assignment.plugin(x[:, None], y[:, None]), abs=1e-12)
    assert slices.quantiles([0.0, 1.0, 2.0], [1.0]) == pytest.approx(2 / 3)


def test_equal_sizes_are_sorted():
    x, y = samples(50, 3, seed=5), samples(50, 3, seed=6)
    expected = ((np.sort(x, axis=0) - np.sort(y, axis=0)) ** 2).mean(axis=0)
    np.testing.assert_allclose(slices.quantiles(x, y), expected, rtol=1e-12)


def test_large_samples_of_the_normal_law_stand_for_it():
    """The exact quantile integrals are what ever finer samples of N(0, 1) tend to."""
    x = 1.3 * samples(40, seed=7) + 0.2
    fine = ndtri((np.arange(200_000) + 0.5) / 200_000)
    assert slices.quantiles(x, fine) == pytest.approx(float(slices.gaussian_quantiles(x)), abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slices.gaussian_quantiles(np.zeros((2, 2, 2))), "sample on the line"),
        (lambda: slices.gaussian_quantiles([]), "sample on the line"),
        (lambda: slices.gaussian_quantiles([math.nan]), "finite"),
        (lambda: slices.gaussian_quantiles([0.0, 1.0], [0.5, 0.6]), "masses"),
        (lambda: slices.quantiles(np.zeros((3, 2)), np.zeros((3, 1))), "two samples"),
        (lambda: directions.frames(3, 0), "at least one direction"),
    ],
)
def test_bad_input_on_the_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- directions


def test_frames_are_orthonormal_and_functions_of_integers():
    v = directions.frames(3, 7)
    assert v.shape == (9, 3)
    for frame in (v[:3], v[3:6], v[6:]):
        np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-14)
    np.testing.assert_array_equal(v[:6], directions.frames(3, 4))
    assert not np.allclose(v, directions.frames(3, 7, seed=1))


def test_frames_are_uniform():
    v = directions.frames(4, 4000)
    np.testing.assert_allclose(v.mean(axis=0), 0, atol=4 * 0.5 / math.sqrt(4000))
    np.testing.assert_allclose(v.T @ v / len(v), np.eye(4) / 4, atol=1e-12)  # exactly, frame by frame
    assert (v**4).mean() == pytest.approx(3 / 24, rel=0.05)  # E v_1^4 = 3 / (D (D + 2)) on the sphere


@pytest.mark.parametrize("paired", [False, True])
def test_the_farthest_direction_is_where_the_law_was_stretched(paired):
    z = samples(2000, 6, seed=8)
    v = np.array([3.0, 0.0, -2.0, 0.0, 1.0, 0.5])
    v /= np.linalg.norm(v)
    moved = z + 0.5 * np.outer(z @ v, v)
    found = directions.farthest(moved, samples(1500, 6, seed=9) if paired else None)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert abs(found @ v) > 0.98


@pytest.mark.parametrize("paired", [False, True])
def test_slopes_are_difference_quotients(paired):
    first, second = samples(30, 3, seed=10) + 0.2, samples(20, 3, seed=11) if paired else None
    v, w = directions.frames(3, 3)[:2]
    value, gradient = directions._slope(v, first, second)
    along = [directions._slope(math.cos(s) * v + math.sin(s) * w, first, second)[0] for s in (-1e-6, 1e-6)]
    assert gradient @ w == pytest.approx((along[1] - along[0]) / 2e-6, rel=1e-5)
    one = first @ v
    exact = slices.quantiles(one, second @ v) if paired else slices.gaussian_quantiles(one)
    assert value == pytest.approx(float(exact), abs=1e-13)


# --- figures between samples


def test_sinkhorn_of_a_shift_is_the_shift():
    """The quadratic cost splits off the means: S(p, p moved by b) = |b|^2 for every epsilon."""
    a = samples(120, 3, seed=12)
    for epsilon in (0.3, 3.0):
        found = distances.sinkhorn(a, a + [0.5, 0, -0.5], epsilon=epsilon, force=True)
        assert found.value == pytest.approx(0.5, rel=1e-4) and found.epsilon == epsilon


def test_sinkhorn_of_gaussians():
    """Closed form with sigma^2 = epsilon / 2 [Janati20]: a large sample of one law and of another on the line."""
    points = ndtri((np.arange(600) + 0.5) / 600)[:, None]
    epsilon, s = 0.5, 1.6

    def entropic(a, b):
        root = math.sqrt(4 * a * b + epsilon**2 / 4)
        return a + b - root + epsilon / 2 * (1 - math.log(epsilon)) + epsilon / 2 * math.log(root + epsilon / 2)

    expected = entropic(1, s * s) - 0.5 * (entropic(1, 1) + entropic(s * s, s * s))
    assert distances.sinkhorn(s * points, points, epsilon=epsilon).value == pytest.approx(expected, rel=5e-3)


def test_sinkhorn_by_scalings_and_by_logarithms(monkeypatch):
    a, b = samples(60, 2, seed=13), samples(50, 2, seed=14) + 0.5
    plain = distances._entropic(a, b, 0.5, 5000, 1e-6)
    monkeypatch.setattr(distances, "LARGEST_EXPONENT", 0.0)
    assert distances._entropic(a, b, 0.5, 5000, 1e-6) == pytest.approx(plain, rel=1e-9)


def test_sinkhorn_tends_to_the_exact_figure():
    a, b = samples(30, 2, seed=13), samples(30, 2, seed=14) + 0.5
    exact = distances.exact(a, b, force=True).value
    off = [exact - distances.sinkhorn(a, b, epsilon=e, force=True, tolerance=1e-4).value for e in (1.0, 0.1)]
    assert 0 < off[1] < 0.5 * off[0]


def test_sinkhorn_says_when_it_did_not_converge():
    a, b = samples(60, 2, seed=15), samples(60, 2, seed=16)
    with pytest.raises(MeanfieldError, match="did not converge"):
        distances.sinkhorn(a, b, epsilon=0.01, iterations=11)
    with pytest.raises(InputError, match="epsilon"):
        distances.sinkhorn(a, b, epsilon=0.0)


@pytest.mark.parametrize("paired", [False, True])
def test_sliced_figures_of_a_shift(paired):
    """N(b, 1) along v is at distance (b . v)^2: a mean of |b|^2 / D over a frame, |b|^2 along the best direction."""
    a, b = samples(1000, 4, seed=17) + [0.6, 0, 0, 0], samples(700, 4, seed=18) if paired else None
    one, best = distances.sliced(a, b, count=32), distances.max_sliced(a, b, starts=2)
    assert abs(one.debiased - 0.36 / 4) < 4 * one.se < 0.15
    assert abs(best.debiased - 0.36) < 4 * best.se < 0.5


def test_figures_are_in_order():
    a, b = samples(200, 3, seed=19), samples(150, 3, seed=20) * [1.5, 1, 1] + [0.5, 0, 0]
    exact, one = distances.exact(a, b, force=True), distances.sliced(a, b, force=True)
    assert 3 * one.value <= exact.value


def test_a_direction_chosen_on_the_same_particles_reads_more_than_one_measured_apart():
    a = samples(400, 11, seed=21)
    chosen = [float(slices.gaussian_quantiles(half @ directions.farthest(half))) for half in (a[::2], a[1::2])]
    assert np.mean(chosen) > 2 * distances.max_sliced(a, force=True).value


# --- what equal laws read, and what is refused


FIGURES = [distances.exact, distances.sinkhorn, distances.sliced, distances.max_sliced]


@pytest.mark.parametrize("figure", FIGURES)
def test_equal_laws_are_refused_with_the_reason(figure):
    a = samples(150, 11, seed=22)
    with pytest.raises(Uninformative, match="says nothing") as refusal:
        figure(a)
    assert "D = 11" in str(refusal.value) and "force=True" in str(refusal.value)
    found = figure(a, force=True)
    assert not found.informative
    assert abs(found.debiased) < 4 * max(found.se, found.spread)


@pytest.mark.parametrize("figure", FIGURES)
def test_laws_far_apart_are_not_refused(figure):
    clouds = [samples(100, 3, seed=s) + [2.0, 0, 0] for s in range(4)]
    found = figure(clouds)
    assert found.informative and found.replicates == 4
    wanted = {"sliced": 4 / 3, "sinkhorn": 4.0}.get(found.source, 4.0)
    assert abs(found.debiased - wanted) < 4 * found.se < wanted


def test_the_exact_figure_of_eleven_dimensions_is_refused_though_the_laws_differ():
    """W2^2 = 0.04, and the figure reads 6.6: bounds are what one needs here."""
    a = samples(300, 11, seed=23) + 0.2 * np.eye(11)[0]
    with pytest.raises(Uninformative, match="transport"):
        distances.exact(a)


def test_replicates_give_the_error():
    clouds = [samples(100, 2, seed=s) + [1.0, 0] for s in range(5)]
    found = distances.sliced(clouds)
    alone = [distances.sliced(cloud).value for cloud in clouds]
    assert found.value == pytest.approx(np.mean(alone))
    assert found.se > np.std(alone, ddof=1) / math.sqrt(5) > 0.8 * found.se


def test_deleted_groups_give_the_error_of_one_sample():
    """Against the scatter over independent samples."""
    found = [distances.sliced(samples(300, 2, seed=s) + [1.0, 0], count=4) for s in range(40)]
    scatter = np.std([one.value for one in found], ddof=1)
    assert np.mean([one.se for one in found]) == pytest.approx(scatter, rel=0.35)


def test_figures_are_functions_of_the_integers():
    a = samples(60, 2, seed=24) + [1.0, 0]
    assert distances.exact(a) == distances.exact(a) != distances.exact(a, seed=1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros((40, 2)), np.zeros((40, 3))),
        ([np.zeros((40, 2))] * 2, np.zeros((40, 2))),
        ([np.zeros((40, 2)), np.zeros((30, 2))], None),
        (np.zeros((4, 2)), None),
        (np.zeros(40), None),
        (np.full((40, 2), math.nan), None),
    ],
)
def test_bad_samples(first, second):
    with pytest.raises(InputError, match="got"):
        distances.exact(first, second)


def test_fresh_samples_of_p0_share_no_counter_with_a_run():
    steps = {directions.FRAMES, directions.STARTS, nulls.FIRST, nulls.SECOND}
    assert len(steps) == 4 and not steps & {0, 1}
