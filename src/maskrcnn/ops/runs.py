"""Masks as runs of pixels: where each run begins and ends, counted down the columns of the picture.

    D masks of one picture     T runs in all     position of pixel (x, y): x * H + y, COCO's order

A run is [start, end). The runs of one mask are sorted, disjoint and do not touch, so two equal masks have equal runs.
All of this works on the runs alone: a mask costs memory by its outline, never by the size of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Runs looked up at a time when pairs of masks meet; bounds memory at some tens of MB.
_LOOKUPS = 1 << 20


@dataclass(frozen=True)
class Runs:
    """Runs of D masks of one picture.

    starts, ends: (T,) int64 positions. splits: (D + 1,) int64; runs splits[d] to splits[d + 1] belong to mask d.
    size: (height, width) of the picture.
    """

    starts: np.ndarray
    ends: np.ndarray
    splits: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.splits) - 1

    def of(self, d: int) -> tuple[np.ndarray, np.ndarray]:
        """(starts, ends) of mask d."""
        part = slice(self.splits[d], self.splits[d + 1])
        return self.starts[part], self.ends[part]

    @property
    def owner(self) -> np.ndarray:
        """(T,) the mask that each run belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.splits))

    def areas(self) -> np.ndarray:
        """(D,) int64 pixels."""
        total = np.concatenate([[0], np.cumsum(self.ends - self.starts)])
        return np.diff(total[self.splits])


def ragged_ranges(first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(sum of lengths,) int64: first[0], first[0] + 1, ... (lengths[0] of them), then first[1], first[1] + 1, ..."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(first - before, lengths) + np.arange(int(lengths.sum()))


def in_parts(costs: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """0..n-1 cut into stretches whose costs (n,) add up to about `most`, never less than one at a time."""
    chunk = np.cumsum(costs) // most
    yield from (part for part in np.split(np.arange(len(costs)), np.flatnonzero(np.diff(chunk)) + 1) if len(part))


def merge_runs(owner: np.ndarray, starts: np.ndarray, ends: np.ndarray, count: int, size: tuple[int, int]) -> Runs:
    """Any runs, in any order, overlapping or empty, as the sorted and disjoint runs of `count` masks: their union.

    owner, starts, ends: (T,) int64; the mask, and the positions, of each run.
    """
    some = ends > starts
    stride = size[0] * size[1] + 1  # one more than the last position, so that masks never touch each other
    shift = owner[some] * stride
    begin, reach = starts[some] + shift, ends[some] + shift
    if np.any(begin[1:] < begin[:-1]):
        order = np.argsort(begin, kind="stable")
        begin, reach = begin[order], reach[order]
    reach = np.maximum.accumulate(reach)
    is_first = np.append(True, begin[1:] > reach[:-1])[: len(begin)]
    begin, reach = begin[is_first], reach[np.append(is_first[1:], True)[: len(reach)]]
    mask = begin // stride
    splits = np.concatenate([[0], np.cumsum(np.bincount(mask, minlength=count))])
    return Runs(begin - mask * stride, reach - mask * stride, splits, size)


def runs_in_window(bitmap: np.ndarray, left: int, top: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) of the non-zero pixels of a window (h, w) with its corner at (left, top) of a picture of `height`.

    Sorted, and cut at the foot of every column, so that a run may touch the next.
    """
    rows, columns = bitmap.shape
    flat = np.zeros(columns * (rows + 1) + 1, dtype=bool)  # one pixel of background ends every column
    flat[1:].reshape(columns, rows + 1)[:, :rows] = bitmap.T
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    x, y = np.divmod(changes, rows + 1)
    positions = (x + left) * height + (y + top)
    return positions[0::2], positions[1::2]


def boxes_of_runs(runs: Runs) -> np.ndarray:
    """(D, 4) int64 x1, y1, x2, y2 on pixel edges, tight; zeros for an empty mask."""
    boxes = np.zeros((len(runs), 4), dtype=np.int64)
    some = runs.splits[1:] > runs.splits[:-1]
    if not some.any():
        return boxes
    height = runs.size[0]
    first_column, first_row = np.divmod(runs.starts, height)
    last_column, last_row = np.divmod(runs.ends - 1, height)
    wraps = last_column > first_column  # covers the foot of one column and the head of the next
    heads, tails = runs.splits[:-1][some], runs.splits[1:][some] - 1
    boxes[some, 0] = first_column[heads]
    boxes[some, 1] = np.minimum.reduceat(np.where(wraps, 0, first_row), heads)
    boxes[some, 2] = last_column[tails] + 1
    boxes[some, 3] = np.maximum.reduceat(np.where(wraps, height, last_row + 1), heads)
    return boxes


def window_of_runs(starts: np.ndarray, ends: np.ndarray, box: np.ndarray, height: int) -> np.ndarray:
    """The pixels (h, w) uint8 inside `box`, which is the tight box of one mask's runs."""
    left, top, right, bottom = (int(v) for v in box)
    rows, columns = bottom - top, right - left
    # A run that leaves its column makes the box as high as the picture, so runs stay in one piece in the window too.
    x, y = np.divmod(np.stack([starts, ends - 1]), height)
    begin, last = (x - left) * rows + (y - top)
    steps = np.zeros(rows * columns + 1, dtype=np.int8)
    steps[begin] += 1
    steps[last + 1] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8).reshape(columns, rows).T


def intersections(a: Runs, b: Runs) -> np.ndarray:
    """(A, B) float64 pixels in common. Only pairs whose boxes overlap are looked at, once each where `a is b`."""
    if a.size != b.size:
        raise ValueError(f"masks of pictures of different sizes, {a.size} and {b.size}, do not meet")
    common = np.zeros((len(a), len(b)))
    first, second = np.nonzero(_boxes_overlap(boxes_of_runs(a), boxes_of_runs(b)))
    runs_of_a, runs_of_b = np.diff(a.splits), np.diff(b.splits)
    if a is b:  # one of each pair, and the mask of fewer runs is looked up in the other
        more = runs_of_a[first] - runs_of_a[second]
        once = (more > 0) | ((more == 0) & (first >= second))
        first, second = first[once], second[once]
    for part in in_parts(runs_of_b[second], _LOOKUPS):
        common[first[part], second[part]] = _common_pixels(a, b, first[part], second[part])
    return np.maximum(common, common.T) if a is b else common


def _common_pixels(a: Runs, b: Runs, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pixels that a[first[p]] and b[second[p]] share, per pair p; neither may be empty.

    covered(x), the number of pixels of a mask before position x, is piecewise linear with its knots at the ends of
    runs. The pixels shared with a run are covered(end) - covered(start). All masks of `a` lie on one long axis.
    """
    stride = a.size[0] * a.size[1] + 1
    knots = (np.stack([a.starts, a.ends], axis=1) + (a.owner * stride)[:, None]).ravel()
    lengths = np.diff(knots)
    lengths[1::2] = 0  # between runs
    covered = np.concatenate([[0], np.cumsum(lengths)])
    per_pair = np.diff(b.splits)[second]
    run = ragged_ranges(b.splits[second], per_pair)
    shift = np.repeat(first * stride, per_pair)
    shared = np.interp(b.ends[run] + shift, knots, covered) - np.interp(b.starts[run] + shift, knots, covered)
    return np.add.reduceat(shared, np.cumsum(per_pair) - per_pair)


def _boxes_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B) bool, whether two boxes share some area."""
    width = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
    height = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
    overlap: np.ndarray = (width > 0) & (height > 0)
    return overlap
