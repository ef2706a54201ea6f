"""COCO data sets: an annotation file and its pictures.

Reading the JSON is `coco_records`; here the pictures are found and checked, and targets are made from the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn.data.classes import Classes
from maskrcnn.data.coco_records import AnnotationRecord, CocoFile, ImageRecord, Rings, read_coco
from maskrcnn.data.dataset import Dataset, Sample, category_records, position
from maskrcnn.data.layout import find_picture, picture_folders
from maskrcnn.data.pictures import check_whole, picture_size, read_picture
from maskrcnn.errors import InputError, InputErrors
from maskrcnn.ops.rle import RLE, decode_window
from maskrcnn.structures import GtKeypoints, GtMasks, KeypointScheme, PolygonShape, RasterShape, Shape, Target

_SHAPE_CACHE_BYTES = 128 * 2**20


def load_coco(
    annotation_file: str | Path,
    images: str | Path | None = None,
    *,
    skip_bad: bool = False,
    classes: Classes | None = None,
) -> CocoDataset:
    """Open a COCO instance annotation file and check all of it, pictures included.

    Labels 1..K follow the category ids in ascending order. Pictures are compared with the file by their headers, and
    those cut short are found, without decoding the common formats.

    Args:
        annotation_file: the JSON.
        images: the folder of the pictures. What is not there is looked for beside the file, in the folder above, and
            in folders there named `images` or after the split.
        skip_bad: leave out bad annotations and pictures; `dataset.skipped` tells which. Else they are an error.
        classes: labels of another data set to use in place of the file's own, matched by name.

    Raises:
        InputErrors: everything that is wrong with the records and pictures, at once.
        InputError: the file as a whole is unusable, or nothing is left.
    """
    file = Path(annotation_file)
    coco = read_coco(file, classes)
    paths = _find_pictures(coco, None if images is None else Path(images))
    if coco.problems and not skip_bad:
        raise InputErrors("the data set has problems", coco.problems)
    kept = [image for image in coco.images if image.image_id in paths]
    if not kept:
        raise InputError("there is no picture to use", file=file, field="images", expected="at least one")
    return CocoDataset(
        file,
        coco.classes,
        kept,
        [paths[image.image_id] for image in kept],
        coco.annotations,
        coco.problems,
        coco.keypoints,
    )


class CocoDataset(Dataset):
    """Pictures of an annotation file with their objects; made by `load_coco`.

    Records are kept as arrays over all annotations, sorted by picture, and as polygons or RLE. Shapes of a picture
    are made on first use and kept as small windows, up to 128 MiB.
    """

    def __init__(
        self,
        file: Path,
        classes: Classes,
        images: Sequence[ImageRecord],
        paths: Sequence[str],
        annotations: Sequence[AnnotationRecord],
        skipped: Sequence[InputError] = (),
        keypoints: KeypointScheme | None = None,
    ) -> None:
        self.file, self.classes, self.skipped, self.keypoints = file, classes, tuple(skipped), keypoints
        self._images, self._paths = tuple(images), tuple(paths)
        place = {image.image_id: i for i, image in enumerate(images)}
        records = sorted((a for a in annotations if a.image_id in place), key=lambda a: place[a.image_id])
        counts = np.bincount([place[a.image_id] for a in records], minlength=len(images))
        self._splits = np.concatenate([[0], np.cumsum(counts)])  # (N + 1,); picture i has rows splits[i]:splits[i + 1]
        self._ids = np.array([a.annotation_id for a in records], dtype=np.int64)
        self._labels = np.array([a.label for a in records], dtype=np.int64)
        self._bboxes = np.array([a.geometry.bbox for a in records], dtype=np.float64).reshape(-1, 4)
        self._areas = np.array([a.geometry.area for a in records], dtype=np.float64)
        self._is_crowd = np.array([a.geometry.is_crowd for a in records], dtype=bool)
        self._segmentations = [a.geometry.segmentation for a in records]
        self._plain_counts = {row: a.geometry.counts for row, a in enumerate(records) if a.geometry.counts}
        self._points: np.ndarray | None = None  # (A, J, 3) float64 x, y, v as in the file
        if keypoints is not None:
            points = [a.geometry.keypoints for a in records if a.geometry.keypoints is not None]
            self._points = np.array(points).reshape(-1, len(keypoints), 3)
        self._shapes: dict[int, tuple[Shape, ...]] = {}
        self._shape_bytes = 0
        # A file without any annotation may belong to a mask data set as well as to one of boxes.
        self.has_masks = not records or self._segmentations[0] is not None

    def __len__(self) -> int:
        return len(self._images)

    def path(self, i: int) -> str:
        return self._paths[i]

    def image_id(self, i: int) -> int:
        return self._images[i].image_id

    def sample(self, i: int) -> Sample:
        return read_picture(self._paths[i]), self.target(i)

    def target(self, i: int) -> Target:
        i = position(i, len(self))
        rows = slice(self._splits[i], self._splits[i + 1])
        height, width = self._images[i].size
        corners = self._bboxes[rows].copy()
        corners[:, 2:] += corners[:, :2]
        corners = np.clip(corners, 0, [width, height, width, height])
        return Target(
            gt_boxes=torch.from_numpy(corners.astype(np.float32)),
            gt_labels=torch.from_numpy(self._labels[rows].copy()),
            gt_masks=GtMasks(self._shapes_of(i)) if self.has_masks else None,
            is_crowd=torch.from_numpy(self._is_crowd[rows].copy()),
            size=(height, width),
            image_id=self._images[i].image_id,
            areas=torch.from_numpy(self._areas[rows].copy()),
            gt_keypoints=self._keypoints_of(rows),
        )

    def ground_truth(self) -> dict[str, Any]:
        """The COCO document of what is kept, boxes and segmentations as in the file.

        Where the file counts its annotations from 0 or below they are moved up to start at 1, since the usual
        evaluators take an id of 0 for "not matched".
        """
        images = [
            {"id": image.image_id, "file_name": image.file_name, "height": image.size[0], "width": image.size[1]}
            for image in self._images
        ]
        shift = max(0, 1 - int(self._ids.min(initial=1)))
        owners = np.repeat([image.image_id for image in self._images], np.diff(self._splits)).tolist()
        annotations = [self._annotation(row, owner, shift) for row, owner in enumerate(owners)]
        categories = category_records(self.classes, self.keypoints)
        return {"images": images, "annotations": annotations, "categories": categories}

    def _annotation(self, row: int, image_id: int, shift: int) -> dict[str, Any]:
        record = {
            "id": int(self._ids[row]) + shift,
            "image_id": image_id,
            "category_id": self.classes.category_ids[self._labels[row] - 1],
            "bbox": self._bboxes[row].tolist(),
            "area": float(self._areas[row]),
            "iscrowd": int(self._is_crowd[row]),
        }
        if self._points is not None:
            points = self._points[row]
            record |= {"keypoints": points.ravel().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
        segmentation = self._segmentations[row]
        if isinstance(segmentation, tuple):
            return record | {"segmentation": [ring.ravel().tolist() for ring in segmentation]}
        if segmentation is not None:
            counts = self._plain_counts.get(row, segmentation["counts"])
            return record | {"segmentation": {"size": list(segmentation["size"]), "counts": counts}}
        return record

    def _keypoints_of(self, rows: slice) -> GtKeypoints | None:
        if self._points is None or self.keypoints is None:
            return None
        centre = self.keypoints.pixel_centre
        points = self._points[rows] + [centre, centre, 0.0]
        return GtKeypoints(torch.from_numpy(points.astype(np.float32)), self.keypoints)

    def _shapes_of(self, i: int) -> tuple[Shape, ...]:
        shapes = self._shapes.get(i)
        if shapes is None:
            shapes = tuple(_shape(s) for s in self._segmentations[self._splits[i] : self._splits[i + 1]] if s)
            size = sum(shape.bitmap.nbytes for shape in shapes if isinstance(shape, RasterShape))
            if self._shape_bytes + size <= _SHAPE_CACHE_BYTES:
                self._shapes[i] = shapes
                self._shape_bytes += size
        return shapes


def _shape(segmentation: Rings | RLE) -> Shape:
    if isinstance(segmentation, tuple):
        return PolygonShape(segmentation)
    height, width = segmentation["size"]
    return RasterShape(*decode_window(segmentation), size=(height, width))


def _find_pictures(coco: CocoFile, images: Path | None) -> dict[int, str]:
    """Image id to file of every picture that is there, whole and of the size that the file tells; notes the others."""
    folders = picture_folders(coco.file, images)
    found: dict[int, str] = {}
    for image in coco.images:
        path = find_picture(image.file_name, folders)
        if path is None:
            searched = "a file in " + ", ".join(map(str, folders))
            coco.bad(f"{image.place}.file_name", "picture is missing", image.file_name, searched)
        elif _picture_fits(path, image, coco):
            found[image.image_id] = str(path)
    return found


def _picture_fits(path: Path, image: ImageRecord, coco: CocoFile) -> bool:
    try:
        upright, stored = picture_size(path)
        check_whole(path)
    except InputError as error:
        coco.problems.append(error)
        return False
    if upright == image.size:
        return True
    turn = " upright (its EXIF data turn it, the annotations do not)" if stored == image.size else ""
    expected = f"{upright}, the size of {path}{turn}"
    coco.bad(f"{image.place}.height, width", "differs from the picture's", image.size, expected)
    return False
