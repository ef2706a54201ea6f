"""Changes of a training picture that move picture, boxes, masks and keypoints together.

    picture: (H, W, 3) uint8 RGB    target: in the picture's frame    affine: (2, 3), this frame to the next

Each is a frozen dataclass, called as `picture, target = transform(picture, target, rng)`; its input stays as it is.
The picture's pixels are moved by Pillow, boxes by arithmetic, and masks not at all: `GtMasks.to_frame` takes the affine
in. `Target.areas` stay those of the annotation. An object that leaves the picture altogether is dropped; one at the
border keeps what can be seen of it, with a box that is tight around that; keypoints beyond it are no longer labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageFilter

from maskrcnn.errors import InputError
from maskrcnn.ops.masks import shape_boxes
from maskrcnn.structures import Size, Target

_NEARLY = 1e-4  # px; a box that is cut by less is whole
_LEAST_AREA = 2.0  # px of box; less is not an object that could be seen
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_SHRINK_FIRST = 2.0  # reducing_gap: shrink by whole factors first where that leaves at least twice the final size


class Transform(Protocol):
    """Picture and target to picture and target; everything random comes from `rng`."""

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]: ...


@dataclass(frozen=True)
class Compose:
    """One after the other."""

    steps: tuple[Transform, ...]

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        for step in self.steps:
            picture, target = step(picture, target, rng)
        return picture, target


@dataclass(frozen=True)
class Flip:
    """Mirror, with these probabilities.

    horizontal: left and right change places. vertical: top and bottom do.
    """

    horizontal: float = 0.5
    vertical: float = 0.0

    def __post_init__(self) -> None:
        _check_probabilities(self, "horizontal", "vertical")

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        across, down = rng.random(2) < (self.horizontal, self.vertical)
        height, width = picture.shape[:2]
        if across:
            picture, target = picture[:, ::-1], moved(target, _affine((-1, 1), (width, 0)), (height, width))
        if down:
            picture, target = picture[::-1], moved(target, _affine((1, -1), (0, height)), (height, width))
        return picture, target


@dataclass(frozen=True)
class QuarterTurn:
    """With `probability`, turn by 90, 180 or 270 degrees, each as often."""

    probability: float = 0.75

    def __post_init__(self) -> None:
        _check_probabilities(self, "probability")

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        if rng.random() >= self.probability:
            return picture, target
        height, width = picture.shape[:2]
        turns = int(rng.integers(1, 4))  # counter-clockwise, as np.rot90 turns
        affine = {
            1: np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, width]]),
            2: np.array([[-1.0, 0.0, width], [0.0, -1.0, height]]),
            3: np.array([[0.0, -1.0, height], [1.0, 0.0, 0.0]]),
        }[turns]
        size = (height, width) if turns == 2 else (width, height)
        return np.rot90(picture, turns), moved(target, affine, size)


@dataclass(frozen=True)
class ResizeShortest:
    """Resize to a shortest side drawn from `sides` (px), unless the longest side would exceed `longest`."""

    sides: tuple[int, ...]
    longest: int = 1333

    def __post_init__(self) -> None:
        _check_sides(self, "sides", self.sides)
        _check_sides(self, "longest", (self.longest,))

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        height, width = picture.shape[:2]
        scale = int(rng.choice(self.sides)) / min(height, width)
        return resized(picture, target, min(scale, self.longest / max(height, width)))


@dataclass(frozen=True)
class ScaleJitter:
    """Resize by a factor between `low` and `high`, even in its logarithm."""

    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        _check_range(self, "low, high", (self.low, self.high))

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        return resized(picture, target, _log_uniform(self.low, self.high, rng))


@dataclass(frozen=True)
class RandomCrop:
    """Cut out a window of at most `size` (height, width), or a square of that side; small pictures stay whole."""

    size: int | Size

    def __post_init__(self) -> None:
        _check_sides(self, "size", _pair(self.size))

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        height, width = (min(a, b) for a, b in zip(_pair(self.size), picture.shape[:2], strict=True))
        top = int(rng.integers(0, picture.shape[0] - height + 1))
        left = int(rng.integers(0, picture.shape[1] - width + 1))
        cut = picture[top : top + height, left : left + width]
        return cut, moved(target, _affine((1, 1), (-left, -top)), (height, width))


@dataclass(frozen=True)
class ScaledCrop:
    """Scale and crop in one resampling: always exactly `size` pixels, whatever the picture.

    size: (height, width), or the side of a square. scale: picture pixels grow by a factor between these two, even in
    its logarithm. towards_object: share of crops that hold the centre of an object drawn at random; the others lie
    anywhere. Where the picture is smaller than the window it lies anywhere within, and the rest is `fill`.
    min_visible: an object of whose box less than this share is left is dropped with what can be seen of it.
    """

    size: int | Size = 256
    scale: tuple[float, float] = (1.0, 2.0)
    towards_object: float = 0.8
    fill: int = 0
    min_visible: float = 0.0

    def __post_init__(self) -> None:
        _check_sides(self, "size", _pair(self.size))
        _check_range(self, "scale", self.scale)
        _check_probabilities(self, "towards_object", "min_visible")

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        scale = _log_uniform(*self.scale, rng)
        centre: Sequence[float | None] = (None, None)
        if len(target) and rng.random() < self.towards_object:
            x1, y1, x2, y2 = target.gt_boxes[int(rng.integers(len(target)))].tolist()
            centre = ((y1 + y2) / 2, (x1 + x2) / 2)
        size = _pair(self.size)
        rows, columns = (
            _Span.drawn(length, out, scale, middle, rng)
            for length, out, middle in zip(picture.shape[:2], size, centre, strict=True)
        )
        affine = _affine((columns.scale, rows.scale), (columns.offset, rows.offset))
        return self._cut(picture, rows, columns), moved(target, affine, size, self.min_visible)

    def _cut(self, picture: np.ndarray, rows: _Span, columns: _Span) -> np.ndarray:
        part = _resample(picture, rows, columns)
        size = _pair(self.size)
        if part.shape[:2] == size:
            return part
        padded = np.full((*size, 3), self.fill, dtype=np.uint8)
        padded[rows.to : rows.to + rows.out, columns.to : columns.to + columns.out] = part
        return padded


@dataclass(frozen=True)
class _Span:
    """Along one axis: source pixels `start` to `stop` become the `out` pixels from `to` on."""

    start: float
    stop: float
    to: int
    out: int

    @property
    def scale(self) -> float:
        return self.out / (self.stop - self.start)

    @property
    def offset(self) -> float:
        return self.to - self.start * self.scale

    @staticmethod
    def drawn(length: int, out: int, scale: float, middle: float | None, rng: np.random.Generator) -> _Span:
        """A window of `out` / `scale` source pixels of `length`, from a whole pixel on; it holds `middle` if given."""
        extent = out / scale
        where = rng.random()
        if extent >= length:
            shown = min(out, max(1, round(length * scale)))
            return _Span(0.0, float(length), int(where * (out - shown + 1)), shown)
        last = int(length - extent)
        start = where * (last + 1) if middle is None else middle - extent * (0.1 + 0.8 * where)
        start = float(min(max(int(start), 0), last))
        return _Span(start, start + extent, 0, out)


@dataclass(frozen=True)
class Photometric:
    """Another camera and another lamp. Each change is drawn evenly in its range; 0 leaves it out.

    brightness: factor 1 +- this. tint: the same, for each channel by itself. contrast: factor 1 +- this about the
    picture's mean. gamma: exponent between 1 / (1 + this) and 1 + this. saturation: factor 1 +- this about grey. hue:
    turn of +- this share of the colour circle, in YIQ. blur: largest sigma, px. noise: largest sigma, grey levels.
    grey, invert, blurred, noisy: how often the picture loses its colours, becomes its negative, is blurred, gets noise.
    """

    brightness: float = 0.2
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.02
    gamma: float = 0.3
    tint: float = 0.1
    blur: float = 1.0
    noise: float = 8.0
    grey: float = 0.1
    invert: float = 0.0
    blurred: float = 0.2
    noisy: float = 0.2

    def __post_init__(self) -> None:
        _check_probabilities(self, "grey", "invert", "blurred", "noisy")
        for name in ("brightness", "contrast", "saturation", "hue", "gamma", "tint", "blur", "noise"):
            value = getattr(self, name)
            if value < 0:
                raise InputError("is negative", field=f"Photometric.{name}", found=value, expected="0 or more")

    def __call__(self, picture: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        image = Image.fromarray(picture)
        image = image.point(self._curves(float(picture[::4, ::4].mean()), rng))
        matrix = self._colour_matrix(rng)
        if matrix is not None:
            image = image.convert("RGB", matrix)
        blurred, noisy = rng.random(2) < (self.blurred, self.noisy)
        if blurred and self.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, self.blur)))
        changed = np.asarray(image)
        if noisy and self.noise:
            grain = rng.standard_normal(changed.shape, dtype=np.float32) * np.float32(rng.uniform(0, self.noise))
            changed = np.clip(changed + grain + 0.5, 0, 255).astype(np.uint8)
        return changed, target

    def _curves(self, mean: float, rng: np.random.Generator) -> list[int]:
        """768 levels: what each of 256 becomes, channel by channel."""
        levels = np.arange(256.0)
        levels = 255 * (levels / 255) ** np.exp(_even(np.log1p(self.gamma), rng))
        levels = (levels - mean) * (1 + _even(self.contrast, rng)) + mean
        levels = levels * (1 + _even(self.brightness, rng))
        if rng.random() < self.invert:
            levels = 255 - levels
        tints = 1 + rng.uniform(-self.tint, self.tint, 3)
        curves: list[int] = np.clip(np.rint(tints[:, None] * levels), 0, 255).astype(int).ravel().tolist()
        return curves

    def _colour_matrix(self, rng: np.random.Generator) -> tuple[float, ...] | None:
        """Pillow's 3 x 4 matrix for saturation, hue and loss of colour; None where nothing changes."""
        turn, factor = 2 * np.pi * _even(self.hue, rng), 1 + _even(self.saturation, rng)
        if rng.random() < self.grey:
            factor = 0.0
        if turn == 0 and factor == 1:
            return None
        i_and_q = factor * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        change = np.eye(3)
        change[1:, 1:] = i_and_q
        matrix = np.linalg.inv(_RGB_TO_YIQ) @ change @ _RGB_TO_YIQ
        return tuple(float(v) for row in matrix for v in (*row, 0.0))


