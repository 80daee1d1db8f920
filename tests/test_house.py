"""The house: few floors, no circles, functions that fit a screen. What a wing may import is held by `lint-imports`."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "vtamiq").rglob("*.py"))
}
MAX_FLOORS, MAX_FUNCTION = 13, 45


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def imported(name: str) -> list[tuple[str, str]]:
    """(module, name) of everything that a file imports when it runs, wherever in the file."""
    typing = [
        node for node in ast.walk(tree(name)) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    idle = {id(node) for block in typing for node in ast.walk(block)}
    nodes = [node for node in ast.walk(tree(name)) if isinstance(node, ast.ImportFrom) and id(node) not in idle]
    return [(node.module, alias.name) for node in nodes for alias in node.names]


def files_below(name: str) -> set[str]:
    """Files of the package that a file imports."""
    found = {f"{module}.{item}" if f"{module}.{item}" in FILES else module for module, item in imported(name)}
    return found & FILES.keys() - {name}


def test_floors_and_circles():
    below = {name: files_below(name) for name in FILES}
    floors: dict[str, int] = {}
    for name in TopologicalSorter(below).static_order():  # raises CycleError, naming the circle
        floors[name] = 1 + max((floors[other] for other in below[name]), default=0)
    assert max(floors.values()) <= MAX_FLOORS
    assert floors["vtamiq.__main__"] > floors["vtamiq.utils.configs"] == 1


@pytest.mark.parametrize("name", FILES)
def test_no_private_name_crosses_files(name):
    private = [
        f"{m}.{n}" for m, n in imported(name) if m.startswith("vtamiq") and n.startswith("_") and n != "__version__"
    ]
    assert private == []


@pytest.mark.parametrize("name", FILES)
def test_functions_fit_a_screen(name):
    long = {}
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            long[node.name] = node.end_lineno - first.lineno + 1
    assert {function: lines for function, lines in long.items() if lines > MAX_FUNCTION} == {}
