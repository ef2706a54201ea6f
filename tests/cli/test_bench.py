"""Ours against torchvision's by one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from maskrcnn.bench import run as bench_run
from maskrcnn.bench.peer import Work, random_weights
from maskrcnn.bench.pictures import bench_pictures
from maskrcnn.cli import bench as command
from maskrcnn.cli.main import main

SMALL = ["--shortest", "96", "--proposals", "30", "--detections", "6", "--rounds", "1", "--threads", "1"]


def bench(*args: object) -> int:
    return main(["bench", *map(str, args)])


def test_from_weights_to_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    work = Work(shortest=96, longest=160, proposals=30, detections=6)
    picture = bench_pictures()[0]
    weights = random_weights(tmp_path / "model.pth", picture.data, work, body="resnet18")
    (tmp_path / "photo.jpg").write_bytes(picture.data)
    out = tmp_path / "out"
    words = ["--weights", weights, "--pictures", tmp_path / "photo.jpg", "--precision", "float32", "--out", out]
    assert bench(*words, *SMALL) == 0
    shown = capsys.readouterr().out
    for word in ("torchvision", "ours float32", "times faster", "RoIAlign mask", "share of floor", "clear pixels"):
        assert word in shown
    assert "…" not in shown and max(map(len, shown.splitlines())) <= max(80, len(f"17 rows: {out}"))
    record = json.loads((out / "bench.json").read_text())
    assert record["about"]["threads"] == 1
    memory = [row["memory_mb"] for row in record["rows"] if "memory" in row["work"]]
    assert len(memory) == 2
    ours = next(row for row in record["rows"] if row["side"] == "ours float32")
    assert ours["facts"]["pairs"] == 6 and ours["facts"]["one_sided"] == 0
    assert "| RoIAlign box |" in (out / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--rounds", 0], "--rounds: impossible value; found 0; expected a whole number above 0"),
        (["--threads", -1], "--threads: impossible value; found -1; expected a whole number above 0"),
        (["--precision"], "--precision: impossible choice; found none; expected one or more, each once"),
        (["--what", "nano", "nano"], "--what: impossible choice; found nano nano; expected one or more, each once"),
        (["--precision", "int8"], "--precision: int8 learns its ranges from pictures; found int8; expected --calibrat"),
        (["--data", "x"], "--data: has a use for --what loader only; found x"),
    ],
)
def test_wrong_use(words: list[object], error: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert bench(*words, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"error: {error}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--device", "nowhere"], "device: no such device; found nowhere"),
        (["--pictures", "none.jpg"], "none.jpg"),
        (["--weights", "none.pth"], "none.pth"),
    ],
)
def test_bad_input_is_one_line(words: list[object], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*words, *SMALL) in (1, 2)
    told = capsys.readouterr().err
    assert told.startswith("error: ") and error in told and told.count("\n") == 1


def test_names_are_those_of_the_package() -> None:
    assert get_args(command.What) == get_args(bench_run.What)
