"""Kantorovich's dual: validity and tightness where W2 is known; the choice of a potential."""

import math

import numpy as np
import pytest

from meanfield import dual, ntk, parallel, transport
from meanfield.errors import InputError
from meanfield.units import ACTIVATIONS, Activation

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


@pytest.mark.parametrize("name", ["tanh", "erf", "sigmoid", "sin", "softplus", "relu"])
def test_tight_where_the_law_moves_along_the_potential(name):
    x = inputs(6, 3)
    activation = ACTIVATIONS[name]
    clouds = pushed(x, 0.04 * np.array([1.0, -1.0, 0.5, 1.0, 0.3, -0.6]), activation)
    gram = ntk.gram_gaussian(activation, x)
    upper, lower = transport.coupled_upper(clouds), dual.dual_lower(clouds, x, activation, gram=gram)
    assert lower.source == "Kantorovich dual"
    assert lower.value - 4 * lower.se < upper.value
    assert lower.value > (0.93 if name == "relu" else 0.95) * upper.value
    assert lower.se < 0.035 * lower.value
    # H measured on the reference instead, and no control variate: the same with more noise.
    plain = dual.dual_lower(clouds, x, activation)
    assert plain.value == pytest.approx(lower.value, abs=4 * np.hypot(plain.se, lower.se))


@pytest.mark.parametrize("size", [0.05, 0.3, 0.8])
def test_lasts_while_the_map_is_optimal(size):
    """d = 1: the map is the gradient of a convex function where 1 + u g'' > g'^2, which then holds but for large u."""
    x = np.array([[1.0], [-0.7], [0.4]])
    clouds = pushed(x, size * np.array([0.5, 0.3, -0.4]), m=4000)
    lower = dual.dual_lower(clouds, x, TANH, gram=ntk.gram_gaussian(TANH, x))
    exact = transport.coupled_upper(clouds).value
    assert lower.value - 4 * lower.se < exact
    assert lower.value > 0.88 * exact


def test_gelbrich_is_beaten_where_the_motion_is_not_linear():
    x = inputs(12, 3, seed=4)
    c = np.random.default_rng(5).standard_normal(12)
    slopes = (c[:, None] * x).sum(axis=0)  # take the linear part off
    c -= x @ np.linalg.lstsq(x.T @ x, slopes, rcond=None)[0]
    clouds = pushed(x, 0.3 * c)
    lower, gelbrich = dual.dual_lower(clouds, x, TANH), transport.gelbrich_lower(clouds)
    assert lower.value > 2 * gelbrich.value
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
        assert lower.value > (0.95 if name == "linear" else 0.8) * exact


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
    steep = Activation("steep", lambda w: (w**2, 2 * w, 2 + 0 * w, 0 * w))
    assert "h' of steep is not bounded" in dual.dual_lower(clouds, x, steep).source
    beaten = dual.dual_lower(clouds, x, TANH, beat=10.0)
    assert math.isnan(beaten.value) and "not more than 10" in beaten.source


def test_bad_input():
    z = np.zeros((10, 3))
    with pytest.raises(InputError, match="need particles in"):
        dual.dual_lower([(z, z, None)], inputs(4, 3), TANH)
    with pytest.raises(InputError, match="two particles"):
        dual.dual_lower([(z[:2], z[:2], None)], inputs(4, 2), TANH)
    with pytest.raises(InputError, match="H of 4 inputs"):
        dual.dual_lower([(z, z, None)] * 2, inputs(4, 2), TANH, gram=np.eye(3))


def test_of_many_inputs_some_are_used(monkeypatch):
    x = inputs(40, 3)
    clouds = pushed(x, 0.01 * np.ones(40), m=500)
    whole = dual.dual_lower(clouds, x, TANH, gram=ntk.gram_gaussian(TANH, x))
    monkeypatch.setattr(dual, "MOST_INPUTS", 20)
    some = dual.dual_lower(clouds, x, TANH, gram=ntk.gram_gaussian(TANH, x))
    half = dual.dual_lower(clouds, x[::2], TANH, gram=ntk.gram_gaussian(TANH, x[::2]))
    assert some.value == pytest.approx(half.value, rel=1e-9)
    assert 0.5 * whole.value < some.value < whole.value + 4 * whole.se


def test_inputs_that_no_neuron_sees_change_nothing():
    x = inputs(5, 2)
    clouds = pushed(x, 0.05 * np.ones(5), m=500)
    more = np.concatenate([x, np.zeros((2, 2))])
    one, other = (dual.dual_lower(clouds, a, TANH, gram=ntk.gram_gaussian(TANH, a)) for a in (x, more))
    assert other.value == pytest.approx(one.value, rel=1e-3)
    nothing = dual.dual_lower(clouds, np.zeros((3, 2)), TANH, gram=np.zeros((3, 3)))
    assert math.isnan(nothing.value)


def test_same_number_for_any_threads():
    x = inputs(5, 2)
    clouds = pushed(x, 0.05 * np.ones(5), m=500)
    found = []
    for threads in (1, 3):
        parallel.set_threads(threads)
        try:
            with parallel.single_threaded_blas():
                found.append(dual.dual_lower(clouds, x, TANH))
        finally:
            parallel.set_threads(None)
    assert found[0] == found[1]
