"""Clouds that ranks hold together: the bits of one process, whatever their number, and what happens when one fails."""

from unittest import mock

import numpy as np
import pytest
import small
from crew import Deadlock, crew
from test_resume import assert_equal_bits

from meanfield import backends, bounds, parallel, ranks, spread, store
from meanfield.cloud import gaussian_cloud
from meanfield.dyadic import DyadicSum, Tree
from meanfield.errors import DivergedError, InputError, Interrupted
from meanfield.objectives import Potential
from meanfield.planning import Record
from meanfield.ranks import Alone, Share, on_first, split, together
from meanfield.results import Run
from meanfield.simulate import load, simulate

# Sums -----------------------------------------------------------------------------------------------------------------


def shares(size, bounds, grain=1):
    return lambda communicator: Share(communicator, bounds, grain)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_sums_have_the_bits_of_one_process_however_blocks_are_cut(size):
    rng = np.random.default_rng(size)
    for _ in range(40):
        blocks = int(rng.integers(1, 70))
        values = rng.standard_normal((blocks, 3)) * 10.0 ** rng.integers(-9, 9, (blocks, 1))
        one, other = DyadicSum(), Tree()
        for k, value in enumerate(values):
            one.add(value)
            other.add(k, value)
        m = 2 * blocks - int(rng.integers(0, 2))
        inner = np.sort(rng.integers(1, blocks + 1, size - 1))
        cuts = (0, *(min(2 * int(cut), m) for cut in inner), m)

        def work(communicator, values=values, cuts=cuts):
            share = Share(communicator, cuts, 2)
            mine = np.arange(cuts[communicator.rank] // 2, -(-cuts[communicator.rank + 1] // 2))
            order = np.random.default_rng(communicator.rank).permutation(mine)
            return share.sum(2, lambda tree: [tree.add(k, values[k]) for k in order])

        for found in crew(size, work):
            assert np.array_equal(found, one.total()) and np.array_equal(found, other.total())


def test_a_sum_costs_a_message_up_and_one_down_for_every_other_rank():
    """Of 4 ranks with 8 blocks each, every one but the first sends one node and gets one sum."""

    def work(communicator):
        share = Share(communicator, tuple(range(0, 40, 8)), 1)
        total = share.sum(1, lambda tree: [tree.add(k, float(k)) for k in range(share.first, share.last)])
        assert total == 496
        return communicator.crew

    assert crew(4, work)[0].messages == 3 + 3


def test_pieces_that_ranks_would_cut_are_refused():
    with pytest.raises(InputError, match="pieces of 3 particles are cut by ranks that hold multiples of 4"):
        Share(Alone(), (0, 8), 4).sum(3, lambda tree: None)


def test_every_other_particle_of_a_share_is_a_share():
    share = Share(Alone(), (0, 8, 12, 15), 4)
    assert [share.thinned(k, 4).bounds for k in range(4)] == [(0, 2, 3, 4)] * 3 + [(0, 2, 3, 3)]
    assert [share.owner(k) for k in (0, 7, 8, 11, 12, 14)] == [0, 0, 1, 1, 2, 2]
    assert share.thinned(1, 2).grain == 2 and share.most == 8


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_rows_are_shared_out_evenly_and_in_whole_grains(size):
    bounds = split(mock.Mock(size=size, rank=0), 10**7 + 1, 1 << 12).bounds
    counts = np.diff(bounds)
    assert bounds[0] == 0 and bounds[-1] == 10**7 + 1 and len(counts) == size
    assert not any(bound % (1 << 12) for bound in bounds[:-1]) and counts.max() - counts.min() <= 2 << 12


def test_more_ranks_than_there_is_work_for_are_refused_with_what_would_do():
    with pytest.raises(InputError, match="at most `mpirun -n 2`, or cloud.m of at least 8193"):
        split(mock.Mock(size=3, rank=0), 8192)


# Clouds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("replicate", [0, 2])
def test_rows_are_drawn_where_they_stand(dtype, replicate):
    whole = gaussian_cloud(20_001, d=3, seed=7, dtype=dtype, replicate=replicate)

    def work(communicator):
        share = split(communicator, 20_001)
        rows = gaussian_cloud(20_001, d=3, seed=7, dtype=dtype, replicate=replicate, share=share)
        assert rows.m == 20_001 and len(rows.z) == share.count
        return rows.z

    assert np.array_equal(np.concatenate(crew(3, work)), whole.z)


CASES = {
    "kernel": (dict(scheme="kernel"), dict(time=0.2)),
    "kernel2": (dict(scheme="kernel2"), dict(time=0.05, bounds=[0.02])),
    "euler": (dict(scheme="euler", eta=0.04), dict(steps=5)),
    "exponential": (dict(scheme="exponential"), dict(time=0.1)),
    "minibatch": (dict(batch=4, scheme="euler", eta=0.005), dict(steps=5, bounds=[0.01])),
    "without account": (dict(scheme="euler", eta=0.04, account=False), dict(steps=5)),
    "kernel without account": (dict(scheme="kernel", account=False), dict(time=0.2)),
    "network": (dict(scheme="kernel", centred=False, unit="relu"), dict(time=0.1)),
    "logistic, a layer": (dict(loss="logistic", train="u", alpha=3.0, scheme="kernel"), dict(time=0.3)),
    "tree of noise": (dict(scheme="kernel", eta=0.04, leaf=0.02), dict(time=0.2)),
}
RATES = ["drift_square", "entropy_input", "reference_overlap_se", "reference_travelled", "generator_rms", "kick_fault"]


def carry(name, communicator=None, *, dtype="float64", n=12, m=13_000, backend="numpy", directory=None, **more) -> Run:
    """Run a case of a few steps; each rank makes its own flow, as processes would."""
    chosen, options = CASES[name]
    flow = small.flow(n=n, **chosen)
    object.__setattr__(flow.objective.full, "backend", backend)
    cloud = small.cloud(flow, m, dtype=dtype)
    settings = dict(replicates=2, bounds=[0.04], observables=[*small.CHEAP, *RATES, "ntk_eigenvalue_min", "w2_upper"])
    with mock.patch.object(bounds, "PROBES", 2000):
        return simulate(
            flow, cloud, communicator=communicator, directory=directory, **settings | options | more
        )  # fmt: skip


def joined(runs: list[Run]) -> Run:
    """The run of rank 0 with the rows of all."""
    head = runs[0]
    for k, cloud in enumerate(head.clouds):
        rows = {
            name: None if getattr(cloud, name) is None else np.concatenate([getattr(r.clouds[k], name) for r in runs])
            for name in ("z", "reference")
        }
        assert cloud.share is not None
        head.clouds[k] = cloud.replace(**rows, share=None, kernel=cloud.kernel)
    return head


MAIN = ("kernel", "euler", "minibatch")


@pytest.mark.parametrize(("name", "dtype"), [(n, "float64") for n in CASES] + [(n, "float32") for n in MAIN])
def test_any_number_of_ranks_gives_the_bits_of_a_process_on_its_own(name, dtype):
    alone = carry(name, dtype=dtype)
    for size in (2, 4) if name in MAIN else (3,):
        assert_equal_bits(joined(crew(size, lambda ranks: carry(name, ranks, dtype=dtype))), alone)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["kernel", "minibatch", "kernel without account"])
