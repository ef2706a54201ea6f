"""Pictures of an Evaluation: precision against recall, F1 against the score threshold, the confusion matrix.

Figures are made without pyplot: no window, no global state, safe in a thread beside a training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from maskrcnn.evaluation.coco_ap import IOU_THRESHOLDS, RECALLS, CocoScores
from maskrcnn.evaluation.scores import ScoreCurve

if TYPE_CHECKING:
    from maskrcnn.evaluation.evaluate import Evaluation

# Okabe and Ito 2008: told apart by colour-blind readers too; black is kept for the mean
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#7B61A8")
INK, FAINT, GRID = "#1A1A1A", "#B8BDC6", "#E6E8EC"
NAMED = len(COLOURS)  # with more classes than this their curves are grey and unnamed
POINTS = 2000  # drawn per curve at most
NUMBERED = 14  # with more rows than this the matrix is colour only
LONGEST_NAME = 28  # characters
DPI = 160


def save_figure(figure: Figure, path: Path) -> None:
    """Write as PNG."""
    FigureCanvasAgg(figure)  # as the canvas to draw on
    figure.savefig(path, format="png")


def precision_recall(evaluation: Evaluation) -> Figure:
    """Precision at each recall, per class and their mean, at IoU .50 and .75; a row for boxes and one for masks."""
    kinds = [("box", evaluation.box)] + ([] if evaluation.mask is None else [("mask", evaluation.mask)])
    figure = Figure(figsize=(10.5, 0.6 + 4.1 * len(kinds)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(kinds), 2, squeeze=False)
    for row, (kind, scores) in zip(grid, kinds, strict=True):
        for axes, threshold in zip(row, (0.5, 0.75), strict=True):
            _draw_precision_recall(axes, scores, int(np.argmin(abs(IOU_THRESHOLDS - threshold))))
            _dress(axes, f"{kind} IoU {threshold:.2f}", "recall", "precision")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(framealpha=0.85, edgecolor="none", fontsize=8.5, title="AP", title_fontsize=8.5)
    limit = evaluation.box.max_detections[-1]
    figure.suptitle(f"Precision and recall, at most {limit} detections per picture and class", color=INK, fontsize=13)
    return figure


def f1_against_threshold(evaluation: Evaluation) -> Figure:
    """F1 of each class and of all together where only detections of at least a score are kept."""
    figure = Figure(figsize=(9, 5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    present = [(n, c) for n, c in zip(evaluation.names, evaluation.per_class, strict=True) if c.objects]
    if len(present) > 1:
        for (_, curve), style in zip(present, _styles([f"F1, {_text(name)}" for name, _ in present]), strict=True):
            axes.plot(*_steps(curve, curve.f1), **style)
    total = evaluation.total
    thresholds, precision = _steps(total, total.precision)
    # above the highest score there is no detection, so no precision
    axes.plot(thresholds[:-2], precision[:-2], color=INK, linewidth=1.2, linestyle=":", label="precision, all")
    axes.plot(*_steps(total, total.recall), color=INK, linewidth=1.2, linestyle="--", label="recall, all")
    axes.plot(*_steps(total, total.f1), color=INK, linewidth=2.4, label="F1, all")
    _mark_best(axes, total)
    kind = "box" if evaluation.mask is None else "mask"
    _dress(axes, f"F1 against score threshold, {kind} IoU {evaluation.iou_threshold:g}", "score threshold", "")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def confusion(evaluation: Evaluation) -> Figure:
    """How often each class (row) was found as each class (column).

    Coloured by the share of the row's objects; in the last row, detections of nothing, by the share of the column's
    detections. Classes that have neither objects nor detections are left out; background comes last.
    """
    order = [*range(1, len(evaluation.names) + 1), 0]
    matrix = evaluation.confusion[np.ix_(order, order)]
    keep = (matrix.sum(0) + matrix.sum(1)) > 0
    keep[-1] = True
    matrix = matrix[np.ix_(keep, keep)]
    names = [_text(name) for name, kept in zip([*evaluation.names, "background"], keep, strict=True) if kept]
    side = float(np.clip(2.6 + 0.62 * len(names), 4.6, 16))
    figure = Figure(figsize=(side + 0.8, side), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    share[-1] = matrix[-1] / np.maximum(matrix.sum(axis=0), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= NUMBERED:
        _write_counts(axes, matrix, share)
    _dress_matrix(axes, names)
    kind = "box" if evaluation.mask is None else "mask"
    title = f"Confusion at score {evaluation.score_threshold:g}, {kind} IoU {evaluation.iou_threshold:g}"
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    bar = figure.colorbar(
        image, ax=axes, shrink=0.8, aspect=30, label="share of the objects; last row: of the detections"
    )
    bar.outline.set_visible(False)
    return figure


def _draw_precision_recall(axes: Axes, scores: CocoScores, threshold: int) -> None:
    precision = scores.precision[threshold, :, :, 0, -1]  # (R, K)
    present = [k for k in range(len(scores.names)) if precision[0, k] > -1]
    if not present:
        axes.text(0.5, 0.5, "no ground truth", ha="center", va="center", color=FAINT)
        return
    if len(present) > 1:
        names = [f"{_text(scores.names[k])}  {precision[:, k].mean():.3f}" for k in present]
        for k, style in zip(present, _styles(names), strict=True):
            axes.plot(RECALLS, precision[:, k], **style)
    mean = precision[:, present].mean(axis=1)
    label = "mean" if len(present) > 1 else _text(scores.names[present[0]])
    axes.plot(RECALLS, mean, color=INK, linewidth=2.4, label=f"{label}  {mean.mean():.3f}")
    if len(present) == 1:
        axes.fill_between(RECALLS, mean, color=COLOURS[0], alpha=0.10, linewidth=0)


def _styles(labels: Sequence[str]) -> list[dict[str, Any]]:
    """How each class's curve is drawn; many classes share one faint grey and one legend entry."""
    if len(labels) <= NAMED:
        pairs = zip(COLOURS, labels, strict=False)
        return [{"color": colour, "label": label, "linewidth": 1.3} for colour, label in pairs]
    grey = {"color": FAINT, "linewidth": 0.7, "alpha": 0.7}
    return [grey | {"label": f"{len(labels)} classes" if n == 0 else "_hidden"} for n in range(len(labels))]


