"""Clouds that are not finite: a sentence on every path, never an error of the linear algebra below."""

import numpy as np
import pytest
from cases import OBJECTIVES, PAIRS

from meanfield import ntk
from meanfield.cloud import Cloud, demand_finite
from meanfield.errors import DivergedError, InputError
from meanfield.flow import Flow
from meanfield.observables import OBSERVABLES
from meanfield.schemes import SCHEMES
from meanfield.simulate import simulate


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


POISONS = {
    "NaN in theta": ("z", (1, 0), np.nan),
    "NaN in u": ("z", (2, -1), np.nan),
    "infinite u": ("z", (1, -1), np.inf),
    "NaN everywhere": ("z", (slice(None),), np.nan),
    "NaN in the reference": ("reference", (1, 0), np.nan),
}


def poisoned(cloud: Cloud, poison: str) -> Cloud:
    where, place, value = POISONS[poison]
    array = getattr(cloud, where).copy()
    array[place] = value
    return cloud.replace(**{"z": cloud.z.copy(), where: array})


def flow(scheme: str = "kernel", name: str = "square", account: bool = True, eta: float | str = 1e-3) -> Flow:
    case = OBJECTIVES[name]
    return Flow(case.build(case.cloud()), 0.05, eta, scheme, account=account, allow_unstable=True)


SENTENCE = "NaN|not finite"


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("account", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_steps_of_a_network(scheme: str, account: bool, poison: str) -> None:
    cloud = poisoned(OBJECTIVES["square"].cloud(), poison)
    for eta in (1e-3, "auto"):
        with pytest.raises(DivergedError, match=SENTENCE):
            flow(scheme, account=account, eta=eta).step(cloud)


@pytest.mark.parametrize(("name", "scheme"), PAIRS)
def test_steps_of_every_objective(name: str, scheme: str) -> None:
    cloud = poisoned(OBJECTIVES[name].cloud(), "NaN in theta")
    with pytest.raises(DivergedError, match=SENTENCE):
        flow(scheme, name).step(cloud)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("name", ["square", "logistic", "minibatch"])
def test_what_a_risk_says_of_them(name: str, poison: str) -> None:
    """Value, gradient and first variation, asked twice: a refusal is not remembered as an answer."""
    case = OBJECTIVES[name]
    good = case.cloud()
    bad, objective = poisoned(good, poison), case.build(good)
    for ask in (objective.value, objective.gradient, lambda cloud: objective.first_variation(cloud, good.z)):
        assert np.isfinite(ask(good)).all()
        for _ in range(2):
            with pytest.raises(DivergedError, match="the prediction of the cloud at step 0 is not finite"):
                ask(bad)


@pytest.mark.parametrize("poison", ["NaN in theta", "NaN everywhere"])
def test_what_a_step_may_be(poison: str) -> None:
    cloud = poisoned(OBJECTIVES["square"].cloud(), poison)
    for scheme in SCHEMES:
        with pytest.raises(DivergedError, match="the Gram matrix of the cloud at step 0 is not finite"):
            flow(scheme, eta="auto").propose([cloud])
    with pytest.raises(DivergedError, match="the Gram matrix of the cloud at step 0 is not finite"):
        flow("euler").stability_limit(cloud)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("name", OBSERVABLES)
def test_observables_and_bounds(name: str, poison: str) -> None:
    good, entry = OBJECTIVES["square"].cloud(), OBSERVABLES[name]
    bad = poisoned(good, poison)
    for _ in range(2):  # a refusal is not remembered as an answer
        with pytest.raises(DivergedError, match="hold NaN or infinity at step 0"):
            entry.function((good, bad) if entry.pooled else bad, flow())


def test_a_run_that_starts_there_is_bad_input() -> None:
    cloud = poisoned(OBJECTIVES["square"].cloud(m=40), "NaN in theta")
    with pytest.raises(InputError, match="no loss at the start .*the prediction of the cloud at step 0 is not finite"):
        simulate(flow(), cloud, time=0.1)


def test_what_is_said_of_a_matrix() -> None:
    for function in (ntk.largest_eigenvalue, ntk.eigenvalue_range):
        with pytest.raises(InputError, match="the Gram matrix holds NaN or infinity"):
            function(np.full((3, 3), np.nan))


def test_finite_clouds_pass() -> None:
    demand_finite(OBJECTIVES["square"].cloud())
    demand_finite(OBJECTIVES["square"].cloud().replace(reference=None))
