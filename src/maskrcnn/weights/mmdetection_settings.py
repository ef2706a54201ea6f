"""What MMDetection's settings say, asked by the names of version 3, and a list of what they leave open.

A config of version 3 or 2 has the detector under `model`. How pictures are prepared is told by a pipeline of transforms
and, in version 3, by the model's `data_preprocessor`. The first files of version 2 have `test_cfg` beside the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from maskrcnn.errors import InputError
from maskrcnn.weights import facts as common
from maskrcnn.weights.content import Settings

T = TypeVar("T")
Dict = Mapping[str, Any]

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
class Facts(common.Facts):
    """MMDetection's, asked by the names of version 3: "model.backbone.depth"."""

    def told(self, key: str, *others: str) -> Any:
        """The settings' value of the first of the keys that they have, or `None`."""
        found = (super(Facts, self).told(each) for each in (key, *others))
        return next((value for value in found if value is not None), None)

    def ask(self, place: str, default: T, *keys: str) -> T:
        """The value of the first of `keys`, of the kind that `default` is, for our field `place`.

        Where settings have the section but not the key they mean MMDetection's own default. Without the section the
        default is noted as assumed.
        """
        value = self.told(*keys)
        if value is not None:
            return self.fitted(keys[0], value, default)
        if self.told(*(key.rpartition(".")[0] for key in keys)) is None:
            self.assume(place, default, "MMDetection's default")
        return default

    def only(self, key: str, *known: Any) -> None:
        """As ever, but of a class path the last name counts."""
        value = self.told(key)
        if not (isinstance(value, str) and value.rpartition(".")[2] in known):
            super().only(key, *known)

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


def names_of(value: object) -> tuple[str, ...] | None:
    """Class names, if that is what `value` holds: a list of texts, or one text."""
    if isinstance(value, str) and not value.endswith(".txt"):
        return (value,)
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None
