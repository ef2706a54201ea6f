"""Detectors of Detectron (facebookresearch/Detectron, Caffe2; "Detectron1"): Faster and Mask R-CNN with FPN.

A `.pkl` holds blobs by name. Each has a place in Detectron2's naming, and is read from there on as Detectron2's. What
is otherwise, after Detectron's source and its `12_2017_baselines`:

    pixels     other means; resized as floats, mean already off; pictures end where their border ends, for the RPN
    anchors    shapes rounded at the size of a cell; in the middle of their cell
    boxes      run from the first to the last pixel, one less than their width: RoIAlign reads that much less
    norms      a factor and an offset for each channel, nothing else
    classes    background first, with rows of its own for boxes and masks

Detectron moves boxes after it has scaled them back to the picture, where one pixel is not what it is here, and pastes
masks into boxes of whole pixels: boxes can end up to a pixel apart. It could not be run beside this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.weights import detectron2
from maskrcnn.weights.content import Content, Converted, Settings
from maskrcnn.weights.tensors import State

_SCORES, _OBJECTNESS = "cls_score_w", "rpn_cls_logits_fpn2_w"
_OTHERS = {  # parts that are not read, by how their names begin
    "rpn_cls_logits_w": "detectors without FPN (C4)",
    "kps_score": "keypoints",
    "retnet_": "RetinaNet",
}
# state of the optimiser, and what is left of the ImageNet classifier that training began from
_NO_WEIGHTS = r".+_momentum|lr|weight_order|conv1_b|(pred|fc1000)_[wb]"

_NORM = r"_(?P<norm>bn|gn)_(?P<kind>[sb])"
_CONV = r"_(?P<kind>[wb])"
_BODY = "backbone.bottom_up."
_PLACES: tuple[tuple[str, str], ...] = (  # theirs without what they end with, and Detectron2's
    (r"(res_)?conv1", _BODY + "stem.conv1"),
    (r"res(?P<n>\d)_(?P<block>\d+)_branch1", _BODY + "res{n}.{block}.shortcut"),
    (r"res(?P<n>\d)_(?P<block>\d+)_branch2(?P<branch>[abc])", _BODY + "res{n}.{block}.conv{branch}"),
    (r"fpn_inner_res(?P<n>\d)_\d+_sum(_lateral)?", "backbone.fpn_lateral{n}"),
    (r"fpn_res(?P<n>\d)_\d+_sum", "backbone.fpn_output{n}"),
    (r"conv_rpn_fpn2", "proposal_generator.rpn_head.conv"),
    (r"rpn_cls_logits_fpn2", "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn_bbox_pred_fpn2", "proposal_generator.rpn_head.anchor_deltas"),
    (r"fc6", "roi_heads.box_head.fc1"),
    (r"fc7", "roi_heads.box_head.fc2"),
    (r"head_conv(?P<n>\d)", "roi_heads.box_head.conv{n}"),
    (r"cls_score", "roi_heads.box_predictor.cls_score"),
    (r"bbox_pred", "roi_heads.box_predictor.bbox_pred"),
    (r"_(\[mask\]|mask)_fcn(?P<n>\d)", "roi_heads.mask_head.mask_fcn{n}"),
    (r"conv5_mask", "roi_heads.mask_head.deconv"),
    (r"mask_fcn_logits", "roi_heads.mask_head.predictor"),
)
_KINDS = {"w": "weight", "s": "weight", "b": "bias"}

SETTINGS: Mapping[str, Any] = {  # in Detectron2's words, where its own defaults are others
    "MODEL": {
        "PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "ANCHOR_GENERATOR": {"OFFSET": 0.5},
        "ROI_BOX_HEAD": {"POOLER_TYPE": "ROIAlign", "POOLER_SAMPLING_RATIO": 2},
        "ROI_MASK_HEAD": {"POOLER_TYPE": "ROIAlign", "POOLER_SAMPLING_RATIO": 2},
    },
}
_ASSUMED = (
    "preprocess.mean * 255 102.98 115.95 122.77, channels bgr, std 1: as {whose} have",
    "preprocess.shortest 800, longest 1333: as {whose} have",
    "backbone.stride_in {stride_in}: as {whose} have for this network",
    "rpn.anchors of 32 to 512 px, ratios 0.5, 1, 2: as {whose} have",
    "thresholds (rpn, detection), roi_pooler.sampling_ratio 2: as {whose} have",
    "class_names {names}: the file has none",
)


def recognises(content: Content) -> bool:
    """Whether blobs are named as those of a two-stage detector of Detectron."""
    return _SCORES in content.tensors and any(name.startswith("rpn_cls_logits") for name in content.tensors)


def convert(content: Content, settings: Settings | None) -> Converted:
    """The detector in our terms.

    Errors: `InputError` for blobs of parts that are not read, and for `settings` of another framework.
    """
    if settings is not None:
        expected = "fields of maskrcnn's own config"
        raise InputError("is not read for Detectron's weights", field=settings.origin, expected=expected)
    state = detectron2_state(content.tensors)
    theirs = detectron2.convert(replace(content, tensors=state), Settings(SETTINGS, "Detectron's defaults"))
    config = as_detectron(theirs.config)
    return Converted(config, theirs.state, assumed_of(config, "Detectron's baselines"), "Detectron1")


def assumed_of(config: MaskRCNNConfig, whose: str) -> tuple[str, ...]:
    """What the file does not say, a line each."""
    names = "COCO's" if config.class_names[0] == "person" else f"1 to {config.num_classes}"
    return tuple(line.format(names=names, stride_in=config.backbone.stride_in, whose=whose) for line in _ASSUMED)


def detectron2_state(blobs: State) -> dict[str, Tensor]:
    """Blobs under Detectron2's names and in its order of classes, its norms whole.

    Errors: `InputError` that names the first which have no place.
    """
    for beginning, part in _OTHERS.items():
        if found := [name for name in blobs if name.startswith(beginning)]:
            raise InputError(f"{part}: not read from Detectron's files", field="tensors", found=found[0])
    weights = {name: blob for name, blob in blobs.items() if not re.fullmatch(_NO_WEIGHTS, name)}
    placed = {name: _their_name(name) for name in weights}
    if strange := [name for name, place in placed.items() if place is None]:
        first, expected = f"{len(strange)}: {', '.join(strange[:3])}", "a Faster or Mask R-CNN of Detectron, with FPN"
        raise InputError("holds blobs of another network", field="tensors", found=first, expected=expected)
    state: dict[str, Tensor] = {}
    for name, place in placed.items():
        assert place is not None
        state[place] = rows_of(place, weights[name])
        if name.endswith("_bn_s"):
            statistics = place.removesuffix("weight")
            state[f"{statistics}running_mean"] = torch.zeros_like(weights[name])
            state[f"{statistics}running_var"] = torch.ones_like(weights[name])
    return state


def _their_name(name: str) -> str | None:
    """Detectron2's name of a blob."""
    for ending, suffix in ((_NORM, ".norm."), (_CONV, ".")):
        for pattern, place in _PLACES:
            if match := re.fullmatch(pattern + ending, name):
                parts: Mapping[str, str | None] = match.groupdict()
                branch = str("abc".find(parts.get("branch") or "a") + 1)
                where = place.format(**{**parts, "branch": branch})
                return where + suffix + _KINDS[match["kind"]]
    return None


def rows_of(place: str, blob: Tensor) -> Tensor:
    """Background last among scores, and nowhere else."""
    if ".cls_score." in place:
        return blob.roll(-1, dims=0)
    if ".bbox_pred." in place and len(blob) > 4:
        return blob[4:]
    if ".predictor." in place and len(blob) > 1:
        return blob[1:]
    return blob


def as_detectron(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """What Detectron does and Detectron2 does otherwise."""
    frozen = config.backbone.norm == "frozen"
    return replace(
        config,
        preprocess=replace(config.preprocess, resampling="torch", antialias=False),
        backbone=replace(config.backbone, norm_eps=0.0) if frozen else config.backbone,
        rpn=replace(config.own_rpn, anchors=replace(config.own_rpn.anchors, shapes="cell"), cut_to="padded"),
        roi_pooler=replace(config.roi_pooler, extent=-1.0),
    )
