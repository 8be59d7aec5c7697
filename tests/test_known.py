"""Every check of `meanfield selftest` holds here, and tells when something is wrong."""

import math

import numpy as np
import pytest

from meanfield import backends, known, noise
from meanfield.risk import Risk

HERE = [name for name in ("numpy", "cpu") if not backends.unavailable(name)]


@pytest.mark.parametrize("check", known.CHECKS, ids=lambda check: check.__name__)
def test_known_numbers(check):
    found = check()
    assert found.passed, found


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("check", known.ON_BACKENDS, ids=lambda check: check.__name__)
def test_known_numbers_on_backends(check, backend):
    found = check(backend)
    assert found.passed, found


def test_a_number_that_is_none_fails():
    assert not known.Check("nothing", math.nan, 0.0, 1.0).passed


def test_missing_factor_two(monkeypatch):
    real = Risk.coefficients
    monkeypatch.setattr(Risk, "coefficients", lambda self, residual: 0.5 * real(self, residual))
    assert not known.frozen_law("numpy").passed


def test_noise_that_is_too_large(monkeypatch):
    real = noise.normals
    monkeypatch.setattr(noise, "normals", lambda *place, **more: 1.02 * real(*place, **more))
    assert not known.normal_moments().passed
    assert not known.normal_tails().passed


def test_a_bit_that_differs(monkeypatch):
    real = noise.normals
    backend = backends.get("numpy")._replace(normals=lambda *a, **k: np.nextafter(real(*a, **k), 9))
    monkeypatch.setattr(backends, "get", lambda name: backend)
    assert known.normals_on("numpy").measured == 2 * 4000 * 7


def test_a_gram_matrix_a_tenth_too_large(monkeypatch):
    real = Risk.gram
    monkeypatch.setattr(Risk, "gram", lambda self, cloud, *more: 1.1 * real(self, cloud, *more))
    assert not known.gram_on("numpy").passed
