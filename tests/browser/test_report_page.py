"""The report in a real browser: each stage opens, an object is followed by mouse and by keys, nothing goes wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskrcnn
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.inspection.figure import STAGES, Figure
from maskrcnn.inspection.gates import fates
from maskrcnn.inspection.report import report
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import nano
from maskrcnn.predictor import Predictor

Open = Callable[..., Any]
NAMES = ("</script><img src=x onerror='window.harm=1'>", "<b>square</b>", "a_triangle_with_a_name_" + "x" * 60)


def _made(folder: Path, truth: bool, **options: Any) -> tuple[str, dict[str, Any]]:
    """(address, trace) of a report of drawn shapes, with random weights and names that would do harm as HTML."""
    torch.manual_seed(3)
    config = nano(NAMES, (1, 2, 3))
    model = MaskRCNN(replace(config, detection=replace(config.detection, score_threshold=0.2, max_detections=20)))
    with torch.no_grad():
        model.box_head.classes.weight.mul_(60)
        model.rpn.objectness.weight.mul_(30)
    picture, target = ShapesDataset(1, size=(96, 128))[0]
    steps = maskrcnn.inspect(Predictor(model, "cpu"), picture, ground_truth=target, **options)
    wide = np.tile(picture, (1, 3, 1))
    numbers = (("level", "anchors", "best IoU of any", "a long column"), *(("p2", 4096, i / 7, None) for i in range(3)))
    figures = [Figure(f"of_{s}", s, f"Figure of {s}", f"What is seen at {s}.", wide, numbers) for s in STAGES]
    page = report(steps, fates(steps) if truth else None, figures, NAMES[0])
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    found = re.search(r'id="trace">(.*?)</script>', page, re.S)
    assert found is not None
    return path.as_uri(), json.loads(found[1])


@pytest.fixture(scope="module")
def with_truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    return _made(tmp_path_factory.mktemp("with_truth"), truth=True)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    return _made(tmp_path_factory.mktemp("without"), truth=False)


def _nothing_wrong(seen: Any, address: str) -> None:
    assert seen.problems == []
    assert {request.split("#")[0] for request in seen.requests} == {address}
    assert seen.page.evaluate("window.harm") is None
    assert seen.overflow() == 0


def _boxes(page: Any, kind: str) -> list[list[float]]:
    """(x1, y1, x2, y2) of the followed object's rectangles of a kind, as the picture has them."""
    read = "all => all.map(r => ['x', 'y', 'width', 'height'].map(name => Number(r.getAttribute(name))))"
    boxes = page.locator(f".picture .overlay > g:last-child > rect.line.{kind}").evaluate_all(read)
    return [[x, y, x + width, y + height] for x, y, width, height in boxes]


@pytest.mark.parametrize("width", [360, 1280])
def test_every_stage_opens(opened: Open, with_truth: tuple[str, dict[str, Any]], width: int) -> None:
    address, told = with_truth
    seen = opened(address, width=width)
    page = seen.page
    tabs = page.get_by_role("tab")
    assert tabs.count() == len(STAGES)
    for i, stage in enumerate(told["stages"]):
        tabs.nth(i).click()
        assert [tabs.nth(j).get_attribute("aria-selected") for j in range(8)] == [str(i == j).lower() for j in range(8)]
        panel = page.get_by_role("tabpanel")
        assert panel.get_by_role("heading", level=2).inner_text() == stage["title"]
        values = [text.replace(",", "") for text in panel.locator(".counts dd").all_inner_texts()]
        assert values == [str(count["value"]) for count in stage["counts"]]
        picture = panel.get_by_role("img", name=f"What is seen at {stage['stage']}.")
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("p => p.decode().then(() => p.naturalWidth)") == 384
        assert panel.get_by_role("table").get_by_role("row").count() == 4
        _nothing_wrong(seen, address)


