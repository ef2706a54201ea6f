"""Where annotation files and pictures lie, as COCO and its imitators lay them out.

data/annotations/instances_train.json   data/train/*.jpg          COCO
data/annotations/instances.json         data/images/*.jpg
data/train.json                         data/images/train/*.jpg
data/train/_annotations.coco.json       data/train/*.jpg
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from maskrcnn.errors import InputError

Split = Literal["train", "val"]

_SYNONYMS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
_OTHER_TASKS = ("captions", "person_keypoints", "stuff", "panoptic", "image_info")  # beside instances in COCO's folder


def split_of(annotation_file: Path, root: Path | None = None) -> str | None:
    """ "train", "val", "test" or None: from the file's name, else from a folder below `root` that is called so."""
    stem = annotation_file.stem.lower()
    if "train" in stem:
        return "train"
    if re.search(r"(?<!e)val", stem):  # not "eval"
        return "val"
    if re.search(r"(?<![a-z])test", stem):  # not "latest"
        return "test"
    if annotation_file.parent == root:
        return None
    folder = annotation_file.parent.name.lower().rstrip("0123456789")
    return next((split for split, names in _SYNONYMS.items() if folder in names), None)


def annotation_files(folder: Path) -> list[Path]:
    """The annotation files that a data set's folder holds, by name: itself, in `annotations`, or in its split folders.

    Files for COCO's other tasks are left out where a file called `instances...` stands beside them.

    Raises:
        InputError: there is none.
    """
    splits = [name for names in _SYNONYMS.values() for name in names]
    places = [folder, folder / "annotations", *(folder / name for name in splits)]
    found = [path for place in places if place.is_dir() for path in sorted(place.glob("*.json"))]
    if any(path.name.startswith("instances") for path in found):
        found = [path for path in found if not path.name.startswith(_OTHER_TASKS)]
    if not found:
        raise InputError(
            "holds no annotation file", file=folder, expected="a COCO .json file there or in its folder 'annotations'"
        )
    return found


def annotation_file(folder: Path, split: Split | None) -> Path:
    """The one annotation file of a folder that serves this purpose.

    A file named after the split comes first, then the only one that is named after none.

    Raises:
        InputError: none or several would do; they are listed.
    """
    found = annotation_files(folder)
    if split is None and len(found) == 1:
        return found[0]
    fitting = [path for path in found if split is not None and split_of(path, folder) == split]
    fitting = fitting or [path for path in found if split_of(path, folder) is None]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(str(path.relative_to(folder)) for path in fitting or found)
    if not fitting:
        purpose = f"named *{split}*" if split else "that stands for the whole"
        raise InputError(f"holds no annotation file {purpose}", file=folder, found=names, expected="name one of them")
    expected = "one, or names that hold 'train' and 'val'; else name the file itself"
    raise InputError("holds several annotation files that could be meant", file=folder, found=names, expected=expected)


def has_split(folder: Path, split: Split) -> bool:
    """Whether one of the folder's annotation files is named after this split."""
    return any(split_of(path, folder) == split for path in annotation_files(folder))


def picture_folders(annotation_file: Path, images: Path | None) -> list[Path]:
    """The existing folders in which the pictures of an annotation file may lie, in the order to look through.

    `images` comes before what lies near the file, and a folder named after the split before others.

    Raises:
        InputError: `images` is given and is no folder.
    """
    if images is not None and not images.is_dir():
        raise InputError("no such folder", file=images, field="images")
    beside = annotation_file.parent
    roots = [beside, beside.parent] if images is None else [images, beside, beside.parent]
    names = _split_names(annotation_file)
    subfolders = [*names, *(f"images/{name}" for name in names), "", "images"]
    places = [root / subfolder for root in roots for subfolder in subfolders]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def find_picture(file_name: str, folders: list[Path]) -> Path | None:
    """The first of the folders' files of this name, which may itself hold folders; None where there is none."""
    for folder in folders:
        path = os.path.join(folder, file_name)
        if os.path.isfile(path):
            return Path(path)
    return None


def _split_names(annotation_file: Path) -> list[str]:
    """instances_train2017.json -> train2017, train, training."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", annotation_file.stem) if split_of(Path(word))]
    split = split_of(annotation_file)
    return [*words, *_SYNONYMS.get(split or "", ())]
