"""The README's map of the files is the package's."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "src" / "maskrcnn").rglob("*.py") if not path.name.startswith("__"))


def map_lines() -> set[tuple[str, str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text[text.index("## The files") :].splitlines()
    return {(name, rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in lines)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "src" / "maskrcnn")))
def test_every_file_is_in_the_map_with_its_own_first_line(path: Path) -> None:
    summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    assert summary and (path.name, summary) in map_lines()
