"""The folder of a run explains itself: curves, pictures with truth beside detections, and a page that says what is what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from maskrcnn.data.dataset import Dataset
from maskrcnn.ops.draw import draw_detections, draw_target, side_by_side
from maskrcnn.predictor import Predictor
from maskrcnn.training.run_log import read_log
from maskrcnn.weights.files import whole_file

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402  (after the backend was chosen)

LOSSES = ("rpn_objectness", "rpn_box", "box_class", "box_delta", "mask")
DRAWN_FROM = 0.5  # score from which a detection is drawn


def draw_curves(folder: Path) -> Path:
    """`curves.png`: losses of training and validation, AP, learning rate, read from the run's log."""
    lines = read_log(folder)
    train = [line for line in lines if line["event"] == "train"]
    val = [line for line in lines if line["event"] == "validation"]
    figure = Figure(figsize=(11, 7), layout="constrained", dpi=110)
    axes = figure.subplots(2, 2)
    _draw(axes[0, 0], "Loss, weighted sum", [("train", train, "total"), ("validation", val, "loss_total")])
    _draw(axes[0, 1], "Parts of the loss (train)", [(name, train, name) for name in LOSSES])
    aps = [(name.replace("_", " ").replace("ap", "AP"), val, name) for name in ("mask_ap", "mask_ap50", "box_ap", "box_ap50")]
    _draw(axes[1, 0], "AP on validation pictures", aps, bottom=0.0)
    _draw(axes[1, 1], "Learning rate", [("learning rate", train, "learning_rate")], bottom=0.0)
    return _save_figure(figure, folder / "curves.png")


def draw_pictures(folder: Path, predictor: Predictor, dataset: Dataset, count: int = 6) -> list[Path]:
    """`validation/*.png`: pictures of `dataset`, evenly spread, with ground truth left and detections right."""
    paths = []
    for i in np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist():
        picture = compare(predictor, dataset, i)
        path = folder / "validation" / f"{Path(dataset.path(i)).stem[:40]}.png"
        paths.append(save_picture(picture, path))
    return paths


def compare(predictor: Predictor, dataset: Dataset, i: int) -> np.ndarray:
    """Picture i of `dataset` twice, side by side: with its objects, and with what is found at a score of 0.5."""
    picture, target = dataset[i]
    found = predictor.predict(picture)
    shown = draw_detections(picture, found, score_threshold=DRAWN_FROM)
    count = int((found.scores >= DRAWN_FROM).sum())
    truth = draw_target(picture, target, dataset.classes.names)
    return side_by_side([truth, shown], [f"ground truth: {len(target)}", f"found: {count}"])


def save_picture(picture: np.ndarray, path: Path) -> Path:
    """Write (H, W, 3) uint8 as PNG, whole or not at all."""
    from PIL import Image

    with whole_file(path) as unfinished:
        Image.fromarray(picture).save(unfinished, format="PNG")
    return path


def write_page(folder: Path, facts: Mapping[str, Any]) -> Path:
    """`README.md`: what was trained, how it scored, and what each file of the folder is."""
    scores = facts.get("scores") or {}
    rows = [f"| {kind} {name} | {value:.3f} |" for kind in ("box", "mask") for name, value in _numbers(scores.get(kind))]
    lines = [
        f"# {facts['title']}",
        "",
        *(f"- {name}: {value}" for name, value in facts["lines"].items()),
        "",
        *(["| score on the validation pictures | |", "|---|---|", *rows, ""] if rows else []),
        "![curves](curves.png)",
        "",
        "| file | what it is |",
        "|---|---|",
        "| `best.safetensors` | weights with the best AP: `maskrcnn predict PICTURES --weights best.safetensors --out DIR` |",
        "| `last.safetensors` | weights at the end |",
        "| `state.safetensors` | all that a stopped run needs to go on (`--resume`) |",
        "| `config.json` | every number of model and recipe, classes, data, versions |",
        "| `log.jsonl`, `tensorboard/` | losses, learning rate, AP, as the run went on |",
        "| `curves.png`, `validation/` | the same as pictures; ground truth beside detections |",
        "| `scores/` | AP, precision, recall, F1, confusion matrix of the best weights on all validation pictures |",
    ]
    with whole_file(folder / "README.md") as unfinished:
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "README.md"


def write_json(path: Path, value: Any) -> Path:
    """Indented JSON, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _draw(axes: Any, title: str, series: Sequence[tuple[str, list[dict[str, Any]], str]], bottom: float | None = None) -> None:
    for label, lines, name in series:
        points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 25 else None, markersize=3)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylim(bottom=bottom)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _save_figure(figure: Figure, path: Path) -> Path:
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png")
    return path


def _numbers(scores: Any) -> list[tuple[str, float]]:
    return [(name, value) for name, value in (scores or {}).items() if isinstance(value, int | float)]
