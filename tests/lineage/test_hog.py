"""HOG of whole pictures and of windows: equal to scikit-image's on the window alone, and in the right place."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from skimage.feature import hog

from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.lineage import hog as module
from maskrcnn.lineage.hog import (
    CELL,
    CHANNELS,
    CONTEXT,
    STEP,
    Window,
    block_grid,
    level_numbers,
    margins,
    pyramid,
    warped,
    window_for,
)

WINDOW = Window(3, 4)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return ShapesDataset(1, size=(72, 96), seed=6)[0][0]


def level_at(picture: np.ndarray, number: int) -> module.Level:
    return next(pyramid(picture, range(number, number + 1)))


def test_a_window_equals_scikit_image_on_its_own_pixels(picture: np.ndarray) -> None:
    """With one cell more all round, which gives the gradients at the window's edge their neighbours."""
    level = level_at(picture, 0)
    row, column = 3, 2
    top, left = (row - CONTEXT) * CELL, (column - CONTEXT) * CELL  # of the window, context included
    height, width = (WINDOW.height + 2 * CONTEXT) * CELL, (WINDOW.width + 2 * CONTEXT) * CELL
    crop = picture[top - CELL : top + height + CELL, left - CELL : left + width + CELL]
    expected = hog(crop, 9, (8, 8), (2, 2), block_norm="L2-Hys", feature_vector=False, channel_axis=-1)[1:-1, 1:-1]
    found = level.cut(WINDOW, np.array([row]), np.array([column]))
    assert found.shape == (1, WINDOW.features) == (1, 4 * 5 * CHANNELS)
    assert np.abs(found[0] - expected.ravel()).max() < 1e-5


def test_without_that_cell_only_blocks_at_the_edge_differ(picture: np.ndarray) -> None:
    level = level_at(picture, 0)
    crop = picture[16:56, 8:56]  # window at row 3, column 2
    expected = hog(crop, 9, (8, 8), (2, 2), block_norm="L2-Hys", feature_vector=False, channel_axis=-1)
    found = level.cut(WINDOW, np.array([3]), np.array([2])).reshape(*WINDOW.blocks, 2, 2, 9)
    assert np.abs(found - expected)[1:-1, 1:-1].max() < 1e-5
    assert np.abs(found - expected).mean() < 0.02


def test_one_convolution_scores_every_window(picture: np.ndarray) -> None:
    level = level_at(picture, 1)
    weights = np.random.default_rng(0).normal(size=WINDOW.features).astype(np.float32)
    found = margins(level, WINDOW, weights, 0.25)
    assert found.shape == level.count(WINDOW) and found.size > 20
    rows, columns = np.indices(found.shape).reshape(2, -1)
    expected = level.cut(WINDOW, rows, columns).astype(np.float64) @ weights + 0.25
    assert np.abs(found.ravel() - expected).max() < 1e-4


@pytest.mark.parametrize("number", [-2, 0, 3])
def test_an_object_lies_in_the_box_of_its_window(number: int) -> None:
    """A rectangle of the window's size at that level, found by comparing windows with the warped object."""
    factor = STEP**number
    box = np.array([5, 3, 5 + WINDOW.width, 3 + WINDOW.height]) * CELL / factor
    picture = np.full((round(110 / factor), round(130 / factor), 3), 70, dtype=np.uint8)
    x1, y1, x2, y2 = np.round(box).astype(int)
    picture[y1:y2, x1:x2] = 190
    wanted = warped(picture, box, WINDOW)[0]
    level = level_at(picture, number)
    rows, columns = np.indices(level.count(WINDOW)).reshape(2, -1)
    best = np.argmin(((level.cut(WINDOW, rows, columns) - wanted) ** 2).sum(axis=1))
    found = level.boxes(WINDOW, rows[[best]], columns[[best]])[0]
    assert np.abs(found - box).max() < 1.5 / factor


def test_boxes_at_the_size_of_the_picture(picture: np.ndarray) -> None:
    level = level_at(picture, 0)
    found = level.boxes(WINDOW, np.array([0, 2]), np.array([0, 5]))
    assert found.tolist() == [[0, 0, 32, 24], [40, 16, 72, 40]]
    rows, columns = level.count(WINDOW)
    last = level.boxes(WINDOW, np.array([rows - 1]), np.array([columns - 1]))[0]
    assert last.tolist() == [96 - 32, 72 - 24, 96, 72]  # the corner is reached


