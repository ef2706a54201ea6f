"""Features brought to one centre and one spread before SVMs learn from them, and SVMs brought back to features as such.

    P regions    F features    K classes

Features after a ReLU have a large common part, and what tells classes apart is small beside it: an SVM with short
weights never gets at it. The paper's 4096 features of fc7 are sparse, and did without.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn.lineage.svm import LinearSVMs

LEAST_SPREAD = 1e-3  # a feature that hardly changes is not blown up


@dataclass(frozen=True)
class Standard:
    """mean, spread: (F,) float32 over all regions; spread is the standard deviation, `LEAST_SPREAD` at least."""

    mean: Tensor
    spread: Tensor

    def applied(self, features: Tensor) -> Tensor:
        """(P, F) with mean 0 and spread 1 over the regions that this was made from."""
        return (features - self.mean) / self.spread

    def undone(self, svms: LinearSVMs) -> LinearSVMs:
        """SVMs that give for features what `svms` give for `applied(features)`."""
        weights = svms.weights.double() / self.spread.double()
        shift = svms.scale * (weights @ self.mean.double())
        return LinearSVMs(weights.float(), (svms.biases.double() - shift).float(), svms.scale)


def standard_of(pictures: Iterable[Tensor], num_features: int) -> Standard:
    """Of the features (P, F) of pictures, one at a time. Without any, nothing is changed."""
    count, total, squares = 0, torch.zeros(num_features).double(), torch.zeros(num_features).double()
    for features in pictures:
        count += len(features)
        total += features.double().sum(dim=0)
        squares += features.double().square().sum(dim=0)
    if count == 0:
        return Standard(torch.zeros(num_features), torch.ones(num_features))
    mean = total / count
    spread = (squares / count - mean.square()).clamp(min=0).sqrt()
    return Standard(mean.float(), spread.float().clamp(min=LEAST_SPREAD))
