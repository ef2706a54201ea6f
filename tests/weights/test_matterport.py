"""Matterport's checkpoints: the same answers as its own code gave, and what is told, assumed or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import maskrcnn
from maskrcnn.data.pictures import read_picture
from maskrcnn.errors import InputError
from maskrcnn.losses.mask_rcnn_loss import MaskRCNNLoss
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.structures import GtMasks, PolygonShape, Target
from maskrcnn.weights.class_names import coco
from maskrcnn.weights.content import Content, Settings
from maskrcnn.weights.matterport import convert, recognises, rename
from maskrcnn.weights.opening import open_weights

from . import matterport_fixture as fixtures
from . import parity


def slow_but(fast: str) -> list[Any]:
    return [name if name == fast else pytest.param(name, marks=pytest.mark.slow) for name in fixtures.names()]


@pytest.mark.parametrize("name", slow_but("r50"))
def test_finds_what_matterport_found(name: str, tmp_path: Path) -> None:
    fixture = fixtures.read(name)
    about = fixture.about
    state = fixtures.weights(about["tensors"], about["roles"], about["seed"])
    file = fixtures.write_keras_file(tmp_path / "weights", state)  # recognised by what it holds
    ours = open_weights(file, Settings(about["settings"], "settings"))
    assert ours.family == "Matterport"
    differences = fixtures.Differences()
    for picture, found in fixture.found.items():
        differences.add_picture(ours.model, read_picture(parity.PICTURES / f"{picture}.png"), found)
    assert differences.detections >= 100
    assert (differences.missing, differences.surplus) == (0, 0)
    assert differences.boxes < 0.05
    assert differences.scores < 1e-4
    assert differences.masks < 1e-3
    assert differences.whole <= 1
    assert differences.pixels <= 20


def test_the_fixtures_are_worth_comparing() -> None:
    """Sizes, classes and scores differ."""
    for name in fixtures.names():
        found = fixtures.read(name).found
        boxes, scores = (np.concatenate([p[what] for p in found.values()]) for what in ("boxes", "scores"))
        assert len({int(label) for p in found.values() for label in p["labels"]}) >= 2
        sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
        assert sides.max() > 100 and np.quantile(sides, 0.1) < 30  # of several levels
        assert scores.max() - scores.min() > 0.15


# --- names and shapes without numbers ---------------------------------------------------------------------------------


def empty(name: str = "r50") -> dict[str, Tensor]:
    return {path: torch.zeros(shape) for path, shape in fixtures.read(name).about["tensors"].items()}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Of an R50 with four classes, background among them."""
    return empty()


def config_of(tensors: dict[str, Tensor], **fields: Any) -> Any:
    return convert(Content(tensors), Settings(fields, "settings") if fields else None).config


def test_recognised_by_its_layers(tensors: dict[str, Tensor]) -> None:
    assert recognises(Content(tensors))
    assert not recognises(Content({name: x for name, x in tensors.items() if not name.startswith("rpn_model")}))
    assert not recognises(Content({}))
    assert not recognises(Content({"conv1/kernel:0": torch.zeros(1)}))


def test_defaults_are_those_of_its_config(tensors: dict[str, Tensor]) -> None:
    converted = convert(Content(tensors), None)
    config = converted.config
    assert config.preprocess.shortest == 800
    assert (config.preprocess.longest, config.preprocess.square) == (1024, 1024)
    assert config.preprocess.mean == pytest.approx((123.7 / 255, 116.8 / 255, 103.9 / 255))
    assert (config.backbone.name, config.backbone.norm_eps) == ("resnet50", 1e-3)
    assert config.rpn.anchors.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert config.rpn.anchors.ratios == (2.0, 1.0, 0.5)  # heights by widths
    assert (config.rpn.channels, config.rpn.pre_nms_top_n, config.rpn.post_nms_top_n) == (512, 6000, 1000)
    assert config.rpn.delta_weights == config.box_head.delta_weights == (10.0, 10.0, 5.0, 5.0)
    assert (config.detection.score_threshold, config.detection.nms_iou, config.detection.max_detections) == (
        0.7,
        0.3,
        100,
    )
    assert config.class_names == ("1", "2", "3")
    assert "DETECTION_MIN_CONFIDENCE 0.7: Matterport's default" in converted.assumed
    assert converted.assumed[-1] == "class names: numbers, since nothing names them"


