"""The pages: what they say exists, what they show runs, what they link to is there; without Sphinx."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import meanfield
from meanfield import gallery

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
API = "\n".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.md")))
CODE = {path: re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S) for path in PAGES}
SMALLER = {"m=4096": "m=64", "n=100": "n=12", "time=2.0": "time=0.01"}  # the quickstart in a second


def members(noun: str) -> set[str]:
    """What an object that is called after its class has, `cloud.z` for one."""
    kind = getattr(meanfield, noun.capitalize(), None)
    return {*dir(kind), *getattr(kind, "__dataclass_fields__", ())}


def identity(path: Path) -> str:
    return str(path.relative_to(DOCS))


@pytest.fixture(scope="module")
def pages() -> Iterator[ModuleType]:
    """The extension that fills pages in."""
    sys.path.insert(0, str(DOCS / "extensions"))
    yield importlib.import_module("pages")
    sys.path.pop(0)


# --- simulations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", gallery.names())
def test_every_simulation_has_a_page_whose_figures_exist(name: str, pages: ModuleType) -> None:
    (sim,) = [sim for sim in pages.simulations() if sim.name == name]
    assert sim.page.exists(), f"docs/simulations/{name}.md is not there"
    assert f"meanfield sim {name} " in sim.page.read_text(encoding="utf-8")
    assert sim.figures(), "a page shows what was drawn"
    for figure in sim.figures():
        assert figure.startswith(f"{name}.") and (sim.page.parent / figure).exists(), figure


def test_the_gallery_is_what_the_files_say(pages: ModuleType) -> None:
    found = {sim.name: sim for sim in pages.simulations()}
    assert sorted(found) == gallery.names()
    for name, sim in found.items():
        loaded = gallery.load(name)
        assert (sim.title, sim.statement, sim.minutes) == (loaded.TITLE, loaded.STATEMENT, loaded.MINUTES)
    shown = {path.name for path in (DOCS / "simulations").glob("*.png")}
    assert shown == {figure for sim in found.values() for figure in sim.figures()}
    text = pages.page("simulations/index", "# Simulations\n\n<!-- insert: gallery -->\n")
    assert all(f"(/simulations/{name}.md)" in text and f"\n{name}\n" in text for name in found if found[name].figures())
    assert f"sims/{name}.py" in pages.page(f"simulations/{name}", "# A page\n")


# --- the reference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(meanfield.__all__) - {"__version__"}))
def test_public_names_stand_in_the_reference(name: str) -> None:
    kind = "automodule" if isinstance(getattr(meanfield, name), ModuleType) else "auto(class|function)"
    assert len(re.findall(rf"^\.\. {kind}:: meanfield\.{name}$", API, re.M)) == 1


def test_what_the_reference_names_exists() -> None:
    named = re.findall(r"^\.\. auto(module|class|function):: meanfield\.([\w.]+)$", API, re.M)
    assert len(named) == len(set(named)) > 40
    for kind, name in named:
        if kind == "module":
            assert importlib.import_module(f"meanfield.{name}").__doc__
        else:
            module, _, last = name.rpartition(".")
            home = importlib.import_module(f"meanfield.{module}") if module else meanfield
            assert getattr(home, last).__doc__
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`mf\.(\w+)`", readme)) <= {name for _, name in named}


@pytest.mark.parametrize("path", PAGES, ids=identity)
def test_names_in_the_pages_exist(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for module, name in re.findall(r"`(?:mf\.|meanfield\.)?(\w+)\.(\w+)(?:\([^`]*\))?`", text):
        is_file = name in ("py", "md", "toml", "nc", "npz", "json", "html", "cu", "yml", "cff")
        if not is_file and importlib.util.find_spec(f"meanfield.{module}"):
            known = {*dir(importlib.import_module(f"meanfield.{module}")), *members(module)}
            assert name in known, f"{module}.{name}"


# --- code, links, citations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path, blocks in CODE.items() if blocks], ids=identity)
def test_code_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in CODE[path]:
        for large, small in SMALLER.items():
            block = block.replace(large, small)
        exec(compile(block, identity(path), "exec"), names)


@pytest.mark.parametrize("path", PAGES, ids=identity)
def test_links_resolve(path: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]+`|\$[^$]+\$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\((?!http|#)([^)\s#]+)", text):
        assert (path.parent / target).resolve().exists(), target
    for where in re.findall(r"<!-- insert: (?:section|file) ([^\s:]+)", text):
        assert (ROOT / where).exists(), where


def test_every_page_stands_in_a_table_of_contents(pages: ModuleType) -> None:
    listed = {"index"}
    for path in PAGES:
        text = path.read_text(encoding="utf-8").replace("<!-- insert: gallery -->", pages.gallery())
        for body in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.M | re.S):
            entries = [line for line in body.split("\n") if line and not line.startswith(":")]
            listed |= {Path(path.parent, entry).relative_to(DOCS).as_posix() for entry in entries}
    assert listed == {path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES}


def test_every_citation_has_one_entry_and_entries_are_whole(pages: ModuleType) -> None:
    text = (DOCS / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\S+),\n(?:  .*\n)+\}$", text, re.M)
    assert len(entries) == len(re.findall(r"^@", text, re.M)) == len(set(entries)) == len(pages.keys())
    cited: set[str] = set()
    for path in [*PAGES, *(ROOT / "meanfield").rglob("*.py"), *(ROOT / "sims").glob("*.py")]:
        brackets = re.findall(r"\[([^\[\]\n]*)\]", path.read_text(encoding="utf-8"))
        cited |= {key for inner in brackets for key in re.findall(r"\b[A-Z][A-Za-z]+\d\d\b", inner)}
    assert "CCGZ20" in cited and cited - set(entries) == set()


# --- how text is made ---------------------------------------------------------------------------------------------


def test_citations_and_links_are_rewritten_outside_code(pages: ModuleType) -> None:
    text = pages.page("simulations/x", "see [CCGZ20, Lemma 5.1] and `[CCGZ20]`, [its page](../scalings.md), $[CCGZ20]$")
    assert r"\[[CCGZ20](#ccgz20), Lemma 5.1\]" in text and "`[CCGZ20]`" in text and "$[CCGZ20]$" in text
    assert "(/scalings.md)" in text
    assert (
        pages.relative("[how](CONTRIBUTING.md) [it](sims/zero.py)", ROOT)
        == "[how](/contributing.md) it (`sims/zero.py`)"
    )
    with pytest.raises(ValueError, match="no heading 'Nothing'"):
        pages.section("README.md: Nothing")


def test_docstrings_become_prose_and_formulas(pages: ModuleType) -> None:
    prepared = importlib.import_module("docstrings").prepared
    lines = ["Return |x|^2 of `x` [CCGZ20].", "", "    f = u * h", "    g = f_", "", "After.", "", "Parameters",
             "----------", "lam_ : float", "    With *.", ""]  # fmt: skip
    assert prepared(lines) == [
        r"Return \|x\|^2 of `x` [:ref:`CCGZ20 <ccgz20>`].", "", "::", "", "        f = u * h", "        g = f_", "", "",
        "After.", "", "Parameters", "----------", r"lam\_ : float", r"    With \*.", "",
    ]  # fmt: skip
