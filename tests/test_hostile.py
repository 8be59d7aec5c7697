"""Files and texts that are out to do harm: refused in one sentence, soon, in little memory, and nothing is executed."""

import builtins
import json
import lzma
import re
import shutil
import signal
import tomllib
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from campaigns import fuzz, mutations
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from synthetic import run_dataset

import meanfield
from meanfield import cli, config, datasets, errors, netcdf, plots, readers, store
from meanfield.config import DataConfig
from meanfield.errors import InputError

PACKAGE = Path(meanfield.__file__).parent
FLOW = {"flow": {"time": 1.0}}
FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None)
# Of each target so many inputs: the campaign of docs/robustness.md takes 100,000.
SHORT = {"toml": 250, "csv": 300, "idx": 300, "labels": 100, "npz": 300, "config": 4, "metadata": 8, "records": 6,
         "foreign records": 4, "checkpoint": 6}  # fmt: skip


# --- the campaign, small


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, dict[str, list[bytes]]]:
    folder = tmp_path_factory.mktemp("fuzz")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        seeds = fuzz.valid(folder)
    assert {number: signal.getsignal(number) for number in before} == before
    return folder, seeds


@pytest.mark.parametrize("target", SHORT)
def test_mutations_of_valid_files(target, files) -> None:
    folder, seeds = files
    with fuzz.prepared():
        fuzzer = fuzz.Fuzzer(target, folder, seeds=seeds)
        for number in range(SHORT[target]):
            fuzzer.one(*fuzzer.input(number), number)
    assert fuzzer.findings == {} and fuzzer.outcomes.total() == SHORT[target]
    if SHORT[target] > 20:
        assert fuzzer.outcomes["refused"] > 20 and fuzzer.outcomes["accepted"] > 0


def test_valid_files_are_accepted(files) -> None:
    folder, seeds = files
    with fuzz.prepared():
        for target in ("toml", "csv", "idx", "labels", "npz"):
            fuzzer = fuzz.Fuzzer(target, folder, seeds=seeds)
            for raw in seeds[target]:
                fuzzer.one(raw, 0)
            assert fuzzer.outcomes == {"accepted": len(seeds[target])}, target


def test_the_fuzzer_sees_what_it_looks_for(files, monkeypatch) -> None:
    folder, seeds = files

    def executes(path, folder, choice):
        builtins.meanfield_was_hacked = True
        return "accepted"

    def hangs(path, folder, choice):
        while True:
            pass

    def raises(path, folder, choice):
        raise KeyError("x")

    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    for read, kind in ((executes, "Finding"), (hangs, "Hang"), (raises, "KeyError")):
        monkeypatch.setitem(fuzz.TARGETS, "csv", ("hostile.csv", read, 0.1))
        fuzzer = fuzz.Fuzzer("csv", folder, seeds=seeds)
        fuzzer.one(b"", 0)
        assert next(iter(fuzzer.findings)).startswith(kind)
        vars(builtins).pop("meanfield_was_hacked", None)


# --- properties


def texts() -> st.SearchStrategy:
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def anything() -> st.SearchStrategy:
    leaf = st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | texts() | st.dates()
    return st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3), max_leaves=5
    )


def keys() -> st.SearchStrategy:
    pairs = [(section, key) for section, record in config.SECTIONS.items() for key in record.keys()]
    return st.sampled_from([*pairs, ("sweep", "cloud.m"), ("flow", "nothing"), ("nothing", "lam")])


@given(st.dictionaries(keys(), anything(), max_size=4))
@FEW
def test_any_values_make_a_configuration_or_one_sentence(values) -> None:
    tree: dict = {"flow": {"time": 1.0}}
    for (section, key), value in values.items():
        tree.setdefault(section, {})[key] = value
    try:
        one = config.parse(tomllib.loads(tomli_w.dumps(tree)))
    except InputError as error:
        assert str(error)
        return
    again = config.parse(tomllib.loads(config.dumps(one)))
    assert again == one and config.digest(again) == config.digest(one) and config.differences(again, one) == []


