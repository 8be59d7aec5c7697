"""The cheap observables: by another route, without the matrices that an explicit step does not need, drawn once."""

import itertools
import math

import numpy as np
import pytest
import small

from meanfield import canvas, displacements, entropy, moments, observables
from meanfield.cloud import Cloud, cloud_at
from meanfield.estimate import Estimate
from meanfield.observables import OBSERVABLES, Unavailable, mean_square
from meanfield.risk import Risk


def moved(flow, steps=3, **options):
    cloud = small.cloud(flow, **options)
    for _ in range(steps):
        cloud = flow.step(cloud)
    return cloud


def read(name, cloud, flow):
    return OBSERVABLES[name].function(cloud, flow)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("weighted", [False, True])
def test_mean_squares_are_those_of_numpy(monkeypatch, dtype, weighted):
    """Of 700 particles in several blocks, each of several pieces."""
    monkeypatch.setattr(displacements, "BLOCK", 64)
    flow = small.flow()
    weights = np.linspace(1.0, 3.0, 700) if weighted else None
    cloud = moved(flow, m=700, dtype=dtype, weights=weights)
    z, reference = cloud.z.astype(np.float64), cloud.reference.astype(np.float64)
    mass = np.full(700, 1 / 700) if cloud.weights is None else cloud.weights
    rel = 1e-12 if dtype == "float64" else 1e-5
    assert mean_square(cloud, cloud.z) == pytest.approx(mass @ (z**2).sum(axis=1), rel=rel)
    expected = mass @ ((z - reference) ** 2).sum(axis=1)
    assert mean_square(cloud, cloud.z, cloud.reference) == pytest.approx(expected, rel=max(rel, 1e-12))


@pytest.mark.parametrize("train", ["both", "u", "theta"])
def test_without_an_account_nothing_quadratic_in_the_samples_is_formed(monkeypatch, train):
    """Drift and generator of an explicit flow come from single passes and agree with those of the Gram matrix."""
    bare = small.flow("euler", 0.01, train=train, account=False)
    kept = small.flow("kernel", 0.01, train=train)
    cloud = moved(bare, m=300)
    expected = {name: read(name, cloud, kept) for name in ("loss", "drift_rms", "generator_rms")}
    measure = Risk.measure

    def refusing(self, *arguments, gram=True, **options):
        assert not gram
        return measure(self, *arguments, gram=gram, **options)

    monkeypatch.setattr(Risk, "measure", refusing)
    for name, value in expected.items():
        assert read(name, cloud, bare) == pytest.approx(value, rel=1e-10)


def test_starts_are_drawn_once_a_run_and_again_where_they_are_too_large(monkeypatch):
    flow, draws = small.flow(), []
    origin = Cloud.origin
    monkeypatch.setattr(Cloud, "origin", lambda self: draws.append(self.replicate) or origin(self))
    records = [[moved(flow, replicate=r) for r in (0, 1)] for _ in range(3)]
    replicates, found = records[0], [[read("travelled", cloud, flow) for cloud in record] for record in records]
    assert draws == [0, 1] and found[0] == found[1] == found[2] and found[0][0] != found[0][1]
    expected = ((replicates[1].z - origin(replicates[1])) ** 2).sum(axis=1).mean()
    assert found[0][1] == pytest.approx(expected, rel=1e-12)
    other = moved(flow, seed=5)
    assert read("travelled", other, flow) == pytest.approx(((other.z - origin(other)) ** 2).sum(1).mean(), rel=1e-12)
    monkeypatch.setattr(displacements, "LARGEST_ORIGINS", 0)
    fresh = small.flow()
    assert [read("travelled", moved(flow, replicate=1), fresh) for _ in range(2)] == [found[0][1]] * 2
    assert draws == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_have_the_same_bits_in_one_pass_or_several(weighted):
    flow = small.flow()
    cloud = moved(flow)
    if weighted:
        cloud = cloud.replace(weights=np.arange(1.0, cloud.m + 1) / (cloud.m * (cloud.m + 1) / 2))
    names = ("second_moment", "coupled_distance")
    apart = [read(name, cloud.replace(step=cloud.step), flow) for name in names]
    together = cloud.replace(step=cloud.step)
    read("travelled", together, flow)
    assert [read(name, together, flow) for name in names] == apart


