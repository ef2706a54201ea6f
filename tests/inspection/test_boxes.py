"""The box head's candidates: each fell for one reason, and NMS by hand names the same suppressor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskrcnn.inspection.boxes import Candidates, Fall, candidate_fates, class_scores, refined_rois
from maskrcnn.inspection.canvas import View
from maskrcnn.inspection.draw_boxes import box_figures
from maskrcnn.inspection.probe import Steps
from maskrcnn.ops.boxes import iou

from .detectors import Change, boxes_only, by_masks, cascade, centred, inspected, plain
from .made_up import Line, Thing, picture, settings


def _greedy(steps: Steps, found: Candidates) -> dict[int, int]:
    """Non-maximum suppression by hand: what falls, and to which."""
    config, boxes = steps.config.detection, steps.detection_candidates.boxes[0]
    valid = steps.detection_candidates.valid[0].nonzero().squeeze(1).tolist()
    order = sorted(valid, key=lambda row: (-float(found.scores[row]), row))
    kept: list[int] = []
    fallen: dict[int, int] = {}
    for row in order:
        for other in kept:
            same = config.class_agnostic_nms or found.labels[row] == found.labels[other]
            if same and float(iou(boxes[row : row + 1], boxes[other : other + 1])) > config.nms_iou:
                fallen[row] = other
                break
        else:
            kept.append(row)
    return fallen


@pytest.mark.parametrize("change", [plain, centred, by_masks, cascade, boxes_only])
def test_every_candidate_falls_once_and_nms_is_greedy(change: Change) -> None:
    steps = inspected(change, proposals=80)
    found, counts = candidate_fates(steps), candidate_fates(steps).counts
    assert sum(counts.values()) == len(found.scores) == 3 * 80
    assert counts[Fall.DETECTION] == len(steps.detections)
    assert torch.equal(found.scores[found.fall == Fall.DETECTION].sort(descending=True).values, steps.detections.scores)
    by_hand = _greedy(steps, found)
    fallen = (found.fall == Fall.SUPPRESSED).nonzero().squeeze(1).tolist()
    assert (len(fallen) > 5) == (change is not by_masks)  # whose limit between boxes is 0.9
    assert {row: int(found.suppressor[row]) for row in fallen} == by_hand
    for row in fallen:
        assert float(found.overlap[row]) > steps.config.detection.nms_iou
    assert (found.suppressor[found.fall != Fall.SUPPRESSED] == -1).all()
    low = found.fall == Fall.THRESHOLD
    assert (found.scores[low] <= steps.config.detection.score_threshold).all()
    assert counts[Fall.MASK] == (int((~steps.kept).sum()) if change is by_masks else 0)
    assert (counts[Fall.OTHER_CLASS] > 0) == (change is centred)


def test_boxes_of_other_classes_suppress_only_where_asked() -> None:
    a, b = (10.0, 10.0, 50.0, 50.0), (12.0, 10.0, 52.0, 50.0)
    lines = [Line(a, label=1, score=0.9), Line(b, label=2, score=0.8)]
    apart = candidate_fates(picture([Thing(a)], lines, settings(rpn={"nms_iou": 1.0})))
    assert apart.counts[Fall.DETECTION] == 2 and apart.counts[Fall.SUPPRESSED] == 0
    together = candidate_fates(picture([Thing(a)], lines, settings(rpn={"nms_iou": 1.0}, class_agnostic_nms=True)))
    assert together.counts[Fall.DETECTION] == 1 and together.counts[Fall.SUPPRESSED] == 1
    loser = int((together.fall == Fall.SUPPRESSED).nonzero())
    assert together.labels[loser] == 2 and together.labels[together.suppressor[loser]] == 1
    assert float(together.overlap[loser]) == pytest.approx(38 / 42, abs=1e-4)


def test_limit_and_size_and_threshold() -> None:
    boxes = [(10.0 + 20 * k, 10.0, 24.0 + 20 * k, 30.0) for k in range(5)]
    scores = (0.9, 0.8, 0.7, 0.6, 0.01)
    lines = [Line(box, score=score) for box, score in zip(boxes, scores, strict=True)]
    lines[3] = replace(lines[3], final=(70.0, 10.0, 71.0, 30.0))
    found = candidate_fates(picture([], lines, settings(max_detections=2, min_size=3.0)))
    by_score = {
        round(float(score), 2): Fall(int(fall))
        for score, fall in zip(found.scores, found.fall, strict=True)
        if score > 0.005
    }
    expected = {0.9: Fall.DETECTION, 0.8: Fall.DETECTION, 0.7: Fall.LIMIT, 0.6: Fall.SIZE, 0.01: Fall.THRESHOLD}
    assert by_score == expected
    assert found.counts[Fall.NO_ROI] % 4 == 0
    assert float(found.scores[found.best_of(Fall.LIMIT, 3)].squeeze()) == pytest.approx(0.7)


def test_scores_are_those_of_the_head() -> None:
    steps = inspected()
    scores = class_scores(steps, 6)
    assert scores.names == ("background", "circle", "square", "triangle") and len(scores.rows) == 6
    expected = steps.box_outputs.class_logits[scores.rows].softmax(dim=1)
    assert torch.equal(scores.probabilities, expected)
    best = scores.probabilities[:, 1:].amax(dim=1)
    assert torch.equal(best, best.sort(descending=True).values)
    assert float(best[0]) == pytest.approx(float(steps.detections.scores[0]))
    assert torch.allclose(steps.in_padded(scores.boxes), steps.rois.boxes[0][scores.rows], atol=1e-4)


def test_refined_start_from_the_rois_of_the_detections() -> None:
    steps = inspected()
    moved = refined_rois(steps, 4)
    assert torch.equal(moved.scores, steps.detections.scores[:4])
    assert torch.allclose(moved.after, steps.detections.boxes[:4], atol=1e-4)
    rois, k = steps.in_padded(moved.before), steps.config.num_classes
    chosen = steps.detection_candidates.chosen[0, :4]
    assert torch.allclose(rois, steps.rois.boxes[0][chosen // k], atol=1e-4)
    deltas = steps.box_outputs.deltas[chosen // k, chosen % k]
    decoded = steps.model.box_heads[-1].coder.decode(deltas, rois)
    window = steps.window
    assert torch.allclose(
        decoded.maximum(window[[0, 1, 0, 1]]).minimum(window[[2, 3, 2, 3]]), steps.in_padded(moved.after), atol=1e-3
    )


def test_figures_count_what_the_data_count() -> None:
    steps = inspected()
    figures = {figure.name: figure for figure in box_figures(steps, View.of(steps.picture))}
    counts = candidate_fates(steps).counts
    rows = {row[0]: row[1] for row in figures["boxes_dropped"].numbers[1:]}
    assert rows["detection"] == counts[Fall.DETECTION] and rows["overlaps a better one"] == counts[Fall.SUPPRESSED]
    assert figures["boxes_scores"].numbers[0] == ("RoI", "background", "circle", "square", "triangle")
    table = figures["boxes_suppressed"].numbers
    assert all(row[3] > steps.config.detection.nms_iou - 1e-3 for row in table[2:] if isinstance(row[3], float))
