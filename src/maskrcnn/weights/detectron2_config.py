"""Detectron2's settings, and what its tensors tell, as our config.

The tensors tell what the network is made of; settings tell the rest; what neither tells is what Detectron2's model zoo
has for a network of that layout, and is noted as assumed. Settings that contradict the tensors, or want what is not
built here, are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig, DetectionConfig
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.keypoint_head import COCO_PERSON, KeypointHeadConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig
from maskrcnn.structures import KeypointScheme
from maskrcnn.weights import class_names
from maskrcnn.weights.detectron2_layout import (
    BOX_HEAD,
    BOX_PREDICTOR,
    KEYPOINT_HEAD,
    MASK_HEAD,
    RPN_HEAD,
    Layout,
    State,
    count,
    norm_after,
    shape,
)
from maskrcnn.weights.detectron2_settings import Facts

Four = tuple[float, float, float, float]

_ZOO = "as in Detectron2's zoo"
_PIXEL_MEAN = (103.53, 116.28, 123.675)  # of blue, green, red in 0..255
_PIXEL_STD = (57.375, 57.12, 58.395)
_NO_STD = (1.0, 1.0, 1.0)  # where it went into the weights of the first convolution
_ANCHOR_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
_CASCADE: tuple[Four, ...] = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
_MORE_THAN_NOTHING = 1e-6  # px, which is all that Detectron2 asks of the sides of a proposal
_NO_LIMIT = 1 << 30  # px, of the longer side
_RESNETS: dict[
    tuple[tuple[int, ...], bool], str
] = {  # by blocks of the four stages, and whether a block has three convolutions
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_RESNEXTS = {("resnet50", 32, 4): "resnext50_32x4d", ("resnet101", 32, 8): "resnext101_32x8d"}
_REGNETS: dict[tuple[tuple[int, ...], bool], str] = {  # by blocks, and whether they squeeze and excite
    ((2, 5, 14, 2), False): "regnetx_040",
    ((2, 6, 12, 2), True): "regnety_040",
}
_LVIS = {1203: "v1", 1230: "v0.5"}  # by their number of classes


def config_of(state: State, layout: Layout, facts: Facts) -> MaskRCNNConfig:
    """The whole config. What does not fit is noted in `facts`, whose `finish` raises it.

    Errors: `InputError` for a network that is not known here.
    """
    _check(layout, facts)
    classes = _classes(layout, facts)
    cascade = _cascade_weights(layout, facts)
    return MaskRCNNConfig(
        class_names=classes.names,
        category_ids=classes.category_ids,
        preprocess=_preprocess(state, layout, facts),
        backbone=_backbone(state, layout, facts),
        fpn=_fpn(state, facts) if layout.kind == "FPN" else None,
        rpn=_rpn(state, layout, facts),
        roi_pooler=_roi_pooler(layout, facts),
        roi_stage=layout.kind == "C4",
        box_head=_box_head(state, layout, facts, cascade[0] if cascade else None),
        cascade=CascadeConfig(delta_weights=cascade[1:]) if cascade else None,
        mask_head=_mask_head(state, layout, facts) if layout.has_masks else None,
        keypoint_head=_keypoint_head(state, facts) if layout.has_keypoints else None,
        detection=_detection(layout, facts),
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
    elif number in _LVIS and (not data or "lvis" in data):
        classes, name = class_names.lvis(_LVIS[number]), f"those of LVIS {_LVIS[number]}"
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
        values = facts.ask(key, default, f"preprocess.{name.removeprefix('pixel_')} * 255", _ZOO)
    first, second, third = facts.sized(key, values, default)
    return first / 255, second / 255, third / 255


def _is_from_scratch(layout: Layout) -> bool:
    """The zoo's batch-norm network without pretraining: its stem learned too, as that of the "LSJ" networks did, which
    have two convolutions in the RPN and keep to the habits of pretraining."""
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
        dilate_c5=layout.kind == "C5" and facts.ask("MODEL.RESNETS.RES5_DILATION", 2, "backbone.dilate_c5", _ZOO) == 2,
        frozen_stages=facts.ask("MODEL.BACKBONE.FREEZE_AT", frozen, "backbone.frozen_stages", _ZOO),
    )


def _stride_in(layout: Layout, facts: Facts) -> Literal["3x3", "1x1"]:
    """1x1 for what began from Microsoft's ImageNet weights, as most of the zoo did, and for the "LSJ" networks."""
    in_1x1 = layout.groups == 1 and layout.norm != "group" and not _is_from_scratch(layout)
    return "1x1" if facts.ask("MODEL.RESNETS.STRIDE_IN_1X1", in_1x1, "backbone.stride_in 1x1", _ZOO) else "3x3"


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
    norms = {"frozen": ("FrozenBN",), "batch": ("BN", "SyncBN", "naiveSyncBN"), "group": ("GN",)}[layout.norm]
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


