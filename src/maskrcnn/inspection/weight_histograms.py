"""Weights of every layer: statistics, a histogram, and an alarm where a layer is dead or has exploded.

What is ordinary at the start of training raises no alarm: biases of zero, scales of norms that are all 1, and the last
scale of a residual branch, which starts at 0 (Goyal et al. 2017, 5.1). A scale that is still 0 when other norms have
learned has closed its branch for good, and is dead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn.inspection.figure import Number

BINS = 64
Role = Literal["weight", "scale", "offset", "mean", "variance"]
Alarm = Literal["dead", "exploded"]

LARGEST_WEIGHT = 100.0  # times sqrt(2 / fan-in), He et al. 2015; first values stay below 11, learned ones below 20
# of the other roles the largest absolute value: scales start at 0 or 1, offsets at 0; statistics are those of maps,
# which are wide where a detector takes pixels of 0 to 255 as they are
LARGEST: dict[Role, float] = {"scale": 100.0, "offset": 100.0, "mean": 1e4, "variance": 1e6}
NO_VARIANCE = 1e-12  # a channel that never changed
_AT_ONCE = 16_384  # values
DEAD_CHANNELS = 0.5  # of a norm, from which it counts as dead; a few are found in many good networks


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One tensor of a model and what it holds. Statistics are those of the finite values; NaN where there are none.

    name: "backbone.body.conv1.0.weight". role: weight (of a convolution or a linear layer), scale or offset (of a norm,
    or a bias), mean or variance (that a batch norm gathered). zeros: share of exact zeros, 0..1; of variances those
    below 1e-12. non_finite: share of NaN and infinities, 0..1. bound: the largest absolute value that is no alarm.
    histogram: (64,) int64 counts of the finite values in bins of one width. edges: (65,) float64.
    reason: of the alarm, a few words; empty without one.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    count: int
    mean: float
    std: float
    min: float
    max: float
    zeros: float
    non_finite: float
    bound: float
    histogram: np.ndarray
    edges: np.ndarray
    alarm: Alarm | None = None
    reason: str = ""

    @property
    def part(self) -> str:
        """What of the detector it belongs to: backbone, fpn, rpn, box_head, ..."""
        return self.name.partition(".")[0]

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(abs(self.min), abs(self.max))

    @property
    def warning(self) -> str:
        """The alarm and its reason: "fpn.output.p2.conv.weight is dead: all are 0"; empty without one."""
        state = {None: "", "dead": "is dead", "exploded": "has exploded"}[self.alarm]
        return f"{self.name} {state}: {self.reason}" if state else ""


def weight_statistics(model: nn.Module) -> list[LayerWeights]:
    """Every parameter of `model`, and the statistics of its batch norms, in the order of its layers.

    `exploded`: a value is not finite, beyond `LARGEST_WEIGHT` or `LARGEST`, or a variance is negative. `dead`: a weight
    is all zero or all one value; half of a norm's variances are zero; or a norm's scales are all zero although others
    have learned.
    """
    layers = [_statistics(name, role, values) for name, role, values in _tensors(model)]
    has_learned = _has_learned(layers)
    return [_judged(layer, has_learned) for layer in layers]


def weight_table(layers: list[LayerWeights]) -> tuple[tuple[Number, ...], ...]:
    """The numbers of `layers` in rows, below a head."""
    head = ("layer", "shape", "mean", "std", "min", "max", "zeros", "alarm")
    rows = [
        (
            layer.name,
            " x ".join(map(str, layer.shape)),
            *(_shown(value) for value in (layer.mean, layer.std, layer.min, layer.max)),
            f"{layer.zeros:.1%}",
            f"{layer.alarm}: {layer.reason}" if layer.alarm else "",
        )
        for layer in layers
    ]
    return (head, *rows)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Role, Tensor]]:
    """Parameters, and of norms that keep statistics the buffers too: frozen ones keep everything in buffers."""
    for place, module in model.named_modules():
        tensors = dict(module.named_parameters(recurse=False))
        if isinstance(getattr(module, "running_var", None), Tensor):
            tensors |= dict(module.named_buffers(recurse=False))
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.numel():
                yield f"{place}.{name}" if place else name, _role(name, tensor), tensor.detach()


def _role(name: str, tensor: Tensor) -> Role:
    named: dict[str, Role] = {"running_mean": "mean", "running_var": "variance"}
    if name in named:
        return named[name]
    if tensor.ndim > 1:
        return "weight"
    return "scale" if name == "weight" else "offset"


def _statistics(name: str, role: Role, tensor: Tensor) -> LayerWeights:
    values, count = _in_a_row(tensor), tensor.numel()
    low, high = float(values.min()), float(values.max())  # NaN if any is
    if not math.isfinite(low - high):
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (math.nan, math.nan)
    middle = (low + high) / 2 if len(values) else 0.5
    half = (high - low) / 2 if low < high else abs(middle) / 2 or 0.5
    zeros, total, squares, counts = 0, 0.0, 0.0, np.zeros(BINS, np.int64)
    for start in range(0, len(values), _AT_ONCE):
        part = values[start : start + _AT_ONCE].astype(np.float64) - middle  # small parts stay in the processor's cache
        zeros += int(np.count_nonzero(np.abs(part + middle) <= NO_VARIANCE if role == "variance" else part == -middle))
        total += float(part.sum())
        squares += float(np.square(part).sum())  # no BLAS: its threads cost more than so short a product
        bins = ((part + half) * (BINS / (2 * half))).astype(np.int64)
        counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    offset = total / len(values) if len(values) else math.nan
    variance = squares / len(values) - offset**2 if len(values) else math.nan
    return LayerWeights(
        name=name,
        role=role,
        shape=tuple(tensor.shape),
        count=count,
        mean=middle + offset,
        std=math.sqrt(max(variance, 0.0)) if len(values) else math.nan,
        min=low,
        max=high,
        zeros=zeros / count,
        non_finite=1 - len(values) / count,
        bound=LARGEST_WEIGHT * math.sqrt(2 * tensor.shape[0] / count) if role == "weight" else LARGEST[role],
        histogram=counts,
        edges=np.linspace(middle - half, middle + half, BINS + 1),
    )


def _in_a_row(tensor: Tensor) -> np.ndarray:
    """The values (n,) float32, in the order in which they lie in memory: no copy is made of those of a CPU."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    values: np.ndarray = tensor.reshape(-1).float().cpu().numpy()
    return values


