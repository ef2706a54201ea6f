"""Torchvision's detectors with random weights, converted: the same answer of every stage, the same gradients.

What either side does is in `torchvision_peer.py`. Where a test counts pairs at a limit it says so.
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
from torchvision.ops.misc import FrozenBatchNorm2d

import maskrcnn
from maskrcnn.bench.random_weights import randomise
from maskrcnn.data.opening import open_dataset
from maskrcnn.losses.mask_rcnn_loss import LossConfig, torchvision_loss
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.preprocess import Preprocess
from maskrcnn.structures import ImageBatch
from maskrcnn.weights.torchvision import load_torchvision

from . import torchvision_fixture as fixtures
from .torchvision_peer import (
    LOSSES,
    as_target,
    freeze_norms,
    gradients_of,
    learn_ours,
    learn_peer,
    matches,
    matches_of_class,
    proposals_at_limit,
    steps_of_ours,
    steps_of_peer,
)

NUM_CLASSES = 4  # K
SMALL = {  # numbers that keep a test quick
    "min_size": 192,
    "max_size": 320,
    "rpn_post_nms_top_n_test": 150,
    "rpn_post_nms_top_n_train": 300,
    "box_detections_per_img": 30,
    "box_batch_size_per_image": 64,
}


# --- detectors with random weights whose scores differ ----------------------------------------------------------------


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
    return Pair(peer, converted(peer))


def converted(peer: Any, norm_eps: float | None = None) -> MaskRCNN:
    """Ours, with the sizes and counts of `peer`, which its weights do not tell."""
    ours = load_torchvision(peer.state_dict(), norm_eps=norm_eps)
    shortest, longest = peer.transform.min_size[-1], peer.transform.max_size
    ours.config = replace(
        ours.config,
        preprocess=replace(ours.config.preprocess, shortest=shortest, longest=longest),
        rpn=replace(
            ours.config.rpn,
            pre_nms_top_n=peer.rpn._pre_nms_top_n["testing"],
            post_nms_top_n=peer.rpn._post_nms_top_n["testing"],
        ),
        detection=replace(ours.config.detection, max_detections=peer.roi_heads.detections_per_img),
    )
    ours.preprocess = Preprocess(ours.config.preprocess)
    return ours


@pytest.fixture(scope="module", params=["v1", "v2"])
def mask_rcnn(request: pytest.FixtureRequest) -> Pair:
    return pair({"v1": tv.maskrcnn_resnet50_fpn, "v2": tv.maskrcnn_resnet50_fpn_v2}[request.param], **SMALL)


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    """Two of different sizes: both are padded."""
    return [picture(150, 200, 1), picture(170, 130, 2)]


# --- detecting, stage by stage ----------------------------------------------------------------------------------------


def assert_near(ours: Tensor, theirs: Tensor, relative: float) -> None:
    """Largest difference, in the peer's largest value."""
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference <= relative, f"{difference:.2e}"


def test_the_stages_agree(mask_rcnn: Pair, pictures: list[Tensor]) -> None:
    theirs, ours = steps_of_peer(mask_rcnn.peer, pictures), steps_of_ours(mask_rcnn.ours, pictures)
    compare_steps(ours, theirs, mask_rcnn.ours)
    assert all(len(proposals) > 100 for proposals in ours.proposals)


def test_the_stages_of_a_mobilenet_agree(pictures: list[Tensor]) -> None:
    """Two maps of one stride, one of them from inside a stage, and proposals below a threshold left out."""
    both = pair(tv.fasterrcnn_mobilenet_v3_large_320_fpn, **SMALL)
    theirs, ours = steps_of_peer(both.peer, pictures), steps_of_ours(both.ours, pictures)
    compare_steps(ours, theirs, both.ours)
    assert [x.shape[2:] for x in ours.features.values()] == [(8, 8), (8, 8), (4, 4)]
    counts = []
    for threshold in (0.0, both.peer.rpn.score_thresh, 0.9):
        both.peer.rpn.score_thresh = threshold
        both.ours.config = replace(both.ours.config, rpn=replace(both.ours.config.rpn, score_threshold=threshold))
        theirs, ours = steps_of_peer(both.peer, pictures[:1]), steps_of_ours(both.ours, pictures[:1])
        assert len(matches(ours.proposals[0], theirs.proposals[0])[0]) >= len(theirs.proposals[0]) - 1
        counts.append(len(ours.proposals[0]))
    assert counts[0] > counts[2] > 0


