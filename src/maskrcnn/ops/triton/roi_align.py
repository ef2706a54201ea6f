"""RoIAlign over all levels of a pyramid in one launch, forward and backward; what it computes: `ops/roi_align.py`.

    N images    C channels    H, W map size    R RoIs    S pooled side    L levels, at most 4

A program makes the C values of one bin: maps are read channels-last, so that a tap is a run of C neighbours. Sums run
in float32 whatever the maps hold. The gradient adds every tap to float32 maps by atomics, in no fixed order, as
torchvision's does: two runs differ by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_LEVELS = 4

_BLOCK = 256  # channels at most that a program takes


def pool_levels(
    features: Sequence[Tensor],
    scales: Sequence[float],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """(R, C, *bins) in the dtype of `features`, channels-last in memory.

    features: L maps (N, C, H_l, W_l) of float32, bfloat16 or float16. scales: L, cells per px. The rest as in
    `roi_align_levels`.
    """
    pooled: Tensor = torch.ops.maskrcnn.roi_align(
        list(features), boxes.float(), image_index, level_index, list(scales), list(bins), sampling_ratio, aligned
    )
    return pooled.permute(0, 3, 1, 2)


# --- the two launches ---------------------------------------------------------------------------------------------


def _forward(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    scales: Sequence[float],
    bins: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """(R, S, S, C)."""
    maps = [feature.permute(0, 2, 3, 1).contiguous() for feature in features]  # a view where channels lie last
    channels = maps[0].shape[3]
    pooled = maps[0].new_empty(boxes.shape[0], *bins, channels)
    if pooled.numel():
        block = _block(channels)
        with torch.cuda.device_of(pooled):
            _forward_kernel[(boxes.shape[0] * bins[0] * bins[1], triton.cdiv(channels, block))](
                pooled,
                *_each(maps),
                *_each([m.shape[1] for m in maps]),
                *_each([m.shape[2] for m in maps]),
                *_each(scales),
                *_places(boxes, image_index, level_index),
                channels,
                *bins,
                RATIO=sampling_ratio,
                SHIFT=0.5 if aligned else 0.0,
                LEAST=float("-inf") if aligned else 1.0,
                BLOCK=block,
                num_warps=_warps(block, pooled.element_size()),
                enable_fp_fusion=False,
            )
    return pooled


def _backward(
    grad: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    sizes: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> list[Tensor]:
    """L gradients (N, C, H_l, W_l), channels-last, of grad (R, S, S, C). sizes: N, then H_l and W_l level by level."""
    images, heights, widths = sizes[0], sizes[1::2], sizes[2::2]
    grad = grad.contiguous()
    rows, columns, channels = grad.shape[1:]
    sums = [
        torch.zeros(images, height, width, channels, dtype=torch.float32, device=grad.device)
        for height, width in zip(heights, widths, strict=True)
    ]
    if grad.numel():
        block = _block(channels)
        with torch.cuda.device_of(grad):
            _backward_kernel[(grad.shape[0] * rows * columns, triton.cdiv(channels, block))](
                grad,
                *_each(sums),
                *_each(heights),
                *_each(widths),
                *_each(scales),
                *_places(boxes, image_index, level_index),
                channels,
                rows,
                columns,
                RATIO=sampling_ratio,
                SHIFT=0.5 if aligned else 0.0,
                LEAST=float("-inf") if aligned else 1.0,
                BLOCK=block,
                num_warps=_warps(block, 4),
                enable_fp_fusion=False,
            )
    return [total.to(grad.dtype).permute(0, 3, 1, 2) for total in sums]


def _each(values: Sequence[Any]) -> list[Any]:
    """One for each level that the kernel knows; those that are not there repeat the first."""
    return [*values, *[values[0]] * (MOST_LEVELS - len(values))]


def _places(boxes: Tensor, image_index: Tensor, level_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return boxes.contiguous(), image_index.contiguous(), level_index.contiguous()


def _block(channels: int) -> int:
    block: int = triton.next_power_of_2(channels)
    return min(_BLOCK, block)


def _warps(block: int, size: int) -> int:
    """As many as read 16 bytes a thread."""
    return max(1, min(4, block * size // (32 * 16)))


# --- the kernels ----------------------------------------------------------------------------------------------------
# The order of operations is that of `ops/roi_align.py`, which is torchvision's: another one moves the sample points.

_COUNTS = ["h0", "h1", "h2", "h3", "w0", "w1", "w2", "w3", "rows", "columns"]


@triton.jit(do_not_specialize=_COUNTS)
def _forward_kernel(
    pooled, f0, f1, f2, f3, h0, h1, h2, h3, w0, w1, w2, w3, s0, s1, s2, s3,
    boxes, image_index, level_index, channels, rows, columns,
    RATIO: tl.constexpr, SHIFT: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One bin of one RoI, BLOCK channels of it."""
    pid = tl.program_id(0)
    roi = pid // (rows * columns)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = lane < channels
    level = tl.load(level_index + roi).to(tl.int32)
    base, high, wide, scale = f0, h0, w0, s0
    if level == 1:
        base, high, wide, scale = f1, h1, w1, s1
    if level == 2:
        base, high, wide, scale = f2, h2, w2, s2
    if level == 3:
        base, high, wide, scale = f3, h3, w3, s3
    base += tl.load(image_index + roi).to(tl.int64) * high * wide * channels
    top, down, points_y = _axis(boxes + roi * 4 + 1, scale, rows, RATIO, SHIFT, LEAST)
    left, across, points_x = _axis(boxes + roi * 4, scale, columns, RATIO, SHIFT, LEAST)
    start_y = top + (pid // columns % rows).to(tl.float32) * down
    start_x = left + (pid % columns).to(tl.float32) * across
    total = tl.zeros([BLOCK], tl.float32)
    if RATIO > 0:
        for i in tl.static_range(RATIO):
            for j in tl.static_range(RATIO):
                total += _read(
                    base, start_y, down, i, RATIO, high, start_x, across, j, RATIO, wide, channels, lane, there
                )
    else:
        for i in range(points_y):
            for j in range(points_x):
                total += _read(
                    base, start_y, down, i, points_y, high, start_x, across, j, points_x, wide, channels, lane, there
                )
    total = tl.div_rn(total, tl.maximum(points_y * points_x, 1).to(tl.float32))
    tl.store(pooled + pid.to(tl.int64) * channels + lane, total.to(pooled.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_COUNTS)
def _backward_kernel(
    grad, g0, g1, g2, g3, h0, h1, h2, h3, w0, w1, w2, w3, s0, s1, s2, s3,
    boxes, image_index, level_index, channels, rows, columns,
    RATIO: tl.constexpr, SHIFT: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What one bin's gradient gives to its taps, added to the float32 maps g0..g3."""
    pid = tl.program_id(0)
    roi = pid // (rows * columns)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = lane < channels
    level = tl.load(level_index + roi).to(tl.int32)
    base, high, wide, scale = g0, h0, w0, s0
    if level == 1:
        base, high, wide, scale = g1, h1, w1, s1
    if level == 2:
        base, high, wide, scale = g2, h2, w2, s2
    if level == 3:
        base, high, wide, scale = g3, h3, w3, s3
    base += tl.load(image_index + roi).to(tl.int64) * high * wide * channels
    top, down, points_y = _axis(boxes + roi * 4 + 1, scale, rows, RATIO, SHIFT, LEAST)
    left, across, points_x = _axis(boxes + roi * 4, scale, columns, RATIO, SHIFT, LEAST)
    start_y = top + (pid // columns % rows).to(tl.float32) * down
    start_x = left + (pid % columns).to(tl.float32) * across
    given = tl.load(grad + pid.to(tl.int64) * channels + lane, mask=there, other=0.0).to(tl.float32)
    given = tl.div_rn(given, tl.maximum(points_y * points_x, 1).to(tl.float32))
    for i in range(points_y):
        for j in range(points_x):
            y0, y1, share_y0, share_y1 = _tap(start_y, down, i, points_y, high)
            x0, x1, share_x0, share_x1 = _tap(start_x, across, j, points_x, wide)
            _add(base, y0 * wide + x0, share_y0 * share_x0, given, channels, lane, there)
            _add(base, y0 * wide + x1, share_y0 * share_x1, given, channels, lane, there)
            _add(base, y1 * wide + x0, share_y1 * share_x0, given, channels, lane, there)
            _add(base, y1 * wide + x1, share_y1 * share_x1, given, channels, lane, there)


@triton.jit
def _axis(corner, scale, bins, RATIO: tl.constexpr, SHIFT: tl.constexpr, LEAST: tl.constexpr):
    """Along one axis, in cells: where the box begins, the length of a bin, and its number of sample points.

    corner: where the box's near edge is stored; the far one lies 2 behind it.
    """
    near = tl.load(corner) * scale - SHIFT
    length = tl.load(corner + 2) * scale - SHIFT - near
    if LEAST > 0:
        length = tl.maximum(length, LEAST)
    step = tl.div_rn(length, bins.to(tl.float32))
    if RATIO > 0:
        points = tl.full((), RATIO, tl.int32)
    else:  # as many as the bin has cells; none in a box without area or without numbers
        points = tl.where((step > 0.0) & (step < 1e6), tl.ceil(step), 0.0).to(tl.int32)
    return near, step, points


@triton.jit
def _tap(start, step, index, points, extent):
    """The two cells beside a sample point and their shares; both shares are 0 more than one cell outside the map."""
    count = tl.full((), points, tl.int32).to(tl.float32)
    at = start + tl.div_rn((tl.full((), index, tl.int32).to(tl.float32) + 0.5) * step, count)
    inside = (at >= -1.0) & (at <= extent.to(tl.float32))
    at = tl.where(inside, at, 0.0)
    at = tl.minimum(tl.maximum(at, 0.0), (extent - 1).to(tl.float32))
    low = at.to(tl.int32)
    beyond = at - low.to(tl.float32)
    share = inside.to(tl.float32)
    return low, tl.minimum(low + 1, extent - 1), (1.0 - beyond) * share, beyond * share


@triton.jit
def _read(base, start_y, down, i, points_y, high, start_x, across, j, points_x, wide, channels, lane, there):
    """The map's value at one sample point, (BLOCK,) float32."""
    y0, y1, share_y0, share_y1 = _tap(start_y, down, i, points_y, high)
    x0, x1, share_x0, share_x1 = _tap(start_x, across, j, points_x, wide)
    return (
        share_y0 * share_x0 * _load(base, y0 * wide + x0, channels, lane, there)
        + share_y0 * share_x1 * _load(base, y0 * wide + x1, channels, lane, there)
        + share_y1 * share_x0 * _load(base, y1 * wide + x0, channels, lane, there)
        + share_y1 * share_x1 * _load(base, y1 * wide + x1, channels, lane, there)
    )


@triton.jit
def _load(base, cell, channels, lane, there):
    return tl.load(base + cell.to(tl.int64) * channels + lane, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _add(base, cell, share, given, channels, lane, there):
    if share != 0.0:
        tl.atomic_add(base + cell.to(tl.int64) * channels + lane, given * share, mask=there, sem="relaxed")


# --- as operations of torch, which graphs hold as one step ----------------------------------------------------------


def _forward_fake(
    features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, level_index: Tensor, scales: Sequence[float],
    bins: Sequence[int], sampling_ratio: int, aligned: bool,
) -> Tensor:  # fmt: skip
    return features[0].new_empty(boxes.shape[0], *bins, features[0].shape[1])


def _backward_fake(
    grad: Tensor, boxes: Tensor, image_index: Tensor, level_index: Tensor, sizes: Sequence[int],
    scales: Sequence[float], sampling_ratio: int, aligned: bool,
) -> list[Tensor]:  # fmt: skip
    sides = zip(sizes[1::2], sizes[2::2], strict=True)
    return [grad.new_empty(sizes[0], high, wide, grad.shape[3]).permute(0, 3, 1, 2) for high, wide in sides]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, image_index, level_index, scales, _, sampling_ratio, aligned = inputs
    ctx.save_for_backward(boxes, image_index, level_index)
    sizes = [features[0].shape[0], *(side for feature in features for side in feature.shape[2:])]
    ctx.others = sizes, scales, sampling_ratio, aligned


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    gradients = torch.ops.maskrcnn.roi_align_gradient(grad, *ctx.saved_tensors, *ctx.others)
    return (gradients, *[None] * 7)


_PLACES = "Tensor boxes, Tensor image_index, Tensor level_index"

_forward_op: Any = torch.library.custom_op(
    "maskrcnn::roi_align",
    _forward,
    mutates_args=(),
    schema=f"(Tensor[] features, {_PLACES}, float[] scales, int[] bins, int sampling_ratio, bool aligned) -> Tensor",
)
_forward_op.register_fake(_forward_fake)
_forward_op.register_autograd(_gradient, setup_context=_keep_for_backward)

_backward_op: Any = torch.library.custom_op(
    "maskrcnn::roi_align_gradient",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_PLACES}, int[] sizes, float[] scales, int sampling_ratio, bool aligned) -> Tensor[]",
)
_backward_op.register_fake(_backward_fake)
