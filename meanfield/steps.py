"""One step of the dynamics, kick - channel - kick, with the account that rides along.

Pure functions of a `Dynamics` (what `flow.Flow` resolves to), a cloud and eta; see `schemes` for the parts of each
scheme and `account` for what is kept. Nothing here chooses eta: `flow` does.
"""

import math
from typing import NamedTuple

import numpy as np

from meanfield import parallel
from meanfield.account import Account, Channel, KickSums, injective_height
from meanfield.backends import Motion, Moved
from meanfield.cloud import Cloud, cloud_noise
from meanfield.entropy import stein_fisher
from meanfield.errors import DivergedError, InputError
from meanfield.minibatch import Minibatch
from meanfield.noise import Stream
from meanfield.objectives import Objective
from meanfield.risk import Risk
from meanfield.schemes import Plan, Scheme, mean_residual, plan

Array = np.ndarray
# Above this many samples the Stein bound's n x n solve costs more than it tightens the account.
LARGEST_STEIN = 2000
# Below this length of the channel, in units of its relaxation time, the curvature of Stein's field is not looked at:
# the account would gain less than this fraction of what the channel takes away.
SHORT = 1e-3
# Eigenvalues of the Gram matrix below this share of the largest are rounding, as in `entropy.stein_fisher`.
CUTOFF = 1e-10
# Numbers looked at together when a cloud is checked: a block of them stays in a cache.
BLOCK = 1 << 18
TOGETHER = 1 << 11  # particles


class Dynamics(NamedTuple):
    """All that a step needs beside the cloud: `decay` is 1 / std^2 of the prior, 0 without one."""

    objective: Objective
    scheme: Scheme
    lam: float
    decay: float
    train: str
    account: bool


def step(dynamics: Dynamics, cloud: Cloud, eta: float, *, donated: bool = False) -> Cloud:
    """Return the cloud after one step of length eta.

    Parameters
    ----------
    donated : bool
        Whether the cloud's own arrays may be written over, where the step is one that can.

    Raises
    ------
    DivergedError
        If a particle is not finite afterwards.
    """
    if dynamics.account or dynamics.scheme.midpoint:
        risk = None
    else:
        risk = dynamics.objective.plain(cloud)
    if risk is not None and dynamics.scheme.explicit:
        done = _in_one_pass(dynamics, risk, cloud, eta, donated)
    else:
        with parallel.single_threaded_blas():
            done = (
                _in_parts(dynamics, cloud, eta) if risk is None else _in_one_pass(dynamics, risk, cloud, eta, donated)
            )
    if not finite(done.z):
        raise DivergedError(
            f"particles are not finite after step {done.step} (time {done.time:.6g}, eta {eta:.3g}); take a smaller eta"
        )
    return done


def finite(z: Array) -> bool:
    """Return whether all numbers of an array are finite (and their sums are); no array is made for it."""
    with np.errstate(all="ignore"):
        rows = 1 + BLOCK // z.shape[1]
        return bool(np.isfinite(float(parallel.sum_groups(lambda part: z[part].sum(), len(z), rows))))


def _in_one_pass(dynamics: Dynamics, risk: Risk, cloud: Cloud, eta: float, donated: bool) -> Cloud:
    """Return the cloud after a step without account, which moves each block of particles through all its parts."""
    parts = plan(dynamics.scheme, eta, dynamics.lam, dynamics.decay, cloud.m, cloud.reference_variance)
    residual = None if dynamics.scheme.explicit else drive(dynamics, cloud, eta)
    channel = parts.channel
    motion = Motion(parts.before, channel.decay, channel.sigma, parts.after, cloud.seed, cloud.step, cloud.replicate)
    out = None
    if donated and cloud.start is not cloud.z:
        # A fresh cloud is its own reference; the reference is moved in place and the particles leave it.
        out = (np.empty_like(cloud.z) if cloud.z is cloud.reference else cloud.z, cloud.reference)
    z, reference = risk.move(cloud, residual, motion, dynamics.train, out)
    return cloud.replace(
        z=z, reference=reference, reference_variance=channel.variance_after,
        step=cloud.step + 1, time=cloud.time + eta, eta=eta,
    )  # fmt: skip


