"""`maskrcnn evaluate`: labelled pictures in, scores and curves out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from maskrcnn.cli.options import ModelOptions, WrongUse, made_folder, require_share
from maskrcnn.cli.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Score a detector on labelled pictures.

    Prints AP and AR of boxes, masks and keypoints and a line per class; writes them as scores.json with
    detections.json (COCO result records) and curves as PNG.
    """

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A COCO file, a folder that holds one, or shapes: the drawn data set."""

    out: Path
    """Folder to write to; made if it is not there."""

    images: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: found from DATA)")] = None
    """Folder of the pictures."""

    split: Literal["train", "val"] = "val"
    """Which of a folder's annotation files."""

    skip_bad: bool = False
    """Leave out pictures and annotations that are wrong, rather than refuse."""

    max_detections: tuple[int, ...] = (100, 300)
    """AP and AR count this many detections per picture and class, best first; the first is the usual one."""

    keypoint_sigmas: Annotated[tuple[float, ...], arg(help_behavior_hint="(default: COCO's 17, or their mean)")] = ()
    """How far off each keypoint may be, in sides of the object: one number for each."""

    score_threshold: float = 0.5
    """Where precision, recall, F1 and the confusion matrix are taken, 0 to 1; AP takes all scores."""

    why: bool = False
    """Also tell at which gate each missed object was lost and what is wrong with each false detection, with the AP
    that it costs: a table, and why.json. Adds about a quarter to the time."""


def run(options: Options) -> int:
    """Evaluate, print the tables, write the files."""
    require_share("--score-threshold", options.score_threshold)
    limits = options.max_detections
    if not limits or min(limits) < 1:
        found, expected = " ".join(map(str, limits)) or "none", "one or more whole numbers above 0"
        raise WrongUse("impossible value", field="--max-detections", found=found, expected=expected)
    from rich.console import Console

    from maskrcnn.api import evaluate
    from maskrcnn.data.opening import open_dataset
    from maskrcnn.export.opening import load
    from maskrcnn.inspection.why import Reasons

    dataset = open_dataset(options.data, images=options.images, split=options.split, skip_bad=options.skip_bad)
    for problem in dataset.skipped:
        print(f"left out: {problem}", file=sys.stderr)
    predictor = load(options.weights, options.config, options.precision, options.device)
    made_folder(options.out)
    reasons = Reasons() if options.why else None
    with progress_bar("evaluating", 0) as update:
        evaluation = evaluate(
            predictor,
            dataset,
            max_detections=options.max_detections,
            score_threshold=options.score_threshold,
            progress=update,
            keypoint_sigmas=options.keypoint_sigmas or None,
            reasons=reasons,
            predict_options={
                "batch_size": options.batch_size,
                "size": options.size,
                "nms_iou": options.nms_iou,
                "mask_nms_iou": options.mask_nms_iou,
                "class_agnostic_nms": options.class_agnostic_nms or None,
                "proposals": options.proposals,
            },
        )
    evaluation.save(options.out)
    Console().print(*evaluation.table())
    if reasons is not None:
        why = reasons.why()
        why.save(options.out)
        Console().print(why.table())
    print(f"{evaluation.counts.pictures} pictures, {evaluation.seconds:.1f} s: {options.out}")
    return 0
