"""The validations of a run: losses and AP on pictures that it does not learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskrcnn.data.dataset import Dataset, subset
from maskrcnn.data.transforms import moved
from maskrcnn.evaluation.evaluate import Evaluation, evaluate
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.predictor import Predictor
from maskrcnn.training.loop import target_on


@dataclass(frozen=True)
class Validation:
    """losses: mean over pictures, by name. evaluation: box and mask AP."""

    losses: dict[str, float]
    evaluation: Evaluation

    @property
    def ap(self) -> float | None:
        """What "best" goes by: AP of masks, without those of keypoints, or of boxes; None where there is no object."""
        return (self.evaluation.mask or self.evaluation.keypoint or self.evaluation.box).ap

    def values(self) -> dict[str, float]:
        """For the log. Detections count up to the most that the model gives."""
        values = {f"loss_{name}": value for name, value in self.losses.items()}
        evaluation = self.evaluation
        kinds = {"mask": evaluation.mask, "keypoint": evaluation.keypoint, "box": evaluation.box}
        for kind, scores in kinds.items():
            if scores is not None:
                averages = {f"{kind}_ap": scores.ap, f"{kind}_ap50": scores.ap50}
                values |= {name: value for name, value in averages.items() if value is not None}
        return values


def score(predictor: Predictor, dataset: Dataset) -> Evaluation:
    """AP at 100, at 300, and at as many detections as the model gives where that is more."""
    limit = predictor.model.config.detection.max_detections
    return evaluate(predictor.predict, dataset, max_detections=sorted({100, 300, max(100, limit)}))


@torch.no_grad()
def validation_losses(model: MaskRCNN, dataset: Dataset, loss: LossConfig) -> dict[str, float]:
    """The losses of learning, measured as when detecting: whole pictures one by one, norms fixed; their means.

    With several processes, call it in all of them: the losses count anchors and RoIs over all ranks.
    """
    loss_model = MaskRCNNLoss(model.eval(), loss)
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    for i in range(len(dataset)):
        picture, target = dataset[i]
        batch = model.preprocess([torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).to(device)])
        height, width = (int(side) for side in batch.image_sizes[0].tolist())
        affine = np.diag([width / target.size[1], height / target.size[0], 1.0])[:2]
        target = target_on(moved(target, affine, (height, width)), device)
        for name, value in loss_model(batch, [target]).items():
            sums[name] = sums.get(name, 0) + value / len(dataset)
    return {name: float(value) for name, value in sums.items()}


def spread(dataset: Dataset, count: int | None) -> Dataset:
    """At most `count` pictures, evenly spread over the data set."""
    if count is None or count >= len(dataset):
        return dataset
    return subset(dataset, places(len(dataset), count))


def places(length: int, count: int) -> list[int]:
    """At most `count` positions of 0..length-1, evenly spread."""
    chosen: list[int] = np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()
    return chosen
