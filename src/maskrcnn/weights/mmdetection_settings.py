"""What MMDetection's settings say, asked by the names of version 3, and a list of what they leave open.

A config of version 3 or 2 has the detector under `model`. How pictures are prepared is told by a pipeline of transforms
and, in version 3, by the model's `data_preprocessor`. The first files of version 2 have `test_cfg` beside the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from maskrcnn.errors import InputError, InputErrors
from maskrcnn.weights.content import Settings

T = TypeVar("T")
Dict = Mapping[str, Any]

UNTOLD = object()
_IS_CONFIG = ("model", "test_pipeline", "test_dataloader", "data")
_PIPELINES = ("test_dataloader.dataset.pipeline", "data.test.pipeline", "test_pipeline")
_DATASETS = ("test_dataloader.dataset", "data.test", "train_dataloader.dataset", "data.train")
_WITHOUT_EFFECT = {  # on a picture that is only looked at
    *("LoadImageFromFile", "LoadImageFromNDArray", "LoadImageFromWebcam", "LoadAnnotations", "RandomFlip"),
    *("ImageToTensor", "DefaultFormatBundle", "Collect", "PackDetInputs"),
}


def in_one_place(settings: Settings) -> Settings:
    """`settings` with the detector's `test_cfg` inside of `model`, where the first configs of version 2 have it beside.

    Errors: `InputError` for what is no config of MMDetection.
    """
    values = settings.values
    if not any(name in values for name in _IS_CONFIG):
        found, expected = ", ".join(map(str, list(values)[:4])), "a config of MMDetection, with model"
        raise InputError("does not fit MMDetection's weights", field=settings.origin, found=found, expected=expected)
    beside, model = values.get("test_cfg"), values.get("model")
    if not isinstance(model, Mapping) or not isinstance(beside, Mapping) or "rcnn" not in beside:
        return settings
    return Settings({**values, "model": {"test_cfg": beside, **model}}, settings.origin)


@dataclass
class Facts:
    """The settings, compared with what the weights say, and a list of what neither says.

    Problems are kept and raised together by `finish`, so that all can be mended in one go.
    """

    settings: Settings | None = None
    assumed: list[str] = field(default_factory=list)
    problems: list[InputError] = field(default_factory=list)

    def told(self, *keys: str) -> Any:
        """The settings' value of the first of `keys` ("model.backbone.depth") that they have, or `None`."""
        values = self.settings.values if self.settings is not None else {}
        found = (find(values, key) for key in keys)
        return next((value for value in found if value is not UNTOLD), None)

    def ask(self, place: str, default: T, *keys: str) -> T:
        """The value of the first of `keys`, of the kind that `default` is, for our field `place`.

        Where settings have the section but not the key they mean MMDetection's own default. Without the section the
        default is noted as assumed.
        """
        value = self.told(*keys)
        if value is None:
            if self.told(*(key.rpartition(".")[0] for key in keys)) is None:
                self.assume(place, default)
            return default
        fitted = like(default, value)
        if fitted is UNTOLD:
            self.problem("wrong type", keys[0], value, f"something like {as_text(default)}")
            return default
        return fitted  # type: ignore[no-any-return]

    def assume(self, place: str, value: object, reason: str = "MMDetection's default") -> None:
        """Note that nothing told our field `place`, so that it is `value`."""
        self.assumed.append(f"{place} {as_text(value)}: {reason}")

    def agree(self, key: str, in_weights: Any) -> None:
        """Note a problem where the settings say something else than the weights."""
        value = self.told(key)
        if value is not None and like(in_weights, value) != in_weights:
            self.problem("contradicts the weights", key, value, f"{as_text(in_weights)}, as the weights have it")

    def only(self, key: str, *known: Any) -> None:
        """Note a problem where the settings want what is not built here. Of a class path the last name counts."""
        value = self.told(key)
        if isinstance(value, str):
            value = value.rpartition(".")[2]
        value = tuple(value) if isinstance(value, list) else value
        if value is not None and value not in known:
            self.problem("is not known here", key, value, " or ".join(map(as_text, known)))

    def problem(self, problem: str, key: str, found: object, expected: str) -> None:
        """Note a problem of another kind."""
        origin = self.settings.origin if self.settings is not None else None
        self.problems.append(InputError(problem, file=origin, field=key, found=as_text(found), expected=expected))

    def finish(self) -> tuple[str, ...]:
        """What was assumed. Errors: `InputError`, or `InputErrors` with every problem."""
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            raise InputErrors("settings and weights do not fit", self.problems)
        return tuple(self.assumed)

    def section(self, key: str, stage: int) -> str:
        """The key of a head's settings: cascades have a list of them, or one for all stages."""
        return f"{key}.{stage}" if isinstance(self.told(key), list | tuple) else key

    # --- the pipeline that pictures go through ------------------------------------------------------------------------

    def transforms(self) -> dict[str, Dict]:
        """The transforms of the test pipeline by type, those inside of a MultiScaleFlipAug among them."""
        pipeline = self.told(*_PIPELINES)
        flat: dict[str, Dict] = {}
        for step in pipeline if isinstance(pipeline, list | tuple) else []:
            inner = step.get("transforms", []) if isinstance(step, Mapping) else []
            for each in (step, *inner):
                if isinstance(each, Mapping) and isinstance(each.get("type"), str):
                    flat[each["type"].rpartition(".")[2]] = each
        for name in flat.keys() - _WITHOUT_EFFECT - {"Resize", "Normalize", "Pad", "MultiScaleFlipAug"}:
            self.problem("is not known here", "test_pipeline", name, "Resize, Normalize and Pad")
        return flat

    def class_names(self) -> tuple[str, ...] | None:
        """Names that the settings give to the classes."""
        keys = [
            f"{place}.{name}" for place in _DATASETS for name in ("metainfo.classes", "metainfo.CLASSES", "classes")
        ]
        return names_of(self.told(*keys, "metainfo.classes", "classes"))

    def dataset(self) -> str:
        """What the settings call the data set's kind, "CocoDataset", or nothing."""
        value = self.told(*(f"{place}.type" for place in _DATASETS), "dataset_type")
        return value.rpartition(".")[2] if isinstance(value, str) else ""


