"""The CUDA backend against the reference: its kernels run on the CPU, its array code on strict arrays. Cost: 12 s.

Without a GPU the kernels run by `stand_in`, whose arrays refuse what CuPy's refuse; where there is a GPU every test of
the contract runs there too. What the compiler for GPUs says of the kernels is in test_nvrtc.
"""

import importlib.util
import itertools
from typing import NamedTuple

import numpy as np
import pytest
from stand_in import EACH, KINDS, D, DeviceArray, Module, Processor

from meanfield import noise
from meanfield.backends import Motion, Moved, cuda, cuda_source, cuda_steps, reference
from meanfield.backends.cuda_source import instance
from meanfield.errors import InputError
from meanfield.noise import Stream
from meanfield.units import ACTIVATIONS, Activation

TRAIN = ("both", "u", "theta")
WIDE = 40  # inputs of the kernels around products of matrices; D of the fused ones

OTHER_D = [instance(k, kind, "tanh", d) for k in ("predict", "move") for kind in KINDS for d in (1, 7)]


def arctan(w):
    c = 1 / (1 + w * w)
    return np.arctan(w), c, -2 * w * c**2, (6 * w * w - 2) * c**3


ARCTAN = Activation("arctan", arctan)
all_kinds = pytest.mark.parametrize("kind", KINDS, ids=str)
all_activations = pytest.mark.parametrize("h", [*ACTIVATIONS.values(), ARCTAN], ids=lambda h: h.name)
all_train = pytest.mark.parametrize("train", TRAIN)


class Rig(NamedTuple):
    """An array module, its kernels, and the backend made of them."""

    xp: object
    start: object
    backend: object

    def up(self, *arrays):
        return [None if a is None else self.backend.asarray(a) for a in arrays]

    def down(self, arrays):
        return [None if a is None else self.backend.asnumpy(a) for a in arrays]

    def steps(self, **options):
        return cuda_steps.Steps(self.xp, self.start, **options)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return Processor([*EACH, *OTHER_D], tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["processor", "gpu"])
def rig(request):
    if request.param == "processor":
        xp, start = Module(), request.getfixturevalue("processor")
        start.backwards, start.started = False, []
    else:
        if cuda.unavailable():
            pytest.skip(cuda.unavailable())
        import cupy as xp

        start = cuda_source.launch
    return Rig(xp, start, cuda.make(xp, start))


def problem(kind, m=101, n=37, d=D, seed=0):
    """Inputs, particles, their reference, weights and coefficients."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) / np.sqrt(d)
    z, zbar = (rng.normal(size=(m, d + 1)).astype(kind) for _ in range(2))
    weights = rng.uniform(0.1, 1.0, size=m)
    return x, z, zbar, weights / weights.sum(), rng.normal(size=n) / n


def assert_near(got, wanted, kind, size=None):
    """Equal up to rounding, measured in the largest entry or in the size of what was added up."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(np.isfinite(got), finite)
    size = size or np.max(np.abs(wanted[finite]), initial=0.0)
    error = np.max(np.abs(got[finite] - wanted[finite]), initial=0.0)
    assert error <= (1e-12 if kind == np.float64 else 1e-5) * size


# --- noise


@all_kinds
def test_noise_has_the_bits_of_the_definition(rig, kind):
    """Random and extreme keys and counters, all streams, all positions within a block of coordinates."""
    rng = np.random.default_rng(1)
    top = (1 << 32) - 1
    seeds = [0, 1, (1 << 64) - 1, 1 << 32, *(int(s) for s in rng.integers(1 << 63, size=12))]
    for seed, stream, width in zip(seeds, itertools.cycle(Stream), itertools.cycle(range(1, 10)), strict=False):
        step, replicate = (int(rng.choice([0, limit, rng.integers(limit)])) for limit in (top, (1 << 24) - 1))
        first, block = (int(rng.choice([0, top - 300, rng.integers(top - 300)])) for _ in range(2))
        names = {"step": step, "replicate": replicate, "first": first, "first_block": block}
        wanted = noise.normals(seed, stream, **names, count=301, width=width, dtype=kind)
        got = rig.steps().normals(seed, stream, **names, count=301, width=width, dtype=kind)
        np.testing.assert_array_equal(rig.backend.asnumpy(got).view(np.uint8), wanted.view(np.uint8))


