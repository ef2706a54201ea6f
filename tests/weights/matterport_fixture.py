"""What Matterport's Mask R-CNN found with seeded random weights, and the same weights again as a file of Keras.

A fixture is `fixtures/matterport/NAME.npz`:

    about            JSON: tensors (path in the file to shape), settings (fields of its Config that are not its
                     defaults), roles and seed of the weights, versions (of TensorFlow, tf-keras, scikit-image)
    PICTURE.boxes    (D, 4) float32 x1 y1 x2 y2 in px of the padded frame, corners in the centres of pixels, unrounded,
                     and .scores (D,), .labels (D,) 1..K
    PICTURE.masks    (C, M, M) uint16: probabilities * 65535 of the detections PICTURE.chosen (C,)
    PICTURE.whole    (D, 4) int32 x1 y1 x2 y2, as `detect` gave them in px of the picture; zeros for one without area
    PICTURE.bitmaps  the picture's pixels that `detect` gave to the chosen ones, np.packbits of (C, H, W)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn.model.mask_rcnn import MaskRCNN, original_frame

FOLDER = Path(__file__).parent / "fixtures" / "matterport"
PICTURES = Path(__file__).parent / "fixtures" / "pictures"
PICTURE_NAMES = ("drawn_wide", "drawn_tall", "cells")
MASK_SCALE = 65535

# The last norm of each residual branch is damped, so that maps keep their size through a hundred layers. The stem of a
# network for pixels of +-120 brings them down. Few features of the heads are awake, so that classes differ.
ROLES = (
    (r"^conv1/", "weight:0.02"),
    (r"rpn_conv_shared/bias", "constant:-1"),
    (r"rpn_class_raw/kernel", "weight:1.5"),
    (r"rpn_class_raw/bias", "bias:0.5"),
    (r"rpn_bbox_pred/kernel", "weight:0.6"),
    (r"mrcnn_class_bn2/beta", "constant:-1.2"),
    (r"mrcnn_class_logits/kernel", "weight:3"),
    (r"mrcnn_class_logits/bias", "bias:0.5"),
    (r"mrcnn_bbox_fc/kernel", "weight:0.8"),
    (r"mrcnn_mask_bn4/beta", "constant:-0.5"),
    (r"mrcnn_mask_deconv/kernel", "weight:2"),
    (r"fpn_c\dp\d/kernel", "weight:0.08"),
    (r"kernel", "weight"),
    (r"branch2c/gamma", "scale:0.25"),
    (r"gamma", "scale:1"),
    (r"moving_variance", "variance"),
    (r"moving_mean|beta", "bias:0.1"),
    (r"bias", "bias:0.05"),
)


@dataclass(frozen=True)
class Fixture:
    """One variant: about, as above; found, the arrays of each picture by name."""

    about: dict[str, Any]
    found: dict[str, dict[str, np.ndarray]]

    @classmethod
    def read(cls, name: str) -> Fixture:
        with np.load(FOLDER / f"{name}.npz") as file:
            found: dict[str, dict[str, np.ndarray]] = {}
            for key in file.files:
                picture, _, what = key.partition(".")
                if what:
                    found.setdefault(picture, {})[what] = file[key]
            return cls(json.loads(str(file["about"])), found)

    def write(self, name: str) -> None:
        arrays = {f"{picture}.{what}": array for picture, found in self.found.items() for what, array in found.items()}
        np.savez_compressed(FOLDER / f"{name}.npz", about=np.array(json.dumps(self.about)), **arrays)


def names() -> list[str]:
    """Every committed variant."""
    return sorted(path.stem for path in FOLDER.glob("r*.npz"))


def weights(seeded_state: Any, tensors: Mapping[str, Any], roles: Any, seed: int) -> dict[str, np.ndarray]:
    """The seeded tensors. They are drawn with their axes turned round, (out, in, ...), and turned back to Keras's."""
    turned = {name: tuple(reversed(shape)) for name, shape in tensors.items()}
    state = seeded_state(turned, [tuple(role) for role in roles], seed)
    return {name: np.ascontiguousarray(array.T) for name, array in state.items()}


