"""What is fuzzed: for every reader the valid files, their mutations, and what is done with what comes out."""

import contextlib
import functools
import io
import shutil
import signal
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from meanfield import cli, config, datasets, experiment, plots, store
from meanfield.config import DataConfig
from meanfield.errors import InputError

from . import mutations

FIGURES = 0.01  # share of reports that are drawn with their figures
TOML = """[data]
source = "sphere"
n = 6
d = 2
seed = 3
[network]
activation = "tanh"
alpha = "m^0.3"
[cloud]
m = 16
replicates = 2
[flow]
time = 0.06
eta = 0.02
scheme = "exponential"
[record]
observables = ["loss", "prediction", "kl_upper", "w2_upper", "travelled"]
bounds_every = 2
[output]
title = "a title"
checkpoint_seconds = 0
"""
SWEEP = '[sweep]\n"cloud.m" = [8, 16]\nflow.lam = [0.1, 0.2]\n'
CSV = "day,a,b,y\n" + "".join(f"{k},{k % 3},{k * 0.25},{(-1) ** k}\n" for k in range(12))


class Finding(Exception):
    """What an input should not have done."""


# --- what files are


def valid(folder: Path) -> dict[str, list[bytes]]:
    """Return valid files of every kind; a run that was stopped lies in folder/run, the finished one beside it."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)) / 4, np.array([1.0, -1, 1, -1, 1, -1])
    images = b"\0\0\x08\x03" + b"".join(int(k).to_bytes(4, "big") for k in (12, 2, 3)) + rng.bytes(72)
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, x=x, y=y, x_test=x[:2], y_test=y[:2])
    np.savez_compressed(packed, x=x.astype("f4"), y=y.astype(int))
    (folder / "run.toml").write_text(TOML)
    make_runs(folder)
    run = folder / "run"
    return {
        "toml": [TOML.encode(), (TOML + SWEEP).encode()],
        "csv": [CSV.encode(), CSV.replace("\n", "\r\n").encode("utf-8-sig")],
        "idx": [images, zlib.compress(images, wbits=31)],
        "labels": [b"\0\0\x08\x01\0\0\0\x0c" + bytes(k % 3 for k in range(12))],
        "npz": [plain.getvalue(), packed.getvalue()],
        "config": [(run / "config.toml").read_bytes()],
        "metadata": [(run / "metadata.json").read_bytes(), (folder / "finished/metadata.json").read_bytes()],
        "records": [(folder / "finished/records.nc").read_bytes()],
        "foreign records": [mutations.unsealed(store.read_dataset(folder / "finished/records.nc"))],
        "checkpoint": [(run / "checkpoint.npz").read_bytes(), (folder / "finished/checkpoint.npz").read_bytes()],
    }


def make_runs(folder: Path) -> None:
    """Make the finished run, and one that was stopped by a signal after its first step."""
    command(["run", str(folder / "run.toml"), "--out", str(folder / "finished"), "--quiet"])
    write = store.write_checkpoint

    def stop(*arguments: Any) -> None:
        write(*arguments)
        signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(store, "write_checkpoint", stop):
        command(["run", str(folder / "run.toml"), "--out", str(folder / "run"), "--quiet"])
    assert store.read_json(folder / "run/metadata.json")["status"] == "interrupted"


def mutation(target: str, seeds: list[bytes], rng: np.random.Generator) -> bytes:
    """Return a mutation of a valid file."""
    raw, meaning = mutations.pick(rng, seeds), MEANING.get(target)
    if meaning is not None and rng.random() < 0.5:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = meaning(raw, rng)
        return out if rng.random() < 0.8 else mutations.of_bytes(out, rng)
    return mutations.of_bytes(raw, rng)


MEANING: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "toml": mutations.of_toml,
    "config": mutations.of_toml,
    "csv": mutations.of_csv,
    "idx": mutations.of_idx,
    "labels": mutations.of_idx,
    "npz": mutations.of_npz,
    "checkpoint": mutations.of_npz,
    "metadata": mutations.of_json,
    "records": mutations.of_records,
    "foreign records": mutations.of_foreign,
}


# --- what is done with them


def command(arguments: list[str], figures: bool = False) -> int:
    """Run the command line in this process; return its exit code, having looked at what it says."""
    said, complained = io.StringIO(), io.StringIO()
    drawn = contextlib.nullcontext() if figures else mock.patch.object(plots, "save", lambda *a, **k: ({}, []))
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained), drawn, np.errstate(all="ignore"):
        try:
            code = cli.main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
    text = complained.getvalue()
    if "Traceback" in text or any(not line.startswith("meanfield") for line in text.splitlines()):
        raise Finding(f"the command said {text[-500:]!r}")
    if code not in (0, 1, 2, 3, 130) or (code == 2 and not text):
        raise Finding(f"{arguments[0]} ended with {code} and {text!r}")
    return code


def read_toml(path: Path, folder: Path, choice: int) -> str:
    code = command(["run", str(path), "--show"])
    if code:
        return "refused"
    one = config.load(path)
    again = config.parse(config.to_dict(one))
    if config.dumps(again) != config.dumps(one) or config.digest(again) != config.digest(one):
        raise Finding("a configuration is not what its resolved text says")
    small = one.cloud.m * one.cloud.replicates <= 4096 and (one.data.n or 0) <= 1000 and (one.data.d or 0) <= 100
    if choice % 4 == 0 and small and one.data.source in ("sphere", "sine", "digits"):
        with contextlib.suppress(InputError):
            experiment.check(config.at(one, {"cloud.backend": "numpy"}), datasets.load(one.data))
    return "accepted"


def read_data(options: list[dict[str, Any]]) -> Callable[[Path, Path, int], str]:
    def read(path: Path, folder: Path, choice: int) -> str:
        try:
            data = datasets.load(DataConfig(path=str(path), **options[choice % len(options)]))
        except InputError:
            return "refused"
        if not (np.isfinite(data.x).all() and np.isfinite(data.y).all() and len(data.x) == len(data.y)):
            raise Finding("data are not finite")
        return "accepted"

    return read


def read_run(name: str) -> Callable[[Path, Path, int], str]:
    """Put the file into a run directory, and let a command at it."""

    def read(path: Path, folder: Path, choice: int) -> str:
        source = folder / ("run" if choice % 2 else "finished")
        place = folder / "hurt"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("figures", "*.pdf"))
        shutil.copy(path, place / name)
        kind = choice // 2 % 4
        if kind == 0:
            return str(command(["verify", str(place)]))
        if kind == 1:
            code = command(["report", str(place)], figures=choice // 8 % 10_000 < FIGURES * 10_000)
            escaped(place)
            return str(code)
        if kind == 2:
            return str(command(["compare", str(place), str(folder / "finished")]))
        code = command(["run", str(folder / "run.toml"), "--out", str(place), "--quiet"])
        if code == 0 and choice // 8 % 2:
            same(place, folder / "finished", path)
        return str(code)

    return read


def escaped(place: Path) -> None:
    """Look for marks of the hostile texts in a report as they would be executed."""
    page = (place / "report.html").read_text(encoding="utf-8") if (place / "report.html").exists() else ""
    if "<script" in page or "<img src=x" in page:
        raise Finding("a text from outside stands in the report as it came")


@functools.cache
def _right(path: Path) -> Any:
    return store.read_dataset(path)


def same(place: Path, finished: Path, path: Path) -> None:
    """A run that says it finished after a byte was changed has the numbers of the one that nothing happened to."""
    mine, right = store.read_dataset(place / "records.nc"), _right(finished / "records.nc")
    for name in right.variables:
        if name not in mine or not np.array_equal(mine[name].values, right[name].values):
            if not path.with_suffix(".meant").exists():
                raise Finding(f"the run finished with other values of {name}")


CSV_OPTIONS: list[dict[str, Any]] = [
    {"source": "csv", "target": "y"},
    {"source": "csv", "target": "a", "lags": 2},
    {"source": "csv", "target": "y", "columns": ("a", "b"), "n": 6, "n_test": 2},
]
TARGETS: dict[str, tuple[str, Callable[[Path, Path, int], str], float]] = {
    # name: (file name, what is done with it, share of the inputs)
    "toml": ("hostile.toml", read_toml, 0.23),
    "csv": ("hostile.csv", read_data(CSV_OPTIONS), 0.23),
    "idx": ("hostile-images-idx3-ubyte.gz", read_data([{"source": "mnist", "classes": (0, 1)}]), 0.19),
    "labels": ("hostile-labels-idx1-ubyte", read_data([{"source": "mnist", "classes": (0, 1)}]), 0.08),
    "npz": ("hostile.npz", read_data([{"source": "npz"}, {"source": "npz", "n": 4, "n_test": 0}]), 0.245),
    "config": ("config.toml", read_run("config.toml"), 0.001),
    "metadata": ("metadata.json", read_run("metadata.json"), 0.008),
    "records": ("records.nc", read_run("records.nc"), 0.006),
    "foreign records": ("records.nc", read_run("records.nc"), 0.004),
    "checkpoint": ("checkpoint.npz", read_run("checkpoint.npz"), 0.006),
}  # fmt: skip
