"""Fixtures that every test may use."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

DATA_VARIABLE = "MASKRCNN_TEST_DATA"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real pictures `nuclei` and `coco128`; the test is skipped where the machine has none."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"needs real pictures: set {DATA_VARIABLE} to a folder that holds nuclei and coco128")
    missing = [name for name in ("nuclei", "coco128") if not (Path(folder) / name).is_dir()]
    if missing:
        pytest.skip(f"needs real pictures: {DATA_VARIABLE}={folder} lacks {', '.join(missing)}")
    return Path(folder)
