"""Linear SVMs with hard negative mining: what they learn in streams, against scikit-learn on everything at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from maskrcnn.lineage.svm import (
    NEVER,
    Examples,
    LinearSVMs,
    Miner,
    SVMConfig,
    scores_from_margins,
    train_svms,
)

NAMES = ("cat", "dog", "cow")
CONFIG = SVMConfig(retrain_after=50, start_per_picture=2, max_iterations=200_000)


def pictures(count: int = 20, rows: int = 40, width: int = 12, seed: int = 0) -> list[Examples]:
    """Features about one centre for each class, 0 being background; classes overlap a little."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, width)) * 1.5
    shown = []
    for _ in range(count):
        labels = rng.choice(4, rows, p=(0.7, 0.1, 0.1, 0.1))
        features = (centres[labels] + rng.normal(size=(rows, width))).astype(np.float32)
        is_positive = labels[:, None] == np.arange(1, 4)
        shown.append(Examples(features, is_positive, ~is_positive))
    return shown


def together(shown: list[Examples], k: int) -> tuple[np.ndarray, np.ndarray]:
    features = np.concatenate([examples.features for examples in shown])
    return features, np.concatenate([examples.is_positive[:, k] for examples in shown])


def of_scikit_learn(features: np.ndarray, labels: np.ndarray, config: SVMConfig) -> np.ndarray:
    """Margins of an SVM that saw everything at once."""
    solver = LinearSVC(
        loss="hinge",
        C=config.c,
        class_weight={1: config.positive_weight},
        intercept_scaling=config.bias_scale,
        max_iter=config.max_iterations,
        random_state=0,
        tol=1e-6,
    )
    solver.fit(features, labels.astype(int))
    return np.asarray(solver.decision_function(features))


def test_mining_until_nothing_is_hard_learns_what_seeing_everything_at_once_does() -> None:
    shown = pictures()
    trained = train_svms(lambda: shown, NAMES, CONFIG, passes=10)
    assert trained.finished and trained.notes == ()
    for k in range(3):
        features, labels = together(shown, k)
        expected = of_scikit_learn(features * trained.svms.scale, labels, CONFIG)
        found = trained.svms.scores(torch.from_numpy(features))[:, k].numpy()
        assert np.abs(found - expected).max() < 0.02
        clear = np.abs(expected) > 0.02
        assert ((found > 0) == (expected > 0))[clear].all() and clear.mean() > 0.9
        assert trained.hard[k] < (~labels).sum() / 2  # most negatives were never kept


def test_one_pass_is_nearly_there() -> None:
    shown = pictures(count=40)
    trained = train_svms(lambda: shown, NAMES, CONFIG)
    for k in range(3):
        features, labels = together(shown, k)
        expected = of_scikit_learn(features * trained.svms.scale, labels, CONFIG)
        found = trained.svms.scores(torch.from_numpy(features))[:, k].numpy()
        assert ((found > 0) == (expected > 0)).mean() > 0.98


def test_mining_finds_the_hard_ones_that_the_start_lacks() -> None:
    """A small cluster of negatives beside the positives: rare enough that a few random ones miss it."""
    rng = np.random.default_rng(3)
    shown = []
    for _ in range(20):
        easy = rng.normal(size=(100, 4)) - [6, 0, 0, 0]
        hard = rng.normal(size=(1, 4)) * 0.3 + [2, 3, 0, 0]
        positive = rng.normal(size=(3, 4)) * 0.3 + [2, 0, 0, 0]
        is_positive = (np.arange(104) >= 101)[:, None]
        shown.append(Examples(np.concatenate([easy, hard, positive]).astype(np.float32), is_positive, ~is_positive))
    config = replace(CONFIG, c=1.0, retrain_after=5, start_most=5)
    mined = train_svms(lambda: shown, ["cat"], config).svms
    unmined = train_svms(lambda: shown, ["cat"], config, passes=0).svms
    hard_ones = torch.from_numpy(np.stack([examples.features[100] for examples in shown]))
    assert (mined.scores(hard_ones) < 0).all()
    assert (unmined.scores(hard_ones) > 0).any()


def test_scale_gives_features_the_mean_norm() -> None:
    shown = pictures(5)
    svms = train_svms(lambda: shown, NAMES, CONFIG).svms
    norms = np.linalg.norm(np.concatenate([examples.features for examples in shown]), axis=1)
    assert svms.scale * norms.mean() == pytest.approx(20, rel=1e-5)


def test_rows_that_are_neither_are_not_used() -> None:
    shown = pictures(6)
    spoilt = []
    for examples in shown:
        wild = np.full((5, 12), 3.0, dtype=np.float32)
        nothing = np.zeros((5, 3), dtype=bool)
        spoilt.append(
            Examples(
                np.concatenate([examples.features, wild]),
                np.concatenate([examples.is_positive, nothing]),
                np.concatenate([examples.is_negative, nothing]),
            )
        )
    config = replace(CONFIG, start_per_picture=1000, start_most=10_000)
    plain, other = (train_svms(lambda s=s: s, NAMES, config).svms for s in (shown, spoilt))
    assert plain.scale != other.scale
    # the same examples at another scale: equal as soon as C is
    same = replace(config, mean_norm=config.mean_norm * plain.scale / other.scale)
    again = train_svms(lambda: spoilt, NAMES, same).svms
    assert again.scale == pytest.approx(plain.scale, rel=1e-6)
    assert torch.allclose(again.weights, plain.weights, atol=1e-4)


