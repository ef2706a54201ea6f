"""The links of the pages to lines of code, kept right: `python docs/refresh_lines.py` writes the numbers anew.

A link is written [`RPN.forward`](../src/maskrcnn/model/rpn.py#L124): the name of a function, class, method, constant or
field in the file, and the line on which it is defined. Other functions of the page's tests use the same reading.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

PAGES = [Path(__file__).parent / name for name in ("how-it-works.md", "lineage.md")]
LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<file>[^)#\s]+\.py)#L(?P<line>\d+)\)")


def line_of(source: str, name: str) -> int:
    """The line, from 1, of the `def`, `class` or assignment of a dotted name: "RPN.forward", "RPNConfig.nms_iou".

    Raises: LookupError where there is none.
    """
    body = ast.parse(source).body
    line = 0
    for part in name.split("."):
        node = next((node for node in body if part in _names(node)), None)
        if node is None:
            raise LookupError(f"{name} is not defined")
        line, body = node.lineno, getattr(node, "body", [])
    return line


def refreshed(text: str, folder: Path) -> str:
    """The page's text with every line number right. folder: that its links start from."""

    def with_line(link: re.Match[str]) -> str:
        source = (folder / link["file"]).read_text(encoding="utf-8")
        return f"[`{link['name']}`]({link['file']}#L{line_of(source, link['name'])})"

    return LINK.sub(with_line, text)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


if __name__ == "__main__":
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = refreshed(before, page.parent)
        page.write_text(after, encoding="utf-8")
        moved = sum(a[0] != b[0] for a, b in zip(LINK.finditer(before), LINK.finditer(after), strict=True))
        print(f"{page.name}: {len(LINK.findall(after))} links, {moved} moved")
