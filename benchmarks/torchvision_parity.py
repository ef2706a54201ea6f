"""Torchvision's detectors with seeded random weights against the same weights opened here, on photos.

    python benchmarks/torchvision_parity.py [--data FOLDER] [--pictures 2] [--variants r50-fpn ...]
    python benchmarks/torchvision_parity.py --fixtures      what the committed fixtures say
    python benchmarks/torchvision_parity.py --write         make those fixtures anew

FOLDER is a COCO data set (default: `coco128` in the folder that MASKRCNN_TEST_DATA names). We open the weights as a
`.pth` of torchvision. Photos are resized as both do: shorter side 800 px, longer at most 1333; 320 and 640 where a name
says so. r50-fpn, faster-r50-fpn and keypoint-r50-fpn are built as torchvision builds them for COCO_V1, whose frozen
norms add 0 to variances; the others of these names add 1e-5.

A line gives the largest difference over all detections of both sides: corners of boxes and keypoints in pixels of the
photo, scores and mask probabilities as they are. A detection whose score or overlap lies within rounding of a limit may
be on one side only: those are counted. Stage by stage, and in learning: `torchvision_stages.py`.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import parity_table
import torch
import torchvision
from torchvision.models import detection as tv
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import maskrcnn
from maskrcnn.data.pictures import read_picture

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from weights import parity
from weights import torchvision_fixture as fixtures

Roles = tuple[tuple[str, str], ...]
MASKS_KEPT = 3  # of each picture, in a fixture
SOFT: Roles = ((r"cls_score\.weight$", "weight:0.25"),)  # for heads with norms
MOBILE: Roles = (  # whose norms have other names; many of its proposals lie below the threshold
    (r"body\.\d+\.block\.[23]\.1\.weight$", "scale:0.7"),
    (r"body\.\d+\.(block\.\d\.)?1\.weight$", "scale:1"),
    (r"cls_logits\.weight$", "normal:0.05"),
    (r"cls_logits\.bias$", "constant:-6"),
)
SMALL = {"min_size": 224, "max_size": 360, "rpn_post_nms_top_n_test": 200}  # of fixtures: their tests take seconds


@dataclass(frozen=True)
class Variant:
    """build: a whole detector of torchvision, or the class that stands on a frozen ResNet-50 whose norms add `eps`.

    num_classes: background included, as torchvision counts. roles: of weights, before the usual ones.
    """

    build: Callable[..., Any]
    eps: float | None = None
    num_classes: int = 91
    roles: Roles = ()
    small: Mapping[str, int] = field(default_factory=lambda: SMALL)  # what a fixture has otherwise
    detections: int = 60  # at most, in a fixture
    seed: int = 0

    def peer(self, **options: Any) -> Any:
        if self.eps is None:
            return self.build(weights=None, weights_backbone=None, num_classes=self.num_classes, **options)
        body = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
        model = self.build(body, num_classes=self.num_classes, **options)
        overwrite_eps(model, self.eps)
        return model


VARIANTS = {
    "r50-fpn": Variant(tv.MaskRCNN, eps=0.0),
    "r50-fpn-eps": Variant(tv.MaskRCNN, eps=1e-5),
    "r50-fpn-v2": Variant(tv.maskrcnn_resnet50_fpn_v2, roles=SOFT, seed=2),
    "faster-r50-fpn": Variant(tv.FasterRCNN, eps=0.0, seed=3),
    "faster-r50-fpn-v2": Variant(tv.fasterrcnn_resnet50_fpn_v2, roles=SOFT, seed=1),
    "faster-mobilenet-fpn": Variant(tv.fasterrcnn_mobilenet_v3_large_fpn, roles=MOBILE),
    "faster-mobilenet-fpn-320": Variant(tv.fasterrcnn_mobilenet_v3_large_320_fpn, roles=MOBILE, small={}),
    "keypoint-r50-fpn": Variant(tv.KeypointRCNN, eps=0.0, num_classes=2, detections=10),
}


def main() -> None:
    options = parity_table.options_of(__doc__, VARIANTS, fixtures.names())
    logging.getLogger("maskrcnn").setLevel(logging.ERROR)  # nothing is left to assume: the peer is at hand
    print(f"torchvision {torchvision.__version__}")
    comparisons = parity_table.Comparisons(compare_photos, compare_fixture, write_fixture)
    parity_table.print_table(options, comparisons, {**parity_table.NUMBERS, **parity_table.KEYPOINTS})


def compare_photos(name: str, pictures: list[np.ndarray]) -> parity.Differences:
    peer = Peer(VARIANTS[name])
    ours = opened(peer.weights, peer.config)
    differences = parity.Differences()
    for picture in pictures:
        differences.add(ours.predict(picture), peer.detect(picture, masks=None))
    return differences


def compare_fixture(name: str) -> parity.Differences:
    fixture = fixtures.read(name)
    about = fixture.about
    ours = opened(fixtures.weights(about["tensors"], about["roles"], about["seed"]), about["config"])
    return parity.compared(ours, fixture)


def opened(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, Path(folder) / "model.pth")
        return maskrcnn.load(Path(folder) / "model.pth", config, device="cpu")


def write_fixture(name: str) -> None:
    peer = Peer(VARIANTS[name], **VARIANTS[name].small, box_detections_per_img=VARIANTS[name].detections)
    about = {
        "tensors": {tensor: list(value.shape) for tensor, value in peer.weights.items()},
        "config": peer.config,
        "roles": peer.roles,
        "seed": VARIANTS[name].seed,
        "versions": {"torchvision": torchvision.__version__, "torch": torch.__version__},
    }
    found = {
        picture: peer.detect(read_picture(fixtures.PICTURES / f"{picture}.png")) for picture in fixtures.PICTURE_NAMES
    }
    fixtures.Fixture(about, found).write(name, fixtures.FOLDER)


# --- torchvision's side -----------------------------------------------------------------------------------------------


class Peer:
    """A detector of torchvision with seeded weights, and what its weights do not tell in fields of our config."""

    def __init__(self, variant: Variant, **options: Any) -> None:
        self.model = variant.peer(**options).eval()
        transform, rpn = self.model.transform, self.model.rpn
        limits = {"pre_nms_top_n": rpn._pre_nms_top_n, "post_nms_top_n": rpn._post_nms_top_n}
        self.config: dict[str, Any] = {
            "preprocess": {"shortest": transform.min_size[-1], "longest": transform.max_size},
            "rpn": {name: counts["testing"] for name, counts in limits.items()},
            "detection": {"max_detections": self.model.roi_heads.detections_per_img},
        }
        if variant.eps:  # 0 is what a file with COCO's classes means
            self.config["backbone"] = {"norm_eps": variant.eps}
        self.roles = (*variant.roles, *fixtures.ROLES)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        self.weights = fixtures.weights(shapes, self.roles, variant.seed)
        self.model.load_state_dict(self.weights)
        self.model.roi_heads.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Mask probabilities, before they are pasted into the picture."""
        masks = outputs[0][0].get("masks")
        self.masks = None if masks is None else masks[:, 0].numpy()

    @torch.no_grad()
    def detect(self, picture: np.ndarray, masks: int | None = MASKS_KEPT) -> dict[str, np.ndarray]:
        """picture: (H, W, 3) RGB. masks: how many to keep, spread over all; None: all."""
        (found,) = self.model([torch.from_numpy(picture).permute(2, 0, 1) / 255])
        count = len(found["boxes"])
        result = {
            "boxes": found["boxes"].numpy(),
            "scores": found["scores"].numpy(),
            "labels": found["labels"].numpy().astype(np.int32) - 1,
        }
        if self.masks is not None:
            kept = count if masks is None else min(masks, count)
            result["chosen"] = np.linspace(0, count - 1, kept).astype(np.int32)
            result["masks"] = np.round(self.masks[result["chosen"]] * fixtures.MASK_SCALE).astype(np.uint16)
        if "keypoints" in found:
            points = torch.cat([found["keypoints"][..., :2], found["keypoints_scores"][..., None]], dim=2)
            result["keypoints"] = points.numpy()
        return result


if __name__ == "__main__":
    main()
