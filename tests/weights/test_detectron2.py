"""Detectron2's checkpoints: the same answers as Detectron2 gave, and what is told, assumed or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import maskrcnn
from maskrcnn.errors import InputError
from maskrcnn.model.anchors import cell_anchors
from maskrcnn.weights import class_names
from maskrcnn.weights.content import Content, Converted, Settings
from maskrcnn.weights.detectron2 import convert, recognises
from maskrcnn.weights.detectron2_settings import read_config
from maskrcnn.weights.opening import open_content

from . import detectron2_fixture as fixtures
from . import parity

FAST = ("cascade", "keypoints", "r50-c4", "r50-fpn", "r50-fpn-gn")


def slow_but(names: list[str]) -> list[Any]:
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", slow_but(fixtures.names()))
def test_finds_what_detectron2_found(name: str, tmp_path: Path) -> None:
    fixture = fixtures.read(name)
    about = fixture.about
    state = fixtures.weights(about["tensors"], about["roles"], about["seed"])
    write = fixtures.write_training_file if name == "r50-fpn-gn" else fixtures.write_zoo_file
    file = write(tmp_path / "weights", state)
    (tmp_path / "config.yaml").write_text(about["config"])
    detector = maskrcnn.load(file, device="cpu")

    differences = parity.compared(detector, fixture)
    assert differences.detections >= 20
    assert (differences.missing, differences.surplus) == (0, 0)
    assert differences.boxes < 0.05
    assert differences.scores < 1e-4
    assert differences.masks < 1e-3
    assert differences.keypoints < 0.5
    expected = {"keypoints": {"keypoints"}, "r50-fpn-box": set()}.get(name, {"masks"})
    assert differences.kinds == expected


# --- what weights tell, and what the zoo's habits are -----------------------------------------------------------------


def empty(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a fixture's variant: zeros, and the counters of batches as training leaves them."""
    tensors = {}
    for tensor, shape in fixtures.read(name).about["tensors"].items():
        tensors[tensor] = torch.zeros(shape)
        if tensor.endswith("num_batches_tracked"):
            was_fixed = name == "r50-fpn-syncbn" and (".stem." in tensor or ".res2." in tensor)
            tensors[tensor] = torch.tensor(0 if was_fixed else 7)
    return tensors


def settings(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "config.yaml").write_text(text)
    return Settings(read_config(tmp_path / "config.yaml"), "config.yaml")


@pytest.mark.parametrize("name", fixtures.names())
def test_assumes_what_the_zoo_has(name: str, tmp_path: Path) -> None:
    """Without settings the config is that of the zoo's own, but for what the fixture made smaller."""
    tensors = empty(name)
    told = convert(Content(tensors), settings(tmp_path, fixtures.read(name).about["config"]))
    assumed = convert(Content(tensors), None)
    small, config = told.config, assumed.config
    config = replace(
        config,
        preprocess=replace(config.preprocess, shortest=224, longest=360),
        rpn=replace(config.rpn, post_nms_top_n=small.rpn.post_nms_top_n),
        detection=replace(config.detection, max_detections=small.detection.max_detections),
    )
    if name == "cityscapes":  # eight classes might be anyone's
        config = replace(config, class_names=class_names.CITYSCAPES)
    assert config == small
    assert told.assumed == () or name.startswith("lsj")  # lazy configs leave out what has a default
    assert any(line.startswith("preprocess.channels BGR") for line in assumed.assumed)


def test_zoo_defaults_of_a_plain_network() -> None:
    config = convert(Content(empty("r50-fpn")), None).config
    assert (config.preprocess.shortest, config.preprocess.longest, config.preprocess.channels) == (800, 1333, "bgr")
    assert config.preprocess.mean == pytest.approx((103.53 / 255, 116.28 / 255, 123.675 / 255))
    assert config.preprocess.std == pytest.approx((1 / 255,) * 3)
    assert (config.backbone.name, config.backbone.stride_in, config.backbone.norm) == ("resnet50", "1x1", "frozen")
    assert (config.rpn.pre_nms_top_n, config.rpn.post_nms_top_n) == (1000, 1000)
    assert (config.detection.score_threshold, config.detection.max_detections) == (0.05, 100)
    assert (config.class_names[0], config.category_ids[-1]) == ("person", 90)


