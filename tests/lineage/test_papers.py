"""The papers' detectors against a slow composition of their steps: loops, float64, nothing of the house but weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.lineage.papers import (
    fast_rcnn_loss,
    fast_rcnn_vgg16,
    faster_rcnn_loss,
    faster_rcnn_r101_c4,
    faster_rcnn_vgg16,
    faster_rcnn_zf,
    mask_rcnn_r101_c4,
)
from maskrcnn.losses.mask_rcnn_loss import MaskRCNNLoss
from maskrcnn.model.config import from_dict, to_dict
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.structures import Target

NAMES, IDS = ("cat", "dog", "hen"), (3, 5, 9)
SIZES, RATIOS = (24.0, 48.0, 80.0), (0.5, 1.0, 2.0)  # px, of anchors for small pictures
Box = list[float]


def small(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """For pictures of 60 x 80 px, which become 90 x 120, in 96 x 128; nothing but sizes and limits is changed."""
    rpn = config.rpn
    if rpn is not None:
        anchors = replace(rpn.anchors, sizes=(SIZES,))
        rpn = replace(rpn, anchors=anchors, pre_nms_top_n=200, post_nms_top_n=40, min_size=8.0)
    return replace(
        config,
        preprocess=replace(config.preprocess, shortest=90, longest=140),
        rpn=rpn,
        box_head=replace(config.box_head, fc_channels=24),
        detection=replace(config.detection, max_detections=30),
    )


@torch.no_grad()
def made(config: MaskRCNNConfig) -> MaskRCNN:
    """With layers spread so that boxes move and scores differ from place to place."""
    torch.manual_seed(0)
    model = MaskRCNN(small(config)).eval()
    features = model.features(model.preprocess([a_picture()]).pixels)
    if model.rpn is not None:
        hidden = features["c4"]
        for conv in model.rpn.convs:
            hidden = _spread(conv, hidden, 1.0).clamp(min=0)
        _spread(model.rpn.objectness, hidden, 2.0)
        _spread(model.rpn.deltas, hidden, 0.3)
    near, side = 60 * torch.rand(20, 2), 10 + 50 * torch.rand(20, 2)
    boxes = torch.cat([near, near + side], dim=1)
    hidden = model.pooled_for_boxes(features, boxes, torch.zeros(20, dtype=torch.int64)).flatten(1)
    for linear in model.box_head.fcs:
        hidden = _spread(linear, hidden, 1.0).clamp(min=0)
    _spread(model.box_head.classes, hidden, 1.5)
    _spread(model.box_head.deltas, hidden, 1.5)
    return model


def _spread(layer: nn.Module, x: Tensor, spread: float) -> Tensor:
    """Give each channel of what `layer` makes of x (N, C, ...) a mean of 0 and this spread; returns that."""
    assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
    nn.init.normal_(layer.weight)
    flat = layer(x).transpose(0, 1).flatten(1)  # a row for each channel
    factor = spread / flat.std(dim=1)
    layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_(-factor * flat.mean(dim=1))
    made_of_x: Tensor = layer(x)
    return made_of_x


def a_picture() -> Tensor:
    """(3, 60, 80) uint8: noise of several sizes, so that regions differ."""
    random = torch.Generator().manual_seed(4)
    coarse = torch.rand(1, 3, 6, 8, generator=random)
    fine = torch.rand(1, 3, 60, 80, generator=random)
    mixed = 0.7 * F.interpolate(coarse, (60, 80), mode="nearest") + 0.3 * fine
    return (mixed[0] * 255).to(torch.uint8)


# --- the steps of the papers, one after another -------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    box: Box
    score: float
    label: int


def slow_input(picture: Tensor) -> Tensor:
    """(1, 3, 96, 128): ImageNet's mean and spread taken off, 1.5 times as large, zeros right and below."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (picture.double() / 255 - mean[:, None, None]) / std[:, None, None]
    resized = F.interpolate(pixels[None], (90, 120), mode="bilinear", align_corners=False)
    return F.pad(resized, (0, 8, 0, 6))


def slow_vgg16(model: MaskRCNN, pixels: Tensor) -> Tensor:
    """(512, 6, 8): 13 convolutions of 3 x 3, each with its ReLU, and four poolings of 2 x 2 (Simonyan 2015, D)."""
    x = pixels
    convs = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)]
    for number, conv in enumerate(convs):
        assert conv.bias is not None
        x = F.max_pool2d(x, 2) if number in (2, 4, 7, 10) else x
        x = F.conv2d(x, conv.weight.double(), conv.bias.double(), padding=1).clamp(min=0)
    return x[0]


def slow_zf(model: MaskRCNN, pixels: Tensor) -> Tensor:
    """(256, 6, 8): layer by layer in tests/model/test_zf.py, here in float64."""
    body = MaskRCNN(model.config).double().eval()
    body.load_state_dict(model.state_dict())
    features: Tensor = body.backbone(pixels)["c4"][0]
    return features


