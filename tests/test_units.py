"""Units: known answers, independent routes, suprema, Gram matrices, dtype, refusals."""

import math
import pickle

import numpy as np
import pytest
from scipy import special

from meanfield.errors import InputError
from meanfield.units import ACTIVATIONS, BOUNDED, Activation, Unit, check_activation, resolve

EVERY = list(ACTIVATIONS.values())
CLOSED = [a for a in EVERY if a.gram is not None]
SMOOTH = [a for a in CLOSED if a.name != "relu"]


@pytest.fixture(autouse=True)
def strict():
    with np.errstate(all="raise", under="ignore"):
        yield


def names(records):
    return {"argvalues": records, "ids": [a.name for a in records]}


# --- known answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("tanh", (1, 1, 0.769800, 1, 2)),
        ("erf", (1, 1.128379, 0.967883, 1.128379, 2.256758)),
        ("erf_sqrt2", (1, 0.797885, 0.483941, 0.797885, 0.797885)),
        ("sigmoid", (1, 0.25, 0.096225, 0.25, 0.125)),
        ("softplus", (math.inf, 1, 0.25, 1.0998393194720557, 0.096225)),
    ],
)
def test_suprema_are_the_printed_ones(name, printed):
    assert ACTIVATIONS[name].suprema == pytest.approx(printed, abs=5e-7)


def test_erf_gram_is_the_printed_one():
    x = np.array([[1.0, 0.0], [0.6, 0.8]])
    values, slopes = ACTIVATIONS["erf"].gram(x @ x.T)
    first = slopes * (x @ x.T)
    np.testing.assert_allclose(values, [[0.4645590544, 0.2619797609], [0.2619797609, 0.4645590544]], atol=1e-10)
    np.testing.assert_allclose(first, [[0.5694100347, 0.2778436472], [0.2778436472, 0.5694100347]], atol=1e-10)
    assert np.linalg.eigvalsh(values + first)[0] == pytest.approx(0.4941456810, abs=1e-9)


def test_relu_gram_at_known_angles():
    x = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    values, slopes = ACTIVATIONS["relu"].gram(x @ x.T)
    pi = math.pi
    np.testing.assert_allclose(values, [[0.5, 1 / pi, 0], [1 / pi, 2, 3 / pi], [0, 3 / pi, 4.5]], atol=1e-15)
    np.testing.assert_allclose(slopes, [[0.5, 0.25, 0], [0.25, 0.5, 0.25], [0, 0.25, 0.5]], atol=1e-15)


def test_sin_gram_at_a_known_point():
    values, slopes = ACTIVATIONS["sin"].gram(np.array([[1.0, 0.5], [0.5, 2.0]]))
    assert values[0, 1] == pytest.approx(math.exp(-1.5) * math.sinh(0.5), rel=1e-15)
    assert slopes[0, 1] == pytest.approx(math.exp(-1.5) * math.cosh(0.5), rel=1e-15)


# --- independent routes for the derivatives ----------------------------------------------------------------

W = np.linspace(-8.0, 8.0, 4001)


def by_other_formulas(name, w):
    """Derivatives from formulas that the library does not use, in extended precision."""
    w = w.astype(np.longdouble)
    if name == "tanh":
        t, s = np.tanh(w), 1 / np.cosh(w) ** 2
        return t, s, -2 * t * s, 4 * t**2 * s - 2 * s**2
    if name in ("erf", "erf_sqrt2"):
        c = 1 if name == "erf" else np.sqrt(np.longdouble(0.5))
        v = c * w
        density = 2 / np.sqrt(4 * np.arctan(np.longdouble(1))) * np.exp(-v * v)
        # derivatives of the density by Hermite polynomials
        return (
            special.erf(v.astype(np.float64)),
            c * density,
            -(c**2) * 2 * v * density,
            c**3 * (4 * v * v - 2) * density,
        )
    q = 1 / (1 + np.exp(-w))
    p = q * (1 - q)
    sigma = (q, p, p * (1 - 2 * q), p * (1 - 2 * q) ** 2 - 2 * p**2)
    return sigma if name == "sigmoid" else (np.logaddexp(0, w), *sigma[:3])


