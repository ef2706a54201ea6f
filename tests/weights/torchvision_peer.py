"""A detector of torchvision with random weights beside the same weights here, and what each makes of pictures.

For the tests of parity and for `benchmarks/torchvision_stages.py`: detecting stage by stage, and one step of learning
on the same sampled anchors and RoIs.

Both sides round float32 differently, by about 1e-6, so two proposals whose scores or whose IoU differ from a limit by
less than that may change places: such pairs are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.losses.sampler import sample
from maskrcnn.model.box_head import select_detections
from maskrcnn.model.keypoint_head import COCO_PERSON
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.rpn import RPNOutputs, propose
from maskrcnn.ops import rle
from maskrcnn.ops.boxes import clip, iou, of_sizes
from maskrcnn.ops.nms import top_k
from maskrcnn.structures import DetectionBatch, GtKeypoints, GtMasks, ImageBatch, Proposals, RasterShape, Target
from maskrcnn.weights.torchvision import rename

AT_LIMIT = 1e-5  # two scores, or an IoU and its limit, that are nearer than this may fall on either side
SAME_BOX = 0.02  # px
LEVELS = {5: ("p2", "p3", "p4", "p5", "p6"), 3: ("p5a", "p5", "p6")}  # of a ResNet, of a MobileNet
LOSSES = {  # ours, theirs
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "box_class": "loss_classifier",
    "box_delta": "loss_box_reg",
    "mask": "loss_mask",
    "keypoint": "loss_keypoint",
}


# --- detecting, stage by stage ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """What one side made of a batch; lists hold one entry a picture. In the frame of the resized pictures."""

    pixels: Tensor
    sizes: list[tuple[int, int]]
    features: dict[str, Tensor]
    rpn: RPNOutputs
    proposals: list[Tensor]
    detections: list[dict[str, Tensor]]  # boxes, scores, labels, mask_logits


@torch.no_grad()
def steps_of_peer(peer: Any, images: list[Tensor]) -> Steps:
    kept: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: kept.update({name: output}))
        for name, module in (("rpn", peer.rpn.head), ("anchors", peer.rpn.anchor_generator))
    ]
    if peer.roi_heads.has_mask():
        logits = peer.roi_heads.mask_predictor
        hooks.append(logits.register_forward_hook(lambda module, inputs, output: kept.update(masks=output)))
    batch, _ = peer.eval().transform(images)
    features = peer.backbone(batch.tensors)
    proposals, _ = peer.rpn(batch, features)
    found, _ = peer.roi_heads(features, proposals, batch.image_sizes)
    for hook in hooks:
        hook.remove()
    if "masks" in kept:
        for entry, masks in zip(found, kept["masks"].split([len(entry["boxes"]) for entry in found]), strict=True):
            entry["mask_logits"] = masks[torch.arange(len(masks)), entry["labels"]]
    objectness, deltas = kept["rpn"]
    outputs = RPNOutputs(
        logits=[x.permute(0, 2, 3, 1).flatten(1) for x in objectness],
        deltas=[x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas],
        anchors=list(kept["anchors"][0].split([x[0].numel() for x in objectness])),
    )
    levels = dict(zip(LEVELS[len(features)], features.values(), strict=True))
    return Steps(batch.tensors, batch.image_sizes, levels, outputs, proposals, found)


@torch.no_grad()
def steps_of_ours(ours: MaskRCNN, images: list[Tensor]) -> Steps:
    batch = ours.preprocess(images)
    windows = of_sizes(batch.image_sizes)
    features = ours.features(batch.pixels)
    outputs = ours.rpn(features, tuple(batch.pixels.shape[2:]))
    proposals = propose(outputs, windows, ours.config.rpn)
    read, rois = ours.read_boxes(features, proposals, windows, drop_empty=True)
    found = select_detections(read, rois, windows, ours.box_head.coder, ours.config.detection)
    found = replace(found, mask_logits=ours.read_masks(features, found, drop_empty=True))
    sizes = [(int(height), int(width)) for height, width in batch.image_sizes]
    return Steps(batch.pixels, sizes, features, outputs, rows(proposals), entries(found))


def rows(proposals: Proposals) -> list[Tensor]:
    """The proposals of each picture, without what fills up the batch."""
    return [boxes[valid] for boxes, valid in zip(proposals.boxes, proposals.valid, strict=True)]


def entries(found: DetectionBatch) -> list[dict[str, Tensor]]:
    names = ("boxes", "scores", "labels") + (("mask_logits",) if found.mask_logits is not None else ())
    return [{name: getattr(found, name)[i][found.valid[i]] for name in names} for i in range(len(found.valid))]


# --- which belongs to which, and what could fall either way -----------------------------------------------------------


def matches(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (M,) and (M,) of the boxes that both have, corners at most `SAME_BOX` apart."""
    if not len(ours) or not len(theirs):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    apart = torch.cdist(ours.double(), theirs.double(), p=float("inf"))
    nearest = apart.argmin(1)
    both = (apart.amin(1) < SAME_BOX) & (apart.argmin(0)[nearest] == torch.arange(len(ours)))
    return both.nonzero().squeeze(1), nearest[both]


