"""Anchors: the search by windows is the plain comparison of all with all, and says what the loss would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskrcnn.inspection.anchors import best_anchors, match_anchors
from maskrcnn.inspection.canvas import View
from maskrcnn.inspection.draw_anchors import BANDS, anchor_figures, band_of
from maskrcnn.losses.matcher import FOREGROUND, match
from maskrcnn.losses.rpn_loss import RPNLossConfig
from maskrcnn.ops.boxes import iou
from maskrcnn.structures import Target

from .detectors import Change, centred, inspected, one_map, plain


@pytest.mark.parametrize("change", [plain, centred, one_map])
def test_the_rule_is_that_of_the_matcher(change: Change) -> None:
    steps = inspected(change)
    assert steps.target is not None
    found = match_anchors(steps)
    assert found is not None
    matches, coverage = found
    objects = steps.in_padded(steps.target.gt_boxes)
    expected = match(steps.anchors, objects, foreground_iou=0.7, background_iou=0.3, keep_best=True)
    assert torch.equal(matches.kind, expected.kind)
    overlap = iou(objects, steps.anchors)
    assert torch.equal(matches.iou, overlap.amax(dim=0))
    some = matches.iou > 0
    assert torch.equal(overlap[matches.matched_gt_index, torch.arange(len(some))][some], matches.iou[some])
    assert torch.equal(matches.rescued, (expected.kind == FOREGROUND) & (matches.iou < 0.7))
    assert sum(matches.counts.values()) == len(steps.anchors) and matches.counts["positive"] >= len(objects) // 2
    for k in range(len(steps.level_names)):
        of_level = overlap.masked_fill((steps.anchor_levels != k)[None], 0)
        assert torch.equal(coverage.iou[:, k], of_level.amax(dim=1))
        assert torch.equal(
            overlap.gather(1, coverage.anchor[:, k : k + 1])[:, 0] * (coverage.iou[:, k] > 0), coverage.iou[:, k]
        )
    assert torch.equal(coverage.best, overlap.amax(dim=1))


def test_crowd_regions_are_no_objects_and_hide_the_background_in_them() -> None:
    steps = inspected()
    assert steps.target is not None
    crowd = torch.tensor([[0.0, 0.0, 70.0, 96.0]])
    target = Target(
        gt_boxes=torch.cat([crowd, steps.target.gt_boxes]),
        gt_labels=torch.cat([torch.tensor([1]), steps.target.gt_labels]),
        gt_masks=None,
        is_crowd=torch.tensor([True] + [False] * len(steps.target)),
        size=steps.target.size,
    )
    steps = replace(steps, target=target)
    found = match_anchors(steps, RPNLossConfig(foreground_iou=0.6, background_iou=0.2))
    assert found is not None
    boxes = steps.in_padded(target.gt_boxes)
    expected = match(
        steps.anchors, boxes[1:], foreground_iou=0.6, background_iou=0.2, keep_best=True, crowd_boxes=boxes[:1]
    )
    assert torch.equal(found[0].kind, expected.kind)
    assert found[1].objects.tolist() == list(range(1, len(target)))
    assert 0 not in found[0].matched_gt_index[found[0].iou > 0]


def test_without_objects_every_anchor_is_background() -> None:
    steps = inspected()
    assert steps.target is not None
    none = replace(steps, target=steps.target.chosen(torch.zeros(len(steps.target), dtype=torch.bool)))
    found = match_anchors(none)
    assert found is not None and found[0].counts == {"positive": 0, "neutral": 0, "negative": len(steps.anchors)}
    assert found[1].iou.shape == (0, len(steps.level_names)) and found[1].best.shape == (0,)
    assert match_anchors(replace(steps, target=None)) is None


def test_the_best_are_those_of_highest_objectness() -> None:
    steps = inspected()
    best = best_anchors(steps, 7)
    expected = steps.anchor_logits.sigmoid().sort(descending=True)
    assert torch.equal(best.objectness, expected.values[:7])
    assert torch.allclose(steps.in_padded(best.boxes), steps.anchors[best.rows], atol=1e-4)
    assert torch.equal(best.levels, steps.anchor_levels[best.rows])
    assert sum(level.anchors for level in best.per_level) == len(steps.anchors)
    for k, level in enumerate(best.per_level):
        some = steps.anchor_logits[steps.anchor_levels == k]
        assert level.best == float(some.sigmoid().max()) and level.likely == int((some >= 0).sum())
    # the network sees the picture twice as large: its anchors of 12 px are 6 px here
    assert [round(level.side, 3) for level in best.per_level] == [6, 12, 24, 48]


def test_figures_count_what_the_data_count() -> None:
    steps = inspected()
    figures = {figure.name: figure for figure in anchor_figures(steps, View.of(steps.picture))}
    found = match_anchors(steps)
    assert found is not None
    assert {row[0]: row[1] for row in figures["anchors_matched"].numbers[1:]} == found[0].counts
    rows = figures["anchors_coverage"].numbers
    assert rows[-1][0] == "any" and rows[-1][3] == int((found[1].best >= 0.5).sum())
    assert sum(int(row[1]) for row in rows[1:-1] if isinstance(row[1], int)) >= len(found[1].objects)
    assert [band_of(v) for v in (1.0, 0.7, 0.69, 0.3, 0.0)] == [BANDS[k][1] for k in (0, 0, 1, 2, 3)]
    unknown = anchor_figures(replace(steps, target=None), View.of(steps.picture))
    assert [figure.name for figure in unknown] == [
        "anchors_shapes",
        "anchors_objectness",
        "anchors_best",
        "anchors_matched",
    ]
