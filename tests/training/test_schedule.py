"""Lengths, and what is due when."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from maskrcnn.errors import InputError
from maskrcnn.training.recipe import Recipe
from maskrcnn.training.schedule import Length, crossings, in_parts, length_of, validation_interval


@pytest.mark.parametrize(
    ("recipe", "pictures", "steps"),
    [
        (Recipe(epochs=24, batch_size=16), 160, 240),
        (Recipe(epochs=24, batch_size=16), 100, 150),  # 6.25 steps an epoch
        (Recipe(epochs=1, batch_size=16), 100, 7),
        (Recipe(epochs=0.1, batch_size=16), 3, 1),
        (Recipe(epochs=24, steps=10, batch_size=16), 100, 10),
        (Recipe(epochs=3, batch_size=3), 10, 10),  # 3 x 10 / 3, whatever floating point makes of it
    ],
)
def test_length_in_steps(recipe: Recipe, pictures: int, steps: int) -> None:
    length = length_of(recipe, pictures)
    assert (length.steps, length.seconds) == (steps, None)
    assert length.part_done(0, 99.0) == 0 and length.part_done(steps, 0.0) == 1
    assert length.epochs(steps) == pytest.approx(steps * recipe.batch_size / pictures)


def test_length_in_minutes_goes_by_the_clock() -> None:
    length = length_of(Recipe(minutes=2.0, steps=5), 100)
    assert length.part_done(1000, 30.0) == 0.25
    assert length.total == 120


@pytest.mark.parametrize(("unit", "warmup", "milestones"), [("epochs", 1.0, (4.0, 6.0)), ("steps", 10.0, (40.0, 60.0))])
def test_schedules_in_epochs_and_steps(unit: str, warmup: float, milestones: tuple[float, ...]) -> None:
    recipe = Recipe(epochs=8, batch_size=2, schedule_unit=unit, warmup=warmup, milestones=milestones)  # type: ignore[arg-type]
    same = in_parts(recipe, length_of(recipe, 20))
    assert same.schedule_unit == "part"
    assert same.warmup == pytest.approx(1 / 8)
    assert same.milestones == pytest.approx((0.5, 0.75))
    assert in_parts(same, length_of(recipe, 20)) is same


def test_milestones_beyond_the_end_never_come() -> None:
    recipe = Recipe(steps=50, schedule_unit="steps", warmup=5, milestones=(40, 60))
    assert in_parts(recipe, length_of(recipe, 20)).milestones == (0.8,)


def test_schedules_that_do_not_fit_the_run() -> None:
    timed = Recipe(minutes=3.0, schedule_unit="steps", warmup=10)
    with pytest.raises(InputError, match="schedule_unit: does not fit; found steps; expected part, since the run's"):
        in_parts(timed, length_of(timed, 20))
    short = Recipe(steps=10, schedule_unit="steps", warmup=10)
    with pytest.raises(InputError, match="warmup: is too long; found 10; expected less than the run's 10 steps"):
        in_parts(short, length_of(short, 20))


def due(length: Length, interval: float, steps: int) -> list[int]:
    return [s for s in range(1, steps + 1) if crossings(interval, length.place(s - 1, 0), length.place(s, 0))]


@pytest.mark.parametrize(
    ("every", "pictures", "expected"),
    [
        (1.0, 8, [4, 8, 12]),
        (0.5, 8, [2, 4, 6, 8, 10, 12]),
        (2.0, 8, [8]),
        (1.0, 7, [4, 7, 11]),  # epochs end after 3.5, 7 and 10.5 steps
        (1 / 3, 3, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),  # twice a step is once a step
    ],
)
def test_validations_in_epochs(every: float, pictures: int, expected: list[int]) -> None:
    recipe = Recipe(steps=12, batch_size=2, evaluate_every=every)
    length = length_of(recipe, pictures)
    assert due(length, validation_interval(recipe, length), 12) == expected


def test_validations_by_the_clock_are_ten_or_three_minutes_apart() -> None:
    for minutes, seconds in ((60.0, 360.0), (10.0, 180.0)):
        recipe = Recipe(minutes=minutes)
        assert validation_interval(recipe, length_of(recipe, 9)) == seconds
    recipe = replace(Recipe(steps=5), evaluate_every=0.0)
    assert validation_interval(recipe, length_of(recipe, 9)) == math.inf


def test_crossings() -> None:
    assert [crossings(0.1, before, before + 0.1) for before in (0.0, 0.1, 0.2, 0.3)] == [1, 1, 1, 1]
    assert crossings(2.0, 1.0, 7.0) == 3
    assert crossings(math.inf, 0.0, 1e9) == 0