@pytest.mark.parametrize("width", [360, 1280])
def test_an_object_clicked_in_the_picture_is_followed(
    opened: Open, with_truth: tuple[str, dict[str, Any]], width: int
) -> None:
    address, told = with_truth
    lost = [each for each in told["objects"] if not each["found"] and each["gate"] != "anchors"]
    seen = opened(address, width=width)
    page = seen.page
    smallest = min(lost, key=lambda each: (each["box"][2] - each["box"][0]) * (each["box"][3] - each["box"][1]))
    across, down = ((smallest["box"][i] + smallest["box"][i + 2]) / 2 for i in (0, 1))
    picture = page.locator(".picture")
    place = picture.bounding_box()
    scale = min(place["width"] / 128, place["height"] / 96)
    left, top = (place["width"] - 128 * scale) / 2, (place["height"] - 96 * scale) / 2
    picture.click(position={"x": left + across * scale, "y": top + down * scale})
    followed = page.locator("section", has=page.locator("#followed-title"))
    assert followed.locator(".sentence").text_content() == smallest["sentence"]
    assert smallest["setting"] in followed.locator(".help").inner_text()
    for at, tab in zip(smallest["path"], page.get_by_role("tab").all(), strict=True):
        tab.click()
        assert at["state"] in str(tab.get_attribute("class")).split()
        assert np.allclose(_boxes(page, "truth"), [smallest["box"]], atol=1e-6)
        expected = [at["box"]] if at["box"] and at["stage"] != "input" else []
        assert np.allclose(_boxes(page, "after"), expected, atol=1e-6)
        assert np.allclose(_boxes(page, "before"), [at["before"]] if at["before"] else [], atol=1e-6)
        _nothing_wrong(seen, address)
    lost_at = [i for i, at in enumerate(smallest["path"]) if at["state"] == "lost"]
    assert len(lost_at) == 1
    page.get_by_role("tab").nth(lost_at[0]).click()
    assert smallest["sentence"] in page.get_by_role("tabpanel").text_content()


