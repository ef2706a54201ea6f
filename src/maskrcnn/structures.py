"""What the stages hand to one another. Frozen: a stage returns a new value and never adds to its input.

    N images in the batch    H, W padded size      L pyramid levels (p2..p6)   A anchors in all
    R RoIs per image         G ground-truth objects      D detections
    K foreground classes     S pooled side (7, 14) M mask side (28) or heat map side (56)      J keypoints
    boxes: (x1, y1, x2, y2), float pixels; sizes: (height, width); labels 1..K, 0 is background
    a pixel is a unit square, the centre of pixel (0, 0) lies at (0.5, 0.5)

Three frames: original (the picture as given), resized (what the network sees), padded (resized, with zeros
to the right and below). Resized and padded share their coordinates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from maskrcnn.errors import InputError
from maskrcnn.ops.files import whole_file
from maskrcnn.ops.paste import as_array

if TYPE_CHECKING:  # what an exported detector finds is told in a process that has no torch: its arrays are numpy's
    import torch
    from torch import Tensor

    from maskrcnn.ops.rle import RLE

Size = tuple[int, int]  # (height, width)
_PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True)
class ImageBatch:
    """Pictures ready for the network.

    pixels: (N, 3, H, W) float32, normalised, with a border around each image (padded frame).
    image_sizes: (N, 2) float32, (height, width) of each image in the resized frame, before padding.
    original_sizes: N pairs (height, width), the original frame.
    """

    pixels: Tensor
    image_sizes: Tensor
    original_sizes: tuple[Size, ...]

    def __len__(self) -> int:
        return len(self.original_sizes)

    def to(self, device: torch.device | str) -> ImageBatch:
        return replace(
            self,
            pixels=self.pixels.to(device, non_blocking=True),
            image_sizes=self.image_sizes.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class PolygonShape:
    """One object's outline: rings of (P, 2) float64 x, y in the shape's source frame, P >= 3 each.

    Several rings are the parts of one object (a car behind a post); they are united, never holes, as in COCO.
    """

    rings: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class RasterShape:
    """One object's pixels, kept only inside its own bounding window of the source picture.

    bitmap: (h, w) uint8, 0 or 1. left, top: where the window sits. size: (height, width) of the source picture.
    """

    bitmap: np.ndarray
    left: int
    top: int
    size: Size


Shape = PolygonShape | RasterShape


@dataclass(frozen=True)
class GtMasks:
    """Ground-truth masks of G objects: shapes in their source frame, and the map to the present frame.

    A transform of the picture changes only `to_frame`, so no bitmap is resampled until `ops.masks.crop_masks`
    cuts the M x M target of a box.

    shapes: G shapes.
    to_frame: (2, 3) float64 [[a, b, tx], [c, d, ty]]; present = [[a, b], [c, d]] @ source + (tx, ty). Axis-aligned:
        either b = c = 0, or a = d = 0 (quarter turns).
    """

    shapes: tuple[Shape, ...]
    to_frame: np.ndarray = field(default_factory=lambda: np.eye(2, 3))

    def __len__(self) -> int:
        return len(self.shapes)

    def moved(self, affine: np.ndarray) -> GtMasks:
        """The same shapes after `affine` (2, 3), which maps the present frame to the next."""
        linear, offset = affine[:, :2], affine[:, 2:]
        head, tail = self.to_frame[:, :2], self.to_frame[:, 2:]
        return replace(self, to_frame=np.hstack([linear @ head, linear @ tail + offset]))

    def __getitem__(self, index: Any) -> GtMasks:
        """Objects chosen by a boolean mask, a sequence of positions or a slice."""
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index if index.size else index.astype(np.int64)  # an empty list is an array of floats
        chosen = np.arange(len(self.shapes))[index]
        return replace(self, shapes=tuple(self.shapes[i] for i in np.atleast_1d(chosen)))


@dataclass(frozen=True)
class KeypointScheme:
    """The J keypoints of an object: what they are called, and how they belong together.

    names: J, each once. flip_pairs: positions (a, b) that change places in a mirror, as left and right eye do.
    skeleton: positions (a, b) that a line joins when drawn.
    pixel_centre: where the centre of pixel 0 lies in the points' coordinates. 0.5, except in detectors that were
        taught points as COCO's files count them, from 0.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    pixel_centre: float = 0.5

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            expected = "at least one, each once"
            raise InputError(
                "are not keypoints", field="KeypointScheme.names", found=list(self.names), expected=expected
            )
        for name in ("flip_pairs", "skeleton"):
            strange = [pair for pair in getattr(self, name) if not all(0 <= j < len(self.names) for j in pair)]
            if strange:
                expected = f"positions from 0 to {len(self.names) - 1}"
                raise InputError(
                    "no such keypoint", field=f"KeypointScheme.{name}", found=strange[0], expected=expected
                )
        paired = [j for pair in self.flip_pairs for j in pair]
        if len(set(paired)) < len(paired):
            found = list(self.flip_pairs)
            raise InputError("a keypoint is in two pairs", field="KeypointScheme.flip_pairs", found=found)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """J positions: what stands in place j once left and right have changed places."""
        other = {a: b for pair in self.flip_pairs for a, b in (pair, pair[::-1])}
        return tuple(other.get(j, j) for j in range(len(self.names)))


