"""Each box from its level, by torchvision's RoIAlign one box at a time."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from maskrcnn.model.frames import Corners
from maskrcnn.model.roi_pooler import RoIPooler, RoIPoolerConfig

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


def test_no_boxes() -> None:
    pooler = RoIPooler(RoIPoolerConfig(), 7, STRIDES)
    pooled = pooler(features(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert pooled.shape == (0, 3, 7, 7)


def test_no_weights() -> None:
    assert not RoIPooler(RoIPoolerConfig(), 7, STRIDES).state_dict()
