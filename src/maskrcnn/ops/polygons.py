"""Polygons to masks and back.

The way in is COCO's: corners are rounded to a fifth of a pixel, each edge is drawn as a line of such points, and a
column is filled between the places where the line crosses its middle (the rule of `cocoapi`; results are equal byte
for byte). Only those crossings are computed here, all rings at once, so the cost goes by rings and columns and never by
how far a ring reaches outside the picture. The way out follows the edges of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskrcnn.errors import InputError
from maskrcnn.ops.rle import RLE, decode_window, rles_of_runs
from maskrcnn.ops.runs import merge_runs, ragged_ranges

_FINE = 5  # points per pixel along an outline
_FARTHEST = 1e8  # px from the picture; beyond it (and NaN) a coordinate is taken for a mistake
_MIDDLE = 2  # the fine column after which the middle of a pixel is crossed


def rle_from_polygons(rings: Sequence[np.ndarray], size: tuple[int, int]) -> RLE:
    """One object's mask: the union of its rings, each filled by the even-odd rule, inside a picture of `size`.

    rings: (P, 2) x, y each, P >= 3, pixel edges at integers; parts outside the picture are cut off.

    Raises:
        InputError: a ring of fewer than three points, of another shape, or with a coordinate that is not finite or lies
            far beyond any picture.
    """
    for i, ring in enumerate(rings):
        _check_ring(np.asarray(ring), f"rings[{i}]")
    _, starts, ends = ring_runs(rings, size)
    return rles_of_runs(merge_runs(np.zeros_like(starts), starts, ends, 1, size))[0]


def ring_runs(rings: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ring, starts, ends), each (T,) int64: the runs of every ring by itself, for many rings in one go.

    ring: the place of the run's ring in `rings`. Positions are x * H + y.
    """
    if not len(rings):
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing
    lengths = np.array([len(ring) for ring in rings])
    points = np.concatenate([np.asarray(ring, dtype=np.float64) for ring in rings])
    fine = (_FINE * points + 0.5).astype(np.int64)  # towards zero, as C does
    following = np.arange(1, len(points) + 1)
    lasts = np.cumsum(lengths) - 1
    following[lasts] = lasts - lengths + 1
    edge, column, row = _crossings(fine, fine[following], size)
    ring = np.repeat(np.arange(len(rings)), lengths)[edge]
    # A closed line crosses each column an even number of times, and pairs of equal crossings undo each other.
    stride = size[0] * size[1] + 1
    keys, times = np.unique(ring * stride + column * size[0] + row, return_counts=True)
    keys = keys[times % 2 == 1]
    ring, positions = np.divmod(keys, stride)
    return ring[0::2], positions[0::2], positions[1::2]