def moved(target: Target, affine: np.ndarray, size: Size, min_visible: float = 0.0) -> Target:
    """The target after an axis-aligned `affine` (2, 3) into a picture of `size` (height, width).

    A mirror exchanges left and right keypoints. Proposals are cut at the border.

    Boxes that the border cuts become tight around what is visible of the mask, or are clipped where there is none.
    An object is dropped when nothing, or less than 2 px of box, is left of it by the cut, or less than the share
    `min_visible` of its box.
    """
    whole = _moved_boxes(target.gt_boxes, affine)  # (G, 4)
    boxes = np.clip(whole, 0, (size[1], size[0]) * 2)
    is_cut = np.abs(boxes - whole).max(axis=1, initial=0) > _NEARLY
    keep = ~is_cut | (_areas(boxes) >= np.maximum(_LEAST_AREA, min_visible * _areas(whole)))
    masks = None if target.gt_masks is None else target.gt_masks.moved(affine)
    border = np.flatnonzero(is_cut & keep)
    if masks is not None and len(border):
        boxes[border] = shape_boxes(masks[border], size).double().numpy()
        keep[border] = _areas(boxes[border]) >= _LEAST_AREA
    points = None if target.gt_keypoints is None else target.gt_keypoints.moved(affine, size)
    after = replace(
        target,
        gt_boxes=torch.from_numpy(boxes.astype(np.float32)),
        gt_masks=masks,
        gt_keypoints=points,
        size=size,
        proposals=None if target.proposals is None else _moved_proposals(target.proposals, affine, size),
    )
    return after if keep.all() else after.chosen(torch.from_numpy(keep))


