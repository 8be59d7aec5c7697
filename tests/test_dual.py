"""Kantorovich's dual: the certificate against brute force, validity and tightness where W2 is known."""

import math

import numpy as np
import pytest

from meanfield import dual, transport
from meanfield.errors import InputError
from meanfield.units import ACTIVATIONS

TANH = ACTIVATIONS["tanh"]


def inputs(n, d, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def references(d, *, replicates=4, m=1500, seed=1):
    return np.random.default_rng(seed).standard_normal((replicates, m, d + 1))


def pushed(x, coefficients, activation=TANH, **options):
    """Clouds Z = Zbar + grad(u g)(Zbar): for small coefficients an optimal map, so that W2^2 = E|grad(u g)|^2."""
    clouds = []
    for r in references(x.shape[1], **options):
        h, h1 = activation.value_and_first(r[:, :-1] @ x.T)
        step = np.column_stack([r[:, -1:] * (h1 * coefficients) @ x, h @ coefficients])
        clouds.append((r + step, r, None))
    return clouds


def brute_transform(potential, theta, u):
    """Brute force of sup over (eta, v) of clip(v) g(eta) - |eta - theta|^2/2 - (v - u)^2/2, d = 1, less clip(u) g."""
    eta, v = np.linspace(-10, 10, 1001), np.linspace(-8, 8, 641)
    g = potential.value(eta[:, None])
    inner = [(np.clip(v, -potential.clip, potential.clip) * a - 0.5 * (v - u) ** 2).max() for a in g]
    first = np.clip(u, -potential.clip, potential.clip) * potential.value(np.array([[theta]]))[0]
    return float((inner - 0.5 * (eta - theta) ** 2).max() - first)


@pytest.mark.parametrize("size", [0.1, 0.5, 1.5, 4.0])
def test_the_certificate_is_an_upper_bound_and_sharp_where_it_holds(size):
    x = np.array([[1.0], [-0.7], [0.4]])
    potential = dual._potential(TANH, x, size * np.array([0.2]), size * np.array([0.5, 0.3, -0.4]), 0.75)
    rng = np.random.default_rng(2)
    theta, u = 2 * rng.standard_normal((25, 1)), 2 * rng.standard_normal(25)
    bound = dual._transform(potential, theta, u)
    brute = np.array([brute_transform(potential, t, v) for t, v in zip(theta[:, 0], u, strict=True)])
    assert (bound > brute - 1e-9).all()
    inside = np.abs(u) < potential.clip
    if potential.clip * potential.curvature <= 0.75 and potential.slope < 0.5:
        assert (bound[inside] < brute[inside] + 5e-4).all()


def test_the_range_of_a_slope_holds_it():
    for name, low, high in (("tanh", 0.0, 1.0), ("sigmoid", 0.0, 0.25), ("softplus", 0.0, 1.0), ("sin", -1.0, 1.0)):
        found = dual._range_of_slope(ACTIVATIONS[name])
        assert found[0] <= low and found[1] >= high and abs(found[0] - low) + abs(found[1] - high) < 0.01


@pytest.mark.parametrize("name", ["tanh", "erf", "sigmoid", "sin", "softplus"])
def test_tight_where_the_law_moves_along_the_potential(name):
    x = inputs(6, 3)
    activation = ACTIVATIONS[name]
    clouds = pushed(x, 0.04 * np.array([1.0, -1.0, 0.5, 1.0, 0.3, -0.6]), activation)
    upper, lower = transport.coupled_upper(clouds), dual.dual_lower(clouds, x, activation)
    assert lower.source == "Kantorovich dual"
    assert lower.value - 4 * lower.se < upper.value
    assert lower.value > 0.93 * upper.value
    assert lower.se < 0.03 * lower.value


def test_gelbrich_is_beaten_where_the_motion_is_not_linear():
    x = inputs(12, 3, seed=4)
    c = np.random.default_rng(5).standard_normal(12)
    slopes = (c[:, None] * x).sum(axis=0)  # take the linear part off
    c -= x @ np.linalg.lstsq(x.T @ x, slopes, rcond=None)[0]
    clouds = pushed(x, 0.1 * c)
    lower, gelbrich = dual.dual_lower(clouds, x, TANH), transport.gelbrich_lower(clouds)
    assert lower.value > 1.5 * gelbrich.value
    assert gelbrich.value < lower.value < transport.coupled_upper(clouds).value + 4 * lower.se


@pytest.mark.parametrize("size", [0.1, 0.6, 1.5])
@pytest.mark.parametrize("name", ["linear", "tanh"])
def test_below_the_truth_for_gaussians_however_far_they_are(size, name):
    d = 2
    swap = np.zeros((d + 1, d + 1))
    swap[0, -1] = swap[-1, 0] = size
    matrix = np.eye(d + 1) + swap @ swap / 2 + swap  # symmetric positive: the coupling is optimal
    exact = transport.gelbrich(np.zeros(d + 1), matrix @ matrix)
    clouds = [(r @ matrix, r, None) for r in references(d)]
    x = inputs(3, d)
    lower = dual.dual_lower(clouds, x, ACTIVATIONS[name])
    if not math.isnan(lower.value):
        assert lower.value - 4 * lower.se < exact
    if size == 0.1:
        assert lower.value > (0.9 if name == "linear" else 0.7) * exact


def test_equal_and_equal_in_law():
    x, rng = inputs(4, 2), np.random.default_rng(6)
    z = rng.standard_normal((400, 3))
    still = dual.dual_lower([(z, z, None)] * 4, x, TANH)
    assert math.isnan(still.value) and "absent" in still.source
    copies = dual.dual_lower([tuple(rng.standard_normal((2, 400, 3))) + (None,) for _ in range(4)], x, TANH)
    assert math.isnan(copies.value) or copies.value < 4 * copies.se


def test_reference_scale_and_one_replicate():
    x = inputs(5, 2)
    clouds = pushed(x, 0.05 * np.ones(5))
    plain = dual.dual_lower(clouds, x, TANH)
    scaled = dual.dual_lower([(z, 1.3 * r, None) for z, r, _ in clouds], x, TANH, scale=1.3)
    assert scaled.value == pytest.approx(plain.value, rel=1e-9)
    single = dual.dual_lower(clouds[:1], x, TANH)
    assert math.isnan(single.se) and single.value == pytest.approx(plain.value, rel=0.15)


def test_weights_count_as_mass():
    x = inputs(5, 2)
    clouds = pushed(x, 0.05 * np.ones(5), m=800)
    equal = dual.dual_lower([(z, r, np.full(800, 1 / 800)) for z, r, _ in clouds], x, TANH)
    assert equal.value == pytest.approx(dual.dual_lower(clouds, x, TANH).value, rel=1e-6)
    # The other particles of a mixture weigh nothing.
    mixed = [(np.tile(z, (2, 1)), np.tile(r, (2, 1)), np.repeat([1 / 800, 0], 800)) for z, r, _ in clouds]
    assert dual.dual_lower(mixed, x, TANH).value == pytest.approx(equal.value, rel=0.03)


def test_absent_with_a_reason():
    x = inputs(5, 2)
    clouds = pushed(x, 0.05 * np.ones(5), m=300)
    assert "relu is not bounded" in dual.dual_lower(clouds, x, ACTIVATIONS["relu"]).source
    beaten = dual.dual_lower(clouds, x, TANH, beat=10.0)
    assert math.isnan(beaten.value) and "not more than 10" in beaten.source


def test_bad_input():
    z = np.zeros((10, 3))
    with pytest.raises(InputError, match="need particles in"):
        dual.dual_lower([(z, z, None)], inputs(4, 3), TANH)
    with pytest.raises(InputError, match="two particles"):
        dual.dual_lower([(z[:2], z[:2], None)], inputs(4, 2), TANH)
