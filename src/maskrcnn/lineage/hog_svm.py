"""HOG + linear SVM on sliding windows, learned: the detector before networks, and the yardstick of R-CNN's time.

Dalal and Triggs 2005. A class has one window, whose sides follow its median box; a linear SVM over histograms of
gradients scores it at every place and size. Positives are the class's objects, stretched to the window, and their
mirror images; negatives are windows that overlap no object of the class by 0.3: some at random, then those which the
SVM of now does not yet put beyond its margin, picture by picture, until time is up or there are none left.

    F features of a window    G objects    P windows    boxes: x1 y1 x2 y2, float pixels of the picture as given
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.proposals import pictures_digest
from maskrcnn.errors import InputError
from maskrcnn.lineage.hog import Level, level_numbers, margins, pyramid, warped, window_for
from maskrcnn.lineage.hog_detector import ClassDetector, HogSVM, load_detector, save_detector, sizes_of
from maskrcnn.lineage.svm import NEVER, Miner, SVMConfig
from maskrcnn.lineage.system import Bench, Stopwatch, System, Trained
from maskrcnn.ops.boxes import intersection_over_first, iou
from maskrcnn.structures import Target

SVM = SVMConfig(retrain_after=1000)  # of R-CNN, but learning again sooner: hard windows come many to a picture
NEGATIVE_IOU = 0.3  # windows that overlap each object of the class by less are background
IN_CROWD = 0.5  # of a window; more, and it is not used
MOST_POSITIVES = 10_000  # of a class, mirror images included
START_PICTURES, START_PER_PICTURE = 30, 50  # random negatives of a class
HARD_PER_PICTURE = 50  # of a class, hardest first: neighbouring windows teach the same
POSITIVES_SHARE, START_SHARE = 0.3, 0.4  # of the time that is over when these stages end, at the latest
MOST_ROUNDS = 5  # through all pictures
VERSION = 1  # of everything here and in `hog` that changes what is learned
_log = logging.getLogger("maskrcnn")


def train(bench: Bench) -> Trained:
    """Learn from `bench.train` for `bench.minutes`, or read what an earlier call with the same bench has learned.

    Time is looked at between pictures, and the SVMs learn a last time when it is up. `bench.scale` makes the windows
    larger, as if the pictures had been enlarged first. An attempt that was stopped is begun anew.
    """
    path = bench.folder / "hog_svm.safetensors"
    settings = {
        "version": VERSION,
        "pictures": pictures_digest(bench.train),
        "names": list(bench.train.classes.names),
        "minutes": bench.minutes,
        "scale": bench.scale,
        "seed": bench.seed,
    }
    kept = _kept(path, settings) if path.is_file() else None
    if kept is not None:
        return kept
    watch = Stopwatch()
    detector, facts = learn(bench, watch)
    save_detector(path, detector, {"settings": settings, "training": watch.seconds, "facts": facts})
    return Trained(detector.detect, watch.seconds, facts)


SYSTEM = System(
    key="hog-svm",
    name="HOG + SVM",
    source="Dalal and Triggs 2005, Histograms of Oriented Gradients for Human Detection",
    train=train,
)


def learn(bench: Bench, watch: Stopwatch) -> tuple[HogSVM, dict[str, float]]:
    """The detector and how it came about; stages "positives", "random negatives" and "hard negatives"."""
    clock = _Clock(60 * bench.minutes)
    rng = np.random.default_rng((bench.seed, 2))
    order = rng.permutation(len(bench.train)).tolist()
    with watch("positives"):
        lessons = _lessons(bench.train, bench.scale)
        _gather_positives(bench, lessons, order, clock)
    with watch("random negatives"):
        _gather_random_negatives(bench, lessons, order[:START_PICTURES], clock, rng)
        for lesson in lessons:
            lesson.begin()
    with watch("hard negatives"):
        mined = _mine(bench, lessons, order, clock)
    facts = {
        "positives": float(sum(len(lesson.positives) for lesson in lessons)),
        "hard_negatives": float(sum(len(lesson.svm) for lesson in lessons)),
        "pictures_mined": float(mined),
    }
    return HogSVM(bench.train.classes, tuple(lesson.detector() for lesson in lessons)), facts


@dataclass(frozen=True)
class _Clock:
    """Time for learning, in seconds from now."""

    seconds: float
    began: float = field(default_factory=time.perf_counter)

    @property
    def part_done(self) -> float:
        """1 and more when time is up."""
        return (time.perf_counter() - self.began) / self.seconds if self.seconds > 0 else 1.0


@dataclass
class _Lesson:
    """One class while it learns.

    plan: its detector, without weights. positives, negatives: (F,) each. keys: which windows the negatives are.
    scale: what features are multiplied by for the SVM, so that the mean norm is what its `c` is meant for.
    """

    plan: ClassDetector
    positives: list[np.ndarray] = field(default_factory=list)
    negatives: list[np.ndarray] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    scale: float = 1.0
    miner: Miner | None = None

    @property
    def svm(self) -> Miner:
        assert self.miner is not None  # `begin` came first
        return self.miner

    def begin(self) -> None:
        """Start the SVM with what was gathered."""
        positives, negatives = (
            np.array(rows, dtype=np.float32).reshape(-1, self.plan.window.features)
            for rows in (self.positives, self.negatives)
        )
        norms = np.linalg.norm(np.concatenate([positives, negatives]), axis=1)
        self.scale = SVM.mean_norm / float(norms.mean()) if norms.any() else 1.0
        keys = np.array(self.keys, dtype=np.int64)
        self.miner = Miner(positives * np.float32(self.scale), negatives * np.float32(self.scale), keys, SVM)
        self.negatives, self.keys = [], []

    def detector(self) -> ClassDetector:
        """With the weights of now, for features as they are computed."""
        return replace(self.plan, weights=self.svm.weights * np.float32(self.scale), bias=self.svm.bias)


def _lessons(dataset: Dataset, scale: float) -> list[_Lesson]:
    """One for each class that has an object."""
    targets = [_objects(dataset.target(i)) for i in range(len(dataset))]
    lessons = []
    for k, name in enumerate(dataset.classes.names, start=1):
        boxes = np.concatenate([np.zeros((0, 4)), *(boxes[labels == k] for boxes, labels in targets)])
        if not len(boxes):
            _log.warning("HOG + SVM: class %r has no positive example and is never found", name)
            continue
        window = window_for(boxes, scale)
        numbers = level_numbers(boxes, window)
        weights = np.zeros(window.features, dtype=np.float32)
        lessons.append(_Lesson(ClassDetector(k, window, weights, NEVER, numbers.start, numbers.stop - 1)))
    return lessons


def _gather_positives(bench: Bench, lessons: Sequence[_Lesson], order: Sequence[int], clock: _Clock) -> None:
    for i in order:
        picture, target = bench.train[i]
        boxes, labels = _objects(target)
        for lesson in lessons:
            room = (MOST_POSITIVES - len(lesson.positives)) // 2
            for box in boxes[labels == lesson.plan.label][:room]:
                lesson.positives += warped(picture, box, lesson.plan.window)
        bench.progress("positives", min(1.0, clock.part_done))
        if clock.part_done >= POSITIVES_SHARE:
            break


def _gather_random_negatives(
    bench: Bench, lessons: Sequence[_Lesson], order: Sequence[int], clock: _Clock, rng: np.random.Generator
) -> None:
    for i in order:
        for lesson, levels in _levels(bench, i, lessons):
            places = [rng.random(level.count(lesson.plan.window), dtype=np.float32) for level in levels]
            features, keys = _highest(bench.train, i, lesson, levels, places, START_PER_PICTURE)
            lesson.negatives += list(features)
            lesson.keys += keys.tolist()
        bench.progress("random negatives", min(1.0, clock.part_done))
        if clock.part_done >= START_SHARE:
            break


def _mine(bench: Bench, lessons: Sequence[_Lesson], order: Sequence[int], clock: _Clock) -> int:
    """Show the pictures to the SVMs until time is up or none has anything new to learn; gives how many were shown."""
    shown = 0
    for _ in range(MOST_ROUNDS):
        added = 0
        for i in order:
            if clock.part_done >= 1:
                break
            for lesson, levels in _levels(bench, i, lessons):
                now = lesson.detector()
                found = [margins(level, now.window, now.weights, now.bias) for level in levels]
                features, keys = _highest(bench.train, i, lesson, levels, found, HARD_PER_PICTURE)
                added += lesson.svm.add(features * np.float32(lesson.scale), keys)
            shown += 1
            bench.progress("hard negatives", min(1.0, clock.part_done))
        for lesson in lessons:
            lesson.svm.finish()
        if not added or clock.part_done >= 1:
            break
    return shown


def _levels(bench: Bench, i: int, lessons: Sequence[_Lesson]) -> Iterator[tuple[_Lesson, list[Level]]]:
    """Each class with the sizes of picture i that it searches; HOG is computed once for all."""
    levels = list(pyramid(bench.train[i][0], sizes_of([lesson.plan for lesson in lessons])))
    for lesson in lessons:
        yield lesson, [level for level in levels if lesson.plan.searches(level)]


def _highest(
    dataset: Dataset, i: int, lesson: _Lesson, levels: Sequence[Level], values: Sequence[np.ndarray], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of the windows that are background in picture i and above the hard margin, those with the highest values.

    values: of each place of the window on each level. Gives features (N, F), as computed, and keys (N,), N <= `most`.
    """
    window = lesson.plan.window
    places = [np.argwhere(found > SVM.hard_above) for found in values]  # (P, 2) row and column, of each level
    number = np.repeat(np.arange(len(levels)), [len(found) for found in places])  # (P,)
    sizes = np.array([level.number for level in levels], dtype=np.int64)
    rows, columns = np.concatenate([np.zeros((0, 2), dtype=np.int64), *places]).T
    boxes = [level.boxes(window, *found.T) for level, found in zip(levels, places, strict=True)]
    is_background = _is_background(np.concatenate([np.zeros((0, 4)), *boxes]), dataset.target(i), lesson.plan.label)
    heights = np.concatenate([np.zeros(0), *(v[*found.T] for v, found in zip(values, places, strict=True))])
    best = np.argsort(np.where(is_background, -heights, np.inf), kind="stable")[: min(most, int(is_background.sum()))]
    best.sort()  # by level
    cut = [
        level.cut(window, rows[best[number[best] == j]], columns[best[number[best] == j]])
        for j, level in enumerate(levels)
    ]
    features = np.concatenate([np.zeros((0, window.features), dtype=np.float32), *cut])
    keys = (((i << 8) + sizes[number[best]]) << 28) + (rows[best] << 14) + columns[best]
    return features, keys


