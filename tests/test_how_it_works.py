"""`docs/how-it-works.md` says what is so: links lead to what they name, pictures exist, numbers are true."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskrcnn.inspection.gates import fates
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.model.presets import nano, r50_fpn

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
LINES = runpy.run_path(str(DOCS / "refresh_lines.py"))
PICTURES = runpy.run_path(str(DOCS / "make_pictures.py"))
LINKS = [link.groupdict() for link in LINES["LINK"].finditer(TEXT)]
CELL = re.compile(r"^\| \[`(\w+)\.(\w+)`\].*?\| (.*?) \| (.*?) \|", re.MULTILINE)


@pytest.mark.parametrize("link", LINKS, ids=lambda link: f"{link['file'].rpartition('/')[2]}:{link['name']}")
def test_a_link_leads_to_the_line_that_defines_what_it_names(link: dict[str, str]) -> None:
    file = (DOCS / link["file"]).resolve()
    source = file.read_text(encoding="utf-8")
    line = source.splitlines()[int(link["line"]) - 1].strip()
    name = link["name"].rpartition(".")[2]
    assert re.match(rf"(def|class) {name}\b|{name}\s*[:=]", line), "run python docs/refresh_lines.py"
    assert int(link["line"]) == LINES["line_of"](source, link["name"])


def test_no_link_to_code_is_written_otherwise() -> None:
    assert len(LINKS) == TEXT.count(".py#L") == TEXT.count("](../src/") > 60


def test_every_stage_of_the_figure_is_linked() -> None:
    files = {link["file"].partition("src/maskrcnn/")[2] for link in LINKS}
    blocks = "mask_rcnn preprocess backbone fpn anchors rpn roi_pooler box_head mask_head frames presets".split()
    assert {f"model/{block}.py" for block in blocks} <= files


def test_every_other_relative_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert [link for link in links if not (DOCS / link).is_file()] == []


def test_the_pictures_are_those_that_the_script_makes() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(images/how-it-works/([^)]+)\)", TEXT)
    files = sorted((DOCS / "images" / "how-it-works").iterdir())
    assert sorted(shown) == sorted(PICTURES["FILES"]) == [file.name for file in files]
    assert sum(file.stat().st_size for file in files) < 1_500_000
    for file in files:
        with Image.open(file) as image:
            image.load()
            assert image.width == 1000 and 300 < image.height < 2000


@pytest.mark.parametrize(("column", "config"), [(0, r50_fpn(("a",), (1,))), (1, nano(("a",), (1,)))])
def test_the_constants_are_those_of_the_presets(column: int, config: MaskRCNNConfig) -> None:
    learned_here = {
        ("DetectionConfig", "max_detections")
    }  # set from the data, so it is the file's and not the preset's
    parts = [config.preprocess, config.rpn, config.rpn.anchors, config.rpn.coder, config.roi_pooler]
    parts += [config.box_head, config.mask_head, config.detection, config.fpn, config.backbone]
    of_name = {type(part).__name__: part for part in parts}
    compared = 0
    for owner, field, *cells in CELL.findall(TEXT):
        value = getattr(of_name.get(owner), field, None)
        number = re.match(r"(\d+(?:\.\d+)?)\b", cells[column])
        if (owner, field) in learned_here and column == 1:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool) and number is not None:
            assert float(number[1]) == value, f"{owner}.{field}"
            compared += 1
    assert compared >= 12


def test_what_it_says_of_the_picture_is_so() -> None:
    steps: Any = PICTURES["steps_of_the_page"]()
    assert f"{len(steps.anchors):,}. They are not learned" in TEXT
    assert f"with {len(steps.target)} nuclei" in TEXT
    assert f"here {int(steps.proposals.valid.sum()):,}." in TEXT
    assert f"| 100 | {steps.config.detection.max_detections} | He et al. 2017, 3.1; here by the data" in TEXT
    outcomes = fates(steps)
    begin, end = PICTURES["LOST"]
    assert TEXT.partition(begin)[2].partition(end)[0].strip() == PICTURES["lost_objects"](outcomes).strip()
    assert TEXT.count("\n- object ") == sum(not fate.found for fate in outcomes) > 0


def test_a_moved_line_is_found_again_and_a_lost_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "X = 1\n\n\nclass A:\n    b: int = 2\n\n    @property\n    def c(self):\n        ...\n"
    )
    text = "[`A.c`](a.py#L1) [`A`](a.py#L99) [`A.b`](a.py#L0) [`X`](a.py#L5)"
    assert LINES["refreshed"](text, tmp_path) == "[`A.c`](a.py#L8) [`A`](a.py#L4) [`A.b`](a.py#L5) [`X`](a.py#L1)"
    with pytest.raises(LookupError, match="A.d is not defined"):
        LINES["refreshed"]("[`A.d`](a.py#L1)", tmp_path)