@pytest.mark.parametrize("name", ["tanh", "erf", "erf_sqrt2", "sigmoid", "softplus"])
def test_jets_equal_other_formulas_to_a_few_roundings(name):
    for got, want in zip(ACTIVATIONS[name].jet(W), by_other_formulas(name, W), strict=True):
        assert np.max(np.abs(got - want)) < 1e-15 * max(1.0, float(np.max(np.abs(want))))


@pytest.mark.parametrize("activation", **names(EVERY))
def test_every_record_passes_its_own_check(activation):
    check_activation(activation)


@pytest.mark.parametrize("activation", **names(EVERY))
def test_value_and_first_are_the_first_two_of_the_jet(activation):
    h, h1 = activation.jet(W)[:2]
    np.testing.assert_array_equal(activation.value(W), h)
    np.testing.assert_array_equal(activation.first(W), h1)


# --- suprema -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", **names(EVERY))
def test_suprema_are_the_maxima_on_a_fine_grid(activation):
    w = np.linspace(-40.0, 40.0, 800_001)
    h, h1, h2, h3 = activation.jet(w)
    found = [float(np.max(np.abs(part))) for part in (h, h1, h2, h1 + w * h2, h3)]
    for what, stated, seen in zip(BOUNDED, activation.suprema, found, strict=True):
        if math.isfinite(stated):
            # flat maxima: the grid misses at most |third derivative| (1e-4)^2 of them
            assert seen == pytest.approx(stated, rel=1e-7, abs=1e-12), what
            assert seen <= stated * (1 + 4e-16), what


@pytest.mark.parametrize("activation", **names(EVERY))
def test_a_record_says_what_fails_exactly_where_a_supremum_is_infinite(activation):
    assert bool(activation.fails) == any(math.isinf(g) for g in activation.suprema)


def test_the_sentences_name_the_part_of_the_assumption():
    assert "(z h')'" in ACTIVATIONS["sin"].fails.split(" is unbounded")[0]
    assert "h''" in ACTIVATIONS["relu"].fails
    for name in ("relu", "softplus", "linear"):
        assert ACTIVATIONS[name].fails.startswith("h is unbounded")
    assert "h, h'" in Activation("mine", np.sin).fails


# --- Gram matrices -----------------------------------------------------------------------------------------


def gram_by_quadrature(activation, x, nodes=120):
    """E h_i h_j and E h'_i h'_j for inputs in the plane, by a tensor Gauss-Hermite rule."""
    t, weights = np.polynomial.hermite_e.hermegauss(nodes)
    theta = np.stack(np.meshgrid(t, t), axis=-1).reshape(-1, 2)
    mass = np.outer(weights, weights).ravel() / (2 * math.pi)
    return [part.T @ (mass[:, None] * part) for part in activation.jet(theta @ x.T)[:2]]


def gram_by_angles(x, angles=200_000):
    """The same for relu, whose radial integrals are known: E r^2 = 2."""
    phi = (np.arange(angles) + 0.5) * 2 * math.pi / angles
    w = np.stack([np.cos(phi), np.sin(phi)], axis=1) @ x.T
    h, h1 = np.maximum(w, 0), (w > 0).astype(float)
    return [2 * h.T @ h / angles, h1.T @ h1 / angles]


PLANE = np.array([[0.6, 0.3], [-0.2, 0.9], [1.1, -0.4], [0.0, 0.0], [0.3, 0.15], [-0.6, -0.3], [0.6, 0.3]])


@pytest.mark.parametrize("activation", **names(SMOOTH))
def test_closed_gram_equals_quadrature(activation):
    for closed, quadrature in zip(activation.gram(PLANE @ PLANE.T), gram_by_quadrature(activation, PLANE), strict=True):
        np.testing.assert_allclose(closed, quadrature, atol=1e-12)


