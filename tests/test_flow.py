"""The step as a function: pure, the same for any number of threads; its length; what may be trained. Cost: 5 s."""

import math

import cases
import numpy as np
import pytest
from cases import OBJECTIVES, network
from scipy.linalg import expm

from meanfield import parallel, steps
from meanfield.account import injective_height
from meanfield.cloud import Cloud, Gaussian, cloud_at, cloud_noise, gaussian_cloud
from meanfield.errors import DivergedError, InputError
from meanfield.flow import DECAY, FIRST_STEP, GROWTH, KICK, SLAB, Flow
from meanfield.linearised import Linearised
from meanfield.minibatch import Minibatch
from meanfield.noise import Stream
from meanfield.risk import Risk
from meanfield.schemes import SCHEMES
from meanfield.units import Unit

each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def eta_for(scheme, cloud, eta=2e-3):
    """The literal scheme divides its drift by m."""
    return eta * (cloud.m if scheme == "euler_literal" else 1)


def run(flow, cloud, count=3, eta=None):
    for _ in range(count):
        cloud = flow.step(cloud, eta)
    return cloud


def fields(cloud):
    """All numbers of a cloud, its account's among them."""
    flat = {name: getattr(cloud, name) for name in ("z", "reference", "weights", "reference_variance", "step", "time")}
    return flat | {name: np.array(value) for name, value in vars(cloud.account).items() if name != "reason"}


def assert_same(one: Cloud, two: Cloud):
    for (name, a), b in zip(fields(one).items(), fields(two).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


# --- purity


@pytest.mark.parametrize(("name", "scheme"), cases.PAIRS)
def test_a_step_changes_nothing_and_repeats_itself(name, scheme):
    cloud = OBJECTIVES[name].cloud()
    objective = OBJECTIVES[name].build(cloud)
    flow = Flow(objective, lam=0.1, scheme=scheme)
    before = {key: np.copy(value) for key, value in fields(cloud).items() if value is not None}
    once, again = (flow.step(cloud, eta_for(scheme, cloud)) for _ in range(2))
    fresh = Flow(OBJECTIVES[name].build(cloud), lam=0.1, scheme=scheme).step(cloud, eta_for(scheme, cloud))
    for key, value in before.items():
        np.testing.assert_array_equal(fields(cloud)[key], value, err_msg=key)
    assert_same(once, again)
    assert_same(once, fresh)
    assert once.step == 1 and np.abs(once.z - cloud.z).max() > 1e-4


@each_scheme
def test_the_same_bits_for_any_number_of_threads(scheme):
    """2,500 particles are several blocks; what is remembered of a cloud is not shared between the two runs."""
    cloud = gaussian_cloud(2500, dimension=cases.D, seed=5)
    ends = []
    try:
        for count in (1, 2):
            parallel.set_threads(count)
            flow = Flow(network(), lam=0.1, scheme=scheme)
            ends.append(run(flow, cloud.replace(), 3, eta_for(scheme, cloud)))
    finally:
        parallel.set_threads(None)
    assert_same(*ends)


def test_a_cloud_is_the_prefix_of_a_larger_one():
    small, large = (gaussian_cloud(m, dimension=cases.D, seed=9, std=1.5) for m in (100, 200))
    np.testing.assert_array_equal(small.z, large.z[:100])
    zero = cases.quartic() * 0.0
    one, two = (run(Flow(zero, lam=0.3, prior=Gaussian(1.5)), cloud, 3, 0.1) for cloud in (small, large))
    np.testing.assert_array_equal(one.z, two.z[:100])
    np.testing.assert_array_equal(one.origin(), small.z)


def test_seeds_and_replicates_name_the_noise():
    cloud = gaussian_cloud(50, dimension=cases.D, seed=9)
    flow = Flow(network(), lam=0.3)
    starts = [cloud, gaussian_cloud(50, dimension=cases.D, seed=10), cloud.replicated(1)]
    ends = [flow.step(start, 1e-3) for start in starts]
    noises = [end.reference - math.exp(-3e-4) * start.z for start, end in zip(starts, ends, strict=True)]
    for i in range(3):
        for j in range(i):
            assert abs(np.corrcoef(noises[i].ravel(), noises[j].ravel())[0, 1]) < 4 / math.sqrt(200)
    np.testing.assert_array_equal(starts[2].replicated(1).z, starts[2].z)
    with pytest.raises(InputError, match="at its start"):
        ends[0].replicated(2)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, "auto") for name in OBJECTIVES] + [p for p in cases.PAIRS if p[1] in ("kernel2", "euler")],
)
def test_float32_stays_float32(name, scheme):
    cloud = OBJECTIVES[name].cloud(dtype="float32")
    wide = OBJECTIVES[name].cloud()
    objective = OBJECTIVES[name].build(cloud)
    end = run(Flow(objective, lam=0.1, scheme=scheme), cloud, 3, 2e-3)
    assert end.z.dtype == end.reference.dtype == np.float32
    # A linearisation may be about a cloud of another precision.
    if isinstance(objective, Linearised):
        other = Linearised(objective.risk, cases.about(wide))
        assert run(Flow(other, lam=0.1), cloud, 1, 2e-3).z.dtype == np.float32


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in cases.TANGENT])
@pytest.mark.parametrize("scheme", ["kernel", "kernel2"])
def test_the_kernel_schemes_refuse_what_they_cannot_solve(name, scheme):
    cloud = OBJECTIVES[name].cloud()
    with pytest.raises(InputError, match="take 'e(xponential|uler)'"):
        Flow(OBJECTIVES[name].build(cloud), scheme=scheme).step(cloud, 1e-3)


