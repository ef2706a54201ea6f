"""R-CNN (Girshick et al. 2014), the figure: proposals, warped regions, CNN features, SVMs, box regression, NMS.

    P proposals    F features    K classes    S side of a warped region    boxes: (x1, y1, x2, y2), float pixels

Four things are learned one after the other, each from what the one before left behind: the network by fine-tuning, then
one SVM a class from features on disk, then box regression from the same features. And every region runs through the
whole network by itself, though neighbours share most of their pixels: that is what makes R-CNN slow, and what Fast
R-CNN does away with.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.data.classes import Classes
from maskrcnn.engine.memory import freed_memory_kept
from maskrcnn.lineage.box_regression import BoxRegressors, RidgeSums
from maskrcnn.lineage.feature_cache import FeatureCache, Features, fill
from maskrcnn.lineage.fine_tuning import fine_tune
from maskrcnn.lineage.kept import digest_of, keep, kept
from maskrcnn.lineage.learning import recipe_for_bench
from maskrcnn.lineage.proposing import proposals_of, seconds_of_proposing
from maskrcnn.lineage.region_net import RegionNet, RegionNetConfig, digest
from maskrcnn.lineage.regions import Regions, regions_of, regression_pairs, svm_examples
from maskrcnn.lineage.selective_search import selective_search
from maskrcnn.lineage.small import most_detections
from maskrcnn.lineage.standardise import standard_of
from maskrcnn.lineage.svm import Examples, LinearSVMs, SVMConfig, scores_from_margins, train_svms
from maskrcnn.lineage.system import Bench, Stopwatch, System, Trained
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.config import require, to_dict
from maskrcnn.ops.boxes import clip, is_large_enough
from maskrcnn.ops.nms import nms_keep, top_k
from maskrcnn.structures import Detections
from maskrcnn.training.distributed import World, join_world
from maskrcnn.training.start import settled_recipe

_log = logging.getLogger("maskrcnn")

# How the minutes are shared out. SVMs and box regression take what they need, a tenth or less; proposals are not
# counted, since they are made once for all systems that start from them.
TUNING_SHARE = 0.6  # worth 44.7 to 54.2 mAP in the paper (table 2, fc7); without pretraining it is all the net learns
FEATURES_SHARE = 0.3  # a picture that has no features by then teaches SVMs and box regression nothing


@dataclass(frozen=True, kw_only=True)
class RCNNDetection:
    """What of the scored regions becomes a detection."""

    nms_iou: float = 0.3  # between detections of one class; R-CNN's code
    least_margin: float = -1.5  # background lies at -1 or below; what is further out is so without a doubt
    max_detections: int = 100  # per picture, best first
    min_size: float = 1e-2  # px, detections with a shorter side are dropped

    def __post_init__(self) -> None:
        require(0 <= self.nms_iou <= 1, self, "nms_iou", "0 to 1")
        require(self.max_detections >= 1, self, "max_detections", "at least 1")


@dataclass(frozen=True)
class RCNN:
    """The four learned parts, and how a picture runs through them."""

    net: RegionNet
    svms: LinearSVMs
    regressors: BoxRegressors
    classes: Classes
    proposer: Callable[[np.ndarray], Tensor] = selective_search
    config: RCNNDetection = RCNNDetection()

    @torch.no_grad()
    def detect(self, picture: np.ndarray, watch: Stopwatch) -> Detections:
        """Every object of a picture (H, W, 3) uint8 RGB."""
        size = picture.shape[:2]
        with watch("proposals"):
            proposals = self.proposer(picture)  # (P, 4)
        features = self.net.features_of(_as_tensor(picture), proposals, watch)  # (P, F), by way of (P, 3, S, S)
        with watch("SVM"):
            margins = self.svms.scores(features)  # (P, K)
        with watch("boxes"):
            boxes = clip(self.regressors.moved(features, proposals), *size)  # (P, K, 4)
            return select(boxes, margins, self.classes, size, self.config)


def select(
    boxes: Tensor, margins: Tensor, classes: Classes, size: tuple[int, int], config: RCNNDetection
) -> Detections:
    """NMS class by class, and the best of what is left. boxes: (P, K, 4). margins: (P, K)."""
    num_classes = margins.shape[1]
    boxes, margins = boxes.reshape(-1, 4), margins.flatten()  # (P * K, 4), (P * K,)
    labels = torch.arange(1, num_classes + 1).repeat(len(margins) // num_classes)
    valid = (margins > config.least_margin) & is_large_enough(boxes, config.min_size)
    kept_rows = nms_keep(boxes, margins, config.nms_iou, valid=valid, groups=labels)
    best, rows = top_k(margins.masked_fill(~kept_rows, -torch.inf), config.max_detections, stable=True)
    rows = rows[best.isfinite()]
    positions = (labels[rows] - 1).tolist()
    return Detections(
        boxes=boxes[rows],
        scores=scores_from_margins(margins[rows]),
        labels=labels[rows],
        names=tuple(classes.names[k] for k in positions),
        category_ids=tuple(classes.category_ids[k] for k in positions),
        masks=None,
        size=size,
    )


# --- learning, in the order of the paper ---------------------------------------------------------------------------


def train(bench: Bench) -> Trained:
    """Train all of R-CNN in `bench.folder`; each part that is there already, of the same settings, is read.

    Seconds of training are those it took when a part was made, whichever call that was.

    Errors: `InputError` where the disk is full, or a library is missing.
    """
    progress = bench.progress
    with join_world(bench.device) as world, freed_memory_kept():
        proposals = proposals_of(bench.train, bench.proposals, lambda done, total: progress("proposals", done / total))
        regions = [_regions(bench, i, proposals[i]) for i in range(len(bench.train))]
        net, tuning = _network(bench, regions, world)
        source = _Source(bench, regions, net)
        features_seconds = source.choose(60 * bench.minutes * FEATURES_SHARE)
        svms, svm_seconds = _svms(bench, source)
        regressors, regression_seconds = _regressors(bench, source)
    training = {
        "proposals": seconds_of_proposing(bench.train, bench.proposals),
        "fine-tuning": tuning["seconds"],
        "features": features_seconds,
        "SVM": svm_seconds,
        "box regression": regression_seconds,
    }
    facts = {
        "steps": tuning["steps"],
        "loss": tuning["loss"],
        "pictures with features": float(len(source.pictures)),
        "regions with features": float(sum(len(regions[i]) for i in source.pictures)),
    }
    config = RCNNDetection(max_detections=most_detections(bench.train))
    return Trained(RCNN(net, svms, regressors, bench.train.classes, config=config).detect, training, facts)


class _Source:
    """Features of the training pictures as SVMs and box regression see them: from disk, one picture at a time."""

    def __init__(self, bench: Bench, regions: list[Regions], net: RegionNet) -> None:
        self.bench, self.regions, self.net = bench, regions, net
        self.made_by = digest(net)
        self.cache = FeatureCache(bench.folder / "features", self.made_by)
        self.pictures: list[int] = []  # positions of those that have features

    def choose(self, seconds: float) -> float:
        """All pictures in a seeded order, or as many as have their features after `seconds`; gives the seconds."""
        order = np.random.default_rng((self.bench.seed, 0)).permutation(len(self.regions)).tolist()
        progress = self.bench.progress
        filled, spent = fill(order, self.features, seconds, lambda done: progress("features", done))
        self.pictures = sorted(filled)
        return spent

    def features(self, i: int) -> Features:
        def make() -> Tensor:
            return self.net.features_of(_as_tensor(self.bench.train.sample(i)[0]), self.regions[i].boxes)

        return self.cache.features(self.bench.train.image_id(i), self.regions[i].boxes, make)

    def __iter__(self) -> Iterator[tuple[Regions, Tensor]]:
        for i in self.pictures:
            yield self.regions[i], self.features(i).values

    @property
    def digest(self) -> str:
        """Of all that SVMs and box regression learn from."""
        return digest_of(self.made_by, _digest(self.regions[i] for i in self.pictures))


def _network(bench: Bench, regions: list[Regions], world: World) -> tuple[RegionNet, dict[str, float]]:
    """The fine-tuned network on its device; steps, loss and seconds of its training."""
    recipe = settled_recipe(recipe_for_bench(bench, bench.minutes * TUNING_SHARE), {}, "nano", None, world)
    torch.manual_seed(bench.seed)
    config = RegionNetConfig(body=_body(bench), num_classes=len(bench.train.classes))
    net = RegionNet(config, pretrained=bench.pretrained).to(world.device).to(memory_format=torch.channels_last)
    net.body.freeze(recipe.freeze)
    path, settings = bench.folder / "network.safetensors", _settings(recipe, config, bench)
    made_from = digest_of(settings, _digest(regions))
    found = kept(path, made_from)
    if found is not None:
        net.load_state_dict(found.tensors)
        return net.eval(), found.facts
    began = time.perf_counter()
    tuned = fine_tune(net, bench.train, regions, recipe, lambda done: bench.progress("fine-tuning", done))
    facts = {"steps": float(tuned.steps), "loss": tuned.loss, "seconds": time.perf_counter() - began}
    keep(path, made_from, tuned.net.state_dict(), facts)
    return tuned.net, facts


def _body(bench: Bench) -> BackboneConfig:
    """The body down to c5. Without pretraining there are no statistics to freeze: norms learn theirs from regions."""
    body = replace(bench.body, levels=("c5",), taps={})
    if body.norm != "frozen" or bench.pretrained:
        return body
    return replace(body, norm="batch", frozen_stages=0)


def _settings(recipe: Any, config: RegionNetConfig, bench: Bench) -> str:
    """What the network follows from, but for the pictures. Precision is asked of the machine each time."""
    values = to_dict(replace(recipe, precision="auto")), to_dict(config), bench.pretrained, bench.train.image_ids
    return json.dumps(values, sort_keys=True)


def _svms(bench: Bench, source: _Source) -> tuple[LinearSVMs, float]:
    """One SVM a class, from objects against what is far from them; and the seconds that took."""
    classes, config = bench.train.classes, SVMConfig(seed=bench.seed, positive_weight=_positive_weight(bench, source))
    path, made_from = bench.folder / "svms.safetensors", digest_of(source.digest, repr(config), *classes.names)
    found = kept(path, made_from)
    if found is not None:
        svms = LinearSVMs(found.tensors["weights"], found.tensors["biases"], found.facts["scale"])
        return svms, found.facts["seconds"]
    began = time.perf_counter()
    standard = standard_of((features for _, features in source), source.net.num_features)

    def pictures() -> Iterator[Examples]:
        for done, (regions, features) in enumerate(source):
            bench.progress("SVM", done / len(source.pictures))
            is_positive, is_negative = svm_examples(regions, len(classes))
            yield Examples(standard.applied(features).numpy(), is_positive.numpy(), is_negative.numpy())

    trained = train_svms(pictures, classes.names, config)
    for note in trained.notes:
        _log.warning("R-CNN: %s", note)
    svms = standard.undone(trained.svms)
    seconds = time.perf_counter() - began
    keep(
        path,
        made_from,
        {"weights": svms.weights, "biases": svms.biases},
        {"scale": svms.scale, "seconds": seconds},
    )
    return svms, seconds


def _positive_weight(bench: Bench, source: _Source) -> float:
    """Of a positive's loss in an SVM: so much that all objects of a class weigh as much as its first hard negatives.

    R-CNN's code has 2, for the thousands of objects that a class has in its data. Where objects are few and features
    weak, hard negatives outnumber them so that the best SVM of all is one that never fires.
    """
    objects = sum(len(source.regions[i].gt_labels) for i in source.pictures) / len(bench.train.classes)
    return max(2.0, SVMConfig().retrain_after / max(1.0, objects))


def _regressors(bench: Bench, source: _Source) -> tuple[BoxRegressors, float]:
    """Four ridge regressions a class, from proposals that are near an object; and the seconds that took."""
    path, made_from = bench.folder / "regressors.safetensors", source.digest
    found = kept(path, made_from)
    if found is not None:
        return BoxRegressors(found.tensors["weights"], found.tensors["offsets"]), found.facts["seconds"]
    began = time.perf_counter()
    sums = RidgeSums(source.net.num_features, len(bench.train.classes))
    for done, (regions, features) in enumerate(source):
        bench.progress("box regression", done / len(source.pictures))
        rows, nearest = regression_pairs(regions)
        sums.add(features[rows], regions.boxes[rows], regions.gt_boxes[nearest], regions.gt_labels[nearest])
    regressors = sums.solve()
    seconds = time.perf_counter() - began
    keep(path, made_from, {"weights": regressors.weights, "offsets": regressors.offsets}, {"seconds": seconds})
    return regressors, seconds


def _regions(bench: Bench, i: int, proposals: Tensor) -> Regions:
    target = bench.train.target(i)
    return regions_of(target.gt_boxes, target.gt_labels, target.is_crowd, proposals)


def _digest(regions: Iterable[Regions]) -> str:
    return digest_of(*(part for some in regions for part in (some.boxes, some.gt_labels, some.crowd_boxes)))


def _as_tensor(picture: np.ndarray) -> Tensor:
    """(H, W, 3) to (3, H, W); torch warns of arrays it may not write to."""
    return torch.from_numpy(np.require(picture, requirements="W")).permute(2, 0, 1)


SYSTEM = System(
    key="rcnn",
    name="R-CNN",
    source="Girshick et al. 2014, Rich feature hierarchies for accurate object detection and semantic segmentation",
    train=train,
)
