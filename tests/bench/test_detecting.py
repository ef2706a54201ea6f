"""The comparison itself, on a detector of torchvision that takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn.bench.detecting import BY_STAGE, FLOOR, MEMORY, WHOLE, bench_detecting, floor_rows
from maskrcnn.bench.floor import Rates
from maskrcnn.bench.memory import OneSide, Peaks
from maskrcnn.bench.options import BenchOptions
from maskrcnn.bench.pictures import BenchPicture
from maskrcnn.bench.rows import works_of
from maskrcnn.weights.files import bundled

SMALL = {"shortest": 96, "proposals": 30, "detections": 6, "rounds": 1}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[OneSide]:
    """No processes of their own, no rates: what memory would have been asked of is kept."""
    asked: list[OneSide] = []

    def peaks(side: OneSide, picture: bytes) -> Peaks:
        asked.append(side)
        return Peaks(200.0, 100.0)

    def rates(precisions: list[str], *args: object) -> dict[str, Rates]:
        return {precision: Rates(precision, 100.0, None) for precision in precisions}

    monkeypatch.setattr("maskrcnn.bench.detecting.peaks_of", peaks)
    monkeypatch.setattr("maskrcnn.bench.detecting.measured_rates", rates)
    return asked


def test_against_torchvision(small_weights: Path, picture: BenchPicture, quick: list[OneSide], tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(picture.data)
    rows = bench_detecting(BenchOptions(weights=str(small_weights), pictures=(str(tmp_path),), **SMALL))
    assert works_of(rows) == [WHOLE, BY_STAGE, MEMORY, FLOOR]
    peer, ours, bf16 = (row for row in rows if row.work == WHOLE)
    assert (peer.side, ours.side, bf16.side) == ("torchvision", "ours float32", "ours bf16")
    assert peer.facts["detections"] == SMALL["detections"]
    assert ours.facts["pairs"] == SMALL["detections"] and ours.facts["one_sided"] == 0
    assert float(ours.facts["boxes_px"]) < 0.02 and float(ours.facts["scores"]) < 1e-4
    assert all(row.timing is not None and len(row.timing.seconds) == 1 for row in (peer, ours, bf16))
    assert [(side.peer, side.precision) for side in quick] == [(True, "float32"), (False, "float32"), (False, "bf16")]
    stages = [row for row in rows if row.work == BY_STAGE and row.side == "ours float32"]
    assert len(stages) == 13
    total = sum(float(row.facts["GFLOP"]) for row in stages)
    floor = next(row for row in rows if row.work == FLOOR)
    assert floor.facts["GFLOP"] == pytest.approx(total)
    assert floor.facts["floor_s"] == pytest.approx(total / 100)
    assert floor.facts["share_of_floor"] == pytest.approx(total / 100 / ours.timing.median)


def test_weights_of_another_kind_are_compared_with_ours_as_it_is(quick: list[OneSide]) -> None:
    options = BenchOptions(weights=str(bundled("nuclei")), precisions=("float32",), **SMALL | {"detections": 5})
    rows = bench_detecting(options)
    plain, ours = (row for row in rows if row.work == WHOLE)
    assert plain.side == "plain float32" and plain.facts["detections"] == 10
    assert ours.facts["pairs"] == 10 and float(ours.facts["boxes_px"]) < 0.02
    assert [side.peer for side in quick] == [False]


def test_no_share_where_no_rate_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.bench.detecting.measured_rates", lambda *args: {"int8": Rates("int8", None, None)})
    (row,) = floor_rows({"FPN": 2e9}, {"ours int8": 1.0}, BenchOptions(precisions=("int8",)))
    assert row.facts == {"GFLOP": 2.0}
