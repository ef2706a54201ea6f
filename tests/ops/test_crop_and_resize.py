from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.ops.crop_and_resize import crop_and_resize, crop_and_resize_levels

PRINTED = Path(__file__).parents[1] / "weights" / "fixtures" / "matterport" / "crop_and_resize.npz"
# y1 x1 y2 x2 of the boxes that TensorFlow was given: inside, the whole map, a point, across an edge, inverted, outside
PRINTED_BOXES = [
    [0.1, 0.2, 0.7, 0.65],
    [0.0, 0.0, 1.0, 1.0],
    [0.3, 0.4, 0.3, 0.4],
    [-0.2, 0.1, 0.5, 1.3],
    [0.9, 0.8, 0.2, 0.1],
    [0.45, 0.05, 0.55, 0.95],
    [1.1, 1.1, 1.5, 1.6],
]


def pyramid(channels: int = 5, images: int = 2) -> list[Tensor]:
    return [torch.randn(images, channels, 48 // stride, 64 // stride) for stride in (2, 4, 8)]


def boxes_everywhere(count: int) -> Tensor:
    """Of all sizes, in the map, across its edges and beyond; the last ones end where the map ends."""
    corner, extent = torch.rand(count, 2) * 1.4 - 0.2, torch.rand(count, 2)
    boxes = torch.cat([corner, corner + extent], dim=1)
    boxes[-10:, 2:] = 1.0
    return boxes


def slow_bilinear(plane: Tensor, y: float, x: float) -> float:
    height, width = plane.shape
    if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
        return 0.0
    total = 0.0
    for row in range(height):
        for column in range(width):
            total += max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * plane[row, column].item()
    return total


def slow_crop_and_resize(plane: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """One map (H, W) and one box, point by point."""
    x1, y1, x2, y2 = box.tolist()

    def places(begin: float, end: float, count: int, extent: int) -> list[float]:
        if count == 1:
            return [(begin + end) / 2 * (extent - 1)]
        return [(begin * (count - 1 - i) + end * i) / (count - 1) * (extent - 1) for i in range(count)]

    rows, columns = places(y1, y2, size[0], plane.shape[0]), places(x1, x2, size[1], plane.shape[1])
    return torch.tensor([[slow_bilinear(plane, y, x) for x in columns] for y in rows], dtype=torch.float64)


@pytest.mark.parametrize("size", [(7, 7), (3, 5), (1, 1)])
def test_equals_the_definition(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 1, 6, 9, dtype=torch.float64)
    boxes, image_index = boxes_everywhere(25).double(), torch.randint(0, 2, (25,))
    pooled = crop_and_resize(maps, boxes, image_index, size)
    for box, image, values in zip(boxes, image_index.tolist(), pooled[:, 0], strict=True):
        torch.testing.assert_close(values, slow_crop_and_resize(maps[image, 0], box, size))


@pytest.mark.parametrize("size", [(7, 7), (4, 5), (1, 3)])
def test_equals_what_tensorflow_printed_forward_and_backward(size: tuple[int, int]) -> None:
    random = np.random.RandomState(0)
    drawn = torch.from_numpy(random.standard_normal((2, 9, 12, 3)).astype(np.float32))
    for other in ((7, 7), (4, 5), (1, 3)):  # gradients were drawn in this order
        grad = torch.from_numpy(random.standard_normal((7, *other, 3)).astype(np.float32)).permute(0, 3, 1, 2)
        if other == size:
            break
    maps = drawn.permute(0, 3, 1, 2).requires_grad_()
    pooled = crop_and_resize(
        maps, torch.tensor(PRINTED_BOXES)[:, [1, 0, 3, 2]], torch.tensor([0, 1, 0, 1, 1, 0, 0]), size
    )
    pooled.backward(grad)
    with np.load(PRINTED) as printed:
        name = f"{size[0]}x{size[1]}"
        values, gradient = printed[name], printed[f"{name}_map_gradient"]
    assert maps.grad is not None
    torch.testing.assert_close(pooled.permute(0, 2, 3, 1), torch.from_numpy(values), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps.grad.permute(0, 2, 3, 1), torch.from_numpy(gradient), atol=1e-5, rtol=0)


def test_a_box_that_ends_with_the_map_reads_its_last_cells() -> None:
    """Wherever it begins: adding up steps in float32 would leave the map in some of these."""
    boxes = torch.cat([torch.rand(5000, 2), torch.ones(5000, 2)], dim=1)
    pooled = crop_and_resize(torch.ones(1, 1, 256, 256), boxes, torch.zeros(5000, dtype=torch.int64), 14)
    torch.testing.assert_close(pooled, torch.ones_like(pooled))


def test_each_box_is_pooled_from_its_own_level_and_image() -> None:
    features, boxes = pyramid(), boxes_everywhere(40)
    image_index, level_index = torch.randint(0, 2, (40,)), torch.randint(0, 3, (40,))
    pooled = crop_and_resize_levels(features, boxes, image_index, level_index, 7)
    for r in range(40):
        feature = features[level_index[r]][image_index[r], None]
        alone = crop_and_resize(feature, boxes[r, None], torch.zeros(1, dtype=torch.int64), 7)
        torch.testing.assert_close(pooled[r, None], alone)


def test_level_by_level_and_in_one_call_are_the_same() -> None:
    features, boxes = pyramid(), boxes_everywhere(40)
    image_index, level_index = torch.randint(0, 2, (40,)), torch.randint(0, 3, (40,))
    apart = crop_and_resize_levels(features, boxes, image_index, level_index, 7)
    learning = [feature.clone().requires_grad_() for feature in features]
    together = crop_and_resize_levels(learning, boxes, image_index, level_index, 7)
    torch.testing.assert_close(together.detach(), apart)


def test_gradient_is_that_of_the_definition() -> None:
    features = [torch.randn(2, 2, 6, 7, dtype=torch.float64).requires_grad_(), torch.randn(2, 2, 3, 4).double()]
    boxes = boxes_everywhere(15).double()
    image_index, level_index = torch.randint(0, 2, (15,)), torch.randint(0, 2, (15,))

    def pool(first: Tensor) -> Tensor:
        return crop_and_resize_levels([first, features[1]], boxes, image_index, level_index, (3, 4))

    assert torch.autograd.gradcheck(pool, features[0])


def test_no_boxes() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    features = [feature.requires_grad_() for feature in pyramid()]
    pooled = crop_and_resize_levels(features, torch.zeros(0, 4), none, none, 7)
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert all(feature.grad is None or feature.grad.eq(0).all() for feature in features)


def test_boxes_without_numbers_pool_zeros_and_hurt_no_other() -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [float("nan")] * 4, [0.0, 0.0, float("inf"), 1.0]])
    feature = torch.rand(1, 2, 8, 8) + 1
    index = torch.zeros(3, dtype=torch.int64)
    pooled = crop_and_resize(feature, boxes, index, 4)
    torch.testing.assert_close(pooled[:1], crop_and_resize(feature, boxes[:1], index[:1], 4))
    assert pooled[1].eq(0).all()
    assert pooled.isfinite().all()


class Pool(torch.nn.Module):
    def forward(self, features: list[Tensor], boxes: Tensor, image_index: Tensor, level_index: Tensor) -> Tensor:
        return crop_and_resize_levels(features, boxes, image_index, level_index, 7)


def test_a_recorded_graph_serves_any_number_of_boxes() -> None:
    def inputs(count: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        index = torch.arange(count)
        return pyramid(), boxes_everywhere(count), index % 2, index % 3

    free = {0: torch.export.Dim("rois")}
    with torch.no_grad():
        graph = torch.export.export(Pool(), inputs(15), dynamic_shapes=([None] * 3, free, free, free)).module()
        for count in (11, 30):
            given = inputs(count)
            torch.testing.assert_close(graph(*given), Pool()(*given))
