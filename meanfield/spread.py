"""A run's clouds on several ranks: which rows are here, and whole clouds on one rank for what needs them.

Steps and cheap observables work on rows (`ranks`). Observables taken at bound times compare particles with one another
or with fresh samples; they get the cloud whole on rank 0 if it has at most GATHERED numbers, else its first particles
(exchangeable with the others, and a cloud of that size at the same seed). The rule knows m and D alone, so the records
are those of any number of ranks, and those of a process on its own while clouds are small enough.
"""

from collections.abc import Callable, Sequence

import numpy as np

from meanfield import backends
from meanfield.cloud import Cloud
from meanfield.errors import InputError
from meanfield.flow import Flow
from meanfield.minibatch import Minibatch
from meanfield.ranks import Communicator, Share, split
from meanfield.risk import Risk

Array = np.ndarray
GATHERED = 1 << 24  # numbers of a cloud that is gathered whole: 128 MB in double precision


def share_of(risk: Risk, m: int, communicator: Communicator) -> Share:
    """Return the rows that a rank holds of a cloud of m particles that moves along a risk, or batches of it.

    A backend with devices takes this rank's here, before anything is drawn.

    Raises
    ------
    InputError
        If there are fewer pieces of the cloud than ranks, or ranks cannot all have one backend that works on rows.
    """
    names = communicator.everyone(risk.choice(m).name)
    if len(set(names)) > 1:
        told = ", ".join(f"'{name}' on rank {names.index(name)}" for name in sorted(set(names)))
        raise InputError(
            f"ranks would take different backends ({told}), for not all have the same packages and devices: "
            "type --backend cpu"
        )
    share = split(communicator, m, backends.grain(names[0], risk.n))
    backends.shared(names[0], share)
    return share


def rows(flow: Flow, cloud: Cloud, communicator: Communicator) -> Cloud:
    """Return the rows of a whole cloud that this rank is to hold.

    Raises
    ------
    InputError
        If it cannot be spread: other objectives than a network's risk, weighted particles, fewer particles than ranks
        can share.
    """
    objective = flow.objective
    if not isinstance(objective, Risk | Minibatch):
        raise InputError(
            f"only the risk of a network is spread over ranks, this objective is {type(objective).__name__}; run it "
            "in one process"
        )
    if cloud.weights is not None:
        raise InputError("weighted particles are not spread over ranks: leave weights out, or run in one process")
    if cloud.share is not None:
        return cloud
    share = share_of(objective.network, cloud.m, communicator)
    return _changed(cloud, share, lambda array: np.ascontiguousarray(array[share.first : share.last]))


def _changed(cloud: Cloud, share: Share | None, rows: Callable[[Array], Array]) -> Cloud:
    """Return a cloud of other rows; arrays that are the particles themselves stay them."""
    z = rows(cloud.z)
    reference, start = (
        array if array is None else z if array is cloud.z else rows(array) for array in (cloud.reference, cloud.start)
    )
    return cloud.replace(z=z, reference=reference, start=start, share=share, kernel=cloud.kernel)


def gathered_count(cloud: Cloud) -> int:
    """Return how many particles of a spread cloud are gathered."""
    return min(cloud.m, max(GATHERED // cloud.dimension, 1))


def note(cloud: Cloud) -> dict[str, int]:
    """Return what a reader of the records has to know: of how many particles the costly observables are."""
    count = gathered_count(cloud)
    return {} if cloud.share is None or count == cloud.m else {"gathered_particles": count}


def gathered(clouds: Sequence[Cloud], flow: Flow) -> list[Cloud]:
    """Return what observables may look at: clouds that are whole as they are, those that are spread gathered.

    Every rank has to call it; all but rank 0 get an empty list for clouds that are spread.
    """
    share = clouds[0].share
    if share is None:
        return list(clouds)
    found = [_gathered(cloud, share, flow) for cloud in clouds]
    return [cloud for cloud in found if cloud is not None]


def _gathered(cloud: Cloud, share: Share, flow: Flow) -> Cloud | None:
    count = gathered_count(cloud)
    whole = _changed(cloud, None, lambda array: collected(array, share, count))
    if share.communicator.rank:
        return None
    if count < cloud.m:
        return whole.replace(kernel=None)
    if flow.objective.network is not None:
        flow.objective.network.remember(whole, cloud)
    return whole


def collected(array: Array, share: Share, count: int) -> Array:
    """Return on rank 0 the first `count` rows of an array that ranks hold together, elsewhere those that are here."""
    here, communicator = array[: max(count - share.first, 0)], share.communicator
    if communicator.rank:
        if len(here):
            communicator.send(here, 0)
        return here
    parts = [here] + [communicator.receive(r) for r in range(1, communicator.size) if share.bounds[r] < count]
    return np.concatenate(parts)
