"""Whose file it is, whose word counts for what it does not tell, and models that are whole or not there."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models import detection as tv
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from maskrcnn.errors import InputError, InputErrors
from maskrcnn.predictor import load
from maskrcnn.weights import hub
from maskrcnn.weights.content import Content, Converted, Settings
from maskrcnn.weights.files import read_checkpoint, save_checkpoint
from maskrcnn.weights.opening import FAMILIES, load_model, open_content, open_weights, resolve_weights

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def small() -> State:
    """Faster R-CNN of torchvision for two classes on ResNet-18 with a narrow head."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    head, predictor = TwoMLPHead(256 * 49, 8), FastRCNNPredictor(8, 3)
    state: State = tv.FasterRCNN(backbone, box_head=head, box_predictor=predictor).state_dict()
    return state


@pytest.fixture
def ours(small: State, tmp_path: Path) -> Path:
    model = open_content(Content(dict(small))).model
    return save_checkpoint(tmp_path / "ours.safetensors", model, metadata={"licence": "CC0-1.0", "source": "dice"})


@pytest.mark.parametrize("name", ["detector.pth", "detector.pkl", "detector.bin", "detector", "cfg.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_is_known_by_what_it_holds(small: State, tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save({"state_dict": small, "epoch": 3}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    opened = open_weights(tmp_path / name)
    assert opened.family == "torchvision" and opened.model.config.class_names == ("1", "2")
    assert any("norm_eps" in line for line in opened.assumed)
    assert opened.metadata["assumed"] == list(opened.assumed)


def test_tensors_of_another_family_in_a_safetensors_file(small: State, tmp_path: Path) -> None:
    safetensors.torch.save_file(small, tmp_path / "theirs.safetensors")
    assert open_weights(tmp_path / "theirs.safetensors").family == "torchvision"


def test_our_own_files_assume_nothing(ours: Path) -> None:
    opened = open_weights(ours)
    assert (opened.family, opened.assumed) == ("maskrcnn", ())
    assert (opened.metadata["licence"], opened.metadata["source"]) == ("CC0-1.0", "dice")


def test_what_is_assumed_is_told_once(small: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(small, tmp_path / "theirs.pth")
    with caplog.at_level(logging.WARNING, "maskrcnn"):
        load(tmp_path / "theirs.pth", device="cpu")
    (message,) = caplog.messages
    assert "theirs.pth: a detector of torchvision, whose file does not tell: " in message


# --- whose word counts ------------------------------------------------------------------------------------------------

CHANGE: dict[str, Any] = {"detection": {"score_threshold": 0.3}, "class_names": ["cell", "nucleus"]}


@pytest.mark.parametrize("written", ["mapping", "config.json", "config.yaml"])
def test_some_of_our_fields(small: State, ours: Path, tmp_path: Path, written: str) -> None:
    change: Any = CHANGE
    if written != "mapping":
        change = tmp_path / "asked" / written
        change.parent.mkdir()
        change.write_text(json.dumps(CHANGE))
    torch.save(small, tmp_path / "theirs.pth")
    for weights in (ours, tmp_path / "theirs.pth"):
        config = load_model(weights, change).config
        assert config.detection.score_threshold == 0.3
        assert config.detection.nms_iou == 0.5  # the others stay
        assert config.class_names == ("cell", "nucleus")


def test_a_whole_config_counts_for_all(small: State, ours: Path, tmp_path: Path) -> None:
    config, _, _ = read_checkpoint(ours)
    torch.save(small, tmp_path / "theirs.pth")
    opened = open_weights(tmp_path / "theirs.pth", config)
    assert opened.model.config == config and opened.assumed == ()


class Talking:
    """A family that notes what it is handed."""

    def __init__(self, converted: Converted) -> None:
        self.converted, self.heard = converted, []  # type: ignore[var-annotated]

    def recognises(self, content: Content) -> bool:
        return True

    def convert(self, content: Content, settings: Settings | None) -> Converted:
        self.heard.append(settings)
        return self.converted


def test_settings_handed_in_come_before_those_beside_the_file(
    small: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskrcnn.weights import torchvision

    family = Talking(torchvision.convert(Content(dict(small)), None))
    monkeypatch.setattr("maskrcnn.weights.opening._family_of", lambda content: family)
    torch.save(small, path := tmp_path / "theirs.pth")
    open_weights(path)
    (tmp_path / "config.yaml").write_text("MODEL: {MASK_ON: false}")
    opened = open_weights(path)
    assert opened.metadata["settings"] == "config.yaml beside the file"
    (tmp_path / "other.yaml").write_text("MODEL: {MASK_ON: true}")
    open_weights(path, tmp_path / "other.yaml")
    open_weights(path, {"MODEL": {"MASK_ON": 3}})
    told = [None if settings is None else settings.values["MODEL"]["MASK_ON"] for settings in family.heard]
    assert told == [None, False, True, 3]


def test_what_is_handed_in_is_not_assumed(small: State) -> None:
    plain = open_content(Content(dict(small))).assumed
    told = open_content(Content(dict(small)), {"backbone": {"norm_eps": 0.25}, "class_names": ["a", "b"]}).assumed
    dropped = [line for line in plain if line.startswith(("backbone.norm_eps ", "class_names "))]
    assert len(dropped) == 2 and list(told) == [line for line in plain if line not in dropped]


def test_our_own_fields_beside_the_file(small: State, tmp_path: Path) -> None:
    torch.save(small, path := tmp_path / "theirs.pth")
    (tmp_path / "config.yaml").write_text("backbone: {norm_eps: 0.25}\ndetection: {nms_iou: 0.4}")
    config = load_model(path, {"detection": {"nms_iou": 0.6}}).config
    assert (config.backbone.norm_eps, config.detection.nms_iou) == (0.25, 0.6)  # what is handed in comes first


def test_a_download_keeps_its_licence(small: State, tmp_path: Path) -> None:
    torch.save(small, path := tmp_path / "theirs.pth")
    told = {"licence": "CC BY-SA 3.0", "url": "https://example.org/theirs.pth"}
    (tmp_path / "theirs.pth.json").write_text(json.dumps(told))
    metadata = open_weights(path).metadata
    assert (metadata["licence"], metadata["source"]) == (told["licence"], told["url"])


def test_settings_of_another_framework_are_refused(small: State, ours: Path, tmp_path: Path) -> None:
    torch.save(small, tmp_path / "theirs.pth")
    settings = {"MODEL": {"MASK_ON": True}}
    with pytest.raises(InputError, match="theirs.pth: config: does not fit torchvision's weights"):
        load_model(tmp_path / "theirs.pth", settings)
    with pytest.raises(InputError, match="ours.safetensors: config: does not fit maskrcnn's weights"):
        load_model(ours, settings)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"detection": {"score_threshold": 3}}, r"DetectionConfig\.score_threshold: impossible value; found 3"),
        ({"detection": {"treshold": 0.5}}, r"config\.detection: unknown field; found treshold"),
        ({"class_names": ["one"]}, r"category_ids: impossible value; .*expected 1 ids"),
        ({"class_names": ["a", "b", "c"], "category_ids": [1, 2, 3]}, r"box_head\.classes\.bias: does not fit"),
        ("missing.yaml", r"missing\.yaml: no such config"),
    ],
)
def test_a_config_that_does_not_fit(ours: Path, config: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(ours, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("detection: {nms_iou: 7}", r"DetectionConfig\.nms_iou: impossible value; found 7\.0"),
        ("detection: {treshold: 1}", r"config\.detection: unknown field; found treshold"),
        ("class_names: [a, a]", r"MaskRCNNConfig\.class_names: impossible value; .*expected each only once"),
        ("detectoin: {nms_iou: 0.5}", r"does not fit maskrcnn's weights; found detectoin; expected .*detection"),
        ("[" * 10**4, r"not YAML; found .*recursion"),
        ("rpn: &a [*a]", "too large for a config"),
        (
            "rpn: [&a [1, 1], " + ", ".join(f"&{b} [*{a}, *{a}]" for a, b in pairwise("abcdefghijklmnopqr")) + "]",
            "too large",
        ),
    ],
)
def test_a_config_file_is_named(ours: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml: " + message):
        load_model(ours, tmp_path / "mine.yaml")


def test_the_config_beside_foreign_weights_is_named(small: State, tmp_path: Path) -> None:
    torch.save(small, tmp_path / "theirs.pth")
    (tmp_path / "config.yaml").write_text("rpn: {nms_iou: -1}")
    with pytest.raises(InputError, match=r"config\.yaml: RPNConfig\.nms_iou: impossible value; found -1"):
        load_model(tmp_path / "theirs.pth")


def test_what_is_neither_weights_nor_config(ours: Path) -> None:
    for weights in (None, 3, "", ["nuclei"], b"nuclei"):
        with pytest.raises(InputError, match=r"weights: no such weights; found .*; expected a file, or a name"):
            load_model(weights)  # type: ignore[arg-type]
    for config in (3, ["detection"]):
        with pytest.raises(InputError, match="config: is not a config; found "):
            load_model(ours, config)  # type: ignore[arg-type]


# --- whole or not there -----------------------------------------------------------------------------------------------


def test_missing_surplus_and_misshaped_tensors_are_named(small: State, tmp_path: Path) -> None:
    state = dict(small)
    del state["rpn.head.bbox_pred.bias"]
    torch.save(state, path := tmp_path / "theirs.pth")
    with pytest.raises(InputErrors, match=r"theirs\.pth: .*rpn\.deltas\.bias: is missing; expected float \(12\)"):
        load_model(path)
    torch.save({**small, "roi_heads.third_head.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"theirs\.pth: .*third_head\.weight"):
        load_model(path)
    torch.save({**small, "rpn.head.bbox_pred.bias": torch.zeros(9)}, path)
    with pytest.raises(InputErrors, match=r"rpn\.deltas\.bias: does not fit; found float \(9\); expected float \(12\)"):
        load_model(path)


def test_what_no_family_knows(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2), "bias": torch.zeros(2)}, path := tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: not a detector that is known here; found 2 tensors: w"):
        load_model(path)


def test_every_family_is_there() -> None:
    import importlib

    for name in FAMILIES:
        family = importlib.import_module(f"maskrcnn.weights.{name}")
        assert not family.recognises(Content({}))
        assert not family.recognises(Content({"weight": torch.zeros(1)}))


# --- names ------------------------------------------------------------------------------------------------------------


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "resolve", lambda name: tmp_path / f"{name}.pkl")
    assert resolve_weights("nuclei").name == "nuclei.safetensors"
    assert resolve_weights("coco-r50-fpn") == tmp_path / "coco-r50-fpn.pkl"
    assert resolve_weights("runs/coco-r50-fpn") == Path("runs/coco-r50-fpn")  # a path is a path
    monkeypatch.chdir(tmp_path)
    Path("nuclei").touch()
    assert resolve_weights("nuclei") == Path("nuclei")  # and so is a file of that name
    with pytest.raises(InputError, match="no such weights; found cocoa"):
        resolve_weights("cocoa")
