"""MMDetection's checkpoints: the same answers as MMDetection gave, and what is told, assumed or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import maskrcnn
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNNConfig
from maskrcnn.weights import class_names
from maskrcnn.weights.content import Content, Converted, Settings
from maskrcnn.weights.formats.python_config import merge, parse_python_config
from maskrcnn.weights.mmdetection import convert, recognises
from maskrcnn.weights.opening import open_content, open_weights

from . import mmdetection_fixture as fixtures
from . import parity

FAST = ("faster-rcnn_r50", "mask-rcnn_r50", "mask-rcnn_r50-caffe", "mask-rcnn_r50_3-classes")
PLAIN = "mask-rcnn_r50"

# What a config of version 2 has in the place of `data_preprocessor` and `test_dataloader`, with the fixtures' sizes
PICTURES_OF_VERSION_2 = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(448, 256),
        flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img'])
        ])
]
data = dict(samples_per_gpu=2, test=dict(type='CocoDataset', pipeline=test_pipeline))
"""


def empty(name: str = PLAIN) -> dict[str, Tensor]:
    """The tensors of a fixture's variant, all zero."""
    return {tensor: torch.zeros(shape) for tensor, shape in fixtures.read(name).about["tensors"].items()}


def config_of(name: str = PLAIN) -> dict[str, Any]:
    """MMDetection's config of a fixture as plain values."""
    return parse_python_config(fixtures.read(name).about["config"], name)


def version_2() -> str:
    """The plain fixture's config in the words of version 2."""
    model = {name: section for name, section in config_of()["model"].items() if name != "data_preprocessor"}
    return f"model = {model!r}" + PICTURES_OF_VERSION_2


def told(changes: dict[str, Any], name: str = PLAIN) -> Converted:
    """A fixture's variant with some settings changed."""
    return convert(Content(empty(name)), Settings(merge(changes, config_of(name)), "config.py"))


def told_by(text: str, meta: dict[str, Any] | None = None, name: str = PLAIN) -> Converted:
    """A fixture's variant, with `text` as the config inside the file."""
    return convert(Content(empty(name), {"meta": {"config": text, **(meta or {})}}), None)


# --- the same answers -------------------------------------------------------------------------------------------------


def meta_of(fixture: parity.Fixture, version: int) -> dict[str, Any]:
    """What training writes beside the tensors."""
    classes, config = tuple(fixture.about["classes"]), fixture.about["config"]
    if version == 3:
        return {"cfg": config, "dataset_meta": {"classes": classes, "palette": [(220, 20, 60)]}, "epoch": 12, "iter": 7}
    return {
        "config": version_2(),
        "CLASSES": classes,
        "mmdet_version": "2.25.0+1",
        "epoch": 12,
        "iter": 7,
        "hook_msgs": {},
    }


def require_equal(detector: Any, fixture: parity.Fixture, pictures: Sequence[str] = parity.PICTURE_NAMES) -> None:
    differences = parity.Differences()
    for picture in pictures:
        theirs = fixture.found[picture]
        ours = detector.predict(parity.PICTURES / f"{picture}.png")
        differences.add(ours, theirs)
        if "areas" in theirs:
            areas = ours.masks.bitmaps().sum(dim=(1, 2)).numpy()
            # px of whole masks: those of random weights are near 0.5 in many places, where rounding decides
            assert np.abs(np.sort(areas) - np.sort(theirs["areas"])).max() <= 10
    assert differences.detections >= 30 * len(pictures)
    assert (differences.missing, differences.surplus) == (0, 0)
    assert differences.boxes < 0.05
    assert differences.scores < 1e-4
    assert differences.masks < 1e-3
    assert differences.kinds == ({"masks"} if "areas" in fixture.found[pictures[0]] else set())


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in fixtures.names()]
)
def test_finds_what_mmdetection_found(name: str, tmp_path: Path) -> None:
    fixture = fixtures.read(name)
    file = fixtures.write(tmp_path / "epoch_12.pth", fixtures.weights_of(fixture), meta_of(fixture, version=3))
    detector = maskrcnn.load(file, device="cpu")
    assert detector.class_names == tuple(fixture.about["classes"])
    require_equal(detector, fixture)


