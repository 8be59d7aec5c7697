"""The runner of simulations on a small one of its own: what is built, kept, drawn, judged, refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray

from meanfield import cli, gallery
from meanfield.errors import InputError

ROOT = Path(__file__).parents[1]
SIM = '''
"""A stand-in."""
import numpy as np
from meanfield import canvas
from meanfield.claims import near
from meanfield.errors import DivergedError

TITLE, STATEMENT, MINUTES = "a line", "Lemma 0", 0.1
GRID = [{"k": k} for k in range(4)]
SMOKE = [{"k": 0}, {"k": 1}]
WANTED = 1.0


def build(point):
    if point["k"] == BAD:
        raise DivergedError("it went wrong")
    with open(LOG, "a") as log:
        log.write(f"{point['k']}\\n")
    return {"value": np.array([1.0, point["k"]]), "sum": np.float64(point["k"])}


def plot(results):
    figure, (ax,) = canvas.sheet()
    ax.plot([r.data.value.values[1] for r in results])
    return {"line": figure}


def claims(results):
    total = sum(float(r.data["sum"]) for r in results)
    return [near("first", results.one(k=1).value.values[1], WANTED, 0.1), near("total", total, 6.0, 0.1, full=True)]
'''


@pytest.fixture
def sims(tmp_path, monkeypatch):
    """A folder with one simulation, whose builds are logged; `write` changes its text."""
    place = tmp_path / "sims"
    place.mkdir()
    log = tmp_path / "built"

    def write(bad=-1, **changes):
        text = f"BAD, LOG = {bad}, {str(log)!r}\n" + SIM
        for old, new in changes.items():
            text = text.replace(
                *{"wanted": ("WANTED = 1.0", f"WANTED = {new}"), "without": (new, "other(results)")}[old]
            )
        (place / "line.py").write_text(text)
        gallery._module.cache_clear()
        return place

    def built():
        return sorted(log.read_text().split()) if log.exists() else []

    monkeypatch.setattr(gallery, "folder", lambda: place)
    write()
    write.built = built
    yield write
    gallery._module.cache_clear()


def test_points_are_built_once(sims, tmp_path):
    out = tmp_path / "out"
    outcome = gallery.run("line", out)
    assert outcome.full and not outcome.failed and sims.built() == ["0", "1", "2", "3"]
    gallery.run("line", out, plot_only=True)
    (out / "points" / os.listdir(out / "points")[0]).unlink()
    gallery.run("line", out)
    assert len(sims.built()) == 5
    sims(wanted=1.01)  # another text: what was built by the old one does not count
    gallery.run("line", out)
    assert len(sims.built()) == 9


def test_files_beside_a_simulation_belong_to_it(sims, tmp_path):
    """They are imported relatively, are no simulations themselves, and another text of theirs builds points anew."""
    place = sims()
    helper = place / "_line_helper.py"
    helper.write_text("FACTOR = 1\n")
    (place / "line.py").write_text((place / "line.py").read_text() + "\n\nfrom ._line_helper import FACTOR\n")
    gallery._module.cache_clear()
    assert gallery.names() == ["line"] and gallery.load("line").FACTOR == 1
    gallery.run("line", tmp_path / "out")
    gallery.run("line", tmp_path / "out")
    assert len(sims.built()) == 4
    helper.write_text("FACTOR = 2\n")
    gallery.run("line", tmp_path / "out")
    assert len(sims.built()) == 8


def test_what_is_written(sims, tmp_path):
    outcome = gallery.run("line", tmp_path / "out", smoke=True)
    assert [p.name for p in outcome.figures] == ["line.png", "line.pdf"]
    assert outcome.figures[0].read_bytes().startswith(b"\x89PNG") and outcome.figures[1].read_bytes().startswith(
        b"%PDF"
    )
    record = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert record["grid"] == "smoke" and [c["verdict"] for c in record["claims"]] == ["holds", "not judged"]
    assert sorted(p.suffix for p in (tmp_path / "out" / "points").iterdir()) == [".nc", ".nc"]
    table = outcome.table()
    assert "1 of 1 claims hold (1 speak of the full grid)" in table and "holds" in table


def test_processes_build_the_same(sims, tmp_path):
    gallery.run("line", tmp_path / "one")
    gallery.run("line", tmp_path / "two", jobs=2)
    for path in (tmp_path / "one" / "points").iterdir():
        other = tmp_path / "two" / "points" / path.name
        xarray.testing.assert_equal(xarray.load_dataset(path), xarray.load_dataset(other))


def test_a_point_that_fails_keeps_the_others(sims, tmp_path):
    sims(bad=1)
    said = []
    with pytest.raises(gallery.MeanfieldError, match="it went wrong"):
        gallery.run("line", tmp_path / "out", say=said.append)
    assert sims.built() == ["0", "2", "3"] and sum("failed" in text for text in said) == 1
    assert len(os.listdir(tmp_path / "out" / "points")) == 3


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"plot_only": True}, "4 of 4 points are not in"),
        ({}, {"jobs": 0}, "jobs must be"),
        ({"without": "claims(results)"}, {}, "lacks claims"),
    ],
)
def test_refused(sims, tmp_path, change, options, message):
    sims(**change)
    with pytest.raises(InputError, match=message):
        gallery.run("line", tmp_path / "out", **options)
    assert not (tmp_path / "out" / "points").exists()


def test_unknown_names_and_strange_folders_are_refused(sims, tmp_path):
    with pytest.raises(InputError, match="Did you mean 'line'"):
        gallery.load("lime")
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        gallery.run("line", tmp_path)


def test_exit_codes(sims, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sim", "--list"]) == 0
    assert "Lemma 0" in capsys.readouterr().out
    assert cli.main(["sim", "line", "--smoke"]) == 0
    assert (tmp_path / "runs" / "sims" / "line-smoke" / "claims.json").exists()
    assert cli.main(["sim", "line", "--smoke", "--plot-only", "--out", "elsewhere"]) == 2
    assert cli.main(["sim"]) == 2 and "--list" in capsys.readouterr().err
    sims(wanted=2.0)
    assert cli.main(["sim", "line", "--out", "out", "--jobs", "1"]) == 1
    assert "fails" in capsys.readouterr().out
    sims(bad=0)
    assert cli.main(["sim", "line", "--out", "bad"]) == 3


def test_results_are_found_by_their_parameters():
    found = tuple(gallery.Result({"a": a, "b": b}, a * b) for a in (1, 2) for b in (3, 4))
    results = gallery.Results(found, True)
    assert results.one(a=2, b=3) == 6 and [r.data for r in results.where(a=1)] == [3, 4]
    assert results.values("b") == [3, 4] and len(results) == 4
    with pytest.raises(InputError, match="2 points have"):
        results.one(a=1)


def test_datasets_are_kept_and_other_things_refused():
    data = xarray.Dataset({"x": 1.0})
    assert gallery.as_dataset(data) is data
    assert gallery.as_dataset({"x": np.zeros((2, 3))}).x.dims == ("x_0", "x_1")
    with pytest.raises(InputError, match="Dataset or a dict"):
        gallery.as_dataset(3.0)


def test_an_installed_package_brings_its_simulations(tmp_path):
    """Files laid out as a wheel lays them: sims inside the package, nothing beside it."""
    package = tmp_path / "meanfield"
    package.mkdir()
    for path in (ROOT / "meanfield").iterdir():
        (package / path.name).symlink_to(path)
    (package / "gallery.py").unlink()
    (package / "gallery.py").write_text((ROOT / "meanfield" / "gallery.py").read_text())
    (package / "sims").symlink_to(ROOT / "sims")
    code = "from meanfield import gallery; print(gallery.__file__, *gallery.names())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    file, *names = done.stdout.split()
    assert Path(file).parent == package and names == gallery.names() and names
