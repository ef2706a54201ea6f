"""From the name of a measurement to its rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from maskrcnn.bench.options import BenchOptions
from maskrcnn.bench.rows import Row
from maskrcnn.bench.run import bench
from maskrcnn.bench.training_step import StepRow
from maskrcnn.errors import InputError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """What was asked of the training step, in place of it."""
    calls: list[dict[str, object]] = []

    def step(**options: object) -> list[StepRow]:
        calls.append(options | {"threads": torch.get_num_threads()})
        return [StepRow("torchvision float32", 4.0, 1.0, 5.5, 256), StepRow("maskrcnn bf16", 2.0, 2.0, 5.5, 256)]

    monkeypatch.setattr("maskrcnn.bench.training_step.training_step", step)
    yield calls


def test_training_steps(asked: list[dict[str, object]]) -> None:
    before = torch.get_num_threads()
    options = BenchOptions(rounds=4, threads=before + 1, precisions=("bf16", "int8"))
    peer, ours = bench(["train"], options)
    assert asked == [{"steps": 4, "precisions": ["bf16"], "threads": before + 1}]
    assert torch.get_num_threads() == before
    assert (peer.side, ours.side, ours.unit) == ("torchvision float32", "maskrcnn bf16", "step")
    assert ours.facts == {"seconds": 2.0, "times_faster": 2.0, "sum_of_losses": 5.5, "mask_RoIs": 256}


def test_several_in_the_order_asked_for(asked: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    def start(options: BenchOptions, progress: object) -> list[Row]:
        return [Row(work="start", side="ours")]

    monkeypatch.setattr("maskrcnn.bench.start.bench_start", start)
    rows = bench(["start", "train", "start"], BenchOptions())
    assert [row.work for row in rows] == ["start", *["training step, 512 x 512, batch 2"] * 2, "start"]


def test_nothing_learns_in_int8(asked: list[dict[str, object]]) -> None:
    with pytest.raises(InputError, match="precision: nothing learns in this precision; found int8; expected float32"):
        bench(["train"], BenchOptions(precisions=("int8",)))
    assert not asked


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(InputError, match=f"device: no such device; found {device}"):
        bench(["nano"], BenchOptions(device=device))
