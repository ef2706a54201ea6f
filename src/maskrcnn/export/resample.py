"""Pictures resized in numpy, where there is no torch: bilinear, with and without antialiasing, as torch resizes floats.

A side of `before` pixels becomes one of `after`, separably: each new pixel is a weighted sum of a run of old ones.
Places are rounded to float32, as torch's are.
"""

from __future__ import annotations

import numpy as np

Taps = tuple[np.ndarray, np.ndarray]  # (after, T) positions int64, and weights float32


def resize_bilinear(picture: np.ndarray, height: int, width: int, *, antialias: bool) -> np.ndarray:
    """(C, H, W) float32 to (C, height, width): `F.interpolate(mode="bilinear", align_corners=False)` to 1e-5."""
    taps = antialiased_taps if antialias else plain_taps
    resized = picture
    if width != picture.shape[2]:
        resized = _weighted(resized, taps(picture.shape[2], width))
    if height != picture.shape[1]:
        resized = _weighted(resized.swapaxes(1, 2), taps(picture.shape[1], height)).swapaxes(1, 2)
    return np.ascontiguousarray(resized)


def antialiased_taps(before: int, after: int) -> Taps:
    """A triangle as wide as the pixels that a smaller picture skips, at least two pixels wide."""
    scale = np.float32(before / after)
    support = max(scale, np.float32(1))
    centres = scale * (np.arange(after, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((centres + support + 0.5).astype(np.int64), before)
    run = first[:, None] + np.arange(int((stop - first).max()))
    distances = (run.astype(np.float32) - centres[:, None] + np.float32(0.5)) / support
    weights = np.maximum(1 - np.abs(distances), 0) * (run < stop[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    return run.clip(max=before - 1), weights


def plain_taps(before: int, after: int) -> Taps:
    """The two nearest pixels; the border is repeated."""
    half = np.float32(0.5)
    places = np.maximum((np.arange(after, dtype=np.float32) + half) * np.float32(before / after) - half, 0)
    first = np.minimum(places.astype(np.int64), before - 1)
    beyond = places - first
    run = np.stack([first, np.minimum(first + 1, before - 1)], axis=1)
    return run, np.stack([1 - beyond, beyond], axis=1).astype(np.float32)


def _weighted(values: np.ndarray, taps: Taps) -> np.ndarray:
    """(..., before) to (..., after)."""
    run, weights = taps
    total = np.zeros((*values.shape[:-1], len(run)), dtype=np.float32)
    for t in range(run.shape[1]):
        total += values[..., run[:, t]] * weights[:, t]
    return total
