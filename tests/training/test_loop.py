"""A step, its gradients, and how a run ends before its time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.data.loader import TrainLoader
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.losses.mask_rcnn_loss import MaskRCNNLoss
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.structures import GtMasks, Target
from maskrcnn.training import loop
from maskrcnn.training.checkpoint import Progress, TrainingState
from maskrcnn.training.distributed import World
from maskrcnn.training.loop import Observers, learn, learning_mode, step_once
from maskrcnn.training.optim import make_optimizer
from maskrcnn.training.recipe import Recipe
from maskrcnn.training.run_log import read_log
from maskrcnn.training.schedule import Length, length_of

pytestmark = pytest.mark.usefixtures("undrawn")

RECIPE = Recipe(
    steps=5, batch_size=4, reference_batch=4, optimizer="sgd", learning_rate=0.01, warmup=0.0, precision="float32"
)
Batch = Sequence[tuple[Tensor, Target]]


def grouped(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """Group norm: a picture's features do not hang on its neighbours."""
    return replace(config, backbone=replace(config.backbone, norm="group"))


def new_state(config: MaskRCNNConfig, recipe: Recipe = RECIPE) -> TrainingState:
    torch.manual_seed(3)
    model = MaskRCNN(config)
    return TrainingState(model, make_optimizer(model, recipe), None, Progress())


def batch_of(dataset: ShapesDataset, count: int) -> Batch:
    return next(TrainLoader(dataset, None, count, seed=0).batches())


