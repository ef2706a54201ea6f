from __future__ import annotations

import itertools
import multiprocessing
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.data.dataset import AdaptedSequence, Dataset, Sample
from maskrcnn.data.loader import Batch, TrainLoader, _Steps
from maskrcnn.data.opening import open_dataset
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.data.transforms import Compose, Flip, Photometric, QuarterTurn, ScaledCrop
from maskrcnn.errors import InputError, InputErrors
from maskrcnn.structures import Target

# Python 3.12 and later warn when workers are forked from a process that has threads, as torch has.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

CHAIN = Compose((ScaledCrop(32, (0.5, 2.0)), Flip(0.5, 0.5), QuarterTurn(), Photometric()))
SHAPES = ShapesDataset(7, size=(40, 48), seed=1)


def take(loader: TrainLoader, count: int, start: int = 0) -> list[Batch]:
    stream = loader.batches(start)
    batches = list(itertools.islice(stream, count))
    stream.close()  # type: ignore[attr-defined]
    return batches


def assert_same(first: Batch, second: Batch) -> None:
    assert len(first) == len(second)
    for (picture, target), (other, other_target) in zip(first, second, strict=True):
        assert picture.equal(other)
        assert target.gt_boxes.equal(other_target.gt_boxes) and target.gt_labels.equal(other_target.gt_labels)
        assert target.gt_masks is not None and other_target.gt_masks is not None
        np.testing.assert_array_equal(target.gt_masks.to_frame, other_target.gt_masks.to_frame)
        assert len(target.gt_masks) == len(other_target.gt_masks)
        assert (target.image_id, target.sampling_seed) == (other_target.image_id, other_target.sampling_seed)


def loader(**options: object) -> TrainLoader:
    return TrainLoader(**({"dataset": SHAPES, "transform": CHAIN, "batch_size": 3, "seed": 5} | options))  # type: ignore[arg-type]


def test_what_a_batch_holds() -> None:
    (batch,) = take(loader(), 1)
    for picture, target in batch:
        assert picture.dtype == torch.uint8 and picture.shape == (3, 32, 32) and picture.is_contiguous()
        assert isinstance(target, Target) and target.size == (32, 32)
        assert target.areas is not None and target.gt_boxes.dtype == torch.float32
        picture += 1  # writable
        target.gt_boxes.add_(1)


def test_pictures_of_differing_sizes_stay_a_list() -> None:
    class Two(Dataset):
        classes = SHAPES.classes

        def __len__(self) -> int:
            return 2

        def sample(self, i: int) -> Sample:
            return ShapesDataset(1, size=(20 + 4 * i, 30))[0]

        def target(self, i: int) -> Target:
            return self.sample(i)[1]

    (batch,) = take(loader(dataset=Two(), transform=None, batch_size=2), 1)
    assert {tuple(picture.shape) for picture, _ in batch} == {(3, 20, 30), (3, 24, 30)}


def test_each_epoch_shows_every_picture_once_in_a_new_order() -> None:
    ids = [target.image_id for batch in take(loader(), 14) for _, target in batch]
    epochs = [ids[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(1, 8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert loader().steps_per_epoch == pytest.approx(7 / 3)


def test_samples_are_never_the_same_twice() -> None:
    seeds = [target.sampling_seed for batch in take(loader(), 20) for _, target in batch]
    assert len(set(seeds)) == 60


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same(workers: int) -> None:
    for first, second in zip(take(loader(), 6), take(loader(workers=workers), 6), strict=True):
        assert_same(first, second)


def test_ranks_share_the_global_batch() -> None:
    whole = take(loader(batch_size=5), 4)
    parts = [take(loader(batch_size=5, rank=rank, world_size=2), 4) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert_same(batch[0::2], parts[0][step])
        assert_same(batch[1::2], parts[1][step])


@pytest.mark.parametrize("start", [1, 2, 5, 9])
def test_resumed_stream_goes_on_as_if_never_stopped(start: int) -> None:
    whole = take(loader(), 12)
    for first, second in zip(whole[start:], take(loader(), 12 - start, start), strict=True):
        assert_same(first, second)


def test_seeds_differ() -> None:
    one, other = (take(loader(seed=seed), 1)[0] for seed in (1, 2))
    assert [t.sampling_seed for _, t in one] != [t.sampling_seed for _, t in other]


def test_torch_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    take(loader(), 2)
    assert torch.rand(3).equal(expected)


def test_weights() -> None:
    weights = [0.0, 1, 1, 1, 1, 1, 5]
    ids = [t.image_id for batch in take(loader(weights=weights, transform=None), 100) for _, t in batch]
    counts = np.bincount(ids, minlength=8)[1:]
    assert counts[0] == 0 and counts[6] > 2 * counts[1:6].max() and counts[1:6].min() > 0
    again = [t.image_id for batch in take(loader(weights=weights, transform=None), 10, 90) for _, t in batch]
    assert again == ids[-30:]


class Broken(ShapesDataset):
    """Its third picture cannot be read."""

    def sample(self, i: int) -> Sample:
        if i == 2:
            raise InputErrors("two things wrong", [InputError("one", file="a.png"), InputError("two")])
        return super().sample(i)


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_worker_arrives_as_one_line(workers: int) -> None:
    with pytest.raises(InputError) as caught:
        take(loader(dataset=Broken(7), workers=workers), 7)
    assert str(caught.value) == "two things wrong (2): a.png: one | two"


def test_workers_end_with_the_stream() -> None:
    stream: Iterator[Batch] = loader(workers=2).batches()
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_everything_a_spawned_worker_needs_can_be_pickled() -> None:
    ours = loader()
    samples = pickle.loads(pickle.dumps(ours._samples))
    (batch,) = take(ours, 1)
    assert [t.sampling_seed for _, t in batch] == [
        samples[place].sampling_seed for place in next(iter(_Steps(ours.order, 0, 3, 0, 1)))
    ]


def test_cache_is_bounded() -> None:
    bytes_each = 40 * 48 * 3
    small = loader(transform=None, cache_bytes=int(2.5 * bytes_each))
    full = loader(transform=None)
    for first, second in zip(take(small, 8), take(full, 8), strict=True):
        assert_same(first, second)
    assert len(small._samples._cache) == 2 and len(full._samples._cache) == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": ShapesDataset(0)}, "there is no picture to learn from"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"batch_size": 1, "world_size": 2}, "rank 0 of 2, batch_size 1"),
        ({"batch_size": 0}, "batch_size: does not fit"),
        ({"weights": [1.0]}, "weights: are not weights"),
        ({"weights": [0.0] * 7}, "not all 0"),
        ({"weights": [1.0] * 6 + [float("nan")]}, "weights"),
        ({"weights": [1.0] * 6 + [-1]}, "weights"),
    ],
)
def test_impossible_settings(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        loader(**options)


def test_real_pictures(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "coco128")
    (batch,) = take(loader(dataset=dataset, batch_size=4, transform=ScaledCrop(256, (0.5, 1.0))), 1)
    assert all(picture.shape == (3, 256, 256) for picture, _ in batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_proposals_come_along(workers: int) -> None:
    drawn = ShapesDataset(2, size=(32, 32), seed=1)
    given = AdaptedSequence(
        [(picture, replace(target, proposals=target.gt_boxes + 1)) for picture, target in drawn], drawn.classes
    )
    loader = TrainLoader(given, None, 2, 0, workers=workers)
    for _, target in next(loader.batches()):
        assert target.proposals is not None
        assert torch.equal(target.proposals, target.gt_boxes + 1)
