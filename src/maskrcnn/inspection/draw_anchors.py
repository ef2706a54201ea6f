"""Pictures of the anchors: their shapes, the best of them, those that fit objects, and objects that none fits."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn.inspection.anchors import BestAnchors, Coverage, MatchedAnchors, best_anchors, match_anchors
from maskrcnn.inspection.canvas import (
    BAD,
    GOOD,
    GREY,
    LEVELS,
    MIDDLING,
    ORANGE,
    TRUTH,
    Canvas,
    Key,
    View,
    cells,
    counted,
    heat,
    legend,
    page,
    panel_width,
    panels,
)
from maskrcnn.inspection.figure import Figure
from maskrcnn.inspection.probe import Steps
from maskrcnn.losses.matcher import BACKGROUND, FOREGROUND, IGNORE
from maskrcnn.ops.draw import Colour

SHOWN = 100  # anchors drawn of a kind
BANDS = ((0.7, GOOD, "0.7 and more"), (0.5, MIDDLING, "0.5 to 0.7"), (0.3, ORANGE, "0.3 to 0.5"), (-1.0, BAD, "less"))


def anchor_figures(steps: Steps, view: View) -> list[Figure]:
    """Shapes and objectness always; with ground truth what fits it."""
    best = best_anchors(steps, SHOWN)
    figures = [_shapes(steps, view, best), _objectness(steps, view, best), _best(view, best)]
    matched = match_anchors(steps)
    if matched is None:
        return [*figures, _no_truth(view)]
    return [*figures, _matched(steps, view, matched[0]), _coverage(steps, view, matched[1])]


def _shapes(steps: Steps, view: View, best: BestAnchors) -> Figure:
    """The anchors of the cell in the middle of each level."""
    middles, per_cell = [], steps.config.own_rpn.anchors.per_cell
    for level, anchors in zip(best.per_level, steps.rpn.anchors, strict=True):
        cell = level.grid[0] // 2 * level.grid[1] + level.grid[1] // 2
        middles.append(steps.in_original(anchors[cell * per_cell : (cell + 1) * per_cell]).cpu())
    canvas = Canvas(view, view.around(0.08))
    for boxes, colour in reversed(list(zip(middles, _level_colours(len(middles)), strict=True))):
        canvas.boxes(boxes, colour)
    names = [f"{level.name}: about {level.side:.0f} px" for level in best.per_level]
    total = sum(level.anchors for level in best.per_level)
    return Figure(
        "anchors_shapes",
        "anchors",
        "Anchors: boxes to start from",
        f"The {per_cell} anchors of one cell in the middle of each level. The same stand at every cell: {total:,} "
        "in all. "
        "The network only says which are near an object, and how to move them.",
        page(canvas.array(), legend(*_level_keys(names))),
        (
            ("level", "px per cell", "cells", "anchors", "side px", "best objectness", "at least 0.5"),
            *(
                (
                    level.name,
                    level.stride,
                    f"{level.grid[1]} x {level.grid[0]}",
                    level.anchors,
                    round(level.side, 1),
                    round(level.best, 4),
                    level.likely,
                )
                for level in best.per_level
            ),
        ),
    )


def _objectness(steps: Steps, view: View, best: BestAnchors) -> Figure:
    """A map for each level: the best objectness of the anchors at each cell, where the picture lies."""
    parts, first = [], 0
    x1, y1, x2, y2 = steps.window.tolist()
    for level in best.per_level:
        logits = steps.anchor_logits[first : first + level.anchors].float().cpu()
        first += level.anchors
        grid = logits.sigmoid().view(*level.grid, -1).amax(dim=2)
        rows = slice(int(y1 // level.stride), max(int(y1 // level.stride) + 1, -int(-y2 // level.stride)))
        columns = slice(int(x1 // level.stride), max(int(x1 // level.stride) + 1, -int(-x2 // level.stride)))
        shown = grid[rows, columns].numpy()
        scale = min(panel_width() / view.size[1], 620 / view.size[0])
        size = max(8, round(view.size[1] * scale)), max(8, round(view.size[0] * scale))
        parts.append((f"{level.name}, {level.stride} px per cell", cells(heat(shown, 0.0, 1.0), *size)))
    keys = (Key("fill", _heat_colour(0.0), "0: nothing here"), Key("fill", _heat_colour(1.0), "1: surely an object"))
    return Figure(
        "anchors_objectness",
        "anchors",
        "Objectness: where could an object be?",
        "For every cell of each level the highest objectness of its anchors. Fine levels answer to small objects, "
        "coarse ones to large objects.",
        page(panels(parts), legend(*keys)),
    )


def _best(view: View, best: BestAnchors) -> Figure:
    canvas = Canvas(view, view.around(0.04))
    colours = _level_colours(len(best.per_level))
    canvas.boxes(best.boxes, [colours[level] for level in best.levels.tolist()])
    total = sum(level.anchors for level in best.per_level)
    keys = _level_keys([level.name for level in best.per_level])
    lowest = f", objectness {best.objectness[0]:.3f} to {best.objectness[-1]:.3f}" if len(best.rows) else ""
    return Figure(
        "anchors_best",
        "anchors",
        "The anchors that look most like objects",
        f"The best {len(best.rows)} of {total:,} anchors by objectness{lowest}, not yet moved. Colours tell their "
        "level.",
        page(canvas.array(), legend(*keys)),
        (
            ("level", f"among the best {len(best.rows)}"),
            *((level.name, int((best.levels == k).sum())) for k, level in enumerate(best.per_level)),
        ),
    )


def _matched(steps: Steps, view: View, matched: MatchedAnchors) -> Figure:
    """Per kind those of the highest objectness: positives that were understood, negatives that were not."""
    assert steps.target is not None
    kinds = (("positive", FOREGROUND, GOOD), ("neutral", IGNORE, MIDDLING), ("negative", BACKGROUND, BAD))
    logits, parts, rows = steps.anchor_logits.float().cpu(), [], []
    for name, kind, colour in kinds:
        members = (matched.kind == kind).nonzero().squeeze(1)
        order = members[logits[members].argsort(descending=True)][:SHOWN]
        canvas = Canvas(view, width=panel_width(), height=620)
        canvas.boxes(steps.in_original(steps.anchors[order.to(steps.anchors.device)]).cpu(), colour, line=2)
        parts.append((f"{name}: best {len(order):,} of {len(members):,}", canvas.array()))
        likely = int((logits[members] >= 0).sum())
        rows.append(
            (name, len(members), likely, round(float(logits[members].sigmoid().mean()), 4) if len(members) else None)
        )
    truth = Canvas(view, width=panel_width(), height=620)
    keep = ~steps.target.is_crowd
    truth.boxes(steps.target.gt_boxes[keep].cpu(), TRUTH, line=2)
    if not keep.any():
        truth.notice("the ground truth has no object here")
    parts.append((f"ground truth: {counted(int(keep.sum()), 'object')}", truth.array()))
    high, low = matched.foreground_iou, matched.background_iou
    keys = (
        Key("solid", GOOD, f"positive: IoU {high:g} or more"),
        Key("solid", MIDDLING, "neutral: between"),
        Key("solid", BAD, f"negative: below {low:g}"),
    )
    rescued = int(matched.rescued.sum())
    few = "One is" if rescued == 1 else f"{rescued:,} are"
    return Figure(
        "anchors_matched",
        "anchors",
        "Positive, neutral and negative anchors",
        f"What the RPN would learn from this picture: positive anchors overlap an object by an IoU of {high:g} or "
        "more, "
        f"negative ones none by {low:g} or more. {few} positive only because no other fits the object "
        f"better. Of each kind the {SHOWN} of highest objectness are drawn: negatives here are the network's mistakes.",
        page(panels(parts), legend(*keys)),
        (("kind", "anchors", "objectness at least 0.5", "mean objectness"), *rows),
    )


def _coverage(steps: Steps, view: View, coverage: Coverage) -> Figure:
    """Objects by the best IoU that any anchor has with them."""
    assert steps.target is not None
    canvas, best = Canvas(view), coverage.best if len(coverage.objects) else torch.zeros(0)
    boxes = steps.target.gt_boxes.cpu()[coverage.objects]
    canvas.boxes(boxes, [band_of(value) for value in best.tolist()], line=4)
    if not len(boxes):
        canvas.notice("the ground truth has no object here")
    elif len(boxes) <= 12:
        for box, value in zip(boxes.tolist(), best.tolist(), strict=True):
            canvas.label(box, f"{value:.2f}", band_of(value))
    keys = [Key("solid", colour, f"{text}: {_count(best, k)}") for k, (_, colour, text) in enumerate(BANDS)]
    levels = [_level_row(coverage.iou[:, k], best, name) for k, name in enumerate(coverage.level_names)]
    return Figure(
        "anchors_coverage",
        "anchors",
        "How well do anchors cover the objects?",
        f"Of {counted(len(boxes), 'object')} each in the colour of the best IoU that any anchor has with it. An "
        "object that no "
        "anchor overlaps by much is hard to propose, whatever the network learns.",
        page(canvas.array(), legend(Key("none", TRUTH, "best IoU of an anchor:"), *keys)),
        (
            ("level", "objects it fits best", "mean best IoU", "IoU at least 0.5", "IoU at least 0.7"),
            *levels,
            _level_row(best, best, "any"),
        ),
    )


def _level_row(values: Tensor, best: Tensor, name: str) -> tuple[str, int, float | None, int, int]:
    mean = round(float(values.mean()), 3) if len(values) else None
    fits = int(((values == best) & (best > 0)).sum())
    return name, fits, mean, int((values >= 0.5).sum()), int((values >= 0.7).sum())


def band_of(value: float) -> Colour:
    """The colour of an IoU."""
    return next(colour for limit, colour, _ in BANDS if value >= limit)


def _count(values: Tensor, band: int) -> int:
    above = BANDS[band - 1][0] if band else 2.0
    return int(((values >= BANDS[band][0]) & (values < above)).sum())


def _no_truth(view: View) -> Figure:
    canvas = Canvas(view)
    canvas.notice("no ground truth was given")
    caption = "With ground truth this shows which anchors fit its objects, and which objects no anchor fits."
    return Figure("anchors_matched", "anchors", "Anchors against ground truth", caption, page(canvas.array()))


def _level_colours(count: int) -> list[Colour]:
    return [LEVELS[k] if k < len(LEVELS) else GREY for k in range(count)]


def _level_keys(names: list[str]) -> list[Key]:
    return [Key("solid", colour, name) for name, colour in zip(names, _level_colours(len(names)), strict=True)]


def _heat_colour(value: float) -> Colour:
    r, g, b = heat(torch.tensor([[value]]).numpy(), 0.0, 1.0)[0, 0].tolist()
    return r, g, b
