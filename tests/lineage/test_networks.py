"""New networks of a system: one for each seed and number, and one line where weights are not to be had."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.lineage.networks import new_network
from maskrcnn.lineage.papers import faster_rcnn_zf
from maskrcnn.lineage.small import faster_rcnn_config
from maskrcnn.lineage.system import Bench


def test_seed_and_number_choose_the_weights(bench: Bench) -> None:
    config = faster_rcnn_config(bench, bench.train.classes)
    pairs = [(bench, 0), (bench, 0), (bench, 1), (replace(bench, seed=1), 0)]
    a, same, other, of_seed = (new_network(each, config, number).box_head.fcs[0].weight for each, number in pairs)
    assert torch.equal(a, same) and not torch.equal(a, other) and not torch.equal(a, of_seed)


def test_weights_that_nobody_has_are_refused_in_a_line(bench: Bench) -> None:
    config = faster_rcnn_zf(("cat",), (1,))
    with pytest.raises(InputError, match=r"^pretrained_backbone: none to be had; .*expected weights of zf that timm"):
        new_network(replace(bench, pretrained=True), config)