def test_what_is_told_is_not_assumed(tensors: dict[str, Tensor]) -> None:
    converted = convert(Content(tensors), Settings({"IMAGE_MAX_DIM": 512, "CLASS_NAMES": ["BG", "a", "b", "c"]}, "x"))
    assert converted.assumed == ()
    assert converted.config.preprocess.square == 512
    assert converted.config.class_names == ("a", "b", "c")


def test_each_field_has_its_place(tensors: dict[str, Tensor]) -> None:
    config = config_of(
        tensors,
        RPN_ANCHOR_SCALES=[8, 16, 32, 64, 128],
        RPN_ANCHOR_RATIOS=[0.5, 1, 4],
        RPN_NMS_THRESHOLD=0.9,
        PRE_NMS_LIMIT=2000,
        POST_NMS_ROIS_INFERENCE=300,
        RPN_BBOX_STD_DEV=[0.1, 0.2, 0.25, 0.5],
        BBOX_STD_DEV=[0.2, 0.1, 0.5, 0.25],
        IMAGE_MIN_DIM=400,
        IMAGE_MAX_DIM=512,
        IMAGE_MIN_SCALE=2,
        MEAN_PIXEL=[51, 102, 153],
        MASK_POOL_SIZE=14,
        DETECTION_MAX_INSTANCES=7,
        DETECTION_MIN_CONFIDENCE=0,
        DETECTION_NMS_THRESHOLD=0.4,
    )
    assert config.rpn.anchors.sizes == ((8,), (16,), (32,), (64,), (128,))
    assert config.rpn.anchors.ratios == (2.0, 1.0, 0.25)
    assert (config.rpn.nms_iou, config.rpn.pre_nms_top_n, config.rpn.post_nms_top_n) == (0.9, 2000, 300)
    assert config.rpn.delta_weights == (5.0, 10.0, 2.0, 4.0)  # of dx dy dw dh; theirs begin with y
    assert config.box_head.delta_weights == (10.0, 5.0, 4.0, 2.0)
    assert (config.preprocess.shortest, config.preprocess.square, config.preprocess.min_scale) == (400, 512, 2.0)
    assert config.preprocess.mean == pytest.approx((0.2, 0.4, 0.6))
    assert (config.detection.score_threshold, config.detection.nms_iou, config.detection.max_detections) == (0, 0.4, 7)


@pytest.mark.parametrize(
    ("fields", "original", "resized", "padded"),
    [
        ({}, (480, 640), (768, 1024), (1024, 1024)),
        ({}, (900, 1000), (900, 1000), (1024, 1024)),  # never made smaller than it must be
        ({}, (2000, 1000), (1024, 512), (1024, 1024)),
        ({"IMAGE_MIN_SCALE": 2}, (450, 450), (900, 900), (1024, 1024)),
        ({"IMAGE_MIN_DIM": 0}, (300, 450), (300, 450), (1024, 1024)),
        ({"IMAGE_RESIZE_MODE": "pad64", "IMAGE_MIN_DIM": 512}, (256, 1000), (512, 2000), (512, 2048)),
        ({"IMAGE_RESIZE_MODE": "none"}, (128, 320), (128, 320), (128, 320)),
    ],
)
def test_ways_to_resize(
    tensors: dict[str, Tensor],
    fields: dict[str, Any],
    original: tuple[int, int],
    resized: tuple[int, int],
    padded: tuple[int, int],
) -> None:
    from maskrcnn.model.preprocess import Preprocess

    config = config_of(tensors, **{"IMAGE_MAX_DIM": 1024, **fields}).preprocess
    assert config.resized_size(original) == resized
    batch = Preprocess(config)([torch.zeros(3, *original, dtype=torch.uint8)])
    assert tuple(batch.pixels.shape[2:]) == padded


def test_coco_has_81_classes() -> None:
    config = convert(Content(empty("r101")), None).config
    assert config.backbone.name == "resnet101"
    assert (config.class_names, config.category_ids) == (coco().names, coco().category_ids)
    assert (config.class_names[0], config.class_names[79], config.category_ids[79]) == ("person", "toothbrush", 90)


# --- files that Keras wrote otherwise ---------------------------------------------------------------------------------


