"""The deltas (dx, dy, dw, dh) that carry one box to another, and back.

    dx = wx (gt_cx - cx) / w      dw = ww log(gt_w / w)
    dy = wy (gt_cy - cy) / h      dh = wh log(gt_h / h)

Girshick et al. 2014 (R-CNN), appendix C; Ren et al. 2015, Eq. 2. The weights (wx, wy, ww, wh) bring deltas to a
common spread: (1, 1, 1, 1) in the RPN, (10, 10, 5, 5) in the box head (Girshick 2015 normalised by statistics).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SIDE = 1e-3  # px; `encode` takes a thinner box for one of this side


@dataclass(frozen=True)
class BoxCoder:
    """One pair of `encode` and `decode`.

    weights: (wx, wy, ww, wh), what each delta is multiplied with when encoded.
    max_log_scale: dw and dh above this are cut before exp: a side grows at most by 1000 / 16 = 62.5 times,
        which takes a 16 px box to 1000 px and keeps an untrained net from inf.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    max_log_scale: float = math.log(1000.0 / 16)

    def encode(self, boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        """Deltas (..., 4) from `boxes` (..., 4) to `gt_boxes` (..., 4), both px of one frame.

        Finite for finite boxes: a side under `MIN_SIDE`, or a negative one, counts as `MIN_SIDE`, so an empty box
        gives large deltas rather than inf or NaN.
        """
        cx, cy, width, height = _centre_and_size(boxes)
        gt_cx, gt_cy, gt_width, gt_height = _centre_and_size(gt_boxes)
        width, height = width.clamp(min=MIN_SIDE), height.clamp(min=MIN_SIDE)
        gt_width, gt_height = gt_width.clamp(min=MIN_SIDE), gt_height.clamp(min=MIN_SIDE)
        wx, wy, ww, wh = self.weights
        dx, dy = wx * (gt_cx - cx) / width, wy * (gt_cy - cy) / height
        dw, dh = ww * torch.log(gt_width / width), wh * torch.log(gt_height / height)
        return torch.stack([dx, dy, dw, dh], dim=-1)

    def decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (x1, y1, x2, y2) in the shape of `deltas`, in the frame of `boxes`.

        Args:
            deltas: (..., 4), or (..., 4 * C) for C classes side by side.
            boxes: (..., 4), broadcast against the leading dimensions of `deltas`: (R, 1, 4) for deltas (R, K, 4).

        The order of operations is that of torchvision's coder, so float32 results are equal bit by bit. Deltas of
        lower precision than the boxes are widened first: a corner at 1000 px has 4 px steps in bfloat16.
        """
        dtype = torch.promote_types(deltas.dtype, boxes.dtype)
        wx, wy, ww, wh = self.weights
        split = deltas.to(dtype).reshape(*deltas.shape[:-1], deltas.shape[-1] // 4, 4)
        dx, dy, dw, dh = split.unbind(-1)  # each (..., C)
        cx, cy, width, height = _centre_and_size(boxes.to(dtype).unsqueeze(-2))  # each (..., 1)
        new_cx, new_cy = dx / wx * width + cx, dy / wy * height + cy
        half_width = 0.5 * (torch.exp((dw / ww).clamp(max=self.max_log_scale)) * width)
        half_height = 0.5 * (torch.exp((dh / wh).clamp(max=self.max_log_scale)) * height)
        corners = [new_cx - half_width, new_cy - half_height, new_cx + half_width, new_cy + half_height]
        return torch.stack(corners, dim=-1).flatten(-2)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