# --- what is built here -----------------------------------------------------------------------------------------------

_BUILT_HERE: Mapping[str, tuple[Any, ...]] = {  # of the settings that change the arithmetic and leave names alone
    "model.type": ("MaskRCNN", "FasterRCNN", "CascadeRCNN"),
    "model.data_preprocessor.type": ("DetDataPreprocessor",),
    "model.backbone.type": ("ResNet", "ResNeXt"),
    "model.backbone.conv_cfg.type": ("Conv2d", "Conv"),
    "model.backbone.norm_cfg.type": ("BN", "SyncBN", "GN"),
    "model.backbone.norm_cfg.num_groups": (32,),
    "model.backbone.deep_stem": (False,),
    "model.backbone.avg_down": (False,),
    "model.backbone.strides": ((1, 2, 2, 2),),
    "model.backbone.dilations": ((1, 1, 1, 1),),
    "model.backbone.out_indices": ((0, 1, 2, 3),),
    "model.neck.type": ("FPN",),
    "model.neck.conv_cfg.type": ("Conv2d", "Conv"),
    "model.neck.norm_cfg.num_groups": (32,),
    "model.neck.act_cfg.type": (),
    "model.neck.start_level": (0,),
    "model.neck.num_outs": (5,),
    "model.neck.add_extra_convs": (False,),
    "model.neck.upsample_cfg.mode": ("nearest",),
    "model.rpn_head.type": ("RPNHead",),
    "model.rpn_head.anchor_scales": (),  # of version 1 and its other way to code boxes
    "model.rpn_head.anchor_generator.type": ("AnchorGenerator",),
    "model.rpn_head.anchor_generator.strides": ((4, 8, 16, 32, 64),),
    "model.rpn_head.anchor_generator.scale_major": (True,),
    "model.rpn_head.bbox_coder.type": ("DeltaXYWHBBoxCoder",),
    "model.rpn_head.bbox_coder.clip_border": (True,),
    "model.rpn_head.bbox_coder.add_ctr_clamp": (False,),
    "model.rpn_head.loss_cls.use_sigmoid": (True,),
    "model.roi_head.bbox_roi_extractor.type": ("SingleRoIExtractor",),
    "model.roi_head.bbox_roi_extractor.roi_layer.type": ("RoIAlign",),
    "model.roi_head.bbox_roi_extractor.roi_layer.pool_mode": ("avg",),
    "model.roi_head.bbox_roi_extractor.featmap_strides": ((4, 8, 16, 32),),
    "model.roi_head.mask_roi_extractor.type": ("SingleRoIExtractor",),
    "model.roi_head.mask_roi_extractor.roi_layer.type": ("RoIAlign",),
    "model.roi_head.mask_roi_extractor.roi_layer.pool_mode": ("avg",),
    "model.roi_head.mask_roi_extractor.featmap_strides": ((4, 8, 16, 32),),
    "model.test_cfg.rpn.nms.type": ("nms",),
    "model.test_cfg.rpn.nms_across_levels": (False,),
    "model.test_cfg.rcnn.nms.type": ("nms",),
    "model.test_cfg.rcnn.nms.class_agnostic": (False, True),
}
_BOX_HEAD_BUILT_HERE: Mapping[str, tuple[Any, ...]] = {
    "type": ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead"),
    "conv_cfg.type": ("Conv2d", "Conv"),
    "norm_cfg.num_groups": (32,),
    "with_avg_pool": (False,),
    "cls_predictor_cfg.type": ("Linear",),
    "reg_predictor_cfg.type": ("Linear",),
    "loss_cls.use_sigmoid": (False,),
    "bbox_coder.type": ("DeltaXYWHBBoxCoder",),
    "bbox_coder.clip_border": (True,),
    "bbox_coder.add_ctr_clamp": (False,),
}
_MASK_HEAD_BUILT_HERE: Mapping[str, tuple[Any, ...]] = {
    "type": ("FCNMaskHead",),
    "conv_cfg.type": ("Conv2d", "Conv"),
    "norm_cfg.num_groups": (32,),
    "upsample_cfg.type": ("deconv",),
    "upsample_cfg.scale_factor": (2,),
    "predictor_cfg.type": ("Conv", "Conv2d"),
    "conv_kernel_size": (3,),
}


