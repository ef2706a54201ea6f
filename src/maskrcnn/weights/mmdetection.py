"""Detectors of MMDetection (open-mmlab/mmdetection), versions 2 and 3: Faster, Mask and Cascade (Mask) R-CNN with FPN.

Both versions name these detectors' tensors alike and count labels 0..K-1 with background last, where ours is first.
They differ in how they write settings (`mmdetection_settings.py`), and both keep the settings and the class names of
the run inside of the `.pth` file, under "meta".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.weights.content import Content, Converted, Settings
from maskrcnn.weights.formats.python_config import parse_python_config
from maskrcnn.weights.mmdetection_config import config_of
from maskrcnn.weights.mmdetection_settings import Facts, in_one_place, names_of

State = Mapping[str, Tensor]

_RPN = ("rpn_head.rpn_conv.weight", "rpn_head.rpn_conv.0.conv.weight")
_UNKNOWN = {  # parts that this package has not, by a piece of their names
    ".conv_offset": "deformable convolutions",
    "roi_head.shared_head.": "the C4 detectors of MMDetection",
    "roi_head.semantic_head.": "the semantic branch of HTC",
    "roi_head.glbctx_head.": "SCNet",
    "roi_head.mask_iou_head.": "Mask Scoring R-CNN",
    "roi_head.point_head.": "PointRend",
    "roi_head.grid_head.": "Grid R-CNN",
    "backbone.stem.": "a deep stem",
}
_STAGE = r"(?:(?P<stage>\d)\.)?"
_BOX, _MASK = rf"roi_head\.bbox_head\.{_STAGE}", rf"roi_head\.mask_head\.{_STAGE}"
_NORM = r"(?:bn|gn)"

# Theirs, ours. {level} counts from 2 where theirs counts from 0. Norms are called after their kind there.
_PLACES = (
    (r"backbone\.(?P<rest>(conv1|layer\d\.\d+\.(conv\d|downsample\.\d))\.\w+)", "backbone.body.{rest}"),
    (rf"backbone\.(?P<block>(layer\d\.\d+\.)?){_NORM}(?P<n>\d)\.(?P<rest>\w+)", "backbone.body.{block}bn{n}.{rest}"),
    (r"neck\.lateral_convs\.(?P<n>\d)\.conv\.(?P<rest>\w+)", "fpn.lateral.p{level}.conv.{rest}"),
    (rf"neck\.lateral_convs\.(?P<n>\d)\.{_NORM}\.(?P<rest>\w+)", "fpn.lateral.p{level}.norm.{rest}"),
    (r"neck\.fpn_convs\.(?P<n>\d)\.conv\.(?P<rest>\w+)", "fpn.output.p{level}.conv.{rest}"),
    (rf"neck\.fpn_convs\.(?P<n>\d)\.{_NORM}\.(?P<rest>\w+)", "fpn.output.p{level}.norm.{rest}"),
    (r"rpn_head\.rpn_conv\.(?P<rest>weight|bias)", "rpn.convs.0.{rest}"),
    (r"rpn_head\.rpn_conv\.(?P<n>\d+)\.conv\.(?P<rest>\w+)", "rpn.convs.{n}.{rest}"),
    (r"rpn_head\.rpn_cls\.(?P<rest>\w+)", "rpn.objectness.{rest}"),
    (r"rpn_head\.rpn_reg\.(?P<rest>\w+)", "rpn.deltas.{rest}"),
    (rf"{_BOX}shared_convs\.(?P<n>\d+)\.conv\.(?P<rest>\w+)", "{box_head}.convs.{n}.conv.{rest}"),
    (rf"{_BOX}shared_convs\.(?P<n>\d+)\.{_NORM}\.(?P<rest>\w+)", "{box_head}.convs.{n}.norm.{rest}"),
    (rf"{_BOX}shared_fcs\.(?P<n>\d+)\.(?P<rest>\w+)", "{box_head}.fcs.{n}.{rest}"),
    (rf"{_BOX}fc_cls\.(?P<rest>\w+)", "{box_head}.classes.{rest}"),
    (rf"{_BOX}fc_reg\.(?P<rest>\w+)", "{box_head}.deltas.{rest}"),
    (rf"{_MASK}convs\.(?P<n>\d+)\.conv\.(?P<rest>\w+)", "{mask_head}.convs.{n}.conv.{rest}"),
    (rf"{_MASK}convs\.(?P<n>\d+)\.{_NORM}\.(?P<rest>\w+)", "{mask_head}.convs.{n}.norm.{rest}"),
    (rf"{_MASK}upsample\.(?P<rest>\w+)", "{mask_head}.deconv.{rest}"),
    (rf"{_MASK}conv_logits\.(?P<rest>\w+)", "{mask_head}.masks.{rest}"),
)


def recognises(content: Content) -> bool:
    """Whether the tensors' names are those of a two-stage detector of MMDetection."""
    names = content.tensors
    return any(name in names for name in _RPN) and any(re.match(r"(roi_head\.)?bbox_head\.", name) for name in names)