def _in_parts(dynamics: Dynamics, cloud: Cloud, eta: float) -> Cloud:
    """Return the cloud after a step made of kick, channel and kick one after the other."""
    parts = plan(dynamics.scheme, eta, dynamics.lam, dynamics.decay, cloud.m, cloud.reference_variance)
    residual = drive(dynamics, cloud, eta)
    start = opened(dynamics, cloud) if dynamics.account else cloud
    moved = kicked(dynamics, start, residual, parts.before)
    moved = spread(dynamics, moved, parts, start)
    done = moved.replace(step=cloud.step + 1, time=cloud.time + eta, eta=eta)
    if parts.after:
        # Randomness of a batch belongs to the step that is being made, hence the kick before the counter moves.
        z = kicked(dynamics, moved, residual, parts.after)
        done = done.replace(z=z.z, account=z.account)
    elif dynamics.objective.network is not None:
        dynamics.objective.network.remember(done, moved)
    return done


def drive(dynamics: Dynamics, cloud: Cloud, eta: float) -> Array | None:
    """Return the residual that drives the step's kicks: J for the kernel schemes, r for the explicit ones."""
    objective, train = dynamics.objective, dynamics.train
    if isinstance(objective, Minibatch) and not dynamics.scheme.explicit:
        raise InputError(f"scheme '{dynamics.scheme.name}' would solve each batch to its end; take 'euler'")
    if isinstance(objective, Minibatch):
        return objective.residual(cloud) if dynamics.account else None
    if dynamics.scheme.explicit:
        if objective.network is None:
            return None
        if dynamics.account:
            objective.network.measure(cloud, train)
        return objective.network.residual(objective.network.prediction(cloud))
    tangent = objective.tangent(cloud, train, dynamics.decay)
    if tangent is None:
        raise InputError(
            f"scheme '{dynamics.scheme.name}' needs an objective with a tangent (a network's risk); take 'exponential'"
        )
    if dynamics.scheme.midpoint:
        return _midpoint_drive(dynamics, cloud, eta)
    return frozen_kernel(dynamics, cloud, cloud, eta)


def frozen_kernel(dynamics: Dynamics, cloud: Cloud, kernel: Cloud, eta: float) -> Array:
    """Return the mean residual over eta from the residual of `cloud` with H and e of `kernel`."""
    objective = dynamics.objective
    residual = objective.tangent(cloud, dynamics.train, dynamics.decay)[0]  # type: ignore[index]
    _, gram, e = objective.tangent(kernel, dynamics.train, dynamics.decay)  # type: ignore[misc]
    curvature = objective.curvature(objective.prediction(cloud))  # type: ignore[attr-defined]
    spectrum = objective.spectrum(kernel, dynamics.train, curvature)  # type: ignore[attr-defined]
    alpha, kappa = objective.alpha, objective.kappa  # type: ignore[attr-defined]
    return mean_residual(spectrum, residual, curvature, alpha * dynamics.lam * e, kappa, eta)


