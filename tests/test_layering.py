"""Imports inside the package run one way."""

import ast
from graphlib import TopologicalSorter
from itertools import permutations
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "haqjax"
# The lowest layer first: a part never imports from a later line.
LAYERS = (
    {"types", "files", "graph"},
    {"capture", "lowering", "bounds", "rules", "policy", "pricing", "budget", "projection", "reach", "models", "data"},
    {"quantize", "hardware", "agent"},
    {"search", "train"},
    {"run", "report", "export"},
    {"cli", "__main__"},
)
APART = {*permutations(("hardware", "agent", "models"), 2), ("search", "quantize"), ("search", "train")}
EXCEPT = {"haqjax.searchers.sensitivity"}  # measures the accuracy of quantised networks itself


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {module(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "__pycache__"}


def imports(name: str) -> set[str]:
    """The modules of the package that one module imports, anywhere in its file."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} line {node.lineno}: write the import in full, from haqjax..."
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    owners = {target if target in FILES else target.rpartition(".")[0] for target in found}
    return (owners & FILES.keys()) - {name}


def part(name: str) -> str:
    return name.split(".")[1]


def layer(name: str) -> int:
    places = [level for level, parts in enumerate(LAYERS) if part(name) in parts]
    assert places, f"{name} has no place yet: give it one in LAYERS"
    return places[0]


@pytest.mark.parametrize("name", [name for name in FILES if name != "haqjax"])
def test_imports_run_one_way(name):
    for target in imports(name):
        assert target != "haqjax", f"{name} imports from the whole package: name the module instead"
        assert layer(target) <= layer(name), f"{name} imports {target}, which is above it"
        assert name in EXCEPT or (part(name), part(target)) not in APART, f"{name} imports {target}: keep them apart"


def test_no_module_imports_itself_by_a_detour():
    TopologicalSorter({name: imports(name) for name in FILES}).prepare()  # raises CycleError, which names the cycle
