"""What the trace says is what the tensors say: every box after rounding, every count, each object once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import maskrcnn
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.inspection.fate import GATES
from maskrcnn.inspection.figure import STAGES
from maskrcnn.inspection.gates import fates
from maskrcnn.inspection.matched import matched
from maskrcnn.inspection.probe import Steps
from maskrcnn.inspection.trace import GATE_STAGES, plain, roi_levels, trace
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import nano
from maskrcnn.model.roi_pooler import RoIPooler
from maskrcnn.ops.boxes import clip_to
from maskrcnn.predictor import Predictor

Change = Callable[[MaskRCNNConfig], MaskRCNNConfig]


def _plain(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return config


def _cascade(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return replace(config, box_head=replace(config.box_head, class_agnostic=True), cascade=CascadeConfig())


def _by_masks(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return replace(config, detection=replace(config.detection, mask_nms_iou=0.3, nms_iou=0.9))


def _boxes_only(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return replace(config, mask_head=None)


def _cropped(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """Corners in centres of pixels, crop and resize: as Matterport's detectors are."""
    anchors = replace(config.rpn.anchors, corners="centres")
    pooler = replace(config.roi_pooler, method="crop", nearest_level=True)
    return replace(config, rpn=replace(config.rpn, anchors=anchors), roi_pooler=pooler)


CHANGES = [_plain, _cascade, _by_masks, _boxes_only, _cropped]


@cache
def _steps(change: Change = _plain, truth: bool = False, **options: Any) -> Steps:
    """Of random weights, spread so that classes and objectness differ from place to place."""
    torch.manual_seed(3)
    config = nano(("circle", "square", "triangle"), (1, 2, 3))
    model = MaskRCNN(change(replace(config, detection=replace(config.detection, score_threshold=0.2))))
    with torch.no_grad():
        for head in model.box_heads:
            head.classes.weight.mul_(60)
            head.deltas.weight.mul_(60)
        model.rpn.objectness.weight.mul_(30)
    picture, target = ShapesDataset(1, size=(96, 128))[0]
    return maskrcnn.inspect(Predictor(model, "cpu"), picture, ground_truth=target if truth else None, **options)


def _rounded(boxes: Tensor) -> list[list[float]]:
    return [[round(v, 2) for v in box] for box in boxes.tolist()]