def test_compiled_code_does_too(name, dtype):
    options = dict(dtype=dtype, n=70, m=8_500, backend="cpu", bounds=0, observables=small.CHEAP)
    if name != "minibatch":
        options["time"] = 0.02
    alone = carry(name, **options)
    assert_equal_bits(joined(crew(3, lambda ranks: carry(name, ranks, **options))), alone)


def test_the_test_set_is_predicted_by_all(tmp_path):
    test = small.data(n=5, seed=9)
    alone = carry("euler", test=test, observables=["loss", "test_loss"])
    found = crew(2, lambda ranks: carry("euler", ranks, test=test, observables=["loss", "test_loss"]))
    assert_equal_bits(joined(found), alone)


def test_of_a_large_cloud_the_first_particles_are_gathered(monkeypatch):
    monkeypatch.setattr(spread, "GATHERED", 4 * 9000)
    seen = {}

    def first(cloud, flow):
        seen["cloud"] = cloud
        return cloud.z[[0, -1], 0]

    def work(communicator):
        return carry("kernel", communicator, records=[Record(first)])

    one, two, three = (joined(crew(size, work)) for size in (1, 2, 3))
    assert_equal_bits(one, two)
    assert_equal_bits(one, three)
    assert one.data.attrs["gathered_particles"] == three.data.attrs["gathered_particles"] == 9000
    last = seen["cloud"]
    assert last.m == 9000 and last.share is None and last.replicate == 1
    assert np.array_equal(last.z, three.clouds[1].z[:9000]) and not np.array_equal(last.z, last.reference)
    assert np.array_equal(last.origin(), small.cloud(three.flow, 9000).replicated(1).z)