# --- activations


@all_kinds
@pytest.mark.parametrize("h", ACTIVATIONS.values(), ids=lambda h: h.name)
def test_jets_agree_with_the_records_also_far_out(rig, h, kind):
    far = [0.0, -0.0, 1e-30, 39.9, 40.1, -50.0, 300.0, -1e4]
    w = np.concatenate([np.linspace(-9, 9, 1001), far]).astype(kind)
    for got, wanted in zip(rig.down(rig.steps().on_device(h).jet(*rig.up(w))), h.jet(w), strict=True):
        assert got.dtype == kind
        assert_near(got, wanted, kind)


@pytest.mark.parametrize("h", ACTIVATIONS.values(), ids=lambda h: h.name)
def test_a_particle_that_is_not_a_number_shows(rig, h):
    """Divergence is found by what is not finite, so no kernel may turn NaN into a number."""
    x, z, _, _, c = problem(np.float64)
    z[5] = np.nan
    (z,) = rig.up(z)
    assert np.isnan(rig.backend.predict(h, x, z)).all()
    moved = rig.backend.asnumpy(rig.backend.move(h, x, z, None, c, Motion(0.1, 0.9, 0.0, 0.0, 0, 0, 0))[0])
    assert np.isnan(moved[5]).all() and np.isfinite(np.delete(moved, 5, axis=0)).all()


# --- predict and move


SHAPES = [(1, 1, D), (31, 4, D), (33, 37, D), (300, 131, D), (70, 37, 1), (70, 37, 7), (45, 37, WIDE), (1, 1, WIDE)]
MOTIONS = [
    Motion(0.3, 0.9, 0.2, 0.0, 2**40 + 3, 7, 2),
    Motion(0.2, 0.9, 0.2, 0.1, 5, 2**32 - 1, 0),
    Motion(0.0, 0.8, 0.1, 0.2, 5, 0, 0),
    Motion(0.3, 1.0, 0.0, 0.0, 5, 1, 0),
]


@all_kinds
@all_activations
@pytest.mark.parametrize("d", [D, WIDE])
def test_predict_and_move_with_every_activation(rig, h, kind, d):
    x, z, zbar, weights, c = problem(kind, d=d)
    device = rig.up(z, zbar)
    assert_near(rig.backend.predict(h, x, device[0], weights), reference.predict(h, x, z, weights), kind)
    for train in TRAIN:
        wanted = reference.move(h, x, z, zbar, c, MOTIONS[1], train)
        there, far = rig.down(rig.backend.move(h, x, *device, c, MOTIONS[1], train))
        assert_near(there, wanted[0], kind)
        np.testing.assert_array_equal(far, wanted[1])
        np.testing.assert_array_equal(rig.backend.asnumpy(device[0]), z)


@all_kinds
@pytest.mark.parametrize("m, n, d", SHAPES)
def test_sizes_that_fill_no_block(rig, m, n, d, kind):
    h = ACTIVATIONS["tanh"]
    x, z, zbar, weights, c = problem(kind, m, n, d)
    device = rig.up(z, zbar)
    for masses in (None, weights):
        assert_near(rig.backend.predict(h, x, device[0], masses), reference.predict(h, x, z, masses), kind)
    for motion, shadow in itertools.product(MOTIONS, (True, False)):
        wanted = reference.move(h, x, z, zbar if shadow else None, c, motion)
        got = rig.down(rig.backend.move(h, x, device[0], device[1] if shadow else None, c, motion))
        assert_near(got[0], wanted[0], kind)
        assert got[1] is None if not shadow else np.array_equal(got[1], wanted[1])


