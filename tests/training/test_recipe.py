"""Recipes: checked, changed field by field, and one for each preset."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from maskrcnn.errors import InputError
from maskrcnn.model.config import from_dict, to_dict
from maskrcnn.model.presets import PRESETS
from maskrcnn.training.recipe import RECIPES, Augmentation, Recipe, changed, recipe_for


def test_every_preset_has_a_recipe() -> None:
    assert set(RECIPES) == set(PRESETS)
    with pytest.raises(InputError, match="preset: no such preset; found micro; expected nano"):
        recipe_for("micro")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    recipe = recipe_for(name)
    assert from_dict(Recipe, to_dict(recipe)) == recipe


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epochs", 0.0, "above 0"),
        ("steps", 0, "above 0"),
        ("minutes", -1.0, "above 0"),
        ("batch_size", 0, "at least 1"),
        ("accumulate", 3, "a divisor of batch_size"),
        ("accumulate", 0, "a divisor of batch_size"),
        ("learning_rate", 0.0, "above 0"),
        ("momentum", 1.0, "0 to below 1"),
        ("weight_decay", -0.1, "0 or more"),
        ("warmup", 1.0, "0 to below 1, a part of the run"),
        ("milestones", (0.5, 0.5), "numbers above 0 that rise"),
        ("milestones", (0.5, 1.0), "below 1, parts of the run"),
        ("clip_norm", 0.0, "above 0"),
        ("ema", 1.0, "0 to below 1"),
        ("freeze", 6, "0 to 5"),
        ("evaluate_every", -1.0, "0 or more"),
        ("validation_pictures", 0, "at least 1"),
        ("keep_every", 0, "at least 1"),
        ("patience", 0, "at least 1"),
        ("log_every", 0, "at least 1"),
        ("save_minutes", 0.0, "above 0"),
        ("workers", -1, "0 or more"),
        ("seed", -1, "0 or more"),
        ("seed", 1 << 63, "below 2^63"),
    ],
)
def test_impossible_values(field: str, value: Any, expected: str) -> None:
    with pytest.raises(
        InputError, match=rf"Recipe\.{field}: impossible value; found .*; expected {re.escape(expected)}"
    ):
        replace(Recipe(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", 63),
        ("longest", 0),
        ("scale", (2.0, 1.0)),
        ("shortest", ()),
        ("flip", 1.5),
        ("grey", -0.1),
        ("photometric", -1.0),
    ],
)
def test_impossible_augmentations(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"Augmentation\.{field}: impossible value"):
        Augmentation(**{field: value})


def test_changes_reach_into_the_parts() -> None:
    light = recipe_for("nano")
    other = changed(light, {"seed": 3, "augmentation": {"crop": 128, "scale": [1, 2]}, "loss": {"box": {"beta": 1}}})
    assert (other.seed, other.augmentation.crop, other.augmentation.scale, other.loss.box.beta) == (3, 128, (1, 2), 1)
    assert replace(other.augmentation, crop=256, scale=light.augmentation.scale) == light.augmentation
    assert other.loss.rpn == light.loss.rpn and other.loss.box.rois_per_image == light.loss.box.rois_per_image
    assert changed(light, {}) == light
    assert changed(light, {"augmentation": Augmentation(crop=64)}).augmentation == Augmentation(crop=64)


@pytest.mark.parametrize("unit", ["steps", "epochs"])
def test_a_length_in_another_unit_is_the_length(unit: str) -> None:
    """The light recipe counts minutes."""
    timed = replace(recipe_for("nano"), minutes=5.0, steps=7)
    other = changed(timed, {unit: 3})
    assert other.minutes is None and getattr(other, unit) == 3
    assert (other.steps is None) == (unit == "epochs")
    assert changed(timed, {"steps": 3, "minutes": 1.0}).minutes == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1.0}, "recipe: unknown field; found learning_rat; expected accumulate, "),
        ({"augmentation": {"crops": 1}}, "recipe.augmentation: unknown field; found crops"),
        ({"batch_size": "many"}, "recipe.batch_size: wrong type; found 'many'; expected a whole number"),
        ({"optimizer": "adam"}, "recipe.optimizer: wrong type; found 'adam'; expected 'sgd' or 'adamw'"),
        ({"augmentation": 3}, "recipe.augmentation: not a config"),
    ],
)
def test_changes_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed(Recipe(), changes)


@pytest.mark.parametrize("field", ["epochs", "minutes", "learning_rate"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_run_has_an_end(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"recipe\.{field}: wrong type; found (inf|nan); expected a finite number"):
        changed(Recipe(), {field: value})
