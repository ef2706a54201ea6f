"""Two sides' detections made by hand: what is paired, and how far apart it is."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.bench.differences import Differences, differences, pairs
from maskrcnn.bench.sides import Found

BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 30.0]])


def found(boxes: torch.Tensor, labels: list[int], scores: list[float], masks: torch.Tensor | None = None) -> Found:
    return Found(boxes, torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), masks, [], (48, 48))


def test_the_same() -> None:
    side = found(BOXES, [1, 2], [0.9, 0.8], torch.rand(2, 7, 7))
    same = differences(side, side)
    assert (same.boxes_px, same.scores, same.mask_pixels, same.clear_pixels) == (0, 0, 0, 0)
    assert (same.pairs, same.one_sided) == (2, 0)


def test_largest_of_each_and_order_does_not_matter() -> None:
    ours = found(BOXES, [1, 2], [0.9, 0.8])
    moved = BOXES.flip(0) + torch.tensor([[0.0, 0.0, 0.0, -0.25], [0.125, 0.0, 0.0, 0.0]])
    peer = found(moved, [2, 1], [0.75, 0.875])
    apart = differences(ours, peer)
    assert apart.boxes_px == 0.25
    assert apart.scores == pytest.approx(0.05)
    assert apart.pairs == 2


def test_another_class_or_place_is_of_one_side_only() -> None:
    ours = found(BOXES, [1, 2], [0.9, 0.8])
    peer = found(BOXES + torch.tensor([[0.0], [5.0]]), [3, 2], [0.9, 0.8])
    assert differences(ours, peer) == Differences(pairs=0, one_sided=4)
    mine, theirs = pairs(ours, peer, same_iou=0.1)
    assert (mine.tolist(), theirs.tolist()) == ([1], [1])


def test_none_found() -> None:
    ours, nothing = found(BOXES, [1, 2], [0.9, 0.8]), found(torch.zeros(0, 4), [], [])
    assert differences(ours, nothing) == Differences(one_sided=2)
    assert differences(nothing, nothing) == Differences()


@pytest.mark.parametrize(("value", "clear"), [(0.49995, 0), (0.4, 100)])
def test_pixels_near_the_threshold_are_told_apart(value: float, clear: int) -> None:
    """A mask of the probability 0.50005 fills its box of 100 pixels, one of less than 0.5 has none of them."""
    box = BOXES[:1] + 4
    ours = found(box, [1], [0.9], torch.full((1, 1, 1), 0.50005))
    peer = found(box, [1], [0.9], torch.full((1, 1, 1), value))
    # the mask's border fades out: one cell of M = 1 has its full value at the centre of the box alone
    ours_wide = found(box, [1], [0.9], torch.full((1, 28, 28), 0.50005 if clear == 0 else 0.9))
    peer_wide = found(box, [1], [0.9], torch.full((1, 28, 28), value))
    apart = differences(ours_wide, peer_wide)
    assert apart.mask_pixels == 100 and apart.clear_pixels == clear
    assert differences(ours, peer).pairs == 1


def test_sum_of_two_pictures() -> None:
    a = Differences(boxes_px=1.0, scores=0.1, mask_pixels=5, clear_pixels=1, area_pixels=100, pairs=3, one_sided=1)
    b = Differences(boxes_px=0.5, scores=0.2, mask_pixels=1, clear_pixels=0, area_pixels=50, pairs=2, one_sided=0)
    assert a + b == Differences(1.0, 0.2, 6, 1, 150, 5, 1)
