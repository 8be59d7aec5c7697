"""A run directory repeats its run: `meanfield run DIR/config.toml` gives the same bits, or says why not. 12 s."""

import gzip
import json
import os
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from meanfield import backends, cli, datasets, experiment, parallel, report, store
from meanfield.config import DataConfig
from meanfield.errors import InputError

CONFIG = """
[data]
source = "npz"
path = "data.npz"
[cloud]
m = 8200
replicates = 2
[flow]
time = 0.02
[record]
observables = ["loss", "kl_account", "w2_upper"]
bounds_every = 1
"""
CASES = {
    "kernel": [],
    "single precision": ["--set", "cloud.dtype=float32"],
    "batches": ["--set", "flow.batch=4", "--set", "flow.scheme=euler", "--set", "flow.eta=0.01"],
    "numpy": ["--backend", "numpy"],
    "outer layer": ["--set", "flow.train=u", "--set", "network.alpha=sqrt(m)", "--threads", "1"],
}


@pytest.fixture(autouse=True)
def all_cores_again():
    yield
    parallel.set_threads(None)


@pytest.fixture
def plain_report(monkeypatch) -> None:
    monkeypatch.setattr(report, "write", lambda directory, data, **_: directory / "report.html")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.standard_normal((8, 2)) / 3, y=rng.choice([-1.0, 1.0], 8))
    Path("one.toml").write_text(CONFIG)
    return tmp_path


def written(directory: str) -> dict:
    return tomllib.loads((Path(directory) / "config.toml").read_text())


@pytest.mark.parametrize("case", CASES)
def test_the_configuration_of_a_run_directory_repeats_the_run(case, folder, plain_report, monkeypatch) -> None:
    assert cli.main(["run", "one.toml", "--out", "first", "--quiet", *CASES[case]]) == 0
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert cli.main(["run", "../first/config.toml", "--out", "second", "--quiet"]) == 0
    assert experiment.compare(folder / "first", Path("second")) == ([], True)
    assert written("second") == written(folder / "first")


def test_in_another_process(folder, plain_report) -> None:
    assert cli.main(["run", "one.toml", "--out", "first", "--quiet"]) == 0
    command = [sys.executable, "-m", "meanfield.cli", "run", "first/config.toml", "--out", "second", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert experiment.compare(Path("first"), Path("second")) == ([], True)


def test_what_was_chosen_is_written_down(folder, plain_report) -> None:
    chosen = "numpy" if backends.unavailable("cpu") else "cpu"
    assert cli.main(["run", "one.toml", "--out", "first", "--quiet"]) == 0
    assert written("first")["cloud"]["backend"] == chosen
    assert written("first")["data"]["sha256"] == datasets.load(DataConfig("npz", "data.npz")).sha256
    assert cli.main(["run", "one.toml", "--out", "first", "--quiet"]) == 0  # open keys are no other configuration
    assert cli.main(["run", "one.toml", "--out", "first", "--quiet", "--backend", chosen]) == 0


def test_another_backend_is_another_run(folder, plain_report, capsys) -> None:
    assert cli.main(["run", "one.toml", "--out", "first", "--quiet", "--backend", "numpy"]) == 0
    assert cli.main(["run", "one.toml", "--out", "first", "--quiet", "--backend", "cpu"]) == 2
    assert "cloud.backend: numpy -> cpu" in capsys.readouterr().err
    assert cli.main(["run", "first/config.toml", "--show", "--backend", "auto"]) == 0
    assert 'backend = "auto"' in capsys.readouterr().out


def test_data_that_have_changed_are_refused(folder, plain_report, capsys) -> None:
    assert cli.main(["run", "one.toml", "--out", "first", "--quiet"]) == 0
    with np.load("data.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    np.savez("data.npz", x=x, y=-y)
    assert cli.main(["run", "first/config.toml", "--out", "second", "--quiet"]) == 2
    message = capsys.readouterr().err
    assert "data.npz' is another file than when" in message and "--set data.sha256=" in message
    assert not Path("second/metadata.json").exists()
    assert cli.main(["run", "first/config.toml", "--out", "second", "--quiet", "--set", "data.sha256="]) == 0
    lines, equal = experiment.compare(Path("first"), Path("second"))
    assert not equal and any(line.startswith("data.sha256: ") for line in lines)


def idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0))


def test_images_and_labels_are_both_looked_at(tmp_path) -> None:
    rng = np.random.default_rng(1)
    labels = np.array([3, 8, 3, 8])
    idx(tmp_path / "train-images-idx3-ubyte.gz", rng.integers(256, size=(4, 2, 2)))
    idx(tmp_path / "train-labels-idx1-ubyte.gz", labels)
    before = datasets.load(DataConfig("mnist", str(tmp_path))).sha256
    assert datasets.load(DataConfig("mnist", str(tmp_path), sha256=before)).sha256 == before
    idx(tmp_path / "train-labels-idx1-ubyte.gz", labels[::-1])
    with pytest.raises(InputError, match="is another file than when"):
        datasets.load(DataConfig("mnist", str(tmp_path), sha256=before))


def test_data_of_no_file_have_no_name() -> None:
    assert datasets.load(DataConfig("sphere", n=4, d=2)).sha256 is None
    with pytest.raises(InputError, match="data.sha256 = .* means nothing to the source 'sphere'"):
        datasets.load(DataConfig("sphere", n=4, d=2, sha256="0" * 64))
    with pytest.raises(InputError, match="wanted 64 hexadecimal digits"):
        DataConfig("npz", "data.npz", sha256="12")


def test_runs_that_differ_say_what_else_does(folder, plain_report) -> None:
    for name, seed in (("first", 0), ("second", 1)):
        assert cli.main(["run", "one.toml", "--out", name, "--quiet", "--set", f"cloud.seed={seed}"]) == 0
    metadata = store.read_json(Path("second/metadata.json"))
    assert {"numpy", "python", "meanfield"} <= metadata["versions"].keys()
    assert metadata["machine"]["blas"] and "model" in metadata["machine"]
    metadata["versions"] |= {"numpy": "0.1"}
    metadata["versions"].pop("scipy")
    metadata["machine"] |= {"model": "another", "threads": 77}
    Path("second/metadata.json").write_text(json.dumps(metadata))
    lines, equal = experiment.compare(Path("first"), Path("second"))
    assert not equal and "cloud.seed: 0 -> 1" in lines
    assert any(line.startswith("versions: numpy ") and line.endswith(" -> 0.1") for line in lines)
    assert any(line.startswith("versions: scipy ") and line.endswith(" -> not there") for line in lines)
    assert any(line.startswith("machine: model ") and line.endswith(" -> another") for line in lines)
    assert not any("threads" in line for line in lines)
