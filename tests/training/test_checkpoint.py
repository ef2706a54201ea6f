"""Files of a run are written whole or not at all, and say what they belong to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.training.checkpoint import (
    STATE_FILE,
    Progress,
    TrainingState,
    read_saved,
    require_same,
    restore_state,
    save_state,
)
from maskrcnn.training.optim import Average, make_optimizer
from maskrcnn.training.recipe import Recipe
from maskrcnn.weights.files import save_checkpoint
from maskrcnn.weights.opening import load_model

RECIPE = Recipe(optimizer="adamw")


def state_of(config: MaskRCNNConfig, seed: int, *, averaged: bool = True) -> TrainingState:
    """After a step, so that the optimizer has something to remember."""
    torch.manual_seed(seed)
    model = MaskRCNN(config).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, RECIPE)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return TrainingState(model, optimizer, Average(model, 0.9) if averaged else None, Progress(step=seed, best=0.25))


def everything(state: TrainingState) -> list[torch.Tensor]:
    gathered = [
        values[name] for _, values in sorted(state.optimizer.state_dict()["state"].items()) for name in sorted(values)
    ]
    return [*state.model.state_dict().values(), *state.deployed.state_dict().values(), *gathered]


@pytest.mark.parametrize("averaged", [True, False])
def test_there_and_back(tiny_config: MaskRCNNConfig, tmp_path: Path, averaged: bool) -> None:
    settings = {"preset": "tiny", "recipe": {"seed": 1}}
    first, other = (state_of(tiny_config, seed, averaged=averaged) for seed in (1, 2))
    path = save_state(tmp_path, first, settings)
    assert path == tmp_path / STATE_FILE and list(tmp_path.iterdir()) == [path]
    restore_state(tmp_path, other, settings)
    assert other.progress == first.progress
    assert all(torch.equal(mine, its) for mine, its in zip(everything(other), everything(first), strict=True))
    saved = read_saved(tmp_path)
    assert (saved.config, saved.settings, saved.progress) == (tiny_config, settings, first.progress)


def test_before_the_first_step(tiny_config: MaskRCNNConfig, tmp_path: Path) -> None:
    model = MaskRCNN(tiny_config)
    fresh = TrainingState(model, make_optimizer(model, RECIPE), None, Progress())
    save_state(tmp_path, fresh, {})
    restore_state(tmp_path, fresh, {})
    assert fresh.optimizer.state_dict()["state"] == {}


def test_another_model(tiny_config: MaskRCNNConfig, tmp_path: Path) -> None:
    from dataclasses import replace

    save_state(tmp_path, state_of(tiny_config, 1), {})
    other = state_of(replace(tiny_config, fpn=replace(tiny_config.fpn, channels=24)), 1)
    with pytest.raises(InputError, match=r"state\.safetensors: weights of another model; found .*size mismatch"):
        restore_state(tmp_path, other, {})


def test_the_first_difference_is_named() -> None:
    before = {"preset": "nano", "recipe": {"seed": 0, "workers": 2, "loss": {"rpn": {"beta": 0.5}}}}
    require_same(
        before, {"preset": "nano", "recipe": {"seed": 0, "workers": 9, "loss": {"rpn": {"beta": 0.5}}}}, Path()
    )
    changed = {"preset": "nano", "recipe": {"seed": 0, "workers": 2, "loss": {"rpn": {"beta": 0.25}}}}
    with pytest.raises(InputError, match=r"x: recipe\.loss\.rpn\.beta: the run was started with 0\.5, not 0\.25"):
        require_same(before, changed, Path("x"))


@pytest.mark.parametrize("culprit", ["replace", "fsync"])
def test_a_failing_disk_leaves_the_file_before(
    tiny_config: MaskRCNNConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    save_state(tmp_path, state_of(tiny_config, 1), {})
    before = (tmp_path / STATE_FILE).read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, culprit, fail)
    with pytest.raises(OSError, match="No space"):
        save_state(tmp_path, state_of(tiny_config, 2), {})
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1  # nothing half done lies about


KILLED_WRITERS = """
import os, signal, sys, time
import safetensors.torch, torch
from maskrcnn.weights.files import write_tensors

def write(version):
    write_tensors(sys.argv[1], {"a": torch.full((4_000_000,), version, dtype=torch.int32)}, {})

torch.set_num_threads(1)
write(0)
for attempt in range(12):
    writer = os.fork()
    if writer == 0:
        for version in range(1, 10**6):
            write(version)
    time.sleep(0.02 + 0.007 * attempt)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    values = safetensors.torch.load_file(sys.argv[1])["a"]
    assert values.shape == (4_000_000,) and (values == values[0]).all(), "torn"
print("whole")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_in_mid_write_the_file_before_is_intact(tmp_path: Path) -> None:
    """SIGKILL at many moments of writing 16 MB: what is there is always one version, whole."""
    command = [sys.executable, "-c", KILLED_WRITERS, str(tmp_path / "state.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "whole\n", done.stderr
    assert list(tmp_path.glob(".*.unfinished"))  # it was in mid-write, then


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tiny_config: MaskRCNNConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.safetensors"
    first = state_of(tiny_config, 1).model
    save_checkpoint(path, first, metadata={})
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        save_checkpoint(path, state_of(tiny_config, 2).model, metadata={})
    assert torch.equal(load_model(path).box_head.classes.weight, first.box_head.classes.weight)
