"""Pictures of masks: from M x M probabilities to pixels, those of other classes, and all against the truth."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from maskrcnn.inspection.canvas import (
    BAD,
    HEIGHT,
    INK,
    PAPER,
    SKY,
    TEXT,
    WIDTH,
    YELLOW,
    Canvas,
    Key,
    View,
    Window,
    cells,
    counted,
    fitting,
    heat,
    legend,
    page,
)
from maskrcnn.inspection.figure import Figure, Number
from maskrcnn.inspection.masks import Agreement, MaskSteps, agreement, mask_steps, spread
from maskrcnn.inspection.probe import Steps
from maskrcnn.ops.draw import Colour, one_line

ROWS = 4  # detections followed
CLASSES = 6  # masks of one detection
_SIDE = 190  # px of a small picture
_BAR = 42  # px of text above it


def mask_figures(steps: Steps, view: View, rows: list[int] | None = None) -> list[Figure]:
    """The way of some masks, those of every class, and all masks; empty without a mask head.

    rows: of `Steps.detections`; without, some are chosen from the best to the worst.
    """
    if steps.detections.masks is None:
        return []
    some = mask_steps(steps, spread(steps, ROWS) if rows is None else rows)
    figures = [_way(steps, view, some)]
    if some and some[0].classes.shape[0] > 1:
        figures.append(_classes(steps, view, some))
    scale = min(WIDTH / view.size[1], HEIGHT / view.size[0], 1.0)
    all_masks = agreement(steps, scale)
    return figures if all_masks is None else [*figures, _agreement(view, all_masks)]


def _way(steps: Steps, view: View, some: list[MaskSteps]) -> Figure:
    assert steps.detections.masks is not None
    threshold, side = steps.detections.masks.threshold, steps.detections.masks.probabilities.shape[-1]
    if not some:
        return _nothing(view, "masks_steps", f"From {side} x {side} to pixels")
    rows = [_way_of(view, each, threshold) for each in some]
    truth = any(each.truth is not None for each in some)
    keys = [Key("fill", SKY, "mask")]
    if truth:
        keys = [Key("fill", SKY, "right"), Key("fill", BAD, "too much"), Key("fill", YELLOW, "missed")]
    return Figure(
        "masks_steps",
        "masks",
        f"From {side} x {side} to pixels",
        f"{len(some)} of {counted(len(steps.detections), 'detection')}. The mask head gives {side} x {side} "
        "probabilities in the box; "
        f"they are resized into it, pixels of at least {threshold:g} belong to the object, and the mask is pasted "
        "into the "
        f"picture{', where it is compared with the ground truth' if truth else ''}.",
        page(*rows, legend(*keys)),
        (
            ("detection", "class", "score", "box w x h px", "mask px", "IoU with ground truth"),
            *(_numbers(each) for each in some),
        ),
    )


def _numbers(each: MaskSteps) -> tuple[Number, ...]:
    width, height = (each.box[2:] - each.box[:2]).tolist()
    pixels = int(each.inside.sum() / each.scale**2)
    overlap = None if each.iou is None else round(each.iou, 3)
    return each.detection, each.name, round(each.score, 4), f"{width:.1f} x {height:.1f}", pixels, overlap


def _way_of(view: View, each: MaskSteps, threshold: float) -> np.ndarray:
    """One row: the picture, M x M, resized, thresholded, pasted."""
    window = _around(each.box.tolist(), 1.35)
    crop = Canvas(view, window, width=_SIDE, height=_SIDE, dim=False, bright=True)
    crop.boxes(each.box[None], SKY, line=2)
    pasted = Canvas(view, window, width=_SIDE, height=_SIDE)
    size = (pasted.image.width, pasted.image.height)
    result = _coloured(each, window, size)
    mixed = _laid_over(pasted.array(), result, 0.55)
    parts = (
        (f"{each.name} {each.score:.2f}", crop.array()),
        (f"{each.chosen.shape[0]} x {each.chosen.shape[1]}", _fit(heat(each.chosen.numpy(), 0.0, 1.0))),
        ("resized", _fit(heat(each.resized, 0.0, 1.0))),
        (f"at least {threshold:g}", _fit(np.repeat((each.inside * 255).astype(np.uint8)[..., None], 3, axis=2))),
        ("pasted" if each.iou is None else f"IoU {each.iou:.2f}", mixed),
    )
    return _strip(parts)


def _laid_over(base: np.ndarray, colours: np.ndarray, opacity: float) -> np.ndarray:
    """Colours (H, W, 3), where they are not black, over a picture of the same size."""
    coloured = np.any(colours, axis=2, keepdims=True)
    mixed: np.ndarray = np.where(coloured, (1 - opacity) * base + opacity * colours, base).round().astype(np.uint8)
    return mixed


def _coloured(each: MaskSteps, window: Window, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: mask and truth in their colours where the window shows them, black elsewhere."""
    unknown = np.zeros_like(each.inside) if each.iou is not None else each.inside  # no object there; no ground truth
    truth = unknown if each.truth is None else each.truth
    colours = np.zeros((*each.inside.shape, 3), dtype=np.uint8)
    colours[each.inside & truth], colours[each.inside & ~truth], colours[~each.inside & truth] = SKY, BAD, YELLOW
    scale = size[0] / (window[2] - window[0])
    x = ((np.arange(size[0]) + 0.5) / scale + window[0]) * each.scale - each.left
    y = ((np.arange(size[1]) + 0.5) / scale + window[1]) * each.scale - each.top
    x, y = np.floor(x).astype(int), np.floor(y).astype(int)
    seen: np.ndarray = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    within = ((y >= 0) & (y < colours.shape[0]))[:, None] & ((x >= 0) & (x < colours.shape[1]))
    if colours.size:
        every = colours[y.clip(0, colours.shape[0] - 1)][:, x.clip(0, colours.shape[1] - 1)]
        seen[within] = every[within]
    return seen


