"""Drawn circles, squares and triangles with exact masks: a data set of any size that needs no file.

Made to be hard enough to tell good training from bad: noise and texture over everything, colours that say nothing of
the class, contrast that is low at times, sides from 10 to 80 px in one picture (at 128 px), any angle, objects that
hide each other by up to a half and reach a little over the border.

    H, W picture size    x, y in pixels, a pixel's centre at +0.5
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from maskrcnn.data.classes import Classes
from maskrcnn.data.dataset import Dataset, Sample, position
from maskrcnn.errors import InputError
from maskrcnn.structures import GtMasks, RasterShape, Size, Target

SHAPE_CLASSES = Classes(("circle", "square", "triangle"), (1, 2, 3))

_DESIGN_SIDE = 128  # px; sizes below are for a picture whose shorter side is this, and grow with it
_SIDES = (10.0, 80.0)  # px: diameter, or length of an edge
_NOISE = (12.0, 20.0)  # standard deviation, grey levels; drawn per picture
_LEAST_VISIBLE = 0.5  # of an object's own pixels; what would hide more is not drawn there
_OVERHANG = 0.2  # of half an object's extent may lie outside the picture
_PLACES = 25  # tried for one object before it is given up
_REMEMBERED = 64 << 20  # bytes of pictures that are drawn only once: drawing costs as much as learning from them


def drawn_shapes(split: Literal["train", "val"]) -> ShapesDataset:
    """The two fixed data sets: 500 pictures of seed 1 to learn from, 200 of seed 2 to be judged by."""
    return ShapesDataset(500, seed=1) if split == "train" else ShapesDataset(200, seed=2)


class ShapesDataset(Dataset):
    """`length` pictures of drawn shapes. Picture i depends on (seed, i) and `size` alone, so access is random.

    Masks are the pixels that can be seen: those whose centre lies in the shape and in none drawn later.
    """

    def __init__(self, length: int, size: Size = (128, 128), seed: int = 0, max_objects: int = 12) -> None:
        for name, value, least in (("length", length, 0), ("size", min(size), 16), ("max_objects", max_objects, 1)):
            if value < least:
                raise InputError(
                    "is too small", field=f"ShapesDataset.{name}", found=value, expected=f"{least} or more"
                )
        self.length, self.size, self.seed, self.max_objects = length, size, seed, max_objects
        self.classes = SHAPE_CLASSES
        self._recent: OrderedDict[int, Sample] = OrderedDict()

    def __len__(self) -> int:
        return self.length

    def path(self, i: int) -> str:
        return f"shapes-{self.seed}-{position(i, self.length):05d}.png"

    def target(self, i: int) -> Target:
        return self.sample(i)[1]

    def sample(self, i: int) -> Sample:
        i = position(i, self.length)
        if i not in self._recent:
            while len(self._recent) >= max(1, _REMEMBERED // (3 * self.size[0] * self.size[1])):
                self._recent.popitem(last=False)
            self._recent[i] = self._draw(i)
        return self._recent[i]

    def _draw(self, i: int) -> Sample:
        rng = np.random.default_rng((self.seed, i))
        scene = _Scene(self.size, rng)
        for _ in range(rng.integers(1, self.max_objects + 1)):
            scene.add_object()
        return scene.picture(), scene.target(i + 1)


@dataclass(frozen=True)
class _Outline:
    """A placed shape inside its own window. inside: (h, w) float32 px from the edge, positive inside."""

    label: int
    left: int
    top: int
    inside: np.ndarray
    area: float  # of the whole shape, px

    @property
    def window(self) -> tuple[slice, slice]:
        rows, columns = self.inside.shape
        return slice(self.top, self.top + rows), slice(self.left, self.left + columns)


class _Scene:
    """A picture being drawn. owner: (H, W) int16, number of the object seen in each pixel, 0 for the background."""

    def __init__(self, size: Size, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.scale = min(size) / _DESIGN_SIDE
        self.background = rng.uniform(0, 255, 3)
        self.colours = [self.background]
        self.canvas = (self.background + self._texture(size, rng.uniform(10, 35))).astype(np.float32)  # (H, W, 3)
        self.owner = np.zeros(size, dtype=np.int16)
        self.outlines: list[_Outline] = []

    def add_object(self) -> None:
        """Draw one more, unless no place is found where it hides no other by more than half."""
        label = int(self.rng.integers(1, len(SHAPE_CLASSES) + 1))
        for _ in range(_PLACES):
            outline = self._place(label, self.rng.uniform(*_SIDES) * self.scale)
            if self._fits(outline):
                self._paint(outline)
                return

    def _place(self, label: int, side: float) -> _Outline:
        rng, (height, width) = self.rng, self.size
        corners = _corners(label, side, rng.uniform(0, 2 * np.pi))  # (P, 2) about the centre
        reach = np.full(2, side / 2) if label == 1 else np.abs(corners).max(axis=0)
        margin = np.minimum(reach * (1 - _OVERHANG), np.array([width, height]) / 2)
        centre = rng.uniform(margin, np.array([width, height]) - margin)
        low = np.maximum(np.floor(centre - reach - 1), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach + 1), [width, height]).astype(int)
        x = np.arange(low[0], high[0])[None, :] + 0.5 - centre[0]
        y = np.arange(low[1], high[1])[:, None] + 0.5 - centre[1]
        if label == 1:
            inside, area = side / 2 - np.hypot(x, y), np.pi * side**2 / 4
        else:
            inside, area = _inside_polygon(corners, x, y), side**2 * (1 if label == 2 else np.sqrt(3) / 4)
        return _Outline(label, int(low[0]), int(low[1]), inside.astype(np.float32), float(area))

    def _fits(self, new: _Outline) -> bool:
        covered = new.inside >= 0
        if covered.sum() < _LEAST_VISIBLE * new.area:  # too far over the border
            return False
        hidden = np.bincount(self.owner[new.window][covered], minlength=len(self.outlines) + 1)[1:]
        for k in np.flatnonzero(hidden):
            visible = int((self.owner[self.outlines[k].window] == k + 1).sum()) - hidden[k]
            if visible < _LEAST_VISIBLE * self.outlines[k].area:
                return False
        return True

    def _paint(self, new: _Outline) -> None:
        self.outlines.append(new)
        self.owner[new.window][new.inside >= 0] = len(self.outlines)
        alpha = np.clip(new.inside + 0.5, 0, 1)[..., None]  # half covered where the edge runs through the centre
        surface = self._colour() + self._texture(new.inside.shape, self.rng.uniform(0, 25))
        self.canvas[new.window] += alpha * (surface - self.canvas[new.window])

    def _colour(self) -> np.ndarray:
        """(3,) levels; three in ten lie near the background's, but none so near another's that an edge is lost."""
        for _ in range(100):
            colour = self.rng.uniform(0, 255, 3)
            if self.rng.random() < 0.3:
                step = self.rng.normal(size=3)
                colour = self.background + step / np.linalg.norm(step) * self.rng.uniform(45, 75)
            apart = np.linalg.norm(np.array(self.colours) - colour, axis=1).min()
            if apart >= 45 and colour.min() >= 0 and colour.max() <= 255:
                break
        self.colours.append(colour)
        return colour

    def _texture(self, size: Size, strength: float) -> np.ndarray:
        """(h, w, 3) levels about 0: a slope, stripes and blotches, in random parts and slightly coloured."""
        rng, (height, width) = self.rng, size
        y, x = np.mgrid[:height, :width].astype(np.float32) / self.scale
        turn, wave = rng.uniform(0, 2 * np.pi, 2), rng.uniform(6, 40)
        slope = ((x - x.mean()) * np.cos(turn[0]) + (y - y.mean()) * np.sin(turn[0])) / (_DESIGN_SIDE / 2)
        stripes = np.sin((x * np.cos(turn[1]) + y * np.sin(turn[1])) * (2 * np.pi / wave) + turn[0])
        cells = rng.integers(2, 10, 2)
        coarse = Image.fromarray(rng.normal(size=cells).astype(np.float32))
        blotches = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        parts = rng.dirichlet(np.ones(3))
        plane: np.ndarray = parts[0] * slope + parts[1] * stripes + parts[2] * blotches
        coloured: np.ndarray = plane[..., None] * (strength * rng.uniform(0.6, 1.4, 3)).astype(np.float32)
        return coloured

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8, with noise over everything."""
        noise = self.rng.standard_normal(self.canvas.shape, dtype=np.float32) * self.rng.uniform(*_NOISE)
        levels: np.ndarray = np.clip(self.canvas + noise + 0.5, 0, 255)
        return levels.astype(np.uint8)

    def target(self, image_id: int) -> Target:
        shapes = tuple(self._visible(k) for k in range(1, len(self.outlines) + 1))
        edges = [(s.left, s.top, s.left + s.bitmap.shape[1], s.top + s.bitmap.shape[0]) for s in shapes]
        return Target(
            gt_boxes=torch.tensor(edges, dtype=torch.float32).reshape(-1, 4),
            gt_labels=torch.tensor([outline.label for outline in self.outlines], dtype=torch.int64),
            gt_masks=GtMasks(shapes),
            is_crowd=torch.zeros(len(shapes), dtype=torch.bool),
            size=self.size,
            image_id=image_id,
            areas=torch.tensor([float(s.bitmap.sum()) for s in shapes], dtype=torch.float64),
        )

    def _visible(self, number: int) -> RasterShape:
        """The pixels in which this object is seen, in their tight window."""
        outline = self.outlines[number - 1]
        seen = self.owner[outline.window] == number
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        tight = seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
        return RasterShape(tight, outline.left + int(columns[0]), outline.top + int(rows[0]), self.size)


def _corners(label: int, side: float, angle: float) -> np.ndarray:
    """(P, 2) corners of a square or an equilateral triangle about its centre; (1, 2) zeros for a circle."""
    if label == 1:
        return np.zeros((1, 2))
    count = 4 if label == 2 else 3
    turns = angle + 2 * np.pi * np.arange(count) / count
    radius = side / (2 * np.sin(np.pi / count))
    return np.stack([radius * np.cos(turns), radius * np.sin(turns)], axis=1)


def _inside_polygon(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the nearest side's line, positive inside, for a regular polygon about the origin."""
    following = np.roll(corners, -1, axis=0)
    middle = (corners + following) / 2
    distance = np.linalg.norm(middle[0])
    normals = middle / distance
    inside: np.ndarray = np.min([distance - (n[0] * x + n[1] * y) for n in normals], axis=0)
    return inside