def test_lvis_keeps_many_faint_detections() -> None:
    config = convert(Content(empty("lvis")), None).config
    assert (config.detection.score_threshold, config.detection.max_detections) == (1e-4, 300)
    assert (config.num_classes, config.class_names[:2]) == (1230, ("acorn", "aerosol_can"))


def test_older_files_tell_colours_and_anchors() -> None:
    tensors = empty("r50-c4")
    tensors["pixel_mean"] = torch.tensor([100.0, 110.0, 120.0])[:, None, None]
    tensors["pixel_std"] = torch.tensor([51.0, 51.0, 51.0])[:, None, None]
    anchors = [[-s / r**0.5, -s * r**0.5, s / r**0.5, s * r**0.5] for s in (8, 16, 32) for r in (0.25, 0.5, 1, 2, 4)]
    tensors["proposal_generator.anchor_generator.cell_anchors.0"] = torch.tensor(anchors)
    converted = convert(Content(tensors), None)
    config = converted.config
    assert config.preprocess.mean == pytest.approx((100 / 255, 110 / 255, 120 / 255))
    assert config.preprocess.std == pytest.approx((0.2, 0.2, 0.2))
    assert config.rpn.anchors.sizes == ((16.0, 32.0, 64.0),)
    assert config.rpn.anchors.ratios == (0.25, 0.5, 1.0, 2.0, 4.0)
    assert not any("anchors.sizes" in line or "preprocess.mean" in line for line in converted.assumed)


# --- orders -----------------------------------------------------------------------------------------------------------


def test_background_comes_first() -> None:
    tensors = empty("cascade")
    for stage in range(3):
        bias = torch.arange(81.0)  # their background is 80
        tensors[f"roi_heads.box_predictor.{stage}.cls_score.bias"] = bias
    state = convert(Content(tensors), None).state
    for ours in ("box_head", "later_box_heads.0", "later_box_heads.1"):
        assert state[f"{ours}.classes.bias"].tolist() == [80, *range(80)]


def test_anchors_keep_their_sizes_and_shapes() -> None:
    """Each row of the RPN belongs to the box that Detectron2 has in its place: sizes go by, ratios within them."""
    tensors = empty("r50-c4")
    theirs = [(size, ratio) for size in (32, 64, 128, 256, 512) for ratio in (0.5, 1.0, 2.0)]
    tensors["proposal_generator.rpn_head.objectness_logits.bias"] = torch.tensor([s * 10 + r for s, r in theirs])
    deltas = torch.tensor([[s * 10 + r, 1, 2, 3] for s, r in theirs]).flatten()
    tensors["proposal_generator.rpn_head.anchor_deltas.bias"] = deltas
    converted = convert(Content(tensors), None)
    anchors = converted.config.rpn.anchors
    width, height = (cell_anchors(anchors.sizes[0], anchors.ratios)[:, 2:] * 2).unbind(1)
    marks = (width * height).sqrt() * 10 + height / width
    assert torch.allclose(converted.state["rpn.objectness.bias"], marks, atol=1e-3)
    ours = converted.state["rpn.deltas.bias"].reshape(-1, 4)
    assert torch.allclose(ours[:, 0], marks, atol=1e-3)
    assert ours[:, 1:].tolist() == [[1, 2, 3]] * 15


# --- whose file it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["proposal_generator.rpn_head.objectness_logits.weight", "roi_heads.box_predictor.cls_score.weight"], True),
        (["proposal_generator.rpn_head.objectness_logits.weight", "roi_heads.box_predictor.2.cls_score.weight"], False),
        (["head.cls_score.weight", "backbone.bottom_up.stem.conv1.weight"], False),  # RetinaNet
        (["rpn.head.cls_logits.weight", "roi_heads.box_predictor.cls_score.weight"], False),  # torchvision
        ([], False),
    ],
)
def test_recognises_by_names(names: list[str], expected: bool) -> None:
    assert recognises(Content({name: torch.zeros(1) for name in names})) is expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("backbone.bottom_up.res3.0.conv2_offset.weight", "deformable convolutions: not known here"),
        ("sem_seg_head.predictor.weight", "the semantic head of a panoptic network: not known here"),
        ("roi_heads.cube_head.weight", "another network; found 1: roi_heads.cube_head.weight"),
    ],
)
def test_unknown_parts_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(Content(empty("r50-fpn") | {name: torch.zeros(1)}), None)