@all_kinds
@all_train
def test_coordinates_that_are_frozen_keep_their_bits(rig, kind, train):
    frozen = {"both": slice(0), "u": slice(-1), "theta": slice(-1, None)}[train]
    for d in (D, WIDE):
        x, z, zbar, _, c = problem(kind, d=d)
        moved = rig.down(rig.backend.move(ACTIVATIONS["erf"], x, *rig.up(z, zbar), c, MOTIONS[1], train))
        for after, before in zip(moved, (z, zbar), strict=True):
            np.testing.assert_array_equal(after[:, frozen], before[:, frozen])


@pytest.mark.parametrize("shape", [(32, 1), (32, 4), (32, 8), (64, 1), (128, 1)])
def test_every_shape_of_blocks_gives_the_same_step(rig, shape, monkeypatch):
    monkeypatch.setattr(cuda_steps, "shape_of_blocks", lambda *_: shape)
    h, kind = ACTIVATIONS["tanh"], np.dtype(np.float64)
    x, z, zbar, _, c = problem(kind, m=200)
    there, far = rig.down(rig.backend.move(h, x, *rig.up(z, zbar), c, MOTIONS[1]))
    wanted = reference.move(h, x, z, zbar, c, MOTIONS[1])
    assert_near(there, wanted[0], kind)
    np.testing.assert_array_equal(far, wanted[1])


@all_kinds
@pytest.mark.parametrize("d", [D, WIDE])
def test_rows_of_partial_sums_of_any_length(rig, d, kind, monkeypatch):
    """One row walks over many tiles, rows of a few tiles, a row a tile."""
    h = ACTIVATIONS["tanh"]
    x, z, zbar, weights, _ = problem(kind, m=205, d=d)
    wanted = reference.predict(h, x, z, weights) - reference.predict(h, x, zbar, weights)
    for full in (1, 200, 1 << 18):
        monkeypatch.setattr(cuda_steps, "FULL", full)
        psi = rig.steps()._psi(h, x, *rig.up(z, zbar), weights)
        assert_near(rig.backend.asnumpy(psi), wanted, kind, size=0.2)


def test_blocks_fit_into_shared_memory():
    for m, n, width, size in itertools.product((1, 10**4, 10**5, 10**6), (1, 10, 10**4), range(2, 34), (4, 8)):
        particles, slices = cuda_steps.shape_of_blocks(m, n, width, size)
        assert particles % 32 == 0 and 1 <= slices <= max(1, n) and particles * slices <= 256
        assert (2 * width * (particles + 1) + cuda_source.SAMPLES * width) * size <= 48 << 10


@all_kinds
@pytest.mark.parametrize("h", [ACTIVATIONS["tanh"], ARCTAN], ids=lambda h: h.name)
def test_chunks_of_any_size_give_the_same_numbers(rig, h, kind, monkeypatch):
    """A budget of a few particles, for what is computed around products of matrices and for measurements."""
    monkeypatch.setattr(cuda, "LARGEST_CHUNK", 13)
    small = cuda.make(rig.xp, rig.start, budget=7 * 50 * 37 * kind.itemsize)
    x, z, zbar, weights, c = problem(kind, d=WIDE)
    device = rig.up(z, zbar)
    assert_near(small.predict(h, x, device[0], weights), reference.predict(h, x, z, weights), kind)
    wanted = reference.move(h, x, z, zbar, c, MOTIONS[1])
    there, far = rig.down(small.move(h, x, *device, c, MOTIONS[1]))
    assert_near(there, wanted[0], kind)
    np.testing.assert_array_equal(far, wanted[1])
    for got, known in zip(
        small.measure(h, x, *device, weights), reference.measure(h, x, z, zbar, weights), strict=True
    ):
        assert (got is None) == (known is None) and (got is None or assert_near(got, known, kind) is None)


# --- the explicit step


def residual(psi):
    return -0.3 * (2.0 * psi - 0.1)


