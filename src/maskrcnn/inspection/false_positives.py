"""Each detection that found nothing: what is wrong with it (Bolya et al. 2020, TIDE, 2.2, and its code).

G objects    D detections    P pairs that overlap

The best overlap with an object of its own class and of another class decides, in this order:

    place         own class, 0.1 to 0.5: an object, badly placed
    class         another class, from 0.5: an object, called something else
    duplicate     own class, from 0.5, and that object is found already
    background    at most 0.1 with everything
    both          what is left: near an object of another class, and badly placed

One departure from TIDE's code, which also sorts the detections in crowd regions: they are neither right nor wrong here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.matching import Overlaps
from maskrcnn.inspection.matched import NEAR, Matched

KINDS = ("class", "place", "both", "duplicate", "background")


@dataclass(frozen=True, eq=False)
class FalsePositives:
    """What is wrong with the detections of one picture, and what would come of putting it right.

    kind: (D,) int64 position in `KINDS`, -1 for those that are right or do not count. mended: (D,) int64, the object
    that one of kind class or place would have found without its fault, -1 for none; of several that would find the
    same, the best score does. missed: (G,) bool, objects that neither were found nor would be (TIDE's Missed).
    """

    kind: np.ndarray
    mended: np.ndarray
    missed: np.ndarray

    def names(self) -> list[str | None]:
        """D kinds, None for those that are right or do not count."""
        return [None if kind < 0 else KINDS[kind] for kind in self.kind.tolist()]


def false_positives(found: Matched, ignored: np.ndarray | None = None) -> FalsePositives:
    """What is wrong with each detection that found nothing. ignored: (D,) bool, detections that do not count."""
    near, limit = found.near, found.iou_threshold
    counts = ~near.is_crowd[near.pair_gt]
    own = near.labels[near.pair_detection] == near.gt_labels[near.pair_gt]
    is_found = found.detection >= 0
    own_iou, own_gt = _best(near, counts & own)
    other_iou, other_gt = _best(near, counts & ~own)
    found_iou, _ = _best(near, counts & own & is_found[near.pair_gt])
    kind = np.full(len(near.labels), -1, dtype=np.int64)
    left = (found.gt_index < 0) & ~found.in_crowd
    if ignored is not None:
        left &= ~ignored
    tests = {
        "place": (own_iou >= NEAR) & (own_iou <= limit),
        "class": other_iou >= limit,
        "duplicate": found_iou >= limit,
        "background": np.maximum(own_iou, other_iou) <= NEAR,
        "both": np.ones_like(left),
    }
    for name, holds in tests.items():
        kind[left & holds] = KINDS.index(name)
        left &= ~holds
    object_of = np.select([kind == KINDS.index("place"), kind == KINDS.index("class")], [own_gt, other_gt], -1)
    object_of[(object_of >= 0) & np.append(is_found, False)[object_of]] = -1
    mended = _best_scored(object_of, near.scores)
    missed = ~near.is_crowd & ~is_found
    missed[object_of[object_of >= 0]] = False
    return FalsePositives(kind, mended, missed)


def _best(near: Overlaps, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) the largest IoU of each detection in the chosen pairs, 0 for none, and (D,) its first object, or -1."""
    detection, gt, overlap = near.pair_detection[chosen], near.pair_gt[chosen], near.pair_iou[chosen]
    order = np.lexsort((gt, -overlap, detection))
    rows, first = np.unique(detection[order], return_index=True)
    iou, index = np.zeros(len(near.labels)), np.full(len(near.labels), -1, dtype=np.int64)
    iou[rows], index[rows] = overlap[order][first], gt[order][first]
    return iou, index


def _best_scored(object_of: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(D,) `object_of`, kept for the best detection of each object only, the first of equals."""
    rows = np.argsort(-scores, kind="stable")
    rows = rows[object_of[rows] >= 0]
    objects, first = np.unique(object_of[rows], return_index=True)
    kept = np.full(len(scores), -1, dtype=np.int64)
    kept[rows[first]] = objects
    return kept
