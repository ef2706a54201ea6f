"""A small COCO data set on disk, to be bent by each test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SQUARE = [[2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]]


@pytest.fixture
def document() -> dict[str, Any]:
    """Three pictures of 20 x 30 (the last without objects), categories with holes, a polygon, RLEs and a crowd."""
    return {
        "images": [{"id": 10 * k, "file_name": f"p{k}.png", "height": 20, "width": 30} for k in (1, 2, 3)],
        "annotations": [
            {"id": 5, "image_id": 10, "category_id": 7, "iscrowd": 0, "area": 100.0, "bbox": [2.0, 3.0, 10.0, 10.0]}
            | {"segmentation": SQUARE},
            {"id": 6, "image_id": 20, "category_id": 3, "iscrowd": 0, "area": 20.0, "bbox": [1.0, 0.0, 1.0, 20.0]}
            | {"segmentation": {"size": [20, 30], "counts": [20, 20, 560]}},
            {"id": 7, "image_id": 10, "category_id": 90, "iscrowd": 1, "area": 40.0, "bbox": [0.0, 0.0, 2.0, 20.0]}
            | {"segmentation": {"size": [20, 30], "counts": "0X1`a0"}},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 7, "name": "cow"}],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a document, and grey pictures for its images, as annotations/NAME and images/*.png; gives the JSON."""

    def put(document: Any, name: str = "instances.json", folder: str = "images", pictures: bool = True) -> Path:
        file = tmp_path / "annotations" / name
        file.parent.mkdir(exist_ok=True)
        (tmp_path / folder).mkdir(exist_ok=True, parents=True)
        file.write_text(document if isinstance(document, str) else json.dumps(document))
        if pictures:
            for image in document["images"]:
                pixels = np.full((image["height"], image["width"]), image["id"], dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / image["file_name"])
        return file

    return put
