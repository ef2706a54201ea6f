"""Non-maximum suppression with outputs of fixed shape: a keep mask over the boxes that came in.

B boxes    D detections    k wanted
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor


def nms_keep(
    boxes: Tensor, scores: Tensor, iou: float, *, valid: Tensor | None = None, groups: Tensor | None = None
) -> Tensor:
    """Which boxes survive greedy suppression: (B,) bool.

    Going from the best score down, a box falls when its IoU with a kept box of its group is above `iou`. Equal
    scores are taken in the order of their index.

    Args:
        boxes: (B, 4) px. scores: (B,). iou: 0..1.
        valid: (B,) bool; the others come back False and suppress nothing. They are left out of the work.
        groups: (B,) int64, at least 0; boxes of different groups never meet (classes, levels, pictures).

    Boxes must be finite where valid. The result is that of torchvision's compiled NMS, group by group.
    """
    rows = torch.arange(boxes.shape[0], device=boxes.device) if valid is None else valid.nonzero().squeeze(1)
    chosen, chosen_scores = boxes.detach()[rows], scores.detach()[rows].to(boxes.dtype)
    chosen_groups = torch.zeros_like(rows) if groups is None else groups[rows]
    if torch.compiler.is_compiling() or (groups is not None and boxes.device.type == "cuda"):
        kept = _keep_in_one_call(chosen, chosen_scores, chosen_groups, iou)
    else:
        kept = _keep_group_by_group(chosen, chosen_scores, chosen_groups, iou)
    keep = torch.zeros(boxes.shape[0], dtype=torch.bool, device=boxes.device)
    keep[rows] = kept
    return keep


def mask_nms_keep(iou: Tensor, scores: Tensor, limit: float) -> Tensor:
    """The same rule on any overlaps: (D,) bool from the symmetric `iou` (D, D) and `scores` (D,).

    For masks: two long cells that cross share a box but few pixels.

    Found as the fixed point of "kept where no better kept one overlaps". Each round settles at least the best of
    what is left, and all of it that does not hang on a chain, so that rounds are few and each is one product.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    suppresses = (iou[order][:, order] > limit).triu(1).float()  # (D, D): row is better than column
    kept = torch.ones_like(scores, dtype=torch.bool)
    while True:
        settled = kept.float() @ suppresses == 0
        if torch.equal(settled, kept):
            break
        kept = settled
    keep = torch.zeros_like(kept)
    keep[order] = kept
    return keep


def top_k(scores: Tensor, k: int, *, stable: bool = False) -> tuple[Tensor, Tensor]:
    """The k best along the last dimension, best first: values (..., D) and their int64 index (..., D).

    D = min(k, B) of scores (..., B): k may be far more than there are and costs nothing then.
    stable: equal scores in the order of their index; else in any order, which is faster.
    """
    count = min(k, scores.shape[-1])
    if stable:
        values, index = scores.sort(dim=-1, descending=True, stable=True)
        return values[..., :count], index[..., :count]
    best = scores.topk(count, dim=-1)
    return best.values, best.indices


def _keep_group_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """(B,) bool. On a CPU the op compares every pair: 20 groups of 1000 boxes take 77 ms in 20 calls, 477 ms in one."""
    order = groups.argsort(stable=True)
    sizes = torch.unique_consecutive(groups[order], return_counts=True)[1].tolist()
    keep = torch.zeros_like(groups, dtype=torch.bool)
    for rows in torch.split(order, sizes):
        keep[rows[torchvision.ops.nms(boxes[rows], scores[rows], iou)]] = True
    return keep


def _keep_in_one_call(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """(B,) bool, each group moved to a place of its own: for CUDA, and where a graph is recorded.

    The sum is made in float64, which has 29 bits more than a float32 coordinate: in float32 the offset would round
    the coordinates, and a box's IoU would depend on the number of its group. Two empty boxes stand at the end, since
    graphs are recorded for two rows or more; they meet no other box.
    """
    wide, wide_scores = F.pad(boxes.double(), (0, 0, 0, 2)), F.pad(scores.double(), (0, 2), value=float("-inf"))
    spread = wide.max() - wide.min() + 1.0
    offset = F.pad(groups, (0, 2)) * spread
    keep = torch.zeros_like(wide_scores, dtype=torch.bool)
    keep[torchvision.ops.nms(wide + offset[:, None], wide_scores, iou)] = True
    return keep[:-2]
