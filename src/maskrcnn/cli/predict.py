"""`maskrcnn predict`: pictures in, overlays and COCO records out, one batch at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from maskrcnn.cli.options import ModelOptions, WrongUse, checkpoints_own, made_folder, require_share
from maskrcnn.cli.progress import progress_bar
from maskrcnn.errors import InputError

if TYPE_CHECKING:
    from maskrcnn.structures import Detections


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Find every object of the pictures.

    Writes one overlay NAME.png per picture, detections.json (COCO result records of all detections) and images.json
    (which image_id is which file). A file that cannot be read is reported at the end; the others are done.
    """

    pictures: Annotated[Positional[tuple[str, ...]], arg(metavar="PICTURES...", help_behavior_hint="(required)")]
    """Files, folders and globs."""

    out: Path
    """Folder to write to; made if it is not there."""

    draw_threshold: float = 0.5
    """Lowest score that is drawn, 0 to 1; all detections are saved."""

    overlays: Annotated[bool, arg(help_behavior_hint="(default: they are written)")] = True
    """Leave out the overlays."""

    score_threshold: Annotated[float | None, checkpoints_own("FLOAT")] = None
    """Lowest score of a detection, 0 to 1."""

    max_detections: Annotated[int | None, checkpoints_own("INT")] = None
    """Most detections per picture; there is no cap."""


@dataclass
class _Tally:
    """What the run has come to so far."""

    images: list[dict[str, Any]] = field(default_factory=list)  # COCO `images` entries of the pictures that were read
    detections: int = 0
    errors: list[InputError] = field(default_factory=list)


def run(options: Options) -> int:
    """Detect in every picture; 1 if any could not be read."""
    if not options.pictures:
        raise WrongUse("no pictures given", field="PICTURES", expected="files, folders or globs")
    require_share("--draw-threshold", options.draw_threshold)
    from maskrcnn.data.pictures import picture_files
    from maskrcnn.export.opening import load

    files = list(dict.fromkeys(picture_files(options.pictures)))
    _require_other_folder(files, options.out)
    predictor = load(options.weights, options.config, options.precision, options.device)
    tally = _Tally()
    found = predictor.predict(
        files,
        score_threshold=options.score_threshold,
        nms_iou=options.nms_iou,
        max_detections=options.max_detections,
        proposals=options.proposals,
        size=options.size,
        class_agnostic_nms=options.class_agnostic_nms or None,
        mask_nms_iou=options.mask_nms_iou,
        batch_size=options.batch_size,
        on_error=tally.errors.append,
    )  # nothing is detected yet, but the options are checked
    made_folder(options.out)
    _write(found, files, options, tally)
    return _report(tally, options.out)


def _write(found: Iterator[Detections], files: Sequence[Path], options: Options, tally: _Tally) -> None:
    from maskrcnn.weights.files import whole_file

    image_ids = {str(path): i for i, path in enumerate(files, start=1)}
    overlays = overlay_names(files)
    with record_file(options.out / "detections.json") as write, progress_bar("detecting", len(files)) as update:
        for detections in found:
            image_id = image_ids[detections.source]
            write(detections.coco(image_id))
            if options.overlays:
                drawn = detections.chosen(detections.scores >= options.draw_threshold)
                drawn.save(options.out / overlays[detections.source])
            height, width = detections.size
            tally.images.append({"id": image_id, "file_name": detections.source, "width": width, "height": height})
            tally.detections += len(detections)
            update(len(tally.images) + len(tally.errors), len(files))
    with whole_file(options.out / "images.json") as unfinished:
        text = json.dumps(tally.images, indent=1, ensure_ascii=False) + "\n"
        # a file name that is no text becomes JSON's own escape, from which Python reads the name back
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def _report(tally: _Tally, out: Path) -> int:
    print(f"{len(tally.images)} pictures, {tally.detections} detections: {out}")
    for error in tally.errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if tally.errors else 0


@contextmanager
def record_file(path: Path) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """A JSON list on disk that grows as its records come, one per line; it appears under its name when complete."""
    from maskrcnn.weights.files import whole_file

    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as stream:
        separator = "[\n"

        def write(records: list[dict[str, Any]]) -> None:
            nonlocal separator
            for record in records:
                stream.write(separator + json.dumps(record))
                separator = ",\n"

        yield write
        stream.write("[]\n" if separator == "[\n" else "\n]\n")


def overlay_names(files: Sequence[Path]) -> dict[str, str]:
    """Path as text -> name of its overlay: the picture's own with .png, counted on where two would be one file."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in files:
        name, count = path.stem, 1
        while name.casefold() in taken:  # some file systems take A.png and a.png for the same
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name.casefold())
        names[str(path)] = f"{name}.png"
    return names


def _require_other_folder(files: Sequence[Path], out: Path) -> None:
    """Overlays are named after the pictures: in the same folder they would replace them."""
    here = out.resolve()
    for path in files:
        if path.parent.resolve() == here:
            raise InputError("is where the pictures are", field="--out", found=str(out), expected="another folder")
