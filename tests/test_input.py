"""Bad input: one clear sentence each, exit code 2, and nothing written or overwritten."""

import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
import small
import tomli_w

from meanfield import cli, store
from meanfield.cloud import cloud_at, gaussian_cloud
from meanfield.errors import InputError
from meanfield.flow import Flow
from meanfield.minibatch import Minibatch
from meanfield.objectives import Potential
from meanfield.planning import Record
from meanfield.risk import Risk
from meanfield.simulate import simulate

PLAIN = {
    "data": {"source": "npz", "path": "data.npz"},
    "network": {"alpha": 3.0},
    "cloud": {"m": 16, "replicates": 2},
    "flow": {"time": 0.1},
    "record": {"observables": ["loss"], "bounds_every": 1},
}


def arrays(**changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return dict(x=rng.normal(size=(6, 3)) / 4, y=np.array([1.0, -1, 1, -1, 1, -1])) | changes


def spoilt(place: tuple, value: float) -> np.ndarray:
    x = arrays()["x"]
    x[place] = value
    return x


def with_row(row: int, like: float, of: int) -> np.ndarray:
    x = arrays()["x"]
    x[row] = like * x[of]
    return x


@pytest.fixture
def there(tmp_path, monkeypatch) -> Path:
    """A folder with sound data and a sound configuration; everything in it stays as it is."""
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", **arrays())
    Path("run.toml").write_text(tomli_w.dumps(PLAIN))
    return tmp_path


def refused(capsys, *arguments: str, out: str = "out") -> str:
    """Run the command; return the one line that it says, having checked that it wrote nothing."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    folders = {path for path in Path().rglob("*") if path.is_dir()}
    code = cli.main(["run", "run.toml", "--out", out, "--quiet", *arguments])
    said = capsys.readouterr()
    assert code == 2, said
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert {path for path in Path().rglob("*") if path.is_dir()} == folders
    lines = [line for line in said.err.splitlines() if not line.startswith("meanfield: warning: ")]
    assert said.out == "" and len(lines) == 1 and lines[0].startswith("meanfield: ")
    return lines[0].removeprefix("meanfield: ")


# --- data


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(x=spoilt((4, 1), np.nan)), "x holds nan in row 4 (counted from 0): wanted finite numbers"),
        (dict(x=spoilt((0, 2), -np.inf)), "x holds -inf in row 0"),
        (dict(y=np.array([1.0, -1, 1, np.nan, 1, -1])), "y holds nan in row 3"),
        (dict(x=np.ones(6)), "x has shape (6,): wanted (n, d), a row for each input. Type x[:, None]"),
        (dict(x=np.ones((6, 1, 2))), "x has shape (6, 1, 2): wanted (n, d)"),
        (dict(y=np.ones((6, 1))), "y has shape (6, 1): wanted (n,), a number for each input. Type y[:, 0]."),
        (dict(y=np.array([1.0, -1])), "x has 6 rows and y has 2 numbers: wanted as many of both"),
        (dict(x=np.ones((0, 3)), y=np.ones(0)), "x has shape (0, 3), so it is empty"),
        (dict(y=np.ones(6)), "all 6 labels are +1, one class only: wanted both +1 and -1"),
        (dict(x=arrays()["x"] * 1j), "x is of type complex128: wanted real numbers"),
        (dict(x_test=np.ones((2, 2)), y_test=np.ones(2)), "test inputs have 2 columns, the network was given 3"),
        (dict(x_test=np.full((2, 3), np.nan), y_test=np.ones(2)), "x holds nan in row 0"),
    ],
)
def test_unfit_data(changes, words, there, capsys) -> None:
    np.savez("data.npz", **arrays(**changes))
    assert words in refused(capsys)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (with_row(5, 1.0, 2), "inputs 2 and 5 are equal: Lambda = 0 for every activation"),
        (with_row(4, -1.0, 1), "inputs 1 and 4 are opposite: without bias, Lambda = 0 for odd and even activations"),
        (with_row(3, 0.5, 0), "inputs 0 and 3 are parallel: without bias, Lambda = 0 for linear units"),
        (with_row(3, 0.0, 0), "input 3 is zero: without bias, Lambda = 0 for every activation with h(0) = 0"),
    ],
)
def test_inputs_that_make_the_theorem_empty_are_warned_of(x, words, there, capsys, monkeypatch) -> None:
    monkeypatch.setattr("meanfield.report.write", lambda directory, data, **material: directory / "report.html")
    np.savez("data.npz", **arrays(x=x))
    assert cli.main(["run", "run.toml", "--out", "out", "--quiet"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("meanfield: warning: ")]
    assert len(warnings) == 1 and words in warnings[0] and "Theorem 4.4 does not apply" in warnings[0]
    verdicts = {v["statement"]: v for v in json.loads(Path("out/verify.json").read_text())}
    hypothesis = verdicts["Theorem 4.4, hypothesis (4.1)"]
    assert hypothesis["verdict"] == "not applicable"
    assert ("Lambda = 0" in hypothesis["note"]) is ("parallel" not in words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (dict(path="nowhere.npz"), "nowhere.npz' cannot be read: No such file or directory. Check data.path."),
        (dict(path="."), "' cannot be read: Is a directory"),
        (dict(path="run.toml"), "is damaged, not an npz file or holds Python objects"),
        (dict(source="csv", path="run.toml"), "data.target did not come: the source 'csv' wants the name"),
        (dict(source="csv", path="run.toml", target="z"), "run.toml"),
        (dict(source="mnist", path="nowhere"), "nowhere"),
        (dict(source="digit", path=None), "data.source = 'digit' is unknown: wanted one of"),
        (dict(source="digits", path=None, classes=[3, 11]), "no row has the label 11: wanted two of 0, 1, 2"),
        (dict(source="digits", path=None, n=4000), "data.n = 4000 came: wanted at most 357 rows"),
        (dict(source="sphere", path=None, teacher="lineal"), "wanted one of linear, network, random. Did you mean"),
        (dict(source="npz", path=None), "data.path did not come: the source 'npz' wants it"),
        (dict(lags=3), "data.lags = 3 means nothing to the source 'npz'"),
        (dict(n=7), "data.n = 7 came: wanted at most 6 rows"),
    ],
)
def test_data_that_are_not_there(data, words, there, capsys) -> None:
    plain = PLAIN | {"data": {k: v for k, v in (PLAIN["data"] | data).items() if v is not None}}
    Path("run.toml").write_text(tomli_w.dumps(plain))
    assert words in refused(capsys)


# --- configuration


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("flow.lambda=0.1", "unknown key 'flow.lambda': wanted one of lam, eta,"),
        ("flow.shceme=euler", "Did you mean 'scheme'?"),
        ("flow.m=100", "'m' belongs under [cloud]."),
        ("folw.lam=0.1", "unknown section 'folw': wanted one of data, network, cloud, flow, record, output, sweep."),
        ("cloud.m=0", "cloud.m = 0 is not possible: wanted an integer from 1 to 2^32"),
        ("cloud.m=1.5", "cloud.m = 1.5 is not possible: wanted an integer"),
        ("cloud.replicates=-1", "cloud.replicates = -1 is not possible"),
        ("cloud.seed=-1", "cloud.seed = -1 is not possible: wanted an integer from 0 to 2^64 - 1"),
        ("cloud.dtype=float16", 'wanted one of "float64", "float32"'),
        ("cloud.m=4000000000", "GB, this machine has"),
        ("network.alpha=-3", "network.alpha = -3"),
        ("network.alpha=sqrt(n)", "network.alpha = 'sqrt(n)' is not possible: wanted a number from 1e-30"),
        ("network.activation=tahn", "Did you mean 'tanh'?"),
        ("network.loss=hinge", 'wanted one of "square", "logistic"'),
        ("flow.lam=-0.1", "flow.lam = -0.1 is not possible: wanted a number of at least 0"),
        ("flow.lam=nan", "flow.lam = nan is not possible"),
        ("flow.time=0", "flow.time = 0 is not possible: wanted a number above 0"),
        ("flow.time=", "how long to run did not come"),
        ("flow.steps=5", "flow.time = 0.1 and flow.steps = 5 both came: wanted one of them"),
        ("flow.eta=-1", "flow.eta = -1"),
        ("flow.eta=fast", "flow.eta = 'fast' is not possible"),
        ("flow.scheme=eular", "Did you mean 'euler'?"),
        ("flow.train=v", 'flow.train = \'v\' is not possible: wanted one of "both", "u", "theta"'),
        ("flow.batch=7", "the batch size must be between 1 and n = 6, got 7"),
        ("record.every=0", "record.every = 0 is not possible"),
        ("record.observables=[\"los\"]", "no observable is called 'los'. Did you mean 'loss'?"),
        ("record.snapshots=[0.5]", "record.snapshots asks for time 0.5 but flow.time is 0.1"),
        ("record.bounds_every=[-1.0]", "record.bounds_every = "),
        ("flow.lam", "--set flow.lam came: wanted section.key=value, for example --set flow.lam=0.1"),
        ("flow.lam=[", "--set flow.lam=[ came: the value is not TOML"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(setting, words, there, capsys) -> None:
    assert words in refused(capsys, "--set", setting)


def test_steps_above_the_limit_are_refused_with_the_limit_and_the_cure(there, capsys) -> None:
    options = [part for text in ("flow.scheme=euler", "flow.eta=0.5", "network.alpha=100") for part in ("--set", text)]
    sentence = refused(capsys, *options)
    assert (
        "eta = 0.1 is above the stability limit" in sentence and "take scheme='kernel', which has no limit" in sentence
    )
    assert "allow_unstable=True" in sentence


def test_the_logistic_loss_wants_signs(there, capsys) -> None:
    np.savez("data.npz", **arrays(y=np.array([0.5, 1, -1, 1, -1, 0.2])))
    assert "the logistic loss needs labels +1 and -1" in refused(capsys, "--set", "network.loss=logistic")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no configuration file 'run.toml': wanted the path of a TOML file."),
        (b"[flow\nlam = 1", "'run.toml' is not TOML"),
        (b"\xff\xfe", "'run.toml' is not TOML"),
        (b"lam = 0.1", "unknown section 'lam': wanted one of data, network, cloud, flow, record, output, sweep."),
        (b"", "how long to run did not come: wanted flow.time or flow.steps. Type --set flow.time=2."),
    ],
)
def test_configurations_that_are_none(content, words, there, capsys) -> None:
    Path("run.toml").unlink()
    if content is not None:
        Path("run.toml").write_bytes(content)
    assert words in refused(capsys)


def test_options_that_make_no_sense(there, capsys) -> None:
    assert "threads must be at least 1, got 0" in refused(capsys, "--threads", "0")
    assert "no backend is called 'nunpy'; there are: auto, numpy, cpu, keops, cuda. Did you mean 'numpy'?" in refused(
        capsys, "--backend", "nunpy"
    )


# --- output


def test_output_that_cannot_be_written(there, capsys) -> None:
    assert "data.npz is a file, wanted a directory; choose another run directory" in refused(capsys, out="data.npz")
    assert "data.npz is a file, wanted a directory" in refused(capsys, out="data.npz/deeper")
    assert "cannot write to the run directory /proc/run" in refused(capsys, out="/proc/run")
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("years of work")
    assert "full is not empty and is no run directory (it holds thesis.tex)" in refused(capsys, out="full")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_output_that_is_forbidden(there, capsys) -> None:
    Path("closed").mkdir(mode=0o500)
    assert "closed: permission denied; choose another run directory with --out" in refused(capsys, out="closed/run")


def test_a_disk_that_fills_up(there, capsys, monkeypatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    assert cli.main(["run", "run.toml", "--out", "out", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("No space left on device; free some space and go on with the same command, or choose another "
                         "directory with --out\n")  # fmt: skip


def test_the_directory_of_another_configuration(there, capsys, monkeypatch) -> None:
    monkeypatch.setattr("meanfield.report.write", lambda directory, data, **material: directory / "report.html")
    assert cli.main(["run", "run.toml", "--out", "out", "--quiet"]) == 0
    sentence = refused(capsys, "--set", "network.alpha=4", "--set", "cloud.m=17", "--set", "cloud.seed=1")
    assert (
        "out was made by another configuration (cloud.m: 16 -> 17; cloud.seed: 0 -> 1; network.alpha: 3.0 -> 4.0)"
        in (sentence)
    )
    assert "nothing was overwritten" in sentence
    # The same words about other data: the file has changed, and the run is not finished.
    metadata = json.loads(Path("out/metadata.json").read_text())
    Path("out/metadata.json").write_text(json.dumps(metadata | {"status": "running"}))
    np.savez("data.npz", **arrays(y=-arrays()["y"]))
    assert "out holds another run: data was" in refused(capsys)
    Path("out/config.toml").write_text("[flow")
    assert "'out/config.toml' is not TOML" in refused(capsys)


def test_a_run_of_the_plain_configuration_is_fine(there, monkeypatch) -> None:
    """What is refused above is refused for what was changed."""
    monkeypatch.setattr("meanfield.report.write", lambda directory, data, **material: directory / "report.html")
    assert cli.main(["run", "run.toml", "--out", "out", "--quiet"]) == 0
    assert tomllib.loads(Path("out/config.toml").read_text())["data"]["path"] == str(there / "data.npz")


# --- in a script


def well(rate: float = 20.0) -> Potential:
    return Potential(lambda z: 0.5 * rate * (z**2).sum(1), lambda z: rate * z, rate)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(time=None), "time=... or steps=..., one of them"),
        (dict(time=1.0, steps=3), "time=... or steps=..., one of them"),
        (dict(time=-1.0), "time must be positive and finite, got -1.0"),
        (dict(time=float("nan")), "time must be positive and finite"),
        (dict(time=None, steps=5), "steps=... needs a fixed eta"),
        (dict(time=None, steps=0), "steps must be a whole number, at least 1 step, got 0"),
        (dict(time=1.0, every=0), "every must be a whole number, at least 1 step"),
        (dict(time=1.0, replicates=0), "replicates must be a whole number, at least 1 cloud, got 0"),
        (dict(time=1.0, replicates=2.5), "replicates must be a whole number"),
        (dict(time=1.0, observables=["kl_uper"]), "no observable is called 'kl_uper'. Did you mean 'kl_upper'?"),
        (dict(time=1.0, bounds="often"), "bounds must be 'auto', a number of times or a list of times, got 'often'"),
        (dict(time=1.0, bounds=-1), "at least 0 and at most 1000, got -1"),
        (dict(time=1.0, bounds=[0.5, 2.0]), "bound times must lie in [0, 1.0], got 0.5 to 2.0"),
        (dict(time=1.0, snapshots=[1.5]), "a record is asked for at time 1.5, outside of the run's [0, 1.0]"),
        (dict(time=1.0, snapshots=["end"]), "snapshots must be a list of times"),
        (dict(time=1.0, on_failure="ignore"), "on_failure must be 'raise' or 'return', got 'ignore'"),
        (dict(time=1.0, records=[Record(lambda c, f: 0, name="loss")]), "two records are called 'loss'"),
        (dict(time=1.0, records=[Record(lambda c, f: 0, name="eta")]), "two records are called 'eta'"),
        (dict(time=1.0, records=[Record(lambda c, f: 0, name="a", at=[3])]), "asked for at time 3.0, outside"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path, arguments, words) -> None:
    flow = small.flow()
    with pytest.raises(InputError) as caught:
        simulate(flow, small.cloud(flow, 32), directory=tmp_path / "run", **arguments)
    assert words in str(caught.value) and not (tmp_path / "run").exists()


def test_records_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="identifier, got '<lambda>'; give name="):
        Record(lambda cloud, flow: 0)
    with pytest.raises(InputError, match="every must be at least 1 step, got 0"):
        Record(len, every=0)
    with pytest.raises(InputError, match="list of times such as"):
        Record(len, at=0.3)
    with pytest.raises(InputError, match="snapshots are written to the run directory: give directory="):
        flow = small.flow()
        simulate(flow, small.cloud(flow), 1.0, snapshots=[0.1])


def test_a_cloud_of_other_neurons_is_refused() -> None:
    flow = small.flow()
    with pytest.raises(InputError, match="D = 7 coordinates, a network with 3 inputs needs D = 4"):
        simulate(flow, gaussian_cloud(32, dimension=7), 1.0)


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        (small.flow("euler", 0.5, alpha=50.0), "above the stability limit"),
        (small.flow("exponential", 0.5, alpha=50.0), "take scheme='kernel', which has no limit, eta below"),
        (small.flow("euler", 30.0, lam=0.1, allow_unstable=True), "makes the decay of an Euler step overshoot"),
        (small.flow("exponential", lambda step: -1.0), "eta must be positive and finite, but the flow gave -1.0"),
        (small.flow("euler", lambda step: float("nan")), "the flow gave nan for step 0"),
        (Flow(well(), scheme="kernel"), "needs an objective with a tangent"),
        (Flow(well(), scheme="kernel", eta=0.1), "needs an objective with a tangent"),
        (Flow(Potential(lambda z: z[:, 0], lambda z: np.ones_like(z)), lam=0.0), "give eta as a number"),
        (Flow(Potential(lambda z: z[:2, 0], lambda z: z)), "must return shape (32,), it returned (2,)"),
        (Flow(Potential(lambda z: np.inf * np.ones(32), lambda z: z), eta=0.1), "the loss at the start is inf"),
    ],
)
def test_steps_that_cannot_be_made_are_refused_before_anything_is_written(tmp_path, flow, words) -> None:
    with pytest.raises(InputError) as caught:
        simulate(flow, gaussian_cloud(32, dimension=4), 100.0, directory=tmp_path / "run")
    assert words in str(caught.value) and not (tmp_path / "run").exists()


def test_a_centred_network_without_reference_is_refused(tmp_path) -> None:
    flow = small.flow("exponential", 0.01)
    with pytest.raises(InputError, match="centred=True needs a cloud with a coupled reference"):
        simulate(flow, cloud_at(np.ones((32, 4))), 1.0, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x, y: Risk(x[0], y), "x must have shape (n, d) with at least one sample, got shape (3,)"),
        (lambda x, y: Risk(x, y[:2]), "y must have shape (12,), one label for each row of x, got (2,)"),
        (lambda x, y: Risk(x * np.inf, y), "x holds NaN or infinity"),
        (lambda x, y: Risk(x, y * np.nan), "y holds NaN or infinity"),
        (lambda x, y: Risk(x, y, alpha=0.0), "alpha must be a number from 1e-30 to 1e+30, got 0.0"),
        (lambda x, y: Risk(x, y, loss="logistics"), "Did you mean 'logistic'?"),
        (lambda x, y: Risk(x, y, "tahn"), "Did you mean 'tanh'?"),
        (lambda x, y: Minibatch(Risk(x, y), 13), "between 1 and n = 12, got 13"),
        (
            lambda x, y: Flow(Minibatch(Risk(x, y), 3), scheme="kernel"),
            "would solve each batch to its end; take 'euler'",
        ),
        (lambda x, y: Flow(x), "objective must be an Objective such as mf.Risk(x, y), got ndarray"),
        (lambda x, y: Flow(Risk(x, y), lam=-1.0), "lam must be finite and at least 0, got -1.0"),
        (lambda x, y: Flow(Risk(x, y), scheme="kernal"), "Did you mean 'kernel'?"),
        (lambda x, y: Flow(Risk(x, y), eta=0.0), "eta must be a positive number, 'auto' or a function"),
        (lambda x, y: Flow(Risk(x, y), train="v"), "train must be 'both', 'u' or 'theta', got 'v'"),
        (lambda x, y: gaussian_cloud(0, dimension=3), "m must be a positive whole number of particles, got 0"),
        (lambda x, y: gaussian_cloud(5), "gaussian_cloud needs d"),
        (lambda x, y: gaussian_cloud(5, dimension=3, dtype="float16"), "dtype must be 'float64' or 'float32'"),
        (lambda x, y: gaussian_cloud(5, dimension=3, seed=-1), "seed must be at least 0 and below 2^64, got -1"),
        (lambda x, y: gaussian_cloud(5, dimension=3, weights=np.ones(4)), "weights must have shape (5,)"),
        (lambda x, y: cloud_at(np.full((3, 2), np.nan)), "particles must be finite, but NaN or infinity came"),
        (lambda x, y: cloud_at(np.ones(3)), "array of shape (m, D), got shape (3,)"),
    ],
)
def test_objects_that_make_no_sense_are_refused(make, words) -> None:
    with pytest.raises(InputError) as caught, np.errstate(invalid="ignore"):
        make(*small.data())
    assert words in str(caught.value)