def test_a_file_of_a_training_keeps_its_anchors(tensors: dict[str, Tensor]) -> None:
    renamed = rename({**tensors, "anchors/Variable:0": torch.zeros(1, 25575, 4)})
    assert set(renamed) == set(rename(tensors)) == set(MaskRCNN(config_of(tensors)).state_dict())


def test_biases_vanish_in_the_norms_behind_them() -> None:
    tensors = empty()
    tensors["res3a_branch2b/res3a_branch2b/bias:0"] += 0.25
    tensors["bn3a_branch2b/bn3a_branch2b/moving_mean:0"] += 2
    tensors["mrcnn_class_conv2/mrcnn_class_conv2/kernel:0"] += 3
    tensors["mrcnn_class_conv2/mrcnn_class_conv2/bias:0"] += 0.5
    for kind, value in (("moving_mean", 1.5), ("moving_variance", 0.249), ("gamma", 2.0), ("beta", 7.0)):
        tensors[f"mrcnn_class_bn2/mrcnn_class_bn2/{kind}:0"] += value
    renamed = rename(tensors)
    assert renamed["backbone.body.layer2.0.bn2.running_mean"].eq(1.75).all()
    # (x + 0.5 - 1.5) / sqrt(0.249 + 0.001) * 2 + 7 = 4 x + 3
    torch.testing.assert_close(renamed["box_head.fcs.1.weight"], torch.full((1024, 1024), 12.0))
    torch.testing.assert_close(renamed["box_head.fcs.1.bias"], torch.full((1024,), 3.0))


def test_objectness_is_the_logit_of_an_object_less_that_of_background() -> None:
    tensors = empty()
    tensors["rpn_model/rpn_class_raw/bias:0"] = torch.tensor([1.0, 5.0, 2.0, 1.0, 0.0, 0.5])
    assert rename(tensors)["rpn.objectness.bias"].tolist() == [4.0, -1.0, 0.5]


