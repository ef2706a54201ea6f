"""RoIWarp (Dai, He and Sun 2016, 3.2): bilinear values out of a box whose corners are moved to whole cells first.

    N images    C channels    H, W map size    R RoIs    S pooled side    L levels
    boxes: (x1, y1, x2, y2), float pixels of the padded picture; a map cell is `stride` px wide

It stands between RoIPool and RoIAlign: of the two roundings of RoIPool it keeps the first one.
- Rounded: the corners of the box, x / stride, each to the nearest whole number, halves away from zero; "quantizing RoI
  just like RoIPool" (He et al. 2017, 3). The formula of Dai et al. has no rounding, their released layer has it; that
  layer then takes far minus near corner for the width, without the one cell more of RoIPool, and so does this file. A
  side that would be nothing is made one cell.
- Not rounded: the bins, S equal parts of what the corners span, and the sample points, read by bilinear interpolation.
A bin is the mean of its points, as "RoIWarp, ave" in He et al. 2017, Table 2c. (The released layer takes one point, at
the near edge of a bin, and has a layer for max pooling follow.) So it is RoIAlign of a box that is up to half a cell
off, and what lies outside the map is read as RoIAlign does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn.ops.cells import to_whole
from maskrcnn.ops.roi_align import Kernel, roi_align_levels


def roi_warp_levels(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    size: int | tuple[int, int],
    *,
    strides: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = True,
    kernel: Kernel | None = None,
) -> Tensor:
    """Pool R boxes, each from its own level of a pyramid: (R, C, S, S). Arguments as in `roi_align_levels`.

    aligned: whether whole numbers are the edges of cells, so that a box holds whole cells; False: their centres, as in
        the paper's formula, half a cell off. No gradient flows into the boxes, which the paper's layer lets through.
    """
    return roi_align_levels(
        features,
        _on_whole_cells(boxes, strides, level_index),
        image_index,
        level_index,
        size,
        strides=strides,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        kernel=kernel,
    )


def _on_whole_cells(boxes: Tensor, strides: Sequence[float], level_index: Tensor) -> Tensor:
    """(R, 4) px: the boxes with corners on multiples of their level's stride."""
    boxes = boxes.detach() if boxes.dtype == torch.float64 else boxes.detach().float()
    stride = boxes.new_tensor(strides)[level_index][:, None]
    corners = to_whole(boxes / stride)
    near, far = corners[:, :2], corners[:, 2:]
    return torch.cat([near, far.maximum(near + 1)], dim=1) * stride
