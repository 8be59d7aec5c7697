"""The files around the package agree with each other, and the package opens quickly."""

import ast
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

import meanfield
from meanfield import config

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"matplotlib": "matplotlib-base"}  # where conda-forge's name is not the lower-case one
README = (ROOT / "README.md").read_text(encoding="utf-8")
LAZY = ("numba", "cupy", "pykeops", "scipy", "xarray", "matplotlib", "sklearn", "ot", "pandas", "h5py", "tomli_w")


def bounds(lines: list[str]) -> dict[str, str]:
    form = r"([A-Za-z0-9_.-]+)(?:>=([0-9.]+))?(?:,<[0-9.]+)?(?:;.*)?"
    pairs = [re.fullmatch(form, line.strip()) for line in lines]
    assert all(pairs), f"wanted name>=version: {lines}"
    return {pair[1]: pair[2] or "" for pair in pairs if pair}


def test_environment_yml_has_the_names_and_bounds_of_pyproject() -> None:
    wanted = bounds([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])
    wanted = {CONDA_NAMES.get(name, name.lower()): bound for name, bound in wanted.items()}
    wanted["python"] = PROJECT["requires-python"].removeprefix(">=")
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    conda = bounds([line.strip(" -") for line in text.splitlines() if re.match(r" +- [a-z0-9-]+(>=|$)", line)])
    conda = {name: bound for name, bound in conda.items() if name not in ("conda-forge", "pip")}
    assert conda == wanted


def test_lowest_versions_are_those_of_pyproject() -> None:
    text = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8")
    lowest = dict(re.findall(r"^([A-Za-z0-9-]+)==([0-9.]+?)(?:\.\*)?$", text, re.MULTILINE))
    for name, bound in bounds(PROJECT["dependencies"]).items():
        assert lowest[name] == bound, name


def test_versions_agree() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert PROJECT["version"] == meanfield.__version__ == cited[1]
    assert f"## {meanfield.__version__} - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_commands_of_the_readme_are_targets_of_make() -> None:
    commands = set(re.findall(r"^ *\$? *make ([a-z-]+)", README, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= commands <= targets


def test_code_of_the_readme_compiles_and_uses_public_names() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    tree = ast.parse(code)
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "mf"}
    assert {"Risk", "Flow", "simulate", "verify"} <= used <= set(meanfield.__all__)


def test_files_that_the_readme_names_exist() -> None:
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert linked and all((ROOT / name).exists() for name in linked), linked


def test_sims_are_valid_configurations() -> None:
    files = sorted((ROOT / "sims").glob("*.toml"))
    assert "quickstart.toml" in [file.name for file in files]
    for file in files:
        config.load(file)


def test_quickstart_is_the_main_job() -> None:
    run = config.load(ROOT / "sims" / "quickstart.toml")
    assert (run.data.source, run.data.classes, run.data.n) == ("digits", (3, 8), 100)
    assert (run.network.activation, run.network.alpha, run.cloud.m, run.cloud.replicates) == ("tanh", 20.0, 4096, 4)
    assert (run.flow.lam, run.flow.time) == (0.01, 2.0)


@pytest.mark.parametrize("name", sorted(meanfield._HOME))
def test_public_names_load(name: str) -> None:
    thing = getattr(meanfield, name)
    assert thing.__name__ == name and thing.__module__ == f"meanfield.{meanfield._HOME[name]}"


def test_what_type_checkers_see_is_what_is_loaded() -> None:
    tree = ast.parse((ROOT / "meanfield" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names if isinstance(node, ast.ImportFrom)}
    assert seen == {**meanfield._HOME, **dict.fromkeys(meanfield._MODULES)}


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_nothing_heavy() -> None:
    heavy = f"{LAZY!r}"
    assert fresh(f"import sys, meanfield; print([n for n in {heavy} if n in sys.modules])") == "[]"
    loaded = f"import sys, meanfield as mf; mf.config; mf.units; mf.theory; mf.noise; mf.datasets; mf.Risk; mf.Flow;\
print([n for n in {heavy} if n in sys.modules])"
    assert fresh(loaded) == "[]"


@pytest.mark.parametrize("name", ["simulate", "verify"])
def test_functions_win_over_submodules_of_their_name(name: str) -> None:
    orders = [
        f"import meanfield.{name}",
        f"from meanfield.{name} import {name}",
        f"import importlib; importlib.import_module('meanfield.{name}')",
        "",
    ]
    code = "\n".join(
        f"import sys; [sys.modules.pop(n) for n in list(sys.modules) if n.startswith('meanfield')]\n{order}\n"
        f"import meanfield, types; assert isinstance(meanfield.{name}, types.FunctionType), {order!r}"
        for order in orders
    )
    fresh(code)
    assert isinstance(getattr(meanfield, name), types.FunctionType)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = meanfield.nothing
    assert set(meanfield.__all__) <= set(dir(meanfield))