def test_background_has_no_boxes_and_no_masks() -> None:
    tensors = empty()
    tensors["mrcnn_bbox_fc/mrcnn_bbox_fc/bias:0"] = torch.arange(16.0)
    tensors["mrcnn_mask/mrcnn_mask/bias:0"] = torch.arange(4.0)
    renamed = rename(tensors)
    assert renamed["box_head.deltas.bias"].tolist() == [5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14]  # dx dy dw dh
    assert renamed["mask_head.masks.bias"].tolist() == [1, 2, 3]


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"MODEL": {"MASK_ON": True}}, r"^x: does not fit Matterport's weights; found MODEL; expected fields of"),
        ({"NUM_CLASSES": 81}, "NUM_CLASSES: contradicts the weights; found 81; expected 4, as the weights have it"),
        ({"BACKBONE": "resnet101"}, "BACKBONE: contradicts the weights; found resnet101; expected resnet50"),
        ({"IMAGE_MAX_DIM": 1000}, "IMAGE_MAX_DIM: impossible value; found 1000; expected a multiple of 64 px"),
        ({"IMAGE_MAX_DIM": None}, "IMAGE_MAX_DIM: impossible value; found None; expected a multiple of 64 px"),
        ({"IMAGE_RESIZE_MODE": "crop"}, "IMAGE_RESIZE_MODE: impossible value; found crop; expected square or pad64"),
        ({"RPN_ANCHOR_RATIOS": [1]}, r"RPN_ANCHOR_RATIOS: impossible value; found \(1\); expected 3 numbers above 0"),
        ({"RPN_ANCHOR_SCALES": [8, 16]}, "RPN_ANCHOR_SCALES: .*expected 5 numbers above 0"),
        ({"BBOX_STD_DEV": [0, 1, 1, 1]}, "BBOX_STD_DEV: .*expected 4 numbers above 0"),
        ({"PRE_NMS_LIMIT": "many"}, "PRE_NMS_LIMIT: impossible value; found many; expected a whole number"),
        ({"PRE_NMS_LIMIT": None}, "PRE_NMS_LIMIT: impossible value; found None; expected a whole number"),
        ({"DETECTION_NMS_THRESHOLD": True}, "DETECTION_NMS_THRESHOLD: .*expected a number"),
        ({"RPN_ANCHOR_STRIDE": 2}, "RPN_ANCHOR_STRIDE: does not fit, or is not known here; found 2; expected 1"),
        ({"BACKBONE_STRIDES": [4, 8, 16, 32, 128]}, "BACKBONE_STRIDES: does not fit, or is not known here"),
        (
            {"IMAGE_CHANNEL_COUNT": 1, "IMAGE_MAX_DIM": 512},
            "IMAGE_CHANNEL_COUNT: does not fit, or is not known here; found 1",
        ),
        ({"IMAGE_MAX_DIM": 512, "CLASS_NAMES": ["a"]}, "CLASS_NAMES: does not fit the weights; found 1; expected 3"),
        ({"IMAGE_MAX_DIM": 512, "CLASS_NAMES": "abc"}, "CLASS_NAMES: does not fit the weights; found abc"),
        ({"IMAGE_MIN_DIM": -1, "NUM_CLASSES": 3}, r"do not fit \(2\): x: NUM_CLASSES: .* \| x: IMAGE_MIN_DIM: "),
    ],
)
def test_settings_that_do_not_fit(tensors: dict[str, Tensor], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        convert(Content(tensors), Settings(fields, "x"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"res4b_branch2a": None}, "unknown network"),
        ({"bn_conv1": None}, "bn_conv1/moving_mean: is missing; expected a tensor"),
        ({"mrcnn_mask_bn3": None}, "mrcnn_mask_bn3/moving_mean: is missing"),
        ({"fpn_p3": None}, r"fpn\.output\.p3\.conv\.bias"),
        ({"mrcnn_class_logits": torch.zeros(3)}, "mrcnn_class_logits/kernel: has a wrong shape; found .*2 dimensions"),
        (
            {"mrcnn_class_bn1": torch.zeros(5)},
            "mrcnn_class_bn1: does not fit the layer before it; found 5; expected 10",
        ),
        ({"dense_7": torch.zeros(5)}, "holds layers that Matterport's detector has not; found 1: dense_7/"),
    ],
)
def test_layers_that_do_not_fit(changes: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    tensors = empty()
    for layer, value in changes.items():
        names = [name for name in tensors if f"{layer}/" in name] or [f"{layer}/{layer}/kernel:0"]
        for name in names:
            tensors.pop(name, None)
            if value is not None:
                tensors[name] = value
    with pytest.raises(InputError, match=message) as caught:
        maskrcnn.load(fixtures.write_keras_file(tmp_path / "model.h5", {n: x.numpy() for n, x in tensors.items()}))
    assert "\n" not in str(caught.value) and "model.h5" in str(caught.value)


# --- learning ---------------------------------------------------------------------------------------------------------


def test_learns_from_where_it_is(tensors: dict[str, Tensor]) -> None:
    """A few steps with all of its ways: finite losses that go down, and a gradient for every weight."""
    torch.manual_seed(0)
    config = config_of(tensors, IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=128, RPN_ANCHOR_SCALES=[8, 16, 32, 64, 128])
    body = {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24), "stem_width": 8}
    small = replace(
        config,
        backbone=replace(config.backbone, name="resnet26", options=body, norm="group", frozen_stages=0),
        fpn=replace(config.fpn, channels=16),
        rpn=replace(config.rpn, channels=24, pre_nms_top_n=300, post_nms_top_n=100),
        roi_pooler=replace(config.roi_pooler, canonical_size=56.0),
        box_head=replace(config.box_head, fc_channels=32),
        mask_head=replace(config.mask_head, channels=8, num_convs=1),
    )
    model = MaskRCNN(small)
    ring = np.array([[10.0, 10.0], [50.0, 12.0], [40.0, 60.0], [12.0, 50.0]])
    target = Target(
        gt_boxes=torch.tensor([[10.0, 10.0, 50.0, 60.0]]),
        gt_labels=torch.tensor([2]),
        gt_masks=GtMasks((PolygonShape((ring,)),)),
        is_crowd=torch.tensor([False]),
        size=(70, 90),
    )
    batch = model.preprocess.batch([torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)])
    assert batch.pixels.shape == (1, 3, 128, 128)
    loss, optimizer = MaskRCNNLoss(model), torch.optim.Adam(model.parameters(), lr=3e-3)
    totals = []
    for _ in range(6):
        losses = loss(batch, [target])
        assert all(value.isfinite() for value in losses.values())
        optimizer.zero_grad()
        losses["total"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        totals.append(losses["total"].item())
    assert totals[-1] < 0.8 * totals[0]
