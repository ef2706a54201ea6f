"""Histograms of oriented gradients: of a whole picture at many sizes, and of the windows cut out of it.

Dalal and Triggs 2005, computed by scikit-image: gradients of the strongest colour channel, histograms of 9 unsigned
orientations over cells of 8 x 8 px, blocks of 2 x 2 cells that are normalised together (L2-Hys) and overlap by one
cell. Windows that are whole cells apart share their blocks, so a picture's blocks are computed once per size.

    H, W picture    By, Bx blocks down and across    R, C blocks of a window    F = R * C * 36 features of a window
    a window of h x w cells holds h-1 x w-1 blocks    boxes: x1 y1 x2 y2 in pixels of the picture as given
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from maskrcnn.errors import InputError
from maskrcnn.lineage.system import EXTRA

CELL = 8  # px
ORIENTATIONS = 9
CHANNELS = 4 * ORIENTATIONS  # of a block: 2 x 2 cells
CONTEXT = 1  # cells of surroundings on every side of the object; what lies about it tells as well (6.4 of the paper)
STEP = 1.2  # from one size of the pyramid to the next
LARGEST_LEVEL = 2_000_000  # px; a picture is not enlarged beyond
_SHORTEST, _LONGEST = 2, 6  # cells of an object's sides in its window


@dataclass(frozen=True)
class Window:
    """A class's window: the object's sides in cells, to which `CONTEXT` is added all round."""

    height: int
    width: int

    @property
    def blocks(self) -> tuple[int, int]:
        """(R, C)."""
        return self.height + 2 * CONTEXT - 1, self.width + 2 * CONTEXT - 1

    @property
    def features(self) -> int:
        rows, columns = self.blocks
        return rows * columns * CHANNELS

    def side(self) -> float:
        """Geometric mean of the object's sides in the window, px."""
        return CELL * float(np.sqrt(self.height * self.width))


