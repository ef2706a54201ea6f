"""MMDetection's detectors with seeded random weights against the same weights opened here, on photos.

    python benchmarks/mmdetection_parity.py [--data FOLDER] [--pictures 2] [--variants mask-rcnn_r50 ...]
    python benchmarks/mmdetection_parity.py --fixtures      what the committed fixtures say; MMDetection is not needed
    python benchmarks/mmdetection_parity.py --write         make those fixtures anew

FOLDER is a COCO data set (default: `coco128` in the folder that MASKRCNN_TEST_DATA names). MMDetection builds the
detector from the config of its wheel and detects with its own `inference_detector`, OpenCV's resizing included; we open
the same weights as a `.pth` with the config inside. Photos are resized as in the zoo: shorter side 800 px, longer at
most 1333.

MMDetection wants MMCV with compiled ops, which on a current torch may not build as a whole. These detectors use two of
them, `nms` and `roi_align`: the figures in `docs/checkpoints.md` were made with those two, built from MMCV's sources.

A line gives the largest difference over all detections of both sides: corners of boxes in pixels of the photo, scores
and mask probabilities as they are. A detection whose score or overlap lies within rounding of a limit may be on one
side only: those are counted. MMCV's NMS moves the boxes of each class apart by an offset in float32, which rounds
corners to as much as 1/128 px before overlaps are measured; ours measures them as they are. MMDetection also hands out
boxes that the border of the picture cut to nothing; they have their place among the best hundred, and are left out of
what is found here.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import maskrcnn
from maskrcnn.data.pictures import picture_files, read_picture
from maskrcnn.weights import class_names

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from weights import mmdetection_fixture as fixtures

Roles = tuple[tuple[str, str], ...]
CAFFE: Roles = ((r"backbone\.conv1\.weight$", "weight:0.02"),)  # pixels of +-120 come in
SHARP: Roles = ((r"fc_cls\.weight$", "weight:3"), (r"conv_logits\.weight$", "weight:2"))  # for heads with norms
SOFT: Roles = ((r"fc_cls\.weight$", "weight:0.25"),)  # for photos, whose best hundred of a thousand RoIs are near 1
MASKS_KEPT = 4  # of each picture, in a fixture
SMALL_SIZE, SMALL_PROPOSALS, SMALL_DETECTIONS = (448, 256), 150, 60  # of fixtures, so that their tests take seconds


@dataclass(frozen=True)
class Variant:
    """config: in MMDetection's wheel. roles: of weights, before the usual ones. classes: other than COCO's."""

    config: str
    seed: int = 2
    roles: Roles = ()
    classes: tuple[str, ...] = ()


VARIANTS = {
    "mask-rcnn_r50": Variant("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"),
    "mask-rcnn_r50-caffe": Variant("mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py", roles=CAFFE),
    "mask-rcnn_r101": Variant("mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py"),
    "mask-rcnn_x101-32x8d": Variant("mask_rcnn/mask-rcnn_x101-32x8d_fpn_1x_coco.py"),
    "mask-rcnn_x101-64x4d": Variant("mask_rcnn/mask-rcnn_x101-64x4d_fpn_1x_coco.py"),
    "mask-rcnn_r50-gn": Variant("gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py", 3, (*CAFFE, *SHARP)),
    "mask-rcnn_r50_3-classes": Variant("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", classes=("cell", "nucleus", "debris")),
    "cascade-mask-rcnn_r50": Variant("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", 3),
    "faster-rcnn_r50": Variant("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", 6),
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
    if not options.fixtures:
        require_mmdetection()
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), float32", flush=True)
    print(f"{'':26}{'detections':>11}{'boxes':>10}{'scores':>10}{'masks':>10}{'only one side':>15}", flush=True)
    for name in options.variants if not options.fixtures else fixtures.names():
        started = time.perf_counter()
        if options.write:
            differences = write_fixture(name)
        elif options.fixtures:
            differences = compare_fixture(name)
        else:
            differences = compare_photos(name, photos(options.data, options.pictures))
        show(name, differences, time.perf_counter() - started)


def require_mmdetection() -> None:
    try:
        with warnings.catch_warnings(action="ignore"):
            import mmcv.ops  # noqa: F401
            import mmdet  # noqa: F401
    except (ImportError, AssertionError) as error:  # it asserts versions
        sys.exit(f"error: MMDetection does not run here ({error}); --fixtures compares with what it printed")


def show(name: str, found: fixtures.Differences, seconds: float) -> None:
    masks = f"{found.masks:10.1e}" if "masks" in found.kinds else f"{'-':>10}"
    alone = f"{found.missing} and {found.surplus}"
    print(
        f"{name:26}{found.detections:11d}{found.boxes:10.1e}{found.scores:10.1e}{masks}{alone:>15}   ({seconds:.0f} s)",
        flush=True,
    )


def photos(data: Path, count: int) -> dict[str, np.ndarray]:
    """(H, W, 3) uint8 RGB, the first `count` of the folder's pictures."""
    return {path.stem: read_picture(path) for path in list(picture_files([data / "images"]))[:count]}


