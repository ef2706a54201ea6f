"""The body's last stage run on every RoI: the head of the "C4" detectors (He et al. 2017, Fig. 4 left).

R RoIs    S pooled side
"""

from __future__ import annotations

from torch import Tensor, nn

from maskrcnn.errors import InputError
from maskrcnn.model.backbone import BackboneConfig, adapt_body_, create_timm


class RoIStage(nn.Module):
    """pooled (R, C4, 2 S, 2 S) -> (R, C5, S, S).

    Ren et al. 2015 and He et al. 2017 share the network up to c4 between RPN and heads, and give each RoI the whole of
    c5: strong features, but a thousand times the stage's work.
    """

    stride = 2

    def __init__(self, config: BackboneConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        network = create_timm(config, pretrained)
        blocks = getattr(network, "layer4", None)
        if blocks is None:
            expected = "a ResNet, whose last stage can stand alone"
            raise InputError("does not fit this network", field="roi_stage", found=config.name, expected=expected)
        adapt_body_(blocks, config)
        self.blocks = blocks
        self.channels = int(network.num_features)

    def forward(self, pooled: Tensor) -> Tensor:
        maps: Tensor = self.blocks(pooled)
        return maps