@dataclass(frozen=True)
class Level:
    """A picture at one size. number: its pyramid's step, the factor being about `STEP` ** number.

    blocks: (By, Bx, 36) float32. down, across: its height and width against the picture's.
    """

    number: int
    blocks: np.ndarray
    down: float
    across: float

    def count(self, window: Window) -> tuple[int, int]:
        """Places of the window, down and across; (0, 0) where it is larger than the level."""
        rows, columns = (b - w + 1 for b, w in zip(self.blocks.shape, window.blocks, strict=False))
        return (rows, columns) if min(rows, columns) > 0 else (0, 0)

    def boxes(self, window: Window, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(P, 4) float64: what the object of a window at these places (P,) measures."""
        top, left = rows * CELL / self.down, columns * CELL / self.across
        size = window.width * CELL / self.across, window.height * CELL / self.down
        return np.stack([left, top, left + size[0], top + size[1]], axis=1)

    def cut(self, window: Window, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(P, F) float32 features of the windows at these places (P,)."""
        if not len(rows):
            return np.zeros((0, window.features), dtype=np.float32)
        high, wide = window.blocks
        return np.stack(
            [
                self.blocks[row : row + high, column : column + wide].ravel()
                for row, column in zip(rows, columns, strict=True)
            ]
        )


def block_grid(picture: np.ndarray) -> np.ndarray:
    """(By, Bx, 36) float32 blocks of a picture (H, W, 3) of any numbers; none where it is smaller than a block.

    Raises:
        InputError: scikit-image is not there.
    """
    try:
        from skimage.feature import hog
    except ImportError as error:
        raise InputError("needs scikit-image", field="HOG", expected=EXTRA) from error
    if min(picture.shape[:2]) < 2 * CELL:
        return np.zeros((0, 0, CHANNELS), dtype=np.float32)
    blocks = hog(
        picture.astype(np.float32),
        orientations=ORIENTATIONS,
        pixels_per_cell=(CELL, CELL),
        cells_per_block=(2, 2),
        block_norm="L2-Hys",
        feature_vector=False,
        channel_axis=-1,
    )
    return np.asarray(blocks, dtype=np.float32).reshape(*blocks.shape[:2], CHANNELS)


def window_for(boxes: np.ndarray, scale: float) -> Window:
    """The window of a class from its boxes (G, 4), at least one: the median height and width, in whole cells.

    scale: how much the pictures are enlarged first. The longer side has at most `_LONGEST` cells, for speed, and at
    least half as many, since fewer show no shape.
    """
    sides = np.median(boxes[:, 2:] - boxes[:, :2], axis=0)[::-1] * scale / CELL  # (height, width)
    longest = np.clip(sides.max(), _LONGEST / 2, _LONGEST)
    height, width = np.maximum(_SHORTEST, np.round(sides * longest / sides.max())).astype(int)
    return Window(int(height), int(width))


def level_numbers(boxes: np.ndarray, window: Window) -> range:
    """The sizes at which objects like `boxes` (G, 4) fit the window, but for the largest and smallest twentieth."""
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    smallest, largest = np.percentile(sides, (5, 95))
    first, last = np.log(window.side() / np.array([largest, smallest])) / np.log(STEP)
    return range(int(np.floor(first)), int(np.ceil(last)) + 1)


def pyramid(picture: np.ndarray, numbers: range) -> Iterator[Level]:
    """The picture (H, W, 3) uint8 at these sizes, without those that would exceed `LARGEST_LEVEL`.

    Its edge is repeated `CONTEXT` cells outwards, so that the object at window place (0, 0) begins at the corner.
    """
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    for number in numbers:
        high, wide = (max(1, round(side * STEP**number)) for side in (height, width))
        if high * wide > LARGEST_LEVEL and number > 0:
            continue
        resized = np.asarray(image.resize((wide, high), Image.Resampling.BILINEAR))
        margin = [(CONTEXT * CELL, CONTEXT * CELL + -side % CELL) for side in (high, wide)]  # to whole cells
        padded = np.pad(resized, [*margin, (0, 0)], mode="edge")
        yield Level(number, block_grid(padded), high / height, wide / width)


def warped(picture: np.ndarray, box: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(F,) features of the object in `box` (4,), stretched to the window, and of its mirror image.

    One more cell than the window shows is computed all round and thrown away, so that gradients at its edge are those
    of a picture that goes on, as they are in a pyramid. The picture's edge is repeated outwards.
    """
    ring = CONTEXT + 1
    sides = box[2:] - box[:2]
    cell = sides / [window.width, window.height]  # px of the picture
    (left, top), (right, bottom) = box[:2] - ring * cell, box[2:] + ring * cell
    columns, rows = (np.arange(np.floor(a) - 1, np.ceil(b) + 1) for a, b in ((left, right), (top, bottom)))
    inside = np.clip(rows, 0, picture.shape[0] - 1).astype(int), np.clip(columns, 0, picture.shape[1] - 1).astype(int)
    crop = Image.fromarray(picture[np.ix_(*inside)])
    size = (window.width + 2 * ring) * CELL, (window.height + 2 * ring) * CELL
    region = (left - columns[0], top - rows[0], right - columns[0], bottom - rows[0])
    stretched = np.asarray(crop.resize(size, Image.Resampling.BILINEAR, box=region))
    straight, mirrored = (block_grid(pixels)[1:-1, 1:-1].ravel() for pixels in (stretched, stretched[:, ::-1]))
    return straight, mirrored


def margins(level: Level, window: Window, weights: np.ndarray, bias: float) -> np.ndarray:
    """w . x + b of the window at every place of a level, as one convolution over its blocks.

    weights: (F,). Gives (rows, columns) float32, as `Level.count` tells.
    """
    if not min(level.count(window)):
        return np.zeros((0, 0), dtype=np.float32)
    kernel = torch.from_numpy(weights.astype(np.float32)).reshape(1, *window.blocks, CHANNELS).permute(0, 3, 1, 2)
    blocks = torch.from_numpy(level.blocks).permute(2, 0, 1)[None]
    with torch.no_grad():
        found: np.ndarray = torch.nn.functional.conv2d(blocks, kernel)[0, 0].numpy() + np.float32(bias)
    return found
