"""Pictures to calibrate with, from folders and lists; ranges written down and read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn.engine.calibration import MOST_PICTURES, calibration_pictures, ranges_as_metadata, ranges_in
from maskrcnn.errors import InputError


def test_a_folder_a_glob_and_a_list(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(np.full((4, 6, 3), i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    for given in (tmp_path, str(tmp_path / "*.png"), [tmp_path / f"{i}.png" for i in range(3)]):
        pictures = list(calibration_pictures(given))
        assert [picture.unique().tolist() for picture in pictures] == [[0], [1], [2]]
        assert {tuple(picture.shape) for picture in pictures} == {(3, 4, 6)}


def test_many_pictures_are_thinned_evenly() -> None:
    pictures = [np.full((2, 2, 3), i, dtype=np.uint8) for i in range(200)]
    taken = [int(picture[0, 0, 0]) for picture in calibration_pictures(pictures)]
    assert taken == list(range(0, 200, 4)) and len(taken) <= MOST_PICTURES


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no picture"):
        list(calibration_pictures(tmp_path))
    with pytest.raises(InputError, match="calibration: holds no picture; found an empty list"):
        list(calibration_pictures([]))


def test_ranges_written_and_read() -> None:
    ranges = {"a.given": (0.0, 0.1), "b.made": (-1.25, 3.0)}
    metadata = json.loads(json.dumps(ranges_as_metadata(ranges, pictures=4)))
    assert metadata["int8"]["pictures"] == 4
    assert ranges_in(metadata, "file") == ranges
    assert ranges_in({}, "file") is None
