from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from maskrcnn.errors import InputError
from maskrcnn.ops import rle


def _theirs(bitmap: np.ndarray) -> str:
    return str(coco.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"].decode())


def _bitmaps(count: int = 200) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shares = [0, 0.02, 0.3, 0.7, 0.98, 1]
    return [(rng.random(rng.integers(1, 40, 2)) < shares[i % len(shares)]).astype(np.uint8) for i in range(count)]


def _windows(count: int, size: tuple[int, int], side: int = 30) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    pictures = []
    for _ in range(count):
        picture = np.zeros(size, dtype=np.uint8)
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        part = picture[y : y + side, x : x + side]
        part[:] = rng.random(part.shape) < 0.6
        pictures.append(picture)
    return pictures


def test_empty_mask() -> None:
    empty = rle.encode(np.zeros((5, 7), dtype=np.uint8))
    assert empty == {"size": [5, 7], "counts": _theirs(np.zeros((5, 7)))}
    assert rle.area(empty) == 0
    assert rle.bounding_box(empty) == (0, 0, 0, 0)
    assert rle.decode_window(empty)[0].shape == (0, 0)
    assert not rle.decode(empty).any()
    assert rle.iou([empty], [empty], [False]).tolist() == [[0.0]]


def test_no_masks() -> None:
    one = rle.encode(np.ones((2, 2)))
    assert rle.iou([], [one], [False]).shape == (0, 1)
    assert rle.iou([one], [], []).shape == (1, 0)


def test_encode_equals_pycocotools() -> None:
    for bitmap in _bitmaps():
        assert rle.encode(bitmap)["counts"] == _theirs(bitmap)


def test_decode_gives_the_mask_back() -> None:
    for bitmap in _bitmaps():
        assert np.array_equal(rle.decode(rle.encode(bitmap)), bitmap)


def test_long_runs_need_many_groups() -> None:
    bitmap = np.zeros((3000, 4000), dtype=np.uint8)
    bitmap[100, 7] = bitmap[2999, 3999] = bitmap[:, 2000] = 1
    mask = rle.encode(bitmap)
    assert mask["counts"] == _theirs(bitmap)
    assert np.array_equal(rle.decode(mask), bitmap)


def test_counts_of_is_the_list_of_run_lengths() -> None:
    bitmap = np.array([[0, 1, 1], [0, 1, 0]])
    assert rle.counts_of(rle.encode(bitmap)).tolist() == [2, 3, 1]
    assert rle.counts_of(rle.encode(bitmap[:, 1:])).tolist() == [0, 3, 1]


def test_bytes_are_taken_as_pycocotools_gives_them() -> None:
    bitmap = _bitmaps(3)[2]
    assert np.array_equal(rle.decode(coco.encode(np.asfortranarray(bitmap))), bitmap)


def test_from_counts_equals_pycocotools() -> None:
    for counts, size in [([6], (2, 3)), ([0, 6], (2, 3)), ([1, 2, 0, 3], (2, 3)), ([5, 300, 20, 4, 1, 70], (20, 20))]:
        theirs = coco.frPyObjects({"counts": counts, "size": list(size)}, *size)
        assert rle.from_counts(counts, size) == {"size": list(size), "counts": theirs["counts"].decode()}


def test_runs_of_length_zero_are_understood() -> None:
    mask = rle.from_counts([1, 2, 0, 1, 2, 0, 3], (3, 3))
    assert rle.decode(mask).T.ravel().tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert rle.bounding_box(mask) == (0, 0, 2, 3)
    assert rle.decode_window(mask)[0].sum() == rle.area(mask) == 3


def test_area_and_box_equal_pycocotools() -> None:
    for bitmap in _bitmaps():
        mask = rle.encode(bitmap)
        x, y, width, height = coco.toBbox(mask)
        assert rle.area(mask) == coco.area(mask)
        assert rle.bounding_box(mask) == (x, y, x + width, y + height)


def test_windows_there_and_back() -> None:
    for bitmap in _bitmaps() + _windows(50, (60, 80)):
        mask = rle.encode(bitmap)
        window, left, top = rle.decode_window(mask)
        again = np.zeros_like(bitmap)
        again[top : top + window.shape[0], left : left + window.shape[1]] = window
        assert np.array_equal(again, bitmap)
        assert not window.size or (window.any(axis=0)[[0, -1]].all() and window.any(axis=1)[[0, -1]].all())
        assert rle.encode_window(window, left, top, (bitmap.shape[0], bitmap.shape[1])) == mask


def test_a_window_need_not_be_tight() -> None:
    bitmap = np.zeros((9, 9), dtype=np.uint8)
    bitmap[3, 4] = 1
    assert rle.encode_window(bitmap[2:7, 1:8], 1, 2, (9, 9)) == rle.encode(bitmap)


def test_iou_equals_pycocotools_with_crowds() -> None:
    masks = [rle.encode(picture) for picture in _windows(40, (60, 80)) + [np.ones((60, 80)), np.zeros((60, 80))]]
    is_crowd = [i % 3 == 0 for i in range(len(masks))]
    theirs = coco.iou(masks[::-1], masks, np.array(is_crowd, dtype=np.uint8))
    assert np.array_equal(rle.iou(masks[::-1], masks, is_crowd), theirs)


def test_iou_of_a_set_with_itself() -> None:
    runs = rle.runs_of_rles([rle.encode(picture) for picture in _windows(30, (50, 50))])
    flat = np.stack([picture.ravel() for picture in _windows(30, (50, 50))]).astype(float)
    common = flat @ flat.T
    union = flat.sum(axis=1)[:, None] + flat.sum(axis=1) - common
    assert np.allclose(rle.iou_of_runs(runs, runs), common / union)


@pytest.mark.parametrize(
    ("mask", "field"),
    [
        ({"size": [3], "counts": "9"}, "size"),
        ({"size": "33", "counts": "9"}, "size"),
        ({"size": [3, -3], "counts": "9"}, "size"),
        ({"counts": "9"}, "size"),
        ({"size": [3, 3]}, "counts"),
        ({"size": [3, 3], "counts": [9]}, "counts"),
        ({"size": [3, 3], "counts": "8"}, "counts"),
        ({"size": [3, 3], "counts": "9 "}, "counts"),
        ({"size": [3, 3], "counts": "9\u00e9"}, "counts"),
        ({"size": [3, 3], "counts": "9\udc80"}, "counts"),
        ({"size": [3, 3], "counts": "9Q"}, "counts"),
        ({"size": [3, 3], "counts": "O:"}, "counts"),
        ({"size": [3, 3], "counts": "o" * 30 + "0"}, "counts"),
    ],
)
def test_a_bad_mask_is_named(mask: rle.RLE, field: str) -> None:
    with pytest.raises(InputError, match=field):
        rle.decode(mask)
    with pytest.raises(InputError, match=field):
        rle.iou([mask], [rle.from_counts([9], (3, 3))], [False])


@pytest.mark.parametrize("counts", [[8], [10, -1], [4.5, 4.5], [[9]], "9", [[1], [2, 3]], None, []])
def test_a_bad_list_of_counts_is_named(counts: Any) -> None:
    with pytest.raises(InputError, match="counts"):
        rle.from_counts(counts, (3, 3))


def test_a_window_outside_the_picture_is_refused() -> None:
    with pytest.raises(InputError, match="window"):
        rle.encode_window(np.ones((3, 3)), 8, 0, (10, 10))
