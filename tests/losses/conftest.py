"""A detector so small that a step of learning takes milliseconds, and losses that fit it."""

from __future__ import annotations

import pytest

from maskrcnn.losses.box_loss import BoxLossConfig
from maskrcnn.losses.mask_rcnn_loss import LossConfig
from maskrcnn.losses.rpn_loss import RPNLossConfig
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig


@pytest.fixture
def tiny_config() -> MaskRCNNConfig:
    """Three classes; group norm, so that no picture hangs on its batch."""
    body = {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24), "stem_type": "deep", "stem_width": 4}
    return MaskRCNNConfig(
        class_names=("cat", "dog", "hen"),
        category_ids=(3, 5, 9),
        backbone=BackboneConfig(name="resnet18", options=body, norm="group", frozen_stages=0),
        fpn=FPNConfig(channels=16, extra_level=False),
        rpn=RPNConfig(anchors=AnchorConfig(sizes=((8,), (16,), (32,), (64,)))),
        roi_pooler=RoIPoolerConfig(canonical_size=56.0),
        box_head=BoxHeadConfig(fc_channels=32),
        mask_head=MaskHeadConfig(num_convs=1, channels=8, side=14),
    )


@pytest.fixture
def tiny_model(tiny_config: MaskRCNNConfig) -> MaskRCNN:
    return MaskRCNN(tiny_config)


@pytest.fixture
def tiny_losses() -> LossConfig:
    return LossConfig(
        rpn=RPNLossConfig(anchors_per_image=32),
        box=BoxLossConfig(rois_per_image=16),
        pre_nms_top_n=60,
        post_nms_top_n=40,
    )
