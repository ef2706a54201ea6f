"""Linear SVMs, one class against the rest, trained on streamed pictures with hard negative mining.

R-CNN's classifiers (Girshick et al. 2014, 2.3) and those of HOG + SVM: far too many background boxes to hold in memory,
nearly all of them easy. So an SVM is trained with a few negatives, shown the pictures one by one, keeps those negatives
that it does not yet put beyond its margin, and is trained again whenever enough of them have come together; easy ones
are thrown out. What a hinge loss with a margin learns hangs on the hard ones alone, so nothing is lost by that.

    P examples of a picture    K classes    F features
    margin: w . x + b, where +1 and -1 are what positives and negatives are taught to keep beyond
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.lineage.system import EXTRA

NEVER = -100.0  # margin of a class that nobody showed; as a score it is 0 in all the digits of a float32


@dataclass(frozen=True)
class Examples:
    """What one picture shows to the SVMs. A row that is neither positive nor negative for a class is not used for it.

    features: (P, F) float32. is_positive, is_negative: (P, K) bool.
    """

    features: np.ndarray
    is_positive: np.ndarray
    is_negative: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SVMConfig:
    """How one SVM learns. Values of R-CNN's published code; its paper gives none of them."""

    c: float = 1e-3  # weight of the losses against the weights' norm
    positive_weight: float = 2.0  # of a positive's loss, since they are few
    bias_scale: float = 10.0  # the feature that stands for the bias; large, so that it is hardly held back
    mean_norm: float = 20.0  # features are scaled to have this on average, which gives `c` its meaning
    hard_above: float = -1.0  # margin: a negative above it is hard and kept
    easy_below: float = -1.2  # margin: a negative below it is dropped after learning
    retrain_after: int = 2000  # new hard negatives
    start_per_picture: int = 5  # random negatives of each picture to start with
    start_most: int = 2000  # of those, in all
    max_iterations: int = 10_000  # of the solver
    seed: int = 0


@dataclass(frozen=True)
class LinearSVMs:
    """K SVMs. weights: (K, F) float32. biases: (K,) float32. scale: what features are multiplied by first."""

    weights: Tensor
    biases: Tensor
    scale: float

    def scores(self, features: Tensor) -> Tensor:
        """Margins (P, K) float32 of features (P, F)."""
        return (features.float() * self.scale) @ self.weights.T.to(features.device) + self.biases.to(features.device)


@dataclass(frozen=True)
class TrainedSVMs:
    """svms: the result. notes: what was out of the ordinary, a line each. hard: (K,) negatives that were kept.

    seen: (K,) negatives that were looked at, counted once a round. finished: False where time was up before the last.
    """

    svms: LinearSVMs
    notes: tuple[str, ...]
    hard: tuple[int, ...]
    seen: tuple[int, ...]
    finished: bool


def scores_from_margins(margins: Tensor) -> Tensor:
    """Margins as scores in 0..1: the logistic function, so that the order stays and a margin of 0 is 0.5.

    Average precision asks for the order alone. The scores are no probabilities: nobody fitted the slope.
    """
    return margins.sigmoid()


def train_svms(
    pictures: Callable[[], Iterable[Examples]],
    names: Sequence[str],
    config: SVMConfig | None = None,
    *,
    passes: int = 1,
    go_on: Callable[[], bool] = lambda: True,
) -> TrainedSVMs:
    """One SVM for each class from pictures that are shown one after the other.

    A first round gathers all positives, some random negatives and the mean norm; then each SVM mines hard negatives
    in `passes` rounds, or fewer where a round brings none ("converges quickly": one is enough, 2.3 of the paper).

    Args:
        pictures: gives the same examples in the same order each time it is called.
        names: of the K classes, for the notes.
        go_on: asked before each picture; False ends learning with what was seen so far.

    A class without positives gets an SVM that never fires, one without negatives an SVM that always does; both are told
    of in `notes`.
    """
    config = config or SVMConfig()
    gathered = _gather(pictures(), len(names), config, go_on)
    miners = [Miner(*gathered.of(k), config) for k in range(len(names))]
    finished = gathered.finished
    for _ in range(passes if finished else 0):
        added, finished = _mine(pictures(), miners, gathered.scale, go_on)
        if not added or not finished:
            break
    weights = np.zeros((len(names), gathered.width), dtype=np.float32)
    for k, miner in enumerate(miners):
        miner.finish()
        weights[k] = miner.weights if miner.weights.size else 0.0
    svms = LinearSVMs(
        torch.from_numpy(weights), torch.tensor([miner.bias for miner in miners], dtype=torch.float32), gathered.scale
    )
    notes = [note for name, miner in zip(names, miners, strict=True) if (note := miner.note(name))]
    notes += [] if finished else ["time was up before every picture had been searched for hard negatives"]
    hard, seen = tuple(len(miner) for miner in miners), tuple(miner.seen for miner in miners)
    return TrainedSVMs(svms, tuple(notes), hard, seen, finished)