def test_by_keyboard_alone(opened: Open, with_truth: tuple[str, dict[str, Any]]) -> None:
    address, told = with_truth
    seen = opened(address)
    page = seen.page

    def tab_to(what: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("what => document.activeElement.matches(what)", what):
                assert page.evaluate(
                    "getComputedStyle(document.activeElement).outlineStyle != 'none' || "
                    "getComputedStyle(document.activeElement).boxShadow != 'none'"
                )
                return
        raise AssertionError(f"the Tab key does not lead to {what}")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    tab_to(".tab")
    for stage in [*told["stages"][1:], told["stages"][0]]:  # after the last comes the first
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == f"tab-{stage['stage']}"
        assert page.get_by_role("tabpanel").get_by_role("heading", level=2).inner_text() == stage["title"]
    page.keyboard.press("End")
    assert page.get_by_role("tab", selected=True).get_attribute("id") == "tab-result"
    page.keyboard.press("Home")
    tab_to(".objects button")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    second = told["objects"][1]
    assert page.locator("#followed-title").inner_text() == f"Object {second['id']}: {second['name']}"
    assert second["sentence"] in page.get_by_role("status").inner_text()
    assert page.evaluate("document.activeElement.matches('.objects button[aria-pressed=true]')")
    page.keyboard.press("Escape")
    assert page.locator(".objects button[aria-pressed=true]").count() == 0
    _nothing_wrong(seen, address)


def test_names_are_shown_as_they_are(opened: Open, with_truth: tuple[str, dict[str, Any]]) -> None:
    address, told = with_truth
    seen = opened(address, width=360)
    assert seen.page.get_by_role("heading", level=1).inner_text() == NAMES[0]
    listed = seen.page.locator(".objects .name").all_inner_texts()
    assert listed == [each["name"] for each in told["objects"]][: len(listed)]
    assert {NAMES[1], NAMES[2]} & set(listed)
    _nothing_wrong(seen, address)


def test_the_list_shows_each_gate_and_its_objects(opened: Open, with_truth: tuple[str, dict[str, Any]]) -> None:
    address, told = with_truth
    page = opened(address).page
    for gate in {each["gate"] for each in told["objects"]}:
        page.get_by_label("Show", exact=True).select_option(gate)
        ids = [str(each["id"]) for each in told["objects"] if each["gate"] == gate]
        assert page.locator(".objects .number").all_inner_texts() == ids
        assert page.locator(".picture .hit").count() == len(ids)


def test_without_ground_truth_detections_are_followed_back(opened: Open, without: tuple[str, dict[str, Any]]) -> None:
    address, told = without
    seen = opened(address + "#stage=boxes&object=2")
    page = seen.page
    third = told["objects"][2]
    assert page.locator("#followed-title").inner_text() == f"Detection 2: {third['name']}"
    for stage in ("boxes", "proposals", "anchors"):
        page.locator(".way button", has_text=next(s["title"] for s in told["stages"] if s["stage"] == stage)).click()
        at = next(step for step in third["path"] if step["stage"] == stage)
        assert np.allclose(_boxes(page, "after"), [at["box"]], atol=1e-6)
        assert page.evaluate("location.hash") == f"#stage={stage}&object=2"
    _nothing_wrong(seen, address)


def test_masks_are_drawn_where_they_are(opened: Open, without: tuple[str, dict[str, Any]]) -> None:
    address, told = without
    page = opened(address + "#stage=masks&object=0").page
    drawn = page.locator(".picture .overlay > g:last-child > path.mask").get_attribute("d")
    rings = [[float(v) for v in re.findall(r"[-\d.]+", part)] for part in drawn.split("Z") if part]
    assert rings == told["objects"][0]["outline"]


def test_detections_that_found_nothing_are_told(opened: Open, with_truth: tuple[str, dict[str, Any]]) -> None:
    address, told = with_truth
    seen = opened(address + "#stage=result")
    wrong = told["false_positives"]
    assert wrong and seen.page.locator(".picture rect.false").count() == len(wrong)
    counted = seen.page.get_by_role("region", name="False positives").locator("dd").all_inner_texts()
    assert sum(int(count) for count in counted) == len(wrong)
    seen.page.get_by_role("tab").first.click()
    assert seen.page.locator(".picture rect.false").count() == 0
    _nothing_wrong(seen, address)


def test_figures_are_enlarged_and_let_go(opened: Open, with_truth: tuple[str, dict[str, Any]]) -> None:
    address, _ = with_truth
    seen = opened(address, width=360)
    page = seen.page
    page.get_by_role("button", name="Enlarge: Figure of input").click()
    dialog = page.get_by_role("dialog", name="Enlarged figure")
    assert dialog.is_visible() and dialog.get_by_role("img", name="What is seen at input.").is_visible()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    _nothing_wrong(seen, address)


def test_landmarks_and_names_for_those_who_do_not_see_it(opened: Open, with_truth: tuple[str, dict[str, Any]]) -> None:
    address, told = with_truth
    page = opened(address).page
    for role in ("banner", "main", "navigation"):
        assert page.get_by_role(role).count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    unnamed = "all => all.filter(b => !(b.textContent.trim() || b.getAttribute('aria-label'))).length"
    assert page.locator("button").evaluate_all(unnamed) == 0
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.get_by_role("img", name=re.compile("^The picture, 128 by 96 pixels")).count() == 1
    assert page.locator("[onclick], div[role=button]").count() == 0
    page.get_by_role("tab").nth(3).click()
    names = [tab.inner_text() for tab in page.get_by_role("tab").all()]
    assert all(stage["title"] in name for stage, name in zip(told["stages"], names, strict=True))


def test_dark_and_still_where_that_is_asked(opened: Open, with_truth: tuple[str, dict[str, Any]]) -> None:
    address, _ = with_truth
    page = opened(address, color_scheme="dark", reduced_motion="reduce").page
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(v) for v in re.findall(r"\d+", ground)[:3]) < 120
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    assert page.evaluate("getComputedStyle(document.querySelector('.tab')).transitionDuration") == "0s"


def test_nothing_found_is_an_ordinary_page(opened: Open, tmp_path: Path) -> None:
    address, told = _made(tmp_path, truth=False, score_threshold=1.0)
    seen = opened(address, width=360)
    assert told["objects"] == []
    for tab in seen.page.get_by_role("tab").all():
        tab.click()
    assert "There are none" in seen.page.locator(".list").inner_text()
    _nothing_wrong(seen, address)
