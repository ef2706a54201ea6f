"""A detector so small that a forward pass takes milliseconds."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig, DetectionConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig


@pytest.fixture
def tiny_config() -> MaskRCNNConfig:
    """Three classes, pictures of 64 px, at most 30 proposals and 10 detections; all scores are high enough."""
    body = {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24), "stem_type": "deep", "stem_width": 4}
    return MaskRCNNConfig(
        class_names=("cat", "dog", "hen"),
        category_ids=(3, 5, 9),
        preprocess=PreprocessConfig(shortest=64, longest=96),
        backbone=BackboneConfig(name="resnet18", options=body, norm="group", frozen_stages=0),
        fpn=FPNConfig(channels=16),
        rpn=RPNConfig(
            anchors=AnchorConfig(sizes=((8,), (16,), (32,), (64,), (128,))), pre_nms_top_n=50, post_nms_top_n=30
        ),
        roi_pooler=RoIPoolerConfig(canonical_size=56.0),
        box_head=BoxHeadConfig(fc_channels=32),
        mask_head=MaskHeadConfig(num_convs=1, channels=8),
        detection=DetectionConfig(score_threshold=0.0, max_detections=10),
    )


@pytest.fixture
def tiny_model(tiny_config: MaskRCNNConfig) -> MaskRCNN:
    """With last layers drawn wide, so that boxes move, scores differ and masks have shapes."""
    model = MaskRCNN(tiny_config).eval()
    assert model.mask_head is not None
    for layer in (model.rpn.objectness, model.rpn.deltas, model.box_head.classes, model.box_head.deltas):
        torch.nn.init.normal_(layer.weight, std=0.3)
    torch.nn.init.normal_(model.mask_head.masks.weight, std=2.0)
    return model
