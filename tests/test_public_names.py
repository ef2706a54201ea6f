"""The names that users import: all there, typed, and free of charge until used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import maskrcnn

CONTRACT = {"load", "train", "evaluate", "Predictor", "Detections", "Target", "InputError", "__version__"}


def test_the_contract_is_exported() -> None:
    assert set(maskrcnn.__all__) >= CONTRACT
    assert sorted(maskrcnn.__all__) == sorted([*maskrcnn._HOME, "__version__"])
    assert set(maskrcnn.__all__) <= set(dir(maskrcnn))


@pytest.mark.parametrize("name", maskrcnn.__all__)
def test_each_name_resolves_to_what_its_home_defines(name: str) -> None:
    value = getattr(maskrcnn, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__module__ == maskrcnn._HOME[name]
        assert value.__doc__, f"{name} has no docstring"


def test_static_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(maskrcnn.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == maskrcnn._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="maskrcnn.*'lod'"):
        _ = maskrcnn.lod


@pytest.mark.parametrize(
    "statement", ["import maskrcnn", "import maskrcnn; maskrcnn.InputError", "import maskrcnn.cli.main"]
)
def test_importing_loads_no_torch(statement: str) -> None:
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_in_the_changelog() -> None:
    changelog = Path(__file__).parents[1] / "CHANGELOG.md"
    assert f"## {maskrcnn.__version__}" in changelog.read_text(encoding="utf-8")


def test_the_package_is_typed() -> None:
    assert (Path(maskrcnn.__file__).parent / "py.typed").is_file()