def slow_rpn(model: MaskRCNN, features: Tensor) -> list[Box]:
    """Ren et al. 2015, 3.1 and 3.3: at most 40 boxes, best first, in the resized picture."""
    rpn = model.own_rpn
    conv = rpn.convs[0]
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    assert rpn.objectness.bias is not None and rpn.deltas.bias is not None
    hidden = F.conv2d(features[None], conv.weight.double(), conv.bias.double(), padding=1).clamp(min=0)
    logits = F.conv2d(hidden, rpn.objectness.weight.double(), rpn.objectness.bias.double())[0]  # (9, 6, 8)
    deltas = F.conv2d(hidden, rpn.deltas.weight.double(), rpn.deltas.bias.double())[0]  # (36, 6, 8)
    scored: list[tuple[float, Box]] = []
    for row, column in product(range(features.shape[1]), range(features.shape[2])):
        for k, (ratio, size) in enumerate(product(RATIOS, SIZES)):
            width, height = size / math.sqrt(ratio), size * math.sqrt(ratio)
            x, y = 16 * column + 8, 16 * row + 8
            anchor = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            moved = slow_decode(anchor, deltas[4 * k : 4 * k + 4, row, column].tolist(), (1, 1, 1, 1))
            scored.append((float(logits[k, row, column]), moved))
    best = sorted(scored, key=lambda pair: -pair[0])[:200]
    cut = [(score, slow_clip(box)) for score, box in best]
    large = [(score, box) for score, box in cut if box[2] - box[0] >= 8 and box[3] - box[1] >= 8]
    kept = slow_nms([box for _, box in large], 0.7)
    assert 40 < len(kept) < len(large) < len(scored)  # every limit has something to take away
    return [large[i][1] for i in kept[:40]]


def slow_decode(box: Box, deltas: list[float], weights: tuple[float, ...]) -> Box:
    """Girshick et al. 2014, appendix C; sides grow at most 62.5 times."""
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas, weights, strict=True))
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
    width, height = width * min(math.exp(dw), 62.5), height * min(math.exp(dh), 62.5)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def slow_clip(box: Box) -> Box:
    """To the resized picture, 90 x 120 px."""
    return [min(max(value, 0.0), limit) for value, limit in zip(box, (120.0, 90.0, 120.0, 90.0), strict=True)]


def slow_iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (both - width * height)


def slow_nms(boxes: list[Box], limit: float) -> list[int]:
    """Which boxes stay; they come best first."""
    kept: list[int] = []
    for i, box in enumerate(boxes):
        if all(slow_iou(box, boxes[j]) <= limit for j in kept):
            kept.append(i)
    return kept


