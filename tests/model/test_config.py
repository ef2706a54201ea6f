"""Configs as JSON and back; every mistake names its field."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pytest

from maskrcnn.errors import InputError
from maskrcnn.losses.mask_rcnn_loss import LossConfig
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig, DetectionConfig
from maskrcnn.model.config import from_dict, require, to_dict
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import Limits, MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.presets import PRESETS
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    pair: tuple[int, float] = (1, 2.0)
    rows: tuple[tuple[int, ...], ...] = ()
    size: int | Literal["native"] | None = None
    kind: Literal["a", "b"] = "a"
    rate: float = 0.5
    flag: bool = False
    free: Any = None


def through_json(data: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(data))
    return read


@pytest.mark.parametrize("name", PRESETS)
def test_there_and_back_through_json(name: str) -> None:
    config = PRESETS[name](("nucleus", "debris"), (1, 7))
    back = from_dict(MaskRCNNConfig, through_json(to_dict(config)))
    assert back == config
    assert to_dict(back) == through_json(to_dict(config))


def test_there_and_back_of_what_presets_leave_out() -> None:
    options = {"layers": (1, (2, 3)), "act_layer": "relu", "drop_path_rate": 0.1, "list": [1, 2]}
    config = MaskRCNNConfig(
        class_names=("a",),
        category_ids=(4,),
        preprocess=PreprocessConfig(shortest=None, rounding="floor", stretch=0.0),
        backbone=BackboneConfig(options=options, norm="group"),
        mask_head=None,
        detection=DetectionConfig(mask_nms_iou=0.5),
    )
    assert from_dict(MaskRCNNConfig, through_json(to_dict(config))) == config
    loss = replace(LossConfig(), post_nms_top_n=7)
    assert from_dict(LossConfig, through_json(to_dict(loss))) == loss


def test_fields_left_out_keep_their_defaults() -> None:
    assert from_dict(Outer, {"name": "x"}) == Outer(name="x")
    assert from_dict(Outer, {"name": "x", "inner": {}}) == Outer(name="x")


def test_values_of_every_kind() -> None:
    data = {
        "name": "x",
        "inner": {"width": 3},
        "maybe": {"width": 4},
        "pair": [5, 6],
        "rows": [[1], [], [2, 3]],
        "size": "native",
        "kind": "b",
        "rate": 1,
        "flag": True,
        "free": [1],
    }
    read = from_dict(Outer, data)
    assert read == Outer(
        name="x",
        inner=Inner(width=3),
        maybe=Inner(width=4),
        pair=(5, 6.0),
        rows=((1,), (), (2, 3)),
        size="native",
        kind="b",
        rate=1.0,
        flag=True,
        free=[1],
    )
    assert isinstance(read.rate, float) and isinstance(read.pair[1], float)
    assert from_dict(Outer, {"name": "x", "size": 5}).size == 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "Outer: not a config"),
        ({}, "Outer: .*'name'"),
        ({"name": "x", "nmae": 1, "z": 2}, "Outer: unknown field; found nmae, z; expected .*name"),
        ({"name": "x", "inner": {"widht": 1}}, r"Outer\.inner: unknown field; found widht; expected width"),
        ({"name": "x", "inner": 3}, r"Outer\.inner: not a config; found 3"),
        ({"name": 3}, r"Outer\.name: wrong type; found 3; expected text"),
        (
            {"name": "x", "inner": {"width": 1.5}},
            r"Outer\.inner\.width: wrong type; found 1\.5; expected a whole number",
        ),
        ({"name": "x", "maybe": {"width": True}}, r"Outer\.maybe\.width: wrong type; found True"),
        ({"name": "x", "pair": [1]}, r"Outer\.pair: wrong type; found \[1\]; expected a list of 2"),
        ({"name": "x", "pair": [1, "2"]}, r"Outer\.pair\[1\]: wrong type; found '2'; expected a finite number"),
        ({"name": "x", "rows": [[1], 2]}, r"Outer\.rows\[1\]: wrong type; found 2; expected a list"),
        ({"name": "x", "rows": [[1], [2, None]]}, r"Outer\.rows\[1\]\[1\]: wrong type; found None"),
        ({"name": "x", "size": "large"}, r"Outer\.size: wrong type; found 'large'; expected 'native'"),
        ({"name": "x", "kind": "c"}, r"Outer\.kind: wrong type; found 'c'; expected 'a' or 'b'"),
        ({"name": "x", "rate": True}, r"Outer\.rate: wrong type; found True; expected a finite number"),
        ({"name": "x", "flag": 1}, r"Outer\.flag: wrong type; found 1; expected true or false"),
    ],
)
def test_wrong_fields_and_types_are_named(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_dict(Outer, data)


NAN = float("nan")


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (PreprocessConfig, "shortest", 0),
        (PreprocessConfig, "longest", 0),
        (PreprocessConfig, "scale", 0.0),
        (PreprocessConfig, "scale", NAN),
        (PreprocessConfig, "stretch", 0.5),
        (PreprocessConfig, "std", (0.2, 0.0, 0.2)),
        (PreprocessConfig, "divisor", 0),
        (BackboneConfig, "frozen_stages", 6),
        (BackboneConfig, "frozen_stages", -1),
        (FPNConfig, "channels", 0),
        (AnchorConfig, "sizes", ()),
        (AnchorConfig, "sizes", ((8.0,), ())),
        (AnchorConfig, "sizes", ((8.0,), (-1.0,))),
        (AnchorConfig, "sizes", ((8.0,), (1.0, 2.0))),
        (AnchorConfig, "ratios", ()),
        (AnchorConfig, "ratios", (1.0, 0.0)),
        (RPNConfig, "conv_depth", 0),
        (RPNConfig, "pre_nms_top_n", 0),
        (RPNConfig, "post_nms_top_n", 0),
        (RPNConfig, "nms_iou", 1.1),
        (RoIPoolerConfig, "sampling_ratio", -1),
        (RoIPoolerConfig, "canonical_size", 0.0),
        (BoxHeadConfig, "side", 0),
        (BoxHeadConfig, "num_convs", -1),
        (BoxHeadConfig, "num_fcs", -1),
        (BoxHeadConfig, "delta_weights", (1.0, 1.0, 0.0, 1.0)),
        (DetectionConfig, "score_threshold", -0.1),
        (DetectionConfig, "nms_iou", NAN),
        (DetectionConfig, "max_detections", 0),
        (DetectionConfig, "mask_nms_iou", 2.0),
        (DetectionConfig, "mask_threshold", 0.0),
        (MaskHeadConfig, "side", 2),
        (MaskHeadConfig, "num_convs", -1),
        (MaskHeadConfig, "channels", 0),
        (Limits, "score_threshold", 1.5),
        (Limits, "score_threshold", "high"),
        (Limits, "nms_iou", True),
        (Limits, "mask_nms_iou", NAN),
        (Limits, "max_detections", 0),
        (Limits, "max_detections", 2.5),
        (Limits, "max_detections", 10**20),
        (Limits, "proposals", -1),
        (Limits, "proposals", True),
        (Limits, "proposals", 2**31),
        (Limits, "nms_iou", 10**400),
        (Limits, "size", 1 << 16),
        (Limits, "class_agnostic_nms", 1),
        (Limits, "size", 0),
        (Limits, "size", "large"),
        (Limits, "size", 100.0),
    ],
)
def test_impossible_values_are_named(config: type, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{config.__name__}\.{name}: impossible value; found "):
        config(**{name: value})


@pytest.mark.parametrize(
    ("names", "ids", "message"),
    [
        ((), (), r"MaskRCNNConfig\.class_names: impossible value; found \(\); expected at least one class"),
        (("a", "b"), (1,), r"MaskRCNNConfig\.category_ids: impossible value; found \(1,\); expected 2 ids"),
        (("a", "a"), (1, 2), r"MaskRCNNConfig\.class_names: impossible value; found \('a', 'a'\); expected each only"),
        (("a", "b"), (7, 7), r"MaskRCNNConfig\.category_ids: impossible value; found \(7, 7\); expected each only"),
    ],
)
def test_classes_without_ids(names: tuple[str, ...], ids: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskRCNNConfig(class_names=names, category_ids=ids)


def test_numbers_of_numpy_become_pythons() -> None:
    limits = Limits(nms_iou=np.float32(0.5), size=np.int64(64), class_agnostic_nms=np.bool_(True))  # type: ignore[arg-type]
    assert limits == Limits(nms_iou=0.5, size=64, class_agnostic_nms=True)
    pair = (np.int8(1), np.float64(2.5))
    given = {"name": "x", "rate": np.float32(0.25), "size": np.uint8(7), "flag": np.bool_(True), "pair": pair}
    made = from_dict(Outer, given)
    assert json.loads(json.dumps(to_dict(made))) == to_dict(made)
    assert made == Outer(name="x", rate=0.25, size=7, flag=True, pair=(1, 2.5))


def test_an_impossible_value_in_a_file_is_named_too() -> None:
    data = {"class_names": ["a"], "category_ids": [1], "rpn": {"nms_iou": 7}}
    with pytest.raises(InputError, match=r"RPNConfig\.nms_iou: impossible value; found 7\.0; expected 0 to 1"):
        from_dict(MaskRCNNConfig, data)


def test_require_says_nothing_of_what_is_right() -> None:
    require(True, Inner(), "width", "anything")