# --- the formulas


def mean_residual(risk, cloud, lam, eta):
    """J by one matrix exponential: r' = -kappa H r + alpha lam e, R' = r, J = R(eta) / eta."""
    r, gram, e = risk.tangent(cloud)
    n = len(r)
    system = np.zeros((2 * n + 1, 2 * n + 1))
    system[:n, :n] = -risk.kappa * gram
    system[:n, -1] = risk.alpha * lam * e
    system[n:-1, :n] = np.eye(n)
    return (expm(eta * system) @ np.concatenate([r, np.zeros(n), [1.0]]))[n:-1] / eta


def test_every_scheme_is_its_formula():
    risk, lam, eta = network(alpha=6.0), 0.3, 0.02
    cloud = gaussian_cloud(40, dimension=cases.D, seed=3)
    cloud = cloud.replace(z=cases.displaced(cloud.z, 0.3))
    xi = cloud_noise(cloud, Stream.DIFFUSION, step=0)
    z, b, a = cloud.z, -risk.gradient(cloud), math.exp(-lam * eta)

    def kick(points, residual):
        engine = risk.engine(len(points))
        return points + 0.5 * eta * engine.pullback(risk.unit.h, risk.inputs, points, -2 * 6.0 / 5 * residual)

    J = mean_residual(risk, cloud, lam, eta)
    expected = {
        "euler": z + eta * (b - lam * z) + math.sqrt(2 * lam * eta) * xi,
        "euler_literal": z + eta / 40 * (b - lam * z) + math.sqrt(2 * lam * eta) * xi,
        "exponential": a * z + (1 - a) / lam * b + math.sqrt(1 - a * a) * xi,
        "kernel": kick(a * kick(z, J) + math.sqrt(1 - a * a) * xi, J),
    }
    for scheme, end in expected.items():
        found = Flow(risk, lam=lam, scheme=scheme).step(cloud, eta)
        np.testing.assert_allclose(found.z, end, atol=1e-13, err_msg=scheme)
    # kernel2 differs from kernel by second order, and is not kernel.
    gap = np.abs(Flow(risk, lam=lam, scheme="kernel2").step(cloud, eta).z - expected["kernel"]).max()
    assert 1e-5 < gap < 0.02


# --- the channel


@each_scheme
def test_schemes_with_an_exact_channel_share_their_noise(scheme):
    """On one time grid the references are equal; Euler's differ by second order in lam eta."""
    cloud = gaussian_cloud(20, dimension=cases.D, seed=2)
    ends = [run(Flow(network(), lam=0.2, scheme=s, allow_unstable=True), cloud, 4, 0.05) for s in ("kernel", scheme)]
    gap = np.abs(ends[1].reference - ends[0].reference).max()
    if scheme in ("kernel", "kernel2", "exponential"):
        assert gap == 0
    else:
        assert 0 < gap < (0.02 if scheme == "euler" else 0.2)


