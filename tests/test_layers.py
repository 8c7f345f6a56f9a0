"""The floors of the package: what lies on one imports only from floors below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import thinktune

ROOT = Path(thinktune.__file__).parent
FLOORS = (
    "errors lighter_imports tags version",
    "boxed cluster files imports notices plugins network web",
    "config records retry",
    "models scoring run_folder",
    "data",
    "inference planner",
    "training evaluation export",
    "report",
    "workflows studio",
    "cli",
    "__init__ __main__",
)
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms.split()}


def _imports(file: Path) -> Iterator[str]:
    """Yield the rooms that a module imports, at its top or in a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            _, _, inner = (node.module or "").partition("thinktune.")
            if inner:
                yield inner.split(".")[0]
            elif node.module == "thinktune":
                yield from (alias.name if alias.name in LEVELS else "__init__" for alias in node.names)


def test_no_module_imports_from_its_own_floor_or_one_above() -> None:
    upward = {
        f"{file.relative_to(ROOT)} imports {other}"
        for file in ROOT.rglob("*.py")
        for other in _imports(file)
        if other != (room := file.relative_to(ROOT).parts[0].removesuffix(".py")) and LEVELS[other] >= LEVELS[room]
    }
    assert not upward