def require_built_here(facts: Facts, stages: int) -> None:
    """Note a problem for each setting that asks for a part, or an arithmetic, that this package has not."""
    facts.only("model.roi_head.type", "CascadeRoIHead" if stages > 1 else "StandardRoIHead")
    facts.only("model.roi_head.num_stages", stages)
    for stage in range(stages):
        for head, known in (("bbox_head", _BOX_HEAD_BUILT_HERE), ("mask_head", _MASK_HEAD_BUILT_HERE)):
            section = facts.section(f"model.roi_head.{head}", stage)
            for key, values in known.items():
                facts.only(f"{section}.{key}", *values)
    for key, values in _BUILT_HERE.items():
        facts.only(key, *values)


# --- values -----------------------------------------------------------------------------------------------------------


def names_of(value: object) -> tuple[str, ...] | None:
    """Class names, if that is what `value` holds: a list of texts, or one text."""
    if isinstance(value, str) and not value.endswith(".txt"):
        return (value,)
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


def as_text(value: object) -> str:
    """A value as one reads it in a message."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(as_text, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def find(values: Any, path: str) -> Any:
    """The value at "a.b.0.c", or `UNTOLD`."""
    for key in path.split("."):
        if isinstance(values, Mapping) and values.get(key) is not None:
            values = values[key]
        elif isinstance(values, list | tuple) and key.isdecimal() and int(key) < len(values):
            values = values[int(key)]
        else:
            return UNTOLD
    return values


def like(example: Any, value: Any) -> Any:
    """`value` as the kind of thing that `example` is (whole number, number, text, tuple of ...), or `UNTOLD`."""
    if isinstance(example, tuple):
        if not isinstance(value, list | tuple) or not value:
            return UNTOLD
        items = tuple(like(example[0], item) for item in value)
        return UNTOLD if UNTOLD in items else items
    if isinstance(example, bool) or isinstance(value, bool):
        return value if isinstance(example, bool) and isinstance(value, bool) else UNTOLD
    if isinstance(example, float) and isinstance(value, int | float):
        return float(value)
    if isinstance(example, int) and isinstance(value, int | float) and float(value).is_integer():
        return int(value)
    return value if isinstance(example, str) and isinstance(value, str) else UNTOLD