def _moved_boxes(boxes: torch.Tensor, affine: np.ndarray) -> np.ndarray:
    """(B, 4) float64: boxes (B, 4) after an axis-aligned affine, uncut."""
    corners = boxes.double().numpy().reshape(-1, 2, 2) @ affine[:, :2].T + affine[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def _moved_proposals(proposals: torch.Tensor, affine: np.ndarray, size: Size) -> torch.Tensor:
    """(P', 4): cut to the picture, without those of which less than 2 px are left."""
    boxes = np.clip(_moved_boxes(proposals, affine), 0, (size[1], size[0]) * 2)
    return torch.from_numpy(boxes[_areas(boxes) >= _LEAST_AREA].astype(np.float32))


def resized(picture: np.ndarray, target: Target, scale: float) -> tuple[np.ndarray, Target]:
    """Picture and target `scale` times as large, to whole pixels; at least one."""
    height, width = picture.shape[:2]
    rows = _Span(0.0, float(height), 0, max(1, round(height * scale)))
    columns = _Span(0.0, float(width), 0, max(1, round(width * scale)))
    affine = _affine((columns.scale, rows.scale), (0, 0))
    return _resample(picture, rows, columns), moved(target, affine, (rows.out, columns.out))


def _resample(picture: np.ndarray, rows: _Span, columns: _Span) -> np.ndarray:
    """(rows.out, columns.out, 3): the source window in the new size, bilinear with antialiasing."""
    bounds = []
    for span, length in ((rows, picture.shape[0]), (columns, picture.shape[1])):
        reach = max(1.0, 1 / span.scale) + 1  # the kernel looks so far beyond the window
        bounds.append((max(0, int(span.start - reach)), min(length, int(np.ceil(span.stop + reach)))))
    (top, bottom), (left, right) = bounds
    if all(span.start.is_integer() and span.out == span.stop - span.start for span in (rows, columns)):
        return picture[int(rows.start) : int(rows.stop), int(columns.start) : int(columns.stop)]
    window = (columns.start - left, rows.start - top, columns.stop - left, rows.stop - top)
    part = Image.fromarray(picture[top:bottom, left:right])
    kernel = Image.Resampling.BILINEAR
    size = (columns.out, rows.out)
    return np.asarray(part.resize(size, kernel, box=window, reducing_gap=_SHRINK_FIRST))


def _affine(scale: tuple[float, float], offset: tuple[float, float]) -> np.ndarray:
    """(2, 3) of x and y scaled, then shifted."""
    return np.array([[scale[0], 0.0, offset[0]], [0.0, scale[1], offset[1]]])


def _areas(boxes: np.ndarray) -> np.ndarray:
    areas: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _pair(size: int | Size) -> Size:
    return (size, size) if isinstance(size, int) else size


def _even(width: float, rng: np.random.Generator) -> float:
    return float(rng.uniform(-width, width))


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _check_probabilities(transform: object, *names: str) -> None:
    for name in names:
        value = getattr(transform, name)
        if not 0 <= value <= 1:
            raise InputError(
                "is not a share", field=f"{type(transform).__name__}.{name}", found=value, expected="0 to 1"
            )


def _check_sides(transform: object, name: str, sides: Sequence[int]) -> None:
    if not sides or min(sides) < 1:
        raise InputError(
            "is not a size", field=f"{type(transform).__name__}.{name}", found=sides, expected="1 or more px"
        )


def _check_range(transform: object, name: str, limits: tuple[float, float]) -> None:
    if not 0 < limits[0] <= limits[1]:
        field = f"{type(transform).__name__}.{name}"
        raise InputError("is not a range of factors", field=field, found=limits, expected="0 < low <= high")
