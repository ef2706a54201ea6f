"""The report as a file: what is embedded is the trace, nothing in it can act or reach out, and it stays small."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.inspection import report as report_file
from maskrcnn.inspection.figure import STAGES, Figure
from maskrcnn.inspection.gates import fates
from maskrcnn.inspection.probe import Steps
from maskrcnn.inspection.report import MOST_BYTES, NARROWEST, TALLEST, WIDEST, embedded, report
from maskrcnn.inspection.trace import trace
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import nano
from maskrcnn.predictor import Predictor

HOSTILE = ("</script><img src=x onerror=alert(1)>", "<!--<script>\u2028&lt;", "{{trace}}'\"\ud800\x00\u202e")


@cache
def _steps() -> Steps:
    """Random weights, spread, and class names that would do harm as HTML."""
    torch.manual_seed(3)
    config = nano(HOSTILE, (1, 2, 3))
    model = MaskRCNN(replace(config, detection=replace(config.detection, score_threshold=0.2, max_detections=30)))
    with torch.no_grad():
        model.box_head.classes.weight.mul_(60)
        model.rpn.objectness.weight.mul_(30)
    picture, target = ShapesDataset(1, size=(96, 128))[0]
    return maskrcnn.inspect(Predictor(model, "cpu"), picture, ground_truth=target)


def _figures() -> list[Figure]:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    numbers = (("level", "best"), ("p2", float("nan")), ("p3", 0.25))
    return [Figure(f"of_{stage}", stage, HOSTILE[0], HOSTILE[1], picture, numbers) for stage in STAGES]


class _Elements(HTMLParser):
    """Every element with its attributes, and the text that it begins with."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data

    def text(self, tag: str, **attributes: str) -> str:
        (found,) = [
            text
            for (name, have), text in zip(self.elements, self.texts, strict=True)
            if name == tag and all(have.get(key) == value for key, value in attributes.items())
        ]
        return found


def _embedded(page: str, name: str) -> dict[str, Any]:
    return json.loads(_Elements(page).text("script", id=name))  # type: ignore[no-any-return]


def test_what_is_embedded_is_the_trace() -> None:
    steps = _steps()
    ends = fates(steps)
    told = _embedded(report(steps, ends, _figures(), "a picture.png"), "trace")
    expected = json.loads(json.dumps(trace(steps, ends), allow_nan=False))
    assert told.pop("title") == "a picture.png"
    figures = told.pop("figures")
    assert told == expected
    assert [f["stage"] for f in figures] == list(STAGES) and figures[0]["numbers"][1] == ["p2", None]
    assert {each["name"] for each in told["objects"]} <= set(HOSTILE)


def test_names_out_of_files_never_become_html() -> None:
    page = report(_steps(), None, _figures(), title=HOSTILE[0] + HOSTILE[2])
    page.encode("utf-8")  # half characters would not be written
    plain = report(_steps(), None, [], title="a")
    tags = [name for name, _ in _Elements(page).elements]
    assert tags == [name for name, _ in _Elements(plain).elements] and "img" not in tags
    assert not [key for _, have in _Elements(page).elements for key in have if key.startswith("on")]
    assert page.count("</script") == plain.count("</script") == 3
    assert "<!--" not in page
    assert _Elements(page).text("title").startswith(HOSTILE[0])
    assert {each["name"] for each in _embedded(page, "trace")["objects"]} & set(HOSTILE)


