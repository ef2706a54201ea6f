"""Checks on the RoIAlign kernels; `test_triton_roi_align.py` runs them in Triton's interpreter.

The interpreter takes milliseconds for each bin: few boxes, few bins.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn.ops.roi_align import roi_align_levels

from .roi_cases import pyramid

STRIDES = (4, 8, 16, 32)
BOXES = torch.tensor(
    [
        [3.3, 2.1, 21.0, 17.7],
        [60.0, 40.0, 126.0, 95.0],
        [-40.0, -30.0, 20.0, 70.0],  # across the border
        [100.0, 80.0, 170.0, 130.0],  # across the other
        [5.0, 5.0, 5.0, 5.0],
        [9.0, 9.0, 3.0, 3.0],
        [-60.0, -60.0, -40.0, -40.0],  # outside
        [float("nan")] * 4,
    ]
)


def cases(levels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.arange(len(BOXES))
    return BOXES, index % 2, index % levels


def both(dtype: torch.dtype, size: tuple[int, int], levels: int = 4, **options: object) -> list[list[Tensor]]:
    """Output and gradients of the maps, by our kernel and by the bag."""
    features, results = [f.to(dtype) for f in pyramid()[:levels]], []
    upstream = torch.randn(len(BOXES), 5, *size).to(dtype)
    for kernel in ("triton", "bag"):
        leaves = [feature.clone().requires_grad_() for feature in features]
        places = cases(levels)
        out = roi_align_levels(leaves, *places, size, strides=STRIDES[:levels], kernel=kernel, **options)
        out.backward(upstream)
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert len(gradients) == levels
        results.append([out.detach(), *gradients])
    return results


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 0])
def test_forward_and_backward_equal_the_bag(sampling_ratio: int, aligned: bool) -> None:
    for ours, theirs in zip(*both(torch.float32, (1, 2), sampling_ratio=sampling_ratio, aligned=aligned), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def test_a_bin_of_several_rows_and_columns() -> None:
    for ours, theirs in zip(*both(torch.float32, (2, 3), sampling_ratio=1), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_lower_precision_sums_run_in_float32(dtype: torch.dtype) -> None:
    (out, *gradients), (expected, *_) = both(dtype, (1, 2), sampling_ratio=2)
    assert out.dtype == dtype and all(gradient.dtype == dtype for gradient in gradients)
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)


def test_one_level_of_one_map() -> None:
    for ours, theirs in zip(*both(torch.float32, (1, 1), levels=1, sampling_ratio=1), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def test_channels_lie_last_whatever_came_in() -> None:
    features = pyramid(channels=3)
    plain = roi_align_levels(features, *cases(), 1, strides=STRIDES, sampling_ratio=1, kernel="triton")
    last = [feature.contiguous(memory_format=torch.channels_last) for feature in features]
    assert plain.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, roi_align_levels(last, *cases(), 1, strides=STRIDES, sampling_ratio=1, kernel="triton"))


def test_more_channels_than_a_program_takes() -> None:
    features = pyramid(channels=300, size=(32, 32))
    boxes, none = BOXES[:1], torch.zeros(1, dtype=torch.int64)
    ours, theirs = (
        roi_align_levels(features, boxes, none, none, 1, strides=STRIDES, sampling_ratio=1, kernel=kernel)
        for kernel in ("triton", "bag")
    )
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def test_no_boxes() -> None:
    leaves = [feature.requires_grad_() for feature in pyramid()]
    none = torch.zeros(0, dtype=torch.int64)
    out = roi_align_levels(leaves, torch.zeros(0, 4), none, none, 7, strides=STRIDES, kernel="triton")
    assert out.shape == (0, 5, 7, 7)
    out.sum().backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)
