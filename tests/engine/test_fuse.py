"""A fused detector answers as the plain one does, whatever its parts; the plain one stays as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.fuse import fused
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.keypoint_head import KeypointHeadConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import drawings, nano
from maskrcnn.structures import DetectionBatch

NAMES, IDS = ("a", "b", "c"), (1, 2, 3)
BASE = nano(NAMES, IDS)
SMALL = replace(
    BASE,
    rpn=replace(BASE.own_rpn, post_nms_top_n=40),
    detection=replace(BASE.detection, score_threshold=0.0, max_detections=15),
)


def _body(**changes: object) -> MaskRCNNConfig:
    return replace(SMALL, backbone=replace(SMALL.backbone, **changes))


VARIANTS = {
    "nano": SMALL,
    "norms everywhere": replace(
        SMALL, fpn=drawings(NAMES, IDS).fpn, mask_head=MaskHeadConfig(num_convs=2, channels=16, norm="batch")
    ),
    "group norm": replace(_body(norm="group"), fpn=FPNConfig(channels=32, norm="group", extra_level=False)),
    "frozen norm": _body(norm="frozen"),
    "bottlenecks": _body(name="resnet26", options={"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 32)}),
    "stride in 1x1": _body(
        name="resnet26", options={"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 32)}, stride_in="1x1"
    ),
    "groups": _body(name="regnetx_002", options={}),
    "swish and squeezes": _body(name="efficientnet_lite0", options={}),
    "attention": _body(name="resnet18", options={"layers": (1, 1, 1, 1), "block_args": {"attn_layer": "se"}}),
    "boxes only": replace(SMALL, mask_head=None),
    "odd masks": replace(SMALL, mask_head=MaskHeadConfig(side=15, num_convs=1, channels=16)),
    "one mask for all": replace(SMALL, mask_head=MaskHeadConfig(num_convs=1, channels=16, class_agnostic=True)),
    "competing classes": replace(SMALL, mask_head=MaskHeadConfig(num_convs=1, channels=16, classes="competing")),
    "masks by layers": replace(SMALL, mask_head=MaskHeadConfig(num_convs=1, channels=16, num_fcs=1, fc_channels=32)),
    "a head of convolutions": replace(
        SMALL, box_head=BoxHeadConfig(num_convs=2, conv_channels=16, norm="batch", num_fcs=1, fc_channels=32)
    ),
    "a head without layers": replace(SMALL, box_head=BoxHeadConfig(num_fcs=0)),
    "cascade": replace(
        SMALL, box_head=BoxHeadConfig(class_agnostic=True, fc_channels=32), cascade=CascadeConfig(mask_heads=True)
    ),
    "keypoints": replace(SMALL, mask_head=None, keypoint_head=KeypointHeadConfig(num_convs=1, channels=16)),
}


def lively(config: MaskRCNNConfig, seed: int = 0) -> MaskRCNN:
    """Random weights whose norms have statistics and scales of their own, and whose outputs spread."""
    torch.manual_seed(seed)
    model = MaskRCNN(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        for head in model.box_heads:
            head.classes.weight.normal_(0, 0.1)
            head.deltas.weight.normal_(0, 0.02)
    return model


def detect(model: MaskRCNN, size: tuple[int, int] = (128, 96)) -> DetectionBatch:
    torch.manual_seed(1)
    with torch.no_grad():
        return model.detect(torch.randn(1, 3, *size), torch.tensor([[float(side) for side in size]]))


def assert_same(found: DetectionBatch, expected: DetectionBatch, close: float = 1e-4) -> None:
    assert expected.valid.sum() > 3, "nothing to compare"
    torch.testing.assert_close(found.scores, expected.scores, atol=close, rtol=close)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=100 * close, rtol=close)
    for name in ("mask_logits", "keypoint_logits"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=10 * close, rtol=10 * close)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_answers_of_the_plain_detector(variant: str) -> None:
    model = lively(VARIANTS[variant])
    expected = detect(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = fused(model)
    assert_same(detect(network), expected)
    assert_same(detect(network, (64, 160)), detect(model, (64, 160)))
    assert_same(detect(model), expected, close=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_nothing_but_fused_convolutions_is_left() -> None:
    network = fused(lively(VARIANTS["norms everywhere"]))
    left = [
        name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU)
    ]
    assert left == []
    # 2 in each of 8 blocks, 3 in the stem, 3 shortcuts; 8 of the pyramid, 2 of the RPN, 2 + 1 of the mask head
    assert sum(isinstance(module, FusedConv) for module in network.modules()) == 16 + 3 + 3 + 8 + 2 + 3


def test_weights_without_a_norm_are_shared() -> None:
    model = lively(SMALL)
    network = fused(model)
    assert model.fpn is not None and network.fpn is not None
    assert network.fpn.output["p2"].weight.data_ptr() == model.fpn.output["p2"].conv.weight.data_ptr()


def test_a_body_that_cannot_be_recorded_is_taken_as_it_is() -> None:
    class Fickle(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, pixels: Tensor) -> Tensor:
            return self.body(pixels if bool(pixels.sum() > 0) else -pixels)

    model = lively(SMALL)
    model.backbone.body = Fickle(model.backbone.body)  # type: ignore[assignment]
    network = fused(model)
    assert isinstance(network.backbone.body, Fickle)
    assert_same(detect(network), detect(model))


def test_no_detections() -> None:
    model = lively(replace(SMALL, detection=replace(SMALL.detection, score_threshold=1.0)))
    network = fused(model)
    with torch.no_grad():
        found = network.detect(torch.zeros(1, 3, 64, 64), torch.tensor([[64.0, 64.0]]), drop_empty=True)
    assert not found.valid.any() and found.mask_logits is not None and not found.mask_logits.any()


def test_the_stem_of_zeros_is_no_special_case() -> None:
    """A plain net of convolutions and ReLU without norm, from timm's VGG."""
    config = replace(SMALL, backbone=BackboneConfig(name="vgg11", norm="batch", frozen_stages=0))
    model = lively(config)
    assert_same(detect(fused(model)), detect(model))
