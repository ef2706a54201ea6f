"""Learning without a pyramid: c5 on every RoI, and c5 with holes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.structures import GtMasks, PolygonShape, Target

BODY = BackboneConfig(
    name="resnet26",  # bottlenecks
    options={"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24), "stem_type": "deep", "stem_width": 4},
    norm="group",
    frozen_stages=0,
)
OBJECTS = [[4.0, 6.0, 30.0, 28.0], [35.0, 10.0, 60.0, 60.0], [2.0, 40.0, 20.0, 60.0]]


def config_of(tiny_config: MaskRCNNConfig, kind: str) -> MaskRCNNConfig:
    anchors = replace(tiny_config.rpn, anchors=AnchorConfig(sizes=((8, 16, 32, 64),)))
    if kind == "DC5":
        body = replace(BODY, levels=("c5",), dilate_c5=True)
        return replace(tiny_config, backbone=body, fpn=None, rpn=anchors)
    return replace(
        tiny_config,
        backbone=replace(BODY, levels=("c4",)),
        fpn=None,
        rpn=anchors,
        roi_stage=True,
        box_head=BoxHeadConfig(num_fcs=0),
        mask_head=MaskHeadConfig(side=14, num_convs=0, channels=8),
    )


@pytest.mark.parametrize("kind", ["C4", "DC5"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_all_of_it_learns(tiny_config: MaskRCNNConfig, tiny_losses: LossConfig, kind: str, agnostic: bool) -> None:
    config = config_of(tiny_config, kind)
    assert config.mask_head is not None
    boxes, masks = replace(config.box_head, class_agnostic=agnostic), replace(config.mask_head, class_agnostic=agnostic)
    model = MaskRCNN(replace(config, box_head=boxes, mask_head=masks))
    rings = [np.array([[a, b], [c, b], [c, d], [a, d]]) for a, b, c, d in OBJECTS]
    target = Target(
        gt_boxes=torch.tensor(OBJECTS),
        gt_labels=torch.tensor([1, 2, 3]),
        gt_masks=GtMasks(tuple(PolygonShape((ring,)) for ring in rings)),
        is_crowd=torch.zeros(3, dtype=torch.bool),
        size=(64, 64),
    )
    batch = model.preprocess.batch([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)])
    loss, optimizer = MaskRCNNLoss(model, tiny_losses), torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for _ in range(30):
        losses = loss(batch, [target] * 2)
        optimizer.zero_grad()
        losses["total"].backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        optimizer.step()
        totals.append(losses["total"].item())
    assert losses["mask"] > 0 and losses["box_delta"] > 0
    assert max(totals[-5:]) < 0.85 * totals[0]
