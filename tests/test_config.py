"""The configuration: what goes in comes out, and whatever is impossible is refused with one sentence."""

import dataclasses
import math
import tomllib
from pathlib import Path

import pytest

from meanfield import config
from meanfield.errors import InputError

SHORT = {"flow": {"time": 1.0}}


def parse(**sections: dict) -> config.RunConfig:
    return config.parse({**sections, "flow": {"time": 1.0, **sections.get("flow", {})}})


def test_defaults_are_those_of_the_contract() -> None:
    run = config.parse(SHORT)
    assert (run.network.activation, run.network.loss, run.network.alpha, run.network.centred) == (
        "tanh",
        "square",
        1.0,
        True,
    )
    assert (run.cloud.m, run.cloud.replicates, run.cloud.dtype, run.cloud.initial) == (1024, 4, "float64", "gaussian")
    assert (run.flow.lam, run.flow.eta, run.flow.scheme, run.flow.batch) == (0.01, "auto", "auto", 0)
    assert (run.record.every, run.record.bounds_every, run.output.checkpoint_seconds) == (1, "auto", 30.0)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"data": {"source": "csv", "path": "/a/b.csv", "columns": ["a", "b"], "target": "c", "scale": False}},
        {"network": {"alpha": "sqrt(m)", "loss": "logistic", "bias": True}},
        {"record": {"bounds_every": [0.1, 0.5], "snapshots": [0, 1], "observables": ["loss"]}},
        {"record": {"bounds_every": 8}, "flow": {"eta": 0.1, "lam": 0}},
        {"sweep": {"flow.lam": [0.1, 0.2], "cloud.m": [10, 20]}},
    ],
)
def test_round_trip_through_toml(sections: dict) -> None:
    run = parse(**sections)
    assert config.parse(config.to_dict(run)) == run
    assert config.parse(tomllib.loads(config.dumps(run))) == run
    assert config.digest(config.parse(tomllib.loads(config.dumps(run)))) == config.digest(run)


def test_every_field_survives_when_set_to_its_default() -> None:
    run = config.parse(SHORT)
    for name, record in config.SECTIONS.items():
        assert record.keys() == [field.name for field in dataclasses.fields(getattr(run, name))]
        assert getattr(config.parse(config.to_dict(run)), name) == getattr(run, name)


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.FlowConfig().lam = 2  # type: ignore[misc]


def test_types_are_converted() -> None:
    run = parse(flow={"lam": 1}, cloud={"m": 1e4}, record={"snapshots": [1]})
    assert isinstance(run.flow.lam, float) and run.cloud.m == 10_000 and isinstance(run.cloud.m, int)
    assert run.record.snapshots == (1.0,)


IMPOSSIBLE = [
    ("data", "n", 0),
    ("data", "n_test", -1),
    ("data", "d", 0),
    ("data", "seed", -1),
    ("data", "seed", 2**64),
    ("data", "classes", [3]),
    ("data", "classes", [3, 3]),
    ("data", "classes", 3),
    ("data", "lags", 0),
    ("data", "noise", -0.1),
    ("data", "columns", []),
    ("data", "columns", ["a", "a"]),
    ("data", "path", ""),
    ("network", "bias", 1),
    ("network", "loss", "hinge"),
    ("network", "alpha", 0),
    ("network", "alpha", "m^"),
    ("network", "alpha", "fast"),
    ("network", "alpha", "m^1000"),
    ("cloud", "m", 0),
    ("cloud", "m", 1.5),
    ("cloud", "m", True),
    ("cloud", "m", "many"),
    ("cloud", "replicates", 0),
    ("cloud", "dtype", "float16"),
    ("cloud", "initial", "sphere shell"),
    ("flow", "lam", -1),
    ("flow", "lam", math.nan),
    ("flow", "lam", math.inf),
    ("flow", "lam", 10**400),
    ("flow", "eta", 0),
    ("flow", "eta", "quick"),
    ("flow", "scheme", "eular"),
    ("flow", "time", 0),
    ("flow", "steps", 10),
    ("flow", "train", "v"),
    ("flow", "batch", -1),
    ("flow", "allow_unstable", "yes"),
    ("record", "every", 0),
    ("record", "bounds_every", 0),
    ("record", "bounds_every", "often"),
    ("record", "bounds_every", [-1.0]),
    ("record", "snapshots", [2.0]),
    ("record", "observables", [1]),
    ("output", "checkpoint_seconds", -1),
    ("output", "memory_mb", 0),
]


@pytest.mark.parametrize(("section", "key", "value"), IMPOSSIBLE)
def test_impossible_values_are_refused_with_the_key_and_what_was_wanted(section, key, value) -> None:
    with pytest.raises(InputError) as caught:
        parse(**{section: {key: value}})
    message = str(caught.value)
    assert f"{section}.{key}" in message and "wanted" in message and "\n" not in message


def test_a_batch_must_fit_the_data() -> None:
    assert parse(data={"n": 10}, flow={"batch": 10}).flow.batch == 10
    with pytest.raises(InputError, match=r"flow.batch = 11 .* wanted a batch of at most n"):
        parse(data={"n": 10}, flow={"batch": 11})