@each_scheme
@pytest.mark.parametrize("train", ["both", "u", "theta"])
def test_a_prior_of_another_width_is_a_change_of_units(scheme, train):
    """With z = std z', x' = std x, alpha' = std alpha and t = std^2 t' the equation is the one of std = 1."""
    std, risk = 1.7, network(alpha=2.0)
    scaled = Risk(std * risk.x, risk.y, risk.unit, std * risk.alpha)
    flow = Flow(risk, lam=0.2, scheme=scheme, prior=Gaussian(std), train=train)
    plain = Flow(scaled, lam=0.2, scheme=scheme, train=train)
    cloud, unit = (gaussian_cloud(40, dimension=cases.D, seed=3, std=s) for s in (std, 1.0))
    for _ in range(4):
        eta = plain.propose([unit])
        assert flow.propose([cloud]) == pytest.approx(std**2 * eta, rel=1e-9)
        unit, cloud = plain.step(unit, eta), flow.step(cloud, std**2 * eta)
    np.testing.assert_allclose(cloud.z, std * unit.z, atol=1e-12)
    np.testing.assert_allclose(cloud.reference, std * unit.reference, atol=1e-12)
    assert cloud.reference_variance == pytest.approx(std**2 * unit.reference_variance, rel=1e-12)
    assert cloud.account.kl == pytest.approx(unit.account.kl, rel=1e-8)
    assert cloud.account.distance == pytest.approx(std**2 * unit.account.distance, rel=1e-10)


@each_scheme
def test_without_a_prior_there_is_noise_and_no_decay(scheme):
    cloud = gaussian_cloud(30, dimension=cases.D, seed=4)
    silent = Risk(cases.X, np.zeros(5), Unit("tanh"))
    end = run(Flow(silent, lam=0.3, scheme=scheme, prior=None), cloud, 5, 0.1)
    np.testing.assert_array_equal(end.z, end.reference)
    assert end.reference_variance == pytest.approx(1 + 5 * 2 * 0.3 * 0.1)
    moved = Flow(network(), lam=0.3, scheme=scheme, prior=None).step(cloud, eta_for(scheme, cloud))
    assert moved.account.kl > 0 and math.isfinite(moved.account.kl)


# --- what is trained


@pytest.mark.parametrize(("name", "scheme"), cases.PAIRS)
def test_frozen_coordinates_do_not_move(name, scheme):
    cloud = OBJECTIVES[name].cloud()
    objective = OBJECTIVES[name].build(cloud)
    for train, still in (("u", slice(None, -1)), ("theta", slice(-1, None))):
        end = run(Flow(objective, lam=0.1, scheme=scheme, train=train), cloud, 2, eta_for(scheme, cloud))
        moving = steps.trained(train)
        np.testing.assert_array_equal(end.z[:, still], cloud.z[:, still])
        np.testing.assert_array_equal(end.reference[:, still], cloud.reference[:, still])
        assert np.all(end.z[:, moving] != cloud.z[:, moving])


def test_the_kernel_is_that_of_the_trained_layer():
    cloud, risk = gaussian_cloud(200, dimension=cases.D, seed=4), network("erf")
    whole, outer, inner = (risk.tangent(cloud, train)[1] for train in ("both", "u", "theta"))
    np.testing.assert_allclose(outer + inner, whole, rtol=1e-13)
    h = risk.unit.h.value(cloud.z[:, :-1] @ risk.inputs.T)
    np.testing.assert_allclose(outer, h.T @ h / cloud.m, rtol=1e-13)
    starts = [risk.gram_start(train=train) for train in ("both", "u", "theta")]
    np.testing.assert_allclose(starts[1] + starts[2], starts[0], rtol=1e-13)
    rates = [Flow(risk, train=train, lam=0.0).stability_limit(cloud) for train in ("both", "u", "theta")]
    assert rates[0] < min(rates[1:])


# --- schemes and lengths of steps


def test_auto_takes_the_scheme_that_suits_the_objective():
    risk, cloud = network(), OBJECTIVES["linearised"].cloud()
    chosen = {
        "kernel": [risk, Linearised(risk, cloud)],
        "euler": [Minibatch(risk, 2)],
        "exponential": [cases.quartic(), risk + cases.quartic(), 2.0 * risk],
    }
    for name, objectives in chosen.items():
        assert {Flow(objective).method.name for objective in objectives} == {name}
    assert Flow(risk, scheme="euler").method.name == "euler"


