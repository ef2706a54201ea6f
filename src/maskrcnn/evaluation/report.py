"""What an Evaluation says: numbers for JSON, tables for the terminal, files for a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn.evaluation.coco_ap import CocoScores
from maskrcnn.evaluation.scores import ScoreCurve
from maskrcnn.ops.files import whole_file

if TYPE_CHECKING:
    from rich.table import Table

    from maskrcnn.evaluation.evaluate import Evaluation

AVERAGES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Plain numbers, ready for JSON. "ap@300" is AP with at most 300 detections per picture and class."""
    counts = evaluation.counts
    best = evaluation.total.best()
    return {
        "pictures": counts.pictures,
        "pictures_with_detections": counts.pictures_with_detections,
        "objects": counts.objects,
        "crowd_regions": counts.crowd_regions,
        "detections": counts.detections,
        "ignored_detections": counts.ignored_detections,
        "ignored_classes": list(counts.ignored_classes),
        "box": _averages(evaluation.box),
        "mask": None if evaluation.mask is None else _averages(evaluation.mask),
        "keypoint": None if evaluation.keypoint is None else _averages(evaluation.keypoint),
        "score_threshold": evaluation.score_threshold,
        "iou_threshold": evaluation.iou_threshold,
        **_at_threshold(evaluation.total, evaluation.score_threshold),
        "best_f1": None if best is None else best.f1,
        "best_f1_threshold": None if best is None else best.threshold,
        "per_class": {key: _class(evaluation, k) for k, key in enumerate(_unique(evaluation))},
        "confusion": {"classes": ["background", *_unique(evaluation)], "matrix": evaluation.confusion.tolist()},
        "seconds": round(evaluation.seconds, 3),
        "scoring_seconds": round(evaluation.scoring_seconds, 3),
    }


def tables(evaluation: Evaluation) -> list[Table]:
    """AP and AR at each limit; then each class that has objects or detections."""
    return [_table_of_averages(evaluation), _table_of_classes(evaluation)]


def save(evaluation: Evaluation, folder: Path) -> list[Path]:
    """scores.json, detections.json, precision_recall.png, f1_threshold.png, confusion.png."""
    from maskrcnn.evaluation import curves

    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Callable[[Path], None]] = {
        "scores.json": lambda path: _write_json(path, summary(evaluation), indent=1),
        "detections.json": lambda path: _write_json(path, list(evaluation.records)),
        "precision_recall.png": lambda path: curves.save_figure(curves.precision_recall(evaluation), path),
        "f1_threshold.png": lambda path: curves.save_figure(curves.f1_against_threshold(evaluation), path),
        "confusion.png": lambda path: curves.save_figure(curves.confusion(evaluation), path),
    }
    for name, write in files.items():
        with whole_file(folder / name) as unfinished:
            write(unfinished)
    return [folder / name for name in files]


def _averages(scores: CocoScores) -> dict[str, float | None]:
    return {f"{name}@{k}": getattr(scores.at(k), name) for k in scores.max_detections for name in AVERAGES}


def _at_threshold(curve: ScoreCurve, threshold: float) -> dict[str, Any]:
    at = curve.at(threshold)
    return {
        "precision": at.precision,
        "recall": at.recall,
        "f1": at.f1,
        "true_positives": at.true_positives,
        "false_positives": at.false_positives,
        "false_negatives": at.false_negatives,
    }


def _class(evaluation: Evaluation, k: int) -> dict[str, Any]:
    curve = evaluation.per_class[k]
    best = curve.best()
    kinds = {"box": evaluation.box, "mask": evaluation.mask, "keypoint": evaluation.keypoint}
    averages = {
        f"{kind}_{name}@{limit}": getattr(scores.at(limit), f"{name}_per_class")[k]
        for kind, scores in kinds.items()
        if scores is not None
        for limit in scores.max_detections
        for name in ("ap", "ap50")
    }
    return {
        "category_id": evaluation.category_ids[k],
        "objects": curve.objects,
        **averages,
        **_at_threshold(curve, evaluation.score_threshold),
        "best_f1": None if best is None else best.f1,
        "best_f1_threshold": None if best is None else best.threshold,
    }


def _unique(evaluation: Evaluation) -> list[str]:
    """Class names, with the category id behind those that occur twice."""
    names = evaluation.names
    pairs = zip(names, evaluation.category_ids, strict=True)
    return [name if names.count(name) == 1 else f"{name} ({category_id})" for name, category_id in pairs]


def _table_of_averages(evaluation: Evaluation) -> Table:
    from rich.table import Table

    counts = evaluation.counts
    ignored = f", {counts.ignored_detections} of other classes left out" if counts.ignored_detections else ""
    table = Table(
        title=f"{counts.pictures} pictures, {counts.objects} objects, {counts.detections} detections{ignored}",
        title_justify="left",
        show_edge=False,  # so that it fits 80 columns
    )
    table.add_column("overlap of", min_width=len("overlap"))  # narrow terminals break headings between words
    headings = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR")
    for heading in ("at most", *headings):
        table.add_column(heading, justify="right")
    kinds = [("boxes", evaluation.box), ("masks", evaluation.mask), ("points", evaluation.keypoint)]
    for kind, scores in kinds:
        for at in [] if scores is None else map(scores.at, scores.max_detections):
            table.add_row(kind, str(at.max_detections[0]), *(_shown(getattr(at, name)) for name in AVERAGES))
    return table


def _table_of_classes(evaluation: Evaluation) -> Table:
    from rich.table import Table

    scores = evaluation.mask or evaluation.box
    kind = "box" if evaluation.mask is None else "mask"
    table = Table(
        title=f"at score {evaluation.score_threshold:g} and {kind} IoU {evaluation.iou_threshold:g}",
        title_justify="left",
        show_edge=False,  # so that it fits 80 columns
    )
    table.add_column("class")
    average = f"{kind} AP@{scores.max_detections[-1]}"
    for heading in ("objects", average, "precision", "recall", "F1", "best F1", "at score"):
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    rows = zip(_unique(evaluation), evaluation.per_class, scores.ap_per_class, strict=True)
    for name, curve, ap in rows:
        if curve.objects or curve.thresholds.size:
            table.add_row(name, *_class_cells(curve, ap, evaluation.score_threshold))
    table.add_section()
    table.add_row("all", *_class_cells(evaluation.total, scores.ap, evaluation.score_threshold), style="bold")
    return table


def _class_cells(curve: ScoreCurve, ap: float | None, threshold: float) -> list[str]:
    at, best = curve.at(threshold), curve.best()
    best_cells = (None, None) if best is None else (best.f1, best.threshold)
    return [str(curve.objects), *map(_shown, (ap, at.precision, at.recall, at.f1, *best_cells))]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _write_json(path: Path, value: Any, indent: int | None = None) -> None:
    path.write_text(json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
