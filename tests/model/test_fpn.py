"""The pyramid against its composition by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.model.fpn import FPN, FPNConfig

CHANNELS = {"c2": 4, "c3": 6, "c4": 8, "c5": 10}


def maps(height: int, width: int, count: int = 2) -> dict[str, Tensor]:
    """Of a picture of this size; each side is half of the finer one's, rounded up."""
    sides = {}
    for name, channels in CHANNELS.items():
        stride = 2 ** int(name[1])
        sides[name] = torch.randn(count, channels, -(-height // stride), -(-width // stride))
    return sides


def enlarged(above: Tensor, rows: int, columns: int) -> Tensor:
    """Each cell repeats the one that covers it."""
    out = above.new_zeros(*above.shape[:2], rows, columns)
    for y in range(rows):
        for x in range(columns):
            out[:, :, y, x] = above[:, :, y * above.shape[2] // rows, x * above.shape[3] // columns]
    return out


def by_hand(fpn: FPN, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    state = fpn.state_dict()
    levels, above = {}, None
    for level in (5, 4, 3, 2):
        lateral, output = f"lateral.p{level}.conv", f"output.p{level}.conv"
        merged = F.conv2d(inputs[f"c{level}"], state[f"{lateral}.weight"], state[f"{lateral}.bias"])
        if above is not None:
            merged = merged + enlarged(above, *merged.shape[2:])
        above = merged
        levels[f"p{level}"] = F.conv2d(merged, state[f"{output}.weight"], state[f"{output}.bias"], padding=1)
    levels["p6"] = levels["p5"][:, :, ::2, ::2]
    return levels


@pytest.mark.parametrize("size", [(64, 96), (33, 70), (100, 36), (1, 1)])
def test_equals_the_composition_by_hand(size: tuple[int, int]) -> None:
    fpn, inputs = FPN(FPNConfig(channels=5), CHANNELS), maps(*size)
    for name, parameter in fpn.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    pyramid = fpn(inputs)
    assert list(pyramid) == ["p2", "p3", "p4", "p5", "p6"]
    for name, expected in by_hand(fpn, inputs).items():
        torch.testing.assert_close(pyramid[name], expected, atol=1e-5, rtol=1e-5)


def test_weights() -> None:
    fpn = FPN(FPNConfig(channels=5), CHANNELS)
    lateral, output = sum(c * 5 + 5 for c in CHANNELS.values()), 4 * (5 * 5 * 9 + 5)
    assert sum(p.numel() for p in fpn.parameters()) == lateral + output
    assert not any(p.any() for name, p in fpn.named_parameters() if name.endswith("bias"))
    assert all(p.any() for name, p in fpn.named_parameters() if name.endswith("weight"))


def test_with_a_norm() -> None:
    fpn = FPN(FPNConfig(channels=8, norm="group"), CHANNELS)
    assert sum(isinstance(module, nn.GroupNorm) for module in fpn.modules()) == 8
    pyramid = fpn(maps(64, 64, count=3))
    groups = pyramid["p2"].reshape(3, 8, -1)  # gcd(32, 8) groups of one channel
    torch.testing.assert_close(groups.mean(2), torch.zeros(3, 8), atol=1e-5, rtol=0)


def test_levels_and_strides() -> None:
    assert FPN(FPNConfig(channels=5), CHANNELS).strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    without = FPN(FPNConfig(channels=5, extra_level=False), CHANNELS)
    assert without.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    assert list(without(maps(64, 64))) == ["p2", "p3", "p4", "p5"]


def test_two_maps_of_one_stride() -> None:
    fpn = FPN(FPNConfig(channels=5), {"c5a": 6, "c5": 10})
    inputs = {"c5a": torch.randn(1, 6, 3, 4), "c5": torch.randn(1, 10, 3, 4)}
    pyramid = fpn(inputs)
    assert fpn.strides == {"p5a": 32, "p5": 32, "p6": 64}
    assert list(pyramid) == ["p5a", "p5", "p6"]
    above, inner = fpn.lateral["p5"](inputs["c5"]), fpn.lateral["p5a"](inputs["c5a"])
    torch.testing.assert_close(pyramid["p5a"], fpn.output["p5a"](inner + above))
    torch.testing.assert_close(pyramid["p5"], fpn.output["p5"](above))


def test_no_pictures() -> None:
    assert FPN(FPNConfig(channels=5), CHANNELS)(maps(64, 64, count=0))["p6"].shape == (0, 5, 1, 1)
