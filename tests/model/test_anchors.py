"""Anchors against a slow loop and against torchvision's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from maskrcnn.model.anchors import AnchorConfig, cell_anchors, make_anchors

CPU = torch.device("cpu")
STRIDES = [4, 8, 16, 32, 64]


def grids(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


def test_of_a_cell() -> None:
    boxes = cell_anchors((16.0,), (0.5, 1.0, 2.0))
    torch.testing.assert_close((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), torch.full((3,), 256.0))
    torch.testing.assert_close((boxes[:, 3] - boxes[:, 1]) / (boxes[:, 2] - boxes[:, 0]), torch.tensor([0.5, 1.0, 2.0]))
    assert torch.equal(boxes[:, :2], -boxes[:, 2:])
    assert boxes[1].tolist() == [-8, -8, 8, 8]


@pytest.mark.parametrize("centre", [0.0, 0.5])
@pytest.mark.parametrize("size", [(64, 96), (33, 70)])
@pytest.mark.parametrize("sizes", [((8.0,),) * 5, ((8.0, 12.0), (16.0, 24.0), (32.0, 48.0), (64.0, 96.0), (1.0, 2.0))])
def test_equal_a_slow_loop(centre: float, size: tuple[int, int], sizes: tuple[tuple[float, ...], ...]) -> None:
    config = AnchorConfig(sizes=sizes, ratios=(0.5, 1.0, 2.0), centre=centre)
    levels = make_anchors(config, grids(*size), STRIDES, size, CPU)
    for anchors, (rows, columns), stride, level_sizes in zip(levels, grids(*size), STRIDES, sizes, strict=True):
        assert anchors.shape == (rows * columns * config.per_cell, 4)  # N = W * H * k
        assert anchors.dtype == torch.float32
        expected = []
        for row in range(rows):
            for column in range(columns):
                x, y = (column + centre) * stride, (row + centre) * stride
                for ratio in config.ratios:
                    for side in level_sizes:
                        width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        torch.testing.assert_close(anchors, torch.tensor(expected))


def test_with_shapes_of_the_cell_they_are_those_of_faster_r_cnn() -> None:
    """As its MATLAB code printed them for a cell of 16 px, from the first to the last pixel (x2 - x1 + 1 wide)."""
    config = AnchorConfig(sizes=((128, 256, 512),), centre=0.5, shapes="cell")
    (anchors,) = make_anchors(config, [(1, 1)], [16], (16, 16), CPU)
    assert (anchors - torch.tensor([0.0, 0.0, 1.0, 1.0])).tolist() == [
        [-84, -40, 99, 55],
        [-176, -88, 191, 103],
        [-360, -184, 375, 199],
        [-56, -56, 71, 71],
        [-120, -120, 135, 135],
        [-248, -248, 263, 263],
        [-36, -80, 51, 95],
        [-80, -168, 95, 183],
        [-168, -344, 183, 359],
    ]


@pytest.mark.parametrize("size", [(800, 1088), (800, 1344), (64, 96), (224, 992)])
def test_equal_torchvisions(size: tuple[int, int]) -> None:
    sizes, ratios = ((32,), (64,), (128,), (256,), (512,)), (0.5, 1.0, 2.0)
    images = ImageList(torch.zeros(1, 3, *size), [size])
    features = [torch.zeros(1, 1, *grid) for grid in grids(*size)]
    expected = AnchorGenerator(sizes, (ratios,) * 5)(images, features)[0]
    config = AnchorConfig(sizes=sizes, ratios=ratios, rounding=True, strides="grid")
    ours = torch.cat(make_anchors(config, grids(*size), STRIDES, size, CPU))
    assert torch.equal(ours, expected)


def test_strides_of_the_grid_differ_where_the_level_does_not_fit() -> None:
    config = AnchorConfig(sizes=((32.0,),), ratios=(1.0,), strides="grid")
    (anchors,) = make_anchors(config, [(13, 17)], [64], (800, 1088), CPU)
    assert (anchors[1] - anchors[0]).tolist() == [64, 0, 64, 0]
    assert (anchors[17] - anchors[0]).tolist() == [0, 61, 0, 61]


def test_a_level_without_cells() -> None:
    (anchors,) = make_anchors(AnchorConfig(sizes=((8.0,),)), [(0, 3)], [4], (0, 12), CPU)
    assert anchors.shape == (0, 4)


def test_corners_in_the_centres_of_pixels() -> None:
    """The last pixel's centre lies a whole pixel before its far edge."""
    edges = AnchorConfig(sizes=((8.0,),), ratios=(0.25, 1.0, 4.0))
    (of_edges,) = make_anchors(edges, [(3, 4)], [4], (12, 16), CPU)
    (of_centres,) = make_anchors(replace(edges, corners="centres"), [(3, 4)], [4], (12, 16), CPU)
    torch.testing.assert_close(of_centres, of_edges - torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_per_cell() -> None:
    assert AnchorConfig().per_cell == 3
    assert AnchorConfig(sizes=((8, 16),), ratios=(1.0,)).per_cell == 2
