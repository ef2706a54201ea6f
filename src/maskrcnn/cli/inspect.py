"""`maskrcnn inspect`: every step of one picture as figures, counts and a report; why objects were lost."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from maskrcnn.cli.options import ModelOptions, WrongUse, checkpoints_own, made_folder
from maskrcnn.cli.progress import progress_bar
from maskrcnn.errors import InputError, InputErrors

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from maskrcnn.data.classes import Classes
    from maskrcnn.data.coco_records import CocoFile, ImageRecord
    from maskrcnn.inspection.figure import Figure
    from maskrcnn.inspection.gates import Fate
    from maskrcnn.predictor import Predictor
    from maskrcnn.structures import Size, Target


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Look into the detector: every step from one picture to its masks.

    Writes report.html (all of it, one page that needs no network), a PNG of each figure, and steps.json (counts at
    each gate). With ground truth also trace.json: for each object where it was found, or the first gate at which it was
    lost, with the evidence.
    """

    picture: Annotated[Positional[Path], arg(metavar="PICTURE", help_behavior_hint="(required)")]
    """The file."""

    out: Path
    """Folder to write to; made if it is not there."""

    ground_truth: Annotated[Path | None, arg(metavar="JSON")] = None
    """COCO annotation file that holds the picture, by its file name."""

    trace: bool = False
    """Show a table of the objects that were lost, and why; needs --ground-truth."""

    skip_bad: bool = False
    """Leave out annotations that are wrong, rather than refuse."""

    layers: Annotated[tuple[str, ...], arg(metavar="PATTERN...", help_behavior_hint="(default: none)")] = ()
    """Also draw the activations of these layers, by name or pattern: 'fpn.*', 'backbone.*conv2'."""

    weight_histograms: bool = False
    """Also draw the weights of every layer."""

    score_threshold: Annotated[float | None, checkpoints_own("FLOAT")] = None
    """Lowest score of a detection, 0 to 1."""

    max_detections: Annotated[int | None, checkpoints_own("INT")] = None
    """Most detections per picture; there is no cap."""


def run(options: Options) -> int:
    """Inspect the picture; 1 where it or its ground truth cannot be used."""
    if options.trace and options.ground_truth is None:
        raise WrongUse("cannot be traced without ground truth", field="--trace", expected="--ground-truth JSON too")
    from rich.console import Console

    from maskrcnn import api
    from maskrcnn.data.classes import Classes
    from maskrcnn.data.pictures import read_picture
    from maskrcnn.inspection.figures import figures
    from maskrcnn.inspection.gates import fates
    from maskrcnn.inspection.report import report
    from maskrcnn.inspection.trace import trace
    from maskrcnn.predictor import load

    pixels = read_picture(options.picture)
    predictor = load(options.weights, options.config, options.precision, options.device)
    target = None
    if options.ground_truth is not None:
        classes = Classes(predictor.class_names, predictor.category_ids)
        size = (pixels.shape[0], pixels.shape[1])
        target = ground_truth(options.ground_truth, options.picture, size, classes, options.skip_bad)
    made_folder(options.out)
    with progress_bar("inspecting", 5) as update:
        steps = api.inspect(
            predictor,
            pixels,
            ground_truth=target,
            score_threshold=options.score_threshold,
            nms_iou=options.nms_iou,
            max_detections=options.max_detections,
            proposals=options.proposals,
            size=options.size,
            class_agnostic_nms=options.class_agnostic_nms or None,
            mask_nms_iou=options.mask_nms_iou,
        )
        update(1, 5)
        further = _further_figures(options, predictor, pixels)  # a name that is no layer's ends it here
        update(2, 5)
        found = None if target is None else fates(steps)
        drawn = [*figures(steps, found), *further]
        update(3, 5)
        content = trace(steps, found)
        page = report(steps, found, drawn, options.picture.name, content)
        update(4, 5)
        _write(options.out, drawn, page, content, with_trace=found is not None)
        update(5, 5)
    if found is not None:
        if options.trace and not all(fate.found for fate in found):
            Console().print(lost_table(found))
        print(_sum(found))
    print(f"{len(steps.detections)} detections, {len(drawn)} figures: {options.out / 'report.html'}")
    return 0