def test_another_depth_is_refused() -> None:
    tensors = {name: tensor for name, tensor in empty("r50-fpn").items() if ".res4.5." not in name}
    with pytest.raises(InputError, match=r"unknown ResNet; found stages of \(3, 4, 5, 3\) blocks"):
        convert(Content(tensors), None)


def test_a_tensor_short_is_no_detector() -> None:
    tensors = empty("r50-fpn")
    del tensors["backbone.fpn_output3.bias"]
    tensors["roi_heads.mask_head.deconv.weight"] = torch.zeros(256, 128, 2, 2)
    with pytest.raises(
        InputError, match=r"\(2\): weights: fpn.output.p3.conv.bias: is missing.*mask_head.deconv.weight: does not fit"
    ):
        open_content(Content(tensors))


# --- settings ---------------------------------------------------------------------------------------------------------


def converted(tmp_path: Path, text: str, name: str = "r50-fpn") -> Converted:
    return convert(Content(empty(name)), settings(tmp_path, text))


def test_settings_come_before_the_zoo(tmp_path: Path) -> None:
    text = """
MODEL:
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: "[58.395, 57.12, 57.375]"
  RESNETS: {STRIDE_IN_1X1: false}
  ROI_HEADS: {SCORE_THRESH_TEST: 0.7, NMS_THRESH_TEST: 0.4}
  ROI_BOX_HEAD: {POOLER_TYPE: ROIAlign, POOLER_SAMPLING_RATIO: 2, BBOX_REG_WEIGHTS: !!python/tuple [1, 1, 1, 1]}
  ROI_MASK_HEAD: {POOLER_TYPE: ROIAlign, POOLER_SAMPLING_RATIO: 2}
  RPN: {NMS_THRESH: 0.9}
INPUT: {FORMAT: RGB, MIN_SIZE_TEST: 0}
TEST: {DETECTIONS_PER_IMAGE: 7}
"""
    result = converted(tmp_path, text)
    config = result.config
    assert config.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    assert config.preprocess.std == pytest.approx((0.229, 0.224, 0.225))
    assert (config.preprocess.channels, config.preprocess.shortest) == ("rgb", None)
    assert config.preprocess.resized_size((3000, 4000)) == (3000, 4000)  # 0 asks for pictures as they are
    assert config.backbone.stride_in == "3x3"
    assert (config.roi_pooler.aligned, config.roi_pooler.sampling_ratio) == (False, 2)
    assert config.box_head.delta_weights == (1.0, 1.0, 1.0, 1.0)
    assert (config.detection.score_threshold, config.detection.nms_iou, config.detection.max_detections) == (
        0.7,
        0.4,
        7,
    )
    assert config.rpn.nms_iou == 0.9
    assumed = "\n".join(result.assumed)
    assert "NMS_THRESH" not in assumed and "rpn.post_nms_top_n 1000" in assumed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {ROI_HEADS: {NUM_CLASSES: 3}}", r"NUM_CLASSES: contradicts the weights; found 3; expected 80"),
        ("MODEL: {MASK_ON: false}", r"MODEL.MASK_ON: contradicts the weights; found False; expected True"),
        ("MODEL: {KEYPOINT_ON: true}", r"KEYPOINT_ON: contradicts the weights; found True; expected False"),
        ("MODEL: {RESNETS: {DEPTH: 101}}", r"RESNETS.DEPTH: contradicts the weights; found 101; expected 50"),
        ("MODEL: {RESNETS: {NORM: GN}}", r"RESNETS.NORM: does not fit, or is not known here; found GN"),
        ("MODEL: {ROI_BOX_HEAD: {POOLER_RESOLUTION: 14}}", r"ROI_BOX_HEAD.POOLER_RESOLUTION: .* found 14; expected 7"),
        ("MODEL: {ROI_BOX_HEAD: {POOLER_TYPE: ROIPool}}", r"found ROIPool; expected ROIAlignV2 or ROIAlign"),
        ("MODEL: {ROI_BOX_HEAD: {POOLER_SAMPLING_RATIO: 2}}", r"POOLER: differs between heads"),
        ("MODEL: {ROI_BOX_HEAD: {USE_SIGMOID_CE: true}}", r"USE_SIGMOID_CE: .*found True; expected False"),
        (
            "MODEL: {ANCHOR_GENERATOR: {SIZES: [[32, 64]]}}",
            r"ANCHOR_GENERATOR: contradicts .* expected 3 anchors a cell",
        ),
        ("MODEL: {RPN: {NMS_THRESH: high}}", r"RPN.NMS_THRESH: wrong type; found high; expected something like 0.7"),
        ("MODEL: {PIXEL_STD: [1.0]}", r"PIXEL_STD: wrong length; found \(1\); expected 3 values"),
        ("MODEL: {PIXEL_STD: !!python/object/apply:os.getcwd []}", r"PIXEL_STD: .*os.getcwd"),
        ("INPUT: {FORMAT: YUV-BT.601}", r"INPUT.FORMAT: .*found YUV-BT.601; expected BGR or RGB"),
        ("lr: 3", r"config.yaml: does not fit Detectron2's weights; found lr"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        converted(tmp_path, text)
    assert "config.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_contradictions_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(2\): .*NUM_CLASSES.*\|.*MASK_ON"):
        converted(tmp_path, "MODEL: {MASK_ON: false, ROI_HEADS: {NUM_CLASSES: 3}}")


