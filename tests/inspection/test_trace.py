"""What the trace says is what the tensors say: every box after rounding, each object once."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import maskrcnn
from maskrcnn.inspection import trace as trace_file
from maskrcnn.inspection.fate import GATES
from maskrcnn.inspection.figure import STAGES
from maskrcnn.inspection.gates import fates
from maskrcnn.inspection.matched import matched
from maskrcnn.inspection.trace import GATE_STAGES, trace
from maskrcnn.ops.boxes import clip_to
from maskrcnn.ops.polygons import polygons_from_rle
from maskrcnn.ops.rle import RLE

from .detectors import Change, boxes_only, by_masks, cascade, centred, detector, inspected, plain

CHANGES = [plain, cascade, by_masks, boxes_only, centred]


def _rounded(boxes: Tensor) -> list[list[float]]:
    return [[round(v, 2) for v in box] for box in boxes.tolist()]


def _at(told: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    return [next(step for step in each["path"] if step["stage"] == stage) for each in told["objects"]]


@pytest.mark.parametrize("change", CHANGES)
def test_boxes_are_those_of_the_tensors(change: Change) -> None:
    steps = inspected(change, truth=False)
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
    assert (before == proposals) == (change is not cascade)


@pytest.mark.parametrize("change", [plain, cascade])
def test_each_step_of_a_path_makes_the_next(change: Change) -> None:
    """An anchor, moved by its deltas and cut to the picture, is the proposal; the RoI, moved by its, the detection."""
    steps = inspected(change, truth=False)
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


def test_outlines_are_the_masks() -> None:
    steps = inspected(truth=False)
    assert steps.detections.masks is not None
    polygons = steps.detections.masks.polygons()
    told = [each["outline"] for each in trace(steps)["objects"]]
    assert any(told)
    assert told == [[ring.flatten().tolist() for ring in rings] for rings in polygons]


def test_beyond_so_many_points_no_outline_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(rle: RLE) -> list[np.ndarray]:
        made.append(polygons_from_rle(rle))
        return made[-1]

    monkeypatch.setattr(trace_file, "polygons_from_rle", counted)
    whole = [each["outline"] for each in trace(inspected(truth=False))["objects"]]
    limit = sum(len(ring) // 2 for rings in whole[:2] for ring in rings)
    monkeypatch.setattr(trace_file, "MOST_POINTS", limit)
    made.clear()
    assert [each["outline"] for each in trace(inspected(truth=False))["objects"]] == [
        *whole[:2],
        *([] for _ in whole[2:]),
    ]
    assert 0 < len(made) < len(whole)


def test_each_object_more_costs_few_operations() -> None:
    """Boxes are brought to the original frame together: one by one they would take 385 operations an object."""
    few, many = inspected(truth=False, max_detections=3), inspected(truth=False, max_detections=23)
    with Operations() as first:
        assert len(trace(few)["objects"]) == 3
    with Operations() as second:
        assert len(trace(many)["objects"]) == 23
    assert second.count - first.count <= 20 * 70


class Operations(TorchDispatchMode):
    """How many operations on tensors there were."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_each_object_of_the_truth_is_told_once() -> None:
    steps = inspected()
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
    steps = inspected()
    for each in trace(steps, fates(steps))["objects"]:
        for step in each["path"]:
            if "iou" in step["facts"]:
                (ax, ay, bx, by), (cx, cy, dx, dy) = each["box"], step["box"]
                common = max(0.0, min(bx, dx) - max(ax, cx)) * max(0.0, min(by, dy) - max(ay, cy))
                union = (bx - ax) * (by - ay) + (dx - cx) * (dy - cy) - common
                assert math.isclose(step["facts"]["iou"], common / union, abs_tol=2e-6)


def test_false_positives_are_the_detections_that_found_nothing() -> None:
    steps = inspected()
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


@pytest.mark.parametrize("change", [plain, centred])
def test_a_picture_of_one_pixel(change: Change) -> None:
    """With corners in the centres of pixels it has no extent that boxes could be scaled by."""
    steps = maskrcnn.inspect(detector(change), np.zeros((1, 1, 3), np.uint8), score_threshold=0.0)
    assert len(json.loads(json.dumps(trace(steps), allow_nan=False))["objects"]) == len(steps.detections) > 0


def test_nothing_found_is_an_ordinary_trace() -> None:
    told = trace(inspected(truth=False, score_threshold=1.0))
    assert told["objects"] == [] and len(told["stages"]) == len(STAGES)
    json.dumps(told, allow_nan=False)
