"""R-CNN's network learns from warped regions: the first of its trainings, before SVMs and box regression.

Girshick et al. 2014, 2.3: a softmax over K + 1 classes, mini-batches of 32 regions on an object and 96 on background.

    R regions of a picture    S side of a region
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.loader import SampleOrder
from maskrcnn.errors import InputError
from maskrcnn.lineage.region_net import RegionNet
from maskrcnn.lineage.regions import Regions, tuning_labels
from maskrcnn.lineage.warp import warp
from maskrcnn.losses.matcher import FOREGROUND, IGNORE
from maskrcnn.losses.sampler import sample
from maskrcnn.training.loop import learning_mode
from maskrcnn.training.optim import Average, make_optimizer, peak_rate, rate_factor, set_rate
from maskrcnn.training.recipe import Augmentation, Recipe

ON_OBJECTS, ON_BACKGROUND = 32, 96  # regions of a mini-batch
# pictures that a mini-batch is drawn from. The paper draws from all of them, which reads 128 pictures for 128 regions;
# Fast R-CNN went down to 2, and says why (Girshick 2015, 2.3)
PICTURES = 16
_HELD = 512 * 2**20  # bytes of decoded pictures that stay in memory


@dataclass(frozen=True)
class Tuned:
    """net: the averaged weights, in evaluation mode. steps: of the optimizer. loss: mean over the last tenth."""

    net: RegionNet
    steps: int
    loss: float


def fine_tune(
    net: RegionNet,
    dataset: Dataset,
    regions: Sequence[Regions],
    recipe: Recipe,
    progress: Callable[[float], None] = lambda done: None,
) -> Tuned:
    """Train `net`, on its device, for `recipe.minutes`, or for `recipe.steps` where those are given and come first.

    regions: of each picture of `dataset`. The recipe gives optimizer, rate, average, precision ("float32" or "bf16")
    and which mirror images and turns; its batch sizes are of pictures and are not used.

    Errors: `InputError` on a loss that is not finite.
    """
    batches = RegionBatches(dataset, regions, recipe, net)
    optimizer, average = make_optimizer(net, recipe), Average(net, recipe.ema)
    device = net.normalise.mean.device
    step, losses, began = 0, list[float](), time.monotonic()
    learning_mode(net)
    while batches.any and ((done := _part_done(recipe, step, time.monotonic() - began)) < 1 or not step):
        set_rate(optimizer, peak_rate(recipe) * rate_factor(done, recipe))
        pixels, labels = batches.batch(step)
        step += 1
        if len(labels) >= 2:  # of a single region batch norm may have nothing to learn
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits = net(pixels)
            loss = F.cross_entropy(logits, labels)
            losses.append(_finite(float(loss.detach()), step))
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(net, step)
        progress(min(1.0, _part_done(recipe, step, time.monotonic() - began)))
    assert isinstance(average.model, RegionNet)
    last = losses[-max(1, len(losses) // 10) :]
    return Tuned(average.model.eval(), step, sum(last) / max(1, len(last)))


class RegionBatches:
    """Mini-batches that follow from the seed and the number of the step alone.

    any: whether there is anything to learn from.
    """

    def __init__(self, dataset: Dataset, regions: Sequence[Regions], recipe: Recipe, net: RegionNet) -> None:
        self.dataset, self.regions, self.net = dataset, regions, net
        self.seed, self.augmentation = recipe.seed, recipe.augmentation
        self.labels = [tuning_labels(some) for some in regions]
        self.any = sum(int((labels != IGNORE).sum()) for labels in self.labels) >= 2
        self._order = SampleOrder(len(dataset), recipe.seed)
        self._held: dict[int, Tensor] = {}
        self._room = _HELD

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Regions (B, 3, S, S), on the network's device, and labels (B,), 0 background; B <= 128."""
        generator = torch.Generator().manual_seed(hash((self.seed, step)) % 2**63)
        pictures = self._pictures(step)
        rows = [self._boxes_and_labels(i) for i in pictures]
        labels = torch.cat([some for _, some in rows])
        kind = torch.where(labels > 0, FOREGROUND, labels)
        total = ON_OBJECTS + ON_BACKGROUND
        chosen = torch.zeros_like(labels, dtype=torch.bool)
        chosen[torch.cat(sample(kind, total, ON_OBJECTS / total, generator))] = True
        parts = torch.split(chosen, [len(some) for _, some in rows])
        pixels = [self._warped(i, boxes[part]) for i, (boxes, _), part in zip(pictures, rows, parts, strict=True)]
        regions = augmented(torch.cat(pixels), self.augmentation, generator)
        return regions, labels[chosen].to(regions.device)

    def _pictures(self, step: int) -> list[int]:
        """Positions of the step's pictures, each once: permutation after permutation of the data set."""
        count = len(self.dataset)
        places = range(step * PICTURES, step * PICTURES + PICTURES)
        return sorted({int(self._order.epoch(place // count)[place % count]) for place in places})

    def _boxes_and_labels(self, i: int) -> tuple[Tensor, Tensor]:
        return self.regions[i].boxes, self.labels[i]

    def _warped(self, i: int, boxes: Tensor) -> Tensor:
        if not len(boxes):
            side = self.net.config.warp.side
            return torch.zeros(0, 3, side, side, device=self.net.normalise.mean.device)
        picture = self.net.normalised(self._picture(i))
        return warp(picture, boxes.to(picture.device), self.net.config.warp)

    def _picture(self, i: int) -> Tensor:
        """(3, H, W) uint8. Nothing is thrown out for it: over permutations, what came first is as good as the last."""
        if i in self._held:
            return self._held[i]
        picture = torch.from_numpy(self.dataset.sample(i)[0].copy()).permute(2, 0, 1)
        if picture.nbytes <= self._room:
            self._room -= picture.nbytes
            self._held[i] = picture
        return picture


def augmented(regions: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Some regions (B, 3, S, S) as mirror images, upside down, or turned by a quarter, as often as is asked for.

    The paper mirrors left to right alone; the others are for pictures that have no up.
    """
    chances = torch.rand(3, len(regions), generator=generator).to(regions.device)[:, :, None, None, None]
    regions = torch.where(chances[0] < augmentation.flip, regions.flip(3), regions)
    regions = torch.where(chances[1] < augmentation.flip_vertical, regions.flip(2), regions)
    regions = torch.where(chances[2] < augmentation.turn, regions.transpose(2, 3), regions)
    return regions.contiguous(memory_format=torch.channels_last)


def _part_done(recipe: Recipe, steps: int, seconds: float) -> float:
    by_clock = seconds / (60 * recipe.minutes) if recipe.minutes is not None else 0.0
    return max(by_clock, steps / recipe.steps if recipe.steps is not None else 0.0)


def _finite(loss: float, step: int) -> float:
    if not torch.isfinite(torch.tensor(loss)):
        expected = "a lower learning rate, or precision float32"
        raise InputError(f"the loss is not finite at step {step} of fine-tuning", found=loss, expected=expected)
    return loss
