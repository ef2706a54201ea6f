"""Masks, boxes, names and keypoints drawn over pictures.

Pictures are (H, W, 3) uint8 RGB and keep their size; what is drawn on them scales with it. A box covers the pixels
between its rounded edges: [10, 20) is drawn on columns 10 to 19.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskrcnn.errors import InputError
from maskrcnn.ops.rle import RLE, decode_window

if TYPE_CHECKING:
    from torch import Tensor

    from maskrcnn.structures import Detections, KeypointScheme, Target

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FILL = 0.4  # opacity of a mask
_MOST_LABELS = 30  # beyond this names would hide the objects, and boxes are drawn faintly
_CROWDED_BOX = 0.45  # opacity of boxes then
_LEAST_POINT = 0.01  # score of a keypoint that is drawn: thirty times that of a heat map that says nothing
_GOLDEN_ANGLE = 137.508  # degrees; hues that follow each other stay far apart however many there are


@dataclass(frozen=True)
class _Object:
    """One thing to draw. box: x1, y1, x2, y2. mask: None without. text: its label.

    points: column and row of each keypoint, None for one that is not drawn. lines: pairs of them. hollow: which of them
    are drawn as rings.
    """

    box: tuple[float, float, float, float]
    mask: RLE | None
    text: str
    points: tuple[tuple[float, float] | None, ...] = ()
    lines: tuple[tuple[int, int], ...] = ()
    hollow: frozenset[int] = frozenset()


def draw_detections(picture: np.ndarray, found: Detections, *, score_threshold: float = 0.0) -> np.ndarray:
    """A copy of the picture with each detection's mask, outline, box and "name score", each in its own colour.

    Keypoints of a score of at least 0.01 are dots, joined by the lines of their scheme.

    Args:
        picture: (H, W, 3) uint8, the size of `found.size`.
        found: detections in the frame of `picture`.
        score_threshold: lower ones are left out. With more than 30 left, no names are drawn, and boxes only faintly.

    Raises:
        InputError: the picture is not (H, W, 3) uint8, or not of the size that the detections speak of.
    """
    found = found.chosen(found.scores >= score_threshold)
    rles: list[RLE] | list[None] = [None] * len(found) if found.masks is None else found.masks.rle()
    boxes, scores = found.boxes.tolist(), found.scores.tolist()
    texts = [f"{name} {score:.2f}" for name, score in zip(found.names, scores, strict=True)]
    scheme = None if found.keypoints is None else found.keypoint_scheme
    points = _points(found.keypoints, scheme, len(found), _LEAST_POINT)
    lines = () if scheme is None else scheme.skeleton
    objects = [
        _Object(tuple(box), rle, text, dots, lines)
        for box, rle, text, dots in zip(boxes, rles, texts, points, strict=True)
    ]
    return _draw(picture, found.size, objects)


def draw_target(picture: np.ndarray, target: Target, names: Sequence[str]) -> np.ndarray:
    """A copy of the picture with the ground truth drawn as `draw_detections` draws; crowd regions are called so.

    Keypoints that are labelled though hidden are rings.

    names: K class names; label k is names[k - 1].
    """
    from maskrcnn.ops.masks import rasterise  # here: detections are drawn where there is no torch too

    rles: list[RLE] | list[None] = [None] * len(target)
    if target.gt_masks is not None:
        rles = rasterise(target.gt_masks, target.size)
    crowd = [" (crowd)" if flag else "" for flag in target.is_crowd.tolist()]
    texts = [names[label - 1] + note for label, note in zip(target.gt_labels.tolist(), crowd, strict=True)]
    truth = target.gt_keypoints
    scheme, given = (None, None) if truth is None else (truth.scheme, truth.points)
    points = _points(given, scheme, len(target), 1.0)
    hollow = [frozenset[int]()] * len(target)
    if given is not None:
        hollow = [frozenset(j for j, v in enumerate(row) if v == 1) for row in given[..., 2].tolist()]
    lines = () if scheme is None else scheme.skeleton
    objects = [
        _Object(tuple(box), rle, text, dots, lines, rings)
        for box, rle, text, dots, rings in zip(target.gt_boxes.tolist(), rles, texts, points, hollow, strict=True)
    ]
    return _draw(picture, target.size, objects)


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """One picture (H, W, 3) uint8 of several from left to right, each below its title; lower ones are padded."""
    tallest = max(picture.shape[0] for picture in pictures)
    font = _font(max(12, tallest // 40))
    bar, gap = round(1.8 * _font_size(font)), max(2, tallest // 200)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, tallest + bar), (24, 24, 24))
    pen = ImageDraw.Draw(canvas)
    x = 0
    for picture, title in zip(pictures, titles, strict=True):
        canvas.paste(Image.fromarray(picture), (x, bar))
        pen.text((x + gap + 2, bar // 2), one_line(title), fill=(240, 240, 240), font=font, anchor="lm")
        x += picture.shape[1] + gap
    return np.asarray(canvas)


def palette(count: int) -> list[Colour]:
    """`count` colours, RGB 0..255, of like strength; neighbours differ most, and the first ones never change."""
    index = np.arange(count)
    hue = np.deg2rad(30 + _GOLDEN_ANGLE * index)
    lightness = np.array([0.72, 0.62, 0.82])[index % 3]
    return [(int(r), int(g), int(b)) for r, g, b in _oklch_to_rgb(lightness, 0.17, hue)]


def _draw(picture: np.ndarray, size: tuple[int, int], objects: list[_Object]) -> np.ndarray:
    """Fills below rims, then boxes, keypoints and names; the best object, which comes first, on top."""
    _check_picture(picture, size)
    canvas = picture.copy()
    line = max(1, round(min(size) / 400))
    colours = palette(len(objects))
    _draw_masks(canvas, objects, colours, line)
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    drawn = list(zip(objects, colours, strict=True))[::-1]
    for item, colour in drawn:
        pen.rectangle(_pixels_of(item.box), outline=colour, width=_line_of(item.box, line))
    for item, colour in drawn:
        _draw_points(pen, item, colour, _line_of(item.box, line))
    if len(objects) > _MOST_LABELS:
        return np.array(Image.blend(Image.fromarray(canvas), image, _CROWDED_BOX))
    font = _font(max(11, round(min(size) / 40)))
    for item, colour in drawn:
        _label(pen, item, colour, font, size)
    return np.array(image)


def _draw_masks(canvas: np.ndarray, objects: list[_Object], colours: list[Colour], line: int) -> None:
    """Blend the masks into `canvas`, then trace their rims, which lie inside the masks."""
    for opacity, only_rim in ((_FILL, False), (1.0, True)):
        for item, colour in list(zip(objects, colours, strict=True))[::-1]:
            if item.mask is None:
                continue
            bitmap, left, top = decode_window(item.mask)  # one at a time: hundreds of windows need not fit in memory
            chosen = _rim(bitmap > 0, _line_of(item.box, line)) if only_rim else bitmap > 0
            part = canvas[top : top + bitmap.shape[0], left : left + bitmap.shape[1]]
            mixed = (1 - opacity) * part[chosen] + opacity * np.array(colour)
            part[chosen] = np.rint(mixed).astype(np.uint8)


def _points(
    keypoints: Tensor | None, scheme: KeypointScheme | None, count: int, least: float
) -> list[tuple[tuple[float, float] | None, ...]]:
    """Of `count` objects the column and row of each keypoint (count, J, 3) whose third number is at least `least`."""
    if keypoints is None:
        return [()] * count
    centre = 0.5 if scheme is None else scheme.pixel_centre
    return [
        tuple((x - centre, y - centre) if sure >= least else None for x, y, sure in points)
        for points in keypoints.tolist()
    ]


def _draw_points(pen: ImageDraw.ImageDraw, item: _Object, colour: Colour, line: int) -> None:
    """Lines below dots; a dot has a dark rim, so that it shows on its own object's mask."""
    for a, b in item.lines:
        ends = [point for point in (item.points[a], item.points[b]) if point is not None]
        if len(ends) == 2:
            pen.line(ends, fill=colour, width=line + 1)
    for j, point in enumerate(item.points):
        if point is not None:
            (x, y), radius = point, line + 1
            around = (x - radius, y - radius, x + radius, y + radius)
            is_ring = j in item.hollow
            pen.ellipse(around, fill=None if is_ring else colour, outline=colour if is_ring else (0, 0, 0))


