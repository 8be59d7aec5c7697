"""The command line: every command, every option, every exit code, and nothing imported before it is needed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time as clock
from pathlib import Path

import numpy as np
import pytest
import small

from meanfield import cli, known, parallel, report, selftest, store

CONFIG = f"""
[data]
source = "sphere"
n = 8
d = 2
[network]
alpha = 3.0
[cloud]
m = 64
replicates = 2
[flow]
time = 0.1
[record]
observables = {json.dumps([*small.CHEAP, "w2_upper", "kl_upper", "ntk_eigenvalue_min", "generator_rms"])}
bounds_every = 1
"""
COMMAND = [sys.executable, "-m", "meanfield.cli"]
HEAVY = ("scipy", "xarray", "matplotlib", "sklearn", "ot", "h5netcdf", "h5py", "pandas")


@pytest.fixture(autouse=True)
def all_cores_again():
    yield
    parallel.set_threads(None)


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def plain_report(monkeypatch) -> None:
    """A report without figures, which take longer than all the rest."""

    def write(directory, data, **material):
        (directory / "report.html").write_text("<html></html>")
        return directory / "report.html"

    monkeypatch.setattr(report, "write", write)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A run made by the command itself, with its report."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "tiny.toml").write_text(CONFIG)
    done = subprocess.run([*COMMAND, "run", "tiny.toml"], cwd=folder, capture_output=True, text=True, check=False)
    return folder / "runs" / "tiny", done


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# --- run


def test_run_from_nothing_to_a_report(finished) -> None:
    directory, done = finished
    assert done.returncode == 0, done.stderr
    names = {path.name for path in directory.iterdir()}
    assert names == {"config.toml", "metadata.json", "records.nc", "checkpoint.npz", "verify.json", "report.html",
                     "figures"}  # fmt: skip
    assert any(path.suffix == ".pdf" for path in (directory / "figures").iterdir())
    assert "Run: finished, time 0.1" in done.stdout and "report: runs/tiny/report.html" in done.stdout
    assert done.stderr.startswith("meanfield run: sphere, tanh, alpha = 3.0, lam = 0.01, m = 64, 2 replicates")
    metadata = json.loads((directory / "metadata.json").read_text())
    assert metadata["status"] == "finished" and metadata["violated"] == []
    assert {"start", "steps", "records", "bounds", "report"} <= metadata["timings"].keys()
    assert metadata["versions"]["numpy"] == np.__version__ and metadata["backend"] == "numpy"


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys) -> None:
    directory, _ = finished
    before = contents(directory)
    assert cli.main(["run", str(directory.parents[1] / "tiny.toml"), "--out", str(directory)]) == 0
    assert f"{directory} is finished; nothing was changed" in capsys.readouterr().out
    assert contents(directory) == before


def test_a_missing_report_is_written(copy, finished, capsys, plain_report) -> None:
    (copy / "report.html").unlink()
    assert cli.main(["run", str(copy / "config.toml"), "--out", str(copy)]) == 0
    assert "is finished; the missing" in capsys.readouterr().out and (copy / "report.html").exists()
    assert store.read_dataset(copy / "records.nc").equals(store.read_dataset(finished[0] / "records.nc"))


def test_options(config, tmp_path, capsys, plain_report, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "tiny.toml", "--set", "flow.lam=0.25", "--set", "network.activation=erf", "--threads", "1"]
    assert cli.main([*arguments, "--backend", "numpy", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    data = store.read_dataset(tmp_path / "runs/tiny/records.nc")
    assert data.attrs["lam"] == 0.25 and data.attrs["activation"] == "erf"
    assert store.read_json(tmp_path / "runs/tiny/metadata.json")["machine"]["threads"] == 1
    assert cli.main([*arguments, "--out", "else/where"]) == 0
    text = (tmp_path / "else/where/config.toml").read_text()
    assert "lam = 0.25" in text and 'activation = "erf"' in text


def test_show_resolves_and_does_nothing(config, tmp_path, capsys) -> None:
    before = contents(tmp_path)
    assert cli.main(["run", str(config), "--show", "--set", "network.alpha=sqrt(m)"]) == 0
    out = capsys.readouterr().out
    assert 'alpha = "sqrt(m)"' in out and 'scheme = "auto"' in out and "checkpoint_seconds = 30.0" in out
    assert contents(tmp_path) == before and not (tmp_path / "runs").exists()
    (tmp_path / "again.toml").write_text(out)
    assert cli.main(["run", str(tmp_path / "again.toml"), "--show"]) == 0
    assert capsys.readouterr().out == out


def test_output_settings_may_change_on_a_finished_run(copy) -> None:
    """They determine no number."""
    before = contents(copy)
    arguments = ["run", str(copy / "config.toml"), "--out", str(copy), "--set", "output.checkpoint_seconds=1"]
    assert cli.main(arguments) == 0 and contents(copy) == before


def test_notes_and_warnings_are_said(tmp_path, config, capsys, plain_report) -> None:
    x = np.random.default_rng(0).normal(size=(8, 2))
    x[5] = x[2]
    np.savez(tmp_path / "data.npz", x=x / 4, y=np.sign(x[:, 0]))
    data = ["--set", "data.source=npz", "--set", f"data.path={tmp_path / 'data.npz'}", "--set", "data.d="]
    assert cli.main(["run", str(config), "--out", str(tmp_path / "out"), "--quiet", *data]) == 0
    error = capsys.readouterr().err
    assert error.count("meanfield: warning: inputs 2 and 5 are equal: Lambda = 0") == 1
    assert "Theorem 4.4 does not apply" in error
    notes = store.read_json(tmp_path / "out/metadata.json")["data"]["notes"]
    assert any("equal" in note for note in notes) and any("left as they are" in note for note in notes)


def test_violations_are_loud(config, tmp_path, capsys, plain_report, monkeypatch) -> None:
    from meanfield import steps

    draw = steps.cloud_noise
    monkeypatch.setattr(steps, "cloud_noise", lambda *args, **options: 1.5 * draw(*args, **options))
    assert cli.main(["run", str(config), "--out", str(tmp_path / "out"), "--quiet", "--set", "cloud.m=500"]) == 1
    assert "meanfield: ERROR: violated on" in (error := capsys.readouterr().err) and "C0 noise: variance" in error
    assert store.read_json(tmp_path / "out/metadata.json")["violated"][0] == "C0 noise: variance"


# --- exit codes of the others


def test_verify_of_several_runs(finished, copy, capsys) -> None:
    assert cli.main(["verify", str(finished[0]), str(copy)]) == 0
    text = capsys.readouterr().out
    assert text.count("statement ") == 3 and "summary of 2 runs" in text
    assert cli.main(["verify", "--json", str(finished[0].parent)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"].keys() == {str(finished[0])} and len(found["summary"]) > 10


def test_verify(finished, copy, capsys) -> None:
    assert cli.main(["verify", str(finished[0])]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["statement", "verdict", "measured", "bound", "margin", "time"]
    assert cli.main(["verify", "--json", str(finished[0])]) == 0
    verdicts = json.loads(capsys.readouterr().out)
    assert [v["statement"] for v in verdicts] == [line.split("  ")[0] for line in table.splitlines()[2::2]]
    data = store.read_dataset(copy / "records.nc")
    store.write_dataset(copy / "records.nc", data.assign(loss=1.2 * data.loss))
    assert cli.main(["verify", str(copy)]) == 1
    assert "ERROR: violated on" in (error := capsys.readouterr().err) and "records: loss" in error


def test_report(copy, capsys, plain_report) -> None:
    before = contents(copy)
    assert cli.main(["report", str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(copy / "report.html")
    changed = {Path(name).name for name, value in contents(copy).items() if before[name][1] != value[1]}
    assert changed <= {"report.html", "metadata.json"}


def test_compare(finished, copy, tmp_path, capsys, config, plain_report) -> None:
    assert cli.main(["compare", str(finished[0]), str(copy)]) == 0
    assert capsys.readouterr().out == "equal: every recorded value and the last clouds, bit for bit\n"
    data = store.read_dataset(copy / "records.nc")
    data["loss"][1, -1] += 1e-9
    store.write_dataset(copy / "records.nc", data.drop_vars("eta"))
    assert cli.main(["compare", str(finished[0]), str(copy)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "eta: only in the first" and out[1].startswith("loss: largest difference 1e-09") and len(out) == 2
    other = ["--set", "cloud.m=32", "--set", "cloud.replicates=3", "--quiet"]
    assert cli.main(["run", str(config), "--out", str(tmp_path / "b"), *other]) == 0
    assert cli.main(["compare", str(finished[0]), str(tmp_path / "b")]) == 1
    out = capsys.readouterr().out
    assert "cloud.m: 64 -> 32" in out and "loss: shape (2, " in out and "replicates: 2 and 3" in out
    assert "last cloud of replicate 0: other shapes" in out


def test_a_run_that_diverges(config, tmp_path, capsys) -> None:
    wild = ["network.activation=linear", "network.alpha=40", "flow.scheme=euler", "flow.eta=1", "flow.time=500",
            "flow.allow_unstable=true", "record.bounds_every=[]"]  # fmt: skip
    arguments = [part for text in wild for part in ("--set", text)]
    with np.errstate(all="ignore"):
        code = cli.main(["run", str(config), "--out", str(tmp_path / "out"), "--quiet", *arguments])
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 3 and error.startswith("meanfield: ") and "Traceback" not in error
    assert store.read_json(tmp_path / "out/metadata.json")["status"] == "diverged"
    assert np.isfinite(store.read_dataset(tmp_path / "out/records.nc").loss).all()


def test_interrupted_from_the_keyboard(config, tmp_path, capsys, plain_report) -> None:
    out = tmp_path / "out"
    slow = ["--set", "flow.eta=5e-4", "--set", "flow.scheme=exponential", "--out", str(out)]
    arguments = ["run", str(config), *slow, "--set", "output.checkpoint_seconds=0", "--quiet"]
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = clock.monotonic() + 30
    while not (out / "checkpoint.npz").exists() and clock.monotonic() < deadline:
        clock.sleep(0.01)
    assert store.read_json(out / "metadata.json")["status"] == "running"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and error.startswith("meanfield: stopped by signal 2 at time 0.0")
    assert error.count("\n") == 1 and store.read_json(out / "metadata.json")["status"] == "interrupted"
    assert cli.main(["verify", str(out)]) == 0
    capsys.readouterr()
    # Another configuration is still refused, the same one goes on.
    assert cli.main(["run", str(config), *slow, "--set", "flow.lam=0.5"]) == 2
    assert "flow.lam: 0.01 -> 0.5" in capsys.readouterr().err
    assert cli.main(["run", str(config), *slow, "--quiet"]) == 0
    assert store.read_dataset(out / "records.nc").attrs["steps"] == 200


def test_backends(capsys, monkeypatch) -> None:
    assert cli.main(["backends"]) == 0
    assert capsys.readouterr().out.startswith("numpy: runs here, ")
    monkeypatch.setitem(selftest.backends.MODULES, "abacus", "meanfield.backends.abacus")
    assert cli.main(["backends"]) == 0
    assert "abacus: cannot run here. No module named 'meanfield.backends.abacus'" in capsys.readouterr().out


def test_selftest(capsys, monkeypatch) -> None:
    monkeypatch.setattr(selftest, "CHECKS", (known.random_bits, known.gaussian_distance))
    monkeypatch.setattr(selftest, "ON_BACKENDS", (known.normals_on,))
    assert cli.main(["selftest"]) == 0
    out = capsys.readouterr().out
    count = 2 + len(selftest.available())
    assert sum(line.startswith("ok ") for line in out.splitlines()) == count and f"{count} of {count} passed" in out

    def breaks() -> known.Check:
        raise RuntimeError("no compiler")

    wrong = known.Check("pi", 3.0, 3.14159, 0.01)
    monkeypatch.setattr(selftest, "CHECKS", (known.random_bits, lambda: wrong, breaks))
    monkeypatch.setattr(selftest, "ON_BACKENDS", ())
    assert cli.main(["selftest"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  pi" in out and "FAIL  breaks" in out and "1 of 3 passed" in out and "RuntimeError: no compiler" in out


# --- usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["rum", "x.toml"], "invalid choice: 'rum'"),
        (["run"], "the following arguments are required: CONFIG.toml"),
        (["run", "x.toml", "--threads", "many"], "argument --threads: invalid int value: 'many'"),
        (["verify"], "the following arguments are required: DIR"),
        (["compare", "one"], "the following arguments are required: DIR"),
    ],
)
def test_usage_errors_end_with_2(arguments, words, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["verify", "-h"], ["compare", "-h"], ["--version"]]
)
def test_help(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "130 interrupted (state saved)" in " ".join(out.split()) if arguments == ["--help"] else "meanfield" in out


@pytest.mark.parametrize("command", ["verify", "report"])
def test_directories_that_hold_no_run(command, tmp_path, capsys) -> None:
    assert cli.main([command, str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a run directory: it has no metadata.json" in capsys.readouterr().err
    (tmp_path / "metadata.json").write_text('{"status": "running"}')
    assert cli.main([command, str(tmp_path)]) == 2
    assert "is not a finished run directory: it has no records.nc" in capsys.readouterr().err
    (tmp_path / "metadata.json").write_text("{")
    assert cli.main([command, str(tmp_path)]) == 2
    assert "metadata.json cannot be read as JSON" in capsys.readouterr().err


def test_a_damaged_file_of_records(copy, capsys) -> None:
    (copy / "records.nc").write_bytes((copy / "records.nc").read_bytes()[:3000])
    assert cli.main(["verify", str(copy)]) == 2
    assert "records.nc cannot be read as NetCDF" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(config) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, "run", str(config), "--show"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.stderr == b"" and done.returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "tiny.toml", "--show"]])
def test_heavy_packages_wait_until_they_are_needed(arguments, config) -> None:
    code = f"""
import sys
from meanfield.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
print(*[name for name in {HEAVY!r} if name in sys.modules], "numpy" * ("numpy" in sys.modules), file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=config.parent, env=environment, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stderr.strip() == "" and len(done.stdout) > 200
