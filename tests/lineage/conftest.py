"""A bench so small that every system of the lineage learns in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.lineage.system import Bench
from maskrcnn.model.backbone import BackboneConfig


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A few drawn pictures of 64 px, a tiny body, and hardly any time."""
    options = {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24), "stem_type": "deep", "stem_width": 4}
    body = BackboneConfig(name="resnet18", options=options, norm="batch", frozen_stages=0)
    return Bench(
        train=ShapesDataset(6, size=(64, 64), seed=1),
        val=ShapesDataset(3, size=(64, 64), seed=2),
        folder=tmp_path / "system",
        proposals=tmp_path / "proposals",
        minutes=0.05,
        body=body,
    )


@pytest.fixture
def few_steps() -> dict[str, Any]:
    """Changes of a recipe: three steps of two pictures, the same each time."""
    return {
        "minutes": None,
        "steps": 3,
        "batch_size": 2,
        "precision": "float32",
        "log_every": 1,
        "augmentation": {"crop": 64},
    }
