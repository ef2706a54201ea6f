"""Torchvision's Mask R-CNN on a small body with random weights, in a file, and a picture for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn.bench.peer import Work, random_weights
from maskrcnn.bench.pictures import BenchPicture, bench_pictures

SMALL = Work(shortest=96, longest=160, proposals=30, detections=6)


@pytest.fixture(scope="session")
def picture() -> BenchPicture:
    return bench_pictures()[0]


@pytest.fixture(scope="session")
def small_work() -> Work:
    return SMALL


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory, picture: BenchPicture) -> Path:
    return random_weights(tmp_path_factory.mktemp("peer") / "model.pth", picture.data, SMALL, body="resnet18")
