"""`docs/lineage.md` says what is so: links lead to what they name, figures are there, ablations are all told."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from maskrcnn.lineage.ablations import ABLATIONS

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "lineage.md").read_text(encoding="utf-8")
LINES = runpy.run_path(str(DOCS / "refresh_lines.py"))
PICTURES = runpy.run_path(str(DOCS / "make_pictures.py"))
LINKS = [link.groupdict() for link in LINES["LINK"].finditer(TEXT)]


@pytest.mark.parametrize("link", LINKS, ids=lambda link: f"{link['file'].rpartition('/')[2]}:{link['name']}")
def test_a_link_leads_to_the_line_that_defines_what_it_names(link: dict[str, str]) -> None:
    source = (DOCS / link["file"]).resolve().read_text(encoding="utf-8")
    assert int(link["line"]) == LINES["line_of"](source, link["name"]), "run python docs/refresh_lines.py"


def test_no_link_to_code_is_written_otherwise() -> None:
    assert len(LINKS) == TEXT.count(".py#L") == TEXT.count("](../src/") > 25


def test_every_ancestor_is_linked() -> None:
    files = {Path(link["file"]).stem for link in LINKS}
    assert {"hog_svm", "rcnn", "fast_rcnn", "faster_rcnn", "mask_rcnn", "selective_search", "papers"} <= files


def test_every_other_relative_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert [link for link in links if not (DOCS / link).is_file()] == []


def test_the_figures_are_those_that_the_script_draws() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((images/lineage-[^)]+)\)", TEXT)
    assert [DOCS / name for name in shown] == list(PICTURES["LINEAGE"].values())
    assert set((DOCS / "images").glob("lineage-*")) == set(PICTURES["LINEAGE"].values())
    for path in PICTURES["LINEAGE"].values():
        with Image.open(path) as image:
            image.load()
            assert image.width == 1000 and 300 < image.height < 2000
        assert path.stat().st_size < 150_000


def test_every_ablation_is_told() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", TEXT, re.MULTILINE))
    assert list(rows) == list(ABLATIONS)
