"""Tables in Markdown from the rows of a run."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from benchmarks.bench import CEILING, best_peer, ours


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table; columns after the first stand right where they hold numbers."""
    lines = [list(line) for line in lines]
    numeric = [bool(lines) and all(_is_number(line[k]) for line in lines) for k in range(len(heads))]
    rule = ["---", *("---:" if right else "---" for right in numeric[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(heads), rule, *lines])


def _is_number(text: str) -> bool:
    return not text or text == "-" or text.lstrip("+-")[:1].isdigit()


def cases(rows: Iterable[dict]) -> dict[str, list[dict]]:
    """Return case -> its rows, in the order in which they were measured."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["case"], []).append(row)
    return found


def matrix(rows: list[dict]) -> str:
    """Return milliseconds a case and candidate (median, least in brackets), and the ratios that are asked for."""
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    table: list[list[str]] = []
    refused: dict[str, list[str]] = {}
    for case, some in cases(rows).items():
        found = {row["candidate"]: row for row in some}
        for name, row in found.items():
            if "refused" in row:
                refused.setdefault(f"{name} ({row['refused']})", []).append(case)
        floor = next((row["floor"] for row in some if "floor" in row), None)
        cells = [_time(found.get(name)) for name in names]
        table.append([case, f"{1e3 * floor:.4g}" if floor else "-", *cells, *_ratios(some)])
    heads = ["case", "floor", *names, "ours / ceiling", "ceiling / floor", "best peer / ours"]
    used = [k for k in range(len(heads)) if any(line[k] not in ("", "-") for line in table)]
    text = markdown([heads[k] for k in used], [[line[k] for k in used] for line in table])
    notes = sorted({row["note"] for row in rows if row["candidate"] == "meanfield" and row.get("note")})
    if notes:
        text += f"\n\nWithout a choice, the backend was {' or '.join(notes)}."
    if refused:
        text += "\n\nNot measured: " + "; ".join(f"{who}: {', '.join(where)}" for who, where in refused.items()) + "."
    return text


def _time(row: dict | None) -> str:
    if row is None or "median" not in row:
        return "-"
    return f"{1e3 * row['median']:.4g} ({1e3 * row['min']:.4g})"


def _ratios(rows: list[dict]) -> list[str]:
    us, peer = ours(rows), best_peer(rows)
    top = next((row for row in rows if row["candidate"] == CEILING and "median" in row), None)
    return [
        f"{us['median'] / top['median']:.2f}" if us and top else "-",
        f"{top['ratios']['floor']:.2f}" if top and "floor" in top.get("ratios", {}) else "-",
        f"{peer['median'] / us['median']:.2f}" if us and peer else "-",
    ]


def report(results: dict[str, Any]) -> str:
    """Return the whole page: machine, then a table for each workload."""
    machine = results["machine"]
    parts = ["# Benchmarks", "", *(f"- {name}: {value}" for name, value in machine.items() if value not in ("", None))]
    parts += [f"- {name} {version}" for name, version in results["versions"].items()]
    parts += [f"- not here: {name} ({reason})" for name, reason in results["missing"].items()]
    parts += ["", "Times are milliseconds: medians of undisturbed repetitions in turns, the least in brackets.", ""]
    if results["rates"]:
        heads = ["rates, 1e9 a second", "multiply-add flops", "tanh", "exp", "normals", "bytes read and written"]
        lines = [
            [dtype, *(f"{value / 1e9:.3g}" for value in rates.values())] for dtype, rates in results["rates"].items()
        ]
        parts += [markdown(heads, lines), ""]
    if results["checks"]:
        lines = [[check["candidate"], check["dtype"], f"{check['error']:.1e}"] for check in results["checks"]]
        parts += ["## One step without noise against float64 numpy: largest error of a coordinate", ""]
        parts += [markdown(["candidate", "dtype", "error"], lines), ""]
    for name in dict.fromkeys(row["workload"] for row in results["rows"]):
        module = import_module(f"benchmarks.workloads.{name}")
        rows = [row for row in results["rows"] if row["workload"] == name]
        parts += [f"## {module.TITLE}", "", getattr(module, "table", matrix)(rows), ""]
    steps = [row for row in results["rows"] if row["workload"] == "step"]
    if steps:
        parts += ["## Memory at the peak of `step`, MB above what the process held before", "", memory(steps), ""]
    return "\n".join(parts)


def memory(rows: list[dict]) -> str:
    """Return the peak of each candidate's process above what it held before the case."""
    rows = [row for row in rows if "peak_mb" in row]
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    lines = []
    for case, some in cases(rows).items():
        above = {row["candidate"]: row["peak_mb"] - row["before_mb"] for row in some}
        lines.append([case, *(f"{above[name]:,.0f}" if name in above else "-" for name in names)])
    return markdown(["case", *names], lines)
