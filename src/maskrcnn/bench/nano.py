"""The shipped `nuclei` weights on a 512 x 512 microscopy picture: pictures per second, from JPEG to RLE."""

from __future__ import annotations

from maskrcnn.bench.comparing import compared
from maskrcnn.bench.measure import Progress, say_nothing
from maskrcnn.bench.options import BenchOptions, opened, plain
from maskrcnn.bench.pictures import cropped
from maskrcnn.bench.rows import Row
from maskrcnn.bench.sides import Ours, Side

SIDE = 512  # px
PLAIN = "plain float32"
_ROUNDS_EACH = 3  # they are quick


def bench_nano(options: BenchOptions, weights: str = "nuclei", progress: Progress = say_nothing) -> list[Row]:
    """Ours in each precision against the same detector as PyTorch runs it, with nothing rewritten for this machine."""
    pictures = [picture.data for picture in cropped(options.pictures, SIDE)]
    sides: dict[str, Side] = {PLAIN: Ours(plain(opened(weights, {}, "float32", options)))}
    sides |= {f"ours {p}": Ours(opened(weights, {}, p, options)) for p in options.precisions}
    work, rounds = f"{weights}, picture of {SIDE} x {SIDE} to RLE", _ROUNDS_EACH * options.rounds
    return compared(work, sides, pictures, rounds, device=options.device, progress=progress)