def test_names_follow_the_data_set(tmp_path: Path) -> None:
    def names(name: str, data: str) -> tuple[str, ...]:
        return converted(tmp_path, f"DATASETS: {{TEST: [{data}]}}", name).config.class_names

    assert names("cityscapes", "cityscapes_fine_instance_seg_val") == class_names.CITYSCAPES
    assert names("cityscapes", "mine") == tuple("12345678")
    assert names("r50-fpn", "coco_2017_val")[:2] == ("person", "bicycle")
    assert names("r50-fpn", "mine")[:2] == ("1", "2")


def test_a_config_builds_on_others(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "root.yaml").write_text("MODEL: {RPN: {NMS_THRESH: 0.1, HEAD_NAME: A}, MASK_ON: true}")
    (tmp_path / "base" / "middle.yaml").write_text("_BASE_: root.yaml\nMODEL: {RPN: {NMS_THRESH: 0.2}}")
    (tmp_path / "leaf.yaml").write_text("_BASE_: base/middle.yaml\nMODEL: {RPN: {NMS_THRESH: 0.3}, DEVICE: cpu}")
    rpn = {"NMS_THRESH": 0.3, "HEAD_NAME": "A"}
    assert read_config(tmp_path / "leaf.yaml") == {"MODEL": {"RPN": rpn, "MASK_ON": True, "DEVICE": "cpu"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: ../Base-RCNN-FPN.yaml", r"builds on a file that is not there; found ../Base-RCNN-FPN.yaml"),
        ("_BASE_: https://somewhere/Base.yaml", r"builds on a file that is not there"),
        ("_BASE_: config.yaml", r"builds on itself"),
        ("MODEL: [", r"not YAML"),
        ("- 1", r"not a config; found list"),
        ("MODEL: \xff", r"cannot be read"),
    ],
)
def test_broken_configs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        read_config(tmp_path / "config.yaml")
    assert str(tmp_path / "config.yaml") in str(caught.value)


def test_code_in_a_config_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    (tmp_path / "config.yaml").write_text(
        f"MODEL: !!python/object/apply:pathlib.Path.touch ['{made}']\nA: !what {{b: 1}}"
    )
    assert set(read_config(tmp_path / "config.yaml")) == {"MODEL", "A"}
    assert not made.exists()


def test_published_class_lists() -> None:
    coco = class_names.coco()
    assert (len(coco), coco.names[79], coco.category_ids[11]) == (80, "toothbrush", 13)
    for version, number, last in (("v0.5", 1230, "zucchini"), ("v1", 1203, "zucchini")):
        lvis = class_names.lvis(version)
        assert (len(lvis), lvis.names[-1], lvis.category_ids[-1]) == (number, last, number)
