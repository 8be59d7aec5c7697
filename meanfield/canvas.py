"""Paper, ink and numbers of every figure: one style, one palette, one way to print a quantity.

Figures are plain `matplotlib.figure.Figure` objects with an Agg canvas: nothing touches pyplot, nothing
stays behind, and a figure can be drawn on a machine without a screen.  `plots` draws with these; `report`
embeds them. Line styles and markers differ wherever colours do, so that a grey print still reads.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# Okabe and Ito's palette, safe for colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#7F7F7F", "#222222"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
    "legend.fontsize": 8.0,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "mathtext.fontset": "dejavusans",
}

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@contextmanager
def style() -> Iterator[None]:
    """Apply the style inside a with-block and restore matplotlib's own settings after it."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def sheet(rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 4.3) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, row by row; width and height of one panel in inches.

    Returns
    -------
    figure : matplotlib.figure.Figure
    axes : list of matplotlib.axes.Axes, length rows * columns
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    # A notebook shows an object that can name its own picture.
    figure._repr_png_ = lambda: png(figure)  # type: ignore[attr-defined]
    return figure, list(np.ravel(figure.subplots(rows, columns, squeeze=False)))


def png(figure: Any, dpi: int = 150) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    page = io.BytesIO()
    with style():
        figure.savefig(page, format="png", dpi=dpi)
    return page.getvalue()


def save(figure: Any, stem: Path, dpi: int = 150) -> list[Path]:
    """Write stem.png and stem.pdf, without dates in them, and return the two paths."""
    paths = [stem.with_name(stem.name + ending) for ending in (".png", ".pdf")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths[0].write_bytes(png(figure, dpi))
    figure.set_layout_engine("none")  # laid out once, for both files
    with style(), lean_fonts():
        figure.savefig(paths[1], format="pdf", metadata={"CreationDate": None})
    return paths


@contextmanager
def lean_fonts() -> Iterator[None]:
    """Leave tables for typesetting out of embedded fonts: a PDF places its glyphs itself, and they take half the time.

    Where fontTools keeps its list of such tables elsewhere, nothing is left out.
    """
    from fontTools.subset import Options

    usual = getattr(Options, "_drop_tables_default", None)
    if usual is None:
        yield
        return
    Options._drop_tables_default = [*usual, "GSUB", "GPOS", "GDEF", "kern"]
    try:
        yield
    finally:
        Options._drop_tables_default = usual


def number(value: float, digits: int = 3) -> str:
    """Return a number as a reader would write it: 0.0285, 1,234, 6.5×10⁻⁷."""
    value = float(value)
    if not math.isfinite(value):
        return "not finite" if not math.isnan(value) else "not available"
    if value == 0.0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 5:
        text = f"{value:,.{max(digits - 1 - size, 0)}f}"
        # A number that is short is printed short: 20, not 20.0.
        text = text.rstrip("0").rstrip(".") if "." in text and float(text.replace(",", "")) == value else text
        return text.replace("-", "−")
    mantissa, power = f"{value:.{max(digits - 2, 0)}e}".split("e")
    return f"{mantissa.replace('-', '−')}×10{str(int(power)).translate(_RAISED)}"


def log_axis(axis: Any, low: float, high: float) -> None:
    """Make an axis logarithmic with limits, and label it by numbers as a reader would write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1).removeprefix("1×")))
    axis.set_minor_locator(LogLocator(base=10, subs=range(2, 10), numticks=99) if decades < 8 else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def legend(ax: Any, where: str, remark: str = "", columns: int = 1) -> None:
    """Draw the legend, with a remark above it where there is one."""
    box = ax.legend(loc=where, ncols=columns, title=remark or None, alignment="left")
    box.get_title().set(fontsize=7.8, color="#444444")


def note(ax: Any, text: str, where: str = "lower left") -> None:
    """Write a small remark into a corner of the axes."""
    vertical, horizontal = where.split()
    x, y = {"left": 0.02, "right": 0.98}[horizontal], {"lower": 0.03, "upper": 0.97}[vertical]
    ax.text(
        x,
        y,
        text,
        transform=ax.transAxes,
        ha=horizontal,
        va={"lower": "bottom", "upper": "top"}[vertical],
        fontsize=7.8,
        color="#444444",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2.0},
        zorder=6,
    )


def positive_limits(*series: np.ndarray, room: float = 1.6) -> tuple[float, float]:
    """Return limits of a logarithmic axis that hold every positive finite value, with some room."""
    values = np.concatenate([np.ravel(np.asarray(s, dtype=np.float64)) for s in series])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) == 0:
        return 0.1, 1.0
    return float(values.min()) / room, float(values.max()) * room


def table(ax: Any, heading: str, rows: list[tuple[str, str]]) -> None:
    """Write pairs (what, value) into empty axes."""
    ax.set_axis_off()
    ax.text(0.0, 0.97, heading, fontweight="bold", va="top", transform=ax.transAxes)
    for k, (what, value) in enumerate(rows):
        height = 0.87 - 0.085 * k
        ax.text(0.0, height, what, va="top", color="#444444", transform=ax.transAxes)
        ax.text(1.0, height, value, va="top", ha="right", transform=ax.transAxes)
