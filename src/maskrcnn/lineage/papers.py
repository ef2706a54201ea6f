"""The detectors of the papers as configs: Fast and Faster R-CNN on ZF, VGG-16 and ResNet-101, Mask R-CNN on its c4.

As Girshick 2015, Ren et al. 2015, He et al. 2016 (A) and He et al. 2017 describe them, with the numbers of their code
where the papers give none. What is not rebuilt: dropout behind the fully connected layers, and that those started from
ImageNet's classifier; boxes count from edges of pixels, as everywhere in this house.
"""

from __future__ import annotations

from dataclasses import replace

from maskrcnn.losses.box_loss import BoxLossConfig
from maskrcnn.losses.mask_rcnn_loss import LossConfig
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig, DetectionConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.presets import ONE_LEVEL_ANCHORS, Ids, Names
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig

PREPROCESS = PreprocessConfig(shortest=600, longest=1000, divisor=16)  # px; Girshick 2015, 5.2; Ren et al. 2015, 3.3
ANCHORS = AnchorConfig(
    sizes=((128, 256, 512),),  # px, so 9 to a cell; Ren et al. 2015, 3.3
    centre=0.5,  # "centered at the sliding window"; Ren et al. 2015, 3.1.1
)
PROPOSALS = RPNConfig(
    anchors=ANCHORS,
    pre_nms_top_n=6000,  # Ren et al. 2015, code
    post_nms_top_n=300,  # Ren et al. 2015, 3.3 and 4.1
    min_size=16.0,  # px; Ren et al. 2015, code, which measured them in the picture as given
)
POOLING = RoIPoolerConfig(method="pool")  # Girshick 2015, 2.1
DETECTION = DetectionConfig(nms_iou=0.3)  # Girshick 2015, code, and before it Girshick et al. 2014

# conv3_1 and up learn; Girshick 2015, 4.5; Ren et al. 2015, 3.1.3
VGG16 = BackboneConfig(name="vgg16", levels=("c4",), frozen_stages=1)
ZF = BackboneConfig(name="zf", levels=("c4",), frozen_stages=0)  # all of it learns; Ren et al. 2015, 3.1.3
RESNET101 = BackboneConfig(name="resnet101", levels=("c4",))  # batch norm stands still; He et al. 2016, A


def fast_rcnn_vgg16(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """Girshick 2015, model L: proposals given, RoIPool of conv5_3, two fully connected layers, a box for each class."""
    return MaskRCNNConfig(
        class_names=class_names,
        category_ids=category_ids,
        preprocess=PREPROCESS,
        backbone=VGG16,
        fpn=None,
        rpn=None,
        roi_pooler=POOLING,
        box_head=BoxHeadConfig(side=7, fc_channels=4096),  # Girshick 2015, 2.2: as VGG-16's first fully connected layer
        mask_head=None,
        detection=DETECTION,
    )


def faster_rcnn_vgg16(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """Ren et al. 2015: the same, with an RPN of D = 512 channels on conv5_3."""
    return replace(fast_rcnn_vgg16(class_names, category_ids), rpn=replace(PROPOSALS, channels=512))


def faster_rcnn_zf(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """Ren et al. 2015: on the ZF net, with D = 256."""
    return replace(
        faster_rcnn_vgg16(class_names, category_ids),
        backbone=ZF,
        rpn=replace(PROPOSALS, channels=256),
        box_head=BoxHeadConfig(side=6, fc_channels=4096),  # Ren et al. 2015, code: as ZF's first fully connected layer
    )


def faster_rcnn_r101_c4(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """He et al. 2016, A: RPN and RoIPool on c4 of ResNet-101; c5 runs on every RoI in place of VGG-16's layers."""
    return replace(
        faster_rcnn_vgg16(class_names, category_ids),
        backbone=RESNET101,
        rpn=PROPOSALS,  # as many channels as c4, 1024: the paper says nothing of it
        roi_stage=True,
        box_head=BoxHeadConfig(num_fcs=0),
    )


def mask_rcnn_r101_c4(class_names: Names, category_ids: Ids) -> MaskRCNNConfig:
    """He et al. 2017, Fig. 4 left: RoIAlign, and a mask of 14 x 14 beside the box."""
    return replace(
        faster_rcnn_r101_c4(class_names, category_ids),
        preprocess=PreprocessConfig(divisor=16),  # 800 px; 3.1
        rpn=RPNConfig(
            anchors=replace(ONE_LEVEL_ANCHORS, centre=0.5),  # 5 sizes, 3 ratios; 3.1
            pre_nms_top_n=6000,  # as before
            post_nms_top_n=300,  # 3.1
        ),
        roi_pooler=RoIPoolerConfig(),
        mask_head=MaskHeadConfig(side=14, num_convs=0),
        detection=DetectionConfig(),
    )


def fast_rcnn_loss() -> LossConfig:
    """Girshick 2015, 2.3: 64 RoIs of a picture, a quarter of them of an object, and smooth L1 with its corner at 1.

    Departs in the background: the paper takes only RoIs of IoU 0.1 to 0.5 with an object, this all below 0.5.
    """
    return LossConfig(box=BoxLossConfig(rois_per_image=64, foreground_fraction=0.25, foreground_iou=0.5, beta=1.0))


def faster_rcnn_loss() -> LossConfig:
    """Ren et al. 2015: heads learn from 2000 proposals (3.3), of which 128 are drawn, and 12000 go into NMS (code)."""
    usual = fast_rcnn_loss()
    return replace(usual, box=replace(usual.box, rois_per_image=128), pre_nms_top_n=12000, post_nms_top_n=2000)
