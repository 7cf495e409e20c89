"""Imports inside the package run one way, and names are the field's."""

import ast
import io
import tokenize
from graphlib import TopologicalSorter
from itertools import permutations
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "haqjax"
# The lowest floor first: a room never imports from a later line.
FLOORS = (
    {"types", "files", "reading", "text", "units", "widths"},
    {"tracing", "policies", "data"},
    {"models", "quantizers", "hardware", "agent", "allocation", "sharding"},
    {"training", "searchers"},
    {"evaluation", "report"},
    {"run"},
    {"cli", "__main__"},
)
APART = {
    *permutations(("hardware", "agent", "models"), 2),
    *(("searchers", room) for room in ("evaluation", "quantizers", "training")),
}
ALONE = {"allocation": {"allocation", "policies", "types"}}  # rooms that import from these alone


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


def room(name: str) -> str:
    return name.split(".")[1]


def floor(name: str) -> int:
    places = [level for level, rooms in enumerate(FLOORS) if room(name) in rooms]
    assert places, f"{name} has no place yet: give it one in FLOORS"
    return places[0]


@pytest.mark.parametrize("name", [name for name in FILES if name != "haqjax"])
def test_imports_run_one_way(name):
    for target in imports(name):
        assert target != "haqjax", f"{name} imports from the whole package: name the module instead"
        assert floor(target) <= floor(name), f"{name} imports {target}, which is above it"
        assert (room(name), room(target)) not in APART, f"{name} imports {target}: keep them apart"
        assert room(target) in ALONE.get(room(name), {room(target)}), f"{name} imports {target}: its room needs none"


def test_no_module_imports_itself_by_a_detour():
    TopologicalSorter({name: imports(name) for name in FILES}).prepare()  # raises CycleError, which names the cycle


def test_every_floor_and_rule_names_a_room_that_is_there():
    rooms = {room(name) for name in FILES if name != "haqjax"}
    named = set().union(*FLOORS, *APART, ALONE, *ALONE.values())
    assert named <= rooms | {"units"} and rooms <= set().union(*FLOORS)


# Words for which the field has others (codebook, reward, swap, evaluate, stage ...): no name in the code is one.
OUR_OWN = """nudge nudges unfold bank codes briefly halve halves Halves judge judged judging Judgement gain gains told
fill spent BEYOND leg legs Leg Course descent exchange exchanges improve addition additions seen reach reachable
holders pricing trial trials task Task posed Posed outcome Outcome facts Facts saved play played settle settled
spread share shares"""


def test_names_are_those_of_the_field():
    words = set(OUR_OWN.split())
    found = [
        f"{path.relative_to(PACKAGE)}:{token.start[0]} {token.string}"
        for path in FILES.values()
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.NAME and token.string in words
    ]
    assert not found
