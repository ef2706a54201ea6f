"""maskrcnn-benchmark's tensors: each back in its place, its conventions, and what is refused.

The framework itself is not run anywhere: the names are those of its source, written out here once more.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.weights import detectron1
from maskrcnn.weights.content import Content, Settings
from maskrcnn.weights.maskrcnn_benchmark import convert, recognises
from maskrcnn.weights.opening import open_weights

K = 2
NORM = ("weight", "bias", "running_mean", "running_var")


def state_of(*, masks: bool = True, gn: bool = False) -> dict[str, Tensor]:
    """Names and shapes of `e2e_mask_rcnn_R_50_FPN`, values that tell the tensors apart."""
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        state[name] = torch.full(shape, float(len(state) + 1))

    def norm(name: str, channels: int) -> None:
        for kind in NORM[: 2 if gn else 4]:
            add(f"{name}.{kind}", channels)

    def conv(name: str, *shape: int, with_norm: bool = False) -> None:
        add(f"{name}{'.0' if with_norm else ''}.weight", *shape)
        if with_norm:
            norm(f"{name}.1", shape[0])
        else:
            add(f"{name}.bias", shape[0])

    add("backbone.body.stem.conv1.weight", 64, 3, 7, 7)
    norm("backbone.body.stem.bn1", 64)
    before = 64
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        inner = 32 * 2**stage
        for block in range(count):
            name = f"backbone.body.layer{stage}.{block}"
            if block == 0:
                add(f"{name}.downsample.0.weight", 4 * inner, before, 1, 1)
                norm(f"{name}.downsample.1", 4 * inner)
            for k, shape in enumerate(((inner, before, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)), start=1):
                add(f"{name}.conv{k}.weight", *shape)
                norm(f"{name}.bn{k}", shape[0])
            before = 4 * inner
        conv(f"backbone.fpn.fpn_inner{stage}", 256, before, 1, 1, with_norm=gn)
        conv(f"backbone.fpn.fpn_layer{stage}", 256, 256, 3, 3, with_norm=gn)
    for level in range(5):
        add(f"rpn.anchor_generator.cell_anchors.{level}", 3, 4)
    conv("rpn.head.conv", 256, 256, 3, 3)
    conv("rpn.head.cls_logits", 3, 256, 1, 1)
    conv("rpn.head.bbox_pred", 12, 256, 1, 1)
    conv("roi_heads.box.feature_extractor.fc6", 1024, 256 * 49)
    conv("roi_heads.box.feature_extractor.fc7", 1024, 1024)
    conv("roi_heads.box.predictor.cls_score", K + 1, 1024)
    conv("roi_heads.box.predictor.bbox_pred", 4 * (K + 1), 1024)
    if masks:
        for i in range(1, 5):
            conv(f"roi_heads.mask.feature_extractor.mask_fcn{i}", 256, 256, 3, 3, with_norm=gn)
        conv("roi_heads.mask.predictor.conv5_mask", 256, 256, 2, 2)
        conv("roi_heads.mask.predictor.mask_fcn_logits", K + 1, 256, 1, 1)
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return state_of()


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_every_tensor_has_its_place(state: dict[str, Tensor]) -> None:
    converted = convert(Content(state), None)
    with torch.device("meta"):
        assert shapes(converted.state) == shapes(MaskRCNN(converted.config).state_dict())
    places = {
        "backbone.body.stem.bn1.running_var": "backbone.body.bn1.running_var",
        "backbone.body.layer2.0.downsample.1.bias": "backbone.body.layer2.0.downsample.1.bias",
        "backbone.body.layer3.5.conv2.weight": "backbone.body.layer3.5.conv2.weight",
        "backbone.body.layer4.1.bn3.weight": "backbone.body.layer4.1.bn3.weight",
        "backbone.fpn.fpn_inner1.weight": "fpn.lateral.p2.conv.weight",
        "backbone.fpn.fpn_layer4.bias": "fpn.output.p5.conv.bias",
        "rpn.head.cls_logits.bias": "rpn.objectness.bias",
        "rpn.head.bbox_pred.weight": "rpn.deltas.weight",
        "roi_heads.box.feature_extractor.fc7.weight": "box_head.fcs.1.weight",
        "roi_heads.box.predictor.cls_score.bias": "box_head.classes.bias",
        "roi_heads.mask.feature_extractor.mask_fcn2.weight": "mask_head.convs.1.conv.weight",
        "roi_heads.mask.predictor.conv5_mask.weight": "mask_head.deconv.weight",
    }
    for theirs, ours in places.items():
        assert torch.equal(converted.state[ours], state[theirs]), theirs
    numbered = {"roi_heads.box.predictor.bbox_pred.bias": torch.arange(4.0 * (K + 1))}
    numbered["roi_heads.box.predictor.cls_score.bias"] = torch.arange(K + 1.0)
    rows = convert(Content(state | numbered), None).state
    assert rows["box_head.deltas.bias"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert rows["box_head.classes.bias"].tolist() == [0, 1, 2]  # background first on both sides


def test_its_conventions(state: dict[str, Tensor]) -> None:
    config = convert(Content(state), None).config
    assert (config.backbone.norm, config.backbone.norm_eps, config.backbone.stride_in) == ("frozen", 1e-5, "1x1")
    assert (config.preprocess.resampling, config.preprocess.channels) == ("pillow", "bgr")
    assert (config.rpn.anchors.centre, config.rpn.anchors.shapes, config.rpn.cut_to) == (0.5, "cell", "picture")
    assert (config.roi_pooler.aligned, config.roi_pooler.sampling_ratio, config.roi_pooler.extent) == (False, 2, -1)


def test_group_norm() -> None:
    state = state_of(gn=True)
    converted = convert(Content(state), None)
    assert (converted.config.backbone.norm, converted.config.fpn.norm) == ("group", "group")  # type: ignore[union-attr]
    with torch.device("meta"):
        assert shapes(converted.state) == shapes(MaskRCNN(converted.config).state_dict())


def test_a_pth_file(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in state_of(masks=False).items()}
    torch.save({"model": state, "optimizer": {}, "iteration": 90000}, tmp_path / "model_final.pth")
    opened = open_weights(tmp_path / "model_final.pth")
    assert opened.family == "maskrcnn-benchmark" and opened.model.config.mask_head is None
    assert "class_names 1 to 2: the file has none" in opened.assumed
    assert "backbone.stride_in 1x1: as maskrcnn-benchmark's configs have for this network" in opened.assumed


def test_what_is_refused(state: dict[str, Tensor]) -> None:
    strange = {"roi_heads.box.feature_extractor.head.layer4.0.conv1.weight": torch.zeros(1)}
    with pytest.raises(
        InputError, match="holds tensors of another network; found 1: roi_heads.box.feature_extractor.h"
    ):
        convert(Content(state | strange), None)
    with pytest.raises(InputError, match="config.yaml: is not read for maskrcnn-benchmark's weights"):
        convert(Content(state), Settings({"MODEL": {}}, "config.yaml"))
    assert recognises(Content(state)) and not detectron1.recognises(Content(state))
    assert not recognises(Content(strange))
