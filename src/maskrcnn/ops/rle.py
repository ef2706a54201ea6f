"""Run-length coded masks in COCO's compressed form, byte for byte as pycocotools writes them.

A mask is the lengths of its runs down the columns, background first: counts[0] zeros, counts[1] ones, and so on. From
the fourth on, a length is stored as its difference to the one two places before. Each number is then cut into groups of
five bits, lowest first, the last one carrying the sign in its top bit; a sixth bit says that more groups follow; 48 is
added to make a printable character (Lin et al. 2014, and the format of `cocoapi`).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, TypedDict

import numpy as np

from maskrcnn.errors import InputError
from maskrcnn.ops.runs import (
    Runs,
    boxes_of_runs,
    intersections,
    merge_runs,
    runs_in_window,
    window_of_runs,
)

_BASE = 48  # character of the number 0
_MORE = 32  # another group of five bits follows
_GROUPS = 7  # groups of the longest run there can be: lengths are 32 bits wide in COCO's own code
_ALPHABET = bytes(range(_BASE, _BASE + 2 * _MORE))


class RLE(TypedDict):
    """One mask. size: [height, width] of its picture. counts: COCO's compressed string."""

    size: list[int]
    counts: str


def encode(bitmap: np.ndarray) -> RLE:
    """The RLE of a full picture's mask (H, W), non-zero inside."""
    height, width = bitmap.shape
    return encode_window(bitmap, 0, 0, (height, width))


def encode_window(bitmap: np.ndarray, left: int, top: int, size: tuple[int, int]) -> RLE:
    """The RLE of a mask that is empty outside a window; the full picture is never made.

    bitmap: (h, w), non-zero inside, its corner at column `left` and row `top` of a picture of `size` (height, width).
    """
    rows, columns = bitmap.shape
    if left < 0 or top < 0 or top + rows > size[0] or left + columns > size[1]:
        window = f"{columns} x {rows} at ({left}, {top})"
        raise InputError("is not inside the picture", field="window", found=window, expected=f"within {size}")
    starts, ends = runs_in_window(bitmap, left, top, size[0])
    return rles_of_runs(merge_runs(np.zeros_like(starts), starts, ends, 1, size))[0]


def decode(rle: RLE) -> np.ndarray:
    """(H, W) uint8, 1 inside. This is a full picture: prefer `decode_window` for one object among many."""
    height, width = _size(rle)
    counts = counts_of(rle)
    values = (np.arange(len(counts)) & 1).astype(np.uint8)
    return np.repeat(values, counts).reshape(width, height).T


def decode_window(rle: RLE) -> tuple[np.ndarray, int, int]:
    """(bitmap (h, w) uint8, left, top): only the tight window around the mask; (0, 0) pixels for an empty mask."""
    runs = runs_of_rles([rle])
    box = boxes_of_runs(runs)[0]
    return window_of_runs(*runs.of(0), box, runs.size[0]), int(box[0]), int(box[1])


def area(rle: RLE) -> int:
    """Pixels inside."""
    return int(counts_of(rle)[1::2].sum())


