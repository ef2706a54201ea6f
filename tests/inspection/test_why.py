"""Sums over a data set agree with TIDE's own figures, with the evaluation, and with what is known of made-up scenes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import maskrcnn
from maskrcnn.data.classes import Classes
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.inspection.explain import in_classes_of, labels_of
from maskrcnn.inspection.false_positives import KINDS
from maskrcnn.inspection.fate import GATES
from maskrcnn.inspection.probe import Steps
from maskrcnn.inspection.why import FALSE, Reasons, Why
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import nano
from maskrcnn.predictor import Predictor
from maskrcnn.structures import Target

from .made_up import Line, Thing, picture, settings

FIXTURE = Path(__file__).parent / "fixtures" / "tide.json"
TIDES = {"Cls": "class", "Loc": "place", "Both": "both", "Dupe": "duplicate", "Bkg": "background"}
OBJECT = Thing((20, 20, 40, 40))


def why(*pictures: Steps, **options: Any) -> Why:
    reasons = Reasons(**options)
    for steps in pictures:
        reasons.add(steps)
    return reasons.why()


def corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def test_figures_are_tides() -> None:
    """The fixture holds made-up boxes of 4 classes, one without objects, and what TIDE itself printed of them."""
    scene = json.loads(FIXTURE.read_text())
    config = settings(masks=False, nms_iou=1.0, score_threshold=1e-6, rpn={"nms_iou": 1.0})
    pictures = []
    for number in range(scene["pictures"]):
        things = [Thing(corners(box), label) for at, label, box in scene["objects"] if at == number]
        lines = [Line(corners(box), label, score) for at, label, score, box in scene["detections"] if at == number]
        pictures.append(picture(things, lines, config, size=tuple(scene["size"])))
    result, tide = why(*pictures), scene["tide"]
    assert result.objects == len(scene["objects"]) and result.detections == len(scene["detections"])
    assert result.false_positives == {kind: tide["count"][name] for name, kind in TIDES.items()}
    assert result.ap is not None
    assert result.ap * 100 == pytest.approx(tide["ap"], abs=1e-9)
    names = {name: FALSE + kind for name, kind in TIDES.items()} | {"Miss": "missed"}
    won = {name: result.ap_if_fixed[key] - result.ap for name, key in names.items()}  # type: ignore[operator]
    assert {name: max(value, 0) * 100 for name, value in won.items()} == pytest.approx(tide["won"], abs=1e-9)
    assert min(tide["won"].values()) > 0.5  # each of them tells something


def test_a_head_that_swaps_two_classes() -> None:
    things = [OBJECT, Thing((70, 20, 90, 40), label=2)]
    result = why(picture(things, [Line((20, 20, 40, 40), label=2), Line((70, 20, 90, 40), label=1)]))
    assert result.found == 0 and result.lost["class"] == 2 and result.false_positives["class"] == 2
    assert result.ap == 0 and result.ap_if_fixed[FALSE + "class"] == 1
    assert result.ap_if_fixed["missed"] == 0  # none is missed that a mended class would not find


def test_what_a_gate_costs() -> None:
    """Of four objects three are found, one is too small for any anchor: AP 0.75 becomes 1."""
    boxes = [(5.0 + 25 * i, 5.0, 25.0 + 25 * i, 25.0) for i in range(3)]
    things = [*map(Thing, boxes), Thing((60, 60, 63, 63))]
    result = why(picture(things, [Line(box) for box in boxes]))
    assert result.objects == 4 and result.found == 3 and result.lost["anchors"] == 1
    assert result.ap == pytest.approx(76 / 101)  # recalls 0, 0.01 ... 0.75
    assert result.ap_if_fixed["anchors"] == 1 and result.ap_if_fixed["limit"] == result.ap
    assert result.ap_if_fixed["missed"] == 1


def test_pictures_add_up() -> None:
    one = picture([OBJECT], [Line((20, 20, 40, 40), score=0.04)])
    two = picture([OBJECT], [Line((20, 20, 40, 40)), Line((70, 20, 90, 40), score=0.95)])
    result = why(one, two)
    assert result.objects == 2 and result.found == 1 and result.detections == 2
    assert result.lost["class"] == 1 and result.false_positives["background"] == 1
    assert result.ap == pytest.approx(51 / 101 / 2)  # precision 1/2 up to recall 1/2
    assert result.ap_if_fixed["class"] == pytest.approx(1 / 2)
    assert result.ap_if_fixed[FALSE + "background"] == pytest.approx(51 / 101)


@pytest.mark.parametrize(
    ("steps", "ap"),
    [
        ([], None),
        ([picture([], [])], None),
        ([picture([], [Line((20, 20, 40, 40))])], 0),
        ([picture([OBJECT], [])], 0),
        ([picture([Thing((10, 10, 60, 60), crowd=True)], [Line((20, 20, 40, 40))])], None),
    ],
)
def test_nothing_is_ordinary(steps: list[Steps], ap: float | None, tmp_path: Path) -> None:
    result = why(*steps)
    assert result.ap == ap and result.found == 0
    assert sum(result.lost.values()) == result.objects
    saved = json.loads(result.save(tmp_path / "new").read_text())
    assert list(saved)[:5] == ["objects", "found", "lost", "false_positives", "ap_if_fixed"]
    assert list(saved["lost"]) == list(GATES) and set(saved["false_positives"]) == set(KINDS)
    assert (
        set(saved["ap_if_fixed"])
        == {*GATES, "missed", *(FALSE + kind for kind in KINDS)}
        == set(saved["settings"]) | {"missed"}
    )
    Console(quiet=True).print(result.table())


def test_the_table_ends_each_row_in_a_setting() -> None:
    lines = [Line((20, 20, 40, 40), score=0.04), Line((70, 20, 90, 40))]
    table = why(picture([OBJECT, Thing((70, 20, 90, 40))], lines)).table()
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [row[0] for row in rows] == [*GATES, *(f"wrong: {kind}" for kind in KINDS)]
    assert dict(zip((row[0] for row in rows), rows, strict=True))["class"][1:3] == ("1", "0.495")
    assert all(row[3] for row in rows)


def test_detections_of_other_classes_are_left_out() -> None:
    steps = picture([OBJECT], [Line((20, 20, 40, 40)), Line((70, 20, 90, 40), label=2)])
    assert why(steps).false_positives["background"] == 1
    result = why(steps, labels=[1])
    assert result.detections == 1 and result.ap == 1 and sum(result.false_positives.values()) == 0


def detector(names: tuple[str, ...], masks: bool = True) -> Predictor:
    """Of random weights, spread so that classes and objectness differ from place to place."""
    torch.manual_seed(3)
    config = nano(names, tuple(range(1, len(names) + 1)))
    model = MaskRCNN(config if masks else replace(config, mask_head=None))
    with torch.no_grad():
        model.box_head.classes.weight.mul_(60)
        model.box_head.deltas.weight.mul_(60)
        model.rpn.objectness.weight.mul_(30)
    return Predictor(model, "cpu")


def test_classes_are_matched_by_name() -> None:
    data = Classes(("Triangle", "circle", "hexagon"), (4, 2, 9))
    assert labels_of(data, Classes(("circle", "square", "triangle"), (1, 2, 3))).tolist() == [3, 1, 4]
    target = ShapesDataset(1, size=(96, 128))[0][1]
    moved = in_classes_of(target, Classes(("circle", "square", "triangle"), (1, 2, 3)), detector(("square", "circle")))
    table = {1: 2, 2: 1, 3: 3}
    assert moved.gt_labels.tolist() == [table[label] for label in target.gt_labels.tolist()]


@pytest.mark.parametrize("masks", [True, False])
def test_an_evaluation_with_reasons_is_the_same_evaluation(masks: bool) -> None:
    """Names in another order than the data's, one that the data lacks, one that the detector lacks."""
    model, data = detector(("triangle", "hexagon", "circle"), masks), ShapesDataset(4, size=(96, 128))
    reasons = Reasons()
    told, plain = maskrcnn.evaluate(model, data, reasons=reasons), maskrcnn.evaluate(model, data)
    assert told.records == plain.records and told.box.ap == plain.box.ap
    result = reasons.why()
    assert result.objects == told.counts.objects and result.detections == told.counts.detections
    assert told.counts.ignored_detections > 0
    assert result.found == int(told.total.true_positives[-1])
    assert sum(result.lost.values()) + result.found == result.objects
    assert sum(result.false_positives.values()) == result.detections - result.found


