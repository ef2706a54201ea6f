"""Precision, recall and F1 at every score threshold, and which class is taken for which.

D detections    G ground-truth objects    K classes, labels 1..K, 0 is background    U distinct scores
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.matching import Matches, Overlaps, match


@dataclass(frozen=True)
class ThresholdScores:
    """How detections at or above one score fare. None where the share is of nothing.

    precision: right ones among the detections; recall: found ones among the objects; f1: their harmonic mean.
    """

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def precision(self) -> float | None:
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None without objects, for nothing could be found."""
        if self.true_positives + self.false_negatives == 0:
            return None
        return _share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """Hits and false alarms of one class, or of all together, as the score threshold falls.

    objects: how many there are to find, crowd regions apart.
    thresholds: (U,) float64, the distinct scores, descending.
    true_positives, false_positives: (U,) int64 counts of detections with a score of at least the threshold.
    """

    objects: int
    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """(U,) float64. Where all detections so far lie in crowd regions it is 0."""
        return _shares(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> np.ndarray:
        """(U,) float64, 0 without objects."""
        return _shares(self.true_positives, np.full_like(self.true_positives, self.objects))

    @property
    def f1(self) -> np.ndarray:
        """(U,) float64, 0 without objects."""
        return _shares(2 * self.true_positives, self.true_positives + self.false_positives + self.objects)

    def at(self, threshold: float) -> ThresholdScores:
        """Counts of the detections with a score of at least `threshold`."""
        reached = int(np.searchsorted(-self.thresholds, -threshold, side="right"))  # how many distinct scores are in
        hits = int(self.true_positives[reached - 1]) if reached else 0
        alarms = int(self.false_positives[reached - 1]) if reached else 0
        return ThresholdScores(threshold, hits, alarms, self.objects - hits)

    def best(self) -> ThresholdScores | None:
        """At the score that gives the highest F1, exactly: every distinct score is tried, the highest of equals wins.

        None without objects or without detections.
        """
        if self.objects == 0 or self.thresholds.size == 0:
            return None
        return self.at(float(self.thresholds[np.argmax(self.f1)]))


def score_curves(found: Overlaps, num_classes: int) -> tuple[ScoreCurve, tuple[ScoreCurve, ...]]:
    """(all classes together, (each of the K classes)); a detection is right where it finds an object of its class."""
    matches = match(found, same_class=True)
    everything = np.ones(len(found.labels), dtype=bool)
    objects = np.bincount(found.gt_labels[~found.is_crowd], minlength=num_classes + 1)
    per_class = tuple(
        _curve(found, matches, found.labels == label, int(objects[label])) for label in range(1, num_classes + 1)
    )
    return _curve(found, matches, everything, int(objects.sum())), per_class


def confusion_matrix(found: Overlaps, num_classes: int, score_threshold: float) -> np.ndarray:
    """How often an object of one class was found as another.

    Each detection, best first, takes the free object that it overlaps most, whatever the classes. Crowd regions are
    no objects, and the detections in those of their own class do not count.

    Returns:
        (K+1, K+1) int64; rows are the truth, columns the prediction. Row 0 holds detections of nothing (or of
        something already found), column 0 objects that were missed.
    """
    matches = match(found, same_class=False)
    counted = (found.scores >= score_threshold) & ~matches.in_crowd
    hit = counted & (matches.gt_index >= 0)
    truth = np.zeros(len(found.labels), dtype=np.int64)
    truth[hit] = found.gt_labels[matches.gt_index[hit]]
    missed = ~found.is_crowd
    missed[matches.gt_index[hit]] = False
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    np.add.at(matrix, (truth[counted], found.labels[counted]), 1)
    np.add.at(matrix, (found.gt_labels[missed], 0), 1)
    return matrix


def _curve(found: Overlaps, matches: Matches, chosen: np.ndarray, objects: int) -> ScoreCurve:
    scores = found.scores[chosen]
    order = np.argsort(-scores, kind="stable")
    hit = (matches.gt_index[chosen] >= 0)[order]
    alarm = ~hit & ~matches.in_crowd[chosen][order]
    scores = scores[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if scores.size else np.empty(0, dtype=np.int64)
    return ScoreCurve(objects, scores[last], np.cumsum(hit)[last], np.cumsum(alarm)[last])


def _shares(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    shares: np.ndarray = parts / np.maximum(wholes, 1)
    return shares


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
