"""An endless stream of training batches that depends on its seed alone.

Which picture comes when, and every random choice of its transforms, follow from (seed, epoch, position), so the global
batches are the same for any number of workers and processes, and a stream begun at step s goes on exactly as one that
has run there.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from maskrcnn.data.dataset import Dataset, Sample
from maskrcnn.data.transforms import Transform
from maskrcnn.errors import InputError
from maskrcnn.structures import GtKeypoints, GtMasks, KeypointScheme, Target

Batch = list[tuple[Tensor, Target]]  # pictures (3, H, W) uint8, of differing sizes, and their targets


class TrainLoader:
    """Batches of transformed pictures without end.

    Each epoch is a permutation of the data set (with `weights` as many draws with replacement); a batch may reach over
    the end of one. The sample at a position is seeded by (seed, epoch, position), and so is its target's
    `sampling_seed`.

    Args:
        dataset: at least one picture.
        transform: changes to make, or None.
        batch_size: pictures in the global batch, over all processes.
        seed: of order and transforms.
        workers: processes that read and transform; 0 does it in this one.
        weights: how often each picture is to be drawn, relative to the others.
        rank, world_size: this process takes the positions rank, rank + world_size, ... of each global batch.
        cache_bytes: decoded pictures that each worker keeps in memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform | None,
        batch_size: int,
        seed: int,
        workers: int = 0,
        weights: Sequence[float] | np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        if not len(dataset):
            raise InputError("there is no picture to learn from", field="dataset")
        if not 0 <= rank < world_size <= batch_size:
            found = f"rank {rank} of {world_size}, batch_size {batch_size}"
            raise InputError("does not fit", field="batch_size", found=found, expected="a picture or more per process")
        self.order = SampleOrder(len(dataset), seed, _shares(weights, len(dataset)))
        self.batch_size, self.workers, self.rank, self.world_size = batch_size, workers, rank, world_size
        self._samples = _Samples(dataset, transform, seed, cache_bytes)

    @property
    def steps_per_epoch(self) -> float:
        """Batches that show as many pictures as the data set holds."""
        return self.order.count / self.batch_size

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """This process's part of each global batch from `start_step` (counted from 0) on.

        Raises:
            InputError: a picture could not be read; from workers too.
        """
        loader = DataLoader(
            self._samples,
            batch_sampler=_Steps(self.order, start_step, self.batch_size, self.rank, self.world_size),
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator().manual_seed(0),  # else it draws from torch's own, and training would differ
        )
        for results in loader:
            yield [_unpacked(result) for result in results]


@dataclass(frozen=True)
class SampleOrder:
    """Which picture stands at each position of each epoch.

    count: pictures. shares: (count,) float64 that sum to 1, or None for permutations.
    """

    count: int
    seed: int
    shares: np.ndarray | None = None

    def epoch(self, epoch: int) -> np.ndarray:
        """(count,) int64 indices."""
        # Four numbers, so that no sample's (seed, epoch, position) gives the same stream.
        rng = np.random.default_rng((self.seed, epoch, 0, 1))
        if self.shares is None:
            return rng.permutation(self.count)
        return rng.choice(self.count, self.count, p=self.shares)


@dataclass(frozen=True)
class _Place:
    """A sample to make: picture `index` at `position` of `epoch`."""

    epoch: int
    position: int
    index: int


@dataclass(frozen=True)
class _Steps:
    """The places of this process in each global batch, without end."""

    order: SampleOrder
    start_step: int
    batch_size: int
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[list[_Place]]:
        count, step = self.order.count, self.start_step
        known = (-1, np.zeros(0, dtype=np.int64))
        while True:
            places = []
            for offset in range(self.rank, self.batch_size, self.world_size):
                epoch, position = divmod(step * self.batch_size + offset, count)
                if known[0] != epoch:
                    known = (epoch, self.order.epoch(epoch))
                places.append(_Place(epoch, position, int(known[1][position])))
            yield places
            step += 1


@dataclass(frozen=True)
class _Packed:
    """A sample on its way from a worker: numpy only.

    Tensors would travel through shared memory, one file descriptor each: slower for many small ones, and containers
    give little of it.
    """

    picture: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray | None
    masks: GtMasks | None
    size: tuple[int, int]
    image_id: int
    sampling_seed: int
    points: np.ndarray | None
    keypoints: KeypointScheme | None
    proposals: np.ndarray | None


class _Samples(TorchDataset[_Packed | str]):
    """Makes the sample of a place; a picture that cannot be read becomes the error's text."""

    def __init__(self, dataset: Dataset, transform: Transform | None, seed: int, cache_bytes: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.cache_bytes = cache_bytes
        self._cache: dict[int, Sample] = {}

    def __getitem__(self, place: _Place) -> _Packed | str:
        rng = np.random.default_rng((self.seed, place.epoch, place.position))
        sampling_seed = int(rng.integers(2**31))
        try:
            picture, target = self._sample(place.index)
        except InputError as error:
            return str(error)
        if self.transform is not None:
            picture, target = self.transform(picture, target, rng)
        return _packed(picture, replace(target, sampling_seed=sampling_seed))

    def _sample(self, index: int) -> Sample:
        sample = self._cache.get(index)
        if sample is None:
            sample = self.dataset[index]
            # Nothing is thrown out for it: over permutations, what came first is as good as what came last.
            if sample[0].nbytes <= self.cache_bytes:
                self.cache_bytes -= sample[0].nbytes
                self._cache[index] = sample
        return sample


def _packed(picture: np.ndarray, target: Target) -> _Packed:
    return _Packed(
        np.ascontiguousarray(picture.transpose(2, 0, 1)),
        target.gt_boxes.numpy(),
        target.gt_labels.numpy(),
        target.is_crowd.numpy(),
        None if target.areas is None else target.areas.numpy(),
        target.gt_masks,
        target.size,
        target.image_id,
        target.sampling_seed,
        None if target.gt_keypoints is None else target.gt_keypoints.points.numpy(),
        None if target.gt_keypoints is None else target.gt_keypoints.scheme,
        None if target.proposals is None else target.proposals.numpy(),
    )


def _unpacked(packed: _Packed | str) -> tuple[Tensor, Target]:
    if isinstance(packed, str):
        raise InputError(packed)
    target = Target(
        gt_boxes=torch.from_numpy(packed.boxes),
        gt_labels=torch.from_numpy(packed.labels),
        gt_masks=packed.masks,
        is_crowd=torch.from_numpy(packed.is_crowd),
        size=packed.size,
        image_id=packed.image_id,
        areas=None if packed.areas is None else torch.from_numpy(packed.areas),
        sampling_seed=packed.sampling_seed,
        proposals=None if packed.proposals is None else torch.from_numpy(packed.proposals),
    )
    if packed.points is not None and packed.keypoints is not None:
        target = replace(target, gt_keypoints=GtKeypoints(torch.from_numpy(packed.points), packed.keypoints))
    return torch.from_numpy(packed.picture), target


def _shares(weights: Sequence[float] | np.ndarray | None, count: int) -> np.ndarray | None:
    if weights is None:
        return None
    values: np.ndarray = np.asarray(weights, dtype=np.float64)
    if values.shape != (count,) or not np.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
        expected = f"{count} numbers of 0 or more, not all 0"
        raise InputError("are not weights of the pictures", field="weights", found=values.tolist(), expected=expected)
    shares: np.ndarray = values / values.sum()
    return shares


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and SIGTERM often reach the whole group; a worker that died of one would spoil an orderly stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that was killed outright closes no loader; its worker would wait on a full pipe for good."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
