"""Detectron1's blobs: each tensor back in its place, its anchors and boxes, and what is refused.

Detectron itself (Caffe2) is not run anywhere: the names are those of its source, written out here once more.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import maskrcnn
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.weights.content import Content, Settings
from maskrcnn.weights.detectron1 import convert, detectron2_state, recognises
from maskrcnn.weights.opening import open_weights

from .parity import PICTURES
from .seeded import seeded_state

K = 3
ROLES = [
    (r"bn_s$", "scale:0.5"),
    (r"(bn_b|_b)$", "bias:0.1"),
    (r"rpn_cls_logits.*_w$", "normal:0.05"),
    (r"(rpn_bbox_pred.*|bbox_pred)_w$", "normal:0.005"),
    (r"conv1_w$", "weight:0.02"),
    (r"_w$", "weight"),
]


def blob_shapes(blocks: tuple[int, ...] = (3, 4, 6, 3), masks: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `e2e_mask_rcnn_R-50-FPN`, as Detectron's ResNet.py, FPN.py and the heads make them."""
    shapes: dict[str, tuple[int, ...]] = {"conv1_w": (64, 3, 7, 7)}

    def affine(name: str, channels: int) -> None:
        shapes[f"{name}_s"] = shapes[f"{name}_b"] = (channels,)

    def conv(name: str, *shape: int) -> None:
        shapes[f"{name}_w"], shapes[f"{name}_b"] = shape, (shape[0],)

    affine("res_conv1_bn", 64)
    before = 64
    for stage, count in enumerate(blocks, start=2):
        inner = 64 * 2 ** (stage - 2)
        for block in range(count):
            name = f"res{stage}_{block}"
            sides = [("branch2a", inner, before, 1), ("branch2b", inner, inner, 3), ("branch2c", 4 * inner, inner, 1)]
            if block == 0:
                sides.append(("branch1", 4 * inner, before, 1))
            for branch, out, into, side in sides:
                shapes[f"{name}_{branch}_w"] = (out, into, side, side)
                affine(f"{name}_{branch}_bn", out)
            before = 4 * inner
        last = count - 1
        conv(f"fpn_inner_res{stage}_{last}_sum" + ("" if stage == 5 else "_lateral"), 256, before, 1, 1)
        conv(f"fpn_res{stage}_{last}_sum", 256, 256, 3, 3)
    conv("conv_rpn_fpn2", 256, 256, 3, 3)
    conv("rpn_cls_logits_fpn2", 3, 256, 1, 1)
    conv("rpn_bbox_pred_fpn2", 12, 256, 1, 1)
    conv("fc6", 1024, 256 * 49)
    conv("fc7", 1024, 1024)
    conv("cls_score", K + 1, 1024)
    conv("bbox_pred", 4 * (K + 1), 1024)
    if masks:
        for i in range(1, 5):
            conv(f"_[mask]_fcn{i}", 256, 256, 3, 3)
        conv("conv5_mask", 256, 256, 2, 2)
        conv("mask_fcn_logits", K + 1, 256, 1, 1)
    return shapes


@pytest.fixture(scope="module")
def blobs() -> dict[str, np.ndarray]:
    return seeded_state(blob_shapes(), ROLES)


def tensors(blobs: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(blob) for name, blob in blobs.items()}


def on_meta(**options: Any) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in blob_shapes(**options).items()}


def test_every_blob_has_its_place(blobs: dict[str, np.ndarray]) -> None:
    converted = convert(Content(tensors(blobs)), None)
    state = converted.state
    with torch.device("meta"):
        wanted = MaskRCNN(converted.config).state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in wanted.items()}
    places = {
        "conv1_w": "backbone.body.conv1.weight",
        "res_conv1_bn_b": "backbone.body.bn1.bias",
        "res2_0_branch1_bn_s": "backbone.body.layer1.0.downsample.1.weight",
        "res4_5_branch2a_w": "backbone.body.layer3.5.conv1.weight",
        "res5_2_branch2c_bn_s": "backbone.body.layer4.2.bn3.weight",
        "fpn_inner_res5_2_sum_w": "fpn.lateral.p5.conv.weight",
        "fpn_inner_res3_3_sum_lateral_b": "fpn.lateral.p3.conv.bias",
        "fpn_res2_2_sum_w": "fpn.output.p2.conv.weight",
        "conv_rpn_fpn2_w": "rpn.convs.0.weight",
        "rpn_cls_logits_fpn2_w": "rpn.objectness.weight",
        "rpn_bbox_pred_fpn2_b": "rpn.deltas.bias",
        "fc6_w": "box_head.fcs.0.weight",
        "fc7_b": "box_head.fcs.1.bias",
        "cls_score_w": "box_head.classes.weight",  # background is the first row on both sides
        "_[mask]_fcn4_w": "mask_head.convs.3.conv.weight",
        "conv5_mask_w": "mask_head.deconv.weight",
    }
    for theirs, ours in places.items():
        assert np.array_equal(state[ours].numpy(), blobs[theirs]), theirs
    assert np.array_equal(state["box_head.deltas.weight"].numpy(), blobs["bbox_pred_w"][4:])
    assert np.array_equal(state["mask_head.masks.bias"].numpy(), blobs["mask_fcn_logits_b"][1:])
    assert not state["backbone.body.bn1.running_mean"].any() and (state["backbone.body.bn1.running_var"] == 1).all()


