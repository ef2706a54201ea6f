"""Made-up pictures in which the gate that loses each object is known, with the numbers that show it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import maskrcnn
from maskrcnn.data.opening import open_dataset
from maskrcnn.errors import InputError
from maskrcnn.evaluation.evaluate import evaluate_records
from maskrcnn.inspection.gates import GATES, SETTINGS, Fate, fates, sentence
from maskrcnn.inspection.probe import Steps, probe

from .made_up import SIDE, Box, Line, Thing, picture, settings

OBJECT = Thing((20, 20, 40, 40))


def only(steps: Steps) -> Fate:
    (fate,) = fates(steps)
    return fate


def box_iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


# --- one picture for each gate ----------------------------------------------------------------------------------------


def test_found() -> None:
    steps = picture([OBJECT], [Line((60, 60, 80, 80), score=0.95), Line((18, 20, 38, 40), final=(21, 20, 41, 40))])
    fate = only(steps)
    assert fate.found and fate.gate is None and fate.detection == 1
    assert fate.name == "ant" and fate.box == (20, 20, 40, 40) and fate.index == 0
    assert fate.evidence == {"iou": pytest.approx(19 / 21, abs=1e-3), "score": pytest.approx(0.9, abs=1e-5)}
    assert fate.path["detection"] == 1 and fate.path["anchor"] == 1
    follow(steps, fate)
    assert sentence(fate) == "found: IoU 0.90, score 0.90"


def follow(steps: Steps, fate: Fate) -> None:
    """Every row of the path leads to the one before."""
    path, k = fate.path, steps.config.num_classes
    detection, rival, proposal, candidate = (path[name] for name in ("detection", "rival", "proposal", "candidate"))
    if detection is not None:
        placed = int(steps.kept.nonzero()[detection])
        assert int(steps.detection_candidates.chosen[0, placed]) == rival
    if rival is not None:
        assert rival // k == proposal
    if proposal is not None:
        assert int(steps.proposal_candidates.chosen[0, proposal]) == candidate
    if candidate is not None:
        assert int(steps.proposal_candidates.anchor_index[0, candidate]) == path["anchor"]


def test_anchors_an_object_smaller_than_any() -> None:
    small = Thing((30, 30, 34, 33))
    fate = only(picture([small], [Line((16, 16, 48, 48)), Line((24, 24, 40, 40), level=1)]))
    assert fate.gate == "anchors" and fate.detection is None
    assert fate.evidence["iou"] == pytest.approx(12 / 256)
    assert fate.evidence["level"] == "p3" and fate.evidence["anchor_size"] == [16, 16]
    assert fate.evidence["object_size"] == [4, 3] and fate.evidence["object_ratio"] == 0.75
    assert fate.evidence["nearest_sizes"] == [12]  # of 12, 24, 48, 96
    assert fate.path == {"anchor": 2, "candidate": None, "proposal": None, "rival": None, "detection": None}
    assert sentence(fate) == (
        "no anchor fits: best IoU 0.05 with a 16 x 16 anchor of p3; the object is 4 x 3 px of the network's picture"
    )


def test_anchors_are_measured_where_the_network_sees_the_object() -> None:
    """In a picture seen twice as large the same anchors fit."""
    assert only(picture([OBJECT], [Line((40, 40, 80, 80))], scale=2)).found
    fate = only(picture([OBJECT], [Line((20, 20, 40, 40))], scale=2))
    assert fate.gate == "anchors" and fate.evidence["object_size"] == [40, 40]


def test_anchors_are_passed_where_a_moved_one_covers() -> None:
    assert only(picture([OBJECT], [Line((60, 20, 80, 40), moved=(20, 20, 40, 40))])).found


def test_rpn_box() -> None:
    lines = [Line((22, 20, 42, 40), moved=(36, 20, 56, 40)), Line((20, 28, 40, 48), moved=(20, 35, 40, 55))]
    fate = only(picture([OBJECT], lines))
    assert fate.gate == "rpn_box"
    assert fate.path["anchor"] == 0  # 18 / 22 before; the other, 0.43, never covered it
    assert fate.evidence["anchor_iou"] == pytest.approx(18 / 22)
    assert fate.evidence["refined_iou"] == pytest.approx(4 / 36, abs=1e-4)
    assert sentence(fate) == "an anchor of p2 fits (IoU 0.82) but is moved away: IoU 0.11"


def test_objectness() -> None:
    """Two of each level go on; the object's anchors are third and fourth on theirs."""
    away = [Line((80, 60 + i, 100, 80 + i), logit=3 - i) for i in range(2)]
    own = [Line((20, 20, 40, 41), logit=0.5), Line((20, 20, 40, 42), logit=0.25)]
    coarse = [Line((60, 10, 90, 40), level=1, logit=-4)]
    fate = only(picture([OBJECT], [*away, *own, *coarse], settings(rpn={"pre_nms_top_n": 2})))
    assert fate.gate == "objectness" and fate.path["anchor"] == 2 and fate.path["candidate"] is None
    expected = {"level": "p2", "rank": 3, "top_n": 2, "logit": 0.5, "needed_logit": 2.0, "reason": "rank"}
    assert {name: fate.evidence[name] for name in expected} == expected
    assert fate.evidence["iou"] == pytest.approx(400 / 420, abs=1e-4)
    assert "number 3 on p2, of which 2 go on: logit 0.50, needed 2.00" in sentence(fate)


