"""Limits in width: exact on what has the form, errors that cover, refusals."""

import math

import numpy as np
import pytest

from meanfield.errors import InputError
from meanfield.widths import width_limit

M = np.array([64, 128, 256, 512])


@pytest.mark.parametrize("order", [1, 2])
def test_what_has_the_form_is_found(order):
    truth = np.array([2.0, -3.0, 50.0])[: order + 1]
    values = sum(c / M**k for k, c in enumerate(truth))
    fit = width_limit(M, values, np.full(4, 0.1), order=order)
    np.testing.assert_allclose(fit.coefficients, truth, rtol=1e-9)
    assert fit.limit.value == pytest.approx(2.0) and fit.lack < 1e-15
    np.testing.assert_allclose(fit.at(M)[0], values)
    assert fit.at(math.inf)[0] == pytest.approx(2.0)
    seeds = width_limit(M, np.stack([values + 0.1, values - 0.1, values]), order=order)
    np.testing.assert_allclose(seeds.coefficients, truth, rtol=1e-9)
    assert seeds.limit.se == pytest.approx(0.1 / math.sqrt(3)) and seeds.freedom == 2


def test_errors_of_two_widths_by_hand():
    """a = 2 q(2m) - q(m), the extrapolation of Richardson."""
    fit = width_limit([100, 200], [1.5, 1.25], [0.03, 0.04])
    assert fit.limit.value == pytest.approx(1.0) and fit.limit.se == pytest.approx(math.hypot(0.03, 0.08))
    low, high = fit.band(math.inf)
    assert high - low == pytest.approx(4 * fit.limit.se) and fit.coefficients[1] == pytest.approx(50)


def test_one_over_m_squared_is_seen_as_a_lack_of_fit():
    values = 1 + 2 / M + 900 / M**2
    assert width_limit(M, values, np.full(4, 1e-3)).lack > 20 > 1e-9 > width_limit(M, values, [1e-3] * 4, order=2).lack


@pytest.mark.parametrize("by_seed", [True, False])
def test_bands_cover(by_seed):
    """95.4 % of 400, within four binomial errors, for widths that share their noise as coupled clouds do."""
    rng, hits, lacks = np.random.default_rng(1), 0, []
    for _ in range(400):
        noise = rng.normal(size=(4, 4)) * (1.0 / np.sqrt(M) if by_seed else np.full(4, 0.1))
        values = 1 + 5 / M + (noise + rng.normal(size=(4, 1)) / 10 if by_seed else noise)
        fit = width_limit(M, values) if by_seed else width_limit(M, values[0], np.full(4, 0.1))
        low, high = fit.band([math.inf])
        hits += int(low[0] <= 1 <= high[0])
        lacks.append(fit.lack)
    assert abs(hits / 400 - 0.954) < 4 * math.sqrt(0.954 * 0.046 / 400)
    if not by_seed:
        assert np.mean(lacks) == pytest.approx(2.0, abs=4 * 2 / 20)  # chi square of 4 - 2


def test_what_cannot_be_fitted_is_refused():
    for m, values, errors, words in (
        ([64], [[1.0], [2.0]], None, "2 different positive widths"),
        ([64, 64], [[1.0, 2.0]] * 2, None, "2 different positive widths"),
        (M, np.ones((1, 4)), None, "two of them"),
        (M, np.ones(4), None, "needs errors="),
        (M, np.ones(4), [0.1, 0.1, 0.0, 0.1], "positive standard errors"),
        (M, np.full((2, 4), np.nan), None, "not finite"),
        (M, np.ones((2, 3)), None, r"got \(2, 3\)"),
    ):
        with pytest.raises(InputError, match=words):
            width_limit(m, np.array(values), errors)
