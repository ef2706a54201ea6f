"""The shipped weights against themselves as PyTorch runs them."""

from __future__ import annotations

import pytest

from maskrcnn.bench import nano
from maskrcnn.bench.nano import bench_nano
from maskrcnn.bench.options import BenchOptions


def test_the_same_cells_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano, "SIDE", 128)
    monkeypatch.setattr(nano, "_ROUNDS_EACH", 1)
    plain, ours = bench_nano(BenchOptions(rounds=1, precisions=("float32",)))
    assert (plain.side, ours.side) == ("plain float32", "ours float32")
    assert plain.work == "nuclei, picture of 128 x 128 to RLE"
    assert plain.timing is not None and len(plain.timing.seconds) == 1
    assert plain.facts["pictures_per_second"] == pytest.approx(1 / plain.timing.median)
    assert ours.facts["pairs"] == plain.facts["detections"] and int(plain.facts["detections"]) > 10
    assert ours.facts["one_sided"] == 0 and float(ours.facts["boxes_px"]) < 0.01 and float(ours.facts["scores"]) < 1e-4
