"""From what a user names (a file, a folder, the word `shapes`, a sequence) to a data set, or one for each purpose."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, get_args

import numpy as np

from maskrcnn.data.classes import Classes
from maskrcnn.data.coco import load_coco
from maskrcnn.data.dataset import AdaptedSequence, Dataset, subset
from maskrcnn.data.layout import Split, annotation_file, has_split
from maskrcnn.data.shapes import drawn_shapes
from maskrcnn.errors import InputError

DataLike = str | Path | Sequence[Any]  # a sequence is a Dataset, or holds (picture, Target)

SHAPES = "shapes"


def open_dataset(
    data: DataLike,
    *,
    images: str | Path | None = None,
    split: Split | None = None,
    skip_bad: bool = False,
    classes: Classes | None = None,
) -> Dataset:
    """One data set.

    Args:
        data: an annotation file; a folder that holds one, also in its folder `annotations`; the word `shapes`; or a
            sequence of (picture, Target).
        images: a folder to look for pictures in before those that lie near the annotation file.
        split: which file of a folder is meant, and which drawn shapes (the training pictures without it).
        skip_bad: leave out bad annotations and pictures of a file.
        classes: labels of another data set to use in place of the file's own, matched by name.

    Raises:
        InputError: nothing, or more than one thing, fits; or the data set has problems.
    """
    if split not in (None, *get_args(Split)):
        raise InputError("no such split", field="split", found=repr(split), expected=" or ".join(get_args(Split)))
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, (str, Path)):
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):  # a torch Dataset is no Sequence
            expected = "a file, a folder, 'shapes' or a sequence of (picture, Target)"
            raise InputError("is not a data set", field="data", found=type(data).__name__, expected=expected)
        samples: Any = data
        return AdaptedSequence(samples, classes)
    if str(data) == SHAPES:
        return drawn_shapes(split or "train")
    path = Path(data)
    if not path.exists():
        raise InputError("no such file or folder", file=path, expected="an annotation file or a folder, or 'shapes'")
    file = annotation_file(path, split) if path.is_dir() else path
    return load_coco(file, images, skip_bad=skip_bad, classes=classes)


def open_train_val(
    data: DataLike,
    val: DataLike | None = None,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    images: str | Path | None = None,
    skip_bad: bool = False,
) -> tuple[Dataset, Dataset]:
    """The pictures to learn from and those to be judged by, with the same classes.

    Where `val` is not given, a folder with a file named after `val` uses that, `shapes` has its own, and anything
    else is split: the same pictures for the same seed, whatever their order in the file. Each part's `image_ids`
    record the split.

    Args:
        data: as in `open_dataset`; its training part is meant. val: the same, for judging.
        val_fraction: share of pictures to keep for judging, 0 to 1, where the data have to be split.

    Raises:
        InputError: as `open_dataset`, or a single picture is to be split, or the parts have other keypoints.
    """
    _require_fraction(val_fraction)  # even where nothing has to be split
    if val is None and _brings_its_own_val(data):
        val = data
    train = open_dataset(data, images=images, split="train", skip_bad=skip_bad)
    if val is None:
        return split_by_seed(train, val_fraction, seed)
    judged = open_dataset(val, images=images, split="val", skip_bad=skip_bad, classes=train.classes)
    _require_same_keypoints(train, judged)
    return train, judged


def split_by_seed(dataset: Dataset, val_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(train, val): a fixed share of the pictures, drawn by seed from the sorted image ids; at least one in each."""
    _require_fraction(val_fraction)
    count = len(dataset)
    if count < 2:
        raise InputError("too few pictures to split", field="data", found=count, expected="at least 2, or val data")
    by_id = np.argsort(np.array(dataset.image_ids), kind="stable")
    drawn = np.random.default_rng(seed).permutation(by_id)
    cut = min(max(1, round(count * val_fraction)), count - 1)
    return subset(dataset, sorted(drawn[cut:].tolist())), subset(dataset, sorted(drawn[:cut].tolist()))


def _require_fraction(value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < 1:
        raise InputError("is not a share", field="val_fraction", found=repr(value), expected="between 0 and 1")


def _require_same_keypoints(train: Dataset, val: Dataset) -> None:
    if train.keypoints and val.keypoints and train.keypoints.names != val.keypoints.names:
        found, expected = ", ".join(val.keypoints.names), ", ".join(train.keypoints.names)
        raise InputError("differ from those to learn from", field="val.keypoints", found=found, expected=expected)


def _brings_its_own_val(data: DataLike) -> bool:
    if not isinstance(data, (str, Path)):
        return False
    return str(data) == SHAPES or (Path(data).is_dir() and has_split(Path(data), "val"))
