"""The head's layout, and detections against a loop in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.model.box_head import BoxHead, BoxHeadConfig, BoxOutputs, DetectionConfig, select_detections
from maskrcnn.ops.box_coder import BoxCoder
from maskrcnn.ops.boxes import of_sizes
from maskrcnn.structures import DetectionBatch, Proposals

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
CONFIG = DetectionConfig(score_threshold=0.2, max_detections=30)
Box = tuple[float, float, float, float]
Row = tuple[float, int, Box]  # score, label, box


def proposals(images: int, rois: int, valid: Tensor | None = None) -> Proposals:
    """Around a few places, so that many overlap."""
    centre = torch.randint(1, 4, (images, rois, 2)) * 20 + torch.randn(images, rois, 2) * 3
    half = 6 + torch.rand(images, rois, 2) * 8
    boxes = torch.cat([centre - half, centre + half], dim=-1).clamp(min=0)
    valid = torch.ones(images, rois, dtype=torch.bool) if valid is None else valid
    return Proposals(boxes, torch.zeros(images, rois), valid)


def outputs(rows: int, classes: int, agnostic: bool = False) -> BoxOutputs:
    return BoxOutputs(torch.randn(rows, classes + 1) * 1.5, torch.randn(rows, 1 if agnostic else classes, 4) * 0.7)


def moved(box: list[float], delta: list[float], height: float, width: float) -> Box:
    w, h = box[2] - box[0], box[3] - box[1]
    x, y = box[0] + w / 2 + delta[0] / 10 * w, box[1] + h / 2 + delta[1] / 10 * h
    w, h = w * math.exp(delta[2] / 5), h * math.exp(delta[3] / 5)
    left, right = (min(max(v, 0.0), width) for v in (x - w / 2, x + w / 2))
    top, bottom = (min(max(v, 0.0), height) for v in (y - h / 2, y + h / 2))
    return left, top, right, bottom


def overlap(a: Box, b: Box) -> float:
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


def detections_by_hand(
    out: BoxOutputs, found: Proposals, image: int, size: list[float], config: DetectionConfig
) -> list[Row]:
    """Of one picture: every class of every RoI is a candidate."""
    rois, candidates = found.valid.shape[1], []
    for r in range(rois):
        row = image * rois + r
        exponentials = [math.exp(v) for v in out.class_logits[row].tolist()]
        for label in range(1, len(exponentials)):
            score = exponentials[label] / sum(exponentials)
            delta = out.deltas[row, min(label, out.deltas.shape[1]) - 1].tolist()
            box = moved(found.boxes[image, r].tolist(), delta, *size)
            sides = (box[2] - box[0], box[3] - box[1])
            if found.valid[image, r] and score > config.score_threshold and min(sides) >= config.min_size:
                candidates.append((score, label, box))
    kept: list[Row] = []
    for score, label, box in sorted(candidates, key=lambda row: -row[0]):
        rivals = [other for _, its, other in kept if config.class_agnostic_nms or its == label]
        if all(overlap(box, other) <= config.nms_iou for other in rivals):
            kept.append((score, label, box))
    return kept[: config.max_detections]


def assert_equal_rows(found: DetectionBatch, image: int, expected: list[Row]) -> None:
    count = len(expected)
    assert found.valid[image].tolist() == [True] * count + [False] * (found.valid.shape[1] - count)
    assert found.labels[image].tolist() == [label for _, label, _ in expected] + [0] * (found.valid.shape[1] - count)
    torch.testing.assert_close(found.scores[image, :count], torch.tensor([score for score, _, _ in expected]))
    boxes = torch.tensor([box for *_, box in expected]).reshape(-1, 4)
    torch.testing.assert_close(found.boxes[image, :count], boxes, atol=1e-4, rtol=1e-5)
    assert not found.boxes[image, count:].any() and not found.scores[image, count:].any()


SIZES = [[80.0, 90.0], [50.0, 90.0]]


@pytest.mark.parametrize("agnostic_nms", [False, True])
@pytest.mark.parametrize("agnostic_boxes", [False, True])
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize(("nms_iou", "limit"), [(0.5, 30), (0.2, 7), (1.0, 2000)])
def test_detections_equal_a_loop(
    agnostic_nms: bool, agnostic_boxes: bool, classes: int, nms_iou: float, limit: int
) -> None:
    config = replace(CONFIG, class_agnostic_nms=agnostic_nms, nms_iou=nms_iou, max_detections=limit, min_size=5.0)
    rois, out = proposals(2, 50, torch.rand(2, 50) > 0.2), outputs(100, classes, agnostic_boxes)
    found = select_detections(out, rois, of_sizes(torch.tensor(SIZES)), CODER, config)
    assert found.boxes.shape == (2, min(limit, 50 * classes), 4)
    assert found.mask_logits is None
    for image, size in enumerate(SIZES):
        assert_equal_rows(found, image, detections_by_hand(out, rois, image, size, config))


def test_only_the_best_class_of_each_roi() -> None:
    """Where that is background there is no detection, however sure the next class is."""
    config = replace(CONFIG, best_class_only=True, score_threshold=0.2, nms_iou=1.0, max_detections=100, min_size=0.0)
    rois, out = proposals(2, 50, torch.rand(2, 50) > 0.2), outputs(100, 4)
    found = select_detections(out, rois, of_sizes(torch.tensor(SIZES)), CODER, config)
    scores, labels = out.class_logits.softmax(1).unflatten(0, (2, 50)).max(dim=2)
    for image in (0, 1):
        wanted = rois.valid[image] & (labels[image] > 0) & (scores[image] > 0.2)
        order = scores[image][wanted].argsort(descending=True)
        assert found.valid[image].sum() == wanted.sum() > 0
        assert torch.equal(found.labels[image][found.valid[image]], labels[image][wanted][order])
        torch.testing.assert_close(found.scores[image][found.valid[image]], scores[image][wanted][order])
    everything = replace(config, best_class_only=False)
    assert (
        select_detections(out, rois, of_sizes(torch.tensor(SIZES)), CODER, everything).valid.sum() > found.valid.sum()
    )


def test_class_agnostic_nms_suppresses_more() -> None:
    rois, out, sizes = proposals(1, 60), outputs(60, 3), torch.tensor(SIZES[:1])
    config = replace(CONFIG, nms_iou=0.3, max_detections=1000)
    by_class = select_detections(out, rois, of_sizes(sizes), CODER, config).valid.sum()
    across = select_detections(out, rois, of_sizes(sizes), CODER, replace(config, class_agnostic_nms=True)).valid.sum()
    assert by_class > across > 0


def test_nothing_above_the_threshold() -> None:
    config = replace(CONFIG, score_threshold=1.0)
    found = select_detections(outputs(40, 3), proposals(2, 20), of_sizes(torch.tensor(SIZES)), CODER, config)
    assert found.boxes.shape == (2, 30, 4)
    assert not found.valid.any() and not found.labels.any() and not found.scores.any() and not found.boxes.any()


def test_no_proposal_is_valid() -> None:
    rois = proposals(1, 20, torch.zeros(1, 20, dtype=torch.bool))
    assert not select_detections(outputs(20, 3), rois, of_sizes(torch.tensor(SIZES[:1])), CODER, CONFIG).valid.any()


def test_equal_scores_all_stay() -> None:
    boxes = torch.tensor([[[i * 20.0, 0.0, i * 20.0 + 10, 10.0] for i in range(6)]])
    rois = Proposals(boxes, torch.zeros(1, 6), torch.ones(1, 6, dtype=torch.bool))
    out = BoxOutputs(torch.zeros(6, 3), torch.zeros(6, 2, 4))
    found = select_detections(
        out, rois, of_sizes(torch.tensor([[50.0, 200.0]])), CODER, replace(CONFIG, max_detections=20)
    )
    rows = {
        (label, *box) for label, box in zip(found.labels[0].tolist(), found.boxes[0].tolist(), strict=True) if label
    }
    assert rows == {(label, *box) for label in (1, 2) for box in boxes[0].tolist()}
    assert found.scores[0, :12].tolist() == pytest.approx([1 / 3] * 12)


def test_of_equal_scores_on_one_place_one_stays() -> None:
    rois = Proposals(
        torch.tensor([[[0.0, 0.0, 10.0, 10.0]] * 5]), torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.bool)
    )
    out = BoxOutputs(torch.zeros(5, 2), torch.zeros(5, 1, 4))
    assert select_detections(out, rois, of_sizes(torch.tensor([[50.0, 50.0]])), CODER, CONFIG).valid.sum() == 1


def test_a_score_at_the_threshold_is_not_above_it() -> None:
    rois, out = proposals(1, 1), BoxOutputs(torch.zeros(1, 2), torch.zeros(1, 1, 4))
    for threshold, count in ((0.5, 0), (0.4999, 1)):
        config = replace(CONFIG, score_threshold=threshold)
        assert select_detections(out, rois, of_sizes(torch.tensor([[90.0, 90.0]])), CODER, config).valid.sum() == count


def test_outputs_that_are_not_finite_are_no_detections() -> None:
    out = outputs(20, 2)
    out.class_logits[3], out.deltas[5] = torch.nan, torch.nan
    found = select_detections(
        out, proposals(1, 20), of_sizes(torch.tensor(SIZES[:1])), CODER, replace(CONFIG, max_detections=99)
    )
    assert found.valid.any() and found.boxes.isfinite().all() and found.scores.isfinite().all()


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("num_convs", [0, 2])
@pytest.mark.parametrize("agnostic", [False, True])
def test_shapes(count: int, num_convs: int, agnostic: bool) -> None:
    config = BoxHeadConfig(
        side=5, num_convs=num_convs, conv_channels=8, norm="group", fc_channels=16, class_agnostic=agnostic
    )
    out = BoxHead(config, 6, 4)(torch.randn(count, 6, 5, 5))
    assert out.class_logits.shape == (count, 5)
    assert out.deltas.shape == (count, 1 if agnostic else 4, 4)


def test_two_fully_connected_layers_and_two_predictors() -> None:
    head, pooled = BoxHead(BoxHeadConfig(side=3, fc_channels=16), 6, 4), torch.randn(5, 6, 3, 3)
    hidden = pooled.reshape(5, -1)
    for linear in head.fcs:
        hidden = F.linear(hidden, linear.weight, linear.bias).relu()
    out = head(pooled)
    assert len(head.fcs) == 2
    torch.testing.assert_close(out.class_logits, hidden @ head.classes.weight.T)  # biases start at zero
    # class by class: the four numbers of label k are rows 4 (k - 1) to 4 k
    torch.testing.assert_close(out.deltas[:, 2], hidden @ head.deltas.weight[8:12].T)
    assert head.coder.weights == (10.0, 10.0, 5.0, 5.0)
