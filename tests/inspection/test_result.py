"""The result: at the picture's own scale it is `Detections.draw`, and a pixel belongs to the best object over it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskrcnn.inspection.canvas import View
from maskrcnn.inspection.draw_result import result_figures
from maskrcnn.inspection.fate import Fate
from maskrcnn.inspection.result import compose, draw, enlarged

from .detectors import Change, boxes_only, by_masks, cascade, inspected, plain


@pytest.mark.parametrize("change", [plain, by_masks, cascade, boxes_only])
def test_composed_is_what_draw_draws(change: Change) -> None:
    steps = inspected(change)
    result = compose(steps, least=0.0)
    assert np.array_equal(draw(result, steps.picture), steps.detections.draw())
    half = float(steps.detections.scores.median())
    some = compose(steps, least=half)
    chosen = steps.detections.chosen(steps.detections.scores >= half)
    assert 0 < len(some.shown) < len(steps.detections) == some.total
    assert np.array_equal(draw(some, steps.picture), chosen.draw(steps.picture))


def test_pixels_belong_to_the_best_object() -> None:
    steps = inspected()
    result, masks = compose(steps, least=0.3), steps.detections.masks
    assert masks is not None and result.semantic is not None and result.instances is not None
    bitmaps = masks[steps.detections.scores >= 0.3].bitmaps().numpy()
    for y in range(0, 96, 3):
        for x in range(0, 128, 3):
            over = np.flatnonzero(bitmaps[:, y, x])
            assert result.instances[y, x] == (over[0] + 1 if len(over) else 0)
            assert result.semantic[y, x] == (int(result.shown.labels[over[0]]) if len(over) else 0)


def test_classification_is_the_best_score_of_any_roi() -> None:
    steps = inspected()
    result = compose(steps, least=0.3)
    scores = steps.box_outputs.class_logits.softmax(dim=1)[steps.rois.valid[0]][:, 1:].amax(dim=0)
    assert {row.name: row.score for row in result.classes} == dict(
        zip(("circle", "square", "triangle"), scores.tolist(), strict=True)
    )
    assert [row.score for row in result.classes] == sorted(scores.tolist(), reverse=True)
    assert sum(row.count for row in result.classes) == len(result.shown)


def test_enlarged_objects_cover_the_same_part_of_the_picture() -> None:
    found = inspected().detections
    large = enlarged(found, 3.0)
    assert large.size == (288, 384) and torch.equal(large.boxes, found.boxes * 3)
    assert large.masks is not None and found.masks is not None
    whole = replace(found.masks, probabilities=torch.ones_like(found.masks.probabilities))
    bitmaps = enlarged(replace(found, masks=whole), 3.0).masks.bitmaps()  # type: ignore[union-attr]
    for bitmap, box in zip(bitmaps, found.boxes.tolist(), strict=True):
        rows, columns = bitmap.any(dim=1).nonzero(), bitmap.any(dim=0).nonzero()
        ends = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        assert ends == [round(3 * v) for v in box]
    assert enlarged(found, 1.0) is found


def test_figures_of_the_result() -> None:
    steps = inspected()
    view = View.of(steps.picture)
    assert [figure.name for figure in result_figures(steps, view)] == ["result", "result_tasks", "result_truth"]
    assert [figure.name for figure in result_figures(replace(steps, target=None), view)] == ["result", "result_tasks"]
    assert steps.target is not None
    boxes = [tuple(box) for box in steps.target.gt_boxes.tolist()]
    fates = tuple(
        Fate(i, None if i % 2 else "anchors", "circle", box, 0 if i % 2 else None, {}, {})  # type: ignore[arg-type]
        for i, box in enumerate(boxes)
    )
    told = result_figures(steps, view, fates)[-1]
    assert told.name == "result_fates" and told.numbers[1] == ("anchors", (len(boxes) + 1) // 2)
    assert f"{len(boxes) // 2} found" in told.caption
    nothing = result_figures(inspected(score_threshold=1.0), view)[0]
    assert nothing.numbers == () and "0 detections" in nothing.caption