def test_objectness_of_all_levels_together() -> None:
    away = [Line((80, 60 + i, 100, 80 + i), logit=3 - i) for i in range(2)]
    config = settings(rpn={"pre_nms_top_n": 2, "levels_together": True})
    fate = only(picture([OBJECT], [*away, Line((20, 20, 40, 40), logit=1, level=2)], config))
    assert fate.gate == "objectness" and fate.evidence["level"] == "p4"
    assert fate.evidence["rank"] == 3 and fate.evidence["needed_logit"] == 2


def test_objectness_of_a_proposal_too_small() -> None:
    config = settings(rpn={"min_size": 5.0})
    fate = only(picture([Thing((30, 30, 34, 33))], [Line((30, 30, 34, 33))], config))
    assert fate.gate == "objectness" and fate.evidence["reason"] == "min_size"
    assert "4 x 3 px is smaller than a proposal may be" in sentence(fate)


OWN, RIVAL, NEIGHBOUR = (20.0, 20.0, 40.0, 50.0), (20.0, 23.0, 40.0, 57.0), (20.0, 30.0, 40.0, 60.0)


def test_proposal_nms() -> None:
    """A proposal that covers the object (0.67) falls to a better one that does not (0.46), of its neighbour."""
    things = [OBJECT, Thing(NEIGHBOUR)]
    lines = [Line(OWN, logit=1), Line(RIVAL, logit=2, final=NEIGHBOUR)]
    lost, other = fates(picture(things, lines))
    assert lost.gate == "proposal_nms" and other.found
    assert lost.path["candidate"] is not None and lost.path["anchor"] == 0 and lost.path["proposal"] is None
    assert lost.evidence["overlap"] == pytest.approx(box_iou(OWN, RIVAL), abs=1e-4)
    assert lost.evidence["iou"] == pytest.approx(box_iou(OWN, OBJECT.box), abs=1e-4)
    assert lost.evidence["other"] == 1 and lost.evidence["nms_iou"] == 0.7
    assert lost.evidence["other_iou"] == pytest.approx(box_iou(RIVAL, NEIGHBOUR), abs=1e-4)
    assert lost.evidence["logit"] == 1 and lost.evidence["rival_logit"] == 2
    assert sentence(lost).endswith("that it overlaps by 0.73, above 0.70, a box of object 1 (IoU 0.73)")
    alone = only(picture([OBJECT], lines))
    assert alone.gate == "proposal_nms" and "a box of this same object that covers it less (IoU 0.46)" in sentence(
        alone
    )


