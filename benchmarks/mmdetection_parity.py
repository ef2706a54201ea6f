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

import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import parity_table
import torch

import maskrcnn
from maskrcnn.data.pictures import read_picture
from maskrcnn.weights import class_names

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from weights import mmdetection_fixture as fixtures
from weights import parity

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
    options = parity_table.options_of(__doc__, VARIANTS, fixtures.names())
    if not options.fixtures:
        require_mmdetection()
    comparisons = parity_table.Comparisons(compare_photos, compare_fixture, write_fixture)
    parity_table.print_table(options, comparisons, parity_table.NUMBERS)


def require_mmdetection() -> None:
    try:
        with warnings.catch_warnings(action="ignore"):
            import mmcv.ops  # noqa: F401
            import mmdet  # noqa: F401
    except (ImportError, AssertionError) as error:  # it asserts versions
        sys.exit(f"error: MMDetection does not run here ({error}); --fixtures compares with what it printed")


def compare_photos(name: str, pictures: list[np.ndarray]) -> parity.Differences:
    peer = Peer(VARIANTS[name], small=False)
    ours = opened(peer.weights, peer.config, peer.classes)
    differences = parity.Differences()
    for picture in pictures:
        differences.add(ours.predict(picture), peer.detect(picture, masks=None))
    return differences


def compare_fixture(name: str) -> parity.Differences:
    fixture = fixtures.read(name)
    ours = opened(fixtures.weights_of(fixture), fixture.about["config"], fixture.about["classes"])
    return parity.compared(ours, fixture)


def opened(weights: Mapping[str, torch.Tensor], config: str, classes: tuple[str, ...]) -> Any:
    meta = {"cfg": config, "dataset_meta": {"classes": tuple(classes)}}
    with tempfile.TemporaryDirectory() as folder:
        return maskrcnn.load(fixtures.write(Path(folder) / "epoch_12.pth", weights, meta), device="cpu")


def write_fixture(name: str) -> None:
    import cv2
    import mmcv
    import mmdet

    peer = Peer(VARIANTS[name], small=True)
    pictures = {name: read_picture(parity.PICTURES / f"{name}.png") for name in parity.PICTURE_NAMES}
    libraries = {"mmdet": mmdet, "mmcv": mmcv, "opencv": cv2, "torch": torch}
    about = {
        "tensors": {tensor: list(values.shape) for tensor, values in peer.weights.items()},
        "config": peer.config,
        "classes": peer.classes,
        "roles": peer.roles,
        "seed": VARIANTS[name].seed,
        "versions": {library: module.__version__ for library, module in libraries.items()},
    }
    found = {picture: peer.detect(pixels) for picture, pixels in pictures.items()}
    parity.Fixture(about, found).write(name, fixtures.FOLDER)


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
            result["masks"] = np.round(chosen * parity.MASK_SCALE).astype(np.uint16)
            result["areas"] = found.masks.numpy().sum(axis=(1, 2)).astype(np.int32)
        return result


if __name__ == "__main__":
    main()
