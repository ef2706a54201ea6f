"""Peaks of a process that begins anew."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from maskrcnn.bench.memory import OneSide, peaks_of
from maskrcnn.bench.peer import Work
from maskrcnn.bench.pictures import BenchPicture
from maskrcnn.errors import InputError


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the whole life of a process")
def test_peak_of_one_picture(small_weights: Path, small_work: Work, picture: BenchPicture) -> None:
    side = OneSide(weights=str(small_weights), config={}, work=small_work, peer=True)
    peaks = peaks_of(side, picture.data)
    pasted = small_work.detections * picture.size[0] * picture.size[1] * 4 / 2**20  # float32 pictures, 7 MB
    assert pasted < peaks.later_mb < 1000 and pasted < peaks.first_mb < 1000


def test_what_fails_there_is_told_here(small_work: Work, picture: BenchPicture) -> None:
    side = OneSide(weights="no-such.pth", config={}, work=small_work)
    with pytest.raises(InputError, match="in a process of its own failed: .*no-such.pth"):
        peaks_of(side, picture.data)