def test_proposal_nms_is_of_one_level() -> None:
    lines = [Line(OWN, logit=1, level=1), Line(RIVAL, logit=2, final=(80, 80, 100, 99))]
    assert only(picture([OBJECT], lines)).found
    together = settings(rpn={"levels_together": True})
    assert only(picture([OBJECT], lines, together)).gate == "proposal_nms"


def test_proposals() -> None:
    lines = [
        Line((20, 20, 40, 40), logit=1),
        *(Line((60, 10 + 25 * i, 80, 30 + 25 * i), logit=2 + i) for i in range(3)),
    ]
    fate = only(picture([OBJECT], lines, settings(rpn={"post_nms_top_n": 2})))
    assert fate.gate == "proposals" and fate.path["anchor"] == 0 and fate.path["proposal"] is None
    assert fate.evidence == {"iou": pytest.approx(1, abs=1e-4), "logit": 1, "rank": 4, "top_n": 2, "needed_logit": 3}


def test_class_called_background() -> None:
    fate = only(picture([OBJECT], [Line((20, 20, 40, 40), score=0.04, others={2: 0.03})]))
    assert fate.gate == "class" and fate.path["proposal"] == 0 and fate.path["rival"] is None
    top = fate.evidence["top"]
    assert isinstance(top, list)
    assert [name for name, _ in top] == ["background", "ant", "bee"]  # type: ignore[misc,str-unpack]
    assert fate.evidence["score"] == pytest.approx(0.04, abs=1e-6)
    assert sentence(fate) == ("called background 0.93, ant 0.04, bee 0.03; its own class has 0.04, needed above 0.05")


def test_class_by_a_head_that_swaps_two() -> None:
    things = [OBJECT, Thing((70, 20, 90, 40), label=2)]
    lost = fates(picture(things, [Line((20, 20, 40, 40), label=2), Line((70, 20, 90, 40), label=1)]))
    assert [fate.gate for fate in lost] == ["class", "class"]
    assert [fate.evidence["top"][0][0] for fate in lost] == ["bee", "ant"]  # type: ignore[index]


def test_class_that_the_detector_does_not_have() -> None:
    fate = only(picture([replace(OBJECT, label=6)], [Line((20, 20, 40, 40))]))
    assert fate.gate == "class" and fate.name == "a class that the detector does not have"
    assert sentence(fate) == "the detector has no such class"
    assert only(picture([replace(OBJECT, label=6)], [Line((70, 20, 90, 40))])).gate == "anchors"


def test_box() -> None:
    fate = only(picture([OBJECT], [Line((20, 20, 40, 40), final=(30, 20, 50, 40))]))
    assert fate.gate == "box" and fate.path["rival"] == 0
    assert fate.evidence["iou_before"] == pytest.approx(1, abs=1e-4)
    assert fate.evidence["iou"] == pytest.approx(1 / 3, abs=1e-4)


def test_box_of_a_cascade_that_moves_its_rois_away() -> None:
    steps = picture([OBJECT], [Line((20, 20, 40, 40), final=(33, 20, 53, 40))])
    rois = replace(steps.rois, boxes=steps.rois.boxes + torch.tensor([9.0, 0, 9, 0]))
    fate = only(replace(steps, rois=rois))
    assert fate.gate == "box" and fate.evidence["iou_before"] == pytest.approx(1, abs=1e-4)


def test_threshold() -> None:
    fate = only(picture([OBJECT], [Line((20, 20, 40, 40), score=0.6)], settings(score_threshold=0.7)))
    assert fate.gate == "threshold" and fate.path["rival"] == 0 and fate.evidence["reason"] == "score"
    assert sentence(fate) == "its score 0.60 is not above the threshold 0.70"


def test_threshold_where_only_the_best_class_may_be_a_detection() -> None:
    line = Line((20, 20, 40, 40), score=0.3, others={2: 0.6})
    assert only(picture([OBJECT], [line])).found
    fate = only(picture([OBJECT], [line], settings(best_class_only=True)))
    assert fate.gate == "threshold" and fate.evidence["reason"] == "best_class_only" and fate.evidence["best"] == "bee"


