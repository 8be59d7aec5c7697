"""The costly observables: two-sided bounds on W2 and KL, the energy bracket, the NTK spectrum, plug-in figures.

Each takes all replicates at once and is measured at bound times. Several candidates compete for a bound; each is
judged with its own margin before the best is taken (`estimate`), and its name is recorded. All are bounds for the law
of one particle against p0; the coupled reference, scaled to have law N(0, I) exactly, is their control variate.
"""

import math
from collections.abc import Sequence

import numpy as np

from meanfield import donsker, dual, entropy, noise, ntk, parallel, steps, transport
from meanfield.cloud import Cloud
from meanfield.estimate import Estimate, mean_estimate, student_factor, tightest_lower, tightest_upper
from meanfield.flow import Flow
from meanfield.noise import Stream
from meanfield.observables import (
    Unavailable,
    account_bound,
    coupled,
    cross_product,
    loss_unbiased,
    network,
    observable,
    remembered,
    same_variance,
)
from meanfield.risk import Risk

Array = np.ndarray
Coupled = list[tuple[Array, Array, Array | None]]
PROBES = 100_000
PLUGIN = 1000
NEIGHBOURS = 5
# Largest dimension in which clouds are paired anew: beyond, samples of usual sizes are too thin to gain by it.
REPAIRED = 3
# Bounds that are chosen on one part of the particles and measured on another need a few.
FEWEST = 16


def standardised(clouds: Sequence[Cloud], flow: Flow) -> Coupled:
    """Return (z, reference, weights) in units in which p0 = N(0, I) and the reference's law is p0 exactly.

    The Euler schemes' reference has variance s^2 != std^2 in the trained coordinates; scaling it back keeps it coupled.
    """

    def one(cloud: Cloud) -> tuple[Array, Array, Array | None]:
        reference = coupled(cloud)
        std = cloud.start_std
        z, zbar = cloud.z.astype(np.float64, copy=False), reference.astype(np.float64, copy=False)
        if reference is cloud.z:
            zbar = z
        if std != 1:
            z, zbar = z / std, zbar / std
        if not same_variance(cloud):
            zbar = zbar.copy()
            zbar[:, steps.trained(flow.train)] *= std / np.sqrt(cloud.reference_variance)
        return z, zbar, cloud.weights

    return remembered(clouds[0], "standardised", lambda: [one(cloud) for cloud in clouds], [flow, *clouds[1:]])


def at_start(clouds: Sequence[Cloud]) -> bool:
    """Return whether no particle has left its reference, so that lower bounds are zero without being computed."""
    return all(cloud.z is coupled(cloud) or np.array_equal(cloud.z, coupled(cloud)) for cloud in clouds)


def inputs(clouds: Sequence[Cloud], flow: Flow) -> Array:
    """Return the inputs in the same units: theta . x does not change."""
    return network(flow).inputs * clouds[0].start_std


def probes(clouds: Sequence[Cloud], flow: Flow) -> Array:
    """Return samples of N(0, I), shape (PROBES, D), from their own stream: the same at every record."""
    cloud = clouds[0]
    out = np.empty((PROBES, cloud.dimension))

    def fill(part: slice) -> None:
        out[part] = noise.normals(
            cloud.seed, Stream.PROBE, step=0, first=part.start, count=part.stop - part.start, width=cloud.dimension
        )

    parallel.each_block(fill, PROBES, 4096)
    return out


def features(clouds: Sequence[Cloud], flow: Flow) -> donsker.ProbeFeatures:
    """Return the directions of Donsker and Varadhan's tilts at the probes, made once."""
    cloud = clouds[0]

    def make() -> donsker.ProbeFeatures:
        drawn = probes(clouds, flow)
        # Halves and their halves are taken one after the other: so they hold every second and every fourth draw.
        ordered = np.concatenate([drawn[k::4] for k in (0, 2, 1, 3)])
        return donsker.probe_features(ordered, inputs(clouds, flow), network(flow).unit.h)

    return remembered(flow, f"features {cloud.seed} {cloud.dimension} {cloud.start_std}", make)


