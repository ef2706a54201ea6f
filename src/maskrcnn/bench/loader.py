"""The training loader against a `Dataset` and `DataLoader` as torchvision's reference scripts write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from maskrcnn.bench.evaluation import require_pycocotools
from maskrcnn.bench.measure import Progress, interleaved, say_nothing
from maskrcnn.bench.options import BenchOptions
from maskrcnn.bench.rows import Row, Value, timed_rows
from maskrcnn.data.dataset import Dataset
from maskrcnn.data.loader import TrainLoader
from maskrcnn.data.opening import open_dataset
from maskrcnn.data.transforms import Compose, Flip, ResizeShortest
from maskrcnn.model.preprocess import Preprocess, PreprocessConfig

DEMO = Path(__file__).parent.parent / "demo_pictures" / "instances.json"
TORCHVISION = "torchvision's scripts"
_BATCH, _PICTURES = 2, 64  # in one round at most
_SHORTEST, _LONGEST = 800, 1333  # px, sides that the network sees


def bench_loader(options: BenchOptions, progress: Progress = say_nothing) -> list[Row]:
    """Pictures per second from files to normalised batches of two with their targets, in a random order, mirrored.

    Both resize to the same size: ours in the loader, bytes and boxes, masks only in name; torchvision in its detector,
    floats and full-size bitmaps. Ours is told once as it trains, keeping decoded pictures, and once keeping none, as
    with a data set that does not fit. Errors: `InputError` without pycocotools, which its side reads masks with.
    """
    require_pycocotools()
    dataset = open_dataset(options.data or DEMO, split="train")
    steps = max(1, min(len(dataset), _PICTURES) // _BATCH)
    workers = options.threads if options.threads > 1 else 0
    shortest = options.shortest or _SHORTEST
    works: dict[str, Callable[[Any], None]] = {
        TORCHVISION: partial(_take, partial(_their_batches, dataset, shortest, workers), steps),
        "ours": partial(_take, partial(_our_batches, dataset, shortest, workers, 0), steps),
    }
    kept = _our_batches(dataset, shortest, workers, 256 * 2**20)  # one stream: what it keeps lives as long as it does
    works["ours, decoded kept"] = partial(_take, lambda: kept, steps)
    timings = interleaved(works, [None], options.rounds, device=options.device, progress=progress)
    facts: dict[str, dict[str, Value]] = {
        name: {"pictures_per_second": steps * _BATCH / timing.median, "workers": workers}
        for name, timing in timings.items()
    }
    return timed_rows("data loading", timings, TORCHVISION, unit=f"pass over {steps * _BATCH} pictures", facts=facts)


def _take(batches: Callable[[], Iterator[Any]], steps: int, item: None) -> None:
    for _ in islice(batches(), steps):
        pass


def _our_batches(dataset: Dataset, shortest: int, workers: int, cache_bytes: int) -> Iterator[Any]:
    transform = Compose((ResizeShortest((shortest,), _longest(shortest)), Flip(0.5)))
    loader = TrainLoader(dataset, transform, _BATCH, 0, workers, cache_bytes=cache_bytes)
    preprocess = Preprocess(PreprocessConfig())
    for batch in loader.batches():
        yield preprocess.batch([picture for picture, _ in batch]), [target for _, target in batch]


def _longest(shortest: int) -> int:
    return round(shortest * _LONGEST / _SHORTEST)


def _their_batches(dataset: Dataset, shortest: int, workers: int) -> Iterator[Any]:
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    config = PreprocessConfig()
    transform = GeneralizedRCNNTransform(shortest, _longest(shortest), list(config.mean), list(config.std))
    loader = DataLoader(
        PlainDataset(dataset), batch_size=_BATCH, shuffle=True, num_workers=workers, collate_fn=_collated
    )
    for images, targets in loader:
        yield transform(list(images), list(targets))


def _collated(batch: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*batch, strict=True))


class PlainDataset(TorchDataset[Any]):
    """Picture (3, H, W) float32 in 0..1 and a dict of boxes, labels and full-size bitmaps, mirrored half of the time.

    As `references/detection` of torchvision does it: Pillow decodes, pycocotools draws every mask, on every visit.
    """

    def __init__(self, dataset: Dataset) -> None:
        truth = dataset.ground_truth()
        self.paths = [dataset.path(i) for i in range(len(dataset))]
        self.objects: list[list[dict[str, Any]]] = [[] for _ in self.paths]
        places = {dataset.image_id(i): i for i in range(len(dataset))}
        for record in truth["annotations"]:
            if not record["iscrowd"]:
                self.objects[places[record["image_id"]]].append(record)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        from pycocotools import mask
        from torchvision.transforms.functional import pil_to_tensor

        with Image.open(self.paths[index]) as opened:
            image = pil_to_tensor(opened.convert("RGB"))
        objects = self.objects[index]
        bitmaps = [mask.decode(record["segmentation"]) for record in objects]
        boxes = torch.tensor([record["bbox"] for record in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = torch.from_numpy(np.stack(bitmaps) if bitmaps else np.zeros((0, *image.shape[1:]), np.uint8))
        if torch.rand(()) < 0.5:
            image, masks = image.flip(-1), masks.flip(-1)
            boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
        labels = torch.tensor([record["category_id"] for record in objects], dtype=torch.int64)
        return image.to(torch.float32) / 255, {"boxes": boxes, "labels": labels, "masks": masks}
