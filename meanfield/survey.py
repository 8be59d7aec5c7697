"""Verdicts on many runs: one table a run, and a summary by statement.

    print(survey(["runs/a", "runs/sweep"]))        # run directories, and directories of them

A statement that is violated on one run of many shows in the summary with the run where its margin is least.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanfield.errors import InputError
from meanfield.recovery import understood
from meanfield.simulate import load
from meanfield.verdicts import HOLDS, INCONCLUSIVE, NOT_APPLICABLE, VIOLATED, Verdict, Verification, number, table
from meanfield.verify import verify

VERDICTS = (HOLDS, VIOLATED, INCONCLUSIVE, NOT_APPLICABLE)


@dataclass(frozen=True)
class Survey:
    """All verdicts on several runs, by the path of the run."""

    verifications: dict[str, Verification]

    @property
    def violated(self) -> list[tuple[str, Verdict]]:
        """The verdicts that say violated, each with its run."""
        return [(name, v) for name, one in self.verifications.items() for v in one.violated]

    def summary(self) -> list[dict[str, Any]]:
        """Return for each statement how many runs got which verdict, and where its margin is least.

        Keys: statement, one for each verdict, margin (the least among runs that were judged), run.
        """
        statements = dict.fromkeys(v.statement for one in self.verifications.values() for v in one.verdicts)
        out = []
        for statement in statements:
            found = [(n, v) for n, one in self.verifications.items() for v in one.verdicts if v.statement == statement]
            judged = [(v.margin, n) for n, v in found if v.margin is not None and v.verdict != NOT_APPLICABLE]
            margin, run = min(judged) if judged else (None, "")
            counts = {verdict: sum(v.verdict == verdict for _, v in found) for verdict in VERDICTS}
            out.append({"statement": statement, **counts, "margin": margin, "run": run})
        return out

    def records(self) -> dict[str, Any]:
        """Return the verdicts of every run and the summary as plain dictionaries."""
        return {"runs": {n: one.records() for n, one in self.verifications.items()}, "summary": self.summary()}

    def table(self) -> str:
        """Return one table a run, and the summary by statement."""
        parts = [f"{name}\n{one.table()}" for name, one in self.verifications.items()]
        rows = [(r["statement"], *(str(r[v]) for v in VERDICTS), number(r["margin"]), r["run"]) for r in self.summary()]
        lines = table(("statement", *VERDICTS, "least margin", "in run"), rows, left=(0, 6))
        return "\n\n".join([*parts, f"summary of {len(self.verifications)} runs\n" + "\n".join(lines)])

    def __repr__(self) -> str:
        """Return the tables."""
        return self.table()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.table())}</pre>"


def survey(paths: Iterable[str | Path]) -> Survey:
    """Return the verdicts on every run in the directories given.

    Raises
    ------
    InputError
        If a directory holds no run, or a run cannot be read.
    """
    found = {}
    for path in find_runs([Path(p) for p in paths]):
        with understood(path):
            found[str(path)] = verify(load(path))
    return Survey(found)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run directories among the paths and at any depth below them, each once, in the order of their names.

    A run that has written no records yet is passed over below a directory, and refused where it is named itself.

    Raises
    ------
    InputError
        If a path is no directory or holds no run.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if is_run(path) or not path.is_dir() or (path / "metadata.json").exists():
            inside = [path]
        else:
            inside = sorted(file.parent for file in path.rglob("metadata.json") if is_run(file.parent))
        if not inside:
            raise InputError(f"{path} is no run directory and holds none: give a directory that `meanfield run` wrote")
        found |= dict.fromkeys(inside)
    return list(found)


def is_run(path: Path) -> bool:
    """Return whether a directory holds the records of a run."""
    return (path / "metadata.json").exists() and (path / "records.nc").exists()