def gradients(state: TrainingState, batch: Batch, recipe: Recipe) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The losses of a step and its gradients, unclipped."""
    kept: dict[str, Tensor] = {}
    state.optimizer.step = lambda: kept.update(  # type: ignore[method-assign, misc, assignment]
        {name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None}
    )
    loss_model = MaskRCNNLoss(state.model, recipe.loss)
    values = step_once(loss_model, state, batch, replace(recipe, clip_norm=1e9), World())
    return {name: float(value) for name, value in values.items()}, kept


def test_a_step_names_its_losses_and_moves_the_weights(tiny_config: MaskRCNNConfig, shapes: Any) -> None:
    state = new_state(tiny_config)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    values = step_once(MaskRCNNLoss(state.model), state, batch_of(shapes[0], 4), RECIPE, World())
    parts = ["rpn_objectness", "rpn_box", "box_class", "box_delta", "mask"]
    assert list(values) == ["total", *parts, "gradient_norm", "learning_rate"]
    assert float(values["total"]) == pytest.approx(sum(float(values[name]) for name in parts), rel=1e-5)
    still = [name for name, p in state.model.named_parameters() if torch.equal(p, before[name])]
    # the last scale of each residual branch begins at 0, so what lies before it waits for it
    assert all(name.startswith("backbone.body.layer") for name in still)
    assert all(p.grad is None for p in state.model.parameters())


def test_accumulated_parts_give_nearly_the_gradients_of_the_whole(tiny_config: MaskRCNNConfig, shapes: Any) -> None:
    """Exactly those for RPN and box head, whose samples are full; masks are averaged per part."""
    config, batch = grouped(tiny_config), batch_of(shapes[0], 4)
    whole, its = gradients(new_state(config), batch, RECIPE)
    parts, mine = gradients(new_state(config), batch, replace(RECIPE, accumulate=2))
    assert parts["rpn_objectness"] == pytest.approx(whole["rpn_objectness"], rel=1e-4)
    assert parts["rpn_box"] == pytest.approx(whole["rpn_box"], rel=1e-4)
    assert parts["total"] == pytest.approx(whole["total"], rel=0.05)
    for name in ("rpn.objectness.weight", "box_head.classes.weight"):
        assert torch.nn.functional.cosine_similarity(mine[name].flatten(), its[name].flatten(), dim=0) > 0.99, name


def test_two_parts_of_the_same_pictures_are_exactly_one(tiny_config: MaskRCNNConfig, shapes: Any) -> None:
    config, half = grouped(tiny_config), batch_of(shapes[0], 2)
    once, its = gradients(new_state(config), half, RECIPE)
    twice, mine = gradients(new_state(config), [*half, *half], replace(RECIPE, accumulate=2))
    assert once == pytest.approx(twice, rel=1e-5)
    for name, gradient in its.items():
        assert torch.allclose(mine[name], gradient, rtol=1e-4, atol=1e-6), name


def test_gradients_are_clipped(tiny_config: MaskRCNNConfig, shapes: Any) -> None:
    state = new_state(tiny_config)
    before = [p.detach().clone() for p in state.model.parameters()]
    recipe = replace(RECIPE, clip_norm=1e-3, momentum=0.0, weight_decay=0.0)
    state.optimizer = make_optimizer(state.model, recipe)
    values = step_once(MaskRCNNLoss(state.model), state, batch_of(shapes[0], 2), recipe, World())
    assert values["gradient_norm"] > 0.1  # as it was
    pairs = zip(state.model.parameters(), before, strict=True)
    moved = math.sqrt(sum(float((p.detach() - b).square().sum()) for p, b in pairs))
    assert moved == pytest.approx(1e-3 * recipe.learning_rate, rel=0.02)


def test_pictures_without_objects_teach_too(tiny_config: MaskRCNNConfig) -> None:
    empty = Target(
        gt_boxes=torch.zeros(0, 4),
        gt_labels=torch.zeros(0, dtype=torch.int64),
        gt_masks=GtMasks(()),
        is_crowd=torch.zeros(0, dtype=torch.bool),
        size=(64, 64),
    )
    picture = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    state = new_state(tiny_config)
    values = step_once(MaskRCNNLoss(state.model), state, [(picture, empty)] * 2, RECIPE, World())
    assert values["rpn_objectness"] > 0 and values["box_class"] > 0
    assert values["mask"] == values["rpn_box"] == values["box_delta"] == 0


def test_the_statistics_of_frozen_norms_stay(tiny_config: MaskRCNNConfig, shapes: Any) -> None:
    state = new_state(tiny_config)
    frozen = {f"body.{name}".rpartition(".")[0] for name in state.model.backbone.freeze(3)}
    state.optimizer = make_optimizer(state.model, RECIPE)
    before = {name: buffer.clone() for name, buffer in state.model.backbone.named_buffers()}
    step_once(MaskRCNNLoss(state.model), state, batch_of(shapes[0], 2), RECIPE, World())
    changed = {name.rpartition(".")[0] for name, b in state.model.backbone.named_buffers() if (b != before[name]).any()}
    norms = {name.rpartition(".")[0] for name in before}
    assert changed == norms - frozen
    assert changed and changed != norms
    state.model.eval()
    learning_mode(state.model)
    assert state.model.training and state.model.backbone.training


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_precisions_agree(tiny_config: MaskRCNNConfig, shapes: Any, precision: Literal["float32", "bf16"]) -> None:
    exact, _ = gradients(new_state(tiny_config), batch_of(shapes[0], 4), RECIPE)
    values, mine = gradients(new_state(tiny_config), batch_of(shapes[0], 4), replace(RECIPE, precision=precision))
    assert values["rpn_objectness"] == pytest.approx(exact["rpn_objectness"], rel=0.02)
    assert values["total"] == pytest.approx(exact["total"], rel=0.1)
    assert {gradient.dtype for gradient in mine.values()} == {torch.float32}


def test_a_step_draws_nothing_that_the_process_drew_before(tiny_config: MaskRCNNConfig, shapes: Any) -> None:
    """Dropout in a backbone follows from seed and step, or a resumed run would differ."""
    config = replace(tiny_config, backbone=replace(tiny_config.backbone, name="resnet18"))
    config.backbone.options["drop_path_rate"] = 0.5  # type: ignore[index]
    results = []
    for seed in (1, 2):
        state = new_state(config)
        torch.manual_seed(seed)
        results.append(gradients(state, batch_of(shapes[0], 2), RECIPE)[0])
    assert results[0] == results[1]


class Told:
    """Observers that remember."""

    def __init__(self, stop_at: int = 0) -> None:
        self.logged: list[int] = []
        self.validated: list[int] = []
        self.saved: list[int] = []
        self.stepped: list[int] = []
        self.stop_at = stop_at

    def observers(self) -> Observers:
        return Observers(
            lambda step, values: self.logged.append(step),
            self.validate,
            lambda state: self.saved.append(state.progress.step),
            lambda state: self.stepped.append(state.progress.step),
        )

    def validate(self, state: TrainingState) -> bool:
        self.validated.append(state.progress.step)
        return state.progress.step == self.stop_at


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Steps that cost nothing; the learning rates that they were to have."""
    rates: list[float] = []

    def step_once(loss_model: Any, state: TrainingState, *rest: Any) -> dict[str, Tensor]:
        rates.append(state.optimizer.param_groups[0]["lr"])
        return {"total": torch.tensor(1.0)}

    monkeypatch.setattr(loop, "step_once", step_once)
    return rates


