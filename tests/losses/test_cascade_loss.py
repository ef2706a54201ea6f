"""What the later stages of a cascade learn from, and how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.losses.box_loss import rematch
from maskrcnn.losses.cascade_loss import CascadeLossConfig, share_gradient
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.structures import GtMasks, ImageBatch, PolygonShape, Target

OBJECTS = [[4.0, 6.0, 30.0, 28.0], [35.0, 10.0, 60.0, 60.0], [2.0, 40.0, 20.0, 60.0]]


def target(boxes: list[list[float]], crowd: int = -1) -> Target:
    rings = [np.array([[a, b], [c, b], [c, d], [a, d]]) for a, b, c, d in boxes]
    return Target(
        gt_boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        gt_labels=torch.arange(len(boxes)) % 3 + 1,
        gt_masks=GtMasks(tuple(PolygonShape((ring,)) for ring in rings)),
        is_crowd=torch.arange(len(boxes)) == crowd,
        size=(64, 64),
    )


def batch(model: MaskRCNN, count: int) -> ImageBatch:
    return model.preprocess.batch([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(count)])


@pytest.fixture
def cascade(tiny_config: MaskRCNNConfig) -> MaskRCNN:
    agnostic = replace(tiny_config.box_head, class_agnostic=True)
    return MaskRCNN(replace(tiny_config, box_head=agnostic, cascade=CascadeConfig(mask_heads=True)))


def plain_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@pytest.mark.parametrize("limit", [0.5, 0.7])
def test_boxes_are_matched_again(limit: float) -> None:
    """Against a loop over boxes and objects."""
    noise = torch.randn(60, 4) * 4
    boxes = (torch.tensor(OBJECTS).repeat(20, 1) + noise).clamp(0, 64)
    boxes[5] = torch.tensor([9.0, 9.0, 9.0, 20.0])  # refined to nothing
    found = rematch(boxes, target(OBJECTS), limit)
    expected = set()
    for i, box in enumerate(boxes.tolist()):
        overlaps = [plain_iou(box, gt) for gt in OBJECTS]
        best = int(np.argmax(overlaps))
        if i != 5:
            expected.add((tuple(box), best + 1 if overlaps[best] >= limit else 0))
    assert {(tuple(b), k) for b, k in zip(found.boxes.tolist(), found.labels.tolist(), strict=True)} == expected
    count = int(found.is_foreground.sum())
    assert 0 < count < len(found.labels) == 59
    assert found.is_foreground[:count].all()  # foreground first
    assert (found.matched_gt_index[:count] == found.labels[:count] - 1).all()


def test_boxes_in_a_crowd_are_left_out() -> None:
    boxes = torch.tensor([[36.0, 12.0, 58.0, 58.0], [3.0, 5.0, 31.0, 29.0], [0.0, 0.0, 8.0, 8.0]])
    found = rematch(boxes, target(OBJECTS, crowd=1), 0.6)
    assert found.boxes.tolist() == [boxes[1].tolist(), boxes[2].tolist()]
    assert found.labels.tolist() == [1, 0]


def test_no_objects_and_no_boxes() -> None:
    assert rematch(torch.tensor([[1.0, 1.0, 5.0, 5.0]]), target([]), 0.6).labels.tolist() == [0]
    assert rematch(torch.zeros(0, 4), target(OBJECTS), 0.6).boxes.shape == (0, 4)


@pytest.mark.parametrize("stages", [1, 3])
def test_the_gradient_is_shared(stages: int) -> None:
    features = torch.randn(4, 5, requires_grad=True)
    shared = share_gradient(features, stages)
    assert torch.allclose(shared, features, atol=1e-6)
    weight = torch.randn(4, 5)
    (shared * weight).sum().backward()
    assert features.grad is not None and torch.allclose(features.grad, weight / stages, atol=1e-6)


def test_every_stage_has_its_losses_and_learns(cascade: MaskRCNN, tiny_losses: LossConfig) -> None:
    losses = replace(tiny_losses, cascade=CascadeLossConfig(weights=(0.5, 0.25)))
    found = MaskRCNNLoss(cascade, losses)(batch(cascade, 2), [target(OBJECTS), target([[2.0, 2.0, 62.0, 63.0]])])
    assert all(value > 0 for value in found.values())
    expected = found["rpn_objectness"] + found["rpn_box"]
    for stage, weight in (("", 1.0), ("_2", 0.5), ("_3", 0.25)):
        expected = expected + weight * sum(found[f"{name}{stage}"] for name in ("box_class", "box_delta", "mask"))
    assert found["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert len(found) == 3 + 3 * 3
    found["total"].backward()
    for name, parameter in cascade.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for head in [*cascade.box_heads, *cascade.mask_heads]:
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def test_a_picture_without_objects(cascade: MaskRCNN, tiny_losses: LossConfig) -> None:
    found = MaskRCNNLoss(cascade, tiny_losses)(batch(cascade, 1), [target([])])
    assert found["mask_3"] == found["box_delta_3"] == 0
    assert found["total"].isfinite()


def test_a_few_steps_lower_the_loss(cascade: MaskRCNN, tiny_losses: LossConfig) -> None:
    loss, images, targets = MaskRCNNLoss(cascade, tiny_losses), batch(cascade, 2), [target(OBJECTS)] * 2
    optimizer = torch.optim.AdamW(cascade.parameters(), lr=3e-3)
    totals = []
    for _ in range(40):
        total = loss(images, targets)["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert max(totals[-5:]) < 0.7 * totals[0]


def test_one_limit_for_each_later_stage(cascade: MaskRCNN) -> None:
    losses = LossConfig(cascade=CascadeLossConfig(foreground_ious=(0.6,), weights=(1.0,)))
    with pytest.raises(InputError, match=r"foreground_ious: impossible value; .*expected 2 values"):
        MaskRCNNLoss(cascade, losses)
    with pytest.raises(InputError, match=r"CascadeLossConfig\.weights: "):
        CascadeLossConfig(weights=(1.0,))
