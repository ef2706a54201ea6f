"""Tables and sentences: means, ranges, orders, and what is in doubt."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from maskrcnn.lineage.rows import Row
from maskrcnn.lineage.table import agreement, main_grid, markdown_table, order, shown, stage_grid, tables


def row(key: str, box_ap: float, seed: int = 0, **fields: Any) -> Row:
    stages = fields.pop("stages", {"features": 0.25, "heads": 0.25})
    usual: dict[str, Any] = {
        "name": key.upper(),
        "pictures": 20,
        "box_ap50": 0.5,
        "box_ap75": 0.25,
        "seconds_per_picture": sum(stages.values()),
        "training": {"network": 60.0},
    }
    return Row(key=key, seed=seed, box_ap=box_ap, stages=stages, **(usual | fields))


def test_a_line_for_each_system_and_no_column_that_nobody_has() -> None:
    grid = main_grid([row("a", 0.5), row("b", 0.75)], ("box_ap", "mask_ap", "seconds_per_picture", "training_seconds"))
    assert grid.caption == "Scored on 20 pictures"
    assert grid.headings == ("system", "box AP", "seconds per picture", "seconds of training")
    assert grid.lines == (("A", "0.500", "0.500", "60.0"), ("B", "0.750", "0.500", "60.0"))


def test_of_several_seeds_mean_and_range() -> None:
    rows = [row("a", 0.5, 0), row("b", 0.1, 0, mask_ap=0.25), row("a", 0.75, 1), row("b", 0.3, 1, mask_ap=0.5)]
    grid = main_grid(rows, ("box_ap", "mask_ap"))
    assert grid.caption == "Scored on 20 pictures, mean (smallest to largest) of 2 seeds"
    assert grid.lines == (
        ("A", "0.625 (0.500 to 0.750)", "-"),
        ("B", "0.200 (0.100 to 0.300)", "0.375 (0.250 to 0.500)"),
    )


def test_no_rows_make_an_empty_table() -> None:
    assert main_grid([]).lines == () and stage_grid([]).lines == ()
    assert order([], "box_ap") == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (0.01234, "0.0123"), (0.1234, "0.123"), (4.712, "4.71"), (47.12, "47.1"), (3600.4, "3600")],
)
def test_seconds_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert shown("seconds_per_picture", [value]) == text


def test_stages_add_up_over_systems_and_seeds() -> None:
    rows = [
        row("a", 0.5, 0, stages={"proposals": 2.0, "heads": 1.0}),
        row("a", 0.5, 1, stages={"proposals": 4.0}),  # a mean over both seeds: heads 0.5
        row("b", 0.5, 0, stages={"SVM": 0.5}),
    ]
    grid = stage_grid(rows)
    assert grid.headings == ("system", "proposals", "heads", "SVM", "sum")
    assert grid.lines == (("A", "3.00", "0.500", "-", "3.50"), ("B", "-", "-", "0.500", "0.500"))


def test_markdown() -> None:
    grid = main_grid([row("a|b", 0.5)], ("box_ap",))
    assert markdown_table(grid) == "| system | box AP |\n|---|---:|\n| A\\|B | 0.500 |\n"


def test_the_terminal_of_80_columns_shows_every_number() -> None:
    stages = {"proposals": 0.9, "features": 0.05, "heads": 0.02, "masks": 0.01}
    rows = [
        row(key, 0.123, seed, name=key, mask_ap=0.456, mask_ap75=0.4, stages=stages)
        for seed in (0, 1)
        for key in ("Faster R-CNN", "Mask R-CNN")
    ]
    stream = io.StringIO()
    console = Console(file=stream, width=80)
    for table in tables(rows):
        console.print(table)
    text = stream.getvalue()
    assert "…" not in text and "Faster R-CNN" in text and "(0.123-0.123)" in text
    assert "proposals 0.900, features 0.0500, heads 0.0200, masks 0.0100" in text


def test_the_order_says_how_far_behind_and_what_is_in_doubt() -> None:
    rows = [row("a", 0.50), row("b", 0.75), row("c", 0.25, mask_ap=0.5)]
    assert order(rows, "box_ap") == "Box AP, best first: B 0.750, A 0.500 (-0.250), C 0.250 (-0.500)."
    assert order(rows, "mask_ap") == ""  # one alone has no order
    seeds = [row("a", 0.50, 0), row("a", 0.60, 1), row("b", 0.55, 0), row("b", 0.70, 1), row("c", 0.1, 0)]
    assert order(seeds, "box_ap").endswith("Within the range of the seeds, so in doubt: B and A.")
    assert order([*seeds[:2], row("c", 0.1, 0), row("c", 0.2, 1)], "box_ap").endswith("No ranges overlap.")


def test_less_time_is_better() -> None:
    rows = [row("a", 0.5, stages={"all": 4.0}), row("b", 0.5, stages={"all": 0.5})]
    assert order(rows, "seconds_per_picture") == "Seconds per picture, least first: B 0.500, A 4.00 (8 times)."
    assert agreement(rows, "seconds_per_picture", [("b", "a"), ("a", "b")]) == [
        "seconds per picture: B 0.500, A 4.00: as in the paper.",
        "seconds per picture: A 4.00, B 0.500: the other way round than in the paper.",
    ]


def test_agreement_with_the_papers() -> None:
    rows = [row("a", 0.5, 0), row("a", 0.6, 1), row("b", 0.4, 0), row("b", 0.55, 1), row("c", 0.475, 0)]
    found = agreement(rows, "box_ap", [("a", "b"), ("b", "c"), ("a", "x"), ("a", "c")])
    assert [line.partition(": ")[2].partition(": ")[2] for line in found] == [
        "as in the paper, within the range of the seeds.",
        "no difference, unlike in the paper.",
        "as in the paper.",
    ]
    assert agreement(rows, "mask_ap", [("a", "b")]) == []
