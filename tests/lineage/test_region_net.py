"""R-CNN's network: what it gives for a region does not hang on its neighbours, and equals its parts put together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskrcnn.lineage import region_net
from maskrcnn.lineage.region_net import RegionNet, RegionNetConfig, digest
from maskrcnn.lineage.system import Stopwatch
from maskrcnn.lineage.warp import WarpConfig, warp
from maskrcnn.model.backbone import BackboneConfig

TINY = BackboneConfig(
    name="resnet18",
    options={"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 24), "stem_type": "deep", "stem_width": 8},
    norm="batch",
    frozen_stages=0,
)
CONFIG = RegionNetConfig(body=TINY, num_classes=3)
BOXES = torch.tensor([[3.0, 4.0, 40.0, 30.0], [-5.0, 10.0, 20.0, 70.0], [30.0, 30.0, 50.0, 45.0]])


def _net(config: RegionNetConfig = CONFIG) -> RegionNet:
    torch.manual_seed(0)
    return RegionNet(config).eval()


def _picture() -> torch.Tensor:
    return torch.randint(0, 256, (3, 60, 70), dtype=torch.uint8)


def test_features_are_what_the_softmax_reads() -> None:
    """The logits follow from the stored features: their mean over the map, and one linear layer."""
    net, picture = _net(), _picture()
    features = net.features_of(picture, BOXES)
    assert features.shape == (3, 96) and features.dtype == torch.float32
    normalised = (picture / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        logits = net(warp(normalised, BOXES, CONFIG.warp))
        by_hand = features.view(3, 24, 2, 2).mean(dim=(2, 3)) @ net.head.classes.weight.T + net.head.classes.bias
    assert logits.shape == (3, 4)
    torch.testing.assert_close(logits, by_hand)


def test_a_region_does_not_hang_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    net, picture = _net(), _picture()
    together = net.features_of(picture, BOXES)
    monkeypatch.setattr(region_net, "BATCH", 2)
    watch = Stopwatch()
    torch.testing.assert_close(net.features_of(picture, BOXES, watch), together)
    assert set(watch.seconds) == {"warp", "features"}


def test_no_regions() -> None:
    assert _net().features_of(_picture(), torch.zeros(0, 4)).shape == (0, 96)


@pytest.mark.parametrize("side", [32, 64, 96])
def test_features_are_as_many_at_every_side(side: int) -> None:
    net = _net(replace(CONFIG, warp=WarpConfig(side=side)))
    assert net.features_of(_picture(), BOXES).shape == (3, net.num_features) == (3, 96)


def test_digest_tells_networks_apart() -> None:
    one, other = _net(), _net()
    assert digest(one) == digest(other)
    with torch.no_grad():
        other.head.classes.bias[0] += 1e-6
    statistics = _net()
    statistics.body.body.bn1.running_mean[0] += 1e-3
    wider = _net(replace(CONFIG, warp=WarpConfig(context=0.1)))
    assert len({digest(net) for net in (one, other, statistics, wider)}) == 4
