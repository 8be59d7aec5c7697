"""The problems of `lazy_alpha`, and what its points read."""

import functools

import numpy as np

import meanfield as mf
from meanfield import datasets
from meanfield.claims import jackknifed, order, slope
from meanfield.estimate import Estimate
from meanfield.observables import cross_product

LAM, END = 0.2, 2.0
FAR = (100.0, 1000.0)  # alphas between which orders are fitted


@functools.cache
def problem(name: str, alpha: float) -> mf.Risk:
    """Six random signs on the sphere in R^5, or twenty images of the digits 3 and 8."""
    if name == "sphere":
        x, y = datasets.sphere(n=6, d=5, teacher="random", seed=2)
    else:
        x, y = datasets.digits(classes=(3, 8), n=20)
    return mf.Risk(x, y, mf.Unit("tanh"), alpha)


@functools.cache
def lowest(name: str) -> float:
    """Lambda, the smallest eigenvalue of H(p0)."""
    return float(np.linalg.eigvalsh(problem(name, 1.0).gram_start())[0])


def law_order(results, name: str, value: str, between: tuple[float, float]) -> Estimate:
    """The exponent in alpha of what the law reads at the end, over alphas within a range."""
    found = [r for r in results.where(part="law", problem=name) if between[0] <= r.point["alpha"] <= between[1]]
    values, errors = (np.array([float(r.data[key].values[-1]) for r in found]) for key in (value, f"{value}_se"))
    if len(values) < 2 or not (values > 0).all():
        return Estimate(np.nan, np.nan)
    return slope([r.point["alpha"] for r in found], values, errors)


def network_order(results, name: str, m: int) -> Estimate:
    """The exponent in alpha, over the range FAR, of what single networks read."""
    found = [r for r in results.where(part="network", m=m) if r.point["alpha"] >= FAR[0]]
    if len(found) < 2:
        return Estimate(np.nan, np.nan)
    return order([r.point["alpha"] for r in found], np.array([r.data[name].values for r in found]).T)


def unbiased(difference: np.ndarray) -> float:
    """The rms over time and samples of the mean of f - f_lin: products of different replicates."""
    return float(np.sqrt(max(cross_product(difference.reshape(len(difference), -1)), 0.0)))


def limit_distance(data) -> Estimate:
    """The distance of the limit law's output to that of its linearisation."""
    return jackknifed(unbiased, data.difference.values)