def test_a_class_without_positives_never_fires() -> None:
    shown = [replace(e, is_positive=e.is_positive & [True, False, True]) for e in pictures(4)]
    trained = train_svms(lambda: shown, NAMES, CONFIG)
    assert trained.notes == ("class 'dog' has no positive example: its SVM never fires",)
    margins = trained.svms.scores(torch.from_numpy(shown[0].features))
    assert (margins[:, 1] == NEVER).all() and (scores_from_margins(margins)[:, 1] < 1e-40).all()
    assert margins[:, 0].max() > 0


def test_a_class_without_negatives_always_fires() -> None:
    shown = [replace(e, is_negative=e.is_negative & [True, True, False]) for e in pictures(4)]
    trained = train_svms(lambda: shown, NAMES, CONFIG)
    assert trained.notes == ("class 'cow' has no negative example: its SVM always fires",)
    assert (trained.svms.scores(torch.from_numpy(shown[0].features))[:, 2] == 1).all()


@pytest.mark.parametrize("shown", [[], [Examples(np.zeros((0, 7), np.float32), *np.zeros((2, 0, 3), bool))]])
def test_nothing_to_learn_from(shown: list[Examples]) -> None:
    trained = train_svms(lambda: shown, NAMES)
    assert len(trained.notes) == 3
    assert trained.svms.weights.shape == (3, 0) and trained.svms.scale == 1
    assert trained.svms.biases.tolist() == [NEVER] * 3


def test_pictures_without_proposals_are_passed_over() -> None:
    shown = pictures(6)
    empty = Examples(np.zeros((0, 12), np.float32), *np.zeros((2, 0, 3), bool))
    plain = train_svms(lambda: shown, NAMES, CONFIG).svms
    mixed = train_svms(lambda: [empty, *shown[:3], empty, *shown[3:]], NAMES, CONFIG).svms
    assert torch.equal(plain.weights, mixed.weights) and torch.equal(plain.biases, mixed.biases)


@pytest.mark.parametrize("allowed", [0, 3, 23])
def test_time_that_is_up_ends_it_between_pictures(allowed: int) -> None:
    shown = pictures(20)
    asked: list[int] = []
    seen = 0

    def stream() -> Iterator[Examples]:
        nonlocal seen
        for examples in shown:
            seen += 1
            yield examples

    def go_on() -> bool:
        asked.append(1)
        return len(asked) <= allowed

    trained = train_svms(stream, NAMES, CONFIG, go_on=go_on)
    assert not trained.finished and "time was up" in trained.notes[-1]
    assert seen == allowed + 1  # the one that came when time was up was not learned from
    assert (trained.svms.weights.abs().sum(dim=1) > 0).all() == (allowed > 0)


def test_no_negative_is_kept_twice() -> None:
    rng = np.random.default_rng(0)
    positives = rng.normal(size=(10, 3)).astype(np.float32)
    hard = rng.normal(size=(8, 3)).astype(np.float32)  # among the positives
    config = replace(CONFIG, retrain_after=3)
    miner = Miner(positives, hard[:2], np.arange(2), config)
    for _ in range(3):
        miner.add(hard, np.arange(8))
    assert len(miner) <= 8
    assert miner.add(hard, np.arange(8)) == 0


def test_easy_negatives_are_dropped() -> None:
    positives = np.tile(np.array([[1.0, 0.0]], np.float32), (20, 1)) * 20
    easy = np.tile(np.array([[-5.0, 0.0]], np.float32), (20, 1)) * 20
    miner = Miner(positives, easy, np.arange(20), replace(CONFIG, c=1.0))
    near = np.tile(np.array([[0.9, 0.1]], np.float32), (4, 1)) * 20
    assert miner.add(near, np.arange(100, 104)) == 4
    miner.finish()
    assert miner.margins(easy).max() < -1.2 and len(miner) == 4


def test_scores_keep_the_order() -> None:
    margins = torch.linspace(-10, 10, 101)
    scores = scores_from_margins(margins)
    assert (scores.diff() > 0).all() and 0 < scores.min() and scores.max() < 1 and scores[50] == 0.5


def test_the_same_each_time() -> None:
    first, second = (train_svms(lambda: pictures(6), NAMES, CONFIG).svms for _ in range(2))
    assert torch.equal(first.weights, second.weights) and torch.equal(first.biases, second.biases)


def test_scores_are_those_of_float64() -> None:
    svms, features = LinearSVMs(torch.randn(3, 5), torch.randn(3), 0.25), torch.randn(4, 5)
    expected = (features.double() * 0.25) @ svms.weights.double().T + svms.biases.double()
    assert torch.allclose(svms.scores(features).double(), expected, atol=1e-5)
