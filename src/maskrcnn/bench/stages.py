"""Where the time goes: hooks on the stages of both sides give every moment to the innermost one that is open.

The same hooks count arithmetic, with another counter in place of the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from maskrcnn.bench.measure import wait
from maskrcnn.bench.sides import Found, Ours, Side, Theirs
from maskrcnn.model.mask_rcnn import MaskRCNN

STAGES = (
    "decode",
    "preprocess",
    "backbone",
    "FPN",
    "RPN head",
    "propose",
    "RoIAlign box",
    "box head",
    "select",
    "RoIAlign mask",
    "mask head",
    "masks to RLE",
    "the rest",
)
Modules = Mapping[str, Sequence[nn.Module | None]]  # of each stage
Methods = Sequence[tuple[str, Any, str]]  # stage, object, name of its method


class Meter:
    """Divides what a counter gains among stages: what is gained inside of two counts for the inner one.

    read: the counter, such as a clock.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self._read, self._open, self._last = read, ["the rest"], read()
        self.spent: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        self._charge()
        self._open.append(name)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    def start(self) -> None:
        """Forget what was gained until now."""
        self.spent, self._last = {}, self._read()

    def _charge(self) -> None:
        now = self._read()
        name = self._open[-1]
        self.spent[name] = self.spent.get(name, 0.0) + now - self._last
        self._last = now


def clock(device: torch.device | str) -> Callable[[], float]:
    """Seconds, once the device has done what it was given."""

    def read() -> float:
        wait(device)
        return time.perf_counter()

    return read


@contextmanager
def watched(meter: Meter, modules: Modules, methods: Methods) -> Iterator[None]:
    """Within, the meter is told when the modules and methods of each stage begin and end."""
    hooks = []
    for name, parts in modules.items():
        for part in parts:
            if part is not None:
                hooks.append(part.register_forward_pre_hook(_entering(meter, name)))
                hooks.append(part.register_forward_hook(_leaving(meter)))
    for name, owner, method in methods:
        setattr(owner, method, _metered(meter, name, getattr(owner, method)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for _, owner, method in methods:
            delattr(owner, method)  # the class's own shows again


def _entering(meter: Meter, name: str) -> Callable[[Any, Any], None]:
    return lambda module, inputs: meter.enter(name)


def _leaving(meter: Meter) -> Callable[[Any, Any, Any], None]:
    return lambda module, inputs, output: meter.leave()


def _metered(meter: Meter, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        with meter.stage(name):
            return method(*args, **options)

    return call


def our_stages(model: MaskRCNN) -> tuple[Modules, Methods]:
    """What of our detector belongs to each stage; a method to the stage that remains of it without its modules."""
    modules: dict[str, Sequence[nn.Module | None]] = {
        "preprocess": [model.preprocess],
        "backbone": [model.backbone],
        "FPN": [model.fpn],
        "RPN head": [model.rpn],
        "RoIAlign box": [model.box_pooler],
        "box head": [*model.box_heads, model.roi_stage],
        "RoIAlign mask": [model.mask_pooler],
        "mask head": list(model.mask_heads),
    }
    return modules, [("propose", model, "propose"), ("select", model, "find"), ("mask head", model, "read_masks")]


def their_stages(model: Any) -> tuple[Modules, Methods]:
    """The same of torchvision's."""
    heads = model.roi_heads
    modules: dict[str, Sequence[nn.Module | None]] = {
        "preprocess": [model.transform],
        "backbone": [model.backbone.body],
        "FPN": [model.backbone.fpn],
        "RPN head": [model.rpn.head],
        "propose": [model.rpn],
        "RoIAlign box": [heads.box_roi_pool],
        "box head": [heads.box_head, heads.box_predictor],
        "RoIAlign mask": [heads.mask_roi_pool],
        "mask head": [heads.mask_head, heads.mask_predictor],
    }
    methods = [("select", heads, "postprocess_detections"), ("masks to RLE", model.transform, "postprocess")]
    return modules, methods


def stages_of(side: Side) -> tuple[Modules, Methods] | None:
    """None where a side cannot be looked into, such as one that runs a compiled program."""
    if isinstance(side, Theirs):
        return their_stages(side.model)
    network = getattr(side.predictor, "network", side.predictor.model) if isinstance(side, Ours) else None
    return our_stages(network) if isinstance(network, MaskRCNN) else None


def metered(side: Side, data: bytes, meter: Meter) -> Found:
    """`sides.whole` with the meter open; of a side that is `watched`."""
    with meter.stage("decode"):
        decoded = side.decode(data)
    with meter.stage("the rest"):
        detected = side.detect(decoded)
    with meter.stage("masks to RLE"):
        return side.encode(detected)


def stage_seconds(side: Side, device: torch.device | str) -> Callable[[bytes], dict[str, float]]:
    """A function from a picture to the seconds of each stage. Errors: `ValueError` where there is none to see."""
    parts = stages_of(side)
    if parts is None:
        raise ValueError("this side shows no stages")
    meter = Meter(clock(device))

    def run(data: bytes) -> dict[str, float]:
        with watched(meter, *parts):
            meter.start()
            metered(side, data, meter)
        return dict(meter.spent)

    return run


def stage_flops(model: MaskRCNN, pixels: torch.Tensor) -> dict[str, float]:
    """Floating-point operations of each stage on one picture (3, H, W); a multiplication and an addition are two.

    Convolutions and matrix products are counted, as PyTorch's own counter knows them.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meter = Meter(lambda: float(counter.get_total_flops()))
        with watched(meter, *our_stages(model)):
            with meter.stage("the rest"):
                model([pixels])
    return {name: flops for name, flops in meter.spent.items() if flops}
