"""What the tensors of torchvision's detectors tell of a config, how they are renamed, and which files are opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import detection as tv
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import _resize_image_and_masks
from torchvision.ops.misc import FrozenBatchNorm2d

from maskrcnn.errors import InputError, InputErrors
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import Backbone, BackboneConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.preprocess import Preprocess
from maskrcnn.predictor import load
from maskrcnn.weights.content import Content
from maskrcnn.weights.files import save_checkpoint
from maskrcnn.weights.opening import load_model, open_weights
from maskrcnn.weights.torchvision import convert, convert_state, load_torchvision, looks_like, recognises, rename
from maskrcnn.weights.torchvision_mobilenet import LEVELS, TAPS
from maskrcnn.weights.zoo import find, zoo

State = dict[str, Tensor]
MOBILENET = "mobilenetv3_large_100"


def on_meta(build: Callable[..., nn.Module]) -> State:
    """Names and shapes of a network's tensors, without values."""
    with torch.device("meta"):
        state: State = build().state_dict()
    return state


def bare(build: Callable[..., nn.Module], num_classes: int = 91) -> State:
    return on_meta(partial(build, weights=None, weights_backbone=None, num_classes=num_classes))


def on_backbone(name: str, num_classes: int = 5, kind: Any = tv.MaskRCNN, **options: Any) -> State:
    """Mask R-CNN, first version, on another ResNet, whose batch norm is frozen unless asked for otherwise."""
    return on_meta(lambda: kind(resnet_fpn_backbone(backbone_name=name, weights=None, **options), num_classes))


def on_mobilenet(name: str, **options: Any) -> State:
    """Faster R-CNN on a MobileNet whose batch norm is frozen, as in the published files."""
    return on_meta(
        lambda: tv.FasterRCNN(
            mobilenet_backbone(backbone_name=name, weights=None, fpn=True, **options),
            91,
            rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3),
        )
    )


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def wanted(config: MaskRCNNConfig) -> dict[str, tuple[int, ...]]:
    return shapes(on_meta(partial(MaskRCNN, config)))


# --- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "num_keypoints", "class_names", "first", "assumed"),
    [
        (2, 17, ("person",), "nose", "keypoint_head.scheme those of COCO's person: by their number, 17"),
        (2, 5, ("1",), "1", "keypoint_head.scheme 1 to 5: by their number, 5"),
        (3, 17, ("1", "2"), "nose", "keypoint_head.scheme those of COCO's person: by their number, 17"),
    ],
)
def test_keypoints(
    num_classes: int, num_keypoints: int, class_names: tuple[str, ...], first: str, assumed: str
) -> None:
    theirs = bare(partial(tv.keypointrcnn_resnet50_fpn, num_keypoints=num_keypoints), num_classes)
    converted = convert(Content(theirs), None)
    head = converted.config.keypoint_head
    assert converted.config.class_names == class_names and converted.config.mask_head is None
    assert head is not None and (len(head.scheme), head.scheme.names[0]) == (num_keypoints, first)
    assert (head.num_convs, head.channels, head.side, head.score, head.scheme.pixel_centre) == (8, 512, 56, "logit", 0)
    assert converted.assumed[-1] == assumed
    assert shapes(converted.state) == wanted(converted.config)
    assert len(converted.state) == len(theirs)


def test_a_detector_of_masks_and_keypoints() -> None:
    """Torchvision has no builder for one, but its parts go together."""
    keypoints, masks = bare(tv.keypointrcnn_resnet50_fpn, 2), bare(tv.maskrcnn_resnet50_fpn, 2)
    config, state = convert_state(keypoints | masks)
    assert config.mask_head is not None and config.keypoint_head is not None
    assert shapes(state) == wanted(config)