def test_finds_the_same_with_a_file_of_version_2(tmp_path: Path) -> None:
    fixture = fixtures.read(PLAIN)
    file = fixtures.write(tmp_path / "latest.pth", fixtures.weights_of(fixture), meta_of(fixture, version=2))
    require_equal(maskrcnn.load(file, device="cpu"), fixture, parity.PICTURE_NAMES[:1])


def test_the_same_config_from_either_version() -> None:
    converted = told_by(version_2())
    assert converted.config == told({}).config
    assert [line for line in converted.assumed if not line.startswith("class_names COCO")] == []


# --- where settings come from -----------------------------------------------------------------------------------------


def test_a_config_handed_in_comes_before_the_one_inside(tmp_path: Path) -> None:
    state, text = empty("faster-rcnn_r50"), fixtures.read("faster-rcnn_r50").about["config"]
    file = fixtures.write(tmp_path / "model.pth", state, {"cfg": text})
    (tmp_path / "base.py").write_text(text)
    (tmp_path / "mine.py").write_text("_base_ = 'base.py'\nmodel = dict(test_cfg=dict(rcnn=dict(max_per_img=7)))")
    inside, handed = open_weights(file), open_weights(file, tmp_path / "mine.py")
    assert inside.model.config.detection.max_detections == 60
    assert inside.metadata["settings"] == "the config inside the file"
    config = handed.model.config
    assert config == replace(inside.model.config, detection=replace(config.detection, max_detections=7))
    assert handed.metadata["settings"] == str(tmp_path / "mine.py")


def test_the_config_inside_comes_before_one_beside(tmp_path: Path) -> None:
    text = fixtures.read("faster-rcnn_r50").about["config"]
    file = fixtures.write(tmp_path / "model.pth", empty("faster-rcnn_r50"), {"cfg": text})
    (tmp_path / "config.yaml").write_text("MODEL: {MASK_ON: true}")  # of another detector in the same folder
    assert open_weights(file).metadata["settings"] == "the config inside the file"


def test_a_config_inside_that_cannot_be_read_is_told() -> None:
    converted = told_by("/home/me/config.py\nmodel = dict()")
    assert converted.config.preprocess.shortest == 800
    assert "the config inside the file: line 1: not Python" in converted.assumed[0]


def test_without_settings_it_is_the_zoos() -> None:
    """The fixtures' configs are the zoo's, but for what makes them smaller."""
    for name in fixtures.names():
        assumed, zoo = convert(Content(empty(name)), None), told({}, name).config
        zoo = replace(
            zoo,
            preprocess=replace(zoo.preprocess, shortest=800, longest=1333),
            rpn=replace(zoo.rpn, post_nms_top_n=1000),
            detection=replace(zoo.detection, max_detections=100),
        )
        if name in ("mask-rcnn_r50-caffe", "mask-rcnn_r50-gn"):  # tensors look like those of other styles
            zoo = replace(zoo, preprocess=assumed.config.preprocess, backbone=assumed.config.backbone)
        assert assumed.config == zoo, name
        expected = {
            *("class_names", "preprocess.shortest", "preprocess.mean", "preprocess.std", "preprocess.channels"),
            *("preprocess.divisor", "backbone.stride_in", "backbone.frozen_stages"),
            *("rpn.pre_nms_top_n", "rpn.post_nms_top_n", "rpn.nms_iou", "rpn.min_size", "rpn.anchors.sizes"),
            *("roi_pooler.sampling_ratio", "roi_pooler.aligned", "detection.score_threshold", "detection.nms_iou"),
        }
        lines = "\n".join(assumed.assumed)
        assert not [field for field in expected if field not in lines]


def test_whole_settings_leave_nothing_to_assume() -> None:
    for name in fixtures.names():
        names = {"dataset_meta": {"classes": tuple(fixtures.read(name).about["classes"])}}
        content = Content(empty(name), {"meta": {"cfg": fixtures.read(name).about["config"], **names}})
        assumed = convert(content, None).assumed
        assert [line for line in assumed if not line.startswith("category_ids 1 to 3")] == []