@dataclass(frozen=True)
class GtKeypoints:
    """Ground-truth keypoints of G objects, in the frame of their target.

    points: (G, J, 3) float32 x, y, v. v is 0 where not labelled (x and y then mean nothing), 1 labelled though hidden,
        2 visible.
    """

    points: Tensor
    scheme: KeypointScheme

    def __len__(self) -> int:
        return self.points.shape[0]

    def moved(self, affine: np.ndarray, size: Size) -> GtKeypoints:
        """The same points after `affine` (2, 3) into a picture of `size`; what falls outside is no longer labelled.

        A mirror, across or down, makes a left eye of a right one.
        """
        import torch

        is_mirror = np.linalg.det(affine[:, :2]) < 0
        points = self.points[:, list(self.scheme.mirrored)] if is_mirror else self.points
        linear, offset = torch.from_numpy(affine[:, :2]), torch.from_numpy(affine[:, 2])
        places = points[..., :2].double() @ linear.T + offset
        inside = ((places >= 0) & (places <= torch.tensor(size[::-1]))).all(dim=2) & (points[..., 2] > 0)
        after = torch.cat([places.float(), points[..., 2:]], dim=2)
        return replace(self, points=torch.where(inside[..., None], after, 0))

    def to(self, device: torch.device | str) -> GtKeypoints:
        return replace(self, points=self.points.to(device, non_blocking=True))

    def __getitem__(self, keep: Tensor) -> GtKeypoints:
        """The objects where `keep` (G,) bool is true."""
        return replace(self, points=self.points[keep])


@dataclass(frozen=True)
class Target:
    """Ground truth of one picture, in the frame of the picture it comes with.

    gt_boxes: (G, 4) float32. gt_labels: (G,) int64 in 1..K. gt_masks: G shapes, or None without masks.
    is_crowd: (G,) bool; a crowd region is never a positive and hides the background under it.
    size: (height, width) of the picture. image_id: the data set's own.
    areas: (G,) float64 pixels as annotated (COCO's size classes go by it), original frame.
    sampling_seed: seeds the choice of anchors and RoIs of this picture, so that it does not depend on its batch.
    gt_keypoints: those of the G objects, or None without keypoints.
    proposals: (P, 4) float32, boxes that somebody proposed for this picture (Selective Search, another RPN), in its
        frame; None where the detector's own RPN is to propose.
    """

    gt_boxes: Tensor
    gt_labels: Tensor
    gt_masks: GtMasks | None
    is_crowd: Tensor
    size: Size
    image_id: int = 0
    areas: Tensor | None = None
    sampling_seed: int = 0
    gt_keypoints: GtKeypoints | None = None
    proposals: Tensor | None = None

    def __len__(self) -> int:
        return self.gt_boxes.shape[0]

    def chosen(self, keep: Tensor) -> Target:
        """Only the objects where `keep` (G,) bool is true."""
        return replace(
            self,
            gt_boxes=self.gt_boxes[keep],
            gt_labels=self.gt_labels[keep],
            gt_masks=None if self.gt_masks is None else self.gt_masks[keep.cpu().numpy()],
            is_crowd=self.is_crowd[keep],
            areas=None if self.areas is None else self.areas[keep],
            gt_keypoints=None if self.gt_keypoints is None else self.gt_keypoints[keep],
        )


