"""Torchvision's detectors with random weights, converted: the same answer of every stage, the same gradients.

Both sides round float32 differently, by about 1e-6, so two proposals whose scores or whose IoU differ from a limit by
less than that may change places. Where a test counts such pairs it says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as tv
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from maskrcnn.data.opening import open_dataset
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss, torchvision_loss
from maskrcnn.losses.sampler import sample
from maskrcnn.model.box_head import select_detections
from maskrcnn.model.keypoint_head import COCO_PERSON
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.preprocess import Preprocess
from maskrcnn.model.rpn import RPNOutputs, propose
from maskrcnn.ops import rle
from maskrcnn.ops.boxes import clip, iou, of_sizes
from maskrcnn.ops.nms import top_k_padded
from maskrcnn.structures import DetectionBatch, GtKeypoints, GtMasks, ImageBatch, Proposals, RasterShape, Target
from maskrcnn.weights.torchvision import load_torchvision, rename

NUM_CLASSES = 4  # K
AT_LIMIT = 1e-5  # two scores, or an IoU and its limit, that are nearer than this may fall on either side
LOSSES = {  # ours, theirs
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "box_class": "loss_classifier",
    "box_delta": "loss_box_reg",
    "mask": "loss_mask",
    "keypoint": "loss_keypoint",
}
SMALL = {  # numbers that keep a test quick
    "min_size": 192,
    "max_size": 320,
    "rpn_post_nms_top_n_test": 150,
    "rpn_post_nms_top_n_train": 300,
    "box_detections_per_img": 30,
    "box_batch_size_per_image": 64,
}


# --- detectors with random weights whose scores differ ----------------------------------------------------------------


def randomise(peer: Any, picture: Tensor) -> None:
    """Values that a trained network might have: no bias is 0, no norm does nothing, and scores differ."""
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
        levels = peer.eval().backbone(peer.transform([picture])[0].tensors).values()
        hidden = [peer.rpn.head.conv(level) for level in levels]
        spread(peer.rpn.head.cls_logits, [peer.rpn.head.cls_logits(x) for x in hidden], 1.5)
        spread(peer.rpn.head.bbox_pred, [peer.rpn.head.bbox_pred(x) for x in hidden], 0.3)
        spread_at_first_call(peer.roi_heads.box_predictor.cls_score, 1.5)
        spread_at_first_call(peer.roi_heads.box_predictor.bbox_pred, 1.0)
        if peer.roi_heads.has_mask():
            spread_at_first_call(peer.roi_heads.mask_predictor.mask_fcn_logits, 2.0)
        if peer.roi_heads.has_keypoint():
            spread_at_first_call(peer.roi_heads.keypoint_predictor.kps_score_lowres, 3.0)
        peer([picture])


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


def picture(height: int, width: int, seed: int) -> Tensor:
    """(3, height, width) float 0..1: coloured boxes on a coarse pattern."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 9, 9, generator=generator)
    image = nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    for _ in range(12):
        y, x = (torch.rand(2, generator=generator) * torch.tensor([height, width]) * 0.8).int().tolist()
        image[:, y : y + 8 + height // 6, x : x + 8 + width // 5] = torch.rand(3, 1, 1, generator=generator)
    return (image * 255).round() / 255


@dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    peer: Any
    ours: MaskRCNN


def pair(build: Callable[..., Any], seed: int = 0, num_classes: int = NUM_CLASSES, **options: Any) -> Pair:
    torch.manual_seed(seed)
    peer = build(weights=None, weights_backbone=None, num_classes=num_classes + 1, **options)
    randomise(peer, picture(192, 256, 0))
    ours = load_torchvision(peer.state_dict())
    config = replace(
        ours.config,
        preprocess=replace(
            ours.config.preprocess, shortest=peer.transform.min_size[-1], longest=peer.transform.max_size
        ),
        rpn=replace(ours.config.rpn, post_nms_top_n=peer.rpn._post_nms_top_n["testing"]),
        detection=replace(ours.config.detection, max_detections=peer.roi_heads.detections_per_img),
    )
    ours.config, ours.preprocess = config, Preprocess(config.preprocess)
    return Pair(peer, ours)


@pytest.fixture(scope="module", params=["v1", "v2"])
def mask_rcnn(request: pytest.FixtureRequest) -> Pair:
    return pair({"v1": tv.maskrcnn_resnet50_fpn, "v2": tv.maskrcnn_resnet50_fpn_v2}[request.param], **SMALL)


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    """Two of different sizes: both are padded."""
    return [picture(150, 200, 1), picture(170, 130, 2)]


# --- detecting, stage by stage ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """What one side made of a batch; lists hold one entry a picture."""

    pixels: Tensor
    sizes: list[tuple[int, int]]
    features: dict[str, Tensor]
    rpn: RPNOutputs
    proposals: list[Tensor]
    detections: list[dict[str, Tensor]]  # boxes (resized frame), scores, labels, mask_logits


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
    levels = dict(zip(("p2", "p3", "p4", "p5", "p6"), features.values(), strict=True))
    return Steps(batch.tensors, batch.image_sizes, levels, outputs, proposals, found)


@torch.no_grad()
def steps_of_ours(ours: MaskRCNN, images: list[Tensor]) -> Steps:
    batch = ours.preprocess(images)
    features = ours.features(batch.pixels)
    outputs = ours.rpn(features, tuple(batch.pixels.shape[2:]))
    proposals = propose(outputs, of_sizes(batch.image_sizes), ours.config.rpn)
    read, rois = ours.read_boxes(features, proposals, of_sizes(batch.image_sizes), drop_empty=True)
    found = select_detections(read, rois, of_sizes(batch.image_sizes), ours.box_head.coder, ours.config.detection)
    masks = ours.read_masks(features, found, drop_empty=True)
    sizes = [(int(height), int(width)) for height, width in batch.image_sizes]
    return Steps(batch.pixels, sizes, features, outputs, rows(proposals), entries(replace(found, mask_logits=masks)))


def rows(proposals: Proposals) -> list[Tensor]:
    return [boxes[valid] for boxes, valid in zip(proposals.boxes, proposals.valid, strict=True)]


def entries(found: DetectionBatch) -> list[dict[str, Tensor]]:
    names = ("boxes", "scores", "labels") + (("mask_logits",) if found.mask_logits is not None else ())
    return [{name: getattr(found, name)[i][found.valid[i]] for name in names} for i in range(len(found.valid))]


def assert_near(ours: Tensor, theirs: Tensor, relative: float) -> None:
    """Largest difference, in the peer's largest value."""
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference <= relative, f"{difference:.2e}"


def matches(ours: Tensor, theirs: Tensor, tolerance: float = 0.02) -> tuple[Tensor, Tensor]:
    """Positions (M,) and (M,) of the boxes that both have, corners at most `tolerance` px apart."""
    if not len(ours) or not len(theirs):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    apart = (ours[:, None] - theirs).abs().amax(2)
    nearest = apart.argmin(1)
    both = (apart.amin(1) < tolerance) & (apart.argmin(0)[nearest] == torch.arange(len(ours)))
    return both.nonzero().squeeze(1), nearest[both]


def pairs_at_limit(boxes: Tensor, scores: Tensor, limit: float, cuts: tuple[float, ...]) -> int:
    """Pairs that may suppress one another either way, and scores that may fall on either side of a cut."""
    overlap, apart = iou(boxes, boxes), (scores[:, None] - scores).abs()
    doubtful = ((overlap - limit).abs() < AT_LIMIT) | ((overlap > limit) & (apart < AT_LIMIT))
    return int(doubtful.triu(1).sum()) + sum(int(((scores - cut).abs() < AT_LIMIT).sum()) for cut in cuts)


def proposals_at_limit(outputs: RPNOutputs, i: int, size: tuple[int, int], ours: MaskRCNN) -> int:
    """How many pairs among the candidates of picture `i` could fall either way."""
    config, count = ours.config.rpn, 0
    for logits, deltas, anchors in zip(outputs.logits, outputs.deltas, outputs.anchors, strict=True):
        top, index = top_k_padded(logits[i], min(config.pre_nms_top_n + 1, logits.shape[1]))
        boxes = clip(ours.config.rpn.coder.decode(deltas[i, index], anchors[index]), *size)
        cuts = (float(top[-1].sigmoid()),) if logits.shape[1] > config.pre_nms_top_n else ()
        count += pairs_at_limit(boxes, top.sigmoid(), config.nms_iou, cuts)
    return count


def test_the_stages_agree(mask_rcnn: Pair, pictures: list[Tensor]) -> None:
    theirs, ours = steps_of_peer(mask_rcnn.peer, pictures), steps_of_ours(mask_rcnn.ours, pictures)
    assert ours.sizes == [tuple(size) for size in theirs.sizes] == [(192, 256), (251, 192)]
    assert torch.equal(ours.pixels, theirs.pixels)
    assert list(ours.features) == list(theirs.features)
    for name, level in ours.features.items():
        assert_near(level, theirs.features[name], 1e-4)
    for mine, its in zip(ours.rpn.logits + ours.rpn.deltas, theirs.rpn.logits + theirs.rpn.deltas, strict=True):
        assert_near(mine, its, 1e-4)
    assert all(torch.equal(a, b) for a, b in zip(ours.rpn.anchors, theirs.rpn.anchors, strict=True))
    for i, size in enumerate(ours.sizes):
        mine, its = matches(ours.proposals[i], theirs.proposals[i])
        assert len(ours.proposals[i]) == len(theirs.proposals[i]) > 100
        assert len(mine) >= len(ours.proposals[i]) - proposals_at_limit(ours.rpn, i, size, mask_rcnn.ours)
        assert_near(ours.proposals[i][mine], theirs.proposals[i][its], 1e-4)
        compare_detections(ours.detections[i], theirs.detections[i])


def compare_detections(ours: dict[str, Tensor], theirs: dict[str, Tensor], at_least: float = 0.95) -> None:
    """At most one in twenty may be missing: the last of them, or one at a limit."""
    assert len(theirs["boxes"]) > 10
    assert abs(len(ours["boxes"]) - len(theirs["boxes"])) <= 1
    offset = 1e4 * ours["labels"][:, None], 1e4 * theirs["labels"][:, None]  # boxes of different classes never meet
    mine, its = matches(ours["boxes"] + offset[0], theirs["boxes"] + offset[1])
    assert len(mine) >= at_least * len(theirs["boxes"])
    assert theirs["scores"].std() > 0.01
    assert theirs["labels"].float().std() > 0
    for name in theirs.keys() - {"labels", "masks"}:
        assert_near(ours[name][mine], theirs[name][its], 1e-3)


def test_a_call_on_pictures_gives_the_same_answer(mask_rcnn: Pair, pictures: list[Tensor]) -> None:
    """In the frame of the pictures, one at a time and as a batch."""
    peer = mask_rcnn.peer.eval()
    with torch.no_grad():
        for images in (pictures[:1], pictures):
            for mine, its in zip(mask_rcnn.ours(images), peer(images), strict=True):
                assert mine.size == tuple(its["masks"].shape[2:])
                found = {"boxes": mine.boxes, "scores": mine.scores, "labels": mine.labels}
                compare_detections(found, its)


def test_a_detector_without_masks(pictures: list[Tensor]) -> None:
    both = pair(tv.fasterrcnn_resnet50_fpn, **SMALL)
    assert both.ours.config.mask_head is None
    theirs, ours = steps_of_peer(both.peer, pictures[:1]), steps_of_ours(both.ours, pictures[:1])
    compare_detections(ours.detections[0], theirs.detections[0])


def test_keypoints(pictures: list[Tensor]) -> None:
    both = pair(tv.keypointrcnn_resnet50_fpn, num_classes=1, **(SMALL | {"box_detections_per_img": 8}))
    ours, peer = both.ours, both.peer.eval()
    assert (ours.config.class_names, ours.config.category_ids, ours.config.mask_head) == (("person",), (1,), None)
    with torch.no_grad():
        for mine, its in zip(ours(pictures), peer(pictures), strict=True):
            assert mine.keypoints is not None and mine.masks is None
            both_have = matches(mine.boxes, its["boxes"])
            assert len(both_have[0]) == len(its["boxes"]) == 8
            points, its_points = mine.keypoints[both_have[0]], its["keypoints"][both_have[1]]
            apart = (points[..., :2] - its_points[..., :2]).abs().amax(2)
            # a pixel that is higher than its neighbour by rounding alone: none here, though another seed might have one
            assert apart.max() < 1e-2, f"{apart.max():.2e} px"
            assert_near(points[..., 2], its["keypoints_scores"][both_have[1]], 1e-4)
            assert its["keypoints_scores"].std() > 0.1
            written = torch.tensor([record["keypoints"] for record in mine.coco()]).reshape(-1, 17, 3)
            assert_near(written[..., :2], mine.keypoints[..., :2], 1e-5)  # as the files count, which torchvision learns


def test_a_frozen_backbone_without_eps(pictures: list[Tensor]) -> None:
    """As the published weights of the first versions run: nothing is added to variances, however small they are."""
    peer = tv.MaskRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), NUM_CLASSES + 1, min_size=192)
    overwrite_eps(peer, 0.0)
    randomise(peer, pictures[0])
    peer.backbone.body.bn1.running_var.uniform_(1e-5, 1e-4)
    ours = load_torchvision(peer.state_dict())
    batch, _ = peer.transform(pictures[:1])
    with torch.no_grad():
        theirs = peer.backbone(batch.tensors)
        for mine, its in zip(ours.fpn(ours.backbone(batch.tensors)).values(), theirs.values(), strict=True):
            assert_near(mine, its, 1e-4)
        assert (peer.backbone.body.bn1.eps, its.std() > 0.1) == (0.0, True)