def matches_of_class(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The same for detections: boxes of different labels are not the same."""
    apart = [side["boxes"].double() + 1e5 * side["labels"][:, None] for side in (ours, theirs)]  # they never meet
    return matches(*apart)


def pairs_at_limit(boxes: Tensor, scores: Tensor, limit: float, cuts: Sequence[float]) -> int:
    """Pairs that may suppress one another either way, and scores that may fall on either side of a cut."""
    overlap, apart = iou(boxes, boxes), (scores[:, None] - scores).abs()
    doubtful = ((overlap - limit).abs() < AT_LIMIT) | ((overlap > limit) & (apart < AT_LIMIT))
    return int(doubtful.triu(1).sum()) + sum(int(((scores - cut).abs() < AT_LIMIT).sum()) for cut in cuts)


def proposals_at_limit(outputs: RPNOutputs, i: int, size: tuple[int, int], ours: MaskRCNN) -> int:
    """How many pairs among the candidates of picture `i` could fall either way."""
    config, count = ours.config.rpn, 0
    for logits, deltas, anchors in zip(outputs.logits, outputs.deltas, outputs.anchors, strict=True):
        top, index = top_k(logits[i], min(config.pre_nms_top_n + 1, logits.shape[1]))
        first_left_out = top[config.pre_nms_top_n :].sigmoid().tolist()  # one or none
        top, index = top[: config.pre_nms_top_n], index[: config.pre_nms_top_n]
        boxes = clip(config.coder.decode(deltas[i, index], anchors[index]), *size)
        count += pairs_at_limit(boxes, top.sigmoid(), config.nms_iou, first_left_out)
    return count


# --- learning ---------------------------------------------------------------------------------------------------------


class Recorder:
    """Our sampler, which writes down what it was given and what it chose."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, kind: Tensor, count: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = sample(kind, count, fraction, generator)
        self.calls.append((kind, *chosen))
        return chosen


class Replay:
    """Torchvision's sampler: chooses what ours chose, and counts boxes that were matched otherwise."""

    def __init__(self, recorder: Recorder) -> None:
        self.calls = iter(recorder.calls)
        self.matched_otherwise = 0

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
        for kind, (our_kind, *positions) in zip(labels, self.calls, strict=False):
            self.matched_otherwise += int((kind.sign() != our_kind).sum())
            for masks, position in zip(chosen, positions, strict=True):
                masks.append(torch.zeros(len(kind), dtype=torch.uint8).index_fill_(0, position, 1))
        return chosen


@dataclass(frozen=True)
class Learned:
    """One side's losses by its own names, and what it proposed; gradients lie in the parameters."""

    losses: dict[str, Tensor]
    proposals: list[Tensor]
    matched_otherwise: int = 0  # anchors and RoIs


def learn_ours(
    ours: MaskRCNN, config: LossConfig, batch: ImageBatch, targets: list[Target]
) -> tuple[Learned, Recorder]:
    recorder = Recorder()
    losses = MaskRCNNLoss(ours, config, recorder)(batch, targets)
    losses["total"].backward()
    limits = replace(ours.config.rpn, pre_nms_top_n=config.pre_nms_top_n, post_nms_top_n=config.post_nms_top_n)
    with torch.no_grad():
        outputs = ours.rpn(ours.features(batch.pixels), tuple(batch.pixels.shape[2:]))
        proposals = rows(propose(outputs, of_sizes(batch.image_sizes), limits))
    return Learned({name: loss.detach() for name, loss in losses.items() if name != "total"}, proposals), recorder


def learn_peer(peer: Any, batch: Any, targets: Any, proposals: list[Tensor], recorder: Recorder) -> Learned:
    """The heads get our proposals: two that change places at a limit would have the positions mean other boxes."""
    replay = peer.rpn.fg_bg_sampler = peer.roi_heads.fg_bg_sampler = Replay(recorder)
    features = peer.backbone(batch.tensors)
    its_proposals, losses = peer.rpn(batch, features, targets)
    proposals = [boxes.to(batch.tensors.dtype) for boxes in proposals]
    losses |= peer.roi_heads(features, proposals, batch.image_sizes, targets)[1]
    sum(losses.values()).backward()
    return Learned({n: loss.detach() for n, loss in losses.items()}, its_proposals, replay.matched_otherwise)


def gradients_of(peer: Any) -> dict[str, Tensor]:
    """Torchvision's gradients under our names."""
    return rename({name: parameter.grad for name, parameter in peer.named_parameters()})


def as_target(theirs: dict[str, Tensor], seed: int) -> Target:
    """Torchvision's target, keypoints as it may have them, as ours, in the same frame."""
    shapes = []
    for mask in theirs["masks"].numpy():
        window, left, top = rle.decode_window(rle.encode(mask))
        shapes.append(RasterShape(window, left, top, mask.shape))
    height, width = theirs["masks"].shape[1:]
    return Target(
        theirs["boxes"],
        theirs["labels"],
        GtMasks(tuple(shapes)),
        torch.zeros(len(shapes), dtype=torch.bool),  # no crowd
        (height, width),
        sampling_seed=seed,
        gt_keypoints=GtKeypoints(theirs["keypoints"], COCO_PERSON) if "keypoints" in theirs else None,
    )


def freeze_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
