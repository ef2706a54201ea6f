"""What MMDetection's tensors and settings tell of a detector, as our config.

Names and shapes tell what the network is made of; settings tell the rest; what neither tells is what MMDetection's zoo
has for a network of that shape. Settings that contradict the tensors, or ask for parts that are not built here, are
refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig, DetectionConfig
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig
from maskrcnn.weights import class_names
from maskrcnn.weights.facts import as_text, like
from maskrcnn.weights.mmdetection_settings import Facts, require_built_here
from maskrcnn.weights.tensors import count, norm_after, shape

State = Mapping[str, Tensor]
Three = tuple[float, float, float]
Four = tuple[float, float, float, float]

_ZOO = "as MMDetection's zoo has it for this network"
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of red, green, blue in 0..255
_LARGER_THAN_NOTHING = 1e-6  # px; stands for "above 0", which is all that MMDetection asks of a proposal
_STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
_LVIS = {1203: "v1", 1230: "v0.5"}
_BLOCKS: Mapping[
    tuple[tuple[int, ...], bool], int
] = {  # of the four stages, and whether a block has three convolutions
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


def config_of(state: State, facts: Facts, names: tuple[str, ...] | None) -> MaskRCNNConfig:
    """The whole config. Problems are kept in `facts`, which the caller asks to finish.

    state: under our names. names: of the classes, from the file.

    Errors: `InputError` for a network that is not known here.
    """
    num_classes = shape(state, "box_head.classes.weight")[0] - 1
    require_built_here(facts, _stages(state))
    classes = _classes(num_classes, facts, names)
    return MaskRCNNConfig(
        class_names=classes.names,
        category_ids=classes.category_ids,
        preprocess=_preprocess(state, facts),
        backbone=_backbone(state, facts),
        fpn=_fpn(state, facts),
        rpn=_rpn(state, facts),
        roi_pooler=_roi_pooler(state, facts),
        box_head=_box_head(state, num_classes, facts),
        cascade=_cascade(state, facts),
        mask_head=_mask_head(state, num_classes, facts),
        detection=_detection(num_classes, facts),
    )


# --- classes ----------------------------------------------------------------------------------------------------------


def _classes(num_classes: int, facts: Facts, in_file: tuple[str, ...] | None) -> Classes:
    """Names from the settings, from the file, or of a public data set. Ids are only known of COCO."""
    coco = class_names.coco()
    for names in (facts.class_names(), in_file):
        if names == coco.names and num_classes == len(names):
            return coco
        if names is not None and len(names) == num_classes and len(set(names)) == num_classes:
            facts.assume("category_ids", f"1 to {num_classes}", "MMDetection does not keep them")
            return Classes.named(names)
    if num_classes == len(coco.names) and facts.dataset() in ("", "CocoDataset"):
        facts.assume("class_names", "COCO's", f"the weights have {num_classes} classes")
        return coco
    if num_classes in _LVIS:
        facts.assume("class_names", f"LVIS {_LVIS[num_classes]}'s", f"the weights have {num_classes} classes")
        return class_names.lvis(_LVIS[num_classes])
    facts.assume("class_names", f"1 to {num_classes}", "neither file nor settings name the classes")
    return Classes.numbered(num_classes)


# --- picture and body -------------------------------------------------------------------------------------------------


def _preprocess(state: State, facts: Facts) -> PreprocessConfig:
    steps = facts.transforms()
    shortest, longest = _size(steps, facts)
    channels, mean, std = _normalisation(state, steps, facts)
    loads_floats = bool(steps.get("LoadImageFromFile", {}).get("to_float32"))  # OpenCV then resizes without rounding
    by_pillow = steps.get("Resize", {}).get("backend") == "pillow"
    return PreprocessConfig(
        shortest=shortest,
        longest=longest,
        antialias=False,
        resampling="pillow" if by_pillow else "torch" if loads_floats else "opencv",
        channels=channels,
        mean=mean,
        std=std,
        divisor=_divisor(steps, facts),
    )


def _size(steps: Mapping[str, Any], facts: Facts) -> tuple[int, int]:
    """The shorter side and the limit of the longer one; MMDetection gives both as a pair, in any order."""
    flip, resize = steps.get("MultiScaleFlipAug", {}), steps.get("Resize", {})
    if resize.get("keep_ratio") is False or (steps and not resize):
        facts.problem("is not known here", "test_pipeline.Resize.keep_ratio", resize.get("keep_ratio"), "True")
    if resize.get("interpolation", "bilinear") != "bilinear":
        facts.problem("is not known here", "test_pipeline.Resize.interpolation", resize["interpolation"], "bilinear")
    scales = [step[key] for step in (resize, flip) for key in ("scale", "img_scale") if step.get(key) is not None]
    if not scales:
        facts.assume("preprocess.shortest and longest", (800, 1333), _ZOO)
        return 800, 1333
    several = scales[0] if isinstance(scales[0], list) and isinstance(scales[0][0], list | tuple) else [scales[0]]
    if flip.get("flip") or len(several) > 1:
        facts.assume("pictures", "looked at once, at the first size", "test-time augmentation is no part of a detector")
    sides = like((1,), several[0])
    if not isinstance(sides, tuple) or len(sides) != 2:
        facts.problem("is not known here", "test_pipeline.Resize.scale", several[0], "two numbers of pixels")
        return 800, 1333
    return min(sides), max(sides)


def _normalisation(state: State, steps: Mapping[str, Any], facts: Facts) -> tuple[Literal["rgb", "bgr"], Three, Three]:
    """Order of colours, mean and deviation for values in 0..1. Version 3 tells it in the model, version 2 in a step."""
    told = facts.told("model.data_preprocessor") or steps.get("Normalize")
    if not isinstance(told, Mapping):
        like_caffe2 = _groups(state) == (32, 8)  # X101-32x8d of the zoo began from Facebook's weights
        told = {"mean": _MEAN[::-1], "std": _STD[::-1]} if like_caffe2 else {"mean": _MEAN, "std": _STD, "to_rgb": True}
        for name in ("mean", "std"):
            facts.assume(f"preprocess.{name} * 255", told[name], _ZOO)
        facts.assume("preprocess.channels", "bgr" if like_caffe2 else "rgb", _ZOO)
    if told.get("rgb_to_bgr") or steps.get("LoadImageFromFile", {}).get("channel_order", "bgr") != "bgr":
        facts.problem("is not known here", "LoadImageFromFile.channel_order", "pictures read as RGB", "BGR")
    mean, std = (_three(told.get(name), name, facts) for name in ("mean", "std"))
    is_rgb = told.get("bgr_to_rgb", told.get("to_rgb", "Normalize" in steps))  # the old step's default was True
    return "rgb" if is_rgb else "bgr", mean, std


def _three(value: Any, name: str, facts: Facts) -> Three:
    values = like((1.0,), value)
    if not isinstance(values, tuple) or len(values) != 3 or (name == "std" and min(values) <= 0):
        facts.problem("is not known here", f"model.data_preprocessor.{name}", value, "three numbers")
        return 1.0, 1.0, 1.0
    return values[0] / 255, values[1] / 255, values[2] / 255


def _divisor(steps: Mapping[str, Any], facts: Facts) -> int:
    pad, model = steps.get("Pad", {}), facts.told("model.data_preprocessor")
    value = pad.get("pad_val", 0) if model is None else model.get("pad_value", 0)
    value = value.get("img", 0) if isinstance(value, Mapping) else value
    if any(value) if isinstance(value, list | tuple) else value:
        facts.problem("is not known here", "test_pipeline.Pad.pad_val", value, "0, after the mean was taken off")
    if pad.get("size") is not None or pad.get("pad_to_square"):
        facts.problem("is not known here", "test_pipeline.Pad.size", pad.get("size"), "size_divisor alone")
    if pad.get("size_divisor"):
        return int(pad["size_divisor"])
    if steps and model is None:
        return 1  # version 2 without such a step
    default = 32 if model is None else 1  # the zoo's; the code's
    return facts.ask("preprocess.divisor", default, "model.data_preprocessor.pad_size_divisor")


def _backbone(state: State, facts: Facts) -> BackboneConfig:
    depth = _depth(state)
    groups, width = _groups(state)
    for key, value in {"depth": depth, "groups": groups, "base_width": width}.items():
        if key == "depth" or groups > 1:
            facts.agree(f"model.backbone.{key}", value)
    is_group = "backbone.body.bn1.running_mean" not in state
    return BackboneConfig(
        name=f"resnet{depth}",
        options={"cardinality": groups, "base_width": width} if groups > 1 else {},
        norm="group" if is_group else "batch" if _norm_learns(facts) else "frozen",
        norm_eps=None if is_group else facts.ask("backbone.norm_eps", 1e-5, "model.backbone.norm_cfg.eps"),
        stride_in=_stride_in(depth, facts),
        frozen_stages=_frozen_stages(facts),
    )


def _frozen_stages(facts: Facts) -> int:
    """MMDetection counts from 0, the stem, where we count from 1; -1 there and 0 here let all learn."""
    default = 1 if facts.told("model.backbone") is None else -1  # the zoo's; the code's
    return min(max(1 + facts.ask("backbone.frozen_stages - 1", default, "model.backbone.frozen_stages"), 0), 5)


def _norm_learns(facts: Facts) -> bool:
    """Whether the statistics of the body's batch norm follow the pictures in training."""
    fixed = facts.ask("backbone.norm frozen", True, "model.backbone.norm_eval")
    return not fixed and facts.told("model.backbone.norm_cfg.requires_grad") is not False


