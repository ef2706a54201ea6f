"""The net of Zeiler and Fergus 2014, the small body of Fast and Faster R-CNN: `timm.create_model("zf")`.

Only what detectors share: five convolutions with 3x3 max pooling after the first two, stride 16, 256 channels at conv5.
As the code of Ren et al. 2015 has it: normalisation before pooling and within each channel, where Zeiler and Fergus
pooled first and normalised across channels. One departure: of a map of odd or even side s, pooling leaves ceil(s / 2)
cells. Caffe's leaves one more where s is even, which would push the maps off their strides.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

__all__ = ["ZF", "LocalNorm"]  # timm's decorator adds "zf"


class LocalNorm(nn.Module):
    """x (N, C, H, W) / (1 + 5e-5 m)^0.75, where m is the mean of x^2 over the 3x3 cells around (Krizhevsky et al. 2012,
    3.3, within a channel). Outside the map x is 0.
    """

    side, alpha, beta = 3, 5e-5, 0.75

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x * x, self.side, stride=1, padding=self.side // 2)
        return x * (1 + self.alpha * mean) ** -self.beta


class ZF(nn.Module):
    """pixels (N, in_chans, H, W) -> (N, 256, H/16, W/16), sides rounded up."""

    num_classes = 0
    num_features = 256

    def __init__(self, in_chans: int = 3, num_classes: int = 0) -> None:
        if num_classes:
            raise TypeError(f"zf has no classifier: num_classes is 0, not {num_classes}")
        super().__init__()
        layers = {
            "conv1": nn.Conv2d(in_chans, 96, 7, stride=2, padding=3),
            "relu1": nn.ReLU(inplace=True),
            "norm1": LocalNorm(),
            "pool1": nn.MaxPool2d(3, stride=2, padding=1),
            "conv2": nn.Conv2d(96, 256, 5, stride=2, padding=2),
            "relu2": nn.ReLU(inplace=True),
            "norm2": LocalNorm(),
            "pool2": nn.MaxPool2d(3, stride=2, padding=1),
            "conv3": nn.Conv2d(256, 384, 3, padding=1),
            "relu3": nn.ReLU(inplace=True),
            "conv4": nn.Conv2d(384, 384, 3, padding=1),
            "relu4": nn.ReLU(inplace=True),
            "conv5": nn.Conv2d(384, 256, 3, padding=1),
            "relu5": nn.ReLU(inplace=True),
        }
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.in_chans = in_chans
        self.feature_info = [
            {"num_chs": 96, "reduction": 2, "module": "relu1"},
            {"num_chs": 96, "reduction": 4, "module": "pool1"},
            {"num_chs": 256, "reduction": 8, "module": "relu2"},
            {"num_chs": 256, "reduction": 16, "module": "relu5"},
        ]
        for module in self.children():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


default_cfgs = generate_default_cfgs(
    {"zf.untrained": {"num_classes": 0, "input_size": (3, 224, 224), "first_conv": "conv1"}}
)


@register_model
def zf(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The body for timm, with `features_only` too. There are no pretrained weights of it."""
    feature_cfg = {"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3))}
    model: nn.Module = build_model_with_cfg(ZF, "zf", pretrained, feature_cfg=feature_cfg, **kwargs)
    return model
