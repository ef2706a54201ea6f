"""Proposals that come with the picture rather than from an RPN: Selective Search's, or a file's (Girshick 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model.frames import Corners, from_original
from maskrcnn.structures import Proposals, Size


def given_proposals(boxes: Sequence[Tensor], sizes: Sequence[Size], windows: Tensor, corners: Corners) -> Proposals:
    """N tensors (P_i, 4), each in its picture as given, in the padded frame, filled up to the longest.

    sizes: N (height, width) of the pictures as given. windows: (N, 4), where they lie in the padded frame. Those first
    in a list are the better ones. Logits are 0: nobody scored them.
    Errors: `InputError` for another number of tensors than pictures, and for what is no boxes.
    """
    if len(boxes) != len(sizes):
        found, expected = f"{len(boxes)} tensors", f"{len(sizes)}, one for each picture"
        raise InputError("do not fit the pictures", field="proposals", found=found, expected=expected)
    for i, each in enumerate(boxes):
        if each.ndim != 2 or each.shape[1] != 4 or not bool(each.isfinite().all()):
            found = f"{tuple(each.shape)}" + ("" if bool(each.isfinite().all()) else ", not all finite")
            raise InputError("are no boxes", field=f"proposals[{i}]", found=found, expected="(P, 4) finite numbers")
    most = max((len(each) for each in boxes), default=0)
    count = max(1, most)  # a row at least, so that no stage meets a tensor without any
    placed = windows.new_zeros(len(boxes), count, 4)
    valid = torch.zeros(len(boxes), count, dtype=torch.bool, device=windows.device)
    for i, (each, size) in enumerate(zip(boxes, sizes, strict=True)):
        placed[i, : len(each)] = from_original(each.to(windows), windows[i], size, corners)
        valid[i, : len(each)] = True
    return Proposals(placed, placed.new_zeros(len(boxes), count).masked_fill(~valid, -torch.inf), valid)
