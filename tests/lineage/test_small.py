"""One network for all systems of the table, and what differs between them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskrcnn.data.shapes import SHAPE_CLASSES, ShapesDataset
from maskrcnn.lineage.small import (
    fast_rcnn_config,
    faster_rcnn_config,
    mask_rcnn_config,
    most_detections,
    small_body,
    usual_scale,
)
from maskrcnn.lineage.system import Bench
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.structures import Target


def squares(side: float, count: int) -> list[tuple[torch.Tensor, Target]]:
    corners = torch.arange(count, dtype=torch.float32)[:, None].expand(-1, 4) + torch.tensor([0.0, 0.0, side, side])
    labels = torch.ones(count, dtype=torch.int64)
    target = Target(corners, labels, None, torch.zeros(count, dtype=torch.bool), (300, 300))
    return [(torch.zeros(3, 300, 300, dtype=torch.uint8), target)]


@pytest.mark.parametrize(("side", "scale"), [(36, 1.0), (18, 2.0), (9, 2.0), (72, 0.5), (24, 1.5), (1000, 0.25)])
def test_pictures_are_scaled_by_the_object_in_the_middle(side: float, scale: float) -> None:
    from maskrcnn.data.dataset import AdaptedSequence

    assert usual_scale(AdaptedSequence(squares(side, 3))) == scale
    assert usual_scale(AdaptedSequence(squares(side, 0))) == 1.0


@pytest.mark.parametrize(("count", "limit"), [(0, 100), (100, 100), (101, 200), (250, 300)])
def test_as_many_detections_as_there_may_be_objects(count: int, limit: int) -> None:
    from maskrcnn.data.dataset import AdaptedSequence

    assert most_detections(AdaptedSequence(squares(2, count))) == limit


def test_what_each_paper_changed_and_nothing_else(bench: Bench) -> None:
    mask, faster, fast = (
        make(bench, SHAPE_CLASSES) for make in (mask_rcnn_config, faster_rcnn_config, fast_rcnn_config)
    )
    assert mask.roi_pooler.method == "align" and mask.mask_head is not None and mask.rpn is not None
    assert faster == replace(mask, mask_head=None, roi_pooler=replace(mask.roi_pooler, method="pool"))
    assert fast == replace(faster, rpn=None)
    assert mask.preprocess.scale == bench.scale and mask.backbone == bench.body


def test_a_body_without_pretraining_learns_from_scratch(bench: Bench) -> None:
    bench = replace(bench, body=BackboneConfig(name="resnet18"), train=ShapesDataset(2))
    assert mask_rcnn_config(bench, SHAPE_CLASSES).backbone.norm == "group"
    assert mask_rcnn_config(replace(bench, pretrained=True), SHAPE_CLASSES).backbone.norm == "frozen"
    assert small_body().norm == "batch"
