"""Pictures of activations: every level of backbone and pyramid at a glance, and the channels of each in a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskrcnn.inspection.activations import Activation, activation
from maskrcnn.inspection.canvas import WIDTH, cells, heat, page, panel_width, panels
from maskrcnn.inspection.figure import Figure, Number
from maskrcnn.inspection.probe import Steps

_COLUMNS = 5
_TALLEST = 340  # px of a panel
_STEPS = 16  # colours from dark to bright: as many as the eye tells apart, and files of a third of the size
_OUTSIDE = 0.005  # of a map's cells are beyond either end of the colours, so that a few leave colours for the rest


@dataclass(frozen=True, eq=False)
class Level:
    """A map of the backbone or the pyramid. seen: shares x1, y1, x2, y2 of it in which the picture lies, 0..1."""

    activation: Activation
    strength: np.ndarray  # (H, W) root mean square over channels
    stride: int
    seen: tuple[float, float, float, float]

    @property
    def name(self) -> str:
        return self.activation.name

    @property
    def title(self) -> str:
        _, channels, height, width = self.activation.shape
        return f"{self.name}: {channels} channels, {width} x {height}, stride {self.stride}"


def activation_figures(steps: Steps) -> list[Figure]:
    """Stage "features": all levels side by side, then the strongest channels of each."""
    levels = _levels(steps)
    figures = [_overview(levels)]
    for level in levels:
        title = f"Channels of {level.title}"
        figures.append(activation_figure(level.activation, f"features_{level.name}", title, level.seen))
    return figures


def activation_figure(
    shown: Activation,
    name: str | None = None,
    title: str | None = None,
    seen: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
) -> Figure:
    """One layer: its strongest channels in a grid, or what has no cells as a field of items by channels.

    seen: shares x1, y1, x2, y2 of the map that are shown, 0..1.
    """
    title = title or f"{shown.name}: {' x '.join(map(str, shown.shape))}"
    if not shown.maps.size:
        picture = np.full((60, WIDTH, 3), 24, np.uint8)
        caption = "There was nothing to compute: the tensor is empty."
    elif not shown.is_map:
        picture = page(_enlarged(heat(shown.maps[0]), WIDTH, WIDTH, fill=True))
        caption = "Items from top to bottom, channels from left to right; dark is the lowest value, bright the highest."
    else:
        width = panel_width(_COLUMNS)
        maps = [_cut(channel, seen) for channel in shown.maps]
        tiles = [
            (f"{i}: {_short(channel.min())} to {_short(channel.max())}", _enlarged(_colours(channel), width, _TALLEST))
            for i, channel in zip(shown.strongest, maps, strict=True)
        ]
        picture = panels(tiles, _COLUMNS)
        first = f" for the first of {shown.shape[0]}" if shown.shape[0] > 1 else ""
        caption = (
            f"The {len(maps)} of {shown.channels} channels that vary most{first}, strongest first; above each its "
            "number and range. Dark is low, bright is high, each on a scale of its own."
        )
    return Figure(
        name=name or shown.name,
        stage="features",
        title=title,
        caption=" ".join([caption, *_alarms([shown])]),
        picture=picture,
        numbers=activation_table([shown]),
    )


def activation_table(shown: Sequence[Activation]) -> tuple[tuple[Number, ...], ...]:
    """The numbers of several activations in rows, below a head."""
    head = ("layer", "shape", "mean", "std", "min", "max", "zeros", "dead channels", "likeness of neighbours", "alarm")
    rows = [
        (
            each.name,
            " x ".join(map(str, each.shape)),
            *(_short(value) for value in (each.mean, each.std, each.min, each.max)),
            f"{each.zeros:.0%}",
            len(each.dead),
            None if each.smoothness is None else round(each.smoothness, 2),
            each.alarm or "",
        )
        for each in shown
    ]
    return (head, *rows)


def _levels(steps: Steps) -> list[Level]:
    """c2, c3, ... and p2, p3, ... fine to coarse; in a detector without pyramid the first alone."""
    maps = {**steps.body, **({} if steps.model.fpn is None else steps.features)}
    height, width = steps.padded_size
    x1, y1, x2, y2 = steps.window.tolist()
    seen = (x1 / width, y1 / height, x2 / width, y2 / height)
    return [
        Level(
            activation(name, values),
            values[0].float().square().mean(0).sqrt().cpu().numpy(),
            round(width / values.shape[3]),
            seen,
        )
        for name, values in maps.items()
    ]


def _overview(levels: list[Level]) -> Figure:
    """Levels of one stride side by side: backbone left, pyramid right."""
    by_stride = sorted(levels, key=lambda level: (level.stride, level.name))
    width = panel_width(2)
    tiles = [
        (level.title, _enlarged(_colours(_cut(level.strength, level.seen)), width, _TALLEST)) for level in by_stride
    ]
    shown = [level.activation for level in levels]
    pyramid = " (c), and those of the pyramid (p)" if any(level.name.startswith("p") for level in levels) else ""
    caption = (
        f"The maps that the backbone makes of the picture{pyramid}, all channels together: dark where a map is quiet, "
        "bright where it answers. The finer, the more it shows of edges; the coarser, the more of what they belong to."
    )
    return Figure(
        name="features_levels",
        stage="features",
        title="Feature maps of every level",
        caption=" ".join([caption, *_alarms(shown)]),
        picture=panels(tiles),
        numbers=activation_table(shown),
    )


def _alarms(shown: Sequence[Activation]) -> list[str]:
    """Sentences about what looks broken."""
    return [f"Alarm: {each.name} is {_WORDS[each.alarm]}." for each in shown if each.alarm] + [
        f"{len(each.dead)} of the {each.channels} channels of {each.name} are dead."
        for each in shown
        if each.dead and not each.alarm
    ]


_WORDS = {
    "NaN": "not a number in places",
    "infinite": "infinite in places",
    "all zeros": "zero everywhere",
    "constant": "constant",
    "noise": "noise",
}


def _cut(values: np.ndarray, seen: tuple[float, float, float, float]) -> np.ndarray:
    """The cells (H, W) in which the picture lies, without the border around it."""
    height, width = values.shape
    top, bottom = math.floor(seen[1] * height + 1e-3), math.ceil(seen[3] * height - 1e-3)
    left, right = math.floor(seen[0] * width + 1e-3), math.ceil(seen[2] * width - 1e-3)
    return values[top : max(bottom, top + 1), left : max(right, left + 1)]


def _colours(values: np.ndarray) -> np.ndarray:
    """Dark to bright, from nearly the lowest to nearly the highest value away from the border."""
    inner = values[1:-1, 1:-1] if min(values.shape) > 4 else values
    low, high = np.quantile(inner, (_OUTSIDE, 1 - _OUTSIDE)).tolist()
    if high <= low:
        return heat(values)
    steps = np.floor((values.clip(low, high) - low) / (high - low) * (_STEPS - 1e-6))
    return heat(steps, 0, _STEPS - 1)


def _enlarged(colours: np.ndarray, width: int, tallest: int, *, fill: bool = False) -> np.ndarray:
    """Cells as squares (rectangles where it is to `fill` the width) of the page."""
    rows, columns = colours.shape[:2]
    if fill:
        return cells(colours, width, max(24, min(tallest, round(width / columns) * rows)))
    scale = min(width / columns, tallest / rows)
    return cells(colours, max(1, round(columns * scale)), max(1, round(rows * scale)))


def _short(value: float) -> str:
    """Three digits at most."""
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}" if abs(value) < 1e4 else f"{value:.0e}"