@pytest.mark.slow
def test_photos(mask_rcnn: Pair, shared_data: Path) -> None:
    photos = open_dataset(shared_data / "coco128")
    for i in range(6):
        image = torch.from_numpy(photos[i][0]).permute(2, 0, 1) / 255
        theirs, ours = steps_of_peer(mask_rcnn.peer, [image]), steps_of_ours(mask_rcnn.ours, [image])
        mine, _ = matches(ours.proposals[0], theirs.proposals[0])
        assert len(mine) >= len(theirs.proposals[0]) - proposals_at_limit(ours.rpn, 0, ours.sizes[0], mask_rcnn.ours)
        compare_detections(ours.detections[0], theirs.detections[0])


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
    """Torchvision's sampler: chooses what ours chose, and sees that both matched the same boxes with objects."""

    def __init__(self, recorder: Recorder) -> None:
        self.calls = iter(recorder.calls)

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
        for kind, (wanted, *positions) in zip(labels, self.calls, strict=False):
            assert torch.equal(kind.sign().to(wanted.dtype), wanted)
            for masks, position in zip(chosen, positions, strict=True):
                masks.append(torch.zeros(len(kind), dtype=torch.uint8).index_fill_(0, position, 1))
        return chosen


def objects(height: int, width: int, count: int, seed: int) -> dict[str, Tensor]:
    """Torchvision's target: ellipses with their bitmaps, tight boxes, labels, and keypoints in and about them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    masks = np.zeros((count, height, width), dtype=np.uint8)
    for mask in masks:
        centre, radius = random.uniform(0.2, 0.8, 2) * (height, width), random.uniform(9, 60, 2)
        mask[:] = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1
    corners = [[x[m > 0].min() - 0.5, y[m > 0].min() - 0.5, x[m > 0].max() + 0.5, y[m > 0].max() + 0.5] for m in masks]
    boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    labels = torch.from_numpy(random.integers(1, NUM_CLASSES + 1, count))
    inside = torch.from_numpy(random.uniform(-0.1, 1.1, (count, 17, 2)).astype(np.float32))
    places = boxes[:, None, :2] + inside * (boxes[:, 2:] - boxes[:, :2])[:, None]
    seen = torch.from_numpy(random.integers(0, 3, (count, 17, 1)).astype(np.float32))
    return {
        "boxes": boxes,
        "labels": labels,
        "masks": torch.from_numpy(masks),
        "keypoints": torch.cat([places, seen], dim=2),
    }


def as_target(theirs: dict[str, Tensor], seed: int) -> Target:
    """Torchvision's target as ours, in the same frame."""
    shapes = []
    for mask in theirs["masks"].numpy():
        window, left, top = rle.decode_window(rle.encode(mask))
        shapes.append(RasterShape(window, left, top, mask.shape))
    count = len(shapes)
    height, width = theirs["masks"].shape[1:]
    no_crowd = torch.zeros(count, dtype=torch.bool)
    return Target(
        theirs["boxes"],
        theirs["labels"],
        GtMasks(tuple(shapes)),
        no_crowd,
        (height, width),
        sampling_seed=seed,
        gt_keypoints=GtKeypoints(theirs["keypoints"], COCO_PERSON),
    )