def compare_steps(ours: Any, theirs: Any, model: MaskRCNN) -> None:
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
        assert len(ours.proposals[i]) == len(theirs.proposals[i])
        assert len(mine) >= len(ours.proposals[i]) - proposals_at_limit(ours.rpn, i, size, model)
        assert_near(ours.proposals[i][mine], theirs.proposals[i][its], 1e-4)
        compare_detections(ours.detections[i], theirs.detections[i])


def compare_detections(ours: dict[str, Tensor], theirs: dict[str, Tensor], at_least: float = 0.95) -> None:
    """At most one in twenty may be missing: the last of them, or one at a limit."""
    assert len(theirs["boxes"]) > 10
    assert abs(len(ours["boxes"]) - len(theirs["boxes"])) <= 1
    mine, its = matches_of_class(ours, theirs)
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


def test_frozen_norms_with_and_without_eps(pictures: list[Tensor]) -> None:
    """COCO_V1 of the first versions run with 0, all others with 1e-5: it matters where variances are small."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    peer = tv.MaskRCNN(backbone, NUM_CLASSES + 1, **SMALL)
    overwrite_eps(peer, 0.0)
    randomise(peer, picture(192, 256, 0))
    make_faint_(backbone.body)
    found = []
    for eps in (0.0, 1e-5):
        overwrite_eps(peer, eps)
        theirs, ours = steps_of_peer(peer, pictures), steps_of_ours(converted(peer, eps), pictures)
        for name, level in ours.features.items():
            assert_near(level, theirs.features[name], 1e-4)
        for mine, its in zip(ours.detections, theirs.detections, strict=True):
            compare_detections(mine, its)
        found.append(ours)
    without, with_eps = (steps.features["p2"] for steps in found)
    assert (without - with_eps).abs().max() > 0.1 * without.abs().max()
    without, with_eps = (steps.detections[0]["scores"][:10] for steps in found)
    assert (without - with_eps).abs().max() > 1e-2


def make_faint_(body: nn.Module) -> None:
    """Every eighth channel of each convolution as small as its norm's variance, 1e-6 to 1e-4, which makes up for it."""
    for name, norm in body.named_modules():
        if isinstance(norm, FrozenBatchNorm2d):
            conv = body.get_submodule(name.replace("bn", "conv").replace("downsample.1", "downsample.0"))
            variances = 10 ** torch.empty(len(norm.running_var[::8])).uniform_(-6, -4)
            factors = (variances / norm.running_var[::8]).sqrt()
            conv.weight.data[::8] *= factors[:, None, None, None]
            norm.running_mean[::8] *= factors
            norm.running_var[::8] = variances


FAST = ("faster-mobilenet-fpn", "keypoint-r50-fpn", "r50-fpn", "r50-fpn-eps", "r50-fpn-v2")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in fixtures.names()]
)
def test_finds_what_torchvision_found(name: str, tmp_path: Path) -> None:
    """The numbers that torchvision once printed, so that both sides do not change together."""
    fixture = fixtures.read(name)
    about = fixture.about
    torch.save(fixtures.weights(about["tensors"], about["roles"], about["seed"]), tmp_path / "model.pth")
    detector = maskrcnn.load(tmp_path / "model.pth", about["config"], device="cpu")

    differences = fixtures.Differences()
    for picture, found in fixture.found.items():
        differences.add(detector.predict(fixtures.PICTURES / f"{picture}.png"), found)

    assert differences.detections >= 30
    assert (differences.missing, differences.surplus) == (0, 0)
    assert differences.boxes < 0.05
    assert differences.scores < 1e-4
    assert differences.masks < 1e-3
    assert differences.keypoints < 0.5
    assert differences.kinds == {"keypoint": {"keypoints"}, "r50": {"masks"}, "faster": set()}[name.partition("-")[0]]


