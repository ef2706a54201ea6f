"""The folder of a run explains itself: curves, pictures with truth beside detections, and a page about all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from maskrcnn.data.dataset import Dataset
from maskrcnn.data.transforms import moved
from maskrcnn.evaluation.evaluate import Evaluation
from maskrcnn.ops.draw import draw_detections, draw_target, side_by_side
from maskrcnn.ops.files import whole_file
from maskrcnn.predictor import Predictor
from maskrcnn.structures import Detections
from maskrcnn.training.run_log import read_log
from maskrcnn.training.validate import places

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402  (after the backend was chosen)

DRAWN_FROM = 0.5  # score from which a detection is drawn
_LEAST_SIDE = 400  # px; smaller pictures are enlarged, so that names do not hide them

Lines = list[dict[str, Any]]

_PARTS = {  # name in the log -> label, in the order of the figure
    "rpn_objectness": "RPN: object or not",
    "rpn_box": "RPN: anchor to box",
    "box_class": "box head: class",
    "box_delta": "box head: box",
    "mask": "mask head",
    "keypoint": "keypoint head",
}
_FILES = {
    "best.safetensors": "weights with the best AP on the validation pictures",
    "last.safetensors": "weights at the end",
    "epoch-*.safetensors": "weights of every so many epochs (`--keep-every`)",
    "state.safetensors": "all that `--resume` needs to go on where a stopped run was",
    "config.json": "every number of model and recipe, class names, data, versions",
    "log.jsonl": "losses, learning rate and AP, one JSON object a line, as the run went on",
    "tensorboard": "the same, validation pictures and histograms of all weights: `tensorboard --logdir .`",
    "curves.png": "the log as curves",
    "validation": "validation pictures: ground truth left, detections right",
    "scores": "AP, precision, recall, F1 and confusion matrix of the best weights, and all their detections",
}


def draw_curves(folder: Path) -> Path:
    """`curves.png`: losses of training and validation, AP, learning rate, read from the run's log."""
    lines = read_log(folder)
    train = [line for line in lines if line["event"] == "train"]
    val = [line for line in lines if line["event"] == "validation"]
    figure = Figure(figsize=(11.5, 7.5), layout="constrained", dpi=110)
    figure.suptitle(folder.resolve().name, fontsize=13, fontweight="bold")
    (total, parts), (ap, rate) = figure.subplots(2, 2)
    _start(total, "Loss: weighted sum of all parts")
    _draw_smoothed(total, train, "total", "training", "tab:blue")
    _draw_points(total, val, "loss_total", "validation", "tab:red")
    _start(parts, "Parts of the training loss")
    for i, (name, label) in enumerate(_parts(train)):
        _draw_smoothed(parts, train, name, label, f"C{i}")
    _start(ap, "AP on validation pictures")
    for kind, colour in (("mask", "tab:green"), ("keypoint", "tab:orange"), ("box", "tab:purple")):
        _draw_points(ap, val, f"{kind}_ap", f"{kind} AP", colour)
        _draw_points(ap, val, f"{kind}_ap50", f"{kind} AP50", colour, linestyle=":")
    _mark_best(ap, val)
    _start(rate, "Learning rate")
    _draw_points(rate, train, "learning_rate", "", "tab:gray", marker="o" if len(train) == 1 else "")
    for axes in (total, parts, ap, rate):
        _end(axes)
    with whole_file(folder / "curves.png") as unfinished:
        figure.savefig(unfinished, format="png")
    return folder / "curves.png"


def draw_pictures(folder: Path, predictor: Predictor, dataset: Dataset, count: int = 6) -> list[Path]:
    """`folder/*.png`: pictures of `dataset`, evenly spread, with ground truth left and detections right."""
    paths = []
    for number, i in enumerate(places(len(dataset), count), start=1):
        path = folder / f"{number}-{Path(dataset.path(i)).stem[:40]}.png"
        with whole_file(path) as unfinished:
            Image.fromarray(compare(predictor, dataset, i)).save(unfinished, format="PNG")
        paths.append(path)
    return paths


def compare(predictor: Predictor, dataset: Dataset, i: int) -> np.ndarray:
    """Picture i of `dataset` twice, side by side: with its objects, and with what is found at a score of 0.5."""
    picture, target = dataset[i]
    found = predictor.predict(picture)
    found = found.chosen(found.scores >= DRAWN_FROM)
    factor = -(-_LEAST_SIDE // min(target.size))
    size = (target.size[0] * factor, target.size[1] * factor)
    target = moved(target, np.diag([factor, factor, 1.0])[:2], size)
    shown = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))
    truth = draw_target(shown, target, dataset.classes.names)
    detected = draw_detections(shown, _enlarged(found, factor))
    titles = [f"ground truth: {len(target)}", f"found: {len(found)}, score at least {DRAWN_FROM}"]
    return side_by_side([truth, detected], titles)


