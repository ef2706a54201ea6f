"""Detectron2's detectors with seeded random weights against the same weights opened here, on photos.

    python benchmarks/detectron2_parity.py [--data FOLDER] [--pictures 2] [--variants r50-fpn ...]
    python benchmarks/detectron2_parity.py --fixtures      what the committed fixtures say; Detectron2 is not needed
    python benchmarks/detectron2_parity.py --write         make those fixtures anew

FOLDER is a COCO data set (default: `coco128` in the folder that MASKRCNN_TEST_DATA names). Detectron2 reads the weights
from a `.pkl` and detects with its own `DefaultPredictor`; we open the same file with the `config.yaml` that Detectron2
wrote beside it. Photos are resized as in the zoo: shorter side 800 px, longer at most 1333 (Cityscapes 1024, 2048).

A line gives the largest difference over all detections of both sides: corners of boxes and keypoints in pixels of the
photo, scores and mask probabilities as they are. A detection whose score or overlap lies within rounding of a limit may
be on one side only: those are counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import maskrcnn
from maskrcnn.data.pictures import picture_files, read_picture

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "weights"))
import detectron2_fixture as fixtures
from seeded import seeded_state

Roles = tuple[tuple[str, str], ...]
DIVIDES: Roles = ((r"stem\.conv1?\.weight$", "weight"),)  # pixels are of the size of 1 already
SHARP: Roles = ((r"cls_score\.weight$", "weight:2"),)  # for heads whose norms keep their maps small
SHARP_MASKS: Roles = ((r"mask_head\.predictor\.weight$", "weight:1.5"),)
SOFT: Roles = ((r"cls_score\.weight$", "weight:0.3"),)
SPARSE: Roles = (  # so that more than one kind of anchor is proposed
    (r"rpn_head\.conv\.bias$", "constant:-8"),
    (r"objectness_logits\.weight$", "normal:0.1"),
)
FEW = {"MODEL.RPN.POST_NMS_TOPK_TEST": 60, "TEST.DETECTIONS_PER_IMAGE": 10}  # for heavy heads
MASKS_KEPT = 3  # of each picture, in a fixture


@dataclass(frozen=True)
class Variant:
    """zoo: the config in Detectron2's model zoo. roles: of weights, before the usual ones. small: see SMALL."""

    zoo: str
    roles: Roles = ()
    small: Mapping[str, int] = field(default_factory=dict)


VARIANTS = {
    "r50-fpn": Variant("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"),
    "r50-c4": Variant("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x.yaml", SPARSE, FEW),
    "r50-dc5": Variant("COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x.yaml"),
    "r101-fpn": Variant("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml", SOFT),
    "x101-fpn": Variant("COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml", (*DIVIDES, *SOFT)),
    "r50-fpn-box": Variant("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"),
    "r50-fpn-gn": Variant("Misc/mask_rcnn_R_50_FPN_3x_gn.yaml", (*SHARP, *SHARP_MASKS)),
    "r50-fpn-syncbn": Variant("Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml", SHARP),
    "scratch-syncbn": Variant("Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn.yaml", (*DIVIDES, *SHARP)),
    "cascade": Variant("Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"),
    "class-agnostic": Variant("Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml"),
    "keypoints": Variant("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml", small=FEW),
    "lvis": Variant(
        "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        small={"MODEL.RPN.POST_NMS_TOPK_TEST": 30, "TEST.DETECTIONS_PER_IMAGE": 300},
    ),
    "cityscapes": Variant("Cityscapes/mask_rcnn_R_50_FPN.yaml", SOFT),
    "lsj-r50": Variant("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py", SHARP),
    "lsj-regnetx": Variant("new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ.py", (*DIVIDES, *SHARP)),
    "lsj-regnety": Variant("new_baselines/mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ.py", (*DIVIDES, *SHARP)),
}
SMALL = {  # settings of fixtures, so that their tests take seconds
    "INPUT.MIN_SIZE_TEST": 224,
    "INPUT.MAX_SIZE_TEST": 360,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 200,
    "TEST.DETECTIONS_PER_IMAGE": 60,
}
LAZY = {  # where a lazy config keeps the same
    "INPUT.MIN_SIZE_TEST": "dataloader.test.mapper.augmentations.0.short_edge_length",
    "INPUT.MAX_SIZE_TEST": "dataloader.test.mapper.augmentations.0.max_size",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "model.proposal_generator.post_nms_topk.1",
    "TEST.DETECTIONS_PER_IMAGE": "model.roi_heads.box_predictor.test_topk_per_image",
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
        require_detectron2()
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), float32", flush=True)
    print(f"{'':18}{'detections':>11}{'boxes':>10}{'scores':>10}{'masks':>10}{'keypoints':>11}{'only one side':>15}")
    for name in options.variants:
        started = time.perf_counter()
        if options.write:
            differences = write_fixture(name)
        elif options.fixtures:
            differences = compare_fixture(name)
        else:
            differences = compare_photos(name, photos(options.data, options.pictures))
        show(name, differences, time.perf_counter() - started)


