"""Rows made by hand, as text."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from maskrcnn.bench.measure import Ratio, Timing
from maskrcnn.bench.rows import Row
from maskrcnn.bench.table import grids, markdown, notes, rich_tables, save

ROWS = [
    Row(work="picture to RLE", side="torchvision", timing=Timing((6.0, 7.0, 9.0)), facts={"detections": 100}),
    Row(
        work="picture to RLE",
        side="ours",
        timing=Timing((3.5, 3.5, 3.5)),
        ratio=Ratio(2.0, 1.7142, 1.714, 2.571),
        facts={"scores": 2.5e-6, "boxes_px": 0.0},
    ),
    Row(work="stages", part="FPN", side="torchvision", timing=Timing((1.0,)), facts={"GFLOP": 99.0}),
    Row(work="stages", part="FPN", side="ours", timing=Timing((0.5,)), ratio=Ratio(2.0, 2.0, 2.0, 2.0)),
    Row(work="memory", side="ours", memory_mb=239.4),
]


def test_a_table_for_each_work() -> None:
    whole, stages, memory = grids(ROWS)
    assert whole.caption == "picture to RLE, for one picture"
    assert whole.headings == (
        "", "seconds", "fastest", "slowest", "times faster", "by the fastest", "detections", "scores", "boxes px"
    )  # fmt: skip
    assert whole.lines == (
        ("torchvision", "7.00", "6.00", "9.00", "", "", "100", "", ""),
        ("ours", "3.50", "3.50", "3.50", "2.00 (1.71 to 2.57)", "1.71", "", "2.5e-06", "0"),
    )
    assert stages.headings == ("", "torchvision, ms", "ours, ms", "GFLOP")
    assert stages.lines == (("FPN", "1000", "500 (2.00x)", "99.0"),)
    assert (memory.headings, memory.lines) == (("", "MB"), (("ours", "239"),))


def test_markdown_has_the_same_and_says_where() -> None:
    text = markdown(ROWS, {"torch": "2.9", "threads": 1})
    assert text.startswith("torch 2.9, threads 1\n\n## picture to RLE, for one picture\n")
    assert "| FPN | 1000 | 500 (2.00x) | 99.0 |" in text
    assert text.rstrip().endswith(notes(ROWS)[-1])


def test_tables_of_many_columns_are_turned_to_fit() -> None:
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as capture:
        for table in rich_tables(ROWS):
            console.print(table)
    shown = capture.get()
    assert "…" not in shown and "2.00 (1.71 to 2.57)" in shown
    lines = [line for line in shown.splitlines() if "times faster" in line]
    assert len(lines) == 1 and "2.00" in lines[0]  # a line rather than a column


def test_files(tmp_path: Path) -> None:
    save(ROWS, {"threads": 1}, tmp_path)
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["about"] == {"threads": 1} and len(record["rows"]) == len(ROWS)
    assert record["rows"][1]["ratio"]["of_medians"] == 2.0
    assert (tmp_path / "table.md").read_text() == markdown(ROWS, {"threads": 1})
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "table.md"}
