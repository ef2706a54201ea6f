"""Pictures of the RPN at work: anchors moved onto objects, cut, thinned out by NMS; and which objects are covered."""

from __future__ import annotations

import torch

from maskrcnn.inspection.canvas import (
    AFTER,
    BAD,
    BEFORE,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    SKY,
    WIDTH,
    YELLOW,
    Canvas,
    Key,
    View,
    chart,
    counted,
    focus,
    in_window,
    legend,
    page,
    panel_width,
    panels,
)
from maskrcnn.inspection.figure import Figure, Number
from maskrcnn.inspection.probe import Steps
from maskrcnn.inspection.proposals import Gate, Recall, Refinement, gates, recall, refined_anchors

REFINED = 40  # pairs drawn
SHOWN = 200  # boxes drawn of a gate


def proposal_figures(steps: Steps, view: View) -> list[Figure]:
    """Refinement and gates always; with ground truth recall."""
    figures = [_refined(view, refined_anchors(steps, REFINED)), _gates(steps, view, gates(steps))]
    covered = recall(steps)
    if covered is None:
        canvas = Canvas(view)
        canvas.notice("no ground truth was given")
        caption = "With ground truth this shows how many of its objects the proposals cover."
        return [*figures, Figure("proposals_recall", "proposals", "Recall", caption, page(canvas.array()))]
    return [*figures, _covered(steps, view, covered), _recall(covered)]


def _refined(view: View, moved: Refinement) -> Figure:
    window = focus(moved.after, view.size)
    canvas = Canvas(view, window if window != view.window else view.around(0.04))
    seen = in_window(moved.after, window)
    canvas.boxes(moved.before[seen], BEFORE, dotted=True)
    canvas.boxes(moved.after[seen], AFTER)
    if not len(moved.after):
        canvas.notice("no proposals")
    distance = _middles(moved.after) - _middles(moved.before)
    shift = distance.norm(dim=1) / _sides(moved.before)
    growth = (_sides(moved.after) / _sides(moved.before)).log2().abs()
    where = "" if window == view.window else " Seen close up, around the most crowded of them."
    return Figure(
        "proposals_refined",
        "proposals",
        "Anchors move onto objects",
        f"{int(seen.sum())} of the best {len(seen)} proposals: dotted the anchor it started from, solid where the "
        f"network moved it.{where}",
        page(canvas.array(), legend(Key("dotted", BEFORE, "anchor, before"), Key("solid", AFTER, "refined, after"))),
        (
            ("moved by, in sides of the anchor", "grown or shrunk, in doublings"),
            (_median(shift), _median(growth)),
        )
        if len(seen)
        else (),
    )


def _gates(steps: Steps, view: View, passed: tuple[Gate, ...]) -> Figure:
    """What becomes of the best 200: moved, cut to the picture, thinned out by NMS; and the best 200 proposals."""
    candidates = steps.proposal_candidates
    best = candidates.logits[0].argsort(descending=True, stable=True)
    best = best[candidates.logits[0][best].isfinite()][:SHOWN]
    chosen = candidates.chosen[0][candidates.filled[0]][:SHOWN]
    totals = {gate.name: gate.count for gate in passed}
    named = (
        (f"moved: {totals['into NMS']:,}", candidates.refined, best, ORANGE),
        (f"cut to the picture: {totals['large enough']:,}", candidates.boxes, best[candidates.valid[0][best]], ORANGE),
        (f"kept by NMS: {totals['kept by NMS']:,}", candidates.boxes, best[candidates.kept[0][best]], SKY),
        (f"proposals: {totals['proposals']:,}", candidates.boxes, chosen, GREEN),
    )
    parts = []
    for name, boxes, rows, colour in named:
        canvas = Canvas(view, view.around(0.06), width=panel_width(), height=620)
        canvas.boxes(steps.in_original(boxes[0][rows]).cpu(), colour, line=2)
        if not len(rows):
            canvas.notice("none left")
        parts.append((name, canvas.array()))
    rpn = steps.config.own_rpn
    table: list[tuple[Number, ...]] = [(gate.name, gate.count, *gate.per_level) for gate in passed]
    return Figure(
        "proposals_gates",
        "proposals",
        "From anchors to proposals",
        f"Of {passed[0].count:,} anchors the best {rpn.pre_nms_top_n:,} "
        f"{'in all' if rpn.levels_together else 'of each level'} are moved and cut to the picture. Non-maximum "
        f"suppression drops each that overlaps a better one by an IoU above {rpn.nms_iou:g}; the best "
        f"{rpn.post_nms_top_n:,} stay. "
        f"The first three parts follow the best {SHOWN}, the last shows the best {SHOWN} proposals.",
        page(panels(parts)),
        (
            ("gate", "boxes", *steps.level_names),
            *table,
        ),
    )


