"""Learning in less memory: activations are forgotten, and computed again when their gradients are due.

Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost. Gradients stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from maskrcnn.model.mask_rcnn import MaskRCNN


def recompute_(model: MaskRCNN) -> int:
    """Change `model` in place: while it learns, only the inputs of its blocks are kept. Returns how many blocks.

    Blocks are those of the body's stages, the pyramid, and each head. Names and weights stay, and nothing changes
    when detecting. A body of which levels are taken from inside a stage has no blocks left and keeps its activations.
    """
    heads = [model.fpn, model.rpn, *model.box_heads, *model.mask_heads, model.keypoint_head]
    blocks = [*_blocks(model.backbone.body), *(head for head in heads if head is not None)]
    for block in blocks:
        kind = type(block)
        # another class rather than another attribute, which a copy of the model would share with the original
        block.__class__ = type(kind.__name__, (kind,), {"forward": _recomputing(kind), "__module__": kind.__module__})
    return len(blocks)


def _blocks(body: nn.Module) -> Iterator[nn.Module]:
    """What sequences consist of, where it has parts itself: the residual blocks of a ResNet's stages."""
    for child in body.children():
        is_block = isinstance(body, nn.Sequential) and not isinstance(child, nn.Sequential)
        if is_block and any(True for _ in child.children()):
            yield child
        else:
            yield from _blocks(child)


def _recomputing(kind: type[nn.Module]) -> Any:
    def forward(self: nn.Module, *inputs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *inputs)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _statistics_stay(self)

        return checkpoint(kind.forward, self, *inputs, use_reentrant=False, context_fn=contexts)

    return forward


@contextmanager
def _statistics_stay(block: nn.Module) -> Iterator[None]:
    """Batch norms normalise as before, and do not count the same pictures a second time."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
