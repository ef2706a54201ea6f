"""The rows as people read them: a table for the terminal, the same in Markdown, and sentences that say its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from maskrcnn.lineage.rows import Row

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = {  # field of a row, or what `_value` makes of several -> heading
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "box_ap75": "box AP75",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "mask_ap75": "mask AP75",
    "seconds_per_picture": "seconds per picture",
    "training_seconds": "seconds of training",
}
LESS_IS_BETTER = ("seconds_per_picture", "training_seconds")
SHOWN = ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap75", "seconds_per_picture", "training_seconds")
NONE = "-"


@dataclass(frozen=True)
class Grid:
    """A table of text. The first column names the rows."""

    caption: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    words: bool = False  # the other columns are words rather than numbers


@dataclass(frozen=True)
class Summary:
    """The rows of one system: one for each seed."""

    key: str
    name: str
    rows: tuple[Row, ...]

    def values(self, column: str) -> list[float]:
        """Of a column, one for each seed that has it."""
        found = (_value(row, column) for row in self.rows)
        return [value for value in found if value is not None]

    def mean(self, column: str) -> float | None:
        values = self.values(column)
        return fmean(values) if values else None

    def stages(self) -> dict[str, float]:
        """Seconds per picture of each stage, mean over the seeds."""
        return _means([row.stages for row in self.rows])

    def training(self) -> dict[str, float]:
        """Seconds of each stage of learning, mean over the seeds."""
        return _means([row.training for row in self.rows])


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """The rows by system, in the order in which systems first occur."""
    names = {row.key: row.name for row in rows}
    return [Summary(key, name, tuple(row for row in rows if row.key == key)) for key, name in names.items()]


def main_grid(rows: Sequence[Row], columns: Sequence[str] = SHOWN) -> Grid:
    """Accuracy and time: a line for each system; with several seeds the mean, and smallest to largest.

    Columns that no system has are left out.
    """
    systems = summaries(rows)
    present = [column for column in columns if any(system.values(column) for system in systems)]
    lines = [(system.name, *(shown(column, system.values(column)) for column in present)) for system in systems]
    seeds = len({row.seed for row in rows})
    pictures = max((row.pictures for row in rows), default=0)
    caption = f"Scored on {pictures} pictures" + (f", mean (smallest to largest) of {seeds} seeds" if seeds > 1 else "")
    return Grid(caption, ("system", *(COLUMNS[column] for column in present)), tuple(lines))


def stage_grid(rows: Sequence[Row]) -> Grid:
    """Where the time of detecting goes: seconds per picture of each stage, and their sum."""
    systems = summaries(rows)
    stages = list(dict.fromkeys(stage for system in systems for stage in system.stages()))
    lines = []
    for system in systems:
        spent = system.stages()
        cells = [_seconds(spent[stage]) if stage in spent else NONE for stage in stages]
        lines.append((system.name, *cells, _seconds(sum(spent.values()))))
    return Grid("Seconds per picture, stage by stage", ("system", *stages, "sum"), tuple(lines))


def training_grid(rows: Sequence[Row]) -> Grid:
    """What the time of learning was spent on."""
    return _listed("Seconds of training, stage by stage", [(each.name, each.training()) for each in summaries(rows)])


def tables(rows: Sequence[Row], columns: Sequence[str] = SHOWN) -> list[Table]:
    """For a terminal of 80 columns: at most four numbers of each system, and its stages in words."""
    several = len({row.seed for row in rows}) > 1
    few = [column for column in columns if column != "training_seconds" and not column.endswith("50")]
    few = few if len(few) <= 4 else [column for column in few if column != "box_ap75"]
    stages = [(each.name, each.stages()) for each in summaries(rows)]
    grids = main_grid(rows, few), _listed("Seconds per picture, stage by stage", stages), training_grid(rows)
    return [_rich_table(grid, several) for grid in grids]


def _listed(caption: str, systems: Sequence[tuple[str, Mapping[str, float]]]) -> Grid:
    lines = []
    for name, stages in systems:
        words = ", ".join(f"{stage} {_seconds(seconds)}" for stage, seconds in stages.items())
        lines.append((name, words or NONE))
    return Grid(caption, ("system", "stages"), tuple(lines), words=True)


def _rich_table(grid: Grid, several: bool) -> Table:
    from rich.table import Table

    table = Table(title=grid.caption, title_justify="left", show_edge=False)  # so that it fits 80 columns
    table.add_column(grid.headings[0], no_wrap=not grid.words)
    for heading in grid.headings[1:]:
        table.add_column(heading, justify="left" if grid.words else "right")
    for line in grid.lines:
        cells = [cell.replace(" (", "\n(").replace(" to ", "-") if several else cell for cell in line[1:]]
        table.add_row(line[0], *(line[1:] if grid.words else cells))
    return table


def markdown_table(grid: Grid) -> str:
    """Three lines and more, without the caption."""
    rule = "|---|" + ("---|" if grid.words else "---:|") * (len(grid.headings) - 1)
    return "\n".join([_markdown_line(grid.headings), rule, *map(_markdown_line, grid.lines)]) + "\n"


def shown(column: str, values: Sequence[float]) -> str:
    """The mean, and with several values smallest and largest: 0.512 (0.498 to 0.530)."""
    if not values:
        return NONE
    number = _seconds if column in LESS_IS_BETTER else _share
    if len(values) == 1:
        return number(values[0])
    return f"{number(fmean(values))} ({number(min(values))} to {number(max(values))})"


def order(rows: Sequence[Row], column: str) -> str:
    """One sentence: who is best by a column, how far behind the others are, and which order is in doubt.

    "" where fewer than two systems have it.
    """
    fewer = column in LESS_IS_BETTER
    ranked = [(mean, system) for system in summaries(rows) if (mean := system.mean(column)) is not None]
    if len(ranked) < 2:
        return ""
    ranked.sort(key=lambda pair: pair[0], reverse=not fewer)
    best = ranked[0][0]
    parts = [f"{ranked[0][1].name} {shown(column, [best])}"]
    for value, system in ranked[1:]:
        behind = (
            f"{value / best:.3g} times" if fewer and best > 0 else f"{round(value - best, 3) + 0.0:+.3f}"
        )  # no -0.000
        parts.append(f"{system.name} {shown(column, [value])} ({behind})")
    first = "least" if fewer else "best"
    sentence = f"{COLUMNS[column][0].upper()}{COLUMNS[column][1:]}, {first} first: {', '.join(parts)}."
    return " ".join([sentence, _doubt([system for _, system in ranked], column)]).strip()


def agreement(rows: Sequence[Row], column: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """A sentence for each pair of keys (better, worse, as the papers found) that the rows have: was it so here?"""
    systems = {system.key: system for system in summaries(rows)}
    sentences = []
    for better, worse in pairs:
        first, second = systems.get(better), systems.get(worse)
        if first is None or second is None:
            continue
        a, b = first.values(column), second.values(column)
        if a and b:
            numbers = f"{first.name} {shown(column, a)}, {second.name} {shown(column, b)}"
            sentences.append(f"{COLUMNS[column]}: {numbers}: {_verdict(a, b, column in LESS_IS_BETTER)}.")
    return sentences


def _verdict(better: Sequence[float], worse: Sequence[float], fewer: bool) -> str:
    number = _seconds if fewer else _share
    if number(fmean(better)) == number(fmean(worse)):
        return "no difference, unlike in the paper"
    ahead = (fmean(better) - fmean(worse)) * (-1 if fewer else 1)
    found = "as in the paper" if ahead > 0 else "the other way round than in the paper"
    overlap = min(better) <= max(worse) and min(worse) <= max(better)
    return found + (", within the range of the seeds" if overlap else "")


def _doubt(ranked: Sequence[Summary], column: str) -> str:
    """Neighbours in the order whose ranges over the seeds overlap."""
    if all(len(system.values(column)) < 2 for system in ranked):
        return ""
    unsure = []
    for first, second in zip(ranked, ranked[1:], strict=False):
        a, b = first.values(column), second.values(column)
        if min(a) <= max(b) and min(b) <= max(a):
            unsure.append(f"{first.name} and {second.name}")
    return f"Within the range of the seeds, so in doubt: {'; '.join(unsure)}." if unsure else "No ranges overlap."


def _value(row: Row, column: str) -> float | None:
    if column == "training_seconds":
        return sum(row.training.values())
    value = getattr(row, column)
    return None if value is None else float(value)


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each name over all parts; a part without it counts as 0, so that means of stages add up."""
    named: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            named.setdefault(name, []).append(value)
    return {name: sum(values) / len(parts) for name, values in named.items()}


def _share(value: float) -> str:
    return f"{value:.3f}"


def _seconds(value: float) -> str:
    """Three digits that count, and no exponent: 0.0123, 4.71, 3600."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:.{decimals}f}"


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