def _text(name: str) -> str:
    """A class name as a label: cut if long; no dollar starts a formula, no underscore in front hides it in a legend."""
    shown = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


def _steps(curve: ScoreCurve, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the step function over 0..1; a value holds from just above the next lower score up to its own."""
    if not curve.thresholds.size:
        return np.array([0.0, 1.0]), np.zeros(2)
    scores, heights = curve.thresholds[::-1], values[::-1]
    if scores.size > POINTS:
        chosen = np.linspace(0, scores.size - 1, POINTS).round().astype(int)
        scores, heights = scores[chosen], heights[chosen]
    left = np.append(0.0, scores[:-1])
    x = np.append(np.stack([left, scores], axis=1).ravel(), [scores[-1], 1.0])
    return x, np.append(np.repeat(heights, 2), [0.0, 0.0])


def _mark_best(axes: Axes, curve: ScoreCurve) -> None:
    best = curve.best()
    if best is None or best.f1 is None:
        return
    axes.plot([best.threshold], [best.f1], "o", color=COLOURS[5], markersize=7, zorder=5)
    right = best.threshold < 0.6
    axes.annotate(
        f"best F1 {best.f1:.3f} at {best.threshold:.3f}",
        (best.threshold, best.f1),
        xytext=(10 if right else -10, 12),
        textcoords="offset points",
        ha="left" if right else "right",
        color=COLOURS[5],
        fontweight="bold",
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )


def _dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel=x_label, ylabel=y_label)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.yaxis.set_major_locator(MultipleLocator(0.2))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0)


def _write_counts(axes: Axes, matrix: np.ndarray, share: np.ndarray) -> None:
    last = len(matrix) - 1
    for (row, column), count in np.ndenumerate(matrix):
        if row == column == last:  # background found as background is not counted
            axes.text(column, row, "·", ha="center", va="center", color=FAINT)
            continue
        colour = "white" if share[row, column] > 0.55 else INK if count else FAINT
        text = f"{count}\n{share[row, column]:.0%}" if count and last < 8 else str(count)
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10 if last < 8 else 8)


def _dress_matrix(axes: Axes, names: Sequence[str]) -> None:
    size = 9.5 if len(names) <= NUMBERED else max(4.5, 9.5 - 0.07 * len(names))
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 5 else 0, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("found as", color=INK)
    axes.set_ylabel("truth", color=INK)
    axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2 if len(names) <= NUMBERED else 0.4)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
