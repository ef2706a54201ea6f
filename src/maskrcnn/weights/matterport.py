"""Detectors of Matterport's Mask_RCNN (TensorFlow 1 and Keras), and of its ports to TensorFlow 2: R50 and R101, FPN.

A `.h5` file holds the layers by name. Its convolutions have a bias and a batch norm behind it, that of the heads too.
Norms never learn there unless asked to, so that they can be folded into what stands before them: a bias into the mean
of the backbone's norms, and the norms of the heads into convolutions and fully connected layers.

Other orders: kernels are (height, width, in, out), deltas (dy, dx, dh, dw), class scores begin with background here as
there, and boxes and masks of background are left out. The RPN's softmax over two classes is the sigmoid of their
difference.

What the layers do not tell is asked of a mapping with the names of Matterport's `Config` (IMAGE_MAX_DIM, ...); what
that leaves out is as `Config` has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights.content import Content, Converted, Settings
from maskrcnn.weights.matterport_config import EPS, Shapes, config_of

Layers = dict[str, dict[str, Tensor]]  # the tensors of each layer by kind: kernel, bias, gamma, ...
State = dict[str, Tensor]

_MARKS = ("conv1", "fpn_c5p5", "rpn_class_raw", "mrcnn_class_logits", "mrcnn_bbox_fc")
_LAYER = (
    r"(conv1|bn_conv1|(res|bn)[2-5][a-z]_branch(1|2[abc])|fpn_c[2-5]p[2-5]|fpn_p[2-5]|"
    r"rpn_(conv_shared|class_raw|bbox_pred)|mrcnn_(class|mask)_(conv|bn)\d|mrcnn_class_logits|mrcnn_bbox_fc|"
    r"mrcnn_mask_deconv|mrcnn_mask)"
)
_NO_WEIGHTS = {"anchors"}  # which a model that was being trained keeps as a variable
_XYWH = [1, 0, 3, 2]  # of (dy, dx, dh, dw)
_BACKBONES: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}  # by their blocks


def recognises(content: Content) -> bool:
    """Whether the names of the layers are those of Matterport's detector."""
    return set(_MARKS) <= {_place(name)[0] for name in content.tensors}


def convert(content: Content, settings: Settings | None) -> Converted:
    """The detector of a file. Errors: `InputError` or `InputErrors` for layers, or settings, that are no such one's."""
    layers = _layers(content.tensors)
    config, assumed = config_of(_shapes(layers), settings)
    return Converted(config, _state(layers), assumed, "Matterport")


def rename(tensors: Mapping[str, Tensor]) -> State:
    """The tensors under our names, folded and turned as ours are."""
    return _state(_layers(tensors))


# --- layers by name -------------------------------------------------------------------------------------------------


def _place(name: str) -> tuple[str, str]:
    """Layer and kind of "res2a_branch1/res2a_branch1/kernel:0", or of "rpn_model/rpn_class_raw/bias:0"."""
    path = name.split("/")
    layer = path[-2] if path[0] == "rpn_model" and len(path) > 1 else path[0]
    return layer, path[-1].partition(":")[0]


def _layers(tensors: Mapping[str, Tensor]) -> Layers:
    layers: Layers = {}
    strange = []
    for name, tensor in tensors.items():
        layer, kind = _place(name)
        if re.fullmatch(_LAYER, layer):
            layers.setdefault(layer, {})[kind] = tensor.float()
        elif layer not in _NO_WEIGHTS:
            strange.append(name)
    if strange:
        found = f"{len(strange)}: {', '.join(strange[:4])}"
        raise InputError("holds layers that Matterport's detector has not", field="tensors", found=found)
    return layers


def _tensor(layers: Layers, layer: str, kind: str, dimensions: int) -> Tensor:
    tensor = layers.get(layer, {}).get(kind)
    if tensor is None:
        raise InputError("is missing", field=f"{layer}/{kind}", expected="a tensor")
    if tensor.ndim != dimensions:
        found, expected = tuple(tensor.shape), f"{dimensions} dimensions"
        raise InputError("has a wrong shape", field=f"{layer}/{kind}", found=found, expected=expected)
    return tensor


def _shapes(layers: Layers) -> Shapes:
    blocks = tuple(len([n for n in layers if re.fullmatch(rf"res{stage}[a-z]_branch2a", n)]) for stage in (2, 3, 4, 5))
    backbone = _BACKBONES.get(blocks)
    if backbone is None:
        found, expected = f"stages of {blocks} blocks", " or ".join(_BACKBONES.values())
        raise InputError("unknown network", field="res2a ... res5c", found=found, expected=expected)
    pool_side, _, _, fc_channels = _tensor(layers, "mrcnn_class_conv1", "kernel", 4).shape
    anchors = _tensor(layers, "rpn_bbox_pred", "bias", 1).shape[0] // 4
    return Shapes(
        backbone=backbone,
        fpn_channels=_tensor(layers, "fpn_p2", "bias", 1).shape[0],
        rpn_channels=_tensor(layers, "rpn_conv_shared", "bias", 1).shape[0],
        anchors_per_cell=anchors,
        pool_side=pool_side,
        fc_channels=fc_channels,
        num_classes=_tensor(layers, "mrcnn_class_logits", "bias", 1).shape[0],
        mask_convs=len([name for name in layers if name.startswith("mrcnn_mask_conv")]),
        mask_channels=_tensor(layers, "mrcnn_mask_conv1", "bias", 1).shape[0],
    )


# --- from their layers to ours ----------------------------------------------------------------------------------------


