"""Pictures of the box head: what it takes RoIs for, how it moves them, and why most of them are no detection."""

from __future__ import annotations

from math import isnan

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from maskrcnn.inspection.boxes import Candidates, ClassScores, Fall, candidate_fates, class_scores, refined_rois
from maskrcnn.inspection.canvas import (
    AFTER,
    BAD,
    BEFORE,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    TEXT,
    WIDTH,
    YELLOW,
    Canvas,
    Key,
    View,
    Window,
    counted,
    fitting,
    focus,
    font_of,
    in_window,
    legend,
    page,
)
from maskrcnn.inspection.figure import Figure
from maskrcnn.inspection.probe import Steps
from maskrcnn.inspection.proposals import Refinement
from maskrcnn.ops.draw import one_line

READ = 6  # RoIs whose scores are written out
REFINED = 40  # pairs drawn
SHOWN = 120  # boxes drawn of each fate
_BARS = 3  # classes of an RoI

_FALLS = {  # what is drawn, from below to above
    Fall.THRESHOLD: (GREY, "score too low"),
    Fall.SIZE: (PURPLE, "too small"),
    Fall.OTHER_CLASS: (PURPLE, "another class is likelier"),
    Fall.SUPPRESSED: (ORANGE, "overlaps a better one"),
    Fall.LIMIT: (YELLOW, "over the limit"),
    Fall.ROUNDED: (PURPLE, "rounded to nothing"),
    Fall.MASK: (BAD, "mask overlaps a better one"),
    Fall.DETECTION: (SKY, "detection"),
}


def box_figures(steps: Steps, view: View) -> list[Figure]:
    """Class scores, refinement, and what was dropped."""
    candidates = candidate_fates(steps)
    return [
        _scores(view, class_scores(steps, READ), int(steps.rois.valid.sum())),
        _refined(steps, view, refined_rois(steps, REFINED)),
        _dropped(steps, view, candidates),
        _suppression(steps, view, candidates),
    ]


def _scores(view: View, scores: ClassScores, total: int) -> Figure:
    """A row for each RoI: what the head sees of the picture, and bars of its likeliest classes."""
    if not len(scores.rows):
        canvas = Canvas(view)
        canvas.notice("no proposals, so no scores")
        return Figure(
            "boxes_scores", "boxes", "What is in this box?", "There is no RoI to classify.", page(canvas.array())
        )
    rows = [_score_row(view, box, scores, i) for i, box in enumerate(scores.boxes.tolist())]
    agnostic = "" if len(scores.names) > 2 else " This detector knows one class: everything else is background."
    return Figure(
        "boxes_scores",
        "boxes",
        "What is in this box?",
        f"{len(rows)} of {total:,} RoIs and what the box head takes them for: detections, from the surest to the least "
        f"sure, then what came nearest to being one.{agnostic}",
        page(*rows),
        (
            ("RoI", *scores.names[: 1 + 12]),
            *(
                (row, *(round(p, 4) for p in some[: 1 + 12]))
                for row, some in zip(scores.rows.tolist(), scores.probabilities.tolist(), strict=True)
            ),
        ),
    )


def _score_row(view: View, box: list[float], scores: ClassScores, i: int) -> np.ndarray:
    height = 168
    sheet = Image.new("RGB", (WIDTH, height), PAPER)
    crop = Canvas(view, _square(box), width=height - 12, height=height - 12, dim=False, bright=True)
    crop.boxes(scores.boxes[i : i + 1], SKY)
    sheet.paste(crop.image, (6, 6))
    pen, left, names, row = ImageDraw.Draw(sheet), height + 14, 250, 50
    order = scores.probabilities[i].argsort(descending=True)[:_BARS].tolist()
    top = (height - row * len(order)) // 2
    for k, column in enumerate(order):
        value, y = float(scores.probabilities[i, column]), top + k * row
        name, middle = scores.names[column], y + row // 2
        pen.text((left, middle), _short(name), fill=INK, font=fitting(_short(name), names - 10), anchor="lm")
        room = WIDTH - left - names - 110
        pen.rectangle((left + names, y + 9, left + names + room, y + row - 9), fill=(44, 46, 52))
        filled = 0 if isnan(value) else round(room * value)  # of weights that are not finite
        colour = GREY if column == 0 else SKY if k == 0 else ORANGE
        pen.rectangle((left + names, y + 9, left + names + filled, y + row - 9), fill=colour)
        pen.text((WIDTH - 8, middle), f"{value:.3f}", fill=INK, font=font_of(TEXT), anchor="rm")
    return np.array(sheet)


def _refined(steps: Steps, view: View, moved: Refinement) -> Figure:
    window = focus(moved.after, view.size)
    canvas = Canvas(view, window)
    seen = in_window(moved.after, window)
    canvas.boxes(moved.before[seen], BEFORE, dotted=True)
    canvas.boxes(moved.after[seen], AFTER)
    if not len(moved.after):
        canvas.notice("nothing was found")
    where = "" if window == view.window else " Seen close up, around the most crowded of them."
    cascade = " In a cascade these are the boxes of the last stage." if steps.config.cascade is not None else ""
    return Figure(
        "boxes_refined",
        "boxes",
        "The box head moves them again",
        f"{int(seen.sum())} of the best {len(seen)} detections: dotted the proposal that was looked at, solid the "
        "box that "
        f"the head made of it.{cascade}{where}",
        page(canvas.array(), legend(Key("dotted", BEFORE, "proposal, before"), Key("solid", AFTER, "refined, after"))),
    )


