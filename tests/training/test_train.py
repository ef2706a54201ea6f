"""`maskrcnn.train` from end to end, on a detector and data that take seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.model.config import to_dict
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.structures import Target
from maskrcnn.training import train as train_module
from maskrcnn.training.run_log import read_log
from maskrcnn.training.validate import Validation
from maskrcnn.weights.files import read_checkpoint, save_checkpoint
from maskrcnn.weights.opening import load_model

LOSSES = {"total", "rpn_objectness", "rpn_box", "box_class", "box_delta", "mask"}


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_log(folder) if line["event"] == event]


def test_the_folder_of_a_run(train_tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole thing once, with everything drawn."""
    run = train_tiny("first", quiet=False, keep_every=1, licence="CC0-1.0", source="drawn")
    assert run.finished and run.scores is not None
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("tensorboard/events.")}
    assert len(events) == 1
    assert names - events == {
        "README.md",
        "best.safetensors",
        "config.json",
        "curves.png",
        "epoch-0001.safetensors",
        "last.safetensors",
        "log.jsonl",
        "scores/confusion.png",
        "scores/detections.json",
        "scores/f1_threshold.png",
        "scores/precision_recall.png",
        "scores/scores.json",
        "state.safetensors",
        "validation/1-shapes-2-00000.png",
        "validation/2-shapes-2-00001.png",
    }
    shown = capsys.readouterr()
    assert shown.out == "" and "training pictures 6 · validation pictures 2 · classes 3" in shown.err
    assert "step 4, " in shown.err and "mask AP" in shown.err
    check_log(run.folder)
    check_config(run.folder)
    check_weights(run)
    check_board(run.folder)
    page = (run.folder / "README.md").read_text()
    assert "4 steps of 2 pictures (1.3 epochs)" in page and "circle, square, triangle" in page


def check_log(folder: Path) -> None:
    assert [line["step"] for line in lines(folder, "train")] == [1, 2, 3, 4]
    assert all(line.keys() >= LOSSES | {"learning_rate", "gradient_norm"} for line in lines(folder, "train"))
    validations = lines(folder, "validation")
    assert [line["step"] for line in validations] == [2, 3, 4]
    assert validations[0].keys() >= {f"loss_{name}" for name in LOSSES} | {"mask_ap", "box_ap", "best"}
    assert read_log(folder)[0]["event"] == "start" and read_log(folder)[-1]["finished"]


def check_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["classes"] == {"circle": 1, "square": 2, "triangle": 3}
    assert config["model"]["fpn"]["channels"] == 16 and config["recipe"]["augmentation"]["crop"] == 64
    assert config["validation_image_ids"] == [1, 2]
    assert config["versions"]["torch"] == version("torch")


def check_weights(run: Any) -> None:
    config, _, metadata = read_checkpoint(run.best)
    assert config.class_names == ("circle", "square", "triangle")
    assert (metadata["licence"], metadata["source"]) == ("CC0-1.0", "drawn")
    assert metadata["training"]["preset"] == "tiny" and metadata["training"]["recipe"]["batch_size"] == 2
    assert metadata["training"]["step"] in (2, 3, 4) and "mask_ap" in metadata["training"]
    assert read_checkpoint(run.last).metadata["training"]["step"] == 4
    picture = ShapesDataset(1, size=(64, 64))[0][0]
    assert run.load(device="cpu").predict(picture).size == (64, 64)


def check_board(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"histograms": 0, "images": 0}).Reload()  # 0: keep all
    tags = events.Tags()
    assert {"train/total", "train/learning_rate", "validation/mask_ap", "validation/loss_mask"} <= set(tags["scalars"])
    assert tags["images"] == ["validation/0", "validation/1"]
    config, tensors, _ = read_checkpoint(folder / "last.safetensors")
    learned = {name for name, _ in MaskRCNN(config).named_parameters()}
    assert len(tags["histograms"]) == len(learned) + 2 * sum("running_var" in name for name in tensors)
    assert {name.removeprefix("weights.").replace("/", ".", 1) for name in tags["histograms"]} >= learned
    shown = events.Histograms("weights.box_head/classes.weight")
    assert [event.step for event in shown] == [event.step for event in events.Images("validation/0")] == [2, 3, 4]
    values = tensors["box_head.classes.weight"].float()
    assert shown[-1].histogram_value.max == pytest.approx(float(values.max()), rel=1e-3)


def target(boxes: list[list[float]]) -> Target:
    return Target(
        gt_boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        gt_labels=torch.ones(len(boxes), dtype=torch.int64),
        gt_masks=None,
        is_crowd=torch.zeros(len(boxes), dtype=torch.bool),
        size=(48, 64),
    )


PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)


@pytest.mark.usefixtures("undrawn")
def test_any_sequence_of_pictures_and_targets(train_tiny: Any) -> None:
    """Pictures of any form, some without objects, no masks, no val: a part is split off."""
    data = [
        (PICTURE, target([[4, 4, 30, 30]])),
        (Image.fromarray(PICTURE), target([])),
        (torch.from_numpy(PICTURE).permute(2, 0, 1), target([[10, 10, 60, 40], [1, 2, 20, 30]])),
        (PICTURE, target([[30, 4, 50, 30]])),
        (PICTURE, target([])),
    ]
    run = train_tiny(data=data, val=None, val_fraction=0.4)
    assert run.finished and run.scores is not None and run.scores.mask is None
    assert load_model(run.best).mask_head is None
    assert len(lines(run.folder, "train")) == 4 and "mask" not in lines(run.folder, "train")[0]
    config = json.loads((run.folder / "config.json").read_text())
    assert len(config["validation_image_ids"]) == 2 and config["data"] == ""


@pytest.mark.usefixtures("undrawn")
def test_validation_pictures_without_objects(train_tiny: Any) -> None:
    """There is no AP to go by: the last weights are the best, and patience has nothing to lose."""
    run = train_tiny(val=[(PICTURE, target([]))], steps=6, patience=1)
    assert run.finished and run.scores is not None and run.scores.box.ap is None
    assert [line["best"] for line in lines(run.folder, "validation")] == [True] * 4
    assert read_checkpoint(run.best).metadata["training"]["step"] == 6
    notes = " ".join(line["text"] for line in lines(run.folder, "note"))
    assert "the validation pictures hold no object" in notes


