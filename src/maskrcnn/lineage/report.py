"""The files of a comparison: rows as JSON, tables as Markdown, plots, and the page. Each appears whole."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from maskrcnn.evaluation.curves import save_figure
from maskrcnn.lineage.page import Subject, page, sentences
from maskrcnn.lineage.plots import accuracy_against_time, by_system, time_by_stage
from maskrcnn.lineage.rows import Row, rows_to_json
from maskrcnn.lineage.table import main_grid, markdown_table, stage_grid, training_grid
from maskrcnn.ops.files import whole_file
from maskrcnn.training.report import write_json

ROWS_FILE, SETTINGS_FILE, TABLE_FILE, PAGE_FILE = "lineage.json", "settings.json", "table.md", "lineage.html"


def write_report(out: Path, subject: Subject, rows: Sequence[Row], settings: Mapping[str, Any]) -> list[Path]:
    """lineage.json (the rows), settings.json, table.md, the plots as PNG and lineage.html; return their paths."""
    plots = _plots(subject, rows)
    pictures = {name: _png(figure) for name, (_, figure) in plots.items()}
    titled = {title: pictures[name] for name, (title, _) in plots.items()}
    texts = {TABLE_FILE: markdown(subject, rows), PAGE_FILE: page(subject, rows, facts(settings, rows), titled)}
    write_json(out / ROWS_FILE, rows_to_json(rows))
    write_json(out / SETTINGS_FILE, dict(settings))
    for name, data in [*((n, t.encode("utf-8", "replace")) for n, t in texts.items()), *pictures.items()]:
        with whole_file(out / name) as unfinished:
            unfinished.write_bytes(data)
    return [out / name for name in (ROWS_FILE, SETTINGS_FILE, *texts, *pictures)]


def markdown(subject: Subject, rows: Sequence[Row]) -> str:
    """The tables and what they say, as Markdown."""
    parts = [f"# {subject.title}", subject.lead]
    if subject.paper:
        parts.append(f"The paper: {subject.paper}")
    for grid in (main_grid(rows, subject.columns), stage_grid(rows), training_grid(rows)):
        parts += [f"{grid.caption}:", markdown_table(grid).rstrip("\n")]
    parts.append("\n".join(f"- {sentence}" for sentence in sentences(subject, rows)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _length(minutes: float | None, steps: int | None) -> str:
    return f"{steps} steps each" if minutes is None else f"{minutes:g} minutes each"


def facts(settings: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    """What the rows were made with, in words."""
    data, body = settings["data"], settings["body"]
    return {
        "training": _length(settings["minutes"], settings["steps"]),
        "on": f"{data['training']} pictures, {data['training_objects']} objects",
        "judged on": f"{data['validation']} pictures, {data['validation_objects']} objects",
        "body": body["name"]
        + (" (small)" if body["options"] else "")
        + (", pretrained" if settings["pretrained"] else ""),
        "scale": f"{settings['scale']:g}",
        "device": str(settings["device"]),
        "seeds": ", ".join(str(seed) for seed in dict.fromkeys(row.seed for row in rows)),
    }


def _plots(subject: Subject, rows: Sequence[Row]) -> dict[str, tuple[str, Figure]]:
    """File name -> (title, plot)."""
    plots = {
        "accuracy.png": ("Accuracy against time", accuracy_against_time(rows)),
        "stages.png": ("Where the time goes", time_by_stage(rows)),
    }
    if not subject.is_lineage:
        plots = {"compared.png": ("What is compared", by_system(rows, subject.columns))} | plots
    return plots


def _png(figure: Figure) -> bytes:
    stream: Any = io.BytesIO()
    save_figure(figure, stream)
    return bytes(stream.getvalue())