# --- what settings say ------------------------------------------------------------------------------------------------


def test_styles() -> None:
    def body(name: str) -> tuple[Any, ...]:
        config = told({}, name).config
        return config.preprocess.channels, config.preprocess.std, config.backbone.stride_in, config.backbone.options

    ones, caffe2 = (1 / 255,) * 3, pytest.approx((57.375 / 255, 57.12 / 255, 58.395 / 255))
    assert body(PLAIN) == ("rgb", pytest.approx((0.229, 0.224, 0.225)), "3x3", {})
    assert body("mask-rcnn_r50-caffe") == ("bgr", pytest.approx(ones), "1x1", {})
    assert body("mask-rcnn_x101-32x8d") == ("bgr", caffe2, "3x3", {"cardinality": 32, "base_width": 8})
    assert told({}, "mask-rcnn_x101-32x8d").config.backbone.name == "resnet101"


def test_settings_reach_their_fields() -> None:
    rpn = {"nms_pre": 500, "max_per_img": 300, "nms": {"iou_threshold": 0.6}, "min_bbox_size": 4}
    rcnn = {"score_thr": 0.3, "nms": {"iou_threshold": 0.4}, "max_per_img": 9, "mask_thr_binary": 0.6}
    pool = {"roi_layer": {"sampling_ratio": 2, "aligned": False}, "finest_scale": 40}
    head = {"bbox_coder": {"target_stds": [0.2, 0.2, 0.5, 0.5]}}
    changes = {
        "data_preprocessor": {"pad_size_divisor": 64, "mean": [0, 51, 255], "std": [255, 51, 1.0]},
        "backbone": {"norm_eval": False, "norm_cfg": {"eps": 1e-3}, "frozen_stages": -1, "style": "caffe"},
        "rpn_head": {"anchor_generator": {"scales": [4], "ratios": [1, 2, 4], "center_offset": 0.5}},
        "roi_head": {"bbox_roi_extractor": pool, "mask_roi_extractor": pool, "bbox_head": head},
        "test_cfg": {"rpn": rpn, "rcnn": rcnn},
    }
    config = told({"model": changes}).config
    assert (config.preprocess.divisor, config.preprocess.resampling) == (64, "opencv")
    assert (config.preprocess.mean, config.preprocess.std) == ((0.0, 0.2, 1.0), (1.0, 0.2, 1 / 255))
    assert (config.backbone.norm, config.backbone.norm_eps) == ("batch", 1e-3)
    assert (config.backbone.frozen_stages, config.backbone.stride_in) == (0, "1x1")
    assert config.rpn.anchors.sizes == ((16.0,), (32.0,), (64.0,), (128.0,), (256.0,))
    assert (config.rpn.anchors.ratios, config.rpn.anchors.centre) == ((1.0, 2.0, 4.0), 0.5)
    assert (config.rpn.pre_nms_top_n, config.rpn.post_nms_top_n) == (500, 300)
    assert (config.rpn.nms_iou, config.rpn.min_size) == (0.6, 4.0)
    assert (config.roi_pooler.sampling_ratio, config.roi_pooler.aligned) == (2, False)
    assert (config.roi_pooler.canonical_size, config.roi_pooler.canonical_level) == (160.0, 4)
    assert config.box_head.delta_weights == (5.0, 5.0, 2.0, 2.0)
    detection = config.detection
    assert (detection.score_threshold, detection.nms_iou, detection.max_detections) == (0.3, 0.4, 9)
    assert detection.mask_threshold == 0.6


def test_how_a_cascade_is_read() -> None:
    converted = told({}, "cascade-mask-rcnn_r50")
    cascade = converted.config.cascade
    assert cascade is not None
    assert (cascade.average, cascade.mask_heads) == ("logits", True)
    assert cascade.delta_weights == ((20.0, 20.0, 10.0, 10.0), (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067))
    assert converted.config.box_head.class_agnostic
    assert converted.state["later_mask_heads.1.masks.bias"].shape == (80,)


