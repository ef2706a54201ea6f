"""MobileNetV3 (Howard et al. 2019) as torchvision names its parts, and the same network as timm does: large only.

torchvision numbers all blocks in a row, and the layers in them; timm counts blocks within stages of one shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from maskrcnn.errors import InputError

NAME = "mobilenetv3_large_100"  # timm's
LEVELS = ("c5a", "c5")  # of torchvision's pyramid, both of stride 32: the first block there, and the last layer
TAPS = {"c5a": "blocks.5.0"}

_BODY = "backbone.body."
_BLOCKS = [f"blocks.{stage}.{i}" for stage, count in enumerate((1, 2, 3, 4, 2, 3)) for i in range(count)]
_LAST = len(_BLOCKS) + 1  # a convolution, as is number 0
_CONVS = {  # of a block with so many: a map is widened, filtered and narrowed; the first block's is wide enough
    3: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    2: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
}
_GATES = {"fc1": "conv_reduce", "fc2": "conv_expand"}  # of squeeze and excitation


def timm_names(names: Iterable[str]) -> Mapping[str, str]:
    """For each tensor of the body, "backbone.body.4.block.2.fc1.weight", ours: "backbone.body.blocks.2.0.se....".

    Errors: `InputError` for another MobileNet.
    """
    parts = {name: name.removeprefix(_BODY).split(".") for name in names if name.startswith(_BODY)}
    numbers = {int(part[0]) for part in parts.values() if part[0].isdigit()}
    if numbers != set(range(_LAST + 1)):
        found, expected = f"a MobileNet of {len(numbers)} parts", f"MobileNetV3 large, of {_LAST + 1}"
        raise InputError("unknown network", field="backbone.body", found=found, expected=expected)
    convs: dict[str, list[str]] = {}  # of each block: its layers that are convolutions
    for number, *layer in parts.values():
        if len(layer) == 4 and layer[2:] == ["0", "weight"]:
            convs.setdefault(number, []).append(layer[1])
    return {name: _BODY + _ours(*part, convs=convs) for name, part in parts.items()}


def _ours(number: str, *layer: str, convs: Mapping[str, list[str]]) -> str:
    if number in ("0", str(_LAST)):
        first, *kind = layer
        conv, norm = ("conv_stem", "bn1") if number == "0" else ("blocks.6.0.conv", "blocks.6.0.bn1")
        return ".".join([norm if first == "1" else conv, *kind])
    block = _BLOCKS[int(number) - 1]
    _, position, part, *kind = layer
    if part in _GATES:
        return ".".join([block, "se", _GATES[part], *kind])
    conv, norm = _CONVS[len(convs[number])][sorted(convs[number], key=int).index(position)]
    return ".".join([block, norm if part == "1" else conv, *kind])