def ground_truth(file: Path, picture: Path, size: Size, classes: Classes, skip_bad: bool = False) -> Target:
    """The objects of one picture, with the labels of a detector's `classes`; those of other classes are left out.

    size: (height, width) of the picture as it is read.
    Errors: `InputError` for a file that does not hold the picture, or one of another size, or shares no class with the
    detector; `InputErrors` for records that are wrong, unless `skip_bad`.
    """
    import torch

    from maskrcnn.data.coco import CocoDataset
    from maskrcnn.data.coco_records import read_coco
    from maskrcnn.evaluation.class_names import ClassMap

    coco = read_coco(file)
    record = _record_of(coco, picture)
    if record.size != size:
        expected = f"{size}, the size of {picture}"
        raise InputError(
            "differs from the picture's",
            file=file,
            field=f"{record.place}.height, width",
            found=str(record.size),
            expected=expected,
        )
    if coco.problems and not skip_bad:
        raise InputErrors("the annotations have problems", coco.problems)
    ClassMap(coco.classes).check(classes.names)
    target = CocoDataset(
        file, coco.classes, [record], [str(picture)], coco.annotations, coco.problems, coco.keypoints
    ).target(0)
    detectors = ClassMap(classes)
    pairs = zip(coco.classes.names, coco.classes.category_ids, strict=True)
    ids = [detectors.category_id(name, category) for name, category in pairs]
    labels = torch.tensor([0, *(0 if i is None else classes.label_of_category[i] for i in ids)])[target.gt_labels]
    known = labels > 0
    if not known.all():
        print(f"left out: {int((~known).sum())} objects of classes that the detector does not have", file=sys.stderr)
    return replace(target, gt_labels=labels).chosen(known)


def _record_of(coco: CocoFile, picture: Path) -> ImageRecord:
    """The file's record of the picture: of its name, and where several are, the one whose folders agree furthest."""

    def agreement(record: ImageRecord) -> tuple[int, bool]:
        """How many parts of the path are the same, from the end; whether all of the record's are."""
        told, real = Path(record.file_name).parts[::-1], picture.resolve().parts[::-1]
        same = next((i for i, (a, b) in enumerate(zip(told, real, strict=False)) if a != b), min(len(told), len(real)))
        return same, same == len(told)

    named = [record for record in coco.images if agreement(record)[0] > 0]
    most = max(map(agreement, named), default=(0, False))
    best = [record for record in named if agreement(record) == most]
    if not best:
        expected = f"a picture called {picture.name}"
        found = f"{len(coco.images)} others"
        raise InputError("does not hold the picture", file=coco.file, field="images", found=found, expected=expected)
    if len(best) > 1:
        found = ", ".join(record.place for record in best)
        raise InputError(f"holds several pictures called {picture.name}", file=coco.file, field="images", found=found)
    return best[0]


def _further_figures(options: Options, predictor: Predictor, pixels: np.ndarray) -> list[Figure]:
    """Of layers and weights, where they are asked for."""
    from maskrcnn.inspection.activations import activations
    from maskrcnn.inspection.draw_activations import activation_figure
    from maskrcnn.inspection.draw_weights import weight_figures

    drawn = []
    if options.layers:
        shown = activations(predictor, pixels, options.layers, size=options.size)
        drawn += [activation_figure(each, file_name(f"layer_{name}")) for name, each in shown.items()]
    if options.weight_histograms:
        drawn += weight_figures(predictor.model)
    return drawn


def file_name(name: str) -> str:
    """A layer's name without what file systems refuse: "fpn[p2]", "rpn.objectness (2)"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_")


def _write(out: Path, figures: Sequence[Figure], page: str, trace: dict[str, Any], with_trace: bool) -> None:
    from PIL import Image

    from maskrcnn.ops.files import whole_file

    for figure in figures:
        with whole_file(out / f"{figure.name}.png") as unfinished:
            Image.fromarray(figure.picture).save(unfinished, format="PNG")
    counts = {
        "picture": trace["picture"],
        "stages": {part["stage"]: {row["key"]: row["value"] for row in part["counts"]} for part in trace["stages"]},
    }
    texts = {"steps.json": json.dumps(counts, indent=1) + "\n", "report.html": page}
    if with_trace:
        texts["trace.json"] = json.dumps(trace, allow_nan=False) + "\n"
    else:
        (out / "trace.json").unlink(missing_ok=True)  # of an earlier call, perhaps of another picture
    for name, text in texts.items():
        with whole_file(out / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def lost_table(fates: Sequence[Fate]) -> Table:
    """A row for each object that was lost: which, where it was lost, and why in one sentence."""
    from rich.table import Table

    from maskrcnn.inspection.gates import sentence

    table = Table("object", "box", "lost at", "why")
    for fate in fates:
        if not fate.found:
            box = " ".join(f"{v:.0f}" for v in fate.box)
            table.add_row(f"{fate.index} {fate.name}", box, str(fate.gate).replace("_", " "), sentence(fate))
    return table


def _sum(fates: Sequence[Fate]) -> str:
    from maskrcnn.inspection.gates import GATES

    lost = Counter(fate.gate for fate in fates if not fate.found)
    parts = ", ".join(f"{gate.replace('_', ' ')} {lost[gate]}" for gate in GATES if lost[gate])
    found = len(fates) - lost.total()
    return f"{len(fates)} objects: {found} found, {lost.total()} lost{f' ({parts})' if parts else ''}"
