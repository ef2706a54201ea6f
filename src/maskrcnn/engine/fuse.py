"""A detector with the same answers in fewer steps: norms folded, sums and ReLUs joined to their convolutions."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

from maskrcnn.engine.graph import fused_graph
from maskrcnn.engine.heads import FusedBoxHead, FusedFPN, FusedRPN, fuse_conv_norms_, fused_mask_head
from maskrcnn.model.mask_rcnn import MaskRCNN


def fused(model: MaskRCNN) -> MaskRCNN:
    """A detector with the config, `forward` and `detect` of `model`, which is left as it is.

    Weights are shared but where a norm was folded into them. Results differ by rounding. In the new one every
    convolution of body, pyramid, RPN and heads is a `FusedConv` and every fully connected layer of the box head a
    `FusedLinear`, except in bodies whose code cannot be recorded and next to group norms, which cannot be folded.
    """
    network = _with_shared_weights(model).eval()
    with torch.no_grad():
        _fuse_(network)
    return network.requires_grad_(False)


def _fuse_(network: MaskRCNN) -> None:
    device = next(network.parameters()).device
    network.backbone.body = fused_graph(network.backbone.body, torch.zeros(1, 3, 64, 64, device=device))
    if network.fpn is not None:
        network.fpn = FusedFPN(network.fpn)  # type: ignore[assignment]
    if network.rpn is not None:
        network.rpn = FusedRPN(network.rpn)  # type: ignore[assignment]
    if network.roi_stage is not None:
        channels, side = network.backbone.channels["c4"], network.box_pooler.side
        network.roi_stage.blocks = fused_graph(
            network.roi_stage.blocks, torch.zeros(1, channels, side, side, device=device)
        )
    network.box_head = FusedBoxHead(network.box_head)  # type: ignore[assignment]
    network.later_box_heads = nn.ModuleList(FusedBoxHead(head) for head in network.later_box_heads)  # type: ignore[arg-type]
    if network.mask_head is not None:
        network.mask_head = fused_mask_head(network.mask_head)  # type: ignore[assignment]
        network.later_mask_heads = nn.ModuleList(fused_mask_head(head) for head in network.later_mask_heads)
    if network.keypoint_head is not None:
        fuse_conv_norms_(network.keypoint_head)


def _with_shared_weights(model: MaskRCNN) -> MaskRCNN:
    """A copy of all modules that hold the very tensors of `model`."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
