"""The peer's data set holds what ours holds, and both are timed on the same pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskrcnn.bench.loader import DEMO, PlainDataset, bench_loader
from maskrcnn.bench.options import BenchOptions
from maskrcnn.data.opening import open_dataset
from maskrcnn.ops import rle
from maskrcnn.ops.masks import rasterise

pytest.importorskip("pycocotools")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of numpy, about pycocotools


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_same_pictures_and_objects(mirrored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *args: torch.tensor(0.0 if mirrored else 1.0))
    dataset = open_dataset(DEMO)
    image, found = PlainDataset(dataset)[0]
    picture, target = dataset[0]
    expected = [rle.decode(mask).astype(bool) for mask in rasterise(target.gt_masks, target.size)]
    boxes = target.gt_boxes.numpy().copy()
    if mirrored:
        picture, expected = picture[:, ::-1], [bitmap[:, ::-1] for bitmap in expected]
        boxes[:, [0, 2]] = target.size[1] - boxes[:, [2, 0]]
    assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), picture)
    assert np.array_equal(found["masks"].numpy().astype(bool), np.stack(expected))
    assert np.allclose(found["boxes"].numpy(), boxes, atol=1e-3)


def test_pictures_per_second() -> None:
    rows = bench_loader(BenchOptions(rounds=1, shortest=64))
    assert [row.side for row in rows] == ["torchvision's scripts", "ours", "ours, decoded kept"]
    for row in rows:
        assert row.timing is not None and row.unit == "pass over 8 pictures"
        assert row.facts["pictures_per_second"] == pytest.approx(8 / row.timing.median)
