"""Matterport's Mask R-CNN with seeded random weights against the same weights opened here, on photos.

    python benchmarks/matterport_parity.py [--data FOLDER] [--pictures 3] [--variants r50 ...]
    python benchmarks/matterport_parity.py --fixtures      what the committed fixtures say; TensorFlow is not needed
    python benchmarks/matterport_parity.py --write         make those fixtures anew

Its side wants `mrcnn` of the port to TensorFlow 2 (github.com/akTwelve/Mask_RCNN, d9f01dc) on PYTHONPATH, and
tensorflow-cpu 2.21, tf-keras 2.21 and scikit-image. FOLDER is a COCO data set (default: `coco128` in the folder that
MASKRCNN_TEST_DATA names). Its own `detect` has the settings of its model for COCO, square pictures of 1024 px; we open
the `.h5` that its `save_weights` wrote.

A line gives the largest difference over all detections of both sides: corners of boxes before they are rounded, in px
of the padded frame, and after it, in px of the photo; scores and mask probabilities as they are; pixels of the photo
that masks do not share. A detection whose score or overlap lies within rounding of a limit may be on one side only:
those are counted.

`unsure` counts detections whose RoI, or whose mask's box, ends with the map and had its last row or column read as 0 by
TensorFlow, since rounding carried the sample points outside (see ops/crop_and_resize.py). They are left out of the
differences.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import parity_table

from maskrcnn.data.pictures import read_picture
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.weights.content import Settings
from maskrcnn.weights.opening import open_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from weights import matterport_fixture as fixtures
from weights import parity

MASKS_KEPT = 4  # of each picture, in a fixture
LOW = {"DETECTION_MIN_CONFIDENCE": 0.3}  # random weights are sure of little


@dataclass(frozen=True)
class Variant:
    """settings: fields of its Config. small: more of them, for fixtures, so that their tests take seconds.

    roles: of weights, before the usual ones. seed: one whose detections differ in size, score and class.
    """

    settings: Mapping[str, Any]
    small: Mapping[str, Any] = field(default_factory=dict)
    roles: tuple[tuple[str, str], ...] = ()
    seed: int = 0


SQUARE = {"IMAGE_MIN_DIM": 256, "IMAGE_MAX_DIM": 320, "POST_NMS_ROIS_INFERENCE": 200, "DETECTION_MAX_INSTANCES": 50}
VARIANTS = {
    "r50": Variant(
        {"BACKBONE": "resnet50", "NUM_CLASSES": 4, **LOW},
        {**SQUARE, "RPN_ANCHOR_SCALES": (16, 32, 64, 128, 256), "PRE_NMS_LIMIT": 1500},
        seed=8,
    ),
    "r101": Variant(
        {"BACKBONE": "resnet101", "NUM_CLASSES": 81, **LOW},
        SQUARE,
        roles=((r"mrcnn_class_logits/kernel", "weight:1"), (r"mrcnn_mask/kernel", "weight:0.3")),
        seed=4,
    ),
    "r50-pad64": Variant(
        {
            "BACKBONE": "resnet50",
            "NUM_CLASSES": 3,
            "IMAGE_RESIZE_MODE": "pad64",
            "IMAGE_MIN_DIM": 640,
            "RPN_ANCHOR_RATIOS": (0.4, 1, 2.5),
            "BBOX_STD_DEV": (0.15, 0.1, 0.25, 0.2),
            "MEAN_PIXEL": (100.0, 110.0, 120.0),
            **LOW,
        },
        {"IMAGE_MIN_DIM": 192, "IMAGE_MIN_SCALE": 0.9, "POST_NMS_ROIS_INFERENCE": 200, "DETECTION_MAX_INSTANCES": 50},
        seed=14,
    ),
}
COLUMNS = {
    "unsure": lambda found: str(found.unsure),
    **parity_table.NUMBERS,
    "rounded": lambda found: f"{found.whole:.0f}",
    "mask px": lambda found: str(found.pixels),
}


def main() -> None:
    options = parity_table.options_of(__doc__, VARIANTS, fixtures.names(), pictures=3)
    if not options.fixtures:
        require_matterport()
    comparisons = parity_table.Comparisons(compare_photos, compare_fixture, write_fixture)
    parity_table.print_table(options, comparisons, COLUMNS)


def require_matterport() -> None:
    if importlib.util.find_spec("mrcnn") is None:
        sys.exit("error: Matterport's mrcnn is not installed here; --fixtures compares with what it printed")


def compare_photos(name: str, pictures: list[np.ndarray]) -> fixtures.Differences:
    variant = VARIANTS[name]
    peer = Peer(variant, variant.settings)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mask_rcnn.h5"
        peer.model.keras_model.save_weights(str(file))
        ours = opened(file, variant.settings)
    differences = fixtures.Differences()
    for picture in pictures:
        differences.add_picture(ours, picture, peer.detect(picture, masks=None))
    return differences


def compare_fixture(name: str) -> fixtures.Differences:
    fixture = fixtures.read(name)
    about = fixture.about
    state = fixtures.weights(about["tensors"], about["roles"], about["seed"])
    with tempfile.TemporaryDirectory() as folder:
        ours = opened(fixtures.write_keras_file(Path(folder) / "mask_rcnn.h5", state), about["settings"])
    differences = fixtures.Differences()
    for picture, found in fixture.found.items():
        differences.add_picture(ours, read_picture(parity.PICTURES / f"{picture}.png"), found)
    return differences


def opened(file: Path, settings: Mapping[str, Any]) -> MaskRCNN:
    return open_weights(file, Settings(settings, "settings")).model


def write_fixture(name: str) -> None:
    import skimage
    import tensorflow
    import tf_keras

    variant = VARIANTS[name]
    settings = {**variant.settings, **variant.small}
    peer = Peer(variant, settings)
    versions = {lib.__name__: lib.__version__ for lib in (tensorflow, tf_keras, skimage)}
    about = {
        "tensors": peer.shapes,
        "settings": settings,
        "roles": peer.roles,
        "seed": variant.seed,
        "versions": versions,
    }
    found = {}
    for picture in parity.PICTURE_NAMES:
        found[picture] = peer.detect(read_picture(parity.PICTURES / f"{picture}.png"))
        if found[picture].pop("unsure").any():
            sys.exit(f"error: {name}, {picture}: TensorFlow reads outside of a map; take another seed")
    parity.Fixture(about, found).write(name, fixtures.FOLDER)


# --- Matterport's side ------------------------------------------------------------------------------------------------


class Peer:
    """A detector of Matterport with seeded weights."""

    def __init__(self, variant: Variant, settings: Mapping[str, Any]) -> None:
        import tensorflow.keras.backend as backend
        from mrcnn.config import Config
        from mrcnn.model import MaskRCNN as Matterport

        backend.clear_session()  # names count on from model to model
        fields = {name: np.array(value) if "STD_DEV" in name else value for name, value in settings.items()}
        config = type("Seeded", (Config,), {"NAME": "seeded", "IMAGES_PER_GPU": 1, **fields})
        self.config = config()
        self.model = Matterport("inference", self.config, tempfile.gettempdir())
        self.shapes, variables = {}, {}
        for group in self.model.keras_model.layers:
            for variable in group.weights:
                name = f"{group.name}/{variable.name}"
                self.shapes[name], variables[name] = variable.shape.as_list(), variable
        self.roles = (*variant.roles, *fixtures.ROLES)
        state = fixtures.weights(self.shapes, self.roles, variant.seed)
        backend.batch_set_value([(variables[name], array) for name, array in state.items()])

    def detect(self, picture: np.ndarray, masks: int | None = MASKS_KEPT) -> dict[str, np.ndarray]:
        """picture: (H, W, 3) RGB. masks: how many to keep, spread over all; None: all."""
        pixels, metas, windows = self.model.mold_inputs([picture])
        anchors = self.model.get_anchors(pixels[0].shape)[None]
        found, scores, _, probabilities, rois, _, _ = self.model.keras_model.predict(
            [pixels, metas, anchors], verbose=0
        )
        whole, _, _, drawn = self.model.unmold_detections(
            found[0], probabilities[0], picture.shape, pixels[0].shape, windows[0]
        )
        found = found[0][found[0][:, 4] > 0]
        labels = found[:, 4].astype(np.int32)
        height, width = pixels[0].shape[:2]
        kept = self._with_area(found, picture, pixels[0].shape, windows[0])
        boxes = np.zeros((len(found), 4), dtype=np.int32)
        boxes[kept] = whole[:, [1, 0, 3, 2]]
        bitmaps = np.zeros((len(found), *picture.shape[:2]), dtype=bool)
        bitmaps[kept] = drawn.transpose(2, 0, 1)
        count = len(found) if masks is None else min(masks, len(found))
        chosen = np.linspace(0, len(found) - 1, count).astype(np.int32)
        values = probabilities[0][chosen, :, :, labels[chosen]]
        return {
            "boxes": found[:, [1, 0, 3, 2]] * np.float32([width - 1, height - 1] * 2),
            "scores": found[:, 5],
            "labels": labels,
            "chosen": chosen,
            "masks": np.round(values * parity.MASK_SCALE).astype(np.uint16),
            "whole": boxes,
            "bitmaps": np.packbits(bitmaps[chosen]),
            "unsure": self._unsure(found, scores[0], rois[0], (height, width)),
        }

    def _with_area(self, found: np.ndarray, picture: np.ndarray, shape: Any, window: np.ndarray) -> np.ndarray:
        """(D,) bool: which ones its `unmold_detections` keeps, asked one by one."""
        small = np.zeros((1, 2, 2, self.config.NUM_CLASSES), dtype=np.float32)
        return np.array(
            [len(self.model.unmold_detections(row[None], small, picture.shape, shape, window)[0]) > 0 for row in found],
            dtype=bool,
        )

    def _unsure(self, found: np.ndarray, scores: np.ndarray, rois: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(D,) bool: whether a map of ones, pooled as their RoI or their mask was, has zeros."""
        of_rois = self._reads_outside(rois, self.config.POOL_SIZE, size)
        best, label = scores.max(axis=1), scores.argmax(axis=1)
        sources = [np.flatnonzero((best == row[5]) & (label == row[4])) for row in found]
        by_roi = np.array([of_rois[source].any() for source in sources], dtype=bool)
        return by_roi | self._reads_outside(found[:, :4], self.config.MASK_POOL_SIZE, size)

    def _reads_outside(self, boxes: np.ndarray, side: int, size: tuple[int, int]) -> np.ndarray:
        import tensorflow as tf

        outside = np.zeros(len(boxes), dtype=bool)
        if not len(boxes):
            return outside
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            for stride in (4, 8, 16, 32):  # of whatever level: a few more than there are
                ones = tf.ones((1, size[0] // stride, size[1] // stride, 1))
                pooled = tf.image.crop_and_resize(ones, boxes, np.zeros(len(boxes), np.int32), (side, side))
                outside |= (session.run(pooled) < 0.5).any(axis=(1, 2, 3))
        return outside


if __name__ == "__main__":
    main()
