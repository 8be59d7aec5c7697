"""Docstrings as Sphinx wants them: formulas in plain text become blocks of code, the rest plain prose with links.

The docstrings are read in editors and terminals first. Their formulas are indented lines; `|x|^2`, `*` and names that
end in an underscore are no markup there. Here the first become literal blocks, the others are escaped, and keys of the
bibliography become links.
"""

import itertools
import re
from typing import Any

from pages import cited

SECTION = re.compile(r"^-{3,}$")
CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
MARKUP = re.compile(r"([*|\\])|(?<=\w)_(?=\W|$)")
ITEM = re.compile(r"^\s*([-*]|\d+\.)\s")
INDENT = 4


def prepared(lines: list[str]) -> list[str]:
    """Return the lines of a docstring as reStructuredText, for napoleon to read."""
    out: list[str] = []
    structured = item = False  # inside a section whose indentation has a meaning; after an item of a list
    for blank, group in itertools.groupby(lines, lambda line: not line.strip()):
        paragraph = list(group)
        if blank:
            out += paragraph
            continue
        if len(paragraph) > 1 and SECTION.match(paragraph[1]):
            structured = paragraph[0] not in ("Notes", "Examples")
        if structured:
            out += [line if SECTION.match(line) else _prose(line) for line in paragraph]
        elif _formula(paragraph) and not item:
            out += ["::", "", *(" " * INDENT + line for line in paragraph), ""]
        else:
            item = bool(ITEM.match(paragraph[0])) or (item and paragraph[0].startswith("  "))
            out += [_prose(line) for line in paragraph]
    return out


def _formula(paragraph: list[str]) -> bool:
    """Return whether a paragraph is indented, or has columns that its first line does not begin with."""
    columns = any(line.startswith("  ") for line in paragraph[1:]) and not ITEM.match(paragraph[0])
    return paragraph[0].startswith(" " * INDENT) or columns


def _prose(line: str) -> str:
    """Return a line of prose with its code kept, its symbols escaped, its citations linked."""
    if ITEM.match(line):
        mark = ITEM.match(line)[0]  # type: ignore[index]
        return mark + _prose(line[len(mark) :])
    parts = CODE.split(line)
    plain = (MARKUP.sub(lambda found: f"\\{found[0]}", part) for part in parts[::2])
    linked = [cited(part, ":ref:`{key} <{target}>`").replace(r"\[", "[").replace(r"\]", "]") for part in plain]
    return "".join(a + b for a, b in zip(linked, [*parts[1::2], ""], strict=True))


def setup(app: Any) -> dict[str, Any]:
    """Prepare docstrings before napoleon reads them, and leave out what named tuples say of their fields."""
    from sphinx.addnodes import pending_xref

    def process(_: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
        # Of a property napoleon would take what stands before a colon in the first line for its type.
        lines[:] = [*([""] if what == "property" else []), *prepared(lines)]

    def skip(_: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
        return True if type(thing).__name__ == "_tuplegetter" else None

    def unlinked(_: Any, doctree: Any) -> None:
        # Names and types of parameters are words here; looked for anywhere, they would find somebody else's.
        for node in list(doctree.findall(pending_xref)):
            if node.get("refspecific"):
                node.replace_self(node.children)

    app.connect("doctree-read", unlinked)
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
