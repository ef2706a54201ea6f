"""What AP of keypoints needs besides that of boxes: how far off a point may be, and points for every annotation.

J keypoints

Overlap is object keypoint similarity (OKS): the mean of exp(-d^2 / (2 s^2 k^2)) over the labelled keypoints of an
object, with d the distance in px, s^2 the object's area and k = 2 sigma. An object without a labelled keypoint is
neither hit nor miss. Definition: cocodataset.org/#keypoints-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn.errors import InputError

COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)  # of the 17 keypoints of a person: how much annotators differ, in sides of the object
USUAL_SIGMA = sum(COCO_SIGMAS) / len(COCO_SIGMAS)  # 0.067
MAX_DETECTIONS = 20  # per picture and class, as COCO has it for keypoints


def sigmas_for(count: int, sigmas: Sequence[float] | None = None) -> tuple[float, ...]:
    """J sigmas: those given, or COCO's for 17 keypoints, or for any other number the mean of COCO's for each.

    Errors: `InputError` where those given are not J numbers above 0.
    """
    if sigmas is None:
        return COCO_SIGMAS if count == len(COCO_SIGMAS) else (USUAL_SIGMA,) * count
    if len(sigmas) != count or not all(sigma > 0 for sigma in sigmas):
        expected = f"{count} numbers above 0, one for each keypoint"
        raise InputError("do not fit", field="keypoint_sigmas", found=list(sigmas), expected=expected)
    return tuple(float(sigma) for sigma in sigmas)


def keypoint_count(annotations: Sequence[Mapping[str, Any]]) -> int:
    """J of the first annotation that has keypoints; 0 where none has."""
    return next((len(a["keypoints"]) // 3 for a in annotations if a.get("keypoints")), 0)


def keypoint_fields(annotation: Mapping[str, Any], count: int) -> dict[str, Any]:
    """COCO's two fields of an annotation; one without keypoints has `count` that are not labelled."""
    points = annotation.get("keypoints") or [0] * (3 * count)
    labelled = sum(v > 0 for v in points[2::3])
    return {"keypoints": list(points), "num_keypoints": annotation.get("num_keypoints", labelled)}
