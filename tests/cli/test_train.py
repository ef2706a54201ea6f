"""Labelled pictures in; a folder with weights and scores out."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest
import torch
import tyro
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from maskrcnn.cli.main import main
from maskrcnn.cli.train import Options, RecipeOptions, recipe_changes
from maskrcnn.weights.opening import load_model

SHORT = ["--steps", 2, "--batch-size", 2, "--workers", 0, "--precision", "float32", "--augmentation.crop", 64]


def train(*args: object) -> int:
    return main(["train", *map(str, args), "--device", "cpu", "--quiet"])


def parsed(*args: object) -> Options:
    return tyro.cli(Options, args=["data", "--out", "x", *map(str, args)])


def plain(hint: Any) -> set[Any]:
    """The types that a hint allows, without None, annotations and the words that stand for values."""
    words = {"none", "all", "true", "false"}
    if get_args(hint) and not isinstance(hint, type) and hint.__class__.__name__ not in ("GenericAlias",):
        literal = getattr(hint, "__origin__", None) is Literal
        found = set(get_args(hint)) if literal else {part for option in get_args(hint) for part in plain(option)}
        return found - words - {type(None)}
    return {hint} - {type(None)}


def test_every_field_of_a_recipe_is_an_option() -> None:
    from maskrcnn.training.recipe import Recipe

    def compare(options: type, fields: type, place: str) -> Iterator[str]:
        mine, its = get_type_hints(options), get_type_hints(fields)
        assert {f.name for f in dataclasses.fields(options)} == {f.name for f in dataclasses.fields(fields)}, place
        for name, hint in its.items():
            if dataclasses.is_dataclass(hint):
                yield from compare(mine[name], hint, f"{place}.{name}")
            elif hint is not bool:
                assert plain(mine[name]) == plain(hint), f"{place}.{name}"
                yield f"{place}.{name}"

    assert len(list(compare(RecipeOptions, Recipe, "recipe"))) > 50


def test_the_presets_are_the_packages() -> None:
    from maskrcnn.model.presets import PRESETS

    assert plain(get_type_hints(Options)["preset"]) == set(PRESETS)


@pytest.mark.parametrize("option", ["--preset", "--optimizer", "--precision", "--loss.mask.binary-target"])
def test_choices_are_those_of_the_help(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("zzz", "None"):
        assert train("shapes", "--out", "x", option, word) == 2
        shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
        expected = shown.partition("Expected one of ")[2].partition(")")[0]
        assert expected and "None" not in expected
    assert option != "--preset" or all(name in expected for name in ("nano", "r50-fpn", "keypoint-r50-fpn"))


def test_the_help_tells_what_the_recipes_hold() -> None:
    from maskrcnn.training.recipe import RECIPES

    nano, *others = (RECIPES[name]() for name in ("nano", *(RECIPES.keys() - {"nano"})))
    told = (
        f"nano learns for {nano.minutes:g} minutes in batches of {nano.batch_size} with {nano.optimizer}, "
        f"the others for {others[0].epochs:g} epochs in batches of {others[0].batch_size} with {others[0].optimizer}."
    )
    assert Options.__doc__ is not None and told.lower() in " ".join(Options.__doc__.split()).lower()
    assert all(other == others[0] for other in others)


def test_only_what_is_given_changes_the_recipe() -> None:
    assert recipe_changes(parsed()) == {}
    given = parsed("--minutes", 3, "--augmentation.crop", "none", "--validation-pictures", "all", "--ema", 0)
    assert recipe_changes(given) == {
        "minutes": 3,
        "ema": 0,
        "validation_pictures": None,
        "augmentation": {"crop": None},
    }
    deep = parsed("--loss.rpn.beta", 0.5, "--loss.mask.binary-target", "false", "--milestones", 0.5, 0.7)
    assert recipe_changes(deep) == {
        "milestones": (0.5, 0.7),
        "loss": {"rpn": {"beta": 0.5}, "mask": {"binary_target": False}},
    }


def test_from_nothing_then_resumed_then_fine_tuned(
    dataset: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    data = (dataset, "--images", pictures)
    assert train(*data, "--preset", "nano", "--out", first, *SHORT, "--val-fraction", 0.4) == 0
    assert capsys.readouterr().out == f"best weights: {first / 'best.safetensors'}\n"
    config = json.loads((first / "config.json").read_text())
    assert (config["preset"], config["data"], config["recipe"]["steps"]) == ("nano", str(dataset), 2)
    assert config["recipe"]["minutes"] is None and config["pictures"]["validation"] == 1
    assert train(*data, "--out", first, *SHORT) == 1
    assert "first: out: holds another run" in capsys.readouterr().err
    assert train(*data, "--out", first, "--resume", "--val-fraction", 0.4) == 0  # it was over: only scored again
    assert train(*data, "--weights", first / "best.safetensors", "--out", second, *SHORT, "--freeze", 2) == 0
    config = json.loads((second / "config.json").read_text())
    assert (config["preset"], config["weights"]) == ("nano", str(first / "best.safetensors"))
    assert config["recipe"]["optimizer"] == "adamw" and config["recipe"]["freeze"] == 2


def test_fine_tuned_from_another_frameworks_weights_with_a_config(
    dataset: Path, pictures: Path, tmp_path: Path
) -> None:
    """Its pyramid has other levels than ours, and its norms add what the config says."""
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)
    torch.save(detector.state_dict(), tmp_path / "model.pth")
    small = {"preprocess": {"shortest": 64, "longest": 96}, "backbone": {"norm_eps": 1e-3}}
    (tmp_path / "config.json").write_text(json.dumps(small))
    data = (dataset, "--images", pictures, "--val", dataset, "--out", tmp_path / "out")
    given = ("--weights", tmp_path / "model.pth", "--config", tmp_path / "config.json")
    assert train(*data, *given, *SHORT, "--freeze", 0) == 0
    config = load_model(tmp_path / "out" / "best.safetensors").config
    assert (config.backbone.norm_eps, config.backbone.levels) == (1e-3, ("c5a", "c5"))
    assert config.preprocess.longest == 96
    assert config.class_names != ("1", "2")


def test_val_of_its_own_and_tables(
    dataset: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [dataset, "--val", dataset, "--out", tmp_path / "out", "--images", pictures, "--device", "cpu", *SHORT]
    assert main(["train", *map(str, options), "--steps", "1"]) == 0
    shown = capsys.readouterr()
    assert "3 pictures, 3 objects" in shown.out and "step 1, " in shown.err


def test_bad_data_leaves_nothing_behind(
    dataset: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:100])
    common = (dataset, "--images", pictures, "--out", tmp_path / "out", *SHORT)
    assert train(*common) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "1.png: cannot be read" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
    assert train(*common, "--skip-bad") == 0


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["--preset", "micro"], 2),
        (["--steps", "many"], 2),
        (["--learning-rat", 1], 2),
        (["--weights", "nuclei", "--pretrained-backbone"], 2),
        (["--batch-size", 0], 2),
        (["--batch-size", 10**20], 2),
        (["--val-fraction", 3], 2),
        (["--augmentation.flip", "nan"], 2),
        (["--steps", 5, "--epochs", 1], 2),
        (["--minutes", 5, "--epochs", 1], 2),
        (["--resume", "--scale", 2], 2),
        (["--config", "config.yaml"], 2),
        (["--resume", "--weights", "nuclei", "--config", "config.yaml"], 2),
        (["--weights", "nuclei", "--config", "no-such.yaml"], 1),
        (["--device", "abacus"], 1),
        (["--resume"], 1),
        (["--weights", "nucleus"], 1),
    ],
)
def test_what_cannot_be(
    args: list[Any], status: int, dataset: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*map(str, args)] if "--device" in args else [*map(str, args), "--device", "cpu"]
    assert main(["train", str(dataset), "--images", str(pictures), "--out", str(tmp_path / "out"), *given]) == status
    assert capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_must_be_given(tmp_path: Path) -> None:
    assert train("--out", tmp_path / "out") == 2
    assert train("shapes") == 2


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_is_a_status_of_1(dataset: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--images", pictures, "--out", out, *SHORT, "--steps", 10**6, "--device", "cpu"]
    command = [sys.executable, "-m", "maskrcnn", "train", dataset, *options]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").is_file() or '"train"' not in (out / "log.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "--resume goes on from there" in error and "Traceback" not in error