def write_keras_file(path: Path, state: Mapping[str, np.ndarray]) -> Path:
    """A `.h5` as `save_weights` of Keras has it: a group for each layer, that lists what it holds."""
    import h5py

    layers = list(dict.fromkeys(name.partition("/")[0] for name in state))
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.21.0"
        for layer in layers:
            held = {name.partition("/")[2]: array for name, array in state.items() if name.startswith(f"{layer}/")}
            file.create_group(layer).attrs["weight_names"] = [name.encode() for name in held]
            for name, array in held.items():
                file[layer][name] = array
    return path


# --- comparison -------------------------------------------------------------------------------------------------------


@dataclass
class Differences:
    """The largest of all pictures; missing and surplus count detections that one side has and the other has not."""

    boxes: float = 0.0  # px of the padded frame, before they are rounded
    scores: float = 0.0
    masks: float = 0.0  # of probabilities
    whole: float = 0.0  # px of the picture, after rounding
    pixels: int = 0  # of the picture, that masks do not share
    detections: int = 0
    missing: int = 0
    surplus: int = 0

    @torch.no_grad()
    def add(self, ours: MaskRCNN, picture: np.ndarray, theirs: Mapping[str, np.ndarray]) -> None:
        """Compare one picture (H, W, 3). Each of theirs is paired with the nearest of ours, in box and score.

        Detections that theirs marks as `unsure`, if it does, are counted by `detections` alone.
        """
        batch = ours.preprocess([torch.from_numpy(picture).permute(2, 0, 1)])
        found = ours.detect(batch.pixels, batch.image_sizes, drop_empty=True)
        valid = found.valid[0]
        boxes, scores, labels = (x[0][valid].numpy() for x in (found.boxes, found.scores, found.labels))
        assert found.mask_logits is not None
        masks = found.mask_logits[0][valid].sigmoid().double().numpy()
        (rounded,) = original_frame(found, batch, ours.config)
        assert rounded.masks is not None
        bitmaps = rounded.masks.bitmaps().numpy()
        kept = np.flatnonzero((theirs["whole"][:, 2:] > theirs["whole"][:, :2]).all(axis=1))
        unsure = theirs.get("unsure", np.zeros(len(theirs["boxes"]), dtype=bool))
        chosen = list(theirs["chosen"])
        drawn = np.unpackbits(theirs["bitmaps"], count=len(chosen) * picture.shape[0] * picture.shape[1])
        drawn = drawn.reshape(len(chosen), *picture.shape[:2]).astype(bool)
        free = np.ones(len(boxes), dtype=bool)
        for i, (box, score, label) in enumerate(zip(theirs["boxes"], theirs["scores"], theirs["labels"], strict=True)):
            self.detections += 1
            distance = np.abs(boxes - box).max(axis=1) + 100 * np.abs(scores - score)
            distance[~free | (labels != label)] = np.inf
            nearest = int(distance.argmin()) if len(distance) else 0
            if not len(distance) or distance[nearest] > 1:
                self.missing += not unsure[i]
                continue
            free[nearest] = False
            if unsure[i]:
                continue
            self.boxes = max(self.boxes, float(np.abs(boxes[nearest] - box).max()))
            self.scores = max(self.scores, abs(float(scores[nearest]) - float(score)))
            if i in chosen:
                wanted = theirs["masks"][chosen.index(i)].astype(np.float64) / MASK_SCALE
                self.masks = max(self.masks, float(np.abs(masks[nearest] - wanted).max()))
            if i in kept:
                row = int(np.abs(rounded.boxes.numpy() - theirs["whole"][i]).max(axis=1).argmin())
                self.whole = max(self.whole, float(np.abs(rounded.boxes[row].numpy() - theirs["whole"][i]).max()))
                if i in chosen:
                    candidates = [
                        int((bitmaps[r] != drawn[chosen.index(i)]).sum())
                        for r in range(len(rounded))
                        if float(rounded.scores[r]) == float(scores[nearest])
                    ]
                    self.pixels += min(candidates)
        self.surplus += max(0, int(free.sum()) - int(unsure.sum()))