@pytest.mark.parametrize(
    ("state", "backbone", "norms", "conv_depth", "box_layers", "has_masks"),
    [
        (partial(bare, tv.maskrcnn_resnet50_fpn), "resnet50", ("batch", None), 1, (0, 2), True),
        (partial(bare, tv.maskrcnn_resnet50_fpn_v2), "resnet50", ("batch", "batch"), 2, (4, 1), True),
        (partial(bare, tv.fasterrcnn_resnet50_fpn, 3), "resnet50", ("batch", None), 1, (0, 2), False),
        (partial(bare, tv.fasterrcnn_resnet50_fpn_v2, 3), "resnet50", ("batch", "batch"), 2, (4, 1), False),
        (partial(bare, tv.keypointrcnn_resnet50_fpn, 2), "resnet50", ("batch", None), 1, (0, 2), False),
        (partial(bare, tv.fasterrcnn_mobilenet_v3_large_fpn), MOBILENET, ("batch", None), 1, (0, 2), False),
        (partial(on_backbone, "resnet101"), "resnet101", ("frozen", None), 1, (0, 2), True),
        (partial(on_backbone, "resnet18", norm_layer=nn.BatchNorm2d), "resnet18", ("batch", None), 1, (0, 2), True),
    ],
    ids=["v1", "v2", "faster v1", "faster v2", "keypoints", "mobilenet", "resnet101", "resnet18"],
)
def test_the_config_is_read_off_the_tensors(
    state: Callable[[], State], backbone: str, norms: Any, conv_depth: int, box_layers: Any, has_masks: bool
) -> None:
    theirs = state()
    assert looks_like(theirs)
    config, ours = convert_state(theirs)
    assert config.backbone.name == backbone
    assert (config.backbone.norm, config.fpn.norm) == norms
    assert config.box_head.norm == norms[1]
    assert config.rpn.conv_depth == conv_depth
    assert (config.box_head.num_convs, config.box_head.num_fcs) == box_layers
    assert (config.mask_head is not None) == has_masks
    assert config.num_classes == len(theirs["roi_heads.box_predictor.cls_score.bias"]) - 1
    assert shapes(ours) == wanted(config)  # everything has its place, and nothing is missing


def test_the_conventions_are_torchvisions() -> None:
    config, _ = convert_state(bare(tv.maskrcnn_resnet50_fpn))
    assert (config.preprocess.shortest, config.preprocess.longest) == (800, 1333)
    assert not config.preprocess.antialias
    assert config.rpn.anchors == AnchorConfig(rounding=True, strides="grid")
    assert not config.roi_pooler.aligned
    assert config.detection.min_size == 1e-2


def test_conventions_of_mobilenets() -> None:
    converted = convert(Content(on_mobilenet("mobilenet_v3_large")), None)
    config = converted.config
    assert (config.backbone.norm, config.backbone.norm_eps) == ("frozen", 1e-5)  # COCO's too, unlike on a ResNet
    assert config.rpn.anchors.sizes == ((32, 64, 128, 256, 512),) * 3
    assert (config.rpn.score_threshold, config.preprocess.shortest) == (0.05, 800)
    assert shapes(converted.state) == wanted(config)
    small = converted.assumed[0].rpartition("--config with ")[2]
    assert "320" in converted.assumed[0] and json.loads(small).keys() == {"preprocess", "rpn"}
    assert "backbone.norm_eps 1e-05: torchvision's default" in converted.assumed


@torch.no_grad()
def test_a_mobilenet_of_torchvision_is_that_of_timm() -> None:
    """Every layer has its place: the same maps from inside and from the end, with norms that learn and frozen ones."""
    torch.manual_seed(0)
    peer = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=nn.BatchNorm2d)
    for module in peer.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    theirs = {f"backbone.{name}": tensor for name, tensor in peer.state_dict().items()}
    ours = rename(on_mobilenet("mobilenet_v3_large") | theirs)
    body = {name.removeprefix("backbone."): tensor for name, tensor in ours.items() if name.startswith("backbone.")}
    pixels = torch.randn(2, 3, 64, 96)
    expected = list(peer.eval().body(pixels).values())
    for norm in ("batch", "frozen"):
        config = BackboneConfig(name=MOBILENET, norm=norm, norm_eps=1e-5, levels=LEVELS, taps=TAPS)  # type: ignore[arg-type]
        backbone = Backbone(config).eval()
        backbone.load_state_dict(body, strict=norm == "batch")  # frozen ones do not count batches
        found = backbone(pixels)
        assert list(found) == ["c5a", "c5"]
        torch.testing.assert_close(list(found.values()), expected)


def test_resized_sizes_are_torchvisions() -> None:
    config, _ = convert_state(bare(tv.maskrcnn_resnet50_fpn))
    preprocess = Preprocess(config.preprocess)
    sizes = np.random.default_rng(0).integers(20, 2500, (300, 2)).tolist() + [[480, 640], [427, 640], [375, 500]]
    for height, width in sizes:
        resized, _ = _resize_image_and_masks(torch.empty(3, height, width, device="meta"), 800, 1333)
        assert preprocess.config.resized_size((height, width)) == tuple(resized.shape[1:])


