"""Optimizer, its learning rate, and the averaged copy of the weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from maskrcnn.training.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW (Loshchilov and Hutter 2019); norms and biases are not decayed."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = peak_rate(recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer has gathered so far, as "<number of the parameter>.<name>"."""
    gathered = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, values in gathered.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, for the same parameters.

    Each tensor gets the memory layout of its parameter: the fused kernels walk both in the order of memory, and
    would pair the moments of a file with the wrong weights of a channels-last model.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gathered: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        gathered.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": gathered})


def peak_rate(recipe: Recipe) -> float:
    """The learning rate after warm-up, scaled with the batch (Goyal et al. 2017, 2.1)."""
    return recipe.learning_rate * recipe.batch_size / recipe.reference_batch


def rate_factor(part_done: float, recipe: Recipe) -> float:
    """What part of the peak rate holds at `part_done`, 0 (start) to 1 (end): a straight rise, then the schedule."""
    if part_done < recipe.warmup:
        return 0.02 + 0.98 * part_done / recipe.warmup
    if recipe.schedule == "step":
        return float(0.1 ** sum(part_done >= milestone for milestone in recipe.milestones))
    rest = (min(part_done, 1.0) - recipe.warmup) / (1 - recipe.warmup)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * rest)) / 2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class Average:
    """An exponential moving average of weights and norm statistics (Polyak and Juditsky 1992).

    `model` is the averaged copy. The decay warms up, so that the first, useless weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model` after optimizer step number `step`, counted from 1."""
        weight = 1 - min(self.decay, step / (step + 10))
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        moving = [(mine, its) for mine, its in pairs if mine.is_floating_point()]
        if moving:
            mine, its = zip(*moving, strict=True)
            torch._foreach_lerp_(mine, its, weight)  # one call rather than hundreds
        for own, other in pairs:
            if not own.is_floating_point():
                own.copy_(other)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
