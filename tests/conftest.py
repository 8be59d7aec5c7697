"""Strict arithmetic in every test: what would silently become inf or nan is an error."""

from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def strict_arithmetic() -> Iterator[None]:
    with np.errstate(all="raise", under="ignore"):
        yield
