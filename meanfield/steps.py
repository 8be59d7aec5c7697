"""One step of the dynamics, kick - channel - kick, with the account that rides along.

Pure functions of a `Dynamics` (what `flow.Flow` resolves to), a cloud and eta; see `schemes` for the parts of each
scheme and `account` for what is kept. Nothing here chooses eta: `flow` does.
"""

import math

import numpy as np

from meanfield import accounting, brownian, mapped, parallel
from meanfield.account import Channel
from meanfield.accounting import Dynamics as Dynamics
from meanfield.accounting import smooth as smooth
from meanfield.accounting import trained as trained
from meanfield.accounting import unaccountable as unaccountable
from meanfield.backends import Motion
from meanfield.cloud import Cloud, Kernel, cloud_noise, demand_values, everywhere, finite
from meanfield.errors import DivergedError, InputError
from meanfield.minibatch import Minibatch
from meanfield.noise import Stream
from meanfield.risk import Risk
from meanfield.schemes import Plan, mean_residual, plan

Array = np.ndarray


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
    if dynamics.account or dynamics.scheme.midpoint or dynamics.leaf:
        risk = None
    else:
        risk = dynamics.objective.plain(cloud)
    seen: list[bool] = []
    if risk is not None and dynamics.scheme.explicit:
        done = _in_one_pass(dynamics, risk, cloud, eta, donated, seen)
    else:
        with parallel.single_threaded_blas():
            done = (
                _in_parts(dynamics, cloud, eta)
                if risk is None
                else _in_one_pass(dynamics, risk, cloud, eta, donated, seen)
            )
    if not everywhere(all(seen) if seen else finite(done.z), done.share):
        raise DivergedError(
            f"particles are not finite after step {done.step} (time {done.time:.6g}, eta {eta:.3g}); take a smaller eta"
        )
    return done if done.share is None else _agreed(dynamics, done)


def _agreed(dynamics: Dynamics, cloud: Cloud) -> Cloud:
    """Return a cloud whose account and the age of whose kernel are those of rank 0, so that all decide alike."""
    assert cloud.share is not None and dynamics.objective.network is not None
    kernel = cloud.kernel
    account, age = cloud.share.agreed((cloud.account, 0.0 if kernel is None else kernel.age))
    done = cloud.replace(account=account, kernel=None if kernel is None else kernel._replace(age=age))
    dynamics.objective.network.remember(done, cloud)
    return done


def _in_one_pass(dynamics: Dynamics, risk: Risk, cloud: Cloud, eta: float, donated: bool, seen: list[bool]) -> Cloud:
    """Return the cloud after a step without account, which moves each block of particles through all its parts.

    `seen` is given whether what was written is finite, where the backend tells (see `Motion`).
    """
    parts = plan(dynamics.scheme, eta, dynamics.lam, dynamics.decay, cloud.m, cloud.reference_variance)
    residual, kernel = None, cloud.kernel
    if not dynamics.scheme.explicit:
        residual = drive(dynamics, cloud, eta)
        assert residual is not None
        kernel = _carried(dynamics, risk, cloud, residual, eta, parts.decay_time)
    channel = parts.channel
    names = (cloud.seed, cloud.step, cloud.replicate, cloud.first)
    motion = Motion(parts.before, channel.decay, channel.sigma, parts.after, *names, seen.append)
    out = None
    if donated and cloud.start is not cloud.z:
        # A fresh cloud is its own reference; the reference is moved in place and the particles leave it.
        out = (mapped.like(cloud.z) if cloud.z is cloud.reference else cloud.z, cloud.reference)
    z, reference = risk.move(cloud, residual, motion, dynamics.train, out)
    return cloud.replace(
        z=z, reference=reference, reference_variance=channel.variance_after,
        step=cloud.step + 1, time=cloud.time + eta, eta=eta, kernel=kernel,
    )  # fmt: skip


def _carried(
    dynamics: Dynamics, risk: Risk, cloud: Cloud, residual: Array, eta: float, decay_time: float
) -> Kernel | None:
    """Return the Gram matrix that the next cloud carries: the one that this step used, older by the step."""
    gram = risk.gram(cloud, dynamics.train)
    kernel = risk.held(cloud, dynamics.train) or Kernel(gram, None, 0.0, risk.name(dynamics.train))
    c = risk.coefficients(residual)
    return kernel.older(
        (eta * math.sqrt(max(float(c @ gram @ c), 0.0)) + decay_time) * math.sqrt(dynamics.decay or 1.0)
    )


def _in_parts(dynamics: Dynamics, cloud: Cloud, eta: float) -> Cloud:
    """Return the cloud after a step made of kick, channel and kick one after the other."""
    parts = plan(dynamics.scheme, eta, dynamics.lam, dynamics.decay, cloud.m, cloud.reference_variance)
    network = dynamics.objective.network
    residual = drive(dynamics, cloud, eta)
    start = accounting.opened(dynamics, cloud) if dynamics.account else cloud
    moved = kicked(dynamics, start, residual, parts.before)
    moved = spread(dynamics, moved, parts, start, eta)
    done = moved.replace(step=cloud.step + 1, time=cloud.time + eta, eta=eta)
    if parts.after:
        # Randomness of a batch belongs to the step that is being made, hence the kick before the counter moves.
        z = kicked(dynamics, moved, residual, parts.after)
        done = done.replace(z=z.z, account=z.account, kernel=z.kernel)
        if network is not None:
            network.remember_reference(done, moved, dynamics.train)
    elif network is not None:
        network.remember(done, moved)
    return done


