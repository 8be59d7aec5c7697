"""Bounds on min Q along a run: known values, other routes, units of the prior; what a run says of its fixed point."""

import numpy as np
import pytest
import small
from cases import P1_X, P1_Y
from test_plants import wrong_lam_in_the_drift
from test_verify import found, violated

from meanfield import closures, duality, fokker_planck, gibbs, minimiser, minimum, quadrature, theory
from meanfield.cloud import Gaussian, gaussian_cloud
from meanfield.errors import InputError
from meanfield.estimate import student_factor
from meanfield.flow import Flow
from meanfield.observables import OBSERVABLES, Unavailable
from meanfield.risk import Risk
from meanfield.simulate import simulate
from meanfield.units import Unit
from meanfield.verdicts import HOLDS, NOT_APPLICABLE

P1 = Risk(P1_X, P1_Y, Unit("erf"), alpha=1.0)
ENERGY = 0.1006539922  # Q* of P1 at lam = 0.2
NAMES = ["loss", "loss_unbiased", "prediction", "kl_lower", "kl_upper", "energy_lower", "energy_upper", "gibbs_dual",
         "gibbs_energy", "gibbs_prediction"]  # fmt: skip


def spread_inputs(n: int, d: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# --- the bound


def test_the_residual_of_the_fixed_point_gives_its_energy():
    star = gibbs.fixed_point(P1, 0.2)
    for stretch in (1.0, 0.999):
        bound = duality.Dual(P1, 0.2).bound(stretch * (star.prediction.value - P1_Y))
        assert bound.energy.source == "c_t"
        assert bound.energy.value == pytest.approx(ENERGY, abs=1e-9 if stretch == 1 else 1e-5)
        assert bound.energy.value <= ENERGY + 1e-10 and bound.above.value >= ENERGY - 1e-10
        off = np.mean((bound.prediction - star.prediction.value) ** 2)
        assert off <= ENERGY - bound.energy.value + 1e-9


@pytest.mark.parametrize("stretch", [0.0, 0.2, 1.0, 3.0, 20.0])
def test_any_residual_gives_bounds_on_both_sides(stretch):
    """At p0, where D(c_0) = -2.68, and further off; at least as good as frozen features, whose energy is known."""
    dual = duality.Dual(P1, 0.2)
    bound = dual.bound(-stretch * P1_Y)
    direct = gibbs.certificate(P1, 0.2, -stretch * P1_Y, 1.0).lower.value
    assert max(direct, 0.09) < bound.energy.value <= ENERGY <= bound.above.value < 0.12
    assert bound.energy.source.endswith(("c_t", "c_frozen")) and bound.energy.se < 1e-12
    star = gibbs.fixed_point(P1, 0.2).prediction.value
    assert np.mean((bound.prediction - star) ** 2) <= ENERGY - bound.energy.value
    np.testing.assert_array_equal(dual.bound(-stretch * P1_Y).prediction, bound.prediction)


def test_the_dual_of_a_multiple_is_that_of_the_pure_function():
    bound = duality.Dual(P1, 0.2).bound(np.array([-0.3, -0.4]))
    c = (P1_Y - bound.prediction) * 2 / (len(P1_Y) * 0.2)
    theta = np.linspace(-12, 12, 4001)
    g = P1.unit.h.value(np.outer(theta, P1_X[:, 0])) @ c
    mass = np.exp(-0.5 * theta**2) / np.exp(-0.5 * theta**2).sum()
    assert bound.energy.value == pytest.approx(
        theory.dual_energy(c, P1_Y, np.log(mass @ np.exp(0.5 * g * g)), alpha=1.0, lam=0.2), abs=1e-12
    )


def test_quasi_monte_carlo_keeps_below_the_truth(monkeypatch):
    """Three dimensions by both rules: 20 seeds, Student's factor for 8 copies."""
    risk = Risk(spread_inputs(4, 3), np.array([0.8, -0.3, 0.4, 0.1]), Unit("tanh"), alpha=2.0)
    star = gibbs.fixed_point(risk, 0.1, nodes=1 << 15)
    monkeypatch.setattr(quadrature, "GRID_RANK", 0)
    r = 1.2 * (star.prediction.value - risk.y)
    bounds = [duality.Dual(risk, 0.1, 1 << 12, seed).bound(r) for seed in range(20)]
    off = np.array([(b.energy.value - star.energy.value) / b.energy.se for b in bounds])
    t = student_factor(8, 0.975)
    assert np.mean(off > t) <= 0.05 and off.max() <= 2 * t
    assert all(b.energy.se > 0 and b.energy.value > 0.8 * star.energy.value for b in bounds)


@pytest.mark.parametrize("name", ["linear", "relu", "softplus"])
def test_unbounded_activations_keep_z_finite(name):
    risk = Risk(spread_inputs(4, 2), np.array([1.0, -1.0, 1.0, 0.5]), Unit(name), alpha=2.0)
    bound = duality.Dual(risk, 0.2, 1 << 12).bound(-risk.y)
    assert 0 < bound.energy.value < bound.above.value < np.inf
    if name == "linear":
        end = closures.gaussian_closure(risk, 0.2, [300.0])
        assert bound.energy.value <= end.energy[0] <= bound.above.value


def test_where_no_node_can_be_trusted_the_dual_is_that_of_the_start(monkeypatch):
    monkeypatch.setattr(duality, "TRUSTED", 2.0)
    risk = Risk(spread_inputs(5, 4), np.array([1.0, -1.0, 1.0, 0.5, 1.0]), Unit("tanh"), alpha=2.0)
    bound = duality.Dual(risk, 0.2, 1 << 10).bound(-risk.y)
    assert bound.energy == (0.0, 0.0, "zero") and bound.above.value == pytest.approx(np.mean(risk.y**2))
    np.testing.assert_array_equal(bound.prediction, risk.y)


def test_refusals():
    with pytest.raises(InputError, match="square"):
        duality.Dual(Risk(P1_X, [1.0, -1.0], Unit("erf"), loss="logistic"), 0.1)
    with pytest.raises(InputError, match=r"shape \(2,\)"):
        duality.Dual(P1, 0.1).bound(np.zeros(3))


# --- the observables


def test_units_of_the_prior():
    """p0 = N(0, v I) with inputs x is N(0, I) with inputs sqrt(v) x and output scale sqrt(v) alpha."""
    std = 1.7
    wide = Risk(P1_X, P1_Y, Unit("erf", bias=True), alpha=1.0)
    cloud = gaussian_cloud(50, wide.unit, 1, seed=4, std=std)
    flow = Flow(wide, lam=0.2, prior=Gaussian(std))
    seen = wide.inputs * std
    narrow = Risk(seen, P1_Y, Unit("erf"), alpha=std)
    expected = duality.Dual(narrow, 0.2, minimum.NODES, 4).bound(-P1_Y)
    assert minimum.gibbs_dual((cloud,), flow) == expected.energy
    np.testing.assert_array_equal(minimum.gibbs_prediction((cloud,), flow), expected.prediction)


@pytest.mark.parametrize(
    ("flow", "reason"),
    [
        (small.flow(loss="logistic"), "square loss"),
        (small.flow(centred=False), "limit law"),
        (small.flow(lam=0.0), "lam > 0"),
        (small.flow(prior=None), "start from the prior"),
        (small.flow(prior=Gaussian(2.0)), "start from the prior"),
    ],
)
def test_where_it_has_no_meaning(flow, reason):
    for name in ("gibbs_dual", "gibbs_energy", "gibbs_prediction"):
        with pytest.raises(Unavailable, match=reason):
            OBSERVABLES[name].function((small.cloud(flow),), flow)


def test_errors_are_read_with_the_factor_for_replicates():
    flow = small.flow(n=12, d=5, alpha=5.0, lam=0.1)
    few = [small.cloud(flow, 64, replicate=r) for r in range(4)]
    many = [small.cloud(flow, 64, replicate=r) for r in range(20)]
    four, twenty = (minimum.gibbs_dual(tuple(clouds), flow) for clouds in (few, many))
    assert twenty.se * student_factor(20) == pytest.approx(four.se * student_factor(8)) and four.value == twenty.value


# --- the certificate


def p1_run(m=300, lam=0.5, end=6.0, **options):
    flow = Flow(P1, lam=lam)
    return simulate(flow, gaussian_cloud(m, P1.unit, 1, **options), end, observables=NAMES, bounds=5, quiet=True)


@pytest.fixture(scope="module")
def run():
    return p1_run()


def test_the_gap_of_a_run_holds_the_truth(run):
    """Against the spectral solution and the fixed point at the same times: both sides of Q(p_t) - Q* and of KL."""
    star = gibbs.fixed_point(P1, 0.5)
    gap = minimiser.gap(run.data)
    truth = fokker_planck.spectral(P1, 0.5, gap.times[1:], modes=(64, 24), estimate=False)
    energy = np.r_[np.mean(P1_Y**2), truth.energy] - star.energy.value
    f = np.vstack([np.zeros(2), truth.prediction])
    kl = (energy - ((f - star.prediction.value) ** 2).mean(-1)) / 0.5
    assert np.all((gap.energy_lower <= energy + 1e-9) & (energy <= gap.energy_upper))
    assert np.all((gap.kl_lower <= kl + 1e-9) & (kl <= gap.kl_upper))
    # Not only at the end, where zero is a bound: at the start both are known within two per cent.
    assert gap.energy_lower[0] > 0.999 * energy[0] and gap.energy_upper[0] < 1.01 * energy[0]
    assert 0.8 * kl[0] < gap.kl_lower[0] < gap.kl_upper[0] < 1.2 * kl[0]
    assert gap.energy_upper[-1] < 0.1 * energy[0]


def test_what_verify_says_of_it(run):
    line = found(run, "C5 dual of Gibbs")
    assert line.verdict == HOLDS and line.measured == pytest.approx(gibbs.fixed_point(P1, 0.5).energy.value, rel=2e-3)
    assert "Q(p_t) - min Q in [0, " in line.note and "KL(p_t || p*) in [0, " in line.note
    for name in ("gibbs_dual", "energy_upper"):
        assert found(run.data.drop_vars(name), "C5 dual of Gibbs").verdict == NOT_APPLICABLE
    assert found(run.data.drop_vars("gibbs_prediction"), "C5 dual of Gibbs").note == ""


def test_an_entropy_that_is_too_small_is_caught(monkeypatch):
    """Two fifths of the account are lost."""
    from meanfield import bounds, observables

    whole = observables.account_bound
    for module in (observables, bounds):
        monkeypatch.setattr(module, "account_bound", lambda cloud, flow: 0.6 * whole(cloud, flow))
    assert "C5 dual of Gibbs" in violated(p1_run())


def test_a_run_that_ends_elsewhere_is_caught(monkeypatch):
    """The decay of another lam, the noise of the right one: the free energy does not come down to its minimum."""
    right = found(p1_run(lam=2.0, end=6.0), "C5 relaxation")
    assert right.verdict == HOLDS and right.note.startswith("int 2 lam a = ")
    wrong_lam_in_the_drift(monkeypatch)
    assert "C5 relaxation" in violated(p1_run(lam=2.0, end=6.0))


@pytest.mark.parametrize("c", [(0.0, 0.0), (0.6, 0.8), (-1.0, 2.0)])
def test_log_sobolev_of_gibbs_laws(c):
    """KL(q || p_c) <= I(q | p_c) / (2 a) for translates and tilts q of p_c, by sums over a grid."""
    G1, G2 = P1.unit.h.suprema[:2]
    a = float(theory.gibbs_log_sobolev(c, G1, G2, 1.0))
    assert a == 1.0 if not any(c) else 0 < a < 1
    axis = np.linspace(-9, 9, 361)
    theta, u = np.meshgrid(axis, axis, indexing="ij")
    h = [P1.unit.h.value(x * theta) for x in P1_X[:, 0]]
    log_p = -0.5 * (theta**2 + u**2) + u * (c[0] * h[0] + c[1] * h[1])
    for tilt in (0.5 * u, -0.7 * theta, 0.3 * u * h[1], 0.2 * np.sin(2 * theta) + 0.1 * u, -0.1 * u**2):
        q = np.exp(log_p + tilt - (log_p + tilt).max())
        p = np.exp(log_p - log_p.max())
        q, p = q / q.sum(), p / p.sum()
        ratio = np.log(np.maximum(q, 1e-300) / np.maximum(p, 1e-300))
        slopes = np.gradient(tilt, axis[1] - axis[0])
        fisher = (q * (slopes[0] ** 2 + slopes[1] ** 2)).sum()
        assert (q * ratio).sum() <= fisher / (2 * a) * (1 + 1e-3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"unit": "relu"}, "not bounded"), ({"train": "u"}, "both layers"), ({"centred": False}, "not recorded")],
)
def test_relaxation_is_judged_where_it_is_about_the_run(options, reason):
    flow = small.flow(n=4, alpha=2.0, lam=0.5, **options)
    run = simulate(flow, small.cloud(flow, 60), 0.2, observables=NAMES, bounds=2, quiet=True)
    line = found(run, "C5 relaxation")
    assert line.verdict == NOT_APPLICABLE and reason in line.note


@pytest.mark.parametrize("seed", range(2))
def test_right_runs_are_no_violation(seed):
    flow = small.flow(n=8, d=5, alpha=3.0, lam=0.3, seed=seed)
    run = simulate(flow, small.cloud(flow, 200, seed=seed), 2.0, observables=NAMES, bounds=3, quiet=True)
    assert found(run, "C5 dual of Gibbs").verdict == HOLDS
    gap = minimiser.gap(run.data)
    assert np.all(gap.energy_lower <= gap.energy_upper) and np.all(gap.kl_lower <= gap.kl_upper)
