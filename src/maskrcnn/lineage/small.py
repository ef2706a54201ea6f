"""The one small network of the table: the same body, pyramid and heads for Fast, Faster and Mask R-CNN.

What differs between them is what their papers changed, and nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from maskrcnn.data.classes import Classes
from maskrcnn.data.dataset import Dataset
from maskrcnn.lineage.system import Bench
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.model.presets import drawings, from_scratch
from maskrcnn.structures import Target

_WANTED_SIDE = 36.0  # px, of the object in the middle: the anchors of the small network fit those of 12 to 96
_SCALES = (0.25, 2.0)
_PROPOSALS = 300  # of a picture, when detecting; Ren et al. 2015, 3.3. More where a picture may hold more objects


def small_body() -> BackboneConfig:
    """The body of the preset `nano`: a ResNet of 32 to 160 channels."""
    return drawings(("object",), (1,)).backbone


def usual_scale(dataset: Dataset) -> float:
    """How much larger than the pictures the small network sees them: so that the median object has about 36 px."""
    sides = [(box[2:] - box[:2]).clamp(min=1).prod().sqrt() for target in _targets(dataset) for box in target.gt_boxes]
    if not sides:
        return 1.0
    wanted = _WANTED_SIDE / float(np.median([float(side) for side in sides]))
    return float(np.clip(round(wanted * 4) / 4, *_SCALES))


def most_detections(dataset: Dataset) -> int:
    """100, or as many as a picture of the data set can hold, in whole hundreds."""
    most = max((len(target) for target in _targets(dataset)), default=0)
    return max(100, -(-most // 100) * 100)


def mask_rcnn_config(bench: Bench, classes: Classes) -> MaskRCNNConfig:
    """He et al. 2017: RPN, RoIAlign, boxes and masks. Two convolutions before the masks: more steps in the minutes."""
    config = drawings(classes.names, classes.category_ids)
    assert config.mask_head is not None
    most = most_detections(bench.train)
    config = replace(
        config,
        preprocess=replace(config.preprocess, scale=bench.scale),
        backbone=bench.body,
        rpn=replace(config.own_rpn, post_nms_top_n=max(_PROPOSALS, most)),
        mask_head=replace(config.mask_head, num_convs=2),
        detection=replace(config.detection, max_detections=most),
    )
    return config if bench.pretrained else from_scratch(config)


def faster_rcnn_config(bench: Bench, classes: Classes) -> MaskRCNNConfig:
    """Ren et al. 2015: the same without masks, and with RoIPool."""
    config = mask_rcnn_config(bench, classes)
    return replace(config, mask_head=None, roi_pooler=replace(config.roi_pooler, method="pool"))


def fast_rcnn_config(bench: Bench, classes: Classes) -> MaskRCNNConfig:
    """Girshick 2015: the same without RPN; proposals are given."""
    return replace(faster_rcnn_config(bench, classes), rpn=None)


def _targets(dataset: Dataset) -> list[Target]:
    return [dataset.target(i) for i in range(len(dataset))]
