"""The detector's core as one recorded thing: compiled by torch, or as CUDA graphs, one for each shape.

The core is `detect` without `drop_empty`: fixed shapes, no number read back. A step launched from Python takes the host
some 5 microseconds, and a detector has hundreds of them; on a fast card that is more than the card's own work. A CUDA
graph launches all of them at once.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.ops.triton.choice import has_triton, own_kernels
from maskrcnn.structures import DetectionBatch

_log = logging.getLogger("maskrcnn")

Core = Callable[[Tensor, Tensor, MaskRCNNConfig], DetectionBatch]
"""pixels (N, 3, H, W), image_sizes (N, 2), config -> what `MaskRCNN.detect` returns."""

Run = Callable[[Tensor, Tensor], DetectionBatch]  # a core with its config

MOST_SHAPES = 8  # held at once: each keeps its inputs and outputs, and a compiled one took a minute
_WARM_UPS = 3  # before a capture: kernels are chosen and loaded, constants copied


def eager(model: MaskRCNN) -> Core:
    """The core step by step, as anywhere."""
    return lambda pixels, image_sizes, config: model.detect(pixels, image_sizes, config)


def compiled(model: MaskRCNN, *, backend: str = "inductor", most: int = MOST_SHAPES) -> Core:
    """The core through `torch.compile` as a single graph, made anew for each shape and config.

    For pictures of few sizes: the first of each takes a minute. After `most` of them, new ones run step by step.
    """
    runs: dict[Hashable, Run] = {}

    def core(pixels: Tensor, image_sizes: Tensor, config: MaskRCNNConfig) -> DetectionBatch:
        key = _key(pixels, config)
        if key not in runs:
            if len(runs) >= most:
                return model.detect(pixels, image_sizes, config)
            runs[key] = _compiled_run(model, config, backend)
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, recompile_limit=4 * most):
            return runs[key](pixels, image_sizes)

    return core


def _compiled_run(model: MaskRCNN, config: MaskRCNNConfig, backend: str) -> Run:
    def run(pixels: Tensor, image_sizes: Tensor) -> DetectionBatch:
        return model.detect(pixels, image_sizes, config)

    recorded: Run = torch.compile(run, fullgraph=True, dynamic=False, backend=backend)
    return recorded


@dataclass(frozen=True)
class Captured:
    """A core recorded for one shape. replay: computes `outputs` anew from what `inputs` hold."""

    replay: Callable[[], object]
    inputs: tuple[Tensor, Tensor]
    outputs: DetectionBatch

    def __call__(self, pixels: Tensor, image_sizes: Tensor) -> DetectionBatch:
        """Its own copy of what was found: the next replay writes over `outputs`."""
        for own, given in zip(self.inputs, (pixels, image_sizes), strict=True):
            own.copy_(given, non_blocking=True)
        self.replay()
        return each_tensor(self.outputs, torch.clone)


Capture = Callable[[Run, Tensor, Tensor], Captured]


class GraphedCore:
    """A core that is captured for each new shape and config, and replayed when they come again.

    core: what is captured. capture: how. most: kept; the one unused for longest makes room. A core that cannot be
    captured is run step by step from then on, and a warning says why. Threads take turns.
    """

    def __init__(self, core: Core, capture: Capture, most: int = MOST_SHAPES) -> None:
        self.core, self.capture, self.most = core, capture, most
        self.held: OrderedDict[Hashable, Captured] = OrderedDict()
        self.gave_up = False
        self._turn = Lock()  # all replays of a shape write to the same tensors

    def __call__(self, pixels: Tensor, image_sizes: Tensor, config: MaskRCNNConfig) -> DetectionBatch:
        if self.gave_up:
            return self.core(pixels, image_sizes, config)
        with self._turn:
            return self._replayed(pixels, image_sizes, config)

    def _replayed(self, pixels: Tensor, image_sizes: Tensor, config: MaskRCNNConfig) -> DetectionBatch:
        key = _key(pixels, config)
        if key not in self.held:
            if len(self.held) >= self.most:
                self.held.popitem(last=False)  # before the new one asks for memory
            try:
                self.held[key] = self.capture(lambda p, s: self.core(p, s, config), pixels, image_sizes)
            except torch.OutOfMemoryError:
                self.held.clear()
                raise
            except RuntimeError as error:
                self.gave_up = True
                first_line = str(error).partition("\n")[0]
                _log.warning("no CUDA graph can be made of this detector, so it runs step by step: %s", first_line)
                return self.core(pixels, image_sizes, config)
        self.held.move_to_end(key)
        return self.held[key](pixels, image_sizes)


def graphed(model: MaskRCNN, *, compile: bool = False, most: int = MOST_SHAPES) -> Core:
    """The core as CUDA graphs; step by step where there are none: off CUDA, without Triton, for other poolings.

    compile: what is captured is compiled first, a minute for each shape.
    """
    core = compiled(model, most=most) if compile else eager(model)
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if device.type != "cuda" or not has_triton() or not can_be_captured(model.config):
        return core
    pool = torch.cuda.graph_pool_handle()  # one for all: outputs are copied before another replay
    return GraphedCore(core, lambda run, pixels, sizes: capture_on_cuda(run, pixels, sizes, pool), most)


def can_be_captured(config: MaskRCNNConfig) -> bool:
    """Whether no step waits for the device: RoIAlign is the one pooling that has a kernel for it."""
    return config.roi_pooler.method == "align"


def capture_on_cuda(run: Run, pixels: Tensor, image_sizes: Tensor, pool: Any = None) -> Captured:
    """`run` as a CUDA graph with inputs of its own, like these. pool: where its memory comes from."""
    with torch.cuda.device(pixels.device), own_kernels("nms", "roi_align"), _best_convolutions():
        return _captured_here(run, pixels, image_sizes, pool)


def _captured_here(run: Run, pixels: Tensor, image_sizes: Tensor, pool: Any) -> Captured:
    inputs = (pixels.clone(), image_sizes.clone())
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            run(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # thread_local: what other threads ask of CUDA meanwhile is no part of the graph and does not spoil it
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        outputs = run(*inputs)
    return Captured(graph.replay, inputs, outputs)


@contextmanager
def _best_convolutions() -> Iterator[None]:
    """cuDNN tries its algorithms: worth it where one shape comes again and again."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def each_tensor(found: DetectionBatch, change: Callable[[Tensor], Tensor]) -> DetectionBatch:
    """`found` with every tensor changed."""
    held = {field.name: getattr(found, field.name) for field in fields(found)}
    return replace(found, **{name: change(tensor) for name, tensor in held.items() if tensor is not None})


def _key(pixels: Tensor, config: MaskRCNNConfig) -> Hashable:
    """What a recorded core is good for. Of the config, all that one call may change or that says where pictures lie."""
    return (tuple(pixels.shape), pixels.dtype, pixels.stride(), config.rpn, config.detection, config.preprocess)
