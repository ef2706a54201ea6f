from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torchvision
from torch import Tensor

import maskrcnn.ops.roi_pool as module
from maskrcnn.ops.cells import to_whole
from maskrcnn.ops.roi_align import Kernel
from maskrcnn.ops.roi_pool import roi_pool, roi_pool_levels

from .roi_cases import boxes_everywhere, bytes_kept, pyramid, slow_round

KERNELS = pytest.mark.parametrize("kernel", get_args(Kernel))
STRIDES = (4, 8, 16, 32)


def slow_roi_pool(plane: Tensor, box: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """The definition for one map (H, W) and one box: bin by bin, cell by cell."""
    left, top, right, bottom = (slow_round(value * scale) for value in box.tolist())
    high, wide = max(bottom - top + 1, 1), max(right - left + 1, 1)  # the last cell belongs to the box
    out = torch.zeros(size, dtype=plane.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            rows = range(top + i * high // size[0], top - (-(i + 1) * high // size[0]))
            columns = range(left + j * wide // size[1], left - (-(j + 1) * wide // size[1]))
            cells = [
                plane[row, column].item()
                for row in rows
                for column in columns
                if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]
            ]
            out[i, j] = max(cells, default=0.0)
    return out


def peer(features: Tensor, boxes: Tensor, image_index: Tensor, size: int | tuple[int, int], scale: float) -> Tensor:
    indexed = torch.cat([image_index[:, None].to(features.dtype), boxes.to(features.dtype)], dim=1)
    pooled: Tensor = torchvision.ops.roi_pool(features, indexed, size, scale)
    return pooled


@KERNELS
@pytest.mark.parametrize("extent", [(6, 9), (1, 1), (1, 5)])
@pytest.mark.parametrize("size", [(2, 3), (7, 7), (1, 1)])
def test_equals_the_definition(extent: tuple[int, int], size: tuple[int, int], kernel: Kernel) -> None:
    plane = torch.randn(extent, dtype=torch.float64) - 1  # mostly negative: 0 stands out
    boxes = boxes_everywhere(12, 24, 36).double()
    boxes[:2] = torch.tensor([[2.0, 6.0, 10.0, 18.0], [-6.0, -2.0, 14.0, 22.0]])  # halves, once divided by 4
    pooled = roi_pool(
        plane[None, None], boxes, torch.zeros(len(boxes), dtype=torch.int64), size, scale=0.25, kernel=kernel
    )
    for box, values in zip(boxes, pooled[:, 0], strict=True):
        assert torch.equal(values, slow_roi_pool(plane, box, size, 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [7, (3, 5), 14])
@pytest.mark.parametrize("scale", [1 / 8, 1 / 16, 0.07])
def test_equals_torchvision_to_the_last_bit(size: int | tuple[int, int], scale: float, dtype: torch.dtype) -> None:
    features = torch.randn(2, 6, 25, 34, dtype=dtype)
    features[:, :3] = features[:, :3].relu()  # ties: the first cell takes the gradient
    features[:, 3] = features[:, 3].round()
    boxes = boxes_everywhere(80, 200, 272).to(dtype)
    boxes[:20] = boxes[:20].round()
    image_index = torch.randint(0, 2, (len(boxes),))
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    out = roi_pool(ours, boxes, image_index, size, scale=scale, kernel="bag")
    expected = peer(theirs, boxes, image_index, size, scale)
    assert torch.equal(out, expected)
    upstream = torch.randn_like(expected)
    out.backward(upstream)
    expected.backward(upstream)
    assert torch.equal(ours.grad, theirs.grad)


@KERNELS
def test_each_box_is_pooled_from_its_own_level_and_image(kernel: Kernel) -> None:
    features, boxes = pyramid(images=3), boxes_everywhere(50, 96, 128)
    image_index, level_index = torch.randint(0, 3, (len(boxes),)), torch.randint(0, 4, (len(boxes),))
    leaves, copies = ([feature.clone().requires_grad_() for feature in features] for _ in range(2))
    out = roi_pool_levels(leaves, boxes, image_index, level_index, 7, strides=STRIDES, kernel=kernel)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    for level, (copy, stride) in enumerate(zip(copies, STRIDES, strict=True)):
        members = level_index == level
        expected = peer(copy, boxes[members], image_index[members], 7, 1 / stride)
        expected.backward(upstream[members])
        assert torch.equal(out[members], expected)
        assert torch.equal(leaves[level].grad, copy.grad)


def test_level_by_level_and_in_one_call_are_the_same() -> None:
    features, boxes = pyramid(), boxes_everywhere(40, 96, 128)
    image_index, level_index = torch.randint(0, 2, (len(boxes),)), torch.randint(0, 4, (len(boxes),))
    apart = roi_pool_levels(features, boxes, image_index, level_index, 7, strides=STRIDES)
    learning = [feature.requires_grad_() for feature in features]
    together = roi_pool_levels(learning, boxes, image_index, level_index, 7, strides=STRIDES)
    assert torch.equal(apart, together)
    assert apart.stride() == together.stride()
    assert apart.is_contiguous(memory_format=torch.channels_last)


def test_gradient_of_both_orders() -> None:
    first = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    second = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1.0, 2, 14, 11], [-4, -4, 9, 30], [3, 3, 3, 3], [70, 70, 90, 90]], dtype=torch.float64)
    image_index, level_index = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 1])

    def pool(*features: Tensor) -> Tensor:
        return roi_pool_levels(features, boxes, image_index, level_index, 2, strides=(4, 8))

    assert torch.autograd.gradcheck(pool, (first, second))
    assert torch.autograd.gradgradcheck(pool, (first, second))