@given(st.lists(st.lists(st.floats(-1e90, 1e90), min_size=3, max_size=3), min_size=2, max_size=8))
@FEW
def test_numbers_survive_csv(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    path.write_text("a,b,c\n" + "".join(",".join(map(repr, row)) + "\n" for row in rows))
    found = readers.read_csv(path)
    assert np.array_equal(np.stack([found[name] for name in "abc"], axis=1), np.array(rows))


@given(arrays_of.arrays(st.sampled_from(["f8", "f4", "f2", "i8", "u1", "?", "c16", "U2", "M8[s]"]),
                        arrays_of.array_shapes(min_dims=0, max_dims=3, max_side=4)),
       arrays_of.arrays("f8", arrays_of.array_shapes(min_dims=0, max_dims=2, max_side=4)))  # fmt: skip
@FEW
def test_any_arrays_are_data_or_one_sentence(tmp_path_factory, x, y) -> None:
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    np.savez(path, x=x, y=y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            data = datasets.load(DataConfig(source="npz", path=str(path)))
        except InputError:
            return
    assert x.ndim == 2 and x.dtype.kind in "fiub" and len(x) == len(y) and np.isfinite(y).all()
    assert np.array_equal(data.x, x.astype(float)) and np.array_equal(data.y, y)


@given(st.binary(max_size=200))
@FEW
def test_any_bytes_are_one_sentence(tmp_path_factory, raw) -> None:
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(raw)
    for read in (readers.read_idx, readers.read_npz, store.read_npz, store.read_dataset, store.read_json, config.load):
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error) or "how long to run" in str(error)


# --- what was found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flow.time = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ("flow.time = 0x" + "f" * 6000, "flow.time = something too long to show (int) is not possible"),
        ("flow.steps = 0x" + "f" * 6000, "flow.steps = something too long to show (int) is not possible"),
        ("flow.scheme = 0x" + "f" * 6000, "flow.scheme = something too long to show (int)"),
        ("data.n = 0x" + "f" * 6000, "data.n = something too long to show (int)"),
        ("flow.lam = " + "[" * 5000 + "]" * 5000, "is not TOML"),
        ("sweep" + ".a" * 4000 + " = 1", "tables in tables in tables"),
        ("flow.lam = " + "[" * 40 + "]" * 40, "tables in tables in tables"),
        ("# " + "x" * (1 << 20), "more than 1,048,576 bytes"),
        ('flow.time = 1\ndata.path = "a\\u0000b"', "wanted the path of a file"),
        (
            'flow.time = 1\noutput.title = "a\\u0000b"',
            "output.title = 'a\\x00b' is not possible: wanted a text of one line",
        ),
        ("flow.time = 1\nrecord.bounds_every = 1000000000", "a number of dyadic times from 1 to 1000"),
        (
            "flow.time = 1\ncloud.m = 5_000_000_000",
            "cloud.m = 5000000000 is not possible: wanted an integer from 1 to 2^32",
        ),
        ("flow.time = 1\ncloud.replicates = 20_000_000", "wanted an integer from 1 to 2^24"),
        ("flow.time = 1\nsweep.flow.lam = [" + "1," * 10_001 + "]", "wanted a list of up to 10000 values"),
    ],
)
def test_configurations_that_ask_for_too_much(text, words, tmp_path, capsys) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert cli.main(["run", str(tmp_path / "run.toml"), "--show"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and len(said) < 1500


def test_overrides_that_ask_for_too_much(tmp_path) -> None:
    (tmp_path / "run.toml").write_text("flow.time = 1")
    for value in ("9" * 5000, "[" * 3000):
        with pytest.raises(InputError):
            config.load(tmp_path / "run.toml", [f"flow.lam={value}"])


def test_a_sweep_of_too_many_points_is_refused_at_once(tmp_path, capsys) -> None:
    lists = "".join(f"{key} = {list(range(1, 101))}\n" for key in ("cloud.m", "cloud.seed", "data.seed", "flow.time"))
    (tmp_path / "grid.toml").write_text(f'[data]\nsource = "sphere"\n[flow]\ntime = 1\n[sweep]\n{lists}')
    assert cli.main(["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "out")]) == 2
    assert "has 100,000,000 points: wanted at most 100,000" in capsys.readouterr().err


def test_messages_are_one_line_that_a_terminal_shows(tmp_path, capsys) -> None:
    (tmp_path / "run.toml").write_text('[output]\n"a\\nmeanfield: all is well\\u001b[2J" = 1')
    assert cli.main(["run", str(tmp_path / "run.toml"), "--show"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "\\nmeanfield: all is well\\x1b[2J" in said and "\x1b" not in said
    assert errors.printable("é\t𝔊") == "é\\t𝔊"


def test_a_guess_at_a_name_takes_no_time() -> None:
    assert errors.did_you_mean("x" * 10**6, ["xx"]) == errors.did_you_mean(10**5000, ["xx"]) == ""
    assert errors.did_you_mean("namd", (name for name in ["y" * 10**6, "name"])) == " Did you mean 'name'?"


def test_wide_tables_take_no_time(tmp_path) -> None:
    """The search for repeated names was quadratic: 100,000 columns took minutes."""
    names = [f"c{k}" for k in range(100_000)]
    path = tmp_path / "wide.csv"
    path.write_text(",".join(names) + "\n" + ",".join("1" * len(names)) + "\n")
    assert readers.read_csv(path, ("c7",))["c7"].tolist() == [1.0]
    with pytest.raises(InputError, match="c29 and 99970 more") as caught:
        readers.read_csv(path, ("d",))
    assert len(str(caught.value)) < 1500
    path.write_text(",".join([*names, "c5"]) + "\n")
    with pytest.raises(InputError, match="two columns named 'c5'"):
        readers.read_csv(path)


def test_test_labels_of_no_dimension(tmp_path) -> None:
    np.savez(tmp_path / "data.npz", x=np.eye(3), y=np.ones(3) / 2, x_test=np.eye(3), y_test=np.float64(1.0))
    with pytest.raises(InputError, match=r"y has shape \(\)"):
        datasets.npz(tmp_path / "data.npz")


@pytest.mark.parametrize("header", ["(" * 5000, "-" * 9000 + "1", "{" * 90, "{'descr': '<f8', (", "__import__('os')"])
def test_headers_of_npy_that_are_no_header(header, tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\1\0" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n")
    for read in (readers.read_npz, store.read_npz):
        with pytest.raises(InputError, match="damaged"):
            read(tmp_path / "a.npz")


def test_steps_that_leave_nothing_of_a_particle(tmp_path) -> None:
    """exp(-lam eta) is zero there, and was divided by."""
    tree = {
        "data": {"source": "sphere", "n": 4, "d": 2},
        "cloud": {"m": 4},
        "flow": {"time": 1e9, "eta": 1e6, "scheme": "exponential"},
    }
    from meanfield import experiment

    one = config.parse(tree)
    with pytest.raises(InputError, match="leaves nothing of a particle after a step; take eta below"):
        experiment.check(one, datasets.load(one.data))


# --- nothing is executed


def test_pickles_are_refused_and_not_executed(tmp_path) -> None:
    evil = np.array([mutations.Evil()], dtype=object)
    np.savez(tmp_path / "data.npz", x=evil, y=evil)
    for read in (readers.read_npz, store.read_npz):
        with pytest.raises(InputError, match="Python objects|damaged"):
            read(tmp_path / "data.npz")
    assert not hasattr(builtins, "meanfield_was_hacked")
    np.load(tmp_path / "data.npz", allow_pickle=True)["x"]
    assert vars(builtins).pop("meanfield_was_hacked"), "whoever does unpickle it executes it"


def test_no_module_unpickles_or_evaluates() -> None:
    for path in set(PACKAGE.rglob("*.py")) - {PACKAGE / "ranks.py"}:  # which tries what it sends to ranks of its run
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"allow_pickle=True|pickle\.loads?\(|(?<![.\w])eval\(|(?<![.\w])exec\(|yaml\.load|os\.system\(", text
        ), path


# --- run directories


@pytest.mark.parametrize(
    "entry",
    [
        {"status": 3},
        {"identity": []},
        {"data": []},
        {"data": {"notes": 7}},
        {"timings": None},
        {"absent": "x"},
        {"message": "\ud800"},
        {"config": []},
        {"config": {"cloud": [1]}},
    ],
)
@pytest.mark.parametrize("command", ["verify", "report", "compare"])
def test_metadata_of_other_kinds(entry, command, files, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(plots, "save", lambda *arguments, **more: ({}, []))
    folder = Path(shutil.copytree(files[0] / "finished", tmp_path / "run"))
    (folder / "metadata.json").write_text(json.dumps(json.loads((folder / "metadata.json").read_text()) | entry))
    arguments = [str(folder)] * (2 if command == "compare" else 1)
    assert cli.main([command, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("meanfield: ") and said.count("\n") == 1 and "metadata.json" in said


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.drop_vars("time"),
        lambda data: data.assign_attrs(lam="x"),
        lambda data: data.isel(time=slice(0, 0)),
        lambda data: data.assign_attrs(suprema=1.0),
    ],
)
def test_records_that_are_none_of_a_run(change, files, tmp_path, capsys) -> None:
    folder = Path(shutil.copytree(files[0] / "finished", tmp_path / "run"))
    store.write_dataset(folder / "records.nc", change(store.read_dataset(folder / "records.nc")))
    assert cli.main(["verify", str(folder)]) in (0, 1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("\n") <= 1


def test_texts_that_netcdf_cannot_keep_do_not_lose_a_run() -> None:
    data = run_dataset().assign_attrs(title="a\0b\ud800")
    assert netcdf.loads(netcdf.dumps(data)).attrs["title"] == "ab?"


# --- what the HDF5 library makes of a file


@pytest.fixture
def foreign(files) -> bytes:
    (raw,) = files[1]["foreign records"]
    return raw


def test_a_file_that_is_read_for_ever_is_refused(monkeypatch) -> None:
    """libhdf5 counts the scales of one of its dimensions without an end; the campaign of hostile files found it."""
    monkeypatch.setattr(netcdf, "SECONDS", 3)
    raw = lzma.decompress((Path(__file__).parent / "endless.nc.xz").read_bytes())
    with pytest.raises(InputError):
        netcdf.loads(raw)


def test_a_file_on_which_the_library_crashes_is_refused(foreign, monkeypatch) -> None:
    monkeypatch.setattr(netcdf, "_tried", {})
    monkeypatch.setattr(netcdf, "APART", "import os; os.abort()")
    with pytest.raises(InputError, match="the HDF5 library crashed on it"):
        netcdf.loads(foreign)


def test_a_file_without_a_checksum_is_tried_once(foreign, monkeypatch) -> None:
    monkeypatch.setattr(netcdf, "_tried", {})
    first = netcdf.loads(foreign)
    monkeypatch.setattr(netcdf, "APART", "raise SystemExit(7)")
    assert netcdf.loads(foreign).identical(first)
    with pytest.raises(InputError, match="crashed on it"):
        netcdf.loads(foreign + b" ")
