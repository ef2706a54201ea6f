from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.ops.poolers import LevelMapper

from maskrcnn.ops.roi_align import Kernel, level_of, roi_align, roi_align_levels

from .roi_cases import boxes_everywhere, pyramid, slow_bilinear

KERNELS: tuple[Kernel, ...] = get_args(Kernel)  # the third is for CUDA: test_triton_roi_align.py
FRAMES = pytest.mark.parametrize("aligned", [True, False])
RATIOS = pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 0])


def slow_roi_align(
    plane: Tensor, box: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """The paper's definition for one map (H, W) and one box, in float64, point by point."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (value * scale - shift for value in box.tolist())
    height, width = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
    bin_height, bin_width = height / size[0], width / size[1]
    rows = sampling_ratio or math.ceil(bin_height)
    columns = sampling_ratio or math.ceil(bin_width)
    out = torch.zeros(size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            ys = [y1 + (i + (point + 0.5) / rows) * bin_height for point in range(rows)]
            xs = [x1 + (j + (point + 0.5) / columns) * bin_width for point in range(columns)]
            points = [slow_bilinear(plane, y, x) for y in ys for x in xs]
            out[i, j] = sum(points) / max(len(points), 1)
    return out


def peer(features: Tensor, boxes: Tensor, image_index: Tensor, *options: object) -> Tensor:
    """torchvision's op; `options` are size, scale, sampling ratio, aligned."""
    indexed = torch.cat([image_index[:, None].to(boxes.dtype), boxes], dim=1)
    pooled: Tensor = torchvision.ops.roi_align(features, indexed, *options)
    return pooled


@RATIOS
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_boxes(sampling_ratio: int, kernel: Kernel) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    features = [feature.requires_grad_() for feature in pyramid()]
    boxes, strides = torch.zeros(0, 4), (4, 8, 16, 32)
    out = roi_align_levels(
        features, boxes, none, none, 7, strides=strides, sampling_ratio=sampling_ratio, kernel=kernel
    )
    assert out.shape == (0, 5, 7, 7)
    out.sum().backward()
    for feature in features:
        assert feature.grad is None or feature.grad.eq(0).all()


@FRAMES
@RATIOS
def test_equals_the_definition(sampling_ratio: int, aligned: bool) -> None:
    plane = torch.randn(6, 9, dtype=torch.float64)
    boxes = torch.tensor(
        [[3.3, 2.1, 21.0, 17.7], [-9, -9, 8, 5], [20, 10, 60, 40], [5, 5, 5, 5], [2, 3, 3.5, 20], [50, 50, 60, 60]],
        dtype=torch.float64,
    )
    image_index = torch.zeros(len(boxes), dtype=torch.int64)
    pooled = roi_align(
        plane[None, None], boxes, image_index, (2, 3), scale=0.25, sampling_ratio=sampling_ratio, aligned=aligned
    )
    for box, values in zip(boxes, pooled[:, 0], strict=True):
        torch.testing.assert_close(values, slow_roi_align(plane, box, (2, 3), 0.25, sampling_ratio, aligned))


@FRAMES
@RATIOS
@pytest.mark.parametrize("size", [7, (3, 5)])
def test_equals_torchvision_forward_and_backward(
    sampling_ratio: int, aligned: bool, size: int | tuple[int, int]
) -> None:
    features, boxes = torch.randn(2, 6, 25, 34), boxes_everywhere(60, 200, 272)
    image_index = torch.randint(0, 2, (len(boxes),))
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    out = roi_align(ours, boxes, image_index, size, scale=1 / 8, sampling_ratio=sampling_ratio, aligned=aligned)
    expected = peer(theirs, boxes, image_index, size, 1 / 8, sampling_ratio, aligned)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    upstream = torch.randn_like(expected)
    out.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_level_by_level_and_in_one_call_are_the_same() -> None:
    features, boxes, strides = pyramid(), boxes_everywhere(40, 96, 128), (4, 8, 16, 32)
    image_index, level_index = torch.randint(0, 2, (len(boxes),)), torch.randint(0, 4, (len(boxes),))
    apart = roi_align_levels(features, boxes, image_index, level_index, 7, strides=strides)
    learning = [feature.requires_grad_() for feature in features]
    together = roi_align_levels(learning, boxes, image_index, level_index, 7, strides=strides)
    assert torch.equal(apart, together)
    assert apart.stride() == together.stride()


@FRAMES
@RATIOS
def test_each_box_is_pooled_from_its_own_level_and_image(sampling_ratio: int, aligned: bool) -> None:
    features, boxes, strides = pyramid(images=3), boxes_everywhere(50, 96, 128), (4, 8, 16, 32)
    image_index, level_index = torch.randint(0, 3, (len(boxes),)), torch.randint(0, 4, (len(boxes),))
    out = roi_align_levels(
        features, boxes, image_index, level_index, 7, strides=strides, sampling_ratio=sampling_ratio, aligned=aligned
    )
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        members = level_index == level
        expected = peer(feature, boxes[members], image_index[members], 7, 1 / stride, sampling_ratio, aligned)
        torch.testing.assert_close(out[members], expected, rtol=1e-6, atol=1e-6)


@RATIOS
def test_both_kernels_agree(sampling_ratio: int) -> None:
    features, boxes, strides = pyramid(), boxes_everywhere(40, 96, 128), (4, 8, 16, 32)
    image_index, level_index = torch.randint(0, 2, (len(boxes),)), torch.randint(0, 4, (len(boxes),))
    results = []
    for kernel in KERNELS:
        leaves = [feature.clone().requires_grad_() for feature in features]
        out = roi_align_levels(
            leaves, boxes, image_index, level_index, 7, strides=strides, sampling_ratio=sampling_ratio, kernel=kernel
        )
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_gradient_of_both_orders(sampling_ratio: int) -> None:
    first = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    second = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1.0, 2, 14, 11], [-4, -4, 9, 30], [3, 3, 3, 3]], dtype=torch.float64)
    image_index, level_index = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])

    def pool(*features: Tensor) -> Tensor:
        return roi_align_levels(
            features, boxes, image_index, level_index, 2, strides=(4, 8), sampling_ratio=sampling_ratio
        )

    assert torch.autograd.gradcheck(pool, (first, second))
    assert torch.autograd.gradgradcheck(pool, (first, second))


