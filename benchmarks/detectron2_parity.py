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

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import parity_table
import torch

import maskrcnn
from maskrcnn.data.pictures import read_picture

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from weights import detectron2_fixture as fixtures
from weights import parity

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
    options = parity_table.options_of(__doc__, VARIANTS, fixtures.names())
    if not options.fixtures:
        require_detectron2()
    comparisons = parity_table.Comparisons(compare_photos, compare_fixture, write_fixture)
    parity_table.print_table(options, comparisons, {**parity_table.NUMBERS, **parity_table.KEYPOINTS})


def require_detectron2() -> None:
    try:
        import detectron2  # noqa: F401
    except ImportError:
        sys.exit("error: Detectron2 is not installed here; --fixtures compares with what it printed")


def compare_photos(name: str, pictures: list[np.ndarray]) -> parity.Differences:
    peer = Peer(VARIANTS[name], {})
    with tempfile.TemporaryDirectory() as folder:
        ours = opened(Path(folder), peer.state, peer.config_text)
    differences = parity.Differences()
    for picture in pictures:
        differences.add(ours.predict(picture), peer.detect(picture, masks=None))
    return differences


def compare_fixture(name: str) -> parity.Differences:
    fixture = fixtures.read(name)
    about = fixture.about
    state = fixtures.weights(about["tensors"], about["roles"], about["seed"])
    with tempfile.TemporaryDirectory() as folder:
        ours = opened(Path(folder), state, about["config"])
    return parity.compared(ours, fixture)


def opened(folder: Path, state: Mapping[str, np.ndarray], config: str) -> Any:
    (folder / "config.yaml").write_text(config)
    return maskrcnn.load(fixtures.write_zoo_file(folder / "model.pkl", state), device="cpu")


def write_fixture(name: str) -> None:
    import detectron2

    peer = Peer(VARIANTS[name], {**SMALL, **VARIANTS[name].small})
    pictures = {name: read_picture(parity.PICTURES / f"{name}.png") for name in parity.PICTURE_NAMES}
    about = {
        "tensors": {tensor: list(array.shape) for tensor, array in peer.state.items()},
        "config": peer.config_text,
        "roles": peer.roles,
        "seed": 0,
        "versions": {"detectron2": detectron2.__version__, "torch": torch.__version__},
    }
    found = {picture: peer.detect(pixels) for picture, pixels in pictures.items()}
    parity.Fixture(about, found).write(name, fixtures.FOLDER)


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
        return fixtures.weights(shapes, self.roles, 0)

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
            result["masks"] = np.round(self.masks[result["chosen"]] * parity.MASK_SCALE).astype(np.uint16)
        if found.has("pred_keypoints"):
            result["keypoints"] = found.pred_keypoints.numpy()
        return result


if __name__ == "__main__":
    main()
