"""What is put into pages when they are read, from files that say it already.

    <!-- insert: section PATH: HEADING -->  what stands under a heading of a file, or under its title without one
    <!-- insert: file PATH -->          a file of the repository, without its first heading
    <!-- insert: gallery -->            every simulation: heading, statement, minutes, title, first figure
    <!-- insert: observables -->        what is recorded, with units and what it reads at zero
    <!-- insert: references -->         the bibliography, an entry a key

A page in simulations/ gets the file that it tells of at its end. Keys of the bibliography in brackets become links
to their entries, and links that leave docs/ become the names of files.  Everything here is text to text; `setup` is all
that Sphinx sees.
"""

import ast
import functools
import posixpath
import re
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
SIMS = ROOT / "sims"
PAGES = "simulations"
# Files beside docs/ that have a page of their own.
STANDS_FOR = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "CITATION.cff": "citing.md"}
INSERT = re.compile(r"^<!-- insert: (\w+) ?(.*?) -->$", re.MULTILINE)
# What stays as it is: fenced code, spans of code, formulas.
KEPT = re.compile(r"^(`{3,}|~{3,})[\s\S]*?^\1[ ]*$|(`+)[\s\S]*?\2|\$\$[\s\S]*?\$\$|\$[^$\n]+\$", re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:`[^`]*`|[^\[\]])*)\]\((?!\w+:|#)([^()\s#]+)(#[^()\s]*)?\)")
BRACKETS = re.compile(r"\\?\[([^\[\]\\]*)\\?\](?!\()")


class Simulation(NamedTuple):
    """What a file of sims/ says of itself, read without running it."""

    name: str
    title: str
    statement: str
    minutes: float
    summary: str

    @property
    def page(self) -> Path:
        """The page that tells what was found."""
        return DOCS / PAGES / f"{self.name}.md"

    def figures(self) -> list[str]:
        """Names of the figures that the page shows, in its order."""
        return re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", self.text())

    def heading(self) -> str:
        """Return the heading of the page, or the name."""
        found = re.match(r"# (.+)", self.text())
        return found[1] if found else self.name

    def text(self) -> str:
        """Return the page, or nothing."""
        return self.page.read_text(encoding="utf-8") if self.page.exists() else ""


def simulations() -> list[Simulation]:
    """Return all simulations, by name; files whose name begins with an underscore are parts of others."""
    return [_simulation(path) for path in sorted(SIMS.glob("*.py")) if not path.name.startswith("_")]


def _simulation(path: Path) -> Simulation:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in ("TITLE", "STATEMENT", "MINUTES"):
                said[node.targets[0].id] = ast.literal_eval(node.value)
    summary = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    return Simulation(path.stem, said["TITLE"], said["STATEMENT"], said["MINUTES"], summary)


# --- what is inserted ---------------------------------------------------------------------------------------------


def section(where: str) -> str:
    """Return what stands under the heading that begins with some words, up to the next one; "PATH: WORDS"."""
    path, _, words = where.partition(": ")
    text = (ROOT / path).read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(words)}.*\n([\s\S]*?)(?=^## |\Z)", text, re.MULTILINE)
    if not found:
        raise ValueError(f"{path} has no heading {words!r}")
    return relative(found[1], (ROOT / path).parent).strip()


def file(path: str) -> str:
    """Return a file of the repository without its first heading."""
    return relative((ROOT / path).read_text(encoding="utf-8").split("\n", 1)[1], (ROOT / path).parent).strip()


def gallery(_: str = "") -> str:
    """Return every simulation with its first figure, and the table of contents that holds their pages."""
    known = simulations()
    lines = ["```{toctree}", ":hidden:", *(sim.name for sim in known if sim.page.exists()), "```", ""]
    for sim in known:
        heading = f"[{sim.heading()}](/{PAGES}/{sim.name}.md)" if sim.page.exists() else sim.name
        lines += [f"## {heading}", "", f"`{sim.name}`, {sim.minutes:g} min: {_escaped(sim.statement)}.", ""]
        lines += [f"{_escaped(sim.summary)} *{_escaped(sim.title)}.*", ""]
        lines += [f"![{_escaped(sim.title)}](/{PAGES}/{figure})\n" for figure in sim.figures()[:1]]
    return "\n".join(lines)


def observables(_: str = "") -> str:
    """Return the table of what a run records."""
    import meanfield.planning  # noqa: F401  (registers all of them)
    from meanfield.observables import OBSERVABLES

    rows = ["| variable | what it is | dimensions | unit | at zero |", "|---|---|---|---|---|"]
    for name, item in sorted(OBSERVABLES.items()):
        time = "bound_time" if item.costly else "time"
        dims = ", ".join([*([] if item.pooled else ["replicate"]), time, *item.dims])
        cells = [f"`{name}`", item.text, dims, item.unit, item.zero]
        rows.append("| " + " | ".join(_escaped(cell) if k else cell for k, cell in enumerate(cells)) + " |")
    return "\n".join(rows)


def references(_: str = "") -> str:
    """Return the bibliography in the order of keys."""
    from pybtex.plugin import find_plugin

    style = find_plugin("pybtex.style.formatting", "unsrt")()
    backend = find_plugin("pybtex.backends", "markdown")("utf-8")
    entries = sorted(bibliography().entries.values(), key=lambda entry: entry.key.lower())
    found = [(entry.key, entry.text.render(backend)) for entry in style.format_entries(entries)]
    return "\n\n".join(f"({key.lower()})=\n**{key}**  {text}" for key, text in found)


INSERTED = {"section": section, "file": file, "gallery": gallery, "observables": observables, "references": references}


def _escaped(text: str) -> str:
    """Return plain text such that Markdown shows it as it is."""
    return re.sub(r"([\\|*_\[\]<>$])", r"\\\1", text)


# --- links and citations ------------------------------------------------------------------------------------------


@functools.cache
def bibliography() -> Any:
    """Return the bibliography as pybtex reads it; an entry that is broken or comes twice is an error."""
    from pybtex.database import parse_file

    return parse_file(str(DOCS / "references.bib"), bib_format="bibtex")


@functools.cache
def keys() -> frozenset[str]:
    """Return the keys of the bibliography."""
    text = (DOCS / "references.bib").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^@\w+\{([^,\s]+),", text, re.MULTILINE))


def cited(text: str, form: str = "[{key}](#{target})") -> str:
    """Return text in which keys that stand in brackets are links to their entries."""

    def linked(found: re.Match[str]) -> str:
        inner = found[1]
        for key in set(re.findall(r"[A-Za-z]+\d\d\b", inner)) & keys():
            inner = re.sub(rf"\b{key}\b", form.format(key=key, target=key.lower()), inner)
        return found[0] if inner == found[1] else rf"\[{inner}\]"

    return BRACKETS.sub(linked, text)


def relative(text: str, folder: Path) -> str:
    """Return text whose links, relative to a folder, are those of the pages; files elsewhere become their names."""

    def moved(found: re.Match[str]) -> str:
        image, label, target, anchor = found.groups()
        if target.startswith("/"):
            return found[0]
        path = posixpath.normpath((folder / target).as_posix())
        if not Path(path).is_relative_to(DOCS):
            name = Path(path).relative_to(ROOT).as_posix()
            if name in STANDS_FOR:
                return f"[{label}](/{STANDS_FOR[name]})"
            return label if name in label else f"{label} (`{name}`)"
        inside = Path(path, "index.md") if Path(path).is_dir() else Path(path)
        return f"{image}[{label}](/{inside.relative_to(DOCS).as_posix()}{anchor or ''})"

    return LINK.sub(moved, text)


def outside_code(text: str, change: Any) -> str:
    """Return text changed everywhere but in code and formulas."""
    parts, at = [], 0
    for kept in KEPT.finditer(text):
        parts += [change(text[at : kept.start()]), kept[0]]
        at = kept.end()
    return "".join([*parts, change(text[at:])])


def page(name: str, text: str) -> str:
    """Return the text of a page, with everything put in."""
    text = relative(text, (DOCS / name).parent)
    text = INSERT.sub(lambda found: INSERTED[found[1]](found[2]), text)
    folder, _, sim = name.rpartition("/")
    if folder == PAGES and (SIMS / f"{sim}.py").exists():
        text += f"\n\n## The file\n\n```{{literalinclude}} ../../sims/{sim}.py\n:language: python\n```\n"
    return outside_code(text, cited)


def setup(app: Any) -> dict[str, Any]:
    """Let Sphinx read pages through `page`."""

    def read(_: Any, name: str, content: list[str]) -> None:
        content[0] = page(name, content[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