def _classes(steps: Steps, view: View, some: list[MaskSteps]) -> Figure:
    """A row for each detection: the picture, and the masks of the likeliest classes, its own framed."""
    names, head = steps.config.class_names, steps.config.mask_head
    assert head is not None
    compete = "do not compete" if head.classes == "independent" else "and the background compete"
    rows: list[np.ndarray] = []
    table: list[tuple[Number, ...]] = []
    for each in some:
        means = each.classes.flatten(1).mean(dim=1)
        order = [each.label - 1, *(k for k in means.argsort(descending=True).tolist() if k != each.label - 1)]
        columns = min(WIDTH // (_SIDE + 8), CLASSES) - 1
        crop = Canvas(view, _around(each.box.tolist(), 1.35), width=_SIDE, height=_SIDE, dim=False, bright=True)
        crop.boxes(each.box[None], SKY, line=2)
        parts = [(f"{each.name} {each.score:.2f}", crop.array())]
        for k in order[:columns]:
            square = _fit(heat(each.classes[k].numpy(), 0.0, 1.0))
            parts.append((names[k], _framed(square, SKY) if k == each.label - 1 else square))
        rows.append(_strip(tuple(parts)))
        table.append((each.detection, each.name, *(f"{names[k]} {float(means[k]):.3f}" for k in order[:columns])))
    return Figure(
        "masks_classes",
        "masks",
        "One mask for each class",
        f"The mask head makes a mask for every class, and classes {compete} for a pixel: the box head has chosen the "
        "class, whose mask, framed, is taken.",
        page(*rows, legend(Key("fill", _dark(), "0"), Key("fill", _bright(), "1: of the object"))),
        (
            ("detection", "class", *(f"mean probability {i + 1}" for i in range(max(len(row) for row in table) - 2))),
            *table,
        ),
    )


def _agreement(view: View, masks: Agreement) -> Figure:
    """All masks over the picture."""
    canvas = Canvas(view)
    colours = np.zeros((*masks.found.shape, 3), dtype=np.uint8)
    colours[masks.found] = SKY
    keys = [Key("fill", SKY, "mask")]
    numbers: tuple[tuple[Number, ...], ...] = ()
    caption = "All masks of detections that score at least 0.5, laid over the picture."
    if masks.truth is not None and masks.pixels is not None:
        colours[masks.found & ~masks.truth], colours[~masks.found & masks.truth] = BAD, YELLOW
        right, wrong, missed = masks.pixels
        total = max(right + wrong + missed, 1)
        keys = [
            Key("fill", SKY, f"right: {right / total:.0%}"),
            Key("fill", BAD, f"too much: {wrong / total:.0%}"),
            Key("fill", YELLOW, f"missed: {missed / total:.0%}"),
        ]
        caption = (
            "All masks of detections that score at least 0.5 against all of the ground truth, pixel by pixel: which "
            "object "
            "a pixel belongs to is not asked here."
        )
        numbers = (("pixels", "count", "share"), *_shares(right, wrong, missed, total))
    overlay = cells(colours, canvas.image.width, canvas.image.height)
    base = canvas.array()
    mixed = _laid_over(base, overlay, 0.6)
    if not masks.found.any() and (masks.truth is None or not masks.truth.any()):
        canvas.notice("no masks")
        mixed = canvas.array()
    return Figure("masks_picture", "masks", "All masks in the picture", caption, page(mixed, legend(*keys)), numbers)


def _shares(right: int, wrong: int, missed: int, total: int) -> list[tuple[Number, ...]]:
    named = (("right", right), ("too much", wrong), ("missed", missed))
    return [(name, count, round(count / total, 4)) for name, count in named]


def _nothing(view: View, name: str, title: str) -> Figure:
    canvas = Canvas(view)
    canvas.notice("nothing was found, so there are no masks")
    return Figure(name, "masks", title, "Without detections there are no masks.", page(canvas.array()))


def _strip(parts: tuple[tuple[str, np.ndarray], ...]) -> np.ndarray:
    """Small pictures side by side, each below its title."""
    sheet = Image.new("RGB", (WIDTH, _SIDE + _BAR + 10), PAPER)
    pen = ImageDraw.Draw(sheet)
    for k, (title, picture) in enumerate(parts):
        x = 5 + k * (_SIDE + 10)
        title = one_line(title)
        pen.text((x, _BAR // 2 + 2), title, fill=INK, font=fitting(title, _SIDE, TEXT), anchor="lm")
        down, across = (_SIDE - picture.shape[0]) // 2, (_SIDE - picture.shape[1]) // 2
        sheet.paste(Image.fromarray(picture), (x + across, _BAR + down))
    return np.array(sheet)


def _fit(picture: np.ndarray) -> np.ndarray:
    """Enlarged or shrunk to a small picture, cells square."""
    if not picture.size:
        return np.zeros((_SIDE, _SIDE, 3), dtype=np.uint8)
    factor = _SIDE / max(picture.shape[:2])
    return cells(picture, max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))


def _framed(picture: np.ndarray, colour: Colour) -> np.ndarray:
    framed = picture.copy()
    framed[:6], framed[-6:], framed[:, :6], framed[:, -6:] = colour, colour, colour, colour
    return framed


def _around(box: list[float], times: float) -> Window:
    x1, y1, x2, y2 = box
    half = times * max(x2 - x1, y2 - y1, 4.0) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - half, y - half, x + half, y + half


def _dark() -> Colour:
    r, g, b = heat(np.zeros((1, 1)), 0.0, 1.0)[0, 0].tolist()
    return r, g, b


def _bright() -> Colour:
    r, g, b = heat(np.ones((1, 1)), 0.0, 1.0)[0, 0].tolist()
    return r, g, b
