"""Between folders, imports point down and never sideways (DESIGN: the house)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import maskrcnn

PACKAGE = Path(maskrcnn.__file__).parent

# first part of a module's path below `maskrcnn` -> floor; "" is `maskrcnn/__init__.py`
FLOORS = {
    "errors": 0,
    "ops": 0,
    "structures": 1,
    "model": 2,
    "data": 2,
    "engine": 3,
    "weights": 3,
    "predictor": 4,
    "evaluation": 4,
    "losses": 4,
    "inspection": 5,
    "export": 6,
    "training": 6,
    "bench": 7,
    "lineage": 7,
    "serving": 7,
    "api": 8,
    "cli": 8,
    "": 8,
    "__main__": 9,
}
# the types that operations draw and paste may be named, though not used, below their floor
FOR_TYPES_ONLY = {("ops", "structures")}
# one small file that imports nothing: the sideways rule is about folders
OPEN_TO_ALL = {"errors"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """maskrcnn.ops.boxes -> ops; maskrcnn -> "" """
    return (module.split(".") + [""])[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(tree: ast.AST, package: str, for_types: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(module, line, only for types) of each import of our own, inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, for_types
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = resolve_name("." * node.level + base, package)
            for alias in node.names:  # `from maskrcnn import ops` names a folder
                yield f"{base}.{alias.name}", node.lineno, for_types
        else:
            yield from imports(node, package, for_types or is_type_checking(node))


def fault(importer: str, imported: str, for_types: bool) -> str | None:
    """Why `importer` (a part) may not import `imported` (a part); None if it may."""
    if importer == imported or imported in OPEN_TO_ALL:
        return None
    if for_types and (importer, imported) in FOR_TYPES_ONLY:
        return None
    if imported not in FLOORS:
        return f"{imported!r} has no floor"
    if FLOORS[imported] < FLOORS[importer]:
        return None
    if importer == "" or (importer, imported) == ("cli", "api"):  # the roof: three doors to the same house
        return None
    return f"{importer!r} (floor {FLOORS[importer]}) imports {imported!r} (floor {FLOORS[imported]})"


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    assert part_of(name) in FLOORS, f"{name} has no floor: add it to FLOORS"
    faults = []
    for module, line, for_types in imports(ast.parse(path.read_text(encoding="utf-8")), package):
        if module.split(".")[0] != "maskrcnn":
            continue
        if module == "maskrcnn.__version__":  # a text, free to all
            continue
        part = part_of(module)
        imported = part_of(maskrcnn._HOME.get(part, f"maskrcnn.{part}"))  # a public name counts as its home
        if problem := fault(part_of(name), imported, for_types):
            faults.append(f"{path.relative_to(PACKAGE)}:{line}: {problem}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("importer", "imported", "for_types", "allowed"),
    [
        ("model", "ops", False, True),
        ("ops", "ops", False, True),
        ("ops", "errors", False, True),
        ("errors", "ops", False, False),
        ("ops", "structures", False, False),
        ("ops", "structures", True, True),
        ("model", "data", False, False),
        ("data", "model", True, False),
        ("evaluation", "predictor", False, False),
        ("losses", "model", False, True),
        ("cli", "api", False, True),
        ("api", "cli", False, False),
        ("training", "cli", False, False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, for_types: bool, allowed: bool) -> None:
    assert (fault(importer, imported, for_types) is None) == allowed


def test_imports_in_functions_and_for_types_are_seen() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from maskrcnn.structures import Masks
def f():
    from ..data import coco
    import maskrcnn.model.rpn
"""
    found = set(imports(ast.parse(source), "maskrcnn.ops"))
    assert ("maskrcnn.structures.Masks", 4, True) in found
    assert ("maskrcnn.data.coco", 6, False) in found
    assert ("maskrcnn.model.rpn", 7, False) in found
