"""What a workload works with: cases are timed, rows are kept, ratios are formed."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import ceiling
from benchmarks.candidates import everyone, is_ours, is_peer
from benchmarks.pool import Entry, Pool

CEILING = "C++ ceiling"
SIZES = ("n", "d", "m", "D", "dtype")
MEASURED = ("median", "min", "raw_median", "clean", "repeats", "first", "peak_mb", "before_mb", "note", "refused")


class Bench:
    """A run of the benchmark: `rows` are dicts, one for each workload, case and candidate.

    A row holds `workload`, `case`, `candidate`, the sizes, and either `refused` (why there is no time) or `median`,
    `min` and `raw_median` in seconds, `first` (the first call), `peak_mb` and `before_mb` (memory at its peak and
    before), and `ratios` to the ceiling, the floor and the best peer, as far as there are any.
    """

    def __init__(self, pool: Pool, quick: bool) -> None:
        self.pool, self.quick = pool, quick
        self.rows: list[dict[str, Any]] = []
        self.names = list(everyone())
        self._rates: dict[str, ceiling.Rates | None] = {}

    def choose(self, full: Sequence, quick: Sequence) -> Sequence:
        """Return the cases of this run."""
        return quick if self.quick else full

    def rates(self, dtype: str) -> ceiling.Rates | None:
        """Return what the machine can do, measured once a run; None where there is no compiler."""
        if dtype not in self._rates:
            got = self.pool.state(CEILING, "rates", {"dtype": dtype})
            self._rates[dtype] = ceiling.Rates(*got["state"]) if "state" in got else None
        return self._rates[dtype]

    def known_rates(self) -> dict[str, dict[str, float]]:
        """Return the rates that were asked for."""
        return {dtype: rates._asdict() for dtype, rates in self._rates.items() if rates}

    def step_floor(self, case: dict) -> float | None:
        """Return the floor of an Euler step with noise."""
        rates = self.rates(case["dtype"])
        return rates and ceiling.step_floor(case["n"], case["d"], case["m"], case["dtype"], rates)

    def compare(
        self,
        workload: str,
        task: str,
        case: dict,
        label: str,
        *,
        floor: float | None = None,
        names: Iterable[str] = (),
        entries: Sequence[Entry] = (),
        beside: str = "",
    ) -> list[dict]:
        """Time candidates in turns on a case, keep and return a row for each; all are divided by the row `beside`."""
        wanted = entries or [Entry(name, task, case) for name in names or self.names]
        print(f"{workload}: {label}", file=sys.stderr, flush=True)
        found = self.pool.compare(wanted)
        rows = []
        for key, measured in found.items():
            if measured.get("refused") == "has no such task":
                continue
            sizes = {name: case[name] for name in SIZES if name in case}
            kept = {name: measured[name] for name in MEASURED if name in measured}
            rows.append({"workload": workload, "case": label, "candidate": key, **sizes, **kept})
        _ratios(rows, floor, beside)
        self.rows += rows
        return rows

    def keep(self, workload: str, label: str, candidate: str, **values: Any) -> dict:
        """Keep a row that a workload measured itself."""
        row = {"workload": workload, "case": label, "candidate": candidate, **values}
        self.rows.append(row)
        return row


def _ratios(rows: list[dict], floor: float | None, beside: str) -> None:
    times = {row["candidate"]: row["median"] for row in rows if "median" in row}
    peers = [seconds for name, seconds in times.items() if is_peer(name)]
    against = {
        "ceiling": times.get(CEILING),
        "floor": floor,
        "best peer": min(peers, default=None),
        beside: times.get(beside),
    }
    for row in rows:
        if "median" in row:
            row["ratios"] = {name: row["median"] / value for name, value in against.items() if name and value}
        if floor:
            row["floor"] = floor


def ours(rows: Iterable[dict]) -> dict | None:
    """Return the row of what a user gets without choosing a backend."""
    return next((row for row in rows if row["candidate"] == "meanfield" and "median" in row), None)


def best_peer(rows: Iterable[dict]) -> dict | None:
    """Return the fastest row of neither this library nor the ceiling."""
    peers = [row for row in rows if is_peer(row["candidate"]) and "median" in row]
    return min(peers, key=lambda row: row["median"], default=None)


def library(names: Iterable[str]) -> list[str]:
    """Return the names that are this library."""
    return [name for name in names if is_ours(name)]