@pytest.mark.parametrize(
    ("state", "asked", "eps"),
    [
        (partial(bare, tv.maskrcnn_resnet50_fpn), None, 1e-5),
        (partial(on_backbone, "resnet50"), None, 1e-5),
        (partial(on_backbone, "resnet50"), 0.0, 0.0),
        (partial(on_backbone, "resnet50", 91), None, 0.0),  # frozen and COCO's, as in the published weights
        (partial(on_backbone, "resnet50", 91), 1e-5, 1e-5),
        (partial(on_backbone, "resnet50", 2), None, 1e-5),
        (partial(on_backbone, "resnet50", 2, tv.KeypointRCNN), None, 0.0),
    ],
    ids=["learns", "frozen", "frozen, 0 asked", "COCO", "COCO, 1e-5 asked", "one class", "keypoints"],
)
def test_what_norms_add_to_variances(state: Callable[[], State], asked: float | None, eps: float) -> None:
    config, _ = convert_state(state(), norm_eps=asked)
    assert config.backbone.norm_eps == eps
    with torch.device("meta"):
        model = MaskRCNN(config)
    found = {module.eps for module in model.backbone.modules() if hasattr(module, "running_var")}
    assert found == {eps}


def test_the_zoo_knows_what_norms_add_to_variances(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchvision's builders make of the published weights, whose numbers are not needed for that."""
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda self, **options: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
    for entry in zoo().values():
        if entry.framework == "torchvision":
            enum, member = entry.published.split(".")
            build = getattr(tv, enum.lower().removesuffix("_weights"))
            with torch.device("meta"):
                modules = build(weights=getattr(tv, enum)[member]).backbone.modules()
            eps = {module.eps for module in modules if isinstance(module, FrozenBatchNorm2d)}
            assert eps == ({entry.settings["backbone"]["norm_eps"]} if entry.settings else set()), entry.name


def test_class_names() -> None:
    coco, _ = convert_state(bare(tv.fasterrcnn_resnet50_fpn))
    assert (coco.class_names[0], coco.class_names[16], coco.class_names[89]) == ("person", "cat", "toothbrush")
    assert coco.category_ids == tuple(range(1, 91))
    assert len(set(coco.class_names)) == 90
    few = bare(tv.fasterrcnn_resnet50_fpn, num_classes=3)
    assert convert_state(few)[0].class_names == ("1", "2")
    named, _ = convert_state(few, class_names=["cell", "nucleus"], category_ids=[7, 9])
    assert (named.class_names, named.category_ids) == (("cell", "nucleus"), (7, 9))
    with pytest.raises(InputError, match="class_names: does not fit the weights; found 1 names; expected 2"):
        convert_state(few, class_names=["cell"])
    with pytest.raises(InputError, match="category_ids: impossible value; found .*; expected 2 ids"):
        convert_state(few, category_ids=[1])


# --- names and rows ---------------------------------------------------------------------------------------------------


def test_rows_of_background_are_left_out() -> None:
    state = bare(tv.maskrcnn_resnet50_fpn, num_classes=4)
    numbered = {
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(16.0),
        "roi_heads.mask_predictor.mask_fcn_logits.bias": torch.arange(4.0),
        "roi_heads.box_predictor.cls_score.bias": torch.arange(4.0),
    }
    ours = rename(state | numbered)
    assert ours["box_head.deltas.bias"].tolist() == list(range(4, 16))
    assert ours["mask_head.masks.bias"].tolist() == [1, 2, 3]
    assert ours["box_head.classes.bias"].tolist() == [0, 1, 2, 3]


def test_names_of_older_files() -> None:
    """The published files of the first versions were written before blocks of convolution and norm had names."""
    state = on_backbone("resnet50")
    old = {}
    for name, tensor in state.items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for i in range(4):
            name = name.replace(f"_blocks.{i}.0.", f"_blocks.{i}.")
            name = name.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
        old[name] = tensor
    assert len(old.keys() - state.keys()) == 2 * (8 + 1 + 4)
    (config, ours), (old_config, old_ours) = convert_state(state), convert_state(old)
    assert old_config == config
    assert list(old_ours) == list(ours)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda: bare(tv.retinanet_resnet50_fpn),
            "no detector of torchvision; found 354: backbone.body.conv1.weight, ",
        ),
        (lambda: {}, "no detector of torchvision"),
        (
            lambda: bare(tv.keypointrcnn_resnet50_fpn, 2) | {"roi_heads.pose_head.0.weight": torch.zeros(1)},
            "tensors: holds tensors that Mask R-CNN has not; found 1: roi_heads.pose_head.0.weight",
        ),
        (
            lambda: on_mobilenet("mobilenet_v3_small"),
            "backbone.body: unknown network; found a MobileNet of 13 parts; expected MobileNetV3 large, of 17",
        ),
        (
            lambda: on_mobilenet("mobilenet_v3_large", returned_layers=[3, 4, 5]),
            "backbone.fpn: not the usual pyramid; found 3 levels; expected 2",
        ),
        (
            lambda: on_backbone("resnet50") | {"backbone.body.layer1.3.conv1.weight": torch.zeros(1)},
            "unknown network",
        ),
        (
            lambda: bare(tv.fasterrcnn_resnet50_fpn) | {"rpn.head.cls_logits.weight": torch.zeros(9, 256, 1, 1)},
            "rpn: not the usual anchors; found 9 anchors per cell; expected 3",
        ),
        (
            lambda: {k: v for k, v in bare(tv.fasterrcnn_resnet50_fpn).items() if "fc6" not in k and "fc7" not in k},
            "box_head.fcs.0.weight: is missing",
        ),
    ],
    ids=["retinanet", "nothing", "another head", "mobilenet", "taps", "network", "anchors", "no layers"],
)
def test_what_is_not_recognised(state: Callable[[], State], message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert_state(state())


def test_what_is_recognised() -> None:
    assert recognises(Content(bare(tv.fasterrcnn_mobilenet_v3_large_fpn)))
    assert not recognises(Content(bare(tv.retinanet_resnet50_fpn)))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> State:
    """Faster R-CNN for two classes on ResNet-18 with a narrow head."""
    return small_detector(num_classes=3)


def small_detector(num_classes: int) -> State:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    head, predictor = TwoMLPHead(256 * 49, 8), FastRCNNPredictor(8, num_classes)
    state: State = tv.FasterRCNN(backbone, box_head=head, box_predictor=predictor).state_dict()
    return state


def the_same(model: MaskRCNN, state: State) -> bool:
    ours = rename(state)
    return all(torch.equal(tensor, ours[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pth_file(small: State, tmp_path: Path, wrapped: bool) -> None:
    """Bare, and as training scripts write it: with the state of the optimiser, and of a model spread over processes."""
    path = tmp_path / "detector.pth"
    spread = {f"module.{name}": tensor for name, tensor in small.items()}
    torch.save({"model": spread, "epoch": 3, "optimizer": {"lr": 0.1}} if wrapped else small, path)
    model = load_model(path)
    assert the_same(model, small)
    assert not model.training
    assert load(path, device="cpu").class_names == ("1", "2")


def test_a_safetensors_file(small: State, tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    safetensors.torch.save_file(small, path)
    assert the_same(load_model(path), small)
    again = save_checkpoint(tmp_path / "ours.safetensors", load_model(path), metadata={})
    assert the_same(load_model(again), small)


def test_a_config_in_place_of_what_the_tensors_imply(small: State, tmp_path: Path) -> None:
    config, _ = convert_state(small)
    anchors = AnchorConfig(sizes=((8,), (16,), (32,), (64,), (128,)), rounding=True, strides="grid")
    config = replace(config, rpn=replace(config.rpn, anchors=anchors))
    assert load_torchvision(small, config).config == config
    path = tmp_path / "detector.pth"
    torch.save(small, path)
    wide = replace(config, box_head=replace(config.box_head, fc_channels=9))
    with pytest.raises(InputErrors, match=r"detector\.pth: .*box_head\.classes\.weight: does not fit"):
        load_model(path, wide)


def test_a_state_that_lacks_tensors(small: State) -> None:
    state = {name: tensor for name, tensor in small.items() if "layer_blocks.2" not in name}
    with pytest.raises(InputErrors, match=r"fpn\.output\.p4\.conv\.bias: is missing"):
        load_torchvision(state)


@pytest.mark.parametrize(
    ("num_classes", "published_as", "eps", "assumed"),
    [
        (91, "torchvision-r50-fpn", 0.0, None),
        (91, "torchvision-keypoint-r50-fpn-legacy", 1e-5, None),
        (91, None, 0.0, "as the published COCO_V1 run"),  # saved again, or somebody else's
        (3, None, 1e-5, "torchvision's default; weights fine-tuned from COCO_V1 in one process ran with 0 there"),
    ],
)
def test_a_published_file_is_known_by_its_hash(
    num_classes: int,
    published_as: str | None,
    eps: float,
    assumed: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "detector.pth"
    torch.save(small_detector(num_classes), path)
    if published_as is not None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        known = dict(zoo()) | {published_as: replace(find(published_as), digest=digest)}
        monkeypatch.setattr("maskrcnn.weights.torchvision.zoo", lambda: known)
    opened = open_weights(path)
    assert opened.model.config.backbone.norm_eps == eps
    lines = [line for line in opened.assumed if "norm_eps" in line]
    assert len(lines) == (assumed is not None)
    if assumed is not None:
        (line,) = lines
        assert line.startswith(f"backbone.norm_eps {eps:g}: {assumed}")
        other = tmp_path / "other.yaml"  # what the line advises
        other.write_text(line.rpartition("--config with ")[2])
        assert load_model(path, other).config.backbone.norm_eps == (1e-5 if eps == 0 else 0)
