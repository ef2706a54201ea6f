"""Non-maximum suppression with outputs of fixed shape: a keep mask over the boxes that came in.

B boxes    D detections    k wanted
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from maskrcnn.ops.recorded import for_onnx, nms_rows
from maskrcnn.ops.triton.choice import takes_own


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
    keep = torch.zeros(boxes.shape[0], dtype=torch.bool, device=boxes.device)
    if groups is None and not torch.compiler.is_compiling():
        keep[rows[torchvision.ops.nms(chosen, chosen_scores, iou)]] = True
        return keep
    chosen_groups = torch.zeros_like(rows) if groups is None else groups[rows]
    if torch.compiler.is_compiling() or boxes.device.type == "cuda":
        kept = _keep_in_one_call(chosen, chosen_scores, chosen_groups, iou)
    else:
        kept = _keep_group_by_group(chosen, chosen_scores, chosen_groups, iou)
    keep[rows] = kept
    return keep


def nms_keep_batch(boxes: Tensor, scores: Tensor, valid: Tensor, iou: float, *, classes: int = 1) -> Tensor:
    """NMS picture by picture: boxes (N, B, 4), scores and valid (N, B); returns keep (N, B) bool.

    classes: each of B / classes RoIs has that many rows, one for each class in turn; boxes of different classes never
        meet.

    One call each for pictures, since the work of NMS grows with the square of the boxes that meet; a recorded graph
    that is to serve any number of pictures has one for all.
    """
    count, rows = scores.shape
    if for_onnx() or takes_own("nms", boxes.device):
        return _keep_in_rows(boxes, scores, valid, iou, classes)
    groups = None if classes == 1 else torch.arange(classes, device=boxes.device).repeat(rows // classes)
    if isinstance(count, torch.SymInt):
        pictures = torch.arange(count, device=boxes.device)[:, None].expand(count, rows)
        apart = pictures * classes + (0 if groups is None else groups)
        flat = (boxes.reshape(-1, 4), scores.reshape(-1))
        return nms_keep(*flat, iou, valid=valid.reshape(-1), groups=apart.reshape(-1)).reshape(count, rows)
    keep = [nms_keep(boxes[i], scores[i], iou, valid=valid[i], groups=groups) for i in range(count)]
    return torch.stack(keep)


def nms_keep_levels(
    boxes: Sequence[Tensor], scores: Sequence[Tensor], valid: Sequence[Tensor], iou: float
) -> list[Tensor]:
    """`nms_keep_batch` level by level: L tensors (N, B_l, 4), the rest (N, B_l); returns L keep masks (N, B_l)."""
    if not takes_own("nms", boxes[0].device):
        return [nms_keep_batch(b, s, v, iou) for b, s, v in zip(boxes, scores, valid, strict=True)]
    longest = max(level.shape[1] for level in scores)  # one launch for all, each level with a row for each picture
    rows = torch.cat([F.pad(level, (0, 0, 0, longest - level.shape[1])) for level in boxes])
    of_rows = [torch.cat([F.pad(x, (0, longest - x.shape[1])) for x in levels]) for levels in (scores, valid)]
    kept = torch.split(nms_keep_batch(rows, of_rows[0], of_rows[1], iou), len(scores[0]))
    return [keep[:, : level.shape[1]] for keep, level in zip(kept, scores, strict=True)]


def _keep_in_rows(boxes: Tensor, scores: Tensor, valid: Tensor, iou: float, classes: int) -> Tensor:
    """As `nms_keep_batch`, with a row for each class of each picture: the form of ONNX and of CUDA graphs."""

    def apart(values: Tensor) -> Tensor:  # (N, R * K, ...) -> (N * K, R, ...)
        return torch.unflatten(values, 1, (-1, classes)).transpose(1, 2).flatten(0, 1)

    if takes_own("nms", boxes.device):
        from maskrcnn.ops.triton.nms import keep_rows

        kept = keep_rows(apart(boxes), apart(scores), apart(valid), iou)
    else:
        places = boxes.masked_fill(~valid[..., None], 0)  # what is not valid may hold anything
        kept = nms_rows(apart(places), apart(scores.masked_fill(~valid, -torch.inf)), iou)
    return torch.unflatten(kept, 0, (-1, classes)).transpose(1, 2).flatten(1)


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