def _is_background(boxes: np.ndarray, target: Target, label: int) -> np.ndarray:
    """(P,) bool: too little of an object of the class in the window (P, 4), and no crowd."""
    windows, truth = torch.from_numpy(boxes), target.gt_boxes.double()
    objects, crowds = truth[(target.gt_labels == label) & ~target.is_crowd], truth[target.is_crowd]
    is_far = (iou(windows, objects) < NEGATIVE_IOU).all(dim=1)
    is_clear = (intersection_over_first(windows, crowds) <= IN_CROWD).all(dim=1)
    background: np.ndarray = (is_far & is_clear).numpy()
    return background


def _objects(target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (G, 4) float64 and labels (G,) of what is no crowd and not empty."""
    boxes, labels = target.gt_boxes.double().numpy(), target.gt_labels.numpy()
    keep = ~target.is_crowd.numpy() & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[keep], labels[keep]


def _kept(path: Path, settings: dict[str, object]) -> Trained | None:
    """What an earlier call wrote, if it had the same settings."""
    try:
        detector, facts = load_detector(path)
    except InputError as error:
        _log.warning("%s; it is learned again", error)
        return None
    if facts.get("settings") != settings:
        _log.warning("%s: learned from other pictures or with other settings; it is learned again", path)
        return None
    return Trained(detector.detect, facts["training"], facts["facts"])