def bounding_box(rle: RLE) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 on pixel edges, tight; zeros for an empty mask."""
    x1, y1, x2, y2 = (float(v) for v in boxes_of_runs(runs_of_rles([rle]))[0])
    return x1, y1, x2, y2


def iou(a: Sequence[RLE], b: Sequence[RLE], is_crowd: Sequence[bool]) -> np.ndarray:
    """(A, B) float64 intersection over union. No bitmap is made.

    Args:
        a: detections. b: ground truth.
        is_crowd: B flags; against a crowd region the union is the detection's own area, as in COCO.
    """
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    first, second = runs_of_rles(a), runs_of_rles(b)
    if first.size != second.size:
        raise InputError("masks of different pictures", field="size", found=second.size, expected=str(first.size))
    return iou_of_runs(first, second, np.asarray(is_crowd, dtype=bool))


def iou_of_runs(a: Runs, b: Runs, is_crowd: np.ndarray | None = None) -> np.ndarray:
    """(A, B) float64, as `iou`; without `is_crowd` (B,) bool no mask is a crowd."""
    common = intersections(a, b)
    union = a.areas()[:, None] + b.areas()[None, :] - common
    if is_crowd is not None:
        union = np.where(is_crowd[None, :], a.areas()[:, None], union)
    shares: np.ndarray = common / np.maximum(union, 1)
    return shares


def from_counts(counts: Sequence[int], size: Sequence[int]) -> RLE:
    """The RLE of COCO's uncompressed form, the plain list of run lengths of a picture of `size` (height, width)."""
    problem = InputError("is not a list of run lengths", field="counts", found=counts)
    try:
        runs = np.asarray(counts)
    except ValueError:
        raise problem from None
    if runs.ndim != 1 or (runs.size and runs.dtype.kind not in "iu"):
        raise problem
    runs = runs.astype(np.int64)
    height, width = _checked_size(size)
    _check_counts(runs, (height, width))
    return RLE(size=[height, width], counts=_compress(runs, np.array([0, len(runs)]))[0])


def counts_of(rle: RLE) -> np.ndarray:
    """(n,) int64 run lengths, background first.

    Raises:
        InputError: the string holds other characters, breaks off, or does not add up to height x width.
    """
    counts, _ = _expand([_characters(rle)])
    _check_counts(counts, _size(rle))
    return counts


def runs_of_rles(rles: Sequence[RLE]) -> Runs:
    """The runs of D masks of one picture (at least one mask)."""
    sizes = {_size(rle) for rle in rles}
    if len(sizes) != 1:
        raise InputError("masks of different pictures", field="size", found=sorted(sizes), expected="one size")
    height, width = size = sizes.pop()
    counts, splits = _expand([_characters(rle) for rle in rles])
    reach = np.concatenate([[0], np.cumsum(counts)])
    fills = np.diff(reach[splits]) == height * width
    if np.any(counts < 0) or not fills.all():
        for rle in rles:
            counts_of(rle)  # says which is wrong, and how
    owner = np.repeat(np.arange(len(rles)), np.diff(splits))
    is_run = (np.arange(len(counts)) - splits[owner]) % 2 == 1
    ends = reach[1:][is_run] - owner[is_run] * (height * width)
    return merge_runs(owner[is_run], ends - counts[is_run], ends, len(rles), size)


def rles_of_runs(runs: Runs) -> list[RLE]:
    """D masks as compressed strings."""
    area_of_picture, masks = runs.size[0] * runs.size[1], np.arange(len(runs))
    # Per mask 0, start, end, start, end, ..., H * W; the differences of neighbours are the lengths of its runs.
    edges = np.zeros(2 * len(runs.starts) + 2 * len(runs), dtype=np.int64)
    at = 2 * np.arange(len(runs.starts)) + 2 * runs.owner + 1
    edges[at], edges[at + 1] = runs.starts, runs.ends
    tails = 2 * runs.splits[1:] + 2 * masks + 1
    edges[tails] = area_of_picture
    counts = np.diff(edges, append=0)
    ends_at_the_edge = edges[tails - 1] == area_of_picture
    keep = np.ones(len(edges), dtype=bool)
    keep[tails] = False  # from one mask to the next
    keep[tails[ends_at_the_edge & (np.diff(runs.splits) > 0)] - 1] = False  # no background after the last run
    splits = np.concatenate([[0], np.cumsum(keep)])[np.append(0, tails + 1)]
    size = [int(v) for v in runs.size]
    return [RLE(size=list(size), counts=text) for text in _compress(counts[keep], splits)]


