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
    def ap(self) -> float:
        """What "best" goes by: mask AP, or box AP without a mask head; 0 where nothing could be scored."""
        scores = self.evaluation.mask or self.evaluation.box
        return scores.ap or 0.0

    def values(self) -> dict[str, float]:
        """For the log."""
        values = {f"loss_{name}": value for name, value in self.losses.items()}
        for kind, scores in (("box", self.evaluation.box), ("mask", self.evaluation.mask)):
            if scores is not None:
                values |= {f"{kind}_ap": scores.ap or 0.0, f"{kind}_ap50": scores.ap50 or 0.0}
        return values


def validate(model: MaskRCNN, dataset: Dataset, loss: LossConfig) -> Validation:
    """Score `model` on every picture of `dataset`; AP counts as many detections as the model gives."""
    limits = sorted({100, max(100, model.config.detection.max_detections)})
    predictor = Predictor(model, next(model.parameters()).device)
    evaluation = evaluate(predictor.predict, dataset, max_detections=limits)
    return Validation(validation_losses(model, dataset, loss), evaluation)


@torch.no_grad()
def validation_losses(model: MaskRCNN, dataset: Dataset, loss: LossConfig) -> dict[str, float]:
    """The losses of learning, measured as when detecting: whole pictures, norms fixed."""
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
    return subset(dataset, np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist())
