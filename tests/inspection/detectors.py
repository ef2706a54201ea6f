"""Small detectors of random weights, of every kind there is, and the steps of a drawn picture with its ground truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch

import maskrcnn
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.inspection.probe import Steps
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import nano
from maskrcnn.predictor import PredictOptions, Predictor
from maskrcnn.structures import Target

Change = Callable[[MaskRCNNConfig], MaskRCNNConfig]


def plain(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return config


def cascade(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return replace(
        config, box_head=replace(config.box_head, class_agnostic=True), cascade=CascadeConfig(mask_heads=True)
    )


def centred(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """As Matterport's: corners in the centres of pixels, the picture in the middle of a square, crop and resize."""
    preprocess = replace(config.preprocess, square=256, place="centre")
    anchors = replace(config.rpn.anchors, corners="centres")
    detection = replace(config.detection, whole_pixels=True, best_class_only=True)
    pooler = replace(config.roi_pooler, method="crop")
    rpn = replace(config.rpn, anchors=anchors)
    return replace(config, preprocess=preprocess, rpn=rpn, detection=detection, roi_pooler=pooler)


def by_masks(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return replace(config, detection=replace(config.detection, mask_nms_iou=0.3, nms_iou=0.9))


def boxes_only(config: MaskRCNNConfig) -> MaskRCNNConfig:
    return replace(config, mask_head=None)


def competing(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """One softmax over classes and background at each pixel of a mask."""
    assert config.mask_head is not None
    return replace(config, mask_head=replace(config.mask_head, classes="competing"))


def fully_connected(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """A mask head without convolutions."""
    assert config.mask_head is not None
    return replace(config, mask_head=replace(config.mask_head, num_convs=0, num_fcs=2, fc_channels=32))


def one_map(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """C4: no pyramid, one map of stride 16, the body's last stage on every RoI."""
    backbone = replace(config.backbone, levels=("c4",))
    anchors = replace(config.rpn.anchors, sizes=((16, 32, 64),))
    rpn = replace(config.rpn, anchors=anchors)
    return replace(config, backbone=backbone, fpn=None, rpn=rpn, roi_stage=True)


def detector(change: Change = plain) -> Predictor:
    """Weights spread so that classes and objectness differ from place to place."""
    torch.manual_seed(3)
    config = nano(("circle", "square", "triangle"), (1, 2, 3))
    config = replace(config, detection=replace(config.detection, score_threshold=0.2))
    model = MaskRCNN(change(config))
    with torch.no_grad():
        for head in model.box_heads:
            head.classes.weight.mul_(60)
            head.deltas.weight.mul_(60)
        for mask_head in model.mask_heads:
            mask_head.masks.weight.mul_(1000)
        model.rpn.objectness.weight.mul_(30)
    return Predictor(model, "cpu")


def drawn(size: tuple[int, int] = (96, 128)) -> tuple[np.ndarray, Target]:
    return ShapesDataset(2, size=size, seed=5)[1]


@cache
def inspected(change: Change = plain, *, truth: bool = True, **options: object) -> Steps:
    """The steps of a drawn picture; the same object for the same question."""
    picture, target = drawn()
    asked = PredictOptions(**options)  # type: ignore[typeddict-item]
    return maskrcnn.inspect(detector(change), picture, ground_truth=target if truth else None, **asked)  # type: ignore[arg-type]
