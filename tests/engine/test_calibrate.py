"""Ranges found on numbers whose best range is known."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.engine.calibrate import Seen, calibrate
from maskrcnn.engine.codes import coding_of
from maskrcnn.engine.fuse import fused
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import nano


def test_evenly_spread_numbers_keep_their_whole_range() -> None:
    seen = Seen()
    seen.look(torch.linspace(-3.0, 1.0, 4096))
    assert seen.range() == (-3.0, 1.0)


def test_one_number_far_off_is_cut() -> None:
    seen = Seen()
    seen.look(torch.cat([torch.randn(1 << 20).abs(), torch.tensor([40.0])]).view(1, 1, 1, -1))
    low, high = seen.range()
    assert low == 0.0 and 3.0 < high <= 30.0
    assert seen.high == 40.0


def test_the_range_is_the_best_of_those_that_could_be() -> None:
    seen = Seen()
    x = torch.randn(4096) ** 3
    seen.look(x)

    def error(share: float) -> float:
        coding = coding_of(share * float(x.min()), share * float(x.max()))
        back = (coding.encode(x).double() - coding.zero) * coding.scale
        return float((back - x).square().sum())

    low, _ = seen.range()
    best = low / float(x.min())
    assert all(error(best) <= error(share) * 1.02 for share in torch.linspace(0.2, 1.0, 41).tolist())


def test_looks_of_growing_reach_count_as_one() -> None:
    parts = [torch.randn(500) * 10.0**power for power in (-3, 0, -1, 2)]
    one, many = Seen(), Seen()
    one.look(torch.cat(parts))
    for part in parts:
        many.look(part)
    assert (many.low, many.high, many.reach) == (one.low, one.high, one.reach)
    assert one.counts.sum() == many.counts.sum() == 2000
    assert (many.counts - one.counts).abs().sum() <= 10  # on the border of two bins either may have it


def test_several_looks_are_one() -> None:
    seen = Seen()
    for x in (torch.zeros(2, 3, 0, 4), torch.full((1, 2, 3, 3), 2.0), torch.full((5,), -6.0)):
        seen.look(x)
    assert (seen.low, seen.high) == (-6.0, 2.0)
    assert Seen().range() == (0.0, 0.0)


def test_every_layer_is_seen() -> None:
    network = fused(MaskRCNN(nano(("a",), (1,))).eval())
    ranges = calibrate(network, [torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)])
    assert ranges["backbone.body.layer1.0.conv2.added"][1] > 0
    assert ranges["rpn.convs.0.made"][0] == 0.0  # behind a ReLU
    assert {"fpn.output.p2.given", "box_head.fcs.0.given", "box_head.fcs.1.made", "rpn.both.made"} <= ranges.keys()
    assert not any(module._forward_hooks for module in network.modules())


def test_no_pictures() -> None:
    with pytest.raises(InputError, match="calibration: no pictures"):
        calibrate(fused(MaskRCNN(nano(("a",), (1,))).eval()), [])
