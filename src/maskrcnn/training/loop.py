"""The training loop, on a page: forward, sum of named losses, backward, step, log, now and then a validation."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import FrameType

import torch
from torch import Tensor, nn

from maskrcnn.errors import InputError
from maskrcnn.losses.mask_rcnn_loss import MaskRCNNLoss
from maskrcnn.structures import Target
from maskrcnn.training.checkpoint import TrainingState
from maskrcnn.training.distributed import World, any_rank, from_main
from maskrcnn.training.optim import peak_rate, rate_factor, set_rate
from maskrcnn.training.recipe import Recipe

Batch = Sequence[tuple[Tensor, Target]]  # pictures (3, H, W) uint8 with their objects


@dataclass(frozen=True)
class Length:
    """How long a run is: so many steps, or so many seconds of wall time."""

    steps: int | None
    seconds: float | None
    steps_per_epoch: int

    def part_done(self, step: int, seconds: float) -> float:
        """0 at the start, 1 at the end."""
        return seconds / self.seconds if self.seconds is not None else step / (self.steps or 1)


def length_of(recipe: Recipe, pictures: int) -> Length:
    steps_per_epoch = max(1, math.ceil(pictures / recipe.batch_size))
    if recipe.minutes is not None:
        return Length(None, recipe.minutes * 60, steps_per_epoch)
    return Length(recipe.steps or math.ceil(recipe.epochs * steps_per_epoch), None, steps_per_epoch)


@dataclass(frozen=True)
class Observers:
    """What the loop tells the outside, and asks it. Only the main process logs and validates.

    log(step, values): a line. validate(state) -> whether to stop early. save(state): the resumable state.
    """

    log: Callable[[int, dict[str, float]], None]
    validate: Callable[[TrainingState], bool]
    save: Callable[[TrainingState], None]


def learn(
    state: TrainingState, batches: Iterable[Batch], recipe: Recipe, length: Length, world: World, observers: Observers
) -> bool:
    """Train `state` in place until the run's end. Returns False if it was asked to stop before (Ctrl-C, SIGTERM).

    batches: this process's parts of an endless stream that begins at `state.progress.step`.
    Errors: `InputError` on a loss that is not finite; nothing is saved after it.
    """
    progress, started = state.progress, time.monotonic() - state.progress.seconds
    loss_model = wrapped(MaskRCNNLoss(state.model, recipe.loss), world)
    due = _Validations(recipe, length, progress.validations)
    with stop_on_signal() as stop_asked:
        for batch in batches:
            part_done = length.part_done(progress.step, progress.seconds)
            if part_done >= 1:
                break
            set_rate(state.optimizer, peak_rate(recipe) * rate_factor(part_done, recipe))
            values = step_once(loss_model, state, batch, recipe, world)
            progress.step += 1
            progress.seconds = from_main(time.monotonic() - started, world)
            if progress.step % recipe.log_every == 0 or progress.step == 1:
                numbers = {name: float(value) for name, value in values.items()}
                observers.log(progress.step, numbers | {"seconds": progress.seconds})
            if due.now(progress.step, length.part_done(progress.step, progress.seconds)):
                progress.validations += 1
                finished = world.is_main and observers.validate(state)
                progress.seconds = from_main(time.monotonic() - started, world)
                observers.save(state)
                if any_rank(finished, world):
                    break
            if any_rank(bool(stop_asked), world):
                observers.save(state)
                return False
    return True


def step_once(
    loss_model: nn.Module, state: TrainingState, batch: Batch, recipe: Recipe, world: World
) -> dict[str, Tensor]:
    """One optimizer step on `batch`. Returns the losses, gradient norm and rate, not yet read back from the device."""
    model = state.model
    model.train()
    sums: dict[str, Tensor] = {}
    parts = _parts(batch, recipe.accumulate)
    for i, part in enumerate(parts):
        pictures = model.preprocess.batch([picture.to(world.device, non_blocking=True) for picture, _ in part])
        targets = [target_on(target, world.device) for _, target in part]
        last = i == len(parts) - 1
        hold_gradients = getattr(loss_model, "no_sync", nullcontext)
        with nullcontext() if last else hold_gradients():
            with torch.autocast(world.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                losses = loss_model(pictures, targets)
            (losses["total"] / len(parts)).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(parts)
    _require_finite(sums, state.progress.step)
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        state.average.update(model, state.progress.step + 1)
    return sums | {"gradient_norm": norm, "learning_rate": torch.tensor(state.optimizer.param_groups[0]["lr"])}


def wrapped(loss_model: MaskRCNNLoss, world: World) -> nn.Module:
    """For several processes: gradients are averaged over them during the backward pass."""
    if world.size == 1:
        return loss_model
    return nn.parallel.DistributedDataParallel(loss_model)


def target_on(target: Target, device: torch.device) -> Target:
    """The target's tensors on `device`; its shapes stay where crop_masks reads them."""
    if device.type == "cpu":
        return target
    return replace(
        target,
        gt_boxes=target.gt_boxes.to(device, non_blocking=True),
        gt_labels=target.gt_labels.to(device, non_blocking=True),
        is_crowd=target.is_crowd.to(device, non_blocking=True),
    )


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM fill the list instead of ending the process; a second Ctrl-C does end it."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread can listen; elsewhere nobody asks
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Validations:
    """When the next validation is due, and that one is due at the very end."""

    def __init__(self, recipe: Recipe, length: Length, done: int) -> None:
        if recipe.evaluate_every == 0:
            self.interval = 1.0
        elif length.steps is None:
            self.interval = min(1.0, max(0.1, 180 / (length.seconds or 1)))  # ten, but not within three minutes
        else:
            self.interval = min(1.0, recipe.evaluate_every * length.steps_per_epoch / length.steps)
        self.done = done

    def now(self, step: int, part_done: float) -> bool:
        if part_done < 1 and part_done < (self.done + 1) * self.interval:
            return False
        self.done = max(self.done + 1, int(part_done / self.interval))
        return True


def _parts(batch: Batch, count: int) -> list[Batch]:
    size = math.ceil(len(batch) / count)
    return [batch[i : i + size] for i in range(0, len(batch), size)]


def _require_finite(losses: dict[str, Tensor], step: int) -> None:
    if not torch.isfinite(losses["total"]):
        parts = ", ".join(f"{name} {float(value):.4g}" for name, value in losses.items())
        raise InputError(
            f"the loss is not finite at step {step + 1}", field="training", found=parts, expected="a lower --learning-rate"
        )
