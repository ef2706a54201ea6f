"""Box regression after the classifier: from the features of a proposal to where its object lies (R-CNN's last stage).

    P proposals    M pairs of a proposal and its object    F features    K classes    boxes: (x1, y1, x2, y2), float px

Girshick et al. 2014, appendix C: for each class and each of (dx, dy, dw, dh) a linear function of the features, by
ridge regression in closed form. It is learned apart from all else; Fast R-CNN made it one of the network's own losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn.ops.box_coder import BoxCoder

RIDGE = 1000.0  # lambda, for features of this norm:
MEAN_NORM = 20.0  # on average, to which R-CNN's code scales them
CODER = BoxCoder()  # the paper's targets are deltas with weights of one


@dataclass(frozen=True)
class BoxRegressors:
    """deltas = features @ weights + offsets. weights: (K, F, 4) float32. offsets: (K, 4) float32. Zero: stay."""

    weights: Tensor
    offsets: Tensor

    def moved(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (P, K, 4): each of `boxes` (P, 4) moved as each class would have it, by its `features` (P, F)."""
        deltas = torch.einsum("pf,kfd->pkd", features, self.weights) + self.offsets
        return CODER.decode(deltas, boxes[:, None])


class RidgeSums:
    """Sums over pairs, from which the regressors follow: pictures come one at a time, none is kept.

    All sums are float64: features have a large common part, and squares of it are subtracted from one another.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        self.pairs = torch.zeros(num_classes, dtype=torch.float64)
        self._norms = 0.0  # summed over all pairs
        self._x = torch.zeros(num_classes, num_features, dtype=torch.float64)
        self._y = torch.zeros(num_classes, 4, dtype=torch.float64)
        self._xx = torch.zeros(num_classes, num_features, num_features, dtype=torch.float64)
        self._xy = torch.zeros(num_classes, num_features, 4, dtype=torch.float64)

    def add(self, features: Tensor, proposals: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> None:
        """M pairs: features (M, F) of proposals (M, 4), and their objects' boxes (M, 4) and labels (M,) in 1..K."""
        self._norms += float(features.double().norm(dim=1).sum())
        x, y = features.double(), CODER.encode(proposals.double(), gt_boxes.double())
        for label in torch.unique(gt_labels).tolist():
            xs, ys, k = x[gt_labels == label], y[gt_labels == label], label - 1
            self.pairs[k] += len(xs)
            self._x[k] += xs.sum(dim=0)
            self._y[k] += ys.sum(dim=0)
            self._xx[k] += xs.T @ xs
            self._xy[k] += xs.T @ ys

    def solve(self, ridge: float = RIDGE) -> BoxRegressors:
        """The weights that make sum |y - s x w - b|^2 + ridge |w|^2 least, s w in place of w.

        s scales features to `MEAN_NORM`. b is not held back: a shift that all objects share costs nothing. A class
        without pairs leaves boxes where they are.
        """
        scale = MEAN_NORM * float(self.pairs.sum()) / self._norms if self._norms else 1.0
        weights, offsets = torch.zeros_like(self._xy), torch.zeros_like(self._y)
        for k in self.pairs.nonzero().squeeze(1).tolist():
            count, mean_x, mean_y = self.pairs[k], self._x[k] * scale / self.pairs[k], self._y[k] / self.pairs[k]
            xx = self._xx[k] * scale**2 - count * torch.outer(mean_x, mean_x)
            xy = self._xy[k] * scale - count * torch.outer(mean_x, mean_y)
            weights[k] = torch.linalg.solve(xx + ridge * torch.eye(len(mean_x), dtype=xx.dtype), xy) * scale
            offsets[k] = mean_y - mean_x @ weights[k] / scale
        return BoxRegressors(weights.float(), offsets.float())
