"""A row of the lineage's table: what one system, trained once, reached and took; JSON in the system's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskrcnn.errors import InputError
from maskrcnn.model.config import as_float, from_dict, to_dict
from maskrcnn.training.checkpoint import require_same
from maskrcnn.training.report import write_json

VERSION = 1  # of what a row means; rows of another are not taken
ROW_FILE, SETTINGS_FILE = "row.json", "settings.json"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system, trained from one seed.

    box_ap, mask_ap: COCO's, IoU 0.50 to 0.95; 50 and 75 behind them: at that IoU alone. Those of masks are None where
    system or pictures have none.
    seconds_per_picture: wall time of detecting, one picture at a time. stages: the same, by stage.
    training: seconds of each stage of learning. facts: numbers that tell how far learning came.
    pictures: that were scored and timed.
    """

    name: str
    key: str
    seed: int
    pictures: int
    box_ap: float
    box_ap50: float
    box_ap75: float
    mask_ap: float | None = None
    mask_ap50: float | None = None
    mask_ap75: float | None = None
    seconds_per_picture: float
    stages: Mapping[str, float]
    training: Mapping[str, float]
    facts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("stages", "training", "facts"):
            values = getattr(self, name)
            numbers = {str(key): as_float(value) for key, value in values.items()}
            if any(number != number for number in numbers.values()):
                raise InputError("wrong type", field=f"Row.{name}", found=dict(values), expected="numbers by name")
            object.__setattr__(self, name, numbers)


def write_row(folder: Path, row: Row) -> Path:
    """`row.json` in the system's folder, whole or not at all."""
    return write_json(folder / ROW_FILE, to_dict(row))


def read_row(folder: Path) -> Row | None:
    """The row that `write_row` left in `folder`; None where there is none yet.

    Raises InputError for a file that is no row.
    """
    path = folder / ROW_FILE
    if not path.is_file():
        return None
    return from_json(_read(path), path)


def from_json(document: Any, path: Path) -> Row:
    """A row from what JSON made of it. Raises InputError that names `path` for anything else."""
    try:
        return from_dict(Row, document, "row")
    except InputError as error:
        expected = "a row as `maskrcnn lineage` writes it; without the file it is made anew"
        raise InputError("is no row of a lineage", file=path, found=str(error), expected=expected) from error


def rows_to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as `lineage.json` has them."""
    return [to_dict(row) for row in rows]


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down whose folder this is, before anything else is written to it."""
    require_mine(folder, settings)
    write_json(folder / SETTINGS_FILE, dict(settings))


def require_mine(folder: Path, settings: Mapping[str, Any]) -> None:
    """Errors: `InputError` that names the first setting of an earlier run in `folder` which differs from `settings`."""
    path = folder / SETTINGS_FILE
    if path.is_file():
        found = _read(path)
        if not isinstance(found, dict):
            raise InputError("are no settings of a lineage", file=path, expected="a JSON object")
        require_same(found, settings, path)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("is no JSON", file=path, found=str(error)) from error
