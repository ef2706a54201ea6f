"""Presets: functions that return a whole config. A new variant is one function and one line in `PRESETS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from maskrcnn.errors import InputError
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.keypoint_head import KeypointHeadConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig

Names = tuple[str, ...]
Ids = tuple[int, ...]

ONE_LEVEL_ANCHORS = AnchorConfig(sizes=((32, 64, 128, 256, 512),))  # 15 per cell; Detectron2's, 9 in Ren et al. 2015


def r50_fpn(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """Mask R-CNN with ResNet-50 and FPN, the field's standard (He et al. 2017, Table 1; 44 M weights)."""
    return MaskRCNNConfig(class_names=class_names, category_ids=category_ids)


def r101_fpn(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """The same with ResNet-101 (63 M weights)."""
    return replace(r50_fpn(class_names, category_ids), backbone=BackboneConfig(name="resnet101"))


def r50_c4(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """Mask R-CNN without pyramid: c5 of ResNet-50 runs on every RoI (He et al. 2017, Fig. 4 left)."""
    return MaskRCNNConfig(
        class_names=class_names,
        category_ids=category_ids,
        preprocess=PreprocessConfig(divisor=16),
        backbone=BackboneConfig(levels=("c4",)),
        fpn=None,
        rpn=RPNConfig(anchors=ONE_LEVEL_ANCHORS),
        roi_stage=True,
        box_head=BoxHeadConfig(num_fcs=0),
        mask_head=MaskHeadConfig(side=14, num_convs=0),
    )


def r50_dc5(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """Mask R-CNN on one map: c5 of ResNet-50 at stride 16, by dilated convolutions (Dai et al. 2017, 4)."""
    return MaskRCNNConfig(
        class_names=class_names,
        category_ids=category_ids,
        preprocess=PreprocessConfig(divisor=16),
        backbone=BackboneConfig(levels=("c5",), dilate_c5=True),
        fpn=None,
        rpn=RPNConfig(anchors=ONE_LEVEL_ANCHORS),
    )


def cascade_r50_fpn(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """`r50-fpn` with three box heads in a row, for boxes that fit tighter (Cai and Vasconcelos 2018)."""
    config = r50_fpn(class_names, category_ids)
    return replace(config, box_head=BoxHeadConfig(class_agnostic=True), cascade=CascadeConfig())


def keypoint_r50_fpn(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """Keypoints in place of masks (He et al. 2017, 5; 59 M weights). Training puts in those that the data set has."""
    return replace(r50_fpn(class_names, category_ids), mask_head=None, keypoint_head=KeypointHeadConfig())


def nano(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """A light one that a laptop trains in minutes, for small objects: 3 M weights.

    Departs from the papers: a ResNet of 32 to 160 channels, a pyramid of 64 up to stride 32, two square-ish
    anchors per cell, one wide fully connected layer, two mask convolutions. Pictures are enlarged twofold, so that
    an object of 8 px still covers several cells.
    """
    body = {"layers": (2, 2, 2, 2), "channels": (32, 64, 128, 160), "stem_type": "deep", "stem_width": 16}
    return MaskRCNNConfig(
        class_names=class_names,
        category_ids=category_ids,
        preprocess=PreprocessConfig(scale=2.0, longest=2048, stretch=0.001),
        backbone=BackboneConfig(name="resnet18", options=body, norm="batch", frozen_stages=0),
        fpn=FPNConfig(channels=64, extra_level=False),
        rpn=RPNConfig(anchors=AnchorConfig(sizes=((12,), (24,), (48,), (96,)), ratios=(0.7, 1.4), centre=0.5)),
        roi_pooler=RoIPoolerConfig(canonical_size=112.0, canonical_level=4),
        box_head=BoxHeadConfig(num_fcs=2, fc_channels=256),
        mask_head=MaskHeadConfig(num_convs=2, channels=64),
    )


def drawings(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """`nano` for small pictures of several classes, which learns faster from nothing: what the demo trains.

    Batch norm in pyramid and mask head too; pictures enlarged by a quarter: shapes of 10 px have to be told apart. The
    mask head has the paper's four convolutions (He et al. 2017, Fig. 4), of 64 channels rather than 256: better
    masks than two give in as many minutes. The rest departs from the papers as `nano` does.
    """
    config = nano(class_names, category_ids)
    assert config.mask_head is not None and config.fpn is not None
    return replace(
        config,
        preprocess=replace(config.preprocess, scale=1.25),
        fpn=replace(config.fpn, norm="batch"),
        mask_head=replace(config.mask_head, num_convs=4, norm="batch"),
    )


def from_scratch(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """`config` for a body without pretraining: group norm in place of frozen statistics, and all stages learn.

    Frozen batch norm keeps the statistics of a pretraining; without one there is nothing to keep, and the residual
    branches, whose last scale starts at zero, would never open (He et al. 2019, Rethinking ImageNet Pre-training, 3.1).
    """
    if config.backbone.norm != "frozen":
        return config
    body = replace(config.backbone, norm="group", frozen_stages=0)
    mask_head = None if config.mask_head is None else replace(config.mask_head, norm="group")
    keypoint_head = None if config.keypoint_head is None else replace(config.keypoint_head, norm="group")
    fpn = None if config.fpn is None else replace(config.fpn, norm="group")
    return replace(config, backbone=body, fpn=fpn, mask_head=mask_head, keypoint_head=keypoint_head)


PRESETS: dict[str, Callable[[Names, Ids], MaskRCNNConfig]] = {
    "nano": nano,
    "r50-fpn": r50_fpn,
    "r101-fpn": r101_fpn,
    "r50-c4": r50_c4,
    "r50-dc5": r50_dc5,
    "cascade-r50-fpn": cascade_r50_fpn,
    "keypoint-r50-fpn": keypoint_r50_fpn,
}


def preset(name: str, class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """The config called `name` for these classes. Errors: `InputError` that lists the names."""
    if name not in PRESETS:
        raise InputError("no such preset", field="preset", found=name, expected=" or ".join(PRESETS))
    return PRESETS[name](class_names, category_ids)
