"""Both sides of the benchmark do equal work: the losses of the first step say so."""

from __future__ import annotations

import pytest

from maskrcnn.bench.training_step import training_step


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_both_sides_learn_the_same(norm: str) -> None:
    rows = training_step(size=64, batch=2, rois=32, steps=1, norm=norm, precisions=("float32",))
    peer, _, ours = rows
    assert [row.name for row in rows] == ["torchvision float32", "torchvision bf16 autocast", "maskrcnn float32"]
    assert peer.ratio == 1 and ours.ratio == pytest.approx(peer.seconds / ours.seconds)
    # the same weights and pictures, but each side draws its own anchors and RoIs
    assert ours.total == pytest.approx(peer.total, rel=0.2)
    assert ours.mask_rois == pytest.approx(peer.mask_rois, rel=0.2)
