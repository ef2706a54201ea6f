"""COCO annotation files, read and checked: every problem is collected with its file and field.

Format: Lin et al. 2014, "Microsoft COCO", and cocodataset.org/#format-data, object detection. `segmentation` is a list
of polygons, or an RLE whose counts are a compressed string or a plain list; none of it is turned into pixels here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.classes import Classes
from maskrcnn.data.coco_keypoints import read_points, read_scheme
from maskrcnn.data.rle_check import are_sound
from maskrcnn.errors import InputError, InputErrors
from maskrcnn.ops.polygons import rle_from_polygons
from maskrcnn.ops.rle import RLE, area, bounding_box, counts_of, from_counts
from maskrcnn.structures import KeypointScheme, Size

Rings = tuple[np.ndarray, ...]  # (P, 2) float64 each
Bbox = tuple[float, float, float, float]  # x, y, width, height

_SMALLEST = 1e-3  # px; a shorter side is none, and would vanish in float32 at the far edge of a large picture
_FARTHEST = 1e9  # px; larger coordinates are a broken file's
_IDS = 1 << 63  # ids are kept as int64


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One picture of the file. place: where its record stands, for messages ("images[3] (id 7)")."""

    image_id: int
    file_name: str
    size: Size
    place: str


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where one object is.

    bbox: (x, y, width, height) as in the file, or around the mask where the file has none.
    area: pixels as in the file, or those of the mask (of the box without a mask).
    segmentation: polygons, an RLE (compressed), or None without a mask.
    counts: the plain run lengths where the file holds such, so that they can be given back as they came.
    keypoints: (J, 3) float64 x, y, v as in the file, or None where the file has none.
    """

    bbox: Bbox
    area: float
    is_crowd: bool
    segmentation: Rings | RLE | None
    counts: list[int] | None
    keypoints: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class AnnotationRecord:
    """One object of the file."""

    annotation_id: int
    image_id: int
    label: int
    geometry: Geometry


@dataclass
class CocoFile:
    """What an annotation file holds, without its bad records, and the problems of those.

    keypoints: what objects of `keypoint_categories` (ids) have; None where the file has none.
    """

    file: Path
    classes: Classes
    images: list[ImageRecord] = field(default_factory=list)
    annotations: list[AnnotationRecord] = field(default_factory=list)
    problems: list[InputError] = field(default_factory=list)
    keypoints: KeypointScheme | None = None
    keypoint_categories: set[int] = field(default_factory=set)

    def bad(self, place: str, problem: str, found: object = None, expected: str | None = None) -> None:
        """Note a problem."""
        self.problems.append(InputError(problem, file=self.file, field=place, found=found, expected=expected))


def read_coco(file: Path, classes: Classes | None = None) -> CocoFile:
    """Read and check an annotation file; its pictures are not looked at.

    Args:
        file: the JSON.
        classes: labels to use in place of the file's own; categories are matched to them by name.

    Raises:
        InputError: not JSON, not COCO, or unusable categories. Problems of single records are collected instead.
    """
    document = _load(file)
    own, categories = _read_categories(document["categories"], file)
    if classes is not None:
        labels = {i: classes.label_of_name[name] for i, name in categories.items() if name in classes.label_of_name}
        if not labels:
            found, expected = ", ".join(own.names), _some(classes.names)
            raise InputError(
                "has no class of the training set", file=file, field="categories", found=found, expected=expected
            )
    else:
        classes, labels = own, own.label_of_category
    coco = CocoFile(file, classes)
    places = _numbered("categories", document["categories"])
    coco.keypoints, coco.keypoint_categories = read_scheme(places, document["annotations"], coco.bad)
    known = _read_images(document["images"], coco)
    _read_annotations(document["annotations"], coco, known, labels, set(categories))
    return coco


def _load(file: Path) -> dict[str, list[Any]]:
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise InputError("no such file", file=file) from None
    except OSError as error:
        raise InputError("cannot be read", file=file, found=str(error)) from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError("is not JSON", file=file, found=str(error)) from None
    parts = ("images", "annotations", "categories")
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise InputError("is not COCO", file=file, found=f"a {kind}", expected=f"an object with {', '.join(parts)}")
    for part in parts:
        if not isinstance(document.get(part), list):
            found = f"keys {', '.join(map(str, document)) or 'none'}" if part not in document else document[part]
            raise InputError("is not COCO", file=file, field=part, found=found, expected="a list")
    return document


def _read_categories(records: list[Any], file: Path) -> tuple[Classes, dict[int, str]]:
    """The classes in order of their ids, and the name of each id."""
    names: dict[int, str] = {}
    problems: list[InputError] = []
    for place, record in _numbered("categories", records):
        category, name = (record.get("id"), record.get("name")) if isinstance(record, dict) else (None, None)
        number = _as_int(category)
        if number is None or number < 0 or not isinstance(name, str) or not name:  # evaluators take no id below 0
            expected = "an object with an integer id, 0 or more, and a name"
            problems.append(InputError("is not a category", file=file, field=place, found=record, expected=expected))
        elif number in names:
            problems.append(InputError("is a duplicate", file=file, field=f"{place}.id", found=number))
        elif name in names.values():
            problems.append(InputError("is a duplicate", file=file, field=f"{place}.name", found=name))
        else:
            names[number] = name
    if problems:
        raise InputErrors("the categories have problems", problems)
    if not names:
        raise InputError("there is no category", file=file, field="categories", expected="at least one")
    ids = sorted(names)
    return Classes(tuple(names[i] for i in ids), tuple(ids)), names


def _read_images(records: list[Any], coco: CocoFile) -> dict[int, Size | None]:
    """Fill `coco.images`; the size of every id that occurs, None where its record is bad."""
    known: dict[int, Size | None] = {}
    files: dict[str, int] = {}
    for place, record in _numbered("images", records):
        image_id = _as_int(record.get("id")) if isinstance(record, dict) else None
        if image_id is None:
            coco.bad(f"{place}.id", "is not an image id", record, "an object with an integer id")
            continue
        if image_id in known:
            coco.bad(f"{place}.id", "is a duplicate", image_id)
            continue
        known[image_id] = None
        name, height, width = record.get("file_name"), _as_int(record.get("height")), _as_int(record.get("width"))
        if not isinstance(name, str) or not name:
            coco.bad(f"{place}.file_name", "is not a file name", repr(name))
        elif height is None or width is None or height < 1 or width < 1:
            found = f"height {record.get('height')!r}, width {record.get('width')!r}"
            coco.bad(f"{place}.height, width", "is not a size", found, "positive whole numbers")
        elif files.setdefault(os.path.normpath(name), image_id) != image_id:
            # of one picture with two ids, one could be learned from and the other be judged by
            first = files[os.path.normpath(name)]
            coco.bad(f"{place}.file_name", f"is the file of image id {first} too", name, "one id for each picture")
        else:
            known[image_id] = (height, width)
            coco.images.append(ImageRecord(image_id, name, (height, width), place))
    return known


def _read_annotations(
    records: list[Any],
    coco: CocoFile,
    known: dict[int, Size | None],
    labels: dict[int, int],
    categories: set[int],
) -> None:
    """Fill `coco.annotations` with those that hold, in the file's order."""
    seen: set[int] = set()
    masks_expected = any(isinstance(record, dict) and record.get("segmentation") for record in records)
    sound = _sound_rles(records)
    for i, (place, record) in enumerate(_numbered("annotations", records)):
        if not isinstance(record, dict):
            coco.bad(place, "is not an annotation", record, "an object")
            continue
        size = _read_links(record, place, coco, known, labels, categories, seen)
        geometry = _Reader(coco, place, record, size, i in sound).read(masks_expected)
        if size is not None and geometry is not None:
            ids = int(record["id"]), int(record["image_id"])
            coco.annotations.append(AnnotationRecord(*ids, labels[int(record["category_id"])], geometry))