def _has_learned(layers: list[LayerWeights]) -> bool:
    """Whether any norm's scales differ from one another: they all start equal."""
    return any(layer.role == "scale" and layer.count > 1 and layer.min != layer.max for layer in layers)


def _judged(layer: LayerWeights, has_learned: bool) -> LayerWeights:
    alarm: Alarm | None = None
    reason = ""
    if layer.non_finite:
        alarm, reason = "exploded", f"{round(layer.non_finite * layer.count)} of its values are not finite"
    elif layer.largest > layer.bound:
        alarm, reason = "exploded", f"up to {layer.largest:.3g}, where {layer.bound:.3g} is the bound"
    elif layer.role == "variance" and layer.min < 0:
        alarm, reason = "exploded", f"a variance of {layer.min:.3g}"
    elif layer.role == "weight" and layer.min == layer.max and layer.count > 1:
        alarm, reason = "dead", f"all are {layer.min:.3g}"
    elif layer.role == "scale" and layer.min == layer.max == 0 and has_learned:
        alarm, reason = "dead", "all are 0, though other norms have learned"
    elif layer.role == "variance" and layer.zeros >= DEAD_CHANNELS:
        alarm, reason = "dead", f"{layer.zeros:.0%} of the channels never change"
    return replace(layer, alarm=alarm, reason=reason)


def _shown(value: float) -> str:
    return f"{value:.3g}"
