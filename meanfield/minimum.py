"""Observables on min Q, the least free energy L + lam KL of any law: bounds from both sides, and where its outputs are.

They are what certificate C5 is made of: with them the free energy of a run says how far its law is from the fixed
point (`minimiser.gap`). `duality` has the mathematics. Costly ones, all replicates at once.
"""

import math
from collections.abc import Sequence

import numpy as np

from meanfield import duality
from meanfield.cloud import Cloud
from meanfield.estimate import Estimate, student_factor
from meanfield.flow import Flow
from meanfield.observables import Unavailable, coupled, network, observable, remembered
from meanfield.quadrature import SOBOL_COPIES
from meanfield.risk import Risk
from meanfield.units import Unit

Array = np.ndarray
# Nodes over theta, and how many numbers h(theta . x_i) and theta they may take; never fewer than.
NODES, NUMBERS, FEWEST = 1 << 14, 1 << 22, 1 << 11


@observable("lower bound on min Q, the least free energy of any law: the dual of Gibbs (C5)", costly=True, pooled=True,
            zero="min Q")  # fmt: skip
def gibbs_dual(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return D(c) <= min Q <= Q(p_t), c from the mean residual of the replicates or a better one (`duality`)."""
    return _for_replicates(_bound_on_minimum(clouds, flow).energy, clouds)


@observable("upper bound on min Q: the free energy of the law e^(c . psi) p0 at the c of gibbs_dual", costly=True,
            pooled=True, zero="min Q")  # fmt: skip
def gibbs_energy(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return Q(p_c) >= min Q for the c of `gibbs_dual`; sampling moves it up."""
    return _for_replicates(_bound_on_minimum(clouds, flow).above, clouds)


@observable("outputs of the minimiser of Q, within sqrt(n (min Q - gibbs_dual))", dims=("sample",), costly=True,
            pooled=True, zero="those of the minimiser")  # fmt: skip
def gibbs_prediction(clouds: Sequence[Cloud], flow: Flow) -> Array:
    """Return y - (n lam / (2 alpha)) c with the c of `gibbs_dual`, shape (n,)."""
    return _bound_on_minimum(clouds, flow).prediction


def _for_replicates(found: Estimate, clouds: Sequence[Cloud]) -> Estimate:
    """Return an estimate from copies of nodes in a form to be read with Student's factor for the replicates."""
    return found._replace(se=found.se * max(1.0, student_factor(SOBOL_COPIES) / student_factor(len(clouds))))


def _bound_on_minimum(clouds: Sequence[Cloud], flow: Flow) -> duality.Bound:
    def make() -> duality.Bound:
        risk, cloud = network(flow), clouds[0]
        reduced = _reduced(cloud, flow)
        residual = np.mean([risk.residual(risk.prediction(cloud)) for cloud in clouds], axis=0)
        affordable = NUMBERS // (risk.n + risk.inputs.shape[1])
        nodes = 1 << (max(min(NODES, affordable), FEWEST).bit_length() - 1)
        key = f"dual {cloud.start_std} {cloud.seed} {nodes}"
        return remembered(flow, key, lambda: duality.Dual(reduced, flow.lam, nodes, cloud.seed)).bound(residual)

    return remembered(clouds[0], "dual", make, [flow, *clouds[1:]])


def _reduced(cloud: Cloud, flow: Flow) -> Risk:
    """Return the risk in units in which p0 = N(0, I), or say why its free energy has no dual here."""
    risk, std = network(flow), cloud.start_std
    coupled(cloud)
    if risk.loss != "square" or not risk.centred:
        raise Unavailable("the dual of Gibbs is for the limit law (centred) under the square loss")
    if flow.lam <= 0 or flow.prior is None or not math.isclose(flow.prior.std, std):
        raise Unavailable("the dual of Gibbs needs lam > 0 and a start from the prior: else Q has no such minimiser")
    if std == 1:
        return risk
    return Risk(risk.inputs * std, risk.y, Unit(risk.unit.activation), risk.alpha * std, backend=risk.backend)
