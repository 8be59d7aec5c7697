"""Confidence intervals for KL(p || p0) and for the Fisher information, from independent replicates.

A bracket of bounds holds for every law but has two ends that differ. Where log dp/dp0 lies in a known family of
functions (Gaussian laws; networks of which u alone was trained; Gibbs laws; your own), there is an estimate with an
interval that covers: the supremum over the family at the means of all replicates is biased up by about k / (2 N) for
k functions and N particles; the jackknife over replicates takes that off, and Student's factor of R - 1 degrees of
freedom makes the interval. Each replicate takes its own share of the samples of p0 along, so that their error is in
the scatter.

Outside the family the interval is one for the supremum over it, a lower bound on KL. `held_out` is a lower bound
whatever the law is: members are fitted without a replicate and measured on it. Neither is a bound from above.

Estimators that claim no coverage: `entropy.knn_estimate` (biased, see there), `entropy.gaussian_lower`,
`donsker.donsker_varadhan` (bounds from below on purpose). The coverage measured is in docs/mathematics.md.

Read next: `families`, `network_families`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meanfield.errors import InputError, MeanfieldError
from meanfield.estimate import Estimate, mean_estimate, student_factor
from meanfield.families import Choice, Family, Quadratic, QuadraticScore
from meanfield.moments import Clouds, coupled_pairs, each

Array = npt.NDArray[Any]
FEWEST = 3


@dataclass(frozen=True)
class Interval:
    """An estimate with an interval that covers where its family contains log dp/dp0.

    Attributes
    ----------
    low, high : float
        Ends of the interval; a negative end counts as 0.
    value, se : float
        Estimate, and standard error over replicates.
    level : float
        Nominal probability of covering.
    family : str
    size, form : int, float
        How many functions were taken, and of what form, by what held-out replicates preferred.
    held_out : Estimate
        Members fitted without a replicate and measured on it: a lower bound for every law.
    replicates : int
    """

    low: float
    high: float
    value: float
    se: float
    level: float
    family: str
    size: int
    form: float
    held_out: Estimate
    replicates: int


def kl_interval(
    clouds: Clouds, fields: Family | str = "quadratic", *, scale: float = 1.0, level: float = 0.95
) -> Interval:
    """Return a confidence interval for KL(p || p0), in nats, from independent replicates.

    Parameters
    ----------
    clouds : sequence of (z, reference, weights)
        One entry a replicate, at least 3 (8 where something is judged); arrays (m, D), (m, D), (m,) or None. Samples
        that have no coupled reference take fresh samples of p0 for it; that costs accuracy, not coverage.
    fields : Family or "quadratic"
        The functions that are said to contain log dp/dp0 (`families`): `Quadratic`, `Functions`, `Network`.
    scale : float
        Standard deviation s of the reference.
    level : float
        Nominal probability of covering, above 0 and below 1.

    Raises
    ------
    InputError
        If there are less than 3 replicates, shapes don't fit, or the level is not a probability.
    MeanfieldError
        If the samples of p0 do not reach as far as the law, or m is too small for the fields.
        R + 1 fits for each choice of the family.
    """
    return _interval(clouds, _named(fields, Quadratic()), scale, level)


def fisher_interval(
    clouds: Clouds, fields: Family | str = "quadratic", *, scale: float = 1.0, level: float = 0.95
) -> Interval:
    """Return a confidence interval for the Fisher information E_p |grad log(p / p0)|^2, by Stein's identity.

    The same as `kl_interval` with the fields grad phi of `QuadraticScore` or `NetworkScore`; its `held_out` is a lower
    bound for every law.
    """
    return _interval(clouds, _named(fields, QuadraticScore()), scale, level)


def _named(fields: Family | str, quadratic: Family) -> Family:
    if isinstance(fields, str):
        if fields != "quadratic":
            raise InputError(f"fields are a family or 'quadratic', got {fields!r}; see meanfield.families.")
        return quadratic
    return fields


def _interval(clouds: Clouds, family: Family, scale: float, level: float) -> Interval:
    pairs = coupled_pairs(clouds, scale)
    count = len(pairs)
    if count < FEWEST:
        raise InputError(f"an interval needs at least {FEWEST} independent replicates, got {count}.")
    if not 0 < level < 1:
        raise InputError(f"the level is a probability between 0 and 1, got {level}.")
    choices = family.choices(pairs[0].z.shape[1])
    statistics = np.array(each(family.statistics, pairs))

    failed: list[MeanfieldError] = []

    def tried(choice: Choice) -> tuple[Estimate, Estimate, Choice] | None:
        try:
            return (*_jackknifed(family, statistics, choice), choice)
        except MeanfieldError as error:  # a part of the family that these samples do not resolve; others may do
            failed.append(error)
            return None

    options = [option for option in each(tried, choices) if option]
    if not options:
        raise failed[0]
    estimate, held_out, choice = max(options, key=lambda option: option[1].value)
    margin = student_factor(count, 0.5 + 0.5 * level) * estimate.se
    return Interval(
        low=max(estimate.value - margin, 0.0),
        high=max(estimate.value + margin, 0.0),
        value=estimate.value,
        se=estimate.se,
        level=level,
        family=family.name,
        size=choice.size,
        form=choice.form,
        held_out=held_out,
        replicates=count,
    )


def _jackknifed(family: Family, statistics: Array, choice: Choice) -> tuple[Estimate, Estimate]:
    """Return the supremum over a part of the family with its bias removed, and the mean of what is held out."""
    count = len(statistics)
    own = np.arange(family.probes) % count
    everything = slice(None)
    mean = statistics.mean(axis=0)
    best = family.fit(mean, choice, everything, None)
    whole = family.measured(best, mean, choice, everything)
    pseudo, held = np.empty(count), np.empty(count)
    for r in range(count):
        rest = (count * mean - statistics[r]) / (count - 1)
        others, mine = np.flatnonzero(own != r), np.flatnonzero(own == r)
        member = family.fit(rest, choice, others, best)
        pseudo[r] = count * whole - (count - 1) * family.measured(member, rest, choice, others)
        held[r] = family.measured(member, statistics[r], choice, mine)
    return mean_estimate(pseudo, family.name), mean_estimate(held, f"{family.name}, held out")