def test_relu_gram_equals_the_integral_over_angles():
    values, slopes = ACTIVATIONS["relu"].gram(PLANE @ PLANE.T)
    by_values, by_slopes = gram_by_angles(PLANE)
    np.testing.assert_allclose(values, by_values, atol=1e-9)
    np.testing.assert_allclose(slopes, by_slopes, atol=1e-5)


@pytest.mark.parametrize("activation", **names(CLOSED))
def test_gram_matrices_are_symmetric_and_positive_and_see_duplicates(activation):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 30)) / math.sqrt(30)
    x = np.concatenate([x, x[:1], np.zeros((1, 30))])
    g = x @ x.T
    for part in activation.gram(g):
        np.testing.assert_allclose(part, part.T, atol=1e-15)
        assert np.linalg.eigvalsh(part)[0] > -1e-14
        np.testing.assert_allclose(part[0], part[12], atol=1e-14)
    smallest = np.linalg.eigvalsh(sum(activation.gram(g)[k] * (g if k else 1) for k in (0, 1))[:13, :13])[0]
    assert abs(smallest) < 1e-14


def test_relu_gram_of_parallel_opposite_and_zero_inputs_is_exact():
    x = np.array([0.3, -0.7, 0.2])
    inputs = np.stack([x, 3 * x, -x, 0 * x])
    values, slopes = ACTIVATIONS["relu"].gram(inputs @ inputs.T)
    q = x @ x / 2
    np.testing.assert_allclose(values, q * np.array([[1, 3, 0, 0], [3, 9, 0, 0], [0, 0, 1, 0], [0] * 4]), atol=1e-15)
    np.testing.assert_allclose(slopes, np.diag([0.5, 0.5, 0.5, 0]) + 0.5 * np.eye(4)[[1, 0, 3, 2]] * [1, 1, 0, 0])


@pytest.mark.parametrize("activation", **names(CLOSED))
def test_gram_matrices_of_large_inputs_stay_finite(activation):
    x = 1e4 * np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1e-9]])
    for part in activation.gram(x @ x.T):
        assert np.all(np.isfinite(part))


