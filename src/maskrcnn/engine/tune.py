"""The detector that runs: the plain one fused, in the precision asked for, with the kernels of this machine."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskrcnn.engine.calibrate import Ranges
from maskrcnn.engine.choose import bf16_is_faster, packing_works
from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.fuse import fused
from maskrcnn.engine.linear import FusedLinear
from maskrcnn.engine.packed import PackedConv, PackedLinear
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.preprocess import Preprocess

_log = logging.getLogger("maskrcnn")

Precision = Literal["float32", "bf16", "fp16", "int8"]

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def tuned(model: MaskRCNN, precision: Precision = "float32", ranges: Ranges | None = None) -> MaskRCNN:
    """A detector with the answers of `model`, fast on the device where its weights are; `model` stays as it is.

    precision: "float32", the same but for rounding; "bf16", or on a GPU "fp16": half the memory, scores differ in
    the third digit. Results are float32 always. On a CPU bf16 is measured, and float32 taken where that is as fast.
    "int8", on a CPU: `ranges` are what its numbers were seen to be (see `engine/int8.py`); where it is no faster, bf16.
    Errors: `InputError` for fp16 on a CPU, which would emulate it, and for int8 without ranges or on a GPU.
    """
    device = next(model.parameters()).device
    if precision == "int8":
        from maskrcnn.engine.int8 import int8_is_faster, quantised  # which is built on this file

        if device.type != "cpu":
            raise InputError("runs on a CPU", field="precision", found=f"int8 on {device}", expected="bf16 or fp16")
        if ranges is None:
            expected = "pictures like those to come, or a file that holds what was learned of some"
            raise InputError("int8 has to be calibrated", field="calibration", found=None, expected=expected)
        if int8_is_faster():
            return quantised(model, ranges)
        _log.warning("precision int8: no faster on this CPU, so bf16 is asked for")
        precision = "bf16"
    if device.type == "cpu":
        if precision == "fp16":
            raise InputError("a CPU only emulates it", field="precision", found="fp16", expected="float32 or bf16")
        if precision == "bf16" and not bf16_is_faster():
            _log.warning("precision bf16: no faster than float32 on this CPU, so float32 is used")
            precision = "float32"
    network = fused(model)
    dtype = _DTYPES[precision]
    if device.type == "cpu" and packing_works(dtype):
        pack_(network, dtype)
    if dtype != torch.float32:
        cast_(network, dtype)
    return network


def pack_(network: nn.Module, dtype: torch.dtype) -> None:
    """Every fused layer by oneDNN's kernels, in place."""
    for name, child in network.named_children():
        if isinstance(child, FusedConv):
            setattr(network, name, PackedConv(child, dtype))
        elif isinstance(child, FusedLinear) and child.relu:
            setattr(network, name, PackedLinear(child, dtype))
        else:
            pack_(child, dtype)


def cast_(network: MaskRCNN, dtype: torch.dtype) -> None:
    """All weights to `dtype`, and the pixels too where the body begins. Tensors that are shared are left alone.

    Preprocessing stays in float32: mean and standard deviation have more digits than bf16 holds.
    """
    for module in network.modules():
        if isinstance(module, Preprocess):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and not isinstance(module, PackedConv | PackedLinear):
                setattr(module, name, buffer.to(dtype))
    network.backbone.register_forward_pre_hook(_Cast(dtype))


class _Cast:
    """A hook that hands on the first argument in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        return (args[0].to(self.dtype), *args[1:])