def require_detectron2() -> None:
    try:
        import detectron2  # noqa: F401
    except ImportError:
        sys.exit("error: Detectron2 is not installed here; --fixtures compares with what it printed")


def show(name: str, found: fixtures.Differences, seconds: float) -> None:
    masks = f"{found.masks:10.1e}" if "masks" in found.kinds else f"{'-':>10}"
    keypoints = f"{found.keypoints:11.1e}" if "keypoints" in found.kinds else f"{'-':>11}"
    alone = f"{found.missing} and {found.surplus}"
    print(
        f"{name:18}{found.detections:11d}{found.boxes:10.1e}{found.scores:10.1e}{masks}{keypoints}{alone:>15}"
        f"   ({seconds:.0f} s)",
        flush=True,
    )


def photos(data: Path, count: int) -> dict[str, np.ndarray]:
    """(H, W, 3) uint8 RGB, the first `count` of the folder's pictures."""
    return {path.stem: read_picture(path) for path in list(picture_files([data / "images"]))[:count]}


def compare_photos(name: str, pictures: Mapping[str, np.ndarray]) -> fixtures.Differences:
    peer = Peer(VARIANTS[name], {})
    with tempfile.TemporaryDirectory() as folder:
        ours = opened(Path(folder), peer.state, peer.config_text)
    differences = fixtures.Differences()
    for picture in pictures.values():
        differences.add(ours.predict(picture), peer.detect(picture, masks=None))
    return differences


def compare_fixture(name: str) -> fixtures.Differences:
    fixture = fixtures.Fixture.read(name)
    about = fixture.about
    state = fixtures.weights(seeded_state, about["tensors"], about["roles"], about["seed"])
    with tempfile.TemporaryDirectory() as folder:
        ours = opened(Path(folder), state, about["config"])
    differences = fixtures.Differences()
    for picture, found in fixture.found.items():
        differences.add(ours.predict(fixtures.PICTURES / f"{picture}.png"), found)
    return differences


def opened(folder: Path, state: Mapping[str, np.ndarray], config: str) -> Any:
    (folder / "config.yaml").write_text(config)
    return maskrcnn.load(fixtures.write_zoo_file(folder / "model.pkl", state), device="cpu")


def write_fixture(name: str) -> fixtures.Differences:
    import detectron2

    peer = Peer(VARIANTS[name], {**SMALL, **VARIANTS[name].small})
    pictures = {name: read_picture(fixtures.PICTURES / f"{name}.png") for name in fixtures.PICTURE_NAMES}
    about = {
        "tensors": {tensor: list(array.shape) for tensor, array in peer.state.items()},
        "config": peer.config_text,
        "roles": peer.roles,
        "seed": 0,
        "versions": {"detectron2": detectron2.__version__, "torch": torch.__version__},
    }
    fixtures.Fixture(about, {picture: peer.detect(pixels) for picture, pixels in pictures.items()}).write(name)
    return compare_fixture(name)


