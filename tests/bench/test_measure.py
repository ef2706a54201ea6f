"""Medians, ratios, whose turn it is, and memory that was really taken."""

from __future__ import annotations

import sys

import pytest
import torch

from maskrcnn.bench.measure import Ratio, Timing, interleaved, peak_mb, times_faster


def test_timing() -> None:
    timing = Timing((3.0, 1.0, 8.0))
    assert (timing.median, timing.fastest, timing.slowest) == (3.0, 1.0, 8.0)
    assert Timing((1.0, 2.0)).median == 1.5


def test_ratio_is_of_medians_and_its_range_of_paired_rounds() -> None:
    ours, peer = Timing((1.0, 2.0, 4.0)), Timing((3.0, 4.0, 4.0))
    assert times_faster(ours, peer) == Ratio(of_medians=2.0, of_fastest=3.0, lowest=1.0, highest=3.0)


def test_sides_take_turns() -> None:
    calls: list[str] = []
    sides = {"a": lambda item: calls.append(f"a{item}"), "b": lambda item: calls.append(f"b{item}")}
    told: list[tuple[str, float]] = []
    timings = interleaved(sides, [1, 2], 2, warmup=1, progress=lambda name, done: told.append((name, done)))
    turn = ["a1", "b1", "b2", "a2"]
    other = ["b1", "a1", "a2", "b2"]
    assert calls == other + turn + other  # the first round does not count
    assert [len(timing.seconds) for timing in timings.values()] == [2, 2]
    assert all(timing.fastest > 0 for timing in timings.values())
    assert told[0] == ("b", 0.0) and told[-1][1] == pytest.approx(5 / 6)


def test_seconds_are_for_one_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.bench.measure.seconds_of", lambda work, item, device: float(item))
    assert interleaved({"a": lambda item: None}, [1, 3], 2)["a"] == Timing((2.0, 2.0))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the whole life of a process")
def test_peak_sees_what_was_freed_again() -> None:
    def work() -> None:
        torch.ones(64 * 2**18)  # 64 MB of float32

    peak_mb(work)  # libraries may be loaded at the first use
    assert 63 < peak_mb(work) < 80
    assert peak_mb(lambda: None) < 8
