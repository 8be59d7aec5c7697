"""The account that rides with a step: what kicks and channels do to the KL bound, to predictions and to the noise.

`account` holds the records and their arithmetic; here are the measurements that go into them. `steps` calls
`opened` before a step, `of_kick` after a kick, `with_kernel` and `of_channel` at the end of a channel.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from meanfield.account import Account, Channel, KickSums, injective_height
from meanfield.backends import Moved
from meanfield.cloud import Cloud, Kernel
from meanfield.entropy import stein_fisher
from meanfield.objectives import Objective
from meanfield.schemes import Plan, Scheme

Array = np.ndarray
# Above this many samples the Stein bound's n x n solve costs more than it tightens the account.
LARGEST_STEIN = 2000
# Below this length of the channel, in units of its relaxation time, the curvature of Stein's field is not looked at:
# the account would gain less than this fraction of what the channel takes away.
SHORT = 1e-3
# Eigenvalues of the Gram matrix below this share of the largest are rounding, as in `entropy.stein_fisher`.
CUTOFF = 1e-10
LOOKED_AT = 64  # particles at either end of |u| where a kick that is not certified is looked at
TOGETHER = 1 << 11  # particles whose increments are summed in a step


class Dynamics(NamedTuple):
    """All that a step needs beside the cloud: `decay` is 1 / std^2 of the prior, `leaf` as in `Flow`; 0 without one."""

    objective: Objective
    scheme: Scheme
    lam: float
    decay: float
    train: str
    account: bool
    leaf: float = 0.0


def trained(train: str) -> slice:
    """Return the columns of a particle that move."""
    return {"both": slice(None), "u": slice(-1, None), "theta": slice(None, -1)}[train]


def opened(dynamics: Dynamics, cloud: Cloud) -> Cloud:
    """Return the cloud with its account begun, if this is its first step."""
    risk = dynamics.objective.network
    if risk is None or len(cloud.account.prediction):
        return cloud
    zero = np.zeros(risk.n)
    account = Account(
        kl=0.0 if not unaccountable(dynamics) else math.inf,
        reason=unaccountable(dynamics),
        prediction=risk.prediction(cloud),
        prediction_variance=zero,
        prediction_slack=zero,
    )
    done = cloud.replace(account=account)
    risk.remember(done, cloud)
    return done


def unaccountable(dynamics: Dynamics) -> str:
    """Return why the KL account cannot be kept, or an empty string."""
    risk = dynamics.objective.network
    if risk is None:
        return "the KL account needs an objective that is a network (Risk or Minibatch)"
    g1, g2, g3 = risk.unit.h.suprema[:3]
    if dynamics.train != "u" and not (math.isfinite(g2) and math.isfinite(g3)):
        return f"the KL account needs bounded h' and h'', which {risk.unit.h.name} has not"
    if dynamics.scheme.midpoint and dynamics.train == "both" and g3 > 0 and not math.isfinite(g1):
        return f"the KL account of {dynamics.scheme.name} needs a bounded h, which {risk.unit.h.name} is not"
    if not smooth(dynamics):
        return f"the KL account needs a second derivative of h, which {risk.unit.h.name} has not"
    return ""


def smooth(dynamics: Dynamics) -> bool:
    """Return whether the generator of psi is a function, so that means over particles measure it."""
    risk = dynamics.objective.network
    if risk is None:
        return False
    h = risk.unit.h
    # A homogeneous activation without bounded curvature has a kink at zero, whose delta no mean over particles sees.
    return dynamics.train == "u" or not (h.homogeneous and math.isinf(h.suprema[2]))


def of_kick(dynamics: Dynamics, cloud: Cloud, moved: Moved, residual: Array, eps: float) -> Account:
    """Return the account after a kick of length eps, from the means that the kick reports."""
    risk = dynamics.objective.network
    assert risk is not None and moved.push is not None and moved.push2 is not None and moved.push3 is not None
    c, h = risk.coefficients(residual), risk.unit.h
    height = injective_height(c, eps, risk.inputs, h.suprema, dynamics.train, midpoint=dynamics.scheme.midpoint)
    scale = math.sqrt(2 * cloud.reference_variance)
    # Where |eps Db| reaches 1 at a particle the remainder is infinite, whatever the slab says.
    injective = cloud.farthest() < height and math.isfinite(moved.remainder)
    sums = KickSums(
        speed=moved.speed,
        pull=moved.pull,
        remainder=moved.remainder,
        push=risk.alpha * moved.push,
        push2=risk.alpha * moved.push2,
        push3=risk.alpha * moved.push3,
        injective=injective,
        mass_outside=math.erfc(height / scale) if math.isfinite(height) else 0.0,
        folds=not injective and folds(dynamics, cloud, c, eps),
    )
    e = centred_generator(dynamics, cloud)
    return cloud.account.kicked(eps, sums, -float(c @ e), cloud.reference_variance)


def folds(dynamics: Dynamics, cloud: Cloud, c: Array, eps: float) -> bool:
    """Return whether det DT has both signs among particles of largest and smallest |u|: T is not one-to-one then.

    An injective map that is smooth keeps the sign of its Jacobian's determinant. O(LOOKED_AT D^3).
    """
    risk = dynamics.objective.network
    assert risk is not None
    z = _ends(cloud.z)
    if cloud.share is not None:
        z = _ends(np.concatenate(cloud.share.communicator.everyone(z)))
    z = z.astype(np.float64, copy=False)
    here = _field_jacobian(risk, z, c, dynamics.train)
    if dynamics.scheme.midpoint:
        b = risk.pullback(cloud, z, c, dynamics.train)
        middle = _field_jacobian(risk, z + 0.5 * eps * b, c, dynamics.train)
        here = middle + 0.5 * eps * middle @ here
    signs = np.linalg.slogdet(np.eye(cloud.dimension) + eps * here)[0]
    return bool((signs < 0).any() and (signs > 0).any())


def _ends(z: Array) -> Array:
    """Return the particles of smallest and of largest |u|."""
    order = np.argsort(np.abs(z[:, -1]))
    return z[np.concatenate([order[:LOOKED_AT], order[-LOOKED_AT:]])]


def _field_jacobian(risk: Any, z: Array, c: Array, train: str) -> Array:
    """Return Db at particles, b = sum_i c_i grad psi_i: [[X' diag(u h'' c) X, X' (h' c)], [., 0]], shape (m, D, D)."""
    x = risk.inputs
    _, h1, h2, _ = risk.unit.h.jet(z[:, :-1] @ x.T)
    out = np.zeros((len(z), z.shape[1], z.shape[1]))
    if train != "u":
        out[:, :-1, :-1] = np.einsum("mi,ia,ib->mab", h2 * (z[:, -1:] * c), x, x, optimize=True)
    if train == "both":
        out[:, -1, :-1] = out[:, :-1, -1] = (h1 * c) @ x
    return out


def centred_generator(dynamics: Dynamics, cloud: Cloud) -> Array:
    """Return the centred mean of A_s psi_i = Laplace psi_i - z . grad psi_i / s^2, zero under the reference's law."""
    assert dynamics.objective.network is not None
    m = dynamics.objective.network.measure(cloud, dynamics.train, gram=False)
    s2 = cloud.reference_variance
    return (m.laplacian - m.laplacian_reference) - (m.pull - m.pull_reference) / s2


def with_kernel(dynamics: Dynamics, cloud: Cloud, decay_time: float) -> Cloud:
    """Return the cloud at the end of a channel with a Gram matrix that stands for its own, and its covariance."""
    risk, train = dynamics.objective.network, dynamics.train
    assert risk is not None
    if cloud.kernel is not None:
        cloud = cloud.replace(kernel=cloud.kernel.older(decay_time))
        held = risk.held(cloud, train)
        if held is not None and held.covariance is not None:
            return cloud
    variance = cloud.reference_variance if risk.n <= LARGEST_STEIN else None
    found = risk.measure(cloud, train, gram=variance is not None or not risk.centred, variance=variance)
    if variance is None or dynamics.scheme.midpoint or not risk.centred:
        # The midpoint scheme is of second order with its own kernels alone; without centring H is needed afresh.
        return cloud.replace(kernel=None)
    assert found.gram is not None
    carried = cloud.replace(kernel=Kernel(found.gram, found.covariance, 0.0, risk.name(train)))
    risk.remember(carried, cloud)
    return carried


def of_channel(dynamics: Dynamics, before: Cloud, after: Cloud, parts: Plan) -> Account:
    """Return the account after a channel, which takes away what the Fisher information at its end says at least."""
    risk = dynamics.objective.network
    assert risk is not None
    account, channel = before.account, parts.channel
    if risk.n > LARGEST_STEIN or not math.isfinite(account.kl) or not channel.sigma:
        return account.spread(channel, 0.0)
    kernel = after.kernel
    if kernel is None:
        found = risk.measure(after, dynamics.train, variance=after.reference_variance)
        assert found.gram is not None
        kernel = Kernel(found.gram, found.covariance, 0.0, "")
    e = centred_generator(dynamics, after)
    # A Gram matrix of some steps ago is off by about as much as particles have moved; twice that is given away.
    assert kernel.covariance is not None
    spectrum = risk.eigen(kernel.gram)
    fisher = stein_fisher(e, kernel.gram, kernel.covariance, spectrum=spectrum) * (1 - 2 * kernel.age)
    if after.share is not None:
        fisher = after.share.agreed(fisher)
    if fisher <= 0 or channel.time < SHORT:
        return account.spread(channel, fisher)
    return account.spread(channel, fisher, _bends(dynamics, after, kernel, e))


def _bends(dynamics: Dynamics, cloud: Cloud, kernel: Kernel, e: Array) -> tuple[float, float]:
    """Return E|grad^2 phi|^2 and E|grad^3 phi|^2 over E|grad phi|^2, phi = c . psi Stein's field, c about H^-1 e.

    In every eigendirection of H, e is shrunk by the share of its square that is sampling noise.
    """
    risk = dynamics.objective.network
    assert risk is not None and kernel.covariance is not None
    values, vectors = risk.eigen(kernel.gram)
    along = vectors.T @ e
    noise = np.einsum("ik,ik->k", vectors, kernel.covariance @ vectors)
    kept = (values > CUTOFF * values[-1]) & (along * along > noise)
    c = vectors[:, kept] @ ((along[kept] - noise[kept] / along[kept]) / values[kept])
    one, two, three = risk.engine(cloud.m, cloud.share).roughness(
        risk.unit.h, risk.inputs, cloud.z, cloud.weights, c, dynamics.train
    )
    return (two / one, three / one) if one > 0 else (0.0, 0.0)


def of_means(dynamics: Dynamics, account: Account, start: Cloud, before: Cloud, after: Cloud, parts: Plan) -> Account:
    """Return the account with what the channel did to predictions, and with the increments of the reference.

    `start` is the cloud before the step's first kick, `before` and `after` are those at the ends of the channel.
    """
    risk, train = dynamics.objective.network, dynamics.train
    assert risk is not None
    early = risk.measure(start, train, gram=False)
    late = risk.measure(after, train, gram=not risk.centred)
    if before.z is not start.z:
        # The kick left the reference where it was measured.
        here = risk.engine(before.m, before.share).measure(
            risk.unit.h, risk.inputs, before.z, None, before.weights, train, gram=False
        )
        early = early._replace(laplacian=here.laplacian, pull=here.pull)
    rates = []
    for m in (early, late):
        laplacian, pull = m.laplacian, m.pull
        if risk.centred:
            laplacian, pull = laplacian - m.laplacian_reference, pull - m.pull_reference
        rates.append(risk.alpha * (parts.noise_time * laplacian - parts.decay_time * pull))
    gap = late.gap
    if not risk.centred and late.gram is not None:
        gap = np.diag(late.gram) * (1 / after.m if after.weights is None else float(after.weights @ after.weights))
    return account.replace_means(
        moved=0.5 * (rates[0] + rates[1]),
        # The trapezoidal rule is off by (k t)^2 / 12 for what decays as e^{-k t}; k = 4 stands for all that matters.
        slack=np.abs(rates[1] - rates[0]) * parts.channel.time / 3,
        variance=(risk.alpha * parts.channel.sigma) ** 2 * gap,
        noise=increments(start, after, parts.channel, train),
    )


def increments(before: Cloud, after: Cloud, channel: Channel, train: str) -> Array:
    """Return sums over the reference's increments xi = (Zbar' - c Zbar) / sigma: count, xi, xi^2, xi^4, xi Zbar / s.

    They are taken from the states and not from the draws, so that a wrong noise level shows; of `TOGETHER` particles,
    others in every step until all have had their turn.
    """
    if before.reference is None or after.reference is None or not channel.sigma:
        return np.zeros(5)
    turn, share = before.step % -(-before.m // TOGETHER), before.share
    if share is None:
        return _increments(before, after, channel, train, turn * TOGETHER)
    owner = share.owner(turn * TOGETHER)  # of all, for ranks hold multiples of TOGETHER
    here = owner == share.communicator.rank
    found = _increments(before, after, channel, train, turn * TOGETHER - share.first) if here else None
    return share.communicator.broadcast(found, owner)


def _increments(before: Cloud, after: Cloud, channel: Channel, train: str, first: int) -> Array:
    """Return the sums of `increments` over TOGETHER rows from `first` on."""
    assert before.reference is not None and after.reference is not None
    part, columns = slice(first, first + TOGETHER), trained(train)
    old, new = (c[part, columns].astype(np.float64, copy=False).ravel() for c in (before.reference, after.reference))
    xi = (new - channel.decay * old) / channel.sigma
    square = xi * xi
    cross = xi @ old / math.sqrt(before.reference_variance)
    return np.array([xi.size, xi.sum(), square.sum(), square @ square, cross])
