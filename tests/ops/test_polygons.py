from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from maskrcnn.errors import InputError
from maskrcnn.ops.polygons import polygons_from_rle, rle_from_polygons
from maskrcnn.ops.rle import decode, encode, from_counts


def _theirs(rings: list[np.ndarray], size: tuple[int, int]) -> str:
    parts = coco.frPyObjects([ring.ravel().tolist() for ring in rings], *size)
    return str(coco.merge(parts)["counts"].decode())


def _filled(bitmap: np.ndarray) -> np.ndarray:
    """The mask with its holes filled: all that the outside, going round corners too, does not reach."""
    outside = np.zeros((bitmap.shape[0] + 2, bitmap.shape[1] + 2), dtype=bool)
    free = np.pad(bitmap == 0, 1, constant_values=True)
    outside[0, 0] = True
    while True:
        wide = np.pad(outside, 1)
        rows, columns = outside.shape
        shifts = [wide[1 + y : 1 + y + rows, 1 + x : 1 + x + columns] for y in (-1, 0, 1) for x in (-1, 0, 1)]
        reached = np.any(shifts, axis=0) & free
        if np.array_equal(reached, outside):
            return ~outside[1:-1, 1:-1]
        outside = reached


def test_no_rings() -> None:
    assert rle_from_polygons([], (4, 6)) == from_counts([24], (4, 6))


def test_empty_mask_has_no_outline() -> None:
    assert polygons_from_rle(from_counts([24], (4, 6))) == []


def test_square() -> None:
    ring = np.array([[1, 2], [4, 2], [4, 5], [1, 5]], dtype=float)
    expected = np.zeros((6, 6))
    expected[2:5, 1:4] = 1
    assert np.array_equal(decode(rle_from_polygons([ring], (6, 6))), expected)


@pytest.mark.parametrize("low, high", [(0, 50), (-40, 90), (-500, 900)])
@pytest.mark.parametrize("step", [None, 1.0, 0.5, 0.1])
def test_equals_pycocotools(low: float, high: float, step: float | None) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        size = (int(rng.integers(1, 60)), int(rng.integers(1, 60)))
        rings = [rng.uniform(low, high, (int(rng.integers(3, 12)), 2)) for _ in range(rng.integers(1, 4))]
        if step is not None:
            rings = [np.round(ring / step) * step for ring in rings]
        assert rle_from_polygons(rings, size)["counts"] == _theirs(rings, size)


def test_repeated_points_equal_pycocotools() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        ring = np.repeat(rng.uniform(-5, 30, (5, 2)), 2, axis=0)
        assert rle_from_polygons([ring], (20, 25))["counts"] == _theirs([ring], (20, 25))


def test_real_annotations_equal_pycocotools(shared_data: Path) -> None:
    file = next((shared_data / "coco128" / "annotations").glob("*.json"))
    content = json.loads(file.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    seen = 0
    for annotation in content["annotations"]:
        if isinstance(annotation["segmentation"], list):
            rings = [np.array(ring).reshape(-1, 2) for ring in annotation["segmentation"]]
            size = sizes[annotation["image_id"]]
            assert rle_from_polygons(rings, size)["counts"] == _theirs(rings, size)
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("share", [0.05, 0.4, 0.6, 0.9, 1.0])
def test_outlines_give_the_mask_back_without_its_holes(share: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        size = (int(rng.integers(1, 25)), int(rng.integers(1, 25)))
        bitmap = (rng.random(size) < share).astype(np.uint8)
        rings = polygons_from_rle(encode(bitmap))
        assert np.array_equal(decode(rle_from_polygons(rings, size)), _filled(bitmap))


def test_outlines_hold_corners_only() -> None:
    bitmap = np.random.default_rng(3).random((30, 30)) < 0.6
    for ring in polygons_from_rle(encode(bitmap)):
        steps = np.roll(ring, -1, axis=0) - ring
        moves_across = steps[:, 0] != 0
        assert np.all(moves_across != (steps[:, 1] != 0))
        assert np.all(moves_across != np.roll(moves_across, 1))
        assert ring.dtype == np.float64


def test_pixels_that_touch_by_a_corner_are_two_parts() -> None:
    first, second = polygons_from_rle(encode(np.array([[0, 1], [1, 0]])))
    assert sorted(map(tuple, first.tolist())) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert sorted(map(tuple, second.tolist())) == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_ring_has_one_outline() -> None:
    bitmap = np.ones((5, 5))
    bitmap[2, 2] = 0
    (ring,) = polygons_from_rle(encode(bitmap))
    assert sorted(map(tuple, ring.tolist())) == [(0, 0), (0, 5), (5, 0), (5, 5)]


@pytest.mark.parametrize(
    "ring", [np.zeros((2, 2)), np.zeros((3, 3)), np.zeros(6), np.full((3, 2), np.nan), np.full((3, 2), 1e300)]
)
def test_a_bad_ring_is_named(ring: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"rings\[1\]"):
        rle_from_polygons([np.eye(3, 2), ring], (4, 4))