def run(told: Told, recipe: Recipe, config: MaskRCNNConfig, pictures: int = 8, start: int = 0) -> tuple[bool, Any]:
    state = new_state(config, recipe)
    state.progress.step = start
    batches: Any = iter(lambda: [], None)
    return learn(state, batches, recipe, length_of(recipe, pictures), World(), told.observers()), state


def test_what_is_told_when(tiny_config: MaskRCNNConfig, no_work: list[float]) -> None:
    told = Told()
    recipe = replace(RECIPE, steps=9, evaluate_every=2.0, log_every=4)
    finished, state = run(told, recipe, tiny_config)
    assert finished and state.progress.step == 9 and state.progress.validations == 3
    assert told.stepped == list(range(1, 10))
    assert told.logged == [1, 4, 8]
    assert told.validated == told.saved == [4, 8, 9]
    assert no_work[0] == pytest.approx(0.01) and no_work == sorted(no_work, reverse=True)


def test_a_validation_may_end_the_run(tiny_config: MaskRCNNConfig, no_work: list[float]) -> None:
    told = Told(stop_at=4)
    finished, state = run(told, replace(RECIPE, steps=100), tiny_config)
    assert finished and state.progress.step == 4 and told.saved == [2, 4]


def test_a_run_that_is_over_does_nothing(tiny_config: MaskRCNNConfig, no_work: list[float]) -> None:
    told = Told()
    assert run(told, replace(RECIPE, steps=5), tiny_config, start=5)[0]
    assert told.stepped == told.validated == told.saved == []


def test_runs_by_the_clock_end_in_time(tiny_config: MaskRCNNConfig, no_work: list[float]) -> None:
    told = Told()
    finished, state = run(told, replace(RECIPE, minutes=0.005, steps=None), tiny_config)
    assert finished and 0.3 <= state.progress.seconds < 2
    assert told.validated == told.saved == [state.progress.step]
    assert no_work[-1] < 0.2 * no_work[0]


def test_the_state_is_saved_now_and_then(tiny_config: MaskRCNNConfig, no_work: list[float]) -> None:
    told = Told()
    run(told, replace(RECIPE, minutes=0.005, save_minutes=0.001), tiny_config)
    assert 3 <= len(told.saved) <= 6


@pytest.mark.parametrize(("part", "found"), [("loss", "total nan"), ("gradient", "gradient_norm nan")])
def test_nothing_is_saved_after_a_loss_that_is_not_finite(
    train_tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str, found: str
) -> None:
    real, calls = MaskRCNNLoss.forward, []

    def forward(self: MaskRCNNLoss, batch: Any, targets: Any) -> dict[str, Tensor]:
        losses = real(self, batch, targets)
        calls.append(self.model.training)
        if sum(calls) == 3 and part == "loss":
            losses["total"] = losses["total"] * math.nan
        if sum(calls) == 3 and part == "gradient":  # sqrt has an infinite slope at 0
            losses["total"] = losses["total"] + (losses["total"] * 0).sqrt()
        return losses

    monkeypatch.setattr(MaskRCNNLoss, "forward", forward)
    with pytest.raises(InputError, match=f"the loss or its gradient is not finite at step 3; found .*{found}") as error:
        train_tiny(steps=6, evaluate_every=0.6)
    assert "\n" not in str(error.value)
    folder = tmp_path / "run"
    last = read_log(folder)[-1]
    assert (last["event"], last["step"], last["finished"]) == ("end", 2, False) and "not finite" in last["error"]
    monkeypatch.undo()
    resumed = train_tiny(steps=6, evaluate_every=0.6, resume=True)  # from the state of step 2, which is sound
    assert resumed.finished and read_log(folder)[-1].keys() == {
        "event",
        "step",
        "finished",
        "seconds",
        "mask_ap",
        "box_ap",
    }


def test_a_full_device_is_told_in_one_line(train_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nIf reserved ...")

    monkeypatch.setattr(MaskRCNNLoss, "forward", forward)
    with pytest.raises(InputError, match=r"out of memory; found a batch of \d+ pictures; expected a smaller"):
        train_tiny(steps=2)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_learning_rate_without_measure(train_tiny: Any, tmp_path: Path, optimizer: str) -> None:
    changes = {"optimizer": optimizer, "learning_rate": 1e20, "warmup": 0.0, "steps": 20, "evaluate_every": 0.0}
    with pytest.raises(InputError, match="not finite at step"):
        train_tiny(**changes)
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_lengths_take_part_in_nothing_else() -> None:
    assert Length(10, None, 2.5).place(4, 99.0) == 4
    assert Length(None, 60.0, 2.5).place(4, 30.0) == 30
    assert np.isclose(Length(None, 60.0, 2.5).epochs(5), 2)
