from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.ops import runs


def test_ragged_ranges() -> None:
    assert runs.ragged_ranges(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist() == [5, 6, 7, 8, 9]
    assert runs.ragged_ranges(np.zeros(0, dtype=int), np.zeros(0, dtype=int)).tolist() == []


def test_merge_is_the_union_of_each_mask() -> None:
    rng = np.random.default_rng(0)
    owner, starts = rng.integers(0, 4, 60), rng.integers(0, 100, 60)
    ends = np.minimum(starts + rng.integers(0, 9, 60), 100)
    merged = runs.merge_runs(owner, starts, ends, 5, (10, 10))
    for d in range(5):
        expected = np.zeros(100, dtype=bool)
        for i in np.flatnonzero(owner == d):
            expected[starts[i] : ends[i]] = True
        found = np.zeros(100, dtype=bool)
        begins, stops = merged.of(d)
        assert np.all(begins[1:] > stops[:-1])
        for begin, stop in zip(begins, stops, strict=True):
            found[begin:stop] = True
        assert np.array_equal(found, expected)
        assert merged.areas()[d] == expected.sum()


def test_masks_never_run_into_each_other() -> None:
    merged = runs.merge_runs(np.array([0, 1]), np.array([90, 0]), np.array([100, 10]), 2, (10, 10))
    assert merged.splits.tolist() == [0, 1, 2]
    assert runs.boxes_of_runs(merged).tolist() == [[9, 0, 10, 10], [0, 0, 1, 10]]


def test_no_masks_and_empty_masks() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    for count in (0, 3):
        merged = runs.merge_runs(nothing, nothing, nothing, count, (4, 4))
        assert len(merged) == count
        assert merged.areas().tolist() == [0] * count
        assert runs.boxes_of_runs(merged).tolist() == [[0] * 4] * count
        assert runs.intersections(merged, merged).tolist() == [[0.0] * count] * count


def test_many_pairs_are_looked_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    starts = np.sort(rng.integers(0, 90, 80))
    masks = runs.merge_runs(rng.integers(0, 9, 80), starts, starts + 5, 9, (10, 10))
    others = runs.merge_runs(rng.integers(0, 9, 80), starts, starts + 2, 9, (10, 10))
    together = runs.intersections(masks, others)
    monkeypatch.setattr(runs, "_LOOKUPS", 7)
    assert np.array_equal(runs.intersections(masks, others), together)
    assert together.any()


def test_pictures_of_different_sizes_do_not_meet() -> None:
    one = runs.merge_runs(np.array([0]), np.array([0]), np.array([1]), 1, (4, 4))
    other = runs.merge_runs(np.array([0]), np.array([0]), np.array([1]), 1, (4, 5))
    with pytest.raises(ValueError, match="different sizes"):
        runs.intersections(one, other)


def test_in_parts() -> None:
    assert list(runs.in_parts(np.zeros(0, dtype=int), 5)) == []
    parts = [part.tolist() for part in runs.in_parts(np.array([2, 2, 2, 50, 1, 1]), 5)]
    assert sum(parts, []) == [0, 1, 2, 3, 4, 5]
    assert len(parts) > 2
