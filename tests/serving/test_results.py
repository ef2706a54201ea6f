"""The files to take away say what was found, and other readers understand them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import maskrcnn
from maskrcnn.data.coco import load_coco
from maskrcnn.ops.rle import decode
from maskrcnn.predictor import Predictor
from maskrcnn.serving.results import coco_document, overlay, polygon_document
from maskrcnn.structures import Detections

PICTURES = Path(maskrcnn.__file__).parent / "demo_pictures"


@pytest.fixture(scope="module")
def nuclei() -> Predictor:
    return maskrcnn.load("nuclei", device="cpu")


@pytest.fixture(scope="module")
def found(nuclei: Predictor) -> Detections:
    return nuclei.predict(PICTURES / "touching.png")


def test_the_picture_shows_what_scores_enough(found: Detections) -> None:
    def drawn(threshold: float | None) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(overlay(found, threshold))))

    assert found.scores.min() < 0.5 < found.scores.max()
    assert np.array_equal(drawn(None), found.chosen(found.scores >= 0.5).draw())
    assert np.array_equal(drawn(0.0), found.draw())
    assert np.array_equal(drawn(1.0), np.asarray(Image.open(PICTURES / "touching.png").convert("RGB")))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own, in decode
def test_coco_tools_read_the_document(found: Detections, nuclei: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    file.write_bytes(coco_document(found, "touching.png", nuclei.model.config))
    theirs = COCO(str(file))
    assert theirs.getImgIds() == [1] and theirs.imgs[1]["file_name"] == "touching.png"
    assert theirs.cats == {1: {"id": 1, "name": "nucleus"}}
    bitmaps = found.masks.bitmaps().numpy()  # type: ignore[union-attr]
    for i, annotation in enumerate(theirs.loadAnns(theirs.getAnnIds())):
        assert np.array_equal(theirs.annToMask(annotation).astype(bool), bitmaps[i])
        assert annotation["area"] == bitmaps[i].sum() and annotation["score"] == round(float(found.scores[i]), 6)
    ours = load_coco(file, PICTURES, skip_bad=True)  # an object of a low score may have no pixel
    assert len(ours) == 1 and len(ours.target(0)) >= len(found) - len(ours.skipped)


def test_outlines_are_those_of_the_masks(found: Detections) -> None:
    document = json.loads(polygon_document(found, "touching.png"))
    assert document["file_name"] == "touching.png" and document["size"] == [256, 256]
    assert len(document["objects"]) == len(found) > 20
    assert found.masks is not None
    for record, rings, rle in zip(document["objects"], found.masks.polygons(), found.masks.rle(), strict=True):
        assert record["name"] == "nucleus" and record["category_id"] == 1
        assert record["polygons"] == [ring.tolist() for ring in rings]
        ys, xs = np.nonzero(decode(rle))
        if len(xs):
            points = np.concatenate([np.array(ring) for ring in record["polygons"]])
            assert points.min(0).tolist() == [xs.min(), ys.min()]
            assert points.max(0).tolist() == [xs.max() + 1, ys.max() + 1]


def test_nothing_found(found: Detections, nuclei: Predictor) -> None:
    nothing = found.chosen(found.scores > 1)
    assert json.loads(coco_document(nothing, "a", nuclei.model.config))["annotations"] == []
    assert json.loads(polygon_document(nothing, "a"))["objects"] == []
    assert overlay(nothing, None).startswith(b"\x89PNG")


def test_a_detector_without_masks(found: Detections, nuclei: Predictor) -> None:
    from dataclasses import replace

    boxes = replace(found, masks=None)
    document = json.loads(coco_document(boxes, "a", nuclei.model.config))
    first = document["annotations"][0]
    assert "segmentation" not in first and first["area"] == first["bbox"][2] * first["bbox"][3]
    assert json.loads(polygon_document(boxes, "a"))["objects"][0]["polygons"] is None
