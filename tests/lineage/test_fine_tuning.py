"""Fine-tuning: mini-batches against the definition, and that the network learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.data.dataset import AdaptedSequence, Dataset
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.lineage.fine_tuning import RegionBatches, augmented, fine_tune
from maskrcnn.lineage.region_net import RegionNet, RegionNetConfig
from maskrcnn.lineage.regions import Regions, regions_of, tuning_labels
from maskrcnn.lineage.warp import WarpConfig, warp
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.structures import Target
from maskrcnn.training.recipe import Augmentation, Recipe, light

TINY = BackboneConfig(
    name="resnet18",
    options={"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_type": "deep", "stem_width": 8},
    norm="batch",
    frozen_stages=0,
)
CONFIG = RegionNetConfig(body=TINY, num_classes=3, warp=WarpConfig(side=32))
STILL = Augmentation(crop=128, flip=0.0, flip_vertical=0.0, turn=0.0)


def _recipe(steps: int) -> Recipe:
    return replace(light(), minutes=None, steps=steps, precision="float32", ema=0.9)


def _net(config: RegionNetConfig = CONFIG) -> RegionNet:
    torch.manual_seed(0)
    return RegionNet(config)


def _regions(dataset: Dataset, near: int = 6, far: int = 40) -> list[Regions]:
    """Boxes near the objects of each picture, and anywhere."""
    found = []
    for i in range(len(dataset)):
        target, generator = dataset.target(i), torch.Generator().manual_seed(i)
        moved = target.gt_boxes.repeat(near, 1)
        moved = moved + torch.randn(moved.shape, generator=generator) * 2
        corners = torch.rand(far, 2, generator=generator) * (target.size[0] - 38)
        boxes = torch.cat([moved, torch.cat([corners, corners + 30], dim=1)]).clamp(0, target.size[0])
        found.append(regions_of(target.gt_boxes, target.gt_labels, target.is_crowd, boxes))
    return found


def test_a_batch_is_32_regions_on_objects_and_96_on_background() -> None:
    dataset = ShapesDataset(20, seed=3)
    regions, net = _regions(dataset), _net()
    batches = RegionBatches(dataset, regions, replace(_recipe(1), augmentation=STILL), net)
    pixels, labels = batches.batch(step=0)
    assert pixels.shape == (128, 3, 32, 32)
    assert int((labels > 0).sum()) == 32 and int((labels == 0).sum()) == 96
    # each is one of the pictures' regions, with its own label, and none is taken twice
    everywhere, every_label = [], []
    for i, some in enumerate(regions):
        picture = torch.from_numpy(dataset.sample(i)[0].copy()).permute(2, 0, 1)
        everywhere.append(warp(net.normalised(picture), some.boxes, CONFIG.warp))
        every_label.append(tuning_labels(some))
    keys = {region.contiguous().numpy().tobytes(): int(label) for region, label in _rows(everywhere, every_label)}
    found = [region.contiguous().numpy().tobytes() for region in pixels]
    assert [keys[key] for key in found] == labels.tolist() and len(set(found)) == 128


def _rows(regions: list[Tensor], labels: list[Tensor]) -> zip[tuple[Tensor, Tensor]]:
    return zip(torch.cat(regions), torch.cat(labels), strict=True)


def test_batches_follow_from_seed_and_step() -> None:
    dataset = ShapesDataset(20, seed=3)
    regions, net = _regions(dataset), _net()
    one, again = (RegionBatches(dataset, regions, _recipe(9), net) for _ in range(2))
    other = RegionBatches(dataset, regions, replace(_recipe(9), seed=1), net)
    one.batch(0)
    assert all(torch.equal(a, b) for a, b in zip(one.batch(4), again.batch(4), strict=True))
    assert not torch.equal(one.batch(4)[0], one.batch(5)[0])
    assert not torch.equal(one.batch(4)[0], other.batch(4)[0])


def test_every_picture_is_seen() -> None:
    dataset = ShapesDataset(20, seed=3)
    batches = RegionBatches(dataset, _regions(dataset), _recipe(9), _net())
    assert {i for step in range(5) for i in batches._pictures(step)} == set(range(20))


@pytest.mark.parametrize(
    "field, turned",
    [
        ("flip", lambda x: x[:, :, :, ::-1]),
        ("flip_vertical", lambda x: x[:, :, ::-1]),
        ("turn", lambda x: x.transpose(0, 1, 3, 2)),
    ],
)
def test_mirror_images_and_turns(field: str, turned: object) -> None:
    regions, generator = torch.randn(400, 3, 4, 4), torch.Generator().manual_seed(0)
    always = augmented(regions, replace(STILL, **{field: 1.0}), generator)
    assert callable(turned)
    np.testing.assert_array_equal(always.numpy(), turned(regions.numpy()))
    assert torch.equal(augmented(regions, STILL, generator), regions)
    half = augmented(regions, replace(STILL, **{field: 0.5}), generator)
    changed = int((half != regions).flatten(1).any(dim=1).sum())
    assert 150 < changed < 250


def _coloured(count: int) -> AdaptedSequence:
    """Black pictures with a red square (class 1) and a blue one (class 3), which even a tiny network tells apart."""
    samples = []
    for i in range(count):
        picture = np.zeros((64, 64, 3), dtype=np.uint8)
        corners = torch.tensor([[4.0 + i % 5, 6.0], [34.0, 30.0 + i % 4]])
        for (x, y), channel in zip(corners.int().tolist(), (0, 2), strict=True):
            picture[y : y + 24, x : x + 24, channel] = 255
        gt_boxes = torch.cat([corners, corners + 24], dim=1)
        no_crowd = torch.zeros(2, dtype=torch.bool)
        samples.append((picture, Target(gt_boxes, torch.tensor([1, 3]), None, no_crowd, (64, 64))))
    return AdaptedSequence(samples)


def test_it_learns_to_tell_objects_from_background() -> None:
    dataset = _coloured(8)
    regions = _regions(dataset)
    done: list[float] = []
    tuned = fine_tune(_net(), dataset, regions, replace(_recipe(80), learning_rate=0.02), done.append)
    assert tuned.steps == 80 and not tuned.net.training and tuned.loss < 0.2
    assert done == [step / 80 for step in range(1, 81)]
    picture = torch.from_numpy(dataset.sample(0)[0].copy()).permute(2, 0, 1)
    boxes = torch.cat([regions[0].gt_boxes, torch.tensor([[40.0, 0.0, 62.0, 20.0]])])
    with torch.no_grad():
        guess = tuned.net(warp(tuned.net.normalised(picture), boxes, CONFIG.warp)).argmax(dim=1)
    assert guess.tolist() == [1, 3, 0]


def test_the_same_seed_gives_the_same_weights() -> None:
    dataset = ShapesDataset(5, seed=3)
    regions = _regions(dataset)
    one, again = (fine_tune(_net(), dataset, regions, _recipe(3)).net.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)


def test_by_the_clock_it_ends_in_time() -> None:
    dataset = ShapesDataset(2, seed=3)
    recipe = replace(_recipe(1), steps=None, minutes=1e-6)
    assert fine_tune(_net(), dataset, _regions(dataset), recipe).steps == 1


def test_without_regions_nothing_is_learned() -> None:
    dataset = ShapesDataset(3, seed=3)
    none, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    regions = [regions_of(none, labels, labels.bool(), none)] * 3
    net = _net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tuned = fine_tune(net, dataset, regions, _recipe(5))
    assert tuned.steps == 0
    assert all(torch.equal(before[name], value) for name, value in tuned.net.state_dict().items())


def test_pictures_without_objects_are_background() -> None:
    dataset = ShapesDataset(3, seed=3)
    none, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0], [50.0, 50.0, 90.0, 70.0]])
    regions = [regions_of(none, labels, labels.bool(), some) for some in (boxes, none, boxes)]
    _, found = RegionBatches(dataset, regions, _recipe(5), _net()).batch(0)
    assert found.tolist() == [0] * 4
    assert fine_tune(_net(), dataset, regions, _recipe(2)).steps == 2


def test_a_loss_that_is_not_finite_ends_it() -> None:
    dataset = ShapesDataset(2, seed=3)
    net = _net()
    with torch.no_grad():
        net.head.classes.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite at step 1 of fine-tuning"):
        fine_tune(net, dataset, _regions(dataset), _recipe(5))