class Miner:
    """One SVM while it learns: its positives, the hard negatives of now, and the weights they gave.

    Args:
        positives: (P, F) float32, scaled. start: (N, F) negatives to begin with. keys: (N,) int64, which ones they are,
            so that none is taken twice.

    weights: (F,) float32. bias.
    """

    def __init__(self, positives: np.ndarray, start: np.ndarray, keys: np.ndarray, config: SVMConfig) -> None:
        self.config = config
        self.positives = positives
        self.seen = len(start)  # negatives looked at
        self.weights = np.zeros(positives.shape[1], dtype=np.float32)
        self.bias = NEVER if not len(positives) else 1.0
        self._negatives = [start]
        self._known = set(keys.tolist())
        self._keys = [keys]
        self._added = 0
        if len(start):
            self._learn()

    def __len__(self) -> int:
        """Negatives that are kept."""
        return sum(map(len, self._negatives))

    def note(self, name: str) -> str | None:
        """What was out of the ordinary with this class, if anything."""
        if not len(self.positives):
            return f"class {name!r} has no positive example: its SVM never fires"
        if not self.seen:
            return f"class {name!r} has no negative example: its SVM always fires"
        return None

    def margins(self, features: np.ndarray) -> np.ndarray:
        """(P,) of scaled features (P, F)."""
        margins: np.ndarray = features @ self.weights + self.bias
        return margins

    def add(self, negatives: np.ndarray, keys: np.ndarray) -> int:
        """Look at negatives (N, F), keep those that are hard and new, learn again if these are enough; gives how many.

        keys: (N,) int64, unlike for any other negative.
        """
        self.seen += len(negatives)
        if not len(self.positives) or not len(negatives):
            return 0
        is_hard = self.margins(negatives) > self.config.hard_above
        is_hard &= np.fromiter((key not in self._known for key in keys.tolist()), dtype=bool, count=len(keys))
        count = int(is_hard.sum())
        if count:
            self._negatives.append(negatives[is_hard])
            self._keys.append(keys[is_hard])
            self._known.update(keys[is_hard].tolist())
            self._added += count
            if self._added >= self.config.retrain_after:
                self._learn()
        return count

    def finish(self) -> None:
        """Learn from what came since the last time."""
        if self._added:
            self._learn()

    def _learn(self) -> None:
        self._added = 0
        if not len(self.positives):
            return
        negatives, keys = np.concatenate(self._negatives), np.concatenate(self._keys)
        self.weights, self.bias = fit(self.positives, negatives, self.config)
        keep = self.margins(negatives) >= self.config.easy_below
        self._negatives, self._keys = [negatives[keep]], [keys[keep]]
        self._known = set(keys[keep].tolist())


def fit(positives: np.ndarray, negatives: np.ndarray, config: SVMConfig) -> tuple[np.ndarray, float]:
    """Weights (F,) float32 and bias that minimise |w|^2 / 2 + C sum of hinge losses, by scikit-learn's liblinear.

    positives: (P, F), at least one. negatives: (N, F), at least one. Features scaled.

    Raises:
        InputError: scikit-learn is not there.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise InputError("need scikit-learn", field="linear SVMs", expected=EXTRA) from error
    solver = LinearSVC(
        loss="hinge",
        dual=True,
        C=config.c,
        class_weight={1: config.positive_weight},
        intercept_scaling=config.bias_scale,
        max_iter=config.max_iterations,
        random_state=config.seed,
    )
    examples = np.concatenate([positives, negatives])
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an SVM that is nearly at its best serves as well
        solver.fit(examples, labels)
    return solver.coef_[0].astype(np.float32), float(solver.intercept_[0])


@dataclass(frozen=True)
class _Gathered:
    """What the first round brought, scaled: per class positives, negatives to start with and their keys."""

    positives: list[np.ndarray]
    negatives: list[np.ndarray]
    keys: list[np.ndarray]
    scale: float
    width: int
    finished: bool

    def of(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.positives[k], self.negatives[k], self.keys[k]


def _gather(pictures: Iterable[Examples], count: int, config: SVMConfig, go_on: Callable[[], bool]) -> _Gathered:
    rng = np.random.default_rng((config.seed, 1))
    positives: list[list[np.ndarray]] = [[] for _ in range(count)]
    negatives: list[list[np.ndarray]] = [[] for _ in range(count)]
    keys: list[list[np.ndarray]] = [[] for _ in range(count)]
    rows, norms, width, finished = 0, 0.0, 0, True
    for examples in pictures:
        if not go_on():
            finished = False
            break
        features = examples.features.astype(np.float32, copy=False)
        if not len(features):
            continue
        width = features.shape[1]
        for k in range(count):
            positives[k].append(features[examples.is_positive[:, k]])
            wanted = min(config.start_per_picture, config.start_most - sum(map(len, keys[k])))
            chosen = np.flatnonzero(examples.is_negative[:, k])
            chosen = np.sort(rng.permutation(chosen)[:wanted])
            negatives[k].append(features[chosen])
            keys[k].append(rows + chosen)
        norms += float(np.linalg.norm(features, axis=1).sum(dtype=np.float64))
        rows += len(features)
    scale = config.mean_norm * rows / norms if norms > 0 else 1.0
    return _Gathered(
        [_joined(parts, width) * np.float32(scale) for parts in positives],
        [_joined(parts, width) * np.float32(scale) for parts in negatives],
        [np.concatenate([np.zeros(0, dtype=np.int64), *parts]) for parts in keys],
        scale,
        width,
        finished,
    )


def _mine(
    pictures: Iterable[Examples], miners: Sequence[Miner], scale: float, go_on: Callable[[], bool]
) -> tuple[int, bool]:
    """One round through the pictures: how many hard negatives it added, and whether it came to its end."""
    added, rows = 0, 0
    for examples in pictures:
        if not go_on():
            return added, False
        features = examples.features.astype(np.float32, copy=False) * np.float32(scale)
        for k, miner in enumerate(miners):
            chosen = np.flatnonzero(examples.is_negative[:, k])
            added += miner.add(features[chosen], rows + chosen)
        rows += len(features)
    return added, True


def _joined(parts: Sequence[np.ndarray], width: int) -> np.ndarray:
    """(N, F) float32, also of no parts."""
    return np.concatenate([np.zeros((0, width), dtype=np.float32), *parts])
