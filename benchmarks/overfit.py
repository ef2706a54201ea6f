"""Learn two photographs by heart, from scratch: is every part of the learning lane connected?

    python benchmarks/overfit.py --data DATA/coco128 --preset r50-fpn --steps 300

Prints box and mask AP on the same two pictures, and the mask AP of the ground truth itself after its way through
M x M (cropped into its boxes and pasted back), which bounds what any such detector can reach.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import maskrcnn
from maskrcnn.data.dataset import Dataset, subset
from maskrcnn.data.loader import TrainLoader
from maskrcnn.data.transforms import ResizeShortest
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.losses.box_loss import BoxLossConfig
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import from_scratch, preset
from maskrcnn.ops.masks import crop_masks
from maskrcnn.predictor import Predictor
from maskrcnn.structures import Detections, Masks
from maskrcnn.training.checkpoint import Progress, TrainingState
from maskrcnn.training.distributed import World
from maskrcnn.training.loop import step_once
from maskrcnn.training.optim import make_optimizer, rate_factor, set_rate
from maskrcnn.training.precision import fastest_precision
from maskrcnn.training.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.path.join(os.environ.get("MASKRCNN_TEST_DATA", "."), "coco128"))
    parser.add_argument("--preset", default="r50-fpn")
    parser.add_argument("--pictures", type=int, nargs=2, help="positions; default: the first two with 3 to 8 objects")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--shortest", type=int, default=256, help="shorter side in px")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of AdamW")
    parser.add_argument("--rois", type=int, default=128, help="RoIs sampled of a picture; at most half are foreground")
    parser.add_argument("--out", type=Path, default=None, help="folder for pictures of the result")
    options = parser.parse_args()
    everything = maskrcnn.open_dataset(options.data)
    dataset = subset(everything, options.pictures or _two_with_some_objects(everything))
    names, counts = zip(*((Path(dataset.path(i)).name, len(dataset.target(i))) for i in range(2)), strict=True)
    print(f"pictures {names}, {counts} objects")
    model = learn(dataset, options.preset, options.steps, options.shortest, options.rate, options.rois)
    predictor = Predictor(model, "cpu")
    # both in one batch, as they were learned: group norm counts the padding that the smaller one then has
    scores = evaluate(partial(predictor.predict, batch_size=2), dataset, max_detections=(100,))
    side = model.config.mask_head.side
    kept = truth_through_masks(dataset, side)
    assert scores.mask is not None
    print(f"box AP {scores.box.ap:.3f}, mask AP {scores.mask.ap:.3f}")
    print(f"mask AP of the truth through {side} x {side}: {kept:.3f}; ratio {scores.mask.ap / kept:.3f}")
    if options.out:
        from maskrcnn.training.report import draw_pictures

        draw_pictures(options.out, predictor, dataset, 2)


def learn(dataset: Dataset, name: str, steps: int, shortest: int, rate: float, rois: int) -> MaskRCNN:
    """Plain steps on the two pictures, always the same; prints a line now and then.

    Of 512 RoIs, as the papers sample them, a handful would belong to two pictures' objects, and the loss of boxes, a
    mean over all RoIs, would hardly pull; fewer RoIs make the same net learn the same in fewer steps.
    """
    torch.manual_seed(0)
    config = _sized(from_scratch(preset(name, dataset.classes.names, dataset.classes.category_ids)), shortest)
    model = MaskRCNN(config).to(memory_format=torch.channels_last)
    precision = fastest_precision(torch.device("cpu"))
    size = {"batch_size": 2, "reference_batch": 2}
    loss = LossConfig(box=BoxLossConfig(rois_per_image=rois, foreground_fraction=0.5))
    recipe = Recipe(steps=steps, optimizer="adamw", learning_rate=rate, precision=precision, loss=loss, **size)
    state = TrainingState(model, make_optimizer(model, recipe), None, Progress())
    loss_model, began = MaskRCNNLoss(model, recipe.loss), time.monotonic()
    loader = TrainLoader(dataset, ResizeShortest((shortest,), 1333), 2, 0)
    for step, batch in zip(range(steps), loader.batches(), strict=False):
        set_rate(state.optimizer, rate * rate_factor(step / steps, recipe))
        losses = step_once(loss_model, state, batch, recipe, World())
        if step % 25 == 0 or step == steps - 1:
            shown = " ".join(f"{key} {float(value):.3f}" for key, value in losses.items())
            print(f"step {step} {time.monotonic() - began:.0f} s {shown}", flush=True)
    return model.eval()


def truth_through_masks(dataset: Dataset, side: int) -> float:
    """Mask AP of the ground truth after cropping into its own boxes at side x side and pasting back."""

    def detect(pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
        for i, _ in enumerate(pictures):
            target = dataset.target(i)
            assert target.gt_masks is not None
            masks = crop_masks(target.gt_masks, target.gt_boxes, torch.arange(len(target)), side)
            names = dataset.classes.names
            ids = dataset.classes.category_ids
            labels = target.gt_labels.tolist()
            yield Detections(
                boxes=target.gt_boxes,
                scores=torch.ones(len(target)),
                labels=target.gt_labels,
                names=tuple(names[k - 1] for k in labels),
                category_ids=tuple(ids[k - 1] for k in labels),
                masks=Masks(masks, target.gt_boxes, target.size),
                size=target.size,
            )

    mask = evaluate(detect, dataset, max_detections=(100,)).mask
    assert mask is not None and mask.ap is not None
    return mask.ap


def _two_with_some_objects(dataset: Dataset) -> list[int]:
    fits = [i for i in range(len(dataset)) if 3 <= len(dataset.target(i)) <= 8 and not dataset.target(i).is_crowd.any()]
    return fits[:2]


def _sized(config: MaskRCNNConfig, shortest: int) -> MaskRCNNConfig:
    return replace(config, preprocess=replace(config.preprocess, shortest=shortest, scale=None))


if __name__ == "__main__":
    main()
