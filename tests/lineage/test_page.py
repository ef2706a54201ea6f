"""The page stands alone, is well formed and accessible, and takes no text for HTML."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskrcnn.lineage.page import LINEAGE, Subject, page, sentences
from maskrcnn.lineage.report import write_report
from maskrcnn.lineage.rows import Row

EVIL = '<b>"x" & y</b>'
SETTINGS: dict[str, Any] = {
    "minutes": 5.0,
    "steps": None,
    "data": {"training": 9, "training_objects": 20, "validation": 4, "validation_objects": 8},
    "body": {"name": "resnet18", "options": {"layers": [1]}},
    "pretrained": False,
    "scale": 1.25,
    "device": "cpu",
}
VOID = {"meta", "link", "img"}


def row(key: str, name: str, seed: int = 0) -> Row:
    return Row(
        name=name,
        key=key,
        seed=seed,
        pictures=4,
        box_ap=0.5 + seed / 8,
        box_ap50=0.5,
        box_ap75=0.5,
        mask_ap=0.25 if key == "mask-rcnn" else None,
        seconds_per_picture=0.5,
        stages={EVIL: 0.5},
        training={"network": 1.0},
        facts={"steps": 30.0},
    )


ROWS = [row("rcnn", "R-CNN"), row("mask-rcnn", "Mask R-CNN"), row("base", EVIL)]


class Reader(HTMLParser):
    """Tags with their attributes, text, and whether every element was closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, format="PNG")
    return stream.getvalue()


def made(png: bytes, rows: list[Row] = ROWS, subject: Subject = LINEAGE) -> str:
    return page(subject, rows, {"training": EVIL}, {"Accuracy": png})


def test_it_is_well_formed_with_one_heading_of_the_first_rank(png: bytes) -> None:
    reader = Reader(made(png))
    assert len(reader.all("h1")) == len(reader.all("main")) == len(reader.all("title")) == 1
    ranks = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert ranks[0] == 1 and all(after <= before + 1 for before, after in zip(ranks, ranks[1:], strict=False))
    assert reader.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in reader.all("meta")


def test_pictures_have_words_and_sizes_and_tables_have_headings(png: bytes) -> None:
    reader = Reader(made(png))
    images = reader.all("img")
    assert len(images) == 1 + 2  # the plot, and the figures of the two systems that have a chapter
    assert all(image["alt"] and image["width"] and image["height"] for image in images)
    assert (images[0]["width"], images[0]["height"]) == ("30", "20")
    heads = reader.all("th")
    assert heads and all(head["scope"] in ("col", "row") for head in heads)
    assert len(reader.all("caption")) == len(reader.all("table")) == 3


def test_it_fetches_nothing_and_needs_no_script(png: bytes) -> None:
    text = made(png)
    reader = Reader(text)
    assert reader.all("script") == [] and "http" not in text.replace("http-equiv", "")
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in reader.all("img"))
    policy = next(str(meta["content"]) for meta in reader.all("meta") if "http-equiv" in meta)
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert 'style="' not in text  # which the policy would forbid


def test_text_from_outside_stays_text(png: bytes) -> None:
    text = made(png, subject=Subject(EVIL, EVIL, paper=EVIL))
    assert "<b>" not in text.replace("<b>training</b>", "").partition('<ul class="facts">')[0]
    assert EVIL not in text and Reader(text).text.count(EVIL) >= 6
    assert Reader(made(png, [row("base", "\ud800")])).text.count("?") >= 1  # half a character


def test_a_chapter_for_each_system_with_its_own_numbers(png: bytes) -> None:
    text = Reader(made(png, [row("rcnn", "R-CNN", seed) for seed in (0, 1)])).text
    assert "Selective Search proposes about 2000 regions" in text and "box AP 0.562 (0.500 to 0.625)" in text
    assert "mean (smallest to largest) of 2 seeds" in text and "One seed" not in text
    assert "One seed" in Reader(made(png)).text


def test_an_ablation_says_what_the_paper_found_and_what_was_found_here(png: bytes) -> None:
    subject = Subject("Which?", "A table.", ("box_ap",), "The first.", {"box_ap": (("base", "rcnn"),)})
    rows = [row("rcnn", "R-CNN"), row("base", "the base", 1)]
    text = Reader(made(png, rows, subject)).text
    assert "What the paper found" in text and "The first." in text and "What it changed" not in text
    assert sentences(subject, rows) == [
        "Box AP, best first: the base 0.625, R-CNN 0.500 (-0.125).",
        "box AP: the base 0.625, R-CNN 0.500: as in the paper.",
    ]
    assert all(sentence in text for sentence in sentences(subject, rows))


def test_the_report_of_the_folder(tmp_path: Path) -> None:
    paths = write_report(tmp_path, Subject("Which?", "A table.", ("box_ap",), "The first."), ROWS, SETTINGS)
    names = ["lineage.json", "settings.json", "table.md", "lineage.html", "compared.png", "accuracy.png", "stages.png"]
    assert [path.name for path in paths] == names == [path.name for path in paths if path.is_file()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)  # nothing unfinished beside them
    assert [entry["key"] for entry in json.loads(paths[0].read_text())] == ["rcnn", "mask-rcnn", "base"]
    assert json.loads(paths[1].read_text()) == SETTINGS
    assert "| R-CNN | 0.500 |" in paths[2].read_text() and "5 minutes each" in paths[3].read_text()
    assert "resnet18 (small)" in paths[3].read_text()
    for path in paths[4:]:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 900