def test_found_where_the_evaluation_finds() -> None:
    """The truth is what the detector finds, every second box a little to the left. Its classes count otherwise."""
    model = detector(("2", "1", "4"), masks=False)
    data = []
    for pixels, _ in ShapesDataset(4, size=(96, 128)):
        found = model.predict(pixels)
        found = found.chosen(found.labels < 3)  # the data has no class 4
        boxes = found.boxes.clone()
        boxes[::2, [0, 2]] = (boxes[::2, [0, 2]] - 3).clamp(min=0)
        truth = Target(boxes, 3 - found.labels, None, torch.zeros(len(found), dtype=torch.bool), found.size)
        data.append((pixels, truth.chosen((boxes[:, 2:] - boxes[:, :2] > 1).all(dim=1))))
    reasons = Reasons()
    scores = maskrcnn.evaluate(model, data, reasons=reasons)
    result = reasons.why()
    assert result.objects == scores.counts.objects > result.found == int(scores.total.true_positives[-1]) > 10
    assert result.ap == pytest.approx(scores.box.ap50, abs=1e-3)  # COCO rounds its recalls another way: 0.29, 0.57


def test_only_a_predictor_shows_its_steps() -> None:
    with pytest.raises(InputError, match="reasons: needs a Predictor"):
        maskrcnn.evaluate(lambda pictures: iter(()), ShapesDataset(1), reasons=Reasons())


@pytest.mark.slow
def test_nuclei_add_up(shared_data: Path) -> None:
    model, reasons = maskrcnn.load("nuclei", device="cpu"), Reasons()
    plain, told = (
        maskrcnn.evaluate(model, shared_data / "nuclei", reasons=given, max_detections=(100, 400))
        for given in (None, reasons)
    )
    result = reasons.why()
    assert told.records == plain.records
    assert result.objects == 3610 == result.found + sum(result.lost.values())
    assert result.found == int(told.total.true_positives[-1])
    assert told.mask is not None and result.ap == pytest.approx(told.mask.ap50, abs=1e-3)