@dataclass(frozen=True)
class Proposals:
    """What the RPN keeps, best first, padded to R per image (padded frame).

    boxes: (N, R, 4) float32. logits: (N, R) float32 objectness before sigmoid. valid: (N, R) bool.
    """

    boxes: Tensor
    logits: Tensor
    valid: Tensor


@dataclass(frozen=True)
class SampledRoIs:
    """The RoIs that one image learns from, foreground first (padded frame).

    boxes: (R_i, 4) float32. labels: (R_i,) int64, 0 is background.
    matched_gt_index: (R_i,) int64, the object that each foreground RoI belongs to; 0 where background.
    """

    boxes: Tensor
    labels: Tensor
    matched_gt_index: Tensor

    @property
    def is_foreground(self) -> Tensor:
        return self.labels > 0


@dataclass(frozen=True)
class DetectionBatch:
    """What the fixed-shape core returns: best first, padded to D per image (padded frame).

    boxes: (N, D, 4) float32. scores: (N, D). labels: (N, D) int64 in 1..K, 0 where not valid. valid: (N, D) bool.
    mask_logits: (N, D, M, M) of each detection's own class, or None without a mask head.
    keypoint_logits: (N, D, J, M, M) heat maps before softmax over M x M, or None without a keypoint head.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    mask_logits: Tensor | None = None
    keypoint_logits: Tensor | None = None


@dataclass(frozen=True)
class Masks:
    """Masks of D detections, each M x M inside its box until somebody asks for pixels.

    probabilities: (D, M, M) float32 in 0..1. boxes: (D, 4) float32, original frame. size: (height, width).
    threshold: a pixel belongs to the object where the probability, resized into the box, is at least this.
    """

    probabilities: Tensor
    boxes: Tensor
    size: Size
    threshold: float = 0.5

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __getitem__(self, index: Any) -> Masks:
        return replace(self, probabilities=self.probabilities[index], boxes=self.boxes[index])

    def rle(self) -> list[RLE]:
        """D compressed RLEs {"size": [H, W], "counts": str}; no full bitmap is made on the way."""
        from maskrcnn.ops.paste import paste_rle

        return paste_rle(self.probabilities, self.boxes, self.size, self.threshold)

    def polygons(self) -> list[list[np.ndarray]]:
        """Per object a list of outlines (P, 2) float64 x, y in the original frame; holes are not kept."""
        from maskrcnn.ops.polygons import polygons_from_rle

        return [polygons_from_rle(rle) for rle in self.rle()]

    def bitmaps(self) -> Tensor:
        """(D, H, W) bool. This is D full pictures: prefer `rle` where hundreds of objects meet large pictures."""
        from maskrcnn.ops.paste import paste_bitmaps

        pasted = paste_bitmaps(self.probabilities, self.boxes, self.size, self.threshold)
        if isinstance(self.probabilities, np.ndarray):
            return pasted
        import torch

        return torch.from_numpy(pasted).to(self.probabilities.device)


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, best first (original frame).

    boxes: (D, 4) float32. scores: (D,) float32 in 0..1. labels: (D,) int64 in 1..K.
    names: D class names. category_ids: D ids as the data set counts them. masks: None without a mask head.
    size: (height, width) of the picture. source: its path or "" for one given in memory.
    picture: gives the picture as (H, W, 3) uint8 RGB when asked, for `draw`.
    keypoints: (D, J, 3) float32 x, y, score, named by `keypoint_scheme`; None without a keypoint head.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    masks: Masks | None
    size: Size
    keypoints: Tensor | None = None
    source: str = ""
    picture: Callable[[], np.ndarray] | None = field(default=None, repr=False, compare=False)
    keypoint_scheme: KeypointScheme | None = None

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __iter__(self) -> Iterator[tuple[Tensor, float, str]]:
        """(box, score, name) of each detection."""
        return zip(self.boxes, self.scores.tolist(), self.names, strict=True)

    def chosen(self, keep: Tensor) -> Detections:
        """Only the detections where `keep` (D,) bool is true."""
        flags = keep.tolist()
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            names=tuple(name for name, kept in zip(self.names, flags, strict=True) if kept),
            category_ids=tuple(i for i, kept in zip(self.category_ids, flags, strict=True) if kept),
            masks=None if self.masks is None else self.masks[keep],
            keypoints=None if self.keypoints is None else self.keypoints[keep],
        )

    def coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """COCO result records: image_id, category_id, bbox (x, y, width, height), score.

        With masks segmentation (RLE); with keypoints a flat list x, y, score, ..., the centre of a pixel at 0.
        """
        corners = self.boxes.tolist()
        rles = [None] * len(self) if self.masks is None else self.masks.rle()
        points = [None] * len(self) if self.keypoints is None else self._coco_keypoints(self.keypoints)
        records = []
        for (x1, y1, x2, y2), score, category, rle, flat in zip(
            corners, self.scores.tolist(), self.category_ids, rles, points, strict=True
        ):
            record = {
                "image_id": image_id,
                "category_id": category,
                "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(score, 6),
            }
            record |= {} if rle is None else {"segmentation": rle}
            records.append(record if flat is None else record | {"keypoints": flat})
        return records

    def _coco_keypoints(self, keypoints: Tensor) -> list[list[float]]:
        centre = 0.5 if self.keypoint_scheme is None else self.keypoint_scheme.pixel_centre
        shifted = as_array(keypoints, np.float64) - np.array([centre, centre, 0.0])
        return [[round(v, 3) for v in row] for row in shifted.reshape(len(shifted), 3 * shifted.shape[1]).tolist()]

    def draw(self, picture: np.ndarray | None = None) -> np.ndarray:
        """The picture (H, W, 3) uint8 with masks, boxes, names and scores drawn over a copy of it."""
        from maskrcnn.ops.draw import draw_detections

        if picture is None and self.picture is None:
            raise InputError("no picture to draw on", field="Detections.draw", expected="draw(picture)")
        canvas = picture if picture is not None else self.picture()  # type: ignore[misc]
        return draw_detections(canvas, self)

    def save(self, path: str | Path) -> Path:
        """Write the picture with everything found drawn on it (.png, .jpg) or the records (.json), whole or not at all.

        JSON: {"source", "size": [H, W], "detections": COCO records, each with its "category_name"}.
        """
        target, suffix = Path(path), Path(path).suffix.lower()
        if suffix not in (".json", *_PICTURE_FORMATS):
            raise InputError("cannot be written", file=target, found=suffix, expected=".png, .jpg or .json")
        if suffix == ".json":
            records = [record | {"category_name": name} for record, name in zip(self.coco(), self.names, strict=True)]
            text = json.dumps({"source": self.source, "size": list(self.size), "detections": records})
            with whole_file(target) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
            return target
        overlay = Image.fromarray(self.draw())
        with whole_file(target) as unfinished:
            overlay.save(unfinished, format=_PICTURE_FORMATS[suffix], quality=92)
        return target
