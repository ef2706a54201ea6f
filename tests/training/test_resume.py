"""A run that was stopped and resumed is, to the last bit, the run that was never stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.training import loop
from maskrcnn.training.checkpoint import STATE_FILE, read_saved
from maskrcnn.training.run_log import read_log
from maskrcnn.training.train import train
from maskrcnn.weights.files import read_checkpoint

pytestmark = pytest.mark.usefixtures("undrawn")


def lines(folder: Path) -> list[dict[str, Any]]:
    """Training and validation lines without their times."""
    chosen = [line for line in read_log(folder) if line["event"] in ("train", "validation")]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in chosen]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, framework="pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}


def assert_same_run(found: Path, expected: Path) -> None:
    assert lines(found) == lines(expected)
    for name in ("best.safetensors", "last.safetensors", STATE_FILE):
        mine, its = tensors(found / name), tensors(expected / name)
        assert mine.keys() == its.keys()
        different = [key for key in mine if not torch.equal(mine[key], its[key])]
        assert not different, f"{name}: {different[:5]}"
    progress, wanted = (vars(read_saved(folder).progress) for folder in (found, expected))
    assert progress | {"seconds": 0} == wanted | {"seconds": 0}


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sends SIGTERM to this very process at the end of a step."""
    real = loop.step_once

    def at(step: int) -> None:
        def step_once(loss_model: Any, state: Any, *rest: Any) -> Any:
            values = real(loss_model, state, *rest)
            if state.progress.step + 1 == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return values

        monkeypatch.setattr(loop, "step_once", step_once)

    yield at


@pytest.mark.parametrize(
    ("optimizer", "workers"), [("adamw", 0), ("adamw", 2), ("sgd", 0)], ids=["adamw", "adamw-2-workers", "sgd"]
)
def test_the_losses_and_weights_are_the_same(
    train_tiny: Any, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, optimizer: str, workers: int
) -> None:
    options = {"steps": 7, "optimizer": optimizer, "workers": workers, "evaluate_every": 1.0}
    whole = train_tiny("whole", **options)
    stop_after(4)
    stopped = train_tiny("parts", **options)
    monkeypatch.undo()
    assert not stopped.finished and stopped.scores is None
    assert read_log(stopped.folder)[-1]["event"] == "end"
    assert read_saved(stopped.folder).progress.step == 4
    torch.manual_seed(99)  # what another process would find
    torch.rand(5)
    resumed = train_tiny("parts", resume=True, **options)
    assert resumed.finished
    assert_same_run(resumed.folder, whole.folder)


def test_without_average_and_with_accumulation(
    train_tiny: Any, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 4, "ema": 0.0, "accumulate": 2, "evaluate_every": 0.0}
    whole = train_tiny("whole", **options)
    stop_after(3)
    train_tiny("parts", **options)
    monkeypatch.undo()
    assert_same_run(train_tiny("parts", resume=True, **options).folder, whole.folder)


def test_a_killed_run_goes_on_from_its_last_save(train_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged and kept after that save is done again."""
    options = {"steps": 6, "evaluate_every": 0.6}
    whole = train_tiny("whole", **options)
    real = loop.step_once

    def step_once(loss_model: Any, state: Any, *rest: Any) -> Any:
        if state.progress.step == 5:
            raise KeyboardInterrupt  # nothing is saved on this way out, as on a power cut
        return real(loss_model, state, *rest)

    monkeypatch.setattr(loop, "step_once", step_once)
    with pytest.raises(KeyboardInterrupt):
        train_tiny("parts", **options)
    monkeypatch.undo()
    killed = whole.folder.parent / "parts"
    assert read_saved(killed).progress.step == 4 and lines(killed)[-1]["step"] == 5
    resumed = train_tiny("parts", resume=True, **options)
    assert_same_run(resumed.folder, whole.folder)


def test_a_resumed_run_needs_only_the_data(
    train_tiny: Any, shapes: Any, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipe, preset, start, licence and source are the run's own."""
    stop_after(2)
    first = train_tiny(seed=5, licence="CC0-1.0", source="drawn")
    monkeypatch.undo()
    resumed = train(shapes[0], val=shapes[1], out=first.folder, resume=True, device="cpu", quiet=True)
    assert resumed.finished
    config = json.loads((first.folder / "config.json").read_text())
    assert (config["preset"], config["recipe"]["steps"], config["recipe"]["seed"]) == ("tiny", 4, 5)
    metadata = read_checkpoint(resumed.best).metadata
    assert (metadata["licence"], metadata["source"]) == ("CC0-1.0", "drawn")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, r"recipe\.learning_rate: the run was started with 0\.001, not 0\.5"),
        ({"augmentation": {"crop": 96}}, r"recipe\.augmentation\.crop: the run was started with 64, not 96"),
        ({"preset": "nano"}, "preset: the run was started with 'tiny', not 'nano'"),
        ({"val": ShapesDataset(3, size=(64, 64), seed=2)}, r"pictures\..*: the run was started with"),
    ],
)
def test_other_settings_are_refused(train_tiny: Any, changes: dict[str, Any], message: str) -> None:
    first = train_tiny(steps=1, evaluate_every=0.0)
    before = (first.folder / STATE_FILE).read_bytes()
    with pytest.raises(InputError, match=message):
        train_tiny(resume=True, **({"steps": 1, "evaluate_every": 0.0} | changes))
    assert (first.folder / STATE_FILE).read_bytes() == before


def test_what_the_losses_do_not_hang_on_may_change(train_tiny: Any) -> None:
    train_tiny(steps=1, evaluate_every=0.0)
    assert train_tiny(steps=1, evaluate_every=0.0, resume=True, workers=1, patience=3, log_every=7).finished


def test_nothing_to_resume(train_tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run: out: there is nothing to resume"):
        train_tiny(resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"no tensors at all", b"\x02" + b"\0" * 7 + b"{}"])
def test_a_damaged_state(train_tiny: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STATE_FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"state\.safetensors: (damaged state file|not the state of a run)"):
        train_tiny(resume=True)
