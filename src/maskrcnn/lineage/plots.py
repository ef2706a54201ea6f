"""Plots of the rows: accuracy against seconds per picture, where the seconds go, and each system's score by seed.

Figures are made without pyplot: no window, no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from maskrcnn.evaluation.curves import COLOURS, DPI, FAINT, GRID, INK
from maskrcnn.lineage.rows import Row
from maskrcnn.lineage.table import COLUMNS, LESS_IS_BETTER, Summary, shown, summaries

matplotlib.use("Agg")

_MARKS = "osD^vPX*<>"  # with the colours, so that systems are told apart in grey too


def accuracy_against_time(rows: Sequence[Row]) -> Figure:
    """Box AP (filled) and mask AP (hollow) of each system against its seconds per picture, which are on a log axis."""
    systems = summaries(rows)
    figure = Figure(figsize=(6.6, 5.0), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for i, system in enumerate(systems):
        _draw_system(axes, system, COLOURS[i % len(COLOURS)], _MARKS[i % len(_MARKS)])
    times = [row.seconds_per_picture for row in rows if row.seconds_per_picture > 0]
    if times:
        axes.set_xscale("log")
        axes.set_xlim(min(times) / 2, max(times) * 2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    _dress(axes, "Accuracy against time", "seconds per picture (log scale)", "AP")
    axes.set_ylim(0, max(0.1, 1.12 * max((max(row.box_ap, row.mask_ap or 0.0) for row in rows), default=0.0)))
    if any(row.mask_ap is not None for row in rows):
        axes.set_title("filled: boxes, hollow: masks", loc="right", color=INK, fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def time_by_stage(rows: Sequence[Row]) -> Figure:
    """Bars of the seconds per picture, stacked by stage: as they are, and each system's as shares of its own."""
    systems = summaries(rows)
    stages = list(dict.fromkeys(stage for system in systems for stage in system.stages()))
    figure = Figure(figsize=(6.6, 2.4 + 0.8 * len(systems)), dpi=DPI, layout="constrained")
    seconds, shares = figure.subplots(2, 1)
    left = {system.key: 0.0 for system in systems}
    for i, stage in enumerate(stages):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "edgecolor": "white", "linewidth": 0.6}
        style |= {"hatch": "///"} if i >= len(COLOURS) else {}
        for row, system in enumerate(systems):
            spent = system.stages()
            value, total = spent.get(stage, 0.0), sum(spent.values()) or 1.0
            label = {"label": stage} if row == 0 else {}
            seconds.barh(row, value, left=left[system.key], **style, **label)
            shares.barh(row, 100 * value / total, left=100 * left[system.key] / total, **style)
            left[system.key] += value
    for row, system in enumerate(systems):
        text = shown("seconds_per_picture", [left[system.key]])
        seconds.annotate(
            text, (left[system.key], row), (4, 0), textcoords="offset points", va="center", fontsize=9, color=INK
        )
    longest = max(left.values(), default=0.0)
    _dress(seconds, "Seconds per picture", "seconds", "")
    _dress(shares, "Shares of each system's own", "per cent", "")
    seconds.set_xlim(0, 1.15 * longest if longest > 0 else 1)
    shares.set_xlim(0, 100)
    for axes in (seconds, shares):
        axes.set_yticks(range(len(systems)), [_text(system.name) for system in systems])
        axes.set_ylim(len(systems) - 0.4, -0.6)  # the first on top
        axes.grid(visible=False, axis="y")
    figure.legend(
        *seconds.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=max(1, min(5, len(stages))),
        frameon=False,
        fontsize=9,
    )
    return figure


def by_system(rows: Sequence[Row], columns: Sequence[str]) -> Figure:
    """A panel for each column with a dot for each seed and a line at the mean: what an ablation compares."""
    systems = summaries(rows)
    present = [column for column in columns if any(system.values(column) for system in systems)] or list(columns[:1])
    figure = Figure(figsize=(6.6, len(present) * (0.9 + 0.4 * len(systems))), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(present), 1, squeeze=False)[:, 0]
    for axes, column in zip(panels, present, strict=True):
        best = _best(systems, column)
        for row, system in enumerate(systems):
            values, mean = system.values(column), system.mean(column)
            if mean is None:
                axes.text(0.02, row, "none", transform=axes.get_yaxis_transform(), va="center", color=FAINT)
                continue
            colour = COLOURS[5] if mean == best else COLOURS[0]
            axes.hlines(row, 0, mean, color=GRID, linewidth=6)
            axes.vlines(mean, row - 0.28, row + 0.28, color=colour, linewidth=2.2)
            axes.plot(values, [row] * len(values), "o", color=colour, markersize=5, alpha=0.75)
            axes.annotate(
                shown(column, [mean]),
                (max(values), row),
                (7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=INK,
                fontweight="bold" if mean == best else "normal",
            )
        _dress(axes, COLUMNS[column], "", "")
        highest = max((value for system in systems for value in system.values(column)), default=0.0)
        axes.set_xlim(0, 1.25 * highest if highest > 0 else 1)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(systems)), [_text(system.name) for system in systems])
        axes.set_ylim(max(1, len(systems)) - 0.5, -0.5)
    return figure


def _draw_system(axes: Axes, system: Summary, colour: str, mark: str) -> None:
    """A mark at the mean, and a line from smallest to largest over the seeds."""
    time = system.mean("seconds_per_picture")
    for column, fill in (("box_ap", colour), ("mask_ap", "white")):
        values, mean = system.values(column), system.mean(column)
        if time is None or mean is None:
            continue
        axes.vlines(time, min(values), max(values), color=colour, linewidth=2, zorder=2)
        style: dict[str, Any] = {"marker": mark, "markersize": 9, "markerfacecolor": fill, "markeredgewidth": 2}
        style |= {"label": _text(system.name)} if column == "box_ap" else {}
        axes.plot([time], [mean], color=colour, linestyle="none", zorder=3, clip_on=False, **style)


def _best(systems: Sequence[Summary], column: str) -> float | None:
    means = [mean for system in systems if (mean := system.mean(column)) is not None]
    choose = min if column in LESS_IS_BETTER else max
    return choose(means) if len(means) > 1 else None


def _dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0)


def _text(name: str) -> str:
    """No dollar starts a formula, no underscore in front hides a name in a legend."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
