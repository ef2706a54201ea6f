"""Features at one centre and spread, there and back."""

from __future__ import annotations

import numpy as np
import torch

from maskrcnn.lineage.standardise import LEAST_SPREAD, standard_of
from maskrcnn.lineage.svm import LinearSVMs


def _features() -> torch.Tensor:
    """Of very different means and spreads, the last the same everywhere."""
    values = torch.randn(60, 5, dtype=torch.float64) * torch.tensor([0.01, 1.0, 3.0, 0.2, 0.0])
    return (values + torch.tensor([2.0, 0.0, 50.0, 1.0, 4.0])).float()


def test_equals_mean_and_standard_deviation_of_all_at_once() -> None:
    features = _features()
    found = standard_of(features.split(7), 5)
    np.testing.assert_allclose(found.mean.numpy(), features.double().numpy().mean(axis=0), rtol=1e-6, atol=1e-7)
    expected = np.maximum(features.double().numpy().std(axis=0), LEAST_SPREAD)
    np.testing.assert_allclose(found.spread.numpy(), expected, rtol=1e-4)
    applied = found.applied(features)
    np.testing.assert_allclose(applied.mean(dim=0).numpy(), 0, atol=1e-3)
    np.testing.assert_allclose(applied.std(dim=0, correction=0).numpy(), [1, 1, 1, 1, 0], atol=1e-3)


def test_undone_svms_give_the_same_margins_for_features_as_they_are() -> None:
    features = _features()
    standard = standard_of([features], 5)
    svms = LinearSVMs(torch.randn(3, 5), torch.tensor([0.5, -100.0, 0.0]), 1.7)
    expected = svms.scores(standard.applied(features))
    torch.testing.assert_close(standard.undone(svms).scores(features), expected, atol=2e-3, rtol=1e-4)


def test_an_svm_that_never_fires_still_does_not() -> None:
    features = _features()
    svms = LinearSVMs(torch.zeros(1, 5), torch.tensor([-100.0]), 1.0)
    undone = standard_of([features], 5).undone(svms)
    assert undone.scores(features).tolist() == [[-100.0]] * 60


def test_without_regions_nothing_is_changed() -> None:
    standard = standard_of([torch.zeros(0, 5)], 5)
    features = _features()
    assert torch.equal(standard.applied(features), features)
    assert torch.equal(standard_of([], 5).mean, torch.zeros(5))
