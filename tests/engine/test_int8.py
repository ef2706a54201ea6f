"""A detector in int8 stays close to the plain one, whatever its parts, and says where it cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from maskrcnn.engine.codes import Codes
from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.int8 import int8_is_faster, int8_works, quantised, ranges_of
from maskrcnn.engine.int8_conv import QuantisedConv
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig
from maskrcnn.model.cascade import CascadeConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.keypoint_head import KeypointHeadConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import nano, r50_c4
from maskrcnn.structures import DetectionBatch, Proposals

pytestmark = pytest.mark.skipif(not int8_works(), reason="this CPU or torch has no exact int8")

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
    "group norm": replace(_body(norm="group"), fpn=FPNConfig(channels=32, norm="group", extra_level=False)),
    "group norm in the pyramid": replace(SMALL, fpn=FPNConfig(channels=32, norm="group", extra_level=False)),
    "bottlenecks": _body(name="resnet26", options={"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 32)}),
    "groups": _body(name="regnetx_002", options={}),
    "swish and squeezes": _body(name="efficientnet_lite0", options={}),
    "pool at the end": _body(pool_padding="end"),
    "odd masks": replace(SMALL, mask_head=MaskHeadConfig(side=15, num_convs=1, channels=16)),
    "no layers before the masks": replace(SMALL, mask_head=MaskHeadConfig(num_convs=0, channels=64)),
    "a head of convolutions": replace(
        SMALL, box_head=BoxHeadConfig(num_convs=2, conv_channels=16, norm="batch", num_fcs=1, fc_channels=32)
    ),
    "convolutions alone": replace(SMALL, box_head=BoxHeadConfig(num_convs=1, conv_channels=16, num_fcs=0)),
    "a head without layers": replace(SMALL, box_head=BoxHeadConfig(num_fcs=0)),
    "cascade": replace(
        SMALL, box_head=BoxHeadConfig(class_agnostic=True, fc_channels=32), cascade=CascadeConfig(mask_heads=True)
    ),
    "keypoints": replace(SMALL, mask_head=None, keypoint_head=KeypointHeadConfig(num_convs=1, channels=16)),
    "one level": replace(
        r50_c4(NAMES, IDS),
        preprocess=SMALL.preprocess,
        backbone=replace(r50_c4(NAMES, IDS).backbone, name="resnet26", options={"layers": (1, 1, 1, 1)}),
        rpn=replace(r50_c4(NAMES, IDS).own_rpn, channels=32, post_nms_top_n=20),
        detection=replace(r50_c4(NAMES, IDS).detection, score_threshold=0.0, max_detections=5),
    ),
}


def lively(config: MaskRCNNConfig) -> MaskRCNN:
    """Random weights whose norms have statistics and scales of their own."""
    torch.manual_seed(0)
    model = MaskRCNN(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return model


def some_pictures(count: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    smooth = torch.rand(count, 3, 12, 10)
    return list((nn.functional.interpolate(smooth, size=(96, 80), mode="bilinear") * 255).to(torch.uint8))


def outputs(model: MaskRCNN) -> dict[str, Tensor]:
    """What the stages make of one picture, from the same boxes whatever the RPN says."""
    batch = model.preprocess(some_pictures()[:1])
    sizes = batch.image_sizes
    boxes = torch.rand(1, 12, 2).mul(40).repeat(1, 1, 2) + torch.tensor([0.0, 0.0, 60.0, 50.0])
    valid = torch.ones(1, 12, dtype=torch.bool)
    windows = model.config.windows(sizes, (batch.pixels.shape[2], batch.pixels.shape[3]))
    with torch.no_grad():
        features = model.features(batch.pixels)
        made = {"rpn": torch.cat(model.own_rpn(features, (batch.pixels.shape[2], batch.pixels.shape[3])).deltas, 1)}
        read, _ = model.read_boxes(features, Proposals(boxes, torch.zeros(1, 12), valid), windows)
        made |= {"classes": read.class_logits, "boxes": read.deltas}
        found = DetectionBatch(boxes, torch.ones(1, 12), torch.ones(1, 12, dtype=torch.int64), valid)
        masks, points = model.read_masks(features, found), model.read_keypoints(features, found)
    return made | {name: x for name, x in (("masks", masks), ("keypoints", points)) if x is not None}


def distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, over that of what is expected about its mean."""
    spread = (expected - expected.mean()).square().mean()
    return float(((found.float() - expected).square().mean() / spread).sqrt())


