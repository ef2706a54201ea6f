"""Rows of a comparison, and what of them is written."""

from __future__ import annotations

from maskrcnn.bench.measure import Ratio, Timing
from maskrcnn.bench.rows import Row, timed_rows, works_of


def test_rows_of_a_comparison() -> None:
    timings = {"peer": Timing((4.0, 6.0)), "ours": Timing((2.0, 2.0))}
    peer, ours = timed_rows("work", timings, "peer", facts={"ours": {"boxes_px": 0.5}})
    assert peer == Row(work="work", side="peer", timing=Timing((4.0, 6.0)))
    assert ours.ratio == Ratio(2.5, 2.0, 2.0, 3.0) and ours.facts == {"boxes_px": 0.5}
    assert ours.as_json() == {
        "work": "work",
        "side": "ours",
        "unit": "picture",
        "timing": {"median": 2.0, "fastest": 2.0, "slowest": 2.0, "rounds": [2.0, 2.0]},
        "ratio": {"of_medians": 2.5, "of_fastest": 2.0, "lowest": 2.0, "highest": 3.0},
        "facts": {"boxes_px": 0.5},
    }


def test_memory_of_zero_is_kept() -> None:
    assert Row(work="work", side="ours", memory_mb=0.0).as_json()["memory_mb"] == 0.0


def test_works_in_order() -> None:
    rows = [Row(work=work, side=side) for work in ("b", "a") for side in ("x", "y")]
    assert works_of(rows) == ["b", "a"]
