"""Torchvision's detectors with seeded random weights against the same weights opened here, on photos.

    python benchmarks/torchvision_parity.py [--data FOLDER] [--pictures 2] [--variants r50-fpn ...]
    python benchmarks/torchvision_parity.py --fixtures      what the committed fixtures say
    python benchmarks/torchvision_parity.py --write         make those fixtures anew

FOLDER is a COCO data set (default: `coco128` in the folder that MASKRCNN_TEST_DATA names). We open the weights as a
`.pth` of torchvision. Photos are resized as both do: shorter side 800 px, longer at most 1333. r50-fpn, faster-r50-fpn
and keypoint-r50-fpn are built as torchvision builds them for COCO_V1, whose frozen norms add 0 to variances; the others
of these names add 1e-5.

A line gives the largest difference over all detections of both sides: corners of boxes and keypoints in pixels of the
photo, scores and mask probabilities as they are. A detection whose score or overlap lies within rounding of a limit may
be on one side only: those are counted. Stage by stage, and in learning: `torchvision_stages.py`.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torchvision
from torchvision.models import detection as tv
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import maskrcnn
from maskrcnn.data.pictures import picture_files, read_picture

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from weights import torchvision_fixture as fixtures

Roles = tuple[tuple[str, str], ...]
MASKS_KEPT = 3  # of each picture, in a fixture
SOFT: Roles = ((r"cls_score\.weight$", "weight:0.25"),)  # for heads with norms


@dataclass(frozen=True)
class Variant:
    """build: a whole detector of torchvision, or the class that stands on a frozen ResNet-50 whose norms add `eps`.

    num_classes: background included, as torchvision counts. roles: of weights, before the usual ones.
    """

    build: Callable[..., Any]
    eps: float | None = None
    num_classes: int = 91
    roles: Roles = ()
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
    "keypoint-r50-fpn": Variant(tv.KeypointRCNN, eps=0.0, num_classes=2, detections=10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MASKRCNN_TEST_DATA", ".")) / "coco128")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--fixtures", action="store_true", help="compare with the committed fixtures")
    parser.add_argument("--write", action="store_true", help="write the fixtures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("maskrcnn").setLevel(logging.ERROR)  # nothing is left to assume: the peer is at hand
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{versions}, {platform.machine()}, {options.threads} thread(s), float32", flush=True)
    print(f"{'':22}{'detections':>11}{'boxes':>10}{'scores':>10}{'masks':>10}{'keypoints':>11}{'only one side':>15}")
    for name in options.variants:
        started = time.perf_counter()
        if options.write:
            differences = write_fixture(name)
        elif options.fixtures:
            differences = compare_fixture(name)
        else:
            differences = compare_photos(name, options.data, options.pictures)
        show(name, differences, time.perf_counter() - started)


def show(name: str, found: fixtures.Differences, seconds: float) -> None:
    masks = f"{found.masks:10.1e}" if "masks" in found.kinds else f"{'-':>10}"
    keypoints = f"{found.keypoints:11.1e}" if "keypoints" in found.kinds else f"{'-':>11}"
    alone = f"{found.missing} and {found.surplus}"
    print(
        f"{name:22}{found.detections:11d}{found.boxes:10.1e}{found.scores:10.1e}{masks}{keypoints}{alone:>15}"
        f"   ({seconds:.0f} s)",
        flush=True,
    )


def compare_photos(name: str, data: Path, count: int) -> fixtures.Differences:
    peer = Peer(VARIANTS[name])
    ours = opened(peer.weights, peer.config)
    differences = fixtures.Differences()
    for path in list(picture_files([data / "images"]))[:count]:
        picture = read_picture(path)
        differences.add(ours.predict(picture), peer.detect(picture, masks=None))
    return differences


def compare_fixture(name: str) -> fixtures.Differences:
    fixture = fixtures.read(name)
    about = fixture.about
    ours = opened(fixtures.weights(about["tensors"], about["roles"], about["seed"]), about["config"])
    differences = fixtures.Differences()
    for picture, found in fixture.found.items():
        differences.add(ours.predict(fixtures.PICTURES / f"{picture}.png"), found)
    return differences


def opened(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, Path(folder) / "model.pth")
        return maskrcnn.load(Path(folder) / "model.pth", config, device="cpu")


def write_fixture(name: str) -> fixtures.Differences:
    peer = Peer(VARIANTS[name], shortest=224, longest=360, proposals=200, detections=VARIANTS[name].detections)
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
    return compare_fixture(name)


# --- torchvision's side -----------------------------------------------------------------------------------------------


class Peer:
    """A detector of torchvision with seeded weights, and what its weights do not tell in fields of our config."""

    def __init__(
        self, variant: Variant, shortest: int = 800, longest: int = 1333, proposals: int = 1000, detections: int = 100
    ) -> None:
        self.model = variant.peer(
            min_size=shortest,
            max_size=longest,
            rpn_post_nms_top_n_test=proposals,
            box_detections_per_img=detections,
        ).eval()
        self.config: dict[str, Any] = {
            "preprocess": {"shortest": shortest, "longest": longest},
            "rpn": {"post_nms_top_n": proposals},
            "detection": {"max_detections": detections},
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
