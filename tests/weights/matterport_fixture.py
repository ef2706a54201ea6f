"""What Matterport's Mask R-CNN found with seeded random weights, and the same weights again as a file of Keras.

A fixture is `fixtures/matterport/NAME.npz` as `parity.py` says, with settings (fields of its Config that are not its
defaults) in `about`, and

    PICTURE.boxes    in px of the padded frame, corners in the centres of pixels, unrounded; .labels 1..K
    PICTURE.whole    (D, 4) int32 x1 y1 x2 y2, as `detect` gave them in px of the picture; zeros for one without area
    PICTURE.bitmaps  the picture's pixels that `detect` gave to the chosen ones, np.packbits of (C, H, W)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn.model.mask_rcnn import MaskRCNN, original_frame

from . import parity
from .parity import Found

FOLDER = parity.FIXTURES / "matterport"
read = partial(parity.Fixture.read, folder=FOLDER)

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


def names() -> list[str]:
    """Every committed variant, not the op beside them."""
    return [name for name in parity.names(FOLDER) if name != "crop_and_resize"]


def weights(tensors: Mapping[str, Any], roles: Sequence[Sequence[str]], seed: int) -> dict[str, np.ndarray]:
    """The seeded tensors. They are drawn with their axes turned round, (out, in, ...), and turned back to Keras's."""
    turned = {name: tuple(reversed(shape)) for name, shape in tensors.items()}
    return {name: np.ascontiguousarray(array.T) for name, array in parity.weights(turned, roles, seed).items()}


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
class Differences(parity.Differences):
    """Boxes in px of the padded frame, before they are rounded."""

    whole: float = 0.0  # px of the picture, after rounding
    pixels: int = 0  # of the picture, that masks do not share

    @torch.no_grad()
    def add_picture(self, ours: MaskRCNN, picture: np.ndarray, theirs: Mapping[str, np.ndarray]) -> None:
        """Compare what `ours` finds in one picture (H, W, 3). Several RoIs may give the same box: scores tell them."""
        batch = ours.preprocess([torch.from_numpy(picture).permute(2, 0, 1)])
        found = ours.detect(batch.pixels, batch.image_sizes, drop_empty=True)
        valid = found.valid[0]
        boxes, scores, labels = (x[0][valid].numpy() for x in (found.boxes, found.scores, found.labels))
        assert found.mask_logits is not None
        masks = found.mask_logits[0][valid].sigmoid().double().numpy()
        paired = self.add(Found(boxes, scores, labels, masks), theirs, score_px=100)
        (rounded,) = original_frame(found, batch, ours.config)
        assert rounded.masks is not None
        bitmaps = rounded.masks.bitmaps().numpy()
        chosen = list(theirs["chosen"])
        drawn = np.unpackbits(theirs["bitmaps"], count=len(chosen) * picture.shape[0] * picture.shape[1])
        drawn = drawn.reshape(len(chosen), *picture.shape[:2]).astype(bool)
        kept = np.flatnonzero((theirs["whole"][:, 2:] > theirs["whole"][:, :2]).all(axis=1))
        for i, nearest in paired.items():
            if i not in kept:
                continue
            distance = np.abs(rounded.boxes.numpy() - theirs["whole"][i]).max(axis=1)
            self.whole = max(self.whole, float(distance.min()))
            if i in chosen:
                same_score = rounded.scores.numpy() == scores[nearest]
                self.pixels += min((bitmaps[same_score] != drawn[chosen.index(i)]).sum(axis=(1, 2)).tolist())