def freeze_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def learn(both: Pair, images: list[Tensor], objects: list[dict[str, Tensor]], learn_norms: bool) -> None:
    """One step on both sides, with the same sampled anchors and RoIs: compares losses, and leaves gradients."""
    peer, ours = both.peer.train(), both.ours.train()
    if not learn_norms:
        freeze_norms(peer)
        freeze_norms(ours)
    dtype = next(ours.parameters()).dtype
    batch, resized = peer.transform(images, objects)
    batch.tensors = batch.tensors.to(dtype)
    sizes = torch.tensor(batch.image_sizes, dtype=torch.float32)
    targets = [as_target(target, seed) for seed, target in enumerate(resized)]
    config, recorder = loss_config(peer), Recorder()
    our_batch = ImageBatch(batch.tensors, sizes, tuple((image.shape[1], image.shape[2]) for image in images))
    our_losses = MaskRCNNLoss(ours, config, recorder)(our_batch, targets)
    our_losses["total"].backward()

    limits = replace(ours.config.rpn, pre_nms_top_n=config.pre_nms_top_n, post_nms_top_n=config.post_nms_top_n)
    with torch.no_grad():
        features = ours.fpn(ours.backbone(batch.tensors))
        proposals = rows(propose(ours.rpn(features, tuple(batch.tensors.shape[2:])), of_sizes(sizes), limits))
    peer.rpn.fg_bg_sampler = peer.roi_heads.fg_bg_sampler = Replay(recorder)
    features = peer.backbone(batch.tensors)
    its_proposals, losses = peer.rpn(batch, features, resized)
    for mine, its in zip(proposals, its_proposals, strict=True):
        assert len(matches(mine, its)[0]) >= 0.98 * len(its)
    # ours are handed over: two that change places at a limit would have the sampled positions mean other boxes
    losses |= peer.roi_heads(features, [boxes.to(dtype) for boxes in proposals], batch.image_sizes, resized)[1]
    sum(losses.values()).backward()

    assert our_losses.keys() - {"total"} == {name for name, its_name in LOSSES.items() if its_name in losses}
    assert len(losses) == 5
    for name, its_name in LOSSES.items():
        if its_name not in losses:
            continue
        assert our_losses[name].item() == pytest.approx(losses[its_name].item(), rel=1e-5), name
        assert losses[its_name] > 1e-3