def test_erf_sqrt2_is_erf_of_scaled_inputs():
    g = PLANE @ PLANE.T
    for a, b in zip(ACTIVATIONS["erf_sqrt2"].jet(W)[:1], ACTIVATIONS["erf"].jet(W / math.sqrt(2))[:1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-16)
    np.testing.assert_allclose(ACTIVATIONS["erf_sqrt2"].gram(g)[0], ACTIVATIONS["erf"].gram(g / 2)[0], atol=1e-16)


# --- dtype and range ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", **names(EVERY))
def test_float32_stays_float32_and_is_accurate(activation):
    w = np.linspace(-6.0, 6.0, 1000).astype(np.float32)
    for single, double in zip(activation.jet(w), activation.jet(w.astype(np.float64)), strict=True):
        assert single.dtype == np.float32
        assert double.dtype == np.float64
        np.testing.assert_allclose(single, double, atol=2e-6, rtol=1e-6)
    assert activation.value(w).dtype == np.float32


@pytest.mark.parametrize("activation", **names(EVERY))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_no_argument_overflows(activation, dtype):
    huge = np.finfo(dtype).max / 4
    w = np.array([-huge, -1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4, huge], dtype=dtype)
    jet = activation.jet(w)
    assert all(np.all(np.isfinite(part)) for part in jet)
    for part, g in zip((*jet[:3], jet[3]), [activation.suprema[k] for k in (0, 1, 2, 4)], strict=True):
        assert np.all(np.abs(part) <= g * (1 + np.finfo(dtype).eps))


@pytest.mark.parametrize("activation", **names(EVERY))
def test_jets_take_any_shape_and_do_not_touch_their_argument(activation):
    w = np.arange(6, dtype=float).reshape(2, 3)
    before = w.copy()
    jet = activation.jet(w)
    assert [part.shape for part in jet] == 4 * [(2, 3)]
    for part in jet:
        assert not np.shares_memory(part, w)
    np.testing.assert_array_equal(w, before)
    np.testing.assert_array_equal(activation.jet(np.arange(6).reshape(2, 3))[0], jet[0])


# --- units -------------------------------------------------------------------------------------------------


def test_inputs_and_dimension():
    x = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(Unit("tanh").inputs(x), x)
    np.testing.assert_array_equal(Unit("tanh", bias=True).inputs(x), np.column_stack([x, np.ones(3)]))
    assert (Unit("tanh").dimension(2), Unit("tanh", bias=True).dimension(2)) == (3, 4)
    for bias in (False, True):
        assert Unit("relu", bias).inputs(x.astype(np.float32)).dtype == np.float32
        assert Unit("relu", bias).inputs([[1, 2]]).dtype == np.float64


def test_units_are_values():
    assert Unit("tanh") == Unit("tanh") != Unit("tanh", bias=True)
    assert len({Unit("tanh"), Unit("tanh"), Unit("erf")}) == 2
    assert Unit("tanh").h is ACTIVATIONS["tanh"]
    for unit in (Unit("tanh"), Unit(ACTIVATIONS["erf"])):
        copy = pickle.loads(pickle.dumps(unit))
        np.testing.assert_array_equal(copy.h.value(W), unit.h.value(W))


def arctan_jet(w):
    c = 1 / (1 + w * w)
    return np.arctan(w), c, -2 * w * c**2, (6 * w * w - 2) * c**3


ARCTAN = Activation("arctan", arctan_jet, suprema=(math.pi / 2, 1, 3 * 3**0.5 / 8, 1, 2), parity="odd")


def test_an_activation_of_ones_own_works():
    check_activation(ARCTAN)
    unit = Unit(ARCTAN)
    assert unit.h is ARCTAN is resolve(ARCTAN)
    assert unit.h.fails == ""
    np.testing.assert_array_equal(unit.h.first(W), 1 / (1 + W * W))


# --- refusals ----------------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown activation 'tahn'. Did you mean 'tanh'?"):
        Unit("tahn")
    with pytest.raises(InputError, match="Known: tanh, erf"):
        Unit("qqq")
    with pytest.raises(InputError, match="got ufunc"):
        Unit(np.tanh)


def test_inputs_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"shape \(n, d\).*got shape \(5,\)"):
        Unit("tanh").inputs(np.zeros(5))


def changed(**fields):
    return Activation(**{**ARCTAN.__dict__, **fields})


def spoiled(order):
    def jet(w):
        parts = list(arctan_jet(w))
        parts[order] = parts[order] * 1.001
        return tuple(parts)

    return jet


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"jet": spoiled(1)}, "h' is .* the difference quotient of h is"),
        ({"jet": spoiled(2)}, "h'' is .* the difference quotient of h' is"),
        ({"jet": spoiled(3)}, "h''' is .* the difference quotient of h'' is"),
        ({"jet": lambda w: arctan_jet(w)[:3]}, "four arrays"),
        ({"jet": lambda w: arctan_jet(w.astype(np.float64))}, "must be float32 too"),
        ({"jet": lambda w: tuple(part * np.nan for part in arctan_jet(w))}, "h' is nan"),
        ({"suprema": (2, 1, 0.6, 1, 2)}, r"sup \|h''\| is stated as 0.6"),
        ({"suprema": (2, 1, 0.7, 0.5, 2)}, r"sup \|\(z h'\)'\| is stated as 0.5"),
        ({"parity": "even"}, "it is not even"),
        ({"homogeneous": True}, "not homogeneous"),
        ({"pair": lambda w: arctan_jet(w)[1:3]}, "pair and jet give different h"),
        ({"gram": ACTIVATIONS["erf"].gram}, "gram gives"),
    ],
)
def test_a_wrong_record_is_refused_with_the_place(fields, says):
    with pytest.raises(InputError, match=f"activation 'arctan': .*{says}"):
        check_activation(changed(**fields))


def test_a_record_that_makes_no_sense_is_refused_at_once():
    with pytest.raises(InputError, match="five, G1..G5, got 2"):
        changed(suprema=(1, 1))
    with pytest.raises(InputError, match="parity is 'odd', 'even' or '', got 'none'"):
        changed(parity="none")