@all_kinds
@pytest.mark.parametrize("d", [D, WIDE])
@pytest.mark.parametrize("centred", [True, False])
def test_descend(rig, kind, d, centred):
    h = ACTIVATIONS["tanh"]
    x, z, zbar, weights, _ = problem(kind, d=d)
    arguments = (weights, residual, MOTIONS[0])
    wanted = reference.descend(h, x, z, zbar, *arguments, centred=centred)
    device = rig.up(z, zbar)
    got = rig.backend.descend(h, x, *device, *arguments, centred=centred)
    assert_near(rig.down(got)[0], wanted[0], kind)
    np.testing.assert_array_equal(rig.down(got)[1], wanted[1])
    same = rig.backend.descend(h, x, *device, *arguments, centred=centred, out=(device[0], device[1]))
    for inside, outside in zip(rig.down(same), rig.down(got), strict=True):
        np.testing.assert_array_equal(inside, outside)
    assert same[0] is device[0] and same[1] is device[1]


@pytest.mark.parametrize("d, started", [(D, 3), (WIDE, 4)])
def test_a_step_asks_the_host_for_nothing(processor, d, started):
    """No download, no upload of what is remembered, three launches for small d."""
    xp, processor.started = Module(), []
    backend = cuda.make(xp, processor)
    x, z, zbar, weights, _ = problem(np.float64, d=d)
    for array in (x, weights):
        array.flags.writeable = False
    z, zbar = backend.asarray(z), backend.asarray(zbar)
    for step in range(3):
        if step == 1:
            xp.uploads, processor.started = 0, []
        motion = MOTIONS[0]._replace(step=step)
        backend.descend(ACTIVATIONS["tanh"], x, z, zbar, weights, residual, motion, centred=d == D, out=(z, zbar))
    assert xp.uploads == xp.downloads == 0
    assert len(processor.started) == 2 * started


def test_only_what_cannot_change_is_remembered(processor):
    xp = Module()
    steps = cuda_steps.Steps(xp, processor)
    x = np.ones((2, 2))
    steps.upload(x, x.dtype)
    x[0] = 5.0
    assert steps.upload(x, x.dtype).inside[0, 0] == 5.0
    fixed = [np.full(2, float(i)) for i in range(20)]
    for array in fixed:
        array.flags.writeable = False
        steps.upload(array, array.dtype)
    assert [float(steps.upload(array, array.dtype).inside[0]) for array in fixed] == list(range(20))
    assert len(steps._kept) <= cuda_steps.REMEMBERED


# --- measurements and accounts


# Means of terms of either sign, in powers of E|b|^2: z . b, eps z . (b_mid - b), h^(k) (b . x)^k.
POWERS = {"pull": 0.5, "remainder": 0.5, "push": 0.5, "push2": 1.0, "push3": 1.5}


@all_kinds
@all_activations
@all_train
def test_measurements_and_accounts(rig, h, kind, train):
    x, z, zbar, weights, c = problem(kind)
    c = 0.1 * c
    device, far = rig.up(z, zbar)
    b, known = rig.backend, reference
    for shadow, on_device, masses in ((None, None, None), (zbar, far, weights)):
        pairs = [
            (b.measure(h, x, device, on_device, masses, train, variance=1.3),
             known.measure(h, x, z, shadow, masses, train, variance=1.3)),
            (b.kick(h, x, device, on_device, masses, c, 0.1, train, account=True),
             known.kick(h, x, z, shadow, masses, c, 0.1, train, account=True)),
            (b.midpoint_kick(h, x, device, on_device, masses, c, 0.1, train, account=True, variance=1.3),
             known.midpoint_kick(h, x, z, shadow, masses, c, 0.1, train, account=True, variance=1.3)),
            (b.roughness(h, x, device, masses, c, train), known.roughness(h, x, z, masses, c, train)),
        ]  # fmt: skip
        for got, wanted in pairs:
            assert type(got) is type(wanted)
            for name, here, there in zip(getattr(got, "_fields", "123"), got, wanted, strict=True):
                value = b.asnumpy(here) if np.shape(there) == z.shape else here
                power = POWERS.get(name) if isinstance(wanted, Moved) else None
                assert_near(value, there, kind, power and max(wanted.speed**power, np.max(np.abs(there))))