def loss_config(peer: Any) -> LossConfig:
    """Torchvision's conventions with the counts of `peer`."""
    config = torchvision_loss()
    heads = replace(config.box, rois_per_image=peer.roi_heads.fg_bg_sampler.batch_size_per_image)
    return replace(config, box=heads, post_nms_top_n=peer.rpn._post_nms_top_n["training"])


def compare_gradients(ours: MaskRCNN, peer: Any, relative: float) -> None:
    """Largest difference within each tensor, in the peer's largest value."""
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters() if parameter.grad is not None}
    assert not theirs["roi_heads.box_predictor.bbox_pred.weight"][:4].any()  # background has no box,
    if peer.roi_heads.has_mask():
        assert not theirs["roi_heads.mask_predictor.mask_fcn_logits.weight"][0].any()  # and no mask
    gradients = rename(theirs)
    learning = {name: parameter for name, parameter in ours.named_parameters() if parameter.grad is not None}
    assert learning.keys() == gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in learning.items():
        scale = gradients[name].abs().max()
        assert scale > 0, name
        assert parameter.grad is not None
        if name == "keypoint_head.deconv.bias":  # moves a whole heat map, which its softmax does not see
            assert max(scale, parameter.grad.abs().max()) < 1e-6
            continue
        difference = (parameter.grad - gradients[name]).abs().max() / scale
        assert difference < relative, f"{name}: {difference:.2e}"


