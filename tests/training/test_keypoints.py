"""A detector of keypoints from a COCO file: trained, scored by OKS, fine-tuned, run, drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import maskrcnn
from maskrcnn.cli.main import main
from maskrcnn.data.coco import load_coco
from maskrcnn.model.keypoint_head import KeypointHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import from_scratch, keypoint_r50_fpn
from maskrcnn.structures import KeypointScheme
from maskrcnn.training.finetune import adapt_keypoints
from maskrcnn.training.start import open_pictures, starting_model
from maskrcnn.weights.files import save_checkpoint
from maskrcnn.weights.opening import load_model

NAMES = ["tip", "left_end", "right_end"]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
OPENING: dict[str, Any] = {"val_fraction": 0.25, "seed": 0, "images": None, "skip_bad": False}
LEARNING: dict[str, Any] = {
    "steps": 150,
    "learning_rate": 5e-3,
    "evaluate_every": 0,
    "batch_size": 4,
    "reference_batch": 4,
    "augmentation": {"crop": 64, "scale": [1.0, 1.0], "flip": 0.5, "turn": 0.0, "flip_vertical": 0.0, "photometric": 0},
}


@pytest.fixture
def kites(tmp_path: Path) -> Path:
    """Twelve pictures of 64 px with two grey kites each, a dot on every corner; the file that tells where."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(1, 13):
        picture = Image.new("RGB", (64, 64), (40, 40, 40))
        pen = ImageDraw.Draw(picture)
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        for x in (2, 32):
            x, y = x + int(rng.integers(4)), int(rng.integers(2, 30))
            width, height = (int(side) for side in rng.integers((18, 20), (25, 30)))
            pen.rectangle((x, y, x + width - 1, y + height - 1), fill=(150, 150, 150))
            points = [(x + width // 2, y + 3), (x + 3, y + height - 4), (x + width - 4, y + height - 4)]
            for (column, row), colour in zip(points, COLOURS, strict=True):
                pen.rectangle((column - 2, row - 2, column + 2, row + 2), fill=colour)
            record = {"id": len(annotations) + 1, "image_id": i, "category_id": 1, "iscrowd": 0}
            record |= {"bbox": [x, y, width, height], "area": width * height, "num_keypoints": 3}
            annotations.append(record | {"keypoints": [v for point in points for v in (*point, 2)]})
        picture.save(tmp_path / f"{i}.png")
    categories = [{"id": 1, "name": "kite", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}]
    file = tmp_path / "kites.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


@pytest.fixture
def preset(tiny_config: MaskRCNNConfig) -> Callable[..., MaskRCNNConfig]:
    head = KeypointHeadConfig(num_convs=2, channels=32)

    def make(class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> MaskRCNNConfig:
        config = replace(tiny_config, class_names=class_names, category_ids=category_ids)
        return replace(config, mask_head=None, keypoint_head=head)

    return make


@pytest.mark.slow
def test_from_a_file_to_points(train_tiny: Any, kites: Path, preset: Any, tmp_path: Path) -> None:
    """The pictures are learned by heart, and every part of the package says so."""
    run = train_tiny(data=kites, val=kites, preset=preset, **LEARNING)
    assert run.scores is not None and run.scores.keypoint is not None and run.scores.mask is None
    assert run.scores.keypoint.ap is not None and run.scores.keypoint.ap > 0.9
    assert "| keypoints (OKS) | 20 |" in (run.folder / "README.md").read_text()
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    losses = [line["keypoint"] for line in log if line["event"] == "train"]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    assert log[-1]["keypoint_ap"] == run.scores.keypoint.ap
    notes = [line["text"] for line in log if line["event"] == "note"]
    assert "keypoints: 3, pairs that change places in a mirror: 1" in notes

    detector = run.load()
    found = detector.predict(tmp_path / "1.png")
    found = found.chosen(found.scores > 0.9)
    assert found.keypoint_scheme == KeypointScheme(tuple(NAMES), ((1, 2),), ((0, 1), (0, 2)))
    truth = load_coco(kites).target(0).gt_keypoints
    assert truth is not None and found.keypoints is not None and len(found) == 2
    order = found.keypoints[:, 0, 0].argsort()
    assert (found.keypoints[order][..., :2] - truth.points[..., :2]).abs().max() < 2.5
    found.save(tmp_path / "found.json")
    (record, _) = json.loads((tmp_path / "found.json").read_text())["detections"]
    assert len(record["keypoints"]) == 9

    scores = maskrcnn.evaluate(detector, kites)
    assert scores.keypoint is not None and scores.keypoint.ap == run.scores.keypoint.ap
    strict = maskrcnn.evaluate(detector, kites, keypoint_sigmas=[1e-3] * 3)
    assert strict.keypoint is not None and strict.keypoint.ap is not None
    assert strict.keypoint.ap < 0.5 * run.scores.keypoint.ap


def test_fine_tuning_keeps_the_head(train_tiny: Any, kites: Path, preset: Any, tmp_path: Path, undrawn: None) -> None:
    """Points as torchvision's detectors count them become ours with what is learned here."""
    config = preset(("person",), (1,))
    scheme = KeypointScheme(("nose", "left_hand", "right_hand"), pixel_centre=0.0)
    config = replace(config, keypoint_head=replace(config.keypoint_head, scheme=scheme))
    file = save_checkpoint(tmp_path / "old.safetensors", MaskRCNN(config), metadata={})
    still = LEARNING | {"steps": 1, "learning_rate": 1e-9, "weight_decay": 0.0, "ema": 0.0}
    run = train_tiny(data=kites, val=kites, preset=None, weights=file, **still)
    new, old = load_model(run.folder / "last.safetensors"), load_model(file)
    assert new.keypoint_head is not None and old.keypoint_head is not None
    for name, value in old.keypoint_head.state_dict().items():
        assert torch.allclose(new.keypoint_head.state_dict()[name], value, atol=1e-6), name
    assert new.config.keypoint_head is not None
    assert new.config.keypoint_head.scheme == load_coco(kites).keypoints


def pictures(kites: Path, **changes: Any) -> Any:
    return replace(open_pictures(kites, None, **OPENING), **changes)


def test_the_data_say_what_the_keypoints_are(kites: Path, preset: Any) -> None:
    model, notes = starting_model(pictures(kites), preset)
    assert model.config.keypoint_head is not None and model.keypoint_head is not None
    assert model.config.keypoint_head.scheme.names == tuple(NAMES)
    assert model.keypoint_head.deconv.weight.shape[1] == 3
    assert notes[-1] == "keypoints: 3, pairs that change places in a mirror: 1"


def test_data_without_keypoints(kites: Path, preset: Any) -> None:
    document = json.loads(kites.read_text())
    for record in document["annotations"]:
        del record["keypoints"], record["num_keypoints"]
    kites.write_text(json.dumps(document))
    new, notes = starting_model(pictures(kites), preset)
    assert new.keypoint_head is None and "the training pictures have no keypoints: no keypoint head" in notes
    loaded = MaskRCNN(preset(("kite",), (1,)))
    kept, notes = starting_model(pictures(kites), preset, loaded)
    assert kept.keypoint_head is not None
    assert "the training pictures have no keypoints: the keypoint head does not learn" in notes


# --- heat maps for other keypoints ------------------------------------------------------------------------------------


@pytest.fixture
def model(preset: Any) -> MaskRCNN:
    """Of tip, left_end and right_end, with distinct numbers everywhere."""
    config = preset(("kite",), (1,))
    made = MaskRCNN(
        replace(config, keypoint_head=replace(config.keypoint_head, scheme=KeypointScheme(tuple(NAMES), ((1, 2),))))
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


@pytest.mark.parametrize(
    ("names", "sources", "note"),
    [
        (("right_end", "tip", "left_end"), [2, 0, 1], "3 keypoints kept"),
        (("tip", "tail", "right_end"), None, "3 keypoints, as the checkpoint has: head kept"),
        (("a", "b", "c"), None, "3 keypoints, as the checkpoint has: head kept"),
        (("tail", "right_end"), [None, 2], "1 keypoints kept, 1 made anew: tail"),
        (("a", "b", "c", "d"), [None] * 4, "0 keypoints kept, 4 made anew: a, b, c, d"),
    ],
)
def test_maps_follow_their_names(
    model: MaskRCNN, names: tuple[str, ...], sources: list[int | None] | None, note: str
) -> None:
    adapted, notes = adapt_keypoints(model, KeypointScheme(names))
    assert notes == [note]
    assert adapted.config.keypoint_head is not None and adapted.config.keypoint_head.scheme.names == names
    assert (adapted is model) == (sources is None)
    if sources is None:
        return
    new, old = adapted.keypoint_head, model.keypoint_head
    assert new is not None and old is not None and new.deconv.weight.shape[1] == len(names)
    assert new.deconv.bias is not None and old.deconv.bias is not None
    for j, source in enumerate(sources):
        if source is not None:
            assert torch.equal(new.deconv.weight[:, j], old.deconv.weight[:, source])
            assert new.deconv.bias[j] == old.deconv.bias[source]
        else:
            assert new.deconv.bias[j] == 0
    for name, value in model.state_dict().items():
        if not name.startswith("keypoint_head.deconv."):
            assert torch.equal(adapted.state_dict()[name], value), name


# --- the preset -------------------------------------------------------------------------------------------------------


def test_the_preset() -> None:
    config = keypoint_r50_fpn(("person",), (1,))
    assert config.mask_head is None and config.keypoint_head == KeypointHeadConfig()
    with torch.device("meta"):
        assert round(sum(p.numel() for p in MaskRCNN(config).parameters()) / 1e6) == 59
    scratch = from_scratch(config).keypoint_head
    assert scratch is not None and scratch.norm == "group"


def test_the_commands(kites: Path, preset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """predict writes the points and draws them; evaluate shows their AP beside that of boxes."""
    config = preset(("kite",), (1,))
    config = replace(config, keypoint_head=replace(config.keypoint_head, scheme=KeypointScheme(tuple(NAMES))))
    weights = save_checkpoint(tmp_path / "weights.safetensors", MaskRCNN(config), metadata={})
    common = ["--weights", str(weights), "--device", "cpu"]
    picture = str(tmp_path / "1.png")
    assert main(["predict", picture, *common, "--out", str(tmp_path / "found"), "--score-threshold", "0"]) == 0
    records = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert records and all(len(record["keypoints"]) == 9 for record in records)
    assert (tmp_path / "found" / "1.png").is_file()
    scores = [*common, "--out", str(tmp_path / "scores")]
    assert main(["evaluate", str(kites), *scores, "--keypoint-sigmas", "0.1", "0.2", "0.3"]) == 0
    assert "points" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["keypoint"].keys() >= {"ap@20", "ar@20"}
    assert main(["evaluate", str(kites), *scores, "--keypoint-sigmas", "0.1"]) == 2
    assert "--keypoint-sigmas: do not fit; found [0.1]; expected 3 numbers" in capsys.readouterr().err
