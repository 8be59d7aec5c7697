"""Verdicts on several runs: found at any depth, a table each, a summary by statement."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import small

from meanfield import store
from meanfield.errors import InputError
from meanfield.simulate import simulate
from meanfield.survey import find_runs, survey
from meanfield.verify import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two runs, the second with a loss that contradicts its predictions, and what is no run."""
    root = tmp_path_factory.mktemp("runs")
    flow = small.flow()
    simulate(flow, small.cloud(flow, 64), 0.1, observables=small.CHEAP, bounds=0, directory=root / "a")
    shutil.copytree(root / "a", root / "deep" / "b")
    path = root / "deep" / "b" / "records.nc"
    data = store.read_dataset(path)
    store.write_dataset(path, data.assign(loss=1.5 * data.loss))
    (root / "notes").mkdir()
    return root


def test_runs_are_found(folder) -> None:
    both = [folder / "a", folder / "deep" / "b"]
    assert find_runs([folder]) == both and find_runs([folder / "deep", folder / "a", folder]) == both[::-1]
    with pytest.raises(InputError, match="holds none"):
        find_runs([folder / "notes"])


def test_summary_by_statement(folder) -> None:
    found = survey([folder])
    assert [(name, v.statement) for name, v in found.violated] == [(str(folder / "deep" / "b"), "records: loss")]
    rows = {row["statement"]: row for row in found.summary()}
    assert (rows["records: loss"]["holds"], rows["records: loss"]["violated"]) == (1, 1)
    assert rows["records: loss"]["run"] == str(folder / "deep" / "b") and rows["records: loss"]["margin"] < 0
    assert rows["C1"]["not applicable"] == 2 and rows["C1"]["margin"] is None
    text = found.table()
    assert text.count("statement ") == 3 and "summary of 2 runs" in text
    assert verify(store.read_dataset(folder / "a" / "records.nc")).table() in text or str(folder / "a") in text
    assert found.records()["runs"].keys() == {str(folder / "a"), str(folder / "deep" / "b")}
    assert np.sum([row["holds"] for row in rows.values()]) > 10