@observable("lower bound on W2(p_t, p0)", unit="length", costly=True, pooled=True)
def w2_lower(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return the best of Gelbrich's bound from centred moments (L1) and the Kantorovich dual (L2)."""
    return remembered(clouds[0], "w2_lower", lambda: _w2_lower(clouds, flow), [flow, *clouds[1:]])


def _w2_lower(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    if at_start(clouds):
        return Estimate(0.0, 0.0, "start")
    pairs = standardised(clouds, flow)
    candidates = [transport.gelbrich_lower(pairs, blocks=_blocks(pairs))]
    if _is_network(flow) and clouds[0].m >= FEWEST:
        candidates.append(_dual(clouds, flow, pairs, candidates[0].value))
    best = tightest_lower(candidates, len(clouds))
    return _scaled(transport.root(best, student_factor(len(clouds)), -1), clouds[0].start_std)


def _dual(clouds: Sequence[Cloud], flow: Flow, pairs: Coupled, beat: float) -> Estimate:
    """Return the dual bound on W2^2, in units of std; H is that of the inputs there."""
    risk, cloud = network(flow), clouds[0]
    gram = risk.gram_start(cloud.start_std, "both")
    return dual.dual_lower(pairs, inputs(clouds, flow), risk.unit.h, gram=gram, beat=beat, seed=cloud.seed)


@observable("upper bound on W2(p_t, p0)", unit="length", costly=True, pooled=True)
def w2_upper(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return the best of the coupled distance (U1), the clouds paired anew (U2; D <= 3) and sqrt(2 KL) (U3)."""
    pairs = standardised(clouds, flow)
    candidates = [transport.coupled_upper(pairs)]
    if clouds[0].dimension <= REPAIRED and clouds[0].weights is None and candidates[0].value > 0:
        candidates.append(transport.repaired_upper(pairs))
    try:
        kl = kl_upper(clouds, flow)
        candidates.append(Estimate(2 * kl.value, 2 * kl.se, f"talagrand({kl.source})"))
    except Unavailable:
        pass
    best = tightest_upper(candidates, len(clouds))
    return _scaled(transport.root(best, student_factor(len(clouds)), 1), clouds[0].start_std)


@observable("lower bound on KL(p_t || p0)", unit="nats", costly=True, pooled=True)
def kl_lower(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return the best of Donsker-Varadhan, the Gaussian with the same moments, and W2^2 / 2 (Talagrand)."""
    return remembered(clouds[0], "kl_lower", lambda: _kl_lower(clouds, flow), [flow, *clouds[1:]])


def _kl_lower(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    if at_start(clouds):
        return Estimate(0.0, 0.0, "start")
    pairs = standardised(clouds, flow)
    candidates = [entropy.gaussian_lower(pairs, blocks=_blocks(pairs))]
    w2 = w2_lower(clouds, flow)
    std = clouds[0].start_std
    half = 0.5 * (w2.value / std) ** 2
    candidates.append(Estimate(half, w2.value * w2.se / std**2, f"talagrand({w2.source})"))
    if _is_network(flow) and clouds[0].m >= FEWEST:
        candidates.append(donsker.donsker_varadhan(pairs, features(clouds, flow)))
    best = tightest_lower(candidates, len(clouds))
    return best._replace(value=max(best.value, 0.0))


@observable("upper bound on KL(p_t || p0)", unit="nats", costly=True, pooled=True)
def kl_upper(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return the discrete account where it is kept; else the energy bound (L_0 - L_t) / lam, which is loose."""
    return remembered(clouds[0], "kl_upper", lambda: _kl_upper(clouds, flow), [flow, *clouds[1:]])


def _kl_upper(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    coupled(clouds[0])
    candidates = []
    if flow.accounts(clouds[0]) and not steps.unaccountable(flow.dynamics):
        candidates.append(mean_estimate([account_bound(cloud, flow) for cloud in clouds], "account"))
    if _dissipates(flow):
        candidates.append(_energy_bound(clouds, flow))
    if not candidates:
        raise Unavailable("no upper bound on KL is known here: it needs the account, or the limit law with lam > 0")
    best = tightest_upper(candidates, len(clouds))
    # With Euler's reference the account is a difference of means, which may fall below what no entropy does.
    return best._replace(value=max(best.value, 0.0))


def _dissipates(flow: Flow) -> bool:
    """Return whether the flow is (3.4) with its limit law, along which the free energy L + lam KL falls."""
    objective = flow.objective
    if flow.lam <= 0 or flow.prior is None or flow.method.literal or not _is_network(flow):
        return False
    return objective.full is objective and network(flow).centred


def _energy_bound(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return (L_0 - L_t) / lam: the free energy L + lam KL falls along (3.4)."""
    risk = network(flow)
    start = float(risk.losses(np.zeros(risk.n)).mean())
    loss = _unbiased_loss(clouds, flow)
    return Estimate(max(start - loss.value, 0.0) / flow.lam, loss.se / flow.lam, "energy")


def _unbiased_loss(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return the unbiased loss with a jackknife error over replicates (the plain mean where it has no meaning)."""
    risk = network(flow)
    try:
        value = loss_unbiased(clouds, flow)
    except Unavailable:
        return mean_estimate([risk.value(cloud) for cloud in clouds])
    count = len(clouds)
    residuals = np.array([risk.residual(risk.prediction(cloud)) for cloud in clouds])
    if count < 3:
        return Estimate(value, float(np.abs(residuals[0] ** 2 - residuals[1] ** 2).mean()))
    without = np.array([cross_product(np.delete(residuals, r, axis=0)) for r in range(count)])
    return Estimate(value, float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())))


@observable("lower bound on the free energy Q = L + lam KL", costly=True, pooled=True, zero="L at p0")
def energy_lower(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return L + lam KL_lower."""
    return _energy(clouds, flow, kl_lower(clouds, flow))


@observable("upper bound on the free energy Q = L + lam KL", costly=True, pooled=True, zero="L at p0")
def energy_upper(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return L + lam KL_upper."""
    return _energy(clouds, flow, kl_upper(clouds, flow))


def _energy(clouds: Sequence[Cloud], flow: Flow, kl: Estimate) -> Estimate:
    loss = _unbiased_loss(clouds, flow)
    return Estimate(loss.value + flow.lam * kl.value, float(np.hypot(loss.se, flow.lam * kl.se)), kl.source)


@observable(
    "point estimate of KL by nearest neighbours, debiased by the reference", unit="nats", costly=True, pooled=True
)
def kl_estimate(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return kNN(Z) - kNN(Zbar); shrinks by 5 to 50 % as D goes from 2 to 21, and is no bound."""
    if clouds[0].weights is not None:
        raise Unavailable("the nearest-neighbour estimate takes particles of equal mass")
    if clouds[0].m <= NEIGHBOURS:
        raise Unavailable(f"the nearest-neighbour estimate needs more than {NEIGHBOURS} particles")
    return entropy.knn_estimate(standardised(clouds, flow), k=NEIGHBOURS)


@observable("smallest eigenvalue of H(p_t), by centred measurement around the closed form at p0", costly=True)
def ntk_eigenvalue_min(cloud: Cloud, flow: Flow) -> float:
    """Return lambda_min(H(p0) + mean change); its expectation is at most lambda_min(H(p_t)), the safe side."""
    return _eigenvalues(cloud, flow)[0]


@observable("largest eigenvalue of H(p_t), by centred measurement around the closed form at p0", costly=True)
def ntk_eigenvalue_max(cloud: Cloud, flow: Flow) -> float:
    """Return lambda_max(H(p0) + mean change)."""
    return _eigenvalues(cloud, flow)[1]


def _eigenvalues(cloud: Cloud, flow: Flow) -> tuple[float, float]:
    return remembered(cloud, "eigenvalues", lambda: ntk.eigenvalue_range(centred_gram(cloud, flow)), [flow])


@observable("largest change of an entry of H since p0", costly=True)
def ntk_change_max(cloud: Cloud, flow: Flow) -> float:
    """Return max_ij |H_ij(p_t) - H_ij(p0)|, which Lemma 5.1 bounds by Ac W2^2 + Bc W2."""
    start = network(flow).gram_start(cloud.start_std, flow.train)
    return float(np.abs(centred_gram(cloud, flow) - start).max())


@observable("estimate of the smallest eigenvalue of H(p_t) from above", costly=True, pooled=True)
def ntk_eigenvalue_min_upper(clouds: Sequence[Cloud], flow: Flow) -> Estimate:
    """Return the mean of v' H v over replicates, v the lowest eigenvector of the others' mean H.

    v knows nothing of the replicate that it is tried on, so the expectation is at least lambda_min(H(p_t)).
    """
    if len(clouds) < 2:
        raise Unavailable("an eigenvector from other replicates needs at least two")
    return ntk.between([centred_gram(cloud, flow) for cloud in clouds])[1]


def centred_gram(cloud: Cloud, flow: Flow) -> Array:
    """Return H(p0) + [H of the cloud - H of its reference]; the plain H of the cloud where there is no reference."""
    return remembered(cloud, "gram", lambda: _centred_gram(cloud, flow), [flow])


def _centred_gram(cloud: Cloud, flow: Flow) -> Array:
    risk, train = network(flow), flow.train
    if cloud.z is cloud.reference:
        return gram_of_reference(risk, cloud, train)
    here = risk.measure(cloud, train).gram
    assert here is not None
    if cloud.reference is None:
        return here
    there = risk.measure(cloud.replace(z=cloud.reference, reference=None), train).gram
    assert there is not None
    return gram_of_reference(risk, cloud, train) + (here - there)


def gram_of_reference(risk: Risk, cloud: Cloud, train: str) -> Array:
    """Return H at the law of the reference: N(0, s^2) in the trained coordinates, as at the start in the others."""
    std = float(np.sqrt(cloud.reference_variance))
    if train == "u" or math.isclose(std, cloud.start_std, rel_tol=1e-9):
        # H2 does not look at u; and rounding of s^2, which differs from step to step, is nothing to be remembered.
        return risk.gram_start(cloud.start_std, train)
    gram = risk.gram_start(std, train)
    return gram if train == "both" else gram * (cloud.start_std / std) ** 2


@observable("plug-in W2 of a subsample against fresh samples of p0", unit="length", costly=True, pooled=True,
            zero="what w2_plugin_null reads, not 0")  # fmt: skip
def w2_plugin(clouds: Sequence[Cloud], flow: Flow) -> float:
    """Return the exact W2 between 1,000 particles and 1,000 samples of p0."""
    z = standardised(clouds, flow)[0][0]
    size = min(PLUGIN, len(z))
    return float(np.sqrt(transport.plugin(z[:size], _fresh(clouds, 0, size)))) * clouds[0].start_std


@observable("plug-in W2 of two samples of p0 of the same size", unit="length", costly=True, pooled=True,
            zero="itself: it is the bias of w2_plugin at zero")  # fmt: skip
def w2_plugin_null(clouds: Sequence[Cloud], flow: Flow) -> float:
    """Return the exact W2 between two sets of 1,000 samples of p0."""
    coupled(clouds[0])
    size = min(PLUGIN, clouds[0].m)
    key = f"null {size} {clouds[0].seed} {clouds[0].dimension}"
    value = remembered(
        flow, key, lambda: float(np.sqrt(transport.plugin(_fresh(clouds, 0, size), _fresh(clouds, 1, size))))
    )
    return value * clouds[0].start_std


def _fresh(clouds: Sequence[Cloud], index: int, size: int) -> Array:
    cloud = clouds[0]
    return noise.normals(cloud.seed, Stream.PROBE, step=1, replicate=index, count=size, width=cloud.dimension)


def _blocks(pairs: Coupled) -> int:
    """Return how many groups of a replicate's particles the jackknife deletes: each costs an eigenproblem of size D."""
    return 8 if pairs[0][0].shape[1] <= 128 else 2


def _is_network(flow: Flow) -> bool:
    try:
        network(flow)
    except Unavailable:
        return False
    return True


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return estimate._replace(value=factor * estimate.value, se=factor * estimate.se)
