"""What a message suggests."""

import pytest

from meanfield.errors import did_you_mean
from meanfield.observables import OBSERVABLES


@pytest.mark.parametrize(
    ("given", "names", "suggested"),
    [
        ("lamda", ["lam", "alpha"], " Did you mean 'lam'?"),
        ("Y", ["x", "y"], " Did you mean 'y'?"),
        ("w2", ["loss", "w2_upper", "w2_lower"], " Did you mean 'w2_upper' or 'w2_lower'?"),
        ("zzz", ["loss"], ""),
        ("", ["loss"], ""),
    ],
)
def test_the_nearest_name_or_those_that_begin_alike(given, names, suggested):
    assert did_you_mean(given, names) == suggested


def test_the_field_s_short_names_find_observables():
    assert "kl_" in did_you_mean("kl", OBSERVABLES)
