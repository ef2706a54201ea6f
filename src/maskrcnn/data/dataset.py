"""What every data set offers, and the two that stand on others: a subset, and an adapter for any sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import index as as_int
from typing import Any, overload

import numpy as np

from maskrcnn.data.classes import Classes
from maskrcnn.data.pictures import PictureLike, read_picture
from maskrcnn.errors import InputError
from maskrcnn.ops.masks import rasterise
from maskrcnn.ops.rle import area
from maskrcnn.structures import GtKeypoints, KeypointScheme, Target

Sample = tuple[np.ndarray, Target]  # picture (H, W, 3) uint8 RGB, and its ground truth in the same (original) frame


class Dataset(Sequence[Sample]):
    """Labelled pictures: `dataset[i]` is (picture, target), `dataset[a:b]` a subset, `len` counts pictures.

    classes: names and category ids. skipped: what was left out while loading, one error each.
    keypoints: what its objects have, or None.
    """

    classes: Classes
    skipped: tuple[InputError, ...] = ()
    keypoints: KeypointScheme | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, i: int) -> Sample:
        """Picture and target of position i in 0..len-1."""

    @abstractmethod
    def target(self, i: int) -> Target:
        """Ground truth of position i, original frame; data sets in files do not decode the picture for it."""

    def path(self, i: int) -> str:
        """The picture's file, or a name that tells it apart."""
        return f"picture-{self.image_id(i)}"

    def image_id(self, i: int) -> int:
        """The id that results refer to; unique within the data set."""
        return i + 1

    @property
    def image_ids(self) -> tuple[int, ...]:
        return tuple(self.image_id(i) for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Sample | Dataset:
        if isinstance(index, slice):
            return Subset(self, range(*index.indices(len(self))))
        return self.sample(position(index, len(self)))

    def ground_truth(self) -> dict[str, Any]:
        """The whole truth as COCO writes it: images, annotations and categories; masks as compressed RLE."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(len(self)):
            target, image_id = self.target(i), self.image_id(i)
            height, width = target.size
            images.append({"id": image_id, "file_name": self.path(i), "height": height, "width": width})
            for record in annotation_records(target, self.classes):
                annotations.append({"id": len(annotations) + 1, "image_id": image_id} | record)
        categories = category_records(self.classes, self.keypoints)
        return {"images": images, "annotations": annotations, "categories": categories}


class Subset(Dataset):
    """Some pictures of another data set, in the order given."""

    def __init__(self, dataset: Dataset, indices: Iterable[int]) -> None:
        self.dataset = dataset
        self.indices = tuple(position(i, len(dataset)) for i in indices)
        self.classes = dataset.classes
        self.skipped = dataset.skipped
        self.keypoints = dataset.keypoints

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, i: int) -> Sample:
        return self.dataset.sample(self.indices[i])

    def target(self, i: int) -> Target:
        return self.dataset.target(self.indices[position(i, len(self))])

    def path(self, i: int) -> str:
        return self.dataset.path(self.indices[position(i, len(self))])

    def image_id(self, i: int) -> int:
        return self.dataset.image_id(self.indices[position(i, len(self))])

    def ground_truth(self) -> dict[str, Any]:
        document = self.dataset.ground_truth()
        kept = set(self.image_ids)
        return document | {
            "images": [image for image in document["images"] if image["id"] in kept],
            "annotations": [record for record in document["annotations"] if record["image_id"] in kept],
        }


class AdaptedSequence(Dataset):
    """Any sequence of (picture, Target), as a data set.

    Pictures may be anything that `read_picture` takes. Image ids are positions counted from 1, so that they are
    unique whatever the targets say. Classes come from the sequence's `classes` (a `Classes`, or names); without
    that attribute they are called "1".."K" up to the highest label, for which every target is looked at once.
    Keypoints are those of the first target: all targets have them, or none has.
    """

    def __init__(self, samples: Sequence[tuple[PictureLike, Target]], classes: Classes | None = None) -> None:
        if not len(samples):
            raise InputError("the sequence is empty", field="data", expected="(picture, Target) pairs")
        self.samples = samples
        self.classes = classes or self._find_classes()
        first = self.target(0).gt_keypoints
        self.keypoints = None if first is None else first.scheme

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, i: int) -> Sample:
        source, target = self._pair(i)
        picture = read_picture(source, name=f"data[{i}]")
        size, highest = tuple(target.size), int(target.gt_labels.max()) if len(target) else 1
        if picture.shape[:2] != size:
            expected = f"{picture.shape[:2]}, the picture's"
            raise InputError("differs", file=f"data[{i}]", field="target.size", found=size, expected=expected)
        if highest > len(self.classes) or (len(target) and int(target.gt_labels.min()) < 1):
            found, expected = target.gt_labels.tolist(), f"1 to {len(self.classes)}"
            raise InputError("is no class", file=f"data[{i}]", field="target.gt_labels", found=found, expected=expected)
        self._check_keypoints(i, target)
        return picture, replace(target, image_id=self.image_id(i))

    def target(self, i: int) -> Target:
        i = position(i, len(self))
        return replace(self._pair(i)[1], image_id=self.image_id(i))

    def _check_keypoints(self, i: int, target: Target) -> None:
        given = target.gt_keypoints
        names = None if given is None else given.scheme.names
        wanted = None if self.keypoints is None else self.keypoints.names
        if names != wanted:
            field, expected = "target.gt_keypoints", f"{wanted}, as the first target has"
            raise InputError("differ", file=f"data[{i}]", field=field, found=str(names), expected=expected)
        shape = (len(target), len(names or ()), 3)
        if given is not None and tuple(given.points.shape) != shape:
            found, field = tuple(given.points.shape), "target.gt_keypoints.points"
            raise InputError("do not fit", file=f"data[{i}]", field=field, found=found, expected=str(shape))

    def _pair(self, i: int) -> tuple[PictureLike, Target]:
        pair: Any = self.samples[i]
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[1], Target)):
            raise InputError("is not a sample", file=f"data[{i}]", found=pair, expected="(picture, Target)")
        return pair[0], pair[1]

    def _find_classes(self) -> Classes:
        given = getattr(self.samples, "classes", None)
        if isinstance(given, Classes):
            return given
        if given is not None:
            return Classes.named(str(name) for name in given)
        labels = (self.target(i).gt_labels for i in range(len(self)))
        return Classes.numbered(max(1, max(int(found.max()) if len(found) else 0 for found in labels)))


def subset(dataset: Dataset, indices: Iterable[int]) -> Subset:
    """The pictures of these positions, in this order."""
    return Subset(dataset, indices)


def position(index: int, length: int) -> int:
    """An index from 0, negative ones counted from the end; IndexError beyond, which ends a plain `for`."""
    i = as_int(index)
    if not -length <= i < length:
        raise IndexError(f"index {i} is out of range for {length} pictures")
    return i % length


def category_records(classes: Classes, keypoints: KeypointScheme | None = None) -> list[dict[str, Any]]:
    records = [{"id": i, "name": name} for i, name in zip(classes.category_ids, classes.names, strict=True)]
    if keypoints is None:
        return records
    skeleton = [[a + 1, b + 1] for a, b in keypoints.skeleton]
    return [record | {"keypoints": list(keypoints.names), "skeleton": skeleton} for record in records]


def annotation_records(target: Target, classes: Classes) -> list[dict[str, Any]]:
    """COCO's fields of G objects, without the ids of annotation and image."""
    corners = target.gt_boxes.double().tolist()
    rles = None if target.gt_masks is None else rasterise(target.gt_masks, target.size)
    if target.areas is not None:
        areas = target.areas.tolist()
    elif rles is not None:
        areas = [float(area(rle)) for rle in rles]
    else:
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in corners]
    points = None if target.gt_keypoints is None else _keypoint_records(target.gt_keypoints)
    records: list[dict[str, Any]] = []
    for i, (x1, y1, x2, y2) in enumerate(corners):
        record = {
            "category_id": classes.category_ids[int(target.gt_labels[i]) - 1],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": areas[i],
            "iscrowd": int(target.is_crowd[i]),
        }
        record |= {} if rles is None else {"segmentation": rles[i]}
        records.append(record if points is None else record | points[i])
    return records


def _keypoint_records(keypoints: GtKeypoints) -> list[dict[str, Any]]:
    centre = keypoints.scheme.pixel_centre
    points = keypoints.points.double().numpy() - [centre, centre, 0.0]
    points[points[..., 2] == 0] = 0
    return [{"keypoints": p.ravel().tolist(), "num_keypoints": int((p[:, 2] > 0).sum())} for p in points]