def convert(content: Content, settings: Settings | None) -> Converted:
    """The detector in our terms.

    settings: MMDetection's config as `python_config` reads it. None: the one inside the file, where there is one.

    Errors: `InputError` for tensors of parts that this package has not, and for settings that contradict the tensors.
    """
    state = rename(content.tensors)
    settings = settings or settings_inside(content)
    facts = Facts(None if settings is None else in_one_place(settings))
    if settings is None and (error := _read_inside(content)[1]):
        facts.assume("everything below", "is the zoo's", f"the config inside the file cannot be read ({error})")
    config = config_of(state, facts, _names_inside(content))
    return Converted(config, state, facts.finish(), "MMDetection")


def rename(tensors: State) -> dict[str, Tensor]:
    """MMDetection's tensors under our names, the row of background first.

    Errors: `InputError` that names the first tensors which have no place.
    """
    if any(name.startswith("bbox_head.") for name in tensors):
        expected = "one of version 2 or 3; version 2 brought a tool, upgrade_model_version.py"
        raise InputError("a checkpoint of MMDetection 1", field="tensors", found="bbox_head. ...", expected=expected)
    for piece, part in _UNKNOWN.items():
        if found := [name for name in tensors if piece in name]:
            raise InputError(f"{part}: not known here", field="tensors", found=_first(found))
    names = {name: _our_name(name) for name in tensors}
    if strange := [name for name, ours in names.items() if ours is None]:
        expected = "a Faster, Mask or Cascade R-CNN of MMDetection with a ResNet and FPN"
        raise InputError("holds tensors of another network", field="tensors", found=_first(strange), expected=expected)
    renamed = {ours: tensors[theirs] for theirs, ours in names.items() if ours is not None}
    for name, tensor in renamed.items():
        if re.fullmatch(r"(box_head|later_box_heads\.\d+)\.classes\.(weight|bias)", name):
            renamed[name] = tensor.roll(1, dims=0)
    return renamed


def settings_inside(content: Content) -> Settings | None:
    """The config that a training run wrote into its checkpoint; None where there is none or it cannot be read."""
    return _read_inside(content)[0]


def _read_inside(content: Content) -> tuple[Settings | None, InputError | None]:
    """The config inside the file, or what is wrong with it: some runs wrote texts that nobody was to read back."""
    meta, origin = _meta(content), "the config inside the file"
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), None)
    if text is None:
        return None, None
    try:
        return Settings(parse_python_config(text, origin), origin), None
    except InputError as error:
        return None, error


def _names_inside(content: Content) -> tuple[str, ...] | None:
    """Class names of the data that the run learned from."""
    meta = _meta(content)
    for holder in (meta.get("dataset_meta"), meta):
        for key in ("classes", "CLASSES"):
            if isinstance(holder, Mapping) and (names := names_of(holder.get(key))):
                return names
    return None


def _meta(content: Content) -> Mapping[str, Any]:
    meta = content.extras.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def _our_name(name: str) -> str | None:
    for pattern, ours in _PLACES:
        if match := re.fullmatch(pattern, name):
            parts = {key: value or "" for key, value in match.groupdict().items()}
            stage = int(parts.get("stage") or 0)
            later = f".{stage - 1}" if stage else ""
            heads = {
                f"{kind}_head": f"later_{kind}_heads{later}" if stage else f"{kind}_head" for kind in ("box", "mask")
            }
            return ours.format(level=int(parts.get("n") or 0) + 2, **heads, **parts)
    return None


def _first(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}"
