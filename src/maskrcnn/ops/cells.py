"""Maps as one table of cells, and pooled values as weighted sums of its rows: what RoIAlign and its kin have in common.

    N images    C channels    H, W map size    R RoIs    S pooled side    L levels
    tap: a cell with a weight    bag: the taps of one pooled value

`embedding_bag` takes such sums with compiled kernels, which makes both lanes fast on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.ops.recorded import for_onnx


def table_of(features: Sequence[Tensor]) -> Tensor:
    """All maps as rows of one table (cells, C): level by level, image by image, row by row.

    One level in channels-last order is a view; several are copied.
    """
    tables = [feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1]) for feature in features]
    return tables[0] if len(tables) == 1 else torch.cat(tables)


def wants_one_call(features: Sequence[Tensor]) -> bool:
    """Whether all levels go through one table rather than one after the other.

    One table keeps shapes fixed, which a recorded graph needs, but copies all maps into it: 75 MB for p2..p5 of
    800 x 1088 at 256 channels in float32, most of the time of a call. Plain detection is spared that copy; in training
    the single call wins, since its gradient is made in one as well. Measured on one Zen 4 core, ms, one table and
    level by level: forward, 256 channels, 1000 boxes at 7 x 7, float32 61 and 38, bfloat16 10 and 13; 100 at 14 x 14,
    34 and 6, 5 and 5; 64 channels, 7 and 8. With backward, 1000 at 7 x 7, float32 85 and 155, bfloat16 41 and 71.
    """
    if for_onnx():  # RoiAlign is of one map, and rows of a level are chosen at no cost
        return False
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(feature.requires_grad for feature in features)


def level_by_level(
    pool: Callable[[int, Tensor], Tensor],
    features: Sequence[Tensor],
    level_index: Tensor,
    bins: tuple[int, int],
    layout: torch.memory_format = torch.channels_last,
) -> Tensor:
    """(R, C, *bins), put together from what `pool(level, members)` says of the boxes (members,) of each level."""
    shape = (level_index.shape[0], features[0].shape[1], *bins)
    pooled = torch.empty(shape, dtype=features[0].dtype, device=features[0].device, memory_format=layout)
    for level in range(len(features)):
        members = (level_index == level).nonzero().squeeze(1)
        pooled[members] = pool(level, members)
    return pooled


@dataclass(frozen=True)
class MapOfBox:
    """The map that each box is pooled from; all (R,) int32."""

    height: Tensor  # cells
    width: Tensor
    first_cell: Tensor  # row of the table where the map of the box's image and level begins

    def chosen(self, rows: Tensor) -> MapOfBox:
        return MapOfBox(self.height[rows], self.width[rows], self.first_cell[rows])


def map_of_box(features: Sequence[Tensor], image_index: Tensor, level_index: Tensor) -> MapOfBox:
    """Where in `table_of(features)` the map of each box lies. image_index, level_index: (R,)."""
    facts, start = [], 0
    for feature in features:
        high, wide = feature.shape[-2:]
        facts.append([high, wide, high * wide, start])
        start += feature.shape[0] * high * wide
    # int32 halves the traffic of the taps; a table too long for it would fill 550 GB at 64 channels.
    of_level = torch.tensor(facts, dtype=torch.int32, device=level_index.device)
    height, width, cells, first_cell = of_level[level_index].unbind(1)
    return MapOfBox(height, width, first_cell + image_index.to(torch.int32) * cells)


def to_whole(places: Tensor) -> Tensor:
    """Rounded to whole cells, halves away from zero as in C (`torch.round` has them go to even numbers)."""
    whole = places.trunc()
    return whole + (places - whole).abs().ge(0.5) * places.sign()


def equal(values: Tensor, others: Tensor | int) -> Tensor:
    """1 where equal, else 0, in float32 or float64: on a CPU ten times as fast as what comes of masks. No gradient."""
    kind = torch.promote_types(values.dtype, torch.float32)
    return torch.eq(values, others, out=torch.empty(values.shape, dtype=kind, device=values.device))


def outer(rows: Tensor, columns: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(R, Sy, Ty) with (R, Sx, Tx) to (R * Sy * Sx, Ty * Tx)."""
    num_rois, bins_y, taps_y = rows.shape
    _, bins_x, taps_x = columns.shape
    # Both are first laid out as runs of Ty * Tx: broadcasting over runs of Tx = 4 takes four times as long.
    rows = rows[..., None].expand(-1, -1, -1, taps_x).reshape(num_rois, bins_y, 1, taps_y * taps_x)
    columns = columns[:, :, None].expand(-1, -1, taps_y, -1).reshape(num_rois, 1, bins_x, taps_y * taps_x)
    return combine(rows, columns).view(num_rois * bins_y * bins_x, taps_y * taps_x)


def weighted_bag(table: Tensor, rows: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Weighted sums (B, C) of rows of `table` (cells, C): taps (E,), and (B,) where each bag's first one is."""
    weights = weights.to(table.dtype)
    if torch.is_grad_enabled() and table.requires_grad:
        pooled: Tensor = _WeightedBag.apply(table, rows, weights, offsets)
        return pooled
    return F.embedding_bag(rows, table, offsets, per_sample_weights=weights, mode="sum")


class _WeightedBag(torch.autograd.Function):
    """`embedding_bag` whose gradient is a bag as well: every cell sums what its taps received.

    Compared with the gradient that comes with `embedding_bag`, 512 boxes with 256 channels take 35 ms rather than 50
    in float32 and 22 rather than 52 in bfloat16 (Zen 4, one core). Sums run in float32 inside the kernel and are
    rounded once: in bfloat16 the gradient is 0.2% off its float64 value, and stays so where many boxes overlap,
    while adding tap by tap in bfloat16 is 0.5% to 0.9% off and gets worse with every box.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, offsets)
        ctx.num_cells = table.shape[0]
        return F.embedding_bag(rows, table, offsets, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        rows, weights, offsets = ctx.saved_tensors
        order = rows.argsort(stable=True)
        taps_per_cell = torch.bincount(rows, minlength=ctx.num_cells)
        first_tap = (taps_per_cell.cumsum(0) - taps_per_cell).to(rows.dtype)
        taps_per_bag = torch.diff(offsets, append=offsets.new_tensor([len(rows)]))
        bag = torch.repeat_interleave(taps_per_bag)
        return weighted_bag(grad.contiguous(), bag[order].to(rows.dtype), weights[order], first_tap), None, None, None