def _at(told: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    return [next(step for step in each["path"] if step["stage"] == stage) for each in told["objects"]]


@pytest.mark.parametrize("change", CHANGES)
def test_boxes_are_those_of_the_tensors(change: Change) -> None:
    steps = _steps(change)
    told = trace(steps)
    found = steps.detections
    assert len(told["objects"]) == len(found) >= 3
    assert [each["box"] for each in told["objects"]] == _rounded(found.boxes)
    assert [step["box"] for step in _at(told, "result")] == _rounded(found.boxes)
    assert [each["score"] for each in told["objects"]] == [round(v, 6) for v in found.scores.tolist()]
    assert [each["name"] for each in told["objects"]] == list(found.names)
    refined = steps.found.boxes[0][steps.found.valid[0]][steps.kept]
    assert [step["box"] for step in _at(told, "boxes")] == _rounded(steps.in_original(refined))
    rows = torch.tensor([step["facts"]["row"] for step in _at(told, "levels")])
    assert steps.proposals.valid[0][rows].all()
    proposals = _rounded(steps.in_original(steps.proposals.boxes[0][rows]))
    assert [step["box"] for step in _at(told, "proposals")] == proposals == [s["box"] for s in _at(told, "levels")]
    before = _rounded(steps.in_original(steps.rois.boxes[0][rows]))
    assert [step["before"] for step in _at(told, "boxes")] == before
    assert (before == proposals) == (change is not _cascade)


@pytest.mark.parametrize("change", [_plain, _cascade])
def test_each_step_of_a_path_makes_the_next(change: Change) -> None:
    """An anchor, moved by its deltas and cut to the picture, is the proposal; the RoI, moved by its, the detection."""
    steps = _steps(change)
    told = trace(steps)
    anchors = torch.tensor([step["facts"]["row"] for step in _at(told, "anchors")])
    assert [s["box"] for s in _at(told, "anchors")] == _rounded(
        steps.in_original(torch.cat(steps.rpn.anchors)[anchors])
    )
    deltas = torch.cat(steps.rpn.deltas, 1)[0][anchors]
    moved = clip_to(steps.config.rpn.coder.decode(deltas, torch.cat(steps.rpn.anchors)[anchors]), steps.window)
    proposed = torch.tensor([step["box"] for step in _at(told, "proposals")])
    assert torch.allclose(steps.in_original(moved), proposed, atol=0.006)
    objectness = [step["facts"]["objectness"] for step in _at(told, "anchors")]
    expected = torch.cat(steps.rpn.logits, 1)[0][anchors].sigmoid()
    assert torch.allclose(torch.tensor(objectness), expected, atol=1e-6)
    rows = [step["facts"]["row"] for step in _at(told, "boxes")]
    k = steps.config.num_classes
    rois, labels = torch.tensor([row // k for row in rows]), torch.tensor([row % k for row in rows])
    assert torch.equal(labels + 1, steps.detections.labels)
    chosen = steps.box_outputs.deltas[rois, labels if steps.box_outputs.deltas.shape[1] > 1 else 0]
    boxes = clip_to(steps.model.box_heads[-1].coder.decode(chosen, steps.rois.boxes[0][rois]), steps.window)
    assert torch.allclose(
        steps.in_original(boxes), torch.tensor([s["box"] for s in _at(told, "boxes")]), atol=0.006, rtol=0
    )
    scores = steps.box_outputs.class_logits[rois].softmax(1)[torch.arange(len(rois)), labels + 1]
    assert [s["facts"]["score"] for s in _at(told, "boxes")] == [round(v, 6) for v in scores.tolist()]


@pytest.mark.parametrize("change", CHANGES)
def test_counts_are_those_of_the_tensors(change: Change) -> None:
    steps = _steps(change, max_detections=40)
    counts = {
        stage["stage"]: {count["key"]: count["value"] for count in stage["counts"]} for stage in trace(steps)["stages"]
    }
    assert list(counts) == list(STAGES)
    sizes = {name: len(level) for name, level in zip(steps.level_names, steps.rpn.anchors, strict=True)}
    assert counts["anchors"] == {"anchors": sum(sizes.values())} | sizes
    candidates = steps.proposal_candidates
    assert counts["proposals"] == {
        "anchors": sum(sizes.values()),
        "candidates": sum(min(size, steps.config.rpn.pre_nms_top_n) for size in sizes.values()),
        "valid": len(candidates.valid.nonzero()),
        "kept": len(candidates.kept.nonzero()),
        "proposals": len(steps.proposals.logits.isfinite().nonzero()),
    }
    assert sum(v for key, v in counts["levels"].items() if key != "rois") == counts["levels"]["rois"]
    threshold = steps.config.detection.score_threshold
    scores = steps.box_outputs.class_logits.softmax(1)[: counts["boxes"]["rois"], 1:]
    assert counts["boxes"]["valid"] == int((scores > threshold).sum())
    assert counts["boxes"]["kept"] == len(steps.detection_candidates.kept.nonzero())
    assert counts["boxes"]["found"] == counts["masks"]["found"] == len(steps.placed) <= 40
    assert counts["masks"]["kept"] == counts["result"]["detections"] == len(steps.detections)
    assert sum(v for key, v in counts["result"].items() if key != "detections") == len(steps.detections)
    assert counts["input"]["original"] == "128 x 96"


@pytest.mark.parametrize("change", [_plain, _cropped])
def test_levels_are_those_that_the_pooler_took(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _steps(change)
    taken: list[Tensor] = []
    original = RoIPooler.levels

    def recorded(self: RoIPooler, boxes: Tensor) -> Tensor:
        taken.append(original(self, boxes))
        return taken[-1]

    told = roi_levels(steps)
    monkeypatch.setattr(RoIPooler, "levels", recorded)
    boxes = steps.proposals.boxes[0]
    with torch.no_grad():
        steps.model.pooled_for_boxes(steps.features, boxes, torch.zeros(len(boxes), dtype=torch.int64))
    assert len(taken) == 1 and torch.equal(told, taken[0]) and len(told.unique()) > 1


def test_outlines_are_the_masks() -> None:
    steps = _steps()
    assert steps.detections.masks is not None
    polygons = steps.detections.masks.polygons()
    told = [each["outline"] for each in trace(steps)["objects"]]
    assert any(told)
    assert told == [[ring.flatten().tolist() for ring in rings] for rings in polygons]


def test_each_object_of_the_truth_is_told_once() -> None:
    steps = _steps(truth=True)
    ends = fates(steps)
    told = trace(steps, ends)
    assert told["ground_truth"] and [each["id"] for each in told["objects"]] == [end.index for end in ends]
    assert [each["gate"] for each in told["objects"]] == [end.gate or "found" for end in ends]
    assert any(not end.found for end in ends)
    for each, end in zip(told["objects"], ends, strict=True):
        assert each["box"] == [round(v, 2) for v in end.box]
        states = [step["state"] for step in each["path"]]
        lost = len(STAGES) if end.gate is None else STAGES.index(GATE_STAGES[end.gate][0])
        assert states == (["here"] * lost + ["lost"] + ["gone"] * len(STAGES))[: len(STAGES)]
        assert all(step["box"] is None and not step["facts"] for step in each["path"] if step["state"] == "gone")
        if end.path["candidate"] is not None:
            box = steps.in_original(steps.proposal_candidates.boxes[0][end.path["candidate"]])
            assert each["path"][STAGES.index("proposals")]["box"] == _rounded(box[None])[0]


def test_iou_in_a_path_is_that_of_the_boxes() -> None:
    steps = _steps(truth=True)
    for each in trace(steps, fates(steps))["objects"]:
        for step in each["path"]:
            if "iou" in step["facts"]:
                (ax, ay, bx, by), (cx, cy, dx, dy) = each["box"], step["box"]
                common = max(0.0, min(bx, dx) - max(ax, cx)) * max(0.0, min(by, dy) - max(ay, cy))
                union = (bx - ax) * (by - ay) + (dx - cx) * (dy - cy) - common
                assert math.isclose(step["facts"]["iou"], common / union, abs_tol=2e-6)


def test_false_positives_are_the_detections_that_found_nothing() -> None:
    steps = _steps(truth=True)
    ends = fates(steps)
    wrong = trace(steps, ends)["false_positives"]
    rows = [each["detection"] for each in wrong]
    right = matched(steps).gt_index >= 0
    assert wrong and rows == [row for row in range(len(steps.detections)) if not right[row]]
    assert [each["box"] for each in wrong] == _rounded(steps.detections.boxes[rows])
    assert trace(steps)["false_positives"] == []


def test_gates_close_in_the_order_of_the_stages() -> None:
    assert list(GATE_STAGES) == list(GATES)
    places = [STAGES.index(GATE_STAGES[gate][0]) for gate in GATES]
    assert places == sorted(places)


def test_nothing_found_is_an_ordinary_trace() -> None:
    told = trace(_steps(score_threshold=1.0))
    assert told["objects"] == [] and len(told["stages"]) == len(STAGES)
    json.dumps(told, allow_nan=False)


def test_plain_values_are_json() -> None:
    given = {"a": np.float32("nan"), "b": math.inf, "c": torch.tensor([1.5, -math.inf]), 3: (np.int64(4), True, None)}
    assert plain(given) == {"a": None, "b": None, "c": [1.5, None], "3": [4, True, None]}
