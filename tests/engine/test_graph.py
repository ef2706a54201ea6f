"""What becomes one step, and what must not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskrcnn.engine.choose import packing_works
from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.graph import fused_graph
from maskrcnn.engine.tune import pack_


class Block(nn.Module):
    """conv, norm, + shortcut, ReLU; and what a test changes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.drop = nn.Identity()
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.norm(self.conv(x)))
        y += self.shortcut(x)
        return torch.relu(y)


class ReadTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class SumOfShapes(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shortcut(x).mean(dim=(2, 3), keepdim=True)


class CalledTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(self.conv(x))))


class Doubled(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + y


def _steps(network: nn.Module) -> list[str]:
    assert isinstance(network, torch.fx.GraphModule)
    return [str(node.target) for node in network.graph.nodes if node.op not in ("placeholder", "output")]


def _compared(block: Block) -> nn.Module:
    torch.manual_seed(0)
    block.eval()
    x = torch.randn(2, 4, 6, 5)
    with torch.no_grad():
        expected, kept = block(x), x.clone()
        network = fused_graph(block, torch.zeros(1, 4, 8, 8))
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(x, kept)
    return network


def test_a_residual_block_is_two_steps() -> None:
    network = _compared(Block())
    assert sorted(_steps(network)) == ["conv", "shortcut"]
    convs = [module for module in network.modules() if isinstance(module, FusedConv)]
    assert sorted(conv.relu for conv in convs) == [False, True]


class Deep(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(self.shortcut(x))) + x)


class Two(nn.Module):
    """Two blocks; the map between them is read by the second alone, or by the caller as well."""

    def __init__(self, hands_on: bool) -> None:
        super().__init__()
        self.first, self.second = Block(), Deep()
        self.hands_on = hands_on

    def forward(self, x: Tensor) -> list[Tensor]:
        between = self.first(x)
        last = self.second(between)
        return [between, last] if self.hands_on else [last]


@pytest.mark.skipif(not packing_works(torch.float32), reason="this torch has no packed layers")
@pytest.mark.parametrize("hands_on", [False, True])
def test_a_sum_overwrites_what_nobody_reads_again(hands_on: bool) -> None:
    torch.manual_seed(0)
    block = Two(hands_on).eval()
    x = torch.randn(1, 4, 6, 5)
    with torch.no_grad():
        expected = block(x)
        network = fused_graph(block, torch.zeros(1, 4, 8, 8))
        pack_(network, torch.float32)
        found = network(x.clone())
    assert [network.first.conv.overwrites, network.second.conv.overwrites] == [True, not hands_on]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_what_is_read_elsewhere_too_is_not_folded() -> None:
    assert "norm" in _steps(_compared(ReadTwice()))


def test_a_sum_of_other_shapes_stays_a_sum() -> None:
    assert len(_steps(_compared(SumOfShapes()))) == 4  # two convolutions, mean, sum


def test_a_convolution_that_is_called_twice_stays() -> None:
    network = _compared(CalledTwice())
    assert _steps(network)[:2] == ["conv", "conv"]
    assert not any(isinstance(module, FusedConv) for module in network.modules())


def test_a_map_added_to_itself() -> None:
    assert len(_steps(_compared(Doubled()))) == 2
