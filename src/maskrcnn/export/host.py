"""What belongs before and behind the exported network, in numpy: a picture made ready, and boxes brought back to it.

The same steps as `model/preprocess.py`, `model/frames.py` and `original_frame` take with torch, and to the same values.

N pictures    H, W padded size    D detections    boxes: (x1, y1, x2, y2), float pixels; sizes: (height, width)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from maskrcnn.errors import InputError
from maskrcnn.export.facts import Facts
from maskrcnn.export.resample import resize_bilinear
from maskrcnn.model.preprocess_config import PreprocessConfig
from maskrcnn.structures import Size

RESAMPLING = ("torch", "pillow")  # what can be done without torch

Asked = int | Literal["native"] | None  # the shorter side, where a call asks for one


def ready(picture: np.ndarray, facts: Facts, asked: Asked = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB to (3, h, w) float32 as the network wants it: stretched, normalised, resized.

    Where the file has a fixed size, a picture that would be larger is made to fit, its shape kept.
    """
    config = facts.preprocess
    size = resized_size(picture.shape[:2], facts, asked)
    if config.stretch is not None:
        picture = _stretched(picture, config.stretch)
    if config.resampling == "pillow":
        if size != picture.shape[:2]:
            small = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR)
            picture = np.asarray(small)
        return _normalised(picture, config)
    if config.resampling != "torch":
        expected = " or ".join(RESAMPLING)
        raise InputError("only with torch", field="resampling", found=config.resampling, expected=expected)
    values = _normalised(picture, config)
    if size == values.shape[1:]:
        return values
    return resize_bilinear(values, *size, antialias=config.antialias)


def resized_size(original: Size, facts: Facts, asked: Asked = None) -> Size:
    """(height, width) of the picture in what the network sees."""
    size = facts.preprocess.resized_size((int(original[0]), int(original[1])), asked)
    if facts.size is None:
        return size
    factor = min(1.0, facts.size[0] / size[0], facts.size[1] / size[1])
    return max(1, int(size[0] * factor + 1e-6)), max(1, int(size[1] * factor + 1e-6))


def padded(pictures: Sequence[np.ndarray], facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    """N pictures (3, h, w) in one (N, 3, H, W), each with a border around it, and their sizes (N, 2) float32.

    Where the file has a fixed batch, the rest of it is empty pictures of one pixel.
    """
    config, sizes = facts.preprocess, [picture.shape[1:] for picture in pictures]
    height, width = facts.padded_size([(int(h), int(w)) for h, w in sizes])
    count = len(pictures) if facts.batch is None else facts.batch
    batch = np.zeros((count, 3, height, width), dtype=np.float32)
    if config.border == "black":
        batch[:] = (-_per_channel(config.mean) / _per_channel(config.std))[None]
    image_sizes = np.ones((count, 2), dtype=np.float32)
    image_sizes[: len(pictures)] = sizes
    for i, picture in enumerate(pictures):
        left, top = (int(v) for v in window_of(image_sizes[i], (height, width), facts)[:2])
        batch[i, :, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return batch, image_sizes


def window_of(image_size: np.ndarray, padded_size: Size, facts: Facts) -> np.ndarray:
    """(4,) float32: where a picture of `image_size` (2,) lies in the padded frame."""
    far = image_size[::-1].astype(np.float32)
    near = np.zeros(2, dtype=np.float32)
    if facts.preprocess.place == "centre":
        near = np.floor((np.array(padded_size[::-1], dtype=np.float32) - far) / 2)
    window: np.ndarray = np.concatenate([near, near + far - np.float32(extra(facts))])
    return window


def to_original(boxes: np.ndarray, window: np.ndarray, size: Size, corners_apart: float) -> np.ndarray:
    """Boxes (D, 4), padded frame, to the picture as given, of `size`, with corners on edges, not yet cut to it."""
    whole = np.array([size[1], size[0]], dtype=np.float32) - np.float32(corners_apart)
    factor = whole / np.maximum(window[2:] - window[:2], np.float32(1))
    near, far = (boxes[:, :2] - window[:2]) * factor, (boxes[:, 2:] - window[:2]) * factor + np.float32(corners_apart)
    return np.concatenate([near, far], axis=1)


def cut(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Boxes (D, 4) cut to a picture of `size`."""
    limit = np.array([size[1], size[0], size[1], size[0]], dtype=np.float32)
    inside: np.ndarray = boxes.clip(0, limit)
    return inside


def extra(facts: Facts) -> float:
    """How many px the edges of a box lie farther apart than its corners."""
    return 1.0 if facts.corners == "centres" else 0.0


def _per_channel(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None, None]


def _normalised(picture: np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """(H, W, 3) uint8 RGB to (3, H, W) float32."""
    planes = picture.transpose(2, 0, 1)
    values = planes[:: -1 if config.channels == "bgr" else 1].astype(np.float32)
    values /= np.float32(255)
    values -= _per_channel(config.mean)
    values /= _per_channel(config.std)
    return values


def _stretched(picture: np.ndarray, fraction: float) -> np.ndarray:
    """As `ops.contrast.stretch`."""
    below = np.bincount(picture.ravel(), minlength=256).cumsum()
    low = int((below <= fraction * picture.size).sum())
    high = int((below < (1 - fraction) * picture.size).sum())
    spread = ((np.arange(256) - low) * 255).astype(np.float32) / np.float32(max(high - low, 1))
    table = spread.clip(0, 255).round().astype(np.uint8)
    stretched: np.ndarray = table[picture]
    return stretched
