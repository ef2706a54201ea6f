"""The rows as people read them: one table for each work, for the terminal and in Markdown; and all as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn.bench.measure import Ratio
from maskrcnn.bench.rows import Row, Value, works_of
from maskrcnn.ops.files import whole_file

if TYPE_CHECKING:
    from rich.table import Table

JSON_FILE, TABLE_FILE = "bench.json", "table.md"


@dataclass(frozen=True)
class Grid:
    """A table of text. The first column names the rows."""

    caption: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def grids(rows: Sequence[Row]) -> list[Grid]:
    """One for each work. A work in parts has a line for each part and a column for each side."""
    return [_grid([row for row in rows if row.work == work]) for work in works_of(rows)]


def _grid(rows: Sequence[Row]) -> Grid:
    if any(row.part for row in rows):
        return _by_part(rows)
    columns = [
        ("seconds", [_digits(row.timing.median) if row.timing else "" for row in rows]),
        ("fastest", [_digits(row.timing.fastest) if row.timing else "" for row in rows]),
        ("slowest", [_digits(row.timing.slowest) if row.timing else "" for row in rows]),
        ("times faster", [_ratio(row.ratio) for row in rows]),
        ("by the fastest", [f"{row.ratio.of_fastest:.2f}" if row.ratio else "" for row in rows]),
        ("MB", ["" if row.memory_mb is None else f"{row.memory_mb:.0f}" for row in rows]),
    ]
    names = list(dict.fromkeys(name for row in rows for name in row.facts))
    columns += [(name.replace("_", " "), [_value(row.facts.get(name)) for row in rows]) for name in names]
    shown = [(heading, cells) for heading, cells in columns if any(cells)]
    lines = tuple((row.side, *(cells[i] for _, cells in shown)) for i, row in enumerate(rows))
    unit = f", for one {rows[0].unit}" if any(row.timing for row in rows) else ""
    return Grid(rows[0].work + unit, ("", *(heading for heading, _ in shown)), lines)


def _by_part(rows: Sequence[Row]) -> Grid:
    """Milliseconds, and how many times faster than the peer."""
    sides = list(dict.fromkeys(row.side for row in rows))
    parts = list(dict.fromkeys(row.part for row in rows))
    facts = list(dict.fromkeys(name for row in rows for name in row.facts))
    by_place = {(row.part, row.side): row for row in rows}
    lines = []
    for part in parts:
        cells = [_milliseconds(by_place.get((part, side))) for side in sides]
        first = by_place[part, sides[0]]
        lines.append((part, *cells, *(_value(first.facts.get(name)) for name in facts)))
    headings = ("", *(f"{side}, ms" for side in sides), *facts)
    return Grid(f"{rows[0].work}, for one {rows[0].unit}", headings, tuple(lines))


NOTES = {  # what the words of a work's table mean
    "picture to RLE": "boxes px, scores: the largest difference from the peer among the pairs, detections of both "
    "sides with one class that overlap. mask pixels: those that differ where both sides' masks are pasted by our rule "
    "(torchvision's own rounds boxes to whole pixels), of area pixels; clear pixels: of these, those whose probability "
    "is not within 0.5 +- 1e-4. one sided: detections of one side only.",
    "stages": "Of the first picture. In brackets: how many times faster than the first column.",
    "peak memory of a picture": "MB of 2**20 bytes above the loaded model, each side in a process of its own: of a "
    "later picture, and of the first one, which also fills caches.",
    "floor of the machine": "floor s: the model's convolutions and matrix products at the better of the two rates "
    "measured here. share of floor: that over our time, 1 for work without any pause; Winograd's algorithm needs fewer "
    "operations than are counted, and may go beyond.",
}


def notes(rows: Sequence[Row]) -> list[str]:
    """What the words of the tables mean, as far as they are not plain."""
    return [f"{work}: {NOTES[work]}" for work in works_of(rows) if work in NOTES]


def rich_tables(rows: Sequence[Row]) -> list[Table]:
    """For the terminal. Many columns are turned, so that a line stays within 80 columns."""
    from rich.table import Table

    tables = []
    for grid in grids(rows):
        turned = _turned(grid) if len(grid.headings) > len(grid.lines) + 1 else grid
        table = Table(title=turned.caption, title_justify="left", show_edge=False)
        for i, heading in enumerate(turned.headings):
            table.add_column(heading, justify="right" if i else "left")
        for line in turned.lines:
            table.add_row(*line)
        tables.append(table)
    return tables


def _turned(grid: Grid) -> Grid:
    columns = list(zip(grid.headings, *grid.lines, strict=True))
    return Grid(grid.caption, columns[0], tuple(columns[1:]))


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """All tables, after a line that says on what they were measured."""
    parts = [", ".join(f"{name} {value}" for name, value in about.items()) + "\n"]
    for grid in grids(rows):
        rule = "|---|" + "---:|" * (len(grid.headings) - 1)
        lines = [_markdown_line(line) for line in grid.lines]
        parts.append("\n".join([f"## {grid.caption}\n", _markdown_line(grid.headings), rule, *lines]) + "\n")
    parts += [f"{note}\n" for note in notes(rows)]
    return "\n".join(parts)


def save(rows: Sequence[Row], about: dict[str, Any], folder: Path) -> None:
    """Write both files whole."""
    record = {"about": about, "rows": [row.as_json() for row in rows]}
    with whole_file(folder / JSON_FILE) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    with whole_file(folder / TABLE_FILE) as part:
        part.write_text(markdown(rows, about), encoding="utf-8")


def about_machine(threads: int, device: str) -> dict[str, Any]:
    """What figures hang on, and nothing that names the machine."""
    import torch
    import torchvision

    about: dict[str, Any] = {
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "device": device,
    }
    if torch.device(device).type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _milliseconds(row: Row | None) -> str:
    if row is None or row.timing is None:
        return ""
    times = "" if row.ratio is None else f" ({row.ratio.of_medians:.2f}x)"
    return f"{_digits(1000 * row.timing.median)}{times}"


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.of_medians:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})"


def _digits(value: float) -> str:
    """Three digits that count, without an exponent: 0.0123, 4.71, 3600."""
    if value == 0:
        return "0"
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:.{decimals}f}"


def _value(value: Value | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.001 else _digits(value)
    return str(value)