def _rim(inside: np.ndarray, width: int) -> np.ndarray:
    """(h, w) bool, the pixels of a mask within `width` steps of the outside."""
    core = inside
    for _ in range(width):
        wide = np.pad(core, 1)
        core = core & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    rim: np.ndarray = inside & ~core
    return rim


def _line_of(box: tuple[float, float, float, float], line: int) -> int:
    """Width of an object's lines, px: thinner than `line` where the object is small."""
    return min(line, max(1, round(min(box[2] - box[0], box[3] - box[1]) / 30)))


def _pixels_of(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """First and last column and row that a box covers, in the order of PIL, which draws both."""
    x1, y1, x2, y2 = (round(v) for v in box)
    return x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)


def _label(pen: ImageDraw.ImageDraw, item: _Object, colour: Colour, font: Font, size: tuple[int, int]) -> None:
    """The name on a patch of the object's colour, above the box or, where there is no room, inside it."""
    pad = max(1, _font_size(font) // 6)
    text = one_line(item.text)
    x1, y1, x2, y2 = pen.textbbox((0, 0), text, font=font)
    width, height = int(x2 - x1) + 2 * pad, int(y2 - y1) + 2 * pad
    left, top, _, _ = _pixels_of(item.box)
    left = max(0, min(left, size[1] - width))
    top = top - height if top >= height else max(0, min(top, size[0] - height))
    pen.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = (0, 0, 0) if brightness > 110 else (255, 255, 255)
    pen.text((left + pad - x1, top + pad - y1), text, fill=ink, font=font)


def one_line(text: str) -> str:
    """Spaces for what cannot be printed: names out of files may hold ends of lines, at which Pillow's layout fails."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _font(size: int) -> Font:
    """DejaVu Sans where it is installed, for its many alphabets; else the face that comes with Pillow."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def _font_size(font: Font) -> int:
    return int(getattr(font, "size", 12))


def _oklch_to_rgb(lightness: np.ndarray, chroma: float, hue: np.ndarray) -> np.ndarray:
    """(n, 3) uint8 sRGB of colours given by lightness, strength and hue (radians) in Oklab (Ottosson 2020)."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (to_linear @ cones**3).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rgb: np.ndarray = np.rint(255 * encoded).astype(np.uint8).T
    return rgb


def _check_picture(picture: np.ndarray, size: tuple[int, int]) -> None:
    given, needed = (picture.shape, picture.dtype.name), ((*size, 3), "uint8")
    if given != needed:
        raise InputError("does not fit what is to be drawn", field="picture", found=given, expected=str(needed))
