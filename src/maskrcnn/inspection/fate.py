"""What became of one object: found, or the gate at which it was lost, with the numbers that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

Evidence = float | int | str | list[float] | list[list[str | float]] | None

GATES = (
    "anchors",  # nothing ever covered it: no anchor, and none once it was moved
    "rpn_box",  # an anchor covers it, and is moved away
    "objectness",  # moved anchors cover it, none is among its level's best, which go into NMS
    "proposal_nms",  # it went into NMS and a better box suppressed it
    "proposals",  # NMS kept it, but better ones filled the proposals
    "class",  # proposed, and the head calls it background or another class
    "box",  # of the right class, but its box is moved away
    "threshold",  # box and class are right, the score is too low
    "detection_nms",  # a better detection suppressed it
    "limit",  # NMS kept it, but better ones filled the detections
    "mask_nms",  # suppressed by masks, or lost in the rounding to whole pixels
    "mask",  # a detection, whose mask is poor
    "taken",  # its detection is that of another object
)

SETTINGS: Mapping[str, str] = {
    "anchors": "anchor sizes and ratios (rpn.anchors), or a larger --size where objects are small",
    "rpn_box": "anchors that start nearer (rpn.anchors), or longer training",
    "objectness": "more --proposals (lifts the limit before NMS too)",
    "proposal_nms": "a higher NMS threshold between proposals (rpn.nms_iou)",
    "proposals": "more --proposals",
    "class": "more labelled examples like it, or a larger --size",
    "box": "a larger --size, or boxes refined in turn (preset cascade-r50-fpn)",
    "threshold": "a lower score threshold (detection.score_threshold)",
    "detection_nms": "a higher --nms-iou, with --mask-nms-iou for objects that touch",
    "limit": "more --max-detections",
    "mask_nms": "a higher --mask-nms-iou",
    "mask": "a larger M (mask_head.side) where the ceiling is low, else longer training of masks",
    "taken": "a higher --nms-iou, or a larger --size to tell the two apart",
}


@dataclass(frozen=True)
class Fate:
    """One object and the furthest that any box went which covered it.

    index: row of the target. gate: one of `GATES`, None where found. name: of its class.
    box: (x1, y1, x2, y2), original frame. detection: the row of `Steps.detections` that found it.
    evidence: numbers and names, by gate as `gates.py` gathers them; IoU are 0..1, lengths px of the padded frame.
    path: the row that carried it furthest at each stage, None past the gate: "anchor" (of `Steps.anchors`),
        "candidate" (of `proposal_candidates`), "proposal" (of `proposals`), "rival" (of `detection_candidates`),
        "detection" (of `detections`).
    """

    index: int
    gate: str | None
    name: str
    box: tuple[float, float, float, float]
    detection: int | None
    evidence: Mapping[str, Evidence]
    path: Mapping[str, int | None]

    @property
    def found(self) -> bool:
        return self.gate is None


def sentence(fate: Fate) -> str:
    """One line of plain English, with the numbers."""
    return _SENTENCES[fate.gate](fate.evidence)


def _found(e: Mapping[str, Evidence]) -> str:
    return f"found: IoU {_two(e['iou'])}, score {_two(e['score'])}"


def _anchors(e: Mapping[str, Evidence]) -> str:
    if e["iou"] is None:
        return f"no anchor fits: there is none; the object is {_size(e['object_size'])} px"
    best = f"best IoU {_two(e['iou'])} with a {_size(e['anchor_size'])} anchor of {e['level']}"
    return f"no anchor fits: {best}; the object is {_size(e['object_size'])} px of the network's picture"


def _rpn_box(e: Mapping[str, Evidence]) -> str:
    return (
        f"an anchor of {e['level']} fits (IoU {_two(e['anchor_iou'])}) but is moved away: IoU {_two(e['refined_iou'])}"
    )


def _objectness(e: Mapping[str, Evidence]) -> str:
    if e["reason"] == "min_size":
        return f"its box of {_size(e['size'])} px is smaller than a proposal may be"
    return (
        f"its best anchor is number {e['rank']} on {e['level']}, of which {e['top_n']} go on: "
        f"logit {_two(e['logit'])}, needed {_two(e['needed_logit'])}"
    )


def _proposal_nms(e: Mapping[str, Evidence]) -> str:
    return (
        f"its proposal (logit {_two(e['logit'])}) was suppressed by a better one (logit {_two(e['rival_logit'])}) "
        f"that it overlaps by {_two(e['overlap'])}, above {_two(e['nms_iou'])}{_whose(e)}"
    )


def _proposals(e: Mapping[str, Evidence]) -> str:
    return (
        f"its proposal is number {e['rank']}, of which {e['top_n']} go on: "
        f"logit {_two(e['logit'])}, needed {_two(e['needed_logit'])}"
    )


def _class(e: Mapping[str, Evidence]) -> str:
    if e["score"] is None:
        return "the detector has no such class"
    top = cast("list[tuple[str, float]]", e["top"])
    called = ", ".join(f"{name} {_two(score)}" for name, score in top)
    return f"called {called}; its own class has {_two(e['score'])}, needed above {_two(e['score_threshold'])}"


def _box(e: Mapping[str, Evidence]) -> str:
    return (
        f"its class is right (score {_two(e['score'])}), but its box is moved away: "
        f"IoU {_two(e['iou_before'])} before, {_two(e['iou'])} after"
    )


def _threshold(e: Mapping[str, Evidence]) -> str:
    score = f"(score {_two(e['score'])})"
    if e["reason"] == "min_size":
        return f"its box of {_size(e['size'])} px is smaller than a detection may be {score}"
    if e["reason"] == "best_class_only":
        return f"its class is not the best of its box {score}, {e['best']} is, and only the best may be a detection"
    return f"its score {_two(e['score'])} is not above the threshold {_two(e['score_threshold'])}"


def _detection_nms(e: Mapping[str, Evidence]) -> str:
    return (
        f"its box (score {_two(e['score'])}) was suppressed by a better {e['rival_name']} (score "
        f"{_two(e['rival_score'])}) that it overlaps by {_two(e['overlap'])}, above {_two(e['nms_iou'])}{_whose(e)}"
    )


def _limit(e: Mapping[str, Evidence]) -> str:
    return (
        f"its box is number {e['rank']}, of which {e['max_detections']} are kept: "
        f"score {_two(e['score'])}, needed {_two(e['needed_score'])}"
    )


def _mask_nms(e: Mapping[str, Evidence]) -> str:
    if e["reason"] != "masks":
        return f"put into the picture, its box no longer covers it: IoU {_two(e['iou'])}"
    return (
        f"its mask (score {_two(e['score'])}) was suppressed by that of a better detection (score "
        f"{_two(e['rival_score'])}) that it overlaps by {_two(e['overlap'])}, above {_two(e['mask_nms_iou'])}"
        f"{_whose(e)}"
    )


def _mask(e: Mapping[str, Evidence]) -> str:
    limit = "" if e["ceiling"] is None else f"; {e['side']} x {e['side']} in this box can reach {_two(e['ceiling'])}"
    return f"found by box (IoU {_two(e['box_iou'])}), but its mask is poor: IoU {_two(e['mask_iou'])}{limit}"


def _taken(e: Mapping[str, Evidence]) -> str:
    return (
        f"its detection (score {_two(e['score'])}, IoU {_two(e['iou'])}) is that of object {e['other']} "
        f"(IoU {_two(e['other_iou'])}); the boxes of the two objects overlap by {_two(e['objects_iou'])}"
    )


def _whose(e: Mapping[str, Evidence]) -> str:
    if e["other"] is None:
        return ", a box of no object"
    if e["other"] == e["object"]:
        return f", a box of this same object that covers it less (IoU {_two(e['other_iou'])})"
    return f", a box of object {e['other']} (IoU {_two(e['other_iou'])})"


def _two(value: object) -> str:
    """With two digits; a number that is nearly nothing does not become nothing, nor 0.497 the usual threshold."""
    assert isinstance(value, int | float)
    if 0 < abs(value - 0.5) < 0.005:
        return f"{value:.3f}"
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.1g}"


def _size(value: object) -> str:
    """width x height"""
    assert isinstance(value, Sequence)
    return " x ".join(f"{side:.0f}" if side >= 1 else f"{side:.1g}" for side in value)


_SENTENCES = {
    None: _found,
    "anchors": _anchors,
    "rpn_box": _rpn_box,
    "objectness": _objectness,
    "proposal_nms": _proposal_nms,
    "proposals": _proposals,
    "class": _class,
    "box": _box,
    "threshold": _threshold,
    "detection_nms": _detection_nms,
    "limit": _limit,
    "mask_nms": _mask_nms,
    "mask": _mask,
    "taken": _taken,
}
