"""What Matterport's `Config` says, as a config of ours: each field of its that changes what is found, and its default.

Its ways that no field of its names are here too: the square with the picture in the middle and black around it, pixels
resized as scikit-image does it, corners of boxes in the centres of pixels, proposals of all levels in one NMS, pooling
by crop and resize, one class for each RoI, boxes in whole pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig, DetectionConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig
from maskrcnn.weights.class_names import coco
from maskrcnn.weights.content import Settings
from maskrcnn.weights.facts import Facts

EPS = 1e-3  # of batch norms: Keras's default
DIVISOR = 64  # px, the stride of p6

DEFAULTS: Mapping[str, Any] = {  # of the fields that are read; `Config` of mrcnn/config.py
    "BACKBONE_STRIDES": (4, 8, 16, 32, 64),
    "RPN_ANCHOR_SCALES": (32, 64, 128, 256, 512),
    "RPN_ANCHOR_RATIOS": (0.5, 1, 2),
    "RPN_ANCHOR_STRIDE": 1,
    "RPN_NMS_THRESHOLD": 0.7,
    "PRE_NMS_LIMIT": 6000,
    "POST_NMS_ROIS_INFERENCE": 1000,
    "RPN_BBOX_STD_DEV": (0.1, 0.1, 0.2, 0.2),
    "BBOX_STD_DEV": (0.1, 0.1, 0.2, 0.2),
    "IMAGE_RESIZE_MODE": "square",
    "IMAGE_MIN_DIM": 800,
    "IMAGE_MAX_DIM": 1024,
    "IMAGE_MIN_SCALE": 0.0,
    "MEAN_PIXEL": (123.7, 116.8, 103.9),
    "MASK_POOL_SIZE": 14,
    "DETECTION_MAX_INSTANCES": 100,
    "DETECTION_MIN_CONFIDENCE": 0.7,
    "DETECTION_NMS_THRESHOLD": 0.3,
}
_IN_WEIGHTS = {  # fields that have to be as the weights are
    "BACKBONE": "backbone",
    "NUM_CLASSES": "num_classes",
    "TOP_DOWN_PYRAMID_SIZE": "fpn_channels",
    "FPN_CLASSIF_FC_LAYERS_SIZE": "fc_channels",
    "POOL_SIZE": "pool_side",
}
_ONLY = {"BACKBONE_STRIDES": (4, 8, 16, 32, 64), "RPN_ANCHOR_STRIDE": 1, "IMAGE_CHANNEL_COUNT": 3}
_MODES = ("square", "pad64", "none")
_MAY_BE_NONE = ("IMAGE_MIN_DIM", "IMAGE_MAX_DIM", "IMAGE_MIN_SCALE", "DETECTION_MIN_CONFIDENCE")
_NAMES = "CLASS_NAMES"  # no field of theirs, but the list that their scripts keep beside it, "BG" first or without it


@dataclass(frozen=True)
class Shapes:
    """What the weights tell. num_classes counts background, as NUM_CLASSES does."""

    backbone: str
    fpn_channels: int
    rpn_channels: int
    anchors_per_cell: int
    pool_side: int
    fc_channels: int
    num_classes: int
    mask_convs: int
    mask_channels: int


def config_of(shapes: Shapes, settings: Settings | None) -> tuple[MaskRCNNConfig, tuple[str, ...]]:
    """The config of a detector of these shapes, and one line for each value that nothing told.

    Errors: `InputError` for settings that have no field of `Config`, for one that contradicts the weights, has a wrong
    kind or asks for what is not built here, and `InputErrors` for several.
    """
    given = dict(settings.values) if settings is not None else {}
    if settings is not None and not any(name in given for name in (*DEFAULTS, *_IN_WEIGHTS)):
        found, expected = ", ".join(map(str, list(given)[:4])), "fields of Matterport's Config, such as IMAGE_MAX_DIM"
        raise InputError("does not fit Matterport's weights", field=settings.origin, found=found, expected=expected)
    facts = Facts(settings)
    for field, name in _IN_WEIGHTS.items():
        facts.agree(field, getattr(shapes, name))
    for field, only in _ONLY.items():
        facts.only(field, only)
    _check(given, shapes, facts)
    if not given:
        for name, value in DEFAULTS.items():
            facts.assume(name, value, "Matterport's default")
    classes = _classes(given, shapes, facts)
    assumed = facts.finish()
    values = {name: _as(default, given.get(name, default)) for name, default in DEFAULTS.items()}
    return _config(values, shapes, classes), assumed


def _as(default: Any, value: Any) -> Any:
    """A whole number where the field wants one: YAML and JSON may have written 1024.0."""
    return int(value) if isinstance(default, int) and value is not None else value


def _config(values: Mapping[str, Any], shapes: Shapes, classes: Classes) -> MaskRCNNConfig:
    return MaskRCNNConfig(
        class_names=classes.names,
        category_ids=classes.category_ids,
        preprocess=_preprocess(values),
        backbone=BackboneConfig(name=shapes.backbone, norm="frozen", norm_eps=EPS, stride_in="1x1", pool_padding="end"),
        fpn=FPNConfig(channels=shapes.fpn_channels),
        rpn=RPNConfig(
            anchors=AnchorConfig(
                sizes=tuple((float(size),) for size in values["RPN_ANCHOR_SCALES"]),
                ratios=tuple(1 / ratio for ratio in values["RPN_ANCHOR_RATIOS"]),  # theirs: width / height
                corners="centres",
            ),
            channels=shapes.rpn_channels,
            delta_weights=_delta_weights(values["RPN_BBOX_STD_DEV"]),
            pre_nms_top_n=values["PRE_NMS_LIMIT"],
            post_nms_top_n=values["POST_NMS_ROIS_INFERENCE"],
            nms_iou=values["RPN_NMS_THRESHOLD"],
            min_size=0.0,
            rank_by="probabilities",
            levels_together=True,
            cut_to="padded",
        ),
        roi_pooler=RoIPoolerConfig(method="crop", nearest_level=True),
        box_head=BoxHeadConfig(
            side=shapes.pool_side,
            num_fcs=2,
            fc_channels=shapes.fc_channels,
            delta_weights=_delta_weights(values["BBOX_STD_DEV"]),
        ),
        mask_head=MaskHeadConfig(
            side=2 * values["MASK_POOL_SIZE"], num_convs=shapes.mask_convs, channels=shapes.mask_channels
        ),
        detection=DetectionConfig(
            score_threshold=values["DETECTION_MIN_CONFIDENCE"] or 0.0,
            nms_iou=values["DETECTION_NMS_THRESHOLD"],
            max_detections=values["DETECTION_MAX_INSTANCES"],
            min_size=0.0,
            best_class_only=True,
            whole_pixels=True,
        ),
    )


def _preprocess(values: Mapping[str, Any]) -> PreprocessConfig:
    mode, (red, green, blue) = values["IMAGE_RESIZE_MODE"], (value / 255 for value in values["MEAN_PIXEL"])
    resizes = mode != "none"
    return PreprocessConfig(
        shortest=(values["IMAGE_MIN_DIM"] or None) if resizes else None,
        longest=values["IMAGE_MAX_DIM"] if mode == "square" else None,
        min_scale=max(1.0, float(values["IMAGE_MIN_SCALE"] or 0)) if resizes else 0.0,
        resampling="skimage",
        rounding="even",
        mean=(red, green, blue),
        std=(1 / 255, 1 / 255, 1 / 255),
        divisor=DIVISOR,
        square=values["IMAGE_MAX_DIM"] if mode == "square" else None,
        place="centre",
        border="black",
    )


def _delta_weights(deviations: Any) -> tuple[float, float, float, float]:
    """Theirs are what (dy, dx, dh, dw) are multiplied with when decoded."""
    dy, dx, dh, dw = (1 / value for value in deviations)
    return dx, dy, dw, dh


# --- settings that do not fit -----------------------------------------------------------------------------------------


def _check(given: Mapping[str, Any], shapes: Shapes, facts: Facts) -> None:
    """Note a problem for each value that its field cannot have."""
    for field, default in DEFAULTS.items():
        value = given.get(field, default)
        expected = _expected(field, value, shapes)
        if expected is not None:
            facts.problem("impossible value", field, value, expected)
    if given.get("IMAGE_RESIZE_MODE", "square") == "square" and not facts.problems:
        side = given.get("IMAGE_MAX_DIM", DEFAULTS["IMAGE_MAX_DIM"])
        if not side or side % DIVISOR:
            facts.problem("impossible value", "IMAGE_MAX_DIM", side, f"a multiple of {DIVISOR} px")


def _expected(field: str, value: Any, shapes: Shapes) -> str | None:
    """What a field ought to be, or `None` where `value` is fine."""
    default = DEFAULTS[field]
    if isinstance(default, str):
        return None if value in _MODES else " or ".join(_MODES)
    if isinstance(default, tuple):
        count = shapes.anchors_per_cell if field == "RPN_ANCHOR_RATIOS" else len(default)
        numbers = isinstance(value, list | tuple) and all(_is_number(item) and item > 0 for item in value)
        return None if numbers and len(value) == count else f"{count} numbers above 0"
    if value is None and field in _MAY_BE_NONE:
        return None
    whole = isinstance(default, int)
    fits = _is_number(value) and value >= 0 and (not whole or value == int(value))
    return None if fits else "a whole number" if whole else "a number"


def _classes(given: Mapping[str, Any], shapes: Shapes, facts: Facts) -> Classes:
    count = shapes.num_classes - 1
    names = given.get(_NAMES)
    if names is None:
        source = "COCO's, for 81 classes" if _is_coco(shapes) else "numbers, since nothing names them"
        facts.assumed.append(f"class names: {source}")
        return coco() if _is_coco(shapes) else Classes.numbered(count)
    if not isinstance(names, list | tuple) or len(names) not in (count, count + 1):
        found = len(names) if isinstance(names, list | tuple) else names
        facts.problem(
            "does not fit the weights", _NAMES, found, f"{count} names, as the weights have, or BG and {count}"
        )
        return Classes.numbered(count)
    return Classes.named(str(name) for name in names[-count:])


def _is_coco(shapes: Shapes) -> bool:
    return shapes.num_classes == 81


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
