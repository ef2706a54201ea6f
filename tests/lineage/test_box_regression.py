"""Ridge regression against scikit-learn, numpy and an exact case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.lineage.box_regression import MEAN_NORM, BoxRegressors, RidgeSums
from maskrcnn.ops.box_coder import BoxCoder


def _pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Proposals (count, 4) and objects (count, 4) near them."""
    corners = torch.rand(count, 2, generator=generator) * 100
    sides = torch.rand(count, 2, generator=generator) * 60 + 10
    proposals = torch.cat([corners, corners + sides], dim=1)
    return proposals, proposals + torch.randn(count, 4, generator=generator) * 3


def _deltas(proposals: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
    """Appendix C, equations 6 to 9, word by word."""
    (px, py, pw, ph), (gx, gy, gw, gh) = (
        ((b[:, 0] + b[:, 2]) / 2, (b[:, 1] + b[:, 3]) / 2, b[:, 2] - b[:, 0], b[:, 3] - b[:, 1])
        for b in (proposals, gt_boxes)
    )
    return np.stack([(gx - px) / pw, (gy - py) / ph, np.log(gw / pw), np.log(gh / ph)], axis=1)


def test_equals_ridge_of_scikit_learn_and_numpy() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(3)
    features = torch.rand(90, 12, generator=generator) * 4 + 1  # far from centred, as after a ReLU
    proposals, gt_boxes = _pairs(90, generator)
    labels = torch.randint(1, 3, (90,), generator=generator)
    sums = RidgeSums(12, 2)
    for some in torch.arange(90).split(17):  # as pictures come
        sums.add(features[some], proposals[some], gt_boxes[some], labels[some])
    found = sums.solve(ridge=1000.0)

    x = features.double().numpy()
    scale = MEAN_NORM / np.linalg.norm(x, axis=1).mean()
    y = _deltas(proposals.double().numpy(), gt_boxes.double().numpy())
    for k in (0, 1):
        mine = (labels == k + 1).numpy()
        peer = linear_model.Ridge(alpha=1000.0).fit(x[mine] * scale, y[mine])
        np.testing.assert_allclose(found.weights[k].numpy(), peer.coef_.T * scale, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(found.offsets[k].numpy(), peer.intercept_, rtol=1e-4, atol=1e-7)
        # the normal equations, with a column of ones that is not held back
        ones = np.hstack([x[mine] * scale, np.ones((mine.sum(), 1))])
        held = np.diag([1000.0] * 12 + [0.0])
        solution = np.linalg.solve(ones.T @ ones + held, ones.T @ y[mine])
        np.testing.assert_allclose(found.weights[k].numpy(), solution[:-1] * scale, rtol=1e-4, atol=1e-7)


def test_boxes_reach_their_objects_where_features_tell_the_way() -> None:
    """Features that are the deltas: with hardly any ridge every proposal lands on its object."""
    generator = torch.Generator().manual_seed(1)
    proposals, gt_boxes = _pairs(40, generator)
    features = BoxCoder().encode(proposals, gt_boxes)
    sums = RidgeSums(4, 1)
    sums.add(features, proposals, gt_boxes, torch.ones(40, dtype=torch.int64))
    moved = sums.solve(ridge=1e-6).moved(features, proposals)
    torch.testing.assert_close(moved[:, 0], gt_boxes, atol=1e-2, rtol=0)


def test_a_class_without_pairs_leaves_boxes_where_they_are() -> None:
    generator = torch.Generator().manual_seed(2)
    proposals, gt_boxes = _pairs(30, generator)
    features = torch.rand(30, 5, generator=generator)
    sums = RidgeSums(5, 3)
    sums.add(features, proposals, gt_boxes, torch.full((30,), 2))
    moved = sums.solve().moved(features, proposals)
    assert sums.pairs.tolist() == [0, 30, 0]
    torch.testing.assert_close(moved[:, 0], proposals)
    torch.testing.assert_close(moved[:, 2], proposals)
    assert (moved[:, 1] - proposals).abs().max() > 0.1


def test_no_pairs_at_all_and_no_proposals() -> None:
    sums = RidgeSums(5, 2)
    sums.add(torch.zeros(0, 5), torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    regressors = sums.solve()
    assert isinstance(regressors, BoxRegressors)
    assert regressors.moved(torch.zeros(0, 5), torch.zeros(0, 4)).shape == (0, 2, 4)
    boxes = torch.tensor([[1.0, 2.0, 11.0, 32.0]])
    torch.testing.assert_close(regressors.moved(torch.ones(1, 5), boxes)[0], boxes.expand(2, 4))
