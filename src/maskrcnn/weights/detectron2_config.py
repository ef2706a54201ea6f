"""Detectron2's settings, and what its tensors tell, as our config.

The tensors tell what the network is made of; settings tell the rest; what neither tells is what Detectron2's model zoo
has for a network of that layout, and is noted as assumed. Settings that contradict the tensors, or want what is not
built here, are refused.
"""

from __future__ import annotations

from typing import Any, Literal

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.weights import class_names
from maskrcnn.weights.detectron2_heads import (
    LVIS,
    box_head_config,
    cascade_weights,
    detection_config,
    keypoint_head_config,
    mask_head_config,
    roi_pooler_config,
    rpn_config,
)
from maskrcnn.weights.detectron2_layout import Layout
from maskrcnn.weights.detectron2_settings import ZOO, Facts
from maskrcnn.weights.tensors import State, norm_after, shape

_PIXEL_MEAN = (103.53, 116.28, 123.675)  # of blue, green, red in 0..255
_PIXEL_STD = (57.375, 57.12, 58.395)
_NO_STD = (1.0, 1.0, 1.0)  # where it went into the weights of the first convolution
_NO_LIMIT = 1 << 30  # px, of the longer side
# by blocks of the four stages, and whether a block has three convolutions
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_NORMS = {"frozen": ("FrozenBN",), "batch": ("BN", "SyncBN", "naiveSyncBN", "nnSyncBN"), "group": ("GN",)}
_RESNEXTS = {("resnet50", 32, 4): "resnext50_32x4d", ("resnet101", 32, 8): "resnext101_32x8d"}
_REGNETS: dict[tuple[tuple[int, ...], bool], str] = {  # by blocks, and whether they squeeze and excite
    ((2, 5, 14, 2), False): "regnetx_040",
    ((2, 6, 12, 2), True): "regnety_040",
}


def config_of(state: State, layout: Layout, facts: Facts) -> MaskRCNNConfig:
    """The whole config. What does not fit is noted in `facts`, whose `finish` raises it.

    Errors: `InputError` for a network that is not known here.
    """
    _check(layout, facts)
    classes = _classes(layout, facts)
    cascade = cascade_weights(layout, facts)
    box_head = box_head_config(state, layout, facts, cascade[0] if cascade else None)
    return MaskRCNNConfig(
        class_names=classes.names,
        category_ids=classes.category_ids,
        preprocess=_preprocess(state, layout, facts),
        backbone=_backbone(state, layout, facts),
        fpn=_fpn(state, facts) if layout.kind == "FPN" else None,
        rpn=rpn_config(state, layout, facts),
        roi_pooler=roi_pooler_config(layout, facts),
        roi_stage=layout.kind == "C4",
        box_head=box_head,
        cascade=CascadeConfig(delta_weights=cascade[1:]) if cascade else None,
        mask_head=mask_head_config(state, layout, facts, box_head.side) if layout.has_masks else None,
        keypoint_head=keypoint_head_config(state, facts) if layout.has_keypoints else None,
        detection=detection_config(layout, facts),
    )