def _stride_in(depth: int, facts: Facts) -> Literal["3x3", "1x1"]:
    style = facts.ask("backbone.stride_in, by style", "pytorch", "model.backbone.style")
    if style not in ("pytorch", "caffe"):
        facts.problem("is not known here", "model.backbone.style", style, "pytorch or caffe")
    return "1x1" if style == "caffe" and depth >= 50 else "3x3"  # shallower ones have no 1x1 to put it in


def _depth(state: State) -> int:
    blocks = tuple(count(state, rf"backbone\.body\.layer{stage}\.(\d+)\.conv1\.weight") for stage in (1, 2, 3, 4))
    depth = _BLOCKS.get((blocks, "backbone.body.layer1.0.conv3.weight" in state))
    if depth is None:
        expected = f"a ResNet of depth {', '.join(map(str, _BLOCKS.values()))}"
        raise InputError("unknown network", field="backbone", found=f"stages of {blocks} blocks", expected=expected)
    return depth


def _groups(state: State) -> tuple[int, int]:
    """Groups of the 3x3 convolutions and the width of each: (1, 64) of a ResNet, (32, 8) of X101-32x8d."""
    width, inputs = shape(state, "backbone.body.layer1.0.conv2.weight")[:2]
    return width // inputs, inputs


def _fpn(state: State, facts: Facts) -> FPNConfig:
    channels = shape(state, "fpn.output.p2.conv.weight")[0]
    facts.agree("model.neck.out_channels", channels)
    return FPNConfig(channels=channels, norm=norm_after(state, "fpn.output.p2"))


