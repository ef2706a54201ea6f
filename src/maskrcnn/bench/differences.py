"""How far two sides' detections of one picture lie apart: boxes, scores, pixels of masks."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from maskrcnn.bench.sides import Found
from maskrcnn.ops.boxes import iou
from maskrcnn.ops.masks import paste_masks

EXACT_IOU, REDUCED_IOU = 0.9, 0.5  # two boxes of one class that overlap more are the same object, by precision
DOUBT = 1e-4  # a pixel whose probability is nearer than this to 0.5 may fall on either side


@dataclass(frozen=True)
class Differences:
    """Largest over all pairs of detections that both sides have.

    boxes_px: of a corner. scores: as they are. mask_pixels: those that differ where both sides' masks are pasted by our
    rule (torchvision's own rounds boxes to whole pixels, which says nothing of the network), of area_pixels that the
    peer's masks cover; clear_pixels: of these, those whose probability is not within 0.5 +- 1e-4 on either side.
    pairs: detections of both sides. one_sided: detections of one side only.
    """

    boxes_px: float = 0.0
    scores: float = 0.0
    mask_pixels: int = 0
    clear_pixels: int = 0
    area_pixels: int = 0
    pairs: int = 0
    one_sided: int = 0

    def __add__(self, other: Differences) -> Differences:
        """Of both pictures."""
        return Differences(
            boxes_px=max(self.boxes_px, other.boxes_px),
            scores=max(self.scores, other.scores),
            mask_pixels=self.mask_pixels + other.mask_pixels,
            clear_pixels=self.clear_pixels + other.clear_pixels,
            area_pixels=self.area_pixels + other.area_pixels,
            pairs=self.pairs + other.pairs,
            one_sided=self.one_sided + other.one_sided,
        )

    def as_facts(self) -> dict[str, float | int]:
        return asdict(self)


def differences(ours: Found, peer: Found, same_iou: float = EXACT_IOU) -> Differences:
    """same_iou: boxes of one class that overlap more are one object."""
    mine, theirs = pairs(ours, peer, same_iou)
    found = Differences(pairs=len(mine), one_sided=len(ours) + len(peer) - 2 * len(mine))
    if not len(mine):
        return found
    pixels, clear, area = _pixels(ours, peer, mine, theirs)
    return found + Differences(
        boxes_px=float((ours.boxes[mine] - peer.boxes[theirs]).abs().max()),
        scores=float((ours.scores[mine] - peer.scores[theirs]).abs().max()),
        mask_pixels=pixels,
        clear_pixels=clear,
        area_pixels=area,
    )


def pairs(ours: Found, peer: Found, same_iou: float) -> tuple[Tensor, Tensor]:
    """Positions (P,) and (P,) of the detections that both have: of one class, each the other's nearest."""
    if not len(ours) or not len(peer):
        none = torch.zeros(0, dtype=torch.int64)
        return none, none
    overlap = iou(ours.boxes, peer.boxes) * (ours.labels[:, None] == peer.labels)
    best, nearest = overlap.max(1)
    both = (best > same_iou) & (overlap.argmax(0)[nearest] == torch.arange(len(ours)))
    return both.nonzero().squeeze(1), nearest[both]


def _pixels(ours: Found, peer: Found, mine: Tensor, theirs: Tensor) -> tuple[int, int, int]:
    """(pixels that differ, of these the clear ones, pixels of the peer's masks), both pasted by our rule."""
    if ours.probabilities is None or peer.probabilities is None:
        return 0, 0, 0
    different = clear = area = 0
    for i, j in zip(mine.tolist(), theirs.tolist(), strict=True):  # one by one: 100 bitmaps of a large picture are GBs
        a, doubtful_a = _pasted(ours, i)
        b, doubtful_b = _pasted(peer, j)
        differs = a ^ b
        different += int(differs.sum())
        clear += int((differs & ~(doubtful_a | doubtful_b)).sum())
        area += int(b.sum())
    return different, clear, area


def _pasted(found: Found, i: int) -> tuple[Tensor, Tensor]:
    """(H, W) bool: mask i, and the pixels of it that may fall on either side of 0.5."""
    assert found.probabilities is not None
    grid, box = found.probabilities[i : i + 1], found.boxes[i : i + 1]
    low, middle, high = (paste_masks(grid, box, found.size, 0.5 + d)[0] for d in (-DOUBT, 0.0, DOUBT))
    return middle, low & ~high
