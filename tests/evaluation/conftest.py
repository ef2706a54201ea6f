"""Made-up data sets: ground truth, and detections near it, with every oddity that scoring must bear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

Scene = tuple[dict[str, Any], list[dict[str, Any]]]
HEIGHT, WIDTH = 90, 120


@pytest.fixture
def encode() -> Callable[[np.ndarray], dict[str, Any]]:
    """(H, W) bitmap to compressed RLE, by the reference library."""
    return _encode


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    """(seed, pictures, classes, crowds, ties) -> (COCO ground truth, COCO result records with boxes and masks).

    Ids have holes and come unsorted, a fifth of the pictures is empty, the last class has no object, some detections
    have another class or no object, and scores are rounded so that many are equal.
    """
    return _make_scene


def _make_scene(seed: int, pictures: int = 16, classes: int = 3, crowds: float = 0.1, ties: bool = True) -> Scene:
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for image_id in (rng.permutation(pictures) * 2 + 3).tolist():
        images.append({"id": image_id, "height": HEIGHT, "width": WIDTH})
        for _ in range(int(rng.integers(0, 14)) if rng.random() > 0.2 else 0):
            category = 5 * int(rng.integers(1, classes + 1))
            box = _random_box(rng)
            region = _blob(rng, box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": float(coco_mask.area(region)),
                    "iscrowd": int(rng.random() < crowds),
                    "segmentation": region,
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                moved = _inside(np.array(box) + rng.normal(0, 2, 4)) if rng.random() > 0.1 else _random_box(rng)
                other = 5 * int(rng.integers(1, classes + 2))
                records.append(
                    {
                        "image_id": image_id,
                        "category_id": category if rng.random() > 0.15 else other,
                        "bbox": moved,
                        "score": round(float(rng.random()), 1 if ties else 9),
                        "segmentation": _blob(rng, moved),
                    }
                )
    categories = [{"id": 5 * k, "name": f"class {k}"} for k in range(classes + 1, 0, -1)]
    order = rng.permutation(len(records))
    return {"images": images, "annotations": annotations, "categories": categories}, [records[i] for i in order]


def _random_box(rng: np.random.Generator) -> list[float]:
    return _inside(np.concatenate([rng.uniform(0, 100, 2), rng.uniform(2, 110, 2) * rng.random()]))


def _inside(box: np.ndarray) -> list[float]:
    x, y = box[0].clip(0, WIDTH - 2), box[1].clip(0, HEIGHT - 2)
    return [float(v) for v in (x, y, box[2].clip(1, WIDTH - x), box[3].clip(1, HEIGHT - y))]


def _blob(rng: np.random.Generator, box: list[float]) -> dict[str, Any]:
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    x, y, width, height = (int(v) for v in box)
    window = bitmap[y : y + height, x : x + width]
    window[:] = rng.random(window.shape) > 0.1
    return _encode(bitmap)


def _encode(bitmap: np.ndarray) -> dict[str, Any]:
    region = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": list(bitmap.shape), "counts": region["counts"].decode()}
