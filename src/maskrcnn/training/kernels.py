"""The same detector with faster kernels for learning: nothing changes but rounding, names and weights stay."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers.norm_act import FrozenBatchNorm2d, FrozenBatchNormAct2d  # type: ignore[attr-defined]
from torch import Tensor, nn

from maskrcnn.ops.products import linear


def choose_kernels_(model: nn.Module) -> None:
    """Change `model` in place, before it learns.

    1x1 convolutions: with a single thread torch takes a matrix product of MKL's for them, which is half as fast as
    oneDNN's on processors of another make (70 against 130 GFLOP/s on a Zen 5 core). A dilated one goes to oneDNN, and
    a kernel of one tap has nothing to dilate.

    Fully connected layers: see `ops/products.py`.

    Frozen norms: one pass over the map each way, in the dtype of the map. timm multiplies, then adds, and under
    autocast widens the map to float32.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1:
            module.dilation = (2, 2)
        elif type(module) is nn.Linear:
            module.__class__ = _Linear
        elif type(module) is FrozenBatchNorm2d:
            module.__class__ = _FrozenNorm
        elif type(module) is FrozenBatchNormAct2d:
            module.__class__ = _FrozenNormAct


class _Linear(nn.Linear):
    """`nn.Linear` by the kernel that learns faster."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _FrozenNorm(FrozenBatchNorm2d):  # type: ignore[misc]
    """`FrozenBatchNorm2d` by torch's own kernel for fixed statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self, x)


class _FrozenNormAct(FrozenBatchNormAct2d):
    """The same, with the activation that timm folds into it."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(_normalised(self, x)))
        return y


def _normalised(norm: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
