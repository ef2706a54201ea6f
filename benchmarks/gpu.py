"""Everything that wants a GPU, checked and timed in one run of under 8 minutes: ours against torchvision, one table.

    python benchmarks/gpu.py                             # on the first CUDA device
    python benchmarks/gpu.py --json gpu.json --only kernels detecting
    python benchmarks/gpu.py --train 20 --data DATA      # then learns for 20 minutes and scores itself
    python benchmarks/gpu.py --smoke                     # every line of this file on a CPU, in small: no figure counts

Both sides have the same weights: torchvision's ResNet-50-FPN with random ones whose outputs are spread as a trained
detector's. Pictures are uint8 on the host, results arrays on the host; torchvision pastes its masks meanwhile, so a
second row has it without. Times are medians of interleaved rounds. A section that fails is told and the others go on.
TF32 is as torch has it by default (on in convolutions, off in matrix products) but where a row says otherwise.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import transform as peer_transform

from maskrcnn.bench.random_weights import randomise
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.engine.fuse import fused
from maskrcnn.engine.gpu import GpuDetector
from maskrcnn.engine.graphs import compiled, graphed
from maskrcnn.engine.tune import tuned
from maskrcnn.losses.mask_rcnn_loss import MaskRCNNLoss, torchvision_loss
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.ops import rle
from maskrcnn.ops.boxes import is_large_enough
from maskrcnn.ops.masks import rasterise
from maskrcnn.ops.nms import nms_keep_batch
from maskrcnn.ops.recorded import nms_rows
from maskrcnn.ops.roi_align import level_of, roi_align_levels
from maskrcnn.structures import Target
from maskrcnn.training.distributed import World
from maskrcnn.training.loop import step_once
from maskrcnn.training.recipe import Recipe
from maskrcnn.training.start import starting_state
from maskrcnn.weights.torchvision import load_torchvision

STRIDES = (4, 8, 16, 32)
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setup:
    """What to run, and how large."""

    device: torch.device
    smoke: bool
    deadline: float  # time.monotonic() at which no section begins

    @property
    def size(self) -> tuple[int, int]:
        return (64, 96) if self.smoke else (800, 1088)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("float32", "bf16", "fp16") if self.cuda else ("float32", "bf16")


@dataclass(frozen=True)
class Line:
    """One line of the table. ratio: times faster than the peer of the section; goal: of the ratio, or in words."""

    section: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    goal: str = ""
    note: str = ""


Section = Callable[[Setup], Iterator[Line]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a CPU, tiny shapes, two rounds")
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), help="these sections; default all")
    parser.add_argument("--minutes", type=float, default=7.5, help="no section begins after so many")
    parser.add_argument("--json", type=Path, help="write the lines there as well")
    parser.add_argument("--train", type=float, metavar="MINUTES", help="afterwards, train r50-fpn for so long")
    parser.add_argument("--data", default="shapes", help="on this data")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="the run's folder")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here; --smoke runs every line in small on a CPU")
    device = torch.device("cpu" if options.smoke else options.device)
    setup = Setup(device, options.smoke, time.monotonic() + 60 * options.minutes)
    lines = list(run(setup, options.only or list(SECTIONS)))
    if options.train:
        lines += list(attempt("training run", lambda s: train(s, options.train, options.data, options.out), setup))
    if options.json:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n", encoding="utf-8")
    failed = [line.section for line in lines if line.unit == "failed"]
    print(f"{len(lines)} lines, {len(failed)} sections failed" + (f": {', '.join(failed)}" if failed else ""))
    raise SystemExit(1 if failed else 0)


def run(setup: Setup, names: Sequence[str]) -> Iterator[Line]:
    """The sections in turn, printed as they come."""
    print(f"{'section':<11} {'what':<58} {'value':>10} {'unit':<10} {'ratio':>6}  goal")
    for name in names:
        if time.monotonic() > setup.deadline:
            line = Line(name, "left out: no time left", 0.0, "skipped")
            show(line)
            yield line
        else:
            yield from attempt(name, SECTIONS[name], setup)


def attempt(name: str, section: Section, setup: Setup) -> Iterator[Line]:
    """The section's lines; if it fails, what came before, and a line that says why."""
    began = time.monotonic()
    try:
        for line in section(setup):
            show(line)
            yield line
    except Exception as error:  # one failure must not cost the rest of a machine that is lent by the minute
        traceback.print_exc()
        line = Line(name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", 0.0, "failed")
        show(line)
        yield line
    if setup.cuda:
        torch.cuda.empty_cache()
    line = Line(name, "(this section)", time.monotonic() - began, "s")
    show(line)
    yield line


def show(line: Line) -> None:
    ratio = "" if line.ratio is None else f"{line.ratio:.2f}x"
    note = f"   {line.note}" if line.note else ""
    print(
        f"{line.section:<11} {line.name:<58} {line.value:>10.4g} {line.unit:<10} {ratio:>6}  {line.goal}{note}",
        flush=True,
    )


# --- clocks --------------------------------------------------------------------------------------------------------


def medians(
    setup: Setup, sides: dict[str, Callable[[], Any]], seconds: float = 6.0, rounds: int = 30
) -> dict[str, float]:
    """Seconds of one call of each side: the median of rounds in turns, after two that are not counted."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    rounds, seconds = (2, 0.0) if setup.smoke else (rounds, seconds)
    for number in range(-1 if setup.smoke else -2, rounds):
        if number == 0:
            end = time.monotonic() + seconds
        for name, work in sides.items():
            wait(setup)
            began = time.perf_counter()
            work()
            wait(setup)
            if number >= 0:
                spent[name].append(time.perf_counter() - began)
        if number >= 2 and time.monotonic() > end:
            break
    return {name: statistics.median(times) for name, times in spent.items()}


def wait(setup: Setup) -> None:
    if setup.cuda:
        torch.cuda.synchronize(setup.device)


def many(setup: Setup, work: Callable[[], Any], count: int = 20) -> Callable[[], None]:
    """`work` so often in a row that the host's part is hidden."""

    def repeat() -> None:
        for _ in range(1 if setup.smoke else count):
            work()

    return repeat


def per_call(setup: Setup, sides: dict[str, Callable[[], Any]], count: int = 20) -> dict[str, float]:
    """Seconds of one call of each side, `count` calls at a time."""
    found = medians(setup, {name: many(setup, work, count) for name, work in sides.items()}, 2.0, 10)
    return {name: value / (1 if setup.smoke else count) for name, value in found.items()}


def as_graph(setup: Setup, work: Callable[[], Any]) -> Callable[[], Any]:
    """`work` as one CUDA graph."""
    if not setup.cuda:
        return work
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def peak_gb(setup: Setup, work: Callable[[], Any]) -> float:
    """GB (2**30 bytes) at the peak above what was in use before."""
    if not setup.cuda:
        work()
        return 0.0
    wait(setup)
    torch.cuda.reset_peak_memory_stats(setup.device)
    before = torch.cuda.memory_allocated(setup.device)
    work()
    wait(setup)
    return (torch.cuda.max_memory_allocated(setup.device) - before) / 2**30


# --- the machine ---------------------------------------------------------------------------------------------------


def machine(setup: Setup) -> Iterator[Line]:
    """Versions, and what the card reaches."""
    name = torch.cuda.get_device_name(setup.device) if setup.cuda else platform.processor() or platform.machine()
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    print(f"{name}; {versions}, cuDNN {torch.backends.cudnn.version()}")
    for precision in setup.precisions:
        yield Line("machine", f"matrix product, {precision}", product_rate(setup, DTYPES[precision]) / 1e12, "TFLOP/s")
        yield Line("machine", f"3x3 convolution, {precision}", conv_rate(setup, DTYPES[precision]) / 1e12, "TFLOP/s")
    with tf32(True):
        yield Line("machine", "matrix product, TF32", product_rate(setup, torch.float32) / 1e12, "TFLOP/s")
    with tf32(False):
        yield Line(
            "machine", "3x3 convolution, float32 without TF32", conv_rate(setup, torch.float32) / 1e12, "TFLOP/s"
        )


def product_rate(setup: Setup, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    side = 128 if setup.smoke else 8192
    a, b = (torch.randn(side, side, device=setup.device, dtype=dtype) for _ in range(2))
    return 2.0 * side**3 / per_call(setup, {"": lambda: a @ b}, 10)[""]


def conv_rate(setup: Setup, dtype: torch.dtype) -> float:
    """FLOP/s of the convolution that a detector has most of: 3x3 on 256 channels."""
    batch, side = (1, 16) if setup.smoke else (8, 200)
    conv = nn.Conv2d(256, 256, 3, padding=1, device=setup.device, dtype=dtype).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 256, side, side, device=setup.device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    with torch.no_grad():
        seconds = per_call(setup, {"": lambda: conv(x)}, 5)[""]
    return 2.0 * batch * side * side * 256 * 256 * 9 / seconds


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


# --- our kernels against torchvision's -----------------------------------------------------------------------------


def kernels(setup: Setup) -> Iterator[Line]:
    """First whether they are right on this card, then how fast."""
    torch.manual_seed(0)
    yield from nms_lines(
        setup, "NMS of 5 levels", rows=2 if setup.smoke else 5, boxes=60 if setup.smoke else 1000, classes=1, iou=0.7
    )
    yield from nms_lines(setup, "NMS of 80 classes", rows=1, boxes=40 if setup.smoke else 1000, classes=80, iou=0.5)
    for boxes, side in ((8, 3), (4, 4)) if setup.smoke else ((1000, 7), (100, 14)):
        for dtype in (torch.float32, torch.bfloat16):
            for ratio in (2, 0):
                yield from roi_align_lines(setup, boxes, side, dtype, ratio, backward=False)
    for dtype in (torch.float32, torch.bfloat16):
        yield from roi_align_lines(setup, 8 if setup.smoke else 512, 7, dtype, 2, backward=True)


def nms_lines(setup: Setup, name: str, *, rows: int, boxes: int, classes: int, iou: float) -> Iterator[Line]:
    """Ours on all rows in one launch, against torchvision's row by row. Boxes crowd, as a detector's do."""
    centre = torch.rand(rows, boxes * classes, 2, device=setup.device) * 300
    half = 20 + torch.rand(rows, boxes * classes, 2, device=setup.device) * 60
    places = torch.cat([centre - half, centre + half], dim=2)
    scores = torch.rand(rows, boxes * classes, device=setup.device)
    valid = (scores > 1 - 1 / classes) & is_large_enough(places, 1.0)  # as many in all as there are RoIs
    if setup.cuda:
        from maskrcnn.ops.triton.choice import own_kernels

        def ours() -> Tensor:
            with own_kernels("nms"):
                return nms_keep_batch(places, scores, valid, iou, classes=classes)
    else:

        def ours() -> Tensor:
            apart = (x.unflatten(1, (-1, classes)).transpose(1, 2).flatten(0, 1) for x in (places, scores, valid))
            own_places, own_scores, own_valid = apart
            kept = nms_rows(own_places, own_scores.masked_fill(~own_valid, -torch.inf), iou)
            return kept.unflatten(0, (-1, classes)).transpose(1, 2).flatten(1)

    def theirs() -> Tensor:
        return nms_keep_batch(places, scores, valid, iou, classes=classes)

    on_host = nms_keep_batch(places.cpu(), scores.cpu(), valid.cpu(), iou, classes=classes)
    differing = int((ours().cpu() != on_host).sum())
    their_differing = int((theirs().cpu() != on_host).sum())
    note = f"differs from the CPU in {differing} boxes; torchvision's in {their_differing}"
    if differing:
        raise AssertionError(f"{name}: {note}")
    graph = as_graph(setup, ours)
    seconds = per_call(setup, {"torchvision": theirs, "ours": ours, "graph": graph})
    base = seconds["torchvision"]
    yield Line("kernels", f"{name}, torchvision, row by row", 1e6 * base, "us")
    yield Line("kernels", f"{name}, ours", 1e6 * seconds["ours"], "us", base / seconds["ours"], note=note)
    yield Line("kernels", f"{name}, ours in a CUDA graph", 1e6 * seconds["graph"], "us", base / seconds["graph"])


def roi_align_lines(
    setup: Setup, boxes: int, side: int, dtype: torch.dtype, ratio: int, *, backward: bool
) -> Iterator[Line]:
    """Ours from all levels in one launch, against torchvision's level by level, each with the layout that it likes."""
    height, width = setup.size
    plain = [
        torch.randn(1, 8 if setup.smoke else 256, height // s, width // s, device=setup.device).to(dtype)
        for s in STRIDES
    ]
    last = [m.contiguous(memory_format=torch.channels_last) for m in plain]
    corner = torch.rand(boxes, 2, device=setup.device) * torch.tensor([width, height], device=setup.device) * 0.7
    extent = torch.exp(torch.rand(boxes, 2, device=setup.device) * 3.3 + 2.8)
    places = torch.cat([corner, corner + extent], dim=1)
    image, level = torch.zeros(boxes, dtype=torch.int64, device=setup.device), level_of(places) - 2
    upstream = torch.randn(boxes, plain[0].shape[1], side, side, device=setup.device).to(dtype)

    def pool(kernel: Any) -> list[Tensor]:
        maps = [m.detach().requires_grad_(backward) for m in (plain if kernel == "torchvision" else last)]
        with torch.set_grad_enabled(backward):
            out = roi_align_levels(
                maps, places, image, level, side, strides=STRIDES, sampling_ratio=ratio, kernel=kernel
            )
        if not backward:
            return [out]
        out.backward(upstream)
        return [m.grad for m in maps if m.grad is not None]

    own = "triton" if setup.cuda else "bag"
    pairs = zip(pool(own), pool("torchvision"), strict=True)
    largest = max(float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-6)) for a, b in pairs)
    if largest > (1e-4 if dtype == torch.float32 else 3e-2):
        raise AssertionError(
            f"RoIAlign {boxes} x {side}, {dtype}: largest difference {largest:.1e} of the largest value"
        )
    sides = {"torchvision": lambda: pool("torchvision"), "ours": lambda: pool(own)}
    if not backward:
        sides["graph"] = as_graph(setup, lambda: pool(own))
    seconds = per_call(setup, sides)
    points = "adaptive" if ratio == 0 else f"{ratio}x{ratio}"
    name = f"RoIAlign{' forward+backward' if backward else ''} {boxes}x{side}x{side} {points} {str(dtype)[6:]}"
    base = seconds["torchvision"]
    yield Line("kernels", f"{name}, torchvision", 1e6 * base, "us")
    yield Line(
        "kernels",
        f"{name}, ours",
        1e6 * seconds["ours"],
        "us",
        base / seconds["ours"],
        note=f"differs by {largest:.0e}",
    )
    if "graph" in seconds:
        yield Line("kernels", f"{name}, ours in a graph", 1e6 * seconds["graph"], "us", base / seconds["graph"])


# --- detecting -----------------------------------------------------------------------------------------------------


def both_detectors(setup: Setup) -> tuple[Any, MaskRCNN, Tensor]:
    """torchvision's and ours with the same weights on the device, and a picture (3, H, W) uint8 on the host."""
    torch.manual_seed(0)
    height, width = setup.size
    limits = (
        {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 30, "box_detections_per_img": 10}
        if setup.smoke
        else {}
    )
    peer = detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=min(height, width), max_size=max(height, width), **limits
    )
    smooth = torch.rand(1, 3, height // 8, width // 8)
    picture = nn.functional.interpolate(smooth, (height, width), mode="bilinear")[0]
    randomise(peer, picture)
    model = load_torchvision(peer.state_dict()).eval()
    model.preprocess.config = replace(model.preprocess.config, shortest=min(height, width), longest=max(height, width))
    config = replace(model.config, preprocess=model.preprocess.config)
    if setup.smoke:
        rpn = replace(config.own_rpn, pre_nms_top_n=50, post_nms_top_n=30)
        config = replace(config, rpn=rpn, detection=replace(config.detection, max_detections=10))
    model.config = config
    return peer.eval().to(setup.device), model.to(setup.device), (picture * 255).to(torch.uint8)


def peer_detector(
    setup: Setup, peer: Any, *, paste: bool, autocast: torch.dtype | None = None
) -> Callable[[list[Tensor]], Any]:
    """uint8 on the host to arrays on the host."""

    def detect(images: list[Tensor]) -> Any:
        before = peer_transform.paste_masks_in_image
        if not paste:
            peer_transform.paste_masks_in_image = lambda masks, boxes, size: masks
        try:
            with torch.no_grad(), torch.autocast(setup.device.type, autocast, enabled=autocast is not None):
                found = peer([image.to(setup.device).float() / 255 for image in images])
            return [{name: value.cpu() for name, value in each.items()} for each in found]
        finally:
            peer_transform.paste_masks_in_image = before

    return detect


def detecting(setup: Setup) -> Iterator[Line]:
    """Latency of one picture and throughput of eight, from bytes on the host to arrays on the host."""
    peer, model, picture = both_detectors(setup)
    sides: dict[str, Callable[[list[Tensor]], Any]] = {
        "torchvision float32": peer_detector(setup, peer, paste=True),
        "torchvision float32, masks not pasted": peer_detector(setup, peer, paste=False),
        "torchvision bf16 autocast": peer_detector(setup, peer, paste=True, autocast=torch.bfloat16),
    }
    for precision in setup.precisions:
        network = tuned(model, precision)  # type: ignore[arg-type]
        sides[f"ours {precision}, step by step"] = stepwise(network)
        sides[f"ours {precision}, CUDA graph"] = GpuDetector(network, graphed(network))
    yield from agreement(setup, sides, picture)
    for batch, goal in ((1, "4x"), (2 if setup.smoke else 8, "6x")):
        images = [picture] * batch
        seconds = medians(setup, {name: bound(detect, images) for name, detect in sides.items()}, 20.0)
        base = seconds["torchvision float32"]
        for name, value in seconds.items():
            ratio = None if name == "torchvision float32" else base / value
            wanted = goal if name.startswith("ours") else ""
            yield Line("detecting", f"batch {batch}: {name}", 1e3 * value / batch, "ms/picture", ratio, wanted)
        for name in ("torchvision float32", "ours float32, step by step", "ours bf16, CUDA graph"):
            yield Line(
                "detecting",
                f"batch {batch}, memory at the peak: {name}",
                peak_gb(setup, bound(sides[name], images)),
                "GB",
            )


def stepwise(network: MaskRCNN) -> Callable[[list[Tensor]], Any]:
    """As `Predictor` runs it off CUDA graphs: padding rows dropped, the host waiting."""

    def core(pixels: Tensor, image_sizes: Tensor, config: Any) -> Any:
        return network.detect(pixels, image_sizes, config, drop_empty=True)

    return GpuDetector(network, core)


def bound(detect: Callable[[list[Tensor]], Any], images: list[Tensor]) -> Callable[[], Any]:
    return lambda: detect(images)


def agreement(setup: Setup, sides: dict[str, Callable[[list[Tensor]], Any]], picture: Tensor) -> Iterator[Line]:
    """How far each of ours is from torchvision's float32 without TF32: the share of its boxes found, and the scores."""
    with tf32(False):
        wanted = sides["torchvision float32"]([picture])[0]
        for name, detect in sides.items():
            if not name.startswith("ours"):
                continue
            found = detect([picture])[0]
            overlaps = torchvision.ops.box_iou(wanted["boxes"], found.boxes) * (
                wanted["labels"][:, None] == found.labels
            )
            near, best = overlaps.max(dim=1) if len(found) else (torch.zeros(len(wanted["boxes"])), None)
            share = float((near > 0.95).float().mean()) if len(near) else 1.0
            off = 0.0
            if best is not None and (near > 0.95).any():
                off = float((wanted["scores"] - found.scores[best])[near > 0.95].abs().max())
            if name == "ours float32, step by step" and share < 0.97:
                raise AssertionError(f"only {share:.0%} of torchvision's boxes were found in float32")
            yield Line(
                "detecting", f"boxes of torchvision found: {name}", 100 * share, "%", note=f"scores within {off:.1e}"
            )


def compiling(setup: Setup) -> Iterator[Line]:
    """torch.compile of the whole core as one graph, captured as a CUDA graph, against the captured plain one."""
    _, model, picture = both_detectors(setup)
    network = tuned(model, "bf16") if setup.cuda else fused(model)  # oneDNN's operations cannot be recorded
    backend = "aot_eager" if setup.smoke else "inductor"
    core = graphed(network, compile=True) if setup.cuda else compiled(network, backend=backend)
    sides: dict[str, Callable[[list[Tensor]], Any]] = {
        "CUDA graph": GpuDetector(network, graphed(network)),
        "compiled, then a CUDA graph": GpuDetector(network, core),
    }
    for batch in (1,) if setup.smoke else (1, 8):
        images = [picture] * batch
        began = time.monotonic()
        sides["compiled, then a CUDA graph"](images)
        yield Line("compiling", f"batch {batch}: first call", time.monotonic() - began, "s")
        seconds = medians(setup, {name: bound(detect, images) for name, detect in sides.items()}, 8.0)
        for name, value in seconds.items():
            yield Line(
                "compiling", f"batch {batch}: {name}", 1e3 * value / batch, "ms/picture", seconds["CUDA graph"] / value
            )


def dense(setup: Setup) -> Iterator[Line]:
    """The layers alone against what the card reaches in a large matrix product of bf16."""
    from torch.utils.flop_counter import FlopCounterMode

    _, model, _ = both_detectors(setup)
    dtype = torch.bfloat16
    network, (height, width) = tuned(model, "bf16"), setup.size
    network = network if setup.cuda else model
    rate = product_rate(setup, dtype)
    for batch in (1,) if setup.smoke else (1, 8):
        pixels = torch.randn(batch, 3, height, width, device=setup.device).contiguous(memory_format=torch.channels_last)
        sizes = torch.tensor([[float(height), float(width)]], device=setup.device).expand(batch, -1)

        def layers(network: MaskRCNN = network, pixels: Tensor = pixels) -> Any:
            return network.own_rpn(network.features(pixels), setup.size)

        with torch.no_grad():
            for name, work in {
                "body, pyramid, RPN head": layers,
                "the whole core": lambda network=network, p=pixels, s=sizes: network.detect(p, s, network.config),
            }.items():
                with FlopCounterMode(display=False) as counter:
                    work()
                flops = counter.get_total_flops()
                with recorded_kernels():
                    seconds = per_call(setup, {"": as_graph(setup, work)}, 5)[""]
                share = flops / seconds / rate
                text = f"{flops / 1e9:.0f} GFLOP at {flops / seconds / 1e12:.0f} TFLOP/s"
                yield Line(
                    "dense", f"batch {batch}: {name}, of the product's rate", 100 * share, "%", goal="50%", note=text
                )


@contextmanager
def recorded_kernels() -> Iterator[None]:
    """Ours, as in a CUDA graph."""
    from maskrcnn.ops.triton.choice import own_kernels

    with own_kernels("nms", "roi_align"):
        yield


# --- training ------------------------------------------------------------------------------------------------------


def training(setup: Setup) -> Iterator[Line]:
    """Whole steps: forward, backward, SGD; 256 anchors and 512 RoIs of each picture, the same drawn shapes."""
    batch = 1 if setup.smoke else 4
    samples = [ShapesDataset(batch, setup.size, seed=5)[i] for i in range(batch)]
    peer, _, _ = both_detectors(setup)
    state = {name: tensor.clone() for name, tensor in peer.state_dict().items()}
    sides: dict[str, Callable[[], float]] = {"torchvision float32": peer_step(setup, peer, samples, None)}
    if not setup.smoke:
        other = both_detectors(setup)[0]
        sides["torchvision bf16 autocast"] = peer_step(setup, other, samples, torch.bfloat16)
    for precision in ("bf16",) if setup.smoke else ("float32", "bf16"):
        sides[f"ours {precision}"] = our_step(setup, state, samples, precision)
    first = {name: step() for name, step in sides.items()}
    seconds = medians(setup, sides, 30.0, 12) if setup.cuda else dict.fromkeys(sides, 1.0)
    base = seconds["torchvision float32"]
    for name, value in seconds.items():
        ratio = None if name == "torchvision float32" else base / value
        goal = "3x" if name.startswith("ours") else ""
        note = f"first loss {first[name]:.4f}"
        yield Line("training", f"{name}, step of {batch}", 1e3 * value / batch, "ms/picture", ratio, goal, note)
    for name, step in sides.items() if setup.cuda else ():
        yield Line("training", f"{name}, memory at the peak", peak_gb(setup, step), "GB")


def peer_step(
    setup: Setup, peer: Any, samples: Sequence[tuple[Any, Target]], dtype: torch.dtype | None
) -> Callable[[], float]:
    optimizer = torch.optim.SGD(peer.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    images = [torch.from_numpy(picture).permute(2, 0, 1) for picture, _ in samples]
    targets = [peer_target(target, setup.device) for _, target in samples]
    peer.train()

    def step() -> float:
        with torch.autocast(setup.device.type, dtype, enabled=dtype is not None):
            losses = peer([image.to(setup.device, non_blocking=True).float() / 255 for image in images], targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return float(total.detach())

    return step


def peer_target(target: Target, device: torch.device) -> dict[str, Tensor]:
    assert target.gt_masks is not None
    bitmaps = torch.stack([torch.from_numpy(rle.decode(mask)) for mask in rasterise(target.gt_masks, target.size)])
    fields = {"boxes": target.gt_boxes, "labels": target.gt_labels, "masks": bitmaps.to(torch.uint8)}
    return {name: tensor.to(device) for name, tensor in fields.items()}


def our_step(
    setup: Setup, state: dict[str, Tensor], samples: Sequence[tuple[Any, Target]], precision: Any
) -> Callable[[], float]:
    count = len(samples)
    recipe = Recipe(
        batch_size=count,
        reference_batch=count,
        learning_rate=1e-4,
        precision=precision,
        loss=torchvision_loss(),
        freeze=0,
    )
    model, world = load_torchvision({name: tensor.cpu() for name, tensor in state.items()}), World(device=setup.device)
    learner = starting_state(model.to(setup.device), recipe, world, [])
    loss_model = MaskRCNNLoss(learner.model, recipe.loss)
    batch = [(torch.from_numpy(picture).permute(2, 0, 1), target) for picture, target in samples]

    def step() -> float:
        values = step_once(loss_model, learner, batch, recipe, world)
        learner.progress.step += 1
        return float(values["total"])

    return step


def train(setup: Setup, minutes: float, data: str, out: Path) -> Iterator[Line]:
    """r50-fpn from nothing on `data`, then its scores."""
    from maskrcnn.training.train import train as learn

    recipe = Recipe(minutes=minutes, batch_size=8, optimizer="adamw", learning_rate=2e-4, reference_batch=8)
    began = time.monotonic()
    done = learn(data, out=out, preset="r50-fpn", recipe=recipe, device=str(setup.device))
    yield Line("train", f"r50-fpn on {data}", time.monotonic() - began, "s", note=f"weights in {done.best}")
    if done.scores is not None:
        print(done.scores)


SECTIONS: dict[str, Section] = {
    "machine": machine,
    "kernels": kernels,
    "detecting": detecting,
    "dense": dense,
    "training": training,
    "compiling": compiling,
}


if __name__ == "__main__":
    main()