@pytest.mark.parametrize("variant", VARIANTS)
def test_close_to_the_plain_detector(variant: str) -> None:
    model = lively(VARIANTS[variant])
    torch.manual_seed(2)
    expected = outputs(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = quantised(model, ranges_of(model, some_pictures()))
    torch.manual_seed(2)
    found = outputs(network)
    assert found.keys() == expected.keys()
    far = {name: distance(found[name], expected[name]) for name in expected}
    assert max(far.values()) < (0.25 if variant == "swish and squeezes" else 0.15), far  # which is 16 blocks deep
    assert min(far.values()) > 0, "nothing was quantised"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    detections = network(some_pictures())
    assert all(d.boxes.isfinite().all() and d.boxes.dtype == torch.float32 for d in detections)


def test_codes_all_the_way() -> None:
    """In a detector of convolutions and batch norms every convolution is in int8, and no map is decoded between."""
    model = lively(SMALL)
    network = quantised(model, ranges_of(model, some_pictures()))
    body = network.backbone.body
    assert isinstance(body, fx.GraphModule)
    assert not any("decoded" in node.name for node in body.graph.nodes)
    assert not any(isinstance(module, FusedConv | nn.Conv2d) for module in network.modules())
    assert sum(isinstance(module, QuantisedConv) for module in network.modules()) == 16 + 3 + 3 + 8 + 2 + 3
    with torch.no_grad():
        features = network.features(torch.zeros(1, 3, 64, 64))
    assert {name: level.values.dtype for name, level in features.items() if isinstance(level, Codes)} == dict.fromkeys(
        ("p2", "p3", "p4", "p5"), torch.uint8
    )


def test_the_same_twice_and_from_ranges_written_down() -> None:
    import json

    model = lively(SMALL)
    ranges = ranges_of(model, some_pictures())
    assert ranges == ranges_of(model, some_pictures())
    written = {name: tuple(ends) for name, ends in json.loads(json.dumps(ranges)).items()}
    first, second = quantised(model, ranges)(some_pictures()), quantised(model, written)(some_pictures())
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores) and len(one) > 0
        assert one.masks is not None and other.masks is not None
        assert torch.equal(one.masks.probabilities, other.masks.probabilities)


def test_another_size_of_picture_and_several_at_once() -> None:
    model = lively(SMALL)
    network = quantised(model, ranges_of(model, some_pictures()))
    pictures = [some_pictures()[0], torch.randint(0, 256, (3, 50, 120), dtype=torch.uint8)]
    together = network(pictures)
    assert [found.size for found in together] == [(96, 80), (50, 120)]
    assert all(len(found) for found in together)


def test_no_detections() -> None:
    model = lively(replace(SMALL, detection=replace(SMALL.detection, score_threshold=1.0)))
    network = quantised(model, ranges_of(model, some_pictures()))
    assert [len(found) for found in network(some_pictures())] == [0, 0, 0]


def test_a_body_that_cannot_be_recorded_stays_in_numbers() -> None:
    class Fickle(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, pixels: Tensor) -> Tensor:
            return self.body(pixels if bool(pixels.sum() > 0) else -pixels)

    model = lively(SMALL)
    model.backbone.body = Fickle(model.backbone.body)  # type: ignore[assignment]
    torch.manual_seed(2)
    expected = outputs(model)
    network = quantised(model, ranges_of(model, some_pictures()))
    assert isinstance(network.backbone.body, Fickle)
    torch.manual_seed(2)
    found = outputs(network)
    assert max(distance(found[name], expected[name]) for name in expected) < 0.15


def test_an_answer_whether_it_is_faster() -> None:
    assert int8_is_faster() in (True, False)


def test_a_plain_net_of_convolutions() -> None:
    model = lively(replace(SMALL, backbone=BackboneConfig(name="vgg11", norm="batch", frozen_stages=0)))
    torch.manual_seed(2)
    expected = outputs(model)
    network = quantised(model, ranges_of(model, some_pictures()))
    torch.manual_seed(2)
    assert max(distance(x, expected[name]) for name, x in outputs(network).items()) < 0.15