def test_what_is_no_whole_number_of_cells_is_searched_to_the_end() -> None:
    level = level_at(np.zeros((75, 101, 3), np.uint8), 0)
    rows, columns = level.count(WINDOW)
    last = level.boxes(WINDOW, np.array([rows - 1]), np.array([columns - 1]))[0]
    assert 101 <= last[2] < 101 + CELL and 75 <= last[3] < 75 + CELL


def test_a_warped_object_that_fits_is_the_window_itself(picture: np.ndarray) -> None:
    level = level_at(picture, 0)
    box = level.boxes(WINDOW, np.array([3]), np.array([2]))[0]
    straight, _ = warped(picture, box, WINDOW)
    assert np.abs(straight - level.cut(WINDOW, np.array([3]), np.array([2]))[0]).max() < 1e-5


@pytest.mark.parametrize("box", [(20.3, 11.8, 50.1, 61.4), (-4.0, -6.0, 12.0, 20.0), (90.0, 60.0, 96.0, 72.0)])
def test_the_mirror_image_is_that_of_the_mirrored_picture(picture: np.ndarray, box: tuple[float, ...]) -> None:
    x1, y1, x2, y2 = box
    mirrored = np.array([96 - x2, y1, 96 - x1, y2])
    expected = warped(np.ascontiguousarray(picture[:, ::-1]), mirrored, WINDOW)[0]
    assert np.abs(warped(picture, np.array(box), WINDOW)[1] - expected).max() < 0.05
    assert np.abs(warped(picture, np.array(box), WINDOW)[1] - expected).mean() < 1e-3


def test_tiny_objects_can_be_warped(picture: np.ndarray) -> None:
    for box in ([3.0, 4.0, 3.5, 4.25], [95.5, 71.5, 96.0, 72.0]):
        straight, mirrored = warped(picture, np.array(box), WINDOW)
        assert straight.shape == mirrored.shape == (WINDOW.features,) and np.isfinite(straight).all()


@pytest.mark.parametrize(
    ("sides", "scale", "expected"),
    [
        ([(32, 40), (30, 38), (200, 300)], 1.0, Window(5, 4)),  # the median
        ([(30, 30)], 1.25, Window(5, 5)),
        ([(8, 8)], 1.0, Window(3, 3)),  # no smaller
        ([(400, 200)], 1.0, Window(3, 6)),  # no larger, in proportion
        ([(10, 400)], 1.0, Window(6, 2)),  # no thinner
    ],
)
def test_the_window_follows_the_median_box(sides: list[tuple[int, int]], scale: float, expected: Window) -> None:
    boxes = np.array([[7, 9, 7 + width, 9 + height] for width, height in sides], dtype=float)
    assert window_for(boxes, scale) == expected


def test_sizes_cover_the_objects() -> None:
    sides = np.linspace(10, 80, 200)
    boxes = np.stack([sides * 0, sides * 0, sides, sides], axis=1)
    window = Window(5, 5)
    found = CELL * 5 / STEP ** np.array(level_numbers(boxes, window), dtype=float)  # object sides that fit
    for side in sides[10:-10]:
        assert np.abs(np.log(found / side)).min() <= np.log(STEP) / 2 + 1e-9
    assert found.min() > 8 and found.max() < 100


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (7, 8), (16, 16)])
def test_small_pictures_have_few_windows_or_none(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    for level in pyramid(noise, range(-3, 2)):
        found = margins(level, WINDOW, np.ones(WINDOW.features, np.float32), 0.0)
        assert found.shape == level.count(WINDOW)
        assert np.isfinite(found).all()
    assert block_grid(noise[:1, :1]).shape == (0, 0, CHANNELS)


def test_pictures_are_not_enlarged_without_end(monkeypatch: pytest.MonkeyPatch, picture: np.ndarray) -> None:
    monkeypatch.setattr(module, "LARGEST_LEVEL", 2 * 72 * 96)
    assert [level.number for level in pyramid(picture, range(-1, 6))] == [-1, 0, 1]
    monkeypatch.setattr(module, "LARGEST_LEVEL", 10)  # as it is, a picture is always seen
    assert [level.number for level in pyramid(picture, range(-1, 3))] == [-1, 0]


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch, picture: np.ndarray) -> None:
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(InputError, match=r"HOG: needs scikit-image; .* 'maskrcnn\[lineage\]'"):
        block_grid(picture)