def test_older_words_of_version_2() -> None:
    """The first of them: `test_cfg` beside the model, other names in it."""
    text = """
test_cfg = dict(
    rpn=dict(nms_across_levels=False, nms_pre=900, nms_post=800, max_num=700, nms_thr=0.6, min_bbox_size=0),
    rcnn=dict(score_thr=0.1, nms=dict(type='nms', iou_thr=0.4), max_per_img=50))
model = dict(type='MaskRCNN', roi_head=dict(
    bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign', out_size=7, sample_num=2)),
    mask_roi_extractor=dict(roi_layer=dict(type='RoIAlign', out_size=14, sample_num=2))))
data = dict(test=dict(pipeline=[
    dict(type='LoadImageFromFile', to_float32=True),
    dict(type='MultiScaleFlipAug', img_scale=[(900, 600), (450, 300)], flip=True, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='Normalize', mean=[1, 2, 3], std=[1, 1, 1], to_rgb=False)])]))
"""
    converted = told_by(text)
    config = converted.config
    assert (config.rpn.pre_nms_top_n, config.rpn.post_nms_top_n, config.rpn.nms_iou) == (900, 700, 0.6)
    assert (config.detection.score_threshold, config.detection.nms_iou, config.detection.max_detections) == (
        0.1,
        0.4,
        50,
    )
    assert (config.preprocess.shortest, config.preprocess.longest, config.preprocess.divisor) == (600, 900, 1)
    assert (config.preprocess.channels, config.preprocess.resampling) == ("bgr", "torch")
    assert (config.roi_pooler.sampling_ratio, config.roi_pooler.aligned) == (2, True)
    assert config.preprocess.mean == pytest.approx((1 / 255, 2 / 255, 3 / 255))
    assert any("looked at once, at the first size" in line for line in converted.assumed)


def test_types_may_be_whole_paths() -> None:
    """As in the texts that configs of pure Python leave in a checkpoint."""
    changes = {"type": "mmdet.models.detectors.mask_rcnn.MaskRCNN", "backbone": {"type": "mmdet.models.ResNet"}}
    assert told({"model": changes}).config == told({}).config


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"dataset_meta": {"classes": ("a", "b", "c")}}, ("a", "b", "c")),
        ({"dataset_meta": {"CLASSES": ["a", "b", "c"]}}, ("a", "b", "c")),
        ({"CLASSES": ("a", "b", "c")}, ("a", "b", "c")),
        ({"CLASSES": ("a", "b")}, ("1", "2", "3")),  # of another head
        ({"CLASSES": None}, ("1", "2", "3")),
        ({}, ("1", "2", "3")),
    ],
)
def test_class_names(meta: dict[str, Any], expected: tuple[str, ...]) -> None:
    converted = told_by("model = dict()", meta, "mask-rcnn_r50_3-classes")
    assert (converted.config.class_names, converted.config.category_ids) == (expected, (1, 2, 3))
    assert any("category_ids 1 to 3" in line or "class_names 1 to 3" in line for line in converted.assumed)


@pytest.mark.parametrize(
    "text",
    [
        "test_dataloader = dict(dataset=dict(metainfo=dict(classes=('a', 'b', 'c'))))",
        "data = dict(test=dict(classes=('a', 'b', 'c')))",
        "classes = ('a', 'b', 'c')\ndata = dict(train=dict(classes=classes))",
    ],
)
def test_class_names_of_the_settings_come_first(text: str) -> None:
    meta = {"CLASSES": ("x", "y", "z")}
    converted = told_by("model = dict()\n" + text, meta, "mask-rcnn_r50_3-classes")
    assert converted.config.class_names == ("a", "b", "c")


