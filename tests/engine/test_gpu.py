"""The detector of a GPU, run on a CPU: the same detections as `MaskRCNN.forward` gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maskrcnn.engine.gpu import GpuDetector, to_device, to_host
from maskrcnn.engine.graphs import eager
from maskrcnn.model.mask_rcnn import Limits, MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import nano
from maskrcnn.structures import DetectionBatch, Detections

THIN = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_type": "deep", "stem_width": 8}
BASE = nano(("a", "b", "c"), (1, 2, 3))
CONFIG = replace(
    BASE,
    backbone=replace(BASE.backbone, options=THIN),
    rpn=replace(BASE.own_rpn, post_nms_top_n=30),
    detection=replace(BASE.detection, score_threshold=0.1, max_detections=12),
)


def detector(config: MaskRCNNConfig = CONFIG) -> MaskRCNN:
    model = MaskRCNN(config).eval().requires_grad_(False)
    for layer in (model.own_rpn.objectness, model.own_rpn.deltas, model.box_head.classes, model.box_head.deltas):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def pictures() -> list[Tensor]:
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((40, 56), (64, 48))]


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs) and ours.names == theirs.names and ours.size == theirs.size
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-5, atol=1e-6)
        assert ours.masks is not None and theirs.masks is not None
        torch.testing.assert_close(ours.masks.probabilities, theirs.masks.probabilities, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limits", [None, Limits(max_detections=3, size=60), Limits(score_threshold=1.0)])
@pytest.mark.parametrize("resampling", ["torch", "pillow"])
def test_the_same_as_forward(limits: Limits | None, resampling: str) -> None:
    model = detector(replace(CONFIG, preprocess=replace(CONFIG.preprocess, resampling=resampling)))
    images = pictures()
    found = GpuDetector(model)(images, limits)
    assert_same(found, model(images, limits))
    if limits is None:
        assert all(len(each) for each in found)
    elif limits.score_threshold == 1:
        assert not any(len(each) for each in found)


def test_where_pictures_lie_in_the_middle() -> None:
    model = detector(replace(CONFIG, preprocess=replace(CONFIG.preprocess, place="centre", square=256)))
    images = pictures()
    assert_same(GpuDetector(model)(images), model(images))


def test_with_given_proposals_the_core_is_not_asked() -> None:
    def refuse(*args: object) -> DetectionBatch:
        raise AssertionError("the core is of fixed shapes")

    model, images = detector(), pictures()
    proposals = [torch.tensor([[2.0, 3.0, 30.0, 35.0], [5.0, 5.0, 25.0, 38.0]]), torch.zeros(0, 4)]
    found = GpuDetector(model, refuse)(images, None, proposals)
    assert_same(found, model(images, None, proposals))
    assert not len(found[1])


def test_the_core_may_be_chosen() -> None:
    model, asked = detector(), []

    def core(pixels: Tensor, image_sizes: Tensor, config: MaskRCNNConfig) -> DetectionBatch:
        asked.append(config.detection.max_detections)
        return eager(model)(pixels, image_sizes, config)

    GpuDetector(model, core)(pictures(), Limits(max_detections=7))
    assert asked == [7]


def test_on_a_cpu_nothing_is_copied() -> None:
    image = pictures()[0]
    assert to_device(image, torch.device("cpu")) is image
    found = DetectionBatch(torch.ones(1, 2, 4), torch.ones(1, 2), torch.ones(1, 2).long(), torch.ones(1, 2).bool())
    assert to_host(found).boxes is found.boxes
