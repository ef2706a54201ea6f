"""A detector and data so small that a training step takes a blink."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.evaluation.evaluate import Evaluation
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.model.preprocess import PreprocessConfig
from maskrcnn.model.roi_pooler import RoIPoolerConfig
from maskrcnn.model.rpn import RPNConfig
from maskrcnn.training import run_folder
from maskrcnn.training.train import TrainingRun, train

Train = Callable[..., TrainingRun]

FAST = {  # a recipe for it: every step logged, no picture changed much
    "minutes": None,
    "steps": 4,
    "batch_size": 2,
    "reference_batch": 2,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "ema": 0.9,
    "precision": "float32",
    "workers": 0,
    "log_every": 1,
    "evaluate_every": 0.5,
    "augmentation": {"crop": 64, "scale": [1.0, 1.5]},
    "loss": {
        "rpn": {"anchors_per_image": 32},
        "box": {"rois_per_image": 16},
        "pre_nms_top_n": 50,
        "post_nms_top_n": 50,
    },
}


def tiny(class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> MaskRCNNConfig:
    """60 thousand weights; every part of the figure is there."""
    body = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8, "stem_type": "deep"}
    return MaskRCNNConfig(
        class_names=class_names,
        category_ids=category_ids,
        preprocess=PreprocessConfig(shortest=64, longest=128),
        backbone=BackboneConfig(name="resnet18", options=body, norm="batch", frozen_stages=0),
        fpn=FPNConfig(channels=16, extra_level=False),
        rpn=RPNConfig(
            anchors=AnchorConfig(sizes=((12,), (24,), (48,), (96,)), ratios=(1.0,)), pre_nms_top_n=50, post_nms_top_n=20
        ),
        roi_pooler=RoIPoolerConfig(canonical_size=56.0),
        box_head=BoxHeadConfig(fc_channels=32),
        mask_head=MaskHeadConfig(side=14, num_convs=1, channels=16),
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and sums in one order are equal to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_config() -> MaskRCNNConfig:
    return tiny(("circle", "square", "triangle"), (1, 2, 3))


@pytest.fixture
def shapes() -> tuple[ShapesDataset, ShapesDataset]:
    """Six pictures to learn from and two to be judged by, 64 px."""
    return ShapesDataset(6, size=(64, 64), seed=1), ShapesDataset(2, size=(64, 64), seed=2)


@pytest.fixture
def undrawn() -> Iterator[None]:
    """No figures and pictures, which take two thirds of so short a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "draw_curves", lambda folder: None)
        patch.setattr(run_folder, "draw_pictures", lambda folder, predictor, dataset: [])
        patch.setattr(run_folder, "compare", lambda predictor, dataset, i: np.zeros((8, 8, 3), np.uint8))
        patch.setattr(Evaluation, "save", lambda scores, folder: [])
        yield


@pytest.fixture
def train_tiny(tmp_path: Path, shapes: tuple[ShapesDataset, ShapesDataset]) -> Train:
    """`train` on the shapes into tmp_path / name, with the tiny preset and recipe; every argument can be changed."""

    def run(name: str = "run", **changes: Any) -> TrainingRun:
        data, val = shapes
        given: dict[str, Any] = {"data": data, "val": val, "out": tmp_path / name, "preset": tiny, "device": "cpu"}
        return train(**given | {"quiet": True} | FAST | changes)

    return run