def test_a_product_over_some_particles_is_unbiased():
    """H r over a quarter of the particles, other ones in every step: the four quarters have the whole as their mean."""
    flow = small.flow()
    cloud = moved(flow, m=observables.THINNED * observables.SAMPLED)
    whole = flow.objective.measure(cloud, gram=True).gram @ flow.objective.residual(flow.objective.prediction(cloud))
    quarters = [observables.kernel_residual(cloud.replace(step=k), flow) for k in range(observables.THINNED)]
    np.testing.assert_allclose(np.mean(quarters, axis=0), whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    assert np.ptp(quarters, axis=0).max() > 1e-3 * np.abs(whole).max()


@pytest.mark.parametrize("weighted", [False, True])
def test_particles_that_are_not_alike_are_all_taken(weighted):
    """Four points in turn, or masses in every fourth particle: a quarter of the particles would miss the others."""
    flow = small.flow(centred=False)
    points = np.random.default_rng(0).normal(size=(4, 4))
    m = observables.THINNED * observables.SAMPLED
    if weighted:
        masses = np.where(np.arange(m) % 4 == 1, 1.0, 0.0)
        cloud = small.cloud(flow, m=m, weights=masses).replace(z=np.tile(points, (m // 4, 1)))
        expected = points[1:2]
    else:
        cloud, expected = cloud_at(np.tile(points, (m // 4, 1))), points
    assert read("drift_rms", cloud, flow) == pytest.approx(read("drift_rms", cloud_at(expected), flow), rel=1e-10)


def test_what_is_remembered_of_a_cloud_belongs_to_a_flow_and_its_replicates():
    """Two flows and two sets of replicates that share a cloud read what each reads alone."""
    flows = [small.flow(eta=0.01), small.flow(eta=0.01, seed=1, alpha=20.0, train="theta")]
    clouds = [moved(flows[0], replicate=r) for r in range(3)]
    names = [name for name, o in OBSERVABLES.items() if not o.on_test]

    def readings(flow, some):
        out = {}
        for name in names:
            o = OBSERVABLES[name]
            try:
                found = o.function(some, flow) if o.pooled else [o.function(cloud, flow) for cloud in some]
            except Unavailable:
                continue
            out[name] = np.asarray(found[:2] if isinstance(found, Estimate) else found)
        return out

    for flow, some in itertools.product(flows, (clouds[:2], clouds)):
        fresh = readings(flow, [cloud.replace(step=cloud.step) for cloud in some])
        for name, value in readings(flow, some).items():
            np.testing.assert_allclose(value, fresh[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_cloud_that_was_moved_by_hand_did_not_start_there():
    flow = small.flow()
    cloud = small.cloud(flow)
    other = cloud.replace(z=cloud.z + 1)
    assert read("travelled", other, flow) == pytest.approx(cloud.dimension, rel=1e-12)
    assert read("travelled", cloud, flow) == 0.0


def test_a_start_is_the_first_record_itself():
    flow = small.flow()
    cloud = small.cloud(flow)
    assert read("travelled", cloud, flow) == 0.0
    later = flow.step(cloud)
    assert read("travelled", later, flow) == pytest.approx(((later.z - cloud.z) ** 2).sum(axis=1).mean(), rel=1e-12)


@pytest.mark.parametrize(("columns", "k"), [(40, 3), (700, 5), (2048, 1), (64, 1), (65, 2)])
def test_the_kth_smallest_is_that_of_a_partition(columns, k):
    rows = np.random.default_rng(columns).standard_normal((37, columns)).round(1)  # with ties
    rows[3] = 0.0
    np.testing.assert_array_equal(entropy._kth_smallest(rows, k), np.partition(rows, k, axis=1)[:, k])


def test_each_keeps_the_order_and_passes_errors_on():
    assert moments.each(lambda k: k * k, range(7)) == [k * k for k in range(7)]
    with pytest.raises(ZeroDivisionError):
        moments.each(lambda k: 1 // k, [2, 1, 0])


def test_embedded_fonts_are_lean_and_whole(tmp_path):
    """Subsets of TrueType, as journals ask; the list of tables that others see is as before."""
    from fontTools.subset import Options

    before = list(Options().drop_tables)
    figure, (ax,) = canvas.sheet()
    ax.set_title("W₂(pₜ, p₀) and α first")
    ax.plot([0, 1], [0, math.pi])
    pdf = canvas.save(figure, tmp_path / "one")[1].read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"+DejaVuSans" in pdf
    assert Options().drop_tables == before
