"""A step of training, forward to optimizer, against torchvision's: same weights, same pictures, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.engine.memory import freed_memory_kept
from maskrcnn.losses.mask_rcnn_loss import MaskRCNNLoss, torchvision_loss
from maskrcnn.ops import rle
from maskrcnn.ops.masks import rasterise
from maskrcnn.structures import Target
from maskrcnn.training.distributed import World
from maskrcnn.training.loop import step_once
from maskrcnn.training.recipe import Recipe
from maskrcnn.training.start import starting_state
from maskrcnn.weights.torchvision import load_torchvision

Precision = Literal["float32", "bf16"]
Norm = Literal["frozen", "batch"]

_RATE, _MOMENTUM, _DECAY = 1e-4, 0.9, 1e-4  # so low a rate that all steps see nearly the same weights
_CLASSES = 91  # torchvision's count, background included
_FOREGROUND_IOU = 0.2  # so low that random proposals too fill the quarter of RoIs that is kept for objects


@dataclass(frozen=True)
class StepRow:
    """One way to make a step.

    seconds: median of the timed steps. ratio: torchvision's float32 seconds over these. total: the sum of the five
    losses in the first step, and mask_rois: the RoIs that masks were learned from in it, so that one sees equal work.
    """

    name: str
    seconds: float
    ratio: float
    total: float
    mask_rois: int


def training_step(
    *,
    size: int = 512,
    batch: int = 2,
    rois: int = 512,
    steps: int = 5,
    norm: Norm = "frozen",
    precisions: Sequence[Precision] = (),
) -> list[StepRow]:
    """Time whole steps of Mask R-CNN with ResNet-50 and FPN: forward, backward, clipping (ours), SGD with momentum.

    Both sides learn from 256 sampled anchors and `rois` RoIs of each picture, a quarter of them objects, at 2000
    proposals; torchvision's defaults. Its side is the loop that people write around it. Ours is `step_once` of the
    training loop with a recipe of the same numbers.

    size: px, of square pictures with up to 12 drawn shapes. steps: timed, after one that is not. norm: "frozen" as in
    fine-tuning, with stem and c2 fixed; "batch" as torchvision trains from nothing. precisions: of ours; all if empty.
    """
    samples = [ShapesDataset(batch, (size, size), seed=5)[i] for i in range(batch)]
    peer = _peer(size, norm, rois, samples[0][0])
    state = {name: tensor.clone() for name, tensor in peer.state_dict().items()}
    ways: dict[str, Callable[[], tuple[float, int]]] = {"torchvision float32": _peer_step(peer, samples, "float32")}
    other = _peer(size, norm, rois, samples[0][0])
    other.load_state_dict(state)
    ways["torchvision bf16 autocast"] = _peer_step(other, samples, "bf16")
    for precision in precisions or ("float32", "bf16"):
        ways[f"maskrcnn {precision}"] = _our_step(state, norm, rois, samples, precision)
    with freed_memory_kept():
        first = {name: step() for name, step in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(steps):
            for name, step in ways.items():
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    base = medians["torchvision float32"]
    return [StepRow(name, medians[name], base / medians[name], *first[name]) for name in ways]


def _peer(size: int, norm: Norm, rois: int, picture: np.ndarray) -> Any:
    """Torchvision's detector with random weights, and statistics of norms that fit them."""
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": _CLASSES, "min_size": size, "max_size": size}
    options |= {"box_fg_iou_thresh": _FOREGROUND_IOU, "box_bg_iou_thresh": _FOREGROUND_IOU}
    options |= {"box_batch_size_per_image": rois}
    peer = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **options)
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        peer.backbone(peer.transform([_pixels(picture)])[0].tensors)
    if norm == "batch":
        return peer
    frozen = detection.MaskRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), **options)
    frozen.load_state_dict({name: t for name, t in peer.state_dict().items() if "num_batches" not in name})
    return frozen


def _peer_step(
    peer: Any, samples: Sequence[tuple[np.ndarray, Target]], precision: Precision
) -> Callable[[], tuple[float, int]]:
    images = [_pixels(picture) for picture, _ in samples]
    targets = [_peer_target(target) for _, target in samples]
    learning = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=_RATE, momentum=_MOMENTUM, weight_decay=_DECAY)
    counts = _count_rows(peer.roi_heads.mask_head)
    peer.train()

    def step() -> tuple[float, int]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = peer(images, targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        return total.item(), counts[-1]

    return step


def _our_step(
    state: dict[str, Tensor], norm: Norm, rois: int, samples: Sequence[tuple[np.ndarray, Target]], precision: Precision
) -> Callable[[], tuple[float, int]]:
    losses = torchvision_loss()
    recipe = Recipe(
        batch_size=len(samples),
        reference_batch=len(samples),
        learning_rate=_RATE,
        momentum=_MOMENTUM,
        weight_decay=_DECAY,
        precision=precision,
        loss=replace(losses, box=replace(losses.box, rois_per_image=rois, foreground_iou=_FOREGROUND_IOU)),
    )
    model = load_torchvision(state)
    size = samples[0][1].size[0]
    model.preprocess.config = replace(model.preprocess.config, shortest=size, longest=size)
    world = World()
    training = starting_state(model, replace(recipe, freeze=2 if norm == "frozen" else 0), world, [])
    loss_model = MaskRCNNLoss(model, recipe.loss)
    batch = [(torch.from_numpy(picture).permute(2, 0, 1), target) for picture, target in samples]
    assert model.mask_head is not None
    counts = _count_rows(model.mask_head)

    def step() -> tuple[float, int]:
        values = step_once(loss_model, training, batch, recipe, world)
        training.progress.step += 1
        return float(values["total"]), counts[-1]

    return step


def _count_rows(head: nn.Module) -> list[int]:
    """Filled with the number of RoIs of each call of `head`."""
    counts: list[int] = []
    head.register_forward_pre_hook(lambda module, inputs: counts.append(inputs[0].shape[0]))
    return counts


def _pixels(picture: np.ndarray) -> Tensor:
    """(3, H, W) float32 in 0..1, as torchvision takes it."""
    return torch.from_numpy(picture).permute(2, 0, 1) / 255


def _peer_target(target: Target) -> dict[str, Tensor]:
    """Boxes, labels and full-size bitmaps."""
    assert target.gt_masks is not None
    bitmaps = [torch.from_numpy(rle.decode(mask)) for mask in rasterise(target.gt_masks, target.size)]
    return {"boxes": target.gt_boxes, "labels": target.gt_labels, "masks": torch.stack(bitmaps).to(torch.uint8)}
