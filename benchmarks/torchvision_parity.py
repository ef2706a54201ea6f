"""Torchvision's Mask R-CNN and Keypoint R-CNN with random weights against the same converted to ours, on photos.

    python benchmarks/torchvision_parity.py --data FOLDER [--pictures 4] [--threads 1]

FOLDER is a COCO data set (default: `coco128` in the folder that MASKRCNN_TEST_DATA names). Both sides see full-size
pictures, 1000 proposals and 100 detections; then the two Mask R-CNN learn from the first two pictures with the same
sampled anchors and RoIs, from the objects' bitmaps, with the norms' statistics fixed.

Each line gives the largest absolute value on torchvision's side (its scale), the largest difference, and their ratio.
Both sides round float32 differently, by about 1e-6 of the scale. So a pair may fall either way where two scores, or an
IoU and its limit, are less than 1e-5 apart: such pairs are counted beside the boxes that one side has and the other has
not. A gradient's difference is relative to the largest value of its own tensor. It shows the noise of float32: a unit
of ReLU within rounding of 0 passes its gradient on one side only. So gradients are compared three times: with
torchvision as it comes; with its weights and pixels in channels-last order, as our pixels are; and torchvision in one
order with torchvision in the other.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection as tv

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.opening import open_dataset
from maskrcnn.losses.mask_rcnn_loss import MaskRCNNLoss, torchvision_loss
from maskrcnn.losses.sampler import sample
from maskrcnn.model.box_head import select_detections
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.rpn import RPNOutputs, propose
from maskrcnn.ops import rle
from maskrcnn.ops.boxes import clip, iou, of_sizes, scale
from maskrcnn.ops.masks import rasterise
from maskrcnn.ops.nms import top_k_padded
from maskrcnn.structures import GtMasks, ImageBatch, Proposals, RasterShape, Target
from maskrcnn.weights.torchvision import load_torchvision, rename

VERSIONS = {
    "maskrcnn_resnet50_fpn": tv.maskrcnn_resnet50_fpn,
    "maskrcnn_resnet50_fpn_v2": tv.maskrcnn_resnet50_fpn_v2,
    "keypointrcnn_resnet50_fpn": tv.keypointrcnn_resnet50_fpn,
}
NUM_CLASSES = 91  # background included, as torchvision counts; of keypoints 2
AT_LIMIT = 1e-5
SAME_BOX = 0.02  # px
LOSSES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "box_class": "loss_classifier",
    "box_delta": "loss_box_reg",
    "mask": "loss_mask",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MASKRCNN_TEST_DATA", ".")) / "coco128")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--versions", nargs="+", choices=list(VERSIONS), default=list(VERSIONS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    photos = open_dataset(options.data)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {platform.machine()}, "
          f"{options.threads} thread(s), float32, seed {options.seed}, {options.pictures} pictures")  # fmt: skip
    for version in options.versions:
        start = time.perf_counter()
        peer = random_peer(VERSIONS[version], options.seed, picture(photos, 0))
        ours = load_torchvision(peer.state_dict())
        table = Table()
        has_masks = ours.mask_head is not None
        for i in range(options.pictures):
            (compare_detecting if has_masks else compare_keypoints)(peer, ours, picture(photos, i), table)
        if has_masks:
            compare_learning(peer, ours, photos, table)
        print(f"\n{version} ({time.perf_counter() - start:.0f} s)")
        table.show()


class Table:
    """Largest differences over all pictures, and counts."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[float, float]] = {}
        self.counts: dict[str, int] = {}

    def compare(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        if theirs.numel():
            largest, difference = self.values.get(name, (0.0, 0.0))
            now = float((ours - theirs).abs().max())
            self.values[name] = (max(largest, float(theirs.abs().max())), max(difference, now))

    def count(self, name: str, number: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def show(self) -> None:
        print(f"{'':52}{'scale':>12}{'difference':>13}{'ratio':>10}")
        for name, (largest, difference) in self.values.items():
            print(f"{name:52}{largest:12.4g}{difference:13.1e}{difference / max(largest, 1e-30):10.1e}")
        for name, number in self.counts.items():
            print(f"{name:76}{number:11d}")


def picture(photos: Dataset, i: int) -> Tensor:
    """(3, H, W) float32 in 0..1."""
    return torch.from_numpy(photos[i][0]).permute(2, 0, 1) / 255


# --- random weights ---------------------------------------------------------------------------------------------------


def random_peer(build: Callable[..., Any], seed: int, image: Tensor) -> Any:
    """Values that a trained network might have: no bias is 0, no norm does nothing, and scores differ."""
    torch.manual_seed(seed)
    classes = NUM_CLASSES if build is not tv.keypointrcnn_resnet50_fpn else 2
    peer = build(weights=None, weights_backbone=None, num_classes=classes)
    for name, module in peer.named_modules():
        if getattr(module, "running_mean", None) is not None:
            damping = 0.2 if name.endswith("bn3") else 1.0  # the sum of residual blocks would grow without bound
            module.weight.data.uniform_(0.5, 1.5).mul_(damping)
            module.bias.data.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif getattr(module, "bias", None) is not None:
            module.bias.data.normal_(std=0.02)
    with torch.no_grad():
        levels = peer.eval().backbone(peer.transform([image])[0].tensors).values()
        hidden = [peer.rpn.head.conv(level) for level in levels]
        spread(peer.rpn.head.cls_logits, [peer.rpn.head.cls_logits(x) for x in hidden], 1.5)
        spread(peer.rpn.head.bbox_pred, [peer.rpn.head.bbox_pred(x) for x in hidden], 0.3)
    spread_at_first_call(peer.roi_heads.box_predictor.cls_score, 2.0)
    spread_at_first_call(peer.roi_heads.box_predictor.bbox_pred, 1.0)
    if peer.roi_heads.has_mask():
        spread_at_first_call(peer.roi_heads.mask_predictor.mask_fcn_logits, 2.0)
    if peer.roi_heads.has_keypoint():
        spread_at_first_call(peer.roi_heads.keypoint_predictor.kps_score_lowres, 3.0)
    with torch.no_grad():
        peer([image])
    return peer


def spread(module: Any, outputs: list[Tensor], std: float) -> None:
    """Scale and shift a last layer so that the widest of these outputs of it has deviation `std`, around 0."""
    rows = [output.movedim(1, -1).flatten(0, -2) for output in outputs]  # (any, channels)
    mean = torch.cat(rows).mean(0)
    factor = std / max(float((row - mean).std()) for row in rows)
    module.weight.data.mul_(factor)
    module.bias.data.sub_(mean).mul_(factor)


def spread_at_first_call(module: Any, std: float) -> None:
    def change(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        hook.remove()
        spread(module, [output], std)
        again: Tensor = module(*inputs)
        return again

    hook = module.register_forward_hook(change)


# --- detecting --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def steps_of_peer(peer: Any, image: Tensor) -> dict[str, Any]:
    """What torchvision makes of one picture, stage by stage."""
    kept: dict[str, Any] = {}
    masks, head = peer.roi_heads.mask_predictor, peer.rpn.head
    hooks = [
        masks.register_forward_hook(lambda module, inputs, output: kept.update(masks=output)),
        head.register_forward_hook(lambda module, inputs, output: kept.update(head=output)),
    ]
    batch, _ = peer.eval().transform([image])
    features = peer.backbone(batch.tensors)
    proposals, _ = peer.rpn(batch, features)
    (found,), _ = peer.roi_heads(features, proposals, batch.image_sizes)
    for hook in hooks:
        hook.remove()
    labels = found["labels"]
    (size,) = batch.image_sizes
    return {
        "pixels": batch.tensors,
        "features": list(features.values()),
        "logits": [x.permute(0, 2, 3, 1).flatten() for x in kept["head"][0]],
        "deltas": [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in kept["head"][1]],
        "proposals": proposals[0],
        "boxes": scale(found["boxes"], image.shape[1] / size[0], image.shape[2] / size[1]),
        "scores": found["scores"],
        "labels": labels,
        "masks": kept["masks"][torch.arange(len(labels)), labels],
    }


@torch.no_grad()
def steps_of_ours(ours: MaskRCNN, image: Tensor) -> dict[str, Any]:
    """The same, and how many pairs lie at a limit."""
    batch = ours.preprocess([image])
    height, width = batch.image_sizes[0].tolist()
    features = ours.features(batch.pixels)
    outputs = ours.rpn(features, (batch.pixels.shape[2], batch.pixels.shape[3]))
    proposals = propose(outputs, of_sizes(batch.image_sizes), ours.config.rpn)
    read, rois = ours.read_boxes(features, proposals, of_sizes(batch.image_sizes), drop_empty=True)
    found = select_detections(read, rois, of_sizes(batch.image_sizes), ours.box_head.coder, ours.config.detection)
    masks = ours.read_masks(features, found, drop_empty=True)
    assert masks is not None
    keep = found.valid[0]
    return {
        "pixels": batch.pixels,
        "features": list(features.values()),
        "logits": [x[0] for x in outputs.logits],
        "deltas": [x[0] for x in outputs.deltas],
        "proposals": valid_rows(proposals)[0],
        "boxes": scale(found.boxes[0][keep], image.shape[1] / height, image.shape[2] / width),
        "scores": found.scores[0][keep],
        "labels": found.labels[0][keep],
        "masks": masks[0][keep],
        "proposals at limit": proposals_at_limit(outputs, (height, width), ours),
        "detections at limit": detections_at_limit(read.class_logits, read.deltas, proposals, (height, width), ours),
    }


def valid_rows(proposals: Proposals) -> list[Tensor]:
    return [boxes[valid] for boxes, valid in zip(proposals.boxes, proposals.valid, strict=True)]


def compare_detecting(peer: Any, ours: MaskRCNN, image: Tensor, table: Table) -> None:
    theirs, mine = steps_of_peer(peer, image), steps_of_ours(ours, image)
    table.compare("pixels after resizing", mine["pixels"], theirs["pixels"])
    for name in ("features", "logits", "deltas"):
        for a, b in zip(mine[name], theirs[name], strict=True):
            table.compare(f"{'' if name == 'features' else 'RPN '}{name}", a, b)
    our_rows, rows = same_boxes(mine["proposals"], theirs["proposals"])
    table.compare("proposals, px", mine["proposals"][our_rows], theirs["proposals"][rows])
    table.count("proposals of torchvision", len(theirs["proposals"]))
    table.count("proposals that ours lacks", len(theirs["proposals"]) - len(rows))
    table.count("proposals: pairs of candidates within 1e-5 of a limit", mine["proposals at limit"])
    apart = 1e5  # px between classes: boxes of different ones never meet
    our_rows, rows = same_boxes(*(side["boxes"] + apart * side["labels"][:, None].double() for side in (mine, theirs)))
    for name, unit in (("boxes", ", px of the photo"), ("scores", ""), ("masks", ", logits")):
        table.compare(f"detections: {name}{unit}", mine[name][our_rows], theirs[name][rows])
    table.count("detections of torchvision", len(theirs["boxes"]))
    table.count("detections that ours lacks, or has with another label", len(theirs["boxes"]) - len(rows))
    table.count("detections: pairs of candidates within 1e-5 of a limit", mine["detections at limit"])


@torch.no_grad()
def compare_keypoints(peer: Any, ours: MaskRCNN, image: Tensor, table: Table) -> None:
    """Whole calls, in the frame of the photo."""
    (theirs,), (mine,) = peer.eval()([image]), ours.eval()([image])
    our_rows, rows = same_boxes(mine.boxes, theirs["boxes"])
    assert mine.keypoints is not None
    points = mine.keypoints[our_rows]
    table.compare("detections: boxes, px of the photo", mine.boxes[our_rows], theirs["boxes"][rows])
    table.compare("detections: scores", mine.scores[our_rows], theirs["scores"][rows])
    apart = (points[..., :2] - theirs["keypoints"][rows][..., :2]).abs().amax(dim=2)
    table.compare("detections: keypoints, px of the photo", points[..., :2], theirs["keypoints"][rows][..., :2])
    table.compare("detections: keypoint scores", points[..., 2], theirs["keypoints_scores"][rows])
    table.count("detections of torchvision", len(theirs["boxes"]))
    table.count("detections that ours lacks", len(theirs["boxes"]) - len(rows))
    table.count("keypoints", apart.numel())
    table.count("keypoints more than 0.01 px apart: pixels as high as their neighbour", int((apart > 0.01).sum()))


def same_boxes(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (M,) and (M,) of the boxes that both have."""
    apart = torch.cdist(ours.double(), theirs.double(), p=float("inf"))
    nearest = apart.argmin(1)
    both = (apart.amin(1) < SAME_BOX) & (apart.argmin(0)[nearest] == torch.arange(len(ours)))
    return both.nonzero().squeeze(1), nearest[both]


def pairs_at_limit(boxes: Tensor, scores: Tensor, limit: float, cuts: list[float]) -> int:
    """Pairs that may suppress one another either way, and scores that may fall on either side of a cut."""
    overlap, apart = iou(boxes, boxes), (scores[:, None] - scores).abs()
    doubtful = ((overlap - limit).abs() < AT_LIMIT) | ((overlap > limit) & (apart < AT_LIMIT))
    return int(doubtful.triu(1).sum()) + sum(int(((scores - cut).abs() < AT_LIMIT).sum()) for cut in cuts)


def proposals_at_limit(outputs: RPNOutputs, size: tuple[float, float], ours: MaskRCNN) -> int:
    config, count = ours.config.rpn, 0
    for logits, deltas, anchors in zip(outputs.logits, outputs.deltas, outputs.anchors, strict=True):
        top, index = top_k_padded(logits[0], min(config.pre_nms_top_n + 1, logits.shape[1]))
        boxes = clip(ours.config.rpn.coder.decode(deltas[0, index], anchors[index]), *size)
        scores = top.sigmoid()
        left_out = len(scores) > config.pre_nms_top_n  # the last one is the first that is not among the candidates
        count += pairs_at_limit(boxes[:-1], scores[:-1], config.nms_iou, [float(scores[-1])] if left_out else [])
    return count


def detections_at_limit(
    logits: Tensor, deltas: Tensor, proposals: Proposals, size: tuple[float, float], ours: MaskRCNN
) -> int:
    config, scores = ours.config.detection, logits.softmax(1)[:, 1:]
    boxes = clip(ours.box_head.coder.decode(deltas, proposals.boxes[0][:, None]), *size)
    count = 0
    for k in range(scores.shape[1]):
        near = proposals.valid[0] & (scores[:, k] > config.score_threshold - AT_LIMIT)
        count += pairs_at_limit(boxes[near, k], scores[near, k], config.nms_iou, [config.score_threshold])
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


def compare_learning(peer: Any, ours: MaskRCNN, photos: Dataset, table: Table) -> None:
    images, objects = zip(*(torchvision_sample(photos, i) for i in range(2)), strict=True)
    for model in (peer.train(), ours.train()):
        fix_norms(model)
    batch, resized = peer.transform(list(images), list(objects))
    sizes = torch.tensor(batch.image_sizes, dtype=torch.float32)
    pixels = batch.tensors.contiguous(memory_format=torch.channels_last)
    our_batch = ImageBatch(pixels, sizes, tuple((image.shape[1], image.shape[2]) for image in images))
    targets = [as_target(target, seed) for seed, target in enumerate(resized)]
    recorder = Recorder()
    our_losses = MaskRCNNLoss(ours, torchvision_loss(), recorder)(our_batch, targets)
    our_losses["total"].backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}

    proposals = training_proposals(ours, our_batch)
    in_our_order = copy.deepcopy(peer).to(memory_format=torch.channels_last)
    losses = learn_peer(peer, batch, resized, proposals, recorder, table)
    for name, its_name in LOSSES.items():
        table.compare(f"loss {name}", our_losses[name].detach(), losses[its_name].detach())
    theirs = gradients_of(peer)
    compare_gradients("gradients", gradients, theirs, table)
    batch.tensors = pixels
    learn_peer(in_our_order, batch, resized, proposals, recorder, None)
    compare_gradients("both channels-last", gradients, gradients_of(in_our_order), table)
    compare_gradients("torchvision, both orders", gradients_of(in_our_order), theirs, table)


def gradients_of(peer: Any) -> dict[str, Tensor]:
    """Torchvision's gradients under our names."""
    return rename({name: parameter.grad for name, parameter in peer.named_parameters()})


def learn_peer(
    peer: Any, batch: Any, targets: Any, proposals: list[Tensor], recorder: Recorder, table: Table | None
) -> dict[str, Tensor]:
    """Losses, and gradients in the parameters. The heads get our proposals: sampled positions mean the same boxes."""
    replay = peer.rpn.fg_bg_sampler = peer.roi_heads.fg_bg_sampler = Replay(recorder)
    features = peer.backbone(batch.tensors)
    its_proposals, losses = peer.rpn(batch, features, targets)
    losses |= peer.roi_heads(features, list(proposals), batch.image_sizes, targets)[1]
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    if table is not None:
        for mine, its in zip(proposals, its_proposals, strict=True):
            table.count("learning: proposals of torchvision", len(its))
            table.count("learning: proposals that ours lacks", len(its) - len(same_boxes(mine, its)[0]))
        table.count("learning: anchors and RoIs that were matched otherwise", replay.matched_otherwise)
    return dict(losses)


@torch.no_grad()
def training_proposals(ours: MaskRCNN, batch: ImageBatch) -> list[Tensor]:
    config = torchvision_loss()
    limits = replace(ours.config.rpn, pre_nms_top_n=config.pre_nms_top_n, post_nms_top_n=config.post_nms_top_n)
    outputs = ours.rpn(ours.features(batch.pixels), (batch.pixels.shape[2], batch.pixels.shape[3]))
    return valid_rows(propose(outputs, of_sizes(batch.image_sizes), limits))


def compare_gradients(title: str, ours: dict[str, Any], theirs: dict[str, Tensor], table: Table) -> None:
    """The worst tensor, and the one in the middle; each difference in the tensor's largest value."""
    ratios = []
    for name, gradient in theirs.items():
        largest = float(gradient.abs().max())
        ratios.append((float((ours[name] - gradient).abs().max()) / largest, largest))
    ratios.sort()
    for which, (ratio, largest) in (("worst", ratios[-1]), ("median", ratios[len(ratios) // 2])):
        table.values[f"{title}, {which} of {len(ratios)} tensors"] = (largest, ratio * largest)


def torchvision_sample(photos: Dataset, i: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A picture and torchvision's target of it, without crowds: boxes, labels, bitmaps."""
    pixels, target = photos[i]
    target = target.chosen(~target.is_crowd)
    assert target.gt_masks is not None
    bitmaps = [torch.from_numpy(rle.decode(mask)) for mask in rasterise(target.gt_masks, target.size)]
    masks = torch.stack(bitmaps).to(torch.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255, {
        "boxes": target.gt_boxes,
        "labels": target.gt_labels,
        "masks": masks,
    }


def as_target(theirs: dict[str, Tensor], seed: int) -> Target:
    """Torchvision's target as ours, in the same frame."""
    shapes = []
    for mask in theirs["masks"].numpy():
        window, left, top = rle.decode_window(rle.encode(mask))
        shapes.append(RasterShape(window, left, top, mask.shape))
    no_crowd = torch.zeros(len(shapes), dtype=torch.bool)
    height, width = theirs["masks"].shape[1:]
    boxes, labels = theirs["boxes"], theirs["labels"]
    return Target(boxes, labels, GtMasks(tuple(shapes)), no_crowd, (height, width), sampling_seed=seed)


def fix_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


if __name__ == "__main__":
    main()
