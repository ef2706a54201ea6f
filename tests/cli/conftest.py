"""A tiny detector in a file, and pictures and a data set for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import preset
from maskrcnn.weights.files import save_checkpoint


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the smallest preset with random weights, for circles, squares and triangles."""
    torch.manual_seed(0)
    model = MaskRCNN(preset("nano", ("circle", "square", "triangle"), (1, 2, 3)))
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.safetensors", model, metadata={})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three small pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, size in enumerate([(40, 56), (48, 48), (33, 70)]):
        array = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def dataset(pictures: Path, tmp_path: Path) -> Path:
    """A COCO file beside those pictures, one square in each."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (height, width) in enumerate([(40, 56), (48, 48), (33, 70)], start=1):
        images.append({"id": i, "file_name": f"{i - 1}.png", "height": height, "width": width})
        outline = [[10, 10, 30, 10, 30, 25, 10, 25]]
        record = {"id": i, "image_id": i, "category_id": 2, "iscrowd": 0, "area": 300, "bbox": [10, 10, 20, 15]}
        annotations.append(record | {"segmentation": outline})
    categories = [{"id": k, "name": name} for k, name in enumerate(("circle", "square", "triangle"), start=1)]
    path = tmp_path / "instances_val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
