"""`maskrcnn lineage`: options to one call; wrong ones are told in one line; what is stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import tyro

from maskrcnn.cli.lineage import MAIN, Ablation, Options, System
from maskrcnn.cli.main import main
from maskrcnn.errors import InputError
from maskrcnn.lineage import run, systems
from maskrcnn.lineage.ablations import ABLATIONS
from maskrcnn.lineage.system import Bench, Stopwatch, Trained
from maskrcnn.lineage.system import System as LineageSystem
from maskrcnn.structures import Detections

SHORT = ["--budget", "0.5", "--device", "cpu", "--pictures", "2"]


def finds_nothing(bench: Bench) -> Trained:
    def detect(picture: np.ndarray, watch: Stopwatch) -> Detections:
        with watch("look"):
            nothing = torch.zeros(0, dtype=torch.int64)
            return Detections(torch.zeros(0, 4), torch.zeros(0), nothing, (), (), None, picture.shape[:2])

    return Trained(detect, {"sleep": 1.0}, {"pictures": float(len(bench.train))})


def breaks(bench: Bench) -> Trained:
    raise InputError("no space left on device", file=bench.folder / "state.safetensors")


def is_stopped(bench: Bench) -> Trained:
    raise KeyboardInterrupt


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a function for training in place of each system."""

    def use(**trains: Any) -> None:
        def chosen(keys: Sequence[str]) -> tuple[LineageSystem, ...]:
            return tuple(LineageSystem(key, key.title(), "a paper", train) for key, train in trains.items())

        monkeypatch.setattr(run, "systems_of", chosen)

    return use


@pytest.fixture
def lineage(dataset: Path, pictures: Path) -> Callable[..., int]:
    """The command on three small pictures."""

    def command(*args: object) -> int:
        data = ["--data", dataset, "--val", dataset, "--images", pictures]
        return main(["lineage", *map(str, [*data, *SHORT, *args])])

    return command


def test_the_words_of_the_options_are_the_librarys() -> None:
    assert tuple(systems.MAIN) == MAIN and set(get_args(System)) == {*systems.MAIN, *systems.OTHERS}
    assert get_args(Ablation) == tuple(ABLATIONS)


