"""A network beside its linearisation, driven by the same noise step for step: how far training is from the kernel.

    dz_j = drift of the network at the cloud,   dz'_j = drift of the network linearised about the start,   one xi_j

Both clouds start at the same particles and take steps of one length, so that they share their noise whatever the step
rule says. `kernel_drift` asks how far the kernel moved, this asks what came of it in the predictions.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from meanfield.cloud import Cloud
from meanfield.errors import InputError
from meanfield.flow import Flow
from meanfield.linearised import Linearised
from meanfield.risk import Risk

if TYPE_CHECKING:
    import xarray

Array = np.ndarray


def distance_to_linearised(
    flow: Flow, cloud: Cloud, time: float, *, replicates: int = 4, every: int = 1
) -> "xarray.Dataset":
    """Return how far the predictions of a network are from those of its linearisation about the start.

    g_i = f_i - f_i^lin at every record. `distance` is sqrt(mean_i g_i^2) of a replicate. For the limit law its square
    is biased up by O(1/m); `distance_unbiased` takes products of different replicates instead: sqrt(max(0, mean over i
    and r != s of g_i^r g_i^s)). It reads 0 where the network is linear in what is trained. Costs two runs.

    Parameters
    ----------
    flow : Flow
        Of a `Risk`.
    cloud : Cloud
        The start; replicate r gets the start and the noise of replicate r.
    time : float
        How long, in the time of (3.4).
    replicates, every : int
        Clouds, and steps between two records.

    Returns
    -------
    xarray.Dataset
        `difference` (replicate, time, sample), `distance`, `loss` and `loss_linearised` (replicate, time), and
        `distance_unbiased` (time), NaN for one replicate.

    Raises
    ------
    InputError
        If the objective is not the risk of a network, or the length is not positive.
    """
    import xarray

    risk = flow.objective
    if not isinstance(risk, Risk):
        raise InputError(f"wanted a flow of a Risk, got {type(risk).__name__}: it has nothing that is linearised")
    if not (math.isfinite(time) and time > 0 and replicates >= 1 and every >= 1):
        raise InputError("time must be positive and finite, replicates and every at least 1")
    starts = [cloud.replicated(cloud.replicate + r) for r in range(replicates)]
    flows = [(flow, dataclasses.replace(flow, objective=Linearised(risk, start))) for start in starts]
    pairs = [(start, start) for start in starts]
    times, outputs = [cloud.time], [_outputs(flows, pairs)]
    while pairs[0][0].time < time:
        eta = _length(flows, pairs, time - pairs[0][0].time)
        pairs = [(f.step(a, eta), g.step(b, eta)) for (f, g), (a, b) in zip(flows, pairs, strict=True)]
        now = pairs[0][0]
        if now.step % every == 0 or now.time >= time:
            times.append(now.time)
            outputs.append(_outputs(flows, pairs))
    full, linear = np.moveaxis(np.array(outputs), 0, 2)  # each (replicate, time, sample)
    gap, rows = full - linear, ("replicate", "time")
    return xarray.Dataset(
        {
            "difference": ((*rows, "sample"), gap),
            "distance": (rows, np.sqrt((gap**2).mean(-1))),
            "distance_unbiased": (("time",), _unbiased(gap)),
            "loss": (rows, risk.losses(full).mean(-1)),
            "loss_linearised": (rows, risk.losses(linear).mean(-1)),
        },
        {"time": times},
    )


def _length(flows: Sequence[tuple[Flow, Flow]], pairs: Sequence[tuple[Cloud, Cloud]], left: float) -> float:
    """Return the shortest step that either dynamics proposes, or what is left."""
    full = flows[0][0].propose([a for a, _ in pairs])
    eta = min(full, *(g.propose([b]) for (_, g), (_, b) in zip(flows, pairs, strict=True)))
    return left if eta >= left * (1 - 1e-9) else eta


def _outputs(flows: Sequence[tuple[Flow, Flow]], pairs: Sequence[tuple[Cloud, Cloud]]) -> tuple[list, list]:
    """Return the predictions of every replicate, (R, n) each: of the network and of its linearisation."""
    full = [f.objective.full.prediction(a) for (f, _), (a, _) in zip(flows, pairs, strict=True)]  # type: ignore
    linear = [g.objective.prediction(b) for (_, g), (_, b) in zip(flows, pairs, strict=True)]  # type: ignore
    return full, linear


def _unbiased(gap: Array) -> Array:
    count = len(gap)
    if count < 2:
        return np.full(gap.shape[1], math.nan)
    products = (gap.sum(0) ** 2 - (gap**2).sum(0)) / (count * (count - 1))
    return np.sqrt(np.maximum(products.mean(-1), 0.0))