def _midpoint_drive(dynamics: Dynamics, cloud: Cloud, eta: float) -> Array:
    """Return J with H and e from the middle of the step, reached by a half step with the same noise.

    Given the whole step's noise N, that of its first half is c / (1 + c^2) N + sigma / sqrt(1 + c^2) xi', with c and
    sigma those of half a step: so all exact schemes share their noise on a common grid.
    """
    whole = plan(dynamics.scheme, eta, dynamics.lam, dynamics.decay, cloud.m, cloud.reference_variance).channel
    half = plan(dynamics.scheme, eta / 2, dynamics.lam, dynamics.decay, cloud.m, cloud.reference_variance)
    c, sigma = half.channel.decay, half.channel.sigma
    push = frozen_kernel(dynamics, cloud, cloud, eta / 2)
    rate = half.decay_time
    length = 0.5 * eta * (-math.expm1(-rate) / rate if rate else 1.0)
    z = dynamics.objective.kick(cloud, push, length / c, dynamics.train).z
    blocks = -(-cloud.dimension // (2 if cloud.z.dtype == np.float64 else 4))
    shared = whole.sigma * c / (1 + c * c)
    noise = shared * cloud_noise(cloud, Stream.DIFFUSION, step=cloud.step)
    noise += sigma / math.sqrt(1 + c * c) * cloud_noise(cloud, Stream.DIFFUSION, step=cloud.step, first_block=blocks)
    columns = trained(dynamics.train)
    middle = cloud.replace(
        z=_linear(z, c, noise, columns),
        reference=None if cloud.reference is None else _linear(cloud.reference, c, noise, columns),
    )
    return frozen_kernel(dynamics, cloud, middle, eta)


def trained(train: str) -> slice:
    """Return the columns of a particle that move."""
    return {"both": slice(None), "u": slice(-1, None), "theta": slice(None, -1)}[train]


def _linear(z: Array, decay: float, noise: Array, columns: slice) -> Array:
    if columns == slice(None):
        out = z.dtype.type(decay) * z
        out += noise
        return out
    out = z.copy()
    out[:, columns] = z.dtype.type(decay) * z[:, columns] + noise[:, columns]
    return out


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


def kicked(dynamics: Dynamics, cloud: Cloud, residual: Array | None, eps: float) -> Cloud:
    """Return the cloud after a kick of length eps, with its account."""
    if eps == 0:
        return cloud
    options: dict = {"account": True} if dynamics.account else {}
    if dynamics.scheme.midpoint:
        options |= {"midpoint": True, "variance": cloud.reference_variance}
    moved = dynamics.objective.kick(cloud, residual, eps, dynamics.train, **options)
    done = cloud.replace(z=moved.z)
    if not dynamics.account or residual is None:
        return done
    return done.replace(account=_account_of_kick(dynamics, cloud, moved, residual, eps))


def _account_of_kick(dynamics: Dynamics, cloud: Cloud, moved: Moved, residual: Array, eps: float) -> Account:
    risk = dynamics.objective.network
    assert risk is not None and moved.push is not None and moved.push2 is not None and moved.push3 is not None
    c, h = risk.coefficients(residual), risk.unit.h
    height = injective_height(c, eps, risk.inputs, h.suprema, dynamics.train, midpoint=dynamics.scheme.midpoint)
    scale = math.sqrt(2 * cloud.reference_variance)
    sums = KickSums(
        speed=moved.speed,
        pull=moved.pull,
        remainder=moved.remainder,
        push=risk.alpha * moved.push,
        push2=risk.alpha * moved.push2,
        push3=risk.alpha * moved.push3,
        injective=float(np.abs(cloud.z[:, -1]).max()) < height,
        mass_outside=math.erfc(height / scale) if math.isfinite(height) else 0.0,
    )
    e = centred_generator(dynamics, cloud)
    return cloud.account.kicked(eps, sums, -float(c @ e), cloud.reference_variance)


def centred_generator(dynamics: Dynamics, cloud: Cloud, variance: float | None = None) -> Array:
    """Return the centred mean of A_s psi_i = Laplace psi_i - z . grad psi_i / s^2, zero under the reference's law."""
    assert dynamics.objective.network is not None
    m = dynamics.objective.network.measure(cloud, dynamics.train, variance=variance)
    s2 = cloud.reference_variance
    return (m.laplacian - m.laplacian_reference) - (m.pull - m.pull_reference) / s2


def spread(dynamics: Dynamics, cloud: Cloud, parts: Plan, start: Cloud) -> Cloud:
    """Return the cloud after the channel of a step, its reference moved by the same noise, with its account.

    `start` is the cloud before the step's first kick, where means have been measured.
    """
    done = _diffused(dynamics, cloud, parts.channel).replace(reference_variance=parts.channel.variance_after)
    if not dynamics.account:
        return done
    account = _account_of_channel(dynamics, cloud, done, parts)
    account = _account_of_means(dynamics, account, start, cloud, done, parts)
    final = done.replace(account=account)
    assert dynamics.objective.network is not None
    dynamics.objective.network.remember(final, done)
    return final


def _diffused(dynamics: Dynamics, cloud: Cloud, channel: Channel) -> Cloud:
    """Return cloud and reference after z <- c z + sigma xi in the coordinates that are trained."""
    columns, noise = trained(dynamics.train), np.zeros((1, cloud.dimension), cloud.z.dtype)
    if channel.sigma:
        noise = cloud_noise(cloud, Stream.DIFFUSION, step=cloud.step)
        noise = cloud.z.dtype.type(channel.sigma) * noise
    far = None if cloud.reference is None else _linear(cloud.reference, channel.decay, noise, columns)
    return cloud.replace(z=_linear(cloud.z, channel.decay, noise, columns), reference=far)


def _account_of_channel(dynamics: Dynamics, before: Cloud, after: Cloud, parts: Plan) -> Account:
    risk = dynamics.objective.network
    assert risk is not None
    account, channel = before.account, parts.channel
    variance = after.reference_variance if risk.n <= LARGEST_STEIN else None
    late = risk.measure(after, dynamics.train, variance=variance)
    if variance is None or not math.isfinite(account.kl) or not channel.sigma:
        return account.spread(channel, 0.0)
    e = centred_generator(dynamics, after, variance)
    fisher = stein_fisher(e, late.gram, late.covariance)
    if fisher <= 0 or channel.time < SHORT:
        return account.spread(channel, fisher)
    return account.spread(channel, fisher, _bends(dynamics, after, e))


def _bends(dynamics: Dynamics, cloud: Cloud, e: Array) -> tuple[float, float]:
    """Return E|grad^2 phi|^2 and E|grad^3 phi|^2 over E|grad phi|^2, phi = c . psi Stein's field, c about H^-1 e.

    In every eigendirection of H, e is shrunk by the share of its square that is sampling noise.
    """
    risk = dynamics.objective.network
    assert risk is not None
    measured = risk.measure(cloud, dynamics.train, variance=cloud.reference_variance)
    values, vectors = np.linalg.eigh(measured.gram)
    along = vectors.T @ e
    noise = np.einsum("ik,ik->k", vectors, measured.covariance @ vectors)
    kept = (values > CUTOFF * values[-1]) & (along * along > noise)
    c = vectors[:, kept] @ ((along[kept] - noise[kept] / along[kept]) / values[kept])
    one, two, three = risk.engine(cloud.m).roughness(
        risk.unit.h, risk.inputs, cloud.z, cloud.weights, c, dynamics.train
    )
    return (two / one, three / one) if one > 0 else (0.0, 0.0)


def _account_of_means(
    dynamics: Dynamics, account: Account, start: Cloud, before: Cloud, after: Cloud, parts: Plan
) -> Account:
    """Return the account with what the channel did to predictions, and with the increments of the reference.

    `start` is the cloud before the step's first kick, `before` and `after` are those at the ends of the channel.
    """
    risk, train = dynamics.objective.network, dynamics.train
    assert risk is not None
    early, late = risk.measure(start, train), risk.measure(after, train)
    if before.z is not start.z:
        # The kick left the reference where it was measured.
        here = risk.engine(before.m).measure(
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

    They are taken from the states and not from the draws, so that a wrong noise level shows.
    """
    if before.reference is None or after.reference is None or not channel.sigma:
        return np.zeros(5)
    columns, far, scale = trained(train), (before.reference, after.reference), math.sqrt(before.reference_variance)

    def part_sum(part: slice) -> Array:
        old, new = (reference[part, columns].astype(np.float64, copy=False) for reference in far)
        xi = ((new - channel.decay * old) / channel.sigma).ravel()
        square = xi * xi
        return np.array([xi.size, xi.sum(), square.sum(), square @ square, xi @ old.ravel() / scale])

    return np.asarray(parallel.sum_blocks(part_sum, before.m, TOGETHER))
