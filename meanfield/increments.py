"""Observables of the noise itself (certificate C0): moments of the coupled reference's increments over all steps.

They are taken from the states, (Zbar' - c Zbar) / sigma, and not from the draws, so that a wrong noise level, which
every coupled quantity cancels, shows here.
"""

import math

import numpy as np

from meanfield.cloud import Cloud
from meanfield.flow import Flow
from meanfield.observables import Unavailable, accounted, observable

Array = np.ndarray


def _increments(cloud: Cloud, flow: Flow) -> Array:
    accounted(cloud, flow)
    if flow.lam == 0:
        raise Unavailable("lam = 0: there is no noise to check")
    return cloud.account.noise


@observable("variance of the reference's increments (certificate C0)", zero="1 for right noise")
def noise_variance(cloud: Cloud, flow: Flow) -> float:
    """Return the mean square of (Zbar' - c Zbar) / sigma over all steps so far; 1 if the noise level is right."""
    count, _, square, _, _ = _increments(cloud, flow)
    return square / count if count else 1.0


@observable("standard error of the mean of one increment's square", zero="not zero: it is an error bar")
def noise_variance_se(cloud: Cloud, flow: Flow) -> float:
    """Return sqrt(2 / count), the standard error of `noise_variance` for independent normals."""
    count = _increments(cloud, flow)[0]
    return math.sqrt(2 / count) if count else math.inf


@observable("mean of the reference's increments, in standard errors")
def noise_mean(cloud: Cloud, flow: Flow) -> float:
    """Return the mean increment over its standard error, a standard normal if the noise is right."""
    count, total, _, _, _ = _increments(cloud, flow)
    return total / math.sqrt(count) if count else 0.0


@observable("fourth moment of the reference's increments", zero="3 for Gaussian noise")
def noise_kurtosis(cloud: Cloud, flow: Flow) -> float:
    """Return the mean fourth power of the increments; 3 +- sqrt(96 / count) if they are normal."""
    count, _, _, fourth, _ = _increments(cloud, flow)
    return fourth / count if count else 3.0


@observable("correlation of the reference's increments with its position, in standard errors")
def noise_state_correlation(cloud: Cloud, flow: Flow) -> float:
    """Return sum xi Zbar / s over sqrt(count), a standard normal if the reference decays at the right rate."""
    count, _, _, _, cross = _increments(cloud, flow)
    return cross / math.sqrt(count) if count else 0.0
