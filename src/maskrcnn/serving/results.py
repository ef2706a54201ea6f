"""What was found as files to take away: the picture with everything drawn, a COCO document, outlines.

The COCO document holds the picture as image 1 and each object as an annotation with its mask (RLE) and its score, so
that tools which open data sets open it too.
"""

from __future__ import annotations

import io
import json
from typing import Any

from PIL import Image

from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.ops.rle import area
from maskrcnn.structures import Detections

DRAWN = 0.5  # lowest score in the picture, where the client asks for no threshold: a checkpoint's own is made for AP


def overlay(found: Detections, score_threshold: float | None) -> bytes:
    """A PNG of the picture with what scores `score_threshold` (0.5 without one) or above."""
    lowest = DRAWN if score_threshold is None else score_threshold
    canvas = found.chosen(found.scores >= lowest).draw()
    stream = io.BytesIO()
    Image.fromarray(canvas).save(stream, format="PNG", compress_level=3)
    return stream.getvalue()


def coco_document(found: Detections, name: str, config: MaskRCNNConfig) -> bytes:
    """The whole as a COCO annotation file, best first."""
    height, width = found.size
    document: dict[str, Any] = {
        "images": [{"id": 1, "file_name": name, "width": width, "height": height}],
        "categories": [
            {"id": i, "name": category} for i, category in zip(config.category_ids, config.class_names, strict=True)
        ],
        "annotations": [],
    }
    for i, record in enumerate(found.coco(1), start=1):
        rle = record.get("segmentation")
        pixels = record["bbox"][2] * record["bbox"][3] if rle is None else int(area(rle))
        document["annotations"].append({"id": i, **record, "area": pixels, "iscrowd": 0})
    return json.dumps(document, ensure_ascii=False).encode()


def polygon_document(found: Detections, name: str) -> bytes:
    """Per object its class, score, box (x1, y1, x2, y2) and outlines [[x, y], ...] along the edges of its pixels."""
    outlines = [None] * len(found) if found.masks is None else found.masks.polygons()
    objects = [
        {
            "name": kind,
            "category_id": category,
            "score": round(score, 6),
            "box": [round(v, 3) for v in box],
            "polygons": None if rings is None else [ring.tolist() for ring in rings],
        }
        for kind, category, score, box, rings in zip(
            found.names, found.category_ids, found.scores.tolist(), found.boxes.tolist(), outlines, strict=True
        )
    ]
    return json.dumps({"file_name": name, "size": list(found.size), "objects": objects}, ensure_ascii=False).encode()