def test_the_length_of_the_run_is_wanted_once() -> None:
    with pytest.raises(InputError, match="flow.time or flow.steps"):
        config.parse({})
    with pytest.raises(InputError, match="both"):
        parse(flow={"steps": 3})
    assert config.parse({"flow": {"steps": 3}}).flow.steps == 3


@pytest.mark.parametrize(
    ("mapping", "hint"),
    [
        ({"flow": {"time": 1, "lamda": 0.1}}, "Did you mean 'lam'?"),
        ({"flow": {"time": 1, "alpha": 0.1}}, r"'alpha' belongs under \[network\]"),
        ({"flwo": {"time": 1}}, "Did you mean 'flow'?"),
        ({"lam": 0.1}, r"'lam' belongs under \[flow\]"),
        ({"flow": 3}, r"wanted a section \[flow\]"),
        ({"sweep": 3}, r"wanted a section \[sweep\]"),
        ({"flow": {"time": 1, "scheme": "kernal"}}, "Did you mean 'kernel'?"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(mapping: dict, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        config.parse(mapping)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('[data]\nn = 20\npath = "data/x.csv"\n[flow]\ntime = 1.0\n')
    return path


def test_overrides(file: Path) -> None:
    run = config.load(
        file,
        ["flow.lam=0.1", "network.activation=relu", "data.classes=[1, 2]", "cloud.m = 8", 'output.title="a = b"'],
    )
    assert (run.flow.lam, run.network.activation, run.data.classes, run.cloud.m) == (0.1, "relu", (1, 2), 8)
    assert run.output.title == "a = b"
    assert config.load(file, ["flow.time=", "flow.steps=7"]).flow.steps == 7


@pytest.mark.parametrize(
    "text", ["flow.lam", "lam=1", "flow=1", "=1", "flow.lam=[1", "flow.lam=1\nm=2", "nothing.lam=1", "flow.lam=1 2"]
)
def test_malformed_overrides_are_refused(file: Path, text: str) -> None:
    with pytest.raises(InputError):
        config.load(file, [text])


def test_paths_of_data_are_absolute(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    run = config.load(file)
    assert run.data.path == str(tmp_path / "data" / "x.csv")
    assert config.load(file, ["data.path=other.csv"]).data.path == "/other.csv"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "copy.toml").write_text(config.dumps(run))
    assert config.load(tmp_path / "elsewhere" / "copy.toml") == run


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[flow\n")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name, words in [("none.toml", "no configuration file"), ("bad.toml", "not TOML"), ("binary.toml", "not TOML")]:
        with pytest.raises(InputError, match=words):
            config.load(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        config.load(tmp_path)


def test_digest_knows_what_determines_the_numbers() -> None:
    base = config.digest(parse())
    assert len(base) == 64
    assert config.digest(parse(output={"checkpoint_seconds": 1, "memory_mb": 9, "title": "t"})) == base
    assert config.digest(parse(flow={"lam": 0.01})) == base
    assert config.digest(parse(network={"alpha": "1"})) == base
    for sections in (
        {"flow": {"lam": 0.02}},
        {"cloud": {"seed": 1}},
        {"data": {"n": 5}},
        {"record": {"every": 2}},
        {"network": {"alpha": 2}},
    ):
        assert config.digest(parse(**sections)) != base


def test_alpha_is_the_same_number_however_it_is_written() -> None:
    assert config.digest(parse(network={"alpha": "sqrt(m)"}, cloud={"m": 1024})) == config.digest(
        parse(network={"alpha": 32.0}, cloud={"m": 1024})
    )


def test_differences_name_the_keys() -> None:
    a, b = parse(flow={"lam": 0.1}), parse(flow={"lam": 0.2}, data={"n": 5}, output={"title": "t"})
    assert config.differences(a, b) == ["data.n: not set -> 5", "flow.lam: 0.1 -> 0.2"]
    assert config.differences(a, a) == []


@pytest.mark.parametrize(
    ("alpha", "value"), [(20, 20.0), ("1", 1.0), ("sqrt(m)", 8.0), ("m", 64.0), ("m^1", 64.0), ("m^0.5", 8.0)]
)
def test_alpha(alpha: float | str, value: float) -> None:
    assert config.resolve_alpha(alpha, 64) == pytest.approx(value, rel=1e-15)


def test_sweeps_are_checked_point_by_point() -> None:
    run = parse(sweep={"flow": {"lam": [0.1, 0.2]}, "cloud.m": [10, 20]})
    assert run.sweep == {"flow.lam": [0.1, 0.2], "cloud.m": [10, 20]}
    assert run.flow.lam == 0.1  # a key that stands only in the sweep has its first value
    for bad in ({"flow.lam": 3}, {"flow.lam": []}, {"flow.lam": [0.1, -1]}, {"flow.lamda": [1]}, {"lam": [1]}):
        with pytest.raises(InputError):
            parse(sweep=bad)