def test_coco_has_its_ids() -> None:
    coco = class_names.coco()
    for meta in ({"CLASSES": coco.names}, {}):
        config = told_by("model = dict()", meta).config
        assert (config.class_names, config.category_ids) == (coco.names, coco.category_ids)
    mine = tuple(map(str, range(80)))
    assert told_by("model = dict()", {"CLASSES": mine}).config.category_ids == tuple(range(1, 81))


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_background_comes_first() -> None:
    tensors = empty("cascade-mask-rcnn_r50")
    for stage in range(3):
        tensors[f"roi_head.bbox_head.{stage}.fc_cls.bias"] = torch.arange(81.0)  # their background is 80
    state = convert(Content(tensors), None).state
    for ours in ("box_head", "later_box_heads.0", "later_box_heads.1"):
        assert state[f"{ours}.classes.bias"].tolist() == [80, *range(80)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.weight"], True),
        (["rpn_head.rpn_conv.0.conv.weight", "roi_head.bbox_head.2.fc_cls.weight"], True),
        (["rpn_head.rpn_conv.weight", "bbox_head.fc_cls.weight"], True),  # version 1, which `convert` refuses
        (["rpn_head.rpn_conv.weight"], False),  # an RPN alone
        (["bbox_head.cls_convs.0.conv.weight"], False),  # RetinaNet
        (["proposal_generator.rpn_head.objectness_logits.weight", "roi_heads.box_predictor.cls_score.weight"], False),
        ([], False),
    ],
)
def test_recognises_by_names(names: list[str], expected: bool) -> None:
    assert recognises(Content({name: torch.zeros(1) for name in names})) is expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bbox_head.fc_cls.weight", "a checkpoint of MMDetection 1"),
        (
            "backbone.layer2.0.conv2.conv_offset.weight",
            "deformable convolutions: not known here; found 1: backbone.layer2",
        ),
        ("roi_head.shared_head.layer4.0.conv1.weight", "the C4 detectors of MMDetection: not known here"),
        ("roi_head.mask_iou_head.convs.0.conv.weight", "Mask Scoring R-CNN: not known here"),
        ("roi_head.bbox_head.cls_convs.0.conv.weight", "of another network; found 1: roi_head.bbox_head.cls_convs.0"),
        ("backbone.patch_embed.projection.weight", "of another network; found 1: backbone.patch_embed"),
    ],
)
def test_unknown_parts_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(Content(empty() | {name: torch.zeros(1)}), None)


def test_tensors_that_do_not_fit_are_refused() -> None:
    def refused(changes: dict[str, Tensor | None], message: str) -> None:
        tensors = {name: tensor for name, tensor in (empty() | changes).items() if tensor is not None}
        with pytest.raises(InputError, match=message):
            open_content(Content(tensors))

    refused({"neck.fpn_convs.2.conv.weight": None}, "fpn.output.p4.conv.weight: is missing")
    refused({"roi_head.bbox_head.fc_cls.weight": None}, "box_head.classes.weight: is missing")
    refused(
        {"roi_head.bbox_head.fc_cls.weight": torch.zeros(4, 1024)}, "box_head.deltas.weight: does not fit|tensors do"
    )
    refused({"backbone.layer3.5.conv1.weight": None}, r"unknown network; found stages of \(3, 4, 5, 3\) blocks")