def test_a_table_and_the_name_of_the_page(
    lineage: Callable[..., int], use: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(one=finds_nothing, two=finds_nothing)
    assert lineage("--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"2 rows: {tmp_path / 'out' / 'lineage.html'}\n")
    assert "One" in printed and "box AP" in printed and "look" in printed
    rows = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert [(row["name"], row["box_ap"], row["facts"]) for row in rows] == [
        ("One", 0.0, {"pictures": 2.0}),
        ("Two", 0.0, {"pictures": 2.0}),
    ]
    assert lineage("--out", tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr().out == f"2 rows: {tmp_path / 'out' / 'lineage.html'}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budget", "0"], "--budget: impossible value; found 0.0; expected minutes above 0"),
        (["--budget", "nan"], "--budget: impossible value; found nan; expected minutes above 0"),
        (["--pictures", "0"], "--pictures: impossible value; found 0; expected a whole number above 0"),
        (["--val-pictures", "-1"], "--val-pictures: impossible value; found -1; expected a whole number above 0"),
        (["--scale", "0"], "--scale: impossible value; found 0.0; expected a number above 0"),
        (["--val-fraction", "1"], "--val-fraction: is not a share; found 1.0; expected between 0 and 1"),
        (["--seeds", "1", "1"], "--seeds: impossible choice; found 1 1; expected one or more, each once"),
        (["--seeds", "-1"], "--seeds: impossible value; found -1; expected whole numbers from 0 to 2**32 - 1"),
        (
            ["--systems", "rcnn", "rcnn"],
            "--systems: impossible choice; found rcnn rcnn; expected one or more, each once",
        ),
        (
            ["--systems", "rcnn", "--ablation", "depth"],
            "--systems: has no use with --ablation; expected one of the two",
        ),
        (["--steps", "9"], "--steps: has no use without --ablation; expected --budget MINUTES"),
        (
            ["--steps", "9", "--ablation", "depth"],
            "--budget and --steps: say how long each learns; found both; expected one of them",
        ),
        (["--pretrained-backbone"], "--pretrained-backbone: has no use without --backbone; expected both"),
        (["--backbone", "resnet1"], "--backbone: no such network; found resnet1; expected a name that timm knows"),
        (["--device", "gpu"], "--device: no such device; found gpu; expected auto, cpu, cuda or mps"),
        (
            ["--ablation", "depth", "--backbone", "resnet50"],
            "--ablation depth: compares bodies of its own; found resnet50",
        ),
    ],
)
def test_wrong_use(
    lineage: Callable[..., int],
    use: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    use(one=finds_nothing)
    assert lineage("--out", tmp_path / "out", *args) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1
    assert not (tmp_path / "out" / "lineage.json").exists()


@pytest.mark.parametrize("args", [["--systems", "yolo"], ["--ablation", "colour"], ["--budget", "long"]])
def test_words_that_are_none(
    lineage: Callable[..., int], args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lineage("--out", tmp_path / "out", *args) == 2
    assert args[1] in capsys.readouterr().err


def test_data_that_are_not_there(
    lineage: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lineage("--data", tmp_path / "none", "--out", tmp_path / "out") == 1
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (is_stopped, "stopped: what is done is kept in {out}, the same command goes on from there\n"),
        (breaks, "error: {out}/systems/two-seed-0/state.safetensors: no space left on device\n"),
    ],
)
def test_what_is_stopped_goes_on(
    lineage: Callable[..., int], use: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], train: Any, message: str
) -> None:
    use(one=finds_nothing, two=train)
    assert lineage("--out", tmp_path / "out") == 1
    assert capsys.readouterr().err == message.format(out=tmp_path / "out")
    assert [row["key"] for row in json.loads((tmp_path / "out" / "lineage.json").read_text())] == ["one"]
    use(one=breaks, two=finds_nothing)
    assert lineage("--out", tmp_path / "out", "--quiet") == 0
    assert [row["key"] for row in json.loads((tmp_path / "out" / "lineage.json").read_text())] == ["one", "two"]


def test_rows_of_other_settings_are_refused(
    lineage: Callable[..., int], use: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(one=finds_nothing)
    assert lineage("--out", tmp_path / "out", "--quiet") == 0
    assert lineage("--out", tmp_path / "out", "--budget", "2") == 1
    found = "minutes: the run was started with 0.5, not 2.0; expected the same settings, or another out"
    assert capsys.readouterr().err == f"error: {tmp_path}/out/systems/one-seed-0/settings.json: {found}\n"


def test_options_are_read() -> None:
    args = ["--data", "x", "--out", "y", "--budget", "3", "--seeds", "0", "1", "--systems", "rcnn", "mask-rcnn"]
    options = tyro.cli(Options, args=args)
    assert (options.seeds, options.systems, options.budget) == ((0, 1), ("rcnn", "mask-rcnn"), 3.0)
    assert options.pictures == 500 and options.ablation is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_system_learns_drawn_shapes(tmp_path: Path) -> None:
    args = ["--data", "shapes", "--budget", "1", "--pictures", "100", "--val-pictures", "20", "--device", "cpu"]
    assert main(["lineage", *args, "--out", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "lineage.json").read_text())}
    assert list(rows) == ["HOG + SVM", "R-CNN", "Fast R-CNN", "Faster R-CNN", "Mask R-CNN"]
    assert all(row["box_ap50"] > 0.02 for row in rows.values())
    assert [name for name, row in rows.items() if row["mask_ap"] is not None] == ["Mask R-CNN"]
    assert rows["Mask R-CNN"]["mask_ap50"] > 0.02
    for row in rows.values():
        assert 0 < sum(row["stages"].values()) <= row["seconds_per_picture"]  # stages lie inside, none in another
    assert "SVM" in rows["HOG + SVM"]["stages"] and "SVM" in rows["R-CNN"]["stages"]
    assert {"proposals", "features", "heads"} <= rows["Fast R-CNN"]["stages"].keys()
    assert rows["Mask R-CNN"]["stages"].keys() == rows["Faster R-CNN"]["stages"].keys() | {"masks"}
