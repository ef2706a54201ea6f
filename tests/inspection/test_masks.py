"""Masks: every array on the way from M x M to pixels against the definition, and the last against what is pasted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskrcnn.inspection.canvas import View
from maskrcnn.inspection.draw_masks import mask_figures
from maskrcnn.inspection.masks import agreement, class_masks, mask_steps, painted, resize_into_box, spread
from maskrcnn.ops.masks import rasterise
from maskrcnn.ops.rle import decode, encode

from .detectors import (
    Change,
    boxes_only,
    by_masks,
    cascade,
    centred,
    competing,
    fully_connected,
    inspected,
    one_map,
    plain,
)


@pytest.mark.parametrize("change", [plain, centred, cascade, by_masks, one_map, competing, fully_connected])
def test_the_mask_of_the_detected_class_is_the_detectors_own(change: Change) -> None:
    steps = inspected(change)
    rows = list(range(min(6, len(steps.detections))))
    classes, masks = class_masks(steps, rows), steps.detections.masks
    assert masks is not None and classes.shape == (len(rows), 3, 28, 28)
    for row, each in zip(rows, classes, strict=True):
        own = each[int(steps.detections.labels[row]) - 1]
        assert torch.allclose(own, masks.probabilities[row], atol=1e-5)
    assert not torch.allclose(classes[:, 0], classes[:, 1], atol=1e-3)


@pytest.mark.parametrize("change", [plain, centred])
def test_the_way_ends_in_the_mask_that_is_pasted(change: Change) -> None:
    steps = inspected(change)
    masks, target = steps.detections.masks, steps.target
    assert masks is not None and target is not None and target.gt_masks is not None
    bitmaps = masks.bitmaps().numpy()
    truth = np.stack([decode(rle) for rle in rasterise(target.gt_masks, target.size)]) > 0
    rows = list(range(0, len(masks), 3))
    for each in mask_steps(steps, rows):
        height, width = each.inside.shape
        whole = np.zeros(steps.size, dtype=bool)
        whole[each.top : each.top + height, each.left : each.left + width] = each.inside
        assert np.array_equal(whole, bitmaps[each.detection]) and np.array_equal(decode(each.rle) > 0, whole)
        assert torch.equal(each.chosen, masks.probabilities[each.detection]) and each.scale == 1
        overlaps = [(whole & one).sum() / max((whole | one).sum(), 1) for one in truth]
        assert each.iou == pytest.approx(max(overlaps))
        if each.gt_index is None:
            assert max(overlaps) == 0 and each.truth is None
        else:
            assert overlaps[each.gt_index] == max(overlaps) and each.truth is not None
            seen = truth[each.gt_index][each.top : each.top + height, each.left : each.left + width]
            assert np.array_equal(each.truth, seen)
    assert any(each.gt_index is not None for each in mask_steps(steps, rows))


def test_resizing_is_bilinear_with_zeros_around() -> None:
    generator = torch.Generator().manual_seed(4)
    probabilities = torch.rand(7, 7, generator=generator)
    for box in ((10.2, 5.7, 33.9, 40.1), (-4.0, -3.5, 20.0, 9.0), (50.5, 44.0, 70.0, 52.0)):
        values, left, top = resize_into_box(probabilities, torch.tensor(box), (50, 60))
        y, x = torch.meshgrid(
            torch.arange(top, top + values.shape[0]) + 0.5,
            torch.arange(left, left + values.shape[1]) + 0.5,
            indexing="ij",
        )
        grid = torch.stack([(x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])], dim=-1) * 2 - 1
        expected = F.grid_sample(
            probabilities[None, None].double(), grid[None].double(), padding_mode="zeros", align_corners=False
        )[0, 0]
        assert np.allclose(values, expected.numpy(), atol=1e-6)
        assert left >= 0 and top >= 0 and top + values.shape[0] <= 50 and left + values.shape[1] <= 60
    assert resize_into_box(probabilities, torch.tensor([5.0, 5.0, 5.0, 9.0]), (50, 60))[0].shape[1] == 0


def test_a_huge_object_comes_coarser() -> None:
    """Of a box of 9000 px no array is larger than about 2000 px, and the IoU is still that of whole masks."""
    steps = inspected()
    masks = steps.detections.masks
    assert masks is not None
    box, size = torch.tensor([[500.0, 300.0, 9500.0, 7500.0]]), (9000, 12000)
    wide = replace(masks[:1], boxes=box, size=size)
    found = replace(steps.detections.chosen(torch.arange(len(masks)) == 0), boxes=box, masks=wide, size=size)
    each = mask_steps(replace(steps, detections=found, target=None), [0])[0]
    assert max(each.inside.shape) <= 2100 and each.scale == pytest.approx(2000 / 9000)
    pixels = int(np.sum([c for c in decode_counts(each.rle["counts"], size)]))
    assert each.inside.sum() / each.scale**2 == pytest.approx(pixels, rel=0.01)
    assert each.iou is None and each.gt_index is None


def decode_counts(counts: str, size: tuple[int, int]) -> list[int]:
    """Lengths of the runs inside, of an RLE."""
    from maskrcnn.ops.rle import RLE, counts_of

    return counts_of(RLE(size=list(size), counts=counts))[1::2].tolist()


def test_agreement_counts_pixels() -> None:
    steps = inspected()
    found, masks, target = agreement(steps, 1.0, least=0.3), steps.detections.masks, steps.target
    assert found is not None and masks is not None and target is not None and target.gt_masks is not None
    inside = masks[steps.detections.scores >= 0.3].bitmaps().numpy().any(axis=0)
    truth = np.stack([decode(rle) for rle in rasterise(target.gt_masks, target.size)]).any(axis=0)
    assert np.array_equal(found.found, inside) and found.truth is not None and np.array_equal(found.truth, truth)
    assert found.pixels == ((inside & truth).sum(), (inside & ~truth).sum(), (~inside & truth).sum())
    half = agreement(steps, 0.5, least=0.3)
    assert half is not None and half.found.shape == (48, 64)
    assert half.truth is not None and half.truth.sum() * 4 == pytest.approx(truth.sum(), rel=0.1)
    assert agreement(inspected(boxes_only), 1.0) is None


def test_the_best_is_painted_last() -> None:
    first, second = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)
    first[1:3, 1:3], second[2:4, 2:5] = 1, 1
    canvas = painted([encode(first), encode(second)], [7, 9], (4, 5))
    assert canvas.tolist() == [[0, 0, 0, 0, 0], [0, 7, 7, 0, 0], [0, 7, 7, 9, 9], [0, 0, 9, 9, 9]]
    assert painted([], [], (2, 2)).tolist() == [[0, 0], [0, 0]]


def test_followed_are_large_ones_from_best_to_worst() -> None:
    steps = inspected()
    rows = spread(steps, 3, least=0.0)
    assert len(rows) == 3 and rows == sorted(rows)
    boxes = steps.detections.boxes
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    third = -(-len(boxes) // 3)
    assert float(areas[rows[0]]) == float(areas[:third].max())
    assert spread(inspected(score_threshold=1.0), 3) == []


def test_figures_of_masks() -> None:
    steps = inspected()
    names = [figure.name for figure in mask_figures(steps, View.of(steps.picture))]
    assert names == ["masks_steps", "masks_classes", "masks_picture"]
    chosen = mask_figures(steps, View.of(steps.picture), rows=[2, 0])[0]
    assert [row[0] for row in chosen.numbers[1:]] == [2, 0]
    assert mask_figures(inspected(boxes_only), View.of(steps.picture)) == []
    nothing = inspected(score_threshold=1.0)
    assert [f.name for f in mask_figures(nothing, View.of(nothing.picture))] == ["masks_steps", "masks_picture"]


@pytest.mark.parametrize(("change", "said"), [(competing, "and the background compete"), (plain, "do not compete")])
def test_the_figure_says_whether_classes_compete(change: Change, said: str) -> None:
    steps = inspected(change)
    figures = {figure.name: figure for figure in mask_figures(steps, View.of(steps.picture))}
    assert f"and classes {said} for a pixel" in figures["masks_classes"].caption
    sums = class_masks(steps, [0]).sum(dim=1)
    assert (float(sums.max()) <= 1 + 1e-5) == (change is competing)