@pytest.mark.parametrize("scheme", ["exponential", "euler", "euler_literal"])
def test_an_explicit_step_above_the_limit_is_refused_with_its_cure(scheme):
    cloud, risk = gaussian_cloud(40, dimension=cases.D, seed=4), network(alpha=10.0)
    flow = Flow(risk, lam=0.5, scheme=scheme)
    top = np.linalg.eigvalsh(risk.tangent(cloud)[1])[-1]
    limit = 2 / (risk.kappa * top + 0.5) * (40 if scheme == "euler_literal" else 1)
    assert flow.stability_limit(cloud) == pytest.approx(limit, rel=1e-12)
    assert flow.propose([cloud]) == pytest.approx(limit / 2, rel=1e-12)
    flow.step(cloud, 0.999 * limit)
    with pytest.raises(InputError, match=rf"stability limit {limit:.6g} .*scheme='kernel'.*allow_unstable=True"):
        flow.step(cloud, 1.001 * limit)
    assert Flow(risk, lam=0.5, scheme=scheme, allow_unstable=True).step(cloud, 1.5 * limit).step == 1
    two = flow.propose([cloud, cloud.replicated(1)])
    assert two == min(flow.propose([cloud]), flow.propose([cloud.replicated(1)]))


@pytest.mark.parametrize("account", [True, False])
def test_steps_are_checked_whether_or_not_an_account_is_kept(account):
    """Between its looks at the cloud itself a flow without account trusts the kernel of the start, at no cost."""
    cloud, risk = gaussian_cloud(40, dimension=cases.D, seed=4), network(alpha=10.0)
    flow = Flow(risk, lam=0.5, scheme="euler", account=account)
    limits = [flow.stability_limit(cloud), 2 / (risk.stiffness_start(cloud) + 0.5)]
    for step in (0, 1, 63, 64, 65):
        at = cloud.replace(step=step)
        flow.step(at, 0.99 * min(limits))
        with pytest.raises(InputError, match="above the stability limit"):
            flow.step(at, 1.01 * max(limits))
    elsewhere = cloud_at(cloud.z)
    assert network(centred=False).stiffness_start(elsewhere) is None
    assert Minibatch(risk, 2).stiffness_start(cloud) == pytest.approx(2.5 * risk.stiffness_start(cloud))
    top = np.linalg.eigvalsh(risk.gram_start())[-1]
    assert risk.stiffness_start(cloud) == pytest.approx(risk.kappa * top)


def test_limits_of_sums_multiples_batches_and_potentials():
    cloud, risk = gaussian_cloud(40, dimension=cases.D, seed=4), network()
    rate = risk.stiffness(cloud)
    for objective, expected in [
        (cases.quartic(), 30.0),
        (Minibatch(risk, 2), 2.5 * rate),
        (risk + 0.5 * cases.quartic(), rate + 15),
    ]:
        assert Flow(objective, lam=0.25).stability_limit(cloud) == pytest.approx(2 / (expected + 0.25))
    assert Flow(cases.quartic() * 0.0, lam=0.0).stability_limit(cloud) == math.inf
    with pytest.raises(InputError, match="nothing limits it"):
        Flow(cases.quartic() * 0.0, lam=0.0).propose([cloud])


@pytest.mark.parametrize("scheme", ["kernel", "kernel2"])
@pytest.mark.parametrize("activation", ["tanh", "erf", "softplus", "relu", "linear"])
def test_the_step_rule_of_the_kernel_schemes(scheme, activation):
    """The first step, growth, kicks and heights; with alpha = 5 it is the kicks that hold the steps down."""
    risk = network(activation, alpha=5.0)
    cloud = gaussian_cloud(200, dimension=cases.D, seed=4)
    flow = Flow(risk, lam=0.5, scheme=scheme)
    first, lengths, kicks = FIRST_STEP / risk.stiffness(cloud), [], []
    for _ in range(12):
        eta = flow.propose([cloud])
        c = risk.coefficients(steps.frozen_kernel(flow.dynamics, cloud, cloud, eta))
        drift = risk.engine(cloud.m).pullback(risk.unit.h, risk.inputs, cloud.z, c)
        kicks.append(eta * math.sqrt(np.mean(np.sum(drift**2, axis=1))))
        lengths.append(eta)
        if not steps.unaccountable(flow.dynamics):
            suprema = risk.unit.h.suprema
            height = injective_height(c, eta / 2, risk.inputs, suprema, "both", midpoint=scheme == "kernel2")
            assert height > max(SLAB, 1.5 * np.abs(cloud.z[:, -1]).max())
        cloud = flow.step(cloud, eta)
    assert lengths[0] <= first * (1 + 1e-12)
    assert np.all(np.diff(np.log(lengths)) <= math.log(GROWTH) + 1e-12)
    assert 0.79 * KICK < max(kicks) <= KICK * (1 + 1e-9)
    if steps.unaccountable(flow.dynamics):
        assert math.isinf(cloud.account.kl) and cloud.account.reason
    else:
        assert math.isfinite(cloud.account.kl) and cloud.account.mass_outside < 1e-14