def _read_links(
    record: dict[str, Any],
    place: str,
    coco: CocoFile,
    known: dict[int, Size | None],
    labels: dict[int, int],
    categories: set[int],
    seen: set[int],
) -> Size | None:
    """Check the ids of an annotation; its picture's size, None where one of the ids or the picture's record is bad."""
    problems_before = len(coco.problems)
    annotation_id, image_id, category = (_as_int(record.get(key)) for key in ("id", "image_id", "category_id"))
    if annotation_id is None:
        coco.bad(f"{place}.id", "is not an annotation id", repr(record.get("id")), "an integer")
    elif annotation_id in seen:
        coco.bad(f"{place}.id", "is a duplicate", annotation_id)
    else:
        seen.add(annotation_id)
    if image_id not in known:
        coco.bad(f"{place}.image_id", "is no image of this file", repr(record.get("image_id")))
    if category not in categories:
        found = repr(record.get("category_id"))
        coco.bad(f"{place}.category_id", "is no category of this file", found, _some(sorted(categories)))
    elif category not in labels:
        coco.bad(f"{place}.category_id", "is no class of the training set", category, _some(coco.classes.names))
    if image_id is None or len(coco.problems) > problems_before:
        return None
    return known[image_id]


class _Reader:
    """Reads the geometry of one annotation, noting what is wrong.

    size: the picture's, None where that is unknown. rle_is_sound: its compressed RLE is known to be in order.
    """

    def __init__(
        self, coco: CocoFile, place: str, record: dict[str, Any], size: Size | None, rle_is_sound: bool
    ) -> None:
        self.coco, self.place, self.record, self.size, self.rle_is_sound = coco, place, record, size, rle_is_sound

    def bad(self, name: str, problem: str, found: object = None, expected: str | None = None) -> None:
        self.coco.bad(f"{self.place}.{name}", problem, found, expected)

    def read(self, masks_expected: bool) -> Geometry | None:
        """None where anything is wrong or the picture's size is unknown."""
        problems_before = len(self.coco.problems)
        segmentation, counts = self.segmentation(masks_expected)
        bbox, area, is_crowd, keypoints = self.bbox(), self.area(), self.crowd(), self.keypoints()
        if self.size is None or len(self.coco.problems) > problems_before:
            return None
        if bbox is None and segmentation is not None:
            bbox = self.in_picture("segmentation", _bbox_of(segmentation))
        if bbox is None:
            return None
        if area is None:
            area = bbox[2] * bbox[3] if segmentation is None else _area_of(segmentation, self.size)
        return Geometry(bbox, area, is_crowd, segmentation, counts, keypoints)

    def bbox(self) -> Bbox | None:
        value = self.record.get("bbox")
        if value is None:
            if not self.record.get("segmentation"):
                self.bad("bbox", "is missing, and there is no mask to take it from")
            return None
        if not isinstance(value, list) or len(value) != 4 or not all(map(_is_finite, value)):
            self.bad("bbox", "is not a box", value, "four finite numbers x, y, width, height")
            return None
        x, y, width, height = map(float, value)
        if min(width, height) < _SMALLEST:
            self.bad("bbox", "has no area", value, "positive width and height")
            return None
        return self.in_picture("bbox", (x, y, width, height))

    def in_picture(self, name: str, box: Bbox) -> Bbox | None:
        """The box, unless no part of it lies in the picture."""
        if self.size is None:
            return box
        x, y, width, height = box
        inside = min(x + width, self.size[1]) - max(x, 0), min(y + height, self.size[0]) - max(y, 0)
        if min(inside) < _SMALLEST:
            self.bad(name, "lies outside the picture", list(box), f"within height, width {self.size}")
            return None
        return box

    def area(self) -> float | None:
        value = self.record.get("area")
        if value is None:
            return None
        if not _is_finite(value) or value < 0:
            self.bad("area", "is not an area", value, "a finite number of pixels")
            return None
        return float(value)

    def crowd(self) -> bool:
        value = self.record.get("iscrowd")
        if value not in (None, 0, 1):
            self.bad("iscrowd", "is not a flag", repr(value), "0 or 1")
        return bool(value)

    def keypoints(self) -> np.ndarray | None:
        scheme = self.coco.keypoints
        if scheme is None:
            return None
        has_names = _as_int(self.record.get("category_id")) in self.coco.keypoint_categories
        return read_points(self.record.get("keypoints") if has_names else None, len(scheme), self.bad)

    def segmentation(self, expected: bool) -> tuple[Rings | RLE | None, list[int] | None]:
        value = self.record.get("segmentation")
        if not value:
            if expected:
                self.bad("segmentation", "is missing, while other annotations have one")
            return None, None
        if isinstance(value, dict):
            return self.rle(value)
        if isinstance(value, list) and all(isinstance(polygon, list) for polygon in value):
            rings = tuple(self.rings(value))
            return (rings, None) if rings and self.holds_a_pixel(rings) else (None, None)
        self.bad("segmentation", "is not a mask", value, "a list of polygons or an RLE")
        return None, None

    def rings(self, polygons: list[Any]) -> Iterator[np.ndarray]:
        for k, polygon in enumerate(polygons):
            name = f"segmentation[{k}]"
            try:
                numbers = np.array(polygon)  # of float64 it would take text for numbers
            except ValueError:
                numbers = np.empty((0, 0))
            if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
                self.bad(name, "is not a polygon", polygon, "a flat list of numbers x1, y1, x2, y2, ...")
            elif len(numbers) % 2:
                self.bad(name, "has an odd number of coordinates", len(numbers), "pairs of x, y")
            elif len(numbers) < 6:
                self.bad(name, "has too few points", len(numbers) // 2, "at least 3")
            elif not (np.abs(numbers) < _FARTHEST).all():  # NaN is not smaller
                self.bad(name, "holds numbers that are no coordinates", polygon, "finite numbers")
            else:
                yield numbers.astype(np.float64).reshape(-1, 2)

    def holds_a_pixel(self, rings: Rings) -> bool:
        """Whether any of the rings covers a part of the picture; a ring of several may well be empty."""
        solid = [ring for ring in rings if not _is_flat(ring)]
        if not solid:
            self.bad("segmentation", "has no area", [ring.ravel().tolist() for ring in rings], "points around an area")
            return False
        if self.size is None:
            return True
        height, width = self.size
        if any(0 < x < width and 0 < y < height for ring in solid for x, y in ring[:1].tolist()):  # nearly always
            return True
        is_inside = any(_overlaps(ring, self.size) for ring in solid)
        if not is_inside:
            self.bad("segmentation", "lies outside the picture", None, f"within height, width {self.size}")
        return is_inside

    def rle(self, value: dict[str, Any]) -> tuple[RLE | None, list[int] | None]:
        size: Any = value.get("size")
        counts: Any = value.get("counts")
        if not _is_size(size):
            self.bad("segmentation.size", "is not a size", repr(size), "[height, width]")
        elif self.size and tuple(size) != self.size:
            self.bad("segmentation.size", "differs from the picture's", size, f"[height, width] {list(self.size)}")
        elif not isinstance(counts, (str, list)):
            self.bad("segmentation.counts", "is not run lengths", repr(counts), "a string or a list")
        elif self.rle_is_sound and isinstance(counts, str):
            return RLE(size=size, counts=counts), None
        else:
            return self.runs(size, counts)
        return None, None

    def runs(self, size: list[int], counts: str | list[int]) -> tuple[RLE | None, list[int] | None]:
        try:
            rle = RLE(size=size, counts=counts) if isinstance(counts, str) else from_counts(counts, size)
            runs = counts_of(rle)
        except InputError as error:
            self.bad("segmentation", str(error))
            return None, None
        if not runs[1::2].any():
            self.bad("segmentation", "holds no pixel")
        return rle, counts if isinstance(counts, list) else None


def _sound_rles(records: list[Any]) -> set[int]:
    """Positions of the annotations whose compressed RLE is in order; the others have to be looked at one by one."""
    places, strings, areas = [], [], []
    for i, record in enumerate(records):
        value = record.get("segmentation") if isinstance(record, dict) else None
        if isinstance(value, dict) and isinstance(value.get("counts"), str) and _is_size(value.get("size")):
            places.append(i)
            strings.append(value["counts"])
            areas.append(value["size"][0] * value["size"][1])
    return set(np.array(places, dtype=np.int64)[are_sound(strings, areas)].tolist())


def _bbox_of(segmentation: Rings | RLE) -> Bbox:
    if isinstance(segmentation, tuple):
        low, high = np.min([r.min(0) for r in segmentation], 0), np.max([r.max(0) for r in segmentation], 0)
        x1, y1, x2, y2 = (float(v) for v in (*low, *high))
    else:
        x1, y1, x2, y2 = bounding_box(segmentation)
    return x1, y1, x2 - x1, y2 - y1


def _is_flat(ring: np.ndarray) -> bool:
    """Whether all points of a ring (P, 2) lie on one line."""
    (x0, y0), (x1, y1), (x2, y2) = ring[:3].tolist()
    if abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) > _SMALLEST:  # nearly always
        return False
    from_first = ring - ring[0]
    lengths = np.hypot(*from_first.T)
    far = int(lengths.argmax())
    if lengths[far] < _SMALLEST:
        return True
    along = from_first[far] / lengths[far]
    return float(np.abs(from_first @ (-along[1], along[0])).max()) < _SMALLEST


