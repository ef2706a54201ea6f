"""One order from bytes to product: read, detect with every step kept, draw the stages, write the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from maskrcnn.data.pictures import read_picture
from maskrcnn.errors import InputError
from maskrcnn.inspection.figures import figures
from maskrcnn.inspection.probe import probe
from maskrcnn.inspection.report import report
from maskrcnn.predictor import Predictor
from maskrcnn.serving.jobs import Order, Product, Progress
from maskrcnn.serving.results import coco_document, overlay, polygon_document
from maskrcnn.structures import Size
from maskrcnn.weights.files import bundled_names

MAX_NETWORK_PIXELS = 16_000_000  # of what the network sees; its maps take hundreds of bytes for each
_STEPS = ("reading the picture", "detecting", "drawing the stages", "writing the report", "writing the results")


def detector_names(weights: Sequence[str]) -> dict[str, str]:
    """What clients call the detectors -> what to open: those given, then those that ship with the package.

    A file is called by its name without folder and suffix, counted on where two would be the same: clients learn
    nothing of where it lies.
    """
    names: dict[str, str] = {}
    for source in dict.fromkeys([*weights, *bundled_names()]):
        name = stem = Path(source).stem if Path(source).is_file() else source
        count = 1
        while name in names:
            count += 1
            name = f"{stem}-{count}"
        names[name] = source
    return names


def require_room(predictor: Predictor, picture: Size, size: int | Literal["native"] | None) -> None:
    """Errors: `InputError` where the network would see more pixels than memory is likely to bear."""
    height, width = predictor.model.config.preprocess.resized_size(picture, size)
    if height * width > MAX_NETWORK_PIXELS:
        expected = f"at most {MAX_NETWORK_PIXELS / 1e6:g} million: a smaller size"
        found = f"{width} x {height} pixels that the network would see"
        raise InputError("is too large for this picture", field="size", found=found, expected=expected)


def produce(detectors: Mapping[str, Predictor], order: Order, progress: Progress) -> Product:
    """Everything a client may ask for. Errors: `InputError` for a damaged picture, or one too large for `size`."""

    def begin(step: str) -> None:
        progress(step, _STEPS.index(step), len(_STEPS))

    predictor = detectors[order.weights]
    begin("reading the picture")
    picture = read_picture(order.picture, name=order.name)
    require_room(predictor, (picture.shape[0], picture.shape[1]), order.limits.size)
    begin("detecting")
    steps = probe(predictor, picture, order.limits)
    begin("drawing the stages")
    drawn = figures(steps)
    begin("writing the report")
    page = report(steps, None, drawn, order.name)
    begin("writing the results")
    return Product(
        found=len(steps.detections),
        report=page.encode(),
        overlay=overlay(steps.detections, order.limits.score_threshold),
        coco=coco_document(steps.detections, order.name, steps.config),
        polygons=polygon_document(steps.detections, order.name),
    )