def test_threshold_of_a_box_too_small() -> None:
    fate = only(picture([OBJECT], [Line((20, 20, 40, 40))], settings(min_size=25.0)))
    assert fate.gate == "threshold" and fate.evidence["reason"] == "min_size"
    assert "20 x 20 px is smaller than a detection may be" in sentence(fate)


@pytest.mark.parametrize("masks", [True, False])
def test_detection_nms_of_two_objects_that_overlap(masks: bool) -> None:
    """Both have a box of their own; the neighbour's, which covers this object too (0.6), suppresses it."""
    things = [OBJECT, Thing((25, 20, 45, 40))]
    lines = [Line(things[0].box, score=0.8), Line(things[1].box, score=0.9)]
    lost, other = fates(picture(things, lines, settings(masks=masks)))
    assert lost.gate == "detection_nms" and other.found
    assert lost.path["rival"] is not None and lost.path["anchor"] == 0 and lost.path["detection"] is None
    assert lost.evidence["overlap"] == pytest.approx(0.6, abs=1e-4) and lost.evidence["other"] == 1
    assert lost.evidence["rival_score"] == pytest.approx(0.9, abs=1e-5)
    assert lost.evidence["score"] == pytest.approx(0.8, abs=1e-5)
    assert all(fate.found for fate in fates(picture(things, lines, settings(masks=masks, nms_iou=0.65))))


def test_detection_nms_across_classes() -> None:
    things = [OBJECT, Thing((25, 20, 45, 40), label=2)]
    lines = [Line(things[0].box, score=0.8), Line(things[1].box, label=2, score=0.9)]
    assert all(fate.found for fate in fates(picture(things, lines)))
    lost = fates(picture(things, lines, settings(class_agnostic_nms=True)))[0]
    assert lost.gate == "detection_nms" and lost.evidence["rival_name"] == "bee"


