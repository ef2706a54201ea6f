"""Greedy suppression, a program for each row of boxes: one launch for all pictures, levels and classes.

    G rows, which never meet    B boxes of each

A program sweeps its row, best first, in blocks: a block's boxes fall to those kept before it, then to one another, and
what stays joins the kept ones. So memory grows with B, not with its square, and time with the boxes that are valid.
The numbers are those of torchvision's op on a CPU, rounding for rounding.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64  # boxes settled together: 4096 overlaps, 32 a thread


def keep_rows(boxes: Tensor, scores: Tensor, valid: Tensor, iou: float) -> Tensor:
    """(G, B) bool: which boxes survive, row by row; of equal scores the first goes first.

    boxes: (G, B, 4) px, compared in float32. scores, valid: (G, B). Both finite where valid. iou: 0..1.
    """
    if valid.numel() == 0:
        return valid.clone()
    order = scores.detach().masked_fill(~valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    best_first = boxes.detach().float().gather(1, order[..., None].expand(-1, -1, 4))
    kept: Tensor = torch.ops.maskrcnn.nms_sweep(best_first, valid.sum(dim=1, dtype=torch.int32), _rounded_down(iou))
    return torch.zeros_like(kept).scatter_(1, order, kept)


def _rounded_down(limit: float) -> float:
    """The largest float32 that is not above `limit`, 0..1: none lies between, so that comparing with either is one."""
    single: float = struct.unpack("f", struct.pack("f", limit))[0]
    if single <= limit:
        return single
    bits: int = struct.unpack("I", struct.pack("f", single))[0]
    below: float = struct.unpack("f", struct.pack("I", bits - 1))[0]
    return below


def _sweep(boxes: Tensor, counts: Tensor, limit: float) -> Tensor:
    """(G, B) bool for boxes (G, B, 4), best first, of which the first counts (G,) int32 are valid."""
    rows, length = boxes.shape[:2]
    boxes = boxes.contiguous()
    keep = torch.zeros(rows, length, dtype=torch.int8, device=boxes.device)
    # fused multiply-adds round once where the definition rounds twice
    with torch.cuda.device_of(boxes):
        _sweep_kernel[(rows,)](
            boxes,
            counts,
            torch.empty_like(boxes),
            keep,
            limit,
            length,
            BLOCK=_BLOCK,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return keep.bool()


@triton.jit(do_not_specialize=["length"])
def _sweep_kernel(boxes, counts, kept_boxes, keep, limit, length, BLOCK: tl.constexpr):
    """One row. kept_boxes: room for as many as `boxes`."""
    row = tl.program_id(0).to(tl.int64)
    boxes += row * length * 4
    kept_boxes += row * length * 4
    keep += row * length
    valid = tl.load(counts + row)
    lane = tl.arange(0, BLOCK)
    count = tl.full((), 0, tl.int32)  # kept so far
    for begin in range(0, valid, BLOCK):
        at = begin + lane
        alive = at < valid
        x1, y1, x2, y2 = _load_boxes(boxes, at, alive)
        for done in range(0, count, BLOCK):
            there = done + lane < count
            kx1, ky1, kx2, ky2 = _load_boxes(kept_boxes, done + lane, there)
            over = _overlap(kx1, ky1, kx2, ky2, x1, y1, x2, y2, limit) & there[:, None]
            alive = alive & (tl.max(over.to(tl.int32), axis=0) == 0)
        better = lane[:, None] < lane[None, :]
        over = (_overlap(x1, y1, x2, y2, x1, y1, x2, y2, limit) & better).to(tl.int32)
        candidate = alive.to(tl.int32)
        kept = candidate
        changed = tl.full((), 1, tl.int32)
        while changed > 0:  # until "kept where no better kept one overlaps" holds for all
            settled = candidate * (1 - tl.max(over * kept[:, None], axis=0))
            changed = tl.sum((settled != kept).to(tl.int32), axis=0)
            kept = settled
        _store_boxes(kept_boxes, count + tl.cumsum(kept, 0) - kept, kept > 0, x1, y1, x2, y2)
        tl.store(keep + at, kept.to(tl.int8), mask=at < valid)
        count += tl.sum(kept, axis=0)
        tl.debug_barrier()  # the kept boxes are read by other threads next


@triton.jit
def _overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, limit):
    """(A, B): whether the IoU is above the limit; not so between two empty boxes, 0 / 0."""
    width = tl.minimum(ax2[:, None], bx2[None, :]) - tl.maximum(ax1[:, None], bx1[None, :])
    height = tl.minimum(ay2[:, None], by2[None, :]) - tl.maximum(ay1[:, None], by1[None, :])
    common = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    area = (ax2 - ax1) * (ay2 - ay1)
    other = (bx2 - bx1) * (by2 - by1)
    union = area[:, None] + other[None, :] - common
    return tl.div_rn(common, union) > limit


@triton.jit
def _load_boxes(boxes, at, mask):
    near = boxes + at * 4
    x1 = tl.load(near, mask=mask, other=0.0)
    y1 = tl.load(near + 1, mask=mask, other=0.0)
    x2 = tl.load(near + 2, mask=mask, other=0.0)
    y2 = tl.load(near + 3, mask=mask, other=0.0)
    return x1, y1, x2, y2


@triton.jit
def _store_boxes(boxes, at, mask, x1, y1, x2, y2):
    near = boxes + at * 4
    tl.store(near, x1, mask=mask)
    tl.store(near + 1, y1, mask=mask)
    tl.store(near + 2, x2, mask=mask)
    tl.store(near + 3, y2, mask=mask)


def _fake(boxes: Tensor, counts: Tensor, limit: float) -> Tensor:
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


_op: Any = torch.library.custom_op(
    "maskrcnn::nms_sweep", _sweep, mutates_args=(), schema="(Tensor boxes, Tensor counts, float limit) -> Tensor"
)
_op.register_fake(_fake)
