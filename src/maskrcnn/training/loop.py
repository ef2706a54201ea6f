"""The training loop, on a page: forward, sum of named losses, backward, step, log, now and then a validation."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import FrameType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskrcnn.engine.memory_errors import TO_LEARN, enough_memory
from maskrcnn.errors import InputError
from maskrcnn.losses.mask_rcnn_loss import MaskRCNNLoss
from maskrcnn.structures import Target
from maskrcnn.training.checkpoint import TrainingState
from maskrcnn.training.distributed import World, any_rank, from_main
from maskrcnn.training.optim import peak_rate, rate_factor, set_rate
from maskrcnn.training.recipe import Recipe
from maskrcnn.training.schedule import Length, crossings, in_parts, validation_interval

Batch = Sequence[tuple[Tensor, Target]]  # pictures (3, H, W) uint8 with their objects

_SECOND_PRESS = 1.0  # seconds after the first; torchrun hands a Ctrl-C on to processes that have just had it themselves


def _nothing(state: TrainingState) -> None: ...


@dataclass(frozen=True)
class Observers:
    """What the loop tells the outside, and asks it, in every process.

    log(step, values): a line, every `Recipe.log_every` steps. stepped(state): after each step. validate(state) ->
    whether to stop early; only the main process's answer counts. save(state): the resumable state.
    """

    log: Callable[[int, dict[str, float]], None]
    validate: Callable[[TrainingState], bool]
    save: Callable[[TrainingState], None]
    stepped: Callable[[TrainingState], None] = _nothing


def learn(
    state: TrainingState, batches: Iterable[Batch], recipe: Recipe, length: Length, world: World, observers: Observers
) -> bool:
    """Train `state` in place until the run's end. Returns False if it was asked to stop before (Ctrl-C, SIGTERM).

    batches: this process's parts of an endless stream that begins at `state.progress.step`.
    Errors: `InputError` on a loss or gradient that is not finite; nothing is saved after it.
    """
    progress, started = state.progress, time.monotonic() - state.progress.seconds
    loss_model = wrapped(MaskRCNNLoss(state.model, recipe.loss), world)
    recipe, interval = in_parts(recipe, length), validation_interval(recipe, length)
    saved_at = progress.seconds
    with stop_on_signal(speaks=world.is_main) as stop_asked:
        for batch in batches:
            before = length.place(progress.step, progress.seconds)
            if before >= length.total:
                break
            set_rate(state.optimizer, peak_rate(recipe) * rate_factor(before / length.total, recipe))
            with enough_memory(TO_LEARN, f"a batch of {len(batch)} pictures"):
                values = step_once(loss_model, state, batch, recipe, world)
            progress.step += 1
            progress.seconds = from_main(time.monotonic() - started, world)
            if progress.step % recipe.log_every == 0 or progress.step == 1:
                numbers = {name: float(value) for name, value in values.items()}
                observers.log(progress.step, numbers | {"seconds": progress.seconds})
            observers.stepped(state)
            after = length.place(progress.step, progress.seconds)
            if after >= length.total or crossings(interval, before, after):
                progress.validations += 1
                finished = observers.validate(state) and world.is_main
                progress.seconds = saved_at = from_main(time.monotonic() - started, world)
                observers.save(state)
                if any_rank(finished, world):
                    break
            if any_rank(bool(stop_asked), world):
                observers.save(state)
                return False
            if progress.seconds - saved_at > 60 * recipe.save_minutes:
                saved_at = progress.seconds
                observers.save(state)
    return True


def step_once(
    loss_model: nn.Module, state: TrainingState, batch: Batch, recipe: Recipe, world: World
) -> dict[str, Tensor]:
    """One optimizer step on `batch`. Returns the losses, gradient norm and rate, not yet read back from the device.

    With `Recipe.accumulate` the batch is computed in parts and their losses averaged. Each part divides its sums by
    its own counts of anchors, RoIs and masks, so gradients equal the whole batch's only where those counts do: nearly,
    since the samplers fill up to fixed numbers, but for the masks, of which a part has as many as it has foreground.
    """
    model = state.model
    learning_mode(model)
    torch.manual_seed(hash((recipe.seed, state.progress.step, world.rank)))  # for backbones with dropout: resumable
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
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    _require_finite(sums | {"gradient_norm": norm}, state.progress.step + 1)
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


def learning_mode(model: nn.Module) -> None:
    """Training mode, but for batch norms whose weights are frozen: their statistics stay what they are, too."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
            module.eval()


def target_on(target: Target, device: torch.device) -> Target:
    """The target's tensors on `device`; its shapes stay where crop_masks reads them."""
    if device.type == "cpu":
        return target
    return replace(
        target,
        gt_boxes=target.gt_boxes.to(device, non_blocking=True),
        gt_labels=target.gt_labels.to(device, non_blocking=True),
        is_crowd=target.is_crowd.to(device, non_blocking=True),
        gt_keypoints=None if target.gt_keypoints is None else target.gt_keypoints.to(device),
        proposals=None if target.proposals is None else target.proposals.to(device, non_blocking=True),
    )


@contextmanager
def stop_on_signal(*, speaks: bool = True) -> Iterator[list[float]]:
    """Ctrl-C and SIGTERM fill the list with their times instead of ending the process; a second Ctrl-C does end it."""
    asked: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and asked and time.monotonic() - asked[0] > _SECOND_PRESS:
            raise KeyboardInterrupt
        if speaks and not asked:  # straight to the file: the interrupted code may be holding stderr's own lock
            os.write(2, b"\nstopping: this step is finished and saved first; Ctrl-C again stops at once\n")
        asked.append(time.monotonic())

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


def _parts(batch: Batch, count: int) -> list[Batch]:
    """`count` parts of one size; the recipe and `start` see to it that they come out even."""
    size = -(-len(batch) // count)
    return [batch[i : i + size] for i in range(0, len(batch), size)]


def _require_finite(values: dict[str, Tensor], step: int) -> None:
    """The gradient is looked at as well: with several processes it is what one rank's loss does to all of them."""
    if not torch.isfinite(values["total"] + values["gradient_norm"]):
        found = ", ".join(f"{name} {float(value):g}" for name, value in values.items() if not torch.isfinite(value))
        expected = "a lower learning rate, a longer warm-up, or precision float32"
        raise InputError(f"the loss or its gradient is not finite at step {step}", found=found, expected=expected)