def test_limit_of_five_detections_on_nine_objects() -> None:
    things = [Thing((5 + 35 * (i % 3), 5 + 30 * (i // 3), 25 + 35 * (i % 3), 25 + 30 * (i // 3))) for i in range(9)]
    lines = [Line(thing.box, score=0.5 + 0.05 * i) for i, thing in enumerate(things)]
    result = fates(picture(things, lines, settings(max_detections=5)))
    assert [fate.gate for fate in result] == ["limit"] * 4 + [None] * 5
    assert [fate.evidence["rank"] for fate in result[:4]] == [9, 8, 7, 6]
    assert sentence(result[3]) == "its box is number 6, of which 5 are kept: score 0.65, needed 0.70"


def test_mask_nms() -> None:
    things = [OBJECT, Thing((27, 20, 47, 40))]
    lines = [Line(things[0].box, score=0.8), Line(things[1].box, score=0.9)]
    assert all(fate.found for fate in fates(picture(things, lines)))
    lost, other = fates(picture(things, lines, settings(mask_nms_iou=0.4)))
    assert lost.gate == "mask_nms" and other.found and lost.evidence["reason"] == "masks"
    assert lost.evidence["overlap"] == pytest.approx(13 / 27, abs=0.01)
    assert lost.evidence["rival"] == 0 and lost.evidence["other"] == 1
    assert lost.path["rival"] is not None and lost.path["detection"] is None


def test_rounding_to_whole_pixels_may_lose_one() -> None:
    """A box of 2.4 x 2.4 px around a 3 x 3 object, IoU 0.64, is rounded to 2 x 2, IoU 0.44."""
    things = [Thing((30, 30, 33, 33))]
    lines = [Line((30.1, 30.1, 32.45, 32.45))]
    assert only(picture(things, lines, settings(masks=False))).found
    fate = only(picture(things, lines, settings(masks=False, whole_pixels=True)))
    assert fate.gate == "mask_nms" and fate.evidence["reason"] == "rounding"
    assert fate.evidence["iou"] == pytest.approx(4 / 9) and "IoU 0.44" in sentence(fate)


def left_half() -> np.ndarray:
    return np.arange(SIDE) < SIDE * 0.4 + np.zeros((SIDE, 1))


def test_mask() -> None:
    fate = only(picture([OBJECT], [Line((20, 20, 40, 40), mask=left_half())]))
    assert fate.gate == "mask" and fate.path["detection"] == 0 and fate.detection is None
    assert fate.evidence["box_iou"] == pytest.approx(1, abs=1e-4)
    assert fate.evidence["mask_iou"] == 0.45  # 12 of 28 cells are 9 of 20 px
    assert fate.evidence["ceiling"] == 1 and fate.evidence["side"] == SIDE
    assert only(picture([OBJECT], [Line((20, 20, 40, 40), mask=left_half())], settings(masks=False))).found


def test_mask_that_m_by_m_cannot_draw() -> None:
    """Bars of one pixel, 84 of them over 28 cells: half of every cell, so that nothing is left of their shape."""
    bars = np.arange(84) % 2 == np.zeros((84, 1))
    thing = Thing((10, 8, 94, 92), bitmap=bars)
    fate = only(picture([thing], [Line(thing.box, mask=left_half())]))
    assert fate.gate == "mask"
    ceiling = fate.evidence["ceiling"]
    assert isinstance(ceiling, float) and ceiling < 0.7
    assert f"28 x 28 in this box can reach {ceiling:.2f}" in sentence(fate)


@pytest.mark.parametrize("masks", [True, False])
def test_taken(masks: bool) -> None:
    """One detection for two objects, nothing else came so far."""
    things = [OBJECT, Thing((22, 20, 42, 40))]
    lost, found = fates(picture(things, [Line((22, 20, 42, 40))], settings(masks=masks)))
    assert lost.gate == "taken" and found.found and lost.path["detection"] == 0
    assert lost.evidence["other"] == 1 and lost.evidence["other_iou"] == pytest.approx(1, abs=0.01)
    assert lost.evidence["iou"] == pytest.approx(18 / 22, abs=0.01)
    assert lost.evidence["objects_iou"] == pytest.approx(18 / 22, abs=1e-4)


# --- rules ------------------------------------------------------------------------------------------------------------


def test_the_furthest_gate_counts() -> None:
    """Three boxes of one object: one called background, one moved away, one beyond the limit."""
    lines = [
        Line((20, 20, 40, 40), score=0.01),
        Line((24, 20, 44, 40), score=0.9, final=(60, 20, 80, 40), logit=1),
        Line((20, 25, 40, 45), score=0.5, logit=1),
    ]
    assert only(picture([OBJECT], lines[:1])).gate == "class"
    assert only(picture([OBJECT], lines[:2])).gate == "box"
    assert only(picture([OBJECT], lines, settings(max_detections=1))).gate == "limit"
    assert only(picture([OBJECT], lines)).found


def test_crowd_regions_are_no_objects() -> None:
    things = [Thing((10, 10, 60, 60), crowd=True), OBJECT]
    assert [fate.index for fate in fates(picture(things, [Line((20, 20, 40, 40))]))] == [1]
    assert fates(picture(things[:1], [Line((20, 20, 40, 40))])) == ()


def test_nothing_is_ordinary() -> None:
    assert fates(picture([], [Line((20, 20, 40, 40))])) == ()
    assert fates(picture([], [])) == ()
    fate = only(picture([OBJECT], []))
    assert fate.gate == "anchors" and fate.evidence["iou"] == 0
    with pytest.raises(InputError, match="ground truth: none was given"):
        fates(replace(picture([OBJECT], []), target=None))
    with pytest.raises(InputError, match="iou_threshold"):
        fates(picture([OBJECT], []), iou_threshold=math.nan)


def test_another_threshold() -> None:
    steps = picture([OBJECT], [Line((20, 20, 40, 40), final=(25, 20, 45, 40))])
    assert only(steps).found  # 0.6
    assert fates(steps, iou_threshold=0.75)[0].gate == "box"


def test_every_gate_has_a_setting_and_every_sentence_is_one_line() -> None:
    assert set(SETTINGS) == set(GATES) and len(GATES) == 13


# --- the rule of the evaluation ---------------------------------------------------------------------------------------


def crowded(seed: int, count: int = 60) -> Steps:
    """Objects everywhere, with boxes near them, of the right class or another."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 80, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 30, (count, 2))], axis=1).clip(0, 100).round()
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = rng.integers(1, 4, count)
    things = [
        Thing(tuple(box), int(label), crowd=bool(rng.random() < 0.1)) for box, label in zip(boxes, labels, strict=True)
    ]
    lines = []
    for box, label in zip(boxes, labels, strict=True):
        for _ in range(rng.integers(0, 4)):
            anchor, moved, final = (tuple(box + rng.normal(0, spread, 4) * [1, 1, 1, 1]) for spread in (3, 2, 1))
            if any(b[2] - b[0] < 1 or b[3] - b[1] < 1 for b in (anchor, moved, final)):
                continue
            lines.append(
                Line(
                    anchor,
                    int(label) if rng.random() < 0.8 else int(rng.integers(1, 5)),
                    float(rng.uniform(0.02, 0.97)),
                    float(rng.normal(0, 2)),
                    moved,
                    final,
                    level=int(rng.integers(0, 4)),
                )
            )
    config = settings(
        masks=bool(seed % 2), rpn={"pre_nms_top_n": 25, "post_nms_top_n": 60}, max_detections=30, score_threshold=0.1
    )
    return picture(things, lines, config, size=(110, 110))


@pytest.mark.parametrize("seed", range(6))
def test_each_object_is_found_or_lost_once_and_found_as_the_evaluation_has_it(seed: int) -> None:
    steps = crowded(seed)
    target, result = steps.target, fates(steps)
    assert target is not None
    assert [fate.index for fate in result] == (~target.is_crowd).nonzero().flatten().tolist()
    assert len({fate.gate for fate in result}) >= 6
    for fate in result:
        assert fate.gate is None or fate.gate in GATES
        assert "\n" not in sentence(fate) and "nan" not in sentence(fate)
        follow(steps, fate)
    assert sum(fate.found for fate in result) == scored(steps)
    rows = [fate.detection for fate in result if fate.found]
    assert len(set(rows)) == len(rows)


def scored(steps: Steps) -> int:
    """How many objects the evaluation counts as found."""
    from maskrcnn.inspection.matched import _document

    target = steps.target
    assert target is not None
    document = _document(target, 4, target.gt_masks is not None)
    for number, annotation in enumerate(document["annotations"], start=1):
        annotation["id"] = number
    ids = dict(zip((3, 5, 7, 9), (1, 2, 3, 4), strict=True))
    records = [record | {"category_id": ids[record["category_id"]]} for record in steps.detections.coco(0)]
    return int(evaluate_records(document, records, masks=target.gt_masks is not None).total.true_positives[-1])


def test_five_thousand_detections() -> None:
    boxes: list[Box] = [(i % 100, i // 100, i % 100 + 1, i // 100 + 1) for i in range(5000)]
    lines = [Line(box, score=0.5 + i / 20000) for i, box in enumerate(boxes)]
    config = settings(rpn={"pre_nms_top_n": 6000, "post_nms_top_n": 6000}, max_detections=4990)
    result = fates(picture([Thing(box) for box in boxes[:100]], lines, config))
    assert [fate.gate for fate in result] == ["limit"] * 10 + [None] * 90


@pytest.mark.slow
def test_the_shipped_detector_on_real_pictures(shared_data: Path) -> None:
    detector = maskrcnn.load("nuclei", device="cpu")
    dataset = open_dataset(shared_data / "nuclei", split="val")
    for i in range(3):
        pixels, target = dataset[i]
        steps = probe(detector, pixels, target=target)
        result = fates(steps)
        assert len(result) == len(target)
        for fate in result:
            follow(steps, fate)
