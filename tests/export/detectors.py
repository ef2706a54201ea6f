"""Detectors so small that each is written, opened and run in seconds, and pictures to run them on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig, DetectionConfig
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.keypoint_head import KeypointHeadConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig

SIZES = ((128, 192), (256, 128))  # px, multiples of 32 of two shapes


def config(kind: str = "plain") -> MaskRCNNConfig:
    """Three classes, at most 40 proposals and 12 detections; with more anchors than that, and in a small map fewer."""
    body = {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24), "stem_type": "deep", "stem_width": 4}
    made = MaskRCNNConfig(
        class_names=("cat", "dog", "hen"),
        category_ids=(3, 5, 9),
        preprocess=PreprocessConfig(shortest=128, longest=192),
        backbone=BackboneConfig(name="resnet18", options=body, norm="batch", frozen_stages=0),
        fpn=FPNConfig(channels=16, extra_level=False),
        rpn=RPNConfig(anchors=AnchorConfig(sizes=((8,), (16,), (32,), (64,))), pre_nms_top_n=60, post_nms_top_n=40),
        roi_pooler=RoIPoolerConfig(canonical_size=56.0),
        box_head=BoxHeadConfig(fc_channels=32),
        mask_head=MaskHeadConfig(num_convs=1, channels=8),
        detection=DetectionConfig(score_threshold=0.05, max_detections=12),
    )
    if kind == "faster":
        return replace(made, mask_head=None)
    if kind == "keypoints":
        return replace(made, mask_head=None, keypoint_head=KeypointHeadConfig(num_convs=1, channels=8, side=8))
    if kind == "adaptive":
        return replace(made, roi_pooler=replace(made.roi_pooler, sampling_ratio=0, aligned=False))
    if kind == "cascade":
        return replace(made, box_head=replace(made.box_head, class_agnostic=True), cascade=CascadeConfig())
    if kind == "c4":
        one = AnchorConfig(sizes=((8, 16, 32, 64),))
        return replace(
            made,
            backbone=replace(made.backbone, levels=("c4",)),
            fpn=None,
            rpn=replace(made.rpn, anchors=one),
            roi_stage=True,
            box_head=replace(made.box_head, num_fcs=0),
            mask_head=MaskHeadConfig(side=14, num_convs=0, channels=8),
        )
    assert kind == "plain", kind
    return made


def detector(kind: str = "plain", seed: int = 0) -> MaskRCNN:
    """With last layers drawn wide, so that boxes move, scores differ and masks have shapes."""
    torch.manual_seed(seed)
    model = MaskRCNN(config(kind)).eval()
    layers = [model.own_rpn.objectness, model.own_rpn.deltas]
    for head in model.box_heads:
        layers += [head.classes, head.deltas]
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=0.2)
    if model.mask_head is not None:
        torch.nn.init.normal_(model.mask_head.masks.weight, std=1.0)
    return model


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: soft blobs of colour."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    values = np.zeros((height, width, 3))
    for _ in range(12):
        cy, cx, radius = generator.uniform(0, height), generator.uniform(0, width), generator.uniform(4, 20)
        values += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / radius**2)[..., None] * generator.uniform(0, 255, 3)
    return values.clip(0, 255).astype(np.uint8)