def drive(dynamics: Dynamics, cloud: Cloud, eta: float) -> Array | None:
    """Return the residual that drives the step's kicks: J for the kernel schemes, r for the explicit ones.

    Raises
    ------
    DivergedError
        If it is not finite.
    """
    objective, train = dynamics.objective, dynamics.train
    if isinstance(objective, Minibatch):
        return _finite(objective.residual(cloud), cloud) if dynamics.account else None
    if dynamics.scheme.explicit:
        if objective.network is None:
            return None
        if dynamics.account:
            objective.network.measure(cloud, train, gram=False)
        return _finite(objective.network.residual(objective.network.prediction(cloud)), cloud)
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
    mean = _finite(mean_residual(spectrum, residual, curvature, alpha * dynamics.lam * e, kappa, eta), cloud)
    return mean if cloud.share is None else cloud.share.agreed(mean)


def _finite(residual: Array, cloud: Cloud) -> Array:
    return demand_values(residual, f"the residual at step {cloud.step}")


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
    noise = np.zeros_like(cloud.z)
    if sigma:
        noise = whole.sigma * c / (1 + c * c) * _normals(dynamics, cloud, eta)
        noise += sigma / math.sqrt(1 + c * c) * _bridge(dynamics, cloud, eta)
    columns = trained(dynamics.train)
    middle = cloud.replace(
        z=_linear(z, c, noise, columns),
        reference=None if cloud.reference is None else _linear(cloud.reference, c, noise, columns),
    )
    return frozen_kernel(dynamics, cloud, middle, eta)


def _normals(dynamics: Dynamics, cloud: Cloud, eta: float) -> Array:
    """Return the standard normals of a whole step, shape (m, D)."""
    if dynamics.leaf:
        return brownian.whole(cloud, eta, dynamics.leaf, dynamics.lam * dynamics.decay)
    return cloud_noise(cloud, Stream.DIFFUSION, step=cloud.step)


def _bridge(dynamics: Dynamics, cloud: Cloud, eta: float) -> Array:
    """Return the normals, independent of those of the whole step, that say how its noise is split at its middle."""
    if dynamics.leaf:
        return brownian.bridge(cloud, eta, dynamics.leaf, dynamics.lam * dynamics.decay)
    blocks = -(-cloud.dimension // (2 if cloud.z.dtype == np.float64 else 4))
    return cloud_noise(cloud, Stream.DIFFUSION, step=cloud.step, first_block=blocks)


def _linear(z: Array, decay: float, noise: Array, columns: slice) -> Array:
    if columns == slice(None):
        out = z.dtype.type(decay) * z
        out += noise
        return out
    out = z.copy()
    out[:, columns] = z.dtype.type(decay) * z[:, columns] + noise[:, columns]
    return out


def kicked(dynamics: Dynamics, cloud: Cloud, residual: Array | None, eps: float) -> Cloud:
    """Return the cloud after a kick of length eps, with its account."""
    if eps == 0:
        return cloud
    options: dict = {"account": True} if dynamics.account else {}
    if dynamics.scheme.midpoint:
        options |= {"midpoint": True, "variance": cloud.reference_variance}
    moved = dynamics.objective.kick(cloud, residual, eps, dynamics.train, **options)
    done = cloud.replace(z=moved.z, kernel=cloud.kernel)
    if not dynamics.account or residual is None:
        return done
    kernel = (
        None if cloud.kernel is None else cloud.kernel.older(eps * math.sqrt(moved.speed * (dynamics.decay or 1.0)))
    )
    return done.replace(account=accounting.of_kick(dynamics, cloud, moved, residual, eps), kernel=kernel)


def spread(dynamics: Dynamics, cloud: Cloud, parts: Plan, start: Cloud, eta: float) -> Cloud:
    """Return the cloud after the channel of a step, its reference moved by the same noise, with its account.

    `start` is the cloud before the step's first kick, where means have been measured.
    """
    done = _diffused(dynamics, cloud, parts.channel, eta).replace(reference_variance=parts.channel.variance_after)
    if not dynamics.account:
        return done
    done = accounting.with_kernel(dynamics, done, parts.decay_time)
    account = accounting.of_channel(dynamics, cloud, done, parts)
    account = accounting.of_means(dynamics, account, start, cloud, done, parts)
    final = done.replace(account=account)
    assert dynamics.objective.network is not None
    dynamics.objective.network.remember(final, done)
    return final


def _diffused(dynamics: Dynamics, cloud: Cloud, channel: Channel, eta: float) -> Cloud:
    """Return cloud and reference after z <- c z + sigma xi in the coordinates that are trained."""
    columns, noise = trained(dynamics.train), np.zeros((1, cloud.dimension), cloud.z.dtype)
    if channel.sigma:
        noise = cloud.z.dtype.type(channel.sigma) * _normals(dynamics, cloud, eta)
    far = None if cloud.reference is None else _linear(cloud.reference, channel.decay, noise, columns)
    z = _linear(cloud.z, channel.decay, noise, columns)
    return cloud.replace(z=z, reference=far, kernel=cloud.kernel)