# --- proposals --------------------------------------------------------------------------------------------------------


def _rpn(state: State, layout: Layout, facts: Facts) -> RPNConfig:
    hidden, inputs = _rpn_conv(state, layout)
    pre_nms = 1000 if layout.kind == "FPN" else 6000
    return RPNConfig(
        anchors=_anchors(state, layout, facts),
        conv_depth=layout.rpn_depth,
        channels=None if hidden == inputs else hidden,
        delta_weights=_four(facts, "MODEL.RPN.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0), "rpn.delta_weights"),
        pre_nms_top_n=facts.ask("MODEL.RPN.PRE_NMS_TOPK_TEST", pre_nms, "rpn.pre_nms_top_n", _ZOO),
        post_nms_top_n=facts.ask("MODEL.RPN.POST_NMS_TOPK_TEST", 1000, "rpn.post_nms_top_n"),
        nms_iou=facts.ask("MODEL.RPN.NMS_THRESH", 0.7, "rpn.nms_iou"),
        min_size=max(_MORE_THAN_NOTHING, facts.ask("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 0.0, "rpn.min_size")),
    )


def _rpn_conv(state: State, layout: Layout) -> tuple[int, int]:
    """Channels that leave and enter the RPN's first convolution; the latter are those of the maps."""
    first = f"{RPN_HEAD}conv.{'conv0.' if layout.rpn_depth > 1 else ''}weight"
    return shape(state, first)[0], shape(state, first)[1]


def _four(facts: Facts, key: str, default: Four, place: str) -> Four:
    first, second, third, fourth = facts.sized(key, facts.ask(key, default, place), default)
    return first, second, third, fourth


def _anchors(state: State, layout: Layout, facts: Facts) -> AnchorConfig:
    levels = 5 if layout.kind == "FPN" else 1
    sizes, ratios = _told_by_buffers(state) or _told_by_settings(layout, facts, levels)
    centre = facts.ask("MODEL.ANCHOR_GENERATOR.OFFSET", 0.0, "rpn.anchors.centre")
    per_cell = shape(state, f"{RPN_HEAD}objectness_logits.weight")[0]
    if len(sizes) != levels or any(len(level) * len(ratios) != per_cell for level in sizes):
        found, expected = f"sizes {sizes}, ratios {ratios}", f"{per_cell} anchors a cell on {levels} level(s)"
        facts.problem("contradicts the weights", "MODEL.ANCHOR_GENERATOR", found, expected)
        sizes, ratios = ((1.0,),) * levels, (1.0,) * per_cell
    return AnchorConfig(sizes=sizes, ratios=ratios, centre=centre)


Sizes = tuple[tuple[float, ...], ...]


def _told_by_settings(layout: Layout, facts: Facts, levels: int) -> tuple[Sizes, tuple[float, ...]]:
    usual: Sizes = tuple((size,) for size in _ANCHOR_SIZES) if layout.kind == "FPN" else (_ANCHOR_SIZES,)
    sizes = facts.ask("MODEL.ANCHOR_GENERATOR.SIZES", usual, "rpn.anchors.sizes", _ZOO, nest=True)
    ratios = facts.ask("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ((0.5, 1.0, 2.0),), "rpn.anchors.ratios", nest=True)
    if len(set(ratios)) > 1:
        expected = "the same ratios on all levels"
        facts.problem("is not known here", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ratios, expected)
    return sizes * levels if len(sizes) == 1 else sizes, ratios[0]  # one tuple is meant for all levels


def _told_by_buffers(state: State) -> tuple[Sizes, tuple[float, ...]] | None:
    """Sizes and ratios of the anchors that older files hold, (k, 4) boxes around (0, 0) for each level."""
    levels = [state[name].tolist() for name in sorted(state) if "anchor_generator.cell_anchors." in name]
    if not levels:
        return None
    sizes = tuple(_distinct([math.sqrt((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in level]) for level in levels)
    return sizes, _distinct([(y2 - y1) / (x2 - x1) for x1, y1, x2, y2 in levels[0]])


def _distinct(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(dict.fromkeys(round(value, 3) for value in values))


# --- heads ------------------------------------------------------------------------------------------------------------


def _roi_pooler(layout: Layout, facts: Facts) -> RoIPoolerConfig:
    """Each head has settings of its own there; here all heads share one."""
    heads = {"BOX": True, "MASK": layout.has_masks and layout.kind != "C4", "KEYPOINT": layout.has_keypoints}
    types, ratios = set(), set()
    for head in (head for head, is_there in heads.items() if is_there):
        key, of_head = f"MODEL.ROI_{head}_HEAD.POOLER", f"of the {head.lower()} head"
        facts.only(f"{key}_TYPE", "ROIAlignV2", "ROIAlign")
        types.add(facts.ask(f"{key}_TYPE", "ROIAlignV2", f"roi_pooler.aligned {of_head}, by"))
        ratios.add(facts.ask(f"{key}_SAMPLING_RATIO", 0, f"roi_pooler.sampling_ratio {of_head}"))
    if len(types) > 1 or len(ratios) > 1:
        found = f"{', '.join(sorted(types))} with ratios {sorted(ratios)}"
        facts.problem("differs between heads", "MODEL.ROI_..._HEAD.POOLER", found, "the same for all")
    return RoIPoolerConfig(sampling_ratio=max(ratios), aligned=types == {"ROIAlignV2"})


def _cascade_weights(layout: Layout, facts: Facts) -> tuple[Four, ...]:
    """Of every stage of a cascade; empty without one."""
    if layout.stages == 1:
        return ()
    key = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"
    usual = _CASCADE + (_CASCADE[-1],) * max(0, layout.stages - len(_CASCADE))
    weights = facts.ask(key, usual[: layout.stages], "box_head.delta_weights and cascade.delta_weights")
    if len(weights) != layout.stages or any(len(stage) != 4 for stage in weights):
        facts.problem("contradicts the weights", key, weights, f"four numbers for each of {layout.stages} stages")
        return usual[: layout.stages]
    return weights


def _box_head(state: State, layout: Layout, facts: Facts, delta_weights: Four | None) -> BoxHeadConfig:
    stage = "0." if layout.stages > 1 else ""
    head, section = f"{BOX_HEAD}{stage}", "MODEL.ROI_BOX_HEAD"
    num_convs = count(state, rf"{re.escape(head)}conv(\d+)\.weight")
    num_fcs = count(state, rf"{re.escape(head)}fc(\d+)\.weight")
    facts.agree(f"{section}.NUM_CONV", num_convs)
    facts.agree(f"{section}.NUM_FC", num_fcs)
    # of one class, the one box and the box for each class are the same
    agnostic = layout.stages > 1 or shape(state, f"{BOX_PREDICTOR}{stage}bbox_pred.weight")[0] < 4 * layout.num_classes
    if layout.num_classes > 1:
        facts.agree(f"{section}.CLS_AGNOSTIC_BBOX_REG", agnostic)
    default = (10.0, 10.0, 5.0, 5.0)
    weights = delta_weights or _four(facts, f"{section}.BBOX_REG_WEIGHTS", default, "box_head.delta_weights")
    return BoxHeadConfig(
        side=_box_side(state, layout, facts, num_convs, head),
        num_convs=num_convs,
        conv_channels=shape(state, f"{head}conv1.weight")[0] if num_convs else 256,
        norm=norm_after(state, f"{head}conv1"),
        num_fcs=num_fcs,
        fc_channels=shape(state, f"{head}fc1.weight")[0] if num_fcs else 1024,
        class_agnostic=agnostic,
        delta_weights=weights,
    )


def _box_side(state: State, layout: Layout, facts: Facts, num_convs: int, head: str) -> int:
    """S, which a fully connected layer tells. Without one the settings do; C4's last stage halves it."""
    key = "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"
    if f"{head}fc1.weight" not in state:
        return facts.ask(key, 14, "box_head.side, twice", _ZOO) // 2
    channels = shape(state, f"{head}conv{num_convs}.weight")[0] if num_convs else _rpn_conv(state, layout)[1]
    side = math.isqrt(shape(state, f"{head}fc1.weight")[1] // channels)
    facts.agree(key, side)
    return side


def _mask_head(state: State, layout: Layout, facts: Facts) -> MaskHeadConfig:
    num_convs = count(state, re.escape(MASK_HEAD) + r"mask_fcn(\d+)\.weight")
    masks, channels = shape(state, f"{MASK_HEAD}predictor.weight")[:2]
    agnostic = masks < layout.num_classes
    facts.agree("MODEL.ROI_MASK_HEAD.NUM_CONV", num_convs)
    if layout.num_classes > 1:
        facts.agree("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    if layout.kind == "C4":  # pooled as for the boxes, and halved by the stage
        side = facts.told("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION") or 14
    else:
        side = 2 * facts.ask("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14, "mask_head.side, half")
    return MaskHeadConfig(
        side=side,
        num_convs=num_convs,
        channels=channels,
        norm=norm_after(state, f"{MASK_HEAD}mask_fcn1"),
        class_agnostic=agnostic,
    )


def _keypoint_head(state: State, facts: Facts) -> KeypointHeadConfig:
    channels, number = shape(state, f"{KEYPOINT_HEAD}score_lowres.weight")[:2]
    facts.agree("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", number)
    if number == len(COCO_PERSON.names):
        scheme, names = COCO_PERSON, "COCO's of a person"
    else:
        scheme, names = KeypointScheme(tuple(str(j) for j in range(1, number + 1))), f"1 to {number}"
    if scheme is not COCO_PERSON or "keypoints_coco" not in str(facts.told("DATASETS.TEST")):
        facts.assumed.append(f"keypoint_head.scheme {names}: by their number, {number}")
    return KeypointHeadConfig(
        scheme=scheme,
        side=4 * facts.ask("MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION", 14, "keypoint_head.side, a quarter"),
        num_convs=count(state, re.escape(KEYPOINT_HEAD) + r"conv_fcn(\d+)\.weight"),
        channels=channels,
    )


def _detection(layout: Layout, facts: Facts) -> DetectionConfig:
    threshold, most = (1e-4, 300) if layout.num_classes in _LVIS else (0.05, 100)
    return DetectionConfig(
        score_threshold=facts.ask("MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold, "detection.score_threshold", _ZOO),
        nms_iou=facts.ask("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5, "detection.nms_iou"),
        max_detections=facts.ask("TEST.DETECTIONS_PER_IMAGE", most, "detection.max_detections", _ZOO),
        min_size=0.0,  # empty boxes take part until the end, and are dropped there
    )
