"""Plain nets: a ResNet of basic blocks without its shortcuts (He et al. 2016, 3.3 and Fig. 4)."""

from __future__ import annotations

from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from maskrcnn.errors import InputError


class PlainBlock(nn.Module):
    """The two convolutions of `block`, with its weights under their names, and nothing added to what they make."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = block.conv1, block.bn1, block.act1
        self.drop_block: nn.Module = block.drop_block
        self.aa = nn.Identity() if block.aa is None else block.aa
        self.conv2, self.bn2, self.act2 = block.conv2, block.bn2, block.act2
        self.se: nn.Module | None = block.se

    def forward(self, x: Tensor) -> Tensor:
        x = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        x = self.bn2(self.conv2(x))
        x = x if self.se is None else self.se(x)
        out: Tensor = self.act2(x)
        return out


def remove_shortcuts_(body: nn.Module, name: str) -> None:
    """Make every basic block of `body` plain, in place; the projections of its shortcuts go.

    The last scale of a residual block starts at 0, so that the block starts as its shortcut. Without one it would
    hand on nothing: such a scale becomes 1. name: of the network, for the error.
    Errors: `InputError` where there is no basic block.
    """
    blocks = [(path, block) for path, block in body.named_modules() if isinstance(block, BasicBlock)]
    if not blocks:
        expected = "a ResNet of basic blocks, such as resnet18 or resnet34"
        raise InputError("has no shortcuts to remove", field="backbone.shortcuts", found=name, expected=expected)
    for path, block in blocks:
        scale = getattr(block.bn2, "weight", None)
        if scale is not None and not scale.is_meta and not scale.any():
            nn.init.ones_(scale)
        parent, _, child = path.rpartition(".")
        setattr(body.get_submodule(parent), child, PlainBlock(block))