def slow_roi_pool(features: Tensor, box: Box, side: int) -> Tensor:
    """(C, side, side): Girshick 2015, 2.1, corners rounded to cells, bins to whole cells."""
    x1, y1, x2, y2 = (math.floor(value / 16 + 0.5) for value in box)
    step_x, step_y = max(x2 - x1 + 1, 1) / side, max(y2 - y1 + 1, 1) / side
    pooled = features.new_zeros(features.shape[0], side, side)
    for row, column in product(range(side), range(side)):
        top, bottom = y1 + math.floor(row * step_y), y1 + math.ceil((row + 1) * step_y)
        left, right = x1 + math.floor(column * step_x), x1 + math.ceil((column + 1) * step_x)
        cells = features[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        if cells.numel():
            pooled[:, row, column] = cells.amax(dim=(1, 2))
    return pooled


def slow_head(model: MaskRCNN, features: Tensor, proposals: list[Box]) -> list[Found]:
    """Girshick 2015, 2 and 3: two fully connected layers, softmax, a box for each class, NMS in each class."""
    head, side = model.box_head, model.box_head.config.side
    of_class: dict[int, list[Found]] = {label: [] for label in range(1, len(NAMES) + 1)}
    for box in proposals:
        hidden = slow_roi_pool(features, box, side).flatten()
        for linear in head.fcs:
            assert isinstance(linear, nn.Linear)
            hidden = (linear.weight.double() @ hidden + linear.bias.double()).clamp(min=0)
        logits = (head.classes.weight.double() @ hidden + head.classes.bias.double()).tolist()
        deltas = (head.deltas.weight.double() @ hidden + head.deltas.bias.double()).tolist()
        for label, found in of_class.items():
            score = math.exp(logits[label]) / sum(map(math.exp, logits))
            moved = slow_clip(slow_decode(box, deltas[4 * label - 4 : 4 * label], (10, 10, 5, 5)))
            if score > 0.05 and min(moved[2] - moved[0], moved[3] - moved[1]) >= 0.01:
                found.append(Found([value / 1.5 for value in moved], score, label))
    kept = []
    for found in of_class.values():
        found.sort(key=lambda each: -each.score)
        apart = slow_nms([each.box for each in found], 0.3)
        assert 0 < len(apart) < len(found)
        kept += [found[i] for i in apart]
    return sorted(kept, key=lambda each: -each.score)[:30]


SLOW_BODIES: dict[str, Callable[[MaskRCNN, Tensor], Tensor]] = {"vgg16": slow_vgg16, "zf": slow_zf}


def require_equal(model: MaskRCNN, expected: list[Found], proposals: list[Tensor] | None) -> None:
    with torch.no_grad():
        (found,) = model([a_picture()], proposals=proposals)
    assert len(expected) > 10
    assert found.labels.tolist() == [each.label for each in expected] and len(set(found.labels.tolist())) == 3
    boxes = torch.tensor([each.box for each in expected])
    torch.testing.assert_close(found.boxes, boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, torch.tensor([each.score for each in expected]), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("config", [faster_rcnn_vgg16, faster_rcnn_zf])
def test_faster_rcnn_equals_the_steps_of_its_paper(config: Callable[..., MaskRCNNConfig]) -> None:
    model = made(config(NAMES, IDS))
    features = SLOW_BODIES[model.config.backbone.name](model, slow_input(a_picture()))
    proposals = slow_rpn(model, features)
    require_equal(model, slow_head(model, features, proposals), None)


@torch.no_grad()
def test_fast_rcnn_equals_the_steps_of_its_paper() -> None:
    model = made(fast_rcnn_vgg16(NAMES, IDS))
    assert model.rpn is None
    random = torch.Generator().manual_seed(1)
    near, side = torch.rand(40, 2, generator=random), torch.rand(40, 2, generator=random)
    near, side = near * torch.tensor([60.0, 40.0]), 4 + side * torch.tensor([50.0, 40.0])
    given = torch.cat([near, (near + side).minimum(torch.tensor([80.0, 60.0]))], dim=1)  # in the picture as it is
    features = slow_vgg16(model, slow_input(a_picture()))
    proposals = [[1.5 * value for value in box] for box in given.double().tolist()]
    require_equal(model, slow_head(model, features, proposals), [given])


# --- sizes of the real ones, and that they learn -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "stride_16", "rpn_width", "anchors", "first_fc"),
    [
        (fast_rcnn_vgg16, 512, None, None, 512 * 7 * 7),
        (faster_rcnn_vgg16, 512, 512, 9, 512 * 7 * 7),
        (faster_rcnn_zf, 256, 256, 9, 256 * 6 * 6),
        (faster_rcnn_r101_c4, 1024, 1024, 9, None),
        (mask_rcnn_r101_c4, 1024, 1024, 15, None),
    ],
)
def test_sizes_are_the_papers(
    config: Callable[..., MaskRCNNConfig],
    stride_16: int,
    rpn_width: int | None,
    anchors: int | None,
    first_fc: int | None,
) -> None:
    made_config = config(NAMES, IDS)
    assert from_dict(MaskRCNNConfig, to_dict(made_config)) == made_config
    with torch.device("meta"):
        model = MaskRCNN(made_config)
    assert model.backbone.channels == {"c4": stride_16} and model.backbone.strides == {"c4": 16}
    if rpn_width is None:
        assert model.rpn is None
    else:
        assert [conv.out_channels for conv in model.own_rpn.convs] == [rpn_width]
        assert model.own_rpn.objectness.weight.shape == (anchors, rpn_width, 1, 1)
        assert model.own_rpn.config.post_nms_top_n == 300 and model.own_rpn.config.nms_iou == 0.7
    widths = [tuple(linear.weight.shape) for linear in model.box_head.fcs]
    assert widths == ([] if first_fc is None else [(4096, first_fc), (4096, 4096)])
    assert model.box_head.deltas.out_features == 4 * len(NAMES)
    assert (model.mask_head is not None) == (config is mask_rcnn_r101_c4)


def test_a_picture_of_480_x_640_is_seen_at_600_x_800() -> None:
    assert faster_rcnn_zf(NAMES, IDS).preprocess.resized_size((480, 640)) == (600, 800)
    assert faster_rcnn_zf(NAMES, IDS).preprocess.resized_size((400, 1000)) == (400, 1000)


def test_faster_rcnn_with_zf_learns_all_of_it() -> None:
    model = made(faster_rcnn_zf(NAMES, IDS)).train()
    target = Target(
        gt_boxes=torch.tensor([[10.0, 12.0, 60.0, 70.0], [40.0, 20.0, 110.0, 80.0]]),
        gt_labels=torch.tensor([1, 3]),
        gt_masks=None,
        is_crowd=torch.zeros(2, dtype=torch.bool),
        size=(90, 120),
    )
    model.backbone.freeze()
    batch = model.preprocess.batch([F.interpolate(a_picture()[None], (90, 120))[0]])
    losses = MaskRCNNLoss(model, faster_rcnn_loss())(batch, [target])
    assert set(losses) == {"total", "rpn_objectness", "rpn_box", "box_class", "box_delta"}
    losses["total"].backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_learning_has_the_papers_numbers() -> None:
    fast, faster = fast_rcnn_loss(), faster_rcnn_loss()
    assert (fast.box.rois_per_image, fast.box.foreground_fraction, fast.box.beta) == (64, 0.25, 1.0)
    assert (faster.box.rois_per_image, faster.post_nms_top_n, faster.rpn.anchors_per_image) == (128, 2000, 256)
