"""AP at one IoU as TIDE counts it: the mean over the classes that have objects or detections.

COCO leaves out a class without objects; TIDE counts it as 0 while it has detections (Bolya et al. 2020, `ap.py`). With
objects in every class both are the same number.
"""

from __future__ import annotations

import numpy as np

RECALLS = np.arange(101) / 100


def average_precision(
    scores: np.ndarray, labels: np.ndarray, is_right: np.ndarray, objects: np.ndarray
) -> float | None:
    """0..1; None where there are neither objects nor detections.

    scores: (D,) float. labels: (D,) int64 from 1. is_right: (D,) bool. objects: (L + 1,) int64, how many each
    label has; L at least the largest label.
    """
    counts = np.bincount(labels, minlength=len(objects))
    order = np.lexsort((-scores, labels))  # stable: of equal scores the first detection is first
    ends = np.cumsum(counts)
    present = np.flatnonzero((counts > 0) | (objects > 0))
    each = [_of_class(is_right[order[ends[k] - counts[k] : ends[k]]], int(objects[k])) for k in present.tolist()]
    return float(np.mean(each)) if each else None


def _of_class(is_right: np.ndarray, objects: int) -> float:
    """is_right: best score first. The mean of the best precision reached at each of 101 recalls or later."""
    if objects <= 0 or not len(is_right):
        return 0.0
    right = np.cumsum(is_right)
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / objects, RECALLS, side="left")
    return float(precision[at[at < len(precision)]].sum() / len(RECALLS))