def test_the_first_step_growth_and_the_longest_step():
    """Far in the kernel regime nothing else binds."""
    risk, cloud = network(alpha=1e3), gaussian_cloud(200, dimension=cases.D, seed=4)
    flow = Flow(risk, lam=2.0)
    lengths = []
    for _ in range(36):
        lengths.append(flow.propose([cloud]))
        cloud = flow.step(cloud, lengths[-1])
    expected = FIRST_STEP / risk.stiffness(gaussian_cloud(200, dimension=cases.D, seed=4)) * GROWTH ** np.arange(36)
    np.testing.assert_allclose(lengths, np.minimum(expected, DECAY / 2.0), rtol=1e-9)
    assert lengths[-1] == DECAY / 2.0


def test_replicates_take_the_shortest_step():
    flow = Flow(network(alpha=30.0), lam=0.5)
    clouds = cases.replicates(gaussian_cloud(20, dimension=cases.D, seed=4), 3)
    assert flow.propose(clouds) == min(flow.propose([cloud]) for cloud in clouds)


def test_lengths_may_be_a_number_or_a_schedule():
    cloud = gaussian_cloud(20, dimension=cases.D, seed=4)
    assert run(Flow(network(), eta=1e-3), cloud, 3).time == pytest.approx(3e-3)
    end = run(Flow(network(), eta=lambda k: 1e-3 * (k + 1)), cloud, 4)
    assert end.time == pytest.approx(1e-2) and end.eta == pytest.approx(4e-3)
    for wrong in (-1e-3, 0.0, math.nan, math.inf):
        with pytest.raises(InputError, match="positive, finite length"):
            Flow(network(), eta=lambda k, wrong=wrong: wrong).step(cloud)
        with pytest.raises(InputError, match="positive, finite length"):
            Flow(network()).step(cloud, wrong)


def test_a_flow_that_blows_up_says_when():
    cloud = gaussian_cloud(20, dimension=cases.D, seed=4)
    flow = Flow(network("linear", alpha=30.0), scheme="euler", allow_unstable=True, account=False)
    with np.errstate(all="ignore"), pytest.raises(DivergedError, match=r"not finite after step \d+ .*smaller eta"):
        run(flow, cloud, 60, 20 * flow.stability_limit(cloud))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: Flow(cases.X), "objective must be an Objective.*got ndarray"),
        (lambda c: Flow(network(), lam=-1.0), "lam must be finite and at least 0"),
        (lambda c: Flow(network(), lam=math.nan), "lam must be finite and at least 0"),
        (lambda c: Flow(network(), scheme="kernal"), "Did you mean 'kernel'"),
        (lambda c: Flow(network(), train="thetas"), "Did you mean 'theta'"),
        (lambda c: Flow(network(), eta="fast"), "eta must be a positive number"),
        (lambda c: Flow(network(), eta=0.0), "eta must be a positive number"),
        (lambda c: Flow(network(), scheme="euler", lam=5.0, allow_unstable=True).step(c, 0.3), "take eta below 0.2"),
        (lambda c: Flow(cases.quartic(), scheme="kernel").step(c, 0.1), "take 'exponential'"),
        (lambda c: Flow(network() + network(), scheme="kernel2").propose([c]), "take 'exponential'"),
        (lambda c: Flow(Minibatch(network(), 2), scheme="kernel").step(c, 0.1), "take 'euler'"),
        (lambda c: Gaussian(0.0), "std of the prior must be positive"),
        (lambda c: gaussian_cloud(0, dimension=3), "m must be a positive whole number"),
        (lambda c: gaussian_cloud(3), "needs d"),
        (lambda c: gaussian_cloud(3, dimension=3, dtype="float16"), "'float64' or 'float32'"),
        (lambda c: gaussian_cloud(3, dimension=3, weights=[1.0, 2.0]), r"shape \(3,\).*got \(2,\)"),
        (lambda c: gaussian_cloud(3, dimension=3, weights=[1.0, -2.0, 1.0]), "not negative"),
        (lambda c: cloud_at(np.zeros(3)), r"\(m, D\), got shape \(3,\)"),
        (lambda c: cloud_at(np.full((3, 2), np.nan)), "NaN or infinity"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call(gaussian_cloud(10, dimension=cases.D, seed=0))