# --- settings that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"roi_head": {"bbox_head": {"num_classes": 3}}},
            r"bbox_head.num_classes: contradicts .* found 3; expected 80",
        ),
        (
            {"roi_head": {"mask_head": {"num_classes": 3}}},
            r"mask_head.num_classes: contradicts .* found 3; expected 80",
        ),
        ({"roi_head": {"bbox_head": {"reg_class_agnostic": True}}}, r"reg_class_agnostic: contradicts the weights"),
        (
            {"roi_head": {"bbox_roi_extractor": {"roi_layer": {"output_size": 14}}}},
            "output_size: .* expected 7, as the",
        ),
        (
            {"roi_head": {"type": "PointRendRoIHead"}},
            "roi_head.type: does not fit, or is not known here; found PointRendRoIHead",
        ),
        (
            {"roi_head": {"bbox_head": {"type": "SABLHead"}}},
            "bbox_head.type: does not fit, or is not known here; found SABLHead",
        ),
        ({"roi_head": {"bbox_head": {"cls_predictor_cfg": {"type": "NormedLinear"}}}}, "found NormedLinear"),
        (
            {"roi_head": {"bbox_head": {"bbox_coder": {"target_means": [0, 0, 1, 0]}}}},
            "target_means: does not fit, or is not known here",
        ),
        ({"roi_head": {"mask_roi_extractor": {"finest_scale": 40}}}, "mask_roi_extractor: differs between heads"),
        ({"roi_head": {"type": "CascadeRoIHead"}}, "roi_head.type: .* found CascadeRoIHead; expected StandardRoIHead"),
        ({"backbone": {"depth": 101}}, "backbone.depth: contradicts the weights; found 101; expected 50"),
        (
            {"backbone": {"conv_cfg": {"type": "ConvWS"}}},
            "backbone.conv_cfg.type: does not fit, or is not known here; found ConvWS",
        ),
        ({"backbone": {"avg_down": True}}, "backbone.avg_down: does not fit, or is not known here; found True"),
        ({"backbone": {"style": "tensorflow"}}, "backbone.style: is not known here"),
        ({"neck": {"type": "PAFPN"}}, "neck.type: does not fit, or is not known here; found PAFPN; expected FPN"),
        ({"rpn_head": {"anchor_generator": {"type": "LegacyAnchorGenerator"}}}, "found LegacyAnchorGenerator"),
        ({"rpn_head": {"anchor_generator": {"scales": [4, 8]}}}, "anchor_generator: contradicts .* 3 anchors a cell"),
        (
            {"rpn_head": {"loss_cls": {"use_sigmoid": False}}},
            "rpn_head.loss_cls.use_sigmoid: does not fit, or is not known here",
        ),
        (
            {"test_cfg": {"rcnn": {"nms": {"type": "soft_nms"}}}},
            "rcnn.nms.type: does not fit, or is not known here; found soft_nms",
        ),
        ({"test_cfg": {"rcnn": {"max_per_img": -1}}}, "max_per_img: is not known here; found -1; expected a limit"),
        ({"test_cfg": {"rcnn": {"score_thr": "high"}}}, "score_thr: wrong type; found high"),
        ({"data_preprocessor": {"pad_value": 114}}, "pad_val: is not known here; found 114"),
        ({"data_preprocessor": {"std": [1.0]}}, r"data_preprocessor.std: is not known here; found \(1\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        told({"model": changes})
    assert "config.py: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("dict(type='Resize', scale=(1333, 800), keep_ratio=False)", "keep_ratio: is not known here; found False"),
        ("dict(type='Resize', scale=(1333, 800), interpolation='bicubic')", "interpolation: is not known here"),
        ("dict(type='Resize', scale=0.5)", "Resize.scale: is not known here; found 0.5"),
        ("dict(type='LoadImageFromFile')", "keep_ratio: is not known here; found None"),
        ("dict(type='Resize', scale=(9, 8)), dict(type='PhotoMetricDistortion')", "found PhotoMetricDistortion"),
        ("dict(type='Resize', scale=(9, 8)), dict(type='Pad', size=(64, 64))", r"Pad.size: .* found \(64, 64\)"),
        ("dict(type='LoadImageFromFile', channel_order='rgb'), dict(type='Resize', scale=(9, 8))", "channel_order"),
    ],
)
def test_pipelines_that_are_not_known(steps: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        told_by(f"model = dict()\ntest_pipeline = [{steps}]")


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(InputError, match=r"\(2\): .*backbone.depth.*\|.*bbox_head.num_classes"):
        told({"model": {"backbone": {"depth": 101}, "roi_head": {"bbox_head": {"num_classes": 3}}}})


def test_a_config_of_another_family_is_refused() -> None:
    with pytest.raises(InputError, match="config.yaml: does not fit MMDetection's weights; found MODEL"):
        convert(Content(empty()), Settings({"MODEL": {}}, "config.yaml"))


def test_masks_that_the_weights_have_not() -> None:
    roi_head = config_of()["model"]["roi_head"]
    with pytest.raises(
        InputError, match="roi_head.mask_head: contradicts the weights; found a mask head; expected none"
    ):
        told({"model": {"roi_head": {"mask_head": roi_head["mask_head"]}}}, "faster-rcnn_r50")


def test_a_whole_config_of_ours_replaces_all() -> None:
    ours: MaskRCNNConfig = told({}).config
    changed = replace(ours, detection=replace(ours.detection, score_threshold=0.9))
    assert open_content(Content(empty()), changed).model.config == changed