# --- proposals --------------------------------------------------------------------------------------------------------


def _rpn(state: State, facts: Facts) -> RPNConfig:
    hidden, inputs = shape(state, "rpn.convs.0.weight")[:2]
    test = "model.test_cfg.rpn"
    old = (f"{test}.max_num", f"{test}.nms_post")  # names of the first files of version 2
    return RPNConfig(
        anchors=_anchors(state, facts),
        conv_depth=count(state, r"rpn\.convs\.(\d+)\.weight"),
        channels=None if hidden == inputs else hidden,
        delta_weights=_delta_weights("rpn", "model.rpn_head", (1.0, 1.0, 1.0, 1.0), facts),
        pre_nms_top_n=facts.ask("rpn.pre_nms_top_n", 1000, f"{test}.nms_pre"),
        post_nms_top_n=facts.ask("rpn.post_nms_top_n", 1000, f"{test}.max_per_img", *old),
        nms_iou=facts.ask("rpn.nms_iou", 0.7, *_iou_keys(test), f"{test}.nms_thr"),
        min_size=max(_LARGER_THAN_NOTHING, facts.ask("rpn.min_size", 0.0, f"{test}.min_bbox_size")),
    )


def _iou_keys(section: str) -> tuple[str, str]:
    return f"{section}.nms.iou_threshold", f"{section}.nms.iou_thr"