def test_its_conventions() -> None:
    converted = convert(Content(on_meta(masks=False)), None)
    config = converted.config
    assert config.mask_head is None and config.class_names == ("1", "2", "3")
    assert (config.backbone.name, config.backbone.norm, config.backbone.norm_eps) == ("resnet50", "frozen", 0.0)
    assert (config.backbone.stride_in, config.preprocess.channels) == ("1x1", "bgr")
    assert (config.preprocess.resampling, config.preprocess.antialias) == ("torch", False)
    assert [round(255 * mean, 4) for mean in config.preprocess.mean] == [102.9801, 115.9465, 122.7717]
    assert (config.rpn.anchors.centre, config.rpn.anchors.shapes, config.rpn.cut_to) == (0.5, "cell", "padded")
    assert (config.roi_pooler.aligned, config.roi_pooler.sampling_ratio, config.roi_pooler.extent) == (False, 2, -1)
    assert (config.rpn.pre_nms_top_n, config.rpn.post_nms_top_n, config.detection.max_detections) == (1000, 1000, 100)
    assert converted.assumed[-1] == "class_names 1 to 3: the file has none"
    assert "backbone.stride_in 1x1: as Detectron's baselines have for this network" in converted.assumed
    assert convert(Content(on_meta(blocks=(3, 4, 23, 3))), None).config.backbone.name == "resnet101"


def test_norms_are_a_factor_and_an_offset(blobs: dict[str, np.ndarray]) -> None:
    converted = convert(Content(tensors(blobs)), None)
    model = MaskRCNN(converted.config).eval()
    model.load_state_dict(converted.state)
    values = torch.randn(1, 64, 5, 5)
    expected = values * torch.from_numpy(blobs["res_conv1_bn_s"])[:, None, None]
    expected = expected + torch.from_numpy(blobs["res_conv1_bn_b"])[:, None, None]
    torch.testing.assert_close(model.backbone.body.bn1(values), expected)


def test_a_pkl_file_detects(blobs: dict[str, np.ndarray], tmp_path: Path) -> None:
    leftovers = {
        "conv1_w_momentum": np.zeros(2, np.float32),
        "lr": np.zeros(1, np.float32),
        "fc1000_w": np.zeros((2, 2), np.float32),
        "pred_b": np.zeros(2, np.float32),
    }
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"blobs": blobs | leftovers, "cfg": "MODEL: {}\n"}, 2))
    opened = open_weights(tmp_path / "model_final.pkl", {"preprocess": {"shortest": 160, "longest": 256}})
    assert opened.family == "Detectron1"
    assert any(line.startswith("thresholds") for line in opened.assumed)
    detector = maskrcnn.load(tmp_path / "model_final.pkl", opened.model.config, device="cpu")
    found = detector.predict(PICTURES / "drawn_wide.png", score_threshold=0.0, max_detections=5, proposals=20)
    assert len(found) == 5 and found.masks is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rpn_cls_logits_w": (15, 1024, 1, 1)}, r"detectors without FPN \(C4\): not read from Detectron's files"),
        ({"kps_score_lowres_w": (512, 17, 4, 4)}, "keypoints: not read from Detectron's files"),
        ({"body_conv_fcn1_w": (2, 2)}, "holds blobs of another network; found 1: body_conv_fcn1_w; expected a Faster"),
    ],
)
def test_what_is_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    state = on_meta() | {name: torch.empty(shape) for name, shape in change.items()}
    assert recognises(Content(state))
    with pytest.raises(InputError, match=message):
        detectron2_state(state)


def test_settings_of_another_framework_are_refused() -> None:
    with pytest.raises(InputError, match="config.yaml: is not read for Detectron's weights"):
        convert(Content(on_meta()), Settings({"MODEL": {}}, "config.yaml"))


def test_what_is_not_its_own_is_not_recognised() -> None:
    assert not recognises(Content({"cls_score_w": torch.empty(1)}))
    assert not recognises(Content(replace(Content({}), tensors={"rpn_cls_logits_fpn2_w": torch.empty(1)}).tensors))
