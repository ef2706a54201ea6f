"""How long a run is, and what is due when: learning rate, validations, epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from maskrcnn.errors import InputError
from maskrcnn.training.recipe import Recipe

_LEAST_PART = 0.1  # of a run by the clock, between validations
_LEAST_SECONDS = 180.0
_NEARLY = 1e-9  # of a count of intervals: 4 / 12 of a run and a third of it are the same place


@dataclass(frozen=True)
class Length:
    """How long a run is: so many steps, or so many seconds of wall time.

    steps_per_epoch: optimizer steps that see as many pictures as there are; a whole number only by chance.
    """

    steps: int | None
    seconds: float | None
    steps_per_epoch: float

    @property
    def total(self) -> float:
        """Of steps or seconds, whichever the run is measured in."""
        return self.seconds if self.seconds is not None else self.steps or 1

    def place(self, step: int, seconds: float) -> float:
        """How far a run is, in the unit of `total`."""
        return seconds if self.seconds is not None else step

    def part_done(self, step: int, seconds: float) -> float:
        """0 at the start, 1 at the end."""
        return self.place(step, seconds) / self.total

    def epochs(self, step: int) -> float:
        """How often each picture has been seen, on average."""
        return step / self.steps_per_epoch


def length_of(recipe: Recipe, pictures: int) -> Length:
    """The length of a run over so many training pictures."""
    steps_per_epoch = pictures / recipe.batch_size
    if recipe.minutes is not None:
        return Length(None, recipe.minutes * 60, steps_per_epoch)
    return Length(recipe.steps or max(1, math.ceil(recipe.epochs * steps_per_epoch - _NEARLY)), None, steps_per_epoch)


def in_parts(recipe: Recipe, length: Length) -> Recipe:
    """The recipe with warm-up and milestones as parts of the run, where they were given in epochs or steps.

    Errors: `InputError` where the run's length is in minutes, or warm-up is all of it.
    """
    if recipe.schedule_unit == "part":
        return recipe
    if length.steps is None:
        expected = "part, since the run's length is in minutes"
        raise InputError("does not fit", field="schedule_unit", found=recipe.schedule_unit, expected=expected)
    unit = (length.steps_per_epoch if recipe.schedule_unit == "epochs" else 1) / length.steps
    if recipe.warmup * unit >= 1:
        expected = f"less than the run's {1 / unit:g} {recipe.schedule_unit}"
        raise InputError("is too long", field="warmup", found=recipe.warmup, expected=expected)
    milestones = tuple(place * unit for place in recipe.milestones if place * unit < 1)
    return replace(recipe, schedule_unit="part", warmup=recipe.warmup * unit, milestones=milestones)


def validation_interval(recipe: Recipe, length: Length) -> float:
    """Between validations, in the unit of `length.total`; by the clock it is a tenth of the run, or three minutes."""
    if recipe.evaluate_every == 0:
        return math.inf
    if length.seconds is not None:
        return max(_LEAST_PART * length.seconds, _LEAST_SECONDS)
    return recipe.evaluate_every * length.steps_per_epoch


def crossings(interval: float, before: float, after: float) -> int:
    """How many multiples of `interval` lie above `before` and not above `after`.

    What is due hangs on the two places alone, so a resumed run needs to remember nothing.
    """
    return math.floor(after / interval + _NEARLY) - math.floor(before / interval + _NEARLY)
