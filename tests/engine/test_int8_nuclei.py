"""What int8 costs the shipped detector: less than half a point of mask AP."""

from __future__ import annotations

from pathlib import Path

import pytest

import maskrcnn
from maskrcnn.data.opening import open_dataset
from maskrcnn.data.pictures import picture_files
from maskrcnn.engine.calibration import calibration_pictures
from maskrcnn.engine.int8 import int8_works, quantised, ranges_of


@pytest.mark.slow
@pytest.mark.skipif(not int8_works(), reason="this CPU or torch has no exact int8")
def test_mask_ap_of_the_shipped_detector(shared_data: Path) -> None:
    folder = shared_data / "nuclei"
    pictures = open_dataset(folder, split="val")[::4]
    predictor = maskrcnn.load("nuclei", device="cpu")
    before = maskrcnn.evaluate(predictor, pictures).mask
    shown = calibration_pictures(picture_files(folder / "train")[::20])
    predictor.network = quantised(predictor.model, ranges_of(predictor.model, shown))
    after = maskrcnn.evaluate(predictor, pictures).mask
    assert before is not None and after is not None and before.ap is not None and after.ap is not None
    assert before.ap > 0.5
    assert before.ap - after.ap < 0.005