def _state(layers: Layers) -> State:
    state: State = {}
    for layer in layers:
        if layer == "conv1" or layer.startswith("res"):
            _add_backbone(state, layers, layer)
        elif layer.startswith("fpn_c"):
            state |= _conv(layers, layer, f"fpn.lateral.p{layer[5]}.conv")
        elif layer.startswith("fpn_p"):
            state |= _conv(layers, layer, f"fpn.output.p{layer[5]}.conv")
    state |= _conv(layers, "rpn_conv_shared", "rpn.convs.0")
    state |= _objectness(layers) | _rpn_deltas(layers)
    state |= _box_head(layers) | _mask_head(layers)
    return state


def _conv(layers: Layers, layer: str, ours: str) -> State:
    return {f"{ours}.weight": _kernel(layers, layer), f"{ours}.bias": _tensor(layers, layer, "bias", 1)}


def _kernel(layers: Layers, layer: str) -> Tensor:
    """(out, in, height, width)."""
    return _tensor(layers, layer, "kernel", 4).permute(3, 2, 0, 1).contiguous()


def _add_backbone(state: State, layers: Layers, layer: str) -> None:
    """One convolution and its norm. The bias is taken from the mean that the norm takes off again."""
    norm = layer.replace("res", "bn", 1) if layer != "conv1" else "bn_conv1"
    conv, bn = _backbone_names(layer)
    state[f"{conv}.weight"] = _kernel(layers, layer)
    mean = _tensor(layers, norm, "moving_mean", 1)
    if "bias" in layers[layer]:
        mean = (mean.double() - _tensor(layers, layer, "bias", 1).double()).float()
    state[f"{bn}.running_mean"] = mean
    state[f"{bn}.running_var"] = _tensor(layers, norm, "moving_variance", 1)
    state[f"{bn}.weight"] = _tensor(layers, norm, "gamma", 1)
    state[f"{bn}.bias"] = _tensor(layers, norm, "beta", 1)


def _backbone_names(layer: str) -> tuple[str, str]:
    """Our convolution and norm for "res4b_branch2a": block 1 of stage 4, first of its convolutions."""
    if layer == "conv1":
        return "backbone.body.conv1", "backbone.body.bn1"
    block = f"backbone.body.layer{int(layer[3]) - 1}.{ord(layer[4]) - ord('a')}"
    branch = layer.rpartition("branch")[2]
    if branch == "1":
        return f"{block}.downsample.0", f"{block}.downsample.1"
    number = "abc".index(branch[1]) + 1
    return f"{block}.conv{number}", f"{block}.bn{number}"


def _objectness(layers: Layers) -> State:
    """Of each anchor, the logit of an object less that of background."""
    state = _conv(layers, "rpn_class_raw", "rpn.objectness")
    return {name: (tensor[1::2].double() - tensor[0::2].double()).float() for name, tensor in state.items()}


def _rpn_deltas(layers: Layers) -> State:
    state = _conv(layers, "rpn_bbox_pred", "rpn.deltas")
    return {name: _reordered(tensor) for name, tensor in state.items()}


def _reordered(deltas: Tensor) -> Tensor:
    """Rows of four, (dy, dx, dh, dw), as rows of (dx, dy, dw, dh)."""
    return deltas.reshape(-1, 4, *deltas.shape[1:])[:, _XYWH].flatten(0, 1)


def _box_head(layers: Layers) -> State:
    state: State = {}
    for number in (1, 2):
        weight, bias = _folded(layers, f"mrcnn_class_conv{number}", f"mrcnn_class_bn{number}")
        state |= {f"box_head.fcs.{number - 1}.weight": weight.flatten(1), f"box_head.fcs.{number - 1}.bias": bias}
    state["box_head.classes.weight"] = _tensor(layers, "mrcnn_class_logits", "kernel", 2).T.contiguous()
    state["box_head.classes.bias"] = _tensor(layers, "mrcnn_class_logits", "bias", 1)
    deltas = _tensor(layers, "mrcnn_bbox_fc", "kernel", 2).T, _tensor(layers, "mrcnn_bbox_fc", "bias", 1)
    for kind, tensor in zip(("weight", "bias"), deltas, strict=True):
        state[f"box_head.deltas.{kind}"] = _reordered(tensor[4:])
    return state


def _mask_head(layers: Layers) -> State:
    state: State = {}
    for layer in layers:
        if match := re.fullmatch(r"mrcnn_mask_conv(\d)", layer):
            weight, bias = _folded(layers, layer, f"mrcnn_mask_bn{match[1]}")
            ours = f"mask_head.convs.{int(match[1]) - 1}.conv"
            state |= {f"{ours}.weight": weight, f"{ours}.bias": bias}
    state |= _conv(layers, "mrcnn_mask_deconv", "mask_head.deconv")  # (in, out, height, width), as ours
    return state | {name: tensor[1:] for name, tensor in _conv(layers, "mrcnn_mask", "mask_head.masks").items()}


def _folded(layers: Layers, layer: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what it and the norm behind it do."""
    weight, bias = _kernel(layers, layer).double(), _tensor(layers, layer, "bias", 1).double()
    mean, variance, gamma, beta = (
        _tensor(layers, norm, kind, 1).double() for kind in ("moving_mean", "moving_variance", "gamma", "beta")
    )
    if len({len(x) for x in (bias, mean, variance, gamma, beta)}) != 1:
        raise InputError("does not fit the layer before it", field=norm, found=len(mean), expected=str(len(bias)))
    factor = gamma / torch.sqrt(variance + EPS)
    return (weight * factor[:, None, None, None]).float(), ((bias - mean) * factor + beta).float()