def test_what_torchvision_found_with_and_without_eps() -> None:
    """The same weights under the same names, and another answer."""
    without, with_eps = fixtures.read("r50-fpn"), fixtures.read("r50-fpn-eps")
    assert with_eps.about["config"] == without.about["config"] | {"backbone": {"norm_eps": 1e-5}}
    assert with_eps.about == without.about | {"config": with_eps.about["config"]}
    for picture, found in without.found.items():
        assert np.abs(found["scores"] - with_eps.found[picture]["scores"]).max() > 0.05


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


def learn(both: Pair, images: list[Tensor], objects: list[dict[str, Tensor]], learn_norms: bool) -> None:
    """One step on both sides, with the same sampled anchors and RoIs: compares losses, and leaves gradients."""
    peer, ours = both.peer.train(), both.ours.train()
    if not learn_norms:
        freeze_norms(peer)
        freeze_norms(ours)
    batch, resized = peer.transform(images, objects)
    batch.tensors = batch.tensors.to(next(ours.parameters()).dtype)
    sizes = torch.tensor(batch.image_sizes, dtype=torch.float32)
    targets = [as_target(target, seed) for seed, target in enumerate(resized)]
    our_batch = ImageBatch(batch.tensors, sizes, tuple((image.shape[1], image.shape[2]) for image in images))
    mine, recorder = learn_ours(ours, loss_config(peer), our_batch, targets)
    its = learn_peer(peer, batch, resized, mine.proposals, recorder)

    assert its.matched_otherwise == 0
    for our_boxes, its_boxes in zip(mine.proposals, its.proposals, strict=True):
        assert len(matches(our_boxes, its_boxes)[0]) >= 0.98 * len(its_boxes)
    assert mine.losses.keys() == {name for name, its_name in LOSSES.items() if its_name in its.losses}
    assert len(its.losses) == 4 + peer.roi_heads.has_mask() + peer.roi_heads.has_keypoint()
    for name, loss in mine.losses.items():
        assert loss.item() == pytest.approx(its.losses[LOSSES[name]].item(), rel=1e-5), name
        assert loss > 1e-3


def loss_config(peer: Any) -> LossConfig:
    """Torchvision's conventions with the counts of `peer`."""
    config = torchvision_loss()
    heads = replace(config.box, rois_per_image=peer.roi_heads.fg_bg_sampler.batch_size_per_image)
    return replace(config, box=heads, post_nms_top_n=peer.rpn._post_nms_top_n["training"])


def compare_gradients(ours: MaskRCNN, peer: Any, relative: float) -> None:
    """Largest difference within each tensor, in the peer's largest value."""
    assert not peer.roi_heads.box_predictor.bbox_pred.weight.grad[:4].any()  # background has no box,
    if peer.roi_heads.has_mask():
        assert not peer.roi_heads.mask_predictor.mask_fcn_logits.weight.grad[0].any()  # and no mask
    gradients = gradients_of(peer)
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
        (tv.fasterrcnn_mobilenet_v3_large_fpn, {}, torch.float64, False, 1e-3),
        (tv.maskrcnn_resnet50_fpn, {}, torch.float32, False, 1e-2),
        (tv.maskrcnn_resnet50_fpn_v2, {}, torch.float32, True, 5e-2),  # statistics of so few values enlarge rounding
    ],
    ids=["v1 resized", "v2 resized", "keypoints resized", "mobilenet", "v1 float32", "v2 with batch statistics"],
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
