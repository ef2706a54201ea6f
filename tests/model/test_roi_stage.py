"""The body's last stage, cut off and run on RoIs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import Backbone, BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.roi_stage import RoIStage

BODY = BackboneConfig(
    name="resnet26",  # bottlenecks
    options={"layers": (1, 1, 1, 2), "channels": (8, 12, 16, 24), "stem_type": "deep", "stem_width": 4},
    norm="batch",
    frozen_stages=0,
)


def config_of(tiny_config: MaskRCNNConfig, body: BackboneConfig) -> MaskRCNNConfig:
    return replace(
        tiny_config,
        backbone=body,
        fpn=None,
        roi_stage=True,
        rpn=replace(tiny_config.rpn, anchors=AnchorConfig(sizes=((8, 16, 32),))),
        box_head=BoxHeadConfig(num_fcs=0),
        mask_head=MaskHeadConfig(side=14, num_convs=0, channels=8),
    )


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
@torch.no_grad()
def test_both_parts_together_are_the_whole_body(stride_in: str, norm: str) -> None:
    config = replace(BODY, stride_in=stride_in, norm=norm)  # type: ignore[arg-type]
    whole = Backbone(config).eval()
    front, stage = Backbone(replace(config, levels=("c4",))).eval(), RoIStage(config).eval()
    state = whole.state_dict()
    for value in state.values():  # nothing stays at the value it began with
        value.copy_(torch.rand_like(value) + 0.5 if value.is_floating_point() else value)
    front.load_state_dict({name: value for name, value in state.items() if "layer4" not in name})
    stage.load_state_dict({name.replace("body.layer4", "blocks"): state[name] for name in state if "layer4" in name})
    pixels = torch.randn(2, 3, 64, 96)
    maps = front(pixels)
    assert list(maps) == ["c4"] and maps["c4"].shape[2:] == (4, 6)
    found = stage(maps["c4"])
    assert torch.equal(found, whole(pixels)["c5"])
    assert found.shape[1] == stage.channels == whole.channels["c5"]


@torch.no_grad()
def test_a_detector_without_pyramid(tiny_config: MaskRCNNConfig) -> None:
    model = MaskRCNN(config_of(tiny_config, replace(BODY, levels=("c4",)))).eval()
    assert model.box_pooler.side == 14 and model.mask_pooler is not None and model.mask_pooler.side == 14
    batch = model.preprocess([torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8) for _ in range(2)])
    found = model.detect(batch.pixels, batch.image_sizes)
    dropped = model.detect(batch.pixels, batch.image_sizes, drop_empty=True)
    assert found.mask_logits is not None and found.mask_logits.shape[2:] == (14, 14)
    assert torch.equal(found.valid, dropped.valid) and found.valid.any()
    assert torch.allclose(found.boxes, dropped.boxes, atol=1e-4)


@torch.no_grad()
def test_the_box_head_reads_the_mean(tiny_config: MaskRCNNConfig) -> None:
    model = MaskRCNN(config_of(tiny_config, replace(BODY, levels=("c4",)))).eval()
    maps = torch.randn(3, model.box_head.classes.in_features, 7, 7)
    expected = model.box_head.classes(maps.flatten(2).mean(dim=2))
    assert torch.allclose(model.box_head(maps).class_logits, expected, atol=1e-6)


def test_impossible_configs(tiny_config: MaskRCNNConfig) -> None:
    with pytest.raises(InputError, match=r"MaskRCNNConfig\.roi_stage: impossible value; .*hands on c4 alone"):
        config_of(tiny_config, replace(BODY, levels=("c5",)))
    with pytest.raises(InputError, match=r"BackboneConfig\.levels: .*one level, where there is no pyramid"):
        config_of(tiny_config, BODY)
    with pytest.raises(InputError, match=r"BackboneConfig\.levels: .*of which the pyramid is made"):
        replace(tiny_config, backbone=replace(BODY, levels=("c5",)))
    with pytest.raises(InputError, match=r"BackboneConfig\.dilate_c5: .*where there is a pyramid"):
        replace(tiny_config, backbone=replace(BODY, dilate_c5=True))
    with pytest.raises(InputError, match="roi_stage: does not fit this network; found convnext_atto"):
        RoIStage(BackboneConfig(name="convnext_atto"))