@KERNELS
def test_no_boxes(kernel: Kernel) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    features = [feature.requires_grad_() for feature in pyramid()]
    out = roi_pool_levels(features, torch.zeros(0, 4), none, none, 7, strides=STRIDES, kernel=kernel)
    assert out.shape == (0, 5, 7, 7)
    out.sum().backward()
    for feature in features:
        assert feature.grad is None or feature.grad.eq(0).all()


@KERNELS
def test_boxes_without_numbers_pool_zeros_and_hurt_no_other(kernel: Kernel) -> None:
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0], [nan] * 4, [3.0, 3.0, nan, 9.0], [0.0, 0.0, inf, inf]])
    features, zeros = torch.rand(1, 3, 10, 10) + 1, torch.zeros(4, dtype=torch.int64)
    out = roi_pool(features, boxes, zeros, 3, scale=0.25, kernel=kernel)
    assert torch.equal(out[:1], roi_pool(features, boxes[:1], zeros[:1], 3, scale=0.25, kernel=kernel))
    assert out[1:3].eq(0).all()
    assert torch.equal(out[3, :, 0, 0], features[0].amax(dim=(1, 2)))  # a bin that holds the whole map


def test_a_few_bins_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    features, boxes = torch.randn(2, 6, 25, 34), boxes_everywhere(30, 200, 272)
    image_index = torch.randint(0, 2, (len(boxes),))
    expected = roi_pool(features, boxes, image_index, 7, scale=1 / 8)
    monkeypatch.setattr(module, "_VALUES", 1)
    assert torch.equal(roi_pool(features, boxes, image_index, 7, scale=1 / 8), expected)


def test_learning_keeps_one_place_per_value() -> None:
    features, boxes = torch.randn(1, 8, 64, 64, requires_grad=True), torch.tensor([[0.0, 0.0, 63.0, 63.0]]).repeat(9, 1)
    out = roi_pool(features, boxes, torch.zeros(9, dtype=torch.int64), 7, scale=1.0)
    assert bytes_kept(out) == out.numel() * 4


def test_bfloat16_takes_the_same_cells_and_adds_exactly() -> None:
    # 9000 boxes share a cell: sums of whole numbers, rounded once at the end.
    features = torch.randn(1, 16, 8, 8).bfloat16()
    features[:, :, 4, 4] = 9
    corner = torch.rand(9000, 2) * 12
    boxes, image_index = torch.cat([corner, corner + 20], dim=1), torch.zeros(9000, dtype=torch.int64)
    leaf, exact = features.clone().requires_grad_(), features.double().requires_grad_()
    out = roi_pool(leaf, boxes, image_index, 1, scale=0.25)
    expected = roi_pool(exact, boxes, image_index, 1, scale=0.25)
    assert out.dtype == torch.bfloat16 and torch.equal(out.double(), expected)
    upstream = torch.randint(0, 9, out.shape)
    out.backward(upstream.bfloat16())
    expected.backward(upstream.double())
    assert leaf.grad is not None and exact.grad is not None and exact.grad.max() > 30000
    assert torch.equal(leaf.grad, exact.grad.bfloat16())


@KERNELS
def test_autocast_leaves_the_pooling_alone(kernel: Kernel) -> None:
    features, boxes = torch.randn(1, 4, 12, 16), boxes_everywhere(20, 48, 64)
    image_index = torch.zeros(len(boxes), dtype=torch.int64)
    expected = roi_pool(features, boxes, image_index, 7, scale=0.25, kernel=kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = roi_pool(features, boxes, image_index, 7, scale=0.25, kernel=kernel)
        half = roi_pool(features.bfloat16(), boxes, image_index, 7, scale=0.25, kernel=kernel)
    assert torch.equal(out, expected)
    assert torch.equal(half, expected.bfloat16())  # rounding keeps the order of values


def test_the_boxes_get_no_gradient() -> None:
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]], requires_grad=True)
    features = torch.randn(1, 1, 4, 4, requires_grad=True)
    roi_pool(features, boxes, torch.zeros(1, dtype=torch.int64), 2, scale=0.25).sum().backward()
    assert boxes.grad is None and features.grad is not None


class Pool(torch.nn.Module):
    def forward(self, features: list[Tensor], boxes: Tensor, image_index: Tensor, level_index: Tensor) -> Tensor:
        return roi_pool_levels(features, boxes, image_index, level_index, 7, strides=STRIDES)


def test_a_recorded_graph_serves_any_number_of_boxes() -> None:
    def inputs(count: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        boxes = boxes_everywhere(count, 96, 128)
        index = torch.arange(len(boxes))
        return pyramid(), boxes, index % 2, index % 4

    free = {0: torch.export.Dim("rois")}
    with torch.no_grad():
        graph = torch.export.export(Pool(), inputs(5), dynamic_shapes=([None] * 4, free, free, free)).module()
        for count in (1, 30):
            given = inputs(count)
            assert torch.equal(graph(*given), Pool()(*given))


def test_halves_are_rounded_away_from_zero() -> None:
    places = torch.tensor([-2.5, -0.5, 0.49999997, 0.5, 1.5, 2.5, 8388609.0, math.inf])
    assert to_whole(places).tolist() == [-3, -1, 0, 1, 2, 3, 8388609, math.inf]
    assert to_whole(torch.tensor(math.nan)).isnan()
