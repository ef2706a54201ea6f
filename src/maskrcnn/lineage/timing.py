"""Detecting with a clock between the stages: read beside `MaskRCNN.forward`, the same calls in the same order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from maskrcnn.lineage.system import Stopwatch
from maskrcnn.model.mask_rcnn import Limits, MaskRCNN, original_frame
from maskrcnn.predictor import Proposer, on_cpu
from maskrcnn.structures import Detections


@torch.no_grad()
def detect_timed(
    model: MaskRCNN,
    picture: np.ndarray,
    watch: Stopwatch,
    proposer: Proposer | None = None,
    limits: Limits | None = None,
) -> Detections:
    """What `Predictor.predict` finds in one picture (H, W, 3) uint8 RGB: to the last bit, if `model` is its `network`.

    Stages: "features" (resize, body, pyramid), "proposals" (of `proposer`, or RPN and NMS), "heads" (pooling, box head,
    NMS) and, where there is such a head, "masks". The GPU is waited for at the end of each.
    """
    config = (limits or Limits()).applied(model.config)
    boxes = None
    if proposer is not None:
        with watch("proposals"):
            boxes = [proposer(picture)]
    with watch("features"):
        image = torch.from_numpy(np.require(picture, requirements="W")).permute(2, 0, 1)
        batch = model.preprocess([image], limits.size if limits else None)
        device = batch.pixels.device
        features = model.features(batch.pixels)
        _wait(device)
    with watch("proposals"):
        padded_size = (batch.pixels.shape[2], batch.pixels.shape[3])
        if boxes is None:
            proposals = model.propose(features, batch.image_sizes, padded_size, config)
        else:
            proposals = model.given(boxes, batch)
        _wait(device)
    with watch("heads"):
        windows = config.windows(batch.image_sizes, padded_size)
        found = model.find(features, proposals, windows, config, drop_empty=True)
        _wait(device)
    if model.mask_heads or model.keypoint_head is not None:
        with watch("masks"):
            found = replace(
                found,
                mask_logits=model.read_masks(features, found, drop_empty=True),
                keypoint_logits=model.read_keypoints(features, found, drop_empty=True),
            )
            _wait(device)
    with watch("heads"):
        return on_cpu(original_frame(found, batch, config)[0])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
