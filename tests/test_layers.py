"""The floors: a module imports only from lower ones, inside functions too; and the sizes of files and functions."""

import ast
import graphlib
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "meanfield"

# One line a floor, from the ground up; the decimals are landings between the floors of the design.  A folder is one
# entry, whose files may import each other.  `plots` stands low: it draws Datasets and runs nothing.
FLOORS = """
    -1   errors
    0    cores dyadic mapped files closed_forms workspace boxmuller
    0.02 assumptions
    0.04 identities generalisation
    0.06 aposteriori integrals
    0.1  account estimate progress signals fields theory canvas readers inputs locks netcdf
    0.11 ranks
    0.115 parallel mpi
    0.12 widths ensemble extrapolation markov counters pareto
    0.15 maps
    0.16 sections
    0.2  claims config schemes verdicts newton
    0.25 footprint
    1    units noise moments interactions
    1.05 gram
    1.1  backends rejection
    1.2  assignment concave nulls slices
    2    cloud datasets transport entropy tilts readings directions
    2.1  brownian donsker potentials panels distances families
    2.2  dual plots intervals network_families
    2.25 products
    2.3  spectrum regression
    3    objectives ntk
    3.1  risk quadrature
    3.2  linearised minibatch exponential_family population
    3.3  accounting
    3.4  steps solution
    3.5  hermite finite_volumes quantiles
    3.6  monge
    4    flow fokker_planck gibbs teacher complexity closures
    4.1  lockstep duality displacements
    4.15 spread
    5    observables store
    5.1  bounds increments results minimum
    5.15 rates regimes keeping
    5.2  planning recovery
    5.3  description
    6    simulate
    6.1  statements
    6.2  certificates coupling
    6.3  balances minimiser
    7    gallery verify
    7.1  survey
    7.5  known
    8    report selftest
    8.1  experiment
    8.2  grid workers
    8.3  sweep
    9    cli
    9.1  __main__
"""
TABLE = [line.split() for line in FLOORS.strip().splitlines()]
FLOOR = {name: float(floor) for floor, *names in TABLE for name in names}

LONGEST_FILE = 400
LONGEST_FUNCTION = 40
LONGEST_MEDIAN_FILE = 200
LONGEST_MEDIAN_FUNCTION = 8

FILES = sorted(path for path in PACKAGE.rglob("*.py"))
SIMS = sorted(PACKAGE.with_name("sims").glob("*.py"))
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
            wrong.append(f"line {line}: {name} (floor {FLOOR[name]:g}) is not below {here} (floor {FLOOR[here]:g})")
    assert not wrong, f"{path.relative_to(PACKAGE)}: {wrong}"


def test_no_cycles() -> None:
    """Within the folders, where floors say nothing; modules as dotted names."""
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    below: dict[str, set[str]] = {name: set() for name in names}
    for path in FILES:
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(parsed(path)):
            if name != "__init__" and isinstance(node, ast.ImportFrom):
                module = (node.module or "").removeprefix("meanfield").lstrip(".")
                found = {module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)}
                below[name] |= (found & names) - {name}
    assert list(graphlib.TopologicalSorter(below).static_order())  # raises CycleError and names the cycle


def test_every_entry_of_the_table_is_named_once() -> None:
    assert sum(len(names) for _, *names in TABLE) == len(FLOOR)
    floors = [float(floor) for floor, *_ in TABLE]
    assert floors == sorted(set(floors))


@pytest.mark.parametrize("path", [*FILES, *SIMS], ids=lambda path: str(path.relative_to(PACKAGE.parent)))
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
