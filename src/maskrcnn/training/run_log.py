"""What a run writes as it goes: JSON lines, TensorBoard events, and a progress bar for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from maskrcnn.inspection.weight_histograms import LayerWeights
from maskrcnn.ops.files import whole_file

LOG_FILE = "log.jsonl"


class RunLog:
    """`log.jsonl` (one JSON object a line) and `tensorboard/` of a run's folder.

    Lines have "event": "start", "train", "validation", "note" or "end", and "step". On resuming at `step`, later lines,
    written by a process that died before it saved its state, are removed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = folder / LOG_FILE
        kept = [line for line in read_log(folder) if line["step"] <= step] if step else []
        with whole_file(self.path) as unfinished:
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._stream = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """One line, readable at once by whoever follows the file; numbers also go to TensorBoard."""
        line = {"event": event, "step": step} | {name: _rounded(value) for name, value in values.items()}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        for name, value in values.items():
            if isinstance(value, int | float) and event in ("train", "validation"):
                self._board.add_scalar(f"{event}/{name}", value, step)

    def picture(self, name: str, step: int, picture: np.ndarray) -> None:
        """A picture (H, W, 3) uint8 for TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def weights(self, step: int, layers: Sequence[LayerWeights]) -> None:
        """A histogram of each layer for TensorBoard, a group for each part of the detector: "weights.fpn/..."."""
        for layer in layers:
            finite = int(layer.histogram.sum())
            if finite:
                place = layer.name.partition(".")[2]
                self._board.add_histogram_raw(
                    f"weights.{layer.part}/{place}",
                    layer.min,
                    layer.max,
                    finite,
                    finite * layer.mean,
                    finite * (layer.std**2 + layer.mean**2),
                    layer.edges[1:].tolist(),
                    layer.histogram.tolist(),
                    step,
                )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that was cut off in mid-write is left out."""
    path = folder / LOG_FILE
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class Bar:
    """The progress bar of a run, on stderr: part done, losses, time spent and left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=1.0, losses="")

    def show(self, part_done: float, text: str) -> None:
        self._progress.update(self._task, completed=min(part_done, 1.0), losses=text)

    def say(self, text: str) -> None:
        """A line above the bar, or on stderr where there is no bar."""
        self._progress.console.print(text, highlight=False, markup=False)


@contextmanager
def progress_bar(*, visible: bool) -> Iterator[Bar]:
    """A bar while the block runs; nothing is drawn where stderr is no terminal, notes are still printed."""
    console = Console(stderr=True, quiet=not visible, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn())
    rest = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(), TextColumn("{task.fields[losses]}"))
    with Progress(*columns, *rest, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress)


def _rounded(value: Any) -> Any:
    """Six digits are enough to compare by; JSON knows no NaN."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
