"""The family of figures: what a figure is, and the register in which the summary and the report find it.

A figure is a function of (data, axes) that draws and returns its title, decorated with `panel`; its
docstring is the caption.  The members are in `plots`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meanfield import canvas, readings
from meanfield.errors import InputError


@dataclass(frozen=True)
class Panel:
    """A figure: called with (data, ax=None, **material) it draws and returns the axes.

    Attributes
    ----------
    name : str
        Key in FIGURES and name of the files.
    draw : callable
        Of (data, ax, **material); returns the title.
    needs : tuple of str
        Variables without which the figure is left out.
    material : str
        Name of what it needs beside the Dataset ("clouds"), or empty; `optional` is taken when given
        ("test").
    caption : str
        What the report prints under it.
    """

    name: str
    draw: Callable[..., str]
    needs: tuple[str, ...]
    material: str
    optional: str
    caption: str

    def missing(self, data: Any, **material: Any) -> str:
        """Return why the figure cannot be drawn, one sentence, or an empty string."""
        absent = [name for name in self.needs if not readings.recorded(data, name)]
        if absent:
            return f"The figure '{self.name}' is left out: the run did not record {', '.join(absent)}."
        if self.material and material.get(self.material) is None:
            return f"The figure '{self.name}' is left out: no {self.material} were given."
        return ""

    def __call__(self, data: Any, ax: Any = None, **material: Any) -> Any:
        """Draw into `ax` (a figure of its own if None) and return the axes.

        Raises
        ------
        InputError
            If the Dataset lacks what the figure needs.
        """
        reason = self.missing(data, **material)
        if reason:
            raise InputError(reason)
        with canvas.style():
            ax = canvas.sheet()[1][0] if ax is None else ax
            wanted = {key: material.get(key) for key in (self.material, self.optional) if key}
            ax.set_title(self.draw(data, ax, **wanted))
        return ax


FIGURES: dict[str, Panel] = {}


def panel(*needs: str, material: str = "", optional: str = "") -> Callable[[Callable[..., str]], Panel]:
    """Register the decorated function as a figure of its own name; its docstring becomes the caption."""

    def register(draw: Callable[..., str]) -> Panel:
        name = draw.__name__.rstrip("_")
        caption = inspect.cleandoc(draw.__doc__ or "")
        FIGURES[name] = Panel(name, draw, needs, material, optional, caption)
        return FIGURES[name]

    return register


def available(data: Any, **material: Any) -> tuple[list[Panel], list[str]]:
    """Return the figures that can be drawn, and a sentence for each that cannot."""
    reasons = {name: item.missing(data, **material) for name, item in FIGURES.items()}
    return [FIGURES[n] for n, why in reasons.items() if not why], [why for why in reasons.values() if why]
