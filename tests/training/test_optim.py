"""Optimizers, learning rates and the average against plain formulas."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from maskrcnn.training.optim import (
    Average,
    make_optimizer,
    optimizer_tensors,
    peak_rate,
    rate_factor,
    restore_optimizer,
    set_rate,
)
from maskrcnn.training.recipe import Recipe


def test_the_rate_grows_with_the_batch() -> None:
    assert peak_rate(Recipe(learning_rate=0.02, reference_batch=16, batch_size=4)) == pytest.approx(0.005)
    assert peak_rate(Recipe(learning_rate=0.02, reference_batch=16, batch_size=32)) == pytest.approx(0.04)


def test_cosine_with_warm_up_at_hand_computed_places() -> None:
    recipe = Recipe(schedule="cosine", warmup=0.2)
    wanted = {0.0: 0.02, 0.1: 0.51, 0.2: 1.0, 0.6: 0.505, 1.0: 0.01}
    assert {place: rate_factor(place, recipe) for place in wanted} == pytest.approx(wanted)
    quarter = 0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2
    assert rate_factor(0.4, recipe) == pytest.approx(quarter)
    assert rate_factor(1.3, recipe) == pytest.approx(0.01)  # a run by the clock ends a little late


def test_steps_with_and_without_warm_up() -> None:
    recipe = Recipe(schedule="step", warmup=0.1, milestones=(0.5, 0.75))
    wanted = {0.05: 0.51, 0.1: 1.0, 0.49: 1.0, 0.5: 0.1, 0.74: 0.1, 0.75: 0.01, 1.0: 0.01}
    assert {place: rate_factor(place, recipe) for place in wanted} == pytest.approx(wanted)
    assert rate_factor(0.0, Recipe(schedule="step", warmup=0.0)) == 1
    assert rate_factor(0.0, Recipe(schedule="cosine", warmup=0.0)) == 1


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_only_matrices_decay_and_only_what_learns_is_there(name: Literal["sgd", "adamw"], kind: type) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    optimizer = make_optimizer(model, Recipe(optimizer=name, weight_decay=0.3, learning_rate=0.1, batch_size=16))
    assert isinstance(optimizer, kind)
    decayed, plain = optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3), (2, 4)] and decayed["weight_decay"] == 0.3
    assert [tuple(p.shape) for p in plain["params"]] == [(4,), (4,), (4,)] and plain["weight_decay"] == 0
    set_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimizer_goes_on_where_another_stopped(name: Literal["sgd", "adamw"]) -> None:
    """In channels-last layout too, which a file does not keep: the fused kernels go by the order of memory."""
    recipe = Recipe(optimizer=name, learning_rate=0.1, batch_size=16)
    models, optimizers = [], []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).to(memory_format=torch.channels_last))
        optimizers.append(make_optimizer(models[-1], recipe))
    restore_optimizer(optimizers[1], {})  # nothing gathered yet
    steps(models[0], optimizers[0], range(5))
    steps(models[1], optimizers[1], range(3))
    gathered = {key: value.clone().contiguous() for key, value in optimizer_tensors(optimizers[1]).items()}
    other = make_optimizer(models[1], recipe)
    restore_optimizer(other, gathered)
    steps(models[1], other, range(3, 5))
    for mine, its in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(mine, its)


def test_the_average_against_its_formula() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = Average(model, decay=0.9)
    expected: Tensor = model[0].weight.detach().double().clone()
    for step in range(1, 120):
        with torch.no_grad():
            model[0].weight += torch.randn(2, 3)
            model[1].running_mean += 1
            model[1].num_batches_tracked += 1
        average.update(model, step)
        decay = min(0.9, step / (step + 10))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
    mine: Any = average.model
    assert torch.allclose(mine[0].weight.double(), expected, atol=1e-5)
    assert mine[1].num_batches_tracked == 119  # counts are not averaged, statistics are
    assert 0 < mine[1].running_mean[0] < model[1].running_mean[0]
    assert not mine[0].weight.requires_grad and not mine.training


def test_the_average_soon_forgets_the_first_weights() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 100.0)
    average: Any = Average(model, decay=0.998)
    nn.init.constant_(model.weight, 0.0)
    for step in range(1, 101):
        average.update(model, step)
    assert average.model.weight.item() < 1e-6
