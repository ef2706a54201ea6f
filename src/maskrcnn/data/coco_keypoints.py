"""Keypoints of COCO annotation files: what the categories call them, and the points of each annotation.

Format: Lin et al. 2014, "Microsoft COCO", and cocodataset.org/#format-data, keypoint detection. A category lists the
names of its J keypoints, and its `skeleton` the pairs that a line joins, counted from 1; an annotation holds x, y, v
of each, flat: the number of a pixel, counted from 0, and 0 not labelled, 1 labelled though hidden, 2 visible.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from maskrcnn.structures import KeypointScheme

Note = Callable[[str, str, object, str], None]  # (place, problem, found, expected) of something wrong
Places = Iterable[tuple[str, Any]]  # (place for messages, record) of each

_FARTHEST = 1e9  # px; larger coordinates are a broken file's
_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}


def read_scheme(categories: Places, annotations: list[Any], note: Note) -> tuple[KeypointScheme | None, set[int]]:
    """The keypoints that the file's categories name, and the ids of those categories; none where no object has any.

    All categories that have keypoints share one list. Problems are noted, and what they touch is left out.
    """
    used = Counter(_category_of(record) for record in annotations if _has_points(record))
    if annotations and not used:
        return None, set()
    scheme: KeypointScheme | None = None
    named: set[int] = set()
    for place, record in categories:
        names, count = record.get("keypoints"), used[record["id"]]
        if not names:
            if count:
                found = f"{count} annotations with keypoints"
                note(f"{place}.keypoints", "are missing", found, "the names of the keypoints")
        elif not _are_names(names):
            note(f"{place}.keypoints", "are not the names of keypoints", names, "a list of texts, each once")
        elif scheme is None or scheme.names == tuple(names):
            scheme = scheme or _scheme(place, record, note)
            named.add(int(record["id"]))
        else:
            note(f"{place}.keypoints", "differ from another category's", names, ", ".join(scheme.names))
    return scheme, named


def read_points(value: object, count: int, note: Note) -> np.ndarray | None:
    """(`count`, 3) float64 x, y, v as in the file, zeros without any; None where they are bad, which is noted."""
    if not value:
        return np.zeros((count, 3))
    expected = f"x, y, v of {count} keypoints, {3 * count} numbers"
    try:
        numbers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty((0, 0))
    if not isinstance(value, list) or numbers.ndim != 1:
        note("keypoints", "are not keypoints", value, expected)
    elif len(numbers) != 3 * count:
        note("keypoints", "are too many or too few", f"{len(numbers)} numbers", expected)
    elif not (np.abs(numbers) < _FARTHEST).all():  # NaN is not smaller
        note("keypoints", "hold numbers that are no coordinates", value, "finite numbers")
    elif not np.isin(numbers[2::3], (0, 1, 2)).all():
        strange = next(v for v in numbers[2::3].tolist() if v not in (0, 1, 2))
        note("keypoints", "have an unknown visibility", strange, "0, 1 or 2")
    else:
        return numbers.reshape(-1, 3)
    return None


def flip_pairs(names: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Positions of the keypoints that change places in a mirror, by their names: left_eye and right_eye, L-ear and
    R-ear, hindPawLeft and hindPawRight."""
    place = {tuple(_words(name)): j for j, name in enumerate(names)}
    other = {j: place.get(tuple(_SIDES.get(word, word) for word in words)) for words, j in place.items()}
    return tuple((j, k) for j, k in other.items() if k is not None and j < k)


def _scheme(place: str, record: dict[str, Any], note: Note) -> KeypointScheme:
    names, skeleton = tuple(record["keypoints"]), record.get("skeleton") or []
    numbers = range(1, len(names) + 1)
    is_sound = isinstance(skeleton, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(j) is int and j in numbers for j in pair)
        for pair in skeleton
    )
    if not is_sound:
        note(f"{place}.skeleton", "is not a skeleton", skeleton, f"pairs of numbers from 1 to {len(names)}")
        skeleton = []
    return KeypointScheme(names, flip_pairs(names), tuple((a - 1, b - 1) for a, b in skeleton))


def _words(name: str) -> list[str]:
    """left_eye, leftEye and "Left eye" are all ["left", "eye"]."""
    return re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v for v in value) and len(set(value)) == len(value)


def _has_points(record: object) -> bool:
    return isinstance(record, dict) and bool(record.get("keypoints"))


def _category_of(record: dict[str, Any]) -> int | float | None:
    category = record.get("category_id")
    return category if isinstance(category, (int, float)) else None  # anything else is another's problem
