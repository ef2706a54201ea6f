"""Pictures of weights: every layer against the size it began with, and a histogram of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Chart
from PIL import Image, ImageDraw
from torch import nn

from maskrcnn.inspection.canvas import BAD, GREY, INK, ORANGE, PAPER, SKY, WIDTH, chart, font_of, panel_width, panels
from maskrcnn.inspection.figure import Figure
from maskrcnn.inspection.weight_histograms import BINS, LARGEST_WEIGHT, LayerWeights, weight_statistics, weight_table
from maskrcnn.ops.draw import Colour

_DPI = 100
_COLUMNS, _ROWS = 3, 8  # histograms of a page
_BARS = 100  # px, the tallest
_BAR_ROW = 24  # px of a line in the overview

_PARTS = {
    "backbone": "Backbone",
    "fpn": "Feature pyramid",
    "rpn": "Region proposal network",
    "roi_stage": "Last stage of the backbone, on RoIs",
    "box_head": "Box head",
    "later_box_heads": "Later box heads",
    "mask_head": "Mask head",
    "later_mask_heads": "Later mask heads",
    "keypoint_head": "Keypoint head",
}


def weight_figures(model: nn.Module) -> list[Figure]:
    """Stage "weights": all layers at a glance, then the histograms of each part, weights first, then norms and biases.

    The table of the first holds every tensor.
    """
    layers = weight_statistics(model)
    figures = [_overview(layers)]
    for part, of_part in groupby(layers, lambda layer: layer.part):
        figures += _pages(part, list(of_part))
    return figures


def _pages(part: str, layers: list[LayerWeights]) -> list[Figure]:
    """Histograms of one part of the detector, 24 to a page."""
    weights = [layer for layer in layers if layer.role == "weight"]
    others = [layer for layer in layers if layer.role != "weight"]
    figures = []
    for kind, chosen in (("weights", weights), ("norms and biases", others)):
        count = math.ceil(len(chosen) / (_COLUMNS * _ROWS))
        for i, page in enumerate(np.array_split(np.arange(len(chosen)), count) if count else []):
            of = f" ({i + 1} of {count})" if count > 1 else ""
            figures.append(
                Figure(
                    name=f"weights_{part}_{kind.replace(' ', '_')}" + (f"_{i + 1}" if count > 1 else ""),
                    stage="weights",
                    title=f"{_PARTS.get(part, part)}: {kind}{of}",
                    caption=_caption([chosen[j] for j in page]),
                    picture=_histograms([chosen[j] for j in page], part),
                    numbers=weight_table([chosen[j] for j in page]),
                )
            )
    return figures


def _caption(layers: Sequence[LayerWeights]) -> str:
    text = (
        "A histogram of each layer's values, in 64 bins from the lowest to the highest; the taller, the more values "
        "lie there. The dotted line is zero."
    )
    return " ".join([text, *_alarms(layers)])


def _overview(layers: list[LayerWeights]) -> Figure:
    """A line a layer: typical and largest weight against those of first values, and the bound of the alarm."""
    shown = [layer for layer in layers if layer.role == "weight" or layer.alarm]
    height = _BAR_ROW * len(shown) + 170
    figure = _chart(height)
    axes = figure.add_axes((0.46, 70 / height, 0.51, 1 - 170 / height))
    y = np.arange(len(shown))
    typical, largest = (np.array([_relative(layer, v) for layer in shown]) for v in ("std", "largest"))
    axes.hlines(y, typical, largest, color=_hex(GREY), linewidth=2)
    for values, colour, label in ((typical, SKY, "standard deviation"), (largest, ORANGE, "largest")):
        axes.scatter(values, y, color=_hex(colour), s=44, label=label, zorder=3, clip_on=False)
    axes.axvline(LARGEST_WEIGHT, color=_hex(BAD), linestyle="--", linewidth=2, label="alarm")
    axes.axvline(1, color=_hex(GREY), linestyle=":", linewidth=2, label="first values, He et al. 2015")
    axes.set(xscale="log", xlim=(_LEAST, _MOST), ylim=(len(shown) - 0.5, -0.5))
    axes.set_yticks(y, [_label(layer) for layer in shown], fontsize=11.5)
    for text, layer in zip(axes.get_yticklabels(), shown, strict=True):
        text.set_color(_hex(BAD if layer.alarm else INK))
    axes.set_xlabel("size, in units of first values", fontsize=15)
    figure.legend(loc="upper center", ncols=2, fontsize=15, frameon=False, labelcolor=_hex(INK))
    _style(axes)
    tensors, count = len(layers), sum(layer.count for layer in layers)
    alarms = _alarms(layers)
    caption = (
        f"{count:,} values in {tensors} tensors. A line for each layer of weights: how large they are beside what "
        f"they start with. {' '.join(alarms) if alarms else 'None is dead, none has exploded.'}"
    )
    return Figure("weights_overview", "weights", "Weights of every layer", caption, chart(figure), weight_table(layers))


_LEAST, _MOST = 3e-3, 1e4  # of the axis; what lies beyond is drawn at its ends


def _relative(layer: LayerWeights, name: str) -> float:
    """A size in units of first values, kept within the axis."""
    value = getattr(layer, name) * LARGEST_WEIGHT / layer.bound
    return float(min(max(value, _LEAST), _MOST)) if math.isfinite(value) else _MOST


def _histograms(layers: Sequence[LayerWeights], part: str) -> np.ndarray:
    tiles = [(layer.name.removeprefix(f"{part}.").removeprefix("body."), _histogram(layer)) for layer in layers]
    return panels(tiles, _COLUMNS)


def _histogram(layer: LayerWeights) -> np.ndarray:
    """Bars above their range; below it the layer's shape, or its alarm."""
    width, font, small = panel_width(_COLUMNS), font_of(20), font_of(18)
    image = Image.new("RGB", (width, _BARS + 62), PAPER)
    pen = ImageDraw.Draw(image)
    colour = BAD if layer.alarm else SKY
    pen.rectangle((0, 0, width, _BARS), fill=(34, 37, 43))
    tallest, step = max(1, int(layer.histogram.max())), width / BINS
    for i, count in enumerate(layer.histogram.tolist()):
        if count:
            height = max(1, round(count / tallest * (_BARS - 4)))
            pen.rectangle((round(i * step), _BARS - height, round((i + 1) * step) - 1, _BARS), fill=colour)
    first, last = float(layer.edges[0]), float(layer.edges[-1])
    if first < 0 < last:
        zero = round(width * first / (first - last))
        for y in range(0, _BARS, 8):
            pen.line((zero, y, zero, y + 3), fill=INK)
    pen.text((4, _BARS + 6), f"{first:.2g}", fill=INK, font=font)
    pen.text((width - 4, _BARS + 6), f"{last:.2g}", fill=INK, font=font, anchor="ra")
    words = layer.alarm.upper() if layer.alarm else " x ".join(map(str, layer.shape))
    pen.text((width / 2, _BARS + 32), words, fill=colour if layer.alarm else GREY, font=small, anchor="ma")
    return np.array(image)


def _alarms(layers: Sequence[LayerWeights]) -> list[str]:
    """A sentence for each of the first few layers with an alarm."""
    told = [f"Alarm: {layer.warning}." for layer in layers if layer.alarm]
    return told if len(told) <= _TOLD else [*told[:_TOLD], f"And {len(told) - _TOLD} more."]


_TOLD = 5


def _chart(height: int) -> Chart:
    return Chart(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor=_hex(PAPER))


def _style(axes: Any) -> None:
    axes.set_facecolor(_hex(PAPER))
    axes.tick_params(colors=_hex(INK), labelsize=12, axis="x")
    axes.xaxis.label.set_color(_hex(INK))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_hex(GREY))


def _label(layer: LayerWeights) -> str:
    alarm = f" {layer.alarm}" if layer.alarm else ""
    return _within(layer.name, 46 - len(alarm)) + alarm.upper()


def _within(name: str, most: int) -> str:
    """The end of a name, which says more than its beginning."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