def compare_photos(name: str, pictures: Mapping[str, np.ndarray]) -> fixtures.Differences:
    peer = Peer(VARIANTS[name], small=False)
    ours = opened(peer.weights, peer.config, peer.classes)
    differences = fixtures.Differences()
    for picture in pictures.values():
        differences.add(ours.predict(picture), peer.detect(picture, masks=None))
    return differences


def compare_fixture(name: str) -> fixtures.Differences:
    fixture = fixtures.Fixture.read(name)
    ours = opened(fixture.weights(), fixture.about["config"], fixture.about["classes"])
    differences = fixtures.Differences()
    for picture, found in fixture.found.items():
        differences.add(ours.predict(fixtures.PICTURES / f"{picture}.png"), found)
    return differences


def opened(weights: Mapping[str, torch.Tensor], config: str, classes: tuple[str, ...]) -> Any:
    meta = {"cfg": config, "dataset_meta": {"classes": tuple(classes)}}
    with tempfile.TemporaryDirectory() as folder:
        return maskrcnn.load(fixtures.write(Path(folder) / "epoch_12.pth", weights, meta), device="cpu")


def write_fixture(name: str) -> fixtures.Differences:
    import cv2
    import mmcv
    import mmdet

    peer = Peer(VARIANTS[name], small=True)
    pictures = {name: read_picture(fixtures.PICTURES / f"{name}.png") for name in fixtures.PICTURE_NAMES}
    libraries = {"mmdet": mmdet, "mmcv": mmcv, "opencv": cv2, "torch": torch}
    about = {
        "tensors": {tensor: list(values.shape) for tensor, values in peer.weights.items()},
        "config": peer.config,
        "classes": peer.classes,
        "roles": peer.roles,
        "seed": VARIANTS[name].seed,
        "versions": {library: module.__version__ for library, module in libraries.items()},
    }
    fixtures.Fixture(about, {picture: peer.detect(pixels) for picture, pixels in pictures.items()}).write(name)
    return compare_fixture(name)


# --- MMDetection's side -----------------------------------------------------------------------------------------------


class Peer:
    """A detector of MMDetection with seeded weights, behind its own `inference_detector`."""

    def __init__(self, variant: Variant, small: bool) -> None:
        import mmdet
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
        from mmengine.config import Config

        register_all_modules()
        config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / variant.config)
        for section in set(config) - {"model", "test_dataloader"}:
            config.pop(section)
        config.model.train_cfg = None
        config.model.backbone.pop("init_cfg")  # weights to download
        if variant.classes:
            for head in ("bbox_head", "mask_head"):
                config.model.roi_head[head].num_classes = len(variant.classes)
        if small:
            resize = next(step for step in config.test_dataloader.dataset.pipeline if step.type == "Resize")
            resize.scale = SMALL_SIZE
            config.model.test_cfg.rpn.max_per_img = SMALL_PROPOSALS
            config.model.test_cfg.rcnn.max_per_img = SMALL_DETECTIONS
        self.model = MODELS.build(config.model).eval()
        self.model.cfg = config
        self.config: str = config.pretty_text
        self.classes = variant.classes or class_names.coco().names
        self.roles = (*variant.roles, *(() if small else SOFT), *fixtures.ROLES)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        self.weights = fixtures.weights(shapes, self.roles, variant.seed)
        self.model.load_state_dict(self.weights)
        self.masks: torch.Tensor | None = None
        if self.model.roi_head.with_mask:
            self._keep_masks()

    def _keep_masks(self) -> None:
        """Mask probabilities of the detections' own classes, before they are pasted into the picture."""
        heads = self.model.roi_head.mask_head
        head = heads[-1] if isinstance(heads, torch.nn.ModuleList) else heads
        paste = head.predict_by_feat

        def kept(mask_preds: Any, results_list: Any, *rest: Any, activate_map: bool = False, **named: Any) -> Any:
            labels = results_list[0].labels
            masks = mask_preds[0][torch.arange(len(labels)), labels]
            self.masks = masks if activate_map else masks.sigmoid()  # a cascade hands on the mean of probabilities
            return paste(mask_preds, results_list, *rest, activate_map=activate_map, **named)

        head.predict_by_feat = kept

    def detect(self, picture: np.ndarray, masks: int | None = MASKS_KEPT) -> dict[str, np.ndarray]:
        """picture: (H, W, 3) RGB. masks: how many to keep, spread over all; None: all."""
        from mmdet.apis import inference_detector

        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            found = inference_detector(self.model, np.ascontiguousarray(picture[:, :, ::-1])).pred_instances
        has_area = (found.bboxes[:, 2:] > found.bboxes[:, :2]).all(dim=1)  # some are cut to nothing at the border
        found = found[has_area]
        result = {
            "boxes": found.bboxes.numpy(),
            "scores": found.scores.numpy(),
            "labels": found.labels.numpy().astype(np.int32),
        }
        if self.masks is not None:
            count = len(found) if masks is None else min(masks, len(found))
            result["chosen"] = np.linspace(0, len(found) - 1, count).astype(np.int32)
            chosen = self.masks[has_area][result["chosen"]].numpy()
            result["masks"] = np.round(chosen * fixtures.MASK_SCALE).astype(np.uint16)
            result["areas"] = found.masks.numpy().sum(axis=(1, 2)).astype(np.int32)
        return result


if __name__ == "__main__":
    main()
