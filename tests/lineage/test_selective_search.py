"""Selective Search: what it finds, in which frame and order, and pictures in which there is nothing to find."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.lineage import selective_search as module
from maskrcnn.lineage.selective_search import selective_search
from maskrcnn.ops.boxes import area, iou


def square(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """A bright rectangle on grey."""
    picture = np.full((*size, 3), 60, dtype=np.uint8)
    x1, y1, x2, y2 = box
    picture[y1:y2, x1:x2] = (200, 180, 40)
    return picture


def recall(mode: module.Mode, iou_threshold: float) -> tuple[float, float]:
    """Share of objects found, and boxes a picture, over ten drawn pictures."""
    best, count = [], 0
    for picture, target in ShapesDataset(10, seed=7):
        boxes = selective_search(picture, mode)
        best += iou(target.gt_boxes, boxes).max(dim=1).values.tolist()
        count += len(boxes)
    return float(np.mean(np.array(best) >= iou_threshold)), count / 10


def test_the_edges_of_a_rectangle_to_the_pixel() -> None:
    boxes = selective_search(square((100, 120), (40, 30, 75, 60)))
    assert [40.0, 30.0, 75.0, 60.0] in boxes.tolist()
    assert boxes.dtype == torch.float32


def test_finds_drawn_objects() -> None:
    share, count = recall("fast", 0.5)
    assert share > 0.95 and 50 < count < 500


def test_quality_proposes_more_and_misses_no_more() -> None:
    fast, quality = recall("fast", 0.7), recall("quality", 0.7)
    assert quality[0] >= fast[0] and quality[1] > 1.5 * fast[1]


def test_boxes_are_whole_inside_once_and_largest_first() -> None:
    for picture, _ in ShapesDataset(3, size=(90, 140), seed=1):
        boxes = selective_search(picture)
        x1, y1, x2, y2 = boxes.unbind(1)
        assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= 140).all() and (y2 <= 90).all()
        assert (x2 > x1).all() and (y2 > y1).all()
        assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)
        assert (area(boxes).diff() <= 0).all()


def test_the_same_each_time_in_the_same_order() -> None:
    """OpenCV's own order differs from call to call."""
    picture = ShapesDataset(1, seed=9)[0][0]
    first = selective_search(picture)
    assert all(torch.equal(selective_search(picture), first) for _ in range(3))


def test_colours_are_taken_as_rgb(monkeypatch: pytest.MonkeyPatch) -> None:
    from cv2.ximgproc import segmentation

    given = []

    class Search:
        def setBaseImage(self, picture: np.ndarray) -> None:
            given.append(picture)

        def __getattr__(self, name: str) -> object:
            return lambda *values: []

    monkeypatch.setattr(segmentation, "createSelectiveSearchSegmentation", Search)
    picture = np.random.default_rng(0).integers(0, 255, (8, 9, 3)).astype(np.uint8)
    assert selective_search(picture).shape == (0, 4)  # it found nothing at all
    assert np.array_equal(given[0], picture[..., [2, 1, 0]])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (5, 5), (40, 60)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_one_colour_has_no_proposal(size: tuple[int, int], level: int) -> None:
    boxes = selective_search(np.full((*size, 3), level, dtype=np.uint8))
    assert boxes.shape == (0, 4) and boxes.dtype == torch.float32


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 3), (6, 9), (33, 2)])
def test_tiny_pictures_of_noise(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    boxes = selective_search(noise)
    assert boxes.shape[1] == 4 and (boxes >= 0).all() and (boxes <= torch.tensor([*size[::-1]] * 2)).all()


def test_grey_pictures() -> None:
    grey = square((80, 80), (20, 30, 50, 60)).mean(axis=2).astype(np.uint8)
    boxes = selective_search(np.repeat(grey[..., None], 3, axis=2))
    assert [20.0, 30.0, 50.0, 60.0] in boxes.tolist()


def test_parts_of_a_larger_picture_need_no_copy() -> None:
    picture = square((100, 120), (40, 30, 75, 60))
    mirrored = selective_search(picture[:, ::-1])
    assert [45.0, 30.0, 80.0, 60.0] in mirrored.tolist()


def test_large_pictures_are_searched_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 100)
    boxes = selective_search(square((150, 401), (120, 40, 200, 100)))
    best = iou(torch.tensor([[120.0, 40.0, 200.0, 100.0]]), boxes).max()
    assert best > 0.85  # to a pixel of the smaller picture, four of this one
    assert boxes[0].tolist() == [0.0, 0.0, 401.0, 150.0]  # 37 rows of 100 px are not quite a quarter
    assert len(boxes) < 100


def test_no_such_mode() -> None:
    with pytest.raises(InputError, match="selective_search.mode: no such mode; found 'slow'; expected fast or quality"):
        selective_search(np.zeros((4, 4, 3), np.uint8), "slow")  # type: ignore[arg-type]


def test_without_opencv_contrib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2.ximgproc", None)
    with pytest.raises(InputError, match=r"Selective Search: needs opencv-contrib; .* 'maskrcnn\[lineage\]'"):
        selective_search(np.zeros((4, 4, 3), np.uint8))