def _anchors(state: State, facts: Facts) -> AnchorConfig:
    generator = "model.rpn_head.anchor_generator"
    strides = (4, 8, 16, 32, 64)
    scales: tuple[float, ...] = facts.ask("rpn.anchors.sizes / stride", (8.0,), f"{generator}.scales")
    if octaves := facts.told(f"{generator}.octave_base_scale"):
        facts.problem("is not known here", f"{generator}.octave_base_scale", octaves, "scales")
    bases = facts.ask("rpn.anchors.sizes / scale", tuple(map(float, strides)), f"{generator}.base_sizes")
    ratios: tuple[float, ...] = facts.ask("rpn.anchors.ratios", (0.5, 1.0, 2.0), f"{generator}.ratios")
    centre = facts.ask("rpn.anchors.centre", 0.0, f"{generator}.center_offset")
    if centre and bases != tuple(map(float, strides)):
        expected = f"{as_text(strides)} with that center_offset"
        facts.problem("is not known here", f"{generator}.base_sizes", bases, expected)
    per_cell = shape(state, "rpn.objectness.weight")[0]
    if len(scales) * len(ratios) != per_cell:
        found = f"{len(scales)} scales, {len(ratios)} ratios"
        facts.problem("contradicts the weights", generator, found, f"{per_cell} anchors a cell, as the weights have")
        scales, ratios = (8.0,), (1.0,) * per_cell
    sizes = tuple(tuple(base * scale for scale in scales) for base in bases)
    return AnchorConfig(sizes=sizes, ratios=ratios, centre=centre)


def _delta_weights(place: str, head: str, stds: Four, facts: Facts) -> Four:
    """1 / std: MMDetection multiplies a delta by its deviation where we divide by a weight."""
    coder = f"{head}.bbox_coder"
    facts.only(f"{coder}.target_means", (0.0, 0.0, 0.0, 0.0))
    told = facts.ask(f"1 / {place}.delta_weights", stds, f"{coder}.target_stds")
    if len(told) != 4 or min(told) <= 0:
        facts.problem("is not known here", f"{coder}.target_stds", told, "four numbers above 0")
        told = stds
    return 1 / told[0], 1 / told[1], 1 / told[2], 1 / told[3]


# --- heads ------------------------------------------------------------------------------------------------------------


def _roi_pooler(state: State, facts: Facts) -> RoIPoolerConfig:
    """Boxes and masks have settings of their own there; here they share one."""
    heads = ("bbox", "mask") if "mask_head.masks.weight" in state else ("bbox",)
    told = [_pooling(f"model.roi_head.{head}_roi_extractor", facts) for head in heads]
    if told[0] != told[-1]:
        key = "model.roi_head.mask_roi_extractor"
        facts.problem("differs between heads", key, told[-1], f"{as_text(told[0])}, as for the boxes")
    ratio, aligned, finest = told[0]
    # a box of `finest` px and more leaves p2 when twice as large; Lin et al. 2017 count from 224 px at p4
    return RoIPoolerConfig(sampling_ratio=ratio, aligned=aligned, canonical_size=4 * finest)


def _pooling(extractor: str, facts: Facts) -> tuple[int, bool, float]:
    extractor = facts.section(extractor, 0)
    layer = f"{extractor}.roi_layer"
    return (
        facts.ask("roi_pooler.sampling_ratio", 0, f"{layer}.sampling_ratio", f"{layer}.sample_num"),
        facts.ask("roi_pooler.aligned", True, f"{layer}.aligned"),
        facts.ask("roi_pooler.canonical_size / 4", 56.0, f"{extractor}.finest_scale"),
    )