def _overlaps(ring: np.ndarray, size: Size) -> bool:
    """Whether the box around a ring (P, 2) covers a part of the picture."""
    low, high = ring.min(axis=0), ring.max(axis=0)
    return bool((np.minimum(high, size[::-1]) - np.maximum(low, 0)).min() >= _SMALLEST)


def _area_of(segmentation: Rings | RLE, size: Size) -> float:
    return float(area(rle_from_polygons(segmentation, size) if isinstance(segmentation, tuple) else segmentation))


def _numbered(part: str, records: list[Any]) -> Iterator[tuple[str, Any]]:
    """(place for messages, record) of each."""
    for i, record in enumerate(records):
        number = record.get("id") if isinstance(record, dict) else None
        yield f"{part}[{i}]" if number is None else f"{part}[{i}] (id {number})", record


def _as_int(value: object) -> int | None:
    """Whole numbers of 64 bits, also those written 7.0; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not value.is_integer():  # NaN and infinity are none either
        return None
    return int(value) if -_IDS <= value < _IDS else None


def _is_size(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int and 0 < v < 1 << 20 for v in value)


def _is_finite(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max  # math.isfinite raises on integers of 400 digits


def _some(values: Iterable[object], limit: int = 8) -> str:
    items = [str(value) for value in values]
    return "one of " + ", ".join(items[:limit]) + (", ..." if len(items) > limit else "")
