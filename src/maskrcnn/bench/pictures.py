"""The pictures that a benchmark looks at, each as the bytes of a JPEG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn.data.pictures import picture_files, read_picture
from maskrcnn.structures import Size

BUNDLED = ("crowd.jpg", "tissue.jpg")  # of the demo pictures those that are wide enough
WHOLE = (480, 640)  # px, height and width: at a shorter side of 800 the network sees 800 x 1088
_QUALITY = 95  # of what is written as JPEG here
_ORIENTATION = 0x0112  # of EXIF; torchvision's decoder does not turn pictures


@dataclass(frozen=True)
class BenchPicture:
    """data: a JPEG file that every decoder reads alike. size: (height, width)."""

    name: str
    data: bytes
    size: Size


def bench_pictures(paths: Sequence[str | Path] = ()) -> list[BenchPicture]:
    """The files, folders or globs; of none the bundled ones at 640 x 480. Errors: `InputError` for what is no picture.

    A JPEG file is taken as it is. What is none, or is turned by its EXIF, is written as one.
    """
    if paths:
        return [_of_file(path) for path in picture_files([str(path) for path in paths])]
    return [_jpeg(name, _resized(_bundled(name), WHOLE)) for name in BUNDLED]


def cropped(paths: Sequence[str | Path], side: int) -> list[BenchPicture]:
    """The middle square of `side` px of each picture, enlarged where it is smaller; of none the bundled ones."""
    named = [(path.name, read_picture(path)) for path in picture_files([str(path) for path in paths])] if paths else []
    named = named or [(name, _bundled(name)) for name in BUNDLED]
    return [_jpeg(name, _middle(pixels, side)) for name, pixels in named]


def _bundled(name: str) -> np.ndarray:
    return read_picture(files("maskrcnn").joinpath("demo_pictures", name).read_bytes(), name=name)


def _of_file(path: Path) -> BenchPicture:
    pixels = read_picture(path)
    with Image.open(path) as image:
        plain = image.format == "JPEG" and image.mode in ("RGB", "L") and image.getexif().get(_ORIENTATION, 1) == 1
    if plain:
        return BenchPicture(path.name, path.read_bytes(), (pixels.shape[0], pixels.shape[1]))
    return _jpeg(path.name, pixels)


def _jpeg(name: str, pixels: np.ndarray) -> BenchPicture:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=_QUALITY)
    return BenchPicture(name, stream.getvalue(), (pixels.shape[0], pixels.shape[1]))


def _resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    if min(height, width) < side:
        scale = side / min(height, width)
        pixels = _resized(pixels, (max(side, round(height * scale)), max(side, round(width * scale))))
        height, width = pixels.shape[:2]
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])