def write_page(folder: Path, facts: Mapping[str, str], scores: Evaluation, pictures: Sequence[Path]) -> Path:
    """`README.md`: what was trained, how it scored, and what each file of the folder is."""
    lines = [
        f"# Run {folder.resolve().name}",
        "",
        *(f"- **{name}**: {value}" for name, value in facts.items()),
        "",
        "## Scores of the best weights on all validation pictures",
        "",
        *_score_table(scores),
        "",
        *_class_table(scores),
        "",
        "![curves](curves.png)",
        "",
        "## Pictures: ground truth left, detections right",
        "",
        *(f"![{path.stem}](validation/{path.name})" for path in pictures),
        "",
        "## Use",
        "",
        "    maskrcnn predict PICTURES --weights best.safetensors --out DIR",
        "",
        "    import maskrcnn",
        '    found = maskrcnn.load("best.safetensors").predict("picture.png")',
        "",
        "## Files",
        "",
        "| file | what it is |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in _FILES.items() if any(folder.glob(name))),
    ]
    with whole_file(folder / "README.md") as unfinished:
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "README.md"


def write_json(path: Path, value: Any) -> Path:
    """Indented JSON, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _enlarged(found: Detections, factor: int) -> Detections:
    """The same detections in a picture `factor` times as large."""
    size = (found.size[0] * factor, found.size[1] * factor)
    masks = found.masks
    if masks is not None:
        masks = replace(masks, boxes=masks.boxes * factor, size=size)
    points = found.keypoints
    if points is not None:
        points = points * points.new_tensor([factor, factor, 1])
    return replace(found, boxes=found.boxes * factor, masks=masks, keypoints=points, size=size)


def _score_table(scores: Evaluation) -> list[str]:
    rows = []
    for kind, part in (("masks", scores.mask), ("keypoints (OKS)", scores.keypoint), ("boxes", scores.box)):
        for at in [] if part is None else map(part.at, part.max_detections):
            values = (at.ap, at.ap50, at.ap75, at.ap_small, at.ap_medium, at.ap_large, at.ar)
            rows.append(f"| {kind} | {at.max_detections[0]} | {' | '.join(map(_shown, values))} |")
    heading = "| overlap of | at most | AP | AP50 | AP75 | AP small | AP medium | AP large | AR |"
    return [heading, "|---|---:|---:|---:|---:|---:|---:|---:|---:|", *rows]


def _class_table(scores: Evaluation) -> list[str]:
    """The classes that the validation pictures hold."""
    part = scores.mask or scores.box
    rows = []
    for name, curve, ap in zip(scores.names, scores.per_class, part.ap_per_class, strict=True):
        at = curve.at(scores.score_threshold)
        if curve.objects:
            cells = " | ".join(map(_shown, (ap, at.precision, at.recall, at.f1)))
            rows.append(f"| {name} | {curve.objects} | {cells} |")
    at_score = f"at score {scores.score_threshold:g}"
    heading = f"| class | objects | AP | precision {at_score} | recall | F1 |"
    return [heading, "|---|---:|---:|---:|---:|---:|", *rows]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _start(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)


def _end(axes: Any) -> None:
    axes.set_xlabel("step", fontsize=9)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, frameon=False)


def _parts(train: Lines) -> list[tuple[str, str]]:
    """Names and labels of the losses in the log; those of a cascade's later stages end in their number."""
    logged = {name for line in train for name in line}
    stages = [("", ""), *((f"_{k}", f", stage {k}") for k in range(2, 10))]
    return [
        (name + number, label + stage)
        for name, label in _PARTS.items()
        for number, stage in stages
        if name + number in logged
    ]


def _series(lines: Lines, name: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the lines that have a number of this name."""
    chosen = [line for line in lines if isinstance(line.get(name), int | float)]
    return [line["step"] for line in chosen], [line[name] for line in chosen]


def _draw_points(axes: Any, lines: Lines, name: str, label: str, colour: str, **style: Any) -> None:
    steps, values = _series(lines, name)
    if steps:
        marker = "o" if len(steps) <= 50 else ""
        axes.plot(steps, values, **{"label": label, "color": colour, "marker": marker, "markersize": 4} | style)


def _draw_smoothed(axes: Any, lines: Lines, name: str, label: str, colour: str) -> None:
    """The values faintly, and their moving average: the losses of single batches jump."""
    steps, values = _series(lines, name)
    if not steps:
        return
    axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
    marker = "o" if len(steps) == 1 else ""  # a line of one point does not show
    axes.plot(steps, smoothed(values), color=colour, label=label, linewidth=1.6, marker=marker, markersize=4)
    low, high = axes.get_ylim()
    usual = 1.3 * float(np.quantile(values, 0.98))  # the first steps of a run may be far above the rest
    axes.set_ylim(low, min(high, usual) if not axes.lines[2:] else max(high, usual))


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential moving average over a twentieth of the values, without a bias to the first."""
    weight, total, mass, averages = 1 / max(1.0, len(values) / 20), 0.0, 0.0, []
    for value in values:
        total += weight * (value - total)
        mass += weight * (1 - mass)
        averages.append(total / mass)
    return averages


def _mark_best(axes: Any, val: Lines) -> None:
    best = [line["step"] for line in val if line.get("best")]
    if best:
        axes.axvline(best[-1], color="black", alpha=0.3, linestyle="--", linewidth=1, label="best")
