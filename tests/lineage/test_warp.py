"""Warped regions against a slow loop over every pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.lineage.warp import WarpConfig, warp, with_context


def _read(picture: np.ndarray, y: float, x: float) -> np.ndarray:
    """(3,) bilinear value at a point in pixels, whose centres lie at +0.5; 0 more than half a pixel outside."""
    height, width = picture.shape[1:]
    if not (-0.5 <= y <= height + 0.5 and -0.5 <= x <= width + 0.5):
        return np.zeros(3)
    row, column = min(max(y - 0.5, 0.0), height - 1.0), min(max(x - 0.5, 0.0), width - 1.0)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = row - top, column - left
    above = picture[:, top, left] * (1 - across) + picture[:, top, right] * across
    below = picture[:, bottom, left] * (1 - across) + picture[:, bottom, right] * across
    value: np.ndarray = above * (1 - down) + below * down
    return value


def _slow_warp(picture: np.ndarray, box: list[float], side: int, context: int) -> np.ndarray:
    """The paper's words: the box fills the middle `side` - 2 `context` pixels, whatever its shape."""
    inner = side - 2 * context
    pixel_x, pixel_y = (box[2] - box[0]) / inner, (box[3] - box[1]) / inner  # px of the picture per px of the region
    left, top = box[0] - context * pixel_x, box[1] - context * pixel_y
    across, down = math.ceil(pixel_x), math.ceil(pixel_y)  # points in a pixel of the region
    region = np.zeros((3, side, side))
    for i in range(side):
        for j in range(side):
            for a in range(down):
                for b in range(across):
                    y, x = top + (i + (a + 0.5) / down) * pixel_y, left + (j + (b + 0.5) / across) * pixel_x
                    region[:, i, j] += _read(picture, y, x) / (down * across)
    return region


def test_equals_the_slow_loop() -> None:
    picture = torch.randn(3, 70, 90, dtype=torch.float64)
    boxes = [
        [10.0, 12.0, 60.0, 40.5],  # inside
        [-8.25, 30.0, 12.0, 75.0],  # over two borders
        [20.0, 20.0, 23.0, 29.0],  # small: enlarged
        [0.0, 0.0, 90.0, 70.0],  # the whole picture, with context all round it
    ]
    config = WarpConfig(side=32, context=3 / 32)
    found = warp(picture, torch.tensor(boxes, dtype=torch.float64), config)
    expected = np.stack([_slow_warp(picture.numpy(), box, 32, 3) for box in boxes])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_context_takes_its_pixels_of_the_region() -> None:
    """16 of 227 pixels on each side (2.1 of the paper): the box itself fills the 195 between."""
    box = torch.tensor([[100.0, 50.0, 295.0, 440.0]])
    grown = with_context(box, 16 / 227)
    torch.testing.assert_close(grown, torch.tensor([[84.0, 18.0, 311.0, 472.0]]))


def test_outside_the_picture_is_the_mean_colour() -> None:
    picture = torch.ones(3, 64, 64)
    region = warp(picture, torch.tensor([[-64.0, 0.0, 64.0, 64.0]]), WarpConfig(side=32, context=0.0))[0]
    assert (region[:, :, :15] == 0).all() and (region[:, :, 17:] == 1).all()


def test_no_boxes_and_empty_boxes() -> None:
    picture = torch.randn(3, 40, 40)
    assert warp(picture, torch.zeros(0, 4), WarpConfig()).shape == (0, 3, 64, 64)
    empty = warp(picture, torch.tensor([[5.0, 5.0, 5.0, 9.0]]), WarpConfig())
    assert torch.equal(empty, torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("field, value", [("side", 16), ("context", 0.5), ("context", -0.1)])
def test_impossible_values_are_named(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"WarpConfig.{field}"):
        WarpConfig(**{field: value})  # type: ignore[arg-type]
