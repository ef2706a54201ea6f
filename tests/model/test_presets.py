from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import PRESETS, from_scratch, preset


def model(name: str) -> MaskRCNN:
    """With 80 classes, as on COCO, and without memory behind its weights."""
    with torch.device("meta"):
        return MaskRCNN(preset(name, tuple(f"class {i}" for i in range(80)), tuple(range(80))))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("r50-fpn", 44),
        ("r101-fpn", 63),
        ("nano", 3),
        ("r50-c4", 36),
        ("r50-dc5", 172),
        ("cascade-r50-fpn", 72),
    ],
)
def test_weights_are_as_many_as_promised(name: str, millions: int) -> None:
    weights = sum(value.numel() for key, value in model(name).state_dict().items() if "running" not in key)
    assert round(weights / 1e6) == millions


def test_names_reach_the_config() -> None:
    for name in PRESETS:
        config = preset(name, ("a", "b"), (4, 9))
        assert (config.class_names, config.category_ids, config.num_classes) == (("a", "b"), (4, 9), 2)


def test_an_unknown_name() -> None:
    with pytest.raises(InputError, match="preset: no such preset; found nanno; expected nano or r50-fpn or "):
        preset("nanno", ("a",), (1,))


def test_the_standard_is_the_papers() -> None:
    config = preset("r50-fpn", ("a",), (1,))
    assert config.backbone.name == "resnet50" and config.fpn.channels == 256
    assert (config.preprocess.shortest, config.preprocess.longest) == (800, 1333)
    assert config.rpn.anchors.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert (config.rpn.post_nms_top_n, config.rpn.nms_iou) == (1000, 0.7)
    assert (config.box_head.side, config.box_head.fc_channels) == (7, 1024)
    assert config.mask_head is not None
    assert (config.mask_head.side, config.mask_head.num_convs, config.mask_head.pooled_side) == (28, 4, 14)
    assert (config.detection.score_threshold, config.detection.nms_iou, config.detection.max_detections) == (
        0.05,
        0.5,
        100,
    )
    assert preset("r101-fpn", ("a",), (1,)) == replace(config, backbone=replace(config.backbone, name="resnet101"))


def test_from_scratch_nothing_is_frozen() -> None:
    config = from_scratch(preset("r50-fpn", ("a",), (1,)))
    assert (config.backbone.norm, config.backbone.frozen_stages) == ("group", 0)
    assert config.mask_head is not None
    assert config.fpn.norm == config.mask_head.norm == "group"
    assert from_scratch(config) == config
    assert from_scratch(preset("nano", ("a",), (1,))) == preset("nano", ("a",), (1,))
    boxes_only = from_scratch(replace(preset("r50-fpn", ("a",), (1,)), mask_head=None))
    assert boxes_only.mask_head is None and boxes_only.backbone.norm == "group"


@torch.no_grad()
def test_nano_detects() -> None:
    detector = MaskRCNN(preset("nano", ("cell",), (1,))).eval()
    assert not any(isinstance(module, nn.Linear) and module.weight.isnan().any() for module in detector.modules())
    found = detector([torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)])[0]
    assert len(found) > 0 and found.masks is not None
    assert set(found.names) == {"cell"}