# Files ----------------------------------------------------------------------------------------------------------------


def stopped(name, directory, communicator, step=3):
    """Run a case that is stopped after a step, on all ranks, with its state saved."""

    def stop(cloud, flow):
        if cloud.step == step:
            raise Interrupted("enough")
        return 0.0

    with pytest.raises(Interrupted, match="enough"):
        carry(name, communicator, directory=directory, records=[Record(stop)])


RESTARTS = [("kernel", 2, 3), ("kernel", 3, 0), ("kernel", 0, 2), ("minibatch", 2, 3), ("minibatch", 4, 1)]


@pytest.mark.parametrize(("name", "before", "after"), RESTARTS)
def test_another_number_of_ranks_goes_on_with_the_same_bits(tmp_path, name, before, after):
    def on(size, work):
        return joined(crew(size, work)) if size else work(None)

    here, keep = tmp_path / "here", [Record(lambda cloud, flow: 0.0, name="stop")]
    crew(before, lambda ranks: stopped(name, here, ranks)) if before else stopped(name, here, None)
    assert bool(list(here.glob("checkpoint.2.rows*.npz"))) == bool(before)
    done = on(after, lambda ranks: carry(name, ranks, directory=here, records=keep))
    whole = carry(name, directory=tmp_path / "there", records=keep)
    assert_equal_bits(done, whole)
    assert_equal_bits(load(here), load(tmp_path / "there"))
    heads = [store.read_npz(here / file) for file in (store.CHECKPOINT, store.PREVIOUS)]
    wanted = {str(name) for head in heads for name in head.get("rows.files", ())}
    assert {path.name for path in here.glob("*.rows*.npz")} == wanted


def test_a_damaged_file_of_one_rank_sends_all_to_the_checkpoint_before(tmp_path):
    def work(communicator):
        return carry("euler", communicator, directory=tmp_path, checkpoint_seconds=0)

    crew(2, work)
    newest = [str(name) for name in store.read_npz(tmp_path / store.CHECKPOINT)["rows.files"]]
    path = tmp_path / newest[1]
    path.write_bytes(path.read_bytes()[:-100])
    for size in (2, 3):
        with pytest.warns(UserWarning, match="rows8192-13000.npz is missing or damaged"):
            found = crew(size, lambda ranks: store.read_checkpoint(tmp_path, split(ranks, 13_000)))
        # The one before is of the end as well, in files of its own.
        assert {(state[0][0].step, len(state[0])) for state in found} == {(5, 2)}
    with pytest.warns(UserWarning, match="damaged"):
        assert store.read_checkpoint(tmp_path)[0][0].m == 13_000
    path.unlink()
    with pytest.warns(UserWarning, match="missing"):
        store.read_checkpoint(tmp_path)


def test_snapshots_are_written_by_all_and_read_whole(tmp_path):
    crew(3, lambda ranks: carry("euler", ranks, directory=tmp_path / "ranks", snapshots=[0.08]))
    carry("euler", directory=tmp_path / "alone", snapshots=[0.08])
    (found,), (single,) = ((tmp_path / name).glob("cloud_?.npz") for name in ("ranks", "alone"))
    assert len(list((tmp_path / "ranks").glob("cloud_2.rows*.npz"))) == 3
    left, right = store.read_rows(found), store.read_rows(single)
    assert left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("size", [3, 0])
def test_rows_that_a_killed_run_left_behind_are_taken_away(tmp_path, size):
    """Of another number of ranks, whole or half written: they lay there for ever."""
    of_four = ("checkpoint.3.rows0-4096.npz.writing", "cloud_2.rows0-4096.npz", "cloud_2.rows4096-8192.npz.writing")
    for name in of_four:
        (tmp_path / name).write_bytes(b"half")

    def write(communicator):
        share = communicator and split(communicator, 13_000)
        cloud = gaussian_cloud(13_000, d=3, share=share).replace(step=2)
        store.write_clouds(tmp_path / "cloud_2.npz", [cloud])
        store.write_checkpoint(tmp_path, [cloud], {}, {})

    crew(size, write) if size else write(None)
    assert not any((tmp_path / name).exists() for name in of_four)
    assert len(list(tmp_path.glob("*.rows*"))) == 2 * size
    assert store.read_rows(tmp_path / "cloud_2.npz")["cloud0.z"].shape == (13_000, 4)


