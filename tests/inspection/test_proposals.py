"""Proposals: counts are those of the tensors, recall is what a plain loop finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskrcnn.inspection.canvas import View
from maskrcnn.inspection.draw_proposals import proposal_figures
from maskrcnn.inspection.proposals import gates, recall, refined_anchors
from maskrcnn.ops.boxes import iou

from .detectors import Change, centred, inspected, one_map, plain


@pytest.mark.parametrize("change", [plain, centred, one_map])
def test_gates_count_what_is_left(change: Change) -> None:
    steps = inspected(change, proposals=60)
    passed = {gate.name: gate for gate in gates(steps)}
    candidates = steps.proposal_candidates
    assert list(passed) == ["anchors", "into NMS", "large enough", "kept by NMS", "proposals"]
    assert passed["anchors"].count == len(steps.anchors)
    assert passed["into NMS"].count == sum(
        min(len(level), steps.config.rpn.pre_nms_top_n) for level in steps.rpn.anchors
    )
    assert passed["large enough"].count == int(candidates.valid.sum())
    assert passed["kept by NMS"].count == int(candidates.kept.sum())
    assert passed["proposals"].count == int(steps.proposals.valid.sum()) == 60
    assert all(sum(gate.per_level) == gate.count for gate in passed.values())
    assert passed["anchors"].per_level == tuple(len(level) for level in steps.rpn.anchors)


def test_refined_are_the_anchors_of_the_proposals() -> None:
    steps = inspected()
    moved = refined_anchors(steps, 5)
    x1, y1, x2, y2 = steps.window.tolist()
    after = steps.in_padded(moved.after)
    cut = torch.stack([after[:, k].clamp(a, b) for k, (a, b) in enumerate(((x1, x2), (y1, y2)) * 2)], dim=1)
    assert torch.allclose(cut, steps.proposals.boxes[0, :5], atol=1e-4)
    for before in steps.in_padded(moved.before):
        assert float((steps.anchors - before).abs().amax(dim=1).min()) < 1e-4
    assert torch.equal(moved.scores, steps.proposals.logits[0, :5].sigmoid())


def test_recall_is_counted_object_by_object() -> None:
    steps = inspected(proposals=200)
    found = recall(steps)
    assert found is not None and steps.target is not None
    boxes = steps.in_original(steps.proposals.boxes[0][steps.proposals.valid[0]])
    for threshold, shares in ((0.5, found.at_50), (0.75, found.at_75)):
        for n, share in zip(found.counts, shares, strict=True):
            if n > 200:
                assert share is None
                continue
            covered = 0
            for truth in steps.target.gt_boxes:
                covered += any(float(iou(truth[None], box[None])) >= threshold for box in boxes[:n])
            assert share == pytest.approx(covered / len(steps.target))
    assert found.limit == 200 and 0 < found.at_50[3] <= 1  # type: ignore[operator]
    assert torch.equal(found.best, iou(steps.target.gt_boxes, boxes).amax(dim=1))
    for needed, best in zip(found.needed.tolist(), found.best.tolist(), strict=True):
        assert (needed > 0) == (best >= 0.5)


def test_recall_knows_what_it_cannot_know() -> None:
    steps = inspected(proposals=100)
    assert recall(replace(steps, target=None)) is None
    assert steps.target is not None
    none = replace(steps, target=steps.target.chosen(torch.zeros(len(steps.target), dtype=torch.bool)))
    found = recall(none)
    assert found is not None and set(found.at_50) == {None}
    nothing = replace(steps, proposals=replace(steps.proposals, valid=torch.zeros_like(steps.proposals.valid)))
    found = recall(nothing)
    assert found is not None and found.at_50 == (0, 0, 0, None, None, None, None)


def test_figures_say_what_is_not_known() -> None:
    steps = inspected(proposals=100)
    figures = {figure.name: figure for figure in proposal_figures(steps, View.of(steps.picture))}
    assert figures["proposals_recall"].numbers[-1] == (2000, None, None)
    assert "100 at most" in figures["proposals_recall"].caption
    assert figures["proposals_gates"].numbers[-1][:2] == ("proposals", 100)
    unknown = proposal_figures(replace(steps, target=None), View.of(steps.picture))[-1]
    assert unknown.name == "proposals_recall" and not unknown.numbers
