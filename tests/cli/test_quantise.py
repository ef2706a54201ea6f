"""`maskrcnn weights quantise`: a file that opens in int8 without pictures, and gives what calibrating gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import maskrcnn
from maskrcnn.cli.main import main
from maskrcnn.engine.int8 import int8_works
from maskrcnn.errors import InputError
from maskrcnn.weights.files import read_checkpoint

pytestmark = pytest.mark.skipif(not int8_works(), reason="this CPU or torch has no exact int8")


def quantise(*args: object) -> int:
    return main(["weights", "quantise", *map(str, args)])


@pytest.fixture(autouse=True)
def _always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.engine.int8.int8_is_faster", lambda: True)


def test_a_file_that_needs_no_pictures(weights: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.safetensors"
    assert quantise(weights, out, "--calibration", pictures) == 0
    before, after = read_checkpoint(weights), read_checkpoint(out)
    assert before.config == after.config
    assert before.state.keys() == after.state.keys()
    assert all(torch.equal(tensor, after.state[name]) for name, tensor in before.state.items())
    assert after.metadata["int8"]["pictures"] == 3
    picture = pictures / "0.png"
    stored = maskrcnn.load(out, precision="int8").predict(picture, score_threshold=0.0)
    fresh = maskrcnn.load(weights, precision="int8", calibration=pictures).predict(picture, score_threshold=0.0)
    plain = maskrcnn.load(out).predict(picture, score_threshold=0.0)
    assert len(stored) > 0
    assert torch.equal(stored.scores, fresh.scores) and torch.equal(stored.boxes, fresh.boxes)
    assert not torch.equal(stored.scores, plain.scores)


def test_ap_before_and_after(
    weights: Path, dataset: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.safetensors"
    asked = ("--calibration", pictures, "--data", dataset, "--images", pictures)
    assert quantise(weights, out, *asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["calibrated", "float32", "int8"]
    facts = read_checkpoint(out).metadata["int8"]
    assert facts["ap_before"].keys() == facts["ap_after"].keys() >= {"mask", "box"}
    assert quantise(weights, out, *asked) == 1
    assert "is there already" in capsys.readouterr().err
    assert quantise(weights, out, *asked, "--force") == 0


def test_bad_input(weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, empty = tmp_path / "q.safetensors", tmp_path / "empty"
    empty.mkdir()
    assert quantise(weights, out, "--calibration", empty) == 1
    assert (
        capsys.readouterr().err
        == f"error: {empty}: holds no picture; expected a folder with .png, .jpg, .tif, ... files\n"
    )
    (pictures / "1.png").write_bytes(b"no picture")
    assert quantise(weights, out, "--calibration", pictures) == 1
    assert "1.png: is not a picture that can be read" in capsys.readouterr().err
    assert quantise(weights, tmp_path / "q.pth", "--calibration", pictures) == 2
    assert not out.exists()


def test_int8_without_calibration(weights: Path) -> None:
    with pytest.raises(InputError, match="calibration: int8 has to be calibrated; expected pictures"):
        maskrcnn.load(weights, precision="int8")


@pytest.mark.parametrize(
    "ranges", [None, {"a": [1.0]}, {"a": [2.0, 1.0]}, {"a": ["1", 2]}, {"a": [0, float("inf")]}, [1]]
)
def test_damaged_ranges(ranges: object, weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    document = {**read_checkpoint(weights).metadata, "int8": {"ranges": ranges}}
    with_config = json.loads(_text(weights)) | document
    damaged = tmp_path / "damaged.safetensors"
    save_file(load_file(weights), damaged, metadata={"maskrcnn": json.dumps(with_config)})
    with pytest.raises(InputError, match=r"damaged.safetensors: metadata.int8.ranges: cannot be read"):
        maskrcnn.load(damaged, precision="int8")


def _text(path: Path) -> str:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as stream:
        return str(stream.metadata()["maskrcnn"])


def test_a_cpu_on_which_it_is_no_faster(
    weights: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("maskrcnn.engine.int8.int8_is_faster", lambda: False)
    predictor = maskrcnn.load(weights, precision="int8", calibration=pictures)
    assert "precision int8: no faster on this CPU" in caplog.text
    assert predictor.predict(pictures / "0.png").size == (40, 56)