class Given(Validation):
    """A validation with an AP of our choice."""

    given: float

    @property
    def ap(self) -> float:
        return self.given


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Validations that give these APs, one after the other."""

    def give(aps: list[float]) -> None:
        remaining = iter(aps)

        def next_one(losses: Any, evaluation: Any) -> Given:
            result = Given(losses, evaluation)
            object.__setattr__(result, "given", next(remaining))
            return result

        monkeypatch.setattr(train_module, "Validation", next_one)

    return give


@pytest.mark.usefixtures("undrawn")
def test_best_and_last(train_tiny: Any, scripted: Any) -> None:
    scripted([0.2, 0.5, 0.3, 0.5, 0.1])
    run = train_tiny(steps=10, evaluate_every=2 / 3)
    assert [line["best"] for line in lines(run.folder, "validation")] == [True, True, False, True, False]
    assert read_checkpoint(run.best).metadata["training"]["step"] == 8  # the later of two equals
    assert read_checkpoint(run.last).metadata["training"]["step"] == 10


@pytest.mark.usefixtures("undrawn")
def test_a_layer_that_dies_is_told_once(train_tiny: Any, tmp_path: Path) -> None:
    broken = train_tiny("first", steps=2, evaluate_every=0.0).folder / "last.safetensors"
    config, tensors, metadata = read_checkpoint(broken)
    model = MaskRCNN(config)
    model.load_state_dict(tensors)
    with torch.no_grad():
        model.backbone.body.conv1[3].weight.zero_()
    save_checkpoint(tmp_path / "broken.safetensors", model, metadata=metadata)
    run = train_tiny("second", preset=None, weights=tmp_path / "broken.safetensors", freeze=2, evaluate_every=2 / 3)
    told = [line["text"] for line in lines(run.folder, "note") if "weights: " in line["text"]]
    assert len(lines(run.folder, "validation")) == 2
    assert told == ["weights: backbone.body.conv1.3.weight is dead: all are 0"]


@pytest.mark.usefixtures("undrawn")
def test_early_stopping(train_tiny: Any, scripted: Any) -> None:
    scripted([0.2, 0.5, 0.3, 0.5, 0.6, 0.1])
    run = train_tiny(steps=100, evaluate_every=2 / 3, patience=2)
    assert run.finished and run.scores is not None
    assert lines(run.folder, "end")[-1]["step"] == 8  # an equal AP is no better one
    assert lines(run.folder, "note")[-1]["text"] == "no better AP in 2 validations: stopped early, at step 8"


@pytest.mark.usefixtures("undrawn")
def test_weights_of_every_so_many_epochs(train_tiny: Any) -> None:
    run = train_tiny(steps=14, keep_every=2, evaluate_every=0.0)  # three steps an epoch
    kept = sorted(run.folder.glob("epoch-*.safetensors"))
    assert [path.name for path in kept] == ["epoch-0002.safetensors", "epoch-0004.safetensors"]
    assert [read_checkpoint(path).metadata["training"]["step"] for path in kept] == [6, 12]


@pytest.mark.usefixtures("undrawn")
def test_minutes(train_tiny: Any) -> None:
    run = train_tiny(minutes=0.02, steps=None)
    assert run.finished and 1.2 <= lines(run.folder, "end")[-1]["seconds"] < 10
    assert len(lines(run.folder, "validation")) == 1


@pytest.mark.usefixtures("undrawn")
def test_bf16(train_tiny: Any) -> None:
    exact, half = (lines(train_tiny(p, precision=p, steps=6).folder, "train") for p in ("float32", "bf16"))
    assert half != exact
    assert [line["total"] for line in half] == pytest.approx([line["total"] for line in exact], rel=0.1)


@pytest.mark.usefixtures("undrawn")
def test_the_average_is_what_is_kept(train_tiny: Any) -> None:
    """The state holds both; best and last hold the average alone."""
    import safetensors.torch

    run = train_tiny(ema=0.9)
    state = safetensors.torch.load_file(run.folder / "state.safetensors")
    last = load_model(run.last).state_dict()
    name = "box_head.classes.weight"
    assert torch.equal(last[name], state[f"average.{name}"]) and not torch.equal(last[name], state[f"model.{name}"])
    plain = train_tiny("plain", ema=0.0)
    state = safetensors.torch.load_file(plain.folder / "state.safetensors")
    assert not any(key.startswith("average.") for key in state)
    assert torch.equal(load_model(plain.last).state_dict()[name], state[f"model.{name}"])


@pytest.mark.usefixtures("undrawn")
def test_fine_tuning_on_other_classes(train_tiny: Any) -> None:
    first = train_tiny("first")
    data = [(PICTURE, target([[4, 4, 30, 30]]))] * 3
    run = train_tiny("second", data=data, val=data[:1], weights=first.best, preset=None, freeze=3)
    assert run.finished and load_model(run.best).config.class_names == ("1",)
    notes = [line["text"] for line in lines(run.folder, "note")]
    assert notes[0] == f"start: the weights {first.best}"
    assert notes[1] == (
        "made anew for 1 classes (the checkpoint has 3): box_head.classes, box_head.deltas, mask_head.masks"
    )
    assert notes[2] == "rows made anew for 1 classes: 1"
    assert notes[3] == "the training pictures have no masks: the mask head does not learn"
    assert notes[4].endswith("weights of the backbone do not learn, from conv1.0.weight to layer2.0.downsample.1.bias")
    before, after = load_model(first.best).state_dict(), load_model(run.best).state_dict()
    moved = {name for name in after if name.startswith("backbone.") and not torch.equal(after[name], before[name])}
    assert moved and all("layer3" in name or "layer4" in name for name in moved)


@pytest.mark.usefixtures("undrawn")
def test_fine_tuning_on_the_same_classes_goes_on_from_there(train_tiny: Any) -> None:
    first = train_tiny("first")
    run = train_tiny("second", weights=str(first.best), preset=None, learning_rate=1e-12, ema=0.0, steps=1)
    before, after = load_model(first.best), load_model(run.best)
    assert to_dict(after.config) == to_dict(before.config)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in pairs)
    assert json.loads((run.folder / "config.json").read_text())["weights"] == str(first.best)
    assert read_checkpoint(run.best).metadata["training"]["preset"] == "r50-fpn"  # what suits a detector of that kind


@pytest.mark.usefixtures("undrawn")
def test_another_run_is_not_written_over(train_tiny: Any) -> None:
    run = train_tiny(steps=1, evaluate_every=0.0)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    with pytest.raises(InputError, match="out: holds another run; expected a new folder, or --resume"):
        train_tiny(steps=1, evaluate_every=0.0)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


@pytest.mark.usefixtures("undrawn")
def test_it_learns(train_tiny: Any) -> None:
    """Forty steps on two pictures, seen whole and unchanged, bring the loss well down."""
    still = {"crop": None, "shortest": [64], "flip": 0.0, "photometric": 0.0}
    data = ShapesDataset(2, size=(64, 64), seed=4, max_objects=3)
    changes = {"data": data, "val": data, "augmentation": still, "learning_rate": 0.01, "evaluate_every": 0.0}
    run = train_tiny(steps=40, **changes)
    totals = [line["total"] for line in lines(run.folder, "train")]
    assert all(map(math.isfinite, totals)) and np.mean(totals[-5:]) < 0.6 * np.mean(totals[:5])


def test_it_is_a_name_of_the_package() -> None:
    assert maskrcnn.train is train_module.train