LEARNING = {"rpn_post_nms_top_n_train": 100, "box_batch_size_per_image": 12, "min_size": 96, "max_size": 128}


@pytest.mark.parametrize(
    ("build", "options", "dtype", "learn_norms", "relative"),
    [
        # In float32 a unit of ReLU whose input is within rounding of 0 may pass its gradient on one side only.
        (tv.maskrcnn_resnet50_fpn, {"min_size": 64, "max_size": 96}, torch.float64, False, 1e-3),
        (tv.maskrcnn_resnet50_fpn_v2, {"min_size": 70, "max_size": 96}, torch.float64, False, 1e-3),
        (tv.keypointrcnn_resnet50_fpn, {"min_size": 64, "box_batch_size_per_image": 8}, torch.float64, False, 1e-3),
        (tv.maskrcnn_resnet50_fpn, {}, torch.float32, False, 1e-2),
        (tv.maskrcnn_resnet50_fpn_v2, {}, torch.float32, True, 5e-2),  # statistics of so few values enlarge rounding
    ],
    ids=["v1 resized", "v2 resized", "keypoints resized", "v1 float32", "v2 with batch statistics"],
)
def test_learning(
    build: Callable[..., Any], options: dict[str, Any], dtype: torch.dtype, learn_norms: bool, relative: float
) -> None:
    both = pair(build, **(SMALL | LEARNING | options))
    both.peer.to(dtype)
    both.ours.to(dtype)
    images = [picture(96, 128, 3).to(dtype), picture(128, 96, 4).to(dtype)]
    learn(both, images, [objects(96, 128, 5, 0), objects(128, 96, 2, 1)], learn_norms)
    compare_gradients(both.ours, both.peer, relative)


def test_learning_with_a_picture_without_objects() -> None:
    both = pair(tv.maskrcnn_resnet50_fpn, **(SMALL | LEARNING))
    images = [picture(96, 128, 3), picture(96, 128, 5)]
    learn(both, images, [objects(96, 128, 2, 0), objects(96, 128, 0, 1)], learn_norms=False)