def _compress(counts: np.ndarray, splits: np.ndarray) -> list[str]:
    """The strings of D masks whose run lengths lie one after the other, mask d at splits[d] to splits[d + 1]."""
    place = np.arange(len(counts)) - np.repeat(splits[:-1], np.diff(splits))
    values = counts.copy()
    late = np.flatnonzero(place > 2)
    values[late] -= counts[late - 2]
    magnitude = values ^ (values >> 63)  # bits of the number without its sign
    groups = int(magnitude.max(initial=0)).bit_length() // 5 + 1
    characters = np.empty((len(counts), groups), dtype=np.uint8)
    written = np.ones((len(counts), groups + 1), dtype=bool)
    for group in range(groups):
        more = written[:, group + 1] = (magnitude >> (5 * group + 4)) != 0
        characters[:, group] = ((values >> (5 * group)) & 31) + _MORE * more + _BASE
    written = written[:, :-1]
    text = characters[written].tobytes().decode("ascii")
    ends = np.concatenate([[0], np.cumsum(written.sum(axis=1))])[splits].tolist()
    return [text[begin:end] for begin, end in zip(ends[:-1], ends[1:], strict=True)]


def _expand(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64, the run lengths of D compressed strings one after the other, and the (D + 1,) splits between them."""
    text = b"".join(texts)
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - _BASE
    is_last = (codes & _MORE) == 0
    byte_ends = np.cumsum([len(part) for part in texts])
    if not is_last[byte_ends[byte_ends > 0] - 1].all():
        raise InputError("breaks off in the middle of a number", field="counts", found=text[-20:].decode())
    splits = np.concatenate([[0], np.cumsum(is_last)])[np.append(0, byte_ends)]
    lasts = np.flatnonzero(is_last)
    if not len(lasts):
        return np.zeros(0, dtype=np.int64), splits
    firsts = np.append(0, lasts[:-1] + 1)
    groups = lasts - firsts + 1
    if groups.max() > _GROUPS:
        raise InputError("holds a number that is too large", field="counts", found=text.decode())
    shift = 5 * (np.arange(len(codes)) - np.repeat(firsts, groups))
    values = np.add.reduceat((codes & 31) << shift, firsts)
    values -= ((codes[lasts] & 16) >> 4) << (5 * groups)
    return _undo_differences(values, splits), splits


def _undo_differences(values: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Run lengths of D strings from their differences: places 1, 3, 5, ... and 2, 4, 6, ... of each string add up."""
    lengths = np.diff(splits)
    place = np.arange(len(values)) - np.repeat(splits[:-1], lengths)
    lane = 3 * np.repeat(np.arange(len(lengths)), lengths) + np.where(place == 0, 0, 1 + place % 2)
    order = np.argsort(lane, kind="stable")
    lane, sums = lane[order], np.cumsum(values[order])
    firsts = np.flatnonzero(np.append(True, lane[1:] != lane[:-1]))
    before = sums[firsts] - values[order][firsts]
    counts = np.empty_like(values)
    counts[order] = sums - np.repeat(before, np.diff(np.append(firsts, len(values))))
    return counts


def _characters(rle: RLE) -> bytes:
    """The characters of a compressed string (bytes, as pycocotools gives them, are taken too)."""
    given: object = rle.get("counts")
    text = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else given
    if not isinstance(text, bytes):
        raise InputError("is not a compressed RLE", field="counts", found=given, expected="a string")
    if text.translate(None, _ALPHABET):
        raise InputError("holds characters that no RLE has", field="counts", found=given, expected="'0' to 'o'")
    return text


def _size(rle: RLE) -> tuple[int, int]:
    return _checked_size(rle.get("size"))


def _checked_size(size: Any) -> tuple[int, int]:
    try:
        height, width = (index(v) for v in size)
    except (TypeError, ValueError):
        raise InputError("is not a size", field="size", found=size, expected="[height, width]") from None
    if height < 0 or width < 0:
        raise InputError("is not a size", field="size", found=size, expected="[height, width]")
    return height, width


def _check_counts(counts: np.ndarray, size: tuple[int, int]) -> None:
    if np.any(counts < 0):
        raise InputError("holds a negative run length", field="counts", found=int(counts.min()))
    total, expected = int(counts.sum()), size[0] * size[1]
    if total != expected:
        needed = f"{expected} ({size[0]} x {size[1]})"
        raise InputError("does not fill the picture", field="counts", found=f"{total} pixels", expected=needed)