def test_the_policy_allows_this_style_and_this_script_and_no_network() -> None:
    page = _Elements(report(_steps(), None, [], "a"))
    (policy,) = [have["content"] for name, have in page.elements if "http-equiv" in have]
    (style,) = [text for (name, _), text in zip(page.elements, page.texts, strict=True) if name == "style"]
    (script,) = [t for (name, have), t in zip(page.elements, page.texts, strict=True) if name == "script" and not have]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    for rule, text in (("style-src", style), ("script-src", script)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    addresses = [have.get(key) for _, have in page.elements for key in ("src", "href") if key in have]
    assert addresses == ["data:,"]


def _opened(url: str) -> tuple[str, np.ndarray]:
    kind, content = re.fullmatch(r"data:image/(\w+);base64,(.+)", url).groups()  # type: ignore[union-attr]
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def test_pictures_are_those_that_were_given() -> None:
    drawing = np.zeros((50, 70, 3), np.uint8)
    drawing[10:20, 30:60] = (255, 140, 0)
    figures = [*_figures(), Figure("drawing", "input", "a", "b", drawing)]
    pictures = _embedded(report(_steps(), None, figures, "a"), "pictures")
    assert list(pictures) == ["picture", *(f"of_{stage}" for stage in STAGES), "drawing"]
    kind, picture = _opened(pictures["picture"])
    assert picture.shape == _steps().picture.shape
    near = [np.asarray(Image.fromarray(each).reduce(8)).astype(float) for each in (picture, _steps().picture)]
    assert np.abs(near[0] - near[1]).mean() < 1.5
    kind, drawn = _opened(pictures["drawing"])
    assert kind == "png" and np.array_equal(drawn, drawing)  # nothing is lost


def test_photographs_become_jpeg_and_wide_ones_narrower() -> None:
    y, x = np.mgrid[0:900, 0:2400] / 40
    noise = np.random.default_rng(1).normal(0, 6, (900, 2400, 3))
    photo = (128 + 60 * np.sin(x)[..., None] + 50 * np.cos(y)[..., None] + noise).clip(0, 255).astype(np.uint8)
    kind, small = _opened(embedded({"a": photo}, MOST_BYTES)["a"])
    assert kind == "jpeg" and small.shape == (600, WIDEST, 3)
    reference = np.asarray(Image.fromarray(photo).resize((WIDEST, 600), Image.Resampling.LANCZOS)).astype(float)
    assert np.abs(small - reference).mean() < 4


def test_a_report_of_heavy_pictures_stays_below_ten_megabytes() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (1000, 1600, 3), dtype=np.uint8)
    figures = [Figure(f"n{i}", "input", "noise", "noise", noise) for i in range(6)]
    page = report(_steps(), None, figures, "a")
    assert len(page.encode()) < 10_000_000
    sizes = [_opened(url)[1].shape for name, url in _embedded(page, "pictures").items() if name != "picture"]
    assert len(set(sizes)) == 1 and NARROWEST < sizes[0][1] < WIDEST


def test_beside_thousands_of_objects_pictures_stay_readable() -> None:
    steps = _steps()
    told = trace(steps)
    told["objects"] = told["objects"][:1] * (2 * MOST_BYTES // len(json.dumps(told["objects"][:1])))
    noise = np.random.default_rng(2).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    page = report(steps, None, [Figure(f"n{i}", "input", "noise", "noise", noise) for i in range(3)], "a", told)
    sizes = [_opened(url)[1].shape for name, url in _embedded(page, "pictures").items() if name != "picture"]
    assert min(size[1] for size in sizes) > 2 * NARROWEST


def test_a_huge_picture_is_reduced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encode, widths = report_file._data_url, []

    def seen(picture: np.ndarray, width: int) -> str:
        widths.append(picture.shape[1])
        return encode(picture, width)

    monkeypatch.setattr(report_file, "_data_url", seen)
    embedded({"a": np.random.default_rng(2).integers(0, 256, (40, 9000, 3), dtype=np.uint8)}, 0)
    assert len(widths) > 1 and set(widths) == {WIDEST}


def test_a_picture_taller_than_jpeg_can_be() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (70_000, 4, 3), dtype=np.uint8)
    assert _opened(embedded({"a": noise}, MOST_BYTES)["a"])[1].shape == (TALLEST, 1, 3)


def test_without_room_pictures_are_narrow_rather_than_absent() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    assert _opened(embedded({"a": noise}, 0)["a"])[1].shape == (NARROWEST, NARROWEST, 3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_and_ground_contrast_enough(scheme: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1 for text; 1.4.11: 3 to 1 for the ring around what has the focus."""
    style = (files("maskrcnn.inspection") / "page" / "page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0] + (blocks[1] if scheme == "dark" else "")))

    def luminance(name: str) -> float:
        channels = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(a: str, b: str) -> float:
        darker, lighter = sorted((luminance(a), luminance(b)))
        return (lighter + 0.05) / (darker + 0.05)

    for ink in ("ink", "soft", "found", "lost"):
        for ground in ("ground", "card"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
    pairs = [("on-accent", "accent"), ("found", "found-wash"), ("lost", "lost-wash"), ("ink", "wash"), ("soft", "wash")]
    for ink, ground in [*pairs, ("ink", "lost-wash")]:
        assert contrast(ink, ground) >= 4.5, (ink, ground)
    for ground in ("ground", "card"):
        assert contrast("accent", ground) >= 3