@all_kinds
def test_plain_kicks_and_pullbacks(rig, kind):
    h = ACTIVATIONS["sin"]
    for d in (D, WIDE):
        x, z, zbar, _, c = problem(kind, d=d)
        device, far = rig.up(z, zbar)
        b = rig.backend
        for train in TRAIN:
            pairs = [
                (b.pullback(h, x, device, c, train), reference.pullback(h, x, z, c, train)),
                (b.kick(h, x, device, None, None, c, 0.1, train).z,
                 reference.kick(h, x, z, None, None, c, 0.1, train).z),
                (b.kick(h, x, device, None, None, c, 0.1, train, at=far).z,
                 reference.kick(h, x, z, None, None, c, 0.1, train, at=zbar).z),
                (b.midpoint_kick(h, x, device, None, None, c, 0.1, train).z,
                 reference.midpoint_kick(h, x, z, None, None, c, 0.1, train).z),
            ]  # fmt: skip
            for got, wanted in pairs:
                assert_near(b.asnumpy(got), wanted, kind)


def test_without_a_gram_matrix_none_comes_back(rig):
    x, z, _, _, _ = problem(np.float64)
    measured = rig.backend.measure(ACTIVATIONS["tanh"], x, *rig.up(z), None, None, gram=False)
    assert measured.gram is None and measured.covariance is None


# --- equal bits


@all_kinds
@pytest.mark.parametrize("d", [D, WIDE])
def test_the_order_of_threads_changes_nothing(processor, kind, d):
    """Every kernel, its threads run forwards and backwards between barriers: a race would show."""
    h = ACTIVATIONS["softplus"]
    x, z, zbar, weights, c = problem(kind, d=d)
    seen = []
    for processor.backwards in (False, True):
        backend = cuda.make(xp := Module(), processor)
        here, there = backend.asarray(z), backend.asarray(zbar)
        moved = backend.move(h, x, here, there, c, MOTIONS[1])
        measured = backend.measure(h, x, here, there, weights)
        noises = cuda_steps.Steps(xp, processor).normals(1, 1, step=2, count=50, width=5, dtype=kind)
        parts = [*moved, noises, backend.predict(h, x, here, weights), measured.psi, measured.gram]
        seen.append([part.inside if isinstance(part, DeviceArray) else part for part in parts])
    processor.backwards = False
    for forwards, backwards in zip(*seen, strict=True):
        np.testing.assert_array_equal(forwards, backwards)


@all_kinds
def test_two_runs_give_equal_bits(rig, kind):
    h = ACTIVATIONS["tanh"]
    x, z, zbar, weights, _ = problem(kind, m=3000)
    runs = [
        rig.down(rig.backend.descend(h, x, *rig.up(z, zbar), weights, residual, MOTIONS[0], centred=True))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(runs[0][0], runs[1][0])


# --- what is said where it cannot run


def test_where_cupy_is_missing_the_way_to_get_it_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(vars(cuda), "BACKEND", raising=False)
    assert 'pip install "meanfield-nn[gpu]"' in cuda.unavailable()
    with pytest.raises(InputError, match="CuPy is not installed"):
        _ = cuda.BACKEND
    with pytest.raises(AttributeError):
        _ = cuda.ANOTHER


def test_a_jet_that_leaves_the_device_is_refused_with_advice(rig):
    jet = ACTIVATIONS["tanh"].jet  # np.asarray in it
    x, z, _, _, c = problem(np.float64)
    mine = Activation("mine", jet)
    for call in (lambda z: rig.backend.predict(mine, x, z), lambda z: rig.backend.pullback(mine, x, z, c)):
        with pytest.raises(InputError, match=r"'mine' cannot run on the GPU.*--backend numpy"):
            call(*rig.up(z))