def _check(layout: Layout, facts: Facts) -> None:
    """What the settings say of the whole against what the tensors say, and against what is built here."""
    plain = "Res5ROIHeads" if layout.kind == "C4" else "StandardROIHeads"
    levels = {"FPN": ("p2", "p3", "p4", "p5"), "C4": ("res4",), "C5": ("res5",)}[layout.kind]
    facts.agree("MODEL.ROI_HEADS.NUM_CLASSES", layout.num_classes)
    facts.agree("MODEL.MASK_ON", layout.has_masks)
    facts.agree("MODEL.KEYPOINT_ON", layout.has_keypoints)
    facts.only("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    facts.only("MODEL.PROPOSAL_GENERATOR.NAME", "RPN")
    facts.only("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator")
    facts.only("MODEL.ROI_HEADS.NAME", "CascadeROIHeads" if layout.stages > 1 else plain)
    facts.only("MODEL.ROI_HEADS.IN_FEATURES", levels)
    facts.only("MODEL.RPN.IN_FEATURES", (*levels, "p6") if layout.kind == "FPN" else levels)
    facts.only("MODEL.FPN.FUSE_TYPE", "sum")
    facts.only("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", False)


def _classes(layout: Layout, facts: Facts) -> Classes:
    """By the data set that the settings name, else by the number of classes where one data set alone has so many."""
    told = facts.told("DATASETS.TEST") or facts.told("DATASETS.TRAIN") or ""
    data, number = str(told).lower(), layout.num_classes
    if number == 80 and (not data or "coco" in data):
        classes, name = class_names.coco(), "COCO's"
    elif number == 1 and layout.has_keypoints:
        classes, name = Classes(("person",), (1,)), "COCO's person"
    elif number in LVIS and (not data or "lvis" in data):
        classes, name = class_names.lvis(LVIS[number]), f"those of LVIS {LVIS[number]}"
    elif number == 8 and "cityscapes" in data:
        return Classes.named(class_names.CITYSCAPES)
    elif number == 20 and "voc" in data:
        return Classes.named(class_names.VOC)
    else:
        facts.assumed.append(f"class_names 1 to {number}: neither weights nor settings tell them")
        return Classes.numbered(number)
    if not data:
        facts.assumed.append(f"class_names {name}: by their number, {number} (DATASETS.TEST)")
    return classes


# --- picture and body -------------------------------------------------------------------------------------------------


def _preprocess(state: State, layout: Layout, facts: Facts) -> PreprocessConfig:
    order = facts.ask("INPUT.FORMAT", "BGR", "preprocess.channels")
    facts.only("INPUT.FORMAT", "BGR", "RGB")
    divides = layout.is_regnet or layout.groups > 1 or _is_from_scratch(layout)
    shortest = facts.ask("INPUT.MIN_SIZE_TEST", 800, "preprocess.shortest")
    longest = facts.ask("INPUT.MAX_SIZE_TEST", 1333, "preprocess.longest")
    return PreprocessConfig(
        shortest=shortest or None,  # 0 asks for pictures as they are
        longest=longest if shortest else _NO_LIMIT,
        resampling="pillow",
        channels="rgb" if order == "RGB" else "bgr",
        mean=_per_channel(state, facts, "pixel_mean", _PIXEL_MEAN),
        std=_per_channel(state, facts, "pixel_std", _PIXEL_STD if divides else _NO_STD),
        divisor=32 if layout.kind == "FPN" else 1,
    )


def _per_channel(
    state: State, facts: Facts, name: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Three values for pixels of 0..1. Older files hold them as a tensor (3, 1, 1), for pixels of 0..255."""
    key = f"MODEL.{name.upper()}"
    if name in state:
        values = tuple(round(value, 4) for value in state[name].flatten().tolist())
        facts.agree(key, values)
    else:
        values = facts.ask(key, default, f"preprocess.{name.removeprefix('pixel_')} * 255", ZOO)
    first, second, third = facts.sized(key, values, default)
    return first / 255, second / 255, third / 255


def _is_from_scratch(layout: Layout) -> bool:
    """Whether it is the zoo's batch-norm network without pretraining, whose stem learned too.

    So did that of its "LSJ" networks, which keep to the habits of pretraining; they have two convolutions in the RPN.
    """
    return layout.norm == "batch" and layout.stem_learns and layout.rpn_depth == 1


def _backbone(state: State, layout: Layout, facts: Facts) -> BackboneConfig:
    name, options = _regnet(state, layout) if layout.is_regnet else _resnet(layout, facts)
    has_stride_in = layout.has_bottlenecks and not layout.is_regnet
    frozen = 0 if layout.stem_learns else 2
    return BackboneConfig(
        name=name,
        options=options,
        norm=layout.norm,
        norm_eps=None if layout.norm == "group" else 1e-5,
        levels={"FPN": ("c2", "c3", "c4", "c5"), "C4": ("c4",), "C5": ("c5",)}[layout.kind],
        stride_in=_stride_in(layout, facts) if has_stride_in else "3x3",
        dilate_c5=layout.kind == "C5" and facts.ask("MODEL.RESNETS.RES5_DILATION", 2, "backbone.dilate_c5", ZOO) == 2,
        frozen_stages=facts.ask("MODEL.BACKBONE.FREEZE_AT", frozen, "backbone.frozen_stages", ZOO),
    )


def _stride_in(layout: Layout, facts: Facts) -> Literal["3x3", "1x1"]:
    """1x1 for what began from Microsoft's ImageNet weights, as most of the zoo did, and for the "LSJ" networks."""
    in_1x1 = layout.groups == 1 and layout.norm != "group" and not _is_from_scratch(layout)
    return "1x1" if facts.ask("MODEL.RESNETS.STRIDE_IN_1X1", in_1x1, "backbone.stride_in 1x1", ZOO) else "3x3"


def _regnet(state: State, layout: Layout) -> tuple[str, dict[str, Any]]:
    has_se = f"{layout.body}s1.b1.f.se.f_ex.0.weight" in state
    name = _REGNETS.get((layout.blocks, has_se))
    if name is None:
        found = f"stages of {layout.blocks} blocks{' with squeeze and excitation' if has_se else ''}"
        raise InputError("unknown RegNet", field="backbone", found=found, expected="RegNetX or RegNetY of 4 GF")
    return name, {}


def _resnet(layout: Layout, facts: Facts) -> tuple[str, dict[str, Any]]:
    """timm's name and options."""
    blocks = layout.blocks
    name = _RESNETS.get((blocks, layout.has_bottlenecks))
    if name is None:
        expected = ", ".join(_RESNETS.values())
        raise InputError("unknown ResNet", field="backbone", found=f"stages of {blocks} blocks", expected=expected)
    norms = {"frozen": ("FrozenBN",), "batch": ("BN", "SyncBN", "naiveSyncBN", "nnSyncBN"), "group": ("GN",)}[
        layout.norm
    ]
    facts.only("MODEL.RESNETS.NORM", *norms)
    facts.only("MODEL.RESNETS.DEFORM_ON_PER_STAGE", (False,) * 4)
    facts.agree("MODEL.RESNETS.DEPTH", int(name.removeprefix("resnet")))
    if layout.has_bottlenecks:
        facts.agree("MODEL.RESNETS.NUM_GROUPS", layout.groups)
        facts.agree("MODEL.RESNETS.WIDTH_PER_GROUP", layout.width)
    if layout.groups == 1:
        return name, {}
    known = _RESNEXTS.get((name, layout.groups, layout.width))
    return (known, {}) if known else (name, {"cardinality": layout.groups, "base_width": layout.width})


def _fpn(state: State, facts: Facts) -> FPNConfig:
    channels = shape(state, "backbone.fpn_output2.weight")[0]
    facts.agree("MODEL.FPN.OUT_CHANNELS", channels)
    return FPNConfig(channels=channels, norm=norm_after(state, "backbone.fpn_output2"))
