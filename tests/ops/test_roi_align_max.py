from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torchvision
from torch import Tensor

import maskrcnn.ops.roi_align_max as module
from maskrcnn.ops.roi_align import Kernel, roi_align
from maskrcnn.ops.roi_align_max import roi_align_max_levels

from .roi_cases import boxes_everywhere, bytes_kept, on_one_map, pyramid, slow_bilinear

roi_align_max = on_one_map(roi_align_max_levels)

FRAMES = pytest.mark.parametrize("aligned", [True, False])
RATIOS = pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 0])
KERNELS = pytest.mark.parametrize("kernel", get_args(Kernel))
STRIDES = (4, 8, 16, 32)


def slow_roi_align_max(
    plane: Tensor, box: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """The definition for one map (H, W) and one box, in float64, point by point."""
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
            out[i, j] = max((slow_bilinear(plane, y, x) for y in ys for x in xs), default=0.0)
    return out


def two_steps(features: Tensor, boxes: Tensor, image_index: Tensor, size: int, scale: float, points: int) -> Tensor:
    """torchvision's RoIAlign with a bin per point, then torch's max pooling."""
    indexed = torch.cat([image_index[:, None].to(boxes.dtype), boxes], dim=1)
    at = torchvision.ops.roi_align(features, indexed, size * points, scale, 1, True)
    return torch.nn.functional.max_pool2d(at, points)


@KERNELS
@FRAMES
@RATIOS
@pytest.mark.parametrize("extent", [(6, 9), (1, 1)])
def test_equals_the_definition(extent: tuple[int, int], sampling_ratio: int, aligned: bool, kernel: Kernel) -> None:
    plane, boxes = torch.randn(extent, dtype=torch.float64), boxes_everywhere(8, 24, 36).double()
    boxes = torch.cat([boxes[:10], boxes[11:]])  # without the huge one
    pooled = roi_align_max(
        plane[None, None],
        boxes,
        torch.zeros(len(boxes), dtype=torch.int64),
        (2, 3),
        scale=0.25,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        kernel=kernel,
    )
    for box, values in zip(boxes, pooled[:, 0], strict=True):
        torch.testing.assert_close(values, slow_roi_align_max(plane, box, (2, 3), 0.25, sampling_ratio, aligned))


@KERNELS
@pytest.mark.parametrize("points", [1, 2, 3])
def test_equals_pooling_torchvisions_points_forward_and_backward(points: int, kernel: Kernel) -> None:
    features, boxes = torch.randn(2, 6, 25, 34), boxes_everywhere(60, 200, 272)
    image_index = torch.randint(0, 2, (len(boxes),))
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    out = roi_align_max(ours, boxes, image_index, 7, scale=1 / 8, sampling_ratio=points, kernel=kernel)
    expected = two_steps(theirs, boxes, image_index, 7, 1 / 8, points)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    upstream = torch.randn_like(expected)
    out.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_one_point_per_bin_is_the_mean_of_one() -> None:
    features, boxes = torch.randn(1, 3, 12, 16), boxes_everywhere(20, 48, 64)
    index = torch.zeros(len(boxes), dtype=torch.int64)
    out = roi_align_max(features, boxes, index, 7, scale=0.25, sampling_ratio=1)
    assert torch.equal(out, roi_align(features, boxes, index, 7, scale=0.25, sampling_ratio=1))


@KERNELS
@FRAMES
@RATIOS
def test_each_box_is_pooled_from_its_own_level_and_image(sampling_ratio: int, aligned: bool, kernel: Kernel) -> None:
    features, boxes = pyramid(images=3), boxes_everywhere(50, 96, 128)
    boxes = boxes[:-4]  # without the huge one, which has ten thousand points where they are adaptive
    image_index, level_index = torch.randint(0, 3, (len(boxes),)), torch.randint(0, 4, (len(boxes),))
    options = {"sampling_ratio": sampling_ratio, "aligned": aligned, "kernel": kernel}
    where = (boxes, image_index, level_index, 7)
    learning = [feature.clone().requires_grad_() for feature in features]
    together = roi_align_max_levels(learning, *where, strides=STRIDES, **options)
    apart = roi_align_max_levels(features, *where, strides=STRIDES, **options)
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-6)
    assert apart.is_contiguous(memory_format=torch.channels_last)
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        members = level_index == level
        expected = roi_align_max(feature, boxes[members], image_index[members], 7, scale=1 / stride, **options)
        torch.testing.assert_close(apart[members], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_gradient_of_both_orders(sampling_ratio: int) -> None:
    first = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    second = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1.0, 2, 14, 11], [-4, -4, 9, 30], [3, 3, 3, 3]], dtype=torch.float64)
    image_index, level_index = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])

    def pool(*features: Tensor) -> Tensor:
        return roi_align_max_levels(
            features, boxes, image_index, level_index, 2, strides=(4, 8), sampling_ratio=sampling_ratio
        )

    assert torch.autograd.gradcheck(pool, (first, second))
    assert torch.autograd.gradgradcheck(pool, (first, second))


