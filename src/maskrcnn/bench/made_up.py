"""Made-up ground truth and detections of the size of COCO, for timing evaluators."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskrcnn.ops import rle

HEIGHT, WIDTH, CLASSES = 480, 640, 80
OBJECTS = 7  # per picture, as in COCO


def _ellipse(box: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """A COCO region: an ellipse with a rough edge that fills `box` (x, y, width, height)."""
    x, y, width, height = (int(v) for v in box)
    rows = (np.arange(height)[:, None] + 0.5) / height * 2 - 1
    columns = (np.arange(width)[None, :] + 0.5) / width * 2 - 1
    window = rows**2 + columns**2 + rng.normal(0, 0.05, (height, 1)) < 1
    region = rle.encode_window(window, x, y, (HEIGHT, WIDTH))
    return {
        "bbox": [float(x), float(y), float(width), float(height)],
        "area": float(window.sum()),
        "segmentation": region,
    }


def _random_box(rng: np.random.Generator) -> np.ndarray:
    size = np.exp(rng.uniform(np.log(8), np.log(300), 2))
    corner = rng.uniform(0, 1, 2) * (np.array([WIDTH, HEIGHT]) - size)
    return np.concatenate([corner, size])


def _moved(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    box = box + rng.normal(0, 0.08, 4) * np.tile(box[2:], 2)
    corner = box[:2].clip(0, np.array([WIDTH, HEIGHT]) - 8)
    return np.concatenate([corner, np.clip(box[2:], 4, np.array([WIDTH, HEIGHT]) - corner)])


def made_up(pictures: int, detections: int, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth, and detections of which about a third lie near an object."""
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for image_id in range(1, pictures + 1):
        images.append({"id": image_id, "height": HEIGHT, "width": WIDTH})
        boxes = [_random_box(rng) for _ in range(rng.poisson(OBJECTS))]
        labels = rng.integers(1, CLASSES + 1, len(boxes)).tolist()
        for box, label in zip(boxes, labels, strict=True):
            number = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label}
            annotations.append(number | {"iscrowd": int(rng.random() < 0.02)} | _ellipse(box, rng))
        for _ in range(detections):
            near = int(rng.integers(len(boxes))) if boxes and rng.random() < 0.33 else -1
            label = labels[near] if near >= 0 and rng.random() < 0.9 else int(rng.integers(1, CLASSES + 1))
            found = _ellipse(_moved(boxes[near], rng) if near >= 0 else _random_box(rng), rng)
            del found["area"]
            score = round(float(rng.beta(4, 2) if near >= 0 else rng.beta(1, 4)), 6)
            records.append({"image_id": image_id, "category_id": label, "score": score} | found)
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, records
