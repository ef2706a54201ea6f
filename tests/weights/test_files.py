"""Checkpoints there and back, and every way in which a file can fail to be one."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from maskrcnn.errors import InputError, InputErrors
from maskrcnn.model.config import to_dict
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import preset
from maskrcnn.weights import files
from maskrcnn.weights.files import read_checkpoint, save_checkpoint, whole_file
from maskrcnn.weights.opening import load_model, resolve_weights

Change = Callable[[dict[str, Any]], object]

METADATA = {"licence": "CC0-1.0", "source": "drawn shapes, seed 0", "scores": {"mask_ap": 0.5}}


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(preset("nano", ("cell", "débris"), (1, 7)))


@pytest.fixture
def checkpoint(model: MaskRCNN, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model.safetensors", model, metadata=METADATA)


def rewritten(
    path: Path,
    change_document: Change = lambda document: None,
    change_state: Callable[[dict[str, torch.Tensor]], object] = lambda state: None,
) -> Path:
    """The same file with something changed in its JSON or its tensors."""
    with safetensors.safe_open(path, framework="pt") as stream:
        document = json.loads(stream.metadata()["maskrcnn"])
    state = safetensors.torch.load_file(path)
    change_document(document)
    change_state(state)
    safetensors.torch.save_file(state, path, metadata={"maskrcnn": json.dumps(document)})
    return path


def test_there_and_back(model: MaskRCNN, checkpoint: Path) -> None:
    config, state, metadata = read_checkpoint(checkpoint)
    assert to_dict(config) == to_dict(model.config)
    assert metadata == METADATA
    loaded = load_model(checkpoint)
    assert not loaded.training
    assert loaded.config.class_names == ("cell", "débris")
    wanted = model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())


def test_the_same_model_gives_the_same_bytes(model: MaskRCNN, checkpoint: Path, tmp_path: Path) -> None:
    again = save_checkpoint(tmp_path / "again.safetensors", model, metadata=METADATA)
    assert again.read_bytes() == checkpoint.read_bytes()


def test_licence_and_source_are_always_there(model: MaskRCNN, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "model.safetensors", model, metadata={})
    assert read_checkpoint(path).metadata == {"licence": "unknown", "source": "unknown"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_storage(model: MaskRCNN, checkpoint: Path, tmp_path: Path, dtype: Any) -> None:
    path = save_checkpoint(tmp_path / "half.safetensors", model, metadata=METADATA, dtype=dtype)
    assert path.stat().st_size < 0.55 * checkpoint.stat().st_size
    wanted = model.state_dict()
    for name, tensor in load_model(path).state_dict().items():
        assert tensor.dtype == wanted[name].dtype
        if tensor.ndim < 2:
            assert torch.equal(tensor, wanted[name])
        else:
            torch.testing.assert_close(tensor, wanted[name], rtol=0.004, atol=1e-7)


def test_a_model_without_mask_head(tmp_path: Path) -> None:
    config = replace(preset("nano", ("cell",), (1,)), mask_head=None)
    path = save_checkpoint(tmp_path / "boxes.safetensors", MaskRCNN(config), metadata=METADATA)
    assert load_model(path).config.mask_head is None


# --- written whole or not at all


def test_a_failed_write_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as unfinished:
        unfinished.write_text("half of wh")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == [path.name]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(OSError, match=rf"No space left on device: '{re.escape(str(path))}'"), whole_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_is_visible_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    with whole_file(path) as unfinished:
        unfinished.write_text("all")
        assert not path.exists()
        assert unfinished.parent == path.parent
    assert path.read_text() == "all"


@pytest.mark.skipif(os.name == "nt", reason="no permission bits on Windows")
def test_others_may_read_a_checkpoint(checkpoint: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(checkpoint.stat().st_mode) == 0o666 & ~umask


# --- what is no checkpoint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"hello world " * 50, "not a safetensors file"),
        (
            b"PK\x03\x04" + bytes(200),
            "not a readable checkpoint: is truncated or damaged; found a zip archive",
        ),  # of torch.save
    ],
)
def test_no_safetensors_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_model(path)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [30, 5000, -1])
def test_truncated(checkpoint: Path, kept: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors: is truncated or damaged; found \d+ bytes"):
        read_checkpoint(checkpoint)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no such checkpoint; found a folder"):
        read_checkpoint(tmp_path)


def test_tensors_without_metadata(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="holds tensors but no detector"):
        read_checkpoint(path)


def test_metadata_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata={"maskrcnn": "{"})
    with pytest.raises(InputError, match=r"metadata\.maskrcnn: not JSON"):
        read_checkpoint(path)


def test_metadata_nested_without_end(tmp_path: Path) -> None:
    path = tmp_path / "deep.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata={"maskrcnn": "[" * 10**6})
    with pytest.raises(InputError, match=r"deep\.safetensors: metadata\.maskrcnn: not JSON; found .*recursion"):
        read_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value: float, checkpoint: Path) -> None:
    """As a run that diverged leaves them: every detection would be nothing, and nothing would tell why."""
    floats = [name for name, tensor in safetensors.torch.load_file(checkpoint).items() if tensor.is_floating_point()]
    first, second = (name for name in floats if name in ("box_head.deltas.bias", "rpn.objectness.weight"))

    def spoil(state: dict[str, torch.Tensor]) -> None:
        state[first].flatten()[-1] = state[second].flatten()[0] = value

    with pytest.raises(InputError, match=r"model\.safetensors: (\S+): is not finite; found 2 of \d+ tensors") as caught:
        load_model(rewritten(checkpoint, change_state=spoil))
    assert first in str(caught.value) or second in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=99), "format_version: format of another version; found 99; expected 1"),
        (lambda d: d.pop("format_version"), "format of another version"),
        (lambda d: d.pop("config"), "config: not a config"),
        (lambda d: d["config"].update(colour="red"), "config: unknown field; found colour"),
        (lambda d: d["config"].pop("class_names"), "config: .*class_names"),
        (lambda d: d["config"]["detection"].update(nms_iou=7), "nms_iou: impossible value; found 7"),
        (lambda d: d["config"]["fpn"].update(channels="wide"), "config.fpn.channels: wrong type"),
        (lambda d: d["config"]["backbone"].update(name="resnet9000"), "backbone.name: .*resnet9000"),
    ],
)
def test_a_config_that_does_not_hold(
    change: Callable[[dict[str, Any]], object], message: str, checkpoint: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(rewritten(checkpoint, change))
    assert str(checkpoint) in str(caught.value)


def test_tensors_that_do_not_fit_are_named_all_together(checkpoint: Path) -> None:
    names = sorted(safetensors.torch.load_file(checkpoint))
    missing = next(name for name in names if name.startswith("fpn") and name.endswith("weight"))
    misshaped = next(name for name in names if name.startswith("mask_head") and name.endswith("weight"))

    def spoil(state: dict[str, torch.Tensor]) -> None:
        del state[missing]
        state["surplus"] = torch.zeros(3)
        state[misshaped] = torch.zeros(1, 2)

    with pytest.raises(InputErrors) as caught:
        load_model(rewritten(checkpoint, change_state=spoil))
    text = str(caught.value)
    assert "tensors do not fit the config (3)" in text
    assert f"{checkpoint}: {missing}: is missing; expected float (" in text
    assert f"{checkpoint}: surplus: has no place in this config; found float (3)" in text
    assert f"{checkpoint}: {misshaped}: does not fit; found float (1, 2); expected float (" in text


def test_a_class_count_that_does_not_fit_the_weights(checkpoint: Path) -> None:
    def one_class(document: dict[str, Any]) -> None:
        document["config"].update(class_names=["cell"], category_ids=[1])

    with pytest.raises(InputErrors, match=r"box_head\..*does not fit"):
        load_model(rewritten(checkpoint, one_class))


# --- names


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BUNDLED", tmp_path)
    shipped = tmp_path / "nuclei.safetensors"
    shipped.touch()
    assert resolve_weights("nuclei") == shipped
    assert resolve_weights("runs/a/best.safetensors") == Path("runs/a/best.safetensors")
    assert resolve_weights(Path("nuclei")) == Path("nuclei")
    assert resolve_weights(str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="no such weights; found nucleus; expected a file, nuclei, or a name"):
        resolve_weights("nucleus")


def test_a_file_without_suffix_wins_over_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nuclei").touch()
    assert resolve_weights("nuclei") == Path("nuclei")
