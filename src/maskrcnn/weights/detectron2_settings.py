"""Detectron2's settings as plain values: its `config.yaml` read without running anything, and what is asked of it.

Two kinds of files are called that. A `CfgNode` writes `MODEL: {RPN: {NMS_THRESH: 0.7}}`; a lazy config writes the calls
that build the detector, `model: {_target_: ..., proposal_generator: {nms_thresh: 0.7}}`. Both are asked by the names of
the first.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from maskrcnn.errors import InputError
from maskrcnn.weights import facts as common

T = TypeVar("T")

ZOO = "as in Detectron2's zoo"  # why a value was assumed: its networks of this layout have it

MAX_VALUES = 100_000  # in one file; a config has some hundreds

_BASE = "_BASE_"  # names the file or files that a config builds on

# where a lazy config keeps what a CfgNode calls so; numbers are places in a list, pairs are (learning, detecting)
_LAZY_PLACES = {
    "INPUT.FORMAT": "model.input_format",
    "INPUT.MIN_SIZE_TEST": "dataloader.test.mapper.augmentations.0.short_edge_length",
    "INPUT.MAX_SIZE_TEST": "dataloader.test.mapper.augmentations.0.max_size",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "MODEL.PIXEL_MEAN": "model.pixel_mean",
    "MODEL.PIXEL_STD": "model.pixel_std",
    "MODEL.BACKBONE.FREEZE_AT": "model.backbone.bottom_up.freeze_at",
    "MODEL.RESNETS.DEPTH": "model.backbone.bottom_up.stages.depth",
    "MODEL.RESNETS.STRIDE_IN_1X1": "model.backbone.bottom_up.stages.stride_in_1x1",
    "MODEL.FPN.OUT_CHANNELS": "model.backbone.out_channels",
    "MODEL.ANCHOR_GENERATOR.SIZES": "model.proposal_generator.anchor_generator.sizes",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "model.proposal_generator.anchor_generator.aspect_ratios",
    "MODEL.ANCHOR_GENERATOR.OFFSET": "model.proposal_generator.anchor_generator.offset",
    "MODEL.RPN.BBOX_REG_WEIGHTS": "model.proposal_generator.box2box_transform.weights",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "model.proposal_generator.pre_nms_topk.1",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "model.proposal_generator.post_nms_topk.1",
    "MODEL.RPN.NMS_THRESH": "model.proposal_generator.nms_thresh",
    "MODEL.ROI_HEADS.NUM_CLASSES": "model.roi_heads.num_classes",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "model.roi_heads.box_predictor.test_score_thresh",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "model.roi_heads.box_predictor.test_nms_thresh",
    "TEST.DETECTIONS_PER_IMAGE": "model.roi_heads.box_predictor.test_topk_per_image",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "model.roi_heads.box_predictor.box2box_transform.weights",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "model.roi_heads.box_pooler.output_size",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "model.roi_heads.box_pooler.sampling_ratio",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "model.roi_heads.box_pooler.pooler_type",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "model.roi_heads.mask_pooler.output_size",
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": "model.roi_heads.mask_pooler.sampling_ratio",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "model.roi_heads.mask_pooler.pooler_type",
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": "model.roi_heads.keypoint_pooler.output_size",
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": "model.roi_heads.keypoint_pooler.sampling_ratio",
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": "model.roi_heads.keypoint_pooler.pooler_type",
}


@dataclass(frozen=True)
class _Code:
    """A value that only Python could make: a YAML node with a tag of its own, left unmade."""

    tag: str

    def __str__(self) -> str:
        return self.tag


def read_config(path: str | Path) -> dict[str, Any]:
    """A config file of Detectron2 as nested plain values, with the files that it builds on (`_BASE_`) merged under it.

    Nothing is executed: what YAML would have Python make is marked, and refused when it is asked for.

    Errors: `InputError` for a file that is missing or no YAML, a base that is not beside it, and bases in a circle.
    """
    return _read(Path(path), ())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise InputError("builds on itself", file=path, field=_BASE)
    values = _parse(path)
    bases = values.pop(_BASE, [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        other = path.parent / str(base)
        if "://" in str(base) or not other.is_file():
            expected = "that file in its place, or the whole config, which Detectron2 writes beside the weights"
            raise InputError(
                "builds on a file that is not there", file=path, field=_BASE, found=base, expected=expected
            )
        _merge(_read(other, (*above, path.resolve())), merged)
    _merge(values, merged)
    return merged


def _merge(values: Mapping[str, Any], into: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(value, into[key])
        else:
            into[key] = value


def _parse(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise InputError("needs PyYAML", file=path, expected="pip install 'maskrcnn[weights]'") from error

    class Loader(yaml.SafeLoader):
        """Plain values, tuples as lists, and a mark for anything else."""

    def plain_or_mark(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
        if suffix == "tuple" and isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return _Code(node.tag)

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", plain_or_mark)
    Loader.add_multi_constructor("!", plain_or_mark)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 (a safe loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot be read", file=path, found=str(error)) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError("not YAML", file=path, found=str(error)) from error
    if not isinstance(values, dict):
        raise InputError("not a config", file=path, found=type(values).__name__, expected="sections with values")
    if _count(values, {}) > MAX_VALUES:
        raise InputError("too large for a config", file=path, expected=f"{MAX_VALUES} values at most")
    return values


def _count(value: object, known: dict[int, float]) -> float:
    """How many values there are, those that YAML names again counted wherever they appear; infinite in a circle."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(value)]


@dataclass
class Facts(common.Facts):
    """Detectron2's, asked by the names of a `CfgNode`: "MODEL.RPN.NMS_THRESH"."""

    def told(self, key: str) -> Any:
        """The settings' value, lists as tuples, or `None` where they have none."""
        if self.settings is None:
            return None
        values, path = self.settings.values, key
        if "model" in values and "MODEL" not in values:
            path = _LAZY_PLACES.get(key, "")
        value = common.find(values, path)
        if isinstance(value, str) and value.startswith("${"):  # a reference of OmegaConf's
            return None
        return _plain(value)

    def ask(self, key: str, default: T, place: str, reason: str = "Detectron2's default", *, nest: bool = False) -> T:
        """The settings' value, of the kind that `default` is, else `default`, noted as assumed for our field `place`.

        nest: a flat list is meant where `default` has one within another.
        """
        value = self.told(key)
        if value is None:
            self.assume(place, default, f"{reason} ({key})")
            return default
        if nest and isinstance(value, tuple) and not any(isinstance(item, tuple) for item in value):
            value = (value,)
        return self.fitted(key, value, default)

    def sized(self, key: str, values: tuple[T, ...], default: tuple[T, ...]) -> tuple[T, ...]:
        """`values`, if they are as many as those of `default`."""
        if len(values) == len(default):
            return values
        self.problem("wrong length", key, values, f"{len(default)} values")
        return default


def _plain(value: Any) -> Any:
    """Lists as tuples, and what a CfgNode makes of a text that reads as a Python value, such as "(800, 1000)"."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if not isinstance(value, str):
        return value
    try:
        return _plain(ast.literal_eval(value)) if value[:1] in "([0123456789-." else value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