def _covered(steps: Steps, view: View, covered: Recall) -> Figure:
    """Objects by how many proposals it takes to cover them."""
    assert steps.target is not None
    truth = steps.target.gt_boxes.cpu()[covered.objects]
    few = (covered.needed > 0) & (covered.needed <= 100)
    many = covered.needed > 100
    canvas = Canvas(view)
    colours = [SKY if a else YELLOW if b else BAD for a, b in zip(few.tolist(), many.tolist(), strict=True)]
    canvas.boxes(truth, colours, line=4)
    if not len(truth):
        canvas.notice("the ground truth has no object here")
    lost = len(truth) - int(few.sum()) - int(many.sum())
    keys = (
        Key("solid", SKY, f"by the first 100: {int(few.sum()):,}"),
        Key("solid", YELLOW, f"by later ones: {int(many.sum()):,}"),
        Key("solid", BAD, f"by none: {lost:,}"),
    )
    return Figure(
        "proposals_covered",
        "proposals",
        "Objects that a proposal covers",
        f"{counted(len(truth), 'object')}; covered means that a proposal overlaps the object by an IoU of 0.5 or "
        "more. What no "
        "proposal covers, the heads behind never see.",
        page(canvas.array(), legend(*keys)),
        (("covered by", "objects"), ("the first 100", int(few.sum())), ("later ones", int(many.sum())), ("none", lost)),
    )


def _recall(covered: Recall) -> Figure:
    from matplotlib.figure import Figure as Chart

    drawing = Chart(figsize=(WIDTH / 100, 6.2), dpi=100, layout="constrained", facecolor=_hex(PAPER))
    axes = drawing.subplots()
    axes.set_facecolor(_hex(PAPER))
    for name, values, colour, mark in (("0.5", covered.at_50, SKY, "o"), ("0.75", covered.at_75, ORANGE, "s")):
        points = [(n, v) for n, v in zip(covered.counts, values, strict=True) if v is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=_hex(colour),
                marker=mark,
                markersize=10,
                linewidth=4,
                label=f"IoU {name}",
            )
    if not len(covered.objects):
        axes.text(0.5, 0.5, "no object", transform=axes.transAxes, ha="center", color=_hex(INK), fontsize=20)
    axes.set(xscale="log", ylim=(0, 1.04), xlim=(covered.counts[0] * 0.85, covered.counts[-1] * 1.15))
    axes.set_xticks(covered.counts, [str(n) for n in covered.counts])
    axes.minorticks_off()
    axes.set_xlabel("proposals", color=_hex(INK), fontsize=19)
    axes.set_ylabel("share of objects covered", color=_hex(INK), fontsize=19)
    axes.tick_params(colors=_hex(INK), labelsize=17, length=0)
    axes.grid(color="#40444c", linewidth=1)
    axes.spines[:].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=19, facecolor=_hex(PAPER), labelcolor=_hex(INK), edgecolor="none", loc="lower right")
    beyond = [n for n in covered.counts if n > covered.limit]
    note = f" This call keeps {covered.limit:,} at most, so nothing is known beyond." if beyond else ""
    return Figure(
        "proposals_recall",
        "proposals",
        "Recall: how many proposals does it take?",
        f"The share of {counted(len(covered.objects), 'object')} that one of the first N proposals overlaps by an "
        "IoU of 0.5, and "
        f"of 0.75.{note}",
        chart(drawing),
        (
            ("proposals", "recall at IoU 0.5", "recall at IoU 0.75"),
            *(
                (n, _rounded(a), _rounded(b))
                for n, a, b in zip(covered.counts, covered.at_50, covered.at_75, strict=True)
            ),
        ),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _median(values: torch.Tensor) -> float | None:
    finite = values[values.isfinite()]
    return round(float(finite.median()), 3) if len(finite) else None


def _middles(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _sides(boxes: torch.Tensor) -> torch.Tensor:
    return ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=1e-6).sqrt()


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
