"""A program that is wrong is reported under the name of what breaks: errors planted in it, a small run, `verify`."""

import numpy as np
import pytest
import small
from test_verify import small_run

from meanfield import accounting, balances, noise, risk, schemes, steps
from meanfield.backends import blocks
from meanfield.simulate import simulate
from meanfield.verify import verify

NAMES = [*small.CHEAP, "generator_rms", "drift_square", "entropy_input", "reference_travelled",
         "reference_travelled_se", "reference_overlap", "reference_overlap_se", "reference_variance", "kick_fault",
         "gram_defect", "gram_start_score", "kl_upper", "ntk_eigenvalue_min"]  # fmt: skip


def caught(monkeypatch, plant, **options) -> set[str]:
    plant(monkeypatch)
    run = small_run(**({"m": 400, "time": 0.2, "at": [0.02, 0.2], "names": NAMES} | options))
    return {v.statement for v in verify(run).violated}


def wrong_lam(patch) -> None:
    """Noise and decay of another lam."""
    patch.setattr(steps, "plan", lambda scheme, eta, lam, *rest: schemes.plan(scheme, eta, 1.4 * lam, *rest))


def wrong_lam_in_the_drift(patch) -> None:
    """The decay of another lam, the noise of the right one."""

    def plan(scheme, eta, lam, *rest):
        right, wrong = (schemes.plan(scheme, eta, value, *rest) for value in (lam, 1.3 * lam))
        channel = type(right.channel)(wrong.channel.decay, right.channel.sigma, right.channel.variance_before)
        return right._replace(channel=channel)

    patch.setattr(steps, "plan", plan)


def missing_factor(patch) -> None:
    patch.setattr(risk.Risk, "coefficients", lambda self, residual: -(self.alpha / self.n) * residual)


def loud_noise(patch) -> None:
    draw = steps.cloud_noise
    patch.setattr(steps, "cloud_noise", lambda *args, **options: 1.05 * draw(*args, **options))


def gram_without_u(patch) -> None:
    form = blocks.gram
    patch.setattr(blocks, "gram", lambda b, *rest: form(b._replace(u=np.ones_like(b.u)), *rest))


def other_noise(patch) -> None:
    linear, calls = steps._linear, []

    def decoupled(z, decay, increment, columns):
        calls.append(1)
        if len(calls) % 2 == 0:  # a cloud first, then its reference
            own = noise.normals(77, noise.Stream.PROBE, step=len(calls), count=len(z), width=z.shape[1])
            increment = own * np.std(increment)
        return linear(z, decay, increment, columns)

    patch.setattr(steps, "_linear", decoupled)


def literal_time(patch) -> None:
    """Algorithm 1 as printed, under the name of the scheme that has (3.4) as its limit."""
    patch.setitem(schemes.SCHEMES, "euler", schemes.SCHEMES["euler"]._replace(literal=True))


def time_off_by_m(patch) -> None:
    step = steps.step

    def slow(dynamics, cloud, eta, **options):
        return step(dynamics, cloud, eta / cloud.m, **options).replace(time=cloud.time + eta)

    patch.setattr(steps, "step", slow)


def no_certificate(patch) -> None:
    """Kicks that are too long, taken for injective."""
    patch.setattr(accounting, "injective_height", lambda *args, **options: np.inf)


@pytest.mark.parametrize(
    ("plant", "broken", "options"),
    [
        (wrong_lam, {"C0 time"}, {}),
        (wrong_lam_in_the_drift, {"C0 law"}, {}),
        (missing_factor, {"(I2) loss"}, {}),
        (loud_noise, {"C0 noise: variance"}, {}),
        (gram_without_u, {"C1 Gram matrix"}, {}),
        (other_noise, {"(I5) coupling"}, {}),
        (literal_time, {"(I2) loss", "C0 law"}, {"scheme": "euler"}),
        (time_off_by_m, {"(I2) loss", "C0 time"}, {"scheme": "euler", "alpha": 5.0}),
        (lambda patch: None, {"C4 injective kicks"}, {"eta": 1.0, "time": 2.0, "at": [1.0, 2.0]}),
        (no_certificate, {"C4 injective kicks"}, {"eta": 1.0, "time": 2.0, "at": [1.0, 2.0]}),
    ],
)
def test_plants_are_named(plant, broken, options, monkeypatch) -> None:
    assert broken <= caught(monkeypatch, plant, **options)


@pytest.mark.parametrize("scheme", ["kernel", "euler"])
def test_without_a_plant_nothing_is_violated(scheme, monkeypatch) -> None:
    assert not caught(monkeypatch, lambda patch: None, scheme=scheme)


def test_small_steps_in_single_precision_are_no_violation() -> None:
    """Every kick is rounded to the grid of its particle: 2.7 times what one pass rounds, after 300 steps."""
    flow = small.flow("kernel", eta=1e-6, alpha=5.0, lam=0.05)
    cloud = small.cloud(flow, 128, dtype="float32")
    run = simulate(flow, cloud, steps=300, replicates=2, observables=NAMES[:-2], bounds=0, every=30)
    verification = verify(run)
    assert not verification.violated
    (line,) = [v for v in verification.verdicts if v.statement == "(I5) coupling"]
    assert 0.005 < line.measured < 0.5


def test_jackknife_of_pairs() -> None:
    """The spread of a mean over pairs, over many sets of replicates, is what one set says."""
    rng = np.random.default_rng(0)
    r = 1 + rng.normal(size=(4000, 6))
    rest = (r.sum(1, keepdims=True) - r) / 5
    means, errors = zip(*(balances.jackknife(row) for row in r * rest), strict=True)
    assert abs(np.mean(means) - 1) < 0.05
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.15)
    assert np.isinf(balances.jackknife(np.ones((2, 3)))[1]).all()
