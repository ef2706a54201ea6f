"""Each box from its level, by torchvision's RoIAlign one box at a time; every method learns and is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.losses.mask_rcnn_loss import MaskRCNNLoss
from maskrcnn.model.config import from_dict, to_dict
from maskrcnn.model.frames import Corners
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import preset
from maskrcnn.model.roi_pooler import Method, RoIPooler, RoIPoolerConfig
from maskrcnn.structures import GtMasks, PolygonShape, Target
from maskrcnn.weights.files import read_checkpoint, save_checkpoint

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}


def features(count: int = 2, channels: int = 3) -> dict[str, Tensor]:
    return {name: torch.randn(count, channels, 128 // stride, 192 // stride) for name, stride in STRIDES.items()}


def boxes(count: int) -> Tensor:
    corner = torch.rand(count, 2) * torch.tensor([150.0, 100.0])
    return torch.cat([corner, corner + 2 ** (torch.rand(count, 2) * 5 + 2.5)], dim=1)


@pytest.mark.parametrize("side", [7, 14])
@pytest.mark.parametrize(("aligned", "sampling_ratio"), [(True, 2), (False, 2), (True, 0)])
def test_equals_torchvision_box_by_box(side: int, aligned: bool, sampling_ratio: int) -> None:
    config = RoIPoolerConfig(aligned=aligned, sampling_ratio=sampling_ratio, canonical_size=56.0)
    maps, rois, images = features(), boxes(40), torch.randint(0, 2, (40,))
    pooled = RoIPooler(config, side, STRIDES)(maps, rois, images)
    assert pooled.shape == (40, 3, side, side)
    levels = set()
    for row, box, image in zip(pooled, rois, images.tolist(), strict=True):
        size = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        level = min(max(math.floor(4 + math.log2(size / 56)), 2), 5)  # Lin et al. 2017, Eq. 1
        levels.add(level)
        expected = torchvision.ops.roi_align(
            maps[f"p{level}"][image : image + 1], [box[None]], side, 1 / 2**level, sampling_ratio, aligned
        )[0]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)
    assert levels == {2, 3, 4, 5}


@pytest.mark.parametrize(
    ("size", "level"), [(1, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (9000, 3)]
)
def test_levels_of_the_paper(size: float, level: int) -> None:
    pooler = RoIPooler(RoIPoolerConfig(), 7, STRIDES)
    assert pooler.levels(torch.tensor([[5.0, 5.0, 5.0 + size, 5.0 + size]])).tolist() == [level]


@pytest.mark.parametrize(
    ("size", "level"), [(10, 2), (79, 2), (80, 3), (158, 3), (159, 4), (316, 4), (317, 5), (900, 5)]
)
def test_levels_by_rounding(size: float, level: int) -> None:
    """Half an octave on both sides of 224 px goes to p4: 158.4 to 316.8."""
    pooler = RoIPooler(RoIPoolerConfig(nearest_level=True), 7, STRIDES)
    assert pooler.levels(torch.tensor([[5.0, 9.0, 5.0 + size, 9.0 + size]])).item() == level - 2


@pytest.mark.parametrize("corners", get_args(Corners))
def test_crops_equal_grid_sample_box_by_box(corners: Corners) -> None:
    """`align_corners` has the centres of the first and last cell at -1 and 1."""
    config = RoIPoolerConfig(method="crop", nearest_level=True, canonical_size=56.0)
    last = torch.tensor([192.0, 128.0]) - (1 if corners == "centres" else 0)  # the far corner of the padded frame
    maps, rois, images = features(), boxes(40).minimum(last.repeat(2)), torch.randint(0, 2, (40,))
    pooled = RoIPooler(config, 7, STRIDES, corners)(maps, rois, images)
    levels = set()
    for row, box, image in zip(pooled, rois, images.tolist(), strict=True):
        near, far = box[:2] / last, box[2:] / last  # in parts of the frame
        side = math.sqrt(math.prod(((far - near) * torch.tensor([192.0, 128.0])).tolist()))
        level = min(max(4 + round(math.log2(side / 56)), 2), 5)
        levels.add(level)
        x, y = (torch.linspace(near[axis], far[axis], 7) * 2 - 1 for axis in (0, 1))
        grid = torch.stack([x.expand(7, 7), y[:, None].expand(7, 7)], dim=-1)[None]
        expected = F.grid_sample(maps[f"p{level}"][image : image + 1], grid, align_corners=True)[0]
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)
    assert levels == {2, 3, 4, 5}


def test_p6_is_for_the_rpn() -> None:
    pooler = RoIPooler(RoIPoolerConfig(), 7, STRIDES)
    assert list(pooler.strides) == ["p2", "p3", "p4", "p5"]
    maps = features()
    del maps["p6"]
    assert pooler(maps, torch.tensor([[0.0, 0.0, 9000.0, 9000.0]]), torch.tensor([0])).shape == (1, 3, 7, 7)


def test_boxes_that_end_with_their_last_pixel() -> None:
    """Pooled from the level of the whole box, a pixel short of its right and lower edge."""
    maps = features()
    boxes, images = torch.tensor([[8.0, 8.0, 120.0, 120.0], [3.0, 5.0, 60.0, 40.0]]), torch.tensor([0, 1])
    pooler = RoIPooler(RoIPoolerConfig(aligned=False, extent=-1.0), 7, STRIDES)
    assert pooler.levels(boxes).tolist() == [1, 0]  # 112 px wide, of which 111 would be on p2
    for i, (level, box) in enumerate(((3, [8, 8, 119, 119]), (2, [3, 5, 59, 39]))):
        (found,) = pooler(maps, boxes[i : i + 1], images[i : i + 1])
        expected = torchvision.ops.roi_align(
            maps[f"p{level}"][i : i + 1], [torch.tensor([box]).float()], 7, 1 / 2**level, 2, False
        )[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_of_levels_with_one_stride_the_first() -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0 + size, 5.0 + size] for size in (10, 300, 448, 2000)])
    twins = RoIPooler(RoIPoolerConfig(), 7, {"p5a": 32, "p5": 32, "p6": 64})
    assert twins.levels(boxes).tolist() == [0, 0, 0, 0]
    maps = {"p5a": torch.randn(1, 3, 8, 8), "p5": torch.randn(1, 3, 8, 8)}
    alone = RoIPooler(RoIPoolerConfig(), 7, {"p5a": 32})
    images = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(twins(maps, boxes, images), alone(maps, boxes, images))
    more = RoIPooler(RoIPoolerConfig(), 7, {"p4a": 16, "p4": 16, "p5a": 32, "p5": 32})
    assert more.levels(boxes).tolist() == [0, 0, 2, 2]
    with_a_gap = RoIPooler(RoIPoolerConfig(), 7, {"p3": 8, "p5": 32})
    assert with_a_gap.levels(boxes).tolist() == [0, 0, 1, 1]  # of what p4 would serve: the finer one


def test_no_weights() -> None:
    assert not RoIPooler(RoIPoolerConfig(), 7, STRIDES).state_dict()


def test_roi_pool_equals_torchvision_box_by_box() -> None:
    maps, rois, images = features(), boxes(40), torch.randint(0, 2, (40,))
    pooler = RoIPooler(RoIPoolerConfig(method="pool", canonical_size=56.0), 7, STRIDES)
    pooled, levels = pooler(maps, rois, images), pooler.levels(rois).tolist()
    assert set(levels) == {0, 1, 2, 3}
    for row, box, image, level in zip(pooled, rois, images.tolist(), levels, strict=True):
        plane = maps[f"p{level + 2}"][image : image + 1]
        assert torch.equal(row, torchvision.ops.roi_pool(plane, [box[None]], 7, 1 / 2 ** (level + 2))[0])


@pytest.mark.parametrize("aligned", [True, False])
def test_warp_is_align_of_the_box_on_whole_cells(aligned: bool) -> None:
    maps, rois, images = features(), boxes(40), torch.randint(0, 2, (40,))
    config = RoIPoolerConfig(method="warp", canonical_size=56.0, aligned=aligned, sampling_ratio=3)
    pooler = RoIPooler(config, 7, STRIDES)
    pooled, levels = pooler(maps, rois, images), pooler.levels(rois).tolist()
    for row, box, image, level in zip(pooled, rois, images.tolist(), levels, strict=True):
        stride = 2 ** (level + 2)
        moved = torch.floor(box / stride + 0.5) * stride
        moved[2:] = moved[2:].maximum(moved[:2] + stride)
        plane = maps[f"p{level + 2}"][image : image + 1]
        expected = torchvision.ops.roi_align(plane, [moved[None]], 7, 1 / stride, 3, aligned)[0]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("aligned", [True, False])
def test_align_max_is_the_largest_of_torchvisions_points(aligned: bool) -> None:
    maps, rois, images = features(), boxes(40), torch.randint(0, 2, (40,))
    config = RoIPoolerConfig(method="align_max", canonical_size=56.0, aligned=aligned, sampling_ratio=3)
    pooler = RoIPooler(config, 7, STRIDES)
    pooled, levels = pooler(maps, rois, images), pooler.levels(rois).tolist()
    for row, box, image, level in zip(pooled, rois, images.tolist(), levels, strict=True):
        plane = maps[f"p{level + 2}"][image : image + 1]
        points = torchvision.ops.roi_align(plane, [box[None]], 21, 1 / 2 ** (level + 2), 1, aligned)[0]
        torch.testing.assert_close(row, F.max_pool2d(points, 3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("autocast", [False, True])
def test_every_method_learns(method: Method, autocast: bool) -> None:
    config = preset("nano", ("cell", "grain"), (1, 2))
    model = MaskRCNN(replace(config, roi_pooler=replace(config.roi_pooler, method=method)))
    objects = torch.tensor([[4.0, 6.0, 30.0, 28.0], [35.0, 10.0, 60.0, 60.0], [0.0, 40.0, 9.0, 64.0]])
    pictures = model.preprocess.batch([torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)] * 2)  # drawn at 64 px
    rings = [np.array([[a, b], [c, b], [c, d]]) for a, b, c, d in objects.tolist()]
    target = Target(
        gt_boxes=objects,
        gt_labels=torch.tensor([1, 2, 1]),
        gt_masks=GtMasks(tuple(PolygonShape((ring,)) for ring in rings)),
        is_crowd=torch.zeros(3, dtype=torch.bool),
        size=(64, 64),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = MaskRCNNLoss(model)(pictures, [target] * 2)
    (losses["box_class"] + losses["mask"]).backward(retain_graph=True)  # through the pooling, not past it by the RPN
    assert any(weight.grad is not None and weight.grad.any() for weight in model.backbone.parameters())
    losses["total"].backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_goes_into_a_checkpoint_and_back(method: Method, tmp_path: Path) -> None:
    config = preset("nano", ("cell",), (1,))
    model = MaskRCNN(replace(config, roi_pooler=replace(config.roi_pooler, method=method)))
    read = read_checkpoint(save_checkpoint(tmp_path / "model.safetensors", model, metadata={}))[0]
    assert read == model.config
    assert read.roi_pooler.method == method


def test_configs_written_before_there_were_more_methods() -> None:
    written = to_dict(RoIPoolerConfig())
    assert from_dict(RoIPoolerConfig, {**written, "method": "crop"}).method == "crop"
    assert from_dict(RoIPoolerConfig, {**written, "method": "align"}) == RoIPoolerConfig()
    del written["method"]
    assert from_dict(RoIPoolerConfig, written) == RoIPoolerConfig()


def test_a_method_that_is_none() -> None:
    with pytest.raises(InputError, match=r"method.*'max'.*'align' or 'align_max' or 'pool' or 'warp' or 'crop'"):
        from_dict(RoIPoolerConfig, {**to_dict(RoIPoolerConfig()), "method": "max"})


@pytest.mark.parametrize("method", get_args(Method))
def test_no_boxes_by_any_method(method: Method) -> None:
    pooler = RoIPooler(RoIPoolerConfig(method=method), 7, STRIDES)
    pooled = pooler(features(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert pooled.shape == (0, 3, 7, 7)
