"""Maps, boxes and the slowest of interpolations, for the tests of RoIAlign and its kin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def boxes_everywhere(count: int, height: float, width: float) -> Tensor:
    """Boxes of all sizes inside, across and beyond a picture, then odd ones: empty, inverted, huge, just outside."""
    centre = torch.rand(count, 2) * torch.tensor([width, height]) * 1.4 - torch.tensor([width, height]) * 0.2
    half = torch.exp(torch.rand(count, 2) * 5 - 1) / 2
    odd = [
        [5, 5, 5, 5],
        [9, 9, 3, 3],
        [-2e3, -2e3, 2e3, 2e3],
        [0, 0, width, height],
        [width, height, width + 50, height + 50],
        [-60, -60, -40, -40],
    ]
    return torch.cat([torch.cat([centre - half, centre + half], dim=1), torch.tensor(odd, dtype=torch.float32)])


def pyramid(
    channels: int = 5, images: int = 2, size: tuple[int, int] = (96, 128), strides: Sequence[int] = (4, 8, 16, 32)
) -> list[Tensor]:
    return [torch.randn(images, channels, size[0] // stride, size[1] // stride) for stride in strides]


def slow_bilinear(plane: Tensor, y: float, x: float) -> float:
    """One value of a map (H, W); a place less than a cell outside reads the border, one farther out 0."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    total = 0.0
    for row in range(height):
        for column in range(width):
            total += max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * plane[row, column].item()
    return total


def slow_round(value: float) -> int:
    """To the nearest whole number, halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def bytes_kept(pooled: Tensor) -> int:
    """What the last step that made `pooled` keeps for its gradient."""
    node = pooled.grad_fn
    while node is not None and not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]
    assert node is not None
    return sum(tensor.numel() * tensor.element_size() for tensor in node.saved_tensors)


def on_one_map(pool_levels: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """pool(features (N, C, H, W), boxes, image_index, size, scale=...) by a function that pools from several levels."""

    def pool(
        features: Tensor,
        boxes: Tensor,
        image_index: Tensor,
        size: int | tuple[int, int],
        *,
        scale: float,
        **options: object,
    ) -> Tensor:
        level = torch.zeros_like(image_index)
        return pool_levels([features], boxes, image_index, level, size, strides=[1 / scale], **options)

    return pool