@RATIOS
def test_no_boxes(sampling_ratio: int) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for learning in (True, False):
        features = [feature.requires_grad_(learning) for feature in pyramid()]
        out = roi_align_max_levels(
            features, torch.zeros(0, 4), none, none, 7, strides=STRIDES, sampling_ratio=sampling_ratio
        )
        assert out.shape == (0, 5, 7, 7)


def test_boxes_without_numbers_pool_zeros_and_hurt_no_other() -> None:
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0], [float("nan")] * 4])
    features, zeros = torch.randn(1, 3, 10, 10), torch.zeros(2, dtype=torch.int64)
    for ratio in (2, 0):
        out = roi_align_max(features, boxes, zeros, 3, scale=0.25, sampling_ratio=ratio)
        assert torch.equal(out[:1], roi_align_max(features, boxes[:1], zeros[:1], 3, scale=0.25, sampling_ratio=ratio))
        assert out[1].eq(0).all()


def test_a_few_points_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    features, boxes = pyramid(), boxes_everywhere(30, 96, 128)
    index, level_index = torch.arange(len(boxes)) % 2, torch.randint(0, 4, (len(boxes),))
    expected = roi_align_max_levels(features, boxes, index, level_index, 7, strides=STRIDES)
    monkeypatch.setattr(module, "_VALUES", 7 * 14 * 14 * 5)
    assert torch.equal(roi_align_max_levels(features, boxes, index, level_index, 7, strides=STRIDES), expected)


def test_learning_keeps_one_small_number_per_value() -> None:
    features, boxes = torch.randn(1, 8, 12, 16, requires_grad=True), boxes_everywhere(20, 48, 64)
    out = roi_align_max(features, boxes, torch.zeros(len(boxes), dtype=torch.int64), 7, scale=0.25)
    assert bytes_kept(out) == out.numel() * 2


def test_autocast_and_bfloat16() -> None:
    features, boxes = torch.randn(1, 4, 12, 16), boxes_everywhere(20, 48, 64)
    image_index = torch.zeros(len(boxes), dtype=torch.int64)
    expected = roi_align_max(features, boxes, image_index, 7, scale=0.25)
    leaf = features.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = roi_align_max(features, boxes, image_index, 7, scale=0.25)
        half = roi_align_max(leaf, boxes, image_index, 7, scale=0.25)
    assert torch.equal(out, expected)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 5e-3 * expected.norm()
    half.sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.bfloat16 and leaf.grad.isfinite().all()


def test_the_boxes_get_no_gradient() -> None:
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]], requires_grad=True)
    features = torch.randn(1, 1, 4, 4, requires_grad=True)
    roi_align_max(features, boxes, torch.zeros(1, dtype=torch.int64), 2, scale=0.25).sum().backward()
    assert boxes.grad is None and features.grad is not None


class Pool(torch.nn.Module):
    def forward(self, features: list[Tensor], boxes: Tensor, image_index: Tensor, level_index: Tensor) -> Tensor:
        return roi_align_max_levels(features, boxes, image_index, level_index, 7, strides=STRIDES)


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
            torch.testing.assert_close(graph(*given), Pool()(*given))
