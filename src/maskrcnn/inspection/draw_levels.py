"""Pictures of RoIAlign: which level each RoI is read from, and the points that are read for one of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from maskrcnn.inspection.canvas import (
    GREY,
    LEVELS,
    SKY,
    WHITE,
    Canvas,
    Key,
    View,
    Window,
    heat,
    legend,
    page,
    panel_width,
    panels,
)
from maskrcnn.inspection.figure import Figure
from maskrcnn.inspection.levels import Levels, Samples, chosen_roi, roi_levels, roi_samples
from maskrcnn.inspection.probe import Steps
from maskrcnn.model.frames import on_edges, to_original

SHOWN = 200  # RoIs drawn
_NAMES = {"align": "RoIAlign", "align_max": "RoIAlign", "warp": "RoIWarp", "pool": "RoIPool", "crop": "Crop and resize"}
_HOW = {
    "align": "The box is cut into {high} x {wide} bins, without rounding; the mean of {many} points in each is read.",
    "align_max": "The box is cut into {high} x {wide} bins, without rounding; the largest of {many} points in each "
    "is read.",
    "warp": "The box is moved to whole cells and cut into {high} x {wide} bins; the mean of {many} points in each "
    "is read.",
    "pool": "The box is moved to whole cells and cut into {high} x {wide} bins of whole cells; the largest is read.",
    "crop": "One value is read at each of {high} x {wide} points, which span the box; nothing is averaged.",
}
_POINTS = 14  # sample points per axis and bin, beyond which only bins are drawn


def level_figures(steps: Steps, view: View, row: int | None = None) -> list[Figure]:
    """Levels of all RoIs, and the sample points of RoI `row`: that of the best detection unless one is named."""
    row = chosen_roi(steps) if row is None else row
    assigned = _assigned(steps, view, roi_levels(steps))
    if row is None:
        canvas = Canvas(view)
        canvas.notice("no proposals, so nothing is pooled")
        caption = "With a proposal this shows where its features are read."
        title = f"{_NAMES[steps.config.roi_pooler.method]} reads the map"
        return [assigned, Figure("levels_samples", "levels", title, caption, page(canvas.array()))]
    return [assigned, _samples(steps, view, roi_samples(steps, row))]


def _assigned(steps: Steps, view: View, levels: Levels) -> Figure:
    canvas = Canvas(view)
    colours = [LEVELS[k] if k < len(LEVELS) else GREY for k in range(len(levels.names))]
    canvas.boxes(levels.boxes[:SHOWN], [colours[k] for k in levels.level[:SHOWN].tolist()], line=2)
    if not len(levels.boxes):
        canvas.notice("no proposals")
    parts = zip(colours, levels.names, levels.counts, strict=True)
    keys = [Key("solid", colour, f"{name}: {count:,}") for colour, name, count in parts]
    rows = []
    for k, (name, count) in enumerate(zip(levels.names, levels.counts, strict=True)):
        boxes = levels.boxes[levels.level == k]
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        ends = (round(float(sides.min()), 1), round(float(sides.max()), 1)) if count else (None, None)
        rows.append((name, steps.model.box_pooler.strides[name], count, *ends))
    rule = steps.config.roi_pooler
    one = len(levels.names) == 1
    why = (
        "This detector has one level."
        if one
        else f"A box of {rule.canonical_size:g} px as the network sees it is read from p{rule.canonical_level}, one "
        "half as "
        "large a level below, one twice as large a level above."
    )
    return Figure(
        "levels_assigned",
        "levels",
        "Large boxes are read from coarse levels",
        f"{why} The best {min(SHOWN, len(levels.boxes))} of {len(levels.boxes):,} RoIs are drawn.",
        page(canvas.array(), legend(*keys)),
        (("level", "px per cell", "RoIs", "smallest side px", "largest side px"), *rows),
    )


def _samples(steps: Steps, view: View, samples: Samples) -> Figure:
    """The same points twice: on the map that is read, and where its cells lie in the picture."""
    feature = steps.features[samples.level][0].float().mean(dim=0).cpu().numpy()
    window = _window(samples, feature.shape)
    on_map = _on_map(samples, feature, window)
    x, y = torch.tensor(window)[[0, 2]] * samples.stride, torch.tensor(window)[[1, 3]] * samples.stride
    (left, top), (right, bottom) = _in_original(steps, x, y).tolist()
    canvas = Canvas(view, (left, top, right, bottom), width=panel_width(), height=700)
    _draw(canvas, samples, lambda x, y: _in_original(steps, (x + 0.5) * samples.stride, (y + 0.5) * samples.stride))
    high, wide = (len(side) for side in (samples.y, samples.x))
    many = f"{samples.y.shape[1]} x {samples.x.shape[1]}"
    crop = samples.method == "crop"
    how = _HOW[samples.method].format(high=high, wide=wide, many=many)
    keys = [Key("solid", WHITE, "RoI" if crop else "RoI and its bins"), Key("dot", SKY, "sample points")]
    if samples.method != "pool" and not (samples.counted_x.all() and samples.counted_y.all()):
        keys.append(Key("none", WHITE, "points far outside read 0, not drawn"))
    box = samples.box.tolist()
    return Figure(
        "levels_samples",
        "levels",
        f"{_NAMES[samples.method]} reads the map",
        f"{how} Left: the map {samples.level}, mean of {steps.features[samples.level].shape[1]} channels, one "
        "square a cell "
        f"of {samples.stride} px. Right: where these cells lie in the picture.",
        page(panels([(f"map {samples.level}", on_map), ("picture", canvas.array())]), legend(*keys)),
        (
            ("RoI", "x1", "y1", "x2", "y2", "level", "bins", "points per bin", "points"),
            (
                samples.row,
                *(round(v, 1) for v in box),
                samples.level,
                f"{high} x {wide}",
                many,
                len(samples.points),
            ),
        ),
    )


def _window(samples: Samples, size: tuple[int, ...]) -> Window:
    """The part of the map that is shown, in cells counted from its corner: the box and a third of it on all sides."""
    ends = [(float(e.min()) + 0.5, float(e.max()) + 0.5) for e in (samples.edges_x, samples.edges_y)]
    side = max(*(b - a for a, b in ends), 3.0)
    (x1, x2), (y1, y2) = (
        (float(np.floor((a + b) / 2 - 0.85 * side)), float(np.ceil((a + b) / 2 + 0.85 * side))) for a, b in ends
    )
    return x1, y1, x2, y2


def _on_map(samples: Samples, feature: np.ndarray, window: Window) -> np.ndarray:
    """The map as a picture of one px a cell, drawn on like any other."""
    canvas = Canvas(View.of(heat(feature)), window, width=panel_width(), height=700, dim=False, sharp=True)
    _draw(canvas, samples, lambda x, y: torch.stack([x + 0.5, y + 0.5], dim=1))
    return canvas.array()


def _in_original(steps: Steps, x: Tensor, y: Tensor) -> Tensor:
    """Places (P,), (P,) of the padded frame to (P, 2) of the original; centres of pixels lie at +0.5 in both."""
    window = on_edges(steps.window[None].cpu(), steps.config.corners)[0]
    points = torch.stack([x, y, x, y], dim=1)
    return to_original(points, window, steps.size, "edges")[:, :2]


def _draw(canvas: Canvas, samples: Samples, placed: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Edges of the bins, and the points. placed: from cells to px of the canvas."""
    ex, ey = samples.edges_x, samples.edges_y
    for k, (along, across) in enumerate(((ex, ey), (ey, ex))):
        for i, value in enumerate(along.tolist()):
            ends = torch.tensor([value, value]), torch.stack([across[0], across[-1]])
            line = placed(*(ends if k == 0 else ends[::-1])).tolist()
            canvas.line(line[0], line[1], WHITE, 3 if i in (0, len(along) - 1) else 1)
    if samples.x.shape[1] > _POINTS or samples.y.shape[1] > _POINTS:
        return
    points = samples.points
    canvas.dots(placed(points[:, 0], points[:, 1]).numpy(), SKY, 4)
