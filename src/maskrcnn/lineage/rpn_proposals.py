"""What an RPN proposes in whole pictures, for another network to learn from: read from a file, as Ren et al. 2015 did.

P proposals of a picture    boxes: (x1, y1, x2, y2), float px
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.proposals import read_proposals, write_proposals
from maskrcnn.errors import InputError
from maskrcnn.lineage.kept import digest_of
from maskrcnn.model.config import to_dict
from maskrcnn.model.frames import to_original
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.rpn import RPNConfig
from maskrcnn.ops.boxes import clip


@torch.no_grad()
def propose_in(model: MaskRCNN, picture: np.ndarray, rpn: RPNConfig | None = None) -> Tensor:
    """(P, 4) float32 in pixels of `picture` (H, W, 3) uint8 RGB, best first, on the CPU.

    rpn: with other limits than the model's own; None: its own. Only body, pyramid and RPN of `model` are run.
    Errors: `InputError` for a model without RPN.
    """
    config = replace(model.config, rpn=rpn or model.config.own_rpn)
    batch = model.preprocess([torch.from_numpy(np.require(picture, requirements="W")).permute(2, 0, 1)])
    padded_size, size = (batch.pixels.shape[2], batch.pixels.shape[3]), batch.original_sizes[0]
    proposals = model.propose(model.features(batch.pixels), batch.image_sizes, padded_size, config)
    boxes, window = proposals.boxes[0][proposals.valid[0]], config.windows(batch.image_sizes, padded_size)[0]
    return clip(to_original(boxes, window, size, config.corners), *size).float().cpu()


def proposals_of_rpn(
    model: MaskRCNN, dataset: Dataset, folder: Path, rpn: RPNConfig, progress: Callable[[float], None]
) -> list[Tensor]:
    """Those of every picture, through a file in `folder` whose name tells of model and limits.

    What is there is read; a file that is damaged, or of other pictures, is made anew. progress(done): 0 to 1.
    """
    state = sorted(model.state_dict().items())
    limits = json.dumps([to_dict(rpn), to_dict(model.config.preprocess)])
    made_from = digest_of(limits, *(part for named in state for part in named))
    file = folder / f"proposals-{made_from[:12]}.safetensors"
    try:
        return read_proposals(file, dataset)
    except InputError:
        folder.mkdir(parents=True, exist_ok=True)
    proposals = []
    for i in range(len(dataset)):
        proposals.append(propose_in(model, dataset.sample(i)[0], rpn))
        progress((i + 1) / len(dataset))
    write_proposals(file, dataset, proposals, f"RPN, weights {made_from[:12]}")
    return read_proposals(file, dataset)