# Failures -------------------------------------------------------------------------------------------------------------


def failures(size, work, kind):
    """What each rank of a crew raises."""

    def caught(communicator):
        with pytest.raises(kind) as found:
            work(communicator)
        return str(found.value)

    return crew(size, caught)


def test_what_fails_inside_of_a_sum_on_one_rank_is_raised_on_all(monkeypatch):
    share_sum = Share.sum

    def sum_(self, size, work):
        def broken(tree):
            if self.communicator.rank == 2:
                raise MemoryError("no room for a block")
            work(tree)

        return share_sum(self, size, broken)

    monkeypatch.setattr(Share, "sum", sum_)
    assert failures(3, lambda ranks: carry("euler", ranks), MemoryError) == ["no room for a block"] * 3


def test_particles_that_are_not_finite_on_one_rank_stop_all_with_their_records():
    def work(communicator):
        flow = small.flow("euler", 0.04)
        cloud = spread.rows(flow, small.cloud(flow, 20_000), communicator)
        if communicator.rank == 1:
            cloud.z[5, 0] = np.nan
        flow.step(cloud)

    messages = failures(3, work, DivergedError)
    assert len(set(messages)) == 1 and "not finite" in messages[0]


def test_what_cannot_be_written_by_one_rank_stops_all(tmp_path, monkeypatch):
    write = store.write_npz

    def full(path, arrays):
        if "rows8192" in path.name:
            raise InputError(f"cannot write {path}: No space left on device")
        write(path, arrays)

    monkeypatch.setattr(store, "write_npz", full)
    messages = failures(2, lambda ranks: carry("euler", ranks, directory=tmp_path), InputError)
    assert len(set(messages)) == 1 and "No space left" in messages[0]


def test_errors_travel_with_where_they_came_from():
    class Own(Exception):  # cannot be pickled
        pass

    def work(communicator, error):
        if communicator.rank == 1:
            raise error
        return communicator.rank

    for error, kind in ((KeyError("k"), KeyError), (Own("mine"), RuntimeError), (InputError("bad"), InputError)):
        found = failures(2, lambda ranks, e=error: together(ranks, lambda: work(ranks, e)), kind)
        assert len(set(found)) == 1 and str(error.args[0]) in found[0]
    assert crew(3, lambda ranks: together(ranks, lambda: ranks.rank)) == [[0, 1, 2]] * 3
    assert crew(2, lambda ranks: on_first(ranks, lambda: "done")) == ["done"] * 2


def test_what_cannot_be_spread_is_refused():
    flow = small.flow("euler", 0.04)
    weighted = small.cloud(flow, 5000, weights=np.ones(5000))
    with pytest.raises(InputError, match="weighted particles are not spread"):
        spread.rows(flow, weighted, Alone())
    langevin = small.flow("euler", 0.04)
    object.__setattr__(langevin, "objective", Potential(lambda z: z[:, 0], lambda z: z))
    with pytest.raises(InputError, match="only the risk of a network is spread .* Potential"):
        spread.rows(langevin, small.cloud(flow, 5000), Alone())
    with mock.patch.object(backends, "get", lambda name: None):
        with pytest.raises(InputError, match="'keops' works on whole clouds, .* --backend cpu"):
            backends.shared("keops", Share(Alone(), (0, 5000), 4096))


def test_grains_are_what_compiled_code_sums_in_one_piece():
    assert backends.grain("numpy", 3) == backends.grain("cuda", 3) == ranks.GRAIN
    assert [backends.grain("cpu", n) for n in (1, 12, 200, 5000)] == [65536, 8192, 4096, 8192]


def test_the_crew_tells_of_ranks_that_wait_for_one_another():
    with pytest.raises(Deadlock, match="wait for one another"):
        crew(2, lambda ranks: ranks.receive(1 - ranks.rank))
    assert parallel.held() is None
