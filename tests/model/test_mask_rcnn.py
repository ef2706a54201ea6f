"""The whole detector: its fixed core, its options, and what it does not know."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import maskrcnn.model
from maskrcnn.model.box_head import DetectionConfig
from maskrcnn.model.mask_rcnn import Limits, MaskRCNN, MaskRCNNConfig, keep_placed, original_frame
from maskrcnn.model.rpn import propose
from maskrcnn.ops.boxes import of_sizes
from maskrcnn.structures import DetectionBatch, Detections, ImageBatch, Masks

SIZES = [(64, 80), (40, 33), (96, 64)]


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


def assert_close(a: Detections, b: Detections) -> None:
    torch.testing.assert_close(a.boxes, b.boxes, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(a.scores, b.scores, atol=1e-5, rtol=1e-4)
    assert torch.equal(a.labels, b.labels)
    assert (a.names, a.category_ids, a.size) == (b.names, b.category_ids, b.size)
    assert a.masks is not None and b.masks is not None
    torch.testing.assert_close(a.masks.probabilities, b.masks.probabilities, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_pictures_of_several_sizes(tiny_model: MaskRCNN) -> None:
    found = tiny_model(pictures(*SIZES))
    assert [detections.size for detections in found] == SIZES
    for detections, (height, width) in zip(found, SIZES, strict=True):
        assert 0 < len(detections) <= 10
        assert detections.boxes.dtype == detections.scores.dtype == torch.float32
        assert (detections.boxes >= 0).all()
        assert (detections.boxes[:, 2] <= width).all() and (detections.boxes[:, 3] <= height).all()
        assert (detections.boxes[:, 2:] > detections.boxes[:, :2]).all()
        assert (detections.scores.diff() <= 0).all() and (detections.scores > 0).all()
        assert detections.names == tuple(("cat", "dog", "hen")[i - 1] for i in detections.labels.tolist())
        assert detections.category_ids == tuple((3, 5, 9)[i - 1] for i in detections.labels.tolist())
        assert detections.masks is not None
        assert detections.masks.probabilities.shape == (len(detections), 28, 28)
        assert detections.masks.boxes is detections.boxes and detections.masks.size == (height, width)
        assert (detections.masks.probabilities >= 0).all() and (detections.masks.probabilities <= 1).all()


@torch.no_grad()
def test_one_picture_gives_the_same_as_in_a_batch(tiny_model: MaskRCNN) -> None:
    images = pictures(*[(64, 80)] * 3)
    for image, found in zip(images, tiny_model(images), strict=True):
        assert_close(tiny_model([image])[0], found)


@torch.no_grad()
def test_the_fixed_core_equals_the_one_that_drops_empty_rows(tiny_model: MaskRCNN) -> None:
    limits = Limits(max_detections=150, score_threshold=0.4, nms_iou=0.3, proposals=100)
    config = limits.applied(tiny_model.config)
    batch = tiny_model.preprocess(pictures(*SIZES))
    fixed = tiny_model.detect(batch.pixels, batch.image_sizes, config)
    dropped = tiny_model.detect(batch.pixels, batch.image_sizes, config, drop_empty=True)
    assert fixed.valid.any() and not fixed.valid.all()
    assert torch.equal(fixed.valid, dropped.valid) and torch.equal(fixed.labels, dropped.labels)
    torch.testing.assert_close(fixed.boxes, dropped.boxes, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(fixed.scores, dropped.scores, atol=1e-5, rtol=1e-4)
    assert fixed.mask_logits is not None and dropped.mask_logits is not None
    assert fixed.mask_logits.shape == dropped.mask_logits.shape == (3, 150, 28, 28)
    rows = fixed.valid
    torch.testing.assert_close(fixed.mask_logits[rows], dropped.mask_logits[rows], atol=1e-3, rtol=1e-3)
    assert not dropped.mask_logits[~rows].any()


@torch.no_grad()
def test_shapes_of_the_core_do_not_hang_on_the_picture(tiny_model: MaskRCNN) -> None:
    for config in (tiny_model.config, Limits(score_threshold=1.0).applied(tiny_model.config)):
        found = tiny_model.detect(torch.randn(2, 3, 64, 96), torch.tensor([[64.0, 96.0]] * 2), config)
        assert found.boxes.shape == (2, 10, 4)
        assert found.scores.shape == found.labels.shape == found.valid.shape == (2, 10)
        assert found.mask_logits is not None and found.mask_logits.shape == (2, 10, 28, 28)


@torch.no_grad()
@pytest.mark.parametrize("with_masks", [True, False])
def test_nothing_found(tiny_config: MaskRCNNConfig, with_masks: bool) -> None:
    config = tiny_config if with_masks else replace(tiny_config, mask_head=None)
    for found in MaskRCNN(config).eval()(pictures(*SIZES[:2]), Limits(score_threshold=1.0)):
        assert len(found) == 0
        assert found.boxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0,)
        assert found.names == found.category_ids == ()
        assert found.coco() == []
        if with_masks:
            assert found.masks is not None and found.masks.rle() == []


@torch.no_grad()
def test_one_empty_picture_among_others(tiny_model: MaskRCNN) -> None:
    images = pictures(*SIZES)
    best = [found.scores.max().item() for found in tiny_model(images)]
    found = tiny_model(images, Limits(score_threshold=min(best)))
    assert [len(detections) == 0 for detections in found] == [score == min(best) for score in best]


@torch.no_grad()
def test_without_a_mask_head_it_is_faster_rcnn(tiny_config: MaskRCNNConfig) -> None:
    model = MaskRCNN(replace(tiny_config, mask_head=None)).eval()
    assert model.mask_head is None and model.mask_pooler is None
    assert not any("mask" in name for name in model.state_dict())
    found = model(pictures((64, 64)))[0]
    assert len(found) > 0 and found.masks is None
    whole = MaskRCNN(tiny_config)
    assert set(model.state_dict()) == {name for name in whole.state_dict() if not name.startswith("mask_head.")}


def test_asking_for_more_proposals_lifts_both_limits(tiny_config: MaskRCNNConfig) -> None:
    rpn = Limits(proposals=200).applied(tiny_config).rpn
    assert (rpn.pre_nms_top_n, rpn.post_nms_top_n) == (200, 200)
    rpn = Limits(proposals=5).applied(tiny_config).rpn
    assert (rpn.pre_nms_top_n, rpn.post_nms_top_n) == (50, 5)
    assert Limits().applied(tiny_config) == tiny_config


@torch.no_grad()
def test_proposals_are_as_many_as_asked_for(tiny_model: MaskRCNN) -> None:
    batch = tiny_model.preprocess(pictures((64, 96)))
    outputs = tiny_model.rpn(tiny_model.features(batch.pixels), (64, 96))
    for count in (3, 120):
        config = Limits(proposals=count).applied(tiny_model.config)
        config = replace(config, rpn=replace(config.rpn, nms_iou=1.0))
        assert propose(outputs, of_sizes(batch.image_sizes), config.rpn).valid.sum() == count


@torch.no_grad()
def test_thousands_of_detections(tiny_model: MaskRCNN) -> None:
    everything = Limits(max_detections=4000, nms_iou=1.0, score_threshold=0.0, proposals=1000)
    found = tiny_model(pictures((64, 96)), everything)[0]
    assert len(found) > 1000
    assert found.masks is not None and len(found.masks.rle()) == len(found)


@torch.no_grad()
def test_options_reach_their_places(tiny_model: MaskRCNN) -> None:
    def count(**options: Any) -> int:
        return len(tiny_model(images, Limits(max_detections=1000, **options))[0])

    images = pictures((64, 96))
    assert count(score_threshold=0.3) < count()
    assert count(nms_iou=0.1) < count(nms_iou=0.9)
    assert count(nms_iou=0.3, class_agnostic_nms=True) < count(nms_iou=0.3)
    assert count(mask_nms_iou=0.1) < count()
    assert count(proposals=2) < count()
    assert len(tiny_model(images, Limits(max_detections=4))[0]) == 4
    assert len(tiny_model(images)[0]) == 10


@torch.no_grad()
def test_the_size_is_a_choice(tiny_model: MaskRCNN) -> None:
    seen: list[tuple[int, ...]] = []
    tiny_model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
    for size in (None, 40, "native"):
        found = tiny_model(pictures((100, 128)), Limits(size=size))
        assert found[0].size == (100, 128)
    assert seen == [(64, 96), (64, 64), (128, 128)]  # of 64 x 82, 40 x 51 and 100 x 128


def batch_of(
    found: DetectionBatch, image_sizes: list[list[float]], original: tuple[tuple[int, int], ...]
) -> ImageBatch:
    return ImageBatch(torch.zeros(len(original), 3, 1, 1), torch.tensor(image_sizes), original)


def test_boxes_go_back_to_the_picture_as_given(tiny_config: MaskRCNNConfig) -> None:
    found = DetectionBatch(
        boxes=torch.tensor([[[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 80.0, 60.0]], [[1.0, 2.0, 3.0, 4.0], [0.0] * 4]]),
        scores=torch.tensor([[0.9, 0.8], [0.7, 0.0]]),
        labels=torch.tensor([[3, 1], [2, 0]]),
        valid=torch.tensor([[True, True], [True, False]]),
        mask_logits=torch.zeros(2, 2, 28, 28),
    )
    batch = batch_of(found, [[60.0, 80.0], [10.0, 10.0]], ((120, 320), (5, 10)))
    first, second = original_frame(found, batch, tiny_config)
    assert first.boxes.tolist() == [[40, 40, 120, 120], [0, 0, 320, 120]]
    assert (first.names, first.category_ids) == (("hen", "cat"), (9, 3))
    assert second.boxes.tolist() == [[1, 1, 3, 2]]
    assert second.names == ("dog",)
    assert second.masks is not None and second.masks.probabilities.eq(0.5).all()
    assert second.masks.threshold == tiny_config.detection.mask_threshold


def test_no_corner_is_rounded_to_outside(tiny_config: MaskRCNNConfig) -> None:
    originals = tuple((int(h), int(w)) for h, w in np.random.default_rng(0).integers(1, 4000, (300, 2)))
    resized = torch.randint(1, 1400, (300, 2)).float()
    boxes = torch.stack([torch.zeros(300), torch.zeros(300), resized[:, 1], resized[:, 0]], dim=1)[:, None]
    ones = torch.ones(300, 1, dtype=torch.int64)
    found = DetectionBatch(boxes, ones.float(), ones, ones.bool())
    batch = ImageBatch(torch.zeros(300, 3, 1, 1), resized, originals)
    for detections, (height, width) in zip(original_frame(found, batch, tiny_config), originals, strict=True):
        _, _, right, bottom = detections.boxes[0].tolist()
        assert width - 1e-2 < right <= width and height - 1e-2 < bottom <= height


def crossing(labels: list[int]) -> Detections:
    """Three in one box: the left half, the left half again, and the right half."""
    probabilities = torch.zeros(3, 8, 8)
    probabilities[:2, :, :4], probabilities[2, :, 4:] = 1.0, 1.0
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0]]).repeat(3, 1)
    return Detections(
        boxes=boxes,
        scores=torch.tensor([0.9, 0.8, 0.7]),
        labels=torch.tensor(labels),
        names=tuple("abc"[i - 1] for i in labels),
        category_ids=tuple(labels),
        masks=Masks(probabilities, boxes, (16, 16)),
        size=(16, 16),
    )


@pytest.mark.parametrize(
    ("labels", "agnostic", "iou", "kept"),
    [
        ([1, 1, 1], False, 0.5, [0.9, 0.7]),
        ([1, 2, 1], False, 0.5, [0.9, 0.8, 0.7]),
        ([1, 2, 1], True, 0.5, [0.9, 0.7]),
        ([1, 1, 1], False, 1.0, [0.9, 0.8, 0.7]),
        ([1, 1, 1], False, None, [0.9, 0.8, 0.7]),
    ],
)
def test_nms_by_masks(labels: list[int], agnostic: bool, iou: float | None, kept: list[float]) -> None:
    config = DetectionConfig(mask_nms_iou=iou, class_agnostic_nms=agnostic)
    found = crossing(labels)
    keep = keep_placed(found, config)
    assert (keep is None) == (iou is None)
    found = found if keep is None else found.chosen(keep)
    assert found.scores.tolist() == pytest.approx(kept)
    assert found.masks is not None and len(found.masks) == len(kept)


def test_nms_by_masks_of_few_or_none() -> None:
    config = DetectionConfig(mask_nms_iou=0.5)
    for keep in ([False] * 3, [True, False, False]):
        found = crossing([1, 1, 1]).chosen(torch.tensor(keep))
        assert keep_placed(found, config) is None
    assert keep_placed(replace(crossing([1, 1, 1]), masks=None), config) is None


@torch.no_grad()
def test_learning_mode_detects_the_same(tiny_model: MaskRCNN) -> None:
    images = pictures((64, 80))
    assert_close(tiny_model.train()(images)[0], tiny_model.eval()(images)[0])


def test_nothing_asks_whether_it_is_learning() -> None:
    for path in Path(maskrcnn.model.__file__).parent.glob("*.py"):
        assert "self.training" not in path.read_text(), path.name


def test_detecting_imports_no_loss() -> None:
    program = "import sys, maskrcnn.model.mask_rcnn; print([m for m in sys.modules if m.startswith('maskrcnn.')])"
    imported = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "maskrcnn.model.mask_rcnn" in imported
    for part in ("losses", "training", "data", "evaluation", "cli"):
        assert f"maskrcnn.{part}" not in imported
