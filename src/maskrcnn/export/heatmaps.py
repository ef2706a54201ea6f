"""The highest place of each heat map, in numpy: as `ops/keypoints.py` finds it with torch (He et al. 2017, 5).

R boxes    J keypoints    M heat map side    H, W a box in whole pixels, rounded up
"""

from __future__ import annotations

import numpy as np

_VALUES_AT_ONCE = 2**22  # of a resized heat map, 16 MB
_KEYS = np.float32(-0.75)  # steepness of the cubic kernel (Keys 1981)


def heatmaps_to_points(maps: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (R, J, 2) x, y in the frame of boxes (R, 4), and the values there (R, J), of maps (R, J, M, M) float32."""
    points = np.zeros((*maps.shape[:2], 2), dtype=np.float32)
    values = np.zeros(maps.shape[:2], dtype=np.float32)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], np.float32(1))
    for r, (width, height) in enumerate(np.ceil(sides).astype(np.int64).tolist()):
        place, values[r] = _highest(maps[r], height, width)
        points[r] = boxes[r, :2] + (place + np.float32(0.5)) * (sides[r] / np.ceil(sides[r]))
    return points, values


def _highest(maps: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(J, 2) column and row of the highest pixel of each map (J, M, M) at (height, width), and its value (J,)."""
    rows, columns = _resize_matrix(height, maps.shape[1]), _resize_matrix(width, maps.shape[2]).T
    best = np.full(len(maps), -np.inf, dtype=np.float32)
    position = np.zeros(len(maps), dtype=np.int64)
    step = max(1, _VALUES_AT_ONCE // (len(maps) * width))
    for start in range(0, height, step):
        strip = (rows[start : start + step] @ maps @ columns).reshape(len(maps), -1)
        place, value = strip.argmax(axis=1), strip.max(axis=1)
        position = np.where(value > best, place + start * width, position)
        best = np.maximum(best, value)
    return np.stack([position % width, position // width], axis=1).astype(np.float32), best


def _resize_matrix(length: int, side: int) -> np.ndarray:
    """(length, side) float32: how much of each of `side` samples is in each of `length` pixels; the border repeats."""
    centres = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(side / length) - np.float32(0.5)
    before = np.floor(centres)
    near = np.arange(-1, 3)
    distance = np.abs((centres - before)[:, None] - near.astype(np.float32))
    samples = (before.astype(np.int64)[:, None] + near).clip(0, side - 1)
    matrix = np.zeros((length, side), dtype=np.float32)
    np.add.at(matrix, (np.arange(length)[:, None], samples), _cubic(distance))
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    """The kernel of cubic convolution at distances x of 0 to 2 (Keys 1981, Eq. 4 with a in place of -1/2)."""
    near = ((_KEYS + 2) * x - (_KEYS + 3)) * x * x + 1
    far = ((_KEYS * x - 5 * _KEYS) * x + 8 * _KEYS) * x - 4 * _KEYS
    kernel: np.ndarray = np.where(x <= 1, near, far)
    return kernel