def test_the_boxes_get_no_gradient() -> None:
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]], requires_grad=True)
    features = torch.randn(1, 1, 4, 4, requires_grad=True)
    roi_align(features, boxes, torch.zeros(1, dtype=torch.int64), 2, scale=0.25).sum().backward()
    assert boxes.grad is None and features.grad is not None


def test_boxes_without_numbers_pool_zeros_and_hurt_no_other() -> None:
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0], [float("nan")] * 4, [0.0, 0.0, float("inf"), 5.0]])
    features, zeros = torch.randn(1, 3, 10, 10), torch.zeros(3, dtype=torch.int64)
    for ratio in (2, 0):
        out = roi_align(features, boxes[:2], zeros[:2], 3, scale=0.25, sampling_ratio=ratio)
        assert torch.equal(out[:1], roi_align(features, boxes[:1], zeros[:1], 3, scale=0.25, sampling_ratio=ratio))
        assert out[1].eq(0).all()
    assert roi_align(features, boxes, zeros, 3, scale=0.25).isfinite().all()


def test_memory_formats_in_and_out() -> None:
    features, boxes = torch.randn(2, 8, 12, 16), boxes_everywhere(20, 48, 64)
    image_index = torch.randint(0, 2, (len(boxes),))
    out = roi_align(features, boxes, image_index, 7, scale=0.25)
    assert out.is_contiguous(memory_format=torch.channels_last)
    last = features.to(memory_format=torch.channels_last)
    assert torch.equal(out, roi_align(last, boxes, image_index, 7, scale=0.25))


def test_bfloat16_stays_near_float32_where_many_boxes_overlap() -> None:
    # 400 boxes over the same 8 x 8 cells: adding tap by tap in bfloat16 would lose the small shares altogether.
    features, corner = torch.randn(1, 16, 8, 8), torch.rand(400, 2) * 8
    boxes, image_index = torch.cat([corner, corner + 24], dim=1), torch.zeros(400, dtype=torch.int64)
    upstream = torch.rand(400, 16, 7, 7)
    grads, outs = [], []
    for dtype in (torch.float64, torch.bfloat16):
        leaf = features.to(dtype).requires_grad_()
        outs.append(roi_align(leaf, boxes, image_index, 7, scale=0.25))
        outs[-1].backward(upstream.to(dtype))
        assert leaf.grad is not None and leaf.grad.dtype == outs[-1].dtype == dtype
        grads.append(leaf.grad.double())
    assert (grads[1] - grads[0]).norm() < 3e-3 * grads[0].norm()
    assert (outs[1].double() - outs[0]).norm() < 5e-3 * outs[0].norm()


def test_autocast_leaves_the_pooling_alone() -> None:
    features, boxes = torch.randn(1, 4, 12, 16), boxes_everywhere(20, 48, 64)
    image_index = torch.zeros(len(boxes), dtype=torch.int64)
    expected = roi_align(features, boxes, image_index, 7, scale=0.25)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = roi_align(features, boxes, image_index, 7, scale=0.25)
        half = roi_align(features.bfloat16(), boxes, image_index, 7, scale=0.25)
    assert torch.equal(out, expected)
    assert half.dtype == torch.bfloat16


class Pool(torch.nn.Module):
    def forward(self, features: list[Tensor], boxes: Tensor, image_index: Tensor, level_index: Tensor) -> Tensor:
        return roi_align_levels(features, boxes, image_index, level_index, 7, strides=(4, 8, 16, 32))


def test_a_recorded_graph_serves_any_number_of_boxes() -> None:
    def inputs(count: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        boxes = boxes_everywhere(count, 96, 128)
        index = torch.arange(len(boxes))
        return pyramid(), boxes, index % 2, index % 4

    free = {0: torch.export.Dim("rois")}
    shapes = ([None] * 4, free, free, free)
    with torch.no_grad():
        graph = torch.export.export(Pool(), inputs(5), dynamic_shapes=shapes).module()
        for count in (1, 30):
            given = inputs(count)
            torch.testing.assert_close(graph(*given), Pool()(*given))


def test_levels_of_known_sides() -> None:
    sides = torch.tensor([0.0, 10.0, 111.0, 112.0, 223.0, 224.0, 448.0, 5000.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=-1)
    assert level_of(boxes).tolist() == [2, 2, 2, 3, 3, 4, 5, 5]
    assert level_of(boxes.view(2, 4, 4)).shape == (2, 4)
    assert level_of(boxes, min_level=4, max_level=4).eq(4).all()
    assert level_of(torch.zeros(0, 4)).shape == (0,)


def test_levels_equal_torchvision() -> None:
    corner, side = torch.rand(5000, 2) * 500, torch.exp(torch.rand(5000, 2) * 6)
    boxes = torch.cat([corner, corner + side], dim=1)
    assert torch.equal(level_of(boxes) - 2, LevelMapper(2, 5)([boxes]))


def test_levels_of_boxes_that_are_none() -> None:
    nan = float("nan")
    boxes = torch.tensor([[9.0, 9.0, 3.0, 12.0], [nan, nan, nan, nan], [0.0, 0.0, float("inf"), 5.0]])
    assert level_of(boxes).tolist() == [2, 2, 5]
