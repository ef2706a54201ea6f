from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from maskrcnn.ops.roi_align import Kernel, roi_align
from maskrcnn.ops.roi_warp import roi_warp_levels

from .roi_cases import boxes_everywhere, on_one_map, pyramid, slow_bilinear, slow_round

roi_warp = on_one_map(roi_warp_levels)

FRAMES = pytest.mark.parametrize("aligned", [True, False])
RATIOS = pytest.mark.parametrize("sampling_ratio", [1, 2, 0])
KERNELS = pytest.mark.parametrize("kernel", get_args(Kernel))
STRIDES = (4, 8, 16, 32)


def slow_roi_warp(
    plane: Tensor, box: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """The definition for one map (H, W) and one box, point by point. Cell k has its centre at k + 0.5 or at k."""
    left, top, right, bottom = (slow_round(value * scale) for value in box.tolist())
    bin_height, bin_width = max(bottom - top, 1) / size[0], max(right - left, 1) / size[1]
    rows = sampling_ratio or -int(-bin_height // 1)
    columns = sampling_ratio or -int(-bin_width // 1)
    centre = 0.5 if aligned else 0.0
    out = torch.zeros(size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            ys = [top + (i + (point + 0.5) / rows) * bin_height - centre for point in range(rows)]
            xs = [left + (j + (point + 0.5) / columns) * bin_width - centre for point in range(columns)]
            out[i, j] = sum(slow_bilinear(plane, y, x) for y in ys for x in xs) / (rows * columns)
    return out


@KERNELS
@FRAMES
@RATIOS
@pytest.mark.parametrize("extent", [(6, 9), (1, 1)])
def test_equals_the_definition(extent: tuple[int, int], sampling_ratio: int, aligned: bool, kernel: Kernel) -> None:
    plane, boxes = torch.randn(extent, dtype=torch.float64), boxes_everywhere(8, 24, 36).double()
    boxes[:2] = torch.tensor([[2.0, 6.0, 10.0, 18.0], [-6.0, -2.0, 14.0, 22.0]])  # halves, once divided by 4
    boxes = torch.cat([boxes[:10], boxes[11:], torch.tensor([[13.0, 3.0, 13.4, 20.0]], dtype=torch.float64)])
    pooled = roi_warp(
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
        torch.testing.assert_close(values, slow_roi_warp(plane, box, (2, 3), 0.25, sampling_ratio, aligned))


def test_whole_cells_are_read_as_they_are_and_half_a_cell_does_not_matter() -> None:
    plane, index = torch.randn(1, 1, 8, 9), torch.zeros(1, dtype=torch.int64)
    box = torch.tensor([[33.0, 46.0, 83.0, 94.0]])  # at stride 16: columns 2.06 to 5.19, rows 2.9 to 5.9
    pooled = roi_warp(plane, box, index, 3, scale=1 / 16, sampling_ratio=1)
    torch.testing.assert_close(pooled, plane[:, :, 3:6, 2:5])
    moved = box + torch.tensor([6.0, -6.0, -10.0, 9.0])
    assert torch.equal(roi_warp(plane, moved, index, 3, scale=1 / 16, sampling_ratio=1), pooled)
    assert not torch.allclose(roi_align(plane, box, index, 3, scale=1 / 16), pooled)


@KERNELS
@FRAMES
@RATIOS
def test_each_box_is_pooled_from_its_own_level_and_image(sampling_ratio: int, aligned: bool, kernel: Kernel) -> None:
    features, boxes = pyramid(images=3), boxes_everywhere(50, 96, 128)
    image_index, level_index = torch.randint(0, 3, (len(boxes),)), torch.randint(0, 4, (len(boxes),))
    out = roi_warp_levels(
        features,
        boxes,
        image_index,
        level_index,
        7,
        strides=STRIDES,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        kernel=kernel,
    )
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        members = level_index == level
        expected = roi_warp(
            feature,
            boxes[members],
            image_index[members],
            7,
            scale=1 / stride,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
        torch.testing.assert_close(out[members], expected, rtol=1e-5, atol=1e-6)


@RATIOS
def test_gradient_of_both_orders(sampling_ratio: int) -> None:
    first = torch.randn(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    second = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1.0, 2, 14, 11], [-4, -4, 9, 30], [3, 3, 3, 3]], dtype=torch.float64)
    image_index, level_index = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 0])

    def pool(*features: Tensor) -> Tensor:
        return roi_warp_levels(
            features, boxes, image_index, level_index, 2, strides=(4, 8), sampling_ratio=sampling_ratio
        )

    assert torch.autograd.gradcheck(pool, (first, second))
    assert torch.autograd.gradgradcheck(pool, (first, second))


def test_no_boxes() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    features = [feature.requires_grad_() for feature in pyramid()]
    out = roi_warp_levels(features, torch.zeros(0, 4), none, none, 7, strides=STRIDES)
    assert out.shape == (0, 5, 7, 7)
    out.sum().backward()
    assert all(feature.grad is None or feature.grad.eq(0).all() for feature in features)


def test_boxes_without_numbers_pool_zeros_and_hurt_no_other() -> None:
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0], [float("nan")] * 4])
    features, zeros = torch.randn(1, 3, 10, 10), torch.zeros(2, dtype=torch.int64)
    for ratio in (2, 0):
        out = roi_warp(features, boxes, zeros, 3, scale=0.25, sampling_ratio=ratio)
        assert torch.equal(out[:1], roi_warp(features, boxes[:1], zeros[:1], 3, scale=0.25, sampling_ratio=ratio))
        assert out[1].eq(0).all()


def test_coordinates_stay_float32_under_autocast_and_for_bfloat16_maps() -> None:
    # in bfloat16 1003 would be 1004, which is nearer to another cell
    features, index = torch.randn(1, 4, 4, 300), torch.zeros(1, dtype=torch.int64)
    box = torch.tensor([[1001.0, 0.0, 1053.0, 16.0]])
    expected = roi_warp(features, box, index, 7, scale=0.25)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = roi_warp(features, box, index, 7, scale=0.25)
        half = roi_warp(features.bfloat16(), box, index, 7, scale=0.25)
    assert torch.equal(out, expected)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 5e-3 * expected.norm()


def test_the_boxes_get_no_gradient() -> None:
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]], requires_grad=True)
    features = torch.randn(1, 1, 4, 4, requires_grad=True)
    roi_warp(features, boxes, torch.zeros(1, dtype=torch.int64), 2, scale=0.25).sum().backward()
    assert boxes.grad is None and features.grad is not None
