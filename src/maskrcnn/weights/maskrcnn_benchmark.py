"""Detectors of maskrcnn-benchmark (facebookresearch/maskrcnn-benchmark, PyTorch): Faster and Mask R-CNN with FPN.

It stands between Detectron and Detectron2. Names are near Detectron2's, and are read from there on as its; anchors,
boxes and pixels are Detectron's (`detectron1.py`), but pictures are resized as bytes and proposals are cut to them.

It scales boxes back to the picture by their first and last pixel: their right and lower edges lie less than a pixel
apart from ours. It could not be run beside this.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights import detectron2
from maskrcnn.weights.content import Content, Converted, Settings
from maskrcnn.weights.detectron1 import SETTINGS, as_detectron, assumed_of, rows_of
from maskrcnn.weights.tensors import State

_MARKS = {"rpn.head.cls_logits.weight", "roi_heads.box.predictor.cls_score.weight"}
_NO_WEIGHTS = r"rpn\.anchor_generator\.cell_anchors\.\d+"  # made of the settings

# Theirs, Detectron2's. {after} is one above the number that they have: layer1 is res2. A convolution with a group norm
# is a pair of modules, 0 and 1.
_BODY = r"backbone\.body\."
_OUT = "backbone.bottom_up."
_HEAD = r"roi_heads\.(?:box|mask)\."
_PLACES = (
    (rf"{_BODY}stem\.conv1\.(?P<rest>\w+)", _OUT + "stem.conv1.{rest}"),
    (rf"{_BODY}stem\.bn1\.(?P<rest>\w+)", _OUT + "stem.conv1.norm.{rest}"),
    (
        rf"{_BODY}layer(?P<n>\d)\.(?P<block>\d+)\.conv(?P<k>\d)\.(?P<rest>\w+)",
        _OUT + "res{after}.{block}.conv{k}.{rest}",
    ),
    (
        rf"{_BODY}layer(?P<n>\d)\.(?P<block>\d+)\.bn(?P<k>\d)\.(?P<rest>\w+)",
        _OUT + "res{after}.{block}.conv{k}.norm.{rest}",
    ),
    (
        rf"{_BODY}layer(?P<n>\d)\.(?P<block>\d+)\.downsample\.0\.(?P<rest>\w+)",
        _OUT + "res{after}.{block}.shortcut.{rest}",
    ),
    (
        rf"{_BODY}layer(?P<n>\d)\.(?P<block>\d+)\.downsample\.1\.(?P<rest>\w+)",
        _OUT + "res{after}.{block}.shortcut.norm.{rest}",
    ),
    (r"backbone\.fpn\.fpn_inner(?P<n>\d)(\.0)?\.(?P<rest>weight|bias)", "backbone.fpn_lateral{after}.{rest}"),
    (r"backbone\.fpn\.fpn_inner(?P<n>\d)\.1\.(?P<rest>\w+)", "backbone.fpn_lateral{after}.norm.{rest}"),
    (r"backbone\.fpn\.fpn_layer(?P<n>\d)(\.0)?\.(?P<rest>weight|bias)", "backbone.fpn_output{after}.{rest}"),
    (r"backbone\.fpn\.fpn_layer(?P<n>\d)\.1\.(?P<rest>\w+)", "backbone.fpn_output{after}.norm.{rest}"),
    (r"rpn\.head\.conv\.(?P<rest>\w+)", "proposal_generator.rpn_head.conv.{rest}"),
    (r"rpn\.head\.cls_logits\.(?P<rest>\w+)", "proposal_generator.rpn_head.objectness_logits.{rest}"),
    (r"rpn\.head\.bbox_pred\.(?P<rest>\w+)", "proposal_generator.rpn_head.anchor_deltas.{rest}"),
    (rf"{_HEAD}feature_extractor\.fc6\.(?P<rest>\w+)", "roi_heads.box_head.fc1.{rest}"),
    (rf"{_HEAD}feature_extractor\.fc7\.(?P<rest>\w+)", "roi_heads.box_head.fc2.{rest}"),
    (rf"{_HEAD}predictor\.cls_score\.(?P<rest>\w+)", "roi_heads.box_predictor.cls_score.{rest}"),
    (rf"{_HEAD}predictor\.bbox_pred\.(?P<rest>\w+)", "roi_heads.box_predictor.bbox_pred.{rest}"),
    (
        rf"{_HEAD}feature_extractor\.mask_fcn(?P<n>\d)(\.0)?\.(?P<rest>weight|bias)",
        "roi_heads.mask_head.mask_fcn{n}.{rest}",
    ),
    (rf"{_HEAD}feature_extractor\.mask_fcn(?P<n>\d)\.1\.(?P<rest>\w+)", "roi_heads.mask_head.mask_fcn{n}.norm.{rest}"),
    (rf"{_HEAD}predictor\.conv5_mask\.(?P<rest>\w+)", "roi_heads.mask_head.deconv.{rest}"),
    (rf"{_HEAD}predictor\.mask_fcn_logits\.(?P<rest>\w+)", "roi_heads.mask_head.predictor.{rest}"),
)


def recognises(content: Content) -> bool:
    """Whether the tensors' names are those of a two-stage detector of maskrcnn-benchmark."""
    return content.tensors.keys() >= _MARKS


def convert(content: Content, settings: Settings | None) -> Converted:
    """The detector in our terms.

    Errors: `InputError` for tensors of parts that are not read, and for `settings` of another framework.
    """
    if settings is not None:
        expected = "fields of maskrcnn's own config"
        raise InputError("is not read for maskrcnn-benchmark's weights", field=settings.origin, expected=expected)
    state = _detectron2_state(content.tensors)
    theirs = detectron2.convert(replace(content, tensors=state), Settings(SETTINGS, "maskrcnn-benchmark's defaults"))
    config = as_detectron(theirs.config)
    config = replace(
        config,
        preprocess=replace(config.preprocess, resampling="pillow", rounding="floor"),
        backbone=theirs.config.backbone,  # its frozen norms add to variances, as Detectron2's do
        rpn=replace(config.own_rpn, cut_to="picture"),
    )
    return Converted(config, theirs.state, assumed_of(config, "maskrcnn-benchmark's configs"), "maskrcnn-benchmark")


def _detectron2_state(tensors: State) -> dict[str, Tensor]:
    """Tensors under Detectron2's names and in its order of classes. Errors: `InputError` for those without a place."""
    placed = {name: _their_name(name) for name in tensors if not re.fullmatch(_NO_WEIGHTS, name)}
    if strange := [name for name, place in placed.items() if place is None]:
        found, expected = f"{len(strange)}: {', '.join(strange[:3])}", "a Faster or Mask R-CNN with FPN"
        raise InputError("holds tensors of another network", field="tensors", found=found, expected=expected)
    return {place: rows_of(place, tensors[name]) for name, place in placed.items() if place is not None}


def _their_name(name: str) -> str | None:
    """Detectron2's name of a tensor."""
    for pattern, place in _PLACES:
        if match := re.fullmatch(pattern, name):
            parts = match.groupdict()
            return place.format(**{**parts, "after": int(parts.get("n") or 0) + 1})
    return None
