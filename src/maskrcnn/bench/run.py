"""From a name of a measurement to its rows: what `maskrcnn bench --what` offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from maskrcnn.bench.measure import Progress, say_nothing
from maskrcnn.bench.options import BenchOptions
from maskrcnn.bench.rows import Row
from maskrcnn.errors import InputError

if TYPE_CHECKING:
    from maskrcnn.bench.training_step import StepRow

What = Literal["detect", "train", "evaluate", "loader", "nano", "start"]


def bench(what: Sequence[What], options: BenchOptions, progress: Progress = say_nothing) -> list[Row]:
    """The rows of each measurement, in the order asked for. Sets torch's number of threads for the time of the call.

    Errors: `InputError` for a picture that is none, weights that do not open, a device or precision that is not there,
    a peer that is not installed.
    """
    _require_device(options.device)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        return [row for name in what for row in _rows(name, options, progress)]
    finally:
        torch.set_num_threads(before)


def _rows(what: What, options: BenchOptions, progress: Progress) -> list[Row]:
    """Each is imported where it is asked for: training needs much that detecting does not."""
    if what == "detect":
        from maskrcnn.bench.detecting import bench_detecting

        return bench_detecting(options, progress)
    if what == "train":
        return _training_rows(options, progress)
    if what == "evaluate":
        from maskrcnn.bench.evaluation import bench_evaluation

        return bench_evaluation(rounds=options.rounds, progress=progress)
    if what == "loader":
        from maskrcnn.bench.loader import bench_loader

        return bench_loader(options, progress)
    if what == "nano":
        from maskrcnn.bench.nano import bench_nano

        return bench_nano(options, progress=progress)
    from maskrcnn.bench.start import bench_start

    return bench_start(options, progress=progress)


def _training_rows(options: BenchOptions, progress: Progress) -> list[Row]:
    from maskrcnn.bench.training_step import training_step

    known: tuple[Literal["float32", "bf16"], ...] = ("float32", "bf16")
    precisions = [precision for precision in known if precision in options.precisions]
    if not precisions:
        found = " ".join(options.precisions)
        raise InputError("nothing learns in this precision", field="precision", found=found, expected="float32 or bf16")
    progress("training steps", 0.0)
    rows = training_step(steps=options.rounds, precisions=precisions)
    return [_training_row(row) for row in rows]


def _training_row(row: StepRow) -> Row:
    facts = {"seconds": row.seconds, "times_faster": row.ratio, "sum_of_losses": row.total, "mask_RoIs": row.mask_rois}
    return Row(work="training step, 512 x 512, batch 2", side=row.name, unit="step", facts=facts)


def _require_device(device: str) -> None:
    """Errors: `InputError` for one that torch does not know or the machine does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        expected = "cpu, cuda or mps, where the machine has it"
        raise InputError("no such device", field="device", found=device, expected=expected) from error
