"""Pictures of the beginning and the end: what the network is given, and the result as four tasks see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from maskrcnn.inspection.canvas import (
    BAD,
    GOOD,
    HEIGHT,
    INK,
    PAPER,
    SKY,
    TRUTH,
    WIDTH,
    Canvas,
    Key,
    View,
    counted,
    fitting,
    ink_on,
    legend,
    page,
    panel_width,
    panels,
)
from maskrcnn.inspection.figure import Figure, Number
from maskrcnn.inspection.probe import Steps
from maskrcnn.inspection.result import SHOWN_FROM, Result, compose, draw
from maskrcnn.ops.draw import Colour, one_line, palette

if TYPE_CHECKING:
    from maskrcnn.inspection.fate import Fate

NAMED = 8  # classes in a legend
LABELLED = 12  # objects lost, up to which each is told why


def input_figures(steps: Steps, view: View) -> list[Figure]:
    """The picture as given, and as the network sees it."""
    pixels = _seen(steps)
    height, width = steps.padded_size
    given = Canvas(view, width=panel_width(), height=620, dim=False)
    network = Canvas(View.of(pixels), width=panel_width(), height=620, dim=False)
    factor = pixels.shape[1] / width, pixels.shape[0] / height
    x1, y1, x2, y2 = steps.window.tolist()
    outline = [[x1 * factor[0], y1 * factor[1], x2 * factor[0], y2 * factor[1]]]
    network.boxes(torch.tensor(outline), SKY)
    resized_height, resized_width = (round(v) for v in steps.batch.image_sizes[0].tolist())
    parts = [
        (f"as given: {steps.size[1]} x {steps.size[0]}", given.array()),
        (f"as seen: {width} x {height}", network.array()),
    ]
    config = steps.config.preprocess
    stretched = " Its contrast is stretched." if config.stretch is not None else ""
    return [
        Figure(
            "input",
            "input",
            "What the network is given",
            f"The picture of {steps.size[1]} x {steps.size[0]} px is resized to {resized_width} x {resized_height} and "
            f"bordered to {width} x {height}, so that every level of the pyramid has whole cells.{stretched}",
            page(panels(parts), legend(Key("solid", SKY, "where the picture lies in it"))),
            (
                ("frame", "width px", "height px"),
                ("original", steps.size[1], steps.size[0]),
                ("resized", resized_width, resized_height),
                ("padded", width, height),
            ),
        )
    ]


def _seen(steps: Steps) -> np.ndarray:
    """The network's input, no longer normalised: (H, W, 3) uint8, at most about 1000 px, every n-th pixel of more."""
    config, pixels = steps.config.preprocess, steps.batch.pixels[0]
    step = max(1, max(pixels.shape[1:]) // WIDTH)
    some = pixels[:, ::step, ::step].float().cpu()
    values = some * torch.tensor(config.std)[:, None, None] + torch.tensor(config.mean)[:, None, None]
    values = values.flip(0) if config.channels == "bgr" else values
    seen: np.ndarray = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return seen


def result_figures(steps: Steps, view: View, fates: Sequence[Fate] | None = None) -> list[Figure]:
    """Everything composed; four tasks side by side; and with fates which objects were found."""
    scale = min(WIDTH / view.size[1], HEIGHT / view.size[0])
    scale = 1.0 if 0.5 <= scale <= 1 and max(view.size) <= WIDTH else min(scale, 40.0)
    result = compose(steps, scale)
    figures = [_composed(view, result), _tasks(view, result)]
    if fates is not None:
        figures.append(_fates(view, fates))
    elif steps.target is not None:
        figures.append(_truth(steps, view, result))
    return figures


def _composed(view: View, result: Result) -> Figure:
    picture = draw(result, view.small if result.scale <= view.small.shape[1] / view.size[1] else view.picture)
    rows = zip(result.shown.names, result.shown.scores.tolist(), result.shown.boxes.tolist(), strict=True)
    shown = [
        (i, name, round(score, 4), *(round(v / result.scale, 1) for v in box))
        for i, (name, score, box) in enumerate(rows)
    ]
    if not len(result.shown):
        canvas = Canvas(view, dim=False)
        canvas.notice(f"nothing scores {SHOWN_FROM:g} or more")
        picture = canvas.array()
    return Figure(
        "result",
        "result",
        "The result",
        f"{counted(len(result.shown), 'detection')} of a score of at least {SHOWN_FROM:g}, of {result.total:,} in "
        "all: box, "
        f"class, score{' and mask' if result.semantic is not None else ''} of each. Every object has a colour of "
        "its own.",
        page(picture),
        (("detection", "class", "score", "x1", "y1", "x2", "y2"), *shown[:100]) if shown else (),
    )


def _tasks(view: View, result: Result) -> Figure:
    """Classification, detection, semantic and instance segmentation."""
    parts = [
        ("1 classification: what?", _classification(view, result)),
        ("2 detection: where?", _detection(view, result)),
    ]
    keys = []
    if result.semantic is not None and result.instances is not None:
        colours = palette(max(len(result.classes), len(result.shown), 1))
        labels = sorted(set(result.shown.labels.tolist()))
        names = dict(zip(result.shown.labels.tolist(), result.shown.names, strict=True))
        parts.append(("3 semantic: which class?", _filled(view, result.semantic, colours)))
        parts.append(("4 instances: which object?", _filled(view, result.instances, colours)))
        keys = [Key("fill", colours[label - 1], one_line(names[label])) for label in labels[:NAMED]]
        if len(labels) > NAMED:
            keys.append(Key("none", INK, f"and {len(labels) - NAMED} more classes"))
    sheet = panels(parts)
    return Figure(
        "result_tasks",
        "result",
        "One picture, four tasks" if len(parts) == 4 else "One picture, two tasks",
        "Classification says what is in the picture, detection where it is; semantic segmentation gives every pixel "
        "a class, "
        "one colour each, instance segmentation every pixel an object, one colour each: touching objects come apart. "
        "Semantic colours are named below."
        if keys
        else "Classification says what is in the picture, detection where it is.",
        page(sheet, legend(Key("none", INK, "3:"), *keys)) if keys else page(sheet),
        (
            ("class", "best score of any RoI", "detections shown"),
            *((row.name, round(row.score, 4), row.count) for row in result.classes[:20]),
        ),
    )


def _panel(view: View, *, dim: bool = True) -> Canvas:
    return Canvas(view, width=panel_width(), height=620, dim=dim)


def _classification(view: View, result: Result) -> np.ndarray:
    canvas = _panel(view, dim=False)
    room = max(1, min(6, (canvas.image.height - 16) // 46))
    lines = [f"{row.name} {row.score:.2f}" for row in result.classes if row.count][:room]
    lines = lines or ["nothing", *(f"{row.name} {row.score:.2f}" for row in result.classes[: room - 1])]
    for k, line in enumerate(map(one_line, lines)):
        colour: Colour = SKY if k == 0 and result.classes and result.classes[0].count else PAPER
        font = fitting(line, canvas.image.width - 30, 30)
        top = 10 + 46 * k
        canvas.pen.rectangle((8, top, 24 + int(font.getlength(line)), top + 40), fill=colour)
        canvas.pen.text((16, top + 20), line, fill=ink_on(colour), font=font, anchor="lm")
    return canvas.array()


def _detection(view: View, result: Result) -> np.ndarray:
    canvas = _panel(view)
    boxes = result.shown.boxes / result.scale
    colours = palette(len(boxes))
    canvas.boxes(boxes, colours)
    if 0 < len(boxes) <= LABELLED:
        for box, name, colour in list(zip(boxes.tolist(), result.shown.names, colours, strict=True))[::-1]:
            canvas.label(box, name, colour, size=20)
    return canvas.array()


def _filled(view: View, values: np.ndarray, colours: list[Colour]) -> np.ndarray:
    """Pixels of a value k in colour k - 1, over the picture."""
    canvas = _panel(view)
    size = (canvas.image.width, canvas.image.height)
    small = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))
    table = np.array([(0, 0, 0), *colours], dtype=np.float64)
    base = canvas.array()
    mixed = np.where((small > 0)[..., None], 0.3 * base + 0.7 * table[small], base)
    filled: np.ndarray = mixed.round().astype(np.uint8)
    return filled


def _fates(view: View, fates: Sequence[Fate]) -> Figure:
    """Ground truth in two colours: found and lost."""
    canvas = Canvas(view)
    lost = [fate for fate in fates if not fate.found]
    found = [fate for fate in fates if fate.found]
    for some, colour, line in ((found, GOOD, 3), (lost, BAD, 5)):
        canvas.boxes(torch.tensor([fate.box for fate in some]).reshape(-1, 4), colour, line=line)
    if len(lost) <= LABELLED:
        for fate in lost:
            canvas.label(fate.box, f"{fate.index}: {fate.gate}", BAD, size=22)
    if not fates:
        canvas.notice("the ground truth has no object here")
    gates: dict[str, int] = {}
    for fate in lost:
        gates[str(fate.gate)] = gates.get(str(fate.gate), 0) + 1
    return Figure(
        "result_fates",
        "result",
        "Found and lost",
        f"Of {counted(len(fates), 'object')} in the ground truth {len(found):,} found, {len(lost):,} lost"
        f"{': the gate is written on each' if 0 < len(lost) <= LABELLED else ''}.",
        page(
            canvas.array(),
            legend(Key("solid", GOOD, f"found: {len(found):,}"), Key("solid", BAD, f"lost: {len(lost):,}")),
        ),
        (("first gate that lost it", "objects"), *sorted(gates.items(), key=lambda row: -row[1])) if gates else (),
    )


def _truth(steps: Steps, view: View, result: Result) -> Figure:
    assert steps.target is not None
    keep = ~steps.target.is_crowd.cpu()
    parts = []
    for title, boxes, colour in (
        (f"ground truth: {int(keep.sum()):,}", steps.target.gt_boxes.cpu()[keep], TRUTH),
        (f"found: {len(result.shown):,}", result.shown.boxes / result.scale, SKY),
    ):
        canvas = _panel(view)
        canvas.boxes(boxes, colour, line=2)
        if not len(boxes):
            canvas.notice("nothing")
        parts.append((title, canvas.array()))
    rows: tuple[tuple[Number, ...], ...] = (
        ("objects of the ground truth", "detections shown"),
        (int(keep.sum()), len(result.shown)),
    )
    caption = f"Ground truth beside the detections that score at least {SHOWN_FROM:g}."
    return Figure("result_truth", "result", "Ground truth and result", caption, page(panels(parts)), rows)