def _box_head(state: State, num_classes: int, facts: Facts) -> BoxHeadConfig:
    stages = _stages(state)
    for stage in range(stages):
        facts.agree(f"{facts.section('model.roi_head.bbox_head', stage)}.num_classes", num_classes)
    boxes = shape(state, "box_head.deltas.weight")[0] // 4
    section = facts.section("model.roi_head.bbox_head", 0)
    if num_classes > 1:  # of one class, its box and the box of all classes are the same
        facts.agree(f"{section}.reg_class_agnostic", boxes == 1)
        if stages > 1 and boxes > 1:
            expected = "one box for all classes in a cascade"
            facts.problem("is not known here", f"{section}.reg_class_agnostic", False, expected)
    num_convs = count(state, r"box_head\.convs\.(\d+)\.conv\.weight")
    maps = shape(state, f"box_head.convs.{num_convs - 1}.conv.weight" if num_convs else "fpn.output.p2.conv.weight")[0]
    fc_channels, inputs = shape(state, "box_head.fcs.0.weight")
    side = math.isqrt(inputs // maps)
    facts.agree(f"{section}.roi_feat_size", side)
    facts.agree(f"{facts.section('model.roi_head.bbox_roi_extractor', 0)}.roi_layer.output_size", side)
    return BoxHeadConfig(
        side=side,
        num_convs=num_convs,
        conv_channels=maps if num_convs else 256,
        norm=norm_after(state, "box_head.convs.0"),
        num_fcs=count(state, r"box_head\.fcs\.(\d+)\.weight"),
        fc_channels=fc_channels,
        class_agnostic=boxes == 1 and (num_classes > 1 or stages > 1),
        delta_weights=_delta_weights("box_head", section, _STAGE_STDS[0], facts),
    )


def _cascade(state: State, facts: Facts) -> CascadeConfig | None:
    """MMDetection averages what the stages say before the softmax, and has a mask head for each stage."""
    stages = _stages(state)
    if stages == 1:
        return None
    weights = []
    for stage in range(1, stages):
        section = facts.section("model.roi_head.bbox_head", stage)
        weights.append(_delta_weights(f"cascade {stage}", section, _STAGE_STDS[min(stage, 2)], facts))
    return CascadeConfig(
        delta_weights=tuple(weights), average="logits", mask_heads="later_mask_heads.0.masks.weight" in state
    )


def _mask_head(state: State, num_classes: int, facts: Facts) -> MaskHeadConfig | None:
    if "mask_head.masks.weight" not in state:
        if facts.told("model.roi_head.mask_head") is not None:
            facts.problem("contradicts the weights", "model.roi_head.mask_head", "a mask head", "none")
        return None
    section = facts.section("model.roi_head.mask_head", 0)
    facts.agree(f"{section}.num_classes", num_classes)
    masks, channels = shape(state, "mask_head.masks.weight")[:2]
    layer = f"{facts.section('model.roi_head.mask_roi_extractor', 0)}.roi_layer"
    return MaskHeadConfig(
        side=2 * facts.ask("mask_head.side, half", 14, f"{layer}.output_size", f"{layer}.out_size"),
        num_convs=count(state, r"mask_head\.convs\.(\d+)\.conv\.weight"),
        channels=channels,
        norm=norm_after(state, "mask_head.convs.0"),
        class_agnostic=masks == 1 and num_classes > 1,
    )


def _detection(num_classes: int, facts: Facts) -> DetectionConfig:
    test = "model.test_cfg.rcnn"
    threshold, most = (1e-4, 300) if num_classes in _LVIS else (0.05, 100)
    most = facts.ask("detection.max_detections", most, f"{test}.max_per_img")
    if most < 1:
        expected = "a limit: every detection has a place in memory"
        facts.problem("is not known here", f"{test}.max_per_img", most, expected)
        most = 100
    return DetectionConfig(
        score_threshold=facts.ask("detection.score_threshold", threshold, f"{test}.score_thr"),
        nms_iou=facts.ask("detection.nms_iou", 0.5, *_iou_keys(test)),
        max_detections=most,
        min_size=0.0,  # of what is left of a box at the border, nothing is asked
        class_agnostic_nms=facts.told(f"{test}.nms.class_agnostic") is True,
        mask_threshold=facts.ask("detection.mask_threshold", 0.5, f"{test}.mask_thr_binary"),
    )


# --- tensors ----------------------------------------------------------------------------------------------------------


def _stages(state: State) -> int:
    return 1 + count(state, r"later_box_heads\.(\d+)\.classes\.weight")
