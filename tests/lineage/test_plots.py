"""The plots show the numbers of the rows: marks and bars are read back from the figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from maskrcnn.lineage.plots import accuracy_against_time, by_system, time_by_stage
from maskrcnn.lineage.rows import Row
from maskrcnn.lineage.table import order


def row(key: str, box_ap: float, stages: dict[str, float], seed: int = 0, mask_ap: float | None = None) -> Row:
    return Row(
        name=key,
        key=key,
        seed=seed,
        pictures=2,
        box_ap=box_ap,
        box_ap50=box_ap,
        box_ap75=box_ap,
        mask_ap=mask_ap,
        seconds_per_picture=sum(stages.values()),
        stages=stages,
        training={},
    )


ROWS = [
    row("slow", 0.25, {"proposals": 3.0, "heads": 1.0}),
    row("_fast $x", 0.5, {"heads": 0.25, "masks": 0.0625}, mask_ap=0.375),
]


def drawn(figure: Figure) -> None:
    """Layout and all: what cannot be drawn fails here."""
    figure.canvas.draw()


def test_marks_stand_at_time_and_accuracy() -> None:
    figure = accuracy_against_time(ROWS)
    axes = figure.axes[0]
    marks = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines]
    assert marks == [(4.0, 0.25), (0.3125, 0.5), (0.3125, 0.375)]
    assert axes.get_xscale() == "log" and axes.get_xlim()[0] < 0.3125 and axes.get_xlim()[1] > 4
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 0.5
    assert axes.lines[1].get_markerfacecolor() != axes.lines[2].get_markerfacecolor() == "white"
    assert len(axes.get_legend_handles_labels()[1]) == 2
    drawn(figure)


def test_of_several_seeds_the_mean_and_a_line_over_the_range() -> None:
    figure = accuracy_against_time([row("a", ap, {"all": 1.0}, seed) for seed, ap in enumerate((0.25, 0.5, 0.75))])
    axes = figure.axes[0]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines] == [(1.0, 0.5)]
    (segments,) = [collection.get_segments() for collection in axes.collections]  # type: ignore[attr-defined]
    assert np.array_equal(segments[0], [[1.0, 0.25], [1.0, 0.75]])


def test_bars_are_as_long_as_the_stages() -> None:
    figure = time_by_stage(ROWS)
    seconds, shares = figure.axes
    bars: list[Any] = [bar for container in seconds.containers for bar in container]
    assert all(isinstance(container, BarContainer) for container in seconds.containers)
    found = {(round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width()) for bar in bars}
    assert {(0, 0.0, 3.0), (0, 3.0, 1.0), (1, 0.0, 0.25), (1, 0.25, 0.0625)} <= found
    ends: dict[int, float] = {}
    for container in shares.containers:
        for bar in container:
            place = round(bar.get_y() + bar.get_height() / 2)
            ends[place] = max(ends.get(place, 0.0), bar.get_x() + bar.get_width())
    assert ends == {0: pytest.approx(100), 1: pytest.approx(100)}
    assert seconds.get_legend_handles_labels()[1] == ["proposals", "heads", "masks"]
    assert seconds.get_ylim()[0] > seconds.get_ylim()[1]  # the first on top
    drawn(figure)


def test_an_ablations_dots_are_the_seeds() -> None:
    rows = [row("a", 0.25, {"x": 1.0}, 0), row("a", 0.5, {"x": 1.0}, 1), row("b", 0.75, {"x": 2.0}, 0, mask_ap=0.5)]
    figure = by_system(rows, ("box_ap", "mask_ap", "seconds_per_picture"))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["box AP", "mask AP", "seconds per picture"]
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[0.25, 0.5], [0.75]]
    bold = [[t.get_text() for t in axes.texts if t.get_fontweight() == "bold"] for axes in figure.axes]
    assert bold == [["0.750"], [], ["1.00"]]  # the best of each, where there are two to compare
    assert order(rows, "box_ap").startswith("Box AP, best first: b 0.750")
    drawn(figure)


@pytest.mark.parametrize("rows", [[], [row("a", 0.0, {})]])
def test_nothing_and_zeros_are_drawn_too(rows: list[Row]) -> None:
    for figure in (accuracy_against_time(rows), time_by_stage(rows), by_system(rows, ("box_ap", "mask_ap"))):
        drawn(figure)
