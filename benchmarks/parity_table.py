"""What the parity benchmarks of foreign checkpoints share: their options, and the table of largest differences."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn.data.pictures import picture_files, read_picture

Columns = Mapping[str, Callable[[Any], str]]  # titles, and the text for what was found, a `Differences`

NUMBERS: Columns = {
    "boxes": lambda found: f"{found.boxes:.1e}",
    "scores": lambda found: f"{found.scores:.1e}",
    "masks": lambda found: f"{found.masks:.1e}" if "masks" in found.kinds else "-",
}
KEYPOINTS: Columns = {"keypoints": lambda found: f"{found.keypoints:.1e}" if "keypoints" in found.kinds else "-"}
_FIRST: Columns = {"detections": lambda found: str(found.detections)}
_LAST: Columns = {"only one side": lambda found: f"{found.missing} and {found.surplus}"}


@dataclass(frozen=True)
class Comparisons:
    """The three that a family offers, each for a variant by its name and each returning `Differences`."""

    photos: Callable[[str, list[np.ndarray]], Any]
    fixture: Callable[[str], Any]
    write: Callable[[str], object]  # its fixture anew


def options_of(
    text: str, variants: Collection[str], fixtures: Collection[str], pictures: int = 2
) -> argparse.Namespace:
    """What the command line says. fixtures: the variants that have one. pictures: how many, if it does not say."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MASKRCNN_TEST_DATA", ".")) / "coco128")
    parser.add_argument("--pictures", type=int, default=pictures)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=list(variants), default=list(variants))
    parser.add_argument("--fixtures", action="store_true", help="compare with the committed fixtures")
    parser.add_argument("--write", action="store_true", help="write the fixtures")
    options = parser.parse_args()
    if options.fixtures:
        options.variants = [name for name in options.variants if name in fixtures]
        if not options.variants:
            parser.error(f"no fixture of that; there are {', '.join(fixtures)}")
    return options


def print_table(options: argparse.Namespace, comparisons: Comparisons, columns: Columns) -> None:
    """A line for each variant, as soon as it is known."""
    torch.set_num_threads(options.threads)
    columns = {**_FIRST, **columns, **_LAST}
    widths = {title: max(len(title) + 2, 10) for title in columns}
    longest = max(map(len, options.variants), default=0)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), float32")
    print(" " * longest + "".join(f"{title:>{width}}" for title, width in widths.items()), flush=True)
    for name in options.variants:
        started = time.perf_counter()
        found = _compared(name, options, comparisons)
        cells = "".join(f"{text(found):>{widths[title]}}" for title, text in columns.items())
        print(f"{name:{longest}}{cells}   ({time.perf_counter() - started:.0f} s)", flush=True)


def _compared(name: str, options: argparse.Namespace, comparisons: Comparisons) -> Any:
    if options.write:
        comparisons.write(name)
    if options.write or options.fixtures:
        return comparisons.fixture(name)
    return comparisons.photos(name, _photos(options.data, options.pictures))


def _photos(data: Path, count: int) -> list[np.ndarray]:
    """(H, W, 3) uint8 RGB, the first `count` of the folder's pictures."""
    return [read_picture(path) for path in list(picture_files([data / "images"]))[:count]]
