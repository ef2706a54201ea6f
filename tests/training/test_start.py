"""A run starts only where everything is in order, and leaves nothing behind where it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import preset
from maskrcnn.structures import Target
from maskrcnn.training import start
from maskrcnn.training.checkpoint import STATE_FILE
from maskrcnn.training.distributed import World
from maskrcnn.training.recipe import Recipe
from maskrcnn.training.start import (
    Pictures,
    open_pictures,
    preset_of,
    require_place,
    settled_recipe,
    starting_model,
)
from maskrcnn.training.train import train
from maskrcnn.weights.files import save_checkpoint
from maskrcnn.weights.opening import open_weights

pytestmark = pytest.mark.usefixtures("undrawn")

OPENING: dict[str, Any] = {"val": None, "val_fraction": 0.25, "seed": 0, "images": None, "skip_bad": False}


def picture_and(boxes: list[list[float]], size: tuple[int, int] = (48, 64), masks: bool = False) -> Any:
    target = Target(
        gt_boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        gt_labels=torch.ones(len(boxes), dtype=torch.int64),
        gt_masks=None,
        is_crowd=torch.zeros(len(boxes), dtype=torch.bool),
        size=size,
    )
    return np.full((48, 64, 3), 90, np.uint8), target


GOOD = picture_and([[4, 4, 30, 30]])
EMPTY = picture_and([])
BAD = picture_and([[4, 4, 30, 30]], size=(64, 48))  # not the picture's size


def coco(folder: Path, **changes: Any) -> Path:
    """Two pictures with a square each; `changes` replace parts of the document."""
    for i in (1, 2):
        Image.fromarray(np.full((40, 40, 3), 50 * i, np.uint8)).save(folder / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 40} for i in (1, 2)]
    outline = [[5, 5, 25, 5, 25, 25, 5, 25]]
    record = {"category_id": 1, "iscrowd": 0, "area": 400, "bbox": [5, 5, 20, 20], "segmentation": outline}
    document = {
        "images": images,
        "annotations": [record | {"id": i, "image_id": i} for i in (1, 2)],
        "categories": [{"id": 1, "name": "square"}],
    }
    path = folder / "data.json"
    path.write_text(json.dumps(document | changes))
    return path


def test_the_place_of_a_run(tmp_path: Path) -> None:
    require_place(tmp_path / "new", resume=False)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()
    require_place(tmp_path / "used", resume=False)  # other things may lie there
    (tmp_path / "used" / "log.jsonl").touch()
    with pytest.raises(InputError, match="used: out: holds another run; expected a new folder; nothing was saved"):
        require_place(tmp_path / "used", resume=False)
    with pytest.raises(InputError, match="used: out: there is nothing to resume: the run ended before it saved"):
        require_place(tmp_path / "used", resume=True)
    with pytest.raises(InputError, match=r"new: out: there is nothing to resume; expected state\.safetensors"):
        require_place(tmp_path / "new", resume=True)
    (tmp_path / "used" / STATE_FILE).touch()
    require_place(tmp_path / "used", resume=True)
    with pytest.raises(InputError, match="used: out: holds another run; expected a new folder, or --resume"):
        require_place(tmp_path / "used", resume=False)
    with pytest.raises(InputError, match="notes.txt: out: is not a folder"):
        require_place(tmp_path / "used" / "notes.txt", resume=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "data: is not a data set; found NoneType"),
        ({"out": None}, "out: is no folder; found None; expected a path"),
        ({"out": 3}, "out: is no folder; found 3"),
        ({"preset": 3}, "preset: no such preset; found 3; expected nano or "),
        ({"weights": 3}, "weights: no such weights; found 3"),
        ({"recipe": 3}, "recipe: is no recipe; found 3; expected a Recipe"),
        ({"scale": "a"}, "scale: impossible value; found 'a'; expected a number above 0"),
        ({"scale": 0}, "scale: impossible value; found 0"),
        ({"val_fraction": "a"}, "val_fraction: is not a share; found 'a'"),
        (
            {"batch_size": 10**20},
            r"recipe\.batch_size: wrong type; found 10+; expected a whole number of at most 64 bits",
        ),
        ({"device": "meta"}, "device: computes nothing; found meta"),
    ],
)
def test_arguments_of_another_kind(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"data": "shapes", "out": tmp_path / "run", "device": "cpu", "quiet": True, "steps": 1}
    with pytest.raises(InputError, match=message):
        train(**asked | changes)
    assert not (tmp_path / "run").exists()


def unreadable(folder: Path) -> dict[str, Any]:
    path = coco(folder)
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    return {"data": path, "val": None}


def without_pictures(folder: Path) -> dict[str, Any]:
    return {"data": coco(folder, images=[], annotations=[]), "val": None}


def without_objects(folder: Path) -> dict[str, Any]:
    return {"data": coco(folder, annotations=[]), "val": None}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda folder: {"data": folder / "none"}, "no such file or folder"),
        (lambda folder: {"data": coco(folder, categories=[]), "val": None}, "categor"),
        (unreadable, "2.png"),
        (without_pictures, "picture"),
        (without_objects, "data: no picture holds an object to learn from; found 1 pictures"),
        (lambda folder: {"data": []}, "data: the sequence is empty"),
        (lambda folder: {"data": [GOOD, BAD]}, r"the data set has problems \(1\): data\[1\]: target.size: differs"),
        (lambda folder: {"data": [GOOD, (1, 2)]}, r"data\[1\]: is not a sample"),
        (lambda folder: {"data": [GOOD], "val": None}, "too few pictures to split"),
        (lambda folder: {"data": [GOOD, GOOD], "val": None, "val_fraction": 0.0}, "val_fraction: is not a share"),
        (lambda folder: {"data": [GOOD], "val": []}, "the sequence is empty"),
        (lambda folder: {"data": [GOOD], "val": ShapesDataset(0)}, "val: there is no picture; expected at least one"),
        (lambda folder: {"data": ShapesDataset(0)}, "data: there is no picture; expected at least one"),
        (lambda folder: {"preset": "micro"}, "preset: no such preset; found micro"),
        (lambda folder: {"weights": folder / "none.safetensors"}, "none.safetensors: no such checkpoint"),
        (lambda folder: {"weights": "nucleus"}, "weights: no such weights; found nucleus"),
        (lambda folder: {"weights": "nuclei", "pretrained_backbone": True}, "pretrained_backbone: has no use with"),
        (lambda folder: {"batch_size": 0}, "batch_size: impossible value"),
        (lambda folder: {"batchsize": 2}, "recipe: unknown field; found batchsize"),
        (lambda folder: {"schedule_unit": "steps", "warmup": 50.0}, "warmup: is too long"),
        (lambda folder: {"device": "abacus"}, "device: no such device; found abacus"),
    ],
)
def test_nothing_is_written_where_a_run_cannot_start(train_tiny: Any, tmp_path: Path, given: Any, message: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(InputError, match=message) as error:
        train_tiny("out", **given(data))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_bad_samples_are_left_out_if_asked_for() -> None:
    pictures = open_pictures([GOOD, BAD, GOOD, EMPTY, GOOD], **OPENING | {"skip_bad": True})
    assert len(pictures.train) + len(pictures.val) == 4
    assert [str(error).split(";")[0] for error in pictures.skipped] == ["data[1]: target.size: differs"]
    for part in (pictures.train, pictures.val):
        assert all(part[i][1].size == (48, 64) for i in range(len(part)))


def test_bad_files_are_left_out_if_asked_for(train_tiny: Any, tmp_path: Path) -> None:
    from maskrcnn.training.run_log import read_log

    options = unreadable(tmp_path) | {"val": [GOOD], "steps": 1, "evaluate_every": 0.0}
    options["val"] = coco(tmp_path)  # written again, whole
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match="2.png"):
        train_tiny(**options)
    run = train_tiny(**options, skip_bad=True)
    notes = [line["text"] for line in read_log(run.folder) if line["event"] == "note"]
    assert any(note.startswith("left out: ") and "2.png" in note for note in notes)


def test_what_is_known_of_the_pictures(shapes: tuple[ShapesDataset, ShapesDataset]) -> None:
    train, val = shapes
    pictures = open_pictures(train, **OPENING | {"val": val})
    assert (pictures.train, pictures.val) == (train, val) and pictures.skipped == ()
    assert pictures.most_objects == max(len(train.target(i)) for i in range(6))
    assert pictures.has_masks and pictures.judged
    boxes = open_pictures([GOOD, GOOD], **OPENING | {"val": [EMPTY]})
    assert not boxes.has_masks and not boxes.judged


def test_fingerprints_tell_pictures_apart(shapes: tuple[ShapesDataset, ShapesDataset]) -> None:
    def fingerprint(**changes: Any) -> Any:
        return open_pictures(ShapesDataset(8, size=(32, 32)), **OPENING | changes).fingerprint()

    first = fingerprint()
    assert first == fingerprint() and (first["training"], first["validation"]) == (6, 2)
    assert (
        first != fingerprint(seed=1) and first != fingerprint(val_fraction=0.5) and first != fingerprint(val=shapes[1])
    )


def pictures_with(shapes: Any, **changes: Any) -> Pictures:
    return replace(open_pictures(shapes[0], **OPENING | {"val": shapes[1]}), **changes)


def test_a_new_model_fits_the_data(tiny_config: MaskRCNNConfig, shapes: Any) -> None:
    def tiny(names: Any, ids: Any) -> MaskRCNNConfig:
        return replace(tiny_config, class_names=names, category_ids=ids)

    model, notes = starting_model(pictures_with(shapes), tiny)
    assert model.config == tiny_config and notes == ["start: tiny, from nothing"]
    crowded, notes = starting_model(pictures_with(shapes, most_objects=301), tiny)
    assert crowded.config.detection.max_detections == 400
    assert notes[-1] == "detections per picture: 400, since a picture holds 301 objects"
    boxes, notes = starting_model(pictures_with(shapes, has_masks=False), tiny)
    assert boxes.mask_head is None and "no mask head" in notes[-1]
    loaded = MaskRCNN(replace(tiny_config, mask_head=None))
    boxes, notes = starting_model(pictures_with(shapes), tiny, loaded)
    assert "the weights have no mask head: the masks of the training pictures are not learned" in notes
    _, notes = starting_model(pictures_with(shapes, has_masks=False), tiny, loaded)
    assert not any("mask" in note for note in notes)
    larger, _ = starting_model(pictures_with(shapes), tiny, scale=3.0)
    assert larger.config.preprocess.scale == larger.preprocess.config.scale == 3


def test_from_nothing_no_norm_is_frozen(shapes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(start, "new_model", lambda config, pretrained: made.append(config) or _Stub(config))
    for pretrained in (False, True):
        starting_model(pictures_with(shapes), "r50-fpn", pretrained_backbone=pretrained)
    assert [(config.backbone.norm, config.backbone.frozen_stages) for config in made] == [("group", 0), ("frozen", 2)]


class _Stub:
    def __init__(self, config: MaskRCNNConfig) -> None:
        self.config = config


def test_backbones_that_cannot_be_fetched(tiny_config: MaskRCNNConfig, shapes: Any, monkeypatch: Any) -> None:
    def unreachable(*args: Any, **options: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(start, "MaskRCNN", unreachable)
    monkeypatch.setattr(start, "require_reachable", lambda name: None)  # the hub was still there
    with pytest.raises(
        InputError, match="pretrained_backbone: none to be had; found no route to host; expected weights"
    ):
        starting_model(pictures_with(shapes), "nano", pretrained_backbone=True)


@pytest.mark.parametrize(
    ("metadata", "scale", "expected"),
    [
        ({"training": {"preset": "r101-fpn"}}, None, "r101-fpn"),
        ({"training": {"preset": "one of my own"}}, None, "r50-fpn"),
        ({"training": "long ago"}, 2.0, "nano"),
        ({}, 2.0, "nano"),
        ({}, None, "r50-fpn"),
    ],
)
def test_the_recipe_that_suits_weights(
    tiny_config: MaskRCNNConfig, tmp_path: Path, metadata: Any, scale: float | None, expected: str
) -> None:
    config = replace(tiny_config, preprocess=replace(tiny_config.preprocess, scale=scale))
    path = save_checkpoint(tmp_path / "w.safetensors", MaskRCNN(config), metadata=metadata)
    assert preset_of(open_weights(path)) == expected


def test_recipes_are_settled() -> None:
    auto = settled_recipe(None, {}, "nano", None, World())
    assert (
        auto.precision in ("float32", "bf16")
        and auto.minutes == settled_recipe(None, {}, "nano", None, World()).minutes
    )
    assert settled_recipe(Recipe(seed=4), {"steps": 3}, "nano", None, World()).steps == 3
    assert settled_recipe(None, {}, preset_function, None, World()).optimizer == Recipe().optimizer


def preset_function(names: Any, ids: Any) -> MaskRCNNConfig:
    return preset("nano", names, ids)


@pytest.mark.parametrize(("batch", "accumulate", "processes"), [(4, 2, 2), (4, 4, 1), (5, 1, 2), (2, 1, 2)], ids=str)
def test_batches_that_can_be_shared(batch: int, accumulate: int, processes: int) -> None:
    recipe = Recipe(batch_size=batch, accumulate=accumulate, precision="float32")
    assert settled_recipe(recipe, {}, "nano", None, World(0, processes)).batch_size == batch


@pytest.mark.parametrize(("batch", "accumulate", "processes"), [(4, 4, 2), (6, 2, 2), (1, 1, 2)], ids=str)
def test_batches_that_cannot(batch: int, accumulate: int, processes: int) -> None:
    recipe = Recipe(batch_size=batch, accumulate=accumulate, precision="float32")
    with pytest.raises(InputError, match="batch_size: cannot be shared; found"):
        settled_recipe(recipe, {}, "nano", None, World(0, processes))
