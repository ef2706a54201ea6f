"""Torchvision's Mask R-CNN and Keypoint R-CNN with random weights against the same converted to ours, stage by stage.

    python benchmarks/torchvision_stages.py --data FOLDER [--pictures 4] [--threads 1]

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

Whole answers of more variants are compared by `torchvision_parity.py`.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torchvision
from torch import Tensor
from torchvision.models import detection as tv

from maskrcnn.bench.random_weights import randomise
from maskrcnn.data.dataset import Dataset
from maskrcnn.data.opening import open_dataset
from maskrcnn.losses.mask_rcnn_loss import torchvision_loss
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.ops import rle
from maskrcnn.ops.boxes import clip, of_sizes, scale
from maskrcnn.ops.masks import rasterise
from maskrcnn.structures import ImageBatch, Proposals
from maskrcnn.weights.torchvision import load_torchvision

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from weights.torchvision_peer import (
    AT_LIMIT,
    LOSSES,
    Steps,
    as_target,
    freeze_norms,
    gradients_of,
    learn_ours,
    learn_peer,
    matches,
    matches_of_class,
    pairs_at_limit,
    proposals_at_limit,
    steps_of_ours,
    steps_of_peer,
)

VERSIONS = {
    "maskrcnn_resnet50_fpn": tv.maskrcnn_resnet50_fpn,
    "maskrcnn_resnet50_fpn_v2": tv.maskrcnn_resnet50_fpn_v2,
    "keypointrcnn_resnet50_fpn": tv.keypointrcnn_resnet50_fpn,
}
NUM_CLASSES = 91  # background included, as torchvision counts; of keypoints 2


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
        peer = random_peer(version, options.seed, picture(photos, 0))
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


def random_peer(version: str, seed: int, image: Tensor) -> Any:
    torch.manual_seed(seed)
    classes = 2 if version.startswith("keypoint") else NUM_CLASSES
    peer = VERSIONS[version](weights=None, weights_backbone=None, num_classes=classes)
    randomise(peer, image, score_spread=2.0)
    return peer


# --- detecting --------------------------------------------------------------------------------------------------------


def compare_detecting(peer: Any, ours: MaskRCNN, image: Tensor, table: Table) -> None:
    theirs, mine = steps_of_peer(peer, [image]), steps_of_ours(ours, [image])
    table.compare("pixels after resizing", mine.pixels, theirs.pixels)
    for name, level in mine.features.items():
        table.compare("features", level, theirs.features[name])
    for name in ("logits", "deltas"):
        for a, b in zip(getattr(mine.rpn, name), getattr(theirs.rpn, name), strict=True):
            table.compare(f"RPN {name}", a, b)
    (our_proposals,), (proposals,) = mine.proposals, theirs.proposals
    our_rows, rows = matches(our_proposals, proposals)
    table.compare("proposals, px", our_proposals[our_rows], proposals[rows])
    table.count("proposals of torchvision", len(proposals))
    table.count("proposals that ours lacks", len(proposals) - len(rows))
    doubtful = proposals_at_limit(mine.rpn, 0, mine.sizes[0], ours)
    table.count("proposals: pairs of candidates within 1e-5 of a limit", doubtful)
    found, its = (on_photo(steps, image) for steps in (mine, theirs))
    our_rows, rows = matches_of_class(found, its)
    for name, title in (("boxes", "boxes, px of the photo"), ("scores", "scores"), ("mask_logits", "masks, logits")):
        table.compare(f"detections: {title}", found[name][our_rows], its[name][rows])
    table.count("detections of torchvision", len(its["boxes"]))
    table.count("detections that ours lacks, or has with another label", len(its["boxes"]) - len(rows))
    table.count("detections: pairs of candidates within 1e-5 of a limit", detections_at_limit(mine, ours))


def on_photo(steps: Steps, image: Tensor) -> dict[str, Tensor]:
    """The detections of the one picture, boxes in its own frame."""
    (height, width), found = steps.sizes[0], steps.detections[0]
    return {**found, "boxes": scale(found["boxes"], image.shape[1] / height, image.shape[2] / width)}


@torch.no_grad()
def detections_at_limit(steps: Steps, ours: MaskRCNN) -> int:
    """How many pairs of refined proposals of one class could fall either way."""
    config, boxes = ours.config.detection, steps.proposals[0][None]
    every = Proposals(boxes, torch.zeros(boxes.shape[:2]), torch.ones(boxes.shape[:2], dtype=torch.bool))
    read, _ = ours.read_boxes(steps.features, every, of_sizes(torch.tensor(steps.sizes)), drop_empty=True)
    scores = read.class_logits.softmax(1)[:, 1:]
    refined = clip(ours.box_head.coder.decode(read.deltas, boxes[0][:, None]), *steps.sizes[0])
    count = 0
    for k in range(scores.shape[1]):
        near = scores[:, k] > config.score_threshold - AT_LIMIT
        count += pairs_at_limit(refined[near, k], scores[near, k], config.nms_iou, [config.score_threshold])
    return count


@torch.no_grad()
def compare_keypoints(peer: Any, ours: MaskRCNN, image: Tensor, table: Table) -> None:
    """Whole calls, in the frame of the photo."""
    (theirs,), (mine,) = peer.eval()([image]), ours.eval()([image])
    our_rows, rows = matches(mine.boxes, theirs["boxes"])
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


# --- learning ---------------------------------------------------------------------------------------------------------


def compare_learning(peer: Any, ours: MaskRCNN, photos: Dataset, table: Table) -> None:
    images, objects = zip(*(torchvision_sample(photos, i) for i in range(2)), strict=True)
    for model in (peer.train(), ours.train()):
        freeze_norms(model)
    batch, resized = peer.transform(list(images), list(objects))
    sizes = torch.tensor(batch.image_sizes, dtype=torch.float32)
    pixels = batch.tensors.contiguous(memory_format=torch.channels_last)
    our_batch = ImageBatch(pixels, sizes, tuple((image.shape[1], image.shape[2]) for image in images))
    targets = [as_target(target, seed) for seed, target in enumerate(resized)]
    mine, recorder = learn_ours(ours, torchvision_loss(), our_batch, targets)
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}

    in_our_order = copy.deepcopy(peer).to(memory_format=torch.channels_last)
    its = learn_peer(peer, batch, resized, mine.proposals, recorder)
    for our_boxes, boxes in zip(mine.proposals, its.proposals, strict=True):
        table.count("learning: proposals of torchvision", len(boxes))
        table.count("learning: proposals that ours lacks", len(boxes) - len(matches(our_boxes, boxes)[0]))
    table.count("learning: anchors and RoIs that were matched otherwise", its.matched_otherwise)
    for name, loss in mine.losses.items():
        table.compare(f"loss {name}", loss, its.losses[LOSSES[name]])
    theirs = gradients_of(peer)
    compare_gradients("gradients", gradients, theirs, table)
    batch.tensors = pixels
    learn_peer(in_our_order, batch, resized, mine.proposals, recorder)
    compare_gradients("both channels-last", gradients, gradients_of(in_our_order), table)
    compare_gradients("torchvision, both orders", gradients_of(in_our_order), theirs, table)


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


if __name__ == "__main__":
    main()
