"""Claims: fits against exact power laws, jackknife errors against the textbook's, verdicts at their edges."""

import numpy as np
import pytest

from meanfield import claims
from meanfield.claims import Claim, Estimate
from meanfield.estimate import student_factor


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=9)
    found = claims.jackknifed(lambda v: v.mean(), values)
    assert found.value == pytest.approx(values.mean())
    assert found.se == pytest.approx(values.std(ddof=1) / 3)
    assert np.isnan(claims.jackknifed(lambda v: v.mean(), values[:1]).se)


def test_the_jackknife_takes_off_the_bias_of_a_square():
    values = np.random.default_rng(3).normal(1, 1, size=(5, 2))
    found, _ = claims.jackknife(lambda v: v.mean(0) ** 2, values, corrected=True)
    pairs = (values.sum(0) ** 2 - (values**2).sum(0)) / 20
    np.testing.assert_allclose(found, pairs, rtol=1e-12)


def test_the_jackknife_takes_several_arrays():
    a, b = np.random.default_rng(1).normal(3, 0.1, size=(2, 400))
    found = claims.jackknifed(lambda a, b: a.mean() / b.mean(), a, b)
    # Delta method for a ratio of independent means.
    assert found.se == pytest.approx(0.1 / 3 * np.sqrt(2 / 400), rel=0.1)


def test_orders_of_exact_power_laws():
    x = np.array([1.0, 3.0, 10.0])
    assert claims.power_law(x, 2 * x**-1.5) == pytest.approx((-1.5, 2.0))
    assert claims.order(x, np.array([[1.0], [2.0], [3.0]]) * x**-0.5) == pytest.approx((-0.5, 0.0, ""), abs=1e-12)


def test_the_error_of_a_slope_is_that_of_repeated_draws():
    rng, x = np.random.default_rng(2), np.array([1.0, 2.0, 4.0, 8.0])
    errors = np.array([0.01, 0.02, 0.005, 0.002])
    drawn = [claims.slope(x, 1 / x + errors * rng.normal(size=4), errors) for _ in range(2000)]
    values = np.array([e.value for e in drawn])
    assert values.mean() == pytest.approx(-1, abs=4 * values.std() / np.sqrt(2000) + 1e-3)
    assert values.std() == pytest.approx(drawn[0].se, rel=0.1)


@pytest.mark.parametrize(("value", "se", "holds"), [(1.04, 0.0, True), (1.06, 0.0, False), (1.0, 0.06, False)])
def test_near_wants_the_number_close_and_known_as_well(value, se, holds):
    assert claims.near("x", Estimate(value, se), 1.0, 0.05).holds is holds


def test_bounds_allow_what_they_say():
    off = Estimate(1.1, 0.06)
    assert not claims.at_most("x", off, 1.0).holds and claims.at_most("x", off, 1.0, 2.0).holds
    assert not claims.at_least("x", Estimate(0.9, 0.06), 1.0).holds
    assert claims.at_least("x", Estimate(0.9, 0.06), 1.0, 2.0).holds
    assert claims.agree("x", Estimate(1.0, 0.1), 1.0 + 0.099 * student_factor(8), 8).holds
    assert not claims.agree("x", Estimate(1.0, 0.1), 1.0 + 0.101 * student_factor(8), 8).holds
    assert (
        claims.agree("x", Estimate(1.0, 0.0), 1.0, 8).holds and not claims.agree("x", Estimate(1.0, 0.0), 1.1, 8).holds
    )


def test_the_rule_of_rates():
    t = student_factor(8, 0.975)
    assert claims.rate("x", [0.0] * 19 + [1.5 * t], 8).holds
    assert not claims.rate("x", [0.0] * 18 + [1.5 * t] * 2, 8).holds
    assert not claims.rate("x", [0.0] * 99 + [2.1 * t], 8).holds
    assert not claims.rate("x", [0.0] * 99 + [np.nan], 8).holds


def test_deviations_forgive_rounding_alone():
    assert claims.deviation(1 + 1e-12, 0.0, 1.0) == 0
    assert claims.deviation(1.1, 0.0, 1.0) == np.inf and claims.deviation(0.9, 0.0, 1.0) == -np.inf
    assert claims.deviation(1.1, 0.05, 1.0) == pytest.approx(2.0)


def test_readings_show_the_digits_that_are_known():
    assert Claim("x", -1.00193, "", True, 0.0020).reading() == "−1.0019 ± 0.002"
    assert Claim("x", 0.25, "", True).reading() == "0.25"
    assert Claim("x", 0.0, "", True, 0.1).reading() == "0 ± 0.1"


def test_claims_about_the_full_grid_are_not_judged_on_another():
    claim = Claim("x", 1.0, "2", False, full=True)
    assert (claim.verdict(True), claim.verdict(False)) == ("fails", "not judged")