def _crossings(a: np.ndarray, b: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(edge, column, row), each (n,) int64: where edges a -> b (E, 2, fine points) cross the middle of a column."""
    height, width = size
    steep = np.abs(b - a)[:, 0] < np.abs(b - a)[:, 1]
    backwards = np.where(steep, a[:, 1] > b[:, 1], a[:, 0] > b[:, 0])
    start, stop = np.where(backwards[:, None], b, a), np.where(backwards[:, None], a, b)
    low, high = np.minimum(a[:, 0], b[:, 0]), np.maximum(a[:, 0], b[:, 0])
    first = np.maximum(-((_MIDDLE - low) // _FINE), 0)
    last = np.minimum((high - 1 - _MIDDLE) // _FINE, width - 1)
    lengths = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(a)), lengths)
    column = ragged_ranges(first, lengths)
    before = _FINE * column + _MIDDLE
    fine_row = np.empty(len(edge), dtype=np.int64)
    for chosen, rows in ((steep[edge], _rows_of_steep), (~steep[edge], _rows_of_flat)):
        fine_row[chosen] = rows(start[edge[chosen]], stop[edge[chosen]], before[chosen])
    row = np.ceil(np.clip((fine_row + 0.5) / _FINE - 0.5, 0, height)).astype(np.int64)
    return edge, column, row


def _rows_of_flat(start: np.ndarray, stop: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The upper fine row of the points at `before` and `before + 1`; a point per fine column."""
    slope = (stop[:, 1] - start[:, 1]) / (stop[:, 0] - start[:, 0])
    step = before - start[:, 0]
    here, there = ((start[:, 1] + slope * t + 0.5).astype(np.int64) for t in (step, step + 1))
    upper: np.ndarray = np.minimum(here, there)
    return upper


def _rows_of_steep(start: np.ndarray, stop: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The last fine row before the line changes between columns `before` and `before + 1`; a point per fine row."""
    slope = (stop[:, 0] - start[:, 0]) / (stop[:, 1] - start[:, 1])

    def not_yet_crossed(t: np.ndarray) -> np.ndarray:
        columns = (start[:, 0] + slope * t + 0.5).astype(np.int64)
        waits: np.ndarray = (columns > before) == (slope < 0)
        return waits

    guess = np.floor((before + 0.5 - start[:, 0]) / slope)  # right but for the last bit; then held against the rule
    here = not_yet_crossed(guess)
    step = guess - 1 + here + (here & not_yet_crossed(guess + 1))
    upper: np.ndarray = start[:, 1] + step.astype(np.int64)
    return upper


def polygons_from_rle(rle: RLE) -> list[np.ndarray]:
    """Outlines (P, 2) float64 x, y of the parts of a mask, along the edges of its pixels; holes are dropped.

    A part is what hangs together by pixel sides. Corners only: no three points in a row lie on one line. Drawn with
    `rle_from_polygons` they give the same mask back, its holes filled.
    """
    bitmap, left, top = decode_window(rle)
    return [ring + (left, top) for ring in _outer_rings(bitmap)] if bitmap.size else []


def _outer_rings(bitmap: np.ndarray) -> list[np.ndarray]:
    """Outlines in the window's own frame, the topmost first."""
    x, y, is_outer, across, along = _corners(np.pad(bitmap, 1) > 0)
    rings = []
    seen = bytearray(len(x))
    for start, outer in enumerate(is_outer):
        if seen[start]:
            continue
        ring = []  # corners come in the order of their rows, so `start` is the leftmost of the ring's top row
        corner = start
        while not seen[corner]:
            partner = across[corner]
            seen[corner] = seen[partner] = True
            ring += [corner, partner]
            corner = along[partner]
        if outer:
            rings.append(np.stack([x[ring], y[ring]], axis=1).astype(np.float64))
    return rings


def _corners(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[bool], list[int], list[int]]:
    """Corners of the outlines of a mask with an empty border, row by row, and who is joined to whom.

    In a row of pixel corners, the outline's corners are joined in pairs from the left, in a column in pairs from the
    top. Where two pixels touch by a corner only there are two corners in one place, one for each pixel.

    Returns:
        x, y: (n,) without the border. is_outer: whether the pixel to the lower right is inside, which at the first
        corner of a ring tells an outline from a hole. across, along: partner in the row, in the column.
    """
    nw, ne, sw, se = inside[:-1, :-1], inside[:-1, 1:], inside[1:, :-1], inside[1:, 1:]
    is_double = (nw == se) & (ne == sw) & (nw != ne)
    is_corner = (nw ^ ne ^ sw ^ se) | is_double
    y, x = np.nonzero(is_corner)
    times = 1 + is_double[y, x]
    y, x = np.repeat(y, times), np.repeat(x, times)
    is_second = np.append(False, (y[1:] == y[:-1]) & (x[1:] == x[:-1]))
    # The first of two corners ends the edge from the left. It is the upper left pixel's, and ends the edge from
    # above too, unless the pixels are the lower left and the upper right: then the second one does.
    comes_later = is_second ^ ne[y, x]
    pairs = np.arange(len(x)).reshape(-1, 2)
    by_column = np.lexsort((comes_later, y, x)).reshape(-1, 2)
    along = np.empty(len(x), dtype=np.int64)
    along[by_column] = by_column[:, ::-1]
    return x, y, se[y, x].tolist(), pairs[:, ::-1].ravel().tolist(), along.tolist()


def _check_ring(ring: np.ndarray, field: str) -> None:
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3:
        raise InputError("is not a polygon", field=field, found=f"shape {ring.shape}", expected="(3 or more, 2)")
    if not np.all(np.abs(ring) < _FARTHEST):
        raise InputError("holds a coordinate that is no place", field=field, found=float(np.abs(ring).max()))
