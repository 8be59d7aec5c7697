"""Charts of a run in the style of the package's own figures: markers differ where colours do."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import CEILING
from benchmarks.candidates import is_ours
from benchmarks.tables import cases
from meanfield import canvas

# name -> (colour, marker, filled)
LOOK = {
    "meanfield": (canvas.BLUE, "o", True),
    CEILING: (canvas.INK, "|", True),
    "JAX jit + grad": (canvas.ORANGE, "s", False),
    "PyTorch by hand": (canvas.GREEN, "^", False),
    "PyTorch autograd": (canvas.GREEN, "v", False),
    "numpy": (canvas.PURPLE, "D", False),
    "KeOps": (canvas.GREY, "X", False),
}


def draw(results: dict[str, Any], out: Path) -> list[Path]:
    """Write the charts whose rows there are; return their paths."""
    rows = [row for row in results["rows"] if "median" in row and row["candidate"] in LOOK]
    made = []
    for name, chart in (("step", dots), ("pairs", dots), ("scaling", lines)):
        some = [row for row in rows if row["workload"] == name]
        if some:
            with canvas.style():
                figure = chart(some, results["machine"])
            made.append(out / f"{name}.png")
            made[-1].write_bytes(canvas.png(figure))
    return made


def dots(rows: list[dict], machine: dict) -> Any:
    """One row a case, one marker a candidate, time over that of the ceiling; float64 and float32 side by side."""
    dtypes = [dtype for dtype in ("float64", "float32") if any(row["dtype"] == dtype for row in rows)]
    grouped = [cases(row for row in rows if row["dtype"] == dtype) for dtype in dtypes]
    figure, axes = canvas.sheet(1, len(dtypes), width=5.6, height=1.5 + 0.42 * max(map(len, grouped)))
    seen = []
    for ax, dtype, found in zip(axes, dtypes, grouped, strict=True):
        for place, some in enumerate(found.values()):
            base = next((row["median"] for row in some if row["candidate"] == CEILING), None)
            base = base or min(row["median"] for row in some)
            seen += [row["median"] / base for row in some]
            for row in some:
                _marker(ax, row["candidate"], row["median"] / base, place)
            if "floor" in some[0]:
                ax.plot([some[0]["floor"] / base], [place], "|", ms=9, color=canvas.GREY)
                seen.append(some[0]["floor"] / base)
        ax.set(yticks=range(len(found)), yticklabels=[_size(case) for case in found], title=dtype)
        ax.set(xlabel="time over that of a fused C++ loop", ylim=(len(found) - 0.5, -0.5))
    if "d" in rows[0]:
        axes[0].set_ylabel("(n, d, m)")
    for ax in axes:
        canvas.log_axis(ax.xaxis, *canvas.positive_limits(np.array(seen), room=1.3))
    _legend(figure, axes[0], rows)
    _subject(figure, machine)
    return figure


def lines(rows: list[dict], machine: dict) -> Any:
    """Milliseconds against m, n and d on logarithmic axes."""
    axis_names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, axes = canvas.sheet(1, len(axis_names), width=3.9, height=3.6)
    for ax, axis in zip(axes, axis_names, strict=True):
        for name in LOOK:
            some = [row for row in rows if row["axis"] == axis and row["candidate"] == name]
            if some:
                ax.plot([row[axis] for row in some], [1e3 * row["median"] for row in some], **_look(name), label=name)
        ax.set(xscale="log", yscale="log", xlabel=axis, ylabel="milliseconds a step" if ax is axes[0] else "")
    canvas.legend(axes[0], "upper left")
    _subject(figure, machine, "float64")
    return figure


def _subject(figure: Any, machine: dict, *more: str) -> None:
    words = [machine["processor"], f"{machine['threads used']} threads", *more, machine["date"][:10]]
    figure.suptitle(", ".join(words), fontsize=8.5, color="#444444")


def _marker(ax: Any, name: str, x: float, y: float) -> None:
    size = 9 if is_ours(name) else 15 if name == CEILING else 7
    ax.plot([x], [y], ms=size, mew=1.6, ls="none", zorder=4, **_look(name))


def _look(name: str) -> dict[str, Any]:
    colour, marker, filled = LOOK[name]
    return {"marker": marker, "color": colour, "mfc": colour if filled else "white"}


def _size(case: str) -> str:
    return case.replace(" float64", "").replace(" float32", "").rstrip(",")


def _legend(figure: Any, ax: Any, rows: list[dict]) -> None:
    here = {row["candidate"] for row in rows}
    handles = [ax.plot([], [], ls="none", **_look(name), label=name)[0] for name in LOOK if name in here]
    if any("floor" in row for row in rows):
        handles += ax.plot([], [], "|", ms=9, color=canvas.GREY, label="floor")
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