def _dropped(steps: Steps, view: View, candidates: Candidates) -> Figure:
    """All fates in one picture."""
    canvas, counts, k = Canvas(view), candidates.counts, steps.config.num_classes
    for fall, (colour, _) in _FALLS.items():
        if fall is Fall.THRESHOLD:
            continue  # nearly all of them, everywhere: counted only
        rows = candidates.best_of(fall, SHOWN)
        sure = fall is Fall.DETECTION and int((candidates.scores[rows] >= 0.5).sum())
        canvas.boxes(candidates.boxes[rows[sure:]], colour, line=1 if fall is Fall.DETECTION else 2)
        canvas.boxes(candidates.boxes[rows[:sure]], colour, line=4)
    if not any(counts[fall] for fall in Fall if fall not in (Fall.NO_ROI, Fall.THRESHOLD)):
        canvas.notice("no class of any RoI scores above the threshold")
    present = [fall for fall in _FALLS if counts[fall]]
    keys = []
    for fall in reversed(present):
        colour, text = _FALLS[fall]
        keys.append(Key("none" if fall is Fall.THRESHOLD else "solid", colour, f"{text}: {counts[fall]:,}"))
    config = steps.config.detection
    classes = f"{k} classes each" if k > 1 else "one class"
    return Figure(
        "boxes_dropped",
        "boxes",
        "What was dropped, and why",
        f"{len(candidates.scores) - counts[Fall.NO_ROI]:,} candidates ({classes}): those of a score above "
        f"{config.score_threshold:g} go into non-maximum suppression, which drops what overlaps a better one "
        f"{'of any class' if config.class_agnostic_nms else 'of its class'} by an IoU above {config.nms_iou:g}; at "
        "most "
        f"{config.max_detections:,} stay. The best {SHOWN} of each fate are drawn, thin "
        "where a detection scores below 0.5.",
        page(canvas.array(), legend(*keys)),
        (
            ("fate", "candidates", "best score"),
            *((_FALLS[fall][1], counts[fall], _best(candidates, fall)) for fall in _FALLS),
        ),
    )


def _suppression(steps: Steps, view: View, candidates: Candidates) -> Figure:
    """Close up: one detection and all that it suppressed."""
    rows = (candidates.fall == Fall.SUPPRESSED).nonzero().squeeze(1)
    if not len(rows):
        canvas = Canvas(view)
        canvas.notice("nothing was suppressed")
        caption = "No candidate above the threshold overlaps a better one of its class by more than is allowed."
        return Figure("boxes_suppressed", "boxes", "Non-maximum suppression", caption, page(canvas.array()))
    times = candidates.suppressor[rows].bincount()
    winner, winners = int(times.argmax()), int((times > 0).sum())
    losers = rows[candidates.suppressor[rows] == winner]
    losers = losers[candidates.scores[losers].argsort(descending=True, stable=True)]
    shown = losers[:SHOWN]
    boxes = candidates.boxes[[winner, *shown.tolist()]]
    low, high = boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)
    canvas = Canvas(view, _square([*low.tolist(), *high.tolist()], 1.3))
    canvas.boxes(candidates.boxes[shown], ORANGE, dotted=True)
    canvas.boxes(candidates.boxes[winner : winner + 1], SKY, line=5)
    score = float(candidates.scores[winner])
    canvas.label(candidates.boxes[winner].tolist(), f"{_named(steps, candidates.labels, winner)} {score:.2f}", SKY)
    return Figure(
        "boxes_suppressed",
        "boxes",
        "Non-maximum suppression: the best of many near copies",
        f"One detection and {counted(len(losers), 'candidate')} that it suppressed: they overlap it by an IoU above "
        f"{steps.config.detection.nms_iou:g} and score less. {len(rows):,} were suppressed in all, by "
        f"{winners:,}.",
        page(canvas.array(), legend(Key("solid", SKY, "kept"), Key("dotted", ORANGE, "suppressed"))),
        (
            ("candidate", "class", "score", "IoU with the one kept"),
            (winner, _named(steps, candidates.labels, winner), round(score, 4), None),
            *(
                (
                    row,
                    _named(steps, candidates.labels, row),
                    round(float(candidates.scores[row]), 4),
                    round(float(candidates.overlap[row]), 3),
                )
                for row in losers[:20].tolist()
            ),
        ),
    )


def _named(steps: Steps, labels: Tensor, row: int) -> str:
    return _short(steps.config.class_names[int(labels[row]) - 1])


def _best(candidates: Candidates, fall: Fall) -> float | None:
    rows = candidates.best_of(fall, 1)
    return round(float(candidates.scores[rows[0]]), 4) if len(rows) else None


def _square(box: list[float], around: float = 1.5) -> Window:
    """A square window `around` times as wide as a box, about its middle."""
    x1, y1, x2, y2 = box
    half = around * max(x2 - x1, y2 - y1, 4.0) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - half, y - half, x + half, y + half


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= 24 else name[:23] + "…"