# --- Detectron2's side ------------------------------------------------------------------------------------------------


class Peer:
    """A detector of Detectron2 with seeded weights, behind its own `DefaultPredictor`."""

    def __init__(self, variant: Variant, settings: Mapping[str, Any]) -> None:
        self.roles = (*variant.roles, *fixtures.ROLES)
        with tempfile.TemporaryDirectory() as folder:
            build = self._from_lazy if variant.zoo.endswith(".py") else self._from_yaml
            self.predictor, self.config_text = build(variant.zoo, settings, Path(folder))
        self.predictor.model.roi_heads.register_forward_hook(self._keep)

    def _from_yaml(self, zoo: str, settings: Mapping[str, Any], folder: Path) -> tuple[Any, str]:
        from detectron2 import model_zoo
        from detectron2.engine import DefaultPredictor
        from detectron2.modeling import build_model

        config = model_zoo.get_config(zoo)
        config.merge_from_list([part for setting in settings.items() for part in setting])
        config.MODEL.DEVICE = "cpu"
        config.MODEL.WEIGHTS = ""
        text = config.dump()
        self.state = self._seeded(build_model(config))
        config.MODEL.WEIGHTS = str(fixtures.write_zoo_file(folder / "model_final.pkl", self.state))
        return DefaultPredictor(config), text

    def _from_lazy(self, zoo: str, settings: Mapping[str, Any], folder: Path) -> tuple[Any, str]:
        """Lazy configs have no `DefaultPredictor` of their own: one is put together of the same parts."""
        from detectron2 import model_zoo
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.config import LazyConfig, instantiate
        from detectron2.engine import DefaultPredictor

        config = model_zoo.get_config(zoo)
        for key, value in settings.items():
            place, _, last = LAZY[key].rpartition(".")
            part = config
            for step in place.split("."):
                part = part[int(step)] if step.isdecimal() else part[step]
            part[int(last) if last.isdecimal() else last] = value
        config.train.device = "cpu"
        LazyConfig.save(config, str(folder / "config.yaml"))
        model = instantiate(config.model).eval()
        self.state = self._seeded(model)
        DetectionCheckpointer(model).load(str(fixtures.write_zoo_file(folder / "model_final.pkl", self.state)))
        predictor = DefaultPredictor.__new__(DefaultPredictor)
        predictor.cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"))
        predictor.model, predictor.input_format = model, config.model.input_format
        predictor.aug = instantiate(config.dataloader.test.mapper.augmentations[0])
        return predictor, (folder / "config.yaml").read_text()

    def _seeded(self, model: Any) -> dict[str, np.ndarray]:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return fixtures.weights(seeded_state, shapes, self.roles, 0)

    def _keep(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Mask probabilities, before they are pasted into the picture."""
        found = outputs[0][0]
        kept = found.pred_boxes.nonempty()  # as its postprocessing keeps them
        self.masks = found.pred_masks[kept, 0].numpy() if found.has("pred_masks") else None

    def detect(self, picture: np.ndarray, masks: int | None = MASKS_KEPT) -> dict[str, np.ndarray]:
        """picture: (H, W, 3) RGB. masks: how many to keep, spread over all; None: all."""
        found = self.predictor(picture[:, :, ::-1])["instances"]
        result = {
            "boxes": found.pred_boxes.tensor.numpy(),
            "scores": found.scores.numpy(),
            "labels": found.pred_classes.numpy().astype(np.int32),
        }
        if self.masks is not None:
            assert len(self.masks) == len(found), "a box was dropped when it was scaled"
            count = len(found) if masks is None else min(masks, len(found))
            result["chosen"] = np.linspace(0, len(found) - 1, count).astype(np.int32)
            result["masks"] = np.round(self.masks[result["chosen"]] * fixtures.MASK_SCALE).astype(np.uint16)
        if found.has("pred_keypoints"):
            result["keypoints"] = found.pred_keypoints.numpy()
        return result


if __name__ == "__main__":
    main()
