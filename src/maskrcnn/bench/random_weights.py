"""Random weights under which a detector of torchvision behaves like a trained one: scores differ, objects are found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def randomise(peer: Any, picture: Tensor, score_spread: float = 1.5) -> None:
    """Values that a trained network might have: no bias is 0, no norm does nothing, and scores differ.

    picture: (3, H, W) float32 in 0..1, whose outputs are spread. Draws from torch's own generator: seed it before.
    """
    for name, module in peer.named_modules():
        if getattr(module, "running_mean", None) is not None:
            damping = 0.2 if name.endswith("bn3") else 1.0  # the sum of residual blocks would grow without bound
            module.weight.data.uniform_(0.5, 1.5).mul_(damping)
            module.bias.data.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif getattr(module, "bias", None) is not None:
            module.bias.data.normal_(std=0.02)
    with torch.no_grad():
        levels = peer.eval().backbone(peer.transform([picture])[0].tensors).values()
        hidden = [peer.rpn.head.conv(level) for level in levels]
        spread(peer.rpn.head.cls_logits, [peer.rpn.head.cls_logits(x) for x in hidden], 1.5)
        spread(peer.rpn.head.bbox_pred, [peer.rpn.head.bbox_pred(x) for x in hidden], 0.3)
        spread_at_first_call(peer.roi_heads.box_predictor.cls_score, score_spread)
        spread_at_first_call(peer.roi_heads.box_predictor.bbox_pred, 1.0)
        if peer.roi_heads.has_mask():
            spread_at_first_call(peer.roi_heads.mask_predictor.mask_fcn_logits, 2.0)
        if peer.roi_heads.has_keypoint():
            spread_at_first_call(peer.roi_heads.keypoint_predictor.kps_score_lowres, 3.0)
        peer([picture])


def spread(module: Any, outputs: list[Tensor], std: float) -> None:
    """Scale and shift a last layer so that the widest of these outputs of it has deviation `std`, around 0."""
    rows = [output.movedim(1, -1).flatten(0, -2) for output in outputs]  # (any, channels)
    mean = torch.cat(rows).mean(0)
    factor = std / max(float((row - mean).std()) for row in rows)
    module.weight.data.mul_(factor)
    module.bias.data.sub_(mean).mul_(factor)


def spread_at_first_call(module: Any, std: float) -> None:
    """The same with the outputs of the next call, which gives the new ones."""

    def change(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        hook.remove()
        spread(module, [output], std)
        again: Tensor = module(*inputs)
        return again

    hook = module.register_forward_hook(change)
