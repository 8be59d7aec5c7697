"""The floors: a module imports only from lower ones, inside functions too; and the sizes of files and functions."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "meanfield"

# One line a floor, from the ground up.  A folder is one entry; its own files may import each other downwards.
FLOORS = """
    errors
    fields estimate progress parallel theory readers account canvas inputs
    config units noise
    cloud backends datasets transport entropy readings ntk
    objectives panels schemes
    risk plots
    linearised steps
    flow
    observables store
    planning results bounds
    simulate
    verify sweep
    report selftest
    cli
    __main__
"""
FLOOR = {name: floor for floor, line in enumerate(FLOORS.split("\n")) for name in line.split()}

LONGEST_FILE = 400
LONGEST_FUNCTION = 40
LONGEST_MEDIAN_FILE = 200
LONGEST_MEDIAN_FUNCTION = 8

FILES = sorted(path for path in PACKAGE.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def room(path: Path) -> str:
    """The entry of the table that a file belongs to."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str, int]]:
    """(line, entry imported, dots) of every import of ours, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "meanfield":
                    yield node.lineno, parts[1] if len(parts) > 1 else "", 0
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level == 0 and parts[0] != "meanfield":
                continue
            inner = [part for part in (parts if node.level else parts[1:]) if part]
            for name in [inner[0]] if inner else [alias.name for alias in node.names]:
                yield node.lineno, name, node.level


def functions(tree: ast.AST) -> Iterator[tuple[Function, int]]:
    """Every function with its number of body lines, the docstring left out."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node, body[-1].end_lineno - body[0].lineno + 1 if body else 0


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_lower_floors(path: Path) -> None:
    here = room(path)
    if here == "__init__":  # the door: it loads names from every floor when they are first used
        return
    assert here in FLOOR, f"meanfield/{here} stands on no floor: add it to FLOORS in this test"
    wrong = []
    for line, name, dots in imports(parsed(path)):
        in_folder = path.parent != PACKAGE
        if dots > 1 or (dots == 1 and in_folder):
            wrong.append(f"line {line}: relative import across folders; write meanfield.{name}")
        elif name in ("", "__version__") or (in_folder and name == here):
            continue
        elif name not in FLOOR:
            wrong.append(f"line {line}: {name} stands on no floor")
        elif FLOOR[name] >= FLOOR[here]:
            wrong.append(f"line {line}: {name} (floor {FLOOR[name]}) is not below {here} (floor {FLOOR[here]})")
    assert not wrong, f"{path.relative_to(PACKAGE)}: {wrong}"


def test_no_cycles() -> None:
    below = {str(path): set() for path in FILES}
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): str(path) for path in FILES}
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("meanfield"):
                module = node.module.removeprefix("meanfield").lstrip(".")
                wanted = [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
                below[str(path)] |= {names[name] for name in wanted if name in names}
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"a cycle: {' -> '.join((*trail, node))}"
        if node not in done:
            for other in below[node] - {node}:
                visit(other, (*trail, node))
            done.add(node)

    for node in below:
        visit(node, ())


def test_every_entry_of_the_table_is_named_once() -> None:
    assert len(FLOORS.split()) == len(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_sizes(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{path.name} has {lines} lines"
    long = [f"{node.name}: {size}" for node, size in functions(parsed(path)) if size > LONGEST_FUNCTION]
    assert not long, f"{path.name} has functions of more than {LONGEST_FUNCTION} lines: {long}"


def test_medians() -> None:
    files = [len(path.read_text(encoding="utf-8").splitlines()) for path in FILES]
    sizes = [size for path in FILES for _, size in functions(parsed(path))]
    assert statistics.median(size for size in files if size > 5) < LONGEST_MEDIAN_FILE
    assert statistics.median(sizes) < LONGEST_MEDIAN_FUNCTION


def test_the_reader_of_imports_sees_them_all() -> None:
    text = "import meanfield.cli\ndef f():\n    from meanfield import store\n    from .flow import Flow\n"
    text += "from ..units import Unit\nfrom . import noise\nimport numpy\nfrom meanfield.backends.reference import x\n"
    found = {(name, dots) for _, name, dots in imports(ast.parse(text))}
    assert found == {("cli", 0), ("store", 0), ("flow", 1), ("units", 2), ("noise", 1), ("backends", 0)}
